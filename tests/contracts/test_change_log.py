"""The contract of ChangeLog, run on every adapter."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from service.adapters.redis_store import RedisChangeLog
from service.errors import Fenced, StoreUnavailable
from service.ports import Entry
from tests.contracts.adapters import Adapters


async def test_an_unknown_stream_is_empty(adapters: Adapters) -> None:
    assert await adapters.change_log().read({"hone:items": "0-0"}, count=10, block_ms=0) == []


async def test_entries_come_back_in_order_with_their_stream_and_id(adapters: Adapters) -> None:
    log = adapters.change_log()
    payloads = [bytes([n]) * n for n in range(256)]
    ids = await log.append("hone:items", payloads)
    found = await log.read({"hone:items": "0-0"}, count=1_000, block_ms=0)
    assert found == [Entry("hone:items", entry_id, payload) for entry_id, payload in zip(ids, payloads, strict=True)]


async def test_each_stream_is_read_after_its_own_position(adapters: Adapters) -> None:
    log = adapters.change_log()
    first, *_ = await log.append("items", [b"i1", b"i2"])
    await log.append("weights", [b"w1"])
    found = await log.read({"items": first, "weights": "0-0"}, count=10, block_ms=0)
    assert sorted((entry.stream, entry.payload) for entry in found) == [("items", b"i2"), ("weights", b"w1")]


async def test_reading_on_from_the_last_id_misses_nothing_and_repeats_nothing(adapters: Adapters) -> None:
    log = adapters.change_log()
    written = [b"%d" % n for n in range(25)]
    await log.append("items", written)
    position, seen = "0-0", []
    while entries := await log.read({"items": position}, count=7, block_ms=0):
        assert len(entries) <= 7
        seen += [entry.payload for entry in entries]
        position = entries[-1].entry_id
    assert seen == written


async def test_concurrent_writers_all_land_and_every_reader_sees_one_order(adapters: Adapters) -> None:
    log = adapters.change_log()
    batches = [[b"%d.%d" % (writer, n) for n in range(20)] for writer in range(5)]
    await asyncio.gather(*(log.append("items", batch) for batch in batches))
    one = await log.read({"items": "0-0"}, count=1_000, block_ms=0)
    assert one == await adapters.change_log().read({"items": "0-0"}, count=1_000, block_ms=0)
    assert sorted(entry.payload for entry in one) == sorted(payload for batch in batches for payload in batch)
    for batch in batches:
        assert [entry.payload for entry in one if entry.payload in batch] == batch


async def test_every_blocked_reader_wakes(adapters: Adapters) -> None:
    log = adapters.change_log()
    readers = [asyncio.create_task(log.read({"a": "0-0", "b": "0-0"}, count=1, block_ms=60_000)) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert not any(reader.done() for reader in readers)
    (entry_id,) = await log.append("b", [b"news"])
    async with asyncio.timeout(20):
        assert await asyncio.gather(*readers) == [[Entry("b", entry_id, b"news")]] * 3


async def test_a_blocked_reader_gives_up_empty_handed(adapters: Adapters) -> None:
    async with asyncio.timeout(20):
        assert await adapters.change_log().read({"items": "0-0"}, count=10, block_ms=20) == []


async def test_a_blocked_reader_can_be_cancelled_and_others_go_on(adapters: Adapters) -> None:
    log = adapters.change_log()
    reader = asyncio.create_task(log.read({"items": "0-0"}, count=1, block_ms=60_000))
    await asyncio.sleep(0.05)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await log.append("items", [b"a"])
    assert len(await log.read({"items": "0-0"}, count=1, block_ms=0)) == 1


async def test_every_call_to_a_store_that_is_away_raises_store_unavailable(nowhere: Redis) -> None:
    log = RedisChangeLog(nowhere)
    with pytest.raises(StoreUnavailable):
        await log.append("items", [b"a"])
    with pytest.raises(StoreUnavailable):
        await log.read({"items": "0-0"}, count=1, block_ms=0)
    with pytest.raises(StoreUnavailable):
        await log.take_epoch("items", at_least=1)
    with pytest.raises(StoreUnavailable):
        await log.publish("items", 1, b"a", is_whole=False)


async def test_a_published_whole_drops_what_came_before_it(adapters: Adapters) -> None:
    log = adapters.change_log()
    epoch = await log.take_epoch("hone:itemstats", at_least=0)
    for payload, is_whole in ((b"a", False), (b"whole", True), (b"b", False)):
        await log.publish("hone:itemstats", epoch, payload, is_whole=is_whole)
    found = await log.read({"hone:itemstats": "0-0"}, count=10, block_ms=0)
    assert [entry.payload for entry in found] == [b"whole", b"b"]


async def test_an_older_epoch_neither_publishes_nor_drops_anything(adapters: Adapters) -> None:
    log = adapters.change_log()
    old = await log.take_epoch("hone:itemstats", at_least=7)
    new = await log.take_epoch("hone:itemstats", at_least=1)
    assert (old, new) == (7, 8)
    await log.publish("hone:itemstats", new, b"new", is_whole=True)
    with pytest.raises(Fenced):
        await log.publish("hone:itemstats", old, b"old", is_whole=True)
    found = await log.read({"hone:itemstats": "0-0"}, count=10, block_ms=0)
    assert [entry.payload for entry in found] == [b"new"]


async def test_trimming_drops_what_is_before_an_id_and_readers_go_on_after_it(adapters: Adapters) -> None:
    log = adapters.change_log()
    ids = await log.append("hone:itemstats", [b"1", b"2", b"3"])
    assert await log.trim("hone:itemstats", ids[2]) == 2
    assert await log.trim("nothing", "9-0") == 0
    for after in ("0-0", ids[0], ids[1]):
        found = await log.read({"hone:itemstats": after}, count=10, block_ms=0)
        assert [entry.payload for entry in found] == [b"3"]
