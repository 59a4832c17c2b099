"""Collect what the health watch counts, interval by interval, on journal time. Pure: no clock, no store.

An interval holds the decisions of its time and what became of them, so it is closed only when the last negative window
of its decisions has closed: rewards and defaults are then in it at their true rates, whatever the traffic does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from bandit.health_statistics import Moments, variety
from bandit.joining import Joined, Joiner, JoinEvent, Position
from bandit.rewards import RewardPolicy

# Impressions by item are counted for so many slots an interval: memory stays bounded whatever the traffic is.
_MAX_ITEM_SLOTS = 2_000
# Values of one feature that are told apart in one interval; callers may send any.
_MAX_VALUES = 200
# Impressions among which different items are counted.
VARIETY_SAMPLE = 100


class Interval(msgspec.Struct, kw_only=True):
    """What was shown in a stretch of journal time, and what became of it.

    Attributes:
        from_ms: Where it begins.
        until_ms: Where it ends; later than a whole interval when there was little traffic.
        n_decisions: Decisions.
        n_rewards: Reward events.
        last_reward_ms: The newest of them, 0 for none.
        greedy: Rewards of slots that show what the model likes best.
        explore: Rewards of slots that the policy explored.
        control: Rewards of those explored slots that were drawn uniformly from all that was allowed.
        sessions: Slates of the sessions that ended.
        feedback: Events of explicit feedback, by type.
        genres: Greedy slots by genre; one of several genres is shared between them.
        items: Greedy slots by item, of the first so many; emptied when the interval leaves the window.
        n_item_slots: How many those are.
        variety: Different items among a hundred greedy slots; no observation when there were fewer.
        bins: Visits by feature and by its value.
        weight_norms: Norm of the published weights at the end, by model.
    """

    from_ms: int
    until_ms: int
    n_decisions: int = 0
    n_rewards: int = 0
    last_reward_ms: int = 0
    greedy: Moments = msgspec.field(default_factory=Moments)
    explore: Moments = msgspec.field(default_factory=Moments)
    control: Moments = msgspec.field(default_factory=Moments)
    sessions: Moments = msgspec.field(default_factory=Moments)
    feedback: dict[str, int] = {}
    genres: dict[str, float] = {}
    items: dict[str, int] = {}
    n_item_slots: int = 0
    variety: Moments = msgspec.field(default_factory=Moments)
    bins: dict[str, dict[str, int]] = {}
    weight_norms: dict[str, float] = {}

    def merge(self, later: Interval) -> None:
        """Take in the interval that follows."""
        self.until_ms = later.until_ms
        self.n_decisions += later.n_decisions
        self.n_rewards += later.n_rewards
        self.last_reward_ms = max(self.last_reward_ms, later.last_reward_ms)
        self.greedy.merge(later.greedy)
        self.explore.merge(later.explore)
        self.control.merge(later.control)
        self.sessions.merge(later.sessions)
        add_counts(self.feedback, later.feedback)
        add_counts(self.genres, later.genres)
        add_counts(self.items, later.items)
        self.n_item_slots += later.n_item_slots
        for feature, counts in later.bins.items():
            add_counts(self.bins.setdefault(feature, {}), counts)

    @property
    def n_slots(self) -> float:
        """Return the slots whose outcome is known."""
        return self.greedy.n + self.explore.n


@dataclass(frozen=True, slots=True)
class ShownSlot:
    """One slot of a decision.

    Attributes:
        item_id: What was shown.
        is_explored: Whether the policy explored; else the slot is greedy.
        is_uniform: Whether it explored by a uniform draw, which no model has a say in.
        is_placed: Whether something else than the policy filled it (a campaign, the discovery pool): it counts nowhere.
        genres: Of the item.
    """

    item_id: str
    is_explored: bool
    is_uniform: bool
    is_placed: bool
    genres: Sequence[str]


@dataclass(frozen=True, slots=True)
class Shown:
    """One decision.

    Attributes:
        event_id: Its id.
        user_key: Who; empty for anonymous.
        policy: What events are worth.
        slots: In order.
        values: The watched features, by name.
        decided_at_ms: When it was made.
    """

    event_id: str
    user_key: str
    policy: RewardPolicy
    slots: Sequence[ShownSlot]
    values: Mapping[str, str]
    decided_at_ms: int = 0


@dataclass(slots=True)
class _Visit:
    last_ms: int
    n_slates: int
    # It may have begun before anybody watched, so its length is not known.
    is_cut: bool


class IntervalCollector:
    """Is told of each journal entry once, in order, and gives intervals as they close.

    Args:
        interval_ms: shortest interval.
        min_slots: an interval lasts until it has so many outcomes.
        session_gap_ms: a session ends after so long without a slate.
        negative_ms: longest negative window.
        from_ms: what was before it was counted by an earlier collector, and is not told again.
        unfinished: the interval that the earlier one had not closed for lack of outcomes.
    """

    def __init__(
        self,
        *,
        interval_ms: int,
        min_slots: int,
        session_gap_ms: int,
        negative_ms: int,
        from_ms: int = 0,
        unfinished: Interval | None = None,
    ) -> None:
        self._interval_ms = interval_ms
        self._min_slots = min_slots
        self._gap_ms = session_gap_ms
        self._negative_ms = negative_ms
        self._from_ms = from_ms
        self.unfinished = unfinished
        self._cells: dict[int, Interval] = {}
        self._visits: OrderedDict[str, _Visit] = OrderedDict()
        self._first_ms: int | None = None
        # What comes after the negative window is late for this purpose too.
        self._joiner: Joiner[Shown] = Joiner(pending_ms=negative_ms)

    @property
    def resume_ms(self) -> int:
        """Return where a later collector must begin to read, to count what this one has not closed."""
        return min(self._cells, default=self._from_ms)

    def open_intervals(self) -> list[Interval]:
        """Return what is not closed yet, oldest first."""
        unfinished = [self.unfinished] if self.unfinished is not None else []
        return [*unfinished, *(self._cells[start] for start in sorted(self._cells))]

    def add_decision(self, position: Position, shown: Shown) -> list[Interval]:
        """Count a decision; return the intervals that its time closed."""
        closed = self.advance(position)
        now_ms = position[0]
        cell = self._cell(now_ms)
        cell.n_decisions += 1
        if self._is_new_visit(shown.user_key, now_ms):
            for feature, value in shown.values.items():
                _count_value(cell.bins.setdefault(feature, {}), value)
        for slot in shown.slots:
            if slot.is_explored or slot.is_placed:
                continue
            for genre in slot.genres:
                cell.genres[genre] = cell.genres.get(genre, 0.0) + 1.0 / len(slot.genres)
            if cell.n_item_slots < _MAX_ITEM_SLOTS:
                cell.n_item_slots += 1
                cell.items[slot.item_id] = cell.items.get(slot.item_id, 0) + 1
        policy = msgspec.structs.replace(shown.policy, window_s=shown.policy.negative_window_s)
        joined = self._joiner.add_decision(
            position,
            event_id=shown.event_id,
            policy=policy,
            item_ids=[slot.item_id for slot in shown.slots],
            user_key=shown.user_key,
            learnable=[not slot.is_placed for slot in shown.slots],
            payload=shown,
            decided_at_ms=shown.decided_at_ms,
        )
        self._count(joined)
        return closed

    def add_event(self, position: Position, event: JoinEvent, *, is_reward: bool, is_feedback: bool) -> list[Interval]:
        """Count an event; return the intervals that its time closed."""
        closed = self.advance(position)
        cell = self._cell(position[0])
        if is_reward:
            cell.n_rewards += 1
            cell.last_reward_ms = position[0]
        if is_feedback:
            cell.feedback[event.event_type] = cell.feedback.get(event.event_type, 0) + 1
        self._count(self._joiner.add_event(position, event))
        return closed

    def advance(self, position: Position) -> list[Interval]:
        """Move journal time; return the intervals that it closed."""
        now_ms = position[0]
        self._first_ms = now_ms if self._first_ms is None else self._first_ms
        self._count(self._joiner.advance(now_ms))
        self._end_visits(now_ms)
        closed = []
        for start in sorted(self._cells):
            if now_ms < start + self._interval_ms + self._negative_ms + 1:
                break
            cell = self._cells.pop(start)
            self._from_ms = start + self._interval_ms
            if self.unfinished is None:
                self.unfinished = cell
            else:
                self.unfinished.merge(cell)
            if self.unfinished.n_slots >= self._min_slots:
                different = variety(self.unfinished.items.values(), sample=VARIETY_SAMPLE)
                if different is not None:
                    self.unfinished.variety.add(different)
                closed.append(self.unfinished)
                self.unfinished = None
        return closed

    def _cell(self, ms: int) -> Interval:
        """Return the interval of a time that is not closed yet."""
        start = ms - ms % self._interval_ms
        if start not in self._cells:
            self._cells[start] = Interval(from_ms=start, until_ms=start + self._interval_ms)
        return self._cells[start]

    def _count(self, outcomes: Sequence[Joined[Shown]]) -> None:
        for joined in outcomes:
            if joined.kind == "late":
                continue
            cell = self._cell(joined.at_ms - joined.delay_ms)
            slot = joined.payload.slots[joined.slot]
            (cell.explore if slot.is_explored else cell.greedy).add(joined.reward)
            if slot.is_uniform:
                cell.control.add(joined.reward)

    def _is_new_visit(self, user_key: str, now_ms: int) -> bool:
        """Count a slate into its user's session and return whether it is the first; an anonymous one always is."""
        if not user_key:
            return True
        visit = self._visits.get(user_key)
        if visit is None:
            is_cut = self._first_ms is not None and now_ms - self._first_ms < self._gap_ms
            self._visits[user_key] = _Visit(now_ms, 1, is_cut)
            return True
        visit.last_ms = now_ms
        visit.n_slates += 1
        self._visits.move_to_end(user_key)
        return False

    def _end_visits(self, now_ms: int) -> None:
        while self._visits:
            user_key, visit = next(iter(self._visits.items()))
            if visit.last_ms + self._gap_ms > now_ms:
                return
            del self._visits[user_key]
            if not visit.is_cut:
                self._cell(now_ms).sessions.add(float(visit.n_slates))


def add_counts(counts: dict[str, float] | dict[str, int], more: Mapping[str, float]) -> None:
    """Add counts by name."""
    for name, count in more.items():
        counts[name] = counts.get(name, 0) + count  # type: ignore[assignment] # both sides hold the same kind


def _count_value(counts: dict[str, int], value: str) -> None:
    name = value if value in counts or len(counts) < _MAX_VALUES else "(other)"
    counts[name] = counts.get(name, 0) + 1
