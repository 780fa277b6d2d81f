"""Reports of runs: what is read, what is drawn, what is said to be missing; and the page in a browser in test_page.py."""

from __future__ import annotations

import gzip
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA

import softprompt
from house.reports import history, records, write_run
from house.runs import call, options, trained
from softprompt.report import contents
from softprompt.report.contents import accuracies, figures_of, groups, kept_layers
from softprompt.report.evolution import evolution
from softprompt.report.figures import COLOURED, Axis, bar_figure, colours, heat_figure, line_figure
from softprompt.report.page import figure_grid, page
from softprompt.report.runs import read_runs
from softprompt.report.similar import similarity

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
    assert [run.name for run in read_runs([*folders, write_run(tmp_path / "z", history(2))])] == ["x/out", "y/out", "z"]
    with pytest.raises(softprompt.SoftPromptError, match="expected different folders, got one of them twice"):
        read_runs([folders[0], folders[0]])


def test_what_no_run_has_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(softprompt.SoftPromptError, match="expected the folder of a run"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(softprompt.SoftPromptError, match=r"expected result.json, checkpoints or an adapter"):
        read_runs([tmp_path])


def test_a_killed_run_shows_its_newest_checkpoint() -> None:
    (run,) = read_runs([PUBLISHED / "stopped"])
    assert run.missing[0].startswith(
        "The run did not end: there is no result.json. What is shown comes from checkpoint"
    )
    assert run.curves and "did not end" in page([run])
    assert run.facts["method"] and run.facts["steps"] == int(run.missing[0].rpartition(" ")[2].rstrip("."))


def test_every_published_run_gives_a_page_that_says_what_is_missing() -> None:
    folders = [path for path in sorted(PUBLISHED.iterdir()) if (path / "result.json").is_file()]
    runs = read_runs(folders)
    text = page(runs)
    for run in runs:
        assert run.missing and all(line[:30] in text for line in run.missing), run.name
    assert (
        "expected a SOFTPROMPT adapter, got LORA" in text and "This run cannot be read" not in text
    )  # a PEFT baseline has no virtual tokens to look at


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
    figure_grid([heat_figure("h", [[float("nan"), 1.0]], ["r"], ["x", "y"], "x", "y")])  # JSON has no such number
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
    assert line[:5] == ["messages", "spt", "-", "1, 2", "0.700 ± 0.141"] and line[5] == "0.600 to 0.800"
    figure = kept_layers(runs)
    assert figure is not None
    assert figure.rows[:3] == [["a", "0", 1.0], ["a", "1", 0.0], ["a", "2", 1.0]]
    text = page(runs)
    assert "0.700 ± 0.141" in text and "Kept layers" in text
    assert kept_layers(runs[:1]) is None and groups(runs[:1]) == []


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3e-9, 7e-9), (5, 5), (0, 0), (1e6, 3.7e6), (0.6931471, 0.6931475), (12, 81), (1e8, 9e8)]
)
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    axis = Axis(low, high, 0, 100)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 11 and all(-1e-6 <= axis.at(tick) <= 100 + 1e-6 for tick, _ in ticks)
    assert len({name for _, name in ticks}) == len(ticks)
    assert all("e" not in name or high < 1e-6 or high >= 1e7 for _, name in ticks)
    assert all(float(name) == pytest.approx(tick, rel=1e-9, abs=1e-12 * (high - low)) for tick, name in ticks)


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
    assert "loss without it minus with it" in Path("worth.html").read_text()
    assert call(monkeypatch, "report", "spt", "--data", str(animals / "test.jsonl"), "-o", "worth.html") == 0
    assert "Gates of the layers" in Path("worth.html").read_text()  # generated: worth is not measured
    capsys.readouterr()

    assert call(monkeypatch, "report", "nowhere") == 2
    assert "nowhere: expected the folder of a run" in capsys.readouterr().err


