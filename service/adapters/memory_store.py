"""The ports in memory, for tests and the closed-loop simulator: one process, nothing survives it, time is given.

Adapters made on one `MemoryStore` see each other's streams, as clients of one server do.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import msgspec

from service.adapters.memory_streams import MemoryStore
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


@dataclass(frozen=True, slots=True)
class _HeldClaim:
    journal_id: str
    summary: bytes
    expires_at_ms: int


class MemoryJournal:
    """`Journal` in memory."""

    def __init__(self, store: MemoryStore, *, n_partitions: int = 1) -> None:
        self._store = store
        self.n_partitions = n_partitions
        self._claims: dict[str, _HeldClaim] = {}
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
            return _claim(held, is_new=False)
        if is_old:
            return None
        journal_id = self._store.add(_journal(partition), shipment.entry)
        if not shipment.event_id:
            return None
        held = _HeldClaim(journal_id, shipment.summary, self._store.clock() + shipment.ttl_ms)
        self._claims[shipment.event_id] = held
        return _claim(held, is_new=True)

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
        found = [self._held(event_id) for event_id in event_ids]
        return [None if held is None else _claim(held, is_new=False) for held in found]

    async def entry(self, partition: int, journal_id: str) -> bytes | None:
        """Look one entry up."""
        await asyncio.sleep(0)
        return self._store.streams[_journal(partition)].get(journal_id)

    async def trim(self, partition: int, before: str) -> int:
        """Drop what is before an id."""
        await asyncio.sleep(0)
        return self._store.streams[_journal(partition)].trim(before)

    def _held(self, event_id: str) -> _HeldClaim | None:
        held = self._claims.get(event_id)
        if held is not None and held.expires_at_ms <= self._store.clock():
            del self._claims[event_id]
            return None
        return held


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
        return [
            Entry(stream=name, entry_id=entry_id, payload=payload)
            for name, entries in found.items()
            for entry_id, payload in entries
        ]

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


@dataclass(slots=True)
class _Interactions:
    """Values by member, ordered by (time, member) as a sorted set orders them; all expire together."""

    at_unix_ms: dict[bytes, int]
    expires_at_ms: int

    def members(self) -> list[bytes]:
        return sorted(self.at_unix_ms, key=lambda member: (self.at_unix_ms[member], member))

    def keep(self, limit: int) -> None:
        if len(self.at_unix_ms) <= limit:
            return
        for member in self.members()[: len(self.at_unix_ms) - limit]:
            del self.at_unix_ms[member]


class MemoryUserStates:
    """`UserStates` in memory."""

    def __init__(self, store: MemoryStore, config: StoreConfig) -> None:
        self._clock = store.clock
        self._config = config
        self._profiles: dict[str, UserProfile] = {}
        self._recent: dict[str, _Interactions] = {}
        self._consumed: dict[str, _Interactions] = {}
        self._impressions: dict[str, _Interactions] = {}
        self._erased_at_ms: dict[str, int] = {}

    async def fetch(self, user_id: str) -> UserState:
        """Fetch everything."""
        await asyncio.sleep(0)
        recent, consumed = self._live(self._recent, user_id), self._live(self._consumed, user_id)
        shown = self._live(self._impressions, user_id)
        return UserState(
            profile=self._profiles.get(user_id, UserProfile()),
            recent=[msgspec.msgpack.decode(member, type=Interaction) for member in recent.members()],
            consumed=frozenset(member.decode() for member in consumed.at_unix_ms),
            impressions=tuple(impression_of(member, shown.at_unix_ms[member]) for member in shown.members()),
        )

    async def add_interactions(self, interactions: Mapping[str, Sequence[Interaction]]) -> None:
        """Add members and drop the oldest beyond the limits."""
        await asyncio.sleep(0)
        config = self._config
        for user_id, of_user in interactions.items():
            members = {encode(i): i.at_unix_ms for i in of_user}
            self._add(self._recent, user_id, members, config.recent_limit, config.user_state_ttl_s)
            positive = {i.item_id.encode(): i.at_unix_ms for i in of_user if (i.reward or 0.0) > 0.0}
            self._add(self._consumed, user_id, positive, config.consumed_limit, config.consumed_ttl_s)

    async def add_impressions(self, impressions: Mapping[str, Sequence[Impression]]) -> None:
        """Add members and drop the oldest beyond the limit."""
        await asyncio.sleep(0)
        config = self._config
        for user_id, shown in impressions.items():
            members = {impression_member(i): i.shown_at_unix_ms for i in shown}
            self._add(self._impressions, user_id, members, config.impressions_limit, config.impressions_ttl_s)

    async def put_profiles(self, profiles: Mapping[str, UserProfile]) -> None:
        """Set all."""
        await asyncio.sleep(0)
        self._profiles.update(profiles)

    async def erase(self, user_id: str, *, at_unix_ms: int) -> None:
        """Delete the user."""
        await asyncio.sleep(0)
        self._erased_at_ms[user_id] = at_unix_ms
        for table in (self._profiles, self._recent, self._consumed, self._impressions):
            table.pop(user_id, None)

    def _live(self, table: dict[str, _Interactions], user_id: str) -> _Interactions:
        held = table.get(user_id)
        return held if held is not None and held.expires_at_ms > self._clock() else _Interactions({}, 0)

    def _add(
        self, table: dict[str, _Interactions], user_id: str, members: Mapping[bytes, int], limit: int, ttl_s: int
    ) -> None:
        erased_at_ms = self._erased_at_ms.get(user_id, -1)
        members = {member: at_ms for member, at_ms in members.items() if at_ms > erased_at_ms}
        if not members:
            return
        held = table[user_id] = self._live(table, user_id)
        held.at_unix_ms.update(members)
        held.keep(limit)
        held.expires_at_ms = self._clock() + ttl_s * 1000


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


def _claim(held: _HeldClaim, *, is_new: bool) -> Claim:
    return Claim(journal_id=held.journal_id, summary=summary_decoder.decode(held.summary), is_new=is_new)


def _journal(partition: int) -> str:
    return f"hone:{{{partition}}}:journal"
