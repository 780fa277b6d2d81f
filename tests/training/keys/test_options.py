"""Every key has a type and bounds, and is refused by one message before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers.integrations import integration_utils

import softprompt
from softprompt import RunOptions, SoftPromptError
from softprompt.catalog import CATALOG
from softprompt.training import read_yaml, to_yaml
from softprompt.training.keys.describe import method_keys, run_keys, training_keys

PLAIN = {"method": "prompt_tuning", "data": "somewhere"}


def refused(message: str, **keys: Any) -> None:
    with pytest.raises(SoftPromptError) as error:
        RunOptions.from_flat({**PLAIN, **keys})
    assert message in str(error.value), str(error.value)


NONSENSE: list[tuple[str, Any, str]] = [
    ("num_virtual_tokens", 2.5, "a whole number of at least 1, got 2.5"),
    ("num_virtual_tokens", "abc", "a whole number of at least 1, got 'abc'"),
    ("num_virtual_tokens", True, "a whole number of at least 1, got True"),
    ("num_virtual_tokens", 0, "a whole number of at least 1, got 0"),
    ("per_device_train_batch_size", 0, "a whole number of at least 1, got 0"),
    ("per_device_train_batch_size", -4, "a whole number of at least 1, got -4"),
    ("gradient_accumulation_steps", 0, "a whole number of at least 1, got 0"),
    ("seed", -1, "a whole number of at least 0, got -1"),
    ("max_steps", "abc", "a whole number of at least 1, got 'abc'"),
    ("max_steps", -5, "a whole number of at least 1, got -5"),
    ("head_learning_rate", "abc", "a number of at least 0, got 'abc'"),
    ("head_learning_rate", -1, "a number of at least 0, got -1"),
    ("learning_rate", float("nan"), "a positive number, got nan"),
    ("learning_rate", -1, "a positive number, got -1"),
    ("weight_decay", -1, "a number of at least 0, got -1"),
    ("max_grad_norm", -1, "a number of at least 0, got -1"),
    ("dev_fraction", "abc", "a number, got 'abc'"),
    ("dev_fraction", 1, "a share from 0 to 0.5, got 1.0"),
    ("init_text", 5, "a text or a list of texts, got 5"),
    ("backbone_dropout", "maybe", "true or false, got 'maybe'"),
    ("attn_implementation", 1, "a text, got 1"),
    ("data", ["a"], "a text, got ['a']"),
    ("data", None, "a text, got None"),
    ("output_dir", None, "a text, got None"),
    ("text_column", 5, "a text, got 5"),
    ("class_names", "neg,pos", "a list of texts, got 'neg,pos'"),
    ("class_names", [0.5, 1], "a text as class name, got float 0.5"),
    ("shots", 0, "a whole number of at least 1, got 0"),
    ("label_words", "abc", "a mapping, got 'abc'"),
    ("adam_beta1", 2, "a number of at least 0 and below 1, got 2"),
    ("label_smoothing_factor", 7, "a number of at least 0 and below 1, got 7"),
    ("init_seed", -3, "a whole number of at least 0, got -3"),
]


@pytest.mark.parametrize(("key", "value", "expected"), NONSENSE, ids=lambda value: str(value)[:20])
def test_a_value_of_another_kind_is_refused_by_its_key(key: str, value: Any, expected: str) -> None:
    refused(f"{key}: expected {expected}", **{key: value})


def test_values_inside_a_mapping_are_checked_too() -> None:
    refused("learning_rates of 'prompt': expected a number of at least 0, got -1", learning_rates={"prompt": -1})
    refused("learning_rates: expected a mapping of numbers, got 3", learning_rates=3)
    refused("alpha: expected a positive number, got 0", method="dept", alpha=0)
    refused("alpha: expected a number, got 'abc'", method="dept", alpha="abc")


def test_whole_numbers_are_names_of_classes() -> None:
    of_words = {"head": "verbalizer", "template": "{text} {mask}", "label_words": {0: "bad", 1: "good"}}
    options = RunOptions.from_flat({**PLAIN, **of_words, "class_names": [0, 1], "class_weights": {0: 2.0}})
    assert (options.class_names, options.class_weights) == (["0", "1"], {"0": 2.0})
    assert options.label_words == {"0": "bad", "1": "good"}
    refused("class_names: got True as a class name. true and false without quotes are truth", class_names=[True, False])
    refused("label_words: got False as a class name", label_words={False: "no", True: "yes"})
    refused("class_weights: a class is there twice, as a number and as a text", class_weights={0: 1.0, "0": 2.0})


def test_what_a_prompt_makes_no_use_of_is_refused() -> None:
    refused("budget=3 (with placement='input'): a prompt of method 'prompt_tuning' makes no use of it here", budget=3)
    both = "bottleneck=3 (with prompt='plain'), rank=2 (with prompt='plain'): a prompt of method 'deep_prompts' makes no use of them"
    refused(both, method="deep_prompts", rank=2, bottleneck=3)
    refused("gate='token' (with num_spaces=0): a prompt of method 'dept'", method="dept", gate="token")
    for key, value, why in (("fusion_scores", "cosine", "memory='none'"), ("fusion_temperature", 0.2, "scores='dot'")):
        refused(f"{key}={value!r} (with fusion_{why}): a prompt of method 'dept'", method="dept", **{key: value})
    refused("share_every=5 (with objectives=[]): a prompt of method 'prompt_tuning'", share_every=5)
    assert RunOptions.from_flat({**PLAIN, "method": "spt", "budget": 3}).method_options == {"budget": 3}


def test_keys_that_a_run_decides_say_why() -> None:
    refused("label_names=['neg', 'pos']: the names of the classes are class_names here", label_names=["neg", "pos"])
    refused("remove_unused_columns=False: softprompt train hands over", remove_unused_columns=False)
    refused("resume_from_checkpoint='x': a run goes on with --resume", resume_from_checkpoint="x")
    refused("do_train=False: softprompt train trains", do_train=False)
    refused("unknown report_to 'wandbb': expected one of none, all", report_to=["wandbb"])
    refused("unknown key 'lern_rate'", lern_rate=1)


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_without_its_package_names_the_extra(tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "wandb", "trackio"):
        monkeypatch.setattr(integration_utils, f"is_{name}_available", lambda: False)
    refused(f'run: pip install "softprompt[{tracker}]", or set report_to=none.', report_to=[tracker])


def test_layers_that_are_none_are_refused_before_anything_is_loaded() -> None:
    refused("layers=[] enters no layer, so nothing would be prompted", method="deep_prompts", layers=[])
    refused("layers: expected ascending layer numbers", method="deep_prompts", layers=[2, 1])


def test_what_people_type_is_taken_as_they_mean_it() -> None:
    options = RunOptions.from_flat(
        {**PLAIN, "shots": 4.0, "backbone_dropout": "yes", "learning_rate": "1e-3", "seed": "7"}
    )
    assert (options.shots, options.backbone_dropout, options.training["learning_rate"], options.seed) == (
        4,
        True,
        1e-3,
        7,
    )
    assert RunOptions.from_flat({**PLAIN, "max_steps": -1}).training["max_steps"] == -1


@pytest.mark.parametrize("method", CATALOG)
def test_every_key_has_a_type_a_default_and_a_meaning(method: str) -> None:
    assert {key.name for key in run_keys()} == RunOptions.hints().keys()
    assert all(key.type and key.meaning for key in run_keys())
    keys = method_keys(method)
    assert [key.name for key in keys][: len(CATALOG[method].parameters)] == list(CATALOG[method].parameters)
    if not method.startswith("peft:"):
        assert not [key.name for key in keys if not key.meaning or not key.type]
    assert {"learning_rate", "max_steps"} <= {key.name for key in training_keys()}
    assert len(training_keys(every=True)) > 60


@pytest.mark.parametrize("method", CATALOG)
def test_printed_settings_make_the_same_run(method: str, tmp_path: Path) -> None:
    options = RunOptions.from_flat({"method": method, "data": "x", "learning_rate": 0.1, "class_names": ["no", "yes"]})
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(options))
    again = RunOptions.from_flat(read_yaml(path))
    assert again.training == options.training and again.class_names == ["no", "yes"]
    assert {**again.method_options} == {**softprompt.methods.METHODS[method].parameters, **options.method_options}


# ---------------------------------------------------------------- options


def test_flat_keys_are_sorted_and_come_back() -> None:
    flat = {
        "method": "ept",
        "rank": 3,
        "learning_rate": 0.1,
        "warmup_steps": 10,
        "shots": 16,
        "seed": 13,
        "backbone": "minilm",
        "data": "messages",
        "output_dir": "x",
    }
    chosen = RunOptions.from_flat(flat)
    assert chosen.method_options == {"rank": 3} and chosen.training == {"learning_rate": 0.1, "warmup_steps": 10}
    assert RunOptions.from_flat(chosen.to_flat()) == chosen


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"method": "etp"}, r"unknown method 'etp'.*Did you mean 'ept'"),
        ({"learning_rat": 1}, r"unknown key 'learning_rat'.*Did you mean 'learning_rate'"),
        (
            {"method": "prompt_tuning", "num_virtual_token": 1},
            r"of method 'prompt_tuning'.*Did you mean 'num_virtual_tokens'",
        ),
        ({"pooling": "max"}, r"unknown pooling 'max': expected one of auto, mean, cls, last"),
        ({"shots": 0}, r"shots: expected a whole number of at least 1, got 0"),
        ({"learning_rate": -1.0}, r"learning_rate: expected a positive number, got -1.0"),
        ({"head": "verbalizer"}, r"needs template .* and label_words"),
    ],
)
def test_wrong_options_are_named(flat: dict[str, Any], message: str) -> None:
    with pytest.raises(softprompt.SoftPromptError, match=message):
        RunOptions.from_flat(flat)
