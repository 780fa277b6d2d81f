"""Arguments of a run's trainer: the defaults, and their reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments, get_scheduler
from transformers.utils import is_liger_kernel_available

from .._types import SoftPromptError, announce, check_choice
from ..data import lengths_of
from ..methods import Method
from ..models.scores import LOWER_IS_BETTER
from ..tuner import find_backbone
from .doubts import doubt_rate
from .keys.options import RunOptions
from .loop.lengths import WORTH, padding_shares, positions_saved
from .loop.refit import comparing
from .loop.trainer import PromptTrainer
from .output.checkpoints import CHECKPOINTS
from .prepare import Prepared

RELATIVE_RATE = 0.2  # AdamW moves every coordinate by about one learning rate a step; see learning_rate_for
BATCH, LARGEST = 16, 128  # rows
PARTNERS = 2  # of its own class that a row should meet in a batch, where rows are compared


def learning_rate_for(method: Method, model: nn.Module) -> tuple[float, str]:
    """The default learning rate of ``method`` on ``model``, with its reason.

    Prompts live among the embeddings, so a step is a share of the embeddings' standard deviation:
    ``lr = min(0.3, 0.2 std(E))``. 0.3 is what Lester et al. use on T5.
    """
    if method.learning_rate is not None:
        return method.learning_rate, f"the usual start for {method.name}"
    embed = find_backbone(model).embed
    with torch.no_grad():
        sample = embed(
            torch.arange(0, embed.num_embeddings, max(1, embed.num_embeddings // 4096), device=embed.weight.device)
        )
    spread = sample.float().std().item()
    return min(
        0.3, float(f"{RELATIVE_RATE * spread:.1g}")
    ), f"{RELATIVE_RATE} of the standard deviation {spread:.3g} of the vocabulary's embeddings"


def batch_size_for(config: PeftConfig | None, rows: int, classes: int) -> int:
    """The default number of rows per batch: 16, and more where rows are compared by class and there are many classes.

    Args:
        config: of the adapter, or None.
        rows: N, in training.
        classes: C; a batch of B rows then shows each of them (B - 1) / C others of its class, in the mean.
    """
    name = comparing(config)
    if name is None:
        return BATCH
    wanted = min(rows, LARGEST, PARTNERS * classes + 1)
    if wanted <= BATCH:
        return BATCH
    announce(
        f"per_device_train_batch_size={wanted}",
        f"of {classes} classes a batch of {BATCH} rows has hardly two of one, and the objective {name!r} compares rows of one class",
    )
    return wanted


def training_arguments(
    options: RunOptions,
    method: Method,
    prepared: Prepared,
    progress: bool,
    folder: Path,
    config: PeftConfig | None = None,
    **fixed: Any,
) -> TrainingArguments:
    """The trainer's arguments: what the user gave, over this library's defaults; ``fixed`` wins over both."""
    # Trainer makes a metric of null the loss, and the highest loss the best
    given = {key: value for key, value in options.training.items() if key != "metric_for_best_model" or value}
    rows = len(prepared.encoded["train"])
    if "per_device_train_batch_size" not in given:
        given["per_device_train_batch_size"] = batch_size_for(config, rows, len(prepared.card.label_names))
    batch = given["per_device_train_batch_size"]
    if "learning_rate" not in given and prepared.model.device.type != "meta":  # an architecture has no embeddings
        given["learning_rate"], reason = learning_rate_for(method, prepared.model)
        announce(f"learning_rate={given['learning_rate']:g}", reason)
    if "num_train_epochs" not in given and "max_steps" not in given:
        given["num_train_epochs"] = max(3, min(30, round(600 * batch / rows)))
        announce(
            f"num_train_epochs={given['num_train_epochs']}", f"about 600 steps on {rows} rows, between 3 and 30 epochs"
        )
    if "train_sampling_strategy" not in given:
        lengths = lengths_of(prepared.encoded["train"])
        size = batch * given.get("gradient_accumulation_steps", 1)
        shares = padding_shares(lengths, size, options.seed)
        if positions_saved(shares) >= WORTH:
            given["train_sampling_strategy"] = "group_by_length"
            announce(
                "train_sampling_strategy=group_by_length",
                f"padding is {shares[0]:.0%} of random batches and {shares[1]:.0%} of batches of rows of about one length, which saves {positions_saved(shares):.0%} of their positions",
            )
    best = str(given.get("metric_for_best_model") or _best_score(prepared, bool(given.get("prediction_loss_only"))))
    defaults = dict(
        warmup_steps=0.06,
        lr_scheduler_type="linear",
        per_device_eval_batch_size=64,
        **scored_when(given),
        logging_strategy="epoch",
        save_total_limit=2,
        metric_for_best_model=best,
        greater_is_better=not best.endswith(LOWER_IS_BETTER),
        disable_tqdm=not progress,
        restore_callback_states_from_checkpoint=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    if prepared.encoded.get("dev") is None:
        raise SoftPromptError(
            "training needs a dev set to choose the best checkpoint; raise dev_fraction or give dev_file."
        )
    if not defaults["load_best_model_at_end"]:
        announce(
            "the last step is kept, not the best",
            "no checkpoints to choose from are saved; set eval_strategy=epoch, and save_strategy alike",
        )
    best_name = best.removeprefix("eval_")
    if prepared.metric is not None and best_name not in prepared.kind.scores(prepared.card.label_names):
        if "greater_is_better" not in given:
            better = defaults["greater_is_better"]
            announce(f"greater_is_better={better}", f"nothing else is known of metric_for_best_model={best_name}")
    elif "metric_for_best_model" in given:
        check_choice(
            "metric_for_best_model",
            best_name,
            prepared.kind.scores(prepared.card.label_names),
        )
    with refusing():
        arguments = TrainingArguments(
            output_dir=str(folder / CHECKPOINTS), seed=options.seed, **{**defaults, **given, **fixed}
        )
    doubt_rate(arguments)
    return arguments


def scored_when(given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of when a run is scored and saved, and who is told."""
    saves = given.get("save_strategy", given.get("eval_strategy", "epoch"))
    return dict(eval_strategy="epoch", save_strategy=saves, load_best_model_at_end=saves != "no", report_to="none")


