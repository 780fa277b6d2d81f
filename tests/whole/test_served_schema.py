"""Requests that are made from the server's own OpenAPI: none breaks it, and every answer has a declared form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from house.live import live
from house.served import shelved, train_readers
from softprompt.serving.engine import PromptEngine
from softprompt.serving.http import Service

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("schema")
    readers = train_readers(root, "plain", "tags")
    service = Service(token="guest", admin_token="guest", prompts_dir=root / "prompts")
    with live(PromptEngine(shelved(readers)).start(), service) as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


PATHS = {
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/classify"),
    ("POST", "/predict"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("POST", "/admin/prompts"),
    ("DELETE", "/admin/prompts/{name}"),
    ("GET", "/healthz"),
    ("GET", "/metrics"),
}


def operations(api: Any) -> dict[tuple[str, str], Any]:
    found = [one.ok() for one in api.get_all_operations()]
    return {(one.method.upper(), one.path): one for one in found}


@pytest.mark.parametrize("method, path", sorted(PATHS))
def test_no_request_of_the_schema_breaks_the_server(api: Any, method: str, path: str) -> None:
    statuses = set()

    @given(case=operations(api)[method, path].as_strategy())
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        statuses.add(case.call_and_validate(headers={"Authorization": "Bearer guest"}, checks=CHECKS).status_code)

    ask()
    assert statuses and 401 not in statuses


def test_every_path_is_there(api: Any) -> None:
    assert set(operations(api)) == PATHS


def test_the_schema_is_what_clients_expect(api: Any) -> None:
    completion = api.raw_schema["components"]["schemas"]["CompletionBody"]
    assert set(completion["required"]) == {"model", "prompt"} and completion["additionalProperties"] is False
