"""Names of adapters on the hub: which they are, what is downloaded, and what is said where nothing is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from house.hub import Hub, reach, standing_in
from softprompt import SoftPromptError
from softprompt.models import adapter_folder
from softprompt.models.hub import RECORDS, is_hub_name
from softprompt.watch import TOPOLOGY

ADAPTER = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": b"weights",
    "task.json": b"{}",
    "README.md": b"# it",
}
OTHERS = {"training_args.bin": b"pickle", "adapter_model.bin": b"pickle", "rows.csv": b"text", "tokenizer.json": b"{}"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in with the adapter me/tone, asked from an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with standing_in() as hub:
        hub.add("me/tone").commit("main", {**ADAPTER, **OTHERS, "search/gates.jsonl": b""}, "all")
        reach(monkeypatch, hub.address, tmp_path / "hub")
        yield hub


def refusal(name: str) -> str:
    with pytest.raises(SoftPromptError) as refused:
        adapter_folder(name)
    return str(refused.value)


def test_only_the_files_of_a_run_come_down(hub: Hub) -> None:
    folder = adapter_folder("me/tone")
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {**ADAPTER, "search/gates.jsonl": b""}
    assert not [asked for asked in hub.asked if asked.endswith((".bin", ".csv"))]


def test_a_revision_is_what_stands_behind_the_at(hub: Hub) -> None:
    first = hub.repos["me/tone"].number("main")
    hub.repos["me/tone"].commit("second", {**ADAPTER, "README.md": b"# other"}, "other")
    assert (adapter_folder("me/tone@second") / "README.md").read_bytes() == b"# other"
    assert adapter_folder(f"me/tone@{first}") == adapter_folder(Path("me/tone")) != adapter_folder("me/tone@second")


def test_a_path_that_is_there_wins(hub: Hub) -> None:
    Path("me/tone").mkdir(parents=True)
    assert adapter_folder("me/tone") == Path("me/tone") and not hub.asked
    Path("me/tone").rmdir()
    assert adapter_folder("me/tone") == Path("me/tone")  # a slip inside a folder of one's own asks no stranger
    Path("me").rmdir()
    assert adapter_folder("me/tone") != Path("me/tone") and hub.asked


@pytest.mark.parametrize(
    "name", ["tone", "./me/tone", "~/me/tone", "/me/tone", "me/runs/tone", "me/to ne", "me/tone.git"]
)
def test_what_is_no_name_of_the_hub_is_a_path(hub: Hub, name: str) -> None:
    assert not is_hub_name(name) and adapter_folder(name) == Path(name) and not hub.asked


def test_the_cache_serves_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapter_folder("me/tone")
    before = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert adapter_folder("me/tone") == folder and len(hub.asked) == before
    assert refusal("me/other").endswith(
        "there is no such folder, and HF_HUB_OFFLINE keeps the network off; unset it, or take what lies on this machine."
    )


def test_a_hub_that_does_not_answer_is_one_message(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter_folder("me/tone")
    reach(monkeypatch, "http://127.0.0.1:9", tmp_path / "hub")
    assert adapter_folder("me/tone").is_dir()  # the copy in the cache
    said = refusal("me/other")
    assert said.startswith("me/other: expected an adapter's folder, or the name of one on the hub;")
    assert "the hub cannot be reached" in said and "\n" not in said


def test_what_the_hub_has_not_is_said(hub: Hub) -> None:
    assert "the hub has none, or none that your token may read" in refusal("me/tune")
    assert "the hub has no such revision of it." in refusal("me/tone@third")
    hub.add("me/model").commit("main", OTHERS, "no adapter")
    assert "the hub's me/model has no adapter_config.json" in refusal("me/model")
    hub.add("me/old").commit("main", {"adapter_config.json": b"{}", "adapter_model.bin": b"pickle"}, "pickled")
    assert "has no adapter_model.safetensors (pickled weights are never downloaded)" in refusal("me/old")


def test_records_are_those_that_runs_write() -> None:
    assert TOPOLOGY in RECORDS  # a higher floor's name, typed a second time
