"""The learner: the same journal gives the same model, whatever happens to the process or the store in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bandit.features import Feature, FeatureSchema
from bandit.learner import Learner
from bandit.rewards import EventReward, RewardPolicy
from retrieval.catalogue import Catalogue
from retrieval.items import Item
from service.adapters.memory_store import MemoryChangeLog, MemoryJournal, MemoryModelStore, MemoryUserStates
from service.adapters.memory_streams import MemoryStore
from service.config import Config, ModelConfig, SourceConfig, StoreConfig, SurfaceConfig
from service.errors import Fenced, StoreUnavailable
from service.follow import Follower
from service.items_view import ItemsView
from service.learn import LearnerLoop
from service.live_config import LiveConfig
from service.messages import (
    Checkpoint,
    Decision,
    DecisionSummary,
    Event,
    Heartbeat,
    ItemUpsert,
    ModelSnapshot,
    WeightDelta,
    encode,
)
from service.metrics import Metrics
from service.ports import Shipment
from service.retriever import Retriever
from service.rule_columns import AttributeColumns
from service.served_model import ServedModel
from tests.make_golden import DECISION, VALUES

MODEL = "m"
START_MS = 1_000_000
SCHEMA = FeatureSchema(
    features=[
        Feature(name="device", namespace="context", source="device"),
        Feature(name="slot", namespace="position", source="slot"),
        Feature(name="id", namespace="item", source="id"),
    ],
    interactions=[("context", "item")],
)
CONFIG = Config(
    features=SCHEMA,
    models={MODEL: ModelConfig(bits=12, learning_rate=0.1, checkpoint_s=1e9)},
    surfaces={
        "quick": SurfaceConfig(
            model=MODEL,
            sources=[SourceConfig(name="popular", quota=1)],
            reward=RewardPolicy(events={"click": EventReward(base=1.0)}, negative_window_s=5.0, window_s=20.0),
        ),
        "slow": SurfaceConfig(
            model=MODEL,
            reward=RewardPolicy(
                events={"play": EventReward(per_unit=0.1)},
                aggregation="sum",
                learn="at_close",
                negative_window_s=10.0,
                window_s=30.0,
            ),
        ),
    },
)


class Journal(MemoryJournal):
    """Reads never wait, and bring as few entries as a test wants."""

    def __init__(self, store: MemoryStore, *, n_partitions: int = 1) -> None:
        super().__init__(store, n_partitions=n_partitions)
        self.limit = 1_000

    async def read(self, after: Any, *, count: int, block_ms: int) -> Any:
        return await super().read(after, count=min(count, self.limit), block_ms=0)


class Crash(BaseException):
    """The learner's process ends here."""


