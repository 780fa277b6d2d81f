"""Set up before anything imports softprompt: no network, one thread per worker, shapes in signatures checked."""

import gc
import logging
import os
from collections.abc import Callable

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)
install_import_hook(
    ["softprompt.prompts", "softprompt.topology", "softprompt.tuner.placing.layout"], "beartype.beartype"
)

settings.register_profile("suite", max_examples=150, deadline=None)
settings.load_profile("suite")
pytest.register_assert_rewrite("house")
pytest_plugins = ["house.fixtures"]


@pytest.hookimpl(tryfirst=True)  # before marks choose what runs
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Thin grids over families to a covering of pairs; the whole grid is slow."""
    from house.families import Family, covering

    grids: dict[object, list[pytest.Item]] = {}
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if isinstance(params.get("family"), Family) and item.get_closest_marker("slow") is None:
            grids.setdefault(item.function, []).append(item)  # type: ignore[attr-defined]
    for cases in grids.values():
        for item, stays in zip(cases, covering([case.callspec.params for case in cases]), strict=True):  # type: ignore[attr-defined]
            if not stays:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What is imported by now stays: accelerate collects garbage before each training, and need not look through all of torch."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def announced(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was announced so far."""
    caplog.set_level(logging.INFO, logger="softprompt")
    return lambda: [record.getMessage() for record in caplog.records]
