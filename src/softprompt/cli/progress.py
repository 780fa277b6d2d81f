"""A progress bar over the work of a run."""

from __future__ import annotations

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from transformers import TrainerCallback

from .voice import err, is_first


class Progress:
    """A progress bar over training steps, fed by a trainer callback."""

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
        bar = self.bar
        self.tasks: dict[str, Any] = {}

        class Callback(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.task = bar.add_task(
                    args.run_name or "training", total=state.max_steps, completed=state.global_step, note=""
                )

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                bar.update(self.task, completed=state.global_step)

            def on_evaluate(
                self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
            ) -> None:
                order = ("eval_f1", "eval_accuracy", "eval_loss")
                score = next((metrics[key] for key in order if key in metrics), None)
                if score is not None and hasattr(self, "task"):
                    bar.update(self.task, note=f"dev {score:.3f}")

        self.callback = Callback()

    def report(self, what: str, done: int, total: int) -> None:
        """Show the progress of work before training."""
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=total, note="")
        self.bar.update(self.tasks[what], completed=done)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()
