"""The precision that a machine is given, and that a run keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import softprompt
from house.runs import StopAfter, options
from softprompt.models.precision import automatic_dtype
from softprompt.training import check


@pytest.mark.parametrize(
    ("capabilities", "dtype", "reason"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bfloat16", "AMX-BF16 and AVX512-BF16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "bfloat16", "this CPU has AVX512-BF16"),
        ({"avx512_f": True}, "float32", "neither AMX-BF16 nor AVX512-BF16"),
    ],
)
def test_the_precision_of_a_cpu(
    capabilities: dict[str, bool], dtype: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    found = automatic_dtype()
    assert found[0] == dtype and reason in found[1]
    # torch without the public probe
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: capabilities.get("amx_bf16", False))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: capabilities.get("avx512_bf16", False))
    assert automatic_dtype() == found
    for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, probe)
    assert automatic_dtype()[0] == "float32"


def test_the_precision_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {}, raising=False)
    for supported, dtype in ((True, "bfloat16"), (False, "float32")):
        # emulation is slower than float32 and does not count
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, s=supported: s or including_emulation
        )
        assert automatic_dtype()[0] == dtype and "a card" in automatic_dtype()[1]
        assert automatic_dtype(use_cpu=True)[0] == "float32"


def machine(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr(check, "automatic_dtype", lambda use_cpu: (dtype, "this is a test"))


def test_a_run_records_its_precision_and_keeps_it_elsewhere(
    encoder: Path, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = options(encoder, animals, tmp_path / "run", dtype="auto")
    machine(monkeypatch, "bfloat16")
    with caplog.at_level("INFO", logger="softprompt"), pytest.raises(KeyboardInterrupt):
        softprompt.train(chosen, callbacks=[StopAfter(1)])
    assert "dtype=bfloat16: this is a test" in caplog.messages
    machine(monkeypatch, "float32")  # the run goes on elsewhere
    with caplog.at_level("INFO", logger="softprompt"):
        done = softprompt.train(chosen, resume=True)
    assert any(text.startswith("dtype=bfloat16: ") and "run.json" in text for text in caplog.messages)
    assert json.loads((tmp_path / "run" / "task.json").read_text())["dtype"] == "bfloat16"
    assert done.document["meta_info"]["model_info"]["dtype"] == "bfloat16"
    assert done.document["run_info"]["train_config"]["dtype"] == "bfloat16"
    loaded = softprompt.Predictor(tmp_path / "run").model
    for model in (done.model, loaded):
        found = {"softprompt" in key or "classifier" in key: p.dtype for key, p in model.named_parameters()}
        assert found == {True: torch.float32, False: torch.bfloat16}
    with pytest.raises(softprompt.SoftPromptError, match="dtype: 'bfloat16' then, 'float32' now"):
        softprompt.train(replace(chosen, dtype="float32"), resume=True)


def test_a_run_from_before_the_choice_goes_on_in_float32(
    encoder: Path, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, "float32")
    chosen = options(encoder, animals, tmp_path / "run", dtype="auto")
    with pytest.raises(KeyboardInterrupt):
        softprompt.train(chosen, callbacks=[StopAfter(1)])
    marker = tmp_path / "run" / "run.json"
    marker.write_text(json.dumps({k: v for k, v in json.loads(marker.read_text()).items() if k != "dtype"}))
    machine(monkeypatch, "bfloat16")
    softprompt.train(chosen, resume=True)
    assert json.loads((tmp_path / "run" / "task.json").read_text())["dtype"] == "float32"
