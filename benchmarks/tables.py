"""Write the tables of README and docs from results/ and from the code.

python benchmarks/tables.py            # rewrite
python benchmarks/tables.py --check    # exit 1 when a table is not what results/ says
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import claims
import serve
import step as measured
import studies
from softprompt.cli.demo.arms import COLUMNS, cells
from softprompt.experiments.records import read_cells
from softprompt.experiments.statistics import Line, Scores, Setting, setting_of
from softprompt.experiments.tables import (
    Table,
    checkpoints_table,
    comparison_table,
    mechanism_table,
    results_table,
    steps_table,
)
from softprompt.methods import METHODS
from softprompt.training.keys.describe import run_keys

ROOT = Path(__file__).resolve().parent.parent


def demo(name: str) -> str:
    document: dict[str, Any] = json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, document["rows"])]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


FEW_SHOT = studies.RESULTS / f"few-shot{studies.PUBLISHED}.jsonl"
LOW_DATA = FEW_SHOT.with_name(f"low-data{studies.PUBLISHED}.jsonl")
DTYPES = {"float32": "-float32", "bfloat16": ""}
# run with every seed
COMPARED = (
    "contrast",
    "prompt_tuning",
    "peft:prompt_tuning, stock head",
    "peft:prompt_tuning",
    "peft:lora, r = 1",
    "setfit",
    "probe",
)
# all but what trains more on fewer tasks (CEILING), with the first seed
EVERY = (
    *COMPARED,
    "deep_prompts",
    "ept",
    "spt",
    "infoprompt",
    "tsloss",
    "dept",
    "peft:p_tuning",
    "peft:prefix_tuning",
    "peft:ia3",
)
# with the defaults of today, as far as they have run
NOW = ("contrast", "prompt_tuning", "peft:lora, r = 1", "probe", "ept", "infoprompt", "tsloss")
ONE_TEXT = ("contrast", "setfit", "peft:lora, r = 1", "prompt_tuning", "probe")  # SetFit reads one text
NOW_FEWER = ("prompt_tuning", "spt", "contrast", "peft:lora, r = 1")  # on fewer tasks
WORDS = ("prompt_tuning", "deep_prompts", "peft:lora, r = 1", "ept", "infoprompt", "tsloss")
# on fewer tasks
EPT_PARTS = ("ept", "ept, no fusion", "ept, no spaces", "ept, no gate")
TERMS = ("infoprompt", "infoprompt, head term alone", "infoprompt, state term alone")
FEWER = ("prompt_tuning", "dept", *EPT_PARTS, *TERMS, "deep_prompts", "spt", "spt, random layers")
# of these the probe and SetFit choose no checkpoint
STEPPED = tuple(name for name in EVERY if name not in ("probe", "setfit"))
# what more trained weights are worth, on fewer seeds
CEILING, CEILING_SEEDS = ("contrast", "peft:lora", "full_finetuning", "setfit"), (13, 42)


def suite(
    path: Path,
    show: Callable[[Scores], Table],
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> str:
    """What is there of a suite, as `softprompt compare` shows it."""
    lines = [line for line in read_cells(path).values() if seeds is None or line["seed"] in seeds]
    return show(Scores(lines, methods)).markdown() if lines else "(no runs yet)"


def now(name: str, methods: Sequence[str], show: Callable[[Scores], Table], draws: Callable[[int], bool] = bool) -> str:
    """The cells of today's defaults, in the settings in which all of ``methods`` have run, on as many draws of rows as ``draws`` takes."""
    run: dict[Setting, dict[str, set[int]]] = {}
    lines = list(read_cells(FEW_SHOT.with_name(f"{name}.jsonl")).values())
    for line in lines:
        run.setdefault(setting_of(line), {}).setdefault(line["method"], set()).add(line["seed"])
    chosen = {
        setting
        for setting, seeds in run.items()
        if seeds.keys() >= set(methods) and draws(min(len(seeds[method]) for method in methods))
    }
    whole = [line for line in lines if setting_of(line) in chosen]
    return show(Scores(whole, methods)).markdown() if whole else "(no runs yet)"


def several(draws: int) -> bool:
    return draws > 1


def one(draws: int) -> bool:
    return draws == 1


