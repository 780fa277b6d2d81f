"""`softprompt inspect`: what it says of a prompt is what can be computed by hand."""

import importlib
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import softprompt
from house.runs import call, train_shortly, trained
from house.tiny import (
    WORDS,
    save_backbone,
    write_classification,
    write_completion,
    write_numbers,
    write_several,
)
from softprompt import SoftPromptError
from softprompt.serving.predict import Predictor
from softprompt.topology import metrics, persistence
from softprompt.tuner import prompts_of

KEY = "base_model.model.softprompt.softprompt_prompts.embedding"

looking = importlib.import_module("softprompt.report.look")  # report.look is the function, too
FIRST_WORD = 5  # ids of the tiny tokenizer: special tokens, then WORDS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny backbone, data, and a prompt of four tokens trained on them for a moment."""
    folder = tmp_path_factory.mktemp("inspect")
    save_backbone(folder / "backbone")
    write_classification(folder / "data")
    flat = {"backbone": str(folder / "backbone"), "data": str(folder / "data"), "output_dir": str(folder / "adapter")}
    small = {
        "method": "prompt_tuning",
        "num_virtual_tokens": 4,
        "num_train_epochs": 1,
        "max_length": 24,
        "dtype": "float32",
    }
    softprompt.train(softprompt.RunOptions.from_flat({**flat, **small, "disable_tqdm": True}), progress=False)
    return folder


def rows_of(folder):
    return load_file(folder / "adapter_model.safetensors")[KEY]


def with_rows(place, target, rows):
    """A copy of the adapter that holds other rows [D, P, H]."""
    target.mkdir()
    for name in ("adapter_config.json", "task.json", "adapter_model.safetensors"):
        (target / name).write_bytes((place / "adapter" / name).read_bytes())
    stored = load_file(target / "adapter_model.safetensors")
    save_file({**stored, KEY: rows.contiguous()}, target / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**settings, "num_virtual_tokens": rows.shape[1]}))
    card = json.loads((target / "task.json").read_text())
    del card["sha256"]  # changed on purpose
    (target / "task.json").write_text(json.dumps(card))
    return target


def embedding(place):
    return load_file(place / "backbone" / "model.safetensors")["bert.embeddings.word_embeddings.weight"]


def data(place):
    return softprompt.load_rows(place / "data" / "test.jsonl", label_names=["bird", "cat", "dog"])


def test_words_are_their_own_neighbours(place, tmp_path):
    ids = [FIRST_WORD + i for i in (3, 0, 7, 11)]
    rows = 2.5 * embedding(place)[ids]  # direction decides, not length
    found = softprompt.look(with_rows(place, tmp_path / "words", rows[None]), top=3)
    assert [token["nearest"][0]["token"] for token in found["tokens"]] == [WORDS[i] for i in (3, 0, 7, 11)]
    for token, row in zip(found["tokens"], rows, strict=True):
        cosines = [near["cosine"] for near in token["nearest"]]
        assert (
            cosines[0] == pytest.approx(1, abs=1e-5) and cosines == sorted(cosines, reverse=True) and len(cosines) == 3
        )
        assert token["norm"] == pytest.approx(row.norm().item(), rel=1e-5)
    assert found["topology"]["0"] == metrics(persistence(rows))
    assert found["null"]["mean"] <= found["null"]["largest"] < 1
    assert found["layers"] == [0] and found["warnings"] == []


def test_rows_far_from_the_vocabulary_are_warned_of(place, tmp_path):
    torch.manual_seed(0)
    far = with_rows(place, tmp_path / "far", 100 * torch.randn(1, 4, 32))
    warnings = softprompt.look(far)["warnings"]
    assert any("the prompt left the embeddings; train with a lower learning_rate" in w for w in warnings)
    direction = embedding(place)[FIRST_WORD:].mean(0) * 0 + torch.eye(32)[0]
    lost = with_rows(place, tmp_path / "lost", 0.1 * direction.expand(1, 4, 32) - 0.1 * embedding(place).mean(0))
    found = softprompt.look(lost)
    nearest = max(token["nearest"][0]["cosine"] for token in found["tokens"])
    said = any("no virtual token is nearer to a word than random rows are" in w for w in found["warnings"])
    assert said == (nearest <= found["null"]["largest"])


def test_an_adapter_is_like_itself_and_unlike_another(place, tmp_path):
    torch.manual_seed(0)
    other = with_rows(place, tmp_path / "other", torch.randn(1, 6, 32))
    itself, apart = softprompt.look(place / "adapter", others=[place / "adapter", other])["others"]
    assert itself["cosine"] == pytest.approx(1, abs=1e-5) and itself["wasserstein h0"] == 0
    assert apart["cosine"] < 0.9 and apart["wasserstein h0"] > 0


