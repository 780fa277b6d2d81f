"""The benchmarks run and print one JSON document last."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_benchmark_prints_one_json_document_last() -> None:
    import json

    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "step.py", "--small", "--rounds", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    document = json.loads(done.stdout.strip().splitlines()[-1])
    cells = {(cell["backbone"], cell["P"], cell["labelled"]): cell for cell in document["cells"]}
    models = [(name, labelled) for name in ("gpt2", "llama", "t5") for labelled in (None, 4)]
    assert set(cells) == {(name, length, n) for name, n in [("encoder", None), *models] for length in (20, 100)}
    for key, cell in cells.items():
        assert cell["time"].keys() == cell["operations"].keys() == cell["memory"].keys()
        assert cell["operations"]["prompt_tuning"] == cell["memory"]["prompt_tuning"] == 1
        assert cell["operations"]["PEFT PromptTuning"] >= (1.5 if key[0] in ("gpt2", "llama") else 0.99), key


def test_benchmark_of_layers_runs() -> None:
    import json

    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "layers.py", "--small", "--rounds", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    document = json.loads(done.stdout.strip().splitlines()[-1])
    memory = [row["memory"] for row in document["saving"]]
    assert memory == sorted(memory, reverse=True) and memory[0] == 1 and memory[-1] < 0.5


BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "topology.py"


# ---------------------------------------------------------------------- the benchmark


def test_benchmark_runs(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARK.parent)  # as when it is run
    spec = importlib.util.spec_from_file_location("benchmark_of_topology", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def absent():
        raise ImportError

    monkeypatch.setitem(module.OTHERS, "absent", absent)
    monkeypatch.setattr(sys, "argv", ["topology.py", "--small", "--rounds", "1"])
    module.main()
    printed = capsys.readouterr().out.splitlines()
    document = json.loads(printed[-1])
    assert "absent" in document["left out"] and any("left out" in line and "absent" in line for line in printed)
    assert {cell["N"] for cell in document["cells"]} == {8, 12}
    assert all(cell["ratios"]["softprompt"] == 1 for cell in document["cells"])
    losses = {name: load() for name, load in module.OTHERS.items() if name not in document["left out"]}
    for points in (module.cloud(shape, 12, 16) for shape in ("noise", "clusters", "circle")):  # they do the same work
        for loss in losses.values():
            assert loss(points).item() == pytest.approx(module.ours(points).item(), rel=1e-4)
