"""What is on disk when a call returns: contents, and the names that lead to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.adapters.parquet_archive import ParquetArchive
from service.bootstrap import load_salt
from service.config import load_config
from service.durable_files import write_whole
from service.failpoints import armed, parse
from service.model_registry import Artefact, _write
from service.ports import ArchiveBatch, OpenJoins
from tests.make_golden import VALUES


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What is synced, in order, under the name it had then."""
    paths: list[Path] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        fsync(descriptor)
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())

    monkeypatch.setattr(os, "fsync", record)
    return paths


def test_a_whole_file_is_synced_before_it_has_its_name_and_its_name_after(tmp_path, synced):
    write_whole(tmp_path / "a.json", b"{}")
    assert synced == [tmp_path / "a.partial", tmp_path]


@pytest.mark.parametrize("failpoint", ["files.write:enospc", "files.sync:eio", "files.rename:eio"])
def test_what_cannot_be_written_leaves_the_old_content(tmp_path, failpoint):
    write_whole(tmp_path / "a.json", b"old")
    with armed(parse(failpoint)), pytest.raises(OSError, match="HONE_FAILPOINT"):
        write_whole(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"old"


def test_the_names_of_an_archives_new_folders_are_on_disk_before_the_state_says_that_it_goes_so_far(tmp_path, synced):
    archive = ParquetArchive(tmp_path)
    synced.clear()
    archive.write(ArchiveBatch({0: "1800000000000-0"}, {0: [("1800000000000-0", VALUES["event"])]}, [], OpenJoins()))
    state = synced.index(tmp_path / "state.partial")
    hour = next((tmp_path / "events").glob("date=*/hour=*"))
    assert {hour, hour.parent, hour.parent.parent, tmp_path} <= set(synced[:state])


def test_the_salt_is_on_disk_before_it_is_used(tmp_path, synced):
    config = load_config(environment={"HONE_DATA_DIR": str(tmp_path)})
    salt = load_salt(config)
    assert synced == [tmp_path / f"salt.{os.getpid()}", tmp_path]
    assert load_salt(config) == salt
    assert (tmp_path / "salt").stat().st_mode & 0o777 == 0o600


def test_the_names_in_a_copy_of_an_artefact_are_on_disk_before_the_copy_has_its_own(tmp_path, synced):
    _write(tmp_path / "films" / "a", Artefact(manifest=b"m", workspace=b"w"))
    fresh = tmp_path / "films" / f".new-a.{os.getpid()}"
    assert synced[-2:] == [fresh, tmp_path / "films"]
    assert {path.name for path in (tmp_path / "films" / "a").iterdir()} == {path.name for path in synced[:-2]}
