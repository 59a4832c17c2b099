"""The contract of HealthBoard, run on every adapter."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from service.adapters.redis_store import RedisHealthBoard
from service.errors import StoreUnavailable
from tests.contracts.adapters import Adapters


async def test_nobody_has_published_at_first(adapters: Adapters) -> None:
    assert await adapters.health_board().fetch() is None


async def test_the_newest_verdict_is_read(adapters: Adapters) -> None:
    board = adapters.health_board()
    await board.publish(b"first", ttl_ms=60_000)
    await board.publish(bytes(range(256)), ttl_ms=60_000)
    assert await board.fetch() == bytes(range(256))


async def test_a_verdict_that_is_not_renewed_is_gone(adapters: Adapters) -> None:
    board = adapters.health_board()
    await board.publish(b"old", ttl_ms=30)
    await adapters.pass_ms(60)
    assert await board.fetch() is None


async def test_a_store_that_is_away_is_said_to_be(nowhere: Redis) -> None:
    board = RedisHealthBoard(nowhere)
    with pytest.raises(StoreUnavailable):
        await board.fetch()
    with pytest.raises(StoreUnavailable):
        await board.publish(b"", ttl_ms=1_000)
