"""Everything for which a run is refused, before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from peft import PeftConfig
from transformers import TrainingArguments

from .._types import SoftPromptError, announce
from ..data import lengths_of
from ..methods import Method, find_method
from ..models.hub import OPTIONS_FILE
from ..models.places import backbone_path
from ..models.precision import AUTO, automatic_dtype
from ..search import check_budget, split_for_search
from ..tuner import SoftPromptConfig, check_builds, check_fits, find_backbone
from ..watch import watchers
from .arguments import training_arguments, try_out
from .doubts import doubt_method, doubt_words
from .keys.options import RunOptions, build_config
from .loop.refit import choose_head_fit
from .loop.trainer import check_loss
from .metric import Metric, check_metric
from .nearest import candidates, check_nearest
from .output.began import as_it_began
from .output.checkpoints import CHECKPOINTS, newest_checkpoint
from .output.folder import SEARCH, check_folder, recorded
from .prepare import Prepared, gather
from .states import check_below
from .weights import weigh_classes


@dataclass(frozen=True)
class Plan:
    """A run against which nothing speaks, before anything is computed.

    Attributes:
        options: with a dtype in the place of "auto".
        checkpoint: where a resumed run goes on, or None.
        search_checkpoint: where its search of layers goes on, or the last of one that is done; None without.
        prepared: rows, tokenizer, backbone and head.
        config: of the method; that of a searched prompt does not name its layers yet.
        arguments: of the trainer.
        fits_head: whether the head is fitted before each evaluation instead of trained.
    """

    options: RunOptions
    checkpoint: str | None
    search_checkpoint: str | None
    prepared: Prepared
    config: PeftConfig
    arguments: TrainingArguments
    fits_head: bool

    @property
    def searches(self) -> bool:
        """Whether the run searches the layers of its prompt first."""
        return isinstance(self.config, SoftPromptConfig) and self.config.placement == "gated"


def check_run(
    options: RunOptions,
    resume: bool = False,
    weights: bool = True,
    progress: bool = False,
    metric: Metric | None = None,
) -> Plan:
    """Check all that can be checked without computing: folder, data, columns, backbone, method, arguments, recordings.

    What is left for later: whether a method of PEFT's can be attached to this backbone, FSDP, and numbers that are not finite.

    Args:
        weights: read the backbone's; without them it is its architecture alone.
        progress: show the trainer's own progress bar.
        metric: of the user's; see `softprompt.train`.

    Raises:
        SoftPromptError: the first thing that speaks against the run.
    """
    folder = Path(options.output_dir)
    options = with_dtype(folder, options, resume)
    checkpoint = check_folder(folder, options, resume)
    method = find_method(options.method)
    doubt_words(options)
    prepared = replace(gather(options, weights), metric=metric)
    if metric is not None:
        loss_only = bool(options.training.get("prediction_loss_only"))
        check_metric(metric, prepared.kind, prepared.card.label_names, loss_only)
    searched = folder / SEARCH / CHECKPOINTS
    search_checkpoint = newest_checkpoint(searched) if searched.is_dir() else None
    config = as_it_began(configure(options, method, prepared), checkpoint or search_checkpoint)
    check_nearest(options, prepared, config)
    check_below(options, config, prepared)
    arguments = training_arguments(options, method, prepared, progress, folder, config)
    rows = prepared.encoded["train"]
    soft = config if isinstance(config, SoftPromptConfig) else None
    if soft is not None:
        backbone = find_backbone(prepared.model)
        check_fits(soft, backbone)
        check_builds(replace(soft, init="vocab", init_path=None) if candidates(soft) else soft, backbone)
        doubt_method(soft, options.method_options, backbone, prepared.encoded.values())
    if soft is not None and soft.placement == "gated":
        check_budget(soft.budget, backbone.num_layers if soft.layers is None else len(soft.layers))
        rows, _ = split_for_search(rows, options.seed)
    watchers(options.track, prepared.kind, soft is not None)
    if arguments.label_smoothing_factor and not prepared.kind.smooths:
        raise SoftPromptError(
            f"label_smoothing_factor={arguments.label_smoothing_factor:g} shares a row's weight among classes that exclude each other, which a {prepared.kind.name} task does not have; drop it."
        )
    if soft is not None and soft.objectives:
        check_loss(bool(arguments.label_smoothing_factor))
    how = choose_head_fit(options.head_fit, options.head_learning_rate, prepared.model, config)
    weigh_classes(options, prepared, how == "probe", bool(arguments.label_smoothing_factor))
    try_out(options, arguments, prepared.model, len(rows))
    return Plan(options, checkpoint, search_checkpoint, prepared, config, arguments, fits_head=how == "probe")


def configure(options: RunOptions, method: Method, prepared: Prepared) -> PeftConfig:
    """Build the method's config; embedding-space methods get vocabulary and tokenizer from the backbone."""
    own = dict(options.method_options)
    if own.get("init") == "labels" and "init_text" not in own:
        own["init_text"] = prepared.card.label_names
    if own.get("init") in ("text", "labels"):
        own.setdefault("tokenizer_name_or_path", backbone_path(options.backbone))
    most = method.parameters.get("max_positions")
    if (
        most is not None
        and "max_positions" not in own
        and (longest := max(lengths_of(prepared.encoded["train"]))) < most
    ):
        own["max_positions"] = longest
        announce(
            f"max_positions={longest}",
            "the longest input of train has so many tokens; rows of the low-rank pair behind it would learn nothing, and longer texts would get them as they were drawn",
        )
    # PEFT saves modules called classifier or score by itself, but a stock head may have more (a pooler, a dense layer)
    if beside := [name for name in prepared.fresh if name.split(".")[0] not in ("classifier", "score")]:
        own["modules_to_save"] = sorted({*(own.get("modules_to_save") or []), *beside})
        announce(
            f"modules_to_save={beside}",
            "the backbone's checkpoint does not hold them, so they are trained and saved with the adapter",
        )
    if options.marker is not None:
        own["marker_token_id"] = prepared.tokenizer.convert_tokens_to_ids(options.marker)
    own |= {"task_type": prepared.card.task_type, "base_model_name_or_path": backbone_path(options.backbone)}
    config = build_config(method, own)
    prepared.kind.check_method(method.name, config)
    return config


def with_dtype(folder: Path, options: RunOptions, resume: bool) -> RunOptions:
    """Put a real dtype in place of "auto": that of the run which goes on, else what suits this machine."""
    if options.dtype != AUTO:
        return options
    marker = folder / OPTIONS_FILE
    if resume and marker.is_file():
        dtype, reason = recorded(marker)["dtype"], f"{marker} of the run that goes on"
    else:
        dtype, reason = automatic_dtype(bool(options.training.get("use_cpu")))
    announce(f"dtype={dtype}", reason)
    return replace(options, dtype=dtype)
