"""What all who join the journal share: which slots count, what is read of an event, how long an event waits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bandit.joining import Joiner, JoinEvent
from bandit.rewards import RewardPolicy
from service.messages import Event

# Slots that were not drawn: their propensity is 1 and teaches nothing about the choice.
PLACED = frozenset({"sponsored", "pinned"})
_PENDING_S = 600.0


def join_event(event: Event) -> JoinEvent:
    """Return what a joiner reads of an event."""
    return JoinEvent(
        client_id=event.client_id,
        event_type=event.event_type,
        event_id=event.event_id,
        user_key=event.user_key,
        item_id=event.item_id,
        slot=event.slot,
        value=event.value,
        accepted_at_ms=event.accepted_at_unix_ms,
    )


def build_joiner(policies: Iterable[RewardPolicy]) -> Joiner[Any]:
    """Return a joiner whose events wait for their decision as long as the longest attribution window."""
    longest_s = max((policy.window_s for policy in policies), default=_PENDING_S)
    return Joiner(pending_ms=int(longest_s * 1000))