class Models(MemoryModelStore):
    """A model store whose next write can fail, before it happens or after."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.fail: BaseException | None = None
        self.happens = False

    async def _write(self, write: Callable[[], Any]) -> Any:
        fail, self.fail = self.fail, None
        if fail is not None and not self.happens:
            raise fail
        answer = await write()
        if fail is not None:
            raise fail
        return answer

    async def publish_delta(self, model: str, epoch: int, delta: bytes) -> str:
        answer: str = await self._write(lambda: super(Models, self).publish_delta(model, epoch, delta))
        return answer

    async def save_checkpoint(self, model: str, epoch: int, checkpoint: bytes) -> None:
        await self._write(lambda: super(Models, self).save_checkpoint(model, epoch, checkpoint))

    async def publish_snapshot(self, model: str, epoch: int, snapshot: bytes) -> None:
        await self._write(lambda: super(Models, self).publish_snapshot(model, epoch, snapshot))


@dataclass
class World:
    """A store, its adapters, and a writer that plays the API workers."""

    n_partitions: int = 1
    now_ms: int = START_MS
    n_events: int = 0
    decisions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = MemoryStore(lambda: self.now_ms)
        self.journal = Journal(self.store, n_partitions=self.n_partitions)
        self.models = Models(self.store)
        self.users = MemoryUserStates(self.store, StoreConfig())
        self.log = MemoryChangeLog(self.store)

    def loop(self, clock: Callable[[], int] = lambda: 0) -> LearnerLoop:
        """Return a learner; by default its clock stands still, so that it writes no heartbeats of its own."""
        return LearnerLoop(
            config=CONFIG,
            model=MODEL,
            journal=self.journal,
            models=self.models,
            users=self.users,
            metrics=Metrics(),
            clock=clock,
        )

    async def decide(self, event_id: str, *, surface: str = "quick", n_slots: int = 2, user: int = 0) -> None:
        slots = [
            msgspec.structs.replace(
                DECISION.slots[0],
                item_id=f"i{(len(self.decisions) + slot) % 5}",
                propensity=0.25 + 0.5 / (1 + slot),
                features={"item": {f"id=i{(len(self.decisions) + slot) % 5}": 1.0}, "dynamic": {}},
            )
            for slot in range(n_slots)
        ]
        decision = msgspec.structs.replace(
            DECISION,
            event_id=event_id,
            surface=surface,
            model=MODEL,
            user_id=f"u{user}",
            user_key=f"k{user}",
            features={"context": {f"device={user}": 1.0}, "user": {}, "position": {}},
            slots=slots,
        )
        summary = DecisionSummary(digest="d", surface=surface, user_id=f"u{user}", item_ids=[s.item_id for s in slots])
        shipment = Shipment(event_id=event_id, summary=encode(summary), entry=encode(decision), ttl_ms=10**9)
        self.decisions.append(event_id)
        await self.journal.ship([shipment])

    async def happen(self, event_id: str | None, *, event_type: str = "click", **fields: Any) -> None:
        self.n_events += 1
        user = fields.pop("user", 0)
        event = Event(
            **{
                "accepted_at_unix_ms": self.now_ms,
                "client_id": f"c{self.n_events}",
                "event_type": event_type,
                "event_id": event_id,
                "user_id": None if event_id else f"u{user}",
                "user_key": f"k{user}",
                "item_id": None,
                "slot": None,
                "value": 1.0,
                "client_unix_ms": None,
                **fields,
            }
        )
        await self.journal.append(self.journal.partition_of(event_id or event.user_key), [encode(event)])

    async def beat(self) -> None:
        for partition in range(self.n_partitions):
            await self.journal.append(partition, [encode(Heartbeat(at_unix_ms=self.now_ms))])

    async def counters(self) -> dict[str, int]:
        """Return every counter of the saved checkpoint."""
        counters = await self.counters_or_none()
        assert counters is not None
        return counters

    async def counters_or_none(self) -> dict[str, int] | None:
        """Return the same, None when no checkpoint was saved."""
        stored = await self.models.load_checkpoint(MODEL)
        return None if stored is None else msgspec.msgpack.decode(stored, type=Checkpoint).counters

    async def state(self) -> tuple[Any, ...]:
        """Weights and counts of the saved checkpoint, to the bit."""
        stored = await self.models.load_checkpoint(MODEL)
        assert stored is not None
        checkpoint = msgspec.msgpack.decode(stored, type=Checkpoint)
        weights = Learner(CONFIG.model_spec(MODEL), checkpoint.workspace).all_weights()
        counters = {name: count for name, count in checkpoint.counters.items() if count}
        return (
            weights.indices.tobytes(),
            weights.values.tobytes(),
            checkpoint.n_learned,
            checkpoint.loss_sum,
            counters,
            checkpoint.positions,
        )


@dataclass
class Reader:
    """An API worker's view of the model."""

    follower: Follower
    served: ServedModel

    @classmethod
    def of(cls, world: World) -> Reader:
        metrics = Metrics()
        served = ServedModel(MODEL, CONFIG.model_spec(MODEL), metrics)
        follower = Follower(
            log=world.log,
            models=world.models,
            items=ItemsView(SCHEMA, Retriever(Catalogue(), None), AttributeColumns({})),
            served={MODEL: served},
            live=LiveConfig(CONFIG),
            metrics=metrics,
        )
        return cls(follower, served)

    async def follow(self) -> None:
        while await self.follower._read(block_ms=0):
            pass

    @property
    def weights(self) -> np.ndarray:
        return self.served._table.weights


