"""Add to users' states what API workers add eagerly, from the journal; the same bytes, so nothing doubles."""

from __future__ import annotations

from service.due import is_due
from service.errors import StoreUnavailable
from service.messages import Impression, Interaction
from service.metrics import Metrics
from service.ports import UserStates

# While the store refuses them, so many users' repairs are kept; beyond that the oldest are given up and counted.
_MAX_WAITING = 50_000
# The workers write the same at once: a repair may come a moment later, and many of one user cost no more than one.
_EVERY_MS = 1_000


class UserRepairs:
    """Holds what has been read of users until it is written."""

    def __init__(self, users: UserStates, metrics: Metrics) -> None:
        self._users = users
        self._metrics = metrics
        self._interactions: dict[str, list[Interaction]] = {}
        self._shown: dict[str, list[Impression]] = {}
        self._written_at_ms = -_EVERY_MS

    def is_due(self, now_ms: int) -> bool:
        """Return whether what waits is to be written now."""
        return is_due(now_ms, since_ms=self._written_at_ms, every_ms=_EVERY_MS)

    def add_interaction(self, user_id: str, interaction: Interaction) -> None:
        """Take note of an event of a user."""
        self._interactions.setdefault(user_id, []).append(interaction)

    def add_impressions(self, user_id: str, shown: list[Impression]) -> None:
        """Take note of a decision for a user."""
        self._shown.setdefault(user_id, []).extend(shown)

    async def write(self, now_ms: int) -> bool:
        """Write what waits, in two round trips; False when the store refused, and it waits on."""
        try:
            if self._interactions:
                await self._users.add_interactions(self._interactions)
                self._interactions = {}
            if self._shown:
                await self._users.add_impressions(self._shown)
                self._shown = {}
        except StoreUnavailable:
            self._metrics.user_state_failures.labels("repair").inc()
            for waiting in (self._interactions, self._shown):
                while len(waiting) > _MAX_WAITING:
                    del waiting[next(iter(waiting))]
                    self._metrics.user_state_failures.labels("repair_dropped").inc()
            return False
        self._written_at_ms = now_ms
        return True
