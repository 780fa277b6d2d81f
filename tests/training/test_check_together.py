"""What a run of several tasks refuses, and what it would do."""

import json

import pytest

import softprompt
from house.runs import options
from softprompt import SoftPromptError
from softprompt.data import read_rows
from softprompt.training import RunOptions, plan
from softprompt.training.check_together import _with_batch

REFUSED = [
    ({"method": "spt"}, "method 'spt' searches layers"),
    ({"method": "contrast"}, "method 'contrast' has objectives"),
    ({"method": "infoprompt"}, "method 'infoprompt' has objectives"),
    ({"method": "peft:lora", "num_virtual_tokens": None, "r": 2}, "method 'peft:lora' is PEFT's"),
    ({"head": "stock"}, "head='stock' has one head"),
    ({"features": "auto"}, "features='auto' chooses"),
    ({"head_fit": "probe"}, "head_fit='probe' fits one head"),
    ({"track": "accuracy"}, "track='accuracy' records one prompt"),
    ({"cache_below": "memory"}, "cache_below='memory' keeps states"),
    ({"score_last": True}, "score_last=True scores one prompt"),
    ({"class_weights": "balanced"}, "class_weights weigh the classes of one task"),
    ({"label_smoothing_factor": 0.1}, "label_smoothing_factor shares"),
    ({"fsdp": "full_shard"}, "FSDP leaves each process"),
]


@pytest.mark.parametrize("more, message", REFUSED, ids=[next(iter(more.items()))[1] for more, _ in REFUSED])
def test_what_acts_on_one_prompt_is_refused_before_anything_is_loaded(more, message, encoder, tmp_path):
    flat = options(encoder, tmp_path / "nothing", tmp_path / "run", task_column="task").to_flat() | more
    chosen = softprompt.RunOptions.from_flat({key: value for key, value in flat.items() if value is not None})
    with pytest.raises(SoftPromptError, match=rf"task_column='task' trains several prompts.*{message}.*by itself"):
        softprompt.train(chosen, progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda row: {**row, "task": "one"}, "names one task, 'one': expected two or more"),
        (lambda row: {**row, "task": "run.json" if row["task"] == "sky" else "a"}, "a file of this name; rename"),
        (
            lambda row: (
                {"task": "w", "prompt": row["text"], "completion": row["label"]} if row["task"] == "sky" else row
            ),
            "tasks of one run are of one kind: 'animal' is a classification task, 'w' a completion task",
        ),
        (lambda row: {**row, "label": [row["label"]]}, "task 'animal' is a multilabel task: expected tasks of kind"),
        (
            lambda row: {**row, "text_pair": "it"} if row["task"] == "sky" else row,
            "read texts in one way, got pairs=joined of animal, apart of sky",
        ),
    ],
    ids=["one", "reserved", "kinds", "multilabel", "pairs"],
)
def test_tasks_that_do_not_go_together(change, message, encoder, mixed, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(change(row)) + "\n" for row in read_rows(mixed).rows))
    more = {"pairs": "apart"} if "pairs" in message else {}
    with pytest.raises(SoftPromptError, match=message):
        softprompt.train(options(encoder, file, tmp_path / "run", task_column="task", **more), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_plan_says_what_each_task_would_do(encoder, mixed, tmp_path):
    planned = plan(options(encoder, mixed, tmp_path / "run", task_column="task"))["tasks"]
    assert list(planned) == ["animal", "sky"] and planned["sky"]["output"] == str(tmp_path / "run" / "sky")
    assert planned["animal"]["training rows of each class"].keys() == {"bird", "cat", "dog"}
    assert sum(planned["sky"]["rows"].values()) == 60 and not (tmp_path / "run").exists()


def test_a_batch_has_sixteen_rows_of_each_task_up_to_a_limit() -> None:
    sizes = [_with_batch(RunOptions(), tasks).training["per_device_train_batch_size"] for tasks in (2, 3, 20)]
    assert sizes == [32, 48, 128]