def chosen_by(arguments: TrainingArguments) -> str | None:
    """The name of the score that chooses checkpoints."""
    name = arguments.metric_for_best_model
    return None if name is None else str(name).removeprefix("eval_")


@contextmanager
def refusing() -> Iterator[None]:
    """What the trainer says of its arguments, as one message; packages that it misses among it."""
    try:
        yield
    except SoftPromptError:
        raise
    except (ImportError, TypeError, ValueError, RuntimeError) as error:
        raise SoftPromptError(f"TrainingArguments: {' '.join(str(error).split())}") from error


def try_out(options: RunOptions, args: TrainingArguments, model: nn.Module, rows: int) -> None:
    """Refuse arguments that do not fit the run or each other; what training builds first is built on trial.

    Raises:
        SoftPromptError: the first of them.
    """
    if options.early_stopping_patience is not None and args.eval_strategy == "no":
        raise SoftPromptError(
            f"early_stopping_patience={options.early_stopping_patience} counts evaluations in training, and eval_strategy='no' has none; drop one of the two."
        )
    if not args.remove_unused_columns:
        raise SoftPromptError("remove_unused_columns=False is not supported by softprompt train.")
    with refusing():
        _build_on_trial(args, model, rows)


def _build_on_trial(args: TrainingArguments, model: nn.Module, rows: int) -> None:
    if args.dataloader_drop_last and rows < args.train_batch_size:
        raise SoftPromptError(
            f"dataloader_drop_last=True leaves nothing of {rows} training rows in batches of {args.train_batch_size}; lower per_device_train_batch_size, or drop it."
        )
    for size in (args.train_batch_size, args.eval_batch_size):
        DataLoader(
            Dataset.from_list([]),
            batch_size=size,
            num_workers=args.dataloader_num_workers,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
    PromptTrainer.get_optimizer_cls_and_kwargs(args, model)
    get_scheduler(
        args.lr_scheduler_type,
        optimizer=torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate),
        num_warmup_steps=args.get_warmup_steps(1),
        num_training_steps=1,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise SoftPromptError("use_liger_kernel needs liger-kernel; run: pip install liger-kernel")


def _best_score(prepared: Prepared, loss_only: bool) -> str:
    """The score that chooses the checkpoint where the user names none."""
    names = prepared.card.label_names
    if loss_only and prepared.kind.scores(names)[0] != "loss":
        announce("metric_for_best_model=loss", "prediction_loss_only=True leaves no scores of rows")
        return "loss"
    return prepared.kind.choose_score(names)