def test_importance_is_the_loss_without_a_token(place, tmp_path):
    found = softprompt.look(place / "adapter", rows=data(place))
    rows = rows_of(place / "adapter")

    def loss(folder):
        predictor, total = Predictor(folder), 0.0
        for row in data(place).to_list():
            scores = predictor.predict([{"text": row["text"]}])[0]["scores"]
            total -= torch.tensor(list(scores.values()))[row["label"]].log().item()
        return total / len(data(place))

    base = loss(place / "adapter")
    for token in range(4):
        kept = [i for i in range(4) if i != token]
        cut = with_rows(place, tmp_path / f"without-{token}", rows[:, kept])
        assert found["tokens"][token]["importance"] == pytest.approx(loss(cut) - base, abs=1e-5)
    assert any(abs(token["importance"]) > 1e-6 for token in found["tokens"])


def test_deep_and_late_prompts(place, tmp_path):
    flat = {
        "backbone": str(place / "backbone"),
        "data": str(place / "data"),
        "num_train_epochs": 1,
        "max_length": 24,
        "dtype": "float32",
    }
    for layers in ([0, 1], [1]):
        folder = tmp_path / f"deep{len(layers)}"
        options = {**flat, "method": "deep_prompts", "num_virtual_tokens": 3, "layers": layers, "disable_tqdm": True}
        softprompt.train(softprompt.RunOptions.from_flat({**options, "output_dir": str(folder)}), progress=False)
        found = softprompt.look(folder, rows=data(place))
        assert list(found["topology"]) == [str(i) for i in layers]
        assert len(found["tokens"]) == 3 and all("importance" in token for token in found["tokens"])
        assert ("nearest" in found["tokens"][0]) == (layers[0] == 0)
    assert found["warnings"] == [
        "the prompt enters behind the embeddings, where no vocabulary token stands to compare with."
    ]


def test_refusals(place, tmp_path):
    narrow = tmp_path / "narrow"
    with_rows(place, narrow, torch.zeros(1, 4, 16))
    settings = json.loads((narrow / "adapter_config.json").read_text())
    (narrow / "adapter_config.json").write_text(json.dumps({**settings, "hidden_size": 16}))
    with pytest.raises(
        SoftPromptError, match=r"expected a prompt of width 32, got .*; compare adapters of one backbone"
    ):
        softprompt.look(place / "adapter", others=[narrow])
    flat = {
        "backbone": str(place / "backbone"),
        "data": str(place / "data"),
        "num_train_epochs": 1,
        "max_length": 24,
        "dtype": "float32",
    }
    options = {**flat, "method": "spt", "num_virtual_tokens": 3, "layers": [0], "bottleneck": 4, "disable_tqdm": True}
    generated = str(tmp_path / "generated")
    softprompt.train(softprompt.RunOptions.from_flat({**options, "output_dir": generated}), progress=False)
    assert softprompt.look(generated)["tokens"]
    with pytest.raises(SoftPromptError, match="importance leaves tokens out of a constant prompt; this one is made"):
        softprompt.look(generated, rows=data(place))
    decoder = save_backbone(tmp_path / "decoder", "decoder")
    lines = write_completion(tmp_path / "completion")
    flat = {
        "backbone": str(decoder),
        "data": str(lines),
        "num_train_epochs": 1,
        "max_length": 24,
        "dtype": "float32",
        "test_limit": 1,
    }
    options = {**flat, "method": "prompt_tuning", "num_virtual_tokens": 2, "disable_tqdm": True}
    completing = str(tmp_path / "completing")
    softprompt.train(softprompt.RunOptions.from_flat({**options, "output_dir": completing}), progress=False)
    with pytest.raises(
        SoftPromptError, match="worth is measured on texts with a label; this adapter is for completion: leave the rows"
    ):
        softprompt.look(completing, rows=softprompt.load_rows(lines / "test.jsonl"))


