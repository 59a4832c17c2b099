"""The writer of live co-occurrence and the worker that follows it: published, bounded, fenced, restored."""

from __future__ import annotations

import random
from functools import partial

import msgspec
import numpy as np
import pytest

from bandit.joining import JoinEvent
from retrieval.item_to_item import ItemToItem
from service.adapters.memory_store import MemoryChangeLog, MemoryStore
from service.config import Config, load_config
from service.count_items import ItemCounting
from service.count_pairs import PairCounting
from service.errors import Fenced
from service.item_pairs import ITEM_PAIRS_STREAM, FollowedPairs, put_pairs
from service.messages import ItemPairs

AT = (1_000, 0, 0)


class Site:
    """A writer, and a worker that follows it."""

    def __init__(self) -> None:
        self.log = MemoryChangeLog(MemoryStore(lambda: 0))
        self.table = ItemToItem({}, None, {f"i{n}": n for n in range(10_000)}.get)
        self.followed = FollowedPairs(partial(put_pairs, self.table))

    async def follow(self) -> list[ItemPairs]:
        entries = await self.log.read({ITEM_PAIRS_STREAM: self.followed.position}, count=10_000, block_ms=0)
        read = [msgspec.msgpack.decode(entry.payload, type=ItemPairs) for entry in entries]
        for entry, pairs in zip(entries, read, strict=True):
            self.followed.apply(entry.entry_id, pairs)
        return read

    def also_liked(self, item_id: str) -> list[int]:
        return self.table.also_liked([(item_id, 1.0)], now_ms=1_000)[0].tolist()


async def test_what_is_counted_is_served_after_the_next_publication() -> None:
    site = Site()
    counting = PairCounting(site.log)
    await counting.start(1, None)
    for user, items in (("u", ["i1", "i2"]), ("v", ["i1", "i2", "i3"]), ("", ["i8", "i9"])):
        for item_id in items:
            counting.add(user, item_id, 1_000)
    await counting.publish(5_000, AT)
    await site.follow()
    assert site.also_liked("i1") == [2, 3]
    assert site.also_liked("i8") == []
    # Nothing changed, nothing is published; no more than once a second.
    await counting.publish(7_000, AT)
    counting.add("w", "i4", 1_000)
    counting.add("w", "i1", 1_000)
    await counting.publish(7_500, AT)
    assert await site.follow() == []
    await counting.publish(8_000, AT)
    assert len(await site.follow()) == 1
    assert site.also_liked("i4") == [1]


async def test_a_restored_writer_goes_on_as_if_it_had_never_stopped() -> None:
    rng = random.Random(8)
    likes = [(f"u{rng.randrange(30)}", f"i{rng.randrange(40)}", n * 10) for n in range(2_000)]
    whole, first, second = (PairCounting(Site().log) for _ in range(3))
    for like in likes:
        whole.add(*like)
    for like in likes[:900]:
        first.add(*like)
    # What is read again before the checkpoint is taken counts nothing.
    for like in likes[800:900]:
        second.add(*like)
    second.restore(first.checkpoint(AT))
    for like in likes[900:]:
        second.add(*like)
    assert second.checkpoint(AT) == whole.checkpoint(AT)


