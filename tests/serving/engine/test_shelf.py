"""Prompts of many kinds on one backbone in memory: loaded, mixed, taken away; and what is refused, with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModel

import softprompt
from house.runs import train_shortly
from house.served import PROMPTS, READERS, ROWS, equal_weights, near, settle, shelved, train_readers
from house.tiny import save_backbone, write_classification, write_completion
from softprompt import SoftPromptError, prompts_of
from softprompt.serving.engine import Limits, PromptEngine, Request, Shelf, TooLongError, Writing


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="module")
def readers(root: Path) -> dict[str, Path]:
    return train_readers(root)


@pytest.fixture(scope="module")
def shelf(readers: dict[str, Path]) -> Shelf:
    return shelved(readers)


def test_every_head_gives_in_one_mixed_engine_what_it_predicts_alone(shelf: Shelf, readers: dict[str, Path]) -> None:
    engine = PromptEngine(shelf)
    futures = {(name, i): engine.submit(Request(name, row)) for name in READERS for i, row in enumerate(ROWS[name])}
    settle(engine)
    for name, folder in readers.items():
        alone = softprompt.Predictor(folder).predict(ROWS[name])
        for i, expected in enumerate(alone):
            assert near(futures[name, i].result(0).prediction, expected), name


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_label_words_of_a_causal_model_and_of_an_answer_are_served_as_predicted(kind: str, tmp_path: Path) -> None:
    backbone, animals = save_backbone(tmp_path / kind, kind), write_classification(tmp_path / "animals")
    asked = {"head": "verbalizer", "template": "{text} It was {mask}"}
    words = ({"dog": "good", "cat": "bad", "bird": "warm"}, {"dog": "red", "cat": "blue", "bird": "green"})
    folders = {
        method: train_shortly(backbone, animals, tmp_path / method, method=method, label_words=said, **asked)
        for method, said in zip(("prompt_tuning", "ept"), words, strict=True)
    }
    engine = PromptEngine(shelved(folders))
    futures = [engine.submit(Request(name, row)) for row in ROWS["words"] for name in folders]
    alone = {name: softprompt.Predictor(folder).predict(ROWS["words"]) for name, folder in folders.items()}
    for i, result in enumerate(settle(engine, futures)):
        assert near(result.prediction, alone[[*folders][i % 2]][i // 2])


def test_prompts_with_other_classes_layers_and_pairings_share_one_pass(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[list[str]] = []
    lane = shelf.find("plain").lane
    kept = type(lane)._logits

    def seen(self: Any, batch: Any, names: list[str], *rest: Any) -> Any:
        passes.append(names)
        return kept(self, batch, names, *rest)

    monkeypatch.setattr(type(lane), "_logits", seen)
    engine = PromptEngine(shelf)
    for name in ("plain", "ept", "pair", "joined", "deep"):
        engine.submit(Request(name, ROWS[name][0]))
    settle(engine)
    keys = {name: shelf.find(name).key for name in ("plain", "ept", "pair", "joined", "deep")}
    assert sorted(map(sorted, passes)) == sorted(
        [sorted([keys["plain"], keys["ept"], keys["pair"], keys["pair"]]), sorted([keys["joined"], keys["deep"]])]
    )


def test_deep_prompts_are_compiled_unless_the_operator_wants_them_as_they_are(
    shelf: Shelf, readers: dict[str, Path]
) -> None:
    assert [name for name in READERS if shelf.find(name).compiled] == ["deep", "joined"]
    plain = shelved({"deep": readers["deep"]}, compiles=False)
    assert not plain.find("deep").compiled
    rows = ROWS["deep"]
    both = [
        settle(e, [e.submit(Request("deep", row)) for row in rows]) for e in (PromptEngine(shelf), PromptEngine(plain))
    ]
    assert all(near(a.prediction, b.prediction) for a, b in zip(*both, strict=True))


def test_heads_of_several_kinds_hold_one_copy_of_the_backbone(shelf: Shelf) -> None:
    lanes = {shelf.find(name).lane for name in READERS}
    assert len(lanes) == 4
    assert all(equal_weights(shelf.find("plain"), shelf.find(name)) for name in READERS)


def test_completions_are_those_of_predict_together_and_with_pieces_that_add_up(writers: dict[str, Path]) -> None:
    shelf = shelved(writers)
    assert all(shelf.find(name).compiled for name in writers)
    engine = PromptEngine(shelf)
    pieces: dict[tuple[str, str], str] = {}

    def collect(key: tuple[str, str]) -> Any:
        return lambda piece: pieces.update({key: pieces.get(key, "") + piece})

    asked = [(name, text) for name in writers for text in PROMPTS]
    futures = [
        engine.submit(Request(name, {"prompt": text}, writing=Writing(9), on_text=collect((name, text))))
        for name, text in asked
    ]
    answers = settle(engine, futures)
    for name, folder in writers.items():
        alone = softprompt.Predictor(folder).predict([{"prompt": text} for text in PROMPTS], 9)
        assert [a.prediction for (n, _), a in zip(asked, answers, strict=True) if n == name] == alone
    assert {key: pieces.get(key, "") for key in asked} == {
        key: a.prediction["completion"] for key, a in zip(asked, answers, strict=True)
    }


def test_a_prompt_with_parts_of_the_backbone_of_its_own_changes_no_other(root: Path, readers: dict[str, Path]) -> None:
    own = train_shortly(
        root / "encoder", root / "animals", root / "own", modules_to_save=["intermediate.dense"], learning_rate=0.3
    )
    folders = {"plain": readers["plain"], "own": own, "words": readers["words"], "ept": readers["ept"]}
    alone = {
        name: softprompt.Predictor(folder).predict(ROWS.get(name, ROWS["plain"])) for name, folder in folders.items()
    }
    for order in (["plain", "own", "ept", "words"], ["own", "words", "plain", "ept"]):
        engine = PromptEngine(shelved({name: folders[name] for name in order}))
        lane = engine.shelf.find("own").lane
        assert not lane.mixes
        futures = {name: [engine.submit(Request(name, row)) for row in ROWS.get(name, ROWS["plain"])] for name in order}
        settle(engine)
        for name in order:
            for future, expected in zip(futures[name], alone[name], strict=True):
                assert near(future.result(0).prediction, expected), (order, name)
        settle(engine, [engine.remove("own")])
        assert lane.mixes
        (answer,) = settle(engine, [engine.submit(Request("plain", ROWS["plain"][0]))])
        assert near(answer.prediction, alone["plain"][0])


def test_weights_that_differ_are_not_shared(readers: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from softprompt.serving.engine import shelf as module

    kept = module.share_weights

    def changed(model: Any, others: Any) -> None:
        if others:
            with torch.no_grad():
                prompts_of(model).backbone.stack.encoder.layer[0].output.dense.weight.add_(1e-3)  # type: ignore[union-attr]
        kept(model, others)

    monkeypatch.setattr(module, "share_weights", changed)
    shelf = shelved({name: readers[name] for name in ("plain", "words")})
    assert not equal_weights(shelf.find("plain"), shelf.find("words"))


def test_a_load_that_fails_half_way_leaves_nothing_behind(
    readers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = shelved({"plain": readers["plain"]})
    monkeypatch.setattr(Shelf, "_served", lambda *_: 1 / 0)
    for name in ("deep", "words"):
        with pytest.raises(ZeroDivisionError):
            shelf.load(name, readers[name])
    monkeypatch.undo()
    assert len(shelf.find("plain").model.peft_config) == 1
    shelf.place(shelf.load("words", readers["words"]))
    assert equal_weights(shelf.find("plain"), shelf.find("words"))


def test_prompts_leave_and_come_back_and_the_last_one_takes_the_model_along(readers: dict[str, Path]) -> None:
    shelf = shelved({name: readers[name] for name in ("plain", "deep", "tags")})
    engine = PromptEngine(shelf)
    lane = shelf.find("plain").lane
    settle(engine, [engine.remove("plain")])
    assert len(lane.model.peft_config) == 1  # type: ignore[union-attr]
    settle(engine, [engine.remove("deep"), engine.remove("tags")])
    assert lane.model is None and not shelf._lanes
    settle(engine, [engine.add("plain", readers["plain"])])
    (answer,) = settle(engine, [engine.submit(Request("plain", ROWS["plain"][0]))])
    assert near(answer.prediction, softprompt.Predictor(readers["plain"]).predict(ROWS["plain"][:1])[0])


def test_a_text_that_is_too_long_is_refused_or_cut_as_offline(
    readers: dict[str, Path], writers: dict[str, Path]
) -> None:
    shelf, long = shelved({"plain": readers["plain"]}), {"text": "red dog " * 30}
    engine = PromptEngine(shelf)
    with pytest.raises(TooLongError, match="expected at most 24 tokens for 'plain', as in its training, got 62"):
        engine.submit(Request("plain", long))
    assert shelf.find("plain").pending == 0
    (cut,) = settle(engine, [engine.submit(Request("plain", long, truncate=True))])
    assert near(cut.prediction, softprompt.Predictor(readers["plain"]).predict([long])[0])
    assert cut.prompt_tokens == 24
    engine = PromptEngine(shelved({"short": writers["short"]}), Limits(new_tokens=100))
    for most in (60, 1000):
        with pytest.raises(TooLongError, match=r"new tokens behind 2 of text .the backbone has 64 positions"):
            engine.submit(Request("short", {"prompt": "red dog"}, writing=Writing(most)))
    (answer,) = settle(engine, [engine.submit(Request("short", {"prompt": "red dog"}, writing=Writing(None)))])
    assert answer.completion_tokens <= 64 - 2 - 3


@pytest.mark.parametrize("name", READERS)
def test_no_form_of_rows_is_cut_unasked(shelf: Shelf, name: str) -> None:
    row = ROWS[name][0]
    long = {key: value * 40 if isinstance(value, list) else f"{value} " * 40 for key, value in row.items()}
    with pytest.raises(TooLongError, match=f"expected at most 24 tokens for '{name}'"):
        PromptEngine(shelf).submit(Request(name, long))


def test_what_cannot_be_served_is_refused_with_the_reason(root: Path, readers: dict[str, Path]) -> None:
    shelf = shelved({"plain": readers["plain"]})
    other = root / "other"
    save_backbone(other)
    trained = train_shortly(other, root / "animals", root / "of-another")
    flat = {"backbone": str(root / "encoder"), "data": str(root / "animals"), "output_dir": str(root / "lora")}
    run = {"method": "peft:lora", "max_length": 24, "dtype": "float32", "max_steps": 2}
    softprompt.train(softprompt.RunOptions.from_flat({**flat, **run}), progress=False)
    lora = root / "lora"
    t5 = save_backbone(root / "t5", "encoder_decoder")
    writes = train_shortly(t5, write_completion(root / "t5-data"), root / "t5-run")
    damaged = root / "damaged"
    shutil.copytree(readers["plain"], damaged)
    weights = bytearray((damaged / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (damaged / "adapter_model.safetensors").write_bytes(weights)
    for name, folder, said in (
        ("../x", readers["deep"], "prompt name '../x': expected letters, digits"),
        ("plain", readers["deep"], "prompt 'plain' is served already"),
        ("nothing", root / "nothing", "expected a folder written by softprompt train, but it has no task.json"),
        ("of-another", trained, "expected one of the backbone"),
        ("lora", lora, "expected a prompt of softprompt, which mixes with others in one batch, got PEFT's LORA"),
        ("damaged", damaged, "changed since task.json was written"),
    ):
        with pytest.raises(SoftPromptError, match=said):
            shelf.load(name, folder)
    with pytest.raises(SoftPromptError, match="completions of encoder-decoders are not served; use softprompt predict"):
        Shelf().load("t5", writes)
    assert list(shelf.prompts) == ["plain"] and len(shelf.find("plain").model.peft_config) == 1
    engine = PromptEngine(shelf)
    (answer,) = settle(engine, [engine.submit(Request("plain", ROWS["plain"][0]))])
    assert near(answer.prediction, softprompt.Predictor(readers["plain"]).predict(ROWS["plain"][:1])[0])
    with pytest.raises(SoftPromptError, match="expected a non-empty 'text', got None"):
        engine.submit(Request("plain", {"prompt": "x"}))


def test_a_device_that_is_not_there_is_said() -> None:
    with pytest.raises(SoftPromptError, match="device 'abacus': expected one that torch has here, such as 'cpu'"):
        Shelf(device="abacus")


def test_a_prompt_at_a_marker_is_served_and_a_text_without_it_fails_alone(root: Path, readers: dict[str, Path]) -> None:
    data = root / "marked-data"
    for path in write_classification(data).glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**row, "text": f"{row['text']} ?"}) + "\n" for row in rows))
    marked = train_shortly(root / "encoder", data, root / "marked", marker="?")
    engine = PromptEngine(shelved({"marked": marked, "plain": readers["plain"]}))
    futures = [
        engine.submit(Request("marked", {"text": "red dog ?"})),
        engine.submit(Request("marked", {"text": "red dog"})),
        engine.submit(Request("plain", {"text": "red dog"})),
    ]
    settle(engine)
    assert near(futures[0].result(0).prediction, softprompt.Predictor(marked).predict([{"text": "red dog ?"}])[0])
    assert isinstance(futures[1].exception(0), SoftPromptError)
    assert near(
        futures[2].result(0).prediction, softprompt.Predictor(readers["plain"]).predict([{"text": "red dog"}])[0]
    )


def test_an_adapter_of_peft_alone_is_pointed_to_the_way_in(root: Path, encoder: Path) -> None:
    model = peft.get_peft_model(
        AutoModel.from_pretrained(encoder),
        peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="FEATURE_EXTRACTION"),
    )
    model.save_pretrained(str(root / "theirs"))
    with pytest.raises(
        SoftPromptError, match=r"expected a folder written by softprompt train, but it has no task.json"
    ):
        Shelf().load("theirs", root / "theirs")