def test_command_line(place, monkeypatch, capsys):
    words = ["inspect", place / "adapter", "--data", place / "data" / "test.jsonl", "--other", place / "adapter"]
    assert call(monkeypatch, *words) == 0
    shown = capsys.readouterr().out
    assert "virtual tokens" in shown and "h0_count" in shown and "wasserstein" in shown
    assert call(monkeypatch, *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["tokens"]) == 4 and found["others"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert call(monkeypatch, "inspect", place / "adapter", "--split", "dev") == 2
    assert "--split and --set are about the rows of --data: expected --data, too" in capsys.readouterr().err
    assert call(monkeypatch, "inspect", place / "nothing") == 2
    assert "expected an adapter's folder with adapter_config.json" in capsys.readouterr().err


# ---------------------------------------------------------------------- whether the method acts


@pytest.fixture(scope="module")
def fused(place):
    """A run of EPT with TSLoss beside it, and what it returned."""
    flat = {
        "method": "ept",
        "backbone": str(place / "backbone"),
        "data": str(place / "data"),
        "output_dir": str(place / "fused"),
        "num_virtual_tokens": 4,
        "rank": 2,
        "max_positions": 12,
        "num_spaces": 3,
        "objectives": [{"name": "ts_loss", "share": 0.25}, {"name": "l2", "weight": 0.02}],
        "share_every": 1,
        "num_train_epochs": 2,
        "max_length": 24,
        "dtype": "float32",
        "disable_tqdm": True,
    }
    return softprompt.train(softprompt.RunOptions.from_flat(flat), progress=False)


def test_a_run_notes_how_its_parts_act(place, fused):
    noted = json.loads((place / "fused" / "result.json").read_text())["train_info"]
    acted, history = noted["mechanism"], noted["metrics"]
    prompt = prompts_of(fused.model).active_prompt()
    attention = prompt.attention()[0].double()
    entropy = -(attention * attention.log()).sum(-1).mean().item() / math.log(12)
    assert acted["fusion_entropy"] == pytest.approx(entropy, rel=1e-4)
    assert acted["gates"] == pytest.approx(prompt.gates()[0, 0].tolist(), rel=1e-4)
    assert acted["fusion_norm"] > 0 and acted["projection_norm"] > 0
    shares = [entry["share of ts_loss"] for entry in history if "share of ts_loss" in entry]
    assert len(shares) == 2  # a line of the log for each epoch
    # with the weight that was in force: near to what was asked for, and not that itself
    assert all(0.1 < share < 0.6 and abs(share - 0.25) > 1e-3 for share in shares)
    assert acted["gradient_share"]["ts_loss"] == pytest.approx(sum(shares) / 2, rel=1e-4)
    assert acted["gradient_share"]["l2"] == pytest.approx(
        sum(entry["share of l2"] for entry in history if "share of l2" in entry) / 2, rel=1e-4
    )


def test_inspect_shows_it(place, fused, capsys, monkeypatch):
    found = softprompt.look(place / "fused")["mechanism"]
    assert found == json.loads((place / "fused" / "result.json").read_text())["train_info"]["mechanism"]
    assert call(monkeypatch, "inspect", place / "fused") == 0
    out = capsys.readouterr().out
    for said in ("fusion entropy", "gradient share: ts_loss", "gradient share: l2"):
        assert said in out
    assert softprompt.look(place / "adapter")["mechanism"] == {}


@pytest.mark.parametrize("damage", [{"train_info": []}, {"train_info": {"mechanism": {"gates": "a"}}}], ids=str)
def test_a_damaged_note_is_named(place, fused, tmp_path, damage):
    folder = tmp_path / "damaged"
    shutil.copytree(place / "fused", folder, ignore=shutil.ignore_patterns("checkpoints"))
    (folder / "result.json").write_text(json.dumps(damage))
    with pytest.raises(SoftPromptError, match=r"result.json: train_info.mechanism: expected figures by name"):
        softprompt.look(folder)


def test_what_a_token_is_worth_is_measured_for_numbers_and_several_classes(tmp_path):
    encoder = save_backbone(tmp_path / "encoder")
    for name, write, more in (("numbers", write_numbers, {"kind": "regression"}), ("several", write_several, {})):
        data = write(tmp_path / name)
        folder = train_shortly(encoder, data, tmp_path / f"{name}-run", **more)
        rows = softprompt.load_task(data, **more).test
        found = softprompt.look(folder, rows=rows)
        worth = [token["importance"] for token in found["tokens"]]
        assert len(worth) == 3 and all(math.isfinite(value) for value in worth) and any(worth)


def test_a_shape_is_compared_layer_by_layer_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clouds = torch.stack([torch.eye(4), 9 * torch.eye(4)])
    monkeypatch.setattr(looking, "adapter_folder", lambda path: path)
    monkeypatch.setattr(looking, "read_prompt", lambda path: lambda: SimpleNamespace(prefix=clouds))
    assert looking._compare(clouds, "x")["wasserstein h0"] == 0


def test_what_a_token_is_worth_does_not_go_by_batches(
    encoder: Path, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(encoder, animals, tmp_path / "a", max_steps=2)
    rows, kept = softprompt.load_task(animals).test, looking.encoded_batches
    whole = softprompt.look(tmp_path / "a", rows=rows)["tokens"]
    monkeypatch.setattr(looking, "encoded_batches", lambda *given: kept(*given, size=len(rows) - 1))
    for one, other in zip(whole, softprompt.look(tmp_path / "a", rows=rows)["tokens"], strict=True):
        assert one["importance"] == pytest.approx(other["importance"], abs=1e-6)


def test_special_tokens_and_placeholders_are_no_neighbours(place, tmp_path):
    """Of virtual tokens that are [CLS] and a placeholder themselves; "red" is special without a part. Ids 29 to 39 have a vector and no token."""
    backbone = shutil.copytree(place / "backbone", tmp_path / "backbone")
    file, renamed = backbone / "tokenizer.json", {"warm": "[unused12]", "cold": "<unused3>"}
    content = json.loads(file.read_text())
    content["model"]["vocab"] = {renamed.get(token, token): i for token, i in content["model"]["vocab"].items()}
    content["added_tokens"].append(
        {**content["added_tokens"][0], "id": content["model"]["vocab"]["red"], "content": "red", "special": True}
    )
    file.write_text(json.dumps(content))
    rows = embedding(place)[[2, FIRST_WORD + WORDS.index("warm")]]
    seen = softprompt.look(with_rows(place, tmp_path / "special", rows[None]), str(backbone), top=99)
    for token in seen["tokens"]:
        assert {near["token"] for near in token["nearest"]} == {*WORDS, ".", "?", "was", "It"} - renamed.keys() - {
            "red"
        }
