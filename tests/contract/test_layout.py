"""Contract: wherever a row is padded, the prompt stands directly in front of its first real token, and comes out again."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from softprompt.tuner.placing.layout import Layout


@st.composite
def masks(draw):
    """[B, S] masks of rows padded on one or both sides; a row may be padding only."""
    length = draw(st.integers(1, 9))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        left = draw(st.integers(0, length))
        right = draw(st.integers(0, length - left))
        rows.append([0] * left + [1] * (length - left - right) + [0] * right)
    return torch.tensor(rows)


PROMPT, MASK, CAUSAL = st.integers(1, 6), masks(), st.booleans()


# ---------------------------------------------------------------------- 2. the prompt behind the tokens


@given(PROMPT, MASK)
def test_behind_the_tokens_remove_undoes_place(length, mask):
    layout, rows = Layout.of(length, mask, False, behind=True), torch.randn(*mask.shape, 3)
    prompt = torch.randn(len(mask), length, 3)
    placed = layout.place(prompt, rows)
    assert placed.shape == (len(mask), mask.shape[1] + length, 3)
    assert torch.equal(layout.remove(placed), rows)
    assert torch.equal(layout.prompt(placed), prompt)


@given(PROMPT, MASK)
def test_behind_the_tokens_the_prompt_follows_the_last_real_token(length, mask):
    """Tokens count from index 0 as they do without padding on the left; without it, no token moves at all."""
    layout = Layout.of(length, mask, False, behind=True)
    for row, real in zip(placed_row(layout, mask, length).tolist(), mask, strict=True):
        numbers = [int(i) + 1 for i in real.nonzero()]
        assert sorted(row) == sorted([*range(-length, 0), *range(1, mask.shape[1] + 1)])
        if numbers:
            assert row[: len(numbers)] == numbers
            assert row[len(numbers) : len(numbers) + length] == [-i for i in range(1, length + 1)]
        if real[0]:
            assert [row.index(n) for n in numbers] == [n - 1 for n in numbers]


@given(PROMPT, MASK)
def test_behind_the_tokens_the_mask_follows(length, mask):
    layout = Layout.of(length, mask, False, behind=True)
    numbers = placed_row(layout, mask, length)
    placed = layout.place(mask.new_ones(1, length), mask)
    for seen, number, own in zip(placed, numbers, mask, strict=True):
        assert seen.tolist() == [1 if n < 0 else int(own[n - 1]) for n in number.tolist()]
    assert torch.equal(layout.columns(mask), numbers < 0)


def placed_row(layout, mask, length):
    """Position numbers: the prompt's are -1, -2, ..., the row's 1, 2, ... (0 would hide a gap)."""
    prompt = -torch.arange(1, length + 1)[None]
    return layout.place(prompt, torch.arange(1, mask.shape[1] + 1).expand(len(mask), -1))


@given(PROMPT, MASK, CAUSAL)
def test_remove_undoes_place(length, mask, causal):
    layout, rows = Layout.of(length, mask, causal), torch.randn(*mask.shape, 3)
    placed = layout.place(torch.randn(1, length, 3), rows)
    assert placed.shape == (len(mask), mask.shape[1] + length, 3)
    assert torch.equal(layout.remove(placed), rows)


@given(PROMPT, MASK, CAUSAL)
def test_every_position_is_placed_once(length, mask, causal):
    placed = placed_row(Layout.of(length, mask, causal), mask, length)
    everything = torch.cat([-torch.arange(1, length + 1), torch.arange(1, mask.shape[1] + 1)]).sort().values
    assert torch.equal(placed.sort(1).values, everything.expand(len(mask), -1))


@given(PROMPT, MASK, CAUSAL)
def test_prompt_stands_in_order_directly_before_the_first_real_token(length, mask, causal):
    layout = Layout.of(length, mask, causal)
    for row, real in zip(placed_row(layout, mask, length), mask, strict=False):
        start = int((row == -1).nonzero())
        assert row[start : start + length].tolist() == [-i for i in range(1, length + 1)]
        if real.any():
            numbers = [int(i) + 1 for i in real.nonzero()]
            assert row[start + length : start + length + len(numbers)].tolist() == numbers
            if not causal:
                assert start == 0  # bidirectional stacks count positions from index 0
            else:
                assert start == numbers[0] - 1  # left padding stays in front, so that a KV cache grows at the end


@given(PROMPT, MASK, CAUSAL)
def test_the_mask_follows_its_tokens(length, mask, causal):
    layout = Layout.of(length, mask, causal)
    placed = layout.place(mask.new_ones(1, length), mask)
    assert torch.equal(placed.sum(1), mask.sum(1) + length)
    real = placed_row(layout, mask, length)
    for row, numbers, own in zip(placed, real, mask, strict=False):
        for seen, number in zip(row, numbers, strict=False):
            assert seen == (1 if number < 0 else own[number - 1])


@given(PROMPT, MASK, CAUSAL)
def test_a_batch_without_left_padding_is_plain_concatenation(length, mask, causal):
    mask = mask.flip(1) if bool((mask[:, -1] == 1).all()) else torch.ones_like(mask)
    for layout in (Layout.of(length, mask, causal), Layout.of(length, None, causal)):
        assert layout.order is None
        rows, prompt = torch.randn(*mask.shape, 2), torch.randn(1, length, 2)
        assert torch.equal(layout.place(prompt, rows), torch.cat([prompt.expand(len(rows), -1, -1), rows], 1))


@given(PROMPT, MASK, CAUSAL)
def test_one_prompt_per_row_keeps_its_row(length, mask, causal):
    layout = Layout.of(length, mask, causal)
    prompts = torch.randn(len(mask), length, 2)
    placed = layout.place(prompts, torch.zeros(*mask.shape, 2))
    for row, prompt, numbers in zip(placed, prompts, placed_row(layout, mask, length), strict=False):
        assert torch.equal(row[numbers < 0], prompt)


def test_rows_keep_their_dtype():
    """A float32 prompt in a bfloat16 backbone must not lift the whole pass to float32."""
    layout = Layout.of(2, torch.tensor([[0, 1]]), True)
    assert layout.place(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
