"""How a token is chosen, and which piece of a text is certain."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import softprompt
from house.served import PROMPTS, settle, shelved
from softprompt import NonFiniteError
from softprompt.serving.engine import PromptEngine, Request, Writing
from softprompt.serving.engine.cohort import Cohort, Text


@pytest.fixture(scope="module")
def engine(writers: dict[str, Path]) -> PromptEngine:
    return PromptEngine(shelved(writers))


class Letters:
    """A tokenizer of bytes, with the clean-up of word pieces where it is asked for."""

    def __init__(self, cleans: bool = False):
        self.clean_up_tokenization_spaces = cleans

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        text = bytes(ids).decode(errors="replace")
        return text.replace(" .", ".").replace(" ' ", "'") if self.clean_up_tokenization_spaces else text


def written(data: bytes, cleans: bool = False, **options: Any) -> tuple[list[str], Text]:
    text = Text(Letters(cleans), Writing(**options), len(data), frozenset())
    pieces = []
    for byte in data:
        if text.reason is None:
            pieces.append(text.add(byte))
    return pieces, text


@given(st.text(alphabet="ab .'é😀", min_size=1), st.booleans())
def test_pieces_add_up_to_the_text_and_are_never_taken_back(wanted: str, cleans: bool) -> None:
    pieces, text = written(wanted.encode(), cleans)
    assert "".join(pieces) == text.text == Letters(cleans).decode(list(wanted.encode()), True)
    assert text.reason == "length"


@given(st.text(alphabet="ab ", min_size=1), st.lists(st.sampled_from(["ab", "b", " ba", "aab"]), max_size=3))
def test_a_stop_text_ends_the_completion_in_front_of_it_and_no_part_of_it_is_given(
    wanted: str, stop: list[str]
) -> None:
    pieces, text = written(wanted.encode(), stop=tuple(stop))
    ended = [wanted[:n] for n in range(len(wanted) + 1) if any(one in wanted[:n] for one in stop)]
    assert text.reason == ("stop" if ended else "length")
    expected = wanted
    if ended:
        expected = wanted[: min(ended[0].find(one) for one in stop if one in ended[0])]
    assert "".join(pieces) == text.text == expected


def answers(engine: PromptEngine, **options: Any) -> list[str]:
    futures = [engine.submit(Request("long", {"prompt": text}, writing=Writing(8, **options))) for text in PROMPTS]
    return [one.prediction["completion"] for one in settle(engine, futures)]


def test_what_is_drawn_hangs_on_the_seed_and_not_on_who_is_beside_it(engine: PromptEngine) -> None:
    drawn = answers(engine, temperature=1.5, seed=3)
    assert drawn == answers(engine, temperature=1.5, seed=3) != answers(engine, temperature=1.5, seed=4)
    alone = engine.submit(Request("long", {"prompt": PROMPTS[1]}, writing=Writing(8, 1.5, seed=3)))
    assert settle(engine, [alone])[0].prediction["completion"] == drawn[1]
    assert answers(engine, temperature=1.5) != answers(engine, temperature=1.5)


def test_a_small_top_p_or_temperature_takes_the_largest(engine: PromptEngine) -> None:
    greedy = answers(engine)
    assert greedy == answers(engine, temperature=2.0, top_p=1e-6) == answers(engine, temperature=1e-4, seed=1)
    assert greedy != answers(engine, temperature=2.0, seed=1)


@pytest.mark.parametrize(
    "options", [{"temperature": 1e-300}, {"temperature": 1e-40}, {"temperature": 2.0, "top_p": 1e-50}]
)
def test_settings_that_leave_one_token_take_it(engine: PromptEngine, options: dict[str, float]) -> None:
    assert answers(engine, **options) == answers(engine)


def test_what_breaks_one_completion_breaks_no_other(engine: PromptEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, calls = Text.add, []

    def adds(self: Text, token: int) -> str:
        calls.append(self)
        if len(calls) > 1 and self is calls[1]:
            raise RuntimeError("this tokenizer cannot say it")
        return kept(self, token)

    monkeypatch.setattr(Text, "add", adds)
    pieces: list[str] = []
    futures = [
        engine.submit(Request("long", {"prompt": text}, writing=Writing(6), on_text=pieces.append)) for text in PROMPTS
    ]
    settle(engine)
    assert sum(isinstance(future.exception(0), RuntimeError) for future in futures) == 1
    assert sum(future.exception(0) is None for future in futures) == 2


def test_tokens_are_drawn_as_often_as_their_share(engine: PromptEngine) -> None:
    from softprompt.serving.engine.cohort import Cohort

    cohort = object.__new__(Cohort)
    cohort.repetition = 1.0
    cohort.draws = [torch.Generator().manual_seed(0)]
    shares = torch.tensor([0.1, 0.6, 0.3])

    class Asked:
        request = Request("x", {}, writing=Writing(1, temperature=0.5, top_p=0.95))

    cohort.jobs = [Asked()]  # type: ignore[list-item]
    cohort._seen = [set()]
    counts = torch.zeros(3)
    for _ in range(2000):
        counts[cohort._choose(shares.log(), 0)] += 1
    sharpened = torch.tensor([0.0, 0.36, 0.09])  # a temperature of a half squares them; the last one is beyond top_p
    assert torch.allclose(counts / 2000, sharpened / sharpened.sum(), atol=0.03)


def test_the_backbones_repetition_penalty_holds_as_in_generate(
    engine: PromptEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = engine.shelf.find("long").model
    before = answers(engine)
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 5.0)
    after = answers(engine)
    together = [engine.submit(Request("long", {"prompt": text}, writing=Writing(8))) for text in reversed(PROMPTS)]
    assert [one.prediction["completion"] for one in settle(engine, together)] == after[::-1]
    served = engine.shelf.find("long")
    expected = []
    for text in PROMPTS:
        ids = served.tokenizer([text], return_tensors="pt")["input_ids"]
        made = model.generate(input_ids=ids, adapter_names=[served.key], max_new_tokens=8, do_sample=False)
        expected.append(served.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
    assert after == expected != before


def test_scores_that_are_no_numbers_fail_their_own_completion(
    writers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PromptEngine(shelved(writers))
    served = engine.shelf.find("long")
    with torch.no_grad():
        next(p for n, p in served.model.named_parameters() if served.key in n).fill_(float("nan"))
    futures = [engine.submit(Request(name, {"prompt": PROMPTS[0]}, writing=Writing(4))) for name in ("short", "long")]
    settle(engine)
    assert isinstance(futures[1].exception(0), NonFiniteError)
    alone = softprompt.Predictor(writers["short"]).predict([{"prompt": PROMPTS[0]}], 4)
    assert futures[0].result(0).prediction == alone[0]


def test_a_repeated_token_is_less_likely_whatever_its_sign() -> None:
    cohort = object.__new__(Cohort)
    cohort.repetition, cohort._seen = 2.0, [{0}]
    cohort.jobs = [SimpleNamespace(request=SimpleNamespace(writing=Writing(1)))]
    assert [cohort._choose(torch.tensor(logits), 0) for logits in ([-1.0, -1.5], [3.0, 2.0])] == [1, 1]


def test_what_a_row_has_seen_is_without_padding(writers: dict[str, Path]) -> None:
    engine = PromptEngine(shelved(writers))
    for text in PROMPTS:
        engine.submit(Request("long", {"prompt": text}, writing=Writing(8)))
    engine.step()
    ((cohort, _),) = engine._cohorts.running
    assert len({job.length for job in cohort.jobs}) > 1
    for job, text, seen in zip(cohort.jobs, cohort.texts, cohort._seen, strict=True):
        assert seen == {*job.encoded.inputs["input_ids"], *text.ids}
