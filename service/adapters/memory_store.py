"""The ports in memory, for tests and the closed-loop simulator: one process, nothing survives it, time is given.

Adapters made on one `MemoryStore` see each other's streams, as clients of one server do.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Generic, TypeVar

import msgspec

from service.adapters.memory_streams import Clock, MemoryStore
from service.config import StoreConfig
from service.errors import Fenced
from service.messages import (
    Impression,
    Interaction,
    JournalEntry,
    LearnerProgress,
    UserProfile,
    encode,
    progress_decoder,
    summary_decoder,
)
from service.ports import ArchiveBatch, Claim, Entry, OpenJoins, OutcomeRow, Shipment, UserState
from service.user_members import impression_member, impression_of

V = TypeVar("V")

_interaction_decoder = msgspec.msgpack.Decoder(Interaction)


class MemoryJournal:
    """`Journal` in memory."""

    def __init__(self, store: MemoryStore, *, n_partitions: int = 1) -> None:
        self._store = store
        self.n_partitions = n_partitions
        # With the unix ms of its end, by event id.
        self._claims: dict[str, tuple[Claim, int]] = {}
        # The last number that arrived, by partition and origin.
        self._arrived: dict[tuple[int, str], int] = {}

    def partition_of(self, event_id: str) -> int:
        """Return blake2b(event_id) mod P."""
        return int.from_bytes(blake2b(event_id.encode(), digest_size=8).digest(), "little") % self.n_partitions

    async def ship(self, shipments: Sequence[Shipment]) -> list[Claim | None]:
        """Claim, number and append."""
        claims = [self._ship(shipment) for shipment in shipments]
        await self._store.announce()
        return claims

    def _ship(self, shipment: Shipment) -> Claim | None:
        partition = self.partition_of(shipment.event_id) if shipment.event_id else shipment.partition
        is_old = 0 < shipment.number <= self._arrived.get((partition, shipment.origin), 0)
        if shipment.number and not is_old:
            self._arrived[partition, shipment.origin] = shipment.number
        held = self._held(shipment.event_id)
        if held is not None:
            return held
        if is_old:
            return None
        journal_id = self._store.add(_journal(partition), shipment.entry)
        if not shipment.event_id:
            return None
        summary = summary_decoder.decode(shipment.summary)
        ends_at_ms = self._store.clock() + shipment.ttl_ms
        self._claims[shipment.event_id] = Claim(journal_id, summary, is_new=False), ends_at_ms
        return Claim(journal_id, summary, is_new=True)

    async def append(self, partition: int, entries: Sequence[bytes]) -> list[str]:
        """Append."""
        ids = [self._store.add(_journal(partition), entry) for entry in entries]
        await self._store.announce()
        return ids

    async def read(self, after: Mapping[int, str], *, count: int, block_ms: int) -> dict[int, list[tuple[str, bytes]]]:
        """Read after ids."""
        names = {_journal(partition): partition for partition in after}
        streams = {_journal(partition): entry_id for partition, entry_id in after.items()}
        found = await self._store.read(streams, count=count, block_ms=block_ms)
        return {names[name]: entries for name, entries in found.items()}

    async def claims(self, event_ids: Sequence[str]) -> list[Claim | None]:
        """Look claims up."""
        await asyncio.sleep(0)
        return [self._held(event_id) for event_id in event_ids]

    async def entry(self, partition: int, journal_id: str) -> bytes | None:
        """Look one entry up."""
        await asyncio.sleep(0)
        return self._store.streams[_journal(partition)].get(journal_id)

    async def trim(self, partition: int, before: str) -> int:
        """Drop what is before an id."""
        await asyncio.sleep(0)
        return self._store.streams[_journal(partition)].trim(before)

    def _held(self, event_id: str) -> Claim | None:
        held = self._claims.get(event_id)
        if held is None:
            return None
        claim, ends_at_ms = held
        if ends_at_ms <= self._store.clock():
            del self._claims[event_id]
            return None
        return claim


class MemoryChangeLog:
    """`ChangeLog` in memory."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def append(self, stream: str, entries: Sequence[bytes]) -> list[str]:
        """Append."""
        ids = [self._store.add(stream, entry) for entry in entries]
        await self._store.announce()
        return ids

    async def read(self, after: Mapping[str, str], *, count: int, block_ms: int) -> list[Entry]:
        """Read after ids."""
        found = await self._store.read(after, count=count, block_ms=block_ms)
        return [Entry(name, entry_id, payload) for name, entries in found.items() for entry_id, payload in entries]

    async def trim(self, stream: str, before: str) -> int:
        """Drop what is before an id."""
        await asyncio.sleep(0)
        return self._store.streams[stream].trim(before)

    async def take_epoch(self, stream: str, *, at_least: int) -> int:
        """Go on to the next epoch."""
        await asyncio.sleep(0)
        self._store.epochs[stream] = max(self._store.epochs[stream] + 1, at_least)
        return self._store.epochs[stream]

    async def publish(self, stream: str, epoch: int, entry: bytes, *, is_whole: bool) -> None:
        """Append under the fence."""
        if self._store.epochs[stream] != epoch:
            raise Fenced("a newer learner has taken over")
        entry_id = self._store.add(stream, entry)
        if is_whole:
            self._store.streams[stream].trim(entry_id)
        await self._store.announce()


