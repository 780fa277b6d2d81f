"""What a search tries next, by Optuna's tree-structured Parzen estimator (arXiv 2304.11127), an extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._types import SoftPromptError

LOG_FROM = 20  # a range whose ends stand in this ratio or more is searched by ratios
DIGITS = 4  # of a number that is tried
PATIENCE = 20  # settings in a row that were there before, after which the ranges hold no more


@dataclass(frozen=True)
class Range:
    """Every number from ``low`` to ``high``; whole ones where the key takes whole numbers.

    Args:
        low, high: its ends, which belong to it.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        for end in (self.low, self.high):
            if isinstance(end, bool) or not isinstance(end, int | float):
                raise SoftPromptError(f"{self}: expected two numbers, got {end!r}.")
        if not self.low < self.high:
            raise SoftPromptError(f"{self}: expected a lower and then a higher number.")

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"

    @property
    def by_ratio(self) -> bool:
        """Whether it is searched by ratios rather than by differences."""
        return self.low > 0 and self.high >= LOG_FROM * self.low * (1 - 1e-9)


class Sampler:
    """Settings one after the other, each chosen by what is known of those before.

    Args:
        space: key -> its range, or a list of values.
        whole: the keys of ranges of whole numbers.
        seed: of what is drawn.

    Raises:
        SoftPromptError: Optuna is not installed.
    """

    def __init__(self, space: Mapping[str, Range | Sequence[Any]], whole: set[str], seed: int):
        optuna = _optuna()
        self._optuna, self.space = optuna, dict(space)
        self._of = {key: self._distribution(key, key in whole) for key in space}
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # several trials may run at once
        self._study = optuna.create_study(direction="minimize", sampler=sampler)
        self._open: dict[str, Any] = {}

    def _distribution(self, key: str, whole: bool) -> Any:
        values, made = self.space[key], self._optuna.distributions
        if not isinstance(values, Range):  # Optuna's choices are plain: the number of the value stands for it
            return made.CategoricalDistribution(list(range(len(values))))
        if whole:
            return made.IntDistribution(int(values.low), int(values.high), log=values.by_ratio)
        return made.FloatDistribution(values.low, values.high, log=values.by_ratio)

    def ask(self, seen: Mapping[str, Any], name: Any) -> dict[str, Any] | None:
        """A setting that is not among ``seen``, by the names that ``name`` gives; None where there is hardly a further one."""
        for _ in range(PATIENCE):
            trial = self._study.ask(self._of)
            setting = {key: self._value(key, value) for key, value in trial.params.items()}
            own = name(setting)
            if own not in seen:
                self._open[own] = trial
                return setting
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        return None

    def tell(self, name: str, setting: Mapping[str, Any], line: Mapping[str, Any]) -> None:
        """Learn what came of a setting, be it asked for here or in an earlier process."""
        states = self._optuna.trial.TrialState
        done = line["status"] == "done"
        value = (-line["dev"] if line["greater_is_better"] else line["dev"]) if done else None
        if (trial := self._open.pop(name, None)) is not None:
            self._study.tell(trial, value, state=states.COMPLETE if done else states.FAIL)
        elif done and self._holds(setting):
            params = {key: self._code(key, value) for key, value in setting.items()}
            known = self._optuna.trial.create_trial(params=params, distributions=self._of, value=value)
            self._study.add_trial(known)

    def _holds(self, setting: Mapping[str, Any]) -> bool:
        """Whether a setting lies inside the space, which may be another than that of an earlier process."""

        def within(values: Range | Sequence[Any], value: Any) -> bool:
            return values.low <= value <= values.high if isinstance(values, Range) else value in values

        return setting.keys() == self.space.keys() and all(within(self.space[key], setting[key]) for key in setting)

    def _value(self, key: str, code: Any) -> Any:
        values = self.space[key]
        if not isinstance(values, Range):
            return values[code]
        return code if isinstance(code, int) else min(max(float(f"{code:.{DIGITS}g}"), values.low), values.high)

    def _code(self, key: str, value: Any) -> Any:
        values = self.space[key]
        return value if isinstance(values, Range) else list(values).index(value)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise SoftPromptError("a search of ranges needs Optuna; run: pip install 'softprompt[optuna]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
