"""The weights of a version, rebuilt from what the store keeps, are those that workers served at that version."""

from __future__ import annotations

import numpy as np
import pytest

from bandit.policy import ModelSpec, WeightTable
from service.adapters.memory_store import MemoryChangeLog, MemoryModelStore
from service.adapters.memory_streams import MemoryStore
from service.kept_weights import NoWeights, fetch_table
from service.messages import ModelSnapshot, WeightDelta, encode

SPEC = ModelSpec(bits=8, learning_rate=0.1, interactions=(), schema_version="s")
# More deltas between two snapshots than are read at once.
EVERY = 120


class Publisher:
    """Publishes as a learner does, and remembers what a worker serves at each version."""

    def __init__(self) -> None:
        self._store = MemoryStore(lambda: 1_000)
        self.models, self.log = MemoryModelStore(self._store), MemoryChangeLog(self._store)
        self._rng = np.random.default_rng(0)
        self._weights = np.zeros(1 << SPEC.bits, dtype=np.float32)
        self.version = 0
        self.served = {0: self._weights.copy()}
        self._epoch = 0
        self._last_id = "0-0"

    async def start(self) -> None:
        """Take over as a restarted learner does: with weights of its own, and a version of its own."""
        self._epoch = await self.models.take_epoch("m")
        self._weights = np.where(self._rng.random(len(self._weights)) < 0.5, self._weights, 0.0).astype(np.float32)
        self.version += 1
        self.served[self.version] = self._weights.copy()
        await self.snapshot()
        await self.delta(n=0)

    async def delta(self, *, n: int = 5) -> None:
        indices = np.sort(self._rng.permutation(len(self._weights))[:n]).astype("<u4")
        self._weights[indices] = self._rng.normal(size=n)
        delta = WeightDelta(
            epoch=self._epoch,
            base_version=self.version,
            version=self.version + 1,
            indices=indices.tobytes(),
            values=self._weights[indices].astype("<f4").tobytes(),
        )
        self._last_id = await self.models.publish_delta("m", self._epoch, encode(delta))
        self.version += 1
        self.served[self.version] = self._weights.copy()

    async def snapshot(self) -> None:
        used = np.flatnonzero(self._weights)
        snapshot = ModelSnapshot(
            epoch=self._epoch,
            version=self.version,
            stream_id=self._last_id,
            schema_version=SPEC.schema_version,
            bits=SPEC.bits,
            arguments=SPEC.arguments(),
            indices=used.astype("<u4").tobytes(),
            values=self._weights[used].astype("<f4").tobytes(),
        )
        await self.models.publish_snapshot("m", self._epoch, encode(snapshot))

    async def run(self, n: int) -> None:
        for turn in range(1, n + 1):
            await self.delta()
            if turn % EVERY == 0:
                await self.snapshot()

    async def table(self, version: int, spec: ModelSpec = SPEC) -> WeightTable | NoWeights:
        return await fetch_table(self.models, self.log, model="m", spec=spec, version=version)

    async def rebuilt(self, version: int) -> int:
        """Return the version that is rebuilt, after a check that its weights are what was served."""
        table = await self.table(version)
        assert isinstance(table, WeightTable)
        assert table.weights.tolist() == self.served[table.version].tolist()
        return table.version


async def test_every_version_since_the_earlier_snapshot_is_rebuilt_exactly() -> None:
    publisher = Publisher()
    await publisher.start()
    await publisher.run(3 * EVERY + 7)
    earlier = 2 + 2 * EVERY
    for version in range(earlier, publisher.version + 1):
        assert await publisher.rebuilt(version) == version
    assert await publisher.rebuilt(0) == 0
    for version in (1, 2, EVERY, earlier - 1):
        assert await publisher.rebuilt(version) == earlier
    # One that was never published.
    assert await publisher.rebuilt(publisher.version + 5) == publisher.version


async def test_versions_of_before_a_restart_are_rebuilt_and_of_before_two_are_not() -> None:
    publisher = Publisher()
    await publisher.start()
    await publisher.run(20)
    first = publisher.version
    await publisher.start()
    await publisher.run(20)
    for version in range(1, publisher.version + 1):
        assert await publisher.rebuilt(version) == version
    await publisher.start()
    assert await publisher.rebuilt(first) == first + 1
    for version in range(first + 1, publisher.version + 1):
        assert await publisher.rebuilt(version) == version


async def test_deltas_that_are_missing_leave_the_version_before_the_gap() -> None:
    publisher = Publisher()
    await publisher.start()
    await publisher.run(10)
    publisher.version += 1
    await publisher.run(10)
    assert await publisher.rebuilt(12) == 12
    for version in (13, 20):
        assert await publisher.rebuilt(version) == 12


async def test_a_model_without_a_snapshot_or_of_another_shape_has_no_weights() -> None:
    publisher = Publisher()
    assert await publisher.table(3) == NoWeights("the store has no snapshot of model 'm'")
    await publisher.start()
    for changes in ({"bits": 9}, {"schema_version": "t"}):
        other = ModelSpec(
            **{"bits": 8, "learning_rate": 0.1, "interactions": (), "schema_version": "s", **changes}  # type: ignore[arg-type]
        )
        found = await publisher.table(1, other)
        assert isinstance(found, NoWeights)
        assert "8 bits of feature schema s" in found.reason


async def test_a_snapshot_that_is_replaced_between_the_reads_is_found_as_the_earlier_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publisher = Publisher()
    await publisher.start()
    await publisher.run(EVERY + 3)
    load = publisher.models.load_earlier_snapshot

    async def replaced_first(model: str) -> bytes | None:
        await publisher.snapshot()
        return await load(model)

    monkeypatch.setattr(publisher.models, "load_earlier_snapshot", replaced_first)
    # Version 5 was kept until the replacement; what it was made of is gone.
    assert await publisher.rebuilt(5) == EVERY + 2