def test_a_curve_ends_where_training_ends(tmp_path: Path) -> None:
    """What is noted of the chosen checkpoint, whose step is the last one whatever it is, is no point; nor is a count a loss."""
    log = [
        {"step": 8, "loss": 0.5, "num_input_tokens_seen": 900},
        {"step": 8, "eval_loss": 1.0, "eval_accuracy": 0.6},
        {"step": 8, "information head": 1.0},
        {"step": 16, "loss": 0.4},
        {"step": 20, "eval_loss": 1.0, "eval_accuracy": 0.6},
        {"step": 20, "information head": 1.0},
        {"step": 20, "eval_loss": 3.0, "eval_accuracy": 0.5},
        {"step": 20, "information head": 1.0},
    ]
    (run,) = read_runs([write_run(tmp_path / "a", log)])
    assert run.curves == {
        "loss": [(8, 0.5), (16, 0.4)],
        "eval_loss": [(8, 1.0)],
        "eval_accuracy": [(8, 0.6)],
        "information head": [(8, 1.0)],
    }


def test_only_runs_that_differ_in_their_seed_are_summed_up(tmp_path: Path) -> None:
    folders = []
    for name, seed, score, rate in (("a", 1, 0.9, 0.1), ("b", 2, 0.8, 0.1), ("c", 1, 0.1, 0.5)):
        folder = write_run(tmp_path / name, history(2), seed=seed, **{"test accuracy": score})
        document = json.loads((folder / "result.json").read_text())
        document["run_info"]["train_config"]["learning_rate"] = rate
        (folder / "result.json").write_text(json.dumps(document))
        folders.append(folder)
    ((*_, seeds, shown, _),) = groups(read_runs(folders))
    assert (seeds, shown) == ("1, 2", "0.850 ± 0.071")


def test_marks_stand_where_their_values_are() -> None:
    figure = line_figure("t", {"a": [(0, 1.0), (5, 3.0), (10, 2.0)]}, {"a": "c0"})
    xs, ys = zip(
        *(map(float, point.split(",")) for point in re.findall(r'points="([^"]+)"', figure.svg)[0].split()), strict=True
    )
    assert xs[0] < xs[1] < xs[2] and xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys[1] < ys[2] < ys[0] and ys[2] - ys[1] == pytest.approx(ys[0] - ys[2], abs=0.2)  # up is more
    bars = bar_figure("b", {"g": {"x": 1.0, "y": 2.0}}, {}, "y").svg
    low, high = (float(height) for height in re.findall(r'class="bar rest".*?height="([\d.]+)"', bars))
    assert high == pytest.approx(2 * low, abs=0.2)
    shades = re.findall(r"fill-opacity:([\d.]+)", heat_figure("h", [[1.0, 2.0, 3.0]], ["r"], list("xyz"), "x", "y").svg)
    assert sorted(map(float, shades)) == list(map(float, shades)) and shades[0] < shades[2]


def test_a_long_accuracy_is_a_running_mean_of_five(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "a", history(12))])
    (figure,) = accuracies([run], colours(["a"]))
    drawn = re.findall(r'points="([^"]+)"', figure.svg)[0].split()
    assert len(drawn) == 12 and [row[2] for row in figure.rows] == [value for _, value in run.curves["eval_accuracy"]]
    raw = dict(run.curves["eval_accuracy"])
    means = [raw[10] + raw[20] + raw[30]] + [sum(raw[10 * (i + j)] for j in range(-2, 3)) for i in range(3, 11)]
    ups = [float(point.split(",")[1]) for point in drawn]
    # the line of the means: heights are linear in them
    slope = (ups[5] - ups[2]) / (means[4] / 5 - means[1] / 5)
    assert ups[8] == pytest.approx(ups[2] + slope * (means[7] / 5 - means[1] / 5), abs=0.3)


def test_gates_of_every_layer_and_the_last_step_are_drawn(tmp_path: Path) -> None:
    search = {"candidates": [2, 3], "layers": [3], "layer_score": "ablation"}
    folder = write_run(tmp_path / "a", history(2), search=search)
    (folder / "search").mkdir()
    lines = [json.dumps({"step": i, "gates": [0.5, i / 100]}) for i in range(1, 101)]
    (folder / "search" / "gates.jsonl").write_text("\n".join(lines))
    (figure,) = (figure for figure in figures_of(read_runs([folder])[0]) if figure.title == "Gates of the layers")
    assert figure.rows[-1] == ["3", "100", 1.0] and figure.rows[0][0] == "2" and figure.rows[0][2] == 0.5
    assert len(figure.rows) <= 120 and "Kept: layers 3, by ablation." in figure.note


