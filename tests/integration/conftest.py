"""One stack for all tests of the HTTP API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.api import Api
from tests.stack import Stack, short_folder, start_stack

N_ITEMS = 900


@pytest.fixture(scope="package")
def stack() -> Iterator[Stack]:
    with short_folder() as folder:
        running = start_stack(folder, env={"HONE_SURFACES__SIMILAR__MAX_N": "1000"}, n_items=N_ITEMS)
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture
def api(stack: Stack) -> Iterator[Api]:
    made = Api(stack.url)
    yield made
    made.close()


@pytest.fixture
def workers(stack: Stack) -> Iterator[list[Api]]:
    """One connection to each worker."""
    found: dict[str, Api] = {}
    spare = []
    for _ in range(200):
        api = Api(stack.url)
        name = api.call("GET", "/healthz").headers["x-hone-worker"]
        if found.setdefault(name, api) is not api:
            spare.append(api)
        if len(found) == stack.n_workers:
            break
    for api in spare:
        api.close()
    assert len(found) == stack.n_workers
    yield list(found.values())
    for api in found.values():
        api.close()


@pytest.fixture(scope="package")
def known_items(stack: Stack) -> list[dict[str, Any]]:
    lines = (stack.data_dir / "demo" / "items.ndjson").read_text().splitlines()
    return [json.loads(line) for line in lines]
