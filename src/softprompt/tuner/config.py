"""The one config of the one PEFT type: how a prompt is made, where it enters, where it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from peft import PeftConfig
from peft.utils import CONFIG_NAME
from peft.utils.constants import DUMMY_TARGET_MODULES

from .._documents import read_object
from .._types import SoftPromptError, check_choice
from ..objectives import SHARE_EVERY, check_objectives
from ..prompts import FORMS, Prompt
from ..prompts.decomposed import ACTIVATIONS, FUSION_MEMORIES, FUSION_SCORES, GATES
from ..prompts.generated import GENERATOR_POOLINGS
from ..typed import check_fields, conform
from .register import SOFTPROMPT

PLACEMENTS = ("input", "deep", "gated")
REPRESENTATIONS = ("auto", "mean", "cls", "last", "mask")
SCORES = ("ablation", "gates", "gradient")
GATE_OPTIMIZERS = ("shared", "adam")
INITS = ("vocab", "normal", "text", "labels", "file", "adapter")
# what ``init`` reads
STARTS = {"text": "init_text", "labels": "init_text", "file": "init_path", "adapter": "init_path"}
CHOICES = {
    "prompt": tuple(FORMS),
    "placement": PLACEMENTS,
    "init": INITS,
    "representation": REPRESENTATIONS,
    "layer_score": SCORES,
    "gate_optimizer": GATE_OPTIMIZERS,
    "fusion_memory": FUSION_MEMORIES,
    "fusion_scores": FUSION_SCORES,
    "gate": GATES,
    "space_activation": tuple(ACTIVATIONS),
    "generator_activation": tuple(ACTIVATIONS),
    "generator_pooling": GENERATOR_POOLINGS,
}
# what a number must be at least; alpha, tau and the like have bounds of their own
LEAST = {
    "num_virtual_tokens": 1,
    "max_positions": 0,
    "rank": 0,
    "num_spaces": 0,
    "space_bottleneck": 1,
    "bottleneck": 1,
    "phm_factor": 0,
    "kv_heads": 0,
    "head_dim": 0,
    "marker_token_id": 0,
    "budget": 1,
    "consistency": 0,
    "init_seed": 0,
    "projection_seed": 0,
    "share_every": 0,
    "objectives_first": 0,
}
# fields that act beside some values of another field alone: which it is, and these values
ACT_IN: dict[str, tuple[str, tuple[str, ...]]] = {
    **{
        name: ("prompt", tuple(form for form, other in FORMS.items() if name in other.fields))
        for kind in FORMS.values()
        for name in kind.fields
    },
    **dict.fromkeys(
        ("budget", "layer_score", "gate_optimizer", "decoupled_gates", "consistency"), ("placement", ("gated",))
    ),
    "tau": ("placement", ("deep", "gated")),
}
# and those that one value of another field switches off: which it is, and that value
OFF_AT = {
    "fusion_scores": ("fusion_memory", "none"),
    "fusion_temperature": ("fusion_scores", "dot"),
    **dict.fromkeys(("space_bottleneck", "space_activation", "gate"), ("num_spaces", 0)),
    **dict.fromkeys(("share_every", "objectives_first"), ("objectives", [])),
}


@dataclass
class SoftPromptConfig(PeftConfig):
    """Everything that describes a soft prompt; written whole to ``adapter_config.json``.

    Builders such as `softprompt.ept` fill it with a paper's hyper-parameters. The choices are independent.

    Args:
        num_virtual_tokens: P, length of the prompt (m for a decomposed one).
        prompt: how it is made, "plain" (free matrix), "decomposed" (short prompt plus low-rank input delta), "projected"
            (codes in few dimensions times a frozen random matrix), "generated" (from the states that enter its layers),
            "instance" (from one state of the unprompted pass) or "compiled" (keys and values; see `softprompt.compile`).
        placement: where it enters, "input", "deep" (replaces the prompt positions at the input of layers) or "gated" (deep,
            with a learned gate per layer: for the search of layers).
        layers: the layers of a deep or gated prompt, counted from 0; layer 0 is entered in front of the embeddings.
            None means all. Below the first of them the tokens do not see the prompt, and nothing keeps a gradient.
        marker_token_id: the prompt stands directly in front of the first token with this id, which every input must have, and not in
            front of the input. The token stays: name one that texts do not need, such as a reserved one.
        tau: share of the new rows that an open gate lets in; the rest stays with what the layer below put out.
        decoupled_gates: run the search with open gates and give only their gradient to alpha (False: DARTS' soft gates).
        consistency: weight of the consistency loss between the gated prompt and a random sub-network of it; 0 for none.
        budget, layer_score: K layers to keep after a search, chosen by "ablation" (2 D + 1 evaluations of the search's
            validation rows), by "gates", or by "gradient" (-dL/dalpha, summed over the search).
        gate_optimizer: how gates step in a search, "shared" (one scale for all, in competition) or "adam" (each on its own).
        max_positions: S_max, input positions that get a delta; 0 for none (plain prompts only).
        rank, alpha: R and the numerator of the delta's scale alpha / sqrt(R); of a projected prompt rank is r.
        projection_seed: of a projected prompt, the seed of its frozen matrix.
        fusion_memory: "none", "product" or "factor"; what the short prompt attends to.
        fusion_scores, fusion_temperature: how it attends, "cosine" (over a temperature, to s A B) or "dot" (to A B; the only form of
            adapters that were saved without this field).
        num_spaces, space_bottleneck, space_activation, gate: K, b, phi of the projection, and its gate, "prompt", "token" or
            "none".
        objectives: what is minimised beside the task's loss: a list of `softprompt.objective` entries.
        share_every: steps between two measurements of how much of the gradient on the virtual tokens each objective has, beside
            the task's loss; each costs a backward pass for the loss and for each objective. 0 measures nothing.
        objectives_first: share of the training, at its start, in which the objectives alone are minimised: they then choose where
            the task's loss begins.
        representation: the state of an input (of an encoder-decoder: of its encoder) that objectives and instance prompts read: "mean", "cls", "last" or "mask";
            "auto" is the one that the head reads.
        label_only_logits: where only the loss is wanted (`SoftPromptModel.loss_only`, `softprompt.PromptTrainer`), project the
            vocabulary at the labelled positions alone; the loss and all gradients stay the same.
        bottleneck, generator_pooling, generator_activation, shared_generator, phm_factor: of a generated prompt: b, "average",
            "max" or "attention", phi, one generator for all layers, and the n of Kronecker-factored weights (0: free).
        init: where training starts: "vocab" (random vocabulary rows), "normal" (their standard deviation), "text",
            "labels" (one row per class label), "file" (.npy, .safetensors) or "adapter" (another trained prompt, without an input delta).
        init_text: the text, or the list of labels.
        init_path: the file, or the adapter's folder. A run takes several adapters, too, as a list or as a folder of their folders, and
            starts from the one under which the loss of its training rows is lowest.
        init_seed: seed of everything that is drawn; None draws from torch's global generator.
        tokenizer_name_or_path: for "text" and "labels"; None means the backbone's own.
        learning_rates: learning rate by parameter group ("prompt", "low_rank", "spaces", "space_gate", "frame", "generator",
            "gates", "critics"), read by `softprompt.parameter_groups`; a group without one takes the trainer's, low-rank, spaces
            and generator a tenth of it.
        modules_to_save: modules trained and saved beside the prompt; PEFT adds the classifier for SEQ_CLS by itself.
        shared_prefix: in a causal model, and in an encoder where it enters every layer, run the prompt once for all rows of a
            batch where this changes nothing but the time (virtual tokens then see one dropout mask per batch, not one per row);
            False never does.
        kv_heads, head_dim, compiled_for: of a compiled prompt: heads of keys and values, their width, and the fingerprint of the weights
            that made them (None: unknown, not checked).
        initialized: True in a saved config: the values are in the weights file, nothing is drawn.
        hidden_size, num_layers, backbone_type: H, L and ``model_type`` of the backbone, filled in when the prompt is attached.
        embedding_sample: a few numbers of the backbone's input embedding, filled in then, too: on other weights of the same shapes a
            saved prompt is loaded with a warning.

    Raises:
        SoftPromptError: a value outside its choices, or values that contradict each other.
    """

    num_virtual_tokens: int = 20
    prompt: str = "plain"
    placement: str = "input"
    max_positions: int = 0
    rank: int = 0
    alpha: float = 8.0
    projection_seed: int = 0
    fusion_memory: str = "none"
    fusion_scores: str = "dot"
    fusion_temperature: float = 0.1
    num_spaces: int = 0
    space_bottleneck: int = 16
    space_activation: str = "gelu"
    gate: str = "prompt"
    layers: list[int] | None = None
    marker_token_id: int | None = None
    tau: float = 1.0
    decoupled_gates: bool = True
    consistency: float = 1.0
    budget: int = 4
    layer_score: str = "ablation"
    gate_optimizer: str = "shared"
    bottleneck: int = 256
    generator_pooling: str = "average"
    generator_activation: str = "gelu"
    shared_generator: bool = False
    phm_factor: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    compiled_for: str | None = None
    objectives: list[dict[str, Any]] = field(default_factory=list)
    share_every: int = SHARE_EVERY
    objectives_first: float = 0.0
    representation: str = "auto"
    label_only_logits: bool = True
    init: str = "vocab"
    init_text: str | list[str] | None = None
    init_path: str | list[str] | None = None
    init_seed: int | None = None
    tokenizer_name_or_path: str | None = None
    learning_rates: dict[str, float] = field(default_factory=dict)
    modules_to_save: list[str] | None = None
    shared_prefix: bool = True
    initialized: bool = False
    hidden_size: int | None = None
    num_layers: int | None = None
    backbone_type: str | None = None
    embedding_sample: list[float] | None = None
    target_modules: str = DUMMY_TARGET_MODULES  # PEFT's word for "no module is replaced"
    folder: ClassVar[Path | None] = None  # where a saved config was read

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = SOFTPROMPT
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        self._check_types()
        self.objectives = check_objectives(self.objectives, trained=not self.inference_mode)
        if not 0 < self.tau <= 1:
            raise SoftPromptError(f"tau: expected a number above 0 and up to 1, got {self.tau!r}.")
        if not self.objectives_first < 1 or (self.objectives_first and not self.objectives):
            raise SoftPromptError(
                f"objectives_first: expected a share of the training of at least 0 and below 1, and objectives to follow in it, got {self.objectives_first!r} and {len(self.objectives)} objectives."
            )
        if self.layers is not None:
            self._check_layers(self.layers)
        # where layers do not see the prompt yet, tokens on both sides of it would be P positions too far apart
        late = self.placement == "gated" or (self.layers or [0])[0] > 0
        if self.marker_token_id is not None and (self.prompt == "compiled" or late):
            raise SoftPromptError(
                "marker_token_id: a prompt inside the text stands among its tokens from layer 0 on; leave marker_token_id (in a run: marker) out for a compiled prompt, a search of layers (placement='gated'), or layers above 0 alone (layers=[0, ...] is possible)."
            )
        FORMS[self.prompt].check(**self._options())
        if not self.initialized:
            self._check_start()
        if self.init == "text" and isinstance(self.init_text, list):
            raise SoftPromptError(
                "init='text' needs one string in init_text, got a list; init='labels' takes one string per class."
            )

    def _check_start(self) -> None:
        """The field that ``init`` reads is there, and no other one is."""
        needed = STARTS.get(self.init)
        if needed and not getattr(self, needed):
            raise SoftPromptError(f"init={self.init!r} needs the field {needed}.")
        for name in sorted({*STARTS.values()} - {needed}):
            if getattr(self, name):
                readers = " or ".join(f"init={init!r}" for init, field in STARTS.items() if field == name)
                raise SoftPromptError(
                    f"{name}={getattr(self, name)!r:.80} is not read with init={self.init!r}; give {readers} as well, or leave {name} out."
                )

    def _check_types(self) -> None:
        """Each field of this class as its type and bounds have it; PEFT's own fields are PEFT's."""
        hints = get_type_hints(SoftPromptConfig)
        for name in SoftPromptConfig.__annotations__.keys() - {
            "layers",
            "objectives",
            "modules_to_save",
            "target_modules",
        }:
            above = 0 if name == "alpha" else None
            setattr(self, name, conform(name, getattr(self, name), hints[name], LEAST.get(name), above))
        for group, rate in self.learning_rates.items():
            conform(f"learning_rates of {group!r}", rate, float, least=0)

    def idle_by(self, field_name: str) -> str | None:
        """The field whose value keeps another one from changing anything; None where it acts."""
        about, forms = ACT_IN.get(field_name, ("prompt", tuple(FORMS)))
        if getattr(self, about) not in forms:
            return about
        switch, off = OFF_AT.get(field_name, ("", None))
        if not switch:
            return None
        return switch if getattr(self, switch) == off else self.idle_by(switch)

    def idle(self, given: Mapping[str, Any]) -> dict[str, str]:
        """Of values that somebody gave those that change nothing here, each with the field that keeps it from it; defaults are no
        choice of anybody."""
        reasons = {key: self.idle_by(key) for key, value in given.items() if value != getattr(type(self), key, value)}
        return {key: reason for key, reason in reasons.items() if reason}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> SoftPromptConfig:
        """Read a saved config, as PEFT does, but refuse a field of another type by its name."""
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        local = (folder / CONFIG_NAME).is_file()
        if local:
            path = folder / CONFIG_NAME
            check_fields(path, read_object(path, "PEFT config"), get_type_hints(cls))
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        config.folder = folder if local else None
        return config

    def _check_layers(self, layers: Any) -> None:
        if isinstance(layers, (list, tuple)) and not layers:
            raise SoftPromptError(
                "layers=[] enters no layer, so nothing would be prompted: expected layer numbers such as [0, 3, 7], or none for all layers."
            )
        whole = isinstance(layers, (list, tuple)) and all(
            isinstance(i, int) and not isinstance(i, bool) for i in layers
        )
        if not whole or sorted(set(layers)) != list(layers) or layers[0] < 0:
            raise SoftPromptError(f"layers: expected ascending layer numbers such as [0, 3, 7], got {layers!r}.")
        if self.placement == "input":
            raise SoftPromptError("layers needs placement='deep' or 'gated'; placement='input' enters at layer 0 only.")
        self.layers = list(layers)

    def to_dict(self) -> dict[str, Any]:
        # `initialized` belongs to the file, not to the live config: whoever loads the file finds the values beside it
        return {**super().to_dict(), "initialized": True}

    @property
    def sites(self) -> tuple[int, ...]:
        """The layers at which the prompt enters; their number is D."""
        if self.placement == "input":
            return (0,)
        return tuple(range(self.num_layers or 0)) if self.layers is None else tuple(self.layers)

    def build(self) -> Prompt:
        """Make the prompt's module with its shapes, not yet started from anything. Needs hidden_size and num_layers."""
        if self.hidden_size is None or self.num_layers is None:
            raise SoftPromptError(
                "the config does not know its backbone yet (hidden_size, num_layers); attach it with get_peft_model."
            )
        shape = (len(self.sites), self.num_virtual_tokens, self.hidden_size)
        form: Any = FORMS[self.prompt]
        try:
            prompt: Prompt = form(*shape, **self._options())
        except (OverflowError, RuntimeError, TypeError) as error:  # sizes that no tensor can have
            raise SoftPromptError(f"no prompt can be made of this config's sizes ({error}).") from error
        prompt.layers, prompt.tau, prompt.marker = self.sites, self.tau, self.marker_token_id
        if self.placement == "gated":
            prompt.add_gates(self.decoupled_gates)
        return prompt

    def _options(self) -> dict[str, Any]:
        """What the constructor of this form of prompt takes beside its shape."""
        return {keyword: getattr(self, name) for name, keyword in FORMS[self.prompt].fields.items()}