def against_prompt_tuning(scores: Scores) -> Table:
    return comparison_table(scores, "prompt_tuning")


def to_prompt_tuning(scores: Scores) -> Table:
    return steps_table(scores, "prompt_tuning")


def precision() -> str:
    """bfloat16 against float32: the same cells, each method on each task and seed a block."""
    by_type = {name: read_cells(FEW_SHOT.with_name(f"{FEW_SHOT.stem}{end}.jsonl")) for name, end in DTYPES.items()}
    both = set.intersection(*({_which(line) for line in cells.values()} for cells in by_type.values()))
    lines = [
        {**line, "method": name, "task": f"{line['task']}, {line['method']}"}
        for name, cells in by_type.items()
        for line in cells.values()
        if _which(line) in both
    ]
    return comparison_table(Scores(lines), "float32").markdown() if lines else "(no runs yet)"


def _which(line: Line) -> tuple[Any, ...]:
    return tuple(line[key] for key in ("method", "task", "seed"))


def against_contrast(scores: Scores) -> Table:
    return comparison_table(scores, "contrast")


STEPS = "prompt_tuning, every row with its prompt, all logits"
SHOWN = ("PEFT PromptTuning", "PEFT PrefixTuning", "PEFT P-tuning", "PEFT LoRA r=8", STEPS, "deep_prompts", "ept")


def steps() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / "results" / "speed" / "step.json").read_text(encoding="utf-8"))
    return document


def step() -> str:
    """The README's table: what users have today, against ours."""
    lines = ["| |" + "".join(f" {name} |" for name in SHOWN), "|---|" + "---:|" * len(SHOWN)]
    for cell in steps()["cells"]:
        shown = (f" {cell['time'][name]:.2f} |" if name in cell["time"] else " - |" for name in SHOWN)
        lines.append(f"| {measured.title(cell)} |" + "".join(shown))
    return "\n".join(lines)


def served() -> str:
    document = json.loads((ROOT / "results" / "speed" / "serve.json").read_text(encoding="utf-8"))
    costs = ", ".join(f"{name} {size / 1024:.0f} KiB" for name, size in document["bytes of one more adapter"].items())
    return f"{serve.table(document)}\n\nOne more adapter in memory: {costs}."


def graphs() -> str:
    """A classifier in torch against its ONNX graph."""
    document = json.loads((ROOT / "results" / "speed" / "graph.json").read_text(encoding="utf-8"))
    lines = [
        f"| {cell['virtual_tokens']} | {cell['rows']} of {cell['tokens']} | {cell['torch / graph']:.2f} |"
        for cell in document["cells"]
    ]
    return "\n".join(["| P | inputs | torch / graph |", "|---:|---:|---:|", *lines])


