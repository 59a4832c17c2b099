"""How an impression is kept as a member of a sorted set."""

from __future__ import annotations

from service.messages import Impression

_SEPARATOR = "\0"


def impression_member(impression: Impression) -> bytes:
    """Return item id, NUL, event id: the same impression is the same member, however often it is added.

    An id that a caller gave to an action of its own may hold a NUL; it is cut there, so that the parts stay apart.
    """
    item_id, _, _ = impression.item_id.partition(_SEPARATOR)
    return f"{item_id}{_SEPARATOR}{impression.event_id}".encode()


def impression_of(member: bytes, shown_at_unix_ms: int) -> Impression:
    """Return the impression of a member and its score."""
    item_id, _, event_id = member.decode().partition(_SEPARATOR)
    return Impression(item_id=item_id, event_id=event_id, shown_at_unix_ms=shown_at_unix_ms)