def _learned_weights(loop: LearnerLoop) -> np.ndarray:
    dense = np.zeros(1 << 12, dtype=np.float32)
    change = loop._learner.all_weights()
    dense[change.indices] = change.values
    return dense


async def _drain(loop: LearnerLoop) -> None:
    idle = 0
    while idle < 3:
        idle = 0 if await loop.step() else idle + 1


# One thing that happens: how long after the one before, and what.
HAPPENINGS = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 700, 4_000, 11_000]),
        st.one_of(
            st.tuples(st.just("decide"), st.sampled_from(["quick", "slow"]), st.integers(1, 3), st.integers(0, 1)),
            st.tuples(st.just("event"), st.integers(0, 6), st.integers(0, 3), st.sampled_from(["click", "play", "x"])),
            st.tuples(st.just("by user"), st.integers(0, 4), st.integers(0, 1)),
            st.tuples(st.just("again"), st.integers(0, 6)),
            st.tuples(st.just("beat")),
        ),
    ),
    min_size=4,
    max_size=40,
)
# What is done to the learner between entries.
TROUBLE = st.lists(
    st.sampled_from(["step", "step", "save", "crash", "crash before write", "crash after write", "away", "took it"]),
    max_size=25,
)


async def _write(world: World, happenings: list[Any]) -> None:
    for step_ms, happening in happenings:
        world.now_ms += step_ms
        kind, *arguments = happening
        if kind == "decide":
            surface, n_slots, user = arguments
            await world.decide(f"e{len(world.decisions)}", surface=surface, n_slots=n_slots, user=user)
        elif kind == "event":
            # Up to three decisions ahead: events may come before their decision, or for one that never comes.
            n, slot, event_type = arguments
            await world.happen(f"e{max(0, len(world.decisions) - 3) + n}", slot=slot, event_type=event_type)
        elif kind == "by user":
            item, user = arguments
            await world.happen(None, item_id=f"i{item}", user=user)
        elif kind == "again":
            await world.happen(f"e{max(0, len(world.decisions) - 3) + arguments[0]}", slot=0, client_id="again")
        else:
            await world.beat()
    for _ in range(3):
        world.now_ms += 40_000
        await world.beat()


async def _undisturbed(n_partitions: int, happenings: list[Any]) -> tuple[Any, ...]:
    world = World(n_partitions)
    await _write(world, happenings)
    loop = world.loop()
    await loop.start()
    await _drain(loop)
    await loop.save()
    return await world.state()


async def _started(world: World) -> LearnerLoop:
    """Start a learner as the process does: again until the store answers."""
    while True:
        loop = world.loop()
        try:
            await loop.start()
        except (StoreUnavailable, Crash):
            continue
        return loop


async def _disturbed(world: World, limit: int, trouble: list[str]) -> LearnerLoop:
    loop = await _started(world)
    world.journal.limit = limit
    for what in trouble:
        try:
            if what == "save":
                await loop.save()
            elif what == "crash":
                raise Crash
            else:
                if what != "step":
                    world.models.fail = StoreUnavailable("away") if what in ("away", "took it") else Crash()
                    world.models.happens = what in ("crash after write", "took it")
                await loop.step()
        except StoreUnavailable:
            continue
        except Crash:
            loop = await _started(world)
    world.models.fail = None
    return loop


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HAPPENINGS, TROUBLE, st.integers(1, 6), st.integers(1, 3))
async def test_crashes_and_outages_anywhere_give_the_undisturbed_model_bit_for_bit(
    happenings: list[Any], trouble: list[str], limit: int, n_partitions: int
) -> None:
    world = World(n_partitions)
    await _write(world, happenings)
    loop = await _disturbed(world, limit, trouble)
    await _drain(loop)
    await loop.save()
    assert await world.state() == await _undisturbed(n_partitions, happenings)
    reader = Reader.of(world)
    await reader.follower.catch_up()
    assert np.array_equal(reader.weights, _learned_weights(loop))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HAPPENINGS, TROUBLE, st.integers(1, 6))
