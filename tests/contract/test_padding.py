"""Contract: a row's output is the same alone and in any batch, padded on either side."""

import pytest
import torch

from house.families import (
    DECODERS,
    ENCODER_DECODERS,
    FAMILIES,
    FORMS,
    METHODS,
    PAD,
    batch,
    cases,
    close,
    output,
    prompted,
    tokens,
    with_decoder,
)

ROWS = tokens(
    14, 6, 2
)  # the first is longer than dept's and ept's max_positions of 12, all but the last than a window of 8


SIDES = ("left", "right")


def real_outputs(model, family, head, inputs):
    """One tensor per row: what the head says at the row's real tokens (the decoder's tokens, the pooled row)."""
    out, mask = output(model, **with_decoder(family, head, inputs)), inputs["attention_mask"].bool()
    per_input_token = head != "seq_cls" and (family.kind != "encoder_decoder" or head == "token_cls")
    return [row[real] if per_input_token else row for row, real in zip(out, mask, strict=False)]


def pools_first_position(family, head):
    return head == "seq_cls" and family.kind == "encoder"


def reads_ids_as_decoder_ids(family, head):
    return head == "seq_cls" and family.kind == "encoder_decoder"


@pytest.mark.parametrize("family, head, method", cases(forms=True), ids=str)
@torch.no_grad()
def test_a_row_alone_equals_the_row_in_a_batch(family, head, method):
    model = prompted(family, head, method)
    alone = [real_outputs(model, family, head, batch([row]))[0] for row in ROWS]
    for side in SIDES:
        if side == "left" and (pools_first_position(family, head) or reads_ids_as_decoder_ids(family, head)):
            continue  # the stock head itself reads padding there, with or without a prompt
        together = real_outputs(model, family, head, batch(ROWS, side))
        for one, other in zip(together, alone, strict=False):
            close(one, other)


@pytest.mark.parametrize("method", ["deep_prompts", "ept", "spt"])
@torch.no_grad()
def test_berts_pooler_reads_cls_under_left_padding_too(method):
    """BERT's pooler stands inside the stack, where the prompt is cut off by index; its [CLS] is found on both sides."""
    model = prompted(FAMILIES["bert"], "seq_cls", method)
    alone = torch.cat([output(model, **batch([row])) for row in ROWS])
    close(output(model, **batch(ROWS, "left")), alone)


@pytest.mark.parametrize("method", ["deep_prompts", "spt"])
@torch.no_grad()
def test_token_types_move_with_their_tokens(method):
    model = prompted(FAMILIES["bert"], "token_cls", method)
    types = [torch.arange(len(row)).ge(len(row) // 2).long() for row in ROWS]
    alone = [
        output(model, input_ids=row[None], token_type_ids=kind[None])[0] for row, kind in zip(ROWS, types, strict=False)
    ]
    for side in SIDES:
        inputs = batch(ROWS, side)
        token_types = torch.where(inputs["attention_mask"].bool(), batch(types, side)["input_ids"], 0)
        out = output(model, **inputs, token_type_ids=token_types)
        for row, real, one in zip(out, inputs["attention_mask"].bool(), alone, strict=False):
            close(row[real], one)


@pytest.mark.parametrize("method", ["ept", "spt"])
@pytest.mark.parametrize("family", DECODERS, ids=str)
@torch.no_grad()
def test_given_position_ids_equal_made_ones(family, method):
    """generate() and some collators hand position ids over; padding may carry any value there."""
    model = prompted(family, "causal_lm", method)
    for side in SIDES:
        inputs = batch(ROWS, side)
        mask = inputs["attention_mask"]
        positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
        close(output(model, **inputs, position_ids=positions)[mask.bool()], output(model, **inputs)[mask.bool()])


@pytest.mark.parametrize("method", ["dept", "spt"])
@pytest.mark.parametrize("family", DECODERS, ids=str)
@torch.no_grad()
def test_no_mask_equals_a_mask_of_ones(family, method):
    model, ids = prompted(family, "causal_lm", method), torch.stack(tokens(9, 9))
    close(output(model, input_ids=ids), output(model, input_ids=ids, attention_mask=torch.ones_like(ids)))


@pytest.mark.parametrize("method", [*METHODS, *FORMS])
@pytest.mark.parametrize("family", DECODERS + ENCODER_DECODERS, ids=str)
@torch.no_grad()
def test_generate_alone_equals_generate_in_a_batch(family, method):
    model = prompted(family, family.lm, method)
    options = {
        "do_sample": False,
        "min_new_tokens": 5,
        "max_new_tokens": 5,
        "pad_token_id": PAD,
        "return_dict_in_generate": True,
        "output_logits": True,
    }

    def continuations(inputs):
        out = model.generate(**inputs, **options)
        return out.sequences[:, -5:], torch.stack(out.logits, 1)

    alone = [continuations(batch([row])) for row in ROWS]
    for side in SIDES if family.kind == "encoder_decoder" else ("left",):
        ids, logits = continuations(batch(ROWS, side))
        assert torch.equal(ids, torch.cat([one for one, _ in alone]))
        close(logits, torch.cat([one for _, one in alone]))


@torch.no_grad()
def test_a_row_of_padding_only_does_not_disturb_the_others():
    """Collators that pad the batch size make such rows; what stands in them is unread."""
    for family in (FAMILIES["bert"], FAMILIES["llama"]):
        model = prompted(family, family.lm, "ept")
        inputs = batch(ROWS, "left")
        expected = output(model, **inputs)
        emptied = {key: torch.cat([value, torch.zeros_like(value[:1])]) for key, value in inputs.items()}
        actual = output(model, **emptied)
        real = inputs["attention_mask"].bool()
        close(actual[:3][real], expected[real])
        assert torch.isfinite(actual[:3][real]).all()


@torch.no_grad()
def test_the_padding_tests_would_see_a_wrong_delta():
    """Negative control: the delta acts, and only on the first max_positions real tokens."""
    model = prompted(FAMILIES["llama"], "base", "dept")
    prompt = model.base_model.model.softprompt.softprompt_prompts["default"]
    before = output(model, **batch(ROWS, "left"))
    prompt.lowrank_b.zero_()
    assert (output(model, **batch(ROWS, "left")) - before).abs().max() > 0.01
