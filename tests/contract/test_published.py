"""What was published still loads: adapters, runs and results on the disks of users, made once by ``published/make.py``."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

import softprompt
from published.rebuild import backbone, inputs, output, save_backbones
from softprompt import RunOptions
from softprompt.cli import main as command
from softprompt.experiments.cell import run_cell
from softprompt.experiments.records import CELLS, append_line, read_cells
from softprompt.experiments.runner import run_suite, unfinished
from softprompt.experiments.statistics import Scores
from softprompt.experiments.suite import key_of, read_suite, shipped_suites
from softprompt.experiments.tables import comparison_table, results_table
from softprompt.search import read_gates
from softprompt.training import TaskCard, read_yaml, to_yaml
from softprompt.watch import topology_summary

ROOT = Path(__file__).resolve().parents[2]


HERE = Path(__file__).resolve().parents[1] / "published"


RESULTS, STUDIES = ROOT / "results" / "suites", ROOT / "benchmarks" / "suites"


ADAPTERS = sorted(path.name for path in (HERE / "adapters").iterdir())


OURS = [name for name in ADAPTERS if not name.startswith("exported")]


RUNS = sorted(path.parent.name for path in (HERE / "runs").glob("*/task.json"))


KEYS: dict[str, list[str]] = json.loads((HERE / "keys.json").read_text(encoding="utf-8"))


MEASURED = ("time", "environment")


OF_PEFT = {"peft_version", "inference_mode"}  # of who saves, not of what is saved


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def settings(folder: Path) -> dict[str, Any]:
    """An adapter's config without what says who saved it; PEFT adds the names of heads anew at each load."""
    found = {key: value for key, value in read(folder / "adapter_config.json").items() if key not in OF_PEFT}
    return {**found, "modules_to_save": sorted(set(found.get("modules_to_save") or []))}


