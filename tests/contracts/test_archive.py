"""The contract of Archive, run on every adapter; what only files can get wrong follows."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from service.adapters.memory_store import MemoryArchive
from service.adapters.parquet_archive import ParquetArchive
from service.messages import ConfigChange, Decision, Event, Heartbeat, JournalEntry
from service.ports import Archive, ArchiveBatch, OpenJoins, OutcomeRow
from tests.make_golden import DECISION, VALUES

Batch = Sequence[tuple[str, JournalEntry]]
HOUR_MS = 3_600_000
# The first millisecond of an hour.
START_MS = 490_000 * HOUR_MS


class Memory:
    def __init__(self) -> None:
        self.archive = MemoryArchive()

    def reopen(self) -> Archive:
        return self.archive

    def archived(self, partition: int = 0) -> list[str]:
        """Ids of archived entries other than heartbeats, which leave no row."""
        return [i for i, entry in self.archive.entries[partition] if not isinstance(entry, Heartbeat)]


class Files:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def reopen(self) -> Archive:
        return ParquetArchive(self.folder)

    def rows(self, kind: str, partition: int = 0) -> list[dict[str, Any]]:
        """Rows of a kind, read as any warehouse would: every file there is."""
        paths = (self.folder / kind).rglob(f"p{partition}-*.parquet")
        rows = [row for path in paths for row in pq.ParquetFile(path).read().to_pylist()]
        return sorted(rows, key=lambda row: _order(row["journal_id"]))

    def archived(self, partition: int = 0) -> list[str]:
        every = [row["journal_id"] for kind in ("decisions", "events", "control") for row in self.rows(kind, partition)]
        return sorted(every, key=_order)

    def all_files(self) -> set[str]:
        return {path.name for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["memory", "parquet"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Memory | Files:
    return Memory() if request.param == "memory" else Files(tmp_path / "archive")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "archive")


def _order(journal_id: str) -> tuple[int, int]:
    ms, sequence = journal_id.split("-")
    return int(ms), int(sequence)


def _event(n: int, **changes: Any) -> Event:
    event = VALUES["event"]
    assert isinstance(event, Event)
    return msgspec.structs.replace(event, client_id=f"c{n}", **changes)


def _batch(*numbers: int, step_ms: int = 1) -> list[tuple[str, JournalEntry]]:
    """Entry n: events, with a decision every third and a heartbeat every fifth."""
    entries: list[tuple[str, JournalEntry]] = []
    for n in numbers:
        entry: JournalEntry = _event(n)
        if n % 3 == 0:
            entry = msgspec.structs.replace(DECISION, event_id=f"e{n}")
        if n % 5 == 0:
            entry = Heartbeat(at_unix_ms=n)
        entries.append((f"{START_MS + n * step_ms}-{n % 2}", entry))
    return entries


def _put(archive: Archive, partition: int, entries: Batch, outcomes: Sequence[OutcomeRow] = ()) -> None:
    batch = ArchiveBatch(
        positions={partition: entries[-1][0]}, entries={partition: entries}, outcomes=outcomes, joins=OpenJoins()
    )
    archive.write(batch)


def _ids(batch: Batch) -> list[str]:
    return [journal_id for journal_id, entry in batch if not isinstance(entry, Heartbeat)]


def test_an_empty_archive_begins_before_everything(place: Memory | Files) -> None:
    assert place.reopen().position(0) == "0-0"
    assert place.archived() == []


def test_a_written_batch_is_there_and_moves_the_position_to_its_last_entry(place: Memory | Files) -> None:
    archive, batch = place.reopen(), _batch(1, 2, 3, 4)
    _put(archive, 0, batch)
    assert archive.position(0) == batch[-1][0]
    assert place.archived() == _ids(batch)


def test_batches_follow_each_other_across_restarts(place: Memory | Files) -> None:
    whole = _batch(*range(1, 30))
    for start in range(0, len(whole), 7):
        archive = place.reopen()
        assert archive.position(0) == (whole[start - 1][0] if start else "0-0")
        _put(archive, 0, whole[start : start + 7])
    assert place.archived() == _ids(whole)


def test_heartbeats_alone_move_the_position(place: Memory | Files) -> None:
    archive = place.reopen()
    _put(archive, 0, [(f"{START_MS}-3", Heartbeat(at_unix_ms=1))])
    assert place.reopen().position(0) == f"{START_MS}-3"
    assert place.archived() == []


def test_partitions_have_positions_of_their_own(place: Memory | Files) -> None:
    archive = place.reopen()
    _put(archive, 0, _batch(1, 2))
    _put(archive, 11, _batch(7))
    archive = place.reopen()
    assert [archive.position(p) for p in (0, 1, 11)] == [f"{START_MS + 2}-0", "0-0", f"{START_MS + 7}-1"]
    assert place.archived(0) == _ids(_batch(1, 2))
    assert place.archived(11) == _ids(_batch(7))


def test_a_batch_may_span_hours(place: Memory | Files) -> None:
    batch = _batch(*range(1, 9), step_ms=HOUR_MS // 2)
    _put(place.reopen(), 0, batch)
    place.reopen()
    assert place.archived() == _ids(batch)


# --- files only ----------------------------------------------------------------------------------------------------


def test_an_archived_decision_is_whole_but_for_the_user_id(files: Files) -> None:
    _put(files.reopen(), 0, [(f"{START_MS}-0", DECISION)])
    (row,) = files.rows("decisions")
    assert msgspec.msgpack.decode(row["record"], type=Decision) == msgspec.structs.replace(DECISION, user_id=None)
    assert (row["event_id"], row["user_key"], row["item_ids"]) == ("01KAT5N2M2", "5f3c", ["m1"])
    assert row["propensities"] == [DECISION.slots[0].propensity]


def test_no_user_id_is_anywhere_in_the_files(files: Files) -> None:
    secret = "someone@example.org"
    entries: list[JournalEntry] = [msgspec.structs.replace(DECISION, user_id=secret), _event(1, user_id=secret)]
    _put(files.reopen(), 0, [(f"{START_MS + n}-0", entry) for n, entry in enumerate(entries)])
    rows = [*files.rows("decisions"), *files.rows("events")]
    assert len(rows) == 2
    assert all(secret.encode() not in repr(row).encode() for row in rows)
    assert all(secret.encode() not in path.read_bytes() for path in files.folder.rglob("*.parquet"))


def test_events_and_configuration_changes_keep_their_fields(files: Files) -> None:
    change = VALUES["config_change"]
    assert isinstance(change, ConfigChange)
    _put(files.reopen(), 0, [(f"{START_MS}-0", _event(1, slot=None, item_id=None)), (f"{START_MS}-1", change)])
    (event,), (control,) = files.rows("events"), files.rows("control")
    assert event == {
        "journal_id": f"{START_MS}-0",
        "accepted_at_unix_ms": 1_795_382_944_962,
        "event_type": "play_seconds",
        "event_id": "01KAT5N2M2",
        "client_id": "c1",
        "user_key": "5f3c",
        "item_id": None,
        "slot": None,
        "value": 312.5,
    }
    assert msgspec.msgpack.decode(control["record"], type=ConfigChange) == change


@pytest.mark.parametrize("slot", [2**31 - 1, 2**31, 2**63, 2**64 - 1])
def test_a_slot_that_no_slate_has_does_not_stop_the_archive(files: Files, slot: int) -> None:
    _put(files.reopen(), 0, [(f"{START_MS}-0", _event(1, slot=slot)), (f"{START_MS}-1", _event(2, slot=3))])
    assert [row["slot"] for row in files.rows("events")] == [slot if slot < 2**31 else -1, 3]


class Crash(BaseException):
    """The process ends here."""


def _crash(*_: object) -> None:
    raise Crash


def _at_call(n: int, real: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    calls = iter(range(1_000_000))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == n:
            raise error
        return real(*args, **kwargs)

    return call


def test_files_beyond_the_position_are_removed_at_the_next_start(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = files.reopen()
    _put(archive, 0, _batch(1, 2))
    _put(archive, 1, _batch(9))
    with monkeypatch.context() as patch:
        patch.setattr(archive, "_write_state", _crash)
        with pytest.raises(Crash):
            _put(archive, 0, _batch(3, 4))
    assert set(_ids(_batch(3, 4))) <= set(files.archived()), "the crash must come after the rename"
    archive = files.reopen()
    assert files.archived() == _ids(_batch(1, 2))
    assert archive.position(0) == _batch(2)[0][0]
    _put(archive, 0, _batch(3, 4, 6))
    assert files.archived() == _ids(_batch(1, 2, 3, 4, 6))
    assert files.archived(1) == _ids(_batch(9))


@pytest.mark.parametrize("n_syncs", range(12))
def test_a_crash_at_any_sync_loses_nothing_and_doubles_nothing(
    files: Files, monkeypatch: pytest.MonkeyPatch, n_syncs: int
) -> None:
    _put(files.reopen(), 0, _batch(1, 2, 3))
    archive, second = files.reopen(), _batch(4, 6, 7, 8, step_ms=HOUR_MS // 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _at_call(n_syncs, os.fsync, Crash()))
        try:
            _put(archive, 0, second)
            crashed = False
        except Crash:
            crashed = True
    assert crashed or n_syncs >= 8, "the batch has files enough to crash in"
    archive = files.reopen()
    # Whoever crashed after the position moved has archived it.
    if archive.position(0) != second[-1][0]:
        assert archive.position(0) == _batch(3)[0][0]
        _put(archive, 0, second)
    assert files.archived() == _ids(_batch(1, 2, 3)) + _ids(second)
    assert not [name for name in files.all_files() if name.endswith(".partial")]


@pytest.mark.parametrize("n_syncs", range(6))
def test_a_write_that_failed_is_repeated_with_more_and_archives_once(
    files: Files, monkeypatch: pytest.MonkeyPatch, n_syncs: int
) -> None:
    archive = files.reopen()
    _put(archive, 0, _batch(1, 2, 3))
    first = _batch(4, 6, 7, 8)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _at_call(n_syncs, os.fsync, OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            _put(archive, 0, first)
    # The archiver keeps what it could not write and reads on: the next batch is longer, its files have other names.
    both = [*first, *_batch(9, 11)]
    _put(archive, 0, both)
    for _ in range(2):
        assert files.archived() == _ids(_batch(1, 2, 3)) + _ids(both)
        assert files.reopen().position(0) == both[-1][0]


def test_nothing_of_a_failed_write_is_left_for_readers(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = files.reopen()
    _put(archive, 0, _batch(1, 2, 3))
    before = files.all_files()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _at_call(2, os.fsync, OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            _put(archive, 0, _batch(4, 6, 7, 8))
    assert files.all_files() == before
