"""Contract: a soft prompt does what real tokens in its place would do, and what PEFT's prompt tuning does where PEFT is right."""

import pytest
import torch
from peft import (
    PeftModelForCausalLM,
    PeftModelForFeatureExtraction,
    PeftModelForSeq2SeqLM,
    PromptTuningConfig,
    get_peft_model,
)

import softprompt.methods
from house.families import (
    DECODERS,
    ENCODER_DECODERS,
    ENCODERS,
    FAMILIES,
    FIRST,
    HIDDEN,
    METHODS,
    VOCAB,
    P,
    backbone,
    batch,
    cases,
    close,
    config,
    output,
    prompt_parameters,
    prompted,
    stir,
    tokens,
    with_decoder,
)

PREFIX = torch.tensor([11, 47, 5, 90])


def prompted_with_tokens(family, head):
    """A model whose prompt rows are the embeddings of PREFIX."""
    model = get_peft_model(backbone(family, head), config("prompt_tuning", head)).eval()
    state = model.base_model.model.softprompt
    state.softprompt_prompts["default"].start_from(state.backbone.embed(PREFIX)[None])
    return model


# [CLS] heads read the first token of the input, and an encoder-decoder's sequence head makes its decoder's ids from the
# encoder's: there, prepended tokens are another input, so the token-level heads stand for them
token_level = [(f, h) for f, h in cases(methods=False) if h != "seq_cls" or f.kind == "decoder"]


def behind_prefix(family, bare, ids):
    """The inputs in which PREFIX stands in front of ``ids`` as virtual tokens do."""
    whole = torch.cat([PREFIX.expand(len(ids), -1), ids], 1)
    stack = bare.base_model
    if not getattr(stack, "hidden_size_per_layer_input", 0):
        return {"input_ids": whole}
    per_layer = stack.get_per_layer_inputs(whole, None)  # what is looked up by id, which a virtual token does not have
    per_layer[:, :P] = 0
    return {"inputs_embeds": stack.embed_tokens(whole), "per_layer_inputs": per_layer}


@pytest.mark.parametrize("family, head", token_level, ids=str)
@torch.no_grad()
def test_prompt_of_token_embeddings_equals_these_tokens(family, head):
    model, ids = prompted_with_tokens(family, head), torch.stack(tokens(9, 9))
    bare = backbone(family, head)
    expected = output(bare, **with_decoder(family, head, behind_prefix(family, bare, ids)))
    actual = output(model, **with_decoder(family, head, {"input_ids": ids}))
    per_input_token = (expected.dim() == 3 and family.kind != "encoder_decoder") or head == "token_cls"
    close(actual, expected[:, P:] if per_input_token else expected)


@pytest.mark.parametrize("family, head", token_level, ids=str)
@torch.no_grad()
def test_embeddings_equal_ids(family, head):
    model, ids = prompted(family, head, "dept"), torch.stack(tokens(9, 9))
    rows = model.base_model.model.softprompt.backbone.embed(ids)
    close(
        output(model, **with_decoder(family, head, {"inputs_embeds": rows})),
        output(model, **with_decoder(family, head, {"input_ids": ids})),
    )


@pytest.mark.parametrize("family, head", [(f, f.lm) for f in FAMILIES.values()], ids=str)
@torch.no_grad()
def test_return_dict_false_and_hidden_states_are_cut_too(family, head):
    model, ids = prompted(family, head, "deep_prompts"), torch.stack(tokens(9, 9))
    inputs = with_decoder(family, head, {"input_ids": ids})
    full = model(**inputs, output_hidden_states=True)
    close(model(**inputs, return_dict=False)[0], full.logits, 0)
    states = full.hidden_states if family.kind != "encoder_decoder" else full.decoder_hidden_states
    assert {tuple(state.shape) for state in states} == {(2, full.logits.shape[1], HIDDEN)}


@pytest.mark.parametrize("family", DECODERS, ids=str)
@torch.no_grad()
def test_states_of_a_prompted_stack_as_a_tuple(family):
    model, ids = prompted(family, "base", "prompt_tuning"), torch.stack(tokens(9, 9))
    as_tuple, full = (
        model(input_ids=ids, output_hidden_states=True, use_cache=False, return_dict=False),
        model(input_ids=ids, output_hidden_states=True),
    )
    close(as_tuple[0], full.last_hidden_state, 0)
    assert len(as_tuple[1]) == len(full.hidden_states)
    for one, other in zip(as_tuple[1], full.hidden_states, strict=False):
        close(one, other, 0)


@torch.no_grad()
def test_a_pooler_inside_the_stack_reads_cls_not_the_prompt():
    family, ids = FAMILIES["bert"], torch.stack(tokens(9, 9))
    bare, pooled = backbone(family, "base"), prompted_with_tokens(family, "base")(input_ids=ids).pooler_output
    states = bare(input_ids=torch.cat([PREFIX.expand(2, -1), ids], 1)).last_hidden_state
    close(pooled, bare.pooler(states[:, P:]))


# ---------------------------------------------------------------------- PEFT


