"""Mistakes that the checker must find: each changes the production classes in one place, as somebody might."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import msgspec

from service import spool as spool_module
from service.adapters.memory_store import MemoryChangeLog, MemoryJournal, MemoryModelStore
from service.adapters.parquet_archive import ParquetArchive
from service.archive import Archiver
from service.errors import StoreUnavailable
from service.feedback import Feedback
from service.journal_reader import START, JournalReader
from service.learn import LearnerLoop, ModelLoop
from service.messages import encode
from service.spool import Spool, SpoolEntry

Plant = Callable[[], AbstractContextManager[Any]]


def _no_fsync() -> AbstractContextManager[Any]:
    """Events are acknowledged from a spool that was written and not synced."""
    return patch.object(Spool, "_sync", lambda self: None)


def _no_name_sync() -> AbstractContextManager[Any]:
    """A spool file is synced under a name that is not."""
    return patch("service.spool.sync_folder", lambda folder: None)


def _acknowledge_before_append() -> AbstractContextManager[Any]:
    """Events are acknowledged while they are on their way to the journal."""
    real = Feedback._journal_or_spool

    async def journal_or_spool(self: Feedback, requests: Any) -> list[None]:
        self._on_its_way = asyncio.get_running_loop().create_task(real(self, requests))  # type: ignore[attr-defined]
        return [None] * len(requests)

    return patch.object(Feedback, "_journal_or_spool", journal_or_spool)


def _retry_without_id() -> AbstractContextManager[Any]:
    """An event that the store may have taken goes to the spool under another id."""

    async def journal_or_spool(self: Feedback, requests: Any) -> list[None]:
        for event in chain.from_iterable(requests):
            partition = self._journal.partition_of(event.event_id or event.user_key)
            try:
                await self._journal.append(partition, [encode(event)])
            except StoreUnavailable:
                again = msgspec.structs.replace(event, client_id=f"{event.client_id} again")
                self._spool.append_synced([SpoolEntry(payload=encode(again), partition=partition)])
        return [None] * len(requests)

    return patch.object(Feedback, "_journal_or_spool", journal_or_spool)


def _numbers_ignored() -> AbstractContextManager[Any]:
    """The journal takes a spooled entry as often as it comes."""
    real = Spool._write

    def write(self: Spool, entry: SpoolEntry) -> SpoolEntry:
        return msgspec.structs.replace(real(self, entry), number=0)

    return patch.object(Spool, "_write", write)


def _adopted_in_memory() -> AbstractContextManager[Any]:
    """A dead worker's file is removed when its entries are queued, before they are shipped or written again."""
    real = Spool._adopt

    def adopt(self: Spool, path: Any) -> None:
        with patch.object(self.__class__, "_write", lambda self, entry: entry):
            real(self, path)

    return patch.object(Spool, "_adopt", adopt)


def _emptied_before_shipped() -> AbstractContextManager[Any]:
    """A file starts over when its entries leave for the journal."""
    real = Spool._ship

    async def ship(self: Spool, entries: list[SpoolEntry]) -> Any:
        self._empty()
        return await real(self, entries)

    return patch.object(Spool, "_ship", ship)


def _torn_entries_trusted() -> AbstractContextManager[Any]:
    """What a power loss left of an entry is read as one."""
    return patch.object(spool_module, "zlib", SimpleNamespace(crc32=lambda body: 0))


def _claim_ignored() -> AbstractContextManager[Any]:
    """A repeated event id is answered anew."""
    return patch.object(MemoryJournal, "_held", lambda self, event_id: None)


@contextmanager
def _no_fence() -> Iterator[None]:
    """A learner that was replaced goes on writing."""

    async def publish(self: MemoryChangeLog, stream: str, epoch: int, entry: bytes, *, is_whole: bool) -> None:
        await self.append(stream, [entry])

    with patch.object(MemoryModelStore, "_check", lambda *_: None), patch.object(MemoryChangeLog, "publish", publish):
        yield


def _trim_at_the_archive() -> AbstractContextManager[Any]:
    """The journal is trimmed as soon as it is archived, wherever the learner is."""

    async def trim(self: Archiver) -> None:
        for partition, archived in self._positions().items():
            if archived != START:
                await self._journal.trim(partition, archived)

    return patch.object(Archiver, "_trim", trim)


def _checkpoint_before_applying() -> AbstractContextManager[Any]:
    """A checkpoint says that entries are learned which were only read."""
    real = ModelLoop._next_entries

    async def next_entries(self: ModelLoop[Any]) -> Any:
        entries = await real(self)
        for position, _ in entries:
            self._applied[position[1]] = position
        if entries:
            await self.save()
        return entries

    return patch.object(ModelLoop, "_next_entries", next_entries)


def _open_joins_forgotten() -> AbstractContextManager[Any]:
    """A learner that starts again rereads from what it has applied, not from the oldest open decision."""
    real = ModelLoop._checkpoint
    return patch.object(
        ModelLoop,
        "_checkpoint",
        lambda self: msgspec.structs.replace(real(self), oldest_open=dict.fromkeys(real(self).positions, "")),
    )


