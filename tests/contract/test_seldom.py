"""Cases that are seldom met: tables that count from elsewhere, windows, moved caches, longrope, flash masks, two dtypes."""

import json
import shutil

import pytest
import torch
import transformers as tf
from peft import get_peft_model
from torch.nn import functional as F

import softprompt
from house import families as f
from house.models import training, widths
from house.runs import train_shortly
from house.served import ROWS, settle, shelved, train_readers
from softprompt import SoftPromptError
from softprompt.serving import export_adapter
from softprompt.serving.engine import PromptEngine, Request, Writing
from softprompt.tuner import find_backbone
from softprompt.tuner.passes.prefix import can_take, is_in_front
from softprompt.tuner.placing.hiding import hide

MARK = 4


@torch.no_grad()
def test_a_table_that_counts_from_elsewhere_goes_on_behind_padding_by_hand():
    torch.manual_seed(0)
    shape = {"vocab_size": 99, "pad_token_id": f.PAD, **f.SIZES, **f.NO_DROPOUT, "is_decoder": True}
    model = tf.AutoModelForCausalLM.from_config(tf.RobertaConfig(**shape))
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    model = f.stir(get_peft_model(model, f.config("prompt_tuning", "causal_lm"))).eval()
    ids, mask = f.batch(f.tokens(9, 4), "left").values()
    kept = model(input_ids=ids[:, :6], attention_mask=mask[:, :6], use_cache=True).past_key_values
    assert is_in_front(kept)
    step = model(input_ids=ids[:, 6:7], attention_mask=mask[:, :7], past_key_values=kept, use_cache=True)
    whole = f.output(model, input_ids=ids[:, :7], attention_mask=mask[:, :7], use_cache=False)
    f.close(step.logits, whole[:, -1:])


@torch.no_grad()
def test_a_window_that_the_cache_does_not_show_is_not_filled_with_padding():
    torch.manual_seed(0)
    options = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    config = tf.GPTNeoConfig(vocab_size=99, window_size=6, max_position_embeddings=64, **options)
    model = tf.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    model = f.stir(get_peft_model(model, f.config("prompt_tuning", "causal_lm"))).eval()
    rows = f.tokens(9, 4)
    together = model(**f.batch(rows, "left"), use_cache=True).logits
    for got, row in zip(together, rows, strict=True):
        f.close(got[-len(row) :], model(input_ids=row[None]).logits[0])


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {
            "rope_type": "longrope",
            "factor": 2.0,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 8,
        },
    ],
)
def test_rotations_that_hang_on_the_length_are_not_compiled(rope):
    config = f.LLAMA.config(rope_parameters={**rope, "rope_theta": 10000.0}, max_position_embeddings=16)
    model = get_peft_model(tf.AutoModelForCausalLM.from_config(config), f.config("deep_prompts", "causal_lm")).eval()
    with pytest.raises(SoftPromptError, match="llama rotates positions by the length of the text"):
        softprompt.compile(model)
    seen = widths(model)
    model(**f.batch(f.tokens(6, 6)))
    assert seen == [(2, f.P + 6)], "nor shared"


def test_a_cache_that_is_moved_off_is_left_to_the_caller():
    cache = tf.DynamicCache()
    assert can_take(cache)
    cache.offloading = True
    assert not can_take(cache)


@torch.no_grad()
def test_padding_is_no_marker():
    model = f.prompted(f.LLAMA, "causal_lm", "prompt_tuning", marker_token_id=MARK)
    rows = [torch.cat([row[:2], torch.tensor([MARK]), row[2:]]) for row in f.tokens(9, 5)]
    inputs = f.batch(rows, "left")
    real = inputs["attention_mask"] != 0
    want = model(**inputs).logits
    inputs["input_ids"][~real] = MARK
    f.close(model(**inputs).logits[real], want[real])


