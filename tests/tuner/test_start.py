"""Where prompts start, and that loading starts nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import softprompt
from house import families as f
from house.families import (
    DECODERS,
    EOS,
    FAMILIES,
    FIRST,
    LAYERS,
    LLAMA,
    PAD,
    VOCAB,
    P,
    backbone,
    batch,
    close,
    config,
    output,
    prompt_parameters,
    prompted,
    stir,
    tokens,
)
from softprompt import SoftPromptError

SCALED = [LLAMA, FAMILIES["gemma3"], FAMILIES["bart"], FAMILIES["bert"]]  # Gemma 3 and BART scale their embeddings


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    raw = Tokenizer(
        models.WordLevel({"<unk>": 0, "<pad>": PAD, **{f"w{i}": i for i in range(2, VOCAB)}}, unk_token="<unk>")
    )
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
    return str(folder)


def started(family=LLAMA, method="prompt_tuning", model=None, head=None, **options):
    """Prefix [D, P, H] of a fresh prompt, and the backbone's own embedding function."""
    head = head or family.lm
    model = get_peft_model(model or backbone(family, head), config(method, head, **options))
    with torch.no_grad():
        return softprompt.active_prompt(model)[0]().prefix, model.base_model.model.softprompt.backbone.embed


def embedded(embed, *ids):
    with torch.no_grad():
        return embed(torch.tensor(ids))


# ---------------------------------------------------------------------- every init


@pytest.mark.parametrize("family", SCALED, ids=str)
def test_vocab_draws_every_ordinary_token_once_and_no_special_one(family):
    ordinary = [i for i in range(VOCAB) if i not in (0, PAD, EOS)]
    count = 50 if family.name in ("bert", "bart") else len(ordinary)  # absolute positions end at 64
    prefix, embed = started(family, num_virtual_tokens=count)
    table = embedded(embed, *range(VOCAB))
    drawn = [int((table == row).all(1).nonzero()) for row in prefix[0]]
    assert len(set(drawn)) == count and set(drawn) <= set(ordinary)


def test_vocab_repeats_tokens_only_when_there_are_too_few():
    prefix, embed = started(num_virtual_tokens=VOCAB + 20)
    assert prefix.shape == (1, VOCAB + 20, 32)
    assert not (embedded(embed, 0, PAD, EOS)[:, None] == prefix).all(-1).any()


@pytest.mark.parametrize("method", ["prompt_tuning", "deep_prompts", "ept"])
@pytest.mark.parametrize("init", ["vocab", "normal"])
def test_a_seed_reproduces_every_parameter(method, init):
    def parameters(seed):
        model = get_peft_model(backbone(LLAMA, "causal_lm"), config(method, init=init, init_seed=seed))
        return torch.cat([p.detach().flatten() for p in prompt_parameters(model).values()])

    assert torch.equal(parameters(3), parameters(3))
    assert not torch.equal(parameters(3), parameters(4))
    torch.manual_seed(3)
    unseeded = parameters(None)
    assert not torch.equal(parameters(None), unseeded)  # None draws from the global generator
    torch.manual_seed(3)
    assert torch.equal(parameters(None), unseeded)


def test_normal_has_the_vocabularys_spread():
    prefix, embed = started(FAMILIES["gemma3"], num_virtual_tokens=90, init="normal")
    spread = embedded(embed, *range(FIRST, VOCAB)).std()
    assert abs(prefix.std() / spread - 1) < 0.1 and abs(prefix.mean()) < 0.1 * spread


@pytest.mark.parametrize("family", SCALED, ids=str)
def test_text(family, tokenizer_folder):
    prefix, embed = started(family, init="text", init_text="w7 w8 w9", tokenizer_name_or_path=tokenizer_folder)
    assert torch.equal(prefix[0], embedded(embed, 7, 8, 9, 7))  # a short text starts over
    prefix, embed = started(family, init="text", init_text="w7 w8 w9 w10 w11", tokenizer_name_or_path=tokenizer_folder)
    assert torch.equal(prefix[0], embedded(embed, 7, 8, 9, 10))  # a long one is cut


@pytest.mark.parametrize("family", SCALED, ids=str)
def test_labels(family, tokenizer_folder):
    labels = {"init": "labels", "init_text": ["w7", "w8 w9"], "tokenizer_name_or_path": tokenizer_folder}
    prefix, embed = started(family, **labels)
    drawn, _ = started(family)
    close(prefix[0, 0], embedded(embed, 7)[0], 0)
    close(prefix[0, 1], embedded(embed, 8, 9).mean(0), 1e-6)
    assert torch.equal(prefix[0, 2:], drawn[0, 2:])
    for more in (["w7", "w8", "w9", "w10"], ["w7", "w8", "w9", "w10", "w11"]):
        prefix, embed = started(family, **{**labels, "init_text": more})
        assert torch.equal(prefix[0], embedded(embed, 7, 8, 9, 10)), "labels beyond the prompt are left out"
    more_labels_than_rows, _ = started(family, num_virtual_tokens=1, **labels)
    assert torch.equal(more_labels_than_rows[0], prefix[0, :1])


