"""Train a small language model from the embedded sentence encoder: `python -m pretraining masked --corpus DIR --output DIR`.

Called again, it goes on where it stopped, with the batches, masks and learning rates that it would have had.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from softprompt import SoftPromptError
from softprompt._types import IGNORED
from softprompt.models.embedded import embedded_backbone
from softprompt.training.output.checkpoints import fault_of

from .corpus import Blocks, Tokens, check_mixture, encoded, text_files
from .judge import judge
from .models import STARTS, make_model, stock_model
from .options import check_begun, read_options, write_begun
from .vocabulary import counted, cut, kept

VOCABULARY = "vocabulary.json"


class Collate:
    """Rows of equal length to a batch; masked models get labels where tokens are hidden, causal ones all of them.

    Of ``mask_share`` of the tokens 80 % become [MASK], 10 % another token, 10 % stay (arXiv 1810.04805). The draw of a row comes
    from its number and ``seed``, so it does not depend on the batch nor on where a run was stopped.
    """

    def __init__(self, kind: str, tokenizer: Any, mask_share: float, seed: int):
        self.kind, self.tokenizer, self.mask_share, self.seed = kind, tokenizer, mask_share, seed

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if self.kind == "causal":
            ids = torch.tensor(np.stack([row["input_ids"] for row in rows]))
            return {"input_ids": ids, "labels": ids}
        pairs = [self._hidden(row["input_ids"].copy(), row["number"]) for row in rows]
        ids, labels = (torch.tensor(np.stack(part)) for part in zip(*pairs, strict=True))
        return {"input_ids": ids, "labels": labels}

    def _hidden(self, ids: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng((self.seed, number))
        inner = np.flatnonzero(~np.isin(ids, self.tokenizer.all_special_ids))
        chosen = draw.choice(inner, max(1, round(self.mask_share * len(inner))), replace=False)
        labels = np.full_like(ids, IGNORED)
        labels[chosen] = ids[chosen]
        how = draw.random(len(chosen))
        ids[chosen[how < 0.8]] = self.tokenizer.mask_token_id
        other = chosen[(how >= 0.8) & (how < 0.9)]
        ids[other] = draw.integers(len(self.tokenizer.all_special_ids), len(self.tokenizer), len(other))
        return ids, labels


class StopAt(TrainerCallback):
    """End the training after a number of steps, evaluated and saved, where its schedule goes further."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.step:
            control.should_training_stop = control.should_evaluate = True


def prepare(config: dict[str, Any], corpus: Path, work: Path) -> tuple[Any, list[int], Tokens]:
    """The cut tokenizer, the ids of the vocabulary of the start that stay, and the token ids of the corpus."""
    work.mkdir(parents=True, exist_ok=True)
    whole = AutoTokenizer.from_pretrained(embedded_backbone(STARTS[config["start"]]))
    if len(whole) <= config["vocabulary"]:
        return whole, list(range(len(whole))), encoded(corpus, whole, work / "tokens")
    path, size = work / VOCABULARY, config["vocabulary"]
    made = json.loads(path.read_text()) if path.is_file() else {}
    if made.get("size") != size or made.get("files") != text_files(corpus):
        made = {"size": size, "files": text_files(corpus), "ids": kept(whole, counted(corpus, whole), size)}
        path.write_text(json.dumps(made))
    ids = made["ids"]
    tokenizer = cut(whole, ids)
    return tokenizer, ids, encoded(corpus, tokenizer, work / "tokens")


def newest(checkpoints: Path, stop: int | None) -> str | None:
    """The newest whole checkpoint before ``stop``: where a run has stopped already, the steps from there to it are taken again."""
    steps = {int(path.name.split("-")[1]): path for path in checkpoints.glob("checkpoint-*") if fault_of(path) is None}
    before = [step for step in steps if stop is None or step < stop]
    return str(steps[max(before)]) if before else None


def _told(corpus: Path) -> str:
    """A corpus by its files and their sizes, as short as a message takes it."""
    files = text_files(corpus)
    return f"{len(files)} files, {hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]}"


