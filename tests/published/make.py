"""How the fixtures of this folder were made, kept as a record: ``PYTHONPATH=src python tests/published/make.py``.

They stand for what users have on their disks: written once, by the release named in ``made.json``, and never again. A test
that fails on them is no reason to write them anew.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from peft import get_peft_model
from rebuild import backbone, inputs, output
from safetensors.torch import save_file

import softprompt
from softprompt import objective

HERE = Path(__file__).resolve().parent
TASK = {
    "base": "FEATURE_EXTRACTION",
    "masked_lm": None,
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "seq_cls": "SEQ_CLS",
    "token_cls": "TOKEN_CLS",
}
Case = tuple[str, str, str, dict[str, Any]]
EPT = {"num_virtual_tokens": 4, "rank": 3, "max_positions": 6, "num_spaces": 2, "space_bottleneck": 3}
DEPT = {"num_virtual_tokens": 3, "rank": 2, "max_positions": 7}
SPT = {"num_virtual_tokens": 3, "bottleneck": 4}
PLAIN = {"num_virtual_tokens": 4}

# name of the folder: family, head, builder, keywords
ADAPTERS: dict[str, Case] = {
    "prompt_tuning-bert-seq_cls": ("bert", "seq_cls", "prompt_tuning", {**PLAIN, "init": "normal"}),
    "prompt_tuning-bert-base": ("bert", "base", "prompt_tuning", {"num_virtual_tokens": 1}),
    "prompt_tuning-gpt2-causal_lm": (
        "gpt2",
        "causal_lm",
        "prompt_tuning",
        {**PLAIN, "shared_prefix": False, "label_only_logits": False, "learning_rates": {"prompt": 0.3}},
    ),
    "prompt_tuning-llama-causal_lm": (
        "llama",
        "causal_lm",
        "prompt_tuning",
        {**PLAIN, "objectives": [objective("l2", weight=0.2, every=2), objective("pairwise", decay=0.5)]},
    ),
    "prompt_tuning-t5-seq2seq_lm": ("t5", "seq2seq_lm", "prompt_tuning", {"num_virtual_tokens": 6}),
    "prompt_tuning-bart-seq_cls": ("bart", "seq_cls", "prompt_tuning", PLAIN),
    "prompt_tuning-opt-causal_lm": ("opt", "causal_lm", "prompt_tuning", PLAIN),
    "prompt_tuning-delta-bert-masked_lm": ("bert", "masked_lm", "prompt_tuning", {**PLAIN, "max_positions": 5}),
    "deep_prompts-bert-seq_cls": ("bert", "seq_cls", "deep_prompts", {**PLAIN, "layers": [1, 2], "tau": 0.5}),
    "deep_prompts-gpt2-seq_cls": ("gpt2", "seq_cls", "deep_prompts", {"num_virtual_tokens": 2}),
    "deep_prompts-llama-token_cls": ("llama", "token_cls", "deep_prompts", {**PLAIN, "layers": [2]}),
    "deep_prompts-t5-seq_cls": (
        "t5",
        "seq_cls",
        "deep_prompts",
        {"num_virtual_tokens": 2, "layers": [0, 2], "modules_to_save": ["classification_head"]},
    ),
    "deep_prompts-modernbert-masked_lm": ("modernbert", "masked_lm", "deep_prompts", {**PLAIN, "layers": [0, 1]}),
    "dept-bert-token_cls": ("bert", "token_cls", "dept", {**DEPT, "alpha": 4.0}),
    "dept-t5-seq2seq_lm": ("t5", "seq2seq_lm", "dept", {**DEPT, "learning_rates": {"prompt": 0.3, "low_rank": 5e-4}}),
    "dept-gpt2-causal_lm": ("gpt2", "causal_lm", "dept", {**DEPT, "rank": 4}),
    "dept-qwen2-causal_lm": ("qwen2", "causal_lm", "dept", {**DEPT, "fusion_memory": "factor"}),
    "ept-bert-seq_cls": ("bert", "seq_cls", "ept", {**EPT, "gate": "token", "fusion_memory": "factor"}),
    "ept-llama-causal_lm": ("llama", "causal_lm", "ept", {**EPT, "space_activation": "relu", "alpha": 2.0}),
    "ept-t5-seq2seq_lm": ("t5", "seq2seq_lm", "ept", {**EPT, "num_spaces": 3}),
    "ept-roberta-token_cls": ("roberta", "token_cls", "ept", {**EPT, "fusion_memory": "none", "num_spaces": 1}),
    "ept-gpt2-causal_lm": ("gpt2", "causal_lm", "ept", {**EPT, "num_spaces": 0}),
    "spt-bert-seq_cls": ("bert", "seq_cls", "spt", {**SPT, "layers": [0, 2], "generator_pooling": "attention"}),
    "spt-gpt2-causal_lm": ("gpt2", "causal_lm", "spt", {**SPT, "layers": [1], "tau": 0.5, "generator_pooling": "max"}),
    "spt-llama-seq_cls": (
        "llama",
        "seq_cls",
        "spt",
        {**SPT, "layers": [1, 2], "phm_factor": 2, "generator_activation": "relu"},
    ),
    "spt-t5-seq2seq_lm": ("t5", "seq2seq_lm", "spt", {**SPT, "layers": [0, 1], "shared_generator": True}),
    "spt-gates-bert-seq_cls": (
        "bert",
        "seq_cls",
        "spt",
        {**SPT, "budget": 2, "decoupled_gates": False, "shared_generator": True, "consistency": 0.5, "tau": 0.8},
    ),
    "spt-gates-deberta-v2-token_cls": ("deberta-v2", "token_cls", "spt", {**SPT, "layer_score": "ablation"}),
    "infoprompt-bert-seq_cls": (
        "bert",
        "seq_cls",
        "infoprompt",
        {**PLAIN, "negatives": "gaussian", "latent": 3, "decay": 0.5, "representation": "cls"},
    ),
    "infoprompt-instance-llama-seq_cls": (
        "llama",
        "seq_cls",
        "infoprompt",
        {
            **PLAIN,
            "generator": "instance",
            "placement": "deep",
            "bottleneck": 3,
            "latent": 3,
            "negatives": "batch",
            "representation": "last",
        },
    ),
    "infoprompt-instance-bert-masked_lm": (
        "bert",
        "masked_lm",
        "infoprompt",
        {**PLAIN, "generator": "instance", "bottleneck": 3, "latent": 3, "representation": "mean"},
    ),
    "tsloss-gpt2-causal_lm": (
        "gpt2",
        "causal_lm",
        "tsloss",
        {**PLAIN, "l1": 0.2, "l2": 0.3, "alpha": 5.0, "objectives": [objective("persistence", weight=0.1)]},
    ),
    "tsloss-qwen3-token_cls": ("qwen3", "token_cls", "tsloss", PLAIN),
    "contrast-bert-seq_cls": ("bert", "seq_cls", "contrast", {"num_virtual_tokens": 2, "temperature": 0.05}),
    "contrast-gemma3-seq_cls": (
        "gemma3",
        "seq_cls",
        "contrast",
        {"layers": [1, 2], "weight": 0.5, "objectives": [objective("ts_loss", l1=0.3, layers=[2])]},
    ),
    "contrast-gpt-oss-seq_cls": ("gpt-oss", "seq_cls", "contrast", {"num_virtual_tokens": 2}),
}
ONE_OF_SEVERAL = "several-bert-seq_cls"  # an adapter beside another, in a folder of its own name
COLLAPSED = "collapsed-bert-seq_cls"
EXPORTED = "exported-llama-causal_lm"  # PEFT's own PROMPT_TUNING


def stirred(family: str, head: str, builder: str, options: dict[str, Any], seed: int) -> Any:
    """The backbone with the prompt, and with everything that is trained moved off its start."""
    config = getattr(softprompt, builder)(task_type=TASK[head], init_seed=seed, **options)
    return stir(get_peft_model(backbone(family, head), config), seed)


def stir(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def keep(model: Any, folder: Path, family: str, head: str) -> None:
    """What ``folder`` must give again."""
    given = inputs(family, head)
    expected, plain = output(model, **given), output(backbone(family, head), **given)
    assert expected.isfinite().all() and (expected - plain).abs().max() > 0.01, folder
    save_file({"output": expected.contiguous()}, folder / "expected.safetensors")
    (folder / "case.json").write_text(json.dumps({"backbone": family, "head": head}) + "\n")
    (folder / "README.md").unlink(missing_ok=True)


def make_adapters(place: Path) -> None:
    for seed, (name, (family, head, builder, options)) in enumerate(ADAPTERS.items()):
        model = stirred(family, head, builder, options, seed)
        (model.save_pretrained if seed % 2 else lambda to, model=model: softprompt.save_adapter(model, to))(
            str(place / name)
        )
        keep(model, place / name, family, head)

    model = stirred("bert", "seq_cls", "prompt_tuning", PLAIN, 101)
    model.add_adapter("second", softprompt.ept(task_type="SEQ_CLS", init_seed=7, **EPT))
    model.set_adapter("second")
    stir(model, 102)
    model.save_pretrained(str(place / "written"))  # the default one beside it
    shutil.move(place / "written" / "second", place / ONE_OF_SEVERAL)
    keep(model, place / ONE_OF_SEVERAL, "bert", "seq_cls")

    softprompt.collapse(model)
    model.save_pretrained(str(place / "written"), selected_adapters=["collapsed"])
    shutil.move(place / "written" / "collapsed", place / COLLAPSED)
    keep(model, place / COLLAPSED, "bert", "seq_cls")
    shutil.rmtree(place / "written")

    model = stirred("llama", "causal_lm", "prompt_tuning", PLAIN, 103)
    softprompt.export_prompt_tuning(model, place / EXPORTED)
    keep(model, place / EXPORTED, "llama", "causal_lm")


def main() -> None:
    if (HERE / "made.json").exists() and "--again" not in sys.argv:
        sys.exit("what is published is published: remove made.json first, and say in the commit why.")
    torch.set_num_threads(1)
    shutil.rmtree(HERE / "adapters", ignore_errors=True)
    make_adapters(HERE / "adapters")
    made = {library.__name__: library.__version__ for library in (softprompt, peft, transformers, torch)}
    (HERE / "made.json").write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
