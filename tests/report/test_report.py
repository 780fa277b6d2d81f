"""Reports of runs: what is read, what is drawn, what is said to be missing; and the page in a browser in test_browser.py."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA

import softprompt
from house.reports import history, records, write_run
from house.runs import call, options
from softprompt.report.contents import groups, kept_layers
from softprompt.report.evolution import evolution
from softprompt.report.figures import COLOURED, Axis, bar_figure, colours, heat_figure, line_figure
from softprompt.report.page import page
from softprompt.report.runs import read_runs

PUBLISHED = Path(__file__).resolve().parents[1] / "published" / "runs"


def test_a_run_is_read_with_its_curves_and_without_the_last_scores(tmp_path: Path) -> None:
    """The chosen checkpoint is scored again on dev and test rows at the end: no point of a curve."""
    folder = write_run(tmp_path / "a", history(4, ts_loss=0.5))
    (run,) = read_runs([folder])
    assert run.curves["eval_accuracy"] == [(10, 0.54), (20, 0.58), (30, 0.62), (40, 0.66)]
    assert run.curves["ts_loss"] == [(10, 0.5), (20, 0.25), (30, 0.5 / 3), (40, 0.125)]
    assert set(run.curves) == {"loss", "ts_loss", "eval_loss", "eval_accuracy"}
    assert (run.name, run.facts["test"], run.facts["parameters"], run.facts["seed"]) == ("a", 0.7, 1234, 7)


def test_names_are_as_short_as_they_can_be_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / a / "out", history(2)) for a in ("x", "y")]
    assert [run.name for run in read_runs(folders)] == ["x/out", "y/out"]
    with pytest.raises(softprompt.SoftPromptError, match="expected different folders, got one of them twice"):
        read_runs([folders[0], folders[0]])


def test_what_no_run_has_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(softprompt.SoftPromptError, match="expected the folder of a run"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(softprompt.SoftPromptError, match=r"expected result.json or checkpoints, as softprompt train"):
        read_runs([tmp_path])


def test_a_killed_run_shows_its_newest_checkpoint() -> None:
    (run,) = read_runs([PUBLISHED / "stopped"])
    assert run.missing[0].startswith(
        "The run did not end: there is no result.json. What is shown comes from checkpoint"
    )
    assert run.curves and "did not end" in page([run])


def test_every_published_run_gives_a_page_that_says_what_is_missing() -> None:
    folders = [path for path in sorted(PUBLISHED.iterdir()) if (path / "result.json").is_file()]
    runs = read_runs(folders)
    text = page(runs)
    for run in runs:
        assert run.missing and all(line[:30] in text for line in run.missing), run.name
    assert "expected a SOFTPROMPT adapter, got LORA" in text  # a PEFT baseline has no virtual tokens to look at


def test_the_map_is_a_principal_component_analysis_of_all_steps() -> None:
    shape = records(5, 7, layers=2)
    found = evolution(shape)
    assert found["steps"] == [0, 10, 20, 30, 40] and found["every"] == 1 and list(found["layers"]) == ["0", "1"]
    for layer in (0, 1):
        cloud = np.concatenate([record["prompt"][layer] for record in shape]).astype(np.float64)
        analysis = PCA(2).fit(cloud)
        expected = analysis.transform(cloud).reshape(5, 7, 2)
        got = np.array(found["layers"][str(layer)]["places"])
        for axis in (0, 1):  # an axis has no sign
            sign = np.sign((expected[..., axis] * got[..., axis]).sum())
            assert np.allclose(sign * got[..., axis], expected[..., axis], atol=1e-3)
        assert np.allclose(found["layers"][str(layer)]["explained"], analysis.explained_variance_ratio_)


def test_trees_and_edges_are_those_of_the_cloud() -> None:
    """The lengths of a minimum spanning tree are the deaths of H0; edges come shortest first."""
    shape = records(3, 9)
    found = evolution(shape)["layers"]["0"]
    for i, record in enumerate(shape):
        cloud = record["prompt"][0].astype(np.float64)
        lengths = sorted(float(np.linalg.norm(cloud[a] - cloud[b])) for a, b in found["tree"][i])
        assert np.allclose(lengths, sorted(death for _, death in record["layers"]["0"]["h0"]), rtol=1e-4)
        edges = found["edges"][i]
        assert np.allclose([length for *_, length in edges], np.sort(pdist(cloud))[: len(edges)], rtol=1e-3)
        assert len(edges) == 36 and all(a < b for a, b, _ in edges)


def test_equal_tokens_and_one_token_and_one_step_are_drawn() -> None:
    same = records(2, 4)
    for record in same:
        record["prompt"][:] = 1.0
    found = evolution(same)["layers"]["0"]
    assert len(found["tree"][0]) == 3 and found["explained"] == [0.0, 0.0]
    alone = evolution(records(1, 1))["layers"]["0"]
    assert alone["tree"] == [[]] and alone["edges"] == [[]] and np.shape(alone["places"]) == (1, 1, 2)


def test_a_long_run_of_many_tokens_stays_below_a_megabyte(tmp_path: Path) -> None:
    shape = records(300, 20, layers=2, width=16)
    folder = write_run(tmp_path / "long", history(300, ts_loss=1.0, l2=3.0), shape)
    text = page(read_runs([folder]))
    assert len(text.encode()) < 1_000_000
    found = evolution(shape)
    assert found["every"] > 1 and found["steps"][-1] == 2990 and len(found["all_steps"]) == 300
    assert f"Every {found['every']}th of 300 records is drawn." in text


def test_text_of_a_user_is_text(tmp_path: Path) -> None:
    evil = "</script><script>window.hacked = 1</script>\"'&"
    log = [{"step": i, "loss": 1.0, evil: float(i)} for i in (1, 2)]
    folder = write_run(tmp_path / "<b>a\"b'", log, records(2, 3), source=evil, method=evil)
    text = page(read_runs([folder]))
    assert "window.hacked = 1</script>" not in text and "<b>a" not in text
    assert text.count("<script") == text.count("</script>") == 1 + text.count('<script type="application/json">')
    for block in re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL):
        json.loads(block)


def test_six_methods_have_colours_and_the_others_are_grey() -> None:
    names = [f"m{i}" for i in range(9)]
    kinds = colours(names)
    assert [kinds[name] for name in names] == [f"c{i}" for i in range(COLOURED)] + ["rest"] * 3
    figure = line_figure("t", {name: [(0, 1.0), (1, float(i))] for i, name in enumerate(names)}, kinds)
    labels = re.findall(r'class="label c\d" x="[\d.]+" y="([\d.]+)"', figure.svg)
    assert len(labels) == COLOURED and figure.note == "Grey: m6, m7, m8."
    places = sorted(map(float, labels))
    assert all(b - a >= 13.9 for a, b in itertools.pairwise(places)), "labels cover each other"
    assert len(figure.rows) == 18


def test_values_that_are_not_finite_leave_no_mark() -> None:
    figure = line_figure("t", {"a": [(0, float("nan")), (1, 1.0)], "b": [(0, float("inf"))]}, {"a": "c0"})
    assert "nan" not in figure.svg and "inf" not in figure.svg and figure.rows == [["a", 1, 1.0]]
    assert line_figure("t", {"b": [(0, float("nan"))]}, {}).note == "Nothing was logged."
    heat = heat_figure("h", [[1.0, None], [float("nan"), 3.0]], ["r", "s"], ["x", "y"], "x", "y")
    assert heat.svg.count('class="field"') == 2
    assert bar_figure("b", {"g": {"x": 0.0}}, {}, "y").svg.count("<rect") == 1


def test_seeds_of_one_method_are_summed_up_and_kept_layers_lie_side_by_side(tmp_path: Path) -> None:
    search = {"candidates": [0, 1, 2], "scores": [3, 1, 2]}
    folders = [
        write_run(
            tmp_path / name,
            history(2),
            seed=seed,
            method=method,
            **{"test accuracy": score, "search": {**search, "layers": kept}},
        )
        for name, seed, method, score, kept in (
            ("a", 1, "spt", 0.6, [0, 2]),
            ("b", 2, "spt", 0.8, [0, 1]),
            ("c", 1, "ept", 0.9, [2]),
        )
    ]
    runs = read_runs(folders)
    (line,) = groups(runs)
    assert line[:5] == ["messages", "spt", "-", "2", "0.700 ± 0.141"]
    figure = kept_layers(runs)
    assert figure is not None
    assert figure.rows[:3] == [["a", "0", 1.0], ["a", "1", 0.0], ["a", "2", 1.0]]
    text = page(runs)
    assert "0.700 ± 0.141" in text and "Kept layers" in text
    assert kept_layers(runs[:1]) is None and groups(runs[:1]) == []


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3e-9, 7e-9), (5, 5), (0, 0), (1e6, 3.7e6)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    axis = Axis(low, high, 0, 100)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 11 and all(-1e-6 <= axis.at(tick) <= 100 + 1e-6 for tick in ticks)


def test_the_command_writes_a_page_and_markdown(
    encoder: Path, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trained EPT and a search of layers: gates of both, nearest tokens beside the null, similarity of two prompts."""
    common = {"num_train_epochs": 2, "track": "topology", "num_virtual_tokens": 3}
    softprompt.train(options(encoder, animals, tmp_path / "ept", method="ept", rank=2, max_positions=16, **common))
    softprompt.train(options(encoder, animals, tmp_path / "spt", method="spt", budget=1, bottleneck=4, **common))
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "report", "ept", "spt", "-o", "out/page.html") == 0
    assert capsys.readouterr().out.strip() == "out/page.html"
    text = Path("out/page.html").read_text()
    for words in (
        "Weights of the subspaces",
        "Gates of the layers",
        "Random vectors with the vocabulary",
        "Similarity of the prompts",
    ):
        assert words in text, words
    assert "Kept: layers" in text and text.count('class="evolution"') == 2
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text

    assert call(monkeypatch, "report", "ept", "spt", "--output", "out/page.md") == 0
    written = Path("out/page.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", written)
    assert len(pictures) >= 5
    for picture in pictures:
        assert (Path("out") / picture).read_text().startswith("<svg viewBox")
    assert "| run | task |" in written

    assert call(monkeypatch, "report", "ept", "--data", str(animals / "test.jsonl"), "-o", "worth.html") == 0
    assert "worth in nats" in Path("worth.html").read_text()
    assert call(monkeypatch, "report", "spt", "--data", str(animals / "test.jsonl"), "-o", "worth.html") == 0
    assert "Gates of the layers" in Path("worth.html").read_text()  # generated: worth is not measured
    capsys.readouterr()

    assert call(monkeypatch, "report", "nowhere") == 2
    assert "nowhere: expected the folder of a run" in capsys.readouterr().err
