"""A thin layer on `transformers.Trainer`: one learning rate per group, and a stop before damage is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, PeftType
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput, SaveStrategy

from ..._types import IGNORED, NonFiniteError, SoftPromptError, announce
from ...data import BELOW, SECOND, UNPROMPTED
from ...models.finite import ADVICE, is_finite
from ...tuner import find_state, parameter_groups, whole_adapter
from ..output.checkpoints import fault_of
from .critics import ObjectivesCallback, active_objectives, load_critics, save_critics
from .lengths import EpochLengthSampler

SHARE = "share of "  # of the gradient on the virtual tokens, in the log before a term's name
PROMPT_ENCODER = "prompt_encoder.safetensors"


class PromptTrainer(Trainer):
    """`transformers.Trainer` for prompts: everything else about it (arguments, callbacks, resume, report_to) is stock.

    - The optimizer gets the groups that the prompt declares, each with its own learning rate
      (``config.learning_rates``), and the head with ``head_learning_rate``.
    - Objectives know the progress of training, their terms stand in the log under their names (means since the last entry),
      their critics in the checkpoints, and the data-set columns ``unprompted`` and ``below`` reach the prompt.
    - Rows grouped by length come in an order of seed and epoch alone, so a run that is resumed inside an epoch goes on in it.
    - Where nobody reads logits (training steps, evaluation without a metric), a language model makes them only where labels
      are: the same loss and gradients for less (``config.label_only_logits``).
    - The network behind PEFT's p-tuning stands in the checkpoints: PEFT saves what it makes, and would feed that to it again.
    - A loss or a score that is not finite, in training or in an evaluation, stops it with `NonFiniteError`; the model then
      holds the trainable values of the last step whose loss was finite or, where those do not evaluate to finite numbers,
      of the last evaluation that did. Without an adapter it does not: they would be all weights, copied at each step.
    - An evaluation takes every row of its data set, whatever ``dataloader_drop_last`` and persistent workers do in training.
    - Of checkpoints with the same best score the one with the lower loss is kept, and of equal losses the later one; `Trainer`
      keeps the first. Early stopping counts better scores alone: a tie is none, whatever its loss.
    - The best checkpoint is loaded from ``output_dir``, wherever that was when it was written; where it is gone, or cut
      short, the last step is kept, and said so.

    Args:
        head_learning_rate: learning rate of trainable parameters outside the prompts; None means ``args.learning_rate``.
        last_on: data sets by name, on which what the last step leaves is scored before another checkpoint is loaded.
        *args, **kwargs: as for `Trainer`.

    Attributes:
        last_scores: the scores on ``last_on``, by its names; None where the model holds what the last step left.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        *args: Any,
        head_learning_rate: float | None = None,
        last_on: Mapping[str, Dataset] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.head_learning_rate = head_learning_rate
        self.last_scores: dict[str, dict[str, float]] | None = None
        self._last_on = dict(last_on or {})
        self._restores = False
        self._reads_logits = bool(self.label_smoother is not None or self.compute_loss_func is not None)
        self._know(self.model)

    def _know(self, model: nn.Module) -> None:
        """Learn what there is to know of a model that is to be trained, and forget what was known of another."""
        self._good: dict[str, Tensor] = {}  # trainable values of the last step whose loss was finite
        self._evaluated: dict[str, Tensor] = {}  # and of the last evaluation that was
        self._previous: dict[str, Tensor] = {}  # and of the one before it
        self._evaluated_step: int | None = None
        self._prompts = find_state(model)
        self._keeps = isinstance(model, PeftModel)  # a copy of an adapter costs little, of a whole model much
        self._held = ", and the model holds the values of the last finite step" if self._keeps else ""
        if self._prompts is not None and self._reads_logits:
            what = "compute_loss_func" if self.compute_loss_func is not None else "label_smoothing_factor"
            announce("label_only_logits off", f"{what} makes its loss from logits, so they are made at all positions")
        self._sums: dict[str, tuple[Tensor, int]] = {}  # of each term since the last log entry, and how often it acted
        if active_objectives(model) is not None:
            self.remove_callback(ObjectivesCallback)
            self.add_callback(ObjectivesCallback(critics=False))
            check_loss(bool(self.args.label_smoothing_factor or self.compute_loss_func is not None))

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A model anew, as each trial of `hyperparameter_search` trains one; nothing is kept of the one before."""
        model = super().call_model_init(trial)
        if hasattr(self, "_last_on"):  # the first one is made before there is anything to keep it in
            self._know(model)
        return model

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter; under FSDP whole, whatever its ``state_dict_type``, and without gathering the backbone."""
        if not self.is_fsdp_enabled or not isinstance(self.model, PeftModel):
            super().save_model(output_dir, _internal_call)
            return
        tensors = whole_adapter(self.model)
        if self.args.should_save:
            self._save(output_dir, state_dict=tensors)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # a checkpoint's last file comes after this
        save_critics(self.model, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            raise SoftPromptError(
                f"{checkpoint}: its optimizer belongs to other groups of parameters than this model has ({' '.join(str(error).split())}), as a run that an earlier version stopped may; start it anew in another folder."
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        load_critics(self.model, resume_from_checkpoint)
        self._load_prompt_encoder(resume_from_checkpoint)

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        super()._save(output_dir, *args, **kwargs)
        if (encoder := _prompt_encoder(self.model)) is not None:
            state = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
            save_file(state, Path(output_dir or str(self.args.output_dir)) / PROMPT_ENCODER)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        better = super()._determine_best_metric(metrics, trial)
        # without a checkpoint of this step the one that is best so far would be lost to one that is not there
        saves = self.control.should_save or self.args.save_strategy == SaveStrategy.BEST
        if better or not saves or not self.state.best_global_step:
            return better
        score = f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}"
        if metrics[score] != self.state.best_metric:
            return False
        loss = self._loss_beside(score)
        kept = self._logged(score, self.state.best_global_step).get(loss)
        if kept is not None and loss in metrics and metrics[loss] > kept:
            return False
        self.state.best_global_step = self.state.global_step
        return True

    def _loss_beside(self, score: str) -> str:
        """The name of the loss on the data set of a score; of several data sets each has its name in front."""
        names = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
        own = [name for name in names if score.startswith(f"eval_{name}_")]
        return f"eval_{max(own, key=len)}_loss" if own else "eval_loss"

    def _logged(self, score: str, step: int) -> dict[str, float]:
        """The evaluation of a step, as it stands in the log, which a resumed run reads from its checkpoint."""
        return next((entry for entry in self.state.log_history if entry.get("step") == step and score in entry), {})

    def _load_best_model(self) -> None:
        place = self._get_output_dir(getattr(self, "_trial", None))  # a trial of hyperparameter_search has its own
        best = Path(place) / Path(str(self.state.best_model_checkpoint)).name
        if (fault := fault_of(best) if best.is_dir() else "it is gone") is not None:
            announce(f"the last step is kept, not {best.name}", f"that was the best checkpoint, but {fault}")
            self.state.best_model_checkpoint, self.state.best_global_step = None, self.state.global_step
            return
        self.state.best_model_checkpoint, step = str(best), int(best.name.rpartition("-")[2])
        self.state.best_global_step = step  # a later one may have been better, without a checkpoint
        if self._last_on and step != self.state.global_step:
            self.last_scores = {name: self._scores(rows) for name, rows in self._last_on.items()}
        active = getattr(self.model, "active_adapter", None)
        # PEFT writes an adapter of another name than "default" into a folder of that name
        own = (
            best / active if isinstance(active, str) and (best / active / SAFETENSORS_WEIGHTS_NAME).is_file() else best
        )
        self.state.best_model_checkpoint = str(own)
        super()._load_best_model()
        self.state.best_model_checkpoint = str(best)
        self._load_prompt_encoder(str(best))

    def take_up(self, checkpoint: str, history: Sequence[dict[str, Any]] = ()) -> None:
        """Stand where a training ended whose last step is in ``checkpoint``, without a further step.

        Args:
            history: the log of that training; what a step logs after its checkpoint stands nowhere else.
        """
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        known = self.state.log_history
        known += [entry for entry in history if "loss" in entry and entry not in known]
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.state.is_world_process_zero = self.is_world_process_zero()
        self._load_from_checkpoint(checkpoint)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()

    def _scores(self, rows: Dataset) -> dict[str, float]:
        """What `evaluate` gives, without an entry in the log: callbacks take those for evaluations in training."""
        loader = self.get_eval_dataloader(rows)
        output = self.evaluation_loop(loader, "Evaluation", None if self.compute_metrics is not None else True)
        self.callback_handler.on_predict(self.args, self.state, self.control, output.metrics)  # ends its progress bar
        return dict(output.metrics or {})

    def _load_prompt_encoder(self, checkpoint: str) -> None:
        if (encoder := _prompt_encoder(self.model)) is not None:
            encoder.load_state_dict(load_file(Path(checkpoint) / PROMPT_ENCODER))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._signature_columns is not None and UNPROMPTED not in self._signature_columns:
            self._signature_columns += [UNPROMPTED, BELOW]  # taken by the prompt's hooks: no signature names them
            self._signature_columns += [f"{SECOND}{name}" for name in self._signature_columns]  # and by the collator

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self._sums and "loss" in logs:
            logs = {**logs, **{name: (total / count).item() for name, (total, count) in self._sums.items()}}
            self._sums = {}
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        sampler = super()._get_train_sampler(*args, **kwargs)
        if type(sampler) is not LengthGroupedSampler:
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochLengthSampler(sampler, seed, lambda: int(self.state.epoch or 0))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            chosen = model if model is not None else self.model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, chosen)
            groups = parameter_groups(chosen, self.args.learning_rate, self.args.weight_decay, self.head_learning_rate)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _loss_only(self) -> AbstractContextManager[None]:
        return nullcontext() if self._prompts is None or self._reads_logits else self._prompts.loss_only()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        with nullcontext() if return_outputs else self._loss_only():
            loss, output = super().compute_loss(model, inputs, True, **kwargs)
        if model.training:
            self._note(getattr(output, "objectives", None) or {})
            objectives = active_objectives(self.model)
            if objectives is not None and self.accelerator.sync_gradients:  # of a step, which may be several calls
                self._note({f"{SHARE}{name}": share for name, share in objectives.measured.items()})
        return (loss, output) if return_outputs else loss

    def _note(self, terms: dict[str, Tensor]) -> None:
        """Add the terms of a batch to those of the next log entry."""
        for name, term in terms.items():
            total, count = self._sums.get(name, (torch.zeros_like(term), 0))
            self._sums[name] = (total + term, count + 1)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        with self._loss_only() if prediction_loss_only else nullcontext():
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with self.restoring():
            try:
                done = super().train(*args, **kwargs)
                self._check_values()  # the last step has moved them after its loss was looked at
            except NonFiniteError:
                self._put_back(self._good)
                if self._evaluated:
                    names = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else [None]
                    with suppress(NonFiniteError):  # puts back what was evaluated last, if these values do not evaluate
                        for name in names if self.eval_dataset is not None else []:
                            self.evaluation_loop(
                                self.get_eval_dataloader(name), "Evaluation", prediction_loss_only=True
                            )
                raise
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._evaluated, self._evaluated_step = self._values(), None
        elif self.args.load_best_model_at_end and self.state.best_global_step not in (None, self.state.global_step):
            announce("the last step is kept", f"step {self.state.best_global_step} scored best, without a checkpoint")
            self.state.best_global_step = self.state.global_step
        return done

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Inside, an evaluation that fails puts back the last values that evaluated; elsewhere it only says so."""
        before, self._restores = self._restores, True
        try:
            yield
        finally:
            self._restores = before

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._check_values()
        super()._save_checkpoint(*args, **kwargs)

    def _check_values(self) -> None:
        """A finite loss may have a gradient that is none, and then it is the values that tell."""
        if not is_finite([p.detach() for p in self.model.parameters() if p.requires_grad]):
            raise NonFiniteError(
                f"expected finite values of the prompt after step {self.state.global_step}, got NaN or infinity: a gradient was not finite; "
                f"training stopped{self._held}. "
                f"{ADVICE.capitalize()}."
            )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        if not self._evaluated:
            self._evaluated = self._values()
        labels = inputs.get("labels")
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not is_finite(loss) and isinstance(labels, Tensor) and bool((labels == IGNORED).all()):
            loss = torch.zeros_like(loss)  # the mean over no label is NaN, and its gradient 0: nothing was learned here
        # all processes stop together: one alone would leave the others waiting for it
        losses = self.accelerator.gather(loss.detach().float().reshape(1))
        if not is_finite(losses):
            raise NonFiniteError(
                f"expected a finite loss, got {losses[~torch.isfinite(losses)][0].item()} at step {self.state.global_step + 1} (learning rate {self._get_learning_rate():.3g}); "
                f"training stopped{self._held}. "
                f"{ADVICE.capitalize()}."
            )
        self._good = self._values()
        return loss

    def get_eval_dataloader(self, eval_dataset: Dataset | str | None = None) -> DataLoader:
        """Every row of the data set that is asked for: Trainer drops the last batch of evaluations, too, and with persistent
        workers hands out the dev rows whatever it is asked for."""
        given = self.args.dataloader_drop_last, self.args.dataloader_persistent_workers
        self.args.dataloader_drop_last = self.args.dataloader_persistent_workers = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last, self.args.dataloader_persistent_workers = given

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        output = super().evaluation_loop(*args, **kwargs)
        losses = {key: value for key, value in (output.metrics or {}).items() if key.endswith("_loss")}
        step = self.state.global_step
        if not is_finite(losses) or not is_finite(
            output.predictions, masked=True
        ):  # gathered: the same in every process
            if self._restores:  # of several data sets, one may have passed with these very values
                self._put_back(self._previous if self._evaluated_step == step else self._evaluated)
            held = (
                "the model holds the last values that evaluate to finite ones. "
                if self._restores and self._keeps
                else ""
            )
            raise NonFiniteError(
                f"expected finite losses and scores in the evaluation at step {step}, got {'loss ' + str(*losses.values()) if not is_finite(losses) else 'scores with NaN or infinity'}; "
                f"{held}{ADVICE.capitalize()}."
            )
        if self._restores:
            if self._evaluated_step != step:
                self._previous = self._evaluated
            self._evaluated, self._evaluated_step = self._values(), step
        return output

    def _values(self) -> dict[str, Tensor]:
        if not self._keeps:
            return {}
        return {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def _put_back(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            if name in values:  # none before the first step
                parameter.copy_(values[name])


def check_loss(replaced: bool) -> None:
    """Raise `SoftPromptError` where the trainer's own loss has ``replaced`` that of a model with objectives."""
    if replaced:
        raise SoftPromptError(
            "objectives add to the loss that the model computes: expected no label_smoothing_factor and no compute_loss_func, which take the labels from it; drop them, or the objectives."
        )


def _prompt_encoder(model: nn.Module | None) -> nn.Module | None:
    """The network behind the active adapter of PEFT's p-tuning, or None."""
    if not isinstance(model, PeftModel) or model.active_peft_config.peft_type != PeftType.P_TUNING:
        return None
    return model.prompt_encoder[model.active_adapter]
