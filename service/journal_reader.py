"""Read the partitions of the journal as one sequence that every reader sees in the same order."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from bandit.joining import Position
from service.failpoints import reach
from service.ports import Journal

START = "0-0"


def position_of(partition: int, entry_id: str) -> Position:
    """Return the place of an entry in the merged order: (ms, partition, sequence)."""
    ms, sequence = entry_order(entry_id)
    return ms, partition, sequence


def entry_order(entry_id: str) -> tuple[int, int]:
    """Return what entry ids of one stream are ordered by: (ms, sequence)."""
    ms, _, sequence = entry_id.partition("-")
    return int(ms), int(sequence)


def entry_id_of(position: Position) -> str:
    """Return the stream id of a position."""
    return f"{position[0]}-{position[2]}"


def just_before(entry_id: str) -> str:
    """Return the largest id below an entry's, so that reading after it begins with the entry."""
    ms, _, sequence = entry_id.partition("-")
    if int(sequence):
        return f"{ms}-{int(sequence) - 1}"
    return f"{int(ms) - 1}-{2**64 - 1}" if int(ms) else START


class JournalReader:
    """Merges partitions by (entry ms, partition, sequence).

    An entry is released once every other partition has shown something later; heartbeats keep idle partitions moving.

    Args:
        after: last entry id already applied, by partition.
    """

    def __init__(self, journal: Journal, after: Mapping[int, str]) -> None:
        self._journal = journal
        self._read_to = {partition: after.get(partition, START) for partition in range(journal.n_partitions)}
        self._held: dict[int, deque[tuple[Position, bytes]]] = {p: deque() for p in self._read_to}

    @property
    def n_held(self) -> int:
        """Return how many entries wait for a later one of another partition."""
        return sum(map(len, self._held.values()))

    async def read(self, *, count: int, block_ms: int) -> list[tuple[Position, bytes]]:
        """Return the next entries in merged order; none when nothing came within `block_ms`."""
        reach("journal.read")
        found = await self._journal.read(self._read_to, count=count, block_ms=block_ms)
        for partition, entries in found.items():
            for entry_id, payload in entries:
                self._held[partition].append((position_of(partition, entry_id), payload))
                self._read_to[partition] = entry_id
        released = []
        while (head := self._next_partition()) is not None:
            released.append(self._held[head].popleft())
        reach("journal.released")
        return released

    def _next_partition(self) -> int | None:
        """Return the partition whose head is next, None when another could still bring an earlier entry."""
        heads = [(held[0][0], partition) for partition, held in self._held.items() if held]
        if not heads:
            return None
        position, partition = min(heads)
        for other, held in self._held.items():
            if not held and other != partition and position_of(other, self._read_to[other])[0] <= position[0]:
                return None
        return partition
