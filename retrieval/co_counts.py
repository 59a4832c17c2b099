"""Count which items the same people like, from their events one by one. Pure: no clock, no store.

A user's liking of an item weighs w = 2^(-age / half-life), a pair of items sqrt(w_i w_j): the cosine of two items is
then that of two decayed vectors, and never above 1. While nothing outgrows a bound the sums do not depend on the order
of events; beyond, what is forgotten is a function of the events in their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

MS_PER_DAY = 86_400_000.0
_MAX_HALF_LIVES = 1_000.0
# Counts are decayed to a later time so seldom: with every event it was most of the work.
_MAX_AHEAD_HALF_LIVES = 20.0


@dataclass(frozen=True, slots=True)
class CoCountConfig:
    """Decay and bounds."""

    half_life_ms: float = 7 * MS_PER_DAY
    """Time in which a count halves."""
    recent_per_user: int = 10
    """Items of a user that a new one is paired with, the newest."""
    max_users: int = 20_000
    """Users remembered, those who liked something last."""
    max_items: int = 20_000
    """Items counted, those with most users."""
    partners_per_item: int = 20
    """Partners published of an item, those with most common users; twice as many are counted."""


@dataclass(slots=True)
class CoCounts:
    """Decayed counts of one item as of `at_ms`: its users, and those of both by partner."""

    n_users: float = 0.0
    at_ms: int = 0
    partners: dict[str, float] = field(default_factory=dict)


class CoCounter:
    """Co-occurrence counts, fed with what users liked in journal order.

    Args:
        config: Decay and bounds.
    """

    def __init__(self, config: CoCountConfig | None = None) -> None:
        self.config = config or CoCountConfig()
        self._items: dict[str, CoCounts] = {}
        # Whoever liked something last stands last.
        self._recent: dict[str, dict[str, int]] = {}
        self._changed: set[str] = set()

    def __len__(self) -> int:
        """Return the number of items counted."""
        return len(self._items)

    def add(self, user_key: str, item_id: str, at_ms: int) -> None:
        """Count that a user liked an item; again, while it is remembered, counts nothing."""
        recent = self._recent.pop(user_key, {})
        self._recent[user_key] = recent
        if item_id in recent:
            return
        counts = self._count(item_id, at_ms)
        counts.n_users += _decay(counts.at_ms - at_ms, self.config.half_life_ms)
        for other_id, other_ms in recent.items():
            pair_ms = (at_ms + other_ms) / 2
            self._pair(counts, other_id, pair_ms)
            # The other may have been forgotten since.
            self._pair(self._count(other_id, at_ms), item_id, pair_ms)
        recent[item_id] = at_ms
        if len(recent) > self.config.recent_per_user:
            _, oldest = min(zip(recent.values(), recent, strict=True))
            del recent[oldest]
        if len(self._recent) > self.config.max_users:
            del self._recent[next(iter(self._recent))]
        if len(self._items) > self.config.max_items * 1.1:
            self._forget_items(at_ms)

    def forget_user(self, user_key: str) -> None:
        """Forget what one user liked; sums over users stay."""
        self._recent.pop(user_key, None)

    def take_changed(self) -> list[str]:
        """Return the items that changed since the last call, by id."""
        changed = sorted(self._changed & self._items.keys())
        self._changed.clear()
        return changed

    def items(self) -> list[str]:
        """Return every item, by id."""
        return sorted(self._items)

    def published(self, item_id: str) -> tuple[CoCounts, list[tuple[str, float]]]:
        """Return the counts of an item and its best partners, most common users first."""
        counts = self._items[item_id]
        return counts, self._best(counts)

    def counts(self) -> Iterator[tuple[str, CoCounts]]:
        """Yield everything that is counted, by id, to `restore` from."""
        yield from sorted(self._items.items())

    def recent(self) -> dict[str, dict[str, int]]:
        """Return what is remembered of users: the time of each item, by user; the longest silent user first."""
        return self._recent

    def restore(self, counts: dict[str, CoCounts], recent: dict[str, dict[str, int]]) -> None:
        """Replace everything."""
        self._items, self._recent = counts, recent
        self._changed.clear()

    def _count(self, item_id: str, at_ms: int) -> CoCounts:
        """Return the counts of an item, as of a time not too long before `at_ms`: later events weigh more than 1."""
        counts = self._items.get(item_id)
        if counts is None:
            counts = self._items[item_id] = CoCounts(at_ms=at_ms)
        if at_ms - counts.at_ms > _MAX_AHEAD_HALF_LIVES * self.config.half_life_ms:
            kept = _decay(at_ms - counts.at_ms, self.config.half_life_ms)
            counts.n_users *= kept
            counts.partners = {partner: count * kept for partner, count in counts.partners.items()}
            counts.at_ms = at_ms
        self._changed.add(item_id)
        return counts

    def _pair(self, counts: CoCounts, partner_id: str, at_ms: float) -> None:
        """Count a user who liked an item and a partner of it."""
        partners = counts.partners
        partners[partner_id] = partners.get(partner_id, 0.0) + _decay(counts.at_ms - at_ms, self.config.half_life_ms)
        if len(partners) > 2 * self.config.partners_per_item:
            counts.partners = dict(self._best(counts))

    def _best(self, counts: CoCounts) -> list[tuple[str, float]]:
        partners = counts.partners
        ranked = sorted(sorted(partners), key=partners.__getitem__, reverse=True)
        return [(partner, partners[partner]) for partner in ranked[: self.config.partners_per_item]]

    def _forget_items(self, now_ms: int) -> None:
        def users(item_id: str) -> float:
            counts = self._items[item_id]
            return counts.n_users * _decay(now_ms - counts.at_ms, self.config.half_life_ms)

        kept = sorted(self._items, key=lambda item_id: (-users(item_id), item_id))[: self.config.max_items]
        self._items = {item_id: self._items[item_id] for item_id in kept}


def _decay(age_ms: float, half_life_ms: float) -> float:
    half_lives = age_ms / half_life_ms
    if not -_MAX_HALF_LIVES <= half_lives <= _MAX_HALF_LIVES:
        half_lives = min(max(half_lives, -_MAX_HALF_LIVES), _MAX_HALF_LIVES)
    return float(2.0**-half_lives)
