"""`hyperparameter_search` of transformers' Trainer, by Optuna, on soft prompts: a model anew for each trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from datasets import Dataset
from peft import PeftModel, get_peft_model

import softprompt
from softprompt.tuner import find_state

optuna = pytest.importorskip("optuna", reason="the extra 'optuna'")
RATES = [1e-3, 3e-2, 0.3]


def searching(
    kind: type[tf.Trainer], encoder: Path, output: Path, callbacks: list[Any]
) -> tuple[tf.Trainer, Any, list[PeftModel]]:
    """A search over three learning rates and sizes of prompt, and the models that were made."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made: list[PeftModel] = []

    def model_init(trial: Any = None) -> PeftModel:
        size = 2 if trial is None else trial.suggest_int("num_virtual_tokens", 2, 4)
        backbone = tf.AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
        entry = softprompt.objective("head_information", weight=0.1)
        config = softprompt.deep_prompts(task_type="SEQ_CLS", num_virtual_tokens=size, objectives=[entry])
        made.append(get_peft_model(backbone, config))
        return made[-1]

    rows = Dataset.from_list(
        [{"input_ids": [2, 5 + i % 9, 14 + i % 2, 3], "attention_mask": [1] * 4, "labels": i % 2} for i in range(16)]
    )
    arguments = tf.TrainingArguments(
        output_dir=str(output),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = kind(model_init=model_init, args=arguments, train_dataset=rows, eval_dataset=rows, callbacks=callbacks)
    best = trainer.hyperparameter_search(
        backend="optuna",
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", RATES)},
        n_trials=3,
        direction="minimize",
        sampler=optuna.samplers.RandomSampler(seed=1),
    )
    return trainer, best, made


@pytest.mark.parametrize(
    ("kind", "callbacks"),
    [(tf.Trainer, [softprompt.ObjectivesCallback()]), (softprompt.PromptTrainer, [])],
    ids=["Trainer", "PromptTrainer"],
)
def test_optuna_searches_a_soft_prompt(
    kind: type[tf.Trainer],
    callbacks: list[Any],
    encoder: Path,
    tmp_path: Path,
    announced: Callable[[], list[str]],
) -> None:
    trainer, best, made = searching(kind, encoder, tmp_path, callbacks)
    assert len(made) == 4 and best.hyperparameters["learning_rate"] in RATES  # the first is made with the trainer
    sizes = [model.peft_config["default"].num_virtual_tokens for model in made[1:]]
    assert best.hyperparameters["num_virtual_tokens"] == sizes[int(best.run_id)] and len(set(sizes)) > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-0", "run-1", "run-2"]
    assert Path(trainer.state.best_model_checkpoint).parent == tmp_path / "run-2"
    assert not [line for line in announced() if "the last step is kept" in line]  # each found its own best checkpoint

    for name, value in best.hyperparameters.items():
        if hasattr(trainer.args, name):
            setattr(trainer.args, name, value)
    trainer.train()  # afterwards it is a trainer like any other
    assert trainer.model is made[-1] and trainer.evaluate()["eval_loss"] > 0


@pytest.mark.slow
def test_a_prompt_trainer_forgets_the_model_of_the_trial_before(encoder: Path, tmp_path: Path) -> None:
    """What it puts back after a loss that is none, and the prompt whose logits it spares, are those of the model at hand."""
    trainer, _, made = searching(softprompt.PromptTrainer, encoder, tmp_path, [])
    assert isinstance(trainer, softprompt.PromptTrainer)
    assert trainer._prompts is find_state(made[-1])
    own = {name: value.shape for name, value in made[-1].named_parameters() if value.requires_grad}
    assert {name: value.shape for name, value in trainer._good.items()} == own
    assert sum(isinstance(each, softprompt.ObjectivesCallback) for each in trainer.callback_handler.callbacks) == 1
