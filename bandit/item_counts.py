"""Count showings, positive outcomes and rewards of items, with exponential decay. Pure: no clock, no store.

An impression, and what a slot earned, weigh 2^(-age / half-life) by the age of the decision, so that a ratio of two
counts compares like with like. The sums do not depend on the order of decisions and their events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from bandit.joining import JoinEvent, Position, slot_of

Worth = Callable[[str, float], float | None]

# Items with fewer decayed impressions count as never shown: the writer may forget them, and nobody can tell.
NEGLIGIBLE = 1e-9
# Ages beyond so many half-lives, either way, are cut off: 2^1000 is finite in float64.
MAX_HALF_LIVES = 1_000.0


@dataclass(slots=True)
class Counts:
    """Decayed counts of one item as of `at_ms`."""

    n_impressions: float = 0.0
    n_clicks: float = 0.0
    n_rewards: float = 0.0
    at_ms: int = 0


class _Shown(msgspec.Struct, gc=False):
    """A decision whose events still count."""

    position: Position
    first_position: Position
    shown_at_ms: int
    item_ids: Sequence[str]
    user_key: str
    worth: Worth
    window_ms: int
    clicked: set[int] = set()
    seen: set[tuple[int, str, str]] = set()


class ItemCounter:
    """Counts of every item, fed with journal entries in order.

    An event counts for the decision that it names when the two lie less than the surface's attribution window apart in
    the journal, whichever comes first; the same (slot, type, client id) counts once.

    Args:
        half_life_ms: time in which a count halves.
        window_ms: the longest attribution window.
        on_click: told of a slot's first positive event: user key, item, and when it was accepted.
    """

    def __init__(
        self, *, half_life_ms: float, window_ms: int, on_click: Callable[[str, str, int], None] | None = None
    ) -> None:
        self._on_click = on_click
        self._half_life_ms = half_life_ms
        self._window_ms = window_ms
        self._counts: dict[str, Counts] = {}
        self._changed: set[str] = set()
        self._shown: dict[str, _Shown] = {}
        self._early: dict[str, list[tuple[Position, JoinEvent]]] = {}
        # (journal ms, event id), in order.
        self._shown_ends: deque[tuple[int, str]] = deque()
        self._early_ends: deque[tuple[int, str]] = deque()

    def add_decision(
        self,
        position: Position,
        *,
        event_id: str,
        shown_at_ms: int,
        item_ids: Sequence[str],
        worth: Worth,
        window_ms: int,
        user_key: str = "",
    ) -> None:
        """Count a showing of every item; a decision that is still open counts once."""
        self.advance(position[0])
        if event_id in self._shown:
            return
        early = self._early.pop(event_id, [])
        shown = _Shown(
            position=position,
            first_position=min([at for at, _ in early], default=position),
            shown_at_ms=shown_at_ms,
            item_ids=item_ids,
            user_key=user_key,
            worth=worth,
            window_ms=window_ms,
        )
        self._shown[event_id] = shown
        self._shown_ends.append((position[0], event_id))
        for item_id in item_ids:
            counts, weight = self._at(item_id, shown_at_ms)
            counts.n_impressions += weight
        for at, event in early:
            self._apply(shown, at, event)

    def add_event(self, position: Position, event: JoinEvent) -> None:
        """Count what an event is worth, at once or when its decision comes."""
        self.advance(position[0])
        if event.event_id is None:
            return
        shown = self._shown.get(event.event_id)
        if shown is not None:
            self._apply(shown, position, event)
            return
        self._early.setdefault(event.event_id, []).append((position, event))
        self._early_ends.append((position[0], event.event_id))

    def advance(self, now_ms: int) -> None:
        """Forget what no event can join any more at journal time `now_ms`."""
        while self._shown_ends and self._shown_ends[0][0] + self._window_ms <= now_ms:
            del self._shown[self._shown_ends.popleft()[1]]
        while self._early_ends and self._early_ends[0][0] + self._window_ms <= now_ms:
            at_ms, event_id = self._early_ends.popleft()
            left = [(position, event) for position, event in self._early.get(event_id, []) if position[0] > at_ms]
            if left:
                self._early[event_id] = left
            else:
                self._early.pop(event_id, None)

    def oldest_open(self) -> Position | None:
        """Return the first position that rereading must start from to know every open decision and early event."""
        opened = (shown.first_position for shown in self._shown.values())
        early = (position for events in self._early.values() for position, _ in events)
        return min((*opened, *early), default=None)

    def take_changed(self) -> list[tuple[str, Counts]]:
        """Return the items that changed since the last call, by id."""
        changed = [(item_id, self._counts[item_id]) for item_id in sorted(self._changed)]
        self._changed.clear()
        return changed

    def items(self, now_ms: int) -> Iterator[tuple[str, Counts]]:
        """Yield every item, by id; those that count as never shown at `now_ms` are forgotten."""
        for item_id in sorted(self._counts):
            counts = self._counts[item_id]
            if counts.n_impressions * decay(now_ms - counts.at_ms, self._half_life_ms) < NEGLIGIBLE:
                del self._counts[item_id]
                self._changed.discard(item_id)
            else:
                yield item_id, counts

    def restore(self, counts: dict[str, Counts]) -> None:
        """Replace every count; open decisions stay."""
        self._counts = counts
        self._changed.clear()

    def _apply(self, shown: _Shown, position: Position, event: JoinEvent) -> None:
        reward = shown.worth(event.event_type, event.value)
        slot = slot_of(shown.item_ids, event)
        if reward is None or slot is None or abs(position[0] - shown.position[0]) >= shown.window_ms:
            return
        key = (slot, event.event_type, event.client_id)
        if key in shown.seen:
            return
        shown.seen.add(key)
        is_click = reward > 0.0 and slot not in shown.clicked
        if is_click:
            shown.clicked.add(slot)
            if self._on_click is not None:
                self._on_click(event.user_key or shown.user_key, shown.item_ids[slot], liked_at(position, event))
        counts, weight = self._at(shown.item_ids[slot], shown.shown_at_ms)
        counts.n_clicks += weight * is_click
        counts.n_rewards += weight * reward

    def _at(self, item_id: str, at_ms: int) -> tuple[Counts, float]:
        """Return the counts of an item that is about to change, and what 1 at a time weighs in them."""
        self._changed.add(item_id)
        counts = self._counts.get(item_id)
        if counts is None:
            counts = self._counts[item_id] = Counts(at_ms=at_ms)
        if at_ms <= counts.at_ms:
            return counts, decay(counts.at_ms - at_ms, self._half_life_ms)
        kept = decay(at_ms - counts.at_ms, self._half_life_ms)
        counts.n_impressions *= kept
        counts.n_clicks *= kept
        counts.n_rewards *= kept
        counts.at_ms = at_ms
        return counts, 1.0


def liked_at(position: Position, event: JoinEvent) -> int:
    """Return when an event was accepted, by the journal where the accepting clock is ahead of it."""
    return min(event.accepted_at_ms or position[0], position[0])


def decay(age_ms: float, half_life_ms: float) -> float:
    """Return 2^(-age / half-life).

    >>> decay(2_000, 1_000)
    0.25
    """
    half_lives = age_ms / half_life_ms
    if not -MAX_HALF_LIVES <= half_lives <= MAX_HALF_LIVES:
        half_lives = min(max(half_lives, -MAX_HALF_LIVES), MAX_HALF_LIVES)
    return float(2.0**-half_lives)