def test_the_backbones_own_tokenizer_is_the_default(tokenizer_folder, tmp_path):
    backbone(LLAMA, "causal_lm").save_pretrained(tmp_path)
    PreTrainedTokenizerFast.from_pretrained(tokenizer_folder).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    prefix, embed = started(model=model, init="text", init_text="w20 w21 w22 w23")
    assert torch.equal(prefix[0], embedded(embed, 20, 21, 22, 23))


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_file(kind, tmp_path):
    rows = torch.randn(2, 32)
    path = tmp_path / f"rows.{kind}"
    np.save(path, rows.numpy()) if kind == "npy" else save_file({"any name": rows.half()}, path)
    expected = rows if kind == "npy" else rows.half().float()
    prefix, _ = started(init="file", init_path=str(path))
    assert torch.equal(prefix[0], torch.cat([expected, expected]))
    deep = torch.randn(LAYERS, P, 32)
    np.save(tmp_path / "deep.npy", deep.numpy())
    prefix, _ = started(method="deep_prompts", init="file", init_path=str(tmp_path / "deep.npy"))
    assert torch.equal(prefix, deep)


@pytest.mark.parametrize("source", ["prompt_tuning", "ept", "deep_prompts"])
def test_adapter(source, tmp_path):
    """A prompt trained elsewhere is the start of another, also of another method; EPT's, as long as its input delta is zero."""
    trained = prompted(LLAMA, "causal_lm", source)
    if source == "ept":
        softprompt.active_prompt(trained)[0].lowrank_b.data.zero_()
    trained.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = softprompt.active_prompt(trained)[0]().prefix
    for method in ("deep_prompts",) if source == "deep_prompts" else ("prompt_tuning", "dept", "ept"):
        prefix, _ = started(method=method, init="adapter", init_path=str(tmp_path))
        assert torch.equal(prefix, expected)
    with torch.no_grad():
        assert torch.equal(softprompt.read_prompt(tmp_path)().prefix, expected)


@pytest.mark.parametrize("source", ["dept", "ept"])
def test_an_adapter_with_an_input_delta_starts_no_other(source, tmp_path):
    prompted(LLAMA, "causal_lm", source).save_pretrained(tmp_path)
    with pytest.raises(SoftPromptError, match="expected a prompt that is virtual tokens alone to start from"):
        started(method=source, init="adapter", init_path=str(tmp_path))


@pytest.mark.parametrize("init", ["vocab", "normal"])
@pytest.mark.parametrize("family", DECODERS, ids=str)
@torch.no_grad()
def test_a_deep_prompt_starts_where_an_input_prompt_starts(family, init):
    """In a causal stack the prompt's states do not depend on the text, so replacing them by themselves changes nothing."""
    inputs = batch(tokens(9, 5), "left")
    logits = [
        output(get_peft_model(backbone(family, "causal_lm"), config(m, "causal_lm", init=init)).eval(), **inputs)
        for m in ("prompt_tuning", "deep_prompts")
    ]
    close(*logits)


# ---------------------------------------------------------------------- loading starts nothing


