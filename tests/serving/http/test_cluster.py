"""The same application in replicas on a local Ray."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

import softprompt
from house.served import ROWS, near, train_readers
from softprompt.serving.engine import Limits
from softprompt.serving.http import Service
from softprompt.serving.http.cluster import deployment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_replicas_answer_as_one_process_does(tmp_path: Path, announced: Callable[[], list[str]]) -> None:
    ray = pytest.importorskip("ray")
    serve = pytest.importorskip("ray.serve")
    readers = train_readers(tmp_path, "plain", "deep")
    service = Service(token="guest", admin_token="chief", prompts_dir=tmp_path / "prompts")
    options = {"backbone": None, "compiles": True, "device": "cpu", "limits": Limits()}
    app = deployment(readers, service, options, replicas=2)
    assert any(line.startswith("prompts are not added or removed") for line in announced())
    assert dataclasses.asdict(service)["admin_token"] == "chief"
    port = free_port()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app, name="softprompt", route_prefix="/")
        heads = {"Authorization": "Bearer guest"}
        address = f"http://127.0.0.1:{port}"
        for name, folder in readers.items():
            alone = softprompt.Predictor(folder).predict(ROWS[name])
            for row, expected in zip(ROWS[name], alone, strict=True):
                made = httpx.post(
                    f"{address}/v1/classify", json={"model": name, "input": row}, headers=heads, timeout=60
                ).json()
                assert near(dict(zip(made["classes"], made["data"][0]["probs"], strict=True)), expected["scores"])
        refused = httpx.post(
            f"{address}/admin/prompts", json={"name": "more"}, headers={"Authorization": "Bearer chief"}
        )
        assert refused.status_code == 403
        assert httpx.get(f"{address}/v1/models").status_code == 401
        details = serve.status().applications["softprompt"].deployments["softprompt"]
        assert sum(details.replica_states.values()) == 2
    finally:
        serve.shutdown()
        ray.shutdown()
