"""What counts as written is there after the power went, on a disk that keeps nothing but what was synced."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.adapters.archive_files import read_rows
from service.adapters.memory_store import MemoryJournal
from service.adapters.memory_streams import MemoryStore
from service.adapters.parquet_archive import ParquetArchive
from service.messages import Event
from service.metrics import Metrics
from service.ports import ArchiveBatch, OpenJoins
from service.spool import Spool, SpoolEntry, read_entries
from tests.simulation.disk import Disk, simulated_calls
from tests.simulation.process import Process, current
from tests.stack import until


class Worst(random.Random):
    """Nothing that was not synced survives; given a choice of contents, the one of a number."""

    content = 0

    def choice(self, seq: Sequence[Any]) -> Any:
        return seq[self.content if isinstance(seq[0], bytes) and len(seq) > 2 else 0]


@contextmanager
def machine(folder: Path) -> Iterator[Disk]:
    """Run what is inside as a process of a machine with a simulated disk."""
    disk = Disk(folder)
    process = Process("p", "m", lambda name, error: None)
    process.begin()
    token = current.set(process)
    try:
        with simulated_calls({"m": disk}, random.Random(0)):
            yield disk
    finally:
        current.reset(token)


@pytest.fixture
def spool_of(tmp_path: Path) -> Any:
    return lambda: Spool(tmp_path / "spool", MemoryJournal(MemoryStore(lambda: 1)), Metrics())


async def test_rows_and_the_folders_they_are_in_are_on_disk_once_their_position_is(tmp_path: Path) -> None:
    event = Event(
        accepted_at_unix_ms=5,
        client_id="c",
        event_type="click",
        event_id="e",
        user_id=None,
        user_key="",
        item_id=None,
        slot=0,
        value=1.0,
        client_unix_ms=None,
    )
    batch = ArchiveBatch(positions={0: "5-0"}, entries={0: [("5-0", event)]}, outcomes=[], joins=OpenJoins())
    with machine(tmp_path / "archive") as disk:
        ParquetArchive(disk.root).write(batch)
        disk.lose_power(Worst())
    assert ParquetArchive(disk.root).position(0) == "5-0"
    assert [row["client_id"] for _, row in read_rows(disk.root, "events", ["client_id"])] == ["c"]


async def test_an_event_that_was_synced_is_found_under_its_name(spool_of: Any, tmp_path: Path) -> None:
    with machine(tmp_path / "spool") as disk:
        spool = spool_of()
        spool._open()
        spool.append_synced([SpoolEntry(payload=b"event")])
        disk.lose_power(Worst())
    assert [entry.payload for path in disk.root.glob("*.spool") for entry in read_entries(path)] == [b"event"]


async def test_a_length_without_content_ends_a_spool_file(spool_of: Any, tmp_path: Path) -> None:
    with machine(tmp_path / "spool") as disk:
        spool = spool_of()
        spool._open()
        spool.append_synced([SpoolEntry(payload=b"event")])
        spool.append(SpoolEntry(payload=b"not synced"))
        worst = Worst()
        worst.content = -1
        disk.lose_power(worst)
    (path,) = disk.root.glob("*.spool")
    assert path.read_bytes().endswith(bytes(10))
    assert [entry.payload for entry in read_entries(path)] == [b"event"]


async def test_a_spool_that_cannot_be_emptied_ships_on(spool_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = spool_of()
    spool.start()
    real, failed = os.ftruncate, []

    def fail_once(descriptor: int, length: int) -> None:
        if not failed:
            failed.append(length)
            raise OSError(5, "input/output error")
        real(descriptor, length)

    monkeypatch.setattr(os, "ftruncate", fail_once)
    for payload in (b"a", b"b"):
        spool.append(SpoolEntry(payload=payload))
        await until(lambda: not spool.n_waiting)
    found = await spool._journal.read({0: "0-0"}, count=10, block_ms=0)
    await spool.close()
    assert [payload for _, payload in found[0]] == [b"a", b"b"]
    assert failed