async def test_a_follower_that_reads_all_along_ends_with_the_learners_table(
    happenings: list[Any], trouble: list[str], limit: int
) -> None:
    world = World()
    reader = Reader.of(world)
    await _write(world, happenings)
    loop = await _started(world)
    world.journal.limit = limit
    for what in trouble:
        world.models.fail = StoreUnavailable("away") if what in ("away", "took it") else None
        world.models.happens = what == "took it"
        try:
            if "crash" in what:
                loop = await _started(world)
            else:
                await loop.step()
        except StoreUnavailable:
            pass
        await reader.follow()
    world.models.fail = None
    await _drain(loop)
    await reader.follow()
    assert np.array_equal(reader.weights, _learned_weights(loop))
    assert reader.served.version == loop.version


async def _learned_world(n_decisions: int = 3) -> tuple[World, LearnerLoop]:
    """A started learner, and a journal with rewarded decisions it has not read."""
    world = World()
    loop = world.loop()
    await loop.start()
    for n in range(n_decisions):
        await world.decide(f"e{n}")
        await world.happen(f"e{n}", slot=0)
        world.now_ms += 100
    return world, loop


async def test_a_rewarded_slot_is_served_better_by_a_follower() -> None:
    world, loop = await _learned_world()
    reader = Reader.of(world)
    await loop.step()
    await reader.follower.catch_up()
    assert np.array_equal(reader.weights, _learned_weights(loop))
    assert reader.weights.any()
    assert reader.served.version == loop.version


@pytest.mark.parametrize("happens", [False, True])
async def test_an_outage_during_publishing_loses_no_weight(happens: bool) -> None:
    world, loop = await _learned_world()
    reader = Reader.of(world)
    await reader.follower.catch_up()
    world.models.fail, world.models.happens = StoreUnavailable("away"), happens
    with pytest.raises(StoreUnavailable):
        await loop.step()
    await loop.step()
    await reader.follow()
    assert reader.weights.any()
    assert np.array_equal(reader.weights, _learned_weights(loop))
    await world.decide("later")
    await world.happen("later", slot=1)
    await _drain(loop)
    await reader.follow()
    assert np.array_equal(reader.weights, _learned_weights(loop))


async def test_a_learner_that_was_overtaken_is_fenced_and_publishes_nothing_more() -> None:
    world, old = await _learned_world()
    new = world.loop()
    await new.start()
    before = (await world.models.last_delta(MODEL), await world.models.load_checkpoint(MODEL))
    with pytest.raises(Fenced):
        await old.step()
    with pytest.raises(Fenced):
        await old.save()
    assert (await world.models.last_delta(MODEL), await world.models.load_checkpoint(MODEL)) == before
    assert await new.step() == 6


async def test_a_repeated_event_is_learned_once() -> None:
    world = World()
    await world.decide("e0")
    for _ in range(3):
        await world.happen("e0", slot=0, client_id="same")
    world.now_ms += 60_000
    await world.beat()
    loop = world.loop()
    await loop.start()
    await _drain(loop)
    await loop.save()
    counters = (await world.state())[4]
    assert counters["event_duplicate"] == 2
    assert counters["slot_reward"] == 1
    assert (await world.state())[2] == 2, "the other slot learned its default"


