"""When something that is done now and then is to be done again."""

from __future__ import annotations


def is_due(now_ms: int, *, since_ms: int, every_ms: float) -> bool:
    """Return whether an interval is over.

    It is over too when the clock went back behind its start: nobody knows how long ago that was, and waiting until the
    clock is there again may take hours.

    >>> is_due(1_900, since_ms=1_000, every_ms=1_000), is_due(2_000, since_ms=1_000, every_ms=1_000)
    (False, True)
    >>> is_due(400, since_ms=1_000, every_ms=1_000)
    True
    """
    return not 0 <= now_ms - since_ms < every_ms