class _SortedSet(Generic[V]):
    """Members ordered by (time, member), as a sorted set orders them, each with what it reads as."""

    def __init__(self) -> None:
        self._at_ms: dict[bytes, int] = {}
        self._rows: list[tuple[int, bytes, V]] = []

    def add(self, member: bytes, at_ms: int, read: Callable[[bytes, int], V]) -> None:
        known_ms = self._at_ms.get(member)
        if known_ms == at_ms:
            return
        if known_ms is not None:
            del self._rows[bisect_left(self._rows, (known_ms, member))]
        self._at_ms[member] = at_ms
        # Members differ, so what they read as is never compared.
        insort(self._rows, (at_ms, member, read(member, at_ms)))

    def keep(self, limit: int) -> None:
        n_over = len(self._rows) - limit
        if n_over > 0:
            for _, member, _ in self._rows[:n_over]:
                del self._at_ms[member]
            del self._rows[:n_over]

    def values(self) -> list[V]:
        return [value for _, _, value in self._rows]


class _UserSets(Generic[V]):
    """A bounded sorted set by user; each expires as a whole.

    Args:
        read: returns what a member and its time read as.
        limit: the oldest members beyond it are dropped.
        ttl_s: a set ends so long after the last addition.
    """

    def __init__(self, read: Callable[[bytes, int], V], *, clock: Clock, limit: int, ttl_s: int) -> None:
        self._read = read
        self._clock = clock
        self._limit = limit
        self._ttl_ms = ttl_s * 1000
        # With the unix ms of its end.
        self._sets: dict[str, tuple[_SortedSet[V], int]] = {}

    def values(self, user_id: str) -> list[V]:
        held = self._live(user_id)
        return [] if held is None else held.values()

    def add(self, user_id: str, members: Sequence[tuple[bytes, int]]) -> None:
        if not members:
            return
        held = self._live(user_id) or _SortedSet()
        for member, at_ms in members:
            held.add(member, at_ms, self._read)
        held.keep(self._limit)
        self._sets[user_id] = held, self._clock() + self._ttl_ms

    def drop(self, user_id: str) -> None:
        self._sets.pop(user_id, None)

    def _live(self, user_id: str) -> _SortedSet[V] | None:
        held, ends_at_ms = self._sets.get(user_id, (None, 0))
        return held if ends_at_ms > self._clock() else None


