"""Recipes: every key is valid, and each runs on a tiny backbone of its family and a small copy of its hub data."""

from __future__ import annotations

import random
import re
from pathlib import Path

import datasets
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import softprompt
from house.tiny import tokenizer
from softprompt import SoftPromptError
from softprompt.experiments import recipes
from softprompt.experiments.recipes import load_recipe, recipe_names
from softprompt.methods import METHODS
from softprompt.training import RunOptions

RECIPES = ["ept_t5_base_glue", "infoprompt_roberta_large", "spt_roberta_large_fewshot", "tsloss_gemma_2b"]


WORDS = ["dog", "cat", "bird", "runs", "sits", "eats", "good", "bad", "warm", "cold"]


GLUE = {
    "sst2": (["sentence"], ["negative", "positive"]),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"]),
}


def glue(config: str) -> datasets.DatasetDict:
    """A task of GLUE as the hub gives it: its columns and class names, test labels hidden."""
    columns, names = GLUE[config]
    features = {**{column: datasets.Value("string") for column in columns}, "label": datasets.ClassLabel(names=names)}
    rng = random.Random(0)

    def part(rows: int, hidden: bool = False) -> datasets.Dataset:
        texts = {column: [" ".join(rng.choices(WORDS, k=4)) for _ in range(rows)] for column in columns}
        labels = [-1 if hidden else i % 2 for i in range(rows)]
        index = {"idx": list(range(rows))}
        return datasets.Dataset.from_dict(
            {**texts, "label": labels, **index},
            features=datasets.Features({**features, "idx": datasets.Value("int32")}),
        )

    return datasets.DatasetDict(train=part(140), validation=part(12), test=part(6, hidden=True))


