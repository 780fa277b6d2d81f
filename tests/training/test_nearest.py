"""A prompt that starts from the nearest of several trained ones."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import save_file

import softprompt
from house.runs import options, trained, values
from softprompt import SoftPromptError
from softprompt.training import nearest
from softprompt.training.check import check_run
from softprompt.training.nearest import start_nearest
from softprompt.training.prepare import gather, start_head


@pytest.fixture(scope="module")
def shelf(encoder, animals, tmp_path_factory):
    """A prompt that was trained on the task, and two that were moved far away from it."""
    root = tmp_path_factory.mktemp("shelf")
    trained(encoder, animals, root / "runs" / "near", num_train_epochs=4)
    for name, scale in (("afar", 30.0), ("further", 100.0)):
        shutil.copytree(root / "runs" / "near", root / "runs" / name, ignore=shutil.ignore_patterns("checkpoints"))
        moved = values(root / "runs" / "near")
        torch.manual_seed(0)
        moved = {k: v + scale * torch.randn_like(v) if "softprompt" in k else v for k, v in moved.items()}
        save_file(moved, root / "runs" / name / "adapter_model.safetensors")
    return root / "runs"


@pytest.mark.parametrize("how", ["list", "folder"])
def test_the_prompt_with_the_lowest_loss_is_the_start(how, encoder, animals, shelf, tmp_path):
    paths = [str(shelf / name) for name in ("afar", "further", "near")]
    given = {"init": "adapter", "init_path": str(shelf) if how == "folder" else paths}
    result = trained(encoder, animals, tmp_path / "chosen", **given)
    starts = result.document["train_info"]["starts"]
    assert set(starts) == set(paths) and min(starts, key=starts.get) == str(shelf / "near")
    trained(encoder, animals, tmp_path / "named", init="adapter", init_path=str(shelf / "near"))
    chosen, named = values(tmp_path / "chosen"), values(tmp_path / "named")
    assert chosen.keys() == named.keys() and all(torch.equal(chosen[key], named[key]) for key in named)
    config = json.loads((tmp_path / "chosen" / "adapter_config.json").read_text())
    assert config["init_path"] == str(shelf / "near")


def test_the_loss_is_the_one_at_which_training_starts(encoder, animals, shelf, tmp_path):
    given = {"init": "adapter", "init_path": str(shelf)}
    run = check_run(options(encoder, animals, tmp_path / "run", **given))
    prepared = start_head(run.options, run.prepared)
    before = {name: value.clone() for name, value in prepared.model.state_dict().items()}
    config, losses = start_nearest(prepared, run.config)
    after = prepared.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    model = get_peft_model(prepared.model, config).eval()
    with torch.no_grad():
        loss = model(**prepared.kind.collator(prepared.tokenizer)(prepared.encoded["train"].to_list())).loss
    assert losses[config.init_path] == pytest.approx(float(loss), rel=1e-4)


def test_a_prompt_of_another_backbone_is_left_out_and_said_so(encoder, animals, shelf, tmp_path, caplog):
    caplog.set_level("INFO")
    shutil.copytree(shelf / "near", tmp_path / "runs" / "near")
    shutil.copytree(shelf / "near", tmp_path / "runs" / "wide")
    wide = {k: torch.cat([v, v], -1) if "softprompt" in k else v for k, v in values(shelf / "near").items()}
    save_file(wide, tmp_path / "runs" / "wide" / "adapter_model.safetensors")
    file = tmp_path / "runs" / "wide" / "adapter_config.json"
    file.write_text(file.read_text().replace('"hidden_size": 32', '"hidden_size": 64'))
    given = {"init": "adapter", "init_path": str(tmp_path / "runs")}
    result = trained(encoder, animals, tmp_path / "out", **given)
    assert list(result.document["train_info"]["starts"]) == [str(tmp_path / "runs" / "near")]
    assert "wide is left out: " in caplog.text and "expected rows of width 32 (bert), got 64" in caplog.text
    shutil.rmtree(tmp_path / "runs" / "near")
    with pytest.raises(SoftPromptError, match="expected rows of width 32"):
        trained(encoder, animals, tmp_path / "none", **given)


def test_a_prompt_with_an_input_delta_is_left_out_and_said_so(encoder, animals, shelf, tmp_path, caplog):
    caplog.set_level("INFO")
    shutil.copytree(shelf / "near", tmp_path / "runs" / "near")
    trained(encoder, animals, tmp_path / "runs" / "wider", method="dept", rank=2, max_positions=8, max_steps=2)
    result = trained(encoder, animals, tmp_path / "out", init="adapter", init_path=str(tmp_path / "runs"), max_steps=1)
    assert list(result.document["train_info"]["starts"]) == [str(tmp_path / "runs" / "near")]
    assert "wider is left out: " in caplog.text and "this one changes the input embeddings, too" in caplog.text


def test_each_of_several_tasks_starts_from_its_own_nearest(encoder, mixed, tmp_path):
    first = softprompt.train(
        options(encoder, mixed, tmp_path / "first", task_column="task", max_steps=9), progress=False
    )
    given = {"task_column": "task", "init": "adapter", "init_path": str(first.folder), "max_steps": 1}
    softprompt.train(options(encoder, mixed, tmp_path / "second", **given), progress=False)
    for name in ("animal", "sky"):
        info = json.loads((tmp_path / "second" / name / "result.json").read_text())
        starts = info["train_info"]["starts"]
        assert starts.keys() == {str(first.folder / task) for task in ("animal", "sky")}
        assert info["run_info"]["peft_config"]["init_path"] == min(starts, key=starts.get)


@pytest.mark.parametrize(
    "more, message",
    [
        ({"init_path": ["SHELF/near", "nowhere"]}, "expected folders of trained prompts, got 'nowhere'"),
        ({"init_path": "EMPTY"}, "expected a trained prompt, or a folder of such folders"),
        ({"init_path": "SHELF", "head_init": "random"}, "has a loss without meaning; use head='pooled'"),
        ({"init_path": "SHELF", "head": "stock"}, "has a loss without meaning; use head='pooled'"),
    ],
    ids=["missing", "empty", "random", "stock"],
)
def test_refusals(more, message, encoder, animals, shelf, tmp_path):
    (tmp_path / "empty").mkdir()

    def placed(value):
        if isinstance(value, list):
            return [placed(one) for one in value]
        return value.replace("SHELF", str(shelf)).replace("EMPTY", str(tmp_path / "empty"))

    given = {"init": "adapter", **{key: placed(value) for key, value in more.items()}}
    with pytest.raises(SoftPromptError, match=message):
        trained(encoder, animals, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_rows_that_choose_are_of_every_class(
    encoder: Path, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = gather(options(encoder, animals, tmp_path / "o"))
    prepared = replace(prepared, encoded={**prepared.encoded, "train": prepared.encoded["train"].sort("labels")})
    seen: list[set[int]] = []
    monkeypatch.setattr(nearest, "ROWS", 6)
    monkeypatch.setattr(nearest, "candidates", lambda config: ["a"])
    monkeypatch.setattr(
        nearest, "_loss_from", lambda model, config, rows, collate: seen.append(set(rows["labels"])) or 1
    )
    config = softprompt.prompt_tuning(num_virtual_tokens=2, init="adapter", init_path="shelf")
    nearest.start_nearest(prepared, config)
    assert seen == [{0, 1, 2}]


def test_losses_that_choose_are_without_dropout_and_draw_no_number(
    encoder: Path, animals: Path, tmp_path: Path
) -> None:
    trained(encoder, animals, tmp_path / "shelf" / "one", max_steps=1)
    shelf = {"init": "adapter", "init_path": str(tmp_path / "shelf")}
    run = check_run(options(encoder, animals, tmp_path / "run", **shelf, backbone_dropout=True))
    prepared = start_head(run.options, run.prepared)
    prepared.model.train()
    before = torch.random.get_rng_state()
    config, losses = nearest.start_nearest(prepared, run.config)
    assert torch.equal(before, torch.random.get_rng_state())
    model = get_peft_model(prepared.model, config).eval()
    with torch.no_grad():
        loss = model(**prepared.kind.collator(prepared.tokenizer)(prepared.encoded["train"].to_list())).loss
    assert losses[config.init_path] == pytest.approx(float(loss), rel=1e-4)
