"""What each of two processes does for test_processes.py; `accelerate launch --multi_gpu --num_processes 2 two_processes.py FOLDER`.

The functions that measure are the test's too, for its one process.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import accelerate.state
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from datasets import Dataset
from torch import Tensor, distributed, nn
from transformers import TrainingArguments

import softprompt
from house import families as f
from house.batches import with_labels
from house.models import widths
from house.tiny import tokenizer
from softprompt.data import collator
from softprompt.training import PromptTrainer
from softprompt.tuner import gathered, is_sharded
from workers.halves import in_one_of_two

# family, head, method, whether the rows share the prompt's pass under DDP
STEPS = {
    "llama-prompt_tuning": ("llama", "causal_lm", "prompt_tuning", True),
    "llama-deep_prompts": ("llama", "causal_lm", "deep_prompts", True),
    "gpt2-ept": ("gpt2", "causal_lm", "ept", True),
    "bert-prompt_tuning": ("bert", "seq_cls", "prompt_tuning", False),
    "bert-ept": ("bert", "seq_cls", "ept", False),
}
LAYER = {"llama": "LlamaDecoderLayer", "gpt2": "GPT2Block", "bert": "BertLayer"}
LENGTHS = (9, 5, 8, 6)  # each half has as many labels as the other, so the mean of the halves' means is the mean of all
TRAINED = ("prompt_tuning", "ept")
ROWS = [7, 3, 9, 4, 8, 8, 2, 5, 6, 3, 9, 2]  # halves of a batch have unlike numbers of labels


def rows_of(head: str, numbers: range) -> dict[str, Tensor]:
    rows = f.tokens(*LENGTHS)
    batch = f.batch([rows[i] for i in numbers])
    return with_labels(batch) if head == "causal_lm" else {**batch, "labels": torch.tensor([i % 3 for i in numbers])}


def step(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one pass."""
    loss = model(**inputs).loss
    loss.backward()
    grads = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.requires_grad}
    return loss.detach(), gathered(grads)


