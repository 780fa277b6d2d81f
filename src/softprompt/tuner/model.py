"""The tuner: what PEFT calls to attach, freeze, switch and detach prompts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn

from .._types import SoftPromptError
from ..objectives import build_objectives
from .adapter import Settings
from .backbone import Backbone, find_backbone
from .bare import choose_representation
from .config import SoftPromptConfig
from .groups import check_rates
from .heads import by_row
from .placing.mixture import checked
from .register import NAME
from .saved.fingerprint import check_compiled, check_weights
from .saved.strict import check_file, check_loading, whole_or_nothing
from .start import check_start, start_prompt
from .state import PromptState


class SoftPromptModel(BaseTuner):
    """Places soft prompts in a frozen model; made by `peft.get_peft_model` from a `SoftPromptConfig`."""

    prefix = f"{NAME}_"
    tuner_layer_cls = PromptState
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("prompts replace no module")

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Attach an adapter; one config object for two adapters, as TRL gives for its reference, means two prompts."""
        config = self.peft_config[adapter_name]
        if any(other is config for name, other in self.peft_config.items() if name != adapter_name):
            own = copy.deepcopy(config)
            own.initialized = False  # where the other was loaded, this one still gets its first values
            self.peft_config[adapter_name] = own
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _prepare_model(self, peft_config: SoftPromptConfig, model: nn.Module) -> None:
        state = getattr(model, NAME, None)
        backbone = find_backbone(model) if state is None else state.backbone
        _match(peft_config, backbone)
        check_compiled(peft_config, backbone)
        check_weights(peft_config, backbone)
        _declare_head(peft_config, model)
        prompt = peft_config.build()
        check_file(peft_config, model, prompt)
        # low_cpu_mem_usage builds on meta; a prompt is small enough to be real
        if any(parameter.is_meta for parameter in prompt.parameters()):
            prompt.to_empty(device="cpu")
        if not peft_config.initialized:
            with nullcontext() if state is None else state.silenced():
                start_prompt(prompt, peft_config, backbone)
        else:
            prompt.await_values()
        if state is None:
            model.requires_grad_(False)  # first: PEFT restores what it finds trainable beside an attached state
            state = PromptState(backbone, model).train(model.training)
            state.register_load_state_dict_pre_hook(whole_or_nothing)
            setattr(model, NAME, state)
        name = next(name for name, config in self.peft_config.items() if config is peft_config)
        how = choose_representation(peft_config.representation, peft_config.task_type, model, backbone)
        state.settings[name] = Settings(
            representation=how,
            consistency=peft_config.consistency,
            shared_prefix=peft_config.shared_prefix,
            label_only_logits=peft_config.label_only_logits,
            learning_rates=peft_config.learning_rates,
        )
        if peft_config.objectives and not peft_config.inference_mode:
            device = backbone.embed.weight.device
            state.objectives[name] = build_objectives(
                peft_config.objectives,
                backbone.hidden_size,
                peft_config.init_seed,
                share_every=peft_config.share_every,
                first=peft_config.objectives_first,
            ).to(device)
        state.softprompt_prompts[name] = prompt.to(device=backbone.embed.weight.device, dtype=torch.float32)

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        super()._mark_only_adapters_as_trainable(model)
        self._train_critics(model)  # frozen as everything outside PEFT's prefix

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        super().set_adapter(*args, **kwargs)
        self._train_critics(self.model)

    @staticmethod
    def _train_critics(model: nn.Module) -> None:
        """The critics of the active adapter train, as its prompt does."""
        state = getattr(model, NAME)
        for name, objectives in state.objectives.items():
            active = name in state.active_adapters
            objectives.requires_grad_(
                active and any(p.requires_grad for p in state.softprompt_prompts[name].parameters())
            )

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        if adapter_name in self.state.objectives:
            del self.state.objectives[adapter_name]
        self.state.settings.pop(adapter_name, None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model; of a call that raised nothing is left."""
        try:
            return self.model(*args, **kwargs)
        except BaseException:  # Ctrl-C calls no hook, and must leave nothing in the layers either
            self.state.end()
            raise

    @classmethod
    def _get_adapter_state_dict(cls, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """What PEFT saves: the prompt, not the critics of its objectives, which are of no use without training."""
        tensors = super()._get_adapter_state_dict(*args, **kwargs)
        return {key: value for key, value in tensors.items() if f"{NAME}.objectives." not in key}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: SoftPromptConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Where PEFT puts what it loads; refused unless it is this adapter, whole. (transformers' own ``load_adapter`` does not
        ask: there a prompt without values refuses its first pass.)"""
        check_loading(model, config, adapter_name, state_dict)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)

    @property
    def state(self) -> PromptState:
        """The module that holds prompts, hooks and objectives."""
        state = getattr(self.model, NAME)
        assert isinstance(state, PromptState)
        return state

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The backbone's ``generate``; a prompt that reads the input reads only what is given here."""
        try:
            return self.model.generate(*args, **kwargs)
        except BaseException:
            self.state.end()
            raise

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT hands over what it takes out of a call of `forward` and `generate`: ``adapter_names``, the adapter of each input."""
        if (names := kwargs.get("adapter_names")) is None:
            yield
            return
        names = checked(names)
        with self.state.by_row(names), by_row(self.model, self.state.backbone.stack, names):
            yield

    def loss_only(self) -> AbstractContextManager[None]:
        """Inside, of a pass of a language model with labels only the loss is wanted.

        The vocabulary is then projected only where the loss reads it, which is exact and saves most of a training step where few
        positions carry a label; ``outputs.logits`` is None. `softprompt.PromptTrainer` uses it by itself. Where something
        needs all logits they are made, and the reason is announced::

            with model.base_model.loss_only():
                loss = model(**batch).loss
        """
        return self.state.loss_only()

    def unload(self) -> nn.Module:
        """Take prompts and hooks off and return the backbone as it was."""
        state = getattr(self.model, NAME, None)
        if state is not None:
            state.detach_hooks()
            delattr(self.model, NAME)
        return super().unload()

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise SoftPromptError(
            "a prompt cannot be merged into weights; use softprompt.collapse(model) for its cheapest form, or unload() to drop it."
        )

    def merge_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        self.merge_and_unload()


def _declare_head(config: SoftPromptConfig, model: nn.Module) -> None:
    """PEFT trains and saves a head called classifier or score. A head of another name (T5, BART: classification_head) would
    stay at its random start without a word, so it is declared here."""
    children = dict(model.named_children())
    if config.task_type not in ("SEQ_CLS", "TOKEN_CLS") or {"classifier", "score"} & children.keys():
        return
    heads = {n for n in children if n.endswith("head") and any(True for _ in children[n].parameters())}
    config.modules_to_save = sorted({*(config.modules_to_save or []), *heads})


def check_fits(config: SoftPromptConfig, backbone: Backbone) -> None:
    """Raise `SoftPromptError` where a prompt cannot stand in this backbone, or a saved one was made for another."""
    if config.target_modules != DUMMY_TARGET_MODULES:
        raise SoftPromptError(
            f"target_modules={config.target_modules!r}: a prompt replaces no module; leave target_modules out, and name layers with layers=[...]."
        )
    reads_states = bool(config.objectives) or config.prompt == "instance"
    if (config.placement != "input" or reads_states) and backbone.width != backbone.hidden_size:
        what, instead = (
            ("objectives and instance prompts", "without them")
            if reads_states
            else ("deep prompts", "with placement='input'")
        )
        raise SoftPromptError(
            f"{what} need embeddings as wide as the layers, but {backbone.model_type} embeds {backbone.hidden_size} and its layers are {backbone.width} wide; train {instead}."
        )
    if config.placement != "input" and getattr(backbone.stack.config, "altup_num_inputs", 1) > 1:
        raise SoftPromptError(
            f"deep prompts need layers with one state per position, but {backbone.model_type} keeps {backbone.stack.config.altup_num_inputs}; train with placement='input' (prompt_tuning, dept, ept)."
        )
    known = backbone.embed.num_embeddings
    if config.marker_token_id is not None and config.marker_token_id >= known:
        raise SoftPromptError(
            f"marker_token_id={config.marker_token_id}: {backbone.model_type} has embeddings for {known} tokens; name one of them that texts do not need, or resize the embeddings first."
        )
    facts = _facts(backbone)
    wrong = {key: getattr(config, key) for key, value in facts.items() if getattr(config, key) not in (None, value)}
    if wrong:
        expected = ", ".join(f"{key}={value}" for key, value in wrong.items())
        got = ", ".join(f"{key}={facts[key]}" for key in wrong)
        origin = f" It was trained on {config.base_model_name_or_path!r}." if config.base_model_name_or_path else ""
        raise SoftPromptError(
            f"this adapter was made for another backbone: expected {expected}, got {got}.{origin} Load it on the backbone it was trained on."
        )
    limit = backbone.max_positions
    if limit is not None and config.num_virtual_tokens >= limit:
        raise SoftPromptError(
            f"num_virtual_tokens={config.num_virtual_tokens} leaves no room for text: {backbone.model_type} has {limit} positions; use a shorter prompt."
        )
    if config.layers and config.layers[-1] >= backbone.num_layers:
        raise SoftPromptError(
            f"layers={config.layers}: {backbone.model_type} has layers 0 to {backbone.num_layers - 1}; name layers that exist."
        )


def check_builds(config: SoftPromptConfig, backbone: Backbone) -> None:
    """Raise `SoftPromptError` for what attaching a config that fits would refuse without a look at any weight."""
    made = copy.copy(config)
    for key, value in _facts(backbone).items():
        setattr(made, key, value)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # training draws what it drew without this
        prompt = made.build()
        build_objectives(
            made.objectives, backbone.hidden_size, share_every=made.share_every, first=made.objectives_first
        )
    check_rates(made.learning_rates, prompt.parameter_groups())
    if not made.initialized:
        check_start(prompt, made, backbone)


def _match(config: SoftPromptConfig, backbone: Backbone) -> None:
    """Write the backbone's facts into a config that fits it."""
    check_fits(config, backbone)
    for key, value in _facts(backbone).items():
        setattr(config, key, value)


def _facts(backbone: Backbone) -> dict[str, Any]:
    return {
        "backbone_type": backbone.model_type,
        "hidden_size": backbone.hidden_size,
        "num_layers": backbone.num_layers,
    }


register_peft_method(name=NAME, config_cls=SoftPromptConfig, model_cls=SoftPromptModel)