def train(config: dict[str, Any], corpus: Path, output: Path, work: Path) -> dict[str, Any]:
    """Train, write the model to ``output/model``, and return its curve and what it makes of held-out text."""
    checkpoints, begun = output / "checkpoints", {**config, "corpus": _told(corpus)}
    check_begun(output, begun, checkpoints)
    check_mixture(config["mixture"], corpus)
    set_seed(config["seed"])
    loader: Any = AutoModelForMaskedLM if config["start"] == "masked" else AutoModel
    start = loader.from_pretrained(embedded_backbone(STARTS[config["start"]]), dtype=torch.float32)
    positions = start.config.max_position_embeddings
    if config["start"] != "nothing" and config["length"] > positions:
        raise SoftPromptError(
            f"length={config['length']}: expected at most {positions}, the positions of the model to start from; ask for fewer, or "
            "start=nothing."
        )
    tokenizer, ids, tokens = prepare(config, corpus, work)
    model = make_model(config["kind"], start, ids, config["length"], random=config["start"] == "nothing")
    # at this length the fused attention's backward pass is the slower one on a CPU
    model.set_attn_implementation("eager")
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    if config["kind"] == "causal":  # a text begins and ends as a block does
        tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
        for settings in (model.config, model.generation_config):
            settings.bos_token_id, settings.eos_token_id, settings.pad_token_id = first, last, tokenizer.pad_token_id
    framed, seed = (config["length"], first, last), config["seed"]
    count, mixture = config["steps"] * config["batch"], config["mixture"]
    special = tokenizer.all_special_ids
    rows = Blocks(tokens.train, *framed, special, seed, count, tokens.parts, mixture)
    held = Blocks(tokens.validation, *framed, special, seed, config["validation_blocks"])
    micro, resumed = config["micro_batch"], newest(checkpoints, config["stop"])
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=config["steps"],
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=config["batch"] // micro,
        learning_rate=config["learning_rate"],
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=config["warmup"],
        weight_decay=config["weight_decay"],
        adam_beta2=0.98,
        max_grad_norm=1.0,
        use_cpu=not torch.cuda.is_available(),  # said, or bfloat16 is refused there
        bf16=config["precision"] == "bfloat16",
        train_sampling_strategy="sequential",  # the order is drawn already
        eval_strategy="steps",
        eval_steps=config["evaluate"],
        eval_on_start=resumed is None,
        prediction_loss_only=True,
        logging_steps=config["log"],
        save_steps=config["save"],
        save_total_limit=2,
        remove_unused_columns=False,
        report_to="none",
        seed=config["seed"],
        disable_tqdm=True,
    )
    collate = Collate(config["kind"], tokenizer, config["mask_share"], config["seed"])
    stops = [] if config["stop"] is None else [StopAt(config["stop"])]
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=rows, eval_dataset=held, callbacks=stops)
    write_begun(output, begun)
    trainer.train(resume_from_checkpoint=resumed)
    per_step = config["batch"] * config["length"]
    curve = [
        {"tokens": entry["step"] * per_step, "loss": entry["eval_loss"]}
        for entry in trainer.state.log_history
        if "eval_loss" in entry
    ]
    stock_model(model).to(torch.bfloat16).save_pretrained(output / "model")
    tokenizer.save_pretrained(output / "model")
    judged = judge(config, output, tokens, collate, (first, last))
    document = {
        **config,
        "vocabulary_kept": len(ids),
        "blocks_left_out": rows.left_out,
        "dtype": "bfloat16",
        "tokens": trainer.state.global_step * per_step,
        "curve": curve,
        "held_out": judged,
    }
    (output / "curve.json").write_text(json.dumps(document, indent=1) + "\n")
    return document


def main(argv: list[str] | None = None) -> None:
    """Read the command line, and train."""
    parser = argparse.ArgumentParser(prog="python -m pretraining", description=__doc__)
    parser.add_argument("config", help="masked, causal, or a YAML file")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of text files; blank lines end documents")
    parser.add_argument("--output", type=Path, required=True, help="checkpoints, model/ and curve.json")
    parser.add_argument("--work", type=Path, help="vocabulary and token ids, shared by runs (default: OUTPUT/work)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="in place of a config's value")
    given = parser.parse_args(argv)
    try:
        config = read_options(given.config, given.set)
        if not given.corpus.is_dir():
            raise SoftPromptError(f"--corpus {given.corpus}: expected a folder of text files; there is none.")
        document = train(config, given.corpus, given.output, given.work or given.output / "work")
    except (SoftPromptError, OSError) as error:  # an OSError names the file and the fault
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    told = ("kind", "start", "tokens", "blocks_left_out", "held_out")
    json.dump({key: document[key] for key in told} | document["curve"][-1], sys.stdout)
    print()
