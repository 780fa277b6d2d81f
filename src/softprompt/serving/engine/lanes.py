"""One model that several prompts share, and how the rows of a mixed batch get the heads of their own prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..._types import SoftPromptError, announce
from ...data import Verbalizer, in_turn
from ...models import PooledClassifier, TaskCard, VerbalizedClassifier, load, load_beside
from ...models.heads import pooled_head
from ...tuner import compile, prompts_of
from ...tuner.heads import copies
from ...tuner.passes.prefix import may_pad_between, why_not
from .backlog import Job
from .cohort import Cohort

COMPILED = "_compiled"


class Member(Protocol):
    """What a lane reads of a prompt that is served."""

    key: str
    card: TaskCard
    tokenizer: PreTrainedTokenizerBase
    verbalizer: Verbalizer | None
    side: str


class Lane(ABC):
    """Prompts on one model. What a row's own head makes of the shared pass is for each kind of head to say.

    Attributes:
        writes: whether its rows are completions.
        model: with all its prompts as adapters; None before the first and after the last one.
        device: where it lies.
        mixes: whether a batch may have rows of several prompts: not where they have parts of the backbone of their own.
    """

    writes: ClassVar[bool] = False

    def __init__(self, device: torch.device) -> None:
        self.model: PeftModel | None = None
        self.mixes, self.device = True, device

    # ------------------------------------------------------------------ prompts

    def join(self, folder: Path, key: str, card: TaskCard, compiles: bool) -> tuple[str, bool]:
        """Load the adapter in ``folder``, as keys and values where it has such a form.

        Returns:
            What the model calls it, and whether it is compiled.

        Raises:
            SoftPromptError: it does not fit the backbone; the lane is as it was.
        """
        if self.model is None:
            self.model = load(folder, card.backbone, adapter_name=key).to(self.device)
        else:
            self._make_room(card)
            load_beside(self.model, folder, key)
        self.mixes = not copies(prompts_of(self.model).backbone.stack)
        try:
            if self.model.peft_config[key].prompt == "compiled":
                return key, True
            return (self._compiled(key), True) if compiles and self._can_compile(key) else (key, False)
        except BaseException:
            self.leave(key)
            raise

    def leave(self, key: str) -> None:
        """Take a prompt off the model, and the model away with the last one."""
        assert self.model is not None
        if len(self.model.peft_config) == 1:
            self.model = None
            return
        if self.model.active_adapter == key:
            self.model.set_adapter(next(name for name in self.model.peft_config if name != key))
        self.model.delete_adapter(key)
        self.mixes = not copies(prompts_of(self.model).backbone.stack)

    def names(self, names: Sequence[str]) -> dict[str, Any]:
        """What a call of the model is given so that each input has the adapter that ``names`` has for it.

        Where prompts have parts of the backbone of their own there is one of them in a batch, and it becomes the active one.
        """
        if self.mixes:
            return {"adapter_names": list(names)}
        assert self.model is not None
        self.model.set_adapter(names[0])
        return {}

    @contextmanager
    def rows_of(self, names: Sequence[str]) -> Iterator[None]:
        """As `names`, for a part of the model that is called by itself."""
        given = self.names(names)
        with prompts_of(self.model).by_row(given["adapter_names"]) if given else nullcontext():  # type: ignore[arg-type]
            yield

    def _compiled(self, key: str) -> str:
        assert self.model is not None
        other, active = key + COMPILED, self.model.active_adapter
        self.model.set_adapter(key)
        compile(self.model, other)
        self.model.set_adapter(other if active == key else active)
        self.model.delete_adapter(key)
        return other

    def _can_compile(self, key: str) -> bool:
        """Whether the prompt has keys and values that no batch of rows would forbid to read."""
        assert self.model is not None
        backbone = prompts_of(self.model).backbone
        prompt: Any = prompts_of(self.model).softprompt_prompts[key]
        if why_not(backbone, prompt) is not None or "position_ids" not in backbone.argument_names:
            return False
        return not backbone.causal or may_pad_between(backbone)

    def _make_room(self, card: TaskCard) -> None:
        """Let the model take a further adapter, whose head may have another shape than those that it has."""
        return None

    # ------------------------------------------------------------------ rows

    @torch.no_grad()
    def logits(self, rows: Sequence[tuple[Member, dict[str, Any]]]) -> list[Tensor]:
        """The logits of each row's own head: [C_r] of a text, [S_r, C] of its tokens."""
        assert self.model is not None
        served = rows[0][0]
        features = [{k: v for k, v in encoded.items() if k != "labels"} for _, encoded in rows]
        inputs, owners = in_turn(features)
        names = [rows[owner][0].key for owner in owners]
        batch = served.tokenizer.pad(inputs, padding_side=served.side, return_tensors="pt").to(self.model.device)
        return self._logits(dict(batch), names, [row[0] for row in rows], owners)

    def cohort(self, jobs: Sequence[Job]) -> Cohort:
        """Completions of these jobs, to be written a token at a time."""
        raise SoftPromptError("these prompts do not write.")

    @abstractmethod
    def _logits(
        self, batch: dict[str, Tensor], names: list[str], served: list[Member], owners: list[int]
    ) -> list[Tensor]:
        """As `logits`, of B inputs whose adapters are ``names`` and whose rows are ``owners`` [B]."""


