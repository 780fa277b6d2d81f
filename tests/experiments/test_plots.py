"""Figures show what the statistics say, twice the same."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest

from house.suites import finished, table_of
from softprompt import SoftPromptError
from softprompt.experiments import plots
from softprompt.experiments.statistics import Scores, overall, rank, relative_cost

SMALL = {
    "plain": {"rte": [0.50, 0.54, 0.52], "trec": [0.80, 0.82, 0.84]},
    "a|b_c": {"rte": [0.56, 0.58, 0.60], "trec": [0.80, 0.82, 0.78]},
}


@pytest.fixture
def drawn() -> Scores:
    pytest.importorskip("matplotlib", reason="figures are the extra 'plots'")
    rng = np.random.default_rng(0)
    lines = []
    for i, method in enumerate(("plain", "ept, K = 4", "spt")):
        for task in ("rte", "trec"):
            for seed in range(4):
                final = 0.6 + 0.05 * i + rng.normal(0, 0.01)
                curve = [[step, final - 0.2 * math.exp(-step / 20)] for step in range(0, 101, 10)]
                time = {"train_seconds": 10.0 * (i + 1), "total_seconds": 50.0}
                lines.append(finished(method, task, seed, final, parameters=1000 * 10**i, curve=curve, time=time))
    return Scores(lines)


FIGURES = {
    "parameters": plots.accuracy_against_parameters,
    "time": lambda scores: plots.accuracy_against_time(scores, "plain"),
    "curves": plots.learning_curves,
    "steps": lambda scores: plots.steps_figure(scores, "plain"),
    "ranks": lambda scores: plots.critical_difference_diagram(rank(scores)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_written_the_same_twice(name: str, drawn: Scores, tmp_path: Any) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    files = [
        plots.save_figure(FIGURES[name](drawn), tmp_path / f"{i}.{kind}") for i in (0, 1) for kind in ("png", "svg")
    ]
    assert dict(matplotlib.rcParams) == before
    assert files[0].read_bytes() == files[2].read_bytes() and files[1].read_bytes() == files[3].read_bytes()
    pixels = matplotlib.image.imread(files[0])[..., :3]
    assert pixels.shape[1] > 400 and 0.01 < (pixels < 0.9).any(-1).mean() < 0.5  # neither blank nor black
    text = files[1].read_text()
    for method in drawn.methods:
        assert method in text
    assert "<dc:date>" not in text


def test_curves_show_median_and_quartiles(drawn: Scores) -> None:
    curves = [[(0, 0.1), (10, 0.5)], [(5, 0.3)], [(0, 0.2), (10, 0.9)]]
    steps, quartiles = plots.quartiles_of(curves)
    assert steps == [5, 10]  # from where every run has a score; a run keeps its last
    assert quartiles == pytest.approx(np.array([[15, 40], [20, 50], [25, 70]]))
    figure = plots.learning_curves(drawn)
    assert [axes.get_title() for axes in figure.axes] == ["rte, 16 shots", "trec, 16 shots"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"{m} (4 runs)" for m in drawn.methods]
    values = [line["curve"][-1][1] for block, line in drawn.lines["spt"].items() if block.setting.task == "trec"]
    assert figure.axes[1].lines[2].get_ydata()[-1] == pytest.approx(100 * np.median(values))


def test_figures_show_what_the_statistics_say(drawn: Scores) -> None:
    figure = plots.accuracy_against_time(drawn, "plain")
    points = [container.lines[0].get_xydata()[0] for container in figure.axes[0].containers]
    assert [tuple(point) for point in points] == [
        (pytest.approx(share.median), pytest.approx(100 * overall(drawn)[share.method].mean))
        for share in relative_cost(drawn, "plain")
    ]
    assert figure.axes[0].get_xscale() == "log"
    labels = {text.get_text().strip() for text in plots.critical_difference_diagram(rank(drawn)).axes[0].texts}
    assert {"spt  1.00", "ept, K = 4  2.00", "3.00  plain", "critical difference 2.34 (wider than the axis)"} <= labels


def test_figures_say_which_blocks_are_left_out(drawn: Scores) -> None:
    lines = [line for by_block in drawn.lines.values() for line in by_block.values()][:-1]
    title = "(7 of 8 blocks: those that every method has finished)"
    for figure in (
        plots.accuracy_against_parameters(Scores(lines)),
        plots.critical_difference_diagram(rank(Scores(lines))),
    ):
        assert figure.axes[0].get_title().splitlines()[1] == title
    single = Scores([line for line in lines if line["seed"] == 0])
    assert plots.accuracy_against_parameters(single).axes[0].get_title() == "mean of 2 settings"  # and no interval


def test_confusions_are_drawn_by_true_and_predicted_class(tmp_path: Any) -> None:
    confusion = {"cat": {"cat": 9, "dog": 1}, "dog": {"dog": 2, "cat": 3}}
    figure = plots.confusion_figure(confusion, ["cat", "dog", "bird"])
    axes = figure.axes[0]
    assert {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts} == {
        (0, 0): "9",
        (0, 1): "1",
        (1, 0): "3",
        (1, 1): "2",
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "bird"]
    assert axes.images[0].get_array()[1].tolist() == [0.6, 0.4, 0]
    assert plots.save_figure(figure, tmp_path / "confusion.svg").read_text().count("<text") >= 4


def test_figures_refuse_what_they_cannot_show(drawn: Scores, tmp_path: Any) -> None:
    bare = Scores([finished("a", "rte", 0, 0.5, time={}), finished("b", "rte", 0, 0.5, time={})])
    with pytest.raises(SoftPromptError, match="no training time relative to a of a, b; leave these methods out"):
        plots.accuracy_against_time(bare, "a")
    with pytest.raises(SoftPromptError, match="no finished run has points in its 'curve'"):
        plots.learning_curves(bare)
    with pytest.raises(SoftPromptError, match="no block in which 'a' reaches the target"):
        plots.steps_figure(bare, "a")
    with pytest.raises(SoftPromptError, match="expected at least two methods and a block"):
        plots.critical_difference_diagram(rank(Scores([finished("a", "rte", 0, 0.5)])))
    with pytest.raises(SoftPromptError, match="no block that every method has finished"):
        plots.accuracy_against_parameters(Scores([finished("a", "rte", 0, 0.5), finished("b", "rte", 1, 0.5)]))
    with pytest.raises(SoftPromptError, match=r"expected a name that ends in \.png or \.svg"):
        plots.save_figure(plots.learning_curves(drawn), tmp_path / "figure.gif")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in FIGURES.values():
        with pytest.raises(SoftPromptError, match=r'pip install "softprompt\[plots\]"'):
            draw(Scores(table_of(SMALL)))
