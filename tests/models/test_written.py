"""Scores of completions: by hand, and what is missing."""

from __future__ import annotations

import pytest

from softprompt import SoftPromptError
from softprompt.models import written


def test_a_completion_matches_up_to_white_space() -> None:
    assert written.text_scores([" dog", "cat", "Dog"], ["dog ", "cat", "dog"]) == {"accuracy": 2 / 3}


def test_the_last_numbers_are_compared() -> None:
    texts = {
        ".5": 0.5,
        "-.5": -0.5,
        "3-4": 4,
        "A-4": 4,
        "2024-01-05": 5,
        "1e5": 1e5,
        "\u22125": -5,
        "1,2": 2,
        "7.": 7,
        "it is -3": -3,
    }
    assert {text: written._last_number(text) for text in texts} == texts
    assert written._last_number("x2") is None and written._last_number("10,000,000 and no more") == 1e7
    said = ["3 + 4 = 7", "so 1,200.50", "none", "it is -3"]
    wanted = ["#### 7", "1200.5", "12", "no number"]
    assert written.text_scores(said, wanted, ["number_match"]) == {"number_match": pytest.approx(2 / 3)}
    with pytest.raises(SoftPromptError) as error:
        written.text_scores(["1"], ["one"], ["number_match"])
    assert "score 'number_match' compares numbers: expected references with a number" in str(error.value)


def test_rouge_counts_words_and_their_order() -> None:
    said, wanted = ["the cat sat down"], ["the cat lay down there"]
    found = written.text_scores(said, wanted, ["rouge1", "rouge2", "rougeL"])
    assert found["rouge1"] == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))
    assert found["rouge2"] == pytest.approx(2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4))
    assert found["rougeL"] == found["rouge1"]


def test_scores_are_checked_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SoftPromptError) as error:
        written.check_text_scores(["rouge9"])
    assert "unknown score of completions 'rouge9': expected one of accuracy, number_match, rouge1" in str(error.value)
    monkeypatch.setattr(written, "find_spec", lambda name: None)
    with pytest.raises(SoftPromptError) as error:
        written.check_text_scores(["rouge1"])
    assert 'pip install "softprompt[rouge]"' in str(error.value)
