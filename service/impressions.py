"""Write what was shown into the user's state: eagerly by the worker that decided, again by the learner."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from service.errors import StoreUnavailable
from service.messages import Impression, summary_decoder
from service.metrics import Metrics
from service.ports import UserStates
from service.spool import SpoolEntry
from service.user_members import impression_member


class ImpressionWriter:
    """Adds the impressions of decisions that were shipped; a failure only delays them until the learner's pass."""

    def __init__(self, users: UserStates, metrics: Metrics) -> None:
        self._users = users
        self._metrics = metrics

    async def add_shipped(self, entries: Sequence[SpoolEntry]) -> None:
        """Add the impressions of decisions, in one round trip."""
        shown: dict[str, list[Impression]] = {}
        for entry in entries:
            summary = summary_decoder.decode(entry.summary)
            if summary.user_id is not None and summary.decided_at_unix_ms:
                shown.setdefault(summary.user_id, []).extend(
                    impressions_of(entry.event_id, summary.item_ids, summary.decided_at_unix_ms)
                )
        if not shown:
            return
        try:
            await self._users.add_impressions(shown)
        except StoreUnavailable:
            self._metrics.user_state_failures.labels("shown").inc()


def impressions_of(event_id: str, item_ids: Sequence[str], decided_at_ms: int) -> list[Impression]:
    """Return the impressions of one decision; the same decision gives the same ones."""
    return [Impression(item_id=item_id, event_id=event_id, shown_at_unix_ms=decided_at_ms) for item_id in item_ids]


def newest_impressions(impressions: Iterable[Impression], *, limit: int) -> tuple[Impression, ...]:
    """Return what a store with this bound keeps of impressions, oldest first, as it orders them."""
    members = {impression_member(shown): shown for shown in impressions}
    ordered = sorted(members, key=lambda member: (members[member].shown_at_unix_ms, member))
    return tuple(members[member] for member in ordered[-limit:])
