"""Two processes equal one: losses, gradients and trained prompts under DDP and FSDP2, and what a launched command leaves.

All of it runs on CPUs with gloo. accelerate starts FSDP on accelerators only, so for FSDP2 the worker shards with accelerate's own
function, and lets accelerate believe in several GPUs where a whole run is compared.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

import softprompt
from house import families as f
from house.batches import four_rows
from house.models import gated
from house.tiny import save_backbone, write_classification, write_completion
from workers import two_processes as worker
from workers.halves import two_steps

LAUNCH = "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no"


WORKER = Path(worker.__file__)


def launch(*words: object, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run two processes; --multi_gpu is accelerate's word for several processes, since --cpu starts one on a single machine."""
    source = str(Path(softprompt.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", *LAUNCH, "--dynamo_backend=no", "--main_process_port=0", *map(str, words)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "SOFTPROMPT_CACHE": str(cache),
            "COLUMNS": "200",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of pytest-xdist share, with backbones and data."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two-processes"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "completion").is_dir():
            save_backbone(folder / "encoder")
            save_backbone(folder / "decoder", "decoder")
            write_classification(folder / "classification", rows=48)
            write_completion(folder / "completion")
    return folder


@pytest.fixture(scope="module")
def both(place: Path) -> list[dict[str, Any]]:
    """What each of the two processes found; they are started once."""
    with FileLock(place / "lock"):
        if not (place / "found-0.pt").is_file():
            done = launch(WORKER, place, cache=place / "cache")
            assert done.returncode == 0, done.stderr[-6000:]
    return [torch.load(place / f"found-{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, place: Path) -> softprompt.training.RunResult:
    """The same run in one process, with the whole batch."""
    return worker.train(worker.run_options(place, tmp_path_factory.mktemp("alone"), 8))


def test_they_are_two(both):
    for found in both:
        assert (found["backend"], found["processes"]) == ("gloo", 2)


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", worker.STEPS)
def test_loss_and_gradients_equal_one_process(both, name, how):
    """To 1e-5 of each parameter's largest gradient, in float32; a softmax over cosines divided by 0.1 triples what is rounded."""
    family, head, method, _ = worker.STEPS[name]
    loss, grads = worker.step(f.prompted(f.FAMILIES[family], head, method).train(), worker.rows_of(head, range(4)))
    for found in both:
        loss_of_two, grads_of_two, took_the_path = found[f"{how} {name}"]
        assert (
            took_the_path
        )  # the shared one in a causal stack under DDP, else the one where every row holds the prompt
        f.close(loss_of_two, loss)
        assert grads_of_two.keys() == grads.keys() and any("softprompt_" in key for key in grads)
        for key, grad in grads.items():
            scale = grad.abs().max().clamp(min=1e-3)
            f.close(grads_of_two[key] / scale, grad / scale, 3e-5 if method == "ept" else 1e-5)


@pytest.mark.parametrize("name", worker.STEPS)
def test_an_adapter_saved_from_its_parts_is_whole(both, place, name):
    family, head, method, _ = worker.STEPS[name]
    model = f.prompted(f.FAMILIES[family], head, method)
    model.save_pretrained(place / "whole" / name)
    expected, got = (load_file(place / kind / name / "adapter_model.safetensors") for kind in ("whole", "saved"))
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


@pytest.mark.parametrize("method", worker.TRAINED)
def test_a_trainer_ends_at_the_same_prompt(both, tmp_path, method):
    """Halves of its batches have unlike numbers of labels, which `average_tokens_across_devices` weighs; to 1e-4."""
    expected = worker.fit(method, tmp_path, 4)
    assert expected
    for found in both:
        for key, value in expected.items():
            f.close(found[f"trainer {method}"][key], value, 1e-4)


def test_a_loss_that_is_not_finite_in_one_process_stops_both(both):
    for found in both:
        spoiled = found["spoiled"]
        assert isinstance(spoiled["message"], softprompt.NonFiniteError)
        assert "expected a finite loss, got inf at step 2" in str(spoiled["message"])
        for key, value in spoiled["start"].items():  # the values of the last finite step, which was the first
            assert torch.equal(spoiled[key], value) and torch.equal(spoiled[key], both[0]["spoiled"][key])


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_a_whole_run_equals_one_process(both, alone, place, how):
    """Its adapter to 1e-4, and its scores, which all processes know."""
    names = "adapter_model.safetensors", "adapter_config.json", "task.json", "result.json", "README.md", "run.json"
    assert {p.name for p in (place / how).iterdir()} == {*names, "checkpoints"}
    expected, got = (load_file(folder / names[0]) for folder in (alone.folder, place / how))
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        f.close(got[key], value, 1e-4)
    assert both[0][f"{how} metrics"] == both[1][f"{how} metrics"] == pytest.approx(alone.metrics, abs=1e-4)
    document = json.loads((place / how / "result.json").read_text())
    for key in ("train_steps", "best_checkpoint_step", "num_trainable_params"):
        assert document["train_info"][key] == alone.document["train_info"][key], key


def test_a_folder_that_is_not_empty_is_refused_by_all(both):
    for found in both:
        assert "is not empty; pass --resume" in found["again"]


def test_objectives_checkpoints_and_states_under_both(both, place):
    """Unprompted states are computed once; critics are whole in the checkpoints of parts; a run of parts goes on."""
    assert len(list((place / "cache" / "unprompted").iterdir())) == 1
    assert (place / "informed" / "topology.jsonl.gz").is_file()
    for run in ("informed", "fsdp2 informed"):
        assert both[0][run] == both[1][run]
        (critics,) = (place / run / "checkpoints").glob("checkpoint-*/objectives.safetensors")
        held = load_file(critics)
        assert any("balances" in key for key in held) == (run == "informed")  # FSDP takes weights, not shares
        shapes = {key: tuple(value.shape) for key, value in held.items() if "balances" not in key}
        if run == "informed":
            expected = shapes
    assert shapes == expected and shapes
    for found in both:
        assert found["fsdp2 resumed"] == found["fsdp2 informed"]
        assert found["fsdp2 sharded"] == [[True, True], [True, True]]  # layer by layer, without being told their class


def test_a_search_of_layers_takes_the_step_of_one_process_on_the_whole_batch(both):
    first, second = (found["search"] for found in both)
    assert first["alpha"] == second["alpha"] and first["losses"] == second["losses"]
    assert first["stopped"] == second["stopped"] == first["alpha"]
    # together one pass over the rows
    assert sorted(itertools.chain(*first["taken"], *second["taken"])) == list(range(12))

    search = softprompt.LayerSearch(gated(f.BERT, "seq_cls"))
    losses = two_steps(search, four_rows())
    assert first["losses"] == pytest.approx(losses, abs=1e-6)
    f.close(torch.tensor(first["alpha"]), search.logits, 1e-6)


def test_what_fsdp_cannot_do_is_refused(both):
    for found in both:
        assert "FSDP leaves each process a part of prompt and head" in found["track"]
        assert "FSDP runs one backward pass for each forward pass, and the share of head_information" in found["shares"]


def test_a_launched_command_speaks_with_one_voice(place):
    """`accelerate launch -m softprompt train`: one line of results, one of each announcement, one set of files."""
    words = ("--backbone", place / "encoder", "--data", place / "classification", "--method", "prompt_tuning")
    options = ("--set", "num_train_epochs=1", "--set", "max_length=24", "--set", "num_virtual_tokens=3")
    output = place / "command"
    done = launch("-m", "softprompt", "train", *words, "--output", output, *options, cache=place / "cache")
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = (json.loads(text) for text in done.stdout.splitlines() if text.startswith("{"))
    document = json.loads((output / "result.json").read_text())
    assert line["test accuracy"] == document["train_info"]["test accuracy"]
    assert (
        document["train_info"]["train_steps"] == 2
    )  # 48 rows, 16 for each of two processes: the second batch is filled up
    for said in ("pooling=mean", "head_init=probe", "trained parameters"):
        assert done.stderr.count(said) == 1, said

    rows = softprompt.load_rows(place / "classification" / "test.jsonl", label_names=["bird", "cat", "dog"])
    assert softprompt.Predictor(output).evaluate(rows)["accuracy"] == pytest.approx(line["test accuracy"])