def pair(family, head, peft_class):
    """Our prompt tuning and PEFT's on equal backbones, holding the same matrix."""
    ours = stir(get_peft_model(backbone(family, head), config("prompt_tuning", head)))
    theirs = peft_class(
        backbone(family, head),
        PromptTuningConfig(task_type=ours.peft_config["default"].task_type, num_virtual_tokens=P),
    )
    ours_matrix, theirs_matrix = (
        next(iter(prompt_parameters(ours).values())),
        theirs.prompt_encoder["default"].embedding.weight,
    )
    with torch.no_grad():
        theirs_matrix[:P] = ours_matrix[0]
    return (ours.eval(), ours_matrix), (theirs.eval(), theirs_matrix)


def assert_equal_loss_and_gradient(ours, theirs):
    (loss, matrix), (peft_loss, peft_matrix) = ours, theirs
    close(loss, peft_loss)
    (gradient,), (peft_gradient,) = torch.autograd.grad(loss, matrix), torch.autograd.grad(peft_loss, peft_matrix)
    assert (gradient[0] - peft_gradient[:P]).norm() < 1e-5 * peft_gradient.norm()


# PEFT hands Gemma 4 embeddings that are in no table, and the model looks its inputs of each layer up by them
@pytest.mark.parametrize("family", [f for f in DECODERS if f.name != "gemma4"], ids=str)
def test_equals_peft_on_unpadded_causal_lm(family):
    """The label of the first real token is masked (-100) in this comparison.

    PEFT returns logits for virtual tokens and scores the first real token from the last of them. Here the prompt is cut
    off after the stack, so no returned position predicts the first token, as in the backbone without a prompt. All
    other terms are equal.
    """
    (ours, matrix), (theirs, peft_matrix) = pair(family, "causal_lm", PeftModelForCausalLM)
    ids = torch.stack(tokens(9, 9))
    labels = ids.clone()
    labels[:, 0] = -100
    mine, peft = ours(input_ids=ids, labels=labels), theirs(input_ids=ids, labels=labels)
    close(mine.logits, peft.logits[:, P:])
    assert_equal_loss_and_gradient((mine.loss, matrix), (peft.loss, peft_matrix))


@pytest.mark.parametrize("family", ENCODERS, ids=str)
def test_equals_peft_on_right_padded_encoder_states(family):
    (ours, matrix), (theirs, peft_matrix) = pair(family, "base", PeftModelForFeatureExtraction)
    inputs = batch(tokens(9, 5))
    real = inputs["attention_mask"].bool()
    mine, peft = ours(**inputs).last_hidden_state[real], theirs(**inputs).last_hidden_state[:, P:][real]
    close(mine, peft)
    target = torch.randn(mine.shape, generator=torch.Generator().manual_seed(1))
    assert_equal_loss_and_gradient(
        ((mine - target).square().mean(), matrix), ((peft - target).square().mean(), peft_matrix)
    )


@pytest.mark.parametrize("family", ENCODER_DECODERS, ids=str)
def test_equals_peft_on_seq2seq_lm(family):
    (ours, matrix), (theirs, peft_matrix) = pair(family, "seq2seq_lm", PeftModelForSeq2SeqLM)
    inputs = {**batch(tokens(9, 5)), "labels": torch.stack(tokens(6, 6, seed=1))}
    mine, peft = ours(**inputs), theirs(**inputs)
    close(mine.logits, peft.logits)
    assert_equal_loss_and_gradient((mine.loss, matrix), (peft.loss, peft_matrix))


# ---------------------------------------------------------------------- lengths


@pytest.mark.parametrize("family, head, method", [c for c in cases() if c[2] in ("deep_prompts", "ept")], ids=str)
def test_heads_labels_and_logits_keep_the_inputs_length(family, head, method):
    model, inputs = prompted(family, head, method), batch(tokens(9, 5))
    backbone_parts = model.base_model.model.softprompt.backbone
    inside = set(backbone_parts.stack.modules()) | set(
        backbone_parts.decoder.modules() if backbone_parts.decoder else ()
    )
    seen = []
    for module in model.base_model.model.modules():
        if module not in inside and not list(module.children()) and module is not backbone_parts.embed:
            module.register_forward_pre_hook(
                lambda _, args: seen.append(args[0].shape) if args and args[0].dim() == 3 else None
            )
    size = VOCAB if head.endswith("lm") else {"base": HIDDEN}.get(head, 3)
    length = 6 if family.kind == "encoder_decoder" and head != "token_cls" else 9
    if head == "seq_cls":
        labels, shape = torch.tensor([0, 2]), (2, 3)
    else:
        labels, shape = torch.randint(FIRST, VOCAB, (2, length)), (2, length, size)
    if head == "token_cls":
        labels %= 3
    if head == "base":
        inputs = {**inputs, "decoder_input_ids": labels} if family.kind == "encoder_decoder" else inputs
        assert output(model, **inputs).shape == shape
        return
    out = model(**inputs, labels=labels)
    assert torch.isfinite(out.loss)
    assert out.logits.shape == shape
    heads_see = {s[1] for s in seen if s[2] == HIDDEN}
    assert heads_see <= {length if head != "seq_cls" else 9}, f"a module behind the stack saw {heads_see} positions"
    assert heads_see or head == "seq_cls"  # a sequence head reads one pooled row


def test_every_method_is_in_the_contract():
    """A new row of the table of methods is added to families.METHODS too, or no contract looks at it."""
    classifies = {
        "contrast"
    }  # deep_prompts with an objective that reads labels of rows: tests/objectives/test_contrastive.py
    ours = {name for name in softprompt.methods.METHODS if not name.startswith("peft:")}
    assert set(METHODS) == ours - classifies
