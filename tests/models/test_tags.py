"""Tags: entities are those of conlleval, scores are counted over all rows."""

from __future__ import annotations

import pytest

from softprompt.models.tags import entities, mark_entities, tag_scores

NAMES = ["B-PET", "B-SKY", "I-PET", "O"]


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("", []),
        ("O O", []),
        ("B-A", [("A", 0, 1)]),
        ("O B-A I-A O B-B", [("A", 1, 3), ("B", 4, 5)]),
        ("B-A B-A I-A", [("A", 0, 1), ("A", 1, 3)]),  # a B- always begins
        ("I-A I-A O I-A", [("A", 0, 2), ("A", 3, 4)]),  # an I- after O begins
        ("B-A I-B I-B", [("A", 0, 1), ("B", 1, 3)]),  # and so does one of another type
        ("B-A-1 I-A-1", [("A-1", 0, 2)]),
    ],
)
def test_entities_are_those_of_conlleval(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == found


def test_bio_tags_are_told_from_others() -> None:
    assert mark_entities(NAMES) and mark_entities(["B-X", "I-X"])
    assert not mark_entities(["NOUN", "VERB"]) and not mark_entities(["O", "B-X", "S-X"]) and not mark_entities(["O"])


def test_scores_are_counted_over_all_rows() -> None:
    names = ["O", "B-A", "I-A", "B-B"]
    true = [[1, 2, 0, 3], [1, 0], [0]]  # three entities in seven words
    found = [[1, 2, 0, 1], [1, 2], [1]]  # four, of which one is right: a wrong type, a wrong end, none there
    assert tag_scores(names, true, found) == {"accuracy": 4 / 7, "f1": pytest.approx(2 * 1 / (3 + 4))}
    assert tag_scores(names, true, true) == {"accuracy": 1.0, "f1": 1.0}
    assert tag_scores(names, [[0]], [[0]]) == {"accuracy": 1.0, "f1": 0.0}  # nothing to find
    assert tag_scores(["NOUN", "VERB"], [[0, 1]], [[0, 0]]) == {"accuracy": 0.5}
