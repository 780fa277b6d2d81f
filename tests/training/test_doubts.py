"""What of a run is surely not meant as it is set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModel

from house.clouds import seen
from house.runs import options
from softprompt import SoftPromptConfig, SoftPromptError, dept, ept, spt, tsloss
from softprompt.data import SECOND
from softprompt.objectives import OBJECTIVES
from softprompt.training.check import check_run
from softprompt.training.check_together import check_together
from softprompt.training.doubts import doubt_method, doubt_words
from softprompt.training.keys.options import RunOptions
from softprompt.tuner import Backbone, find_backbone

ROWS = [Dataset.from_dict({"input_ids": [[1] * 4, [1] * 9]})]


@pytest.fixture
def backbone(encoder: Path) -> Backbone:
    return find_backbone(AutoModel.from_pretrained(encoder))


def test_a_budget_beside_named_layers_makes_no_difference(
    backbone: Backbone, announced: Callable[[], list[str]]
) -> None:
    doubt_method(spt(budget=2), {"budget": 2}, backbone, ROWS)
    doubt_method(spt(layers=[1]), {"layers": [1]}, backbone, ROWS)
    assert announced() == []
    doubt_method(spt(layers=[1], budget=2), {"layers": [1], "budget": 2}, backbone, ROWS)
    assert announced() == ["budget=2 makes no difference: layers=[1] are named, so none are searched"]


def test_parts_of_a_method_that_are_switched_off_are_said(
    backbone: Backbone, announced: Callable[[], list[str]]
) -> None:
    given: dict[str, Any] = {"num_virtual_tokens": 4, "rank": 2, "max_positions": 8, "gate": "token"}
    doubt_method(ept(**given), given, backbone, ROWS)
    assert announced() == []
    given |= {"num_spaces": 0, "fusion_scores": "dot", "fusion_temperature": 0.3}
    doubt_method(ept(**given), given, backbone, ROWS)
    named = {"layers": [1], "consistency": 0.5, "layer_score": "gates", "decoupled_gates": False}
    doubt_method(spt(**named), named, backbone, ROWS)
    assert announced() == [
        "gate='token' makes no difference: num_spaces=0",
        "fusion_temperature=0.3 makes no difference: fusion_scores='dot'",
        *(
            f"{key}={named[key]!r} makes no difference: layers=[1] are named, so none are searched"
            for key in ("consistency", "layer_score", "decoupled_gates")
        ),
    ]


def test_label_words_without_the_head_that_reads_them_are_said(announced: Callable[[], list[str]]) -> None:
    words = {"template": "{text} It was {mask}.", "label_words": {"a": "good"}, "label_pieces": "mean"}
    plain = {"method": "prompt_tuning", "data": "x"}
    doubt_words(RunOptions.from_flat({**plain, **words, "head": "verbalizer"}))
    doubt_words(RunOptions.from_flat(plain))
    assert announced() == []
    doubt_words(RunOptions.from_flat({**plain, **words}))
    reason = "makes no difference: head='pooled' reads no label words; head=verbalizer does"
    assert announced() == [
        f'template="{words["template"]}" {reason}',
        f'label_words={{"a": "good"}} {reason}',
        f'label_pieces="mean" {reason}',
    ]


def test_a_target_out_of_reach_and_loops_that_are_not_there_are_said(
    backbone: Backbone, announced: Callable[[], list[str]]
) -> None:
    def doubt(**fields: Any) -> None:
        entry = {"name": "persistence", **fields}
        doubt_method(SoftPromptConfig(num_virtual_tokens=4, objectives=[entry]), {}, backbone, ROWS)

    target = {"statistic": "target", "target": [[0.0, 0.5], [0.0, 1.0], [0.0, 1.5]]}
    doubt(**target)
    doubt(**{**target, "target": [[0.0, 5.0]], "scale": "start"})
    doubt(statistic="entropy", degrees=[0, 1])
    assert announced() == []
    doubt(**{**target, "target": [[0.0, 5.0]]})
    doubt(statistic="entropy", degrees=[1])
    reach, loops = announced()
    assert reach == (
        "objective 'persistence' cannot reach its target: over their own mean (scale='mean') the lifetimes of 4 virtual tokens sum to 3, those of the target to 5; scale='start' has no such sum"
    )
    assert loops.startswith("objective 'persistence' may do nothing: degrees=[1] reads loops alone")


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_term_that_compares_tokens_says_how_many_it_needs(
    name: str, backbone: Backbone, announced: Callable[[], list[str]]
) -> None:
    least = OBJECTIVES[name]().least_tokens
    for tokens in (1, 2, 3):
        doubt_method(SoftPromptConfig(num_virtual_tokens=tokens, objectives=[{"name": name}]), {}, backbone, ROWS)
    nothing = f"objective {name!r} does nothing: it compares virtual tokens with each other: expected at least {least}, got num_virtual_tokens="
    assert announced() == [f"{nothing}{tokens}" for tokens in range(1, least)]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("l2", {}),
        ("pairwise", {}),
        ("ts_loss", {}),
        ("persistence", {}),
        ("persistence", {"statistic": "entropy"}),
        ("persistence", {"statistic": "target", "target": [[0.0, 3.0], [0.0, 0.1]]}),
        ("persistence", {"statistic": "target", "target": [[0.0, 5.0]], "scale": "detached"}),
        ("persistence", {"statistic": "total", "scale_free": False}),
    ],
)
def test_a_term_moves_a_prompt_from_so_many_tokens_on(name: str, fields: dict[str, Any]) -> None:
    objective = OBJECTIVES[name](**fields)
    for tokens in (1, 2, 3, 4):
        cloud = torch.randn(1, tokens, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        objective(seen(cloud), nn.ModuleDict()).backward()
        moves = cloud.grad is not None and float(cloud.grad.abs().max()) > 1e-6
        assert moves == (tokens >= objective.least_tokens), tokens


def test_an_objective_reads_layers_that_the_prompt_enters(backbone: Backbone) -> None:
    with pytest.raises(
        SoftPromptError, match=r"objective 'ts_loss' reads the layers \[1\], but the prompt enters \[0\]"
    ):
        doubt_method(tsloss(objectives=[]), {}, backbone, ROWS)
        doubt_method(SoftPromptConfig(objectives=[{"name": "ts_loss", "layers": [1]}]), {}, backbone, ROWS)
    deep = SoftPromptConfig(placement="deep", objectives=[{"name": "ts_loss", "layers": [1]}])
    doubt_method(deep, {}, backbone, ROWS)


def test_rows_of_the_low_rank_pair_that_no_text_has_are_said(
    backbone: Backbone, announced: Callable[[], list[str]]
) -> None:
    doubt_method(ept(max_positions=9), {}, backbone, ROWS)
    doubt_method(tsloss(), {}, backbone, ROWS)
    assert announced() == []
    apart = [Dataset.from_dict({"input_ids": [[1] * 4], f"{SECOND}input_ids": [[1] * 10]})]
    doubt_method(dept(max_positions=10), {}, backbone, apart)
    assert announced() == []
    doubt_method(dept(max_positions=10), {}, backbone, ROWS)
    (said,) = announced()
    assert said.startswith("max_positions=10 is more than the 9 tokens of the longest input: rows of the low-rank pair")


@pytest.mark.parametrize(
    ("share", "times"), [(3, "3"), (-1.5, "1.5"), (1, None), (-1, None), (0.3, None), (None, None)]
)
def test_a_term_that_outweighs_the_task_is_said(
    share: float | None, times: str | None, backbone: Backbone, announced: Callable[[], list[str]]
) -> None:
    entries = [{"name": "ts_loss", "share": share}, {"name": "l2", "weight": 5.0}]
    doubt_method(SoftPromptConfig(num_virtual_tokens=5, objectives=entries), {}, backbone, ROWS)
    said = f"objective 'ts_loss' outweighs the task: with share={share} the size of its gradient on the virtual tokens is {times} times that of the task's loss"
    assert announced() == ([] if times is None else [said])


@pytest.mark.parametrize(
    ("rate", "more", "doubted"),
    [(30.0, {}, True), (10.0, {}, False), (30.0, {"optim": "sgd"}, False), (11.0, {"task_column": "task"}, True)],
    ids=["slip", "bound", "sgd", "several tasks"],
)
def test_a_learning_rate_that_is_surely_a_slip_is_said_once(
    rate: float,
    more: dict[str, str],
    doubted: bool,
    encoder: Path,
    animals: Path,
    mixed: Path,
    tmp_path: Path,
    announced: Callable[[], list[str]],
) -> None:
    data, check = (mixed, check_together) if "task_column" in more else (animals, check_run)
    check(options(encoder, data, tmp_path, learning_rate=rate, **more))
    said = [line for line in announced() if line.startswith(f"learning_rate={rate:g} is hardly meant: AdamW moves")]
    assert len(said) == doubted