async def test_a_late_reward_is_counted_and_not_learned() -> None:
    world = World()
    await world.decide("e0", n_slots=1)
    world.now_ms += 6_000
    await world.happen("e0", slot=0)
    loop = world.loop()
    await loop.start()
    await _drain(loop)
    await loop.save()
    _, _, n_learned, _, counters, _ = await world.state()
    assert (n_learned, counters["slot_default"], counters["reward_late"]) == (1, 1, 1)
    # The default was learned, which is zero like the prediction; the reward would have moved the weights.
    assert not _learned_weights(loop).any()


async def test_late_events_of_closed_decisions_count_the_same_after_a_restart() -> None:
    async def play(world: World) -> None:
        # e0 closes while e1 is open; the event for e0 stands between them and is not what a reader from e1 on knows.
        await world.decide("e0", n_slots=1)
        world.now_ms += 15_000
        await world.decide("e1", n_slots=1)
        world.now_ms += 1_000
        await world.happen("e0", slot=0)
        world.now_ms += 6_000
        await world.beat()

    states = []
    for is_restarted in (False, True):
        world = World()
        await play(world)
        loop = world.loop()
        await loop.start()
        await _drain(loop)
        await loop.save()
        if is_restarted:
            loop = await _started(world)
        for _ in range(3):
            world.now_ms += 40_000
            await world.beat()
        await _drain(loop)
        await loop.save()
        states.append((*await world.state(), await world.counters()))
    assert states[0] == states[1]


async def test_windows_close_by_heartbeats_of_the_learner_when_nothing_else_happens() -> None:
    world = World()
    await world.decide("e0", n_slots=1)
    loop = world.loop(clock=lambda: world.now_ms)
    await loop.start()
    for _ in range(20):
        await loop.step()
        world.now_ms += 1_000
    await loop.save()
    assert (await world.state())[4]["slot_default"] == 1


async def test_several_partitions_move_without_other_traffic() -> None:
    world = World(n_partitions=3)
    await world.decide("e0", n_slots=1)
    loop = world.loop(clock=lambda: world.now_ms)
    await loop.start()
    for _ in range(30):
        await loop.step()
        world.now_ms += 1_000
    await loop.save()
    assert (await world.state())[4].get("slot_default") == 1


async def test_an_unreadable_entry_is_counted_and_learning_goes_on() -> None:
    world, loop = await _learned_world()
    await world.journal.append(0, [b"\xc1 no msgpack", encode(VALUES["item_delete"])])
    await world.decide("after")
    await world.happen("after", slot=0)
    await _drain(loop)
    await loop.save()
    counters = (await world.state())[4]
    assert counters["entry_unreadable"] == 2
    assert counters["slot_reward"] == 4


async def test_a_checkpoint_of_another_schema_is_refused() -> None:
    world, loop = await _learned_world()
    await loop.save()
    stored = await world.models.load_checkpoint(MODEL)
    assert stored is not None
    other = msgspec.structs.replace(msgspec.msgpack.decode(stored, type=Checkpoint), schema_version="other")
    epoch = await world.models.take_epoch(MODEL)
    await world.models.save_checkpoint(MODEL, epoch, encode(other))
    with pytest.raises(ValueError, match=r"model 'm': the checkpoint is of feature schema other"):
        await world.loop().start()


async def test_a_follower_that_missed_deltas_loads_the_snapshot() -> None:
    world, loop = await _learned_world()
    reader = Reader.of(world)
    await reader.follower.catch_up()
    for n in range(5):
        await world.decide(f"more{n}")
        await world.happen(f"more{n}", slot=0)
        await loop.step()
    # A restarted learner publishes a snapshot and drops what it includes; this follower read none of it.
    restarted = await _started(world)
    await reader.follow()
    assert np.array_equal(reader.weights, _learned_weights(restarted))
    assert reader.served.version == restarted.version
    assert reader.follower._metrics.model_gaps._value.get() >= 1


