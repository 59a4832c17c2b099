"""What happens to archived rows later: small files are merged, old hours go, users are erased.

Each step is safe to crash in and to repeat: a merged file counts from its rename on, and the files it took in count no
more (`split_covered`); an erasure rewrites one file at a time, and is pending until all are done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from service.adapters.archive_files import (
    ArchiveFile,
    file_name,
    files_of,
    hour_folders,
    hour_of,
    n_erased_in,
    replacing,
    split_covered,
    tables_of,
    write_rows,
)
from service.durable_files import put_in_place, sync_folder, write_whole
from service.failpoints import reach
from service.journal_reader import entry_order
from service.messages import Decision, Erasure, Event
from service.ports import ArchiveBatch

# What is a user's, by kind: the column of the time up to which it goes. Decisions go last: while they are there, the
# events that name them and no user are found, also after a crash.
_TIME_OF = {
    "events": "accepted_at_unix_ms",
    "outcomes": "decided_at_unix_ms",
    "decisions": "decided_at_unix_ms",
}
# Control rows are few and tell who changed what: they stay for ever.
_MERGED_KINDS = (*_TIME_OF, "control")


class ErasedUsers:
    """The users that asked to be forgotten, until when, and who is yet to be erased; kept in a file of the archive."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "erased.json"
        self._until: dict[str, int] = {}
        self.pending: dict[str, int] = {}
        if self._path.exists():
            self._until, self.pending = msgspec.json.decode(
                self._path.read_bytes(), type=tuple[dict[str, int], dict[str, int]]
            )

    def note(self, batch: ArchiveBatch) -> None:
        """Remember a batch's erasures, and who has rows in it that come after their erasure.

        A decision may have waited in a spool while its user was erased; an open one has its outcome later.
        """
        found = dict(self.pending)
        for _, entry in chain.from_iterable(batch.entries.values()):
            if isinstance(entry, Erasure):
                self._until[entry.user_key] = max(entry.at_unix_ms, self._until.get(entry.user_key, 0))
                found[entry.user_key] = self._until[entry.user_key]
        for key, at_ms in _mentioned(batch) if self._until else ():
            if at_ms <= self._until.get(key, -1):
                found[key] = self._until[key]
        if found != self.pending:
            self._save(found)

    def done(self) -> None:
        """Take note that everyone pending is erased."""
        self._save({})

    def _save(self, pending: dict[str, int]) -> None:
        write_whole(self._path, msgspec.json.encode((self._until, pending)))
        self.pending = pending


def _mentioned(batch: ArchiveBatch) -> Iterator[tuple[str, int]]:
    """Yield the users of a batch's rows, with the times that erasures go by."""
    for _, entry in chain.from_iterable(batch.entries.values()):
        if isinstance(entry, Decision):
            yield entry.user_key, entry.decided_at_unix_ms
        elif isinstance(entry, Event):
            yield entry.user_key, entry.accepted_at_unix_ms
    for row in batch.outcomes:
        yield row.outcome.user_key, row.outcome.decided_at_unix_ms


def erase_users(folder: Path, until: Mapping[str, int]) -> None:
    """Rewrite every file that has rows of users up to their time without them; the file keeps count of what went.

    Events that name a decision of the user and no user go too.
    """
    event_ids: dict[str, int] = {}
    for file in files_of(folder, "decisions"):
        columns = ["user_key", _TIME_OF["decisions"], "event_id"]
        for table in tables_of(file.path, "decisions", columns):
            for row in table.filter(_is_in(table["user_key"], until)).to_pylist():
                if row[_TIME_OF["decisions"]] <= until[row["user_key"]]:
                    event_ids[row["event_id"]] = until[row["user_key"]]
    for kind in _TIME_OF:
        for file in files_of(folder, kind):
            _erase_in(file, kind, until, event_ids if kind == "events" else {})