class PooledLane(Lane):
    """Heads over pooled states, each with its own classes, layers and pooling: one pass gives the states, each head reads its rows."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._heads: WeakKeyDictionary[Member, PooledClassifier] = WeakKeyDictionary()

    def _logits(
        self, batch: dict[str, Tensor], names: list[str], served: list[Member], owners: list[int]
    ) -> list[Tensor]:
        heads = {one: self._head(one) for one in dict.fromkeys(served)}
        wanted = {"output_hidden_states": True} if any(head.features for head in heads.values()) else {}
        host = self._host()
        with self.rows_of(names):
            output = host.run({**batch, **wanted})
        made: list[Tensor] = [torch.empty(0)] * len(served)
        for one, head in heads.items():
            at = [i for i, owner in enumerate(owners) if served[owner] is one]
            rows = list(dict.fromkeys(owners[i] for i in at))
            states = [part[at] for part in head.layers_of(output)]
            for row, logits in zip(rows, head.read(states, batch["attention_mask"][at]), strict=True):
                made[row] = logits
        return made

    def _make_room(self, card: TaskCard) -> None:
        self._wrapper().original_module = self._put(card).classifier  # of which PEFT gives the adapter a copy

    def _head(self, served: Member) -> PooledClassifier:
        if (head := self._heads.get(served)) is None:
            head = self._heads[served] = self._put(served.card).eval()
            head.classifier = self._wrapper().modules_to_save[served.key]
        return head

    def _put(self, card: TaskCard) -> PooledClassifier:
        host = self._host()
        return pooled_head(host.backbone, card, host.pooling)

    def _host(self) -> PooledClassifier:
        assert self.model is not None
        host = self.model.base_model.model
        assert isinstance(host, PooledClassifier)
        return host

    def _wrapper(self) -> ModulesToSaveWrapper:
        wrapper = self._host().classifier
        assert isinstance(wrapper, ModulesToSaveWrapper)
        return wrapper


class VerbalizerLane(Lane):
    """Label words: one pass gives the vocabulary's logits of the word, each verbalizer reads its rows."""

    def _logits(
        self, batch: dict[str, Tensor], names: list[str], served: list[Member], owners: list[int]
    ) -> list[Tensor]:
        assert self.model is not None
        host = self.model.base_model.model
        assert isinstance(host, VerbalizedClassifier)
        with self.rows_of(names):
            words = host.word_logits(batch).float()
        read = [one.verbalizer for one in served]
        return [own.class_logits(words[i : i + 1])[0] for i, own in enumerate(read) if own is not None]


class StockLane(Lane):
    """Heads of transformers' own, of one size: each row goes through its adapter's copy."""

    def _logits(
        self, batch: dict[str, Tensor], names: list[str], served: list[Member], owners: list[int]
    ) -> list[Tensor]:
        assert self.model is not None
        logits = self.model(**batch, **self.names(names)).logits
        if logits.dim() == 2:
            return list(logits)
        real = batch["attention_mask"] != 0
        return [row[mask] for row, mask in zip(logits, real, strict=True)]


class WritingLane(Lane):
    """Completions."""

    writes = True

    def cohort(self, jobs: Sequence[Job]) -> Cohort:
        """Completions of these jobs, to be written a token at a time."""
        return Cohort(self.model, jobs, self.names)

    def _logits(
        self, batch: dict[str, Tensor], names: list[str], served: list[Member], owners: list[int]
    ) -> list[Tensor]:
        raise SoftPromptError("a completion is written, not read off a pass.")


LANES: dict[str, type[Lane]] = {
    "pooled": PooledLane,
    "verbalizer": VerbalizerLane,
    "stock": StockLane,
    "lm": WritingLane,
}


def lane_key(card: TaskCard) -> tuple[str, ...]:
    """What prompts must have in common to share a model."""
    of_stock = (card.kind, str(len(card.label_names))) if card.head == "stock" else ()
    return (card.head, card.dtype, *of_stock)


@torch.no_grad()
def share_weights(model: nn.Module, others: Sequence[nn.Module]) -> None:
    """Let the stack of ``model`` use the tensors that the stack of another model on the same backbone holds already."""
    stack = prompts_of(model).backbone.stack
    own = {name: (module, part) for module, part, name in _tensors(stack)}
    shared = 0
    for other in others:
        for module, part, name in _tensors(prompts_of(other).backbone.stack):
            there = getattr(module, part)
            if name not in own:
                continue
            here = getattr(*own[name])
            if here is not there and here.shape == there.shape and here.dtype == there.dtype and here.equal(there):
                setattr(*own[name], there)
                shared += 1
    if shared:
        announce(f"{shared} tensors of the backbone are shared", "one copy serves heads of several kinds")


def _tensors(stack: nn.Module) -> list[tuple[nn.Module, str, str]]:
    return [
        (module, part, f"{name}.{part}")
        for name, module in stack.named_modules()
        for part, value in module.named_parameters(recurse=False)
        if not value.requires_grad
    ]
