"""A run on its way to the hub: what goes up, what stays here, and what is refused before anything is sent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard, constants

from house.files import read_json
from house.hub import READER, Hub, reach, standing_in
from house.runs import train_shortly
from softprompt import SoftPromptError
from softprompt.models import TaskCard
from softprompt.training import push_run
from softprompt.training.output.share import _told, without_paths

FILES = {"adapter_config.json", "adapter_model.safetensors", "task.json", "README.md", "result.json"}
BACKBONE = "me/encoder"


@pytest.fixture(scope="module")
def trained(encoder: Path, animals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_shortly(encoder, animals, tmp_path_factory.mktemp("trained") / "run", track="topology")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with standing_in() as hub:
        reach(monkeypatch, hub.address, tmp_path / "hub")
        yield hub


def refusal(run: Path, name: str = "me/tone", **more: Any) -> str:
    with pytest.raises(SoftPromptError) as refused:
        push_run(run, name, **{"backbone": BACKBONE, **more})
    return str(refused.value)


def test_the_adapter_goes_up_and_nothing_of_this_machine(hub: Hub, run: Path, encoder: Path, animals: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = push_run(run, "me/tone", message="the first", backbone=BACKBONE)
    repo = hub.repos["me/tone"]
    files = repo.files()
    assert set(files) == {*FILES, ".gitattributes"} and set(said.pop("files")) == FILES
    assert said == {
        "repo": "me/tone",
        "revision": "main",
        "commit": repo.number("main"),
        "url": f"{hub.address}/me/tone",
    }
    assert repo.messages[-1] == "the first" and not repo.private
    assert files["adapter_model.safetensors"] == (run / "adapter_model.safetensors").read_bytes()
    sent = b"".join(files[name] for name in FILES - {"adapter_model.safetensors"}).decode()
    for place in (encoder, animals, run, Path.home() / "x", encoder.parent):
        assert str(place) not in sent
    assert str(encoder) in (run / "task.json").read_text()  # the negative control: it is in the run
    assert str(animals) in (run / "result.json").read_text()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_went_up_names_the_backbone_and_keeps_its_seal(hub: Hub, run: Path, tmp_path: Path) -> None:
    push_run(run, "me/tone", backbone=BACKBONE)
    down = tmp_path / "down"
    down.mkdir()
    for name, content in hub.repos["me/tone"].files().items():
        (down / name).write_bytes(content)
    card = TaskCard.read(down)
    assert card.backbone == BACKBONE and card.backbone_folder is None
    card.check_seal(down)
    assert read_json(down / "adapter_config.json")["base_model_name_or_path"] == BACKBONE
    result, before = read_json(down / "result.json"), read_json(run / "result.json")
    assert result["run_info"]["train_config"]["backbone"] == result["meta_info"]["model_info"]["backbone"] == BACKBONE
    assert result["run_info"]["train_config"]["output_dir"] == "run"
    assert result["train_info"] == before["train_info"]
    readme = ModelCard.load(down / "README.md")
    assert readme.data.base_model == BACKBONE and 'Predictor("me/tone")' in readme.text and BACKBONE in readme.text


def test_the_records_of_a_run_go_up_when_they_are_asked_for(hub: Hub, run: Path, animals: Path) -> None:
    push_run(run, "me/tone", records=True, backbone=BACKBONE)
    files = hub.repos["me/tone"].files()
    assert set(files) == {*FILES, ".gitattributes", "run.json", "topology.jsonl.gz"}
    assert json.loads(files["run.json"])["data"] == animals.name
    push_run(run, "me/tone", backbone=BACKBONE)  # they are those of an adapter that is there no more
    assert set(hub.repos["me/tone"].files()) == {*FILES, ".gitattributes"}


def test_a_branch_is_made_and_a_private_repository_stays_private(hub: Hub, run: Path) -> None:
    said = push_run(run, "me/tone", private=True, revision="second", backbone=BACKBONE)
    repo = hub.repos["me/tone"]
    assert repo.private and said["revision"] == "second" and said["commit"] == repo.number("second")
    assert set(repo.files("main")) == {".gitattributes"} and set(repo.files("second")) > FILES
    hub.add("me/open")
    assert "--private: the hub has a public repository of that name" in refusal(run, "me/open", private=True)
    assert set(hub.repos["me/open"].files()) == {".gitattributes"}


def test_who_may_read_a_new_repository_is_left_to_the_settings_of_its_owner(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, asked = HfApi.create_repo, []

    def creating(self: HfApi, name: str, *, private: bool | None, **more: Any) -> Any:
        asked.append(private)
        return create(self, name, private=private, **more)

    monkeypatch.setattr(HfApi, "create_repo", creating)
    push_run(run, "me/tone", backbone=BACKBONE)
    push_run(run, "me/mine", private=True, backbone=BACKBONE)
    assert asked == [None, True]


def test_a_backbone_that_is_a_folder_needs_a_name(hub: Hub, run: Path, encoder: Path) -> None:
    said = refusal(run, backbone=None)
    assert f"its backbone is a folder of this machine, {str(encoder)!r}" in said and "--backbone owner/name" in said
    for path in (str(encoder), "./encoder", "me/my encoder", "a/b/c"):
        assert f"--backbone {path}: expected a name on the hub" in refusal(run, backbone=path)
    assert not hub.asked


def test_an_embedded_backbone_needs_none(hub: Hub, run: Path) -> None:
    said = push_run(run, "me/tone", backbone="minilm")
    assert json.loads(hub.repos["me/tone"].files()["task.json"])["backbone"] == "minilm"
    config = json.loads(hub.repos["me/tone"].files()["adapter_config.json"])
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2" and said["repo"] == "me/tone"


def _spoil_weights(run: Path) -> None:
    path = run / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def _spoil_classes(run: Path) -> None:
    card = read_json(run / "task.json")
    (run / "task.json").write_text(json.dumps({**card, "label_names": card["label_names"][::-1]}))


def _remove_weights(run: Path) -> None:
    (run / "adapter_model.safetensors").unlink()


def _remove_card(run: Path) -> None:
    (run / "task.json").unlink()


def _write_path(run: Path) -> None:
    (run / "README.md").write_text((run / "README.md").read_text() + f"\nThe rows are in {run / 'rows.csv'}.\n")


def _write_token(run: Path) -> None:
    (run / "README.md").write_text((run / "README.md").read_text() + "\nhf_" + "a1B2" * 8 + "\n")


def _break_head(run: Path) -> None:
    (run / "README.md").write_text("---\nmodel-index: [\n---\n")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_spoil_weights, "adapter_model.safetensors: changed since task.json was written"),
        (_spoil_classes, "label_names: changed since task.json was written"),
        (_remove_weights, "expected the folder of a finished run; it has no adapter_model.safetensors."),
        (_remove_card, "expected a folder written by softprompt train, but it has no task.json."),
        (_write_path, "README.md: it names a path of this machine, "),
        (_write_token, "README.md: it holds a token of the hub; take it out before you push."),
        (_break_head, "README.md: expected a model card, it cannot be read"),
    ],
)
def test_a_run_that_must_not_go_up_is_refused_before_the_hub_is_asked(
    hub: Hub, run: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(run)
    assert said in refusal(run)
    assert not hub.asked


def test_a_token_among_the_settings_stays_here(hub: Hub, run: Path) -> None:
    settings = {**read_json(run / "run.json"), "hub_token": "hf_" + "a1B2" * 8}
    (run / "run.json").write_text(json.dumps(settings))
    push_run(run, "me/tone", records=True, backbone=BACKBONE)
    assert json.loads(hub.repos["me/tone"].files()["run.json"])["hub_token"] is None


@pytest.mark.parametrize("name", ["tone", "me/tone/x", "me/to ne", "/tmp/tone", "me/tone.git", ""])
def test_bad_names_are_refused(hub: Hub, run: Path, name: str) -> None:
    assert refusal(run, name).startswith(f"{name}: expected a name on the hub, owner/name")
    assert not hub.asked


def test_each_fault_of_the_hub_is_one_message(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "your token has no right to do this" in refusal(run, "you/tone")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "your token has no right to do this" in refusal(run)
    monkeypatch.setenv("HF_TOKEN", "nobody")
    assert "the hub does not know your token" in refusal(run)
    monkeypatch.delenv("HF_TOKEN")
    before = len(hub.asked)
    assert refusal(run) == "me/tone: expected a token of the hub, got none; set HF_TOKEN, or run: hf auth login."
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refusal(run) == "me/tone: HF_HUB_OFFLINE keeps the network off; unset it to push."
    assert len(hub.asked) == before
    reach(monkeypatch, "http://127.0.0.1:9", tmp_path / "hub")
    said = refusal(run)
    assert said.startswith("me/tone: it was not pushed: the hub cannot be reached") and "\n" not in said


def test_paths_are_cut_down_to_their_last_names(tmp_path: Path) -> None:
    inside = tmp_path / "my rows" / "train.jsonl"
    document = {
        "data": str(inside),
        "windows": "C:\\Users\\me\\rows.csv",
        "reasons": [f"dev = part of {inside}: no dev file", f"see file://{tmp_path}/x/y.txt, and/or /no-such-place/v1"],
        "url": "https://example.org/home/data",
        "template": "Q: {text}\nA:\nyes / no",
        "numbers": [1, 2.5, None, True],
    }
    found, count = without_paths(document)
    assert found == {
        **document,
        "data": "train.jsonl",
        "windows": "rows.csv",
        "reasons": ["dev = part of train.jsonl: no dev file", "see file://y.txt, and/or /no-such-place/v1"],
    }
    assert count == 4


@pytest.mark.parametrize(
    ("document", "found", "count"),
    [
        ({"data": "/s", "why": "and/some"}, {"data": "s", "why": "and/some"}, 1),  # short paths stand in other words
        ({"data": "/a/s", "why": "x of /a/s, /a/s"}, {"data": "s", "why": "x of s, s"}, 3),
        ({"template": "/", "pair": ["//", "C:\\"]}, {"template": "/", "pair": ["//", "C:\\"]}, 0),
        ({"data": "\\\\server\\alice", "why": "\\\\server\\b\\c"}, {"data": "alice", "why": "c"}, 2),
        ({"why": "see C:\\rows\\a.csv for it"}, {"why": "see a.csv for it"}, 1),
    ],
    ids=["short", "inside", "slash", "share", "windows"],
)
def test_what_is_a_path_and_what_only_has_a_slash(document: dict[str, Any], found: dict[str, Any], count: int) -> None:
    assert without_paths(document) == (found, count)


def test_only_the_backbone_of_the_run_gets_another_name() -> None:
    document = {"backbone": "mine", "starts": [{"backbone": "other", "hub_token": "x", "push_to_hub_token": "y"}]}
    told = {"backbone": BACKBONE, "starts": [{"backbone": "other", "hub_token": None, "push_to_hub_token": None}]}
    assert _told(document, "mine", BACKBONE) == told
