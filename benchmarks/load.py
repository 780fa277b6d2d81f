"""A server under load: many clients over ten prompts, against the same server with one prompt in a batch and against a plain handler.

    python benchmarks/load.py                        # lines, then one line of JSON
    python benchmarks/load.py --write                # also results/speed/load.json
    python benchmarks/load.py --small                # a smoke run

Ten classifiers (`deep_prompts`, P = 20, compiled) on the embedded encoder, texts of up to 10 words and whole messages, each server a process with one thread of torch, the clients in
this process. In each round every server gets the same requests once, in random order; medians over the rounds are compared. The
long run before that sends 5,000 requests, cancels one in a hundred, adds and removes a prompt all the while, and compares every answer with the
prediction offline.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import softprompt
from measure import command_line, finish

PROMPTS, WORDS, TOLERANCE = 10, 10, 1e-4
ADMIN = "chief"


# ---------------------------------------------------------------------- the servers


def plain_handler(folder: Path) -> None:
    """What one writes in an afternoon: a handler that calls the model for each request, one after the other."""
    import threading

    import uvicorn
    from fastapi import FastAPI

    predictors = {path.name: softprompt.Predictor(path) for path in sorted(folder.iterdir())}
    app, lock = FastAPI(), threading.Lock()

    @app.post("/v1/classify")
    def classify(body: dict[str, Any]) -> dict[str, Any]:
        with lock:
            made = predictors[body["model"]].predict([{"text": body["input"]}])[0]
        return {"data": [{"label": made["label"], "probs": list(made["scores"].values())}]}

    config = uvicorn.Config(app, port=0, log_level="warning")
    bound = config.bind_socket()
    bound.listen(2048)
    print(f"http://127.0.0.1:{bound.getsockname()[1]} (Ctrl-C stops)", file=sys.stderr, flush=True)
    uvicorn.Server(config).run(sockets=[bound])


@contextmanager
def started(*command: object) -> Iterator[tuple[int, psutil.Process]]:
    """The port of a server in a process of its own, and the process."""
    words = [sys.executable, *map(str, command)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "SOFTPROMPT_ADMIN_TOKEN": ADMIN, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=variables)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if match := re.search(r"http://[0-9.]+:(\d+) \(Ctrl-C", line):
                yield int(match.group(1)), psutil.Process(process.pid)
                return
        raise RuntimeError(f"the server did not start: {words}")
    finally:
        process.kill()
        process.wait()


# ---------------------------------------------------------------------- the clients


@dataclass
class Seen:
    """What came back.

    Attributes:
        seconds: of each answer.
        wrong: answers that are not those of the prediction offline.
        lost: requests without an answer; those that were cancelled are not counted.
    """

    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    lost: int = 0
    cancelled: int = 0
    turns: int = 0

    def quantile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Client:
    """HTTP in twenty lines: a heavier client would be what is measured."""

    def __init__(self, port: int):
        self.port = port
        self.streams: Any = None

    async def ask(self, path: str, body: Mapping[str, Any] | None, method: str = "POST") -> tuple[int, Any]:
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        writer.write(_request(path, body, method))
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(re.search(r"content-length: (\d+)", head, re.IGNORECASE).group(1))  # type: ignore[union-attr]
        return int(head.split()[1]), json.loads(await reader.readexactly(length))

    async def ask_and_go(self, path: str, body: Mapping[str, Any]) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(_request(path, body, "POST"))
        await writer.drain()
        await asyncio.sleep(0.002)
        writer.close()


def _request(path: str, body: Mapping[str, Any] | None, method: str) -> bytes:
    text = b"" if body is None else json.dumps(body).encode()
    heads = f"Host: x\r\nAuthorization: Bearer {ADMIN}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}"
    return f"{method} {path} HTTP/1.1\r\n{heads}\r\n\r\n".encode() + text


async def load(
    port: int,
    asked: Sequence[tuple[str, str]],
    expected: Mapping[tuple[str, str], Sequence[float]],
    clients: int,
    cancel: float = 0.0,
) -> Seen:
    """Send all requests by so many clients, each one after the other."""
    seen, drawn, waiting = Seen(), random.Random(0), iter(asked)

    async def one() -> None:
        client = Client(port)
        for name, text in waiting:
            body = {"model": name, "input": text}
            if drawn.random() < cancel:
                seen.cancelled += 1
                await client.ask_and_go("/v1/classify", body)
                continue
            began = time.perf_counter()
            try:
                status, made = await client.ask("/v1/classify", body)
            except (OSError, asyncio.IncompleteReadError):
                client, seen.lost = Client(port), seen.lost + 1
                continue
            seen.seconds.append(time.perf_counter() - began)
            if status != 200:
                seen.lost += 1
            elif (
                max(abs(a - b) for a, b in zip(made["data"][0]["probs"], expected[name, text], strict=True)) > TOLERANCE
            ):
                seen.wrong += 1

    await asyncio.gather(*(one() for _ in range(clients)))
    return seen


async def come_and_go(port: int, folder: str, seen: Seen, stop: asyncio.Event) -> None:
    """Add a prompt, ask it, remove it, again and again."""
    client = Client(port)
    while not stop.is_set():
        status, _ = await client.ask("/admin/prompts", {"name": "extra", "folder": folder})
        asked, _ = await client.ask("/v1/classify", {"model": "extra", "input": "my parcel is late"})
        gone, _ = await client.ask("/admin/prompts/extra", None, "DELETE")
        seen.lost += (status, asked, gone) != (201, 200, 200)
        seen.turns += 1
        await asyncio.sleep(0.05)


async def long_run(
    port: int, process: psutil.Process, asked: Sequence[Any], expected: Any, clients: int
) -> dict[str, Any]:
    """All that can happen at once, and what the memory does."""
    stop, turns = asyncio.Event(), Seen()
    going = asyncio.ensure_future(come_and_go(port, "prompt-0", turns, stop))
    parts = [asked[at : at + len(asked) // 5] for at in range(0, len(asked), len(asked) // 5)]
    memory, whole = [], Seen()
    for part in parts:
        seen = await load(port, part, expected, clients, cancel=0.01)
        memory.append(process.memory_info().rss)
        for name in ("wrong", "lost", "cancelled"):
            setattr(whole, name, getattr(whole, name) + getattr(seen, name))
        whole.seconds += seen.seconds
    stop.set()
    await going
    return {
        "requests": len(asked),
        "clients": clients,
        "answered": len(whole.seconds),
        "cancelled": whole.cancelled,
        "wrong": whole.wrong,
        "lost": whole.lost + turns.lost,
        "prompts added and removed": turns.turns,
        "memory after each fifth / after the first": [round(one / memory[0], 3) for one in memory],
    }


# ---------------------------------------------------------------------- both


def trained(root: Path, count: int) -> dict[str, Path]:
    """Prompts that differ: a few steps of training each, on a few rows, from seeds of their own."""
    task, data, folders = softprompt.load_task("messages"), root.parent / "data", {}
    data.mkdir()
    for name, rows in (("train", task.train.select(range(64))), ("validation", task.dev.select(range(32)))):
        made = [{"text": row["text"], "label": task.label_names[row["label"]]} for row in rows]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    for number in range(count):
        folders[f"prompt-{number}"] = root / f"prompt-{number}"
        flat = {"backbone": "minilm", "data": str(data), "output_dir": str(folders[f"prompt-{number}"]), "seed": number}
        run = {
            "method": "deep_prompts",
            "num_virtual_tokens": 20,
            "max_steps": 2,
            "max_length": 128,
            "dtype": "float32",
        }
        softprompt.train(softprompt.RunOptions.from_flat({**flat, **run}), progress=False)
    return folders


def drawn(names: Iterable[str], texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Requests: a name and a text each."""
    source, names = random.Random(1), sorted(names)
    return [(source.choice(names), source.choice(texts)) for _ in range(count)]


