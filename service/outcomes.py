"""What became of every slot, as the learners join it: a function of the journal alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bandit.joining import Joined, Joiner, Position
from service.config import Config
from service.joins import PLACED, build_joiner, join_event
from service.journal_reader import entry_id_of
from service.messages import Decision, Event, JournalEntry, Outcome

_GREEDY = "greedy"


@dataclass(frozen=True, slots=True)
class _Shown:
    """What an outcome says of its decision; the rest of it need not stay in memory."""

    journal_id: str
    decided_at_unix_ms: int
    surface: str
    model: str
    user_key: str
    slots: Sequence[tuple[str, float, str]]


class OutcomeJoins:
    """Joins as every learner does: one joiner a model, over its surfaces and its decisions, in journal order.

    Rereading the journal from `oldest_open` and dropping what `waiting` does not name rebuilds it.
    """

    def __init__(self, config: Config) -> None:
        # Any surface may give a model a share of its users.
        policies = {name: surface.reward for name, surface in config.surfaces.items()}
        self._policies = dict.fromkeys(config.ranking_models, policies)
        self._joiners: dict[str, Joiner[_Shown]] = {}
        for model, policies in self._policies.items():
            self._joiners[model] = build_joiner(policies.values())

    def apply(self, position: Position, entry: JournalEntry | None) -> list[Outcome]:
        """Apply the next entry (None for one that cannot be read) and return what it made certain, in order."""
        return [
            _outcome(joined)
            for model, joiner in self._joiners.items()
            for joined in self._apply(joiner, model, position, entry)
        ]

    def oldest_open(self, partition: int) -> Position | None:
        """Return where a partition must be reread from, None when nothing is open."""
        oldest = (joiner.oldest_open(partition) for joiner in self._joiners.values())
        return min((position for position in oldest if position is not None), default=None)

    def waiting(self) -> dict[str, list[Position]]:
        """Return, by model, the positions of events that wait for their decision."""
        return {model: joiner.waiting() for model, joiner in self._joiners.items()}

    def keep_waiting(self, waiting: Mapping[str, Sequence[Position]]) -> None:
        """After a rebuild, drop the waiting events that are not in `waiting`."""
        for model, joiner in self._joiners.items():
            joiner.keep_waiting(set(waiting.get(model, ())))

    def _apply(
        self, joiner: Joiner[_Shown], model: str, position: Position, entry: JournalEntry | None
    ) -> Iterator[Joined[_Shown]]:
        if isinstance(entry, Event):
            yield from joiner.add_event(position, join_event(entry))
            return
        policy = self._policies[model].get(entry.surface) if isinstance(entry, Decision) else None
        if not isinstance(entry, Decision) or policy is None or entry.model != model:
            yield from joiner.advance(position[0])
            return
        yield from joiner.add_decision(
            position,
            event_id=entry.event_id,
            policy=policy,
            item_ids=[slot.item_id for slot in entry.slots],
            user_key=entry.user_key,
            decided_at_ms=entry.decided_at_unix_ms,
            learnable=[slot.reason not in PLACED for slot in entry.slots],
            payload=_Shown(
                journal_id=entry_id_of(position),
                decided_at_unix_ms=entry.decided_at_unix_ms,
                surface=entry.surface,
                model=entry.model,
                user_key=entry.user_key,
                slots=[(slot.item_id, slot.propensity, slot.branch) for slot in entry.slots],
            ),
        )


def _outcome(joined: Joined[_Shown]) -> Outcome:
    shown = joined.payload
    item_id, propensity, branch = shown.slots[joined.slot]
    return Outcome(
        event_id=joined.event_id,
        slot=joined.slot,
        item_id=item_id,
        reward=joined.reward,
        kind=joined.kind,
        at_unix_ms=joined.at_ms,
        delay_ms=joined.delay_ms,
        surface=shown.surface,
        model=shown.model,
        decision_journal_id=shown.journal_id,
        decided_at_unix_ms=shown.decided_at_unix_ms,
        user_key=shown.user_key,
        propensity=propensity,
        branch=branch,
        is_explored=branch != _GREEDY,
    )
