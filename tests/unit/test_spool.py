"""The spool: what it took is in the journal in the end, whatever dies in between."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.adapters.memory_store import MemoryJournal
from service.adapters.memory_streams import MemoryStore
from service.errors import StoreUnavailable
from service.failpoints import armed, parse
from service.messages import DecisionSummary, encode
from service.metrics import Metrics
from service.ports import Claim, Shipment
from service.spool import Spool, SpoolEntry, read_entries
from tests.stack import until


class FlakyJournal(MemoryJournal):
    """A journal whose store can be away, or break `n_breaks` times after having taken `n_taken` of a batch."""

    def __init__(self) -> None:
        self.now_ms = 1_000
        super().__init__(MemoryStore(lambda: self.now_ms), n_partitions=2)
        self.is_away = False
        self.n_breaks = 0
        self.n_taken = 0
        self.n_calls = 0

    async def ship(self, shipments: Sequence[Shipment]) -> list[Claim | None]:
        self.n_calls += 1
        if self.is_away:
            raise StoreUnavailable("away")
        if self.n_breaks:
            self.n_breaks -= 1
            await super().ship(shipments[: self.n_taken])
            raise StoreUnavailable("broke in the middle")
        return await super().ship(shipments)

    async def payloads(self, partition: int = 0) -> list[bytes]:
        found = await self.read({partition: "0-0"}, count=10_000, block_ms=0)
        return [payload for _, payload in found.get(partition, [])]


def _event(name: str, partition: int = 0) -> SpoolEntry:
    return SpoolEntry(payload=name.encode(), partition=partition)


def _decision(event_id: str, payload: bytes = b"decision") -> SpoolEntry:
    summary = DecisionSummary(digest=event_id, surface="home", user_id=None, item_ids=["m1"])
    return SpoolEntry(payload=payload, event_id=event_id, summary=encode(summary), ttl_ms=60_000)


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.spool._RETRY_S", 0.01)


async def _shipped(spool: Spool) -> None:
    await until(lambda: not spool.n_waiting)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.spool"))


def _abandon(spool: Spool) -> None:
    """Leave a spool as a killed process does: its lock goes, its file stays."""
    assert spool._task is not None
    spool._task.cancel()
    os.close(spool._file)


async def test_what_was_appended_reaches_the_journal_in_order(tmp_path: Path) -> None:
    journal = FlakyJournal()
    spool = Spool(tmp_path, journal, Metrics())
    spool.start()
    for n in range(1_000):
        spool.append(_event(str(n)))
    await _shipped(spool)
    assert await journal.payloads() == [str(n).encode() for n in range(1_000)]
    await spool.close()
    assert _files(tmp_path) == []


async def test_events_go_to_their_partition_and_decisions_to_the_one_of_their_id(tmp_path: Path) -> None:
    journal = FlakyJournal()
    spool = Spool(tmp_path, journal, Metrics())
    spool.start()
    home = journal.partition_of("e1")
    spool.append(_event("a", 0))
    spool.append(_decision("e1", b"d"))
    spool.append(_event("b", 1))
    await _shipped(spool)
    expected = {0: {b"a"}, 1: {b"b"}}
    expected[home].add(b"d")
    assert {p: set(await journal.payloads(p)) for p in (0, 1)} == expected
    await spool.close()


async def test_a_future_tells_who_holds_the_event_id(tmp_path: Path) -> None:
    journal = FlakyJournal()
    spool = Spool(tmp_path, journal, Metrics())
    spool.start()
    first, second = spool.append_and_ship(_decision("e1", b"one")), spool.append_and_ship(_decision("e1", b"two"))
    async with asyncio.timeout(20):
        winner, loser = await first, await second
    assert winner is not None
    assert loser is not None
    assert winner.is_new
    assert not loser.is_new
    assert loser.journal_id == winner.journal_id
    assert await journal.payloads(journal.partition_of("e1")) == [b"one"]
    await spool.close()


async def test_an_entry_is_in_the_file_before_append_returns(tmp_path: Path) -> None:
    journal = FlakyJournal()
    journal.is_away = True
    spool = Spool(tmp_path, journal, Metrics())
    spool.start()
    for n in range(3):
        spool.append(_decision(f"e{n}"))
        (path,) = _files(tmp_path)
        assert [entry.event_id for entry in read_entries(path)] == [f"e{i}" for i in range(n + 1)]
    await spool.close(timeout_s=0.05)


async def test_a_store_that_comes_back_gets_everything_once(tmp_path: Path) -> None:
    journal, metrics = FlakyJournal(), Metrics()
    journal.is_away = True
    spool = Spool(tmp_path, journal, metrics)
    spool.start()
    done = spool.append_and_ship(_decision("e1"))
    for n in range(600):
        spool.append(_event(str(n)))
    await until(lambda: journal.n_calls >= 3)
    assert spool.n_waiting == 601
    assert not done.done()
    journal.is_away = False
    await _shipped(spool)
    claim = done.result()
    assert claim is not None
    assert claim.is_new
    everything = sorted(await journal.payloads(0) + await journal.payloads(1))
    assert everything == sorted([b"decision", *(str(n).encode() for n in range(600))])
    assert metrics.spool_retries._value.get() >= 2
    await spool.close()


@pytest.mark.parametrize("n_taken", [0, 1, 2])
async def test_a_batch_that_failed_half_way_doubles_nothing(tmp_path: Path, n_taken: int) -> None:
    journal = FlakyJournal()
    journal.n_breaks, journal.n_taken = 1, n_taken
    spool = Spool(tmp_path, journal, Metrics())
    spool.start()
    done = spool.append_and_ship(_decision("e1"))
    spool.append(_event("a"))
    await _shipped(spool)
    claim = done.result()
    assert claim is not None
    assert claim.summary.digest == "e1"
    assert sorted(await journal.payloads(0) + await journal.payloads(1)) == [b"a", b"decision"]
    await spool.close()


async def test_a_file_found_long_after_its_claims_were_over_doubles_nothing(tmp_path: Path) -> None:
    journal = FlakyJournal()
    killed = Spool(tmp_path, journal, Metrics())
    killed.start()
    killed.append(_decision("e1"))
    killed.append(_event("a"))
    content = killed._path.read_bytes()
    await _shipped(killed)
    killed.append(_event("b"))
    # It died after the journal took everything and before its file was emptied.
    content += killed._path.read_bytes()
    await _shipped(killed)
    _abandon(killed)
    killed._path.write_bytes(content)
    journal.now_ms += 1_000_000
    for _ in range(2):
        spool = Spool(tmp_path, journal, Metrics())
        spool.start()
        spool.append(_event("c"))
        await _shipped(spool)
        # A worker that dies while it adopts leaves entries in two files.
        _abandon(spool)
        spool._path.write_bytes(content)
    assert sorted(await journal.payloads(0) + await journal.payloads(1)) == [b"a", b"b", b"c", b"c", b"decision"]


async def test_a_file_of_before_entries_had_numbers_is_shipped_once(tmp_path: Path) -> None:
    body = msgspec.msgpack.encode([b"event", "", b"", 0, 1])
    record = struct.pack("<II", len(body), zlib.crc32(body)) + body
    journal = FlakyJournal()
    for _ in range(2):
        (tmp_path / "7-old.spool").write_bytes(record)
        spool = Spool(tmp_path, journal, Metrics())
        spool.start()
        await _shipped(spool)
        await spool.close()
    assert await journal.payloads(1) == [b"event"]


async def test_the_file_starts_over_once_everything_is_shipped(tmp_path: Path) -> None:
    spool = Spool(tmp_path, FlakyJournal(), Metrics())
    spool.start()
    (path,) = _files(tmp_path)
    for _ in range(3):
        spool.append(_event("a"))
        assert path.stat().st_size > 0
        await until(lambda: not path.stat().st_size)
    spool.append(_event("b"))
    assert [entry.payload for entry in read_entries(path)] == [b"b"]
    await spool.close()


async def test_close_leaves_on_disk_what_the_store_did_not_take(tmp_path: Path) -> None:
    away, back = FlakyJournal(), FlakyJournal()
    away.is_away = True
    spool = Spool(tmp_path, away, Metrics())
    spool.start()
    spool.append(_event("a"))
    spool.append(_decision("e1"))
    await spool.close(timeout_s=0.05)
    assert len(_files(tmp_path)) == 1
    metrics = Metrics()
    successor = Spool(tmp_path, back, metrics)
    successor.start()
    await _shipped(successor)
    assert sorted(await back.payloads(0) + await back.payloads(1)) == [b"a", b"decision"]
    assert metrics.spool_adopted._value.get() == 2
    await successor.close()
    assert _files(tmp_path) == []


async def test_the_leftovers_of_a_dead_worker_are_adopted_once(tmp_path: Path) -> None:
    away = FlakyJournal()
    away.is_away = True
    dead = Spool(tmp_path, away, Metrics())
    dead.start()
    for n in range(5):
        dead.append(_event(str(n)))
    _abandon(dead)
    journal = FlakyJournal()
    first, second = Spool(tmp_path, journal, Metrics()), Spool(tmp_path, journal, Metrics())
    first.start()
    second.start()
    assert (first.n_waiting, second.n_waiting) == (5, 0)
    await _shipped(first)
    assert await journal.payloads() == [str(n).encode() for n in range(5)]
    await first.close()
    await second.close()


async def test_adopted_entries_are_on_disk_until_they_are_shipped(tmp_path: Path) -> None:
    away = FlakyJournal()
    away.is_away = True
    for generation in range(3):
        spool = Spool(tmp_path, away, Metrics())
        spool.start()
        spool.append(_event(str(generation)))
        _abandon(spool)
    (path,) = _files(tmp_path)
    assert [entry.payload for entry in read_entries(path)] == [b"0", b"1", b"2"]


async def test_the_file_of_a_living_worker_is_left_alone(tmp_path: Path) -> None:
    away, journal = FlakyJournal(), FlakyJournal()
    away.is_away = True
    living = Spool(tmp_path, away, Metrics())
    living.start()
    living.append(_event("mine"))
    newcomer = Spool(tmp_path, journal, Metrics())
    newcomer.start()
    assert newcomer.n_waiting == 0
    assert len(_files(tmp_path)) == 2
    await newcomer.close()
    away.is_away = False
    await _shipped(living)
    assert await away.payloads() == [b"mine"]
    await living.close()


async def test_a_file_that_another_worker_adopts_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "1-00000000.spool"
    gone.write_bytes(b"")
    monkeypatch.setattr(Spool, "_open", _after(Spool._open, gone.unlink))
    real_glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [*real_glob(self, pattern), gone])
    spool = Spool(tmp_path, FlakyJournal(), Metrics())
    spool.start()
    assert spool.n_waiting == 0
    await spool.close()


async def test_a_file_that_was_adopted_before_its_lock_was_had_is_not_adopted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = FlakyJournal()
    away.is_away = True
    dead = Spool(tmp_path, away, Metrics())
    dead.start()
    dead.append(_event("once"))
    _abandon(dead)
    (path,) = _files(tmp_path)
    spool = Spool(tmp_path, FlakyJournal(), Metrics())
    real = fcntl.flock

    def flock(file: object, operation: int) -> None:
        # Between open and lock, another worker adopts the file to its end.
        if operation & fcntl.LOCK_NB:
            path.unlink()
        real(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", flock)
    spool.start()
    assert spool.n_waiting == 0
    await spool.close()


async def test_a_new_file_that_was_taken_for_a_dead_workers_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = fcntl.flock, []

    def flock(file: object, operation: int) -> None:
        # Between its creation and its lock, another worker adopts the first file that is made.
        if not taken:
            taken.extend(_files(tmp_path))
            taken[0].unlink()
        real(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", flock)
    journal = FlakyJournal()
    journal.is_away = True
    spool = Spool(tmp_path, journal, Metrics())
    spool.start()
    spool.append(_event("a"))
    (path,) = _files(tmp_path)
    assert taken
    assert path not in taken
    assert [entry.payload for entry in read_entries(path)] == [b"a"]
    await spool.close(timeout_s=0.05)


def _after(first, then):
    def both(*args):
        first(*args)
        then()

    return both


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=8), st.integers(1, 10_000))
def test_a_torn_end_costs_only_the_entry_that_was_not_whole(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("torn")
    sizes = _write_spool(folder, payloads)
    (path,) = _files(folder)
    whole = path.read_bytes()
    cut %= len(whole) + 1
    path.write_bytes(whole[:cut])
    n_whole = sum(end <= cut for end in sizes)
    assert [entry.payload for entry in read_entries(path)] == payloads[:n_whole]


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_entry_ends_the_file_and_is_never_read_as_another(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    payloads = [b"first", b"second", b"third"]
    sizes = _write_spool(folder, payloads)
    (path,) = _files(folder)
    blob = bytearray(path.read_bytes())
    at %= len(blob)
    blob[at] ^= flip
    path.write_bytes(blob)
    n_before = sum(end <= at for end in sizes)
    assert [entry.payload for entry in read_entries(path)] == payloads[:n_before]


def _write_spool(folder: Path, payloads: list[bytes]) -> list[int]:
    """Write a spool file as a worker does and return where each entry ends."""
    ends = []

    async def write() -> None:
        journal = FlakyJournal()
        journal.is_away = True
        spool = Spool(folder, journal, Metrics())
        spool.start()
        for payload in payloads:
            spool.append(SpoolEntry(payload=payload))
            ends.append(spool._path.stat().st_size)
        _abandon(spool)

    asyncio.run(write())
    return ends


async def test_a_write_that_was_cut_short_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = FlakyJournal()
    journal.is_away = True
    spool = Spool(tmp_path, journal, Metrics())
    spool.start()
    spool.append(_event("before"))
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, record: real(descriptor, record[:5]))
        with pytest.raises(OSError, match="spool took 5 of"):
            spool.append(_event("lost"))
        with pytest.raises(OSError, match="spool took 5 of"):
            spool.append_and_ship(_decision("lost"))
    spool.append(_event("after"))
    assert spool.n_waiting == 2
    assert [entry.payload for entry in read_entries(spool._path)] == [b"before", b"after"]
    await spool.close(timeout_s=0.05)


async def test_entries_that_are_synced_together_are_all_taken_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FlakyJournal()
    journal.is_away = True
    spool = Spool(tmp_path, journal, Metrics())
    spool.start()
    spool.append(_event("before"))
    synced: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", synced.append)
        spool.append_synced([_event("a"), _event("b")])
    assert len(synced) == 1
    real, n_writes = os.write, iter(range(9))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, record: real(file, record[: 5 if next(n_writes) else None]))
        with pytest.raises(OSError, match="spool took 5 of"):
            spool.append_synced([_event("lost"), _event("torn")])
    assert spool.n_waiting == 3
    assert [entry.payload for entry in read_entries(spool._path)] == [b"before", b"a", b"b"]
    await spool.close(timeout_s=0.05)


async def test_a_spool_that_ships_no_more_ends_its_task_by_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FlakyJournal()
    spool = Spool(tmp_path, journal, Metrics())
    shipping = spool.start()
    assert not shipping.done()

    async def broken(shipments: object) -> list[Claim | None]:
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(journal, "ship", broken)
    spool.append(_event("a"))
    await until(shipping.done)
    assert str(shipping.exception()) == "a mistake of ours"
    await spool.close(timeout_s=0.05)


FULL_DISK = """
    import asyncio, resource, sys
    from pathlib import Path
    from service.metrics import Metrics
    from service.spool import Spool, SpoolEntry, read_entries
    from tests.unit.test_spool import FlakyJournal

    async def main():
        journal = FlakyJournal()
        journal.is_away = True
        spool = Spool(Path(sys.argv[1]), journal, Metrics())
        spool.start()
        limit = 1_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        taken, refused = 0, 0
        while refused < 3:
            try:
                spool.append_synced([SpoolEntry(payload=b"%3d" % taken + b"x" * 100)])
                taken += 1
            except OSError:
                refused += 1
        assert spool.n_waiting == taken, (spool.n_waiting, taken)
        assert 0 < taken < 10, taken
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        spool.append(SpoolEntry(payload=b"room again"))
        entries = [entry.payload[:3] for entry in read_entries(spool._path)]
        assert entries == [b"%3d" % n for n in range(taken)] + [b"roo"], entries

    asyncio.run(main())
