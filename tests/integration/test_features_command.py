"""`hone features`: the archive is checked against what was served, and can restore the online store."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from service.adapters.memory_store import MemoryUserStates
from service.adapters.memory_streams import MemoryStore
from service.errors import NotFound
from service.inspect_features import materialise_statistics, materialise_users
from service.messages import Checkpoint
from service.offline_features import OfflineStore
from tests.feature_world import MODEL, SALT, World
from tests.integration.test_feature_identity import memory_world


@pytest.fixture
async def world(tmp_path: Path) -> World:
    world = memory_world(tmp_path, seed=6)
    await world.start()
    await world.run(150)
    await world.learner.save()
    await world.close()
    return world


async def _checkpoint(world: World) -> Checkpoint:
    stored = await world.ports.models.load_checkpoint(MODEL)
    assert stored is not None
    return msgspec.msgpack.decode(stored, type=Checkpoint)


async def test_lost_statistics_come_back_from_the_archive(world: World) -> None:
    a, _ = world.workers
    await world.learner.step()
    await a.follow()
    rows = [row for row in range(60) if a.items.catalogue.item_ids[row]]
    before = a.items.statistics.columns(_rows(rows), world.now_ms)
    checkpoint = await _checkpoint(world)
    lost = msgspec.structs.replace(checkpoint, item_stats=b"")
    epoch = await world.ports.models.take_epoch(MODEL)
    await world.ports.models.save_checkpoint(MODEL, epoch, msgspec.msgpack.encode(lost))
    config = msgspec.structs.replace(world.config, data_dir=str(world.folder))
    store = OfflineStore(config, world.folder / "archive")
    assert await materialise_statistics(config, store, world.ports.models) > 20
    store.close()
    await world.restart_learner()
    await a.follow()
    after = a.items.statistics.columns(_rows(rows), world.now_ms)
    assert before["impressions_now"].sum() > 100
    for name, column in before.items():
        assert after[name] == pytest.approx(column, rel=1e-6, abs=1e-9)


async def test_an_archive_that_lags_restores_nothing(world: World) -> None:
    config = msgspec.structs.replace(world.config, data_dir=str(world.folder))
    store = OfflineStore(config, world.folder / "archive")
    (world.folder / "archive" / "state.json").write_text('{"positions": {"0": "1-0"}}')
    with pytest.raises(NotFound, match="has not reached"):
        await materialise_statistics(config, store, world.ports.models)
    store.close()


async def test_a_lost_user_state_comes_back_from_the_archive(world: World) -> None:
    store = OfflineStore(world.config, world.folder / "archive")
    users = MemoryUserStates(MemoryStore(lambda: world.now_ms), world.config.store)
    ids = [f"u{n}" for n in range(40)]
    n_interactions, n_impressions = await materialise_users(world.config, store, users, user_ids=ids, salt=SALT)
    store.close()
    assert n_interactions > 20
    assert n_impressions > 150
    for user_id in ids:
        lived, restored = await world.ports.users.fetch(user_id), await users.fetch(user_id)
        assert restored.impressions == lived.impressions
        # Repeated reports of one event take places among the recent ones; the archive restores each once.
        assert {i.client_id for i in restored.recent} >= {i.client_id for i in lived.recent}


async def test_an_empty_archive_has_nothing_to_say(world: World, tmp_path: Path) -> None:
    store = OfflineStore(world.config, tmp_path / "nothing")
    assert store.statistics(["a"], [(1, 0, 0)], [5]).impressions.tolist() == [0.0]
    assert store.interactions(["c"], [5]) == [[]]
    assert store.impressions(["e"]) == {}
    store.close()


def _rows(rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.int32)