def tones() -> str:
    """What each prompt of the causal model expects of messages, and how its own texts are called."""
    document = json.loads((ROOT / "results" / "demo-tones.json").read_text(encoding="utf-8"))
    kinds = list(next(iter(document["loss"].values())))
    heads = [*(f"loss, {kind}" for kind in kinds), *(f"called {kind}" for kind in kinds)]
    lines = ["| prompt | " + " | ".join(heads) + " |", "|---" + "|---:" * len(heads) + "|"]
    for name, losses in document["loss"].items():
        values = [*(f"{losses[kind]:.2f}" for kind in kinds), *(str(document["called"][name][kind]) for kind in kinds)]
        lines.append(f"| {'none' if name == '__base__' else name} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def step_of(backbone: str) -> str:
    """Everything that was measured on a backbone: time (operations; memory)."""
    return measured.table([cell for cell in steps()["cells"] if cell["backbone"] == backbone])


def options() -> str:
    lines = ["| key | default | meaning |", "|---|---|---|"]
    return "\n".join(lines + [f"| `{key.name}` | `{key.default}` | {key.meaning} |" for key in run_keys()])


def methods() -> str:
    lines = ["| method | hyper-parameters |", "|---|---|"]
    for method in METHODS.values():
        lines.append(f"| `{method.name}` | " + ", ".join(f"`{k}={v}`" for k, v in method.parameters.items()) + " |")
    return "\n".join(lines)


def layers() -> str:
    document: dict[str, Any] = json.loads((ROOT / "results" / "speed" / "layers.json").read_text(encoding="utf-8"))
    columns = {
        "lowest layer": "lowest layer entered",
        "time": "step time",
        "time with cached states": "step time, `cache_below`",
        "memory": "kept for the backward pass",
    }
    measured = {key: name for key, name in columns.items() if key in document["saving"][0]}
    lines = ["| " + " | ".join(measured.values()) + " |", "|---" * len(measured) + "|"]
    for line in document["saving"]:
        values = [str(line[key]) if key == "lowest layer" else f"{line[key]:.2f}" for key in measured]
        lines.append("| " + " | ".join(values) + " |")
    lines += [
        "",
        f"Search and retraining take {document['search and retraining']:.2f} times as long as one training of deep prompts on the same rows and epochs.",
    ]
    return "\n".join(lines)


def topology() -> str:
    document: dict[str, Any] = json.loads((ROOT / "results" / "speed" / "topology.json").read_text(encoding="utf-8"))
    names = list(document["cells"][0]["ratios"])
    lines = ["| points | N |" + "".join(f" {name} |" for name in names), "|---|---|" + "---|" * len(names)]
    for cell in document["cells"]:
        ratios = "".join(f" {cell['ratios'][name]:.2f} |" for name in names)
        lines.append(f"| {cell['shape']} | {cell['N']} |{ratios}")
    return "\n".join(lines)


def pretrained(kind: str) -> str:
    """What a pre-trained model makes of held-out text, beside n-grams."""
    document = _pretrained(kind)
    held = document["held_out"]
    lines = [
        "| tokens seen | held-out tokens | " + " | ".join(f"perplexity, {name}" for name in held["perplexity"]) + " |"
    ]
    lines.append("|---:" * (2 + len(held["perplexity"])) + "|")
    values = " | ".join(f"{value:.1f}" for value in held["perplexity"].values())
    return "\n".join([*lines, f"| {document['tokens']:,} | {held['tokens']:,} | {values} |"])


def pretraining_curve(kind: str) -> str:
    """Held-out loss at doubling numbers of tokens."""
    curve = _pretrained(kind)["curve"]
    shown, limit = [], 0
    for point in [*curve[:-1], {**curve[-1], "last": True}]:
        if point["tokens"] >= limit or "last" in point:
            shown.append(point)
            limit = 2 * point["tokens"]
    lines = ["| tokens | " + " | ".join(f"{point['tokens'] / 1e6:.1f} M" for point in shown) + " |"]
    lines += ["|---" + "|---:" * len(shown) + "|"]
    return "\n".join([*lines, "| loss in nats | " + " | ".join(f"{point['loss']:.2f}" for point in shown) + " |"])


def loads() -> str:
    """The server under load against others, and what the long run saw."""
    document = json.loads((ROOT / "results" / "speed" / "load.json").read_text(encoding="utf-8"))
    others = ("one prompt in a batch", "plain handler")
    texts = {"short": "up to 10 words", "whole": "whole messages"}
    lines = [
        "| texts | clients | " + " | ".join(f"{name}: throughput, p50, p99" for name in others) + " |",
        "|---|---:|---:|---:|",
    ]
    for cell in document["cells"]:
        ratios = (
            ", ".join(f"{cell[f'against {name}'][key]:.2f}" for key in ("throughput", "p50", "p99")) for name in others
        )
        lines.append(f"| {texts[cell['texts']]} | {cell['clients']} | " + " | ".join(ratios) + " |")
    run = document["long run"]
    memory = ", ".join(f"{share:.2f}" for share in run["memory after each fifth / after the first"])
    lines += [
        "",
        f"One run of {run['requests']:,} requests by {run['clients']} clients, {run['cancelled']} of them cancelled, while a prompt was added and removed {run['prompts added and removed']} times: "
        f"{run['answered']:,} answers, {run['wrong']} of them other than the prediction offline, {run['lost']} lost; memory after each fifth, in units of the first: {memory}.",
    ]
    return "\n".join(lines)


def _pretrained(kind: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        (ROOT / "results" / "pretraining" / f"{kind}.json").read_text(encoding="utf-8")
    )
    return document


TABLES: dict[str, Callable[[], str]] = {
    "demo": partial(demo, "demo.json"),
    "demo_lm": partial(demo, "demo-lm.json"),
    "tones": tones,
    "few_shot": partial(suite, FEW_SHOT, results_table, COMPARED),
    "few_shot_now": partial(now, "few-shot", NOW, results_table, several),
    "few_shot_now_one_draw": partial(now, "few-shot", NOW, results_table, one),
    "few_shot_now_one_text": partial(now, "few-shot", ONE_TEXT, results_table, several),
    "few_shot_now_one_text_differences": partial(now, "few-shot", ONE_TEXT, against_contrast, several),
    "few_shot_now_spt": partial(now, "few-shot", NOW_FEWER, results_table),
    "few_shot_now_differences": partial(now, "few-shot", NOW, against_prompt_tuning, several),
    "label_words_differences": partial(now, "masked-lm", WORDS, against_prompt_tuning),
    "claims": claims.table,
    "label_words_steps": partial(now, "masked-lm", WORDS, to_prompt_tuning),
    "label_words_mechanisms": partial(now, "masked-lm", ("ept",), mechanism_table),
    "label_words_checkpoints": partial(now, "masked-lm", WORDS, checkpoints_table),
    "mechanisms": partial(suite, FEW_SHOT.with_name("mechanisms.jsonl"), results_table),
    "label_words_settings": partial(suite, FEW_SHOT.with_name("masked-lm-settings.jsonl"), results_table),
    "next_words": partial(suite, FEW_SHOT.with_name("causal-lm.jsonl"), results_table),
    "label_words": partial(now, "masked-lm", ("zero_shot", *WORDS), results_table),
    "label_words_more": partial(now, "masked-lm", FEWER, results_table),
    "few_shot_differences": partial(suite, FEW_SHOT, against_contrast, COMPARED),
    "few_shot_every": partial(suite, FEW_SHOT, results_table, EVERY, (13,)),
    "few_shot_every_differences": partial(suite, FEW_SHOT, against_contrast, EVERY, (13,)),
    "few_shot_ceiling": partial(suite, FEW_SHOT, against_contrast, CEILING, CEILING_SEEDS),
    "few_shot_precision": precision,
    "few_shot_checkpoints": partial(suite, FEW_SHOT, checkpoints_table, STEPPED),
    "tuned": partial(studies.accuracies, "tuned", "contrast"),
    "low_data": partial(suite, LOW_DATA, results_table),
    "step": step,
    **{f"step_{backbone}": partial(step_of, backbone) for backbone in measured.BACKBONES},
    "serve": served,
    "graph": graphs,
    "load": loads,
    "options": options,
    "methods": methods,
    "layers": layers,
    "masked_lm": partial(pretrained, "masked"),
    "masked_lm_curve": partial(pretraining_curve, "masked"),
    "causal_lm": partial(pretrained, "causal"),
    "causal_lm_curve": partial(pretraining_curve, "causal"),
    "topology": topology,
    "accuracy_spt": partial(studies.accuracies, "spt", "spt, 3 searched layers"),
    "kept_layers": studies.kept_layers,
    "gates": studies.gates,
    "searches": studies.searches,
    "both_ends": claims.both_ends,
    "accuracy_infoprompt": partial(studies.accuracies, "infoprompt", "prompt_tuning"),
    "steps_infoprompt": studies.steps_to_plain,
    "starts": studies.spread_of_starts,
    "shapes": studies.topology_accuracies,
    "shape_steps": studies.topology_steps,
    "lifetimes": studies.lifetimes,
    "shape_correlation": studies.shape_correlation,
}
MARK = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def render(text: str) -> str:
    return MARK.sub(lambda mark: f"<!-- table: {mark[1]} -->\n{TABLES[mark[1]]()}\n<!-- end -->", text)


def main() -> None:
    stale = []
    for page in [ROOT / "README.md", *sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("backbones/*/README.md")])]:
        text = page.read_text(encoding="utf-8")
        if (fresh := render(text)) != text:
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(fresh, encoding="utf-8")
    print("stale:" if "--check" in sys.argv else "rewritten:", ", ".join(stale) or "none")
    sys.exit(1 if stale and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
