"""A prompt for each tone: one frozen causal language model writes in three tones, in one batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table

from ..._environment import environment
from ..._files import write_json, write_text
from ...data import collator, load_task
from ...models import embedded_backbone, load, load_tokenizer
from ...serving import Predictor
from ...training import RunOptions, train
from ...tuner import BASE

BACKBONE = "causal-lm"
OPENING, LONGEST = 3, 45  # words that are given, and of a whole message
BEGINNINGS = ("i ordered a", "hello, my order", "the parcel with", "can you tell")
EACH = 8  # texts for each beginning and tone
RUN: dict[str, Any] = {
    "backbone": BACKBONE,
    "method": "deep_prompts",
    "num_virtual_tokens": 10,
    "learning_rate": 0.03,
    "max_steps": 80,
    "max_length": 112,
    "per_device_train_batch_size": 16,
    "eval_strategy": "steps",
    "eval_steps": 40,
    "save_steps": 40,
    "attn_implementation": "eager",
}


def run_tones(output: Path, seed: int, console: Console, judge: Path) -> dict[str, Any]:
    """Train a prompt for each tone of the embedded messages, and show what each does: what it expects, and what it writes.

    Args:
        output: folder for runs and ``demo-tones.json``.
        seed: of the runs and of what is drawn while writing.
        judge: a run that tells tones, by which written texts are counted.
    """
    task = load_task("messages", label_column="tone")
    tones = list(task.label_names)
    rows = {
        tone: {
            split: [_row(row["text"]) for row in getattr(task, split) if row["label"] == number]
            for split in ("train", "dev", "test")
        }
        for number, tone in enumerate(tones)
    }
    model: PeftModel | None = None
    for tone in tones:
        console.print(f"a prompt that writes {tone}", highlight=False)
        folder = output / "tones" / tone
        shutil.rmtree(folder, ignore_errors=True)
        for split, name in (("train", "train"), ("dev", "validation")):
            write_text(folder / "data" / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows[tone][split]))
        options = {**RUN, "data": str(folder / "data"), "output_dir": str(folder / "run"), "seed": seed}
        train(RunOptions.from_flat(options), progress=False)
        if model is None:
            model = load(folder / "run")
            model.load_adapter(str(folder / "run"), tone)
        else:
            model.load_adapter(str(folder / "run"), tone)
    assert model is not None
    names = [BASE, *tones]
    expects = {name: {tone: _loss(model, name, rows[tone]["test"]) for tone in tones} for name in names}
    texts = _written(model, names, seed)
    verdicts = [row["label"] for row in Predictor(judge).predict([{"text": text} for _, text in texts])]
    called = {
        name: {tone: sum(v == tone for (n, _), v in zip(texts, verdicts, strict=True) if n == name) for tone in tones}
        for name in names
    }
    document = {
        "loss": expects,
        "called": called,
        "texts for each": EACH * len(BEGINNINGS),
        "texts": [
            {"adapter": name, "text": text, "called": v} for (name, text), v in zip(texts, verdicts, strict=True)
        ],
        "environment": environment(),
    }
    write_json(output / "demo-tones.json", document)
    console.print(_table(document, names, tones))
    for name in names:
        console.print(
            f"{'no prompt' if name == BASE else name}: {next(t for n, t in texts if n == name)}", highlight=False
        )
    return document


def _row(text: str) -> dict[str, str]:
    words = text.split()
    return {"prompt": " ".join(words[:OPENING]) + " ", "completion": " ".join(words[OPENING:LONGEST])}


@torch.no_grad()
def _loss(model: PeftModel, name: str, rows: list[dict[str, str]]) -> float:
    """Mean loss in nats of a token of these messages behind their first words."""
    from datasets import Dataset

    from ...data.encode import encode_completion

    tokenizer = load_tokenizer(str(embedded_backbone(BACKBONE)))
    encoded, collate = (
        encode_completion(tokenizer, Dataset.from_list(rows), RUN["max_length"]),
        collator(tokenizer, "completion"),
    )
    batch = {key: value.to(model.device) for key, value in collate(encoded.to_list()).items()}
    return float(model(**batch, adapter_names=[name] * len(rows)).loss)


@torch.no_grad()
def _written(model: PeftModel, names: list[str], seed: int) -> list[tuple[str, str]]:
    """Texts of every adapter behind the same beginnings, all in one batch."""
    tokenizer = load_tokenizer(str(embedded_backbone(BACKBONE)))
    tokenizer.padding_side = "left"
    asked = [(name, text) for name in names for text in BEGINNINGS for _ in range(EACH)]
    ids = [[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]] for _, text in asked]
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)
    torch.manual_seed(seed)
    made = model.generate(
        **batch,
        adapter_names=[name for name, _ in asked],
        max_new_tokens=40,
        do_sample=True,
        top_p=0.9,
        temperature=0.8,
        repetition_penalty=1.2,
    )
    return [
        (name, text)
        for (name, _), text in zip(asked, tokenizer.batch_decode(made, skip_special_tokens=True), strict=True)
    ]


def _table(document: dict[str, Any], names: list[str], tones: list[str]) -> Table:
    count = document["texts for each"]
    title = f"loss on messages of a tone, nats a token; and which of {count} texts the classifier calls so"
    table = Table(title=title, title_justify="left")
    for column in ("prompt", *(f"loss, {tone}" for tone in tones), *(f"called {tone}" for tone in tones)):
        table.add_column(column, justify="left" if column == "prompt" else "right")
    for name in names:
        losses = [f"{document['loss'][name][tone]:.2f}" for tone in tones]
        table.add_row(
            "none" if name == BASE else name, *losses, *(str(document["called"][name][tone]) for tone in tones)
        )
    return table
