"""Merging, retention and erasure in the archive: at every moment each row is there once, or gone for good."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow.parquet as pq
import pytest

from service.adapters.archive_files import SCHEMAS, files_of, n_erased, read_rows, reading
from service.adapters.parquet_archive import ParquetArchive
from service.config import Config
from service.messages import Decision, Erasure, Event, JournalEntry, Outcome
from service.offline_features import OfflineStore
from service.ports import ArchiveBatch, OpenJoins, OutcomeRow
from tests.make_golden import DECISION, VALUES

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = 490_000 * HOUR_MS
EVENT, OUTCOME, CHANGE = VALUES["event"], VALUES["outcome_drawn"], VALUES["config_change"]
assert isinstance(EVENT, Event)
assert isinstance(OUTCOME, Outcome)


class Crash(BaseException):
    """The process ends here."""


def _decision(n: int, user: str, at_ms: int) -> Decision:
    return msgspec.structs.replace(DECISION, event_id=f"e{n}", user_key=user, decided_at_unix_ms=at_ms)


def _write(archive: ParquetArchive, *, hours: int = 3, batches: int = 4, partitions: int = 2, first: int = 0) -> None:
    """Every batch has, in each partition: a decision, an event about it, one without a user, its outcome, a change."""
    for number in range(first, first + hours * batches):
        at_ms = START_MS + number * HOUR_MS // batches
        entries: dict[int, list[tuple[str, JournalEntry]]] = {}
        outcomes = []
        for p in range(partitions):
            n, user = number * partitions + p, f"k{number % 3}"
            about = msgspec.structs.replace(EVENT, event_id=f"e{n}", user_key=user, accepted_at_unix_ms=at_ms)
            entries[p] = [
                (f"{at_ms}-0", _decision(n, user, at_ms)),
                (f"{at_ms}-1", msgspec.structs.replace(about, client_id=f"c{n}")),
                (f"{at_ms}-2", msgspec.structs.replace(about, client_id=f"d{n}", user_key="")),
                (f"{at_ms}-3", CHANGE),  # type: ignore[list-item]
            ]
            outcome = msgspec.structs.replace(
                OUTCOME, event_id=f"e{n}", user_key=user, decided_at_unix_ms=at_ms, decision_journal_id=f"{at_ms}-0"
            )
            outcomes += [OutcomeRow(p, f"{at_ms}-1", o, msgspec.structs.replace(outcome, slot=o)) for o in range(2)]
        archive.write(ArchiveBatch({p: f"{at_ms}-3" for p in entries}, entries, outcomes, OpenJoins()))


def _erase(archive: ParquetArchive, user: str, *, after: int, until_ms: int) -> None:
    at_ms = START_MS + after * HOUR_MS
    entry = (f"{at_ms}-9", Erasure(user_key=user, at_unix_ms=until_ms))
    archive.write(ArchiveBatch({0: entry[0]}, {0: [entry]}, [], OpenJoins()))


def _rows(folder: Path) -> dict[str, list[Any]]:
    with reading(folder):
        return {
            kind: [(position, tuple(map(str, row.values()))) for position, row in read_rows(folder, kind, schema.names)]
            for kind, schema in SCHEMAS.items()
        }


def _keep_up(archive: ParquetArchive, **changes: Any) -> int:
    n = 0
    while archive.upkeep(**{"now_ms": START_MS, "keep_days": 0, **changes}):
        n += 1
    return n


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crashes here are of the process; what a power loss may take is not looked at."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "archive"


def test_the_files_of_finished_hours_become_one_a_kind_and_partition(folder: Path) -> None:
    archive = ParquetArchive(folder)
    _write(archive)
    before = _rows(folder)
    assert len(before["decisions"]) == 24
    assert _keep_up(archive) == 2 * 4
    for kind in SCHEMAS:
        per_hour = [len(list(hour.glob("*.parquet"))) for hour in sorted((folder / kind).glob("*/*"))]
        assert per_hour == [2, 2, 8], "the hour that still grows is left alone"
    assert _rows(folder) == before
    assert _rows_by_duckdb(folder) == len(before["decisions"])


def _rows_by_duckdb(folder: Path) -> int:
    """Rows as any warehouse reads them."""
    query = f"SELECT count(*) FROM read_parquet('{folder}/decisions/**/*.parquet')"
    return int(duckdb.sql(query).fetchall()[0][0])


def test_merged_rows_are_in_the_order_of_the_journal(folder: Path) -> None:
    archive = ParquetArchive(folder)
    _write(archive)
    _keep_up(archive)
    for rows in _rows(folder).values():
        assert all(first[0] <= second[0] for first, second in pairwise(rows))


def _interrupted(monkeypatch: pytest.MonkeyPatch, n: int, work: Callable[[], Any]) -> bool:
    """Do the work with a crash at its n-th sync, rename or removal; return whether it came to that."""
    calls = 0

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == n + 1:
                raise Crash
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", wrap(os.fsync))
        patch.setattr(Path, "replace", wrap(Path.replace))
        patch.setattr(Path, "unlink", wrap(Path.unlink))
        patch.setattr(Path, "rmdir", wrap(Path.rmdir))
        try:
            work()
        except Crash:
            return True
    return False


@pytest.mark.parametrize("n", range(0, 25, 2))
def test_a_crash_anywhere_in_merging_leaves_every_row_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    archive = ParquetArchive(folder)
    _write(archive, hours=2, batches=2, partitions=1)
    before = _rows(folder)
    assert _interrupted(monkeypatch, n, lambda: _keep_up(archive)) == (n < 24)
    # As a reader sees it that comes before the archiver is back, and after.
    assert _rows(folder) == before
    archive = ParquetArchive(folder)
    assert _rows(folder) == before
    assert _rows_by_duckdb(folder) == len(before["decisions"])
    _keep_up(archive)
    _write(archive, hours=1, batches=2, partitions=1, first=4)
    assert len(_rows(folder)["events"]) == len(before["events"]) * 3 // 2


def test_files_stay_while_somebody_reads_them(folder: Path) -> None:
    archive = ParquetArchive(folder)
    _write(archive)
    before = _rows(folder)
    with reading(folder):
        files = [file.path for kind in SCHEMAS for file in files_of(folder, kind)]
        assert not archive.upkeep(now_ms=START_MS + 400 * DAY_MS, keep_days=1)
        assert not archive.upkeep(now_ms=START_MS, keep_days=0)
        assert all(path.exists() for path in files)
        assert not list(folder.rglob("*.partial"))
    assert _rows(folder) == before
    assert _keep_up(archive) == 8


def test_rows_go_an_hour_at_a_time_when_they_are_too_old(folder: Path) -> None:
    archive = ParquetArchive(folder)
    _write(archive)
    before = _rows(folder)
    now_ms = START_MS + DAY_MS + HOUR_MS + 1
    while archive.upkeep(now_ms=now_ms, keep_days=1):
        pass
    after = _rows(folder)
    for kind in ("decisions", "events", "outcomes"):
        assert after[kind] == [row for row in before[kind] if row[0][0] >= START_MS + HOUR_MS]
        assert len(after[kind]) == len(before[kind]) * 2 // 3
    assert after["control"] == before["control"], "who changed what is kept"
    assert archive.position(0) == f"{START_MS + 11 * HOUR_MS // 4}-3"


def test_nothing_goes_without_a_limit(folder: Path) -> None:
    archive = ParquetArchive(folder)
    _write(archive)
    before = _rows(folder)
    _keep_up(archive, now_ms=START_MS + 10_000 * DAY_MS)
    assert _rows(folder) == before


def _of(rows: dict[str, list[Any]], kind: str, ids: Sequence[str]) -> list[Any]:
    names = SCHEMAS[kind].names
    return [row for _, row in rows[kind] if row[names.index("event_id")] in ids]


@pytest.mark.parametrize("n", [0, 2, 3, 5, 8, 11, 14, 17, 20, 23, 26, 40])
def test_an_erased_user_leaves_no_row_whatever_happens_in_between(
    folder: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    archive = ParquetArchive(folder)
    _write(archive, hours=2, batches=2, partitions=1)
    before = _rows(folder)
    theirs = {row[SCHEMAS["decisions"].names.index("event_id")] for _, row in before["decisions"] if "k1" in row}
    assert len(theirs) == 1

    def work() -> None:
        _erase(archive, "k1", after=4, until_ms=START_MS + 4 * HOUR_MS)
        _keep_up(archive)

    _interrupted(monkeypatch, n, work)
    archive = ParquetArchive(folder)
    # The archiver reads again what it had not archived.
    if archive.position(0) != f"{START_MS + 4 * HOUR_MS}-9":
        _erase(archive, "k1", after=4, until_ms=START_MS + 4 * HOUR_MS)
    _keep_up(archive)
    after = _rows(folder)
    for kind in ("decisions", "events", "outcomes"):
        assert not _of(after, kind, sorted(theirs))
        assert [row for row in before[kind] if row[1] not in set(_of(before, kind, sorted(theirs)))] == after[kind]
    assert {kind: n_erased(folder, kind) for kind in SCHEMAS} == {
        "decisions": 1,
        "events": 2,
        "outcomes": 2,
        "control": 0,
    }
    assert all(b"k1" not in repr(row).encode() for kind in ("decisions", "events", "outcomes") for row in after[kind])


def test_what_a_user_does_after_the_erasure_is_archived(folder: Path) -> None:
    archive = ParquetArchive(folder)
    _write(archive, hours=1)
    _erase(archive, "k1", after=1, until_ms=START_MS + HOUR_MS)
    _keep_up(archive)
    n_before = len(_rows(folder)["decisions"])
    at_ms = START_MS + 2 * HOUR_MS
    archive.write(ArchiveBatch({0: f"{at_ms}-0"}, {0: [(f"{at_ms}-0", _decision(99, "k1", at_ms))]}, [], OpenJoins()))
    _keep_up(archive)
    assert len(_rows(folder)["decisions"]) == n_before + 1


def test_what_was_in_a_spool_while_its_user_was_erased_is_erased_when_it_comes(folder: Path) -> None:
    archive = ParquetArchive(folder)
    _write(archive, hours=1)
    _erase(archive, "k1", after=1, until_ms=START_MS + HOUR_MS)
    _keep_up(archive)
    before = _rows(folder)
    archive = ParquetArchive(folder)
    at_ms = START_MS + 5 * HOUR_MS
    late: list[tuple[str, JournalEntry]] = [(f"{at_ms}-0", _decision(99, "k1", START_MS + 5))]
    open_until_now = msgspec.structs.replace(
        OUTCOME, event_id="e1", user_key="k1", decided_at_unix_ms=START_MS + 6, decision_journal_id=f"{START_MS}-0"
    )
    outcomes = [OutcomeRow(0, f"{at_ms}-0", 0, open_until_now)]
    archive.write(ArchiveBatch({0: f"{at_ms}-0"}, {0: late}, outcomes, OpenJoins()))
    assert len(_rows(folder)["decisions"]) == len(before["decisions"]) + 1
    assert _keep_up(archive) >= 1
    assert _rows(folder) == before


def test_an_archive_that_lost_rows_to_erasure_is_still_read_as_a_whole(folder: Path) -> None:
    archive = ParquetArchive(folder)
    _write(archive, hours=1, batches=1)
    _erase(archive, "k0", after=1, until_ms=START_MS + HOUR_MS)
    _keep_up(archive)
    assert _rows(folder)["decisions"] == []
    store = OfflineStore(Config(), folder)
    assert store.events_of("k0", limit=5) == []
    store.close()
    assert sum(pq.read_metadata(path).num_rows for path in (folder / "decisions").rglob("*.parquet")) == 0


def test_counts_of_erased_rows_add_up_over_erasures_and_merges(folder: Path) -> None:
    archive = ParquetArchive(folder)
    _write(archive, hours=2, batches=3)
    assert _keep_up(archive) == 4, "users then share files"
    for number, user in enumerate(("k0", "k1", "k2")):
        _erase(archive, user, after=number + 2, until_ms=START_MS + 2 * HOUR_MS)
        _keep_up(archive)
        assert len(_rows(folder)["decisions"]) == 12 - 4 * (number + 1)
        assert (n_erased(folder, "decisions"), n_erased(folder, "events")) == (4 * (number + 1), 8 * (number + 1))