def main() -> None:
    parser = command_line(__doc__, 5)
    parser.add_argument("--plain-handler", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain_handler is not None:
        plain_handler(given.plain_handler)
        return
    count, total, each, rounds = (2, 50, 20, 1) if given.small else (PROMPTS, 5000, 600, given.rounds)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "prompts"
        folders = trained(root, count)
        whole = [row["text"] for row in softprompt.load_task("messages").test][:40]
        short = [" ".join(text.split()[:WORDS]) for text in whole]
        expected = {
            (name, text): list(made["scores"].values())
            for name, path in folders.items()
            for text, made in zip(
                whole + short, softprompt.Predictor(path).predict([{"text": t} for t in whole + short]), strict=True
            )
        }
        asked = drawn(folders, short, total)
        serve = ("-m", "softprompt", "serve", "--port", 0, "--prompts-dir", root, "--waiting-rows", 4000)
        servers = {
            "mixed": serve,
            "one prompt in a batch": (*serve, "--batch-prompts", 1),
            "plain handler": (__file__, "--plain-handler", root),
        }
        document: dict[str, Any] = {"benchmark": "load", "prompts": count, "virtual_tokens": 20, "rounds": rounds}
        with started(*servers["mixed"]) as (port, process):
            clients = 10 if given.small else 200
            document["long run"] = asyncio.run(long_run(port, process, asked, expected, clients))
            print(document["long run"], file=sys.stderr)
        document["cells"] = []
        cells = [("short", 4)] if given.small else [("short", 10), ("short", 50), ("short", 200), ("whole", 50)]
        for kind, clients in cells:
            rows = asked[:each] if kind == "short" else drawn(folders, whole, each // 4)
            cell = {"texts": kind, **compared(servers, rows, expected, clients, rounds)}
            document["cells"].append(cell)
            print(cell, file=sys.stderr)
    finish(document, given.write)


def compared(
    servers: Mapping[str, Sequence[object]], asked: Sequence[Any], expected: Any, clients: int, rounds: int
) -> dict[str, Any]:
    """Requests a second and seconds of an answer of the mixed server, as ratios to each other one, in turns."""
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in servers}
    with ExitStack() as running:
        ports = {name: running.enter_context(started(*command))[0] for name, command in servers.items()}
        for port in ports.values():
            asyncio.run(load(port, asked[:50], expected, min(clients, 10)))
        for number in range(rounds):
            for name in random.Random(number).sample(sorted(ports), len(ports)):
                began = time.perf_counter()
                seen = asyncio.run(load(ports[name], asked, expected, clients))
                took = time.perf_counter() - began
                if seen.wrong or seen.lost:
                    raise RuntimeError(f"{name}: {seen.wrong} wrong and {seen.lost} lost answers")
                measured[name].append((len(asked) / took, seen.quantile(0.5), seen.quantile(0.99)))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in measured.items()
    }
    mixed = medians["mixed"]
    return {
        "clients": clients,
        "requests": len(asked),
        **{
            f"against {name}": {
                "throughput": round(mixed[0] / other[0], 3),
                "p50": round(other[1] / mixed[1], 3),
                "p99": round(other[2] / mixed[2], 3),
            }
            for name, other in medians.items()
            if name != "mixed"
        },
    }


if __name__ == "__main__":
    main()
