"""Archived rows stay readable: a file of an older version reads as one of the newest, a later one is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.adapters.archive_files import SCHEMAS, files_of, read_rows, reading
from service.adapters.parquet_archive import ParquetArchive
from service.config import Config
from service.inspect_log import read_archive
from service.journal_reader import position_of
from service.messages import ConfigChange, Outcome
from service.offline_features import OfflineStore
from service.ports import ArchiveBatch, OpenJoins
from tests.make_golden import ARCHIVE, ARCHIVED, DECISION, VALUES

KINDS = sorted(SCHEMAS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ARCHIVE, tmp_path / "archive")
    return tmp_path / "archive"


def test_files_of_version_1_are_kept_for_every_kind() -> None:
    for kind in KINDS:
        (file,) = files_of(ARCHIVE, kind)
        assert pq.read_metadata(file.path).metadata[b"hone_schema"] == f"{kind}-1".encode()


def test_rows_of_version_1_say_what_was_archived(folder: Path) -> None:
    (decision,) = read_archive(folder)
    assert decision == msgspec.structs.replace(DECISION, user_id=None)
    with reading(folder):
        rows = {kind: list(read_rows(folder, kind, SCHEMAS[kind].names)) for kind in KINDS}
    ((at, event),) = rows["events"]
    assert at == position_of(0, ARCHIVED.entries[0][1][0])
    assert (event["client_id"], event["value"], event["user_key"]) == ("c-77", 312.5, "5f3c")
    ((_, control),) = rows["control"]
    assert msgspec.msgpack.decode(control["record"], type=ConfigChange) == VALUES["config_change"]
    ((_, outcome),) = rows["outcomes"]
    assert outcome.pop("ordinal") == 0
    assert outcome.pop("journal_id") == ARCHIVED.outcomes[0].journal_id
    assert Outcome(**outcome) == VALUES["outcome_drawn"]
    store = OfflineStore(Config(), folder)
    assert [e.client_id for e in store.events_of("5f3c", limit=9)] == ["c-77"]
    store.close()


def test_the_state_of_version_1_says_how_far_and_what_is_open(folder: Path) -> None:
    archive = ParquetArchive(folder)
    assert archive.position(0) == ARCHIVED.positions[0]
    assert archive.open_joins() == ARCHIVED.joins


def _rewritten(folder: Path, kind: str, change: object) -> None:
    (file,) = files_of(folder, kind)
    pq.write_table(change(pq.ParquetFile(file.path).read()), file.path)  # type: ignore[operator]


def test_a_column_that_an_older_version_lacks_is_null(folder: Path) -> None:
    _rewritten(folder, "outcomes", lambda table: table.drop_columns(["branch", "slot"]))
    with reading(folder):
        ((_, row),) = read_rows(folder, "outcomes", ["slot", "branch", "reward"])
    assert (row["slot"], row["branch"], row["reward"]) == (None, None, 0.3125)
    _rewritten(folder, "events", lambda table: table.drop_columns(["item_id"]))
    ParquetArchive(folder).write(_next_hour())
    store = OfflineStore(Config(), folder)
    assert len(store.events_of("5f3c", limit=9)) == 2
    store.close()


def test_an_older_version_merges_into_the_newest(folder: Path) -> None:
    _rewritten(folder, "events", lambda table: table.drop_columns(["item_id"]))
    archive = ParquetArchive(folder)
    archive.write(_next_hour(ms=1))
    archive.write(_next_hour())
    while archive.upkeep(now_ms=0, keep_days=0):
        pass
    merged, later = files_of(folder, "events")
    assert later.first > merged.last
    table = pq.ParquetFile(merged.path).read()
    assert table.schema.names == SCHEMAS["events"].names
    assert table["item_id"].to_pylist() == [None, "m1"]


def _next_hour(ms: int = 3_600_000) -> ArchiveBatch:
    journal_id = f"{int(ARCHIVED.positions[0].split('-')[0]) + ms}-0"
    return ArchiveBatch({0: journal_id}, {0: [(journal_id, VALUES["event"])]}, [], OpenJoins())  # type: ignore[list-item]


@pytest.mark.parametrize("stored", ["events-2", "events-0", "decisions-1", "events", None])
def test_a_file_of_a_later_version_or_of_none_is_refused_by_name(folder: Path, stored: str | None) -> None:
    def mark(table: pa.Table) -> pa.Table:
        return table.replace_schema_metadata({"hone_schema": stored} if stored else None)

    _rewritten(folder, "events", mark)
    with (
        reading(folder),
        pytest.raises(ValueError, match=r"p0-.*parquet: hone_schema must be events-1 to events-1, got"),
    ):
        list(read_rows(folder, "events", ["value"]))


def test_an_archive_of_before_outcomes_goes_on_where_it_ended(folder: Path) -> None:
    """Its positions were in files of their own; taking them for missing would remove every row as a leftover."""
    shutil.rmtree(folder / "outcomes")
    (folder / "state.json").unlink()
    (folder / "position-0.txt").write_text(ARCHIVED.positions[0])
    archive = ParquetArchive(folder)
    assert archive.position(0) == ARCHIVED.positions[0]
    assert archive.open_joins() == OpenJoins()
    assert len(list(read_archive(folder))) == 1
    archive.write(_next_hour())
    assert ParquetArchive(folder).position(0) == _next_hour().positions[0]
    assert len(files_of(folder, "events")) == 2