def test_subspaces_begin_even_and_end_as_they_were_learned(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", history(2), mechanism={"gates": [0.7, 0.2, 0.1]})
    (figure,) = (figure for figure in figures_of(read_runs([folder])[0]) if figure.title == "Weights of the subspaces")
    assert [row[2] for row in figure.rows] == pytest.approx([1 / 3, 0.7, 1 / 3, 0.2, 1 / 3, 0.1])


def test_shares_and_bounds_have_figures_of_their_own(tmp_path: Path) -> None:
    log = history(3, **{"share of ts_loss": 0.3, "information head": 0.1})
    for entry in log:
        if "information head" in entry:
            entry["information head"] = 0.1
    titles = {figure.title: figure for figure in figures_of(read_runs([write_run(tmp_path / "a", log)])[0])}
    assert titles["Shares of the gradient"].rows[0] == ["ts_loss", 10, 0.3]
    assert titles["Information bounds"].rows[0] == ["head", 10, 0.1]
    assert {row[0] for row in titles["Loss and its terms"].rows} == {"loss", "dev loss"}


def test_measures_and_bars_are_those_of_the_records() -> None:
    shape = records(4, 12)
    found = evolution(shape)["layers"]["0"]
    for i, record in enumerate(shape):
        for kind in ("h0", "h1"):
            assert np.allclose(np.array(found[kind][i]).reshape(-1), np.ravel(record["layers"]["0"][kind]), rtol=1e-3)
        for name, values in found["measures"].items():
            assert values[i] == record["layers"]["0"]["metrics"][name]


NONSENSE = ["", "[]", "null", "5", '"text"', "{}", "[1, null]", '{"a": [1', "\x00\x01", "NaN", "1e999", "[[[]]]"]
DAMAGED = {
    "topology.jsonl.gz": "topology.jsonl.gz is cut short or damaged",
    "search/gates.jsonl": "search/gates.jsonl is damaged",
    "states.safetensors": "states",
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("content", NONSENSE)
def test_a_damaged_part_is_named_and_the_page_is_written(name: str, content: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", history(3))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content.encode("latin-1"))
    (run,) = read_runs([folder])
    assert (content == "" and name == "topology.jsonl.gz") or any(DAMAGED[name] in line for line in run.missing), (
        run.missing
    )
    page([run])


@pytest.mark.parametrize("content", [*NONSENSE, '{"metrics": 5}', '{"metrics": [{"step": 1, "loss": NaN}, null, 3]}'])
@pytest.mark.parametrize(
    "part", ["train_info", "run_info", "meta_info", "dataset_info", "train_config", "probe", "search", None]
)
def test_whatever_a_result_holds_gives_a_page_or_one_message(part: str | None, content: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", history(3))
    whole = (folder / "result.json").read_text()
    try:
        value = json.loads(content)
    except ValueError:
        value = content
    document = json.loads(whole)
    where = {"dataset_info": "meta_info", "train_config": "run_info", "probe": "train_info", "search": "train_info"}
    if part is None:
        (folder / "result.json").write_bytes(content.encode("latin-1"))
    elif part in where:
        document[where[part]][part] = value
    else:
        document[part] = value
    if part is not None:
        (folder / "result.json").write_text(json.dumps(document))
    try:
        page(read_runs([folder]))
    except softprompt.SoftPromptError as error:
        assert part is None and "result.json: not a result of a run" in str(error)
    other = write_run(tmp_path / "b", history(2))  # one that cannot be read does not keep others from the page
    assert "0.700" in page(read_runs([folder, other]))


def test_states_of_other_shapes_are_named(tmp_path: Path) -> None:
    good = torch.randn(6, 4)
    for i, given in enumerate(
        (
            {"other": good},
            {"before": good, "labels": torch.arange(5)},
            {"before": good * torch.nan, "labels": torch.arange(6)},
            {"before": good[0], "labels": torch.arange(6)},
        )
    ):
        folder = write_run(tmp_path / str(i), history(2))
        save_file(given, folder / "states.safetensors")
        (run,) = read_runs([folder])
        assert any("does not hold finite states" in line for line in run.missing) and "States" not in page(
            [run]
        ).partition("<script>")[0].replace("finite states", "")


def test_topology_that_was_packed_again_is_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", history(2), records(3, 4))
    path = folder / "topology.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"}{", b"}\n{")))
    (run,) = read_runs([folder])
    assert len(run.records) == 3 and not any("damaged" in line for line in run.missing)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("-o", "x.pdf"), "x.pdf: expected a name that ends in .html or .md, got 'x.pdf'"),
        (("-o", "a/result.json"), "expected a name that ends in .html or .md, got 'result.json'"),
        (("-o", "folder.html"), "folder.html: expected the name of a file to write, got a folder"),
        (("-o", "file/x.html"), "file/x.html: the report cannot be written there"),
        (("--data", "nowhere.jsonl"), "--data nowhere.jsonl: expected a file of labelled rows, got no such file"),
    ],
)
def test_a_mistake_is_one_message_and_destroys_nothing(
    given: tuple[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_run(tmp_path / "a", history(2))
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("")
    before = (folder / "result.json").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "report", "a", *given) == 2
    assert message in capsys.readouterr().err and (folder / "result.json").read_bytes() == before


def test_prompts_of_other_spaces_are_not_compared(encoder: Path, animals: Path, tmp_path: Path) -> None:
    """Two at the input and one from layer 1 on: the third is left out; a prompt equals itself."""
    for name, own in (("a", {"seed": 1}), ("b", {"seed": 2}), ("c", {"layers": [1], "method": "deep_prompts"})):
        given = {"method": "prompt_tuning", "num_virtual_tokens": 3, "num_train_epochs": 1, **own}
        softprompt.train(options(encoder, animals, tmp_path / name, **given), progress=False)
    figure = similarity(read_runs([tmp_path / name for name in "abc"]))
    assert figure is not None and len(figure.rows) == 4
    found = {(row[0], row[1]): row[2] for row in figure.rows}
    assert found["1 a", "1"] == pytest.approx(1, abs=1e-6) and found["1 a", "2"] == pytest.approx(found["2 b", "1"])
    assert found["1 a", "2"] < 0.999


def test_runs_are_shown_by_the_score_that_chose_their_checkpoint(tmp_path: Path) -> None:
    steps = [
        {"step": step, "eval_pearson": 0.1 * step, "eval_loss": 1.0} for step in (1, 2, 3, 3, 3)
    ]  # the kept one, and test rows, last
    chosen = {"metric_for_best_model": "pearson", "dev pearson": 0.3125, "test pearson": 0.2875}
    numbers = read_runs([write_run(tmp_path / "numbers", steps, **chosen)])
    (run,) = numbers
    assert (run.facts["score"], run.facts["dev"], run.facts["test"]) == ("pearson", 0.3125, 0.2875)
    (figure,) = accuracies(numbers, {run.name: "rest"})
    assert figure.title == "Dev pearson" and [row[2] for row in figure.rows] == pytest.approx([0.1, 0.2, 0.3])
    both = read_runs([tmp_path / "numbers", write_run(tmp_path / "classes", history(3))])
    assert [run.facts["score"] for run in both] == ["pearson", "accuracy"]


def test_the_seconds_of_a_run_are_those_of_its_search_too(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "a", history(2), train_time=3.0, search={"seconds": 4.0})])
    assert run.facts["seconds"] == 7.0


def test_prompts_of_different_backbones_are_not_compared(encoder: Path, animals: Path, tmp_path: Path) -> None:
    for name in "ab":
        trained(encoder, animals, tmp_path / name, max_steps=1)
    one, two = read_runs([tmp_path / name for name in "ab"])
    assert similarity([one, two]) is not None
    assert similarity([one, replace(two, facts={**two.facts, "backbone": "another"})]) is None


def test_a_short_curve_is_drawn_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, kept = [], contents.line_figure
    monkeypatch.setattr(
        contents, "line_figure", lambda title, curves, *a, **k: drawn.append(curves) or kept(title, curves, *a, **k)
    )
    (run,) = read_runs([write_run(tmp_path / "a", history(10))])
    accuracies([run], colours(["a"]))
    assert drawn == [{"a": run.curves["eval_accuracy"]}]