async def test_weights_that_a_restart_forgets_are_taken_back_by_followers() -> None:
    world, loop = await _learned_world()
    reader = Reader.of(world)
    await loop.step()
    await reader.follower.catch_up()
    assert reader.weights.any()
    world.journal.limit = 0
    # No checkpoint was saved: the new learner begins with zeros and learns the journal again.
    restarted = await _started(world)
    await reader.follow()
    assert not reader.weights.any()
    world.journal.limit = 100
    await _drain(restarted)
    await reader.follow()
    assert np.array_equal(reader.weights, _learned_weights(loop))


async def test_a_snapshot_that_could_not_be_loaded_is_loaded_at_the_next_read(monkeypatch: pytest.MonkeyPatch) -> None:
    world, loop = await _learned_world()
    reader = Reader.of(world)
    await reader.follower.catch_up()
    await loop.step()
    restarted = await _started(world)
    with monkeypatch.context() as patch:

        async def away(_model: str) -> bytes | None:
            raise StoreUnavailable("away")

        patch.setattr(world.models, "load_snapshot", away)
        with pytest.raises(StoreUnavailable):
            await reader.follow()
    await reader.follow()
    assert reader.served.version == restarted.version
    assert np.array_equal(reader.weights, _learned_weights(restarted))


async def test_a_snapshot_that_never_reaches_the_next_delta_is_loaded_ever_more_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, _ = await _learned_world()
    reader = Reader.of(world)
    await reader.follower.catch_up()
    served = reader.served.version
    # Nobody has the versions between; the snapshot is the one that is served.
    lost = WeightDelta(epoch=1, base_version=served + 50, version=served + 51, indices=b"", values=b"")
    await world.models.publish_delta(MODEL, 1, encode(lost))
    waits: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(delay_s: float) -> None:
        waits.extend([delay_s] if delay_s else [])
        await real_sleep(0)

    monkeypatch.setattr("service.follow.asyncio.sleep", sleep)
    await reader.follower.catch_up()
    following = asyncio.create_task(reader.follower.run())
    while len(waits) < 9:
        await real_sleep(0.001)
    following.cancel()
    await asyncio.wait({following})
    assert waits[:9] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert reader.follower._metrics.model_snapshots_stale._value.get() >= 9
    assert reader.served.version == served


async def test_a_large_change_is_published_as_versions_that_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.learn._DELTA_WEIGHTS", 3)
    world, loop = await _learned_world()
    reader = Reader.of(world)
    await reader.follower.catch_up()
    first = loop.version
    await loop.step()
    found = await world.log.read({world.models.weights_stream(MODEL): "0-0"}, count=100, block_ms=0)
    deltas = [msgspec.msgpack.decode(entry.payload, type=WeightDelta) for entry in found][1:]
    assert len(deltas) > 2
    assert all(len(delta.indices) <= 3 * 4 for delta in deltas)
    assert [delta.base_version for delta in deltas] == list(range(first, first + len(deltas)))
    await reader.follow()
    assert np.array_equal(reader.weights, _learned_weights(loop))


async def test_what_users_did_is_added_when_the_store_takes_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world, loop = await _learned_world(n_decisions=2)

    async def away(_interactions: Any) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(world.users, "add_interactions", away)
        world.models.fail = StoreUnavailable("away")
        with pytest.raises(StoreUnavailable):
            await loop.step()
        await loop.step()
        assert (await world.users.fetch("u0")).consumed == frozenset()
    await loop.step()
    state = await world.users.fetch("u0")
    assert state.consumed == {"i0", "i1"}
    assert {shown.event_id for shown in state.impressions} == {"e0", "e1"}


async def test_what_users_did_is_added_once_a_second_and_before_every_checkpoint() -> None:
    world = World()
    loop = world.loop(clock=lambda: world.now_ms)

    async def shown() -> set[str]:
        return {impression.event_id for impression in (await world.users.fetch("u0")).impressions}

    await loop.start()
    await loop.step()
    await world.decide("e0")
    world.now_ms += 999
    await loop.step()
    assert await shown() == set()
    world.now_ms += 1
    await loop.step()
    assert await shown() == {"e0"}
    await world.decide("e1")
    await loop.step()
    assert await shown() == {"e0"}
    await loop.end()
    assert await shown() == {"e0", "e1"}


