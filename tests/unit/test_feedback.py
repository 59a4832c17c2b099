"""Events: durable first, then the user's state; nothing unusable is acknowledged."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bandit.rewards import EventReward, RewardPolicy
from service.adapters.memory_store import MemoryJournal, MemoryUserStates
from service.adapters.memory_streams import MemoryStore
from service.config import Config, ModelConfig, StoreConfig, SurfaceConfig
from service.errors import InvalidRequest, StoreUnavailable
from service.feedback import Feedback, interaction_of
from service.messages import DecisionSummary, Erasure, Event, Interaction, encode, journal_decoder
from service.metrics import Metrics
from service.numerics import keyed_digest
from service.ports import Shipment
from service.spool import Spool, SpoolEntry, read_entries
from service.wire import EventBody, RewardBody

NOW_MS = 1_795_382_944_962
SALT = b"salt"
CONFIG = Config(
    models={"m": ModelConfig()},
    surfaces={
        "home": SurfaceConfig(
            model="m",
            reward=RewardPolicy(events={"click": EventReward(base=1.0), "dislike": EventReward(base=-1.0)}),
        ),
        "other": SurfaceConfig(model="m", reward=RewardPolicy(events={"play": EventReward(per_unit=0.5)})),
    },
)


class Journal(MemoryJournal):
    is_away = False

    async def append(self, partition: int, entries: Sequence[bytes]) -> list[str]:
        if self.is_away:
            raise StoreUnavailable("away")
        return await super().append(partition, entries)

    async def ship(self, shipments: Sequence[Shipment]) -> list[Any]:
        if self.is_away:
            raise StoreUnavailable("away")
        return await super().ship(shipments)

    async def claims(self, event_ids: Sequence[str]) -> list[Any]:
        if self.is_away:
            raise StoreUnavailable("away")
        return await super().claims(event_ids)


@dataclass
class World:
    folder: Path
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        store = MemoryStore(lambda: NOW_MS)
        self.journal = Journal(store, n_partitions=2)
        self.users = MemoryUserStates(store, StoreConfig())
        self.spool = Spool(self.folder, self.journal, self.metrics)
        self.spool.start()
        self.feedback = Feedback(
            config=CONFIG,
            users=self.users,
            journal=self.journal,
            spool=self.spool,
            metrics=self.metrics,
            clock=lambda: NOW_MS,
            salt=SALT,
        )

    async def decide(self, event_id: str, item_ids: Sequence[str], user_id: str | None = "u1") -> None:
        summary = DecisionSummary(digest="d", surface="home", user_id=user_id, item_ids=list(item_ids))
        await self.journal.ship(
            [Shipment(event_id=event_id, summary=encode(summary), entry=b"a decision", ttl_ms=60_000)]
        )

    async def events(self) -> list[Event]:
        found = await self.journal.read({0: "0-0", 1: "0-0"}, count=100, block_ms=0)
        payloads = [payload for entries in found.values() for _, payload in entries if payload != b"a decision"]
        return [event for event in map(journal_decoder.decode, payloads) if isinstance(event, Event)]

    async def recent(self, user_id: str = "u1") -> list[tuple[str, str, float | None]]:
        return [(i.item_id, i.event_type, i.reward) for i in (await self.users.fetch(user_id)).recent]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    await made.spool.close(timeout_s=0.05)


def _click(**fields: Any) -> EventBody:
    return EventBody(**{"type": "click", "event_id": "e1", "slot": 0, **fields})


async def test_an_accepted_event_is_in_the_journal_when_the_answer_comes(world: World) -> None:
    answer = await world.feedback.accept([_click(id="c1", user_id="u1", item_id="m1", value=2.5)])
    assert (answer.accepted, answer.duplicate, answer.rejected) == (1, 0, [])
    (event,) = await world.events()
    assert event == Event(
        accepted_at_unix_ms=NOW_MS,
        client_id="c1",
        event_type="click",
        event_id="e1",
        user_id="u1",
        user_key=keyed_digest("u1", salt=SALT),
        item_id="m1",
        slot=0,
        value=2.5,
        client_unix_ms=None,
    )


async def test_events_of_a_decision_lie_in_its_partition(world: World) -> None:
    names = [f"e{n}" for n in range(12)]
    await world.feedback.accept([_click(event_id=name) for name in names])
    found = await world.journal.read({0: "0-0", 1: "0-0"}, count=100, block_ms=0)
    where = {journal_decoder.decode(payload).event_id: p for p, entries in found.items() for _, payload in entries}
    assert where == {name: world.journal.partition_of(name) for name in names}
    assert set(where.values()) == {0, 1}


async def test_the_users_state_knows_the_event_before_the_answer(world: World) -> None:
    await world.feedback.accept(
        [_click(user_id="u1", item_id="m1"), _click(type="dislike", user_id="u1", item_id="m2")]
    )
    assert sorted(await world.recent()) == [("m1", "click", 1.0), ("m2", "dislike", -1.0)]
    assert (await world.users.fetch("u1")).consumed == {"m1"}


async def test_user_and_item_come_from_the_decision_when_the_event_does_not_say(world: World) -> None:
    await world.decide("e1", ["m1", "m2", "m3"])
    await world.feedback.accept([_click(slot=1)])
    assert await world.recent() == [("m2", "click", 1.0)]


async def test_an_event_of_an_unknown_decision_is_kept_and_moves_no_user(world: World) -> None:
    answer = await world.feedback.accept([_click(event_id="never", slot=1)])
    assert answer.accepted == 1
    assert len(await world.events()) == 1
    assert await world.recent() == []


async def test_a_slot_beyond_the_slate_moves_no_user(world: World) -> None:
    await world.decide("e1", ["m1"])
    assert (await world.feedback.accept([_click(slot=5)])).accepted == 1
    assert await world.recent() == []


async def test_an_event_without_a_decision_needs_user_and_item(world: World) -> None:
    good = EventBody(type="play", user_id="u1", item_id="m1", value=1.0)
    bad = [EventBody(type="play", user_id="u1"), EventBody(type="play", item_id="m1"), EventBody(type="play")]
    answer = await world.feedback.accept([*bad, good])
    assert answer.accepted == 1
    assert [(r.index, r.path) for r in answer.rejected] == [(0, "$.event_id"), (1, "$.event_id"), (2, "$.event_id")]
    assert await world.recent() == [("m1", "play", 0.5)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
async def test_a_value_that_is_not_finite_is_rejected_by_itself(world: World, value: float) -> None:
    answer = await world.feedback.accept([_click(id="a"), _click(id="b", value=value), _click(id="c")])
    assert (answer.accepted, [(r.index, r.path) for r in answer.rejected]) == (2, [(1, "$.value")])
    assert sorted(event.client_id for event in await world.events()) == ["a", "c"]


async def test_a_repeated_id_of_one_type_counts_once_in_a_batch(world: World) -> None:
    answer = await world.feedback.accept([_click(id="a"), _click(id="a"), _click(id="a", type="dislike"), _click()])
    assert (answer.accepted, answer.duplicate) == (3, 1)
    assert len(await world.events()) == 3


async def test_events_without_an_id_get_one_each(world: World) -> None:
    await world.feedback.accept([_click(), _click()])
    first, second = await world.events()
    assert first.client_id != second.client_id


async def test_an_empty_batch_is_accepted_as_nothing(world: World) -> None:
    answer = await world.feedback.accept([])
    assert (answer.accepted, answer.duplicate, answer.rejected) == (0, 0, [])


async def test_while_the_store_is_away_the_spool_takes_the_event_and_ships_it_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.spool._RETRY_S", 0.01)
    world.journal.is_away = True
    answer = await world.feedback.accept([_click(id="a", user_id="u1", item_id="m1"), _click(id="b", event_id="e2")])
    assert answer.accepted == 2
    (path,) = world.folder.glob("*.spool")
    assert {journal_decoder.decode(entry.payload).client_id for entry in read_entries(path)} == {"a", "b"}
    assert await world.events() == []
    world.journal.is_away = False
    await world.spool.close()
    assert {event.client_id for event in await world.events()} == {"a", "b"}
    # `close` closed the file; the fixture must find an open one.
    world.spool.start()


async def test_what_can_be_written_nowhere_is_not_acknowledged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.journal.is_away = True

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(world.spool, "append_synced", full)
    with pytest.raises(OSError, match="No space"):
        await world.feedback.accept([_click()])
    assert await world.recent() == []


async def test_events_of_requests_at_one_time_are_made_durable_and_known_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def count(port: Any, name: str) -> None:
        call = getattr(port, name)

        async def counted(*arguments: Any) -> Any:
            calls.append(name)
            return await call(*arguments)

        monkeypatch.setattr(port, name, counted)

    count(world.journal, "append")
    count(world.journal, "claims")
    count(world.users, "add_interactions")
    await world.decide("e1", ["m1", "m2", "m3"])
    answers = await asyncio.gather(*(world.feedback.accept([_click(slot=slot)]) for slot in range(3)))
    assert [answer.accepted for answer in answers] == [1, 1, 1]
    assert calls == ["append", "claims", "add_interactions"]
    assert [event.slot for event in await world.events()] == [0, 1, 2]
    assert [item_id for item_id, *_ in await world.recent()] == ["m1", "m2", "m3"]


async def test_a_request_that_can_be_written_nowhere_does_not_refuse_others_of_the_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.journal.is_away = True
    append = world.spool.append_synced

    def full(entries: Sequence[SpoolEntry]) -> None:
        if any(b"no-room" in entry.payload for entry in entries):
            raise OSError("disk full")
        append(entries)

    monkeypatch.setattr(world.spool, "append_synced", full)
    requests = ([_click(id="c1")], [_click(id="no-room"), _click(id="c2")], [_click(id="c3")])
    first, second, third = await asyncio.gather(*map(world.feedback.accept, requests), return_exceptions=True)
    assert isinstance(second, OSError)
    assert [answer.accepted for answer in (first, third) if not isinstance(answer, BaseException)] == [1, 1]
    assert world.metrics.registry.get_sample_value("hone_events_total", {"fate": "accepted"}) == 2


async def test_a_failing_user_state_does_not_refuse_the_event(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(world.users, "add_interactions", away)
    assert (await world.feedback.accept([_click(user_id="u1", item_id="m1")])).accepted == 1
    assert world.metrics.user_state_failures.labels("add")._value.get() == 1


async def test_a_reward_is_an_event_that_carries_its_own_worth(world: World) -> None:
    await world.decide("e1", ["m1", "m2"])
    assert (await world.feedback.reward(RewardBody(event_id="e1", reward=0.25, slot=1))).accepted == 1
    (event,) = await world.events()
    assert (event.event_type, event.slot, event.value) == ("reward", 1, 0.25)
    assert await world.recent() == [("m2", "reward", 0.25)]


async def test_a_reward_without_slot_or_item_needs_a_slate_of_one(world: World) -> None:
    await world.decide("one", ["m1"])
    await world.decide("two", ["m1", "m2"])
    assert (await world.feedback.reward(RewardBody(event_id="one", reward=1.0))).accepted == 1
    for event_id in ("two", "never"):
        with pytest.raises(InvalidRequest, match="slot or item_id is needed") as raised:
            await world.feedback.reward(RewardBody(event_id=event_id, reward=1.0))
        assert raised.value.path == "$.slot"
    assert (await world.feedback.reward(RewardBody(event_id="two", reward=1.0, item_id="m2"))).accepted == 1


@pytest.mark.parametrize("reward", [math.nan, math.inf])
async def test_a_reward_that_is_not_finite_is_refused(world: World, reward: float) -> None:
    with pytest.raises(InvalidRequest) as raised:
        await world.feedback.reward(RewardBody(event_id="e1", reward=reward, slot=0))
    assert raised.value.path == "$.reward"
    assert await world.events() == []


def test_the_same_event_gives_the_same_interaction_to_the_bit() -> None:
    event = Event(
        accepted_at_unix_ms=NOW_MS,
        client_id="c1",
        event_type="play",
        event_id=None,
        user_id="u1",
        user_key="k",
        item_id="m1",
        slot=None,
        value=0.5,
        client_unix_ms=None,
    )
    expected = Interaction(item_id="m1", event_type="play", reward=0.25, at_unix_ms=NOW_MS, client_id="c1")
    assert interaction_of(event, item_id="m1", config=CONFIG) == expected
    assert encode(interaction_of(event, item_id="m1", config=CONFIG)) == encode(expected)


async def test_an_erasure_is_in_every_partition_and_says_no_user_id(world: World) -> None:
    await world.feedback.erase("u1")
    found = await world.journal.read({0: "0-0", 1: "0-0"}, count=100, block_ms=0)
    payloads = [payload for partition in (0, 1) for _, payload in found[partition]]
    erasure = Erasure(user_key=keyed_digest("u1", salt=SALT), at_unix_ms=NOW_MS)
    assert [journal_decoder.decode(payload) for payload in payloads] == [erasure, erasure]
    assert all(b"u1" not in payload for payload in payloads)


async def test_an_erasure_that_is_not_durable_is_not_acknowledged(world: World) -> None:
    world.journal.is_away = True
    with pytest.raises(StoreUnavailable):
        await world.feedback.erase("u1")
