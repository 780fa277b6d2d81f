"""A progress bar over the work of a run."""

from __future__ import annotations

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from transformers import TrainerCallback

from ..voice import err, is_first


class Progress:
    """A progress bar over training steps, fed by a trainer callback; nothing is drawn before there is work to show."""

    def __init__(self) -> None:
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=err,
            disable=not is_first(),
        )
        bar, add = self.bar, self._add
        self.tasks: dict[str, Any] = {}

        class Callback(TrainerCallback):
            task: Any = None
            last: Any = None

            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.task = add(args.run_name or "training", total=state.max_steps, completed=state.global_step)

            def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.last, self.task = self.task, None  # evaluations after training are of other rows, too

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                bar.update(self.task, completed=state.global_step)

            def on_evaluate(
                self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
            ) -> None:
                score = best_named(metrics, "eval_")
                if score is not None and self.task is not None:
                    bar.update(self.task, note=f"dev {score}")

        self.callback = Callback()

    def _add(self, what: str, **facts: Any) -> Any:
        self.bar.start()
        return self.bar.add_task(what, note="", **facts)

    def report(self, what: str, done: int, total: int) -> None:
        """Show the progress of work before training."""
        if what not in self.tasks:
            self.tasks[what] = self._add(what, total=total)
        self.bar.update(self.tasks[what], completed=done)

    def finish(self, metrics: dict[str, float]) -> None:
        """Write the scores of the adapter that was kept on the last line."""
        scores = [(split, best_named(metrics, f"{split} ")) for split in ("dev", "test")]
        note = ", ".join(f"{split} {score}" for split, score in scores if score is not None)
        if self.callback.last is not None:
            self.bar.update(self.callback.last, note=note)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar.live.is_started:
            self.bar.stop()


def best_named(metrics: dict[str, float], prefix: str) -> str | None:
    """Return the score that says most of those that are there, behind its name where it is not the accuracy."""
    for name in ("f1", "micro_f1", "pearson", "accuracy", "loss"):
        if (value := metrics.get(prefix + name)) is not None:
            return f"{value:.3f}" if name == "accuracy" else f"{name} {value:.3f}"
    return None
