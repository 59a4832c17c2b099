"""Fixtures on real parts: a store that is emptied before each test, and a whole stack shared by a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.stack import Stack, short_folder, start_stack, start_store


@pytest.fixture(autouse=True, scope="session")
def _own_loggers() -> Iterator[None]:
    """Commands that run in the tests' process leave its loggers as they are.

    They would go on writing to the command's standard error, which ends with it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulators.simulate_commands.configure_logs", lambda *_, **__: None)
        yield


@pytest.fixture(scope="session")
def _store_server() -> Iterator[str]:
    with short_folder() as folder:
        url, stop = start_store(folder)
        try:
            yield url
        finally:
            stop()


@pytest.fixture
def store_url(_store_server: str) -> str:
    """URL of a real, empty store."""
    client = redis.Redis.from_url(_store_server)
    client.flushall()
    client.close()
    return _store_server


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A whole `hone serve` on the demo data."""
    with short_folder() as folder:
        running = start_stack(folder)
        try:
            yield running
        finally:
            running.stop()