# Adapters ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_gives_its_outputs_and_is_saved_as_it_was(name: str, tmp_path: Path) -> None:
    folder = HERE / "adapters" / name
    case = read(folder / "case.json")
    given = inputs(case["backbone"], case["head"])
    model = PeftModel.from_pretrained(backbone(case["backbone"], case["head"]), str(folder)).eval()
    expected = load_file(folder / "expected.safetensors")["output"]
    found = output(model, **given)
    close(found if name in OURS else found[:, -expected.shape[1] :], expected)  # PEFT leaves virtual tokens in logits
    model.save_pretrained(str(tmp_path))
    before, after = (load_file(path / "adapter_model.safetensors") for path in (folder, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    published, now = settings(folder), settings(tmp_path)
    if name not in OURS:  # PEFT fills in what it finds
        published = {key: value for key, value in published.items() if value is not None}
    assert {key: now.get(key) for key in published} == published


@pytest.mark.parametrize("name", OURS)
def test_a_prompt_is_read_without_its_backbone(name: str) -> None:
    folder = HERE / "adapters" / name
    prompt, wanted = softprompt.read_prompt(folder), read(folder / "adapter_config.json")
    stored = load_file(folder / "adapter_model.safetensors")
    held = {key.partition("softprompt_prompts.")[2]: value for key, value in stored.items() if "softprompt_" in key}
    assert held.keys() == prompt.state_dict().keys()
    assert all(torch.equal(held[key], value) for key, value in prompt.state_dict().items())
    assert prompt.num_virtual_tokens == wanted["num_virtual_tokens"] and prompt.tau == wanted["tau"]
    assert wanted["layers"] in (None, list(prompt.layers))


@pytest.mark.parametrize("name", ["dept-t5-seq2seq_lm", "ept-bert-seq_cls", "deep_prompts-t5-seq_cls"])
def test_an_adapter_is_trained_on(name: str) -> None:
    folder = HERE / "adapters" / name
    case = read(folder / "case.json")
    fresh = backbone(case["backbone"], case["head"])
    model = PeftModel.from_pretrained(fresh, str(folder), is_trainable=True)
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    assert len(trained) == len(load_file(folder / "adapter_model.safetensors"))


# Runs ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the runs were made: backbones, data, and runs, under their names of then."""
    folder = save_backbones(tmp_path_factory.mktemp("published"))
    for name in ("data", "runs"):
        shutil.copytree(HERE / name, folder / name)
    return folder


@pytest.fixture
def room(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def same(actual: Any, expected: Any) -> None:
    """Equal in shape, words and whole numbers, near in others."""
    if isinstance(expected, dict):
        assert isinstance(actual, dict) and actual.keys() == expected.keys()
        for key in expected:
            same(actual[key], expected[key])
    elif isinstance(expected, list):
        assert isinstance(actual, list) and len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            same(one, other)
    else:
        assert (
            actual == pytest.approx(expected, rel=1e-4, abs=1e-4) if isinstance(expected, float) else actual == expected
        )


def holds(actual: Any, expected: Any, where: str = "") -> None:
    """Every key of ``expected``, at any depth of mappings, is in ``actual``."""
    if isinstance(expected, dict):
        assert isinstance(actual, dict) and expected.keys() <= actual.keys(), where
        for key in expected:
            holds(actual[key], expected[key], f"{where}/{key}")


def data_of(run: str) -> Path:
    return Path(read(HERE / "runs" / run / "run.json")["data"]) / "test.jsonl"


def rows_of(run: str) -> list[dict[str, Any]]:
    """Its test rows, with the names of columns that `Predictor` reads."""
    rows = [json.loads(line) for line in data_of(run).read_text().splitlines()]
    return [{"text_pair" if key == "second" else key: value for key, value in row.items()} for row in rows]


@pytest.mark.parametrize("run", RUNS)
def test_a_run_predicts_and_scores_as_it_did(run: str, room: Path) -> None:
    expected = read(HERE / "runs" / run / "expected.json")
    predictor = softprompt.Predictor(f"runs/{run}")
    same(predictor.predict(rows_of(run), max_new_tokens=4), expected["predictions"])
    columns = {"text_pair_column": "second"} if "pairs" in run else {}
    names, kind = predictor.card.label_names or None, predictor.card.kind
    scores = predictor.evaluate(softprompt.load_rows(str(data_of(run)), label_names=names, kind=kind, **columns))
    same({name: scores[name] for name in expected["scores"]}, expected["scores"])
    assert scores.keys() - expected["scores"].keys() <= {"matthews_correlation", "calibration_error"}  # came later
    assert expected["scores"]["accuracy"] == read(HERE / "runs" / run / "result.json")["train_info"]["test accuracy"]


@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_loaded_from_elsewhere_and_its_card_and_options_are_read(run: str, made: Path, tmp_path: Path) -> None:
    folder = HERE / "runs" / run
    flat, card = read(folder / "run.json"), read(folder / "task.json")
    later = {"features": None, "cut": "end"}  # fields that came later: the last layer, and what texts always lost
    assert asdict(TaskCard.read(folder)) == {**later, **card}
    model = softprompt.load(folder, backbone=str(made / flat["backbone"]))  # checks the hashes of the card
    model.save_pretrained(str(tmp_path))
    before, after = (load_file(path / "adapter_model.safetensors") for path in (folder, tmp_path))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    for given in (flat, read_yaml(folder / "run.yaml")):
        assert json.loads(json.dumps(RunOptions.from_flat(given).to_flat())).items() >= flat.items()
    published = read_yaml(folder / "run.yaml")
    if run == "information":  # weights that were the method's defaults; measured from a share now
        assert (published.pop("gamma"), published.pop("beta")) == (0.1, 0.2)
    (tmp_path / "now.yaml").write_text(to_yaml(RunOptions.from_flat(flat)))
    assert read_yaml(tmp_path / "now.yaml").items() >= published.items()


@pytest.mark.parametrize("run", [run for run in RUNS if not run.startswith("peft")])
def test_a_look_into_a_run_shows_what_it_showed(run: str, room: Path) -> None:
    found = {**softprompt.look(f"runs/{run}"), "adapter": ""}
    assert isinstance(found.pop("mechanism"), dict)  # a later addition
    expected = read(HERE / "runs" / run / "expected.json")["look"]
    # of a vocabulary that still held special tokens, and rows without a token
    for key in ("null", "norms", "warnings"):
        assert list(found.pop(key) or ()) == list(expected.pop(key) or ())
    for now, then in zip(found["tokens"], expected["tokens"], strict=True):
        then["nearest"] = [near for near in then["nearest"] if (near["token"] or "[")[0] != "["]
        del now["nearest"][len(then["nearest"]) :]
    same(found, expected)


@pytest.mark.parametrize("run", ["pooled", "pairs-stock", "completion", "tokens"])
def test_the_command_line_predicts_and_evaluates(
    run: str, room: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = read(HERE / "runs" / run / "expected.json")

    def told(*words: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["softprompt", *words])
        capfd.readouterr()
        with suppress(SystemExit):
            command()
        return [json.loads(line) for line in capfd.readouterr().out.splitlines()]

    columns = ("--set", "text_pair_column=second") if "pairs" in run else ()
    new = ("--max-new-tokens", "4") if run == "completion" else ()
    found = told("predict", f"runs/{run}", "--input", str(data_of(run)), "--columns", "none", *columns, *new)
    same(
        [{key.removeprefix("predicted_"): value for key, value in line.items()} for line in found],
        expected["predictions"],
    )
    (scores,) = told("eval", f"runs/{run}", "--data", str(data_of(run)), *columns)
    same({key: scores[key] for key in expected["scores"]}, expected["scores"])


def test_records_of_topology_are_read() -> None:
    folder = HERE / "runs" / "pooled"
    records = softprompt.read_topology(folder / "topology.jsonl.gz")
    assert [record["step"] for record in records] == [0, 4, 8]
    kept = load_file(folder / "adapter_model.safetensors")["base_model.model.softprompt.softprompt_prompts.embedding"]
    best = read(folder / "result.json")["train_info"]["best_checkpoint_step"]
    assert torch.equal(torch.from_numpy({r["step"]: r["prompt"] for r in records}[best]), kept)
    same(topology_summary(records), read(folder / "result.json")["train_info"]["topology"])


def test_a_search_of_layers_is_read() -> None:
    folder = HERE / "runs" / "search"
    gates, selection = read_gates(folder / "search" / "gates.jsonl"), read(folder / "search" / "selection.json")
    assert [entry["step"] for entry in gates] == list(range(1, selection["steps"] + 1))
    assert gates[-1]["gates"] == pytest.approx(selection["gates"])
    assert softprompt.read_prompt(folder).layers == tuple(selection["layers"])
    assert read(folder / "result.json")["train_info"]["search"] == selection


class First(TrainerCallback):
    """The step at which each training begins."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step)


@pytest.mark.parametrize(("run", "began"), [("stopped", [4]), ("stopped-search", [2, 0])])
def test_a_stopped_run_goes_on_to_the_end_it_would_have_had(
    run: str, began: list[int], room: Path, tmp_path: Path
) -> None:
    shutil.copytree(HERE / "runs" / run, tmp_path / "out")
    expected, first = read(HERE / "runs" / run / "expected.json"), First()
    options = replace(RunOptions.from_flat(read(HERE / "runs" / run / "run.json")), output_dir=str(tmp_path / "out"))
    result = softprompt.train(options, resume=True, progress=False, callbacks=[first])
    assert first.steps == began
    same({name: result.metrics[name] for name in expected["metrics"]}, expected["metrics"])  # later runs say more
    weights, whole = (
        load_file(tmp_path / "out" / "adapter_model.safetensors"),
        load_file(HERE / "runs" / run / "expected.safetensors"),
    )
    assert weights.keys() == whole.keys()
    for key, value in whole.items():
        close(weights[key], value, 1e-4)
    holds(read(tmp_path / "out" / "result.json"), expected["result"])
    for name in ("best_checkpoint_step", "train_steps", "num_trainable_params", "learning_rate"):
        assert result.document["train_info"][name] == expected["result"]["train_info"][name]


# Results -------------------------------------------------------------------------------------------------------------


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", KEYS)
def test_a_suite_knows_its_published_cells_as_done(name: str, tmp_path: Path) -> None:
    suites = {**shipped_suites(), **{path.stem: path for path in STUDIES.glob("*.yaml")}}
    own = name.removesuffix("-float32")
    for task in read_yaml(suites[own])["tasks"]:
        (tmp_path / task).mkdir()
    suite = read_suite(suites[own], tmp_path, None if own == name else {"dtype": "float32"})
    (path,) = RESULTS.glob(f"{name}.jsonl*")
    published, lines = set(KEYS[name]), read_cells(path)
    assert len(published) == len(KEYS[name]) and published <= {hashed(key_of(line)) for line in lines.values()}
    kept = {name: {line[name] for line in lines.values()} for name in ("method", "seed")}
    own_methods = {method: options for method, options in suite.methods.items() if method in kept["method"]}
    cells = replace(suite, methods=own_methods, seeds=sorted(kept["seed"])).cells()  # of a few thousand
    assert published <= {hashed(cell.key) for cell in cells}
    left = unfinished(cells, {key: line["status"] for key, line in lines.items()}, retry_failed=False)
    assert not published & {hashed(cell.key) for cell in left}


@pytest.mark.parametrize("cut", [1, 40, 10**9])
def test_a_torn_last_line_of_results_is_left_out_and_written_again(cut: int, tmp_path: Path) -> None:
    whole = (HERE / "suite" / CELLS).read_bytes()
    lines = whole.splitlines(keepends=True)
    path = tmp_path / CELLS
    path.write_bytes(whole[: -min(cut, len(lines[-1]) - 1)])  # without its end, with little and with much missing
    assert len(read_cells(path)) == len(lines) - 1
    append_line(path, json.loads(lines[-1]))
    assert path.read_bytes() == whole


def test_a_suite_that_was_run_runs_nothing_and_gives_its_tables(room: Path, tmp_path: Path) -> None:
    (tmp_path / CELLS).write_bytes((HERE / "suite" / CELLS).read_bytes())
    suite, tables = read_suite(HERE / "suite" / "animals.yaml", HERE / "data"), read(HERE / "suite" / "tables.json")
    cells = suite.cells()
    assert list(read_cells(tmp_path / CELLS)) == [cell.key for cell in cells]
    found = run_suite(suite, tmp_path)
    assert found == {
        "suite": "animals",
        "cells": 8,
        "done": 6,
        "failed": 2,
        "ran": 0,
        "skipped": 8,
        "results": str(tmp_path / CELLS),
    }
    assert (tmp_path / CELLS).read_bytes() == (HERE / "suite" / CELLS).read_bytes()
    scores = Scores(list(read_cells(tmp_path / CELLS).values()))
    assert results_table(scores).markdown() == tables["results"]
    assert comparison_table(scores, "probe").markdown() == tables["comparison"]


def test_a_cell_that_is_run_again_gives_what_it_gave(room: Path) -> None:
    (before,) = (
        line
        for line in read_cells(HERE / "suite" / CELLS).values()
        if "two rates" in line["method"] and line["seed"] == 1
    )
    suite = read_suite(HERE / "suite" / "animals.yaml", HERE / "data")
    (cell,) = (cell for cell in suite.cells() if cell.key == key_of(before))
    now = run_cell(cell)
    assert now.keys() == before.keys()
    same(
        {key: now[key] for key in now if key not in MEASURED}, {key: before[key] for key in now if key not in MEASURED}
    )
