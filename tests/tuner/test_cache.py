"""A cache by either of its names: transformers' own one, and the other, as models of other versions and from elsewhere have it."""

import inspect
import warnings

import torch
import transformers as tf
from peft import get_peft_model

from house.families import LLAMA, backbone, batch, close, config, stir, tokens
from softprompt.tuner import find_backbone
from softprompt.tuner.cache import NAMES, cache_name, cache_of, with_own_name

OWN = cache_name(inspect.signature(tf.LlamaModel.forward).parameters)


class Renamed(tf.LlamaModel):
    """A stack whose cache has the new name in any version."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, inputs_embeds=None, **rest):
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "inputs_embeds": inputs_embeds}
        return super().forward(input_ids, **given, **{OWN: cache}, **rest)


def test_the_arguments_of_a_forward_decide() -> None:
    assert OWN in NAMES
    assert cache_name(("input_ids", "past_key_values")) == "past_key_values"
    assert cache_name(("input_ids", "cache")) == "cache"
    assert cache_name(("input_ids", "cache_params")) is None


def test_a_cache_under_the_old_name_gets_the_own_one() -> None:
    given = {"input_ids": 1, "past_key_values": 2}
    assert with_own_name(("input_ids", "cache"), given) == {"input_ids": 1, "cache": 2}
    assert with_own_name(("input_ids", "past_key_values"), given) == given
    assert with_own_name(("input_ids",), given) == given  # whoever takes none says so itself
    assert with_own_name(("cache",), {"past_key_values": 1, "cache": 2}) == {"cache": 2}
    assert with_own_name(("cache",), {"input_ids": 1}) == {"input_ids": 1}


def test_an_empty_cache_is_one() -> None:
    cache = tf.DynamicCache()
    assert cache_of(tf.modeling_outputs.BaseModelOutputWithPast(torch.zeros(1), cache)) is cache
    assert cache_of(tf.modeling_outputs.BaseModelOutputWithPast(torch.zeros(1))) is None


@torch.no_grad()
def test_a_stack_with_the_new_name_is_prompted_alike() -> None:
    """On the prompt's keys and values, with a cache of the caller's, and in `generate`; and never by a name that is going."""
    models = [backbone(LLAMA, "causal_lm") for _ in range(2)]
    models[1].model.__class__ = Renamed
    assert find_backbone(models[0]).cache_name == OWN and find_backbone(models[1]).cache_name == "cache"
    inputs, seen = batch(tokens(6, 6, 6)), []
    for model in models:
        prompted = stir(get_peft_model(model, config("deep_prompts", "causal_lm"))).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            first = prompted(**inputs, use_cache=True)
            written = prompted.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
            step = {"input_ids": written[:, 6:7], OWN: cache_of(first), "use_cache": True}
            second = prompted(**step, attention_mask=torch.ones(3, 7))
        assert cache_of(second).get_seq_length() == 4 + 7
        seen.append((first.logits, second.logits, written))
    for own, new in zip(*seen, strict=True):
        close(new, own)


@torch.no_grad()
def test_a_stack_by_itself_takes_the_old_name() -> None:
    """The hooks see what its caller wrote, before transformers renames it."""
    model = stir(get_peft_model(backbone(LLAMA, "base"), config("deep_prompts", "base"))).eval()
    inputs = batch(tokens(6, 6))
    whole = model(**inputs).last_hidden_state
    cache = cache_of(model(**{name: value[:, :5] for name, value in inputs.items()}, use_cache=True))
    step = model(input_ids=inputs["input_ids"][:, 5:], attention_mask=inputs["attention_mask"], past_key_values=cache)
    close(step.last_hidden_state, whole[:, 5:])
