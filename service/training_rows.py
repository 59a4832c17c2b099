"""Archived outcomes with their decisions, in the order in which the model's learner learned them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bandit.joining import Joined
from service.adapters.archive_files import read_rows, reading
from service.config import Config
from service.export import ExportReport, Selection, read_joined
from service.joins import PLACED
from service.messages import Decision, journal_decoder

Outcome = Joined[Decision]


@dataclass(frozen=True, slots=True)
class Span:
    """A range of journal times of decisions, in unix milliseconds, the end excluded."""

    from_ms: int = 0
    to_ms: int = 2**62


@dataclass(frozen=True, slots=True)
class JoinedDecision:
    """A decision all of whose drawn slots have an outcome.

    Attributes:
        decision: The record.
        rewards: By slot; slots that were placed have none.
    """

    decision: Decision
    rewards: dict[int, float]


def read_outcomes(config: Config, folder: Path, model: str, span: Span) -> Iterator[Outcome]:
    """Yield what every drawn slot of a model's decisions became, as `reward` or `default`, in the learner's order.

    Decisions whose window had not ended where the archive ends are left out: their outcome is not known yet.
    """
    selection = Selection(model=model, from_ms=span.from_ms, to_ms=span.to_ms)
    last: tuple[bytes, Decision] | None = None
    for joined in read_joined(config, folder, selection, ExportReport()):
        # The slots of a decision often come one after the other.
        if last is None or last[0] is not joined.record:
            decision = journal_decoder.decode(joined.record)
            assert isinstance(decision, Decision)
            last = joined.record, decision
        outcome = joined.outcomes[-1]
        yield Joined(
            payload=last[1],
            event_id=outcome.event_id,
            slot=outcome.slot,
            reward=outcome.reward,
            kind=outcome.kind,
            at_ms=outcome.at_unix_ms,
            delay_ms=outcome.delay_ms,
        )


def whole_decisions(outcomes: Iterable[Outcome]) -> Iterator[JoinedDecision]:
    """Yield every decision once its last drawn slot has an outcome."""
    rewards: dict[str, dict[int, float]] = {}
    for outcome in outcomes:
        known = rewards.setdefault(outcome.event_id, {})
        known[outcome.slot] = outcome.reward
        if len(known) == sum(slot.reason not in PLACED for slot in outcome.payload.slots):
            yield JoinedDecision(outcome.payload, rewards.pop(outcome.event_id))


def decision_times(folder: Path, model: str, span: Span) -> npt.NDArray[np.int64]:
    """Return the journal times of a model's archived decisions in a range, ascending."""
    with reading(folder):
        rows = read_rows(folder, "decisions", ["model"], from_ms=span.from_ms, to_ms=span.to_ms)
        times = [position[0] for position, row in rows if row["model"] == model]
    return np.array(times, dtype=np.int64)