async def test_a_learner_that_cannot_add_what_users_did_ends_without_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    loop = world.loop(clock=lambda: world.now_ms)

    async def away(_impressions: Any) -> None:
        raise StoreUnavailable("away")

    await loop.start()
    await loop.step()
    await world.decide("e0")
    await loop.step()
    with monkeypatch.context() as patch:
        patch.setattr(world.users, "add_impressions", away)
        await loop.end()
    assert await world.models.load_checkpoint(MODEL) is None
    successor = world.loop(clock=lambda: world.now_ms)
    assert not await successor.is_led()
    await successor.start()
    await successor.step()
    assert {shown.event_id for shown in (await world.users.fetch("u0")).impressions} == {"e0"}


async def test_a_standby_sees_whether_a_learner_is_alive() -> None:
    world = World()
    loop, standby = world.loop(lambda: world.now_ms), world.loop(lambda: world.now_ms)
    assert not await standby.is_led()
    await loop.start()
    for _ in range(10):
        world.now_ms += 1_000
        await loop.step()
        assert await standby.is_led()
    world.now_ms += 2_500
    assert not await standby.is_led()
    await standby.start()
    with pytest.raises(Fenced):
        await loop.step()
    assert await loop.is_led()
    await standby.end()
    assert not await loop.is_led()


async def test_a_lease_that_cannot_be_renewed_leaves_no_entry_out(monkeypatch: pytest.MonkeyPatch) -> None:
    world, _ = await _learned_world()
    # Time passes with every look at the clock, so that the lease is due in the middle of the entries.
    ticks = iter(range(START_MS, START_MS + 10**9, 700))
    loop = world.loop(lambda: next(ticks))
    await loop.start()

    async def away(_model: str, _epoch: int, *, lease_ms: int) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(world.models, "hold_lease", away)
    assert await loop.step() == 6
    assert loop.counters["slot_reward"] == 3


async def test_the_share_of_the_table_in_use_is_shown() -> None:
    _, loop = await _learned_world()
    await _drain(loop)
    await loop.save()
    shown = loop._metrics.registry.get_sample_value("hone_model_occupied_share", {"model": MODEL})
    assert shown == np.count_nonzero(_learned_weights(loop)) / (1 << 12)


async def test_a_served_model_refuses_a_snapshot_of_another_shape() -> None:
    world, _ = await _learned_world()
    reader = Reader.of(world)
    stored = await world.models.load_snapshot(MODEL)
    assert stored is not None
    snapshot = msgspec.msgpack.decode(stored, type=ModelSnapshot)
    for changes in ({"bits": 13}, {"schema_version": "other"}):
        with pytest.raises(ValueError, match="model 'm' serves 12 bits"):
            reader.served.build(msgspec.structs.replace(snapshot, **changes))


async def test_the_learner_adds_the_interactions_that_a_worker_could_not() -> None:
    world, loop = await _learned_world(n_decisions=2)
    await _drain(loop)
    state = await world.users.fetch("u0")
    assert [(i.item_id, i.reward, i.client_id) for i in state.recent] == [("i0", 1.0, "c1"), ("i1", 1.0, "c2")]
    assert state.consumed == {"i0", "i1"}


def test_the_fixture_decision_is_what_the_learner_decodes() -> None:
    assert isinstance(DECISION, Decision)
    assert DECISION.slots[0].reason != "sponsored"


async def test_other_tasks_get_their_turn_while_a_batch_of_items_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    reader = Reader.of(world)
    await world.log.append("hone:items", [encode(ItemUpsert(item=Item(id=f"i{n}"))) for n in range(100)])
    real = ItemsView.apply

    def slow(view: ItemsView, position: str, change: Any) -> None:
        # A new item costs about this much index.
        end_s = time.monotonic() + 0.002
        while time.monotonic() < end_s:
            pass
        real(view, position, change)

    monkeypatch.setattr(ItemsView, "apply", slow)
    catching_up = asyncio.create_task(reader.follower.catch_up())
    n_turns = 0
    while not catching_up.done():
        await asyncio.sleep(0)
        n_turns += 1
    await catching_up
    assert len(reader.follower._items.catalogue) == 100
    assert n_turns >= 50


