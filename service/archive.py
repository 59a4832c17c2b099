"""Move the journal into the archive, and trim what is archived, learned and old enough."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from service.config import Config
from service.journal_reader import START, JournalReader, entry_id_of, position_of
from service.messages import Checkpoint, JournalEntry, journal_decoder
from service.metrics import Metrics
from service.ports import Archive, Journal, ModelStore

_BATCH = 1_000
_BLOCK_MS = 500

_log = structlog.get_logger("hone.archive")


class Archiver:
    """The one archiver: reads each partition from where its files end."""

    def __init__(
        self,
        *,
        config: Config,
        journal: Journal,
        models: ModelStore,
        archive: Archive,
        metrics: Metrics,
        clock: Callable[[], int],
    ) -> None:
        self._config = config
        self._journal = journal
        self._models = models
        self._archive = archive
        self._metrics = metrics
        self._clock = clock
        partitions = range(journal.n_partitions)
        self._pending: dict[int, list[tuple[str, JournalEntry]]] = {p: [] for p in partitions}
        self._reader = JournalReader(journal, {p: archive.position(p) for p in partitions})
        self._flushed_at_ms = clock()

    async def step(self) -> None:
        """Read what came, and archive and trim when it is time.

        Raises:
            StoreUnavailable: call again; nothing that was read is lost.
            OSError: the archive could not be written; what was read is kept and written at the next step.
        """
        for position, payload in await self._reader.read(count=_BATCH, block_ms=_BLOCK_MS):
            try:
                entry = journal_decoder.decode(payload)
            except msgspec.MsgspecError as error:
                _log.error("archive.unreadable", position=position, error=str(error))
                continue
            self._pending[position[1]].append((entry_id_of(position), entry))
        waiting = sum(map(len, self._pending.values()))
        settings = self._config.archive
        is_due = self._clock() - self._flushed_at_ms >= settings.flush_s * 1000
        if waiting >= settings.flush_entries or (is_due and waiting):
            await self.flush()

    async def flush(self) -> None:
        """Archive what was read, then trim the journal."""
        for partition, entries in self._pending.items():
            if entries:
                await asyncio.to_thread(self._archive.write, partition, entries)
                self._metrics.archived.inc(len(entries))
                self._pending[partition] = []
        self._flushed_at_ms = self._clock()
        await self._trim()

    async def _trim(self) -> None:
        """Drop entries that nobody will read again: behind archive, every learner and the time they are kept."""
        keep_ms = self._clock() - int(self._config.archive.journal_keep_s * 1000)
        needed: dict[int, list[str]] = {p: [self._archive.position(p), f"{max(keep_ms, 0)}-0"] for p in self._pending}
        for model in self._config.models:
            stored = await self._models.load_checkpoint(model)
            checkpoint = msgspec.msgpack.decode(stored, type=Checkpoint) if stored else None
            for partition, bounds in needed.items():
                key = str(partition)
                applied = checkpoint.positions.get(key, START) if checkpoint else START
                bounds.append((checkpoint.oldest_open.get(key) if checkpoint else None) or applied)
        for partition, bounds in needed.items():
            before = min(bounds, key=lambda entry_id: position_of(0, entry_id))
            if before != START:
                await self._journal.trim(partition, before)
