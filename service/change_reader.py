"""Read a followed stream from its start to its present end."""

from __future__ import annotations

from collections.abc import AsyncIterator

from service.journal_reader import START
from service.ports import ChangeLog, Entry

_PAGE = 1_000


async def read_stream(log: ChangeLog, stream: str, *, after: str = START) -> AsyncIterator[Entry]:
    """Yield the entries of a stream past an id, a page at a time, until there are no more."""
    while entries := await log.read({stream: after}, count=_PAGE, block_ms=0):
        for entry in entries:
            yield entry
        after = entries[-1].entry_id
