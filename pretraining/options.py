"""The options of a run: what each may be, where they are read, and that a run goes on with those that it began with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from softprompt import SoftPromptError
from softprompt._documents import read_object
from softprompt._files import write_json
from softprompt.training import parse_setting, read_yaml

from .models import KINDS, STARTS

HERE = Path(__file__).parent
BEGUN = "options.json"
FREE = ("log", "save", "stop")  # they change no weight and no point of the curve

Rule = tuple[str, Callable[[Any], bool]]  # what is expected, and whether a value is that


def _one_of(names: Iterable[str]) -> Rule:
    valid = list(names)
    return f"one of {', '.join(valid)}", lambda value: value in valid


def _whole(least: int, most: float = math.inf) -> Rule:
    range_ = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
    return f"a whole number {range_}", lambda value: type(value) is int and least <= value <= most


def _number(said: str, fits: Callable[[float], bool]) -> Rule:
    return said, lambda value: type(value) in (int, float) and math.isfinite(value) and fits(value)


def _or_null(rule: Rule) -> Rule:
    said, fits = rule
    return f"{said}, or null", lambda value: value is None or fits(value)


def _are_shares(value: Any) -> bool:
    share = _number("", lambda number: number >= 0)[1]
    return isinstance(value, dict) and all(isinstance(k, str) and share(v) for k, v in value.items())


RULES: dict[str, Rule] = {
    "kind": _one_of(KINDS),
    "start": _one_of(STARTS),
    "vocabulary": _whole(1),
    "mixture": _or_null(("folders of the corpus, each with a share of at least 0, as {a: 0.4, b: 0.6}", _are_shares)),
    "length": _whole(4),  # both ends and two tokens: one of them may be a separator, which is never hidden
    "mask_share": _number("a number from 0 to 1", lambda number: 0 <= number <= 1),
    "batch": _whole(1),
    "micro_batch": _whole(1),
    "steps": _whole(1),
    "stop": _or_null(_whole(1)),
    "learning_rate": _number("a number above 0, as 4e-4", lambda number: number > 0),
    "warmup": _whole(0),
    "weight_decay": _number("a number of at least 0, as 1e-2", lambda number: number >= 0),
    "validation_blocks": _whole(1),
    "evaluate": _whole(1),
    "log": _whole(1),
    "save": _whole(1),
    "seed": _whole(0, 2**32 - 1),
    "precision": _one_of(("bfloat16", "float32")),
}


def read_options(config: str, pairs: Iterable[str] = ()) -> dict[str, Any]:
    """The options of ``config`` (masked, causal, or a YAML file), with ``key=value`` pairs in place of its own, all checked."""
    own = HERE / f"{config}.yaml"
    path = own if own.is_file() else Path(config)
    if not path.is_file():
        raise SoftPromptError(f"{config}: expected masked, causal or a YAML file; there is no such file.")
    options, settings = read_yaml(path), dict(parse_setting(pair) for pair in pairs)
    for where, given in ((config, options), ("--set", settings)):
        if unknown := [name for name in given if name not in RULES]:
            raise SoftPromptError(f"{where}: {unknown[0]} is no option; expected {', '.join(RULES)}.")
    options |= settings
    if missing := [name for name in RULES if name not in options]:
        raise SoftPromptError(
            f"{config} lacks {', '.join(missing)}; add it there, or with --set {missing[0]}=VALUE (see {HERE / 'masked.yaml'})."
        )
    check_options(options)
    return options


def check_options(options: dict[str, Any]) -> None:
    """Raise `SoftPromptError` at the first option that no run can have; what needs the corpus or the model is checked with them."""
    for name, (said, fits) in RULES.items():
        if not fits(options[name]):
            raise SoftPromptError(f"{name}={_shown(options[name])}: expected {said}.")
    batch, micro, mixture = options["batch"], options["micro_batch"], options["mixture"]
    if batch % micro:
        raise SoftPromptError(f"batch={batch}: expected a multiple of micro_batch={micro}; set both.")
    if options["kind"] == "masked" and not options["mask_share"]:
        raise SoftPromptError("mask_share=0: expected a number above 0 where kind=masked, as 0.15.")
    if mixture is not None and abs((total := sum(mixture.values())) - 1) > 1e-6:
        raise SoftPromptError(f"mixture={_shown(mixture)}: expected shares that sum to 1, these sum to {total:g}.")


def check_begun(output: Path, options: dict[str, Any], checkpoints: Path) -> None:
    """Raise `SoftPromptError` where ``output`` holds a run that began with other options, those in `FREE` apart."""
    path = output / BEGUN
    if not path.is_file():
        if any(checkpoints.glob("checkpoint-*")):
            raise SoftPromptError(
                f"{checkpoints} holds a run without the options that it began with ({path}); use another --output."
            )
        return
    before = read_object(path, "run of pre-training", "it says which run stands there, so use another --output")
    names = sorted((options.keys() | before.keys()) - set(FREE))
    if changed := [name for name in names if options.get(name) != before.get(name)]:
        told = ", ".join(
            f"{name}: {_shown(before.get(name))} then, {_shown(options.get(name))} now" for name in changed
        )
        raise SoftPromptError(
            f"{output} holds a run with other options ({told}); use the same, or another --output. "
            f"Only {', '.join(FREE)} may change."
        )


def write_begun(output: Path, options: dict[str, Any]) -> None:
    """Say in ``output`` with which options its run began."""
    write_json(output / BEGUN, options)


def _shown(value: Any) -> str:
    """A value as YAML has it."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).strip().removesuffix("\n...")