class MemoryUserStates:
    """`UserStates` in memory."""

    def __init__(self, store: MemoryStore, config: StoreConfig) -> None:
        self._profiles: dict[str, UserProfile] = {}
        self._recent = _UserSets(
            lambda member, _: _interaction_decoder.decode(member),
            clock=store.clock,
            limit=config.recent_limit,
            ttl_s=config.user_state_ttl_s,
        )
        self._consumed = _UserSets(
            lambda member, _: member.decode(),
            clock=store.clock,
            limit=config.consumed_limit,
            ttl_s=config.consumed_ttl_s,
        )
        self._impressions = _UserSets(
            impression_of, clock=store.clock, limit=config.impressions_limit, ttl_s=config.impressions_ttl_s
        )
        self._erased_at_ms: dict[str, int] = {}

    async def fetch(self, user_id: str) -> UserState:
        """Fetch everything; there is nothing to wait for."""
        return UserState(
            profile=self._profiles.get(user_id) or UserProfile(),
            recent=self._recent.values(user_id),
            consumed=frozenset(self._consumed.values(user_id)),
            impressions=tuple(self._impressions.values(user_id)),
        )

    async def add_interactions(self, interactions: Mapping[str, Sequence[Interaction]]) -> None:
        """Add members and drop the oldest beyond the limits."""
        await asyncio.sleep(0)
        for user_id, of_user in interactions.items():
            erased_at_ms = self._erased_at_ms.get(user_id, -1)
            added = [i for i in of_user if i.at_unix_ms > erased_at_ms]
            self._recent.add(user_id, [(encode(i), i.at_unix_ms) for i in added])
            positive = [(i.item_id.encode(), i.at_unix_ms) for i in added if (i.reward or 0.0) > 0.0]
            self._consumed.add(user_id, positive)

    async def add_impressions(self, impressions: Mapping[str, Sequence[Impression]]) -> None:
        """Add members and drop the oldest beyond the limit."""
        await asyncio.sleep(0)
        for user_id, shown in impressions.items():
            erased_at_ms = self._erased_at_ms.get(user_id, -1)
            members = [(impression_member(i), i.shown_at_unix_ms) for i in shown if i.shown_at_unix_ms > erased_at_ms]
            self._impressions.add(user_id, members)

    async def put_profiles(self, profiles: Mapping[str, UserProfile]) -> None:
        """Set all."""
        await asyncio.sleep(0)
        self._profiles.update(profiles)

    async def erase(self, user_id: str, *, at_unix_ms: int) -> None:
        """Delete the user."""
        await asyncio.sleep(0)
        self._erased_at_ms[user_id] = at_unix_ms
        self._profiles.pop(user_id, None)
        for sets in (self._recent, self._consumed, self._impressions):
            sets.drop(user_id)


