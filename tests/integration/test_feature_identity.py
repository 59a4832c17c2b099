"""Online, offline and training values of every feature are the same, as of the positions that decisions logged."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.adapters.memory_store import MemoryChangeLog, MemoryJournal, MemoryModelStore, MemoryUserStates
from service.adapters.memory_streams import MemoryStore
from service.adapters.redis_store import RedisChangeLog, RedisJournal, RedisModelStore, RedisUserStates, connect
from tests.feature_world import Ports, TestWorker, World, build_config


class QuickJournal(MemoryJournal):
    """Reads never wait."""

    async def read(self, after, *, count, block_ms):  # type: ignore[no-untyped-def]
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
    assert any("ctr" in name for slot in decisions[-1].slots for name in slot.features["dynamic"])


async def test_two_partitions_change_nothing(tmp_path: Path) -> None:
    world = memory_world(tmp_path, n_partitions=2, seed=2)
    await world.start()
    await world.run(1_200)
    report = await world.check(world.archived())
    await world.close()
    assert report.examples == []
    assert (report.n_decisions, report.n_mismatches) == (1_200, 0)
