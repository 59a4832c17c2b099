"""Apply journal entries to the joins of one model, and to the counts of items where the learner keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec
import structlog

from bandit.joining import Joined, Joiner, Position
from bandit.rewards import RewardPolicy
from service.count_items import ItemCounting
from service.joins import PLACED, build_joiner, join_event
from service.learned import Learnable, LearnedDecision
from service.messages import Erasure, Event

P = TypeVar("P", bound=Learnable)

_log = structlog.get_logger("hone.learn")


class JournalJoins(Generic[P]):
    """What the entries so far have opened and joined; a function of the entries in their order.

    Args:
        decoder: of journal entries, decisions as what learning reads of them.
        policies: reward policies of the surfaces that teach the model.
        hold: returns what is held of a decision of these surfaces, None when it was not made with this model.
        counting: counts items, None when another learner does.
    """

    def __init__(
        self,
        *,
        decoder: msgspec.msgpack.Decoder[Any],
        policies: Mapping[str, RewardPolicy],
        hold: Callable[[LearnedDecision], P | None],
        counting: ItemCounting | None,
    ) -> None:
        self._decoder = decoder
        self._policies = policies
        self._hold = hold
        self._counting = counting
        self.joiner: Joiner[P] = build_joiner(policies.values())

    def decode(self, position: Position, payload: bytes) -> Any:  # noqa: ANN401 - the union, or None
        """Return an entry; None, counted, for one that cannot be read."""
        try:
            return self._decoder.decode(payload)
        except msgspec.MsgspecError as error:
            # Stopping here would stop learning for good; the entry stays in the journal and is counted.
            self._count_unreadable(position, error)
            return None

    def apply(self, position: Position, entry: Any) -> list[Joined[P]]:  # noqa: ANN401 - the union
        """Apply one entry and return what it joined."""
        if isinstance(entry, LearnedDecision):
            if self._counting is not None:
                self._counting.add_decision(position, entry)
            return self._add_decision(position, entry)
        if isinstance(entry, Event):
            event = join_event(entry)
            if self._counting is not None:
                self._counting.add_event(position, event)
            return self.joiner.add_event(position, event)
        if self._counting is not None:
            self._counting.advance(position)
            if isinstance(entry, Erasure):
                self._counting.forget_user(entry.user_key)
        return self.joiner.advance(position[0])

    def about(self, event: Event) -> tuple[str | None, str | None]:
        """Return the user and item of an event, from its decision where it does not say."""
        decision = self.joiner.payload_of(event.event_id) if event.event_id else None
        item_id = event.item_id
        if decision is not None and item_id is None and event.slot is not None and event.slot < len(decision.item_ids):
            item_id = decision.item_ids[event.slot]
        return event.user_id or (decision.user_id if decision else None), item_id

    def oldest_open(self, partition: int) -> Position | None:
        """Return where a partition must be reread from, for the joins and for the counts."""
        counted = None if self._counting is None else self._counting.oldest_open()
        joined = self.joiner.oldest_open(partition)
        if counted is None or (joined is not None and joined <= counted):
            return joined
        return counted if counted[1] == partition else (counted[0], partition, 0)

    def _add_decision(self, position: Position, entry: LearnedDecision) -> list[Joined[P]]:
        policy = self._policies.get(entry.surface)
        try:
            held = None if policy is None else self._hold(entry)
        except (msgspec.MsgspecError, ValueError) as error:
            self._count_unreadable(position, error)
            held = None
        if policy is None or held is None:
            return self.joiner.advance(position[0])
        return self.joiner.add_decision(
            position,
            event_id=entry.event_id,
            policy=policy,
            item_ids=held.item_ids,
            user_key=entry.user_key,
            decided_at_ms=entry.decided_at_unix_ms,
            learnable=tuple([slot.reason not in PLACED for slot in entry.slots]),
            payload=held,
        )

    def _count_unreadable(self, position: Position, error: Exception) -> None:
        self.joiner.counters["entry_unreadable"] += 1
        _log.error("learn.unreadable", position=position, error=str(error))
