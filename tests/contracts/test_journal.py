"""The contract of Journal, run on every adapter."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from service.adapters.redis_store import RedisJournal
from service.errors import StoreUnavailable
from service.messages import DecisionSummary, encode
from service.ports import Journal, Shipment
from tests.contracts.adapters import Adapters, MemoryAdapters, RedisAdapters

EVERYTHING = {0: "0-0"}
ALL_BYTES = bytes(range(256))


def _summary(name: str) -> DecisionSummary:
    return DecisionSummary(digest=name, surface="home", user_id=None, item_ids=[name])


def _shipment(event_id: str, entry: bytes = b"entry", *, digest: str = "d", ttl_ms: int = 60_000) -> Shipment:
    return Shipment(event_id=event_id, summary=encode(_summary(digest)), entry=entry, ttl_ms=ttl_ms)


def _order(entry_id: str) -> tuple[int, int]:
    ms, sequence = entry_id.split("-")
    return int(ms), int(sequence)


async def _payloads(journal: Journal, partition: int = 0) -> list[bytes]:
    found = await journal.read({partition: "0-0"}, count=1_000, block_ms=0)
    return [payload for _, payload in found.get(partition, [])]


async def test_the_first_shipment_claims_and_every_later_one_gets_its_claim(adapters: Adapters) -> None:
    journal = adapters.journal()
    (first,) = await journal.ship([_shipment("e1", b"winner", digest="winner")])
    (second,) = await journal.ship([_shipment("e1", b"loser", digest="loser")])
    assert first.is_new
    assert not second.is_new
    assert (second.journal_id, second.summary) == (first.journal_id, _summary("winner"))
    assert await _payloads(journal) == [b"winner"]


async def test_one_batch_may_hold_an_event_id_twice(adapters: Adapters) -> None:
    journal = adapters.journal()
    claims = await journal.ship([_shipment("e1", b"a", digest="a"), _shipment("e2", b"b"), _shipment("e1", b"c")])
    assert [claim.is_new for claim in claims] == [True, True, False]
    assert claims[2].summary == _summary("a")
    assert await _payloads(journal) == [b"a", b"b"]


def _numbered(number: int, entry: bytes, *, event_id: str = "", partition: int = 0, origin: str = "o") -> Shipment:
    summary = encode(_summary("d")) if event_id else b""
    return Shipment(
        event_id=event_id,
        summary=summary,
        entry=entry,
        ttl_ms=150,
        partition=partition,
        origin=origin,
        number=number,
    )


async def test_a_number_of_an_origin_arrives_once_however_late_it_comes_again(adapters: Adapters) -> None:
    journal = adapters.journal()
    batch = [_numbered(1, b"decision", event_id="e1"), _numbered(2, b"event")]
    decision, event = await journal.ship(batch)
    assert decision is not None
    assert decision.is_new
    assert event is None
    (again, _) = await journal.ship(batch)
    assert again is not None
    assert (again.journal_id, again.is_new) == (decision.journal_id, False)
    await adapters.pass_ms(300)
    # The claim is over; only the number says that it was here.
    *old, new = await journal.ship([*batch, _numbered(3, b"next", event_id="e2")])
    assert old == [None, None]
    assert new is not None
    assert new.is_new
    assert await _payloads(journal) == [b"decision", b"event", b"next"]


async def test_numbers_are_of_their_origin_and_partition(adapters: Adapters) -> None:
    journal = adapters.journal(n_partitions=2)
    await journal.ship([_numbered(2, b"a"), _numbered(1, b"b", origin="other"), _numbered(1, b"c", partition=1)])
    await journal.ship([_numbered(1, b"before a"), _numbered(2, b"d", origin="other"), _numbered(3, b"e", partition=1)])
    assert await _payloads(journal) == [b"a", b"b", b"d"]
    assert await _payloads(journal, 1) == [b"c", b"e"]


async def test_what_has_no_number_always_arrives(adapters: Adapters) -> None:
    journal = adapters.journal()
    for _ in range(2):
        await journal.ship([_numbered(0, b"event", origin="")])
    assert await _payloads(journal) == [b"event", b"event"]


async def test_of_many_at_once_exactly_one_claims(adapters: Adapters) -> None:
    journal = adapters.journal()
    claims = await asyncio.gather(*(journal.ship([_shipment("e1", b"%d" % n, digest=str(n))]) for n in range(20)))
    winners = [n for n, (claim,) in enumerate(claims) if claim.is_new]
    assert len(winners) == 1
    assert {claim.summary.digest for (claim,) in claims} == {str(winners[0])}
    assert await _payloads(journal) == [b"%d" % winners[0]]


async def test_claims_are_found_by_event_id_in_the_order_asked(adapters: Adapters) -> None:
    journal = adapters.journal(n_partitions=3)
    shipped = await journal.ship([_shipment(f"e{n}", digest=str(n)) for n in range(10)])
    found = await journal.claims(["e7", "nobody", "e0"])
    assert found[1] is None
    assert [claim and (claim.journal_id, claim.summary.digest, claim.is_new) for claim in (found[0], found[2])] == [
        (shipped[7].journal_id, "7", False),
        (shipped[0].journal_id, "0", False),
    ]


async def test_a_claim_ends_after_its_time_and_can_be_taken_again(adapters: Adapters) -> None:
    journal = adapters.journal()
    await journal.ship([_shipment("e1", digest="old", ttl_ms=150), _shipment("e2", ttl_ms=60_000)])
    assert (await journal.claims(["e1"]))[0] is not None
    await adapters.pass_ms(300)
    ended, kept = await journal.claims(["e1", "e2"])
    assert ended is None
    assert kept is not None
    (again,) = await journal.ship([_shipment("e1", digest="new")])
    assert again.is_new
    assert again.summary == _summary("new")


async def test_entries_are_read_in_the_order_they_were_appended(adapters: Adapters) -> None:
    journal = adapters.journal()
    written = [b"%d" % n for n in range(50)]
    ids = [*await journal.append(0, written[:25]), *await journal.append(0, written[25:])]
    assert sorted(ids, key=_order) == ids
    assert len(set(ids)) == 50
    assert await journal.read(EVERYTHING, count=100, block_ms=0) == {0: list(zip(ids, written, strict=True))}


async def test_a_shipped_decision_and_an_appended_event_share_one_order(adapters: Adapters) -> None:
    journal = adapters.journal()
    (before,) = await journal.append(0, [b"before"])
    (claim,) = await journal.ship([_shipment("e1", b"decision")])
    (after,) = await journal.append(0, [b"after"])
    assert _order(before) < _order(claim.journal_id) < _order(after)
    assert await _payloads(journal) == [b"before", b"decision", b"after"]


async def test_reading_begins_after_the_given_id_and_stops_at_the_count(adapters: Adapters) -> None:
    journal = adapters.journal()
    ids = await journal.append(0, [b"a", b"b", b"c", b"d"])
    assert await journal.read({0: ids[0]}, count=2, block_ms=0) == {0: [(ids[1], b"b"), (ids[2], b"c")]}
    assert await journal.read({0: ids[3]}, count=2, block_ms=0) == {}


async def test_partitions_are_read_together_and_stay_apart(adapters: Adapters) -> None:
    journal = adapters.journal(n_partitions=3)
    await journal.append(0, [b"a", b"b"])
    await journal.append(2, [b"c"])
    found = await journal.read({0: "0-0", 1: "0-0", 2: "0-0"}, count=10, block_ms=0)
    assert {p: [payload for _, payload in entries] for p, entries in found.items()} == {0: [b"a", b"b"], 2: [b"c"]}


async def test_the_count_bounds_every_partition_by_itself(adapters: Adapters) -> None:
    journal = adapters.journal(n_partitions=2)
    for partition in (0, 1):
        await journal.append(partition, [b"x"] * 5)
    found = await journal.read({0: "0-0", 1: "0-0"}, count=3, block_ms=0)
    assert {p: len(entries) for p, entries in found.items()} == {0: 3, 1: 3}


async def test_a_blocked_reader_wakes_with_the_first_entry(adapters: Adapters) -> None:
    journal = adapters.journal(n_partitions=2)
    reading = asyncio.create_task(journal.read({0: "0-0", 1: "0-0"}, count=10, block_ms=60_000))
    await asyncio.sleep(0.05)
    assert not reading.done()
    (entry_id,) = await journal.append(1, [b"news"])
    async with asyncio.timeout(20):
        assert await reading == {1: [(entry_id, b"news")]}


async def test_a_blocked_reader_gives_up_empty_handed(adapters: Adapters) -> None:
    async with asyncio.timeout(20):
        assert await adapters.journal().read(EVERYTHING, count=10, block_ms=20) == {}


async def test_one_entry_is_found_by_its_id_with_every_byte(adapters: Adapters) -> None:
    journal = adapters.journal()
    _, middle, _ = await journal.append(0, [b"a", ALL_BYTES, b""])
    assert await journal.entry(0, middle) == ALL_BYTES
    assert await journal.entry(0, "1-1") is None


async def test_trim_drops_what_is_before_an_id_and_keeps_it(adapters: Adapters) -> None:
    journal = adapters.journal()
    ids = await journal.append(0, [b"a", b"b", b"c"])
    assert await journal.trim(0, ids[2]) == 2
    assert await journal.trim(0, ids[2]) == 0
    assert await _payloads(journal) == [b"c"]
    assert await journal.entry(0, ids[0]) is None


async def test_ids_rise_even_when_everything_was_trimmed(adapters: Adapters) -> None:
    journal = adapters.journal()
    (old,) = await journal.append(0, [b"a"])
    ms, sequence = _order(old)
    assert await journal.trim(0, f"{ms + 1}-{sequence}") == 1
    (new,) = await journal.append(0, [b"b"])
    assert _order(new) > _order(old)


async def test_an_event_id_always_lives_in_the_same_partition(adapters: Adapters) -> None:
    journal = adapters.journal(n_partitions=4)
    # Fixed for ever: a journal that was written by another version must be found.
    assert [journal.partition_of(event_id) for event_id in ("", "e1", "e2", "01J", "ü")] == [0, 3, 2, 0, 1]
    (claim,) = await journal.ship([_shipment("e1", b"here")])
    assert await journal.entry(journal.partition_of("e1"), claim.journal_id) == b"here"


async def test_a_memory_journal_goes_on_when_its_clock_goes_back() -> None:
    adapters = MemoryAdapters(now_ms=0)
    journal = adapters.journal()
    ids = await journal.append(0, [b"a"])
    adapters.now_ms = 5_000
    ids += await journal.append(0, [b"b"])
    adapters.now_ms = 1_000
    ids += await journal.append(0, [b"c"])
    assert ids == ["0-1", "5000-0", "5000-1"]


@pytest.mark.parametrize("adapters", ["redis"], indirect=True)
async def test_a_server_that_forgot_its_scripts_is_taught_again(adapters: RedisAdapters) -> None:
    journal = adapters.journal()
    await journal.ship([_shipment("e1")])
    await adapters.client.script_flush()
    claims = await journal.ship([_shipment("e1"), _shipment("e2")])
    assert [claim.is_new for claim in claims] == [False, True]


async def test_every_call_to_a_store_that_is_away_raises_store_unavailable(nowhere: Redis) -> None:
    journal = RedisJournal(nowhere, n_partitions=1)
    calls = [
        lambda: journal.ship([_shipment("e1")]),
        lambda: journal.append(0, [b"a"]),
        lambda: journal.read(EVERYTHING, count=1, block_ms=0),
        lambda: journal.claims(["e1"]),
        lambda: journal.entry(0, "1-0"),
        lambda: journal.trim(0, "1-0"),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable):
            await call()
