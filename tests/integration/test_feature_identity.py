"""Online, offline and training values of every feature are the same, as of the positions that decisions logged."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bandit.item_counts import ItemCounter
from service.adapters.memory_store import MemoryChangeLog, MemoryJournal, MemoryModelStore, MemoryUserStates
from service.adapters.memory_streams import MemoryStore
from service.adapters.redis_store import RedisChangeLog, RedisJournal, RedisModelStore, RedisUserStates, connect
from service.count_items import ItemCounting
from service.item_statistics import ItemStatistics
from service.messages import Decision, ItemStats
from tests.feature_world import Ports, TestWorker, World, build_config


class QuickJournal(MemoryJournal):
    """Reads never wait."""

    async def read(self, after: Mapping[int, str], *, count: int, block_ms: int) -> dict[int, list[tuple[str, bytes]]]:
        return await super().read(after, count=count, block_ms=0)


def memory_world(folder: Path, *, n_partitions: int = 1, seed: int = 1) -> World:
    config = build_config(n_partitions=n_partitions)
    world = World(config=config, ports=None, folder=folder, rng=random.Random(seed))  # type: ignore[arg-type]
    store = MemoryStore(lambda: world.now_ms)
    world.ports = Ports(
        journal=QuickJournal(store, n_partitions=n_partitions),
        log=MemoryChangeLog(store),
        users=MemoryUserStates(store, config.store),
        models=MemoryModelStore(store),
    )
    return world


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nothing here is garbage, and looking for it among so many records takes a fifth of the time."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
async def test_ten_thousand_decisions_have_the_same_features_on_all_three_paths(tmp_path: Path) -> None:
    world = memory_world(tmp_path)
    await world.start()
    await world.run(10_000)
    decisions = world.archived()
    report = await world.check(decisions)
    await world.close()
    assert report.examples == []
    assert (report.n_decisions, report.n_mismatches) == (10_000, 0)
    assert report.n_values > 1_000_000
    assert report.n_profiles_changed == 0
    # The world did what it is for: statistics, showings, sessions and lags were there to be got wrong.
    assert len({d.versions.item_stats for d in decisions}) > 500
    assert sum(bool(d.impression_ids) for d in decisions) > 5_000
    assert sum(len(d.recent_ids) > 2 for d in decisions) > 1_000
    assert sum("ctr" in slot.features["dynamic"] for d in decisions for slot in d.slots) > 10_000


async def test_two_partitions_change_nothing(tmp_path: Path) -> None:
    world = memory_world(tmp_path, n_partitions=2, seed=2)
    await world.start()
    await world.run(500)
    report = await world.check(world.archived())
    await world.close()
    assert report.examples == []
    assert (report.n_decisions, report.n_mismatches) == (500, 0)


async def test_a_real_store_gives_the_same(tmp_path: Path, store_url: str) -> None:
    config = build_config()
    client = connect(store_url, timeout_s=None)
    ports = Ports(
        journal=RedisJournal(client, n_partitions=1),
        log=RedisChangeLog(client),
        users=RedisUserStates(client, config.store),
        models=RedisModelStore(client),
    )
    world = World(config=config, ports=ports, folder=tmp_path, rng=random.Random(3))
    await world.start()
    await world.run(300)
    decisions = world.archived()
    report = await world.check(decisions)
    await world.close()
    await client.aclose()
    assert report.examples == []
    assert (report.n_decisions, report.n_mismatches) == (300, 0)
    assert sum(bool(d.impression_ids) for d in decisions) > 100


async def _mismatches(
    folder: Path, spoil: Callable[[TestWorker, TestWorker], None] | None = None, *, crash: bool = False
) -> Mapping[str, int]:
    world = memory_world(folder, seed=4)
    await world.start(spoil)
    await world.run(150)
    if crash:
        # What the checkpoint counted is beyond what rereading open decisions would count again.
        world.now_ms += 400_000
        await world.run(20)
        await world.learner.save()
        await world.run(40)
        await world.restart_learner()
    await world.run(100)
    report = await world.check(world.archived())
    await world.close()
    return report.by_feature


async def test_a_crash_of_the_learner_counts_nothing_twice(tmp_path: Path) -> None:
    assert await _mismatches(tmp_path, crash=True) == {}


async def test_control_a_worker_that_forgets_the_decay_is_caught(tmp_path: Path) -> None:
    def forget(worker: TestWorker, _: TestWorker) -> None:
        worker.items.statistics._half_life_ms = float("inf")

    caught = await _mismatches(tmp_path, forget)
    assert {"candidates impressions_now", "candidates popularity_now", "dynamic", "training dynamic"} <= caught.keys()


async def test_control_a_worker_that_logs_another_position_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = ItemStatistics.apply

    def late(self: ItemStatistics, position: str, stats: ItemStats) -> bool:
        before = self.as_of
        applied = apply(self, position, stats)
        self.as_of = before or self.as_of
        return applied

    monkeypatch.setattr(ItemStatistics, "apply", late)
    assert "candidates impressions_now" in await _mismatches(tmp_path)


async def test_control_a_learner_that_forgets_its_checkpoint_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ItemCounting, "restore", lambda self, stored, pairs: None)
    assert "candidates impressions_now" in await _mismatches(tmp_path, crash=True)


async def test_control_a_writer_that_counts_duplicates_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = ItemCounter._apply

    def forgetful(self: ItemCounter, shown: Any, position: Any, event: Any) -> None:
        shown.seen.clear()
        apply(self, shown, position, event)

    monkeypatch.setattr(ItemCounter, "_apply", forgetful)
    assert "candidates rewards_now" in await _mismatches(tmp_path)


async def test_control_a_session_of_another_length_and_a_changed_log_are_caught(tmp_path: Path) -> None:
    world = memory_world(tmp_path, seed=5)
    await world.start()
    await world.run(200)
    decisions = world.archived()
    schema = msgspec.structs.replace(world.config.features, session_gap_s=1.0)
    other = msgspec.structs.replace(world.config, features=schema)
    assert (await world.check(decisions, other)).by_feature["user"] > 50
    changed = [_flip(decision) if index == 100 else decision for index, decision in enumerate(decisions)]
    assert (await world.check(changed)).by_feature == {"dynamic": 1, "training dynamic": 1}
    missing = [msgspec.structs.replace(decision, impression_ids=decision.impression_ids[:-1]) for decision in decisions]
    assert (await world.check(missing)).by_feature["candidates n_seen"] > 50
    await world.close()


def _flip(decision: Decision) -> Decision:
    slot = decision.slots[0]
    dynamic = {**slot.features["dynamic"], "ctr": slot.features["dynamic"]["ctr"] * 1.00001}
    spoilt = msgspec.structs.replace(slot, features={**slot.features, "dynamic": dynamic})
    return msgspec.structs.replace(decision, slots=[spoilt, *decision.slots[1:]])
