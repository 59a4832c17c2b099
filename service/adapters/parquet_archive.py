"""`Archive` as Parquet files by kind, date and hour.

A batch is written to temporary files, fsynced and renamed; then the state file, which says how far the archive goes, is
replaced. A crash in between leaves files beyond the positions, which the next start removes: every entry and every
outcome is archived once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from service.adapters.archive_files import (
    LOCK,
    SCHEMAS,
    file_name,
    hour_folders,
    hour_of,
    split_covered,
    write_rows,
)
from service.adapters.archive_upkeep import ErasedUsers, drop_one_hour, erase_users, merge_one_hour
from service.decision_record import explore_rate_of
from service.durable_files import make_folder, put_in_place, write_whole
from service.failpoints import reach
from service.journal_reader import START, entry_order
from service.messages import Decision, Event, Heartbeat, JournalEntry, Outcome
from service.ports import ArchiveBatch, OpenJoins

# The column is int32. A caller's larger number is in no slate, and must not stop the archive.
_MAX_SLOT = 2**31 - 1
_NO_SUCH_SLOT = -1
_MS_PER_DAY = 86_400_000


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """What the state file holds; journal ids by partition."""

    positions: dict[int, str] = {}
    oldest_open: dict[int, str] = {}
    waiting: dict[str, list[tuple[int, str]]] = {}


class ParquetArchive:
    """Archive under one folder; one writer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._has_failed = False
        self._merged: set[Path] = set()
        # Folders of hours whose names are surely on disk.
        self._made: set[Path] = set()
        make_folder(folder, under=folder.parent)
        (folder / LOCK).touch()
        self._erased = ErasedUsers(folder)
        self._remove_leftovers()

    def position(self, partition: int) -> str:
        """Read the state file."""
        return archived_position(self._folder, partition)

    def open_joins(self) -> OpenJoins:
        """Read the state file."""
        state = _read_state(self._folder)
        return OpenJoins(oldest_open=state.oldest_open, waiting=state.waiting)

    def write(self, batch: ArchiveBatch) -> None:
        """Write one file a kind, hour and partition, then the state; what is archived already is passed over.

        What a failed write leaves is removed, at the latest by the next one.
        """
        if self._has_failed:
            self._remove_leftovers()
        self._has_failed = True
        try:
            self._write(batch)
        except OSError:
            with suppress(OSError):
                self._remove_leftovers()
            raise
        self._has_failed = False

    def upkeep(self, *, now_ms: int, keep_days: int) -> bool:
        """Erase users, else drop an hour, else merge the files of an hour; readers at work put the last two off."""
        if self._erased.pending:
            erase_users(self._folder, self._erased.pending)
            self._erased.done()
            return True
        if keep_days and drop_one_hour(self._folder, before_ms=now_ms - keep_days * _MS_PER_DAY):
            return True
        return merge_one_hour(self._folder, _read_state(self._folder).positions, self._merged)

    def _write(self, batch: ArchiveBatch) -> None:
        state = _read_state(self._folder)
        archived = {p: entry_order(state.positions.get(p, START)) for p in batch.positions}
        tables: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
        for partition, (kind, row) in _rows(batch):
            if entry_order(row["journal_id"]) > archived[partition]:
                ms = entry_order(row["journal_id"])[0]
                tables.setdefault((kind, partition, hour_of(ms)), []).append(row)
        # Before the rows: a crash in between erases what is there already, which is right too.
        reach("archive.note")
        self._erased.note(batch)
        for (kind, partition, hour), rows in tables.items():
            folder = self._folder / kind / hour
            # Retention may have taken it away meanwhile.
            if folder not in self._made or not folder.exists():
                make_folder(folder, under=self._folder)
                self._made.add(folder)
            target = folder / file_name(partition, rows[0]["journal_id"], rows[-1]["journal_id"])
            written = write_rows(target, kind, [pa.Table.from_pylist(rows, schema=SCHEMAS[kind])])
            reach("archive.place")
            put_in_place(written, target)
            reach("archive.placed")
        reach("archive.state")
        self._write_state(
            _State(
                positions={**state.positions, **batch.positions},
                oldest_open=dict(batch.joins.oldest_open),
                waiting={model: list(ids) for model, ids in batch.joins.waiting.items()},
            )
        )
        reach("archive.stored")

    def _remove_leftovers(self) -> None:
        """Remove what no position covers, the files of writes that did not end, and what was merged already."""
        positions: dict[int, tuple[int, int]] = {}
        reach("archive.leftovers")
        for leftover in self._folder.rglob("*.partial"):
            leftover.unlink()
        for kind in SCHEMAS:
            for _, hour in hour_folders(self._folder, kind):
                counting, covered = split_covered(hour)
                for file in covered:
                    file.path.unlink()
                for file in counting:
                    if file.partition not in positions:
                        positions[file.partition] = entry_order(self.position(file.partition))
                    if file.first > positions[file.partition]:
                        file.path.unlink()

    def _write_state(self, state: _State) -> None:
        write_whole(_state_file(self._folder), msgspec.json.encode(state))