def test_a_mask_of_two_dimensions_is_hidden_for_flash_attention():
    model = f.prompted(f.LLAMA, "causal_lm", "deep_late")
    backbone = softprompt.prompts_of(model).backbone
    backbone.stack.config._attn_implementation = "flash_attention_2"
    states, columns = torch.zeros(1, 5, 8), torch.tensor([[True, True, False, False, False]])
    for mask, expected in ((None, [[0, 0, 1, 1, 1]]), (torch.tensor([[1, 1, 1, 1, 0]]), [[0, 0, 1, 1, 0]])):
        _, call = hide((states,), {"attention_mask": mask}, columns, columns, (5, 0), backbone)
        assert call["attention_mask"].tolist() == expected


def test_trained_embeddings_below_are_refused():
    model = f.prompted(f.LLAMA, "causal_lm", "spt", layers=[1])
    find_backbone(model.get_base_model()).embed.requires_grad_(True)
    with pytest.raises(SoftPromptError, match="expected frozen embeddings and layers below layer 1"):
        model(**f.batch(f.tokens(9, 9, 9)), below=torch.zeros(3, 9, f.HIDDEN))


def test_a_compiled_model_trains_nothing():
    model = f.prompted(f.LLAMA, "seq_cls", "deep_prompts")
    assert not [name for name, p in softprompt.compile(model).named_parameters() if p.requires_grad]


def test_shifted_labels_beside_labels_are_read_at_all_positions():
    model, inputs = training(f.LLAMA, "ept"), f.batch(f.tokens(9, 5, 7))
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, :3] = -100
    shifted = F.pad(labels, (0, 1), value=-100)[:, 1:].contiguous()
    losses = []
    for loss_only in (False, True):
        with softprompt.prompts_of(model).loss_only(loss_only):
            out = model(**inputs, labels=labels, shift_labels=shifted)
        losses.append(out.loss)
        assert out.logits is not None
    assert torch.equal(*losses)


def test_a_completion_is_asked_for_once(writers):
    served = shelved({"short": writers["short"]}).find("short")
    with pytest.raises(SoftPromptError, match="a request is answered by one; send it several times"):
        served.encode({"prompt": "red dog"}, Writing(2, temperature=1.0, completions=2), False)


def test_settings_of_the_backbone_that_are_not_applied_are_announced(writers, tmp_path, announced):
    backbone = tmp_path / "decoder"
    shutil.copytree(writers["short"].parents[1] / "decoder", backbone)
    (backbone / "generation_config.json").write_text(json.dumps({"no_repeat_ngram_size": 3, "min_new_tokens": 2}))
    shelved({"short": writers["short"]}, backbone=str(backbone))
    said = "no_repeat_ngram_size, min_new_tokens of generation_config.json not applied"
    assert any(line.startswith(said) for line in announced())


def test_prompts_of_two_dtypes_are_served_each_in_its_own(tmp_path):
    folders = train_readers(tmp_path, "plain")
    folders["half"] = train_shortly(tmp_path / "encoder", tmp_path / "animals", tmp_path / "half", dtype="bfloat16")
    engine = PromptEngine(shelved(folders))
    for name, folder in folders.items():
        answers = settle(engine, [engine.submit(Request(name, row)) for row in ROWS["plain"]])
        alone = softprompt.Predictor(folder).predict(ROWS["plain"])
        for got, expected in zip(answers, alone, strict=True):
            apart = max(abs(got.prediction["scores"][key] - score) for key, score in expected["scores"].items())
            assert apart < (1e-2 if name == "half" else 1e-5)
        assert engine.shelf.find(name).model.dtype == (torch.bfloat16 if name == "half" else torch.float32)


def test_a_graph_of_texts_apart_is_refused(tmp_path):
    pair = train_readers(tmp_path, "pair")["pair"]
    with pytest.raises(SoftPromptError, match="a head that compares two texts"):
        export_adapter(pair, tmp_path / "out", "onnx")
