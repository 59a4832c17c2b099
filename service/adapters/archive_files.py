"""The files of an archive: their schemas, names and locks, and how everyone reads them.

`<kind>/date=2026-11-22/hour=13/p<partition>-<first>-<last>.parquet` holds the rows of one partition's journal entries
from `first` to `last`. Of two files in a folder whose ranges contain one another the smaller has been merged into the
larger, and counts no more.
"""

from __future__ import annotations

import fcntl
import heapq
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bandit.joining import Position
from service.durable_files import sync_file
from service.failpoints import reach
from service.journal_reader import position_of

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
_OUTCOMES = pa.schema(
    [
        ("journal_id", pa.string()),
        ("ordinal", pa.int32()),
        ("event_id", pa.string()),
        ("slot", pa.int32()),
        ("item_id", pa.string()),
        ("reward", pa.float64()),
        ("kind", pa.string()),
        ("at_unix_ms", pa.int64()),
        ("delay_ms", pa.int64()),
        ("surface", pa.string()),
        ("model", pa.string()),
        ("decision_journal_id", pa.string()),
        ("decided_at_unix_ms", pa.int64()),
        ("user_key", pa.string()),
        ("propensity", pa.float64()),
        ("branch", pa.string()),
        ("is_explored", pa.bool_()),
    ],
    metadata={"hone_schema": "outcomes-1"},
)
_CONTROL = pa.schema(
    [("journal_id", pa.string()), ("type", pa.string()), ("record", pa.binary())],
    metadata={"hone_schema": "control-1"},
)
SCHEMAS = {"decisions": _DECISIONS, "events": _EVENTS, "outcomes": _OUTCOMES, "control": _CONTROL}
# Tables without rows, for readers of an archive that has none of a kind yet.
EMPTY = {kind: schema.empty_table() for kind, schema in SCHEMAS.items()}

_VERSION = b"hone_schema"
_ERASED = b"hone_erased"
# Readers share it; who takes files away has it alone.
LOCK = "lock"
_ROWS_AT_ONCE = 256
# Rows are gathered up to this size before they are written as one row group.
_GROUP_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """A file and what its name says.

    Attributes:
        path: Where it is.
        partition: Of the journal.
        first: (ms, sequence) of the first entry that it covers.
        last: Of the last one.
    """

    path: Path
    partition: int
    first: tuple[int, int]
    last: tuple[int, int]

    @classmethod
    def of(cls, path: Path) -> ArchiveFile:
        """Read a file's name."""
        partition, *numbers = path.stem.split("-")
        first_ms, first_sequence, last_ms, last_sequence = map(int, numbers)
        return cls(path, int(partition[1:]), (first_ms, first_sequence), (last_ms, last_sequence))

    def covers(self, other: ArchiveFile) -> bool:
        """Return whether another file has been merged into this one."""
        return self != other and self.first <= other.first and other.last <= self.last


def file_name(partition: int, first: str, last: str) -> str:
    """Return the name of a file by the journal ids it covers."""
    return f"p{partition}-{first}-{last}.parquet"


def hour_of(ms: int) -> str:
    """Return the folder of an hour within a kind.

    >>> hour_of(1_795_382_944_962)
    'date=2026-11-22/hour=21'
    """
    return f"{datetime.fromtimestamp(ms / 1000, UTC):date=%Y-%m-%d/hour=%H}"


def hour_folders(folder: Path, kind: str) -> list[tuple[str, Path]]:
    """Return the hours that have files of a kind, oldest first, by the name that `hour_of` gives."""
    found = (folder / kind).glob("date=*/hour=*")
    return sorted((f"{path.parent.name}/{path.name}", path) for path in found)


def split_covered(hour: Path) -> tuple[list[ArchiveFile], list[ArchiveFile]]:
    """Return the files of an hour that count, by partition and range, and those that were merged into one of them."""
    files = sorted(map(ArchiveFile.of, hour.glob("*.parquet")), key=lambda f: (f.partition, f.first, f.last))
    counting: list[ArchiveFile] = []
    covered: list[ArchiveFile] = []
    for _, of_partition in groupby(files, key=lambda f: f.partition):
        same = list(of_partition)
        for file in same:
            (covered if any(other.covers(file) for other in same) else counting).append(file)
    return counting, covered