async def test_the_stream_stays_bounded_and_a_late_worker_reads_everything() -> None:
    site = Site()
    counting = PairCounting(site.log)
    await counting.start(1, None)
    rng = random.Random(3)
    for second in range(300):
        for _ in range(40):
            counting.add(f"u{rng.randrange(500)}", f"i{rng.randrange(1_500)}", 1_000)
        await counting.publish(10_000 + 1_000 * second, AT)
    read = await site.follow()
    assert read[0].is_whole
    assert sum(len(pairs.n_users) // 8 for pairs in read) <= 5_000 + 6 * 1_500
    fresh = Site()
    await PairCounting(fresh.log).start(1, None)
    again = PairCounting(fresh.log)
    again.restore(counting.checkpoint(AT))
    await again.start(2, AT)
    await fresh.follow()
    for n in range(0, 1_500, 50):
        assert fresh.also_liked(f"i{n}") == site.also_liked(f"i{n}")


async def test_a_writer_that_was_replaced_is_refused_and_passed_over() -> None:
    site = Site()
    old, new = PairCounting(site.log), PairCounting(site.log)
    await old.start(1, None)
    await new.start(1, None)
    old.add("u", "i1", 0)
    with pytest.raises(Fenced):
        await old.publish(5_000, AT)
    (newest,) = await site.follow()
    stale = msgspec.structs.replace(newest, epoch=newest.epoch - 1, is_whole=True)
    assert not site.followed.apply("9-0", stale)


async def test_a_failed_publication_is_made_up_for_by_a_whole() -> None:
    site = Site()
    counting = PairCounting(site.log)
    await counting.start(1, None)
    counting.add("u", "i1", 0)
    counting.add("u", "i2", 0)
    counting._epoch -= 1
    with pytest.raises(Fenced):
        await counting.publish(5_000, AT)
    counting._epoch += 1
    await counting.publish(6_000, AT)
    read = await site.follow()
    assert [pairs.is_whole for pairs in read] == [True]
    assert site.also_liked("i1") == [2]


def test_arrays_that_do_not_fit_together_are_refused_and_change_nothing() -> None:
    site = Site()
    pairs = ItemPairs(
        epoch=1,
        as_of="",
        is_whole=True,
        half_life_ms=1.0,
        ids=["i1"],
        n_users=np.ones(1).tobytes(),
        counted_at=np.zeros(1, dtype="<i8").tobytes(),
        n_partners=np.array([1], dtype="<i4").tobytes(),
        partners=np.array([1], dtype="<i4").tobytes(),
        counts=np.ones(1).tobytes(),
    )
    with pytest.raises(ValueError, match="do not fit together"):
        site.followed.apply("1-0", pairs)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    path = tmp_path_factory.mktemp("config") / "hone.toml"
    path.write_text(
        "[models.default]\n[surfaces.s]\n[surfaces.s.reward]\n"
        "events = { click = { base = 1.0 }, skip = { base = -1.0 } }\n"
    )
    return load_config(path)


class _Slot(msgspec.Struct):
    item_id: str


class _Shown(msgspec.Struct):
    event_id: str
    surface: str
    decided_at_unix_ms: int
    slots: list[_Slot]
    user_key: str


def _event(
    event_type: str, *, event_id: str | None = None, item_id: str | None = None, slot: int | None = None, user: str = ""
) -> JoinEvent:
    return JoinEvent(
        client_id=f"{event_id}{item_id}{slot}",
        event_type=event_type,
        event_id=event_id,
        user_key=user,
        item_id=item_id,
        slot=slot,
        value=1.0,
        accepted_at_ms=500,
    )


async def test_clicks_of_a_slate_and_events_by_user_and_item_count_for_the_same_user(config: Config) -> None:
    site = Site()
    counting = ItemCounting(config=config, log=site.log)
    await counting.start(1)
    slate = [_Slot("i1"), _Slot("i2"), _Slot("i3")]
    # An event may come before its decision.
    counting.add_event((900, 0, 0), _event("click", event_id="e", slot=0))
    counting.add_decision((1_000, 0, 0), _Shown("e", "s", 900, slate, "u"))
    counting.add_event((1_001, 0, 0), _event("skip", event_id="e", slot=1))
    counting.add_event((1_002, 0, 0), _event("click", event_id="e", slot=2))
    counting.add_event((1_003, 0, 0), _event("click", item_id="i4", user="u"))
    counting.add_event((1_004, 0, 0), _event("skip", item_id="i5", user="u"))
    counting.forget_user("u")
    counting.add_event((1_005, 0, 0), _event("click", item_id="i6", user="u"))
    await counting.publish(5_000)
    await site.follow()
    assert sorted(site.also_liked("i1")) == [3, 4]
    assert sorted(site.also_liked("i4")) == [1, 3]
    for item_id in ("i2", "i5", "i6"):
        assert site.also_liked(item_id) == []