async def test_an_item_that_no_column_holds_is_passed_over_and_the_rest_is_applied() -> None:
    world = World()
    reader = Reader.of(world)
    changes = [
        encode(ItemUpsert(item=Item(id="before"))),
        encode(ItemUpsert(item=Item(id="too old", min_age=2**17))),
        encode(ItemUpsert(item=Item(id="for ever", expires_at_unix_ms=2**63))),
        b"\xc1 no msgpack",
        encode(ItemUpsert(item=Item(id="after"))),
    ]
    ids = await world.log.append("hone:items", changes)
    await reader.follow()
    catalogue = reader.follower._items.catalogue
    assert [i for i in ("before", "too old", "for ever", "after") if catalogue.row(i) is not None] == [
        "before",
        "after",
    ]
    assert reader.follower._items.position == ids[-1]
    async with asyncio.timeout(20):
        await reader.follower.apply_own(ids[-1])


async def test_a_publication_whose_answer_was_lost_shares_its_version_with_none() -> None:
    world = World()
    loop, reader = world.loop(), Reader.of(world)
    await loop.start()
    for n, happens in enumerate([True, False, True]):
        await world.decide(f"e{n}")
        await world.happen(f"e{n}", slot=0)
        world.models.fail, world.models.happens = StoreUnavailable("the answer was lost"), happens
        with pytest.raises(StoreUnavailable):
            await loop.step()
        await reader.follow()
        await loop.step()
    stream = {world.models.weights_stream(MODEL): "0-0"}
    entries = await world.log.read(stream, count=100, block_ms=0)
    versions = [msgspec.msgpack.decode(entry.payload, type=WeightDelta).version for entry in entries]
    assert versions == sorted(set(versions))
    await reader.follow()
    assert reader.served.version == loop.version
    np.testing.assert_array_equal(reader.weights, _learned_weights(loop))


async def test_a_clock_that_goes_back_stalls_neither_lease_nor_checkpoint_nor_heartbeat() -> None:
    world = World()
    config = msgspec.structs.replace(CONFIG, models={MODEL: ModelConfig(bits=12, checkpoint_s=10.0)})
    own_ms = [world.now_ms]
    loop = LearnerLoop(
        config=config,
        model=MODEL,
        journal=world.journal,
        models=world.models,
        users=world.users,
        metrics=Metrics(),
        clock=lambda: own_ms[0],
    )
    await loop.start()
    await world.decide("e0")
    await loop.step()
    assert await world.counters_or_none() is None
    own_ms[0] -= 3_600_000
    world.now_ms += 1_900
    await loop.step()
    assert (await world.counters_or_none() or {})["decision"] == 1
    assert (await world.journal.read({0: "0-0"}, count=10, block_ms=0))[0][-1][1] == encode(
        Heartbeat(at_unix_ms=own_ms[0])
    )
    world.now_ms += 1_900
    # The lease of two seconds was renewed.
    assert await world.models.lease_holder(MODEL) is not None


async def test_heartbeats_go_by_the_learners_own_clock_alone() -> None:
    world = World()
    # An hour behind the store's, and an hour before it.
    for skew_ms in (-3_600_000, 3_600_000):
        loop = world.loop(clock=lambda skew_ms=skew_ms: world.now_ms + skew_ms)
        await loop.start()
        await world.decide(f"e{skew_ms}")
        await loop.step()
        before = len(world.store.streams["hone:{0}:journal"].ids)
        for _ in range(40):
            world.now_ms += 50
            await loop.step()
        n_beats = len(world.store.streams["hone:{0}:journal"].ids) - before
        assert n_beats in (1, 2)