@pytest.mark.parametrize("method", ["prompt_tuning", "deep_prompts", "ept"])
def test_loading_draws_nothing_and_needs_no_text(method, tokenizer_folder, tmp_path):
    options = {"init": "text", "init_text": "w7 w8", "tokenizer_name_or_path": tokenizer_folder}
    stir(get_peft_model(backbone(LLAMA, "causal_lm"), config(method, "causal_lm", **options))).save_pretrained(tmp_path)
    written = (tmp_path / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(written.replace(tokenizer_folder, "/nowhere"))
    bare, state = backbone(LLAMA, "causal_lm"), torch.get_rng_state()
    PeftModel.from_pretrained(bare, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_does_not_run_the_backbone(tmp_path):
    prompted(LLAMA, "causal_lm", "deep_prompts").save_pretrained(tmp_path)
    bare, ran = backbone(LLAMA, "causal_lm"), []
    bare.model.register_forward_pre_hook(lambda *_: ran.append(1))
    PeftModel.from_pretrained(bare, tmp_path)
    assert not ran


def test_loading_needs_no_file(tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((P, 32), dtype=np.float32))
    model = get_peft_model(
        backbone(LLAMA, "causal_lm"),
        config("prompt_tuning", "causal_lm", init="file", init_path=str(tmp_path / "rows.npy")),
    )
    model.save_pretrained(tmp_path / "prompt")
    (tmp_path / "rows.npy").unlink()
    loaded = PeftModel.from_pretrained(backbone(LLAMA, "causal_lm"), tmp_path / "prompt")
    assert all(bool((value == 1).all()) for value in prompt_parameters(loaded).values())


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "options, message",
    [
        ({"init": "text"}, "init='text' needs the field init_text"),
        ({"init": "labels"}, "init='labels' needs the field init_text"),
        ({"init": "file"}, "init='file' needs the field init_path"),
        ({"init": "adapter"}, "init='adapter' needs the field init_path"),
        (
            {"init_text": "w7"},
            "init_text='w7' is not read with init='vocab'; give init='text' or init='labels' as well, or leave init_text out",
        ),
        (
            {"init": "text", "init_text": "w7", "init_path": "rows.npy"},
            "init_path='rows.npy' is not read with init='text'; give init='file' or init='adapter' as well",
        ),
        (
            {"init": "vocabulary"},
            "unknown init 'vocabulary': expected one of vocab, normal, text, labels, file, adapter. Did you mean 'vocab'?",
        ),
        (
            {"init": "text", "init_text": ["a", "b"]},
            "init='text' needs one string in init_text, got a list; init='labels' takes one string per class",
        ),
        (
            {"init": "adapter", "init_path": ["a", "b"]},
            "init_path=['a', 'b']: a prompt starts from one adapter; name one",
        ),
        ({"init": "text", "init_text": "w7"}, "init='text' needs a tokenizer; set tokenizer_name_or_path"),
        ({"init": "text", "init_text": "w7", "tokenizer_name_or_path": "/nowhere"}, "no tokenizer at '/nowhere' ("),
        ({"init": "text", "init_text": " ", "tokenizer_name_or_path": "TOKENIZER"}, "init_text ' ' has no tokens"),
        (
            {"init": "labels", "init_text": ["w7", " "], "tokenizer_name_or_path": "TOKENIZER"},
            "init_text: the labels [' '] have no tokens",
        ),
    ],
    ids=str,
)
def test_init_refusals(options, message, tokenizer_folder):
    if options.get("tokenizer_name_or_path") == "TOKENIZER":
        options = {**options, "tokenizer_name_or_path": tokenizer_folder}
    with pytest.raises(SoftPromptError) as error:
        started(**options)
    assert message in str(error.value)


def array(path, values):
    np.save(path, values)
    return path


def text_file(path, text):
    path.write_text(text)
    return path


FILES = {
    "missing": (lambda d: d / "no.npy", "no such file; expected a .npy or .safetensors file with one [P, H] array"),
    "format": (lambda d: text_file(d / "rows.csv", "1"), "expected .npy or .safetensors, got '.csv'"),
    "broken": (lambda d: text_file(d / "rows.npy", "not numpy"), "cannot be read as .npy ("),
    "broken safetensors": (
        lambda d: text_file(d / "rows.safetensors", "not safetensors"),
        "cannot be read as .safetensors (",
    ),
    "pickle": (
        lambda d: array(d / "rows.npy", np.array([{"a": 1}], dtype=object)),
        "cannot be read as .npy (Object arrays cannot be loaded",
    ),
    "several": (
        lambda d: save_file({"a": torch.ones(1), "b": torch.ones(1)}, d / "x.safetensors") or d / "x.safetensors",
        "expected one tensor, found ['a', 'b']",
    ),
    "shape": (lambda d: array(d / "rows.npy", np.ones(32)), "expected an array [P, H] or [D, P, H], got shape (32,)"),
    "empty": (
        lambda d: array(d / "rows.npy", np.ones((0, 32))),
        "expected an array [P, H] or [D, P, H], got shape (1, 0, 32)",
    ),
    "not finite": (
        lambda d: array(d / "rows.npy", np.full((2, 32), np.nan)),
        "the array has values that are not finite",
    ),
    "width": (lambda d: array(d / "rows.npy", np.ones((2, 31))), "expected rows of width 32 (llama), got 31"),
    "depth": (
        lambda d: array(d / "rows.npy", np.ones((2, P, 32))),
        "init='file': expected 1 or 1 layers of rows, got 2",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_file_refusals(case, tmp_path):
    make, message = FILES[case]
    with pytest.raises(SoftPromptError) as error:
        started(init="file", init_path=str(make(tmp_path)))
    assert message in str(error.value)


def test_a_sparse_prompt_starts_from_its_own_layers_of_a_file(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).normal(size=(f.LAYERS, f.P, 32)).astype("float32")
    np.save(tmp_path / "deep.npy", deep)
    chosen = f.config("deep_late", "causal_lm", init="file", init_path=str(tmp_path / "deep.npy"))
    model = get_peft_model(f.backbone(f.LLAMA, "causal_lm"), chosen)
    assert torch.equal(softprompt.active_prompt(model)[0]().prefix, torch.tensor(deep[1:]))


def test_tokens_of_a_start_differ_where_there_are_enough() -> None:
    chosen = f.config("prompt_tuning", "causal_lm", num_virtual_tokens=f.VOCAB - 3)
    prefix = softprompt.active_prompt(get_peft_model(f.backbone(f.LLAMA, "causal_lm"), chosen))[0]().prefix[0]
    assert len(prefix.detach().unique(dim=0)) == f.VOCAB - 3