class MemoryModelStore:
    """`ModelStore` in memory; its weight streams are read through a `MemoryChangeLog` of the same store."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._epochs: dict[str, int] = {}
        # (epoch, unix ms of its end) by model.
        self._leases: dict[str, tuple[int, int]] = {}
        self._checkpoints: dict[str, bytes] = {}
        # The snapshot and its position in the stream.
        self._snapshots: dict[str, tuple[str, bytes]] = {}
        self._earlier: dict[str, bytes] = {}
        self._artefacts: dict[tuple[str, str], bytes] = {}

    def weights_stream(self, model: str) -> str:
        """Return `hone:weights:{<model>}`."""
        return f"hone:weights:{{{model}}}"

    async def take_epoch(self, model: str) -> int:
        """Increment the epoch."""
        await asyncio.sleep(0)
        self._epochs[model] = self._epochs.get(model, 0) + 1
        return self._epochs[model]

    async def hold_lease(self, model: str, epoch: int, *, lease_ms: int) -> None:
        """Set under the fence."""
        await asyncio.sleep(0)
        self._check(model, epoch)
        self._leases[model] = (epoch, self._store.clock() + lease_ms)

    async def release_lease(self, model: str, epoch: int) -> None:
        """Delete under the fence."""
        await asyncio.sleep(0)
        self._check(model, epoch)
        self._leases.pop(model, None)

    async def lease_holder(self, model: str) -> int | None:
        """Look whether it has ended."""
        await asyncio.sleep(0)
        epoch, ends_at_ms = self._leases.get(model, (0, 0))
        return epoch if ends_at_ms > self._store.clock() else None

    async def save_checkpoint(self, model: str, epoch: int, checkpoint: bytes) -> None:
        """Set under the fence."""
        await asyncio.sleep(0)
        self._check(model, epoch)
        self._checkpoints[model] = checkpoint

    async def load_checkpoint(self, model: str) -> bytes | None:
        """Get it."""
        await asyncio.sleep(0)
        return self._checkpoints.get(model)

    async def load_progress(self, model: str) -> LearnerProgress | None:
        """Read it off the checkpoint."""
        await asyncio.sleep(0)
        return progress_decoder.decode(self._checkpoints[model]) if model in self._checkpoints else None

    async def publish_delta(self, model: str, epoch: int, delta: bytes) -> str:
        """Append under the fence."""
        self._check(model, epoch)
        entry_id = self._store.add(self.weights_stream(model), delta)
        await self._store.announce()
        return entry_id

    async def publish_snapshot(self, model: str, epoch: int, snapshot: bytes) -> None:
        """Set under the fence, keep the one before it, and trim the deltas that one includes."""
        await asyncio.sleep(0)
        stream_id: str = msgspec.msgpack.decode(snapshot)["stream_id"]
        self._check(model, epoch)
        before = self._snapshots.get(model)
        if before is not None and before[0] != stream_id:
            self._earlier[model] = before[1]
            self._store.streams[self.weights_stream(model)].trim(before[0])
        self._snapshots[model] = (stream_id, snapshot)

    async def last_delta(self, model: str) -> tuple[str, bytes] | None:
        """Return the newest entry."""
        await asyncio.sleep(0)
        return self._store.streams[self.weights_stream(model)].last()

    async def load_snapshot(self, model: str) -> bytes | None:
        """Get it."""
        await asyncio.sleep(0)
        return self._snapshots[model][1] if model in self._snapshots else None

    async def load_earlier_snapshot(self, model: str) -> bytes | None:
        """Get it."""
        await asyncio.sleep(0)
        return self._earlier.get(model)

    async def put_artefact(self, model: str, artefact_id: str, artefact: bytes) -> None:
        """Keep it if it is not there."""
        await asyncio.sleep(0)
        self._artefacts.setdefault((model, artefact_id), artefact)

    async def load_artefact(self, model: str, artefact_id: str) -> bytes | None:
        """Get it."""
        await asyncio.sleep(0)
        return self._artefacts.get((model, artefact_id))

    async def artefact_ids(self, model: str) -> list[str]:
        """Return the names."""
        await asyncio.sleep(0)
        return sorted(artefact_id for of, artefact_id in self._artefacts if of == model)

    def _check(self, model: str, epoch: int) -> None:
        if self._epochs.get(model) != epoch:
            raise Fenced("a newer learner has taken over")


class MemoryHealthBoard:
    """`HealthBoard` in memory."""

    def __init__(self, store: MemoryStore) -> None:
        self._clock = store.clock
        self._verdict: bytes | None = None
        self._expires_at_ms = 0

    async def publish(self, verdict: bytes, *, ttl_ms: int) -> None:
        """Keep it for a while."""
        await asyncio.sleep(0)
        self._verdict, self._expires_at_ms = verdict, self._clock() + ttl_ms

    async def fetch(self) -> bytes | None:
        """Return it while it holds."""
        await asyncio.sleep(0)
        return self._verdict if self._clock() < self._expires_at_ms else None


class MemoryArchive:
    """`Archive` in memory.

    Attributes:
        entries: What was archived, by partition, in order.
        outcomes: What was archived, in order.
    """

    def __init__(self) -> None:
        self.entries: defaultdict[int, list[tuple[str, JournalEntry]]] = defaultdict(list)
        self.outcomes: list[OutcomeRow] = []
        self._positions: dict[int, str] = {}
        self._joins = OpenJoins()

    def position(self, partition: int) -> str:
        """Return the last id."""
        return self._positions.get(partition, "0-0")

    def open_joins(self) -> OpenJoins:
        """Return what came with the last batch."""
        return self._joins

    def write(self, batch: ArchiveBatch) -> None:
        """Keep the batch."""
        for partition, entries in batch.entries.items():
            self.entries[partition] += entries
        self.outcomes += batch.outcomes
        self._positions.update(batch.positions)
        self._joins = batch.joins

    def upkeep(self, *, now_ms: int, keep_days: int) -> bool:
        """Have nothing to keep up."""
        return False


def _journal(partition: int) -> str:
    return f"hone:{{{partition}}}:journal"
