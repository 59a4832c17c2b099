"""What counts as written is there after the power went, on a disk that keeps nothing but what was synced."""

from __future__ import annotations

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
from service.spool import Spool, SpoolEntry
from tests.simulation.disk import Disk, simulated_calls
from tests.simulation.process import Process, current


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
