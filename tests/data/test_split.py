"""Drawing rows: shots, carved splits, limits."""

from collections import Counter

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from house.refusals import said
from softprompt import SoftPromptError
from softprompt.data import limited, sample_shots, stratified

# Drawing rows --------------------------------------------------------------------------------------------------------


LABELS = st.lists(st.integers(0, 3), min_size=4, max_size=60).map(lambda some: [0, 1, 2, 3, *some])


@given(LABELS, st.integers(1, 6), st.integers(0, 5))
def test_shots_are_exactly_k_per_class(labels, shots, seed):
    names, counts = ["a", "b", "c", "d"], Counter(labels)
    poorest = min(range(4), key=lambda c: (counts[c] >= shots, c))
    if counts[poorest] < shots:
        with pytest.raises(SoftPromptError) as error:
            sample_shots(labels, names, shots, seed, "train.csv")
        assert said(error) == (
            f"train.csv: class {names[poorest]!r} has {counts[poorest]} rows, {shots} shots want {shots}; lower shots or add rows."
        )
        return
    rows = sample_shots(labels, names, shots, seed, "train.csv")
    assert len(set(rows)) == len(rows) == 4 * shots
    assert Counter(labels[i] for i in rows) == dict.fromkeys(range(4), shots)
    assert rows == sample_shots(labels, names, shots, seed, "train.csv")
    fewer = sample_shots(labels, names, max(1, shots - 1), seed, "train.csv")
    assert set(fewer) <= set(rows)


def test_a_class_without_rows_is_an_error():
    with pytest.raises(SoftPromptError, match=r"class 'c' has 0 rows, 2 shots want 2"):
        sample_shots([0, 0, 1, 1], ["a", "b", "c"], 2, 0, "train")


@given(LABELS, st.integers(1, 30), st.integers(0, 5))
def test_a_carved_split_is_stratified_and_leaves_every_class(labels, count, seed):
    count = min(count, len(labels) // 2)
    taken = stratified(labels, count, seed)
    assert len(set(taken)) == len(taken) <= count
    left = Counter(label for i, label in enumerate(labels) if i not in set(taken))
    assert all(left[c] >= 1 for c in range(4))
    for c, n in Counter(labels).items():
        got = sum(labels[i] == c for i in taken)
        assert abs(got - count * n / len(labels)) <= 1 or got == n - 1
    assert taken == stratified(labels, count, seed)


def test_draws_are_the_same_on_every_machine():
    labels = [i % 3 for i in range(30)]
    assert stratified(labels, 6, 42) == [1, 5, 13, 15, 26, 27]
    assert sample_shots(labels, ["a", "b", "c"], 2, 13, "train") == [7, 18, 22, 23, 27, 29]


# Verbalizer ----------------------------------------------------------------------------------------------------------


def test_a_limit_takes_every_class_in_proportion_even_of_a_sorted_file():
    rows = datasets.Dataset.from_dict({"text": [str(n) for n in range(100)], "label": [0] * 60 + [1] * 40})
    some = limited(rows, 10)
    assert some["label"] == [0] * 6 + [1] * 4 and some["text"] == sorted(some["text"], key=int)
    assert some["text"] == limited(rows, 10)["text"]  # whatever the run's seed is
    many = datasets.Dataset.from_dict({"label": [n // 2 for n in range(100)]})
    assert len(limited(many, 99)) == 99 and len(limited(many, 51)) == 51  # of 50 classes with two rows each
    assert limited(rows, None) is rows and limited(rows, 100) is rows
    prompts = datasets.Dataset.from_dict({"prompt": [str(n) for n in range(100)]})
    assert len(limited(prompts, 7)) == 7 and limited(prompts, 7)["prompt"] != [str(n) for n in range(7)]
