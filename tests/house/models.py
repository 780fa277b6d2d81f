"""Prompted tiny models, and what can be read off them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from datasets import Dataset
from peft import PeftModel, get_peft_model

import softprompt
from house import tiny
from house.batches import collate, encoded_rows
from house.families import BERT, LAYERS, TASK, P, backbone, batch, prompted, stir
from softprompt import objective
from softprompt.objectives import build_objectives
from softprompt.tuner import BASE


def of(model):
    """The model that has the output embedding."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def rows_seen(model):
    """How many rows of logits each later call of the output embedding makes."""
    found: list[int] = []
    projection = of(model).get_output_embeddings()
    projection.register_forward_hook(lambda module, args, out: found.append(out.shape[:-1].numel()))
    return found


def training(family, method="ept", **options):
    return prompted(family, family.lm, method, **options).train()


B, S, H, C, M, Z, DRAWS = 3, 5, 4, 3, 2, 3, 6  # M virtual tokens, Z latent coordinates


def built(name, **fields):
    """A set with one objective of weight 1, its critic drawn from a seed."""
    return build_objectives([objective(name, **{"weight": 1.0, **fields})], H, seed=0)


def infoprompt(head, **options):
    """InfoPrompt at test size."""
    small = {"num_virtual_tokens": P, "task_type": TASK[head], "init_seed": 0, "latent": 6}
    if options.get("generator") == "instance":
        small["bottleneck"] = 5
    return softprompt.infoprompt(**{**small, **options})


def attached(model, chosen):
    """A model in training with a prompt that stands off its start."""
    return stir(get_peft_model(model, chosen)).train()


def state_of(model):
    return model.base_model.state


def passed(model, inputs, seed=3):
    torch.manual_seed(seed)  # of the critics' noise
    return model(**inputs)


def gradients(model, inputs):
    model.zero_grad()
    loss = passed(model, inputs).loss
    loss.backward()
    return loss.detach(), {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def passes(model):
    """A list that grows with every pass through the stack."""
    found = []
    state_of(model).backbone.layers[0].register_forward_hook(lambda *_: found.append(1))
    return found


def verbalized(words):
    torch.manual_seed(0)
    sizes = dict(tiny.SIZES, vocab_size=40, pad_token_id=0, initializer_range=0.3)
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    masked_lm = tf.BertForMaskedLM(tf.BertConfig(**sizes)).eval()
    verbalizer = softprompt.Verbalizer(tiny.tokenizer(), "{text} . It was {mask} .", words)
    rows = Dataset.from_dict({"text": ["red dog runs", "blue cat"], "label": [0, 1]})
    encoded = verbalizer.encode(rows, max_length=16)
    inputs = batch([torch.tensor(ids) for ids in encoded["input_ids"]])
    return softprompt.VerbalizedClassifier(masked_lm, verbalizer), {**inputs, "labels": torch.tensor([0, 1])}


def trainer(model, folder, rows=None, callbacks=(), kind=None, **options):
    small = dict(per_device_train_batch_size=2, learning_rate=0.02, lr_scheduler_type="constant", seed=0)
    quiet = dict(report_to=[], disable_tqdm=True, use_cpu=True, save_strategy="no", logging_strategy="steps")
    arguments = tf.TrainingArguments(str(folder), **{**small, **quiet, "max_steps": 4, "logging_steps": 2, **options})
    rows = encoded_rows("seq_cls", 9, 7, 6, 5, 8, 4, 9, 5) if rows is None else rows
    made = (kind or softprompt.PromptTrainer)(
        model, arguments, train_dataset=rows, data_collator=collate, callbacks=list(callbacks)
    )
    made.remove_callback(tf.PrinterCallback)
    return made


def tuned(**options):
    return get_peft_model(backbone(BERT, "seq_cls"), infoprompt("seq_cls", **options))


def weights_of(model):
    return {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}


def gated(family, head, **options):
    """The family's tiny model with a stirred gated prompt at every layer."""
    return prompted(family, head, "spt", layers=None, **options)


def prompt_of(model):
    return softprompt.active_prompt(model)[0]


@torch.no_grad()
def sparse(model, family, head, layers, **options):
    """The sparse model that holds a gated model's parameters of these layers."""
    kept = prompted(family, head, "spt", layers=list(layers), **options)
    full = dict(prompt_of(model).named_parameters())
    for name, parameter in prompt_of(kept).named_parameters():
        one_for_all = len(full[name]) != LAYERS
        parameter.copy_(full[name] if one_for_all else full[name][list(layers)])
    return kept


def trainable(model):
    return {key for key, value in model.named_parameters() if value.requires_grad}


def hooks(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def widths(model: PeftModel) -> list[tuple[int, int]]:
    """Fills with (rows, positions) of every call of the last layer."""
    seen: list[tuple[int, int]] = []
    layer = model.base_model.state.backbone.layers[-1]
    layer.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    return seen


def alone(model: PeftModel, name: str, call: Callable[[], Any]) -> Any:
    """What ``call`` gives with the adapter ``name`` active."""
    if name == BASE:
        with model.disable_adapter():
            return call()
    model.set_adapter(name)
    return call()
