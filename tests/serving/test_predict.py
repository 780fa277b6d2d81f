"""A trained adapter on rows: their order, their chunks, and what is said about rows that cannot be predicted."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from sklearn.metrics import matthews_corrcoef

import softprompt
from house.runs import train_shortly
from house.tiny import WORDS, save_backbone, write_classification, write_completion, write_tokens
from softprompt import NonFiniteError, SoftPromptError
from softprompt.models.scores import classification_scores, per_class_scores
from softprompt.serving.predict import CHUNK

LENGTHS = (1, 9, 2, 14, 1, 6, 3, 11, 2, 5)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def animals(root: Path, encoder: Path) -> Path:
    return train_shortly(encoder, write_classification(root / "animals-data"), root / "animals")


@pytest.fixture(scope="module")
def pets(root: Path, encoder: Path) -> Path:
    return train_shortly(encoder, write_tokens(root / "pets-data"), root / "pets")


@pytest.fixture(scope="module", params=["decoder", "encoder_decoder"])
def writer(root: Path, request: pytest.FixtureRequest) -> Path:
    kind = request.param
    return train_shortly(
        save_backbone(root / kind, kind), write_completion(root / f"{kind}-data"), root / f"{kind}-run"
    )


def texts() -> list[str]:
    return [" ".join(WORDS[(7 * i + j) % len(WORDS)] for j in range(n)) for i, n in enumerate(LENGTHS)]


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return len(one) == len(other) and all(
        a["label"] == b["label"] and a["scores"] == pytest.approx(b["scores"], abs=1e-6)
        for a, b in zip(one, other, strict=True)
    )


def spoil(predictor: softprompt.Predictor, word: str) -> None:
    """From now on a text with this word has no scores."""
    with torch.no_grad():
        embedding = predictor.model.get_input_embeddings().weight
        embedding[predictor.tokenizer.convert_tokens_to_ids(word)] = torch.nan


# ---------------------------------------------------------------- order and chunks


def test_rows_of_any_length_come_back_in_their_order(animals: Path) -> None:
    rows = [{"text": text} for text in texts()]
    predictor = softprompt.Predictor(animals, batch_size=3)
    seen: list[int] = []
    forward = predictor.model.forward

    def look(**batch: Any) -> Any:
        seen.append(int(batch["attention_mask"].sum(1).max() - batch["attention_mask"].sum(1).min()))
        return forward(**batch)

    predictor.model.forward = look
    found = predictor.predict(rows)
    assert max(seen) <= 5 < max(LENGTHS) - min(LENGTHS)  # rows of about one length stand together
    predictor.model.forward = forward
    assert same(found, [predictor.predict([row])[0] for row in rows])
    assert same(found, list(predictor.stream(iter(rows))))


def test_a_stream_reads_a_chunk_at_a_time(animals: Path) -> None:
    predictor, read = softprompt.Predictor(animals, batch_size=1), 0

    def endless() -> Iterator[dict[str, str]]:
        nonlocal read
        while True:
            read += 1
            yield {"text": "red dog"}

    found = predictor.stream(endless())
    assert next(found)["label"] in ("bird", "cat", "dog") and read == CHUNK
    for _ in range(CHUNK):
        next(found)
    assert read == 2 * CHUNK


def test_a_bad_row_stops_a_stream_behind_the_chunks_before_it(animals: Path) -> None:
    predictor = softprompt.Predictor(animals, batch_size=1)
    found = predictor.stream([{"text": "red"}] * CHUNK + [{"text": "cat"}, {"text": " "}])
    assert len([next(found) for _ in range(CHUNK)]) == CHUNK
    with pytest.raises(SoftPromptError, match=f"row {CHUNK + 2}: expected a non-empty 'text', got ' '"):
        next(found)


def test_cuts_are_counted_over_all_chunks_and_said_once(animals: Path, announced: Callable[[], list[str]]) -> None:
    rows = [{"text": "red " * (40 if i % 2 else 2)} for i in range(CHUNK + 6)]
    softprompt.Predictor(animals, batch_size=1).predict(rows)
    cuts = [line for line in announced() if line.startswith("cut")]
    assert cuts == [f"cut {len(rows) // 2} of {len(rows)} inputs: they are longer than max_length=24 tokens"]


def test_completions_of_any_length_come_back_in_their_order_and_cuts_are_said(
    writer: Path, announced: Callable[[], list[str]]
) -> None:
    predictor = softprompt.Predictor(writer, batch_size=3)
    rows = [{"prompt": text} for text in (*texts(), "red " * 30)]
    together = predictor.predict(rows, max_new_tokens=4)
    left = "" if predictor.model.config.is_encoder_decoder else " (on their left)"
    assert announced()[-1] == f"cut 1 of 11 prompts{left}: they are longer than max_length=24 tokens"
    assert together == [predictor.predict([row], max_new_tokens=4)[0] for row in rows]


def test_a_long_prompt_is_cut_as_in_training(writer: Path) -> None:
    """A decoder loses the beginning; an encoder-decoder's tokenizer cuts the end."""
    predictor = softprompt.Predictor(writer)
    read: list[Any] = []
    generate = predictor.model.generate
    predictor.model.generate = lambda **given: read.append(given["input_ids"]) or generate(**given)
    predictor.predict([{"prompt": "red " * 30 + "dog"}], max_new_tokens=1)
    dog = predictor.tokenizer.convert_tokens_to_ids("dog")
    assert (dog in read[0]) is not bool(predictor.model.config.is_encoder_decoder)
    assert predictor.tokenizer.truncation_side == "right"


