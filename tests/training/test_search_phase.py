"""Runs with a search: written down, left behind, resumed bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import TrainerCallback

import softprompt
from house.files import read_json
from house.runs import StopAt
from house.tiny import save_backbone, write_completion
from softprompt import SoftPromptError
from softprompt.search import read_gates


def run(encoder, data, folder, *callbacks, resume=False, **more):
    flat = {
        "backbone": str(encoder),
        "data": str(data),
        "output_dir": str(folder),
        "method": "spt",
        "num_virtual_tokens": 4,
        "bottleneck": 4,
        "budget": 1,
        "search_epochs": 2,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "max_length": 24,
        "dtype": "float32",
        "disable_tqdm": True,
    }
    options = softprompt.RunOptions.from_flat({**flat, **more})
    return softprompt.train(options, resume=resume, callbacks=list(callbacks))


@pytest.fixture(scope="module")
def whole(encoder, few_animals, tmp_path_factory):
    return run(encoder, few_animals, tmp_path_factory.mktemp("whole") / "out")


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def test_a_run_writes_down_its_search(whole):
    found = read_json(whole.folder / "search" / "selection.json")
    entries = read_gates(whole.folder / "search" / "gates.jsonl")
    assert found["rows"] == {"weights": 12, "gates": 12}  # the halves of 24 training rows; dev and test stay out
    assert found["steps"] == len(entries) == 2 * 3
    assert found["candidates"] == [0, 1] and found["seed"] == 42
    assert (found["layer_score"], found["gate_optimizer"]) == ("ablation", "shared")
    assert found["gates"] == entries[-1]["gates"] and found["gradients"] == entries[-1]["gradients"]
    assert all(score < 0 for score in found["scores"])  # sums of minus losses
    assert found["layers"] == [max(found["candidates"], key=lambda i: found["scores"][i])]
    assert read_json(whole.folder / "result.json")["train_info"]["search"] == found
    saved = read_json(whole.folder / "adapter_config.json")
    assert (saved["placement"], saved["layers"], saved["prompt"]) == ("deep", found["layers"], "generated")
    assert (saved["layer_score"], saved["gate_optimizer"]) == ("ablation", "shared")
    prompt = softprompt.read_prompt(whole.folder)
    assert prompt.layers == tuple(found["layers"]) and prompt.gate_logits is None and len(prompt.embedding) == 1
    predictor = softprompt.Predictor(whole.folder)
    task = softprompt.load_task(whole.document["run_info"]["train_config"]["data"])
    assert predictor.evaluate(task.test)["accuracy"] == pytest.approx(whole.metrics["test accuracy"])


def test_a_learning_rate_of_the_gates_is_the_search_s_alone(encoder, few_animals, whole, tmp_path):
    fast = run(
        encoder, few_animals, tmp_path / "out", search_epochs=1, learning_rates={"gates": 1.0, "generator": 0.01}
    )
    moved = [
        max(abs(a - 0.5) for a in read_gates(x.folder / "search" / "gates.jsonl")[0]["gates"]) for x in (fast, whole)
    ]
    assert moved[0] > 2 * moved[1] > 0
    assert read_json(fast.folder / "adapter_config.json")["learning_rates"] == {"generator": 0.01}


def same_without_a_search(encoder, animals, folder, **options):
    """Run with a search, then name its layers; both must end in the same weights."""
    done = run(encoder, animals, folder / "searched", init_seed=0, **options)
    layers = done.document["train_info"]["search"]["layers"]
    direct = run(encoder, animals, folder / "direct", init_seed=0, layers=layers, **options)
    assert not (folder / "direct" / "search").exists() and "search" not in direct.document["train_info"]
    assert weights(folder / "searched") == weights(folder / "direct")
    assert direct.metrics == done.metrics
    assert direct.document["train_info"]["train_steps"] == 2 * 6  # of all 24 rows


def test_nothing_of_the_search_is_left_but_the_layers(encoder, few_animals, tmp_path):
    same_without_a_search(encoder, few_animals, tmp_path)


def test_a_run_killed_between_the_phases_goes_on_bit_for_bit(whole, encoder, few_animals, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(whole.folder / "search", folder / "search")
    options = {**read_json(whole.folder / "run.json"), "output_dir": str(folder)}
    (folder / "run.json").write_text(json.dumps(options))
    resumed = run(encoder, few_animals, folder, resume=True)
    assert weights(folder) == weights(whole.folder) and resumed.metrics == whole.metrics
    assert resumed.document["train_info"]["search"] == whole.document["train_info"]["search"]


class Steps(TrainerCallback):
    """Count the steps of each phase that this process takes."""

    def __init__(self):
        self.taken = {}

    def on_step_end(self, args, state, control, **kwargs):
        phase = Path(args.output_dir).parent.name
        self.taken[phase] = self.taken.get(phase, 0) + 1


# an epoch, at whose end a checkpoint is written, has 3 steps in the search and 6 after it
@pytest.mark.parametrize(
    "where, step, left",
    [
        ("out/search", 4, {"search": 3, "out": 12}),
        ("out/checkpoints", 1, {"out": 12}),
        ("out/checkpoints", 8, {"out": 6}),
    ],
)
def test_a_run_killed_in_a_phase_goes_on_bit_for_bit(whole, encoder, few_animals, tmp_path, where, step, left):
    folder, steps = tmp_path / "out", Steps()
    with pytest.raises(KeyboardInterrupt):
        run(encoder, few_animals, folder, StopAt(step, where))
    assert (folder / "search" / "selection.json").exists() == (where != "out/search")
    resumed = run(encoder, few_animals, folder, steps, resume=True)
    assert steps.taken == left
    assert weights(folder) == weights(whole.folder) and resumed.metrics == whole.metrics
    for name in ("gates.jsonl", "selection.json"):
        one, two = ((f / "search" / name).read_text() for f in (folder, whole.folder))
        if name == "selection.json":
            one, two = ({**json.loads(text), "seconds": 0} for text in (one, two))
        assert one == two


@pytest.mark.parametrize("options", [{"head_init": "random"}, {"head": "stock"}], ids=str)
def test_a_head_is_trained_anew_too(encoder, few_animals, tmp_path, options):
    """Otherwise a run killed between the phases, whose head is fresh, differs from one that was not."""
    same_without_a_search(encoder, few_animals, tmp_path, **options)


def test_a_budget_beyond_the_layers_leaves_the_folder_free(encoder, few_animals, tmp_path):
    with pytest.raises(SoftPromptError, match=r"budget: expected 1 to 2 layers .* got 3\."):
        run(encoder, few_animals, tmp_path / "out", budget=3)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("score, key", [("gates", "gates"), ("gradient", "gradients")])
def test_layers_may_be_scored_without_evaluations(encoder, few_animals, tmp_path, score, key):
    result = run(encoder, few_animals, tmp_path / "out", layer_score=score, num_train_epochs=1, search_epochs=1)
    found = result.document["train_info"]["search"]
    assert found["layer_score"] == score and found["scores"] == found[key] and found["gates"] != found["gradients"]
    assert found["layers"] == [max(found["candidates"], key=lambda i: found["scores"][i])]
    assert read_json(result.folder / "adapter_config.json")["layer_score"] == score


def test_a_search_that_began_under_other_defaults_ends_as_it_began(encoder, few_animals, tmp_path):
    """As versions without ``gate_optimizer`` wrote it: AdamW, layers by their gates, no sums of gradients."""
    old = {
        "layer_score": "gates",
        "gate_optimizer": "adam",
        "objectives": [{"name": "ts_loss", "weight": 0.5}],
    }
    whole = run(encoder, few_animals, tmp_path / "whole", **old)
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(encoder, few_animals, folder, StopAt(4, "out/search"), **old)
    options = read_json(folder / "run.json")
    (folder / "run.json").write_text(json.dumps({key: value for key, value in options.items() if key not in old}))
    (path,) = folder.glob("search/checkpoints/*/adapter_config.json")
    config = read_json(path)
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "gate_optimizer"}))
    log = folder / "search" / "gates.jsonl"
    entries = [{key: value for key, value in entry.items() if key != "gradients"} for entry in read_gates(log)]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))

    found = run(encoder, few_animals, folder, resume=True).document["train_info"]["search"]
    expected = whole.document["train_info"]["search"]
    assert found == {**expected, "gradients": None, "seconds": found["seconds"]}
    assert weights(folder) == weights(whole.folder)


def test_a_completion_task_is_searched_too(tmp_path):
    decoder, data = save_backbone(tmp_path / "decoder", "decoder"), write_completion(tmp_path / "data")
    result = run(decoder, data, tmp_path / "out", num_train_epochs=1, search_epochs=1)
    assert result.document["train_info"]["search"]["rows"] == {"weights": 12, "gates": 12}
