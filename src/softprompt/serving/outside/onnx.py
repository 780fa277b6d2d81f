"""A classifier as one ONNX graph: backbone, prompt and head."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from ..._files import write_json
from ..._types import SoftPromptError
from ...models import TaskCard
from ...models.places import load_tokenizer
from ...tuner import active_prompt, prompts_of

FILE = "model.onnx"
TOLERANCE = 1e-4
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class _Logits(nn.Module):
    """The model as a function of tensors alone."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        logits = self.model(**dict(zip(self.names, tensors, strict=True))).logits
        assert isinstance(logits, Tensor)
        return logits


def export_onnx(model: PeftModel, folder: Path, card: TaskCard | None) -> str:
    """Write the active adapter's classifier as ``model.onnx``, in float32, with its tokenizer and ``classes.json``.

    The graph takes int64 [batch, tokens] of any batch and length, padded on the right, and puts out logits [batch, classes]. It is run
    beside the model before this returns.

    Raises:
        SoftPromptError: the packages are missing, it is no classifier of texts on an encoder, the head compares two texts or reads a
            mask, the prompt is compiled, the exporter of torch cannot translate the backbone, or the graph says something else.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SoftPromptError(
            "--to onnx needs the packages onnx, onnxscript and onnxruntime; install them with pip install 'softprompt[export]'."
        ) from error
    _check(model, card)
    assert card is not None
    tokenizer = load_tokenizer(card.backbone)
    names = tuple(name for name in INPUTS if name in tokenizer.model_input_names)
    folder.mkdir(parents=True)
    write_graph(model, names, folder / FILE)
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(str(folder))
    write_json(
        folder / "classes.json",
        {"classes": card.label_names, "max_length": card.max_length, "inputs": names, "padding": "right"},
    )
    return f"{FILE}: {', '.join(names)} to logits of {len(card.label_names)} classes"


def write_graph(model: PeftModel, names: tuple[str, ...], path: Path) -> None:
    """Write the model as a graph of the inputs ``names``, and run it beside the model.

    Raises:
        SoftPromptError: the exporter of torch cannot translate it, or the graph says something else.
    """
    import onnxruntime

    whole = _Logits(model.eval().float().cpu(), names)
    known = prompts_of(model).backbone.embed.num_embeddings
    examples = [_example(names, known, batch, tokens) for batch, tokens in ((3, 9), (5, 14), (1, 6))]
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.no_grad(), _quiet():
        wanted = [whole(*example) for example in examples]  # a loaded prompt looks its values over in its first pass
        try:
            torch.onnx.export(
                whole,
                examples[0],
                path,
                input_names=list(names),
                output_names=["logits"],
                dynamic_shapes=(tuple(dynamic for _ in names),),  # one entry for *tensors
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # torch's exporter has no base class for what it cannot translate
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise SoftPromptError(
                f"torch cannot translate this backbone to ONNX ({reason}); serve the adapter with softprompt.Predictor."
            ) from error
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for example, want in zip(examples, wanted, strict=True):
            feed = {name: part.numpy() for name, part in zip(names, example, strict=True)}
            apart = float((torch.from_numpy(session.run(None, feed)[0]) - want).abs().max())
            if not apart <= TOLERANCE:
                raise SoftPromptError(
                    f"the graph's logits differ from the model's by {apart:.1e}, expected at most {TOLERANCE}; serve the adapter with softprompt.Predictor, and report this backbone."
                )


def _check(model: PeftModel, card: TaskCard | None) -> None:
    backbone = prompts_of(model).backbone
    if card is None or card.kind != "classification" or backbone.causal or backbone.decoder is not None:
        got = "no task.json" if card is None else f"kind {card.kind} on {backbone.model_type}"
        raise SoftPromptError(
            f"--to onnx writes a classifier of texts on an encoder, as softprompt train makes it: expected an adapter with task.json of kind classification, its backbone neither causal nor an encoder-decoder; got {got}."
        )
    if card.head == "verbalizer" or card.pairs == "apart":
        what = "reads the mask of a template" if card.head == "verbalizer" else "compares two texts"
        raise SoftPromptError(
            f"--to onnx: a head that {what} looks its inputs over before it runs, which a graph cannot; expected head=pooled or head=stock on inputs of their own."
        )
    if active_prompt(model)[0].marker is not None:
        raise SoftPromptError(
            "--to onnx: torch cannot translate the search for a marker; train the prompt in front of the text, or serve it with softprompt.Predictor."
        )
    if active_prompt(model)[0].keys_and_values() is not None:
        raise SoftPromptError("--to onnx: a graph folds the prompt in by itself; export the adapter that was compiled.")


def _example(names: tuple[str, ...], known: int, batch: int, tokens: int) -> tuple[Tensor, ...]:
    """A batch of drawn ids whose inputs are padded on the right; a graph hangs on no values."""
    generator = torch.Generator().manual_seed(0)
    real = torch.arange(tokens) < torch.linspace(tokens, max(tokens // 2, 1), batch).long().unsqueeze(1)
    ids = torch.randint(known, (batch, tokens), generator=generator)
    made = {"input_ids": ids, "attention_mask": real.long(), "token_type_ids": torch.zeros_like(ids)}
    return tuple(made[name] for name in names)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its steps and what it will change one day."""
    log: Any = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
