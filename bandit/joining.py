"""Join rewards to decisions. Pure: no clock, no store; time is the journal's, moved only by its entries."""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Collection, Sequence
from operator import itemgetter
from typing import Generic, TypeVar

import msgspec

from bandit.rewards import RewardPolicy, aggregate

# (entry unix ms, partition, sequence): the order in which entries are applied.
Position = tuple[int, int, int]
Payload = TypeVar("Payload")


class JoinEvent(msgspec.Struct, frozen=True, gc=False):
    """What the joiner reads of an accepted event; the fields mean what they mean in the journal.

    Attributes:
        accepted_at_ms: When it was accepted; one that names no decision belongs to a decision made before.
    """

    client_id: str
    event_type: str
    event_id: str | None
    user_key: str
    item_id: str | None
    slot: int | None
    value: float
    accepted_at_ms: int = 0


# Nothing that is held refers back to what holds it, so the garbage collector need not look at these.
class Joined(msgspec.Struct, Generic[Payload], frozen=True, kw_only=True, gc=False):
    """What became of one slot.

    Attributes:
        payload: What was given with the decision.
        event_id: The decision.
        slot: The slot.
        reward: Its reward.
        kind: `reward` and `default` are to be learned, once a slot; `late` came after that and is only counted.
        at_ms: Journal time.
        delay_ms: Journal time since the decision.
    """

    payload: Payload
    event_id: str
    slot: int
    reward: float
    kind: str
    at_ms: int
    delay_ms: int


class _Tracked(msgspec.Struct, Generic[Payload], kw_only=True, gc=False):
    payload: Payload
    event_id: str
    position: Position
    policy: RewardPolicy
    item_ids: Sequence[str]
    user_key: str
    learnable: Sequence[bool]
    learned: list[bool]
    decided_at_ms: int
    # Of the decision, of an event that waited for it, or of a decision before it that events may go to instead.
    first_position: Position
    rewards: dict[int, list[float]] = {}
    seen: set[tuple[int, str, str]] = set()


