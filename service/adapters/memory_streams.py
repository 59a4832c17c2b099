"""Streams in memory, with the ids, the order and the waiting of a real store's; time is given."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping

Clock = Callable[[], int]
_EntryId = tuple[int, int]


class Stream:
    """Entries in id order; an id is (ms of the clock, sequence) and never goes back, whatever the clock does."""

    def __init__(self) -> None:
        self.ids: list[_EntryId] = []
        # Each with its id as text.
        self.entries: list[tuple[str, bytes]] = []
        self._last: _EntryId = (0, 0)

    def add(self, payload: bytes, now_ms: int) -> str:
        """Append and return the id."""
        last_ms, sequence = self._last
        self._last = (now_ms, 0) if now_ms > last_ms else (last_ms, sequence + 1)
        entry_id = f"{self._last[0]}-{self._last[1]}"
        self.ids.append(self._last)
        self.entries.append((entry_id, payload))
        return entry_id

    def after(self, entry_id: str, count: int) -> list[tuple[str, bytes]]:
        """Return at most `count` entries after an id."""
        first = bisect_right(self.ids, _parse(entry_id))
        return self.entries[first : first + count]

    def get(self, entry_id: str) -> bytes | None:
        """Return one entry, None when it is not there."""
        wanted = _parse(entry_id)
        position = bisect_left(self.ids, wanted)
        return self.entries[position][1] if self.ids[position : position + 1] == [wanted] else None

    def last(self) -> tuple[str, bytes] | None:
        """Return the newest entry, None when there is none."""
        return self.entries[-1] if self.entries else None

    def trim(self, before: str) -> int:
        """Drop entries before an id and return how many."""
        n_dropped = bisect_left(self.ids, _parse(before))
        del self.ids[:n_dropped], self.entries[:n_dropped]
        return n_dropped


class MemoryStore:
    """Streams by name, and who waits for them.

    Args:
        clock: unix milliseconds; stream ids, claims and expiry go by it.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.streams: defaultdict[str, Stream] = defaultdict(Stream)
        self.epochs: defaultdict[str, int] = defaultdict(int)
        self._changed = asyncio.Event()

    def add(self, stream: str, payload: bytes) -> str:
        """Append one entry and return its id; `announce` wakes the readers."""
        return self.streams[stream].add(payload, self.clock())

    async def announce(self) -> None:
        """Wake every reader that waits."""
        self._changed.set()
        self._changed.clear()
        # A real store's answer takes a turn of the loop too; without it a busy writer would starve everyone.
        await asyncio.sleep(0)

    async def read(self, after: Mapping[str, str], *, count: int, block_ms: int) -> dict[str, list[tuple[str, bytes]]]:
        """Return entries after an id by stream, at most `count` a stream; streams without any are left out.

        Waits up to `block_ms` of real time for the first entry.
        """
        await asyncio.sleep(0)
        found = self._after(after, count)
        if found or not block_ms:
            return found
        try:
            async with asyncio.timeout(block_ms / 1000):
                while not found:
                    await self._changed.wait()
                    found = self._after(after, count)
        except TimeoutError:
            return self._after(after, count)
        return found

    def _after(self, after: Mapping[str, str], count: int) -> dict[str, list[tuple[str, bytes]]]:
        found = {name: self.streams[name].after(entry_id, count) for name, entry_id in after.items()}
        return {name: entries for name, entries in found.items() if entries}


def _parse(entry_id: str) -> _EntryId:
    ms, _, sequence = entry_id.partition("-")
    return int(ms), int(sequence or 0)