def archived_position(folder: Path, partition: int) -> str:
    """Return the last journal id that is archived for good, without writing anything."""
    return _read_state(folder).positions.get(partition, START)


def _state_file(folder: Path) -> Path:
    return folder / "state.json"


def _read_state(folder: Path) -> _State:
    try:
        return msgspec.json.decode(_state_file(folder).read_bytes(), type=_State)
    except FileNotFoundError:
        # Archives of before outcomes have a file for each partition's position.
        return _State(
            positions={
                int(path.stem.rpartition("-")[2]): path.read_text(encoding="ascii")
                for path in folder.glob("position-*.txt")
            }
        )


def _rows(batch: ArchiveBatch) -> Iterator[tuple[int, tuple[str, dict[str, Any]]]]:
    """Yield the partition, kind and row of everything that leaves one."""
    entries = (
        (partition, _row(journal_id, entry))
        for partition, of_partition in batch.entries.items()
        for journal_id, entry in of_partition
        if not isinstance(entry, Heartbeat)
    )
    outcomes = (
        (row.partition, ("outcomes", _outcome_row(row.journal_id, row.ordinal, row.outcome))) for row in batch.outcomes
    )
    return chain(entries, outcomes)


def _row(journal_id: str, entry: JournalEntry) -> tuple[str, dict[str, Any]]:
    """Return the table and row of an entry; user ids stay behind, their keys are enough to join."""
    if isinstance(entry, Decision):
        return "decisions", {
            "journal_id": journal_id,
            "event_id": entry.event_id,
            "decided_at_unix_ms": entry.decided_at_unix_ms,
            "surface": entry.surface,
            "model": entry.model,
            "model_version": entry.versions.model,
            "user_key": entry.user_key,
            "explore_rate": explore_rate_of(entry),
            "item_ids": [slot.item_id for slot in entry.slots],
            "propensities": [slot.propensity for slot in entry.slots],
            "branches": [slot.branch for slot in entry.slots],
            "is_discovery": [slot.is_discovery for slot in entry.slots],
            "record": msgspec.msgpack.encode(msgspec.structs.replace(entry, user_id=None)),
        }
    if isinstance(entry, Event):
        row = msgspec.to_builtins(entry)
        if entry.slot is not None and entry.slot > _MAX_SLOT:
            row["slot"] = _NO_SUCH_SLOT
        return "events", {"journal_id": journal_id, **{name: row[name] for name in SCHEMAS["events"].names[1:]}}
    kind = entry.__struct_config__.tag
    return "control", {"journal_id": journal_id, "type": kind, "record": msgspec.msgpack.encode(entry)}


def _outcome_row(journal_id: str, ordinal: int, outcome: Outcome) -> dict[str, Any]:
    fields = msgspec.structs.asdict(outcome)
    names = SCHEMAS["outcomes"].names[2:]
    return {"journal_id": journal_id, "ordinal": ordinal, **{name: fields[name] for name in names}}
