"""Tables of results, letter by letter."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import numpy as np
import pytest

from house.suites import finished, table_of
from softprompt import SoftPromptError
from softprompt.experiments import tables
from softprompt.experiments.statistics import Scores, bootstrap_interval

SMALL = {
    "plain": {"rte": [0.50, 0.54, 0.52], "trec": [0.80, 0.82, 0.84]},
    "a|b_c": {"rte": [0.56, 0.58, 0.60], "trec": [0.80, 0.82, 0.78]},
}


def test_results_table_exactly() -> None:
    lines = [
        *table_of(SMALL),
        finished("odd & new", "rte", 0, 0.6, parameters=76800),
        finished("odd & new", "rte", 1, math.nan),
    ]
    lines[-3] = {**lines[-3], "parameters": 1300}  # a larger head
    table = tables.results_table(Scores(lines))
    assert table.markdown() == (
        "| method | rte, 16 shots | trec, 16 shots | mean | rank | parameters |\n"
        "|---|---:|---:|---:|---:|---:|\n"
        "| plain | 52.0 ± 2.0 | **82.0 ± 2.0** | 50.0 | 3.00 | 100 |\n"
        "| a\\|b_c | 58.0 ± 2.0 | 80.0 ± 2.0 | 56.0 | 2.00 | 100 to 1,300 |\n"
        "| odd & new | **60.0 (1 of 3)** | - | **60.0** | **1.00** | 76,800 |\n"
        "\n"
        "Percent, mean ± standard deviation over seeds.  \n"
        "Rank: average over 1 setting; Friedman p = 0.368; critical difference 3.31 (Nemenyi, 0.05).  \n"
        "Left out where methods are compared: 5 of 6 blocks, because of odd & new on rte, 16 shots, seed 1 (test score is nan); "
        "odd & new on 4 blocks (no run).\n"
    )
    assert table.csv() == (
        'method,"rte, 16 shots mean","rte, 16 shots sd","rte, 16 shots runs","trec, 16 shots mean","trec, 16 shots sd",'
        '"trec, 16 shots runs",mean,rank,parameters lowest,parameters highest\n'
        "plain,0.52,0.02,3,0.82,0.02,3,0.5,3,100,100\n"
        "a|b_c,0.58,0.02,3,0.8,0.02,3,0.56,2,100,1300\n"
        "odd & new,0.6,,1,,,0,0.6,1,76800,76800\n"
    )
    assert tables.results_table(Scores(lines)).latex() == table.latex()


def test_tables_say_how_much_each_method_was_tuned() -> None:
    def tried(rates: int) -> dict[str, Any]:
        return {"trials": [{"learning_rate": 10.0**-i, "dev": 0.5} for i in range(rates)]}

    def notes(*counts: int) -> list[str]:
        lines = [finished(f"m{i}", "rte", seed, 0.5, **tried(n)) for i, n in enumerate(counts) for seed in range(2)]
        return [n for n in tables.results_table(Scores(lines)).notes if n.startswith("Trainings")]

    assert notes(1, 1) == ["Trainings per cell: 1."]
    each = "Trainings per cell, one for each learning rate tried, the best by dev score:"
    assert notes(3, 3) == [f"{each} 3."] and notes(3, 1, 3) == [f"{each} 3 (m0, m2); 1 (m1)."]
    assert notes(0, 0) == []  # lines that do not say it
    mixed = [finished("m", "rte", seed, 0.5, **tried(seed + 1)) for seed in range(3)]
    assert tables.cost_table(Scores(mixed), "m").lines[0][-1] == tables.Cell("1 to 3", (1, 3))


def test_comparison_table_exactly() -> None:
    table = tables.comparison_table(Scores(table_of(SMALL)), "plain")
    assert table.markdown() == (
        "| method | minus plain | 95 % interval | p | p (Holm) | W/T/L | blocks |\n"
        "|---|---:|---:|---:|---:|---:|---:|\n"
        "| a\\|b_c | +2.0 | 0.0 to +3.7 | 0.500 | 0.500 | 3/2/1 | 6 |\n"
        "\n"
        "Points of percent. Intervals resample seeds within each setting; the settings are taken as given.  \n"
        "The intervals are too short: they resample 3 seeds of a setting. A 95 % bootstrap interval of as many normal "
        "values covers their mean in about 75 % of cases, over eight settings in about 87 %; where all differences are "
        "equal it has no width.  \n"
        "p: sign-flip permutation test of the mean over blocks, two-sided; Holm's correction for 1 comparison.  \n"
        "W/T/L: blocks won, tied (up to 0.5 points) and lost.\n"
    )
    assert table.latex() == (
        "\\begin{table}\n"
        "\\centering\n"
        "\\caption{Compared with plain. Points of percent. Intervals resample seeds within each setting; the settings are "
        "taken as given. The intervals are too short: they resample 3 seeds of a setting. A 95 \\% bootstrap interval of as "
        "many normal values covers their mean in about 75 \\% of cases, over eight settings in about 87 \\%; where all "
        "differences are equal it has no width. p: sign-flip permutation test of the mean over blocks, two-sided; Holm's correction for 1 "
        "comparison. W/T/L: blocks won, tied (up to 0.5 points) and lost.}\n"
        "\\begin{tabular}{lrrrrrr}\n"
        "\\toprule\n"
        "method & minus plain & 95 \\% interval & p & p (Holm) & W/T/L & blocks \\\\\n"
        "\\midrule\n"
        "a|b\\_c & +2.0 & 0.0 to +3.7 & 0.500 & 0.500 & 3/2/1 & 6 \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\end{table}\n"
    )
    (row,) = csv.DictReader(io.StringIO(table.csv()))
    assert (row["method"], row["p"], row["W/T/L wins"], row["blocks"]) == ("a|b_c", "0.5", "3", "6")
    assert float(row["minus plain"]) == pytest.approx(0.02) and row["95 % interval resampled"] == "3"


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (1, ""),  # no interval
        (2, "they resample 2 seeds of a setting. A 95 % bootstrap interval of as many normal values covers"),
        (5, "in about 84 % of cases, over eight settings in about 90 %; where all differences are equal"),
        (6, ""),
    ],
)
def test_intervals_of_few_values_are_said_to_be_too_short(seeds: int, said: str) -> None:
    scores = {
        method: {task: [0.5 + gain + 0.01 * seed for seed in range(seeds)] for task in ("rte", "trec")}
        for method, gain in (("plain", 0.0), ("deep", 0.1))
    }
    table = tables.comparison_table(Scores(table_of(scores)), "plain")
    notes = [note for note in table.notes if note.startswith("The intervals are too short: ")]
    assert len(notes) == bool(said) and all(said in note for note in notes)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_how_often_intervals_of_few_values_cover_the_mean(seeds: int) -> None:
    draws = np.random.default_rng(0).normal(size=(400, seeds))
    intervals = [bootstrap_interval([values]) for values in draws]
    covered = sum(low <= 0 <= high for low, high in filter(None, intervals)) / len(draws)
    assert covered == pytest.approx(tables.COVERED[seeds][0] / 100, abs=0.05)


def test_latex_minus_and_special_characters() -> None:
    lines = table_of({"plain": {"rte": [0.5, 0.5]}, "50 % & #1_{x}~^\\": {"rte": [0.4, 0.3]}})
    text = tables.comparison_table(Scores(lines), "plain").latex()
    assert (
        "50 \\% \\& \\#1\\_\\{x\\}\\textasciitilde{}\\textasciicircum{}\\textbackslash{} & $-$15.0 & $-$20.0 to $-$10.0 &"
        in text
    )
    assert "sign-flip" in text  # a hyphen stays one


def test_bold_goes_by_what_is_read() -> None:
    lines = table_of({"a": {"x": [0.70001]}, "b": {"x": [0.7]}, "c": {"x": [0.69]}})
    column = [row[1] for row in tables.results_table(Scores(lines)).lines]
    assert [(cell.text, cell.bold) for cell in column] == [("70.0", True), ("70.0", True), ("69.0", False)]
    assert "\\textbf{70.0} & \\textbf{70.0}" in tables.results_table(Scores(lines)).latex()


def test_cost_and_steps_tables_say_never() -> None:
    curves = {"plain": [(10, 0.5), (20, 0.7)], "slow": [(10, 0.5), (20, 0.6)]}
    lines = [
        finished(
            method,
            "rte",
            seed,
            0.5,
            curve=curve,
            time={"train_seconds": 2.0 if method == "slow" else 1.0, "total_seconds": 4.0},
        )
        for method, curve in curves.items()
        for seed in range(6)
    ]
    scores = Scores([*lines, finished("slow", "rte", 6, None, status="failed", error="out of memory")])
    steps = tables.steps_table(scores, "plain")
    assert steps.markdown().splitlines()[2:] == [
        "| plain | 1.00 | 1.00 to 1.00 | 0 | 6 |",
        "| slow | never | never to never | 6 | 6 |",
        "",
        "Steps to the best dev score of plain as a share of the steps that plain takes in the same block: median. A run that never gets there counts as infinite.  ",
        "Intervals of medians lie between order statistics and need six blocks.  ",
        "Left out where methods are compared: 1 of 7 blocks, because of plain on rte, 16 shots, seed 6 (no run); slow on rte, 16 shots, seed 6 (failed: out of memory).",
    ]
    assert steps.csv().splitlines()[2] == "slow,inf,inf,inf,6,6"
    cost = tables.cost_table(scores, "plain")
    assert cost.markdown().splitlines()[3] == "| slow | 2.00 (2.00 to 2.00) | 1.00 (1.00 to 1.00) | 100 | - |"
    assert "Left out where methods are compared: 1 of 7 blocks" in cost.notes[-1]


def test_checkpoints_table_exactly() -> None:
    """Ten steps; of six runs of two tasks the chosen checkpoint stands at these, and the last step scores this much more."""
    steps, more = {"rte": (1, 2, 3), "trec": (5, 5, 10)}, {"rte": (0.02, 0.04, 0.03), "trec": (-0.01, 0.01, 0.0)}
    lines = [
        finished(
            "plain", task, seed, 0.5, steps=10, extra={"best_step": step, "last": {"dev": 0.1, "test": 0.5 + gain}}
        )
        for task in steps
        for seed, (step, gain) in enumerate(zip(steps[task], more[task], strict=True))
    ]
    lines += [finished("silent", task, 0, 0.5, steps=10, extra={"best_step": 8}) for task in steps]  # no score_last
    lines.append(finished("probe", "rte", 0, 0.5, steps=0))
    table = tables.checkpoints_table(Scores(lines))
    assert [line[:6] + line[7:] for line in map(list, table.lines)] == [
        [
            tables.Cell("plain", ("plain",)),
            tables.Cell("0.40", (0.4,)),
            tables.Cell("0.10 to 1.00", (0.1, 1.0)),
            tables.Cell("2", (2,)),
            tables.Cell("6", (6,)),
            tables.Cell("+1.5", (pytest.approx(0.015),)),
            tables.Cell("6", (6,)),
        ],
        [
            tables.Cell("silent", ("silent",)),
            tables.Cell("0.80", (0.8,)),
            tables.Cell("-", (None, None)),
            tables.Cell("0", (0,)),
            tables.Cell("2", (2,)),
            tables.Cell("-", (None,)),
            tables.Cell("0", (0,)),
        ],
        [
            tables.Cell("probe", ("probe",)),
            *[tables.Cell("-", (None,)), tables.Cell("-", (None, None)), tables.Cell("-", (None,))],
            *[tables.Cell("0", (0,)), tables.Cell("-", (None,)), tables.Cell("0", (0,))],
        ],
    ]
    low, high = table.lines[0][6].values
    assert 0 < low < 0.015 < high < 0.03
    assert (
        table.markdown().splitlines()[0].startswith("| method | chosen at, share of training | 95 % interval | in the")
    )


def test_mechanism_table_exactly() -> None:
    """Lists and mappings are a figure for each of their numbers; runs without figures, and runs that failed, are no runs of them."""
    noted = [
        {"fusion_entropy": 0.5, "gates": [0.75, 0.25], "gradient_share": {"tightness": 0.3}},
        {"fusion_entropy": 1.0, "gates": [0.25, 0.75]},
    ]
    lines = [
        *(finished("ept", "rte", seed, 0.5, extra={"mechanism": figures}) for seed, figures in enumerate(noted)),
        finished("ept", "rte", 2, 0.5),
        finished("ept", "rte", 3, None, status="failed", extra={"mechanism": noted[0]}),
        finished("ept", "trec", 0, 0.5, extra={"mechanism": {"fusion_entropy": 0.25}}),
        finished("plain", "rte", 0, 0.5),
    ]
    table = tables.mechanism_table(Scores(lines))
    assert table.csv().splitlines() == [
        "method,setting,figure,mean,lowest,highest,runs",
        'ept,"rte, 16 shots",fusion_entropy,0.75,0.5,1,2',
        'ept,"rte, 16 shots",gates 1,0.5,0.25,0.75,2',
        'ept,"rte, 16 shots",gates 2,0.5,0.25,0.75,2',
        'ept,"rte, 16 shots",gradient_share tightness,0.3,0.3,0.3,1',
        'ept,"trec, 16 shots",fusion_entropy,0.25,0.25,0.25,1',
    ]
    assert "| ept | rte, 16 shots | fusion_entropy | 0.750 | 0.500 | 1.000 | 2 |" in table.markdown()
    nothing = tables.mechanism_table(Scores([finished("plain", "rte", 0, 0.5)]))
    assert nothing.lines == [] and nothing.notes == ["No run has noted its mechanism."]


def test_a_search_says_which_layers_it_kept_and_by_which_scores() -> None:
    searched = [
        {"gates": [0.9, 0.5, 0.1], "layers": [0, 2], "layer_scores": [0.5, -0.5, 0.25]},
        {"gates": [0.9, 0.5, 0.1], "layers": [0, 1], "layer_scores": [1.5, 0.5, -0.25]},
    ]
    lines = [
        *(finished("spt", "rte", seed, 0.5, extra=own) for seed, own in enumerate(searched)),
        finished("spt", "rte", 2, None, status="failed", extra=searched[0]),
        finished("spt", "trec", 0, 0.5, extra={"gates": [0.25, 0.75], "layers": [4]}, options={"layers": [3, 4]}),
        finished("spt, random layers", "rte", 0, 0.5, extra={"layers": [1]}),
    ]
    table = tables.mechanism_table(Scores(lines))
    assert table.csv().splitlines()[1:] == [
        'spt,"rte, 16 shots",layer_kept 0,1,1,1,2',
        'spt,"rte, 16 shots",layer_kept 1,0.5,0,1,2',
        'spt,"rte, 16 shots",layer_kept 2,0.5,0,1,2',
        'spt,"rte, 16 shots",layer_scores 0,1,0.5,1.5,2',
        'spt,"rte, 16 shots",layer_scores 1,0,-0.5,0.5,2',
        'spt,"rte, 16 shots",layer_scores 2,0,-0.25,0.25,2',
        'spt,"trec, 16 shots",layer_kept 3,0,0,0,1',
        'spt,"trec, 16 shots",layer_kept 4,1,1,1,1',
        'spt,"trec, 16 shots",layer_gates 3,0.25,0.25,0.25,1',
        'spt,"trec, 16 shots",layer_gates 4,0.75,0.75,0.75,1',
    ]
    assert table.notes[1].startswith("layer_kept N: the share of runs whose search kept layer N; layer_scores N: the")


@pytest.mark.parametrize(
    ("noted", "message"),
    [
        ("high", r"extra\.mechanism: expected figures by name, got 'high'; run the cell again"),
        (
            {"gates": [0.5, None]},
            r"ept on rte, 16 shots, seed 0: extra\.mechanism\.gates: expected a number, or a list or",
        ),
        ({"gates": [[0.5]]}, "expected a number, or a list or mapping of numbers"),
        ({"gates": True}, "expected a number, or a list or mapping of numbers"),
    ],
)
def test_figures_that_are_none_are_refused(noted: object, message: str) -> None:
    with pytest.raises(SoftPromptError, match=message):
        tables.mechanism_table(Scores([finished("ept", "rte", 0, 0.5, extra={"mechanism": noted})]))


def test_a_figure_that_is_not_finite_is_no_run_of_it() -> None:
    noted = [{"fusion_entropy": value} for value in (0.5, math.nan, math.inf)]
    lines = [finished("ept", "rte", seed, 0.5, extra={"mechanism": own}) for seed, own in enumerate(noted)]
    ((_, _, _, *numbers),) = tables.mechanism_table(Scores(lines)).lines
    assert [cell.text for cell in numbers] == ["0.500", "0.500", "0.500", "1"]
