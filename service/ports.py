"""What the use cases need of the outside. One contract suite per port runs on every adapter (`tests/contracts`).

Every method may raise `StoreUnavailable`; a write may then have happened or not, and is safe to repeat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from service.messages import (
    DecisionSummary,
    Impression,
    Interaction,
    JournalEntry,
    LearnerProgress,
    Outcome,
    UserProfile,
)


class Shipment(msgspec.Struct, frozen=True, gc=False):
    """A decision or an event on its way into the journal.

    Attributes:
        event_id: Claimed by the first shipment that arrives; empty for an event, which claims nothing.
        summary: Encoded `DecisionSummary`, kept with the claim.
        entry: The encoded entry.
        ttl_ms: How long the claim lasts.
        partition: Where an event goes; a decision goes where its id says.
        origin: Who numbers its shipments; empty for nobody.
        number: From 1, rising within an origin: one that is not above the last that arrived has arrived before.
    """

    event_id: str
    summary: bytes
    entry: bytes
    ttl_ms: int
    partition: int = 0
    origin: str = ""
    number: int = 0


class Claim(msgspec.Struct, frozen=True, gc=False):
    """Who holds an event id.

    Attributes:
        journal_id: Where the winner's decision is in its partition.
        summary: Of the winner's decision.
        is_new: Whether this shipment is the winner.
    """

    journal_id: str
    summary: DecisionSummary
    is_new: bool


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry as read from a stream."""

    stream: str
    entry_id: str
    payload: bytes


class UserState(msgspec.Struct, frozen=True):
    """What a request reads of its user; empty for unknown users.

    Attributes:
        profile: Attributes.
        recent: Interactions, oldest first.
        consumed: Items with a positive interaction lately.
        impressions: What was shown lately, oldest first.
    """

    profile: UserProfile
    recent: Sequence[Interaction]
    consumed: frozenset[str]
    impressions: Sequence[Impression] = ()


class Journal(Protocol):
    """The durable, ordered log of decisions, events and control entries; an append that returns is fsynced."""

    n_partitions: int

    def partition_of(self, event_id: str) -> int:
        """Return the partition that an event id lives in."""

    async def ship(self, shipments: Sequence[Shipment]) -> list[Claim | None]:
        """Append what has not arrived before and whose event id nobody holds; claim, number and append are one step.

        Returns:
            Who holds the event id of each; None for an event, and for a decision that arrived before and whose claim
            is over.
        """

    async def append(self, partition: int, entries: Sequence[bytes]) -> list[str]:
        """Append entries and return their ids."""

    async def read(self, after: Mapping[int, str], *, count: int, block_ms: int) -> dict[int, list[tuple[str, bytes]]]:
        """Read entries after an id by partition, waiting up to `block_ms` for the first (0 does not wait)."""

    async def claims(self, event_ids: Sequence[str]) -> list[Claim | None]:
        """Return who holds each event id, None for nobody, in one round trip."""

    async def entry(self, partition: int, journal_id: str) -> bytes | None:
        """Return one entry, None when it was trimmed away."""

    async def trim(self, partition: int, before: str) -> int:
        """Drop entries before an id and return how many."""


class ChangeLog(Protocol):
    """Streams that every worker follows: items, item statistics, weights, configuration."""

    async def append(self, stream: str, entries: Sequence[bytes]) -> list[str]:
        """Append entries to a stream and return their ids."""

    async def read(self, after: Mapping[str, str], *, count: int, block_ms: int) -> list[Entry]:
        """Read entries after an id by stream, waiting up to `block_ms` for the first (0 does not wait)."""

    async def trim(self, stream: str, before: str) -> int:
        """Drop entries before an id and return how many."""

    async def take_epoch(self, stream: str, *, at_least: int) -> int:
        """Take a stream's next epoch: from now on entries published under earlier ones are refused."""

    async def publish(self, stream: str, epoch: int, entry: bytes, *, is_whole: bool) -> None:
        """Append an entry; a whole one drops what came before it, in the same write.

        Raises:
            Fenced: a newer epoch was taken.
        """


class UserStates(Protocol):
    """User profiles, recent interactions and impressions; everything but the profile expires."""

    async def fetch(self, user_id: str) -> UserState:
        """Return the state of a user in one round trip."""

    async def add_interactions(self, interactions: Mapping[str, Sequence[Interaction]]) -> None:
        """Add interactions by user id, in one round trip; adding one twice changes nothing.

        Positive ones count as consumed.
        """

    async def add_impressions(self, impressions: Mapping[str, Sequence[Impression]]) -> None:
        """Add impressions by user id, in one round trip; adding one twice changes nothing. The newest are kept."""

    async def put_profiles(self, profiles: Mapping[str, UserProfile]) -> None:
        """Store profiles by user id."""

    async def erase(self, user_id: str, *, at_unix_ms: int) -> None:
        """Delete everything stored of a user; what happened up to `at_unix_ms` is not added again."""


