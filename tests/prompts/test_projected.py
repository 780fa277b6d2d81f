"""A prompt in few dimensions: its formula, what it trains and saves, and that every part of it acts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

import softprompt
from house import families as f
from house.families import LLAMA
from softprompt import SoftPromptError
from softprompt.prompts import ProjectedPrompt

D, N, H, R = 2, 5, 16, 3


def drawn(seed: int = 0) -> ProjectedPrompt:
    torch.manual_seed(1)
    prompt = ProjectedPrompt(D, N, H, R, seed).double()
    for parameter in prompt.parameters():
        torch.nn.init.normal_(parameter)
    return prompt


def test_virtual_tokens_are_the_formula():
    prompt = drawn(seed=7)
    lift = np.random.RandomState(7).standard_normal((R, H)) / math.sqrt(R)
    for site in range(D):
        for token in range(N):
            code, scale, shift = (
                x.detach().numpy() for x in (prompt.codes[site, token], prompt.scale[site], prompt.shift[site])
            )
            expected = [sum(code[r] * lift[r, h] for r in range(R)) * scale[h] + shift[h] for h in range(H)]
            np.testing.assert_allclose(prompt().prefix[site, token].detach().numpy(), expected, rtol=1e-6)


def test_gradients_of_every_parameter():
    prompt = drawn()
    inputs = [p.detach().clone().requires_grad_() for p in prompt.parameters()]

    def virtual(codes, scale, shift):
        return torch.func.functional_call(prompt, {"codes": codes, "scale": scale, "shift": shift}, ()).prefix

    assert torch.autograd.gradcheck(virtual, inputs)


def test_codes_may_be_as_wide_as_the_tokens_and_the_matrix_lies_where_they_do():
    prompt = ProjectedPrompt(1, 2, H, H)
    assert prompt.lift().shape == (H, H) and prompt.lift() is prompt.lift()
    prompt.to("meta")
    assert prompt.lift().device.type == "meta" and prompt.lift() is prompt.lift()


def test_a_start_has_the_mean_and_the_spread_of_its_vectors():
    """At each site: a layer's states may be a thousand times as large as embeddings."""
    size = torch.tensor([0.02, 30.0]).view(2, 1, 1)
    prompt, vectors = ProjectedPrompt(2, 400, H, R), size * (torch.randn(2, 400, H) + 2.0)
    prompt.start_from(vectors, torch.Generator().manual_seed(0))
    prefix = prompt().prefix
    torch.testing.assert_close(prefix.mean(1) / size[:, 0], vectors.mean(1) / size[:, 0], rtol=0, atol=0.3)
    assert all(0.7 < float(share) < 1.3 for share in (prefix.std(1) / vectors.std(1)).mean(1))


def test_a_file_holds_codes_scale_and_shift_and_the_seed_makes_the_matrix_again(tmp_path: Path):
    model = f.prompted(LLAMA, "causal_lm", "ulpt", projection_seed=11)
    inputs = f.batch(f.tokens(9, 5))
    expected = f.output(model, **inputs)
    model.save_pretrained(tmp_path)
    shapes = {
        key.split(".")[-1]: tuple(value.shape)
        for key, value in load_file(tmp_path / "adapter_model.safetensors").items()
    }
    assert shapes == {"codes": (1, f.P, 2), "scale": (1, f.HIDDEN), "shift": (1, f.HIDDEN)}
    again = PeftModel.from_pretrained(f.backbone(LLAMA, "causal_lm"), tmp_path).eval()
    assert torch.equal(f.output(again, **inputs), expected)
    assert again.peft_config["default"].projection_seed == 11
    again.base_model.state.active_prompt().seed, again.base_model.state.active_prompt()._lift = 12, None
    assert (f.output(again, **inputs) - expected).abs().max() > 1e-3


def test_a_seed_means_one_matrix_for_ever():
    """Numbers of the file format: they must never change."""
    assert ProjectedPrompt(1, 1, 3, 2, seed=0).lift().flatten().tolist() == pytest.approx(
        [x / math.sqrt(2) for x in (1.764052345967664, 0.4001572083672233, 0.9787379841057392, 2.240893199201458, 1.8675579901499675, -0.977277879876411)]
    )  # fmt: skip


def test_each_part_acts():
    """Alone, each of codes, scale and shift lowers the loss of a batch; none is a copy of another."""
    inputs = f.batch(f.tokens(9, 9, 9))
    inputs["labels"] = inputs["input_ids"].clone()
    gains = {}
    for part in ("codes", "scale", "shift"):
        model = get_peft_model(f.backbone(LLAMA, "causal_lm"), f.config("ulpt", "causal_lm")).train()
        trained = [p for name, p in f.prompt_parameters(model).items() if name.endswith(part)]
        optimizer = torch.optim.Adam(trained, lr=0.05)
        losses = []
        for _ in range(60):
            loss = model(**inputs).loss
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        gains[part] = losses[0] - losses[-1]
    assert min(gains.values()) > 0.02, gains


@pytest.mark.parametrize(
    "options, words",
    [
        ({"projection_seed": 2**32}, "projection_seed: expected a whole number from 0 to 2"),
        ({"rank": 0}, "a projected prompt needs rank >= 1, got rank=0"),
        (
            {"rank": f.HIDDEN + 1},
            f"a projected prompt has codes in fewer dimensions than its tokens: expected rank <= {f.HIDDEN}, got {f.HIDDEN + 1}",
        ),
        (
            {"init": "text", "init_text": "red dog"},
            "starts a prompt at given vectors, which a projected prompt cannot reach",
        ),
    ],
)
def test_what_it_cannot_be_is_refused(options, words):
    with pytest.raises(SoftPromptError, match=words):
        get_peft_model(f.backbone(LLAMA, "causal_lm"), softprompt.ulpt(task_type="CAUSAL_LM", **options))


def test_every_layer_has_codes_and_all_share_the_matrix():
    model = f.prompted(LLAMA, "causal_lm", "ulpt", placement="deep")
    shapes = {name.split(".")[-1]: tuple(p.shape) for name, p in f.prompt_parameters(model).items()}
    assert shapes == {"codes": (f.LAYERS, f.P, 2), "scale": (f.LAYERS, f.HIDDEN), "shift": (f.LAYERS, f.HIDDEN)}
