"""The sum of a run of several tasks, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from softprompt.training import RunOptions
from softprompt.training.output.overview import overview, sum_up


def document(seconds: float, **info: Any) -> dict[str, Any]:
    own = {"num_trainable_params": 3, "probe": {"dev": 0.5}, "beats_probe": True, "best_checkpoint_step": 4}
    of_all = {"train_time": 2.0, "train_steps": 8, "learning_rate": 0.1, "status": "success", "metrics": [{"loss": 9}]}
    return {
        "run_info": {"total_time": seconds, "experiment_name": "of one", "train_config": {}, "error_msg": ""},
        "train_info": {**info, **of_all, **own},
        "meta_info": {"model_info": {"backbone": "b"}, "dataset_info": {"task": "t"}},
    }


DOCUMENTS = {
    "animal": document(5.0, **{"dev f1": 0.5, "dev loss": 1.0, "test loss": 2.0}),
    "sky": document(7.0, **{"dev loss": 3.0, "test loss": 5.0}),
}


@pytest.mark.parametrize(("shots", "said"), [(None, "all"), (16, "16")])
def test_scores_are_means_parameters_sums_and_the_rest_is_of_the_run(shots: int | None, said: str) -> None:
    options = RunOptions(method="ept", data="rows", seed=3, shots=shots)
    found = sum_up(options, DOCUMENTS, [{"eval_loss": 1.5}, {"train_runtime": 3}], total_time=8.0)
    assert found["run_info"] == {
        "total_time": 8.0,
        "experiment_name": f"ept/2 tasks-{said}-3",
        "train_config": options.to_flat(),
        "error_msg": "",
    }
    info = found["train_info"]
    kept = {"num_trainable_params": 3, "probe": {"dev": 0.5}, "beats_probe": True, "best_checkpoint_step": 4}
    assert info.pop("tasks") == {
        "animal": {"dev f1": 0.5, "dev loss": 1.0, "test loss": 2.0, **kept},
        "sky": {"dev loss": 3.0, "test loss": 5.0, **kept},
    }
    assert info == {
        "dev loss": 2.0,
        "test loss": 3.5,
        **{"train_time": 2.0, "train_steps": 8, "learning_rate": 0.1, "status": "success"},
        "num_trainable_params": 6,
        "probe": {"dev": 0.5},
        "metrics": [{"eval_loss": 1.5}],
    }
    each = {"animal": {"task": "t"}, "sky": {"task": "t"}}
    assert found["meta_info"] == {
        "model_info": {"backbone": "b"},
        "dataset_info": {"source": "rows", "tasks": each},
    }


def test_the_table_has_the_scores_of_all_tasks() -> None:
    lines = overview(RunOptions(method="ept"), DOCUMENTS).splitlines()
    assert lines[0] == "# ept on 2 tasks"
    assert [line for line in lines if line.startswith("|")] == [
        "| task | dev loss | test loss |",
        "|---|---|---|",
        "| [animal](animal) | 1.0000 | 2.0000 |",
        "| [sky](sky) | 3.0000 | 5.0000 |",
    ]
