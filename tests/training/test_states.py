"""States computed once: each row its own, in memory and on disk, and runs on them equal runs without."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor, nn

import softprompt
from house import families as f
from house.batches import collate, encoded_rows
from house.families import BERT, HIDDEN, LLAMA, backbone, close
from house.models import attached, infoprompt, passes, state_of, trainer, tuned, weights_of
from house.runs import told_of_states
from house.tiny import save_backbone, tokenizer, write_classification, write_completion
from softprompt import SoftPromptError
from softprompt.data import WithStates, collator
from softprompt.training.keys.options import RunOptions

# ---------------------------------------------------------------------- rows, batches, files


def classified(*lengths: int) -> Dataset:
    ids = [row.tolist() for row in f.tokens(*lengths, seed=3)]
    return Dataset.from_list(
        [{"input_ids": row, "attention_mask": [1] * len(row), "labels": i % 3} for i, row in enumerate(ids)]
    )


def padded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    made = f.batch([torch.tensor(row["input_ids"]) for row in rows])
    return {**made, "labels": torch.tensor([row["labels"] for row in rows])} if "labels" in rows[0] else made


@pytest.mark.parametrize("side", ["left", "right"])
def test_states_are_padded_as_their_ids_are(side):
    words = tokenizer()
    words.padding_side = side
    states = [torch.full((n, 2), float(n)) for n in (3, 1)]
    pad = WithStates(collator(words, "classification"), states, "below")
    rows: list[dict[str, Any]] = [
        {"input_ids": [7], "attention_mask": [1], "below": 1},
        {"input_ids": [7, 8, 9], "attention_mask": [1, 1, 1], "below": 0},
    ]
    batch = pad(rows)
    assert batch["below"].shape == (*batch["input_ids"].shape, 2) == (2, 8, 2)
    assert torch.equal(batch["below"][..., 0], batch["attention_mask"] * torch.tensor([[1.0], [3.0]]))
    assert rows[0]["below"] == 1  # rows are not changed
    bare = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]
    assert "below" not in pad(bare)


@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_every_row_gets_its_own_states_in_both_data_sets(keep, cache, caplog):
    caplog.set_level(logging.INFO, logger="softprompt")
    model = f.prompted(BERT, "seq_cls", "spt", layers=[2])
    splits, told = [classified(9, 5, 12, 7), classified(4, 8)], []
    numbered, pad = softprompt.add_below(
        model, splits, padded, keep, batch_size=3, progress=lambda *now: told.append(now)
    )
    assert told == [(3, 4), (4, 4), (2, 2)]
    assert [rows["below"] for rows in numbered] == [[0, 1, 2, 3], [4, 5]]
    for rows, own in zip(numbered, splits, strict=True):
        assert rows.remove_columns("below").to_list() == own.to_list()
        for row in rows:
            expected = model.base_model.state.states_below(padded([row]))
            f.close(pad([row])["below"], expected)
    assert (
        "cache_below" in caplog.text and "45 tokens of 6 rows are at layer 2; a step runs 1 of 3 layers" in caplog.text
    )
    assert (cache / "below").exists() == (keep == "disk")


def test_states_on_disk_are_read_again_and_belong_to_rows_layer_and_backbone(cache):
    rows = classified(9, 5, 12, 7)

    def made(layer: int = 2, change: Any = None, chosen: Dataset = rows) -> tuple[int, Tensor, bool]:
        model, ran = f.prompted(BERT, "seq_cls", "spt", layers=[layer]), []
        if change is not None:
            change(model.base_model.state.backbone.stack)
        model.base_model.state.entry_layer()
        model.base_model.state.backbone.layers[0].register_forward_hook(lambda *_: ran.append(1))
        (numbered,), pad = softprompt.add_below(model, [chosen], padded, "disk")
        return len(list((cache / "below").iterdir())), pad(numbered.to_list())["below"], bool(ran)

    count, first, ran = made()
    again = made()
    assert (count, ran) == (1, True) and (again[0], again[2]) == (1, False) and torch.equal(first, again[1])
    assert made(layer=1)[0] == 2
    assert made(change=lambda stack: stack.encoder.layer[1].output.dense.weight.data[0].add_(1e-3))[0] == 3
    count, low, _ = made(change=lambda stack: stack.to(torch.bfloat16))
    assert count == 4 and low.dtype == torch.bfloat16
    f.close(low.float(), first, 0.1)
    assert made(chosen=rows.select([1, 0, 2, 3]))[0] == 5
    assert all(not path.name.startswith(".") for path in (cache / "below").iterdir())  # nothing half-written stays


# ---------------------------------------------------------------------- runs


class Ran(tf.TrainerCallback):
    """Counts how often the first layer of the backbone really runs in training."""

    def __init__(self) -> None:
        self.rows = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        layer = kwargs["model"].base_model.state.backbone.layers[0]
        inside = next(module for module in layer.modules() if isinstance(module, nn.Linear))
        inside.register_forward_hook(lambda *_: setattr(self, "rows", self.rows + 1))


def options(backbone: Path, data: Path, output: Path, **more: Any) -> RunOptions:
    flat = dict(backbone=str(backbone), data=str(data), output_dir=str(output), method="spt", num_virtual_tokens=3)
    small = dict(layers=[1], bottleneck=4, num_train_epochs=2, per_device_train_batch_size=8, learning_rate=0.02)
    return RunOptions.from_flat({**flat, **small, "max_length": 24, "dtype": "float32", "disable_tqdm": True, **more})


def run(*args: Any, resume: bool = False, **more: Any) -> tuple[softprompt.training.RunResult, int]:
    watch = Ran()
    return softprompt.train(options(*args, **more), resume=resume, callbacks=[watch], progress=False), watch.rows


def same_run(one: softprompt.training.RunResult, other: softprompt.training.RunResult) -> None:
    for key, value in one.metrics.items():
        assert other.metrics[key] == pytest.approx(value, abs=1e-5), key
    for a, b in zip(*(r.document["train_info"]["metrics"] for r in (one, other)), strict=True):
        for key in a.keys() & {"loss", "eval_loss", "eval_accuracy"}:
            assert b[key] == pytest.approx(a[key], abs=1e-5), key
    weights = [load_file(r.folder / "adapter_model.safetensors") for r in (one, other)]
    for key, value in weights[0].items():
        f.close(weights[1][key], value, 1e-4)


@pytest.mark.parametrize(
    ("head", "more"),
    [
        ("pooled", {}),
        (
            "verbalizer",
            {"template": "{text} It was {mask}.", "label_words": {"dog": "red", "cat": "blue", "bird": "sun"}},
        ),
    ],
)
def test_a_run_with_cached_states_equals_the_run_without(head, more, tmp_path):
    backbone, data = save_backbone(tmp_path / "backbone"), write_classification(tmp_path / "data", 24)
    plain, ran = run(backbone, data, tmp_path / "plain", head=head, **more)
    assert ran > 0
    for keep in ("memory", "disk"):
        cached, ran = run(backbone, data, tmp_path / keep, head=head, cache_below=keep, **more)
        same_run(plain, cached)
        # the test rows run whole, once; of training and its evaluations nothing does
        assert ran == 1
        texts = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()[:8]]
        rows = [{"text": row["text"]} for row in texts]
        found = [softprompt.Predictor(r.folder).predict(rows) for r in (plain, cached)]
        assert [row["label"] for row in found[0]] == [row["label"] for row in found[1]]


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_a_run_on_completions(kind, tmp_path):
    backbone, data = save_backbone(tmp_path / "backbone", kind), write_completion(tmp_path / "data")
    plain, _ = run(backbone, data, tmp_path / "plain", num_train_epochs=1)
    cached, _ = run(backbone, data, tmp_path / "cached", num_train_epochs=1, cache_below="memory")
    same_run(plain, cached)


def test_a_killed_run_resumes(tmp_path):
    class Cut(tf.TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.epoch > 1.5:
                raise KeyboardInterrupt

    backbone, data = save_backbone(tmp_path / "backbone"), write_classification(tmp_path / "data", 24)
    whole, _ = run(backbone, data, tmp_path / "whole", cache_below="disk")
    with pytest.raises(KeyboardInterrupt):
        softprompt.train(
            options(backbone, data, tmp_path / "cut", cache_below="disk"), callbacks=[Cut()], progress=False
        )
    resumed, ran = run(backbone, data, tmp_path / "cut", cache_below="disk", resume=True)
    assert ran == 1
    weights = [load_file(r.folder / "adapter_model.safetensors") for r in (whole, resumed)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    with pytest.raises(SoftPromptError, match="cache_below: 'disk' then, None now"):
        run(backbone, data, tmp_path / "cut", resume=True)


def test_runs_that_cannot_use_it_are_refused_before_they_train(tmp_path):
    backbone, data = save_backbone(tmp_path / "backbone"), write_classification(tmp_path / "data", 24)

    def refused(match: str, **more: Any) -> None:
        with pytest.raises(SoftPromptError, match=match):
            run(backbone, data, tmp_path / "refused", **{"cache_below": "memory", **more})
        assert not (tmp_path / "refused").exists()

    refused("unknown cache_below 'ram': expected one of none, memory, disk", cache_below="ram")
    refused("cache_below_limit: expected a whole number of at least 1", cache_below_limit=0)
    refused("got one that enters at layer 0; name its layers", layers=[0, 1])
    refused("got one that is searched, and may enter at layer 0", layers=None)
    refused("got one that changes the embeddings", method="deep_prompts", max_positions=8, **{"bottleneck": 256})
    refused("expected backbone_dropout=False, got True", backbone_dropout=True)


def test_a_baseline_and_too_many_states_are_refused(tmp_path):
    backbone, data = save_backbone(tmp_path / "backbone"), write_classification(tmp_path / "data", 24)
    flat = dict(backbone=str(backbone), data=str(data), output_dir=str(tmp_path / "run"), cache_below="memory")
    with pytest.raises(SoftPromptError, match="expected a method of this library, got 'peft:lora'"):
        softprompt.train(RunOptions.from_flat({**flat, "method": "peft:lora"}), progress=False)
    rows = "".join(json.dumps({"text": " ".join(["dog", "cat"] * 60), "label": "ab"[i % 2]}) + "\n" for i in range(160))
    for name in ("train", "validation", "test"):
        (data / f"{name}.jsonl").write_text(rows)
    # 320 rows of 61 tokens, 32 values of 4 bytes; the test rows are read once and not kept
    flat |= {
        "dtype": "float32",
        "method": "deep_prompts",
        "layers": [1],
        "num_virtual_tokens": 3,
        "max_length": 56,
        "head_init": "random",
    }
    with pytest.raises(SoftPromptError, match=r"at most cache_below_limit=1 MiB of states, got 3 MiB \(17,920 tokens"):
        softprompt.train(RunOptions.from_flat({**flat, "cache_below_limit": 1}), progress=False)


# ---------------------------------------------------------------------- states computed once


LENGTHS = (9, 5, 12, 7, 3, 8, 6)


@pytest.mark.parametrize("head", ["seq_cls", "causal_lm"])
def test_the_column_holds_each_rows_own_state_in_order(head):
    family = LLAMA if head == "causal_lm" else BERT
    model, rows = attached(backbone(family, head), infoprompt(head)), encoded_rows(head, *LENGTHS)
    told = []
    found = softprompt.add_unprompted(model, rows, collate, batch_size=3, progress=lambda *now: told.append(now))
    assert told == [(3, 7), (6, 7), (7, 7)]
    assert found.column_names == [*rows.column_names, "unprompted"]
    assert found.remove_columns("unprompted").to_list() == rows.to_list()
    states = torch.tensor(found["unprompted"])
    assert states.shape == (7, HIDDEN)
    for row, state in zip(rows, states, strict=True):
        with torch.no_grad():
            close(state, state_of(model).bare_states(collate([row]))[0])
    assert model.training and all(module.training for module in model.modules())
    again = softprompt.add_unprompted(model, found, collate)  # an old column is replaced
    assert again.column_names == found.column_names and again["unprompted"] == found["unprompted"]


def test_a_column_is_read_back_from_disk(cache, caplog):
    caplog.set_level(logging.INFO, logger="softprompt")
    model, rows = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls")), encoded_rows("seq_cls", *LENGTHS)
    count = passes(model)
    first = softprompt.add_unprompted(model, rows, collate)
    assert len(count) == 1 and not told_of_states(caplog)
    (file,) = (cache / "unprompted").iterdir()
    assert file.suffix == ".safetensors" and load_file(file)["unprompted"].shape == (7, HIDDEN)
    second = softprompt.add_unprompted(model, rows, collate)
    assert len(count) == 1 and second["unprompted"] == first["unprompted"]
    assert told_of_states(caplog) == [f"unprompted states: 7 of them from {file}"]
    other = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls", num_virtual_tokens=2, init_seed=5))
    assert softprompt.add_unprompted(other, rows, collate)["unprompted"] == first["unprompted"]
    assert list((cache / "unprompted").iterdir()) == [file]  # the prompt does not matter


def test_another_backbone_representation_or_row_makes_another_file(cache):
    rows = encoded_rows("seq_cls", *LENGTHS)

    def made(change=None, chosen=rows, **options):
        model = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls", **options))
        with torch.no_grad():
            if change is not None:
                change(state_of(model).backbone.stack)
        softprompt.add_unprompted(model, chosen, collate)
        return len(list((cache / "unprompted").iterdir()))

    def layer(stack):
        stack.encoder.layer[1].output.dense.weight[0, 0] += 1e-3

    def half(stack):
        stack.to(torch.bfloat16)

    assert made() == made() == 1
    assert made(layer) == 2
    assert made(half) == 3
    assert made(representation="mean") == 4
    assert made(chosen=rows.select([1, 0, *range(2, 7)])) == 5
    assert made() == 5


def test_a_backbone_with_other_facts_makes_another_file(cache):
    """Equal weights, another activation: the states are others too."""
    rows, found = encoded_rows("seq_cls", *LENGTHS), []
    for activation in ("gelu", "relu"):
        base = tf.AutoModelForSequenceClassification.from_config(BERT.config(hidden_act=activation))
        base.load_state_dict(backbone(BERT, "seq_cls").state_dict())
        model = attached(base, infoprompt("seq_cls"))
        found.append(torch.tensor(softprompt.add_unprompted(model, rows, collate)["unprompted"]))
    assert not torch.equal(*found)


def test_columns_that_no_model_takes_are_left_alone():
    model, rows = attached(backbone(BERT, "seq_cls"), infoprompt("seq_cls")), encoded_rows("seq_cls", 5, 6)
    rows = rows.add_column("text", ["red dog", "cat"])
    assert "text" in softprompt.add_unprompted(model, rows, collate).column_names


@pytest.mark.parametrize("generator", ["free", "instance"])
def test_a_trainer_hands_the_column_over(generator, tmp_path):
    """Training on the column equals training that computes the states in each step, without its passes."""
    rows, found = encoded_rows("seq_cls", 9, 7, 6, 5, 8, 4, 9, 5), []
    for column in (True, False):
        model = tuned(generator=generator)
        chosen = softprompt.add_unprompted(model, rows, collate) if column else rows
        run, count = trainer(model, tmp_path, chosen, optim="sgd"), passes(model)
        run.train()
        assert len(count) == 4 if column else len(count) > 4
        found.append(weights_of(run.model))
    for key, value in found[0].items():
        close(value, found[1][key], 1e-5)