class Joiner(Generic[Payload]):
    """Tracks decisions until their attribution window ends and says what each slot became.

    A slot is joined as `reward` or `default` exactly once. Events that come before their decision wait for it, as
    long as an attribution window; what cannot be joined is counted by reason in `counters`.

    Args:
        pending_ms: how long an event may wait for its decision.
    """

    def __init__(self, *, pending_ms: int) -> None:
        self.counters: Counter[str] = Counter()
        self._pending_ms = pending_ms
        self._tracked: dict[str, _Tracked[Payload]] = {}
        # (decided ms, position, event id) of the decisions for a user, in this order.
        self._by_user: dict[str, list[tuple[int, Position, str]]] = {}
        self._pending: dict[str, list[tuple[Position, JoinEvent]]] = {}
        # (due ms, position, kind, event id); kinds: negative window, attribution window, pending events.
        self._timers: list[tuple[int, Position, str, str]] = []

    def advance(self, now_ms: int) -> list[Joined[Payload]]:
        """Close every window that is due at journal time `now_ms`, in the order of their ends."""
        joined: list[Joined[Payload]] = []
        while self._timers and self._timers[0][0] <= now_ms:
            due_ms, position, kind, event_id = heapq.heappop(self._timers)
            if kind == "negative":
                joined += self._close_negative(self._tracked[event_id], due_ms)
            elif kind == "window":
                self._forget(self._tracked.pop(event_id))
            else:
                self._give_up(event_id, position)
        return joined

    def add_decision(
        self,
        position: Position,
        *,
        event_id: str,
        policy: RewardPolicy,
        item_ids: Sequence[str],
        user_key: str,
        learnable: Sequence[bool],
        payload: Payload,
        decided_at_ms: int = 0,
    ) -> list[Joined[Payload]]:
        """Track a decision and join the events that were waiting for it; a repeated one is counted and dropped."""
        joined = self.advance(position[0])
        if event_id in self._tracked:
            self.counters["decision_duplicate"] += 1
            return joined
        waiting = self._pending.pop(event_id, [])
        tracked = _Tracked(
            payload=payload,
            event_id=event_id,
            position=position,
            policy=policy,
            item_ids=item_ids,
            user_key=user_key,
            learnable=learnable,
            learned=[not wanted for wanted in learnable],
            decided_at_ms=decided_at_ms,
            first_position=min(
                (position, *(at for at, _ in waiting), *self._preferred(user_key, item_ids, decided_at_ms))
            ),
        )
        self._tracked[event_id] = tracked
        self.counters["decision"] += 1
        if user_key:
            insort(self._by_user.setdefault(user_key, []), (decided_at_ms, position, event_id))
        now_ms = position[0]
        heapq.heappush(self._timers, (now_ms + int(policy.negative_window_s * 1000), position, "negative", event_id))
        # One millisecond later than the negative window at the least, so that the decision is still tracked then.
        window_ms = max(int(policy.window_s * 1000), int(policy.negative_window_s * 1000) + 1)
        heapq.heappush(self._timers, (now_ms + window_ms, position, "window", event_id))
        for _, event in waiting:
            joined += self._apply(tracked, event, now_ms)
        return joined

    def add_event(self, position: Position, event: JoinEvent) -> list[Joined[Payload]]:
        """Join an event, keep it for a decision that has not come yet, or count why it cannot be joined."""
        joined = self.advance(position[0])
        event_id = event.event_id
        if event_id is None:
            event_id = self._last_shown(event)
            if event_id is None:
                self.counters["event_unattributed"] += 1
                return joined
        tracked = self._tracked.get(event_id)
        if tracked is not None:
            return joined + self._apply(tracked, event, position[0])
        # Each event has its own end of waiting, so that rereading from any of them ends the same way.
        heapq.heappush(self._timers, (position[0] + self._pending_ms, position, "pending", event_id))
        self._pending.setdefault(event_id, []).append((position, event))
        return joined

    def oldest_open(self, partition: int) -> Position | None:
        """Return the first position of a partition that may still matter, None when nothing is open.

        Rereading every partition from there rebuilds the joins. An event that names no decision may stand in another
        partition than the decision it was joined to, so all partitions go back to the same time.
        """
        opened = (tracked.first_position for tracked in self._tracked.values())
        waiting = (position for events in self._pending.values() for position, _ in events)
        oldest = min((*opened, *waiting), default=None)
        if oldest is None or oldest[1] == partition:
            return oldest
        return oldest[0], partition, 0

    def waiting(self) -> list[Position]:
        """Return the positions of events that wait for their decision."""
        return [position for events in self._pending.values() for position, _ in events]

    def keep_waiting(self, positions: Collection[Position]) -> None:
        """After a rebuild, drop the waiting events that waited for nothing: their decision was closed and forgotten."""
        for event_id, events in list(self._pending.items()):
            kept = [(position, event) for position, event in events if position in positions]
            if kept:
                self._pending[event_id] = kept
            else:
                del self._pending[event_id]

    def payload_of(self, event_id: str) -> Payload | None:
        """Return what was given with a decision, None when it is not tracked (any more)."""
        tracked = self._tracked.get(event_id)
        return None if tracked is None else tracked.payload

    @property
    def n_open(self) -> int:
        """Return how many decisions are tracked."""
        return len(self._tracked)

    def _preferred(self, user_key: str, item_ids: Sequence[str], decided_at_ms: int) -> list[Position]:
        """Return the positions of tracked decisions made later that showed the same items to the same user.

        `_last_shown` prefers them, although they came into the journal first. A decision is reread together with them:
        events that went to them would otherwise go to it.
        """
        decisions = self._by_user.get(user_key)
        # The newest is the last: mostly none is later.
        if not decisions or decisions[-1][0] <= decided_at_ms:
            return []
        later, items = decisions[_n_until(decided_at_ms, decisions) :], set(item_ids)
        return [position for _, position, event_id in later if not items.isdisjoint(self._tracked[event_id].item_ids)]

    def _last_shown(self, event: JoinEvent) -> str | None:
        """Return the last decision that showed the event's item to its user before the event, None without one.

        Entries that waited in a spool may come into the journal later than what was decided after them.
        """
        decisions = self._by_user.get(event.user_key, [])
        for place in reversed(range(_n_until(event.accepted_at_ms, decisions))):
            event_id = decisions[place][2]
            if event.item_id in self._tracked[event_id].item_ids:
                return event_id
        return None

    def _apply(self, tracked: _Tracked[Payload], event: JoinEvent, now_ms: int) -> list[Joined[Payload]]:
        reward = tracked.policy.reward(event.event_type, event.value)
        if reward is None:
            self.counters["event_not_a_reward"] += 1
            return []
        slot = slot_of(tracked.item_ids, event)
        if slot is None:
            self.counters["event_not_in_slate"] += 1
            return []
        if not tracked.learnable[slot]:
            self.counters["event_not_learnable"] += 1
            return []
        key = (slot, event.event_type, event.client_id)
        if key in tracked.seen:
            self.counters["event_duplicate"] += 1
            return []
        tracked.seen.add(key)
        if tracked.learned[slot]:
            self.counters["reward_late"] += 1
            return [self._join(tracked, slot, reward, "late", now_ms)]
        self.counters["reward_joined"] += 1
        tracked.rewards.setdefault(slot, []).append(reward)
        if tracked.policy.learn == "at_close":
            return []
        tracked.learned[slot] = True
        self.counters["slot_reward"] += 1
        return [self._join(tracked, slot, reward, "reward", now_ms)]

    def _give_up(self, event_id: str, position: Position) -> None:
        """Drop the event at `position` if it still waits for its decision."""
        waiting = self._pending.get(event_id, [])
        left = [(at, event) for at, event in waiting if at != position]
        if len(left) < len(waiting):
            self.counters["event_unknown_decision"] += len(waiting) - len(left)
        if left:
            self._pending[event_id] = left
        else:
            self._pending.pop(event_id, None)

    def _close_negative(self, tracked: _Tracked[Payload], now_ms: int) -> list[Joined[Payload]]:
        joined = []
        for slot, learned in enumerate(tracked.learned):
            if learned:
                continue
            rewards = tracked.rewards.get(slot)
            kind = "reward" if rewards else "default"
            reward = aggregate(rewards, tracked.policy.aggregation) if rewards else tracked.policy.default
            tracked.learned[slot] = True
            self.counters[f"slot_{kind}"] += 1
            joined.append(self._join(tracked, slot, reward, kind, now_ms))
        return joined

    def _join(self, tracked: _Tracked[Payload], slot: int, reward: float, kind: str, now_ms: int) -> Joined[Payload]:
        return Joined(
            payload=tracked.payload,
            event_id=tracked.event_id,
            slot=slot,
            reward=reward,
            kind=kind,
            at_ms=now_ms,
            delay_ms=now_ms - tracked.position[0],
        )

    def _forget(self, tracked: _Tracked[Payload]) -> None:
        if tracked.user_key:
            decisions = self._by_user[tracked.user_key]
            decisions.remove((tracked.decided_at_ms, tracked.position, tracked.event_id))
            if not decisions:
                del self._by_user[tracked.user_key]


def _n_until(at_ms: int, decisions: Sequence[tuple[int, Position, str]]) -> int:
    """Return how many of the decisions, in the order they were made, were made until `at_ms`."""
    return bisect_right(decisions, at_ms, key=itemgetter(0))


def slot_of(item_ids: Sequence[str], event: JoinEvent) -> int | None:
    """Return the slot an event is about; slot and item must agree when both are given."""
    if event.slot is not None:
        fits = event.slot < len(item_ids) and event.item_id in (None, item_ids[event.slot])
        return event.slot if fits else None
    if event.item_id is not None:
        return item_ids.index(event.item_id) if event.item_id in item_ids else None
    return 0 if len(item_ids) == 1 else None