def files_of(folder: Path, kind: str) -> list[ArchiveFile]:
    """Return the files of a kind that count, oldest hour first; call it and read them under `reading`."""
    return [file for _, hour in hour_folders(folder, kind) for file in split_covered(hour)[0]]


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Keep merged and expired files in place while they are read; new ones may come."""
    try:
        lock = (folder / LOCK).open("rb")
    except FileNotFoundError:
        # A copy of the files, or no archive yet.
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


@contextmanager
def replacing(folder: Path) -> Iterator[bool]:
    """Yield whether files may be taken away now: not while somebody reads."""
    with (folder / LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def read_rows(
    folder: Path, kind: str, columns: Sequence[str], *, from_ms: int = 0, to_ms: int = 2**62
) -> Iterator[tuple[Position, dict[str, Any]]]:
    """Yield rows in the order of the merged journal, a few at a time; call it under `reading`.

    Args:
        folder: of the archive.
        kind: of the rows.
        columns: what to read; the position comes with each row.
        from_ms: journal time of the first row.
        to_ms: journal time before which the rows end.

    Raises:
        ValueError: a file is of a later version than this code reads.
    """
    wanted = list(dict.fromkeys(("journal_id", *columns)))
    first_hour, last_hour = hour_of(from_ms), hour_of(min(to_ms, 253_402_300_799_000))
    for hour, path in hour_folders(folder, kind):
        if not first_hour <= hour <= last_hour:
            continue
        partitions = groupby(split_covered(path)[0], key=lambda file: file.partition)
        streams = [_rows_of(kind, list(files), wanted) for _, files in partitions]
        for position, row in heapq.merge(*streams, key=lambda pair: pair[0]):
            if from_ms <= position[0] < to_ms:
                yield position, row


def _rows_of(kind: str, files: Sequence[ArchiveFile], columns: list[str]) -> Iterator[tuple[Position, dict[str, Any]]]:
    for file in files:
        for table in tables_of(file.path, kind, columns):
            for row in table.to_pylist():
                yield position_of(file.partition, row["journal_id"]), row


def tables_of(path: Path, kind: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of a file in the newest schema, some at a time; columns that it lacks are null.

    Raises:
        ValueError: it is of a later version than this code reads.
    """
    names = SCHEMAS[kind].names if columns is None else list(columns)
    schema = pa.schema([SCHEMAS[kind].field(name) for name in names])
    with pq.ParquetFile(path) as file:
        stored = file.schema_arrow
        _check_version(stored, kind, path)
        held = [name for name in names if name in stored.names]
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=held):
            columns_held = dict(zip(held, batch.columns, strict=True))
            arrays = [
                columns_held[field.name].cast(field.type)
                if field.name in columns_held
                else pa.nulls(len(batch), field.type)
                for field in schema
            ]
            yield pa.Table.from_arrays(arrays, schema=schema)


def n_erased_in(path: Path) -> int:
    """Return how many rows of a file were erased with their users."""
    metadata = pq.read_metadata(path).metadata or {}
    return int(metadata.get(_ERASED, b"0"))


def n_erased(folder: Path, kind: str) -> int:
    """Return how many rows of a kind were erased with their users: what a replay over the archive is missing."""
    with reading(folder):
        return sum(n_erased_in(file.path) for file in files_of(folder, kind))


def write_rows(target: Path, kind: str, tables: Iterable[pa.Table], *, n_erased: int = 0) -> Path:
    """Write and sync rows beside `target`, and return the file, for the caller to rename."""
    metadata = {**SCHEMAS[kind].metadata, **({_ERASED: str(n_erased).encode()} if n_erased else {})}
    partial = target.with_name(f"{target.name}.partial")
    with partial.open("wb") as file:
        with pq.ParquetWriter(file, SCHEMAS[kind].with_metadata(metadata), compression="zstd") as writer:
            for table in _grouped(tables):
                reach("archive.rows")
                writer.write_table(table)
        reach("archive.rows_sync")
        sync_file(file)
    return partial


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    n_bytes = 0
    for table in tables:
        held.append(table)
        n_bytes += table.nbytes
        if n_bytes >= _GROUP_BYTES:
            yield pa.concat_tables(held)
            held, n_bytes = [], 0
    if held:
        yield pa.concat_tables(held)


def _check_version(schema: pa.Schema, kind: str, path: Path) -> None:
    newest = int(SCHEMAS[kind].metadata[_VERSION].rpartition(b"-")[2])
    stored = (schema.metadata or {}).get(_VERSION, b"")
    name, _, version = stored.decode().rpartition("-")
    if name != kind or not version.isdigit() or not 1 <= int(version) <= newest:
        raise ValueError(f"{path}: hone_schema must be {kind}-1 to {kind}-{newest}, got {stored.decode()!r}")
