"""A damaged, foreign or incomplete adapter is refused by every door, with one message; a whole one loads as before."""

from __future__ import annotations

import copy as copy_module
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as tf
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

import softprompt
from house.refusals import BYTES
from house.tiny import save_backbone, write_classification
from softprompt import SoftPromptError
from softprompt.cli import main
from softprompt.serving import Predictor
from softprompt.tuner import SoftPromptConfig

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


PROMPT = "base_model.model.softprompt.softprompt_prompts.embedding"


HEAD = "base_model.model.classifier.weight"


LORA = "base_model.model.backbone.encoder.layer.0.attention.self.query.lora_A.weight"


FROZEN = "base_model.model.backbone.encoder.layer.0.attention.self.query.weight"


IDS = torch.tensor([[2, 5, 6, 7, 3]])


Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, data, and an adapter of each of two methods that training has written."""
    folder = tmp_path_factory.mktemp("strict")
    save_backbone(folder / "encoder")
    save_backbone(folder / "decoder", "decoder")
    write_classification(folder / "data", rows=24)
    for method, own in (("prompt_tuning", {"num_virtual_tokens": 3}), ("peft:lora", {})):
        flat = {"backbone": str(folder / "encoder"), "data": str(folder / "data"), "method": method, **own}
        short = {"max_steps": 1, "max_length": 24, "dtype": "float32", "disable_tqdm": True}
        output = {"output_dir": str(folder / method.removeprefix("peft:"))}
        softprompt.train(softprompt.RunOptions.from_flat({**flat, **short, **output}), progress=False)
    return folder


def copy(place: Path, name: str, target: Path, change: Callable[[Tensors], None], sealed: bool = False) -> Path:
    """A copy of an adapter whose tensors ``change`` has changed; unsealed, as if it had been changed on purpose."""
    shutil.copytree(place / name, target, ignore=shutil.ignore_patterns("checkpoints"))
    tensors = load_file(target / WEIGHTS)
    change(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, target / WEIGHTS, metadata={"format": "pt"})
    if not sealed and (target / "task.json").is_file():
        card = json.loads((target / "task.json").read_text())
        (target / "task.json").write_text(json.dumps({**card, "sha256": None}))
    return target


def drop(key: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__delitem__(key)


def put(key: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({key: value(tensors.get(key, torch.ones(32, 32)))})


def rename(tensors: Tensors) -> None:
    for key in (PROMPT, LORA):
        if key in tensors:
            tensors[f"{key}_old"] = tensors.pop(key)


def poison(value: torch.Tensor) -> torch.Tensor:
    value = value.clone()
    value.view(-1)[-1] = float("inf")
    return value


PROMPTED = "SOFTPROMPT adapter (prompt='plain', placement='input'); copy or train it again."


DAMAGE = {
    "prompt": ("prompt_tuning", drop(PROMPT), f"missing tensors: {PROMPT}, unexpected tensors: none; expected those of a {PROMPTED}"),
    "head": ("prompt_tuning", drop(HEAD), f"missing tensors: {HEAD}, unexpected tensors: none; expected those of a {PROMPTED}"),
    "renamed": ("prompt_tuning", rename, f"missing tensors: {PROMPT}, unexpected tensors: {PROMPT}_old; expected those"),
    "superfluous": ("prompt_tuning", put("more", torch.abs), "missing tensors: none, unexpected tensors: more; expected those"),
    "of the backbone": ("prompt_tuning", put(FROZEN, torch.abs), f"missing tensors: none, unexpected tensors: {FROZEN};"),
    "shape": ("prompt_tuning", put(PROMPT, lambda t: t[:, :2]), f"{PROMPT}: the adapter does not fit this config, backbone and head: expected shape [1, 3, 32], got [1, 2, 32]"),
    "head's shape": ("prompt_tuning", put(HEAD, lambda t: t[:2]), f"{HEAD}: the adapter does not fit this config, backbone and head: expected shape [3, 32], got [2, 32]"),
    "dtype": ("prompt_tuning", put(PROMPT, torch.Tensor.long), f"{PROMPT}: expected a tensor of torch.float32, got torch.int64"),
    "head's dtype": ("prompt_tuning", put(HEAD, torch.Tensor.bool), f"{HEAD}: expected a tensor of torch.float32, got torch.bool"),
    "infinite": ("prompt_tuning", put(PROMPT, poison), f"{PROMPT} holds values that are not finite; take an earlier checkpoint"),
    "infinite in float32": ("prompt_tuning", put(PROMPT, lambda t: t.double() + 1e300), f"{PROMPT} holds values that are not finite"),
    "infinite head": ("prompt_tuning", put(HEAD, poison), f"{HEAD} holds values that are not finite; take an earlier checkpoint"),
    "lora": ("lora", drop(LORA), f"missing tensors: {LORA}, unexpected tensors: none; expected those of a LORA adapter; copy or train it again."),
    "lora renamed": ("lora", rename, f"missing tensors: {LORA}, unexpected tensors: {LORA}_old; expected those of a LORA adapter"),
    "lora's head": ("lora", drop(HEAD), f"missing tensors: {HEAD}, unexpected tensors: none; expected those of a LORA adapter"),
    "lora's shape": ("lora", put(LORA, lambda t: t[:2]), f"{LORA}: the adapter does not fit this config, backbone and head: expected shape [8, 32], got [2, 32]"),
    "lora infinite": ("lora", put(LORA, poison), f"{LORA} holds values that are not finite"),
    "nothing": ("lora", Tensors.clear, " and 6 more, unexpected tensors: none; expected those of a LORA adapter"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_door_of_ours_refuses_a_damaged_adapter(
    damage: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, change, message = DAMAGE[damage]
    folder = copy(place, name, tmp_path / "adapter", change)
    for door in (softprompt.load, Predictor):
        with pytest.raises(SoftPromptError) as refused:
            door(folder)
        assert message in str(refused.value) and str(folder / WEIGHTS) in str(refused.value)
    commands = [("predict", folder), ("eval", folder, "--data", place / "data")]
    if name == "prompt_tuning" and "head" not in damage and damage not in ("superfluous", "of the backbone"):
        message = message.replace(PROMPT, "embedding")  # inspect looks at the prompt alone before it loads the rest
        commands = [("inspect", folder)]
    for words in commands:
        monkeypatch.setattr(sys, "argv", ["softprompt", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO('{"text": "red dog"}\n'))
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        assert stopped.value.code == 2 and printed.out == ""
        if words[0] != "inspect" or damage != "renamed":
            assert message in printed.err.replace("\n", " ")


def test_the_weights_of_another_method_are_refused(place: Path, tmp_path: Path) -> None:
    model = get_peft_model(base(place), softprompt.ept(num_virtual_tokens=6, rank=2, max_positions=8, task_type=None))
    model.save_pretrained(tmp_path / "ept")
    get_peft_model(base(place), softprompt.prompt_tuning(3, task_type=None)).save_pretrained(tmp_path / "plain")
    shutil.copy(tmp_path / "plain" / WEIGHTS, tmp_path / "ept" / WEIGHTS)
    for door in (softprompt.read_prompt, lambda folder: PeftModel.from_pretrained(base(place), folder)):
        with pytest.raises(
            SoftPromptError, match=r"missing tensors: .*, unexpected tensors: .*embedding; .*prompt='decomposed'"
        ):
            door(tmp_path / "ept")


# ---------------------------------------------------------------------- through PEFT and transformers


def base(place: Path) -> tf.PreTrainedModel:
    return tf.AutoModel.from_pretrained(place / "encoder")


def classifier(place: Path) -> torch.nn.Module:
    return softprompt.PooledClassifier(base(place), ["bird", "cat", "dog"], "mean")


HOW = {
    "from_pretrained": lambda model, folder: PeftModel.from_pretrained(model, folder),
    "trainable": lambda model, folder: PeftModel.from_pretrained(model, folder, is_trainable=True),
    "another name": lambda model, folder: PeftModel.from_pretrained(model, folder, adapter_name="other"),
    "low_cpu_mem_usage": lambda model, folder: PeftModel.from_pretrained(model, folder, low_cpu_mem_usage=True),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("damage", [key for key, value in DAMAGE.items() if value[0] == "prompt_tuning"])
def test_peft_refuses_a_damaged_prompt_through_our_tuner(how: str, damage: str, place: Path, tmp_path: Path) -> None:
    _, change, message = DAMAGE[damage]
    folder = copy(place, "prompt_tuning", tmp_path / "adapter", change)
    if damage == "head's shape":  # PEFT's own refusal, which its option ignore_mismatched_sizes takes back
        with pytest.raises(RuntimeError, match=r"size mismatch for base_model\.model\.classifier"):
            HOW[how](classifier(place), folder)
        return
    with pytest.raises(SoftPromptError) as refused:
        HOW[how](classifier(place), folder)
    assert message.replace("base_model.model.", "") in str(refused.value).replace("base_model.model.", "")


def test_a_second_adapter_is_refused_and_the_first_one_stays(place: Path, tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(classifier(place), place / "prompt_tuning").eval()
    before = model(input_ids=IDS).logits
    for name, change, file in (
        ("prompt", drop(PROMPT), WEIGHTS),
        ("head", drop(HEAD), WEIGHTS),
        ("more", put("more", torch.abs), ""),
    ):
        with pytest.raises(SoftPromptError, match=rf"{file}.*missing tensors"):
            model.load_adapter(copy(place, "prompt_tuning", tmp_path / name, change), f"no_{name}")
    assert torch.equal(model(input_ids=IDS).logits, before)
    assert set(model.peft_config) == {"default", "no_more"}, "PEFT has attached this one before it read its tensors"
    with pytest.raises(SoftPromptError, match="no weights were loaded for them"):
        model(input_ids=IDS, adapter_names=["no_more"])
    model.load_adapter(place / "prompt_tuning", "whole")
    model.set_adapter("whole")
    assert torch.equal(model(input_ids=IDS).logits, before)


@pytest.mark.parametrize("prepare", [lambda model: model, copy_module.deepcopy], ids=["", "copied"])
def test_an_adapter_whose_head_did_not_fit_answers_nothing(
    prepare: Callable[[PeftModel], PeftModel], place: Path, tmp_path: Path
) -> None:
    """PEFT has loaded its prompt when it refuses the head, and leaves the adapter with the head that it starts from."""
    model = prepare(PeftModel.from_pretrained(classifier(place), place / "prompt_tuning").eval())
    before = model(input_ids=IDS).logits
    folder = copy(place, "prompt_tuning", tmp_path / "adapter", put(HEAD, lambda t: t[:2]))
    with pytest.raises(RuntimeError, match=r"size mismatch for base_model\.model\.classifier"):
        model.load_adapter(folder, "other")
    assert torch.equal(model(input_ids=IDS).logits, before)
    model.set_adapter("other")
    for given in ({}, {"adapter_names": ["other"]}):
        with pytest.raises(SoftPromptError, match="no weights were loaded for them"):
            model(input_ids=IDS, **given)
    with pytest.warns(UserWarning, match="ignore_mismatched_sizes"):
        model.load_adapter(folder, "other", ignore_mismatched_sizes=True)  # PEFT's option: the head is to be trained
    assert model(input_ids=IDS).logits.isfinite().all()
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_adapter(folder, "default")
    model.set_adapter("default")
    assert torch.equal(model(input_ids=IDS).logits, before), "one that was whole keeps its values"


def test_weights_that_are_no_safetensors_are_named_through_peft_too(place: Path, tmp_path: Path) -> None:
    folder = copy(place, "prompt_tuning", tmp_path / "adapter", lambda tensors: None)
    (folder / WEIGHTS).write_bytes(b"no tensors")
    for door in (softprompt.load, softprompt.read_prompt, lambda f: PeftModel.from_pretrained(classifier(place), f)):
        with pytest.raises(SoftPromptError, match=rf"{WEIGHTS}: cannot be read \(.*\); copy or save the adapter again"):
            door(folder)


def test_a_prompt_whose_values_never_came_refuses_its_first_pass(place: Path, tmp_path: Path) -> None:
    model = get_peft_model(base(place), softprompt.deep_prompts(2, task_type=None))
    model.save_pretrained(tmp_path / "whole")
    cut = copy(tmp_path, "whole", tmp_path / "cut", drop(PROMPT))
    message = "missing tensors: embedding; this prompt's config comes from a saved adapter, and no weights were loaded"
    by_transformers = base(place)
    by_transformers.load_adapter(tmp_path / "whole")
    assert torch.equal(by_transformers(input_ids=IDS)[0], model.eval()(input_ids=IDS)[0])
    by_transformers = base(place)
    by_transformers.load_adapter(cut)
    with pytest.raises(SoftPromptError, match=message):
        by_transformers(input_ids=IDS)
    saved = PeftConfig.from_pretrained(tmp_path / "whole")
    with pytest.raises(SoftPromptError, match=message):
        get_peft_model(base(place), saved)(input_ids=IDS)
    saved.initialized = False  # what the message advises
    assert get_peft_model(base(place), saved)(input_ids=IDS)[0].isfinite().all()


def test_an_adapter_that_starts_another_is_checked(place: Path, tmp_path: Path) -> None:
    for name, change, message in (
        ("missing", drop(PROMPT), "missing tensors: embedding, unexpected tensors: none"),
        ("infinite", put(PROMPT, poison), "embedding holds values that are not finite"),
    ):
        folder = copy(place, "prompt_tuning", tmp_path / name, change)
        config = softprompt.prompt_tuning(3, init="adapter", init_path=str(folder), task_type=None)
        with pytest.raises(SoftPromptError, match=message):
            get_peft_model(base(place), config)


# ---------------------------------------------------------------------- what is whole


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_of_the_tensors_are_fine(dtype: torch.dtype, place: Path, tmp_path: Path) -> None:
    def cast(tensors: Tensors) -> None:
        tensors.update({key: value.to(dtype) for key, value in tensors.items()})

    for name in ("prompt_tuning", "lora"):
        folder = copy(place, name, tmp_path / name, cast)
        expected, got = (softprompt.load(f)(input_ids=IDS).logits for f in (place / name, folder))
        assert torch.allclose(expected, got, atol=0.05)


def test_critics_are_neither_saved_nor_missed(place: Path, tmp_path: Path) -> None:
    model = get_peft_model(classifier(place), softprompt.infoprompt(num_virtual_tokens=2, task_type="SEQ_CLS")).eval()
    model.save_pretrained(tmp_path / "run")
    for how in HOW.values():
        again = how(classifier(place), tmp_path / "run").eval()
        assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_embeddings_that_are_saved_beside_a_prompt_load(place: Path, tmp_path: Path) -> None:
    model = get_peft_model(base(place), softprompt.prompt_tuning(2, task_type=None)).eval()
    model.get_input_embeddings().weight.data[5] += 1
    model.save_pretrained(tmp_path / "run", save_embedding_layers=True)
    assert any("word_embeddings" in key for key in load_file(tmp_path / "run" / WEIGHTS))
    again = PeftModel.from_pretrained(base(place), tmp_path / "run").eval()
    assert torch.equal(again(input_ids=IDS)[0], model(input_ids=IDS)[0])
    assert softprompt.read_prompt(tmp_path / "run")().prefix.shape == (1, 2, 32)


def test_state_dicts_are_set_only_whole(place: Path) -> None:
    source = get_peft_model(classifier(place), softprompt.prompt_tuning(2, task_type="SEQ_CLS")).eval()
    target = get_peft_model(classifier(place), softprompt.prompt_tuning(2, task_type="SEQ_CLS")).eval()
    state = get_peft_model_state_dict(source)
    set_peft_model_state_dict(target, dict(state))
    assert torch.equal(source(input_ids=IDS).logits, target(input_ids=IDS).logits)
    with pytest.raises(SoftPromptError, match=r"adapter 'default': missing tensors: softprompt.*embedding, unexpected"):
        set_peft_model_state_dict(target, {key: value for key, value in state.items() if "softprompt" not in key})


# ---------------------------------------------------------------------- the config


CONFIGS = {
    "no peft_type": (lambda c: c.pop("peft_type"), "peft_type: expected the name of a PEFT method, got no such field"),
    "null": (lambda c: c.update(peft_type=None), "peft_type: expected the name of a PEFT method, got null"),
    "unknown": (lambda c: c.update(peft_type="SOFTPROMT"), "'SOFTPROMT': expected one of"),
    "list": (lambda c: c.update(num_virtual_tokens=[3]), "num_virtual_tokens: expected a whole number, got [3]"),
    "part": (lambda c: c.update(num_virtual_tokens=2.5), "num_virtual_tokens: expected a whole number, got 2.5"),
    "layers": (lambda c: c.update(layers="all"), 'layers: expected a list of whole numbers or null, got "all"'),
    "flag": (lambda c: c.update(shared_prefix=1), "shared_prefix: expected true or false, got 1"),
    "tau": (lambda c: c.update(tau=None), "tau: expected a number, got null"),
    "rates": (lambda c: c.update(learning_rates={"prompt": "x"}), "learning_rates: expected a mapping of numbers"),
    "choice": (lambda c: c.update(prompt="pain"), "Did you mean 'plain'?"),
}  # fmt: skip


@pytest.mark.parametrize("damage", CONFIGS)
def test_a_damaged_config_is_named_with_file_and_field(damage: str, place: Path, tmp_path: Path) -> None:
    change, message = CONFIGS[damage]
    folder = copy(place, "prompt_tuning", tmp_path / "adapter", lambda tensors: None)
    settings = json.loads((folder / CONFIG).read_text())
    change(settings)
    (folder / CONFIG).write_text(json.dumps(settings))
    doors = [softprompt.load, softprompt.read_prompt, softprompt.look]
    if settings.get("peft_type") == "SOFTPROMPT" and damage != "choice":  # else PEFT does not come to us
        doors += [SoftPromptConfig.from_pretrained, lambda f: PeftModel.from_pretrained(classifier(place), f)]
    for door in doors:
        with pytest.raises(SoftPromptError) as refused:
            door(folder)
        assert message in str(refused.value) and str(folder / CONFIG) in str(refused.value)


@pytest.mark.parametrize("damage", BYTES)
def test_a_config_that_is_no_json_object_is_named(damage: str, place: Path, tmp_path: Path) -> None:
    content, message = BYTES[damage]
    folder = copy(place, "prompt_tuning", tmp_path / "adapter", lambda tensors: None)
    (folder / CONFIG).write_bytes(content)
    for door in (softprompt.load, softprompt.read_prompt, softprompt.look, Predictor):
        with pytest.raises(SoftPromptError) as refused:
            door(folder)
        assert str(refused.value).startswith(f"{folder / CONFIG}: not a PEFT config: ") and message in str(
            refused.value
        )


def test_sizes_that_no_tensor_can_have(place: Path, tmp_path: Path) -> None:
    folder = copy(place, "prompt_tuning", tmp_path / "adapter", lambda tensors: None)
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**settings, "hidden_size": -1}))
    with pytest.raises(
        SoftPromptError,
        match=r"adapter_config.json does not describe a prompt: no prompt can be made of this config's sizes",
    ):
        softprompt.read_prompt(folder)
    (folder / CONFIG).write_text(json.dumps({**settings, "max_positions": 2**62}))
    with pytest.raises(SoftPromptError, match=r"no prompt can be made of this config's sizes"):
        PeftModel.from_pretrained(classifier(place), folder)
    lora = copy(place, "lora", tmp_path / "lora", lambda tensors: None)
    settings = json.loads((lora / CONFIG).read_text())
    (lora / CONFIG).write_text(json.dumps({**settings, "r": -1}))
    with pytest.raises(
        SoftPromptError, match=r"PEFT cannot attach this LORA adapter to the backbone \(.*\); copy or train"
    ):
        softprompt.load(lora)


def test_a_folder_in_place_of_a_file(place: Path, tmp_path: Path) -> None:
    for name in (WEIGHTS, CONFIG):
        folder = copy(place, "prompt_tuning", tmp_path / name, lambda tensors: None)
        (folder / name).unlink()
        (folder / name).mkdir()
        for door in (softprompt.load, softprompt.read_prompt):
            with pytest.raises(SoftPromptError, match=rf"expected .* {name}"):
                door(folder)
