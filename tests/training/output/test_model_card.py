"""What a run says of itself: read back by the hub's own reader, with the run's numbers and nobody's data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from house.runs import trained
from house.tiny import save_backbone, write_classification, write_completion, write_tokens
from softprompt.models import KINDS
from softprompt.training import RunOptions, RunResult
from softprompt.training.output.model_card import hub_name, is_local, readdressed, write_model_card

WRITE = {"classification": write_classification, "completion": write_completion, "tokens": write_tokens}


@pytest.fixture(scope="module", params=sorted(WRITE))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, RunResult]:
    """The kind of a task, where its data and its backbone lie, and a short run of it."""
    kind, root = request.param, tmp_path_factory.mktemp("card")
    backbone = save_backbone(root / "backbone", "decoder" if kind == "completion" else "encoder")
    return kind, root, trained(backbone, WRITE[kind](root / "rows"), root / "out", max_steps=2)


@pytest.fixture
def card(run: tuple[str, Path, RunResult]) -> ModelCard:
    return ModelCard.load(run[2].folder / "README.md")


def test_the_card_is_read_back_with_its_numbers(run: tuple[str, Path, RunResult], card: ModelCard) -> None:
    kind, _, result = run
    assert card.data.library_name == "peft" and card.data.tags == ["softprompt", "prompt_tuning"]
    assert card.data.pipeline_tag == KINDS[kind].pipeline
    splits = {"validation": "dev", "test": "test"}
    found = card.data.eval_results
    assert {f"{splits[one.dataset_split]} {one.metric_type}": one.metric_value for one in found} == result.metrics
    written = json.loads((result.folder / "result.json").read_text())["train_info"]
    assert all(written[name] == value for name, value in result.metrics.items()) and "test accuracy" in result.metrics
    assert {(one.task_type, one.dataset_name) for one in found} == {(KINDS[kind].pipeline, "rows")}
    for name, value in result.metrics.items():
        assert f"| {name} | {value:.4f} |" in card.text


def test_the_card_names_no_folder_and_no_row(run: tuple[str, Path, RunResult], card: ModelCard) -> None:
    """A folder of this machine is neither a data set nor a model of the hub."""
    root = run[1]
    assert str(root) not in card.content and card.data.base_model is None and card.data.datasets is None
    assert "the frozen backbone `backbone`" in card.text
    rows = [json.loads(line) for path in (root / "rows").glob("*.jsonl") for line in path.read_text().splitlines()]
    texts = {str(row.get("text", row.get("prompt", " ".join(row.get("tokens", []))))) for row in rows}
    assert texts and not [text for text in texts if text in card.content]
    (widget,) = card.data.widget
    assert set(widget) == {"text", "example_title"} and widget["text"]


def test_on_the_hub_it_has_another_place_and_a_backbone_that_others_find(card: ModelCard) -> None:
    there = ModelCard(readdressed(card.content, "me/tone", "/home/me/backbone", "me/encoder"))
    assert there.data.base_model == "me/encoder" and "the frozen backbone `me/encoder`" in there.text
    assert 'Predictor("me/tone")' in there.text and "path/to/this/folder" not in there.text
    assert there.data.eval_results == card.data.eval_results and there.data.widget == card.data.widget
    again = ModelCard(readdressed(there.content, "me/tone", "me/encoder", "masked-lm"))
    assert again.data.base_model is None  # an embedded model that the hub has not


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("minilm", "sentence-transformers/all-MiniLM-L6-v2"),
        ("masked-lm", None),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
    ],
)
def test_names_of_backbones_on_the_hub(backbone: str, name: Any) -> None:
    assert hub_name(backbone) == name and not is_local(backbone)


def test_a_folder_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text("{}")
    assert is_local("encoder") and is_local("./other") and is_local(str(tmp_path)) and not is_local("other")


@pytest.mark.parametrize(
    ("path", "source", "datasets", "kind_of_data"),
    [
        ("/home/me/rows", "/home/me/rows", None, "rows"),
        (None, "me/rows", ["me/rows"], "me/rows"),
        (None, "messages", None, "messages"),  # embedded, and no data set of the hub
    ],
)
def test_the_card_names_data_of_the_hub_and_scores_that_are_numbers(
    path: str | None, source: str, datasets: list[str] | None, kind_of_data: str, tmp_path: Path
) -> None:
    card = SimpleNamespace(backbone="minilm", label_names=["a"], pairs=None)
    task = SimpleNamespace(name="rows", origin={"path": path, "source": source})
    info = {"dev loss": float("nan"), "dev accuracy": 0.5, "num_trainable_params": 3}
    document = {"train_info": info, "run_info": {"experiment_name": "ept/rows-all-1"}}
    prepared: Any = SimpleNamespace(kind=KINDS["classification"], card=card, task=task)
    write_model_card(tmp_path, RunOptions(method="ept"), prepared, document)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.datasets == datasets
    (result,) = data.eval_results
    assert (result.metric_type, result.dataset_type) == ("accuracy", kind_of_data)