def test_tags_of_rows_of_any_length_come_back_in_their_order(pets: Path) -> None:
    predictor = softprompt.Predictor(pets, batch_size=3)
    rows = [{"tokens": text.split()} for text in texts()]
    found = predictor.predict(rows)
    assert found == [predictor.predict([row])[0] for row in rows] == list(predictor.stream(rows))


# ---------------------------------------------------------------- rows that cannot be predicted


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"txt": "a"}, r"row 2: expected a non-empty 'text', got None; columns are \['txt'\]. Did you mean 'txt'\?"),
        ({"text": 5}, "row 2: expected a non-empty 'text', got 5"),
        ({"text": "\ud83d"}, r"row 2: the text holds half of a surrogate pair \('\\ud83d', character 1\)"),
        ({"text": "a", "text_pair": ["b"]}, r"row 2: expected a non-empty 'text_pair', got \['b'\]"),
    ],
)
def test_a_bad_row_is_named(animals: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(SoftPromptError, match=message):
        softprompt.Predictor(animals).predict([{"text": "red"}, row])


def test_numbers_below_one_are_refused(animals: Path, writer: Path) -> None:
    with pytest.raises(SoftPromptError, match="batch_size: expected a whole number from 1, got 0"):
        softprompt.Predictor(animals, batch_size=0)
    with pytest.raises(SoftPromptError, match="max_new_tokens: expected a whole number from 1, got 0"):
        softprompt.Predictor(writer).predict([{"prompt": "red"}], max_new_tokens=0)


def test_rows_of_one_text_and_of_two_go_together(animals: Path) -> None:
    predictor = softprompt.Predictor(animals)
    rows = [{"text": "red dog", "text_pair": "It was good"}, {"text": "red dog"}, {"text": "cat", "text_pair": None}]
    found = predictor.predict(rows)
    assert same(found, [predictor.predict([row])[0] for row in rows])
    assert found[0]["scores"] != pytest.approx(found[1]["scores"], abs=1e-4)


def test_an_adapter_of_pairs_needs_both_texts(root: Path, encoder: Path) -> None:
    data = write_classification(root / "pairs-data", pair=True)
    predictor = softprompt.Predictor(train_shortly(encoder, data, root / "pairs", pairs="joined"))
    with pytest.raises(
        SoftPromptError, match=r"row 1: expected a non-empty 'text_pair', got None; columns are \['text'\]\.$"
    ):
        predictor.predict([{"text": "red dog"}])


def test_a_text_that_holds_the_mask_is_named_by_its_row(root: Path, encoder: Path, animals: Path) -> None:
    words = {"dog": "good", "cat": "bad", "bird": "warm"}
    more = {"head": "verbalizer", "template": "{text} It was {mask} .", "label_words": words}
    predictor = softprompt.Predictor(train_shortly(encoder, root / "animals-data", root / "verbalizer", **more))
    assert predictor.predict([{"text": "red dog"}])[0]["label"] in words
    with pytest.raises(SoftPromptError, match=r"row 2: the text holds the mask token '\[MASK\]'"):
        predictor.predict([{"text": "red"}, {"text": "a [MASK]"}])


def test_scores_that_are_no_numbers_are_refused_with_their_row(animals: Path, pets: Path) -> None:
    for folder, rows in (
        (animals, [{"text": "red dog"}, {"text": "red snow sits now"}, {"text": "cat"}]),
        (pets, [{"tokens": ["red"]}, {"tokens": ["red", "snow"]}, {"tokens": ["cat"] * 5}]),
    ):
        predictor = softprompt.Predictor(folder)
        spoil(predictor, "snow")
        with pytest.raises(
            NonFiniteError, match="row 2: the model's scores are not finite; take an earlier checkpoint"
        ):
            predictor.predict(rows)
        assert len(predictor.predict([rows[0], rows[2]])) == 2
    with pytest.raises(NonFiniteError, match="row 1: "):
        predictor.evaluate(datasets.Dataset.from_dict({"tokens": [["snow"]], "tags": [[0]]}))


def test_completions_without_scores_are_refused_with_their_row(writer: Path) -> None:
    predictor = softprompt.Predictor(writer)
    spoil(predictor, "snow")
    with pytest.raises(NonFiniteError, match="row 2: the model's scores are not finite"):
        predictor.predict([{"prompt": "red"}, {"prompt": "red snow sits"}, {"prompt": "cat dog"}], max_new_tokens=2)


# ---------------------------------------------------------------- scores


def test_evaluate_counts_each_class(animals: Path, root: Path) -> None:
    predictor, rows = softprompt.Predictor(animals, batch_size=5), softprompt.load_task(root / "animals-data").test
    assert rows is not None
    found, names = predictor.evaluate(rows), predictor.card.label_names
    predicted = [row["label"] for row in predictor.predict(rows.to_list())]
    true = [names[label] for label in rows["label"]]
    assert found["accuracy"] == sum(a == b for a, b in zip(true, predicted, strict=True)) / 24 and found["rows"] == 24
    for name in names:
        hits = sum(a == b == name for a, b in zip(true, predicted, strict=True))
        measures = found["per_class"][name]
        assert (measures["support"], measures["recall"]) == (8, hits / 8)
        assert found["confusion"][name].get(name, 0) == hits and sum(found["confusion"][name].values()) == 8
    recalls, f1s = ([found["per_class"][name][key] for name in names] for key in ("recall", "f1"))
    assert found["balanced_accuracy"] == pytest.approx(sum(recalls) / 3)
    assert found["macro_f1"] == pytest.approx(sum(f1s) / 3)
    assert found["matthews_correlation"] == pytest.approx(matthews_corrcoef(true, predicted))
    assert 0 <= found["calibration_error"] <= 1


def test_classes_without_rows_are_no_numbers_and_no_warnings(animals: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["red dog"], "label": [1]})
    predictor = softprompt.Predictor(animals)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = predictor.evaluate(rows)
        json.dumps(found, allow_nan=False)
        scores = classification_scores([0, 0], [[0.9, 0.1, 0], [0.1, 0.9, 0]], ["a", "b", "c"])
        assert scores["balanced_accuracy"] == pytest.approx(0.5) and scores["matthews_correlation"] == 0
        assert scores["macro_f1"] == pytest.approx(1 / 3)
        measures = per_class_scores([0, 0], [0, 1], ["a", "b", "c"])
    assert measures["a"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert measures["c"]["support"] == 0 and not measures["c"]["recall"]
    assert found["per_class"]["dog"]["support"] == 0 and found["rows"] == 1


def test_rows_that_cannot_be_evaluated_are_refused(animals: Path) -> None:
    predictor = softprompt.Predictor(animals)
    for label in (3, -1):
        with pytest.raises(SoftPromptError, match=f"label {label} is not among the adapter's 3 classes"):
            predictor.evaluate(datasets.Dataset.from_dict({"text": ["a"], "label": [label]}))
    with pytest.raises(SoftPromptError, match="there are no rows to evaluate"):
        predictor.evaluate(datasets.Dataset.from_dict({"text": [], "label": []}))
