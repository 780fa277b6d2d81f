"""What a run asks of its data."""

from __future__ import annotations

import inspect

import softprompt
from softprompt.training import RunOptions
from softprompt.training.prepare import asked_of_data


def test_a_run_says_everything_that_the_reader_of_rows_can_be_told() -> None:
    asked = asked_of_data(RunOptions(messages_column="turns", class_names=["a", "b"], shots=3))
    assert asked.keys() == inspect.signature(softprompt.load_task).parameters.keys() - {"source"}
    assert (asked["messages_column"], asked["label_names"], asked["shots"]) == ("turns", ["a", "b"], 3)