def byte_pairs() -> tf.PreTrainedTokenizerFast:
    """A tokenizer like RoBERTa's: byte-level pieces that carry the space in front."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator([" " + " ".join([*WORDS, "It", "was", "great", "terrible", "Yes", "No"])] * 50, trainer)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", cls_token="<s>", pad_token="<pad>", eos_token="</s>", sep_token="</s>",
        unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip


def save_tiny(folder: Path, hub_name: str) -> Path:
    """A random model of the family of ``hub_name``, with a tokenizer of its kind."""
    torch.manual_seed(0)
    if "roberta" in hub_name:
        words = byte_pairs()
        config = tf.RobertaConfig(
            vocab_size=len(words), hidden_size=32, num_hidden_layers=5, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=514, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        )  # fmt: skip
        model: tf.PreTrainedModel = tf.RobertaForMaskedLM(config)
    else:
        words = tokenizer(pairs=False)
        ids = dict(vocab_size=40, pad_token_id=0, bos_token_id=2, eos_token_id=3)
        if "t5" in hub_name:
            model = tf.T5ForConditionalGeneration(
                tf.T5Config(**ids, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
            )
        else:
            assert "gemma-2b" in hub_name
            heads = dict(num_attention_heads=4, num_key_value_heads=1, head_dim=8)
            sizes = dict(hidden_size=32, num_hidden_layers=2, intermediate_size=48, max_position_embeddings=512)
            model = tf.GemmaForCausalLM(tf.GemmaConfig(**ids, **heads, **sizes))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def test_the_recipes_are_known() -> None:
    assert recipe_names() == RECIPES
    with pytest.raises(
        SoftPromptError, match=r"unknown recipe 'ept_t5_base': expected one of .* Did you mean 'ept_t5_base_glue'"
    ):
        load_recipe("ept_t5_base")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_its_paper_and_valid_keys(name: str) -> None:
    flat, facts = load_recipe(name)
    options = RunOptions.from_flat(flat)
    assert "paper" not in flat and options.to_flat().items() <= {**flat, "seed": options.seed}.items()
    assert facts["arxiv"] in METHODS[options.method].paper
    assert re.fullmatch(r"\d{4}\.\d{5}", facts["arxiv"])
    assert facts["numbers"] and all(" own" in number for number in facts["numbers"])  # whose number it is
    assert {options.backbone.count("/"), options.data.count("/")} == {1}  # names on the hub


def test_a_recipe_without_facts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "from_yaml", lambda text, where: {"method": "ept", "paper": {"title": "x"}})
    with pytest.raises(SoftPromptError, match="expected a block 'paper' with arxiv, numbers, title"):
        load_recipe(RECIPES[0])


class Rates(tf.TrainerCallback):
    """Notes the learning rate of each group of parameters, of every training that begins."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):  # type: ignore[no-untyped-def]
        self.seen.append({group["name"]: group["initial_lr"] for group in optimizer.param_groups})


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps with everything as in the recipe, but a tiny backbone and a small hub."""
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *given: asked.append(given) or glue(given[1]))
    flat, _ = load_recipe(name)
    backbone = save_tiny(tmp_path / "backbone", flat["backbone"])
    own = {"backbone": str(backbone), "output_dir": str(tmp_path / "out"), "max_steps": 2}
    rates = Rates()
    result = softprompt.train(RunOptions.from_flat({**flat, **own}), callbacks=[rates], progress=False)
    document = result.document
    info, used = document["train_info"], document["run_info"]["peft_config"]
    assert info["train_steps"] == 2 and 0 <= result.metrics["test accuracy"] <= 1

    assert asked == [(flat["data"], flat["hub_config"])]
    rows, files = (document["meta_info"]["dataset_info"][key] for key in ("rows", "files"))
    assert files["test"] == "nyu-mll/glue[validation]" and rows["test"] == 12
    shots = flat.get("shots")
    assert [rows["train"], rows["dev"]] == ([126, 14] if shots is None else [2 * shots, 2 * shots])

    shared = METHODS[flat["method"]].hints.keys() & flat.keys() & used.keys() - {"alpha"}  # TSLoss's is its objective's
    assert {key: used[key] for key in shared} == {key: flat[key] for key in shared}
    for group, rate in {"prompt": flat.get("learning_rate"), **flat.get("learning_rates", {})}.items():
        assert rate is None or rates.seen[-1][group] == rate

    if name.startswith("spt"):
        assert len(info["search"]["layers"]) == flat["budget"] == len(used["layers"]) and len(rates.seen) == 2
    if name.startswith("tsloss"):
        (entry,) = used["objectives"]
        own = {"name": "ts_loss", "l1": flat["l1"], "l2": flat["l2"], "alpha": flat["alpha"]}
        assert entry == {**own, "share": 0.3, "decay": 0.0}
        assert (tmp_path / "out" / "topology.jsonl.gz").stat().st_size > 0
    if name.startswith("infoprompt"):
        weights = {entry["name"]: entry["weight"] for entry in used["objectives"]}
        expected = {"head_information": "gamma", "representation_information": "beta", "latent_divergence": "kl"}
        assert weights == {objective: flat[key] for objective, key in expected.items()}


def test_train_takes_a_recipe_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags win over the recipe; the paper's own numbers are announced as such."""
    from typer.testing import CliRunner

    from softprompt.cli.app import app

    given, said = [], []

    def stop(options: softprompt.RunOptions, **_: object) -> None:
        given.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("softprompt.training.train", stop)
    monkeypatch.setattr("softprompt.cli.train.command.announce", lambda *words: said.append(words))
    CliRunner().invoke(app, ["train", "--recipe", "tsloss_gemma_2b", "--seed", "7", "--set", "l1=0.5"])
    flat, paper = load_recipe("tsloss_gemma_2b")
    assert given == [softprompt.RunOptions.from_flat({**flat, "seed": 7, "l1": 0.5})]
    assert said[0][0] == "recipe=tsloss_gemma_2b" and f"arXiv {paper['arxiv']}; the paper's own: " in said[0][1]