"""


def test_a_full_disk_refuses_entries_and_tears_none(tmp_path: Path) -> None:
    # Python ignores SIGXFSZ, so the write beyond the limit is a short one and then EFBIG, as on a full disk.
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


KILLED = """
    import asyncio, os, signal, sys
    from pathlib import Path
    from service.metrics import Metrics
    from service.spool import Spool, SpoolEntry
    from tests.unit.test_spool import FlakyJournal

    async def main():
        journal = FlakyJournal()
        journal.is_away = True
        spool = Spool(Path(sys.argv[1]), journal, Metrics())
        spool.start()
        for n in range(100):
            spool.append(SpoolEntry(payload=b"%d" % n))
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(main())
"""


@pytest.fixture
def folder_of_the_killed(tmp_path: Path) -> Path:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    return tmp_path


async def test_what_a_killed_process_took_is_adopted_whole(folder_of_the_killed: Path) -> None:
    journal = FlakyJournal()
    spool = Spool(folder_of_the_killed, journal, Metrics())
    spool.start()
    await _shipped(spool)
    assert await journal.payloads() == [b"%d" % n for n in range(100)]
    await spool.close()


async def test_who_wants_to_know_is_told_of_each_decision_that_came_first_and_of_no_other(tmp_path: Path) -> None:
    told: list[str] = []

    async def tell(entries: Sequence[SpoolEntry]) -> None:
        told.extend(entry.event_id for entry in entries)

    spool = Spool(tmp_path, FlakyJournal(), Metrics(), on_shipped=tell)
    spool.start()
    for entry in (_decision("a"), _event("x"), _decision("b"), _decision("a", b"another")):
        spool.append(entry)
    await until(lambda: not spool.n_waiting)
    await spool.close()
    assert told == ["a", "b"]


async def test_a_file_that_cannot_be_emptied_does_not_stop_the_shipping(tmp_path: Path) -> None:
    journal, metrics = FlakyJournal(), Metrics()
    spool = Spool(tmp_path, journal, metrics)
    spool.start()
    with armed(parse("spool.empty:eio")):
        spool.append(_event("first"))
        await until(lambda: metrics.registry.get_sample_value("hone_spool_retries_total") == 1)
        spool.append(_event("second"))
        await until(lambda: spool.n_waiting == 0)
    await spool.close()
    assert await journal.payloads() == [b"first", b"second"]
    assert not _files(tmp_path)


async def test_after_a_failed_sync_entries_go_to_another_file(tmp_path: Path) -> None:
    """A file system may drop the pages that it could not sync: what came before in them may be gone, unnoticed."""
    journal = FlakyJournal()
    journal.is_away = True
    spool = Spool(tmp_path, journal, Metrics())
    spool.start()
    spool.append_synced([_event("before")])
    (first,) = _files(tmp_path)
    with armed(parse("spool.sync:eio")), pytest.raises(OSError, match="Input/output"):
        spool.append_synced([_event("refused")])
    spool.append_synced([_event("after")])
    (second,) = set(_files(tmp_path)) - {first}
    assert [entry.payload for entry in read_entries(first)] == [b"before"]
    assert [entry.payload for entry in read_entries(second)] == [b"after"]
    # The first file is still this worker's: nobody may adopt it.
    with first.open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    journal.is_away = False
    await until(lambda: spool.n_waiting == 0)
    await spool.close()
    assert await journal.payloads() == [b"before", b"after"]
    assert not _files(tmp_path)


async def test_a_record_that_cannot_be_taken_back_hides_no_later_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FlakyJournal()
    journal.is_away = True
    spool = Spool(tmp_path, journal, Metrics())
    spool.start()
    spool.append(_event("before"))
    write = os.write

    def tear(file: int, record: bytes) -> int:
        return write(file, record[:-1])

    def refuse(file: int, length: int) -> None:
        raise OSError("read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", tear)
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(OSError, match="spool took"):
            spool.append(_event("torn"))
    spool.append_synced([_event("after")])
    await spool.close(timeout_s=0.1)
    left = [entry.payload for path in _files(tmp_path) for entry in read_entries(path)]
    assert sorted(left) == [b"after", b"before"]


async def test_the_name_of_a_spool_file_is_on_disk_before_anything_is_taken(tmp_path: Path) -> None:
    spool = Spool(tmp_path, FlakyJournal(), Metrics())
    with armed(parse("files.sync_folder:eio")), pytest.raises(OSError, match="Input/output"):
        spool.start()
    spool.start()
    await spool.close()


async def test_no_entry_is_taken_into_a_second_file_whose_name_is_not_on_disk(tmp_path: Path) -> None:
    journal = FlakyJournal()
    journal.is_away = True
    spool = Spool(tmp_path, journal, Metrics())
    spool.start()
    spool.append_synced([_event("before")])
    for failpoint in ("spool.sync:eio", "files.sync_folder:eio"):
        with armed(parse(failpoint)), pytest.raises(OSError, match="Input/output"):
            spool.append_synced([_event("refused")])
    spool.append_synced([_event("after")])
    await spool.close(timeout_s=0.05)
    left = [entry.payload for path in _files(tmp_path) for entry in read_entries(path)]
    assert sorted(left) == [b"after", b"before"]