class ModelStore(Protocol):
    """Checkpoints, snapshots and weight deltas of models, written by one learner at a time.

    Every write carries the writer's epoch and is refused with `Fenced` once a newer one was taken.
    """

    async def take_epoch(self, model: str) -> int:
        """Take the next epoch: from now on writes of earlier epochs are refused."""

    async def hold_lease(self, model: str, epoch: int, *, lease_ms: int) -> None:
        """Say that the writer of this epoch is alive for so long. Only standbys read it; the epoch is the fence."""

    async def release_lease(self, model: str, epoch: int) -> None:
        """Say that the writer of this epoch has ended."""

    async def lease_holder(self, model: str) -> int | None:
        """Return the epoch of the writer that is alive, None when there is none."""

    async def save_checkpoint(self, model: str, epoch: int, checkpoint: bytes) -> None:
        """Replace the checkpoint."""

    async def load_checkpoint(self, model: str) -> bytes | None:
        """Return the checkpoint, None before the first."""

    async def load_progress(self, model: str) -> LearnerProgress | None:
        """Return what the checkpoint says of the learner's progress, without reading the model in it."""

    async def publish_delta(self, model: str, epoch: int, delta: bytes) -> str:
        """Append to the weight stream and return the id."""

    async def publish_snapshot(self, model: str, epoch: int, snapshot: bytes) -> None:
        """Replace the snapshot, keep the one before it, and drop the deltas that the kept one includes.

        One at the same position in the weight stream as the present snapshot replaces it and moves nothing.
        """

    async def last_delta(self, model: str) -> tuple[str, bytes] | None:
        """Return the id and payload of the newest delta, None when the stream is empty."""

    async def load_snapshot(self, model: str) -> bytes | memoryview | None:
        """Return the snapshot, None before the first; other tasks get their turn while a large one is read."""

    async def put_artefact(self, model: str, artefact_id: str, artefact: bytes) -> None:
        """Store an artefact; one that is there already stays as it is. Needs no epoch: nothing serves from it yet."""

    async def load_artefact(self, model: str, artefact_id: str) -> bytes | None:
        """Return an artefact, None when there is none of that id."""

    async def artefact_ids(self, model: str) -> list[str]:
        """Return the ids of a model's artefacts, in order of the ids."""

    async def load_earlier_snapshot(self, model: str) -> bytes | None:
        """Return the snapshot before the present one, None before the second."""

    def weights_stream(self, model: str) -> str:
        """Return the name of the model's weight stream, to follow with `ChangeLog.read`."""


class HealthBoard(Protocol):
    """Where the health watch publishes its verdict for every worker to read."""

    async def publish(self, verdict: bytes, *, ttl_ms: int) -> None:
        """Replace the verdict; it is gone when it is not replaced again in time."""

    async def fetch(self) -> bytes | None:
        """Return the verdict, None when nobody has published one lately."""


class OpenJoins(msgspec.Struct, frozen=True):
    """From where an archiver rebuilds its joins after a restart.

    Attributes:
        oldest_open: Journal id that each partition is reread from; a partition without is read on from its position.
        waiting: By model, partition and journal id, the events that wait for their decision.
    """

    oldest_open: Mapping[int, str] = msgspec.field(default_factory=dict)
    waiting: Mapping[str, Sequence[tuple[int, str]]] = msgspec.field(default_factory=dict)


class OutcomeRow(msgspec.Struct, frozen=True):
    """An outcome and the place in the journal that made it certain.

    Attributes:
        partition: Of the entry that did.
        journal_id: Of that entry.
        ordinal: Its number among the outcomes of that entry, from 0.
        outcome: What became of the slot.
    """

    partition: int
    journal_id: str
    ordinal: int
    outcome: Outcome


class ArchiveBatch(msgspec.Struct, frozen=True):
    """What follows in the journal, in the order that all its readers share.

    Attributes:
        positions: Last journal id of the batch, by partition.
        entries: By partition, in order.
        outcomes: What the entries made certain, in order.
        joins: The joins after the last entry.
    """

    positions: Mapping[int, str]
    entries: Mapping[int, Sequence[tuple[str, JournalEntry]]]
    outcomes: Sequence[OutcomeRow]
    joins: OpenJoins


class Archive(Protocol):
    """The offline store: every journal entry and every outcome once, in order, across restarts.

    Blocking; call it off the event loop.
    """

    def position(self, partition: int) -> str:
        """Return the last journal id that is archived for good, `0-0` before the first."""

    def open_joins(self) -> OpenJoins:
        """Return the joins as of the positions."""

    def write(self, batch: ArchiveBatch) -> None:
        """Archive what follows the positions, which move with it; all or nothing.

        Raises:
            OSError: nothing was archived.
        """

    def upkeep(self, *, now_ms: int, keep_days: int) -> bool:
        """Do one piece of what is due: erase users, merge small files, drop what is too old.

        Args:
            now_ms: unix milliseconds.
            keep_days: age at which rows are dropped; 0 keeps them for ever.

        Returns:
            Whether there may be more to do.

        Raises:
            OSError: what is archived is as it was.
        """