def fit(method: str, folder: Path, size: int, spoil: bool = False) -> dict[str, Tensor]:
    """Three steps of a trainer on rows with unlike numbers of labels; the prompt after them.

    ``spoil`` makes the loss infinite at the second step, in the last process only.
    """
    rows = [{key: value[0].tolist() for key, value in with_labels(f.batch([row])).items()} for row in f.tokens(*ROWS)]
    model = f.prompted(f.FAMILIES["llama"], "causal_lm", method)
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=size,
        num_train_epochs=1,
        learning_rate=1e-2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )

    class Spoiled(PromptTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            last = self.args.process_index == self.args.world_size - 1
            return loss * torch.inf if spoil and last and self.state.global_step == 1 else loss

    trainer = Spoiled(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        data_collator=collator(tokenizer(), "completion"),
    )
    start = {name: p.detach().clone() for name, p in f.prompt_parameters(model).items()}
    try:
        trainer.train()
    except softprompt.NonFiniteError as error:
        return {"message": error, "step": trainer.state.global_step, **f.prompt_parameters(model), "start": start}
    return {name: p.detach() for name, p in f.prompt_parameters(model).items()}


def run_options(place: Path, output: Path, size: int, kind: str = "decoder", **more: Any) -> dict[str, Any]:
    """Options of `softprompt.train` on what the test wrote to ``place``."""
    return {
        "backbone": str(place / kind),
        "data": str(place / ("classification" if kind == "encoder" else "completion")),
        "method": "ept",
        "rank": 2,
        "max_positions": 24,
        "max_length": 24,
        "dtype": "float32",  # sums that are split otherwise round otherwise
        "num_virtual_tokens": 3,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": size,
        "output_dir": str(output),
        **more,
    }


def informed(place: Path, output: Path, **more: Any) -> dict[str, Any]:
    """The same with objectives, whose critics stand in checkpoints and which read unprompted states."""
    options = run_options(place, output, 8, "encoder", method="infoprompt", latent=5, num_train_epochs=1, **more)
    return {key: value for key, value in options.items() if key not in ("rank", "max_positions")}


def train(options: dict[str, Any], **more: Any) -> softprompt.training.RunResult:
    return softprompt.train(softprompt.RunOptions.from_flat(options), progress=False, **more)


def main(place: Path) -> None:
    gc.freeze()  # as in conftest.py: before each training garbage is collected
    accelerator = Accelerator(cpu=True)
    rank, first = accelerator.process_index, accelerator.is_main_process
    found: dict[str, Any] = {"backend": distributed.get_backend(), "processes": accelerator.num_processes}
    half = range(2 * rank, 2 * rank + 2)

    for name, (family, head, method, shares) in STEPS.items():
        for how in ("ddp", "fsdp2"):
            model = f.prompted(f.FAMILIES[family], head, method).train()
            seen, inputs = widths(model), rows_of(head, half)
            wrapped = accelerator.prepare(model) if how == "ddp" else shard(model, LAYER[family], accelerator)
            loss, grads = step(wrapped, inputs)
            rows, tokens = inputs["input_ids"].shape
            shared, whole = [(1, f.P), (rows, tokens)], [(rows, f.P + tokens)]
            found[f"{how} {name}"] = (
                accelerator.reduce(loss, "mean"),
                grads,
                seen == (shared if shares and how == "ddp" else whole),
            )
            if how == "fsdp2":
                softprompt.save_adapter(model, place / "saved" / name)

    found["search"] = in_one_of_two(rank, place / "search")
    for method in TRAINED:
        found[f"trainer {method}"] = fit(method, place / "trainer" / method, 2)
    found["spoiled"] = fit("prompt_tuning", place / "spoiled", 2, spoil=True)

    ddp = train(run_options(place, place / "ddp", 4))
    found["ddp metrics"] = ddp.metrics
    try:
        train(run_options(place, place / "ddp", 4))
    except softprompt.SoftPromptError as error:
        found["again"] = str(error)
    found["informed"] = train(informed(place, place / "informed", track="all")).metrics

    pretend_that_fsdp_runs_here()
    weighed = {"use_cpu": False, "gamma": 0.1, "beta": 0.2}
    runs = [
        train(run_options(place, place / "fsdp2", 4, use_cpu=False)),
        train(informed(place, place / "fsdp2 informed", **weighed)),
    ]
    found["fsdp2 metrics"], found["fsdp2 informed"] = (run.metrics for run in runs)
    found["fsdp2 sharded"] = [
        [is_sharded(layer) for layer in run.model.base_model.state.backbone.layers] for run in runs
    ]
    found["fsdp2 resumed"] = train(informed(place, place / "fsdp2 informed", **weighed), resume=True).metrics
    try:
        train(informed(place, place / "never shared", use_cpu=False))
    except softprompt.SoftPromptError as error:
        found["shares"] = str(error)
    try:
        train(informed(place, place / "never", use_cpu=False, track="topology"))
    except softprompt.SoftPromptError as error:
        found["track"] = str(error)

    torch.save(found, place / f"found-{rank}.pt")
    accelerator.wait_for_everyone()
    if first:
        print(json.dumps({"done": True}))
    distributed.destroy_process_group()


def shard(model: nn.Module, layer: str, accelerator: Accelerator) -> nn.Module:
    """Shard as `accelerate` does, each layer by itself."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=layer,
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    state = SimpleNamespace(fsdp_plugin=plugin)
    stand_in = SimpleNamespace(
        state=state,
        mixed_precision="no",
        is_main_process=accelerator.is_main_process,
        device=torch.device("cpu"),
        torch_device_mesh=None,
    )
    return fsdp2_prepare_model(stand_in, model)


def pretend_that_fsdp_runs_here() -> None:
    """accelerate takes FSDP for accelerators only; torch shards on CPUs too. So let it believe in several GPUs called cpu."""

    def backend(*args: Any, **kwargs: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    def set_device(self: accelerate.state.PartialState) -> None:
        self.device = torch.device("cpu")

    accelerate.state.PartialState._prepare_backend = backend
    accelerate.state.PartialState.set_device = set_device
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",  # as accelerate launch sets it unless told otherwise
    }


if __name__ == "__main__":
    faulthandler.dump_traceback_later(400, exit=True)  # a process that waits for another for good says where
    main(Path(sys.argv[1]))
