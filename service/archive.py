"""Move the journal and the outcomes that follow from it into the archive; trim what nobody will read again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec
import structlog

from bandit.joining import Position
from service.config import Config
from service.due import is_due
from service.failpoints import reach
from service.journal_reader import START, JournalReader, entry_id_of, just_before, position_of
from service.messages import Erasure, JournalEntry, journal_decoder
from service.metrics import Metrics
from service.outcomes import OutcomeJoins
from service.ports import Archive, ArchiveBatch, Journal, ModelStore, OpenJoins, OutcomeRow

_BATCH = 1_000
_BLOCK_MS = 500
_UPKEEP_MS = 600_000

_log = structlog.get_logger("hone.archive")


class Archiver:
    """The one archiver: reads the journal from where the archive ends, and joins as the learners do.

    What it joined but did not archive is joined again after a restart: it rereads the journal from the oldest open
    entry, and drops the outcomes that are archived.
    """

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
        archived = {p: archive.position(p) for p in partitions}
        self._applied = {p: position_of(p, entry_id) for p, entry_id in archived.items() if entry_id != START}
        self._joins = OutcomeJoins(config)
        self._is_rebuilt = False
        self._pending: dict[int, list[tuple[str, JournalEntry]]] = {p: [] for p in partitions}
        self._outcomes: list[OutcomeRow] = []
        self._reader = JournalReader(journal, archived)
        self._flushed_at_ms = clock()
        self._upkept_at_ms = clock()
        self._has_upkeep = True

    async def step(self) -> None:
        """Read what came; archive, trim and keep up the archive when it is time.

        Raises:
            StoreUnavailable: call again; nothing that was read is lost.
            OSError: the archive could not be written; what was read is kept and written at the next step.
        """
        if not self._is_rebuilt:
            reach("archiver.rebuild")
            await self._rebuild_joins()
        for position, payload in await self._reader.read(count=_BATCH, block_ms=_BLOCK_MS):
            entry = _decode(position, payload)
            self._outcomes += self._apply(position, entry)
            if entry is not None:
                self._pending[position[1]].append((entry_id_of(position), entry))
        settings = self._config.archive
        waiting = sum(map(len, self._pending.values()))
        is_time = is_due(self._clock(), since_ms=self._flushed_at_ms, every_ms=settings.flush_s * 1000)
        if waiting >= settings.flush_entries or is_time:
            await self.flush()
        if self._has_upkeep or is_due(self._clock(), since_ms=self._upkept_at_ms, every_ms=_UPKEEP_MS):
            await self._upkeep()

    async def flush(self) -> None:
        """Archive what was read, then trim the journal."""
        n_entries = sum(map(len, self._pending.values()))
        if n_entries or self._outcomes:
            reach("archiver.write")
            await asyncio.to_thread(self._archive.write, self._batch())
            reach("archiver.written")
            self._metrics.archived.inc(n_entries)
            self._has_upkeep |= any(isinstance(e, Erasure) for of in self._pending.values() for _, e in of)
            self._pending = {partition: [] for partition in self._pending}
            self._outcomes = []
        self._flushed_at_ms = self._clock()
        await self._trim()

    async def _upkeep(self) -> None:
        """Do one piece, so that archiving goes on in between."""
        self._upkept_at_ms = self._clock()
        reach("archiver.upkeep")
        self._has_upkeep = await asyncio.to_thread(
            self._archive.upkeep, now_ms=self._upkept_at_ms, keep_days=self._config.archive.keep_days
        )

    def _apply(self, position: Position, entry: JournalEntry | None) -> list[OutcomeRow]:
        self._applied[position[1]] = position
        return [
            OutcomeRow(partition=position[1], journal_id=entry_id_of(position), ordinal=ordinal, outcome=outcome)
            for ordinal, outcome in enumerate(self._joins.apply(position, entry))
        ]

    def _batch(self) -> ArchiveBatch:
        return ArchiveBatch(
            positions={partition: entry_id_of(position) for partition, position in self._applied.items()},
            entries=self._pending,
            outcomes=self._outcomes,
            joins=OpenJoins(
                oldest_open={
                    partition: entry_id_of(position)
                    for partition in self._pending
                    if (position := self._joins.oldest_open(partition)) is not None
                },
                waiting={
                    model: [(position[1], entry_id_of(position)) for position in positions]
                    for model, positions in self._joins.waiting().items()
                },
            ),
        )

    async def _rebuild_joins(self) -> None:
        """Apply what is archived since the oldest open entry again; its outcomes are archived already."""
        joins = self._archive.open_joins()
        joined = OutcomeJoins(self._config)
        last = max(self._applied.values(), default=(0, 0, 0))
        after = {
            partition: just_before(joins.oldest_open[partition]) if partition in joins.oldest_open else entry_id
            for partition, entry_id in self._positions().items()
        }
        reader = JournalReader(self._journal, after)
        is_behind = True
        while is_behind and (entries := await reader.read(count=_BATCH, block_ms=0)):
            for position, payload in entries:
                is_behind = position <= last
                if not is_behind:
                    break
                joined.apply(position, _decode(position, payload))
        joined.keep_waiting({m: [position_of(p, i) for p, i in waiting] for m, waiting in joins.waiting.items()})
        self._joins = joined
        self._is_rebuilt = True

    def _positions(self) -> Mapping[int, str]:
        return {partition: self._archive.position(partition) for partition in self._pending}

    async def _trim(self) -> None:
        """Drop entries that nobody will read again: behind archive, every learner and the time they are kept."""
        keep_ms = self._clock() - int(self._config.archive.journal_keep_s * 1000)
        reread = self._archive.open_joins().oldest_open
        needed: dict[int, list[str]] = {
            partition: [archived, reread.get(partition, archived), f"{max(keep_ms, 0)}-0"]
            for partition, archived in self._positions().items()
        }
        for model in self._config.models:
            progress = await self._models.load_progress(model)
            for partition, bounds in needed.items():
                key = str(partition)
                if progress is None or progress.oldest_open is None:
                    bounds.append(START)
                else:
                    bounds.append(progress.oldest_open.get(key) or progress.positions.get(key, START))
        for partition, bounds in needed.items():
            before = min(bounds, key=lambda entry_id: position_of(0, entry_id))
            if before != START:
                reach("archiver.trim")
                await self._journal.trim(partition, before)
                reach("archiver.trimmed")


def _decode(position: Position, payload: bytes) -> JournalEntry | None:
    try:
        return journal_decoder.decode(payload)
    except msgspec.MsgspecError as error:
        _log.error("archive.unreadable", position=position, error=str(error))
        return None
