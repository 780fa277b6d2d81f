"""What the exported script builds is decoded as vLLM decodes it, and the input that results says what our model says."""

from __future__ import annotations

import base64
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel

from house import families as f
from softprompt import SoftPromptError
from softprompt.serving.outside import export_vllm

MARK, IDS = 4, [7, 9, 4, 8, 6]


def exported(folder: Path, **options) -> tuple[PeftModel, SimpleNamespace]:
    model = f.prompted(f.LLAMA, "causal_lm", "prompt_tuning", **options)
    export_vllm(model, folder / "out", None)
    assert "import softprompt" not in (folder / "out" / "vllm_requests.py").read_text()
    return model, SimpleNamespace(**runpy.run_path(str(folder / "out" / "vllm_requests.py")))


def decoded(data: str) -> torch.Tensor:
    """The server's steps: strict base64, a dense tensor without code, two dimensions, the model's width, floating."""
    tensor = torch.load(io.BytesIO(base64.b64decode(data, validate=True)), weights_only=True, map_location="cpu")
    assert tensor.layout == torch.strided and tensor.dim() == 2 and tensor.shape[1] == f.HIDDEN
    assert tensor.is_floating_point() and tensor.is_contiguous()
    return tensor


@torch.no_grad()
def by_server(model: PeftModel, embeds: torch.Tensor) -> torch.Tensor:
    """The last logits of the bare model on an input that is embeddings."""
    with model.disable_adapter():
        return model(inputs_embeds=embeds[None]).logits[0, -1]


@pytest.mark.parametrize("marker", [None, MARK])
@torch.no_grad()
def test_ids_and_rows_make_the_models_input(tmp_path: Path, marker: int | None):
    model, script = exported(tmp_path, marker_token_id=marker)
    want = model(input_ids=torch.tensor([IDS])).logits[0, -1]
    embed = model.get_input_embeddings()
    made = script.embeds_prompt(IDS)
    is_token, ids = torch.tensor(made["prompt_is_token_ids"]), torch.tensor(made["prompt_token_ids"])
    assert (
        len(ids) == len(is_token) == len(made["prompt_embeds"]) == f.P + len(IDS)
        and not made["prompt_embeds"][is_token].any()
    )
    mixed = torch.where(is_token[:, None], embed(ids), made["prompt_embeds"])
    f.close(by_server(model, mixed), want)
    body = script.completion(IDS, embed, "llama", max_tokens=4)
    assert body.keys() == {"model", "prompt_embeds", "max_tokens"}
    f.close(by_server(model, decoded(body["prompt_embeds"])), want)
    json.dumps(body)


@torch.no_grad()
def test_a_part_of_a_message_stands_for_prompt_and_marker(tmp_path: Path, announced):
    model, script = exported(tmp_path, marker_token_id=MARK, num_virtual_tokens=15)
    assert not announced(), "15 virtual tokens and the marker fill a page of 16"
    part, embed = script.chat_part(), model.get_input_embeddings()
    assert part["type"] == "prompt_embeds"
    before, after = (embed(torch.tensor(ids)) for ids in (IDS[:2], IDS[3:]))
    rendered = torch.cat([before, decoded(part["data"]), after])
    f.close(by_server(model, rendered), model(input_ids=torch.tensor([IDS])).logits[0, -1])


def test_what_does_not_fit_is_said(tmp_path: Path, announced):
    _, script = exported(tmp_path, num_virtual_tokens=20)
    assert any(line.startswith("20 positions are no multiple of 16") and "is 32" in line for line in announced())
    with pytest.raises(ValueError, match="trained in front of the text, and a chat puts it behind"):
        script.chat_part()
    marked = tmp_path / "marked"
    _, script = exported(marked, marker_token_id=MARK)
    with pytest.raises(ValueError, match="expected the marker, token 4, among the token ids"):
        script.embeds_prompt([7, 8])
    for ids in (torch.tensor([IDS]), [IDS]):
        with pytest.raises(ValueError, match="expected the token ids of one text"):
            script.embeds_prompt(ids)
    assert script.embeds_prompt(torch.tensor(IDS))["prompt_token_ids"] == script.embeds_prompt(IDS)["prompt_token_ids"]
    file = marked / "out" / "vllm_requests.py"
    for words, code, message in (([], 1, "usage: python vllm_requests.py MODEL"), (["llama"], 0, "")):
        done = subprocess.run([sys.executable, file, *words], capture_output=True, text=True)
        assert done.returncode == code and done.stderr.strip() == message
    assert json.loads(done.stdout)["messages"][0]["content"][0]["type"] == "prompt_embeds"
    for method, head, message in (
        ("deep_prompts", "causal_lm", "vLLM holds one .* this prompt enters 3 layers"),
        ("ept", "causal_lm", "vLLM cannot hold an input delta"),
        ("spt_all", "causal_lm", "depends on the input"),
    ):
        with pytest.raises(SoftPromptError, match=message):
            export_vllm(f.prompted(f.LLAMA, head, method), tmp_path / "none", None)
    with pytest.raises(
        SoftPromptError, match=r"vLLM serves causal language models, and this adapter's backbone \(bert\) is none"
    ):
        export_vllm(f.prompted(f.BERT, "seq_cls", "prompt_tuning"), tmp_path / "none", None)
    with pytest.raises(SoftPromptError, match="layers of gemma4_text look tokens up by id"):
        export_vllm(f.prompted(f.FAMILIES["gemma4"], "causal_lm", "prompt_tuning"), tmp_path / "none", None)
    assert not (tmp_path / "none").exists()
