"""Fixtures that run a suite on every adapter of the store ports."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from service.adapters.redis_store import connect
from tests.contracts.adapters import Adapters, MemoryAdapters, RedisAdapters


@pytest.fixture(params=["memory", "redis"])
async def adapters(request: pytest.FixtureRequest) -> AsyncIterator[Adapters]:
    if request.param == "memory":
        yield MemoryAdapters()
        return
    client = connect(request.getfixturevalue("store_url"), timeout_s=None)
    try:
        yield RedisAdapters(client)
    finally:
        await client.aclose()


@pytest.fixture
async def nowhere() -> AsyncIterator[Redis]:
    """A client of a store that is not there."""
    client = connect("unix:///nonexistent/hone.sock", timeout_s=0.2)
    try:
        yield client
    finally:
        await client.aclose()