def _erase_in(file: ArchiveFile, kind: str, until: Mapping[str, int], event_ids: Mapping[str, int]) -> None:
    names = ["user_key", _TIME_OF[kind], "event_id"]
    n_gone = sum(pc.sum(_is_gone(t, kind, until, event_ids)).as_py() or 0 for t in tables_of(file.path, kind, names))
    if not n_gone:
        return
    reach("archive.erase")
    kept = (t.filter(pc.invert(_is_gone(t, kind, until, event_ids))) for t in tables_of(file.path, kind))
    put_in_place(write_rows(file.path, kind, kept, n_erased=n_erased_in(file.path) + n_gone), file.path)
    reach("archive.erased")


def _is_gone(table: pa.Table, kind: str, until: Mapping[str, int], event_ids: Mapping[str, int]) -> pa.Array:
    candidates = pc.or_(_is_in(table["user_key"], until), _is_in(table["event_id"], event_ids))
    if not pc.any(candidates).as_py():
        return pa.array([False] * table.num_rows)
    keys, ids, times = (table[name].to_pylist() for name in ("user_key", "event_id", _TIME_OF[kind]))
    return pa.array(
        [
            at_ms <= max(until.get(key, -1), event_ids.get(event_id, -1))
            for key, event_id, at_ms in zip(keys, ids, times, strict=True)
        ]
    )


def _is_in(column: Any, wanted: Mapping[str, int]) -> Any:  # noqa: ANN401 - pyarrow publishes no types
    return pc.is_in(column, value_set=pa.array(list(wanted), type=pa.string()), skip_nulls=True)


def drop_one_hour(folder: Path, *, before_ms: int) -> bool:
    """Remove the oldest hour of decisions, events or outcomes if it ended before a time; return whether one went."""
    for kind in _TIME_OF:
        for name, hour in hour_folders(folder, kind)[:1]:
            if name >= hour_of(before_ms):
                continue
            with replacing(folder) as may:
                if not may:
                    return False
                reach("archive.drop")
                for path in hour.iterdir():
                    path.unlink()
                    reach("archive.dropped")
                hour.rmdir()
                sync_folder(hour.parent)
                if not any(hour.parent.iterdir()):
                    hour.parent.rmdir()
            return True
    return False


def merge_one_hour(folder: Path, positions: Mapping[int, str], merged: set[Path]) -> bool:
    """Merge the files of one hour that no partition will add to; return whether there was one.

    Args:
        folder: of the archive.
        positions: how far each partition is archived.
        merged: hours that are merged for good; added to.
    """
    complete = min((hour_of(entry_order(position)[0]) for position in positions.values()), default="")
    for kind in _MERGED_KINDS:
        for name, hour in hour_folders(folder, kind):
            if name >= complete or hour in merged:
                continue
            counting, covered = split_covered(hour)
            if covered or any(len(list(files)) > 1 for _, files in groupby(counting, key=lambda f: f.partition)):
                return _merge(folder, kind, hour)
            merged.add(hour)
    return False


def _merge(folder: Path, kind: str, hour: Path) -> bool:
    counting, _ = split_covered(hour)
    written = []
    for partition, files in groupby(counting, key=lambda file: file.partition):
        several = list(files)
        if len(several) > 1:
            first, last = ("-".join(map(str, place)) for place in (several[0].first, several[-1].last))
            target = hour / file_name(partition, first, last)
            tables = chain.from_iterable(tables_of(file.path, kind) for file in several)
            reach("archive.merge")
            n_erased = sum(n_erased_in(file.path) for file in several)
            written.append((write_rows(target, kind, tables, n_erased=n_erased), target))
    with replacing(folder) as may:
        if may:
            for partial, target in written:
                put_in_place(partial, target)
                reach("archive.merged")
            for file in split_covered(hour)[1]:
                reach("archive.merge_remove")
                file.path.unlink()
    for partial, _ in written:
        partial.unlink(missing_ok=True)
    # Arrow keeps what it allocated: an hour's merge would be the archiver's size for ever.
    pa.default_memory_pool().release_unused()
    return may
