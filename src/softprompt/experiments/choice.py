"""Which of several trainings is kept: by its dev score, never by a test row."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DevScore:
    """What a trial is chosen by.

    Attributes:
        score: on the dev rows.
        loss: on the dev rows, or None; of equal scores the one with the lower loss is better.
    """

    score: float
    loss: float | None = None

    def beats(self, other: DevScore | None, greater_is_better: bool = True) -> bool:
        """Whether this is better than ``other``; one that is neither better nor worse is not, so the first of equals stays."""
        if other is None:
            return True
        if self.score != other.score:
            return self.score > other.score if greater_is_better else self.score < other.score
        return self.loss is not None and other.loss is not None and self.loss < other.loss
