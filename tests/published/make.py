"""How the fixtures of this folder were made, kept as a record: ``PYTHONPATH=src python tests/published/make.py``.

They stand for what users have on their disks: written once, by the release named in ``made.json``, and never again. A test
that fails on them is no reason to write them anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from peft import get_peft_model
from rebuild import backbone, inputs, output, save_backbones
from safetensors.torch import save_file
from transformers import TrainerCallback

import softprompt
from softprompt import RunOptions, objective
from softprompt.cli import main as command
from softprompt.experiments.records import read_cells
from softprompt.experiments.runner import run_suite
from softprompt.experiments.statistics import Scores
from softprompt.experiments.suite import read_suite
from softprompt.experiments.tables import comparison_table, results_table
from softprompt.training import to_yaml

HERE = Path(__file__).resolve().parent
TASK = {
    "base": "FEATURE_EXTRACTION",
    "masked_lm": None,
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "seq_cls": "SEQ_CLS",
    "token_cls": "TOKEN_CLS",
}
Case = tuple[str, str, str, dict[str, Any]]
EPT = {"num_virtual_tokens": 4, "rank": 3, "max_positions": 6, "num_spaces": 2, "space_bottleneck": 3}
DEPT = {"num_virtual_tokens": 3, "rank": 2, "max_positions": 7}
SPT = {"num_virtual_tokens": 3, "bottleneck": 4}
PLAIN = {"num_virtual_tokens": 4}

# name of the folder: family, head, builder, keywords
ADAPTERS: dict[str, Case] = {
    "prompt_tuning-bert-seq_cls": ("bert", "seq_cls", "prompt_tuning", {**PLAIN, "init": "normal"}),
    "prompt_tuning-bert-base": ("bert", "base", "prompt_tuning", {"num_virtual_tokens": 1}),
    "prompt_tuning-gpt2-causal_lm": (
        "gpt2",
        "causal_lm",
        "prompt_tuning",
        {**PLAIN, "shared_prefix": False, "label_only_logits": False, "learning_rates": {"prompt": 0.3}},
    ),
    "prompt_tuning-llama-causal_lm": (
        "llama",
        "causal_lm",
        "prompt_tuning",
        {**PLAIN, "objectives": [objective("l2", weight=0.2, every=2), objective("pairwise", decay=0.5)]},
    ),
    "prompt_tuning-t5-seq2seq_lm": ("t5", "seq2seq_lm", "prompt_tuning", {"num_virtual_tokens": 6}),
    "prompt_tuning-bart-seq_cls": ("bart", "seq_cls", "prompt_tuning", PLAIN),
    "prompt_tuning-opt-causal_lm": ("opt", "causal_lm", "prompt_tuning", PLAIN),
    "prompt_tuning-delta-bert-masked_lm": ("bert", "masked_lm", "prompt_tuning", {**PLAIN, "max_positions": 5}),
    "deep_prompts-bert-seq_cls": ("bert", "seq_cls", "deep_prompts", {**PLAIN, "layers": [1, 2], "tau": 0.5}),
    "deep_prompts-gpt2-seq_cls": ("gpt2", "seq_cls", "deep_prompts", {"num_virtual_tokens": 2}),
    "deep_prompts-llama-token_cls": ("llama", "token_cls", "deep_prompts", {**PLAIN, "layers": [2]}),
    "deep_prompts-t5-seq_cls": (
        "t5",
        "seq_cls",
        "deep_prompts",
        {"num_virtual_tokens": 2, "layers": [0, 2], "modules_to_save": ["classification_head"]},
    ),
    "deep_prompts-modernbert-masked_lm": ("modernbert", "masked_lm", "deep_prompts", {**PLAIN, "layers": [0, 1]}),
    "dept-bert-token_cls": ("bert", "token_cls", "dept", {**DEPT, "alpha": 4.0}),
    "dept-t5-seq2seq_lm": ("t5", "seq2seq_lm", "dept", {**DEPT, "learning_rates": {"prompt": 0.3, "low_rank": 5e-4}}),
    "dept-gpt2-causal_lm": ("gpt2", "causal_lm", "dept", {**DEPT, "rank": 4}),
    "dept-qwen2-causal_lm": ("qwen2", "causal_lm", "dept", {**DEPT, "fusion_memory": "factor"}),
    "ept-bert-seq_cls": ("bert", "seq_cls", "ept", {**EPT, "gate": "token", "fusion_memory": "factor"}),
    "ept-llama-causal_lm": ("llama", "causal_lm", "ept", {**EPT, "space_activation": "relu", "alpha": 2.0}),
    "ept-t5-seq2seq_lm": ("t5", "seq2seq_lm", "ept", {**EPT, "num_spaces": 3}),
    "ept-roberta-token_cls": ("roberta", "token_cls", "ept", {**EPT, "fusion_memory": "none", "num_spaces": 1}),
    "ept-gpt2-causal_lm": ("gpt2", "causal_lm", "ept", {**EPT, "num_spaces": 0}),
    "spt-bert-seq_cls": ("bert", "seq_cls", "spt", {**SPT, "layers": [0, 2], "generator_pooling": "attention"}),
    "spt-gpt2-causal_lm": ("gpt2", "causal_lm", "spt", {**SPT, "layers": [1], "tau": 0.5, "generator_pooling": "max"}),
    "spt-llama-seq_cls": (
        "llama",
        "seq_cls",
        "spt",
        {**SPT, "layers": [1, 2], "phm_factor": 2, "generator_activation": "relu"},
    ),
    "spt-t5-seq2seq_lm": ("t5", "seq2seq_lm", "spt", {**SPT, "layers": [0, 1], "shared_generator": True}),
    "spt-gates-bert-seq_cls": (
        "bert",
        "seq_cls",
        "spt",
        {**SPT, "budget": 2, "decoupled_gates": False, "shared_generator": True, "consistency": 0.5, "tau": 0.8},
    ),
    "spt-gates-deberta-v2-token_cls": ("deberta-v2", "token_cls", "spt", {**SPT, "layer_score": "ablation"}),
    "infoprompt-bert-seq_cls": (
        "bert",
        "seq_cls",
        "infoprompt",
        {**PLAIN, "negatives": "gaussian", "latent": 3, "decay": 0.5, "representation": "cls"},
    ),
    "infoprompt-instance-llama-seq_cls": (
        "llama",
        "seq_cls",
        "infoprompt",
        {
            **PLAIN,
            "generator": "instance",
            "placement": "deep",
            "bottleneck": 3,
            "latent": 3,
            "negatives": "batch",
            "representation": "last",
        },
    ),
    "infoprompt-instance-bert-masked_lm": (
        "bert",
        "masked_lm",
        "infoprompt",
        {**PLAIN, "generator": "instance", "bottleneck": 3, "latent": 3, "representation": "mean"},
    ),
    "tsloss-gpt2-causal_lm": (
        "gpt2",
        "causal_lm",
        "tsloss",
        {**PLAIN, "l1": 0.2, "l2": 0.3, "alpha": 5.0, "objectives": [objective("persistence", weight=0.1)]},
    ),
    "tsloss-qwen3-token_cls": ("qwen3", "token_cls", "tsloss", PLAIN),
    "contrast-bert-seq_cls": ("bert", "seq_cls", "contrast", {"num_virtual_tokens": 2, "temperature": 0.05}),
    "contrast-gemma3-seq_cls": (
        "gemma3",
        "seq_cls",
        "contrast",
        {"layers": [1, 2], "weight": 0.5, "objectives": [objective("ts_loss", l1=0.3, layers=[2])]},
    ),
    "contrast-gpt-oss-seq_cls": ("gpt-oss", "seq_cls", "contrast", {"num_virtual_tokens": 2}),
}
ONE_OF_SEVERAL = "several-bert-seq_cls"  # an adapter beside another, in a folder of its own name
COLLAPSED = "collapsed-bert-seq_cls"
EXPORTED = "exported-llama-causal_lm"  # PEFT's own PROMPT_TUNING


def stirred(family: str, head: str, builder: str, options: dict[str, Any], seed: int) -> Any:
    """The backbone with the prompt, and with everything that is trained moved off its start."""
    config = getattr(softprompt, builder)(task_type=TASK[head], init_seed=seed, **options)
    return stir(get_peft_model(backbone(family, head), config), seed)


def stir(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def keep(model: Any, folder: Path, family: str, head: str) -> None:
    """What ``folder`` must give again."""
    given = inputs(family, head)
    expected, plain = output(model, **given), output(backbone(family, head), **given)
    assert expected.isfinite().all() and (expected - plain).abs().max() > 0.01, folder
    save_file({"output": expected.contiguous()}, folder / "expected.safetensors")
    (folder / "case.json").write_text(json.dumps({"backbone": family, "head": head}) + "\n")
    (folder / "README.md").unlink(missing_ok=True)


def make_adapters(place: Path) -> None:
    for seed, (name, (family, head, builder, options)) in enumerate(ADAPTERS.items()):
        model = stirred(family, head, builder, options, seed)
        (model.save_pretrained if seed % 2 else lambda to, model=model: softprompt.save_adapter(model, to))(
            str(place / name)
        )
        keep(model, place / name, family, head)

    model = stirred("bert", "seq_cls", "prompt_tuning", PLAIN, 101)
    model.add_adapter("second", softprompt.ept(task_type="SEQ_CLS", init_seed=7, **EPT))
    model.set_adapter("second")
    stir(model, 102)
    model.save_pretrained(str(place / "written"))  # the default one beside it
    shutil.move(place / "written" / "second", place / ONE_OF_SEVERAL)
    keep(model, place / ONE_OF_SEVERAL, "bert", "seq_cls")

    softprompt.collapse(model)
    model.save_pretrained(str(place / "written"), selected_adapters=["collapsed"])
    shutil.move(place / "written" / "collapsed", place / COLLAPSED)
    keep(model, place / COLLAPSED, "bert", "seq_cls")
    shutil.rmtree(place / "written")

    model = stirred("llama", "causal_lm", "prompt_tuning", PLAIN, 103)
    softprompt.export_prompt_tuning(model, place / EXPORTED)
    keep(model, place / EXPORTED, "llama", "causal_lm")


# Runs ----------------------------------------------------------------------------------------------------------------

Flat = dict[str, Any]
SHORT: Flat = {
    "max_length": 16,
    "dtype": "float32",
    "num_train_epochs": 2,
    "per_device_train_batch_size": 6,
    "learning_rate": 0.05,
    "disable_tqdm": True,
}
SMALL: Flat = {"num_virtual_tokens": 3}
RUNS: dict[str, Flat] = {
    "pooled": {
        "backbone": "encoder",
        "data": "data/animals",
        "method": "tsloss",
        **SMALL,
        "track": "topology,accuracy",
    },
    "verbalizer": {
        "backbone": "encoder",
        "data": "data/animals",
        "method": "prompt_tuning",
        **SMALL,
        "init": "labels",
        "head": "verbalizer",
        "template": "{text} It was {mask} .",
        "label_words": {"bird": "bird", "cat": ["cat", "rain"], "dog": "dog"},
    },
    "completion": {
        "backbone": "decoder",
        "data": "data/completion",
        "method": "dept",
        **SMALL,
        "rank": 2,
        "max_positions": 8,
    },
    "completion-seq2seq": {
        "backbone": "encoder_decoder",
        "data": "data/completion",
        "method": "deep_prompts",
        **SMALL,
        "layers": [0, 2],
    },
    "tokens": {
        "backbone": "encoder",
        "data": "data/tokens",
        "method": "deep_prompts",
        **SMALL,
        "layers": [1, 2],
        "cache_below": "memory",
        "weight_decay": 0.01,
    },
    "pairs-stock": {
        "backbone": "encoder",
        "data": "data/pairs",
        "method": "ept",
        "num_virtual_tokens": 3,
        "rank": 2,
        "max_positions": 8,
        "num_spaces": 2,
        "space_bottleneck": 3,
        "head": "stock",
        "text_pair_column": "second",
    },
    "pairs-apart": {
        "backbone": "encoder",
        "data": "data/pairs",
        "method": "prompt_tuning",
        **SMALL,
        "pairs": "apart",
        "pooling": "cls",
        "text_pair_column": "second",
        "shots": 4,
    },
    "search": {
        "backbone": "encoder",
        "data": "data/animals",
        "method": "spt",
        **SMALL,
        "bottleneck": 4,
        "budget": 2,
        "search_epochs": 1,
    },
    "contrast": {"backbone": "encoder", "data": "data/animals", "method": "contrast", "shots": 3, "seed": 7},
    "information": {
        "backbone": "decoder",
        "data": "data/animals",
        "method": "infoprompt",
        **SMALL,
        "generator": "instance",
        "bottleneck": 4,
        "latent": 3,
        "track": "mi",
        "head_init": "random",
    },
    "peft-lora": {"backbone": "encoder", "data": "data/animals", "method": "peft:lora", "r": 2, "lora_alpha": 4},
}
BY_COMMAND = ("pooled", "tokens", "search", "completion")  # the others from Python
# stopped at the end of a step that is not the end of an epoch: flat options, folder of the checkpoints, and the step
STOPPED: dict[str, tuple[Flat, str, int]] = {
    "stopped": (
        {**RUNS["pooled"], "num_train_epochs": 3, "save_total_limit": 1, "track": "topology,accuracy"},
        "checkpoints",
        6,
    ),
    "stopped-search": ({**RUNS["search"], "search_epochs": 3, "num_train_epochs": 1}, "search/checkpoints", 3),
}
ELSEWHERE = "/home/someone/project"  # in place of the folder in which the runs were made


def write_data(folder: Path) -> None:
    """Little data of each kind: which animal a text names, alone, in a pair, as a completion, and as a tag."""
    rng = random.Random(0)
    others = ["red", "green", "sun", "rain", "runs", "sits", "now", "here", "good", "warm"]
    for split, count in (("train", 24), ("validation", 9), ("test", 9)):
        rows: dict[str, list[Flat]] = {"animals": [], "pairs": [], "completion": [], "tokens": []}
        for i in range(count):
            animal = ("dog", "cat", "bird")[i % 3]
            before, after = ([rng.choice(others) for _ in range(rng.randrange(1, 4))] for _ in range(2))
            words = [*before, animal, *after]
            second = ("dog", "cat", "bird")[(i + i // 3 % 2) % 3]
            label = "same" if second == animal else "other"
            rows["animals"].append({"text": " ".join(words), "label": animal})
            rows["pairs"].append({"text": " ".join(words), "second": f"It was {second}", "label": label})
            rows["completion"].append({"prompt": " ".join(words), "completion": animal})
            tags = ["O"] * len(before) + ["B-PET"] + ["I-PET" if i % 2 and not k else "O" for k in range(len(after))]
            rows["tokens"].append({"tokens": words, "tags": tags})
        for name, made in rows.items():
            path = folder / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in made))


class Stop(TrainerCallback):
    """Ends a run as Ctrl-C does."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def by_command(flat: Flat) -> None:
    settings = [word for key, value in flat.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    before, sys.argv = sys.argv, ["softprompt", "train", *settings]
    try:
        command()
    except SystemExit as stop:
        assert not stop.code, flat
    finally:
        sys.argv = before


def make_runs(place: Path) -> None:
    """In a folder of its own, with names relative to it; then copied without what is heavy or says where that was."""
    with tempfile.TemporaryDirectory() as name:
        room = Path(name).resolve()
        save_backbones(room)
        shutil.copytree(HERE / "data", room / "data")
        os.chdir(room)
        for run, own in RUNS.items():
            flat = {**SHORT, **own, "output_dir": f"runs/{run}"}
            options = RunOptions.from_flat(flat)
            if run in BY_COMMAND:
                by_command(flat)
            else:
                softprompt.train(options, progress=False)
            keep_run(room, run, place, ("checkpoints",))
            (place / run / "run.yaml").write_text(to_yaml(options))
            (place / run / "expected.json").write_text(json.dumps(seen(run, own["data"])) + "\n")
        for run, (own, checkpoints, step) in STOPPED.items():
            flat = {**SHORT, **own}
            whole = softprompt.train(RunOptions.from_flat({**flat, "output_dir": f"whole/{run}"}), progress=False)
            try:
                options = RunOptions.from_flat({**flat, "output_dir": f"runs/{run}"})
                softprompt.train(options, progress=False, callbacks=[Stop(step)])
                raise AssertionError(run)
            except KeyboardInterrupt:
                keep_run(room, run, place, ())
            (written,) = (place / run / checkpoints).iterdir()
            (place / run / "expected.json").write_text(
                json.dumps({"checkpoint": written.name, "metrics": whole.metrics, "result": whole.document}) + "\n"
            )
            shutil.copy(room / "whole" / run / "adapter_model.safetensors", place / run / "expected.safetensors")
        os.chdir(HERE)


def keep_run(room: Path, run: str, place: Path, left_out: tuple[str, ...]) -> None:
    shutil.copytree(room / "runs" / run, place / run, ignore=shutil.ignore_patterns(*left_out))
    for path in (place / run).rglob("*"):
        if path.suffix in (".json", ".md"):
            path.write_text(path.read_text().replace(str(room), ELSEWHERE))
        assert path.is_dir() or str(room).encode() not in path.read_bytes(), path


def seen(run: str, data: str) -> Flat:
    """What a run's folder gives: predictions and scores on its test rows, and a look into the prompt."""
    rows = [json.loads(line) for line in Path(data, "test.jsonl").read_text().splitlines()]
    given = [{"text_pair" if key == "second" else key: value for key, value in row.items()} for row in rows]
    predictor = softprompt.Predictor(f"runs/{run}")
    columns = {"text_pair_column": "second"} if "pairs" in data else {}
    names = predictor.card.label_names or None
    labelled = softprompt.load_rows(f"{data}/test.jsonl", label_names=names, kind=predictor.card.kind, **columns)
    look: Callable[..., Flat] = softprompt.look
    return {
        "predictions": predictor.predict(given, max_new_tokens=4),
        "scores": predictor.evaluate(labelled),
        "look": None if run == "peft-lora" else {**look(f"runs/{run}"), "adapter": ""},
    }


# Suites --------------------------------------------------------------------------------------------------------------

RESULTS = HERE.parent.parent / "results" / "suites"
SUITE = """\
description: Four arms of which one fails, on one task.
tasks: [animals]
shots: [2]
seeds: [1, 2]
defaults: {backbone: encoder, dtype: float32, max_length: 16, num_train_epochs: 1, per_device_train_batch_size: 6}
unequal_budget: true
methods:
  probe:
  contrast:
  prompt_tuning, two rates: {method: prompt_tuning, num_virtual_tokens: 2}
  prompt_tuning, too long: {method: prompt_tuning, num_virtual_tokens: 60}
learning_rates:
  prompt_tuning, two rates: [0.01, 0.1]
"""


def make_suite(place: Path) -> None:
    """A small suite that was run, and its tables."""
    place.mkdir()
    (place / "animals.yaml").write_text(SUITE)
    with tempfile.TemporaryDirectory() as name:
        room = Path(name).resolve()
        save_backbones(room)
        os.chdir(room)
        run_suite(read_suite(place / "animals.yaml", HERE / "data"), room / "output")
        lines = (room / "output" / "cells.jsonl").read_text()
        assert str(room) not in lines and str(HERE) not in lines
        (place / "cells.jsonl").write_text(lines)
        os.chdir(HERE)
    scores = Scores(list(read_cells(place / "cells.jsonl").values()))
    tables = {
        "results": results_table(scores).markdown(),
        "comparison": comparison_table(scores, "probe").markdown(),
    }
    (place / "tables.json").write_text(json.dumps(tables, indent=2, ensure_ascii=False) + "\n")


def write_keys(path: Path) -> None:
    """The keys of all cells in results/, hashed: by them a suite knows what is done."""
    keys = {
        results.stem: [hashlib.sha256(key.encode()).hexdigest()[:12] for key in read_cells(results)]
        for results in sorted(RESULTS.glob("*.jsonl"))
    }
    path.write_text(json.dumps(keys) + "\n")


def main() -> None:
    if (HERE / "made.json").exists() and "--again" not in sys.argv:
        sys.exit("what is published is published: remove made.json first, and say in the commit why.")
    torch.set_num_threads(1)
    for name in ("adapters", "data", "runs", "suite"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    make_adapters(HERE / "adapters")
    write_data(HERE / "data")
    make_runs(HERE / "runs")
    make_suite(HERE / "suite")
    write_keys(HERE / "keys.json")
    made = {library.__name__: library.__version__ for library in (softprompt, peft, transformers, torch)}
    (HERE / "made.json").write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