def _duplicates_forgotten() -> AbstractContextManager[Any]:
    """A learner that starts again does not know which events it has counted."""
    real = ModelLoop._restore

    async def restore(self: ModelLoop[Any], checkpoint: Any) -> None:
        await real(self, checkpoint)
        for tracked in self._joiner._tracked.values():
            tracked.seen.clear()

    return patch.object(ModelLoop, "_restore", restore)


def _waiting_kept_wrongly() -> AbstractContextManager[Any]:
    """After a restart, events wait for decisions that are long closed."""
    return patch("bandit.joining.Joiner.keep_waiting", lambda self, positions: None)


def _windows_on_the_wall_clock() -> AbstractContextManager[Any]:
    """Windows close by the learner's clock."""
    real = ModelLoop.step

    async def step(self: ModelLoop[Any]) -> int:
        for joined in self._joiner.advance(self._clock()):
            self._learn(joined)
        return await real(self)

    return patch.object(ModelLoop, "step", step)


def _late_rewards_learned() -> AbstractContextManager[Any]:
    """A reward that came after its slot was learned is learned too."""
    real = LearnerLoop._learn

    def learn(self: LearnerLoop, joined: Any) -> None:
        real(self, msgspec.structs.replace(joined, kind="reward"))

    return patch.object(LearnerLoop, "_learn", learn)


def _published_before_it_was() -> AbstractContextManager[Any]:
    """What changed is forgotten before the store has taken it."""

    async def publish_change(self: LearnerLoop) -> None:
        change = self._learner.change()
        self._learner.forget_change()
        if len(change.indices):
            await self._publish(change.indices.astype("<u4").tobytes(), change.values.astype("<f4").tobytes())

    return patch.object(LearnerLoop, "_publish_change", publish_change)


def _no_watermark() -> AbstractContextManager[Any]:
    """Partitions are merged without waiting for the slowest."""

    def next_partition(self: JournalReader) -> int | None:
        heads = [(held[0][0], partition) for partition, held in self._held.items() if held]
        return min(heads)[1] if heads else None

    return patch.object(JournalReader, "_next_partition", next_partition)


@contextmanager
def _position_before_rows() -> Iterator[None]:
    """The archive's position moves before its rows are on disk."""
    with patch("tests.simulation.light_model.sync_file", lambda file: file.flush()):
        yield


def _folders_not_synced() -> AbstractContextManager[Any]:
    """The folder of a new hour has no name on disk."""
    return patch(
        "service.adapters.parquet_archive.make_folder",
        lambda folder, *, under: folder.mkdir(parents=True, exist_ok=True),
    )


def _leftovers_kept() -> AbstractContextManager[Any]:
    """Rows beyond the archive's position stay when it starts again."""
    return patch.object(ParquetArchive, "_remove_leftovers", lambda self: None)


def _archived_joins_forgotten() -> AbstractContextManager[Any]:
    """An archiver that starts again does not know the decisions that are open."""

    async def rebuild(self: Archiver) -> None:
        self._is_rebuilt = True

    return patch.object(Archiver, "_rebuild_joins", rebuild)


def _later_decisions_attract() -> AbstractContextManager[Any]:
    """An event that names no decision goes to the newest, even to one made after it."""

    def last_shown(self: Any, event: Any) -> str | None:
        decisions = reversed(self._by_user.get(event.user_key, []))
        return next((one for _, _, one in decisions if event.item_id in self._tracked[one].item_ids), None)

    return patch("bandit.joining.Joiner._last_shown", last_shown)


@dataclass(frozen=True)
class Planted:
    """A mistake.

    Attributes:
        plant: Makes it while the context lasts.
        first: A seed that found it; another one close by does, should the order of things have changed.
        n_seeds: One of so many schedules in a row finds it, from the first or from 1.
    """

    plant: Plant
    first: int
    n_seeds: int = 250


PLANTED = {
    "no fsync": Planted(_no_fsync, 9),
    "no fsync of the name": Planted(_no_name_sync, 60),
    "acknowledge before append": Planted(_acknowledge_before_append, 27),
    "retry without id": Planted(_retry_without_id, 43),
    "numbers ignored": Planted(_numbers_ignored, 6),
    "adopted in memory": Planted(_adopted_in_memory, 13),
    "emptied before shipped": Planted(_emptied_before_shipped, 5),
    "torn entries trusted": Planted(_torn_entries_trusted, 54),
    "claim ignored": Planted(_claim_ignored, 1),
    "no fence": Planted(_no_fence, 4),
    "trimmed at the archive": Planted(_trim_at_the_archive, 1),
    "checkpoint before applying": Planted(_checkpoint_before_applying, 5),
    "open joins forgotten": Planted(_open_joins_forgotten, 3),
    "duplicates forgotten": Planted(_duplicates_forgotten, 85),
    "waiting events kept": Planted(_waiting_kept_wrongly, 34),
    "windows on the wall clock": Planted(_windows_on_the_wall_clock, 6),
    "late rewards learned": Planted(_late_rewards_learned, 1),
    "forgotten before published": Planted(_published_before_it_was, 64),
    "no watermark": Planted(_no_watermark, 53),
    "position before rows": Planted(_position_before_rows, 10),
    "folders not synced": Planted(_folders_not_synced, 10),
    "leftovers kept": Planted(_leftovers_kept, 11),
    "archived joins forgotten": Planted(_archived_joins_forgotten, 3),
    "later decisions attract": Planted(_later_decisions_attract, 37),
}
