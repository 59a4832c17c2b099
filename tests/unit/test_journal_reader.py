"""Several partitions read as one sequence."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.joining import Position
from service.adapters.memory_store import MemoryJournal
from service.adapters.memory_streams import MemoryStore
from service.journal_reader import START, JournalReader, entry_id_of, just_before, position_of

MAX = 2**64 - 1
# Writes in the order they happen: how far time moves before, and which partition.
WRITES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=40)
FAR_MS = 10_000


class Written:
    """A journal that is written on a clock of its own."""

    def __init__(self, n_partitions: int) -> None:
        self.now_ms = 1_000
        self.journal = MemoryJournal(MemoryStore(lambda: self.now_ms), n_partitions=n_partitions)
        self.positions: list[tuple[Position, bytes]] = []

    async def write(self, partition: int, payload: bytes) -> None:
        (entry_id,) = await self.journal.append(partition, [payload])
        self.positions.append((position_of(partition, entry_id), payload))

    async def beat(self) -> None:
        """Move every partition past everything written so far, as heartbeats do."""
        self.now_ms += FAR_MS
        for partition in range(self.journal.n_partitions):
            await self.journal.append(partition, [b"beat"])

    def in_order(self) -> list[tuple[Position, bytes]]:
        return sorted(self.positions)


async def _drain(reader: JournalReader, count: int) -> list[tuple[Position, bytes]]:
    found, idle = [], 0
    while idle < 2:
        entries = await reader.read(count=count, block_ms=0)
        idle = 0 if entries else idle + 1
        found += [entry for entry in entries if entry[1] != b"beat"]
    return found


@settings(max_examples=60)
@given(WRITES, st.integers(1, 4), st.integers(1, 7))
async def test_every_reader_sees_all_entries_in_the_one_order(
    writes: list[tuple[int, int]], n_partitions: int, count: int
) -> None:
    written = Written(n_partitions)
    for n, (step_ms, partition) in enumerate(writes):
        written.now_ms += step_ms
        await written.write(partition % n_partitions, b"%d" % n)
    await written.beat()
    assert await _drain(JournalReader(written.journal, {}), count) == written.in_order()


@settings(max_examples=60)
@given(WRITES, st.integers(1, 4), st.integers(1, 7), st.data())
async def test_reading_while_others_write_gives_the_same_order(
    writes: list[tuple[int, int]], n_partitions: int, count: int, data: st.DataObject
) -> None:
    written = Written(n_partitions)
    reader = JournalReader(written.journal, {})
    found = []
    for n, (step_ms, partition) in enumerate(writes):
        written.now_ms += step_ms
        await written.write(partition % n_partitions, b"%d" % n)
        if data.draw(st.booleans()):
            found += await reader.read(count=count, block_ms=0)
            assert found == written.in_order()[: len(found)], "nothing may come before what was released"
    await written.beat()
    assert found + await _drain(reader, count) == written.in_order()


@settings(max_examples=60)
@given(WRITES, st.integers(1, 4), st.integers(0, 40))
async def test_a_reader_that_starts_after_what_was_applied_goes_on_without_a_gap(
    writes: list[tuple[int, int]], n_partitions: int, n_applied: int
) -> None:
    written = Written(n_partitions)
    for n, (step_ms, partition) in enumerate(writes):
        written.now_ms += step_ms
        await written.write(partition % n_partitions, b"%d" % n)
    await written.beat()
    applied, rest = written.in_order()[:n_applied], written.in_order()[n_applied:]
    after: Mapping[int, str] = {position[1]: entry_id_of(position) for position, _ in applied}
    assert await _drain(JournalReader(written.journal, after), 5) == rest


async def test_an_entry_waits_until_no_other_partition_can_bring_an_earlier_one() -> None:
    written = Written(2)
    reader = JournalReader(written.journal, {})
    await written.write(0, b"a")
    assert await reader.read(count=10, block_ms=0) == []
    # At the same millisecond another entry of partition 1 could still come; what is before it may go.
    await written.write(1, b"b")
    assert [payload for _, payload in await reader.read(count=10, block_ms=0)] == [b"a"]
    written.now_ms += 1
    await written.write(0, b"c")
    assert [payload for _, payload in await reader.read(count=10, block_ms=0)] == [b"b"]


async def test_one_partition_is_released_at_once() -> None:
    written = Written(1)
    reader = JournalReader(written.journal, {})
    await written.write(0, b"a")
    assert [payload for _, payload in await reader.read(count=10, block_ms=0)] == [b"a"]


@given(st.integers(0, 2**48), st.integers(0, 63), st.integers(0, MAX))
def test_ids_and_positions_are_one_to_one(ms: int, partition: int, sequence: int) -> None:
    assert position_of(partition, f"{ms}-{sequence}") == (ms, partition, sequence)
    assert entry_id_of((ms, partition, sequence)) == f"{ms}-{sequence}"


@given(st.integers(0, 2**48), st.integers(0, MAX))
def test_just_before_is_the_largest_id_below(ms: int, sequence: int) -> None:
    before = position_of(0, just_before(f"{ms}-{sequence}"))
    if (ms, sequence) == (0, 0):
        assert entry_id_of(before) == START
    else:
        linear = before[0] * (MAX + 1) + before[2]
        assert linear == ms * (MAX + 1) + sequence - 1


@pytest.mark.parametrize("n", [0, 3])
async def test_reading_after_just_before_begins_with_the_entry(n: int) -> None:
    written = Written(1)
    for payload in (b"0", b"1"):
        await written.write(0, payload)
    written.now_ms += 1
    for payload in (b"2", b"3"):
        await written.write(0, payload)
    position, payload = written.positions[n]
    found = await written.journal.read({0: just_before(entry_id_of(position))}, count=1, block_ms=0)
    assert found == {0: [(entry_id_of(position), payload)]}
