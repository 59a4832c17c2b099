"""`Archive` as Parquet files by kind, date and hour.

A batch is written to temporary files, fsynced and renamed; then the partition's position file is replaced. A crash in
between leaves files beyond the position, which the next start removes: every entry is archived once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from service.decision_record import explore_rate_of
from service.journal_reader import entry_order
from service.messages import Decision, Event, Heartbeat, JournalEntry

_START = "0-0"
# The column is int32. A caller's larger number is in no slate, and must not stop the archive.
_MAX_SLOT = 2**31 - 1
_NO_SUCH_SLOT = -1

_DECISIONS = pa.schema(
    [
        ("journal_id", pa.string()),
        ("event_id", pa.string()),
        ("decided_at_unix_ms", pa.int64()),
        ("surface", pa.string()),
        ("model", pa.string()),
        ("model_version", pa.int64()),
        ("user_key", pa.string()),
        ("explore_rate", pa.float64()),
        ("item_ids", pa.list_(pa.string())),
        ("propensities", pa.list_(pa.float64())),
        ("branches", pa.list_(pa.string())),
        ("is_discovery", pa.list_(pa.bool_())),
        ("record", pa.binary()),
    ],
    metadata={"hone_schema": "decisions-1"},
)
_EVENTS = pa.schema(
    [
        ("journal_id", pa.string()),
        ("accepted_at_unix_ms", pa.int64()),
        ("event_type", pa.string()),
        ("event_id", pa.string()),
        ("client_id", pa.string()),
        ("user_key", pa.string()),
        ("item_id", pa.string()),
        ("slot", pa.int32()),
        ("value", pa.float64()),
    ],
    metadata={"hone_schema": "events-1"},
)
_CONTROL = pa.schema(
    [("journal_id", pa.string()), ("type", pa.string()), ("record", pa.binary())],
    metadata={"hone_schema": "control-1"},
)
_SCHEMAS = {"decisions": _DECISIONS, "events": _EVENTS, "control": _CONTROL}
# Tables without rows, for readers of an archive that has none of a kind yet.
EMPTY = {kind: schema.empty_table() for kind, schema in _SCHEMAS.items()}


class ParquetArchive:
    """Archive under one folder; one writer a partition."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._failed: set[int] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()

    def position(self, partition: int) -> str:
        """Read the position file."""
        return archived_position(self._folder, partition)

    def write(self, partition: int, entries: Sequence[tuple[str, JournalEntry]]) -> None:
        """Write one file a kind and hour, then move the position; entries that are archived already are passed over.

        What a failed write leaves is removed, at the latest by the next one.
        """
        if partition in self._failed:
            self._remove_leftovers(f"p{partition}-")
        archived = entry_order(self.position(partition))
        entries = [(journal_id, entry) for journal_id, entry in entries if entry_order(journal_id) > archived]
        if not entries:
            return
        self._failed.add(partition)
        try:
            self._write(partition, entries)
        except OSError:
            with suppress(OSError):
                self._remove_leftovers(f"p{partition}-")
            raise
        self._failed.remove(partition)

    def _write(self, partition: int, entries: Sequence[tuple[str, JournalEntry]]) -> None:
        rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for journal_id, entry in entries:
            kind, row = _row(journal_id, entry)
            if kind is not None:
                rows.setdefault((kind, _hour(journal_id)), []).append(row)
        for (kind, hour), of_hour in rows.items():
            folder = self._folder / kind / hour
            folder.mkdir(parents=True, exist_ok=True)
            name = f"p{partition}-{of_hour[0]['journal_id']}-{of_hour[-1]['journal_id']}.parquet"
            partial = folder / f"{name}.partial"
            with partial.open("wb") as file:
                pq.write_table(pa.Table.from_pylist(of_hour, schema=_SCHEMAS[kind]), file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            partial.rename(folder / name)
            _sync_folder(folder)
        self._move_position(partition, entries[-1][0])

    def _remove_leftovers(self, prefix: str = "") -> None:
        """Remove what no position covers: the files of writes that did not end."""
        for leftover in self._folder.rglob(f"{prefix}*.partial"):
            leftover.unlink()
        for path in self._folder.rglob(f"{prefix}*.parquet"):
            partition, first = _file_range(path)
            if entry_order(first) > entry_order(self.position(partition)):
                path.unlink()

    def _move_position(self, partition: int, journal_id: str) -> None:
        path = self._position_file(partition)
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="ascii") as file:
            file.write(journal_id)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        _sync_folder(self._folder)

    def _position_file(self, partition: int) -> Path:
        return _position_file(self._folder, partition)


def archived_position(folder: Path, partition: int) -> str:
    """Return the last journal id that is archived for good, without writing anything."""
    try:
        return _position_file(folder, partition).read_text(encoding="ascii")
    except FileNotFoundError:
        return _START


def _position_file(folder: Path, partition: int) -> Path:
    return folder / f"position-{partition}.txt"


def _row(journal_id: str, entry: JournalEntry) -> tuple[str | None, dict[str, Any]]:
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
        return "events", {"journal_id": journal_id, **{name: row[name] for name in _EVENTS.names[1:]}}
    if isinstance(entry, Heartbeat):
        return None, {}
    return "control", {
        "journal_id": journal_id,
        "type": entry.__struct_config__.tag,
        "record": msgspec.msgpack.encode(entry),
    }


def _hour(journal_id: str) -> str:
    at = datetime.fromtimestamp(int(journal_id.partition("-")[0]) / 1000, UTC)
    return f"date={at:%Y-%m-%d}/hour={at:%H}"


def _file_range(path: Path) -> tuple[int, str]:
    partition, ms, sequence, *_ = path.stem.split("-")
    return int(partition[1:]), f"{ms}-{sequence}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
