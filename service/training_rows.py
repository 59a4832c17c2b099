"""Archived decisions and events, joined again by the joiner that learning uses, in the order that learning saw them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bandit.joining import Joined, Joiner, JoinEvent, Position
from service.adapters.parquet_archive import archived_position
from service.config import Config
from service.journal_reader import entry_order, position_of
from service.messages import Decision, journal_decoder

# Slots that were not drawn: their propensity is 1 and teaches nothing about the choice.
PLACED_REASONS = frozenset({"sponsored", "pinned"})

_MS_PER_HOUR = 3_600_000
_EVENT_COLUMNS = ["journal_id", "event_type", "event_id", "client_id", "user_key", "item_id", "slot", "value"]

Outcome = Joined[Decision]


@dataclass(frozen=True, slots=True)
class Span:
    """A range of decision times in unix milliseconds, the end excluded; None is open."""

    from_ms: int | None = None
    to_ms: int | None = None

    def __contains__(self, at_ms: int) -> bool:
        """Return whether a time lies in the range."""
        return (self.from_ms is None or at_ms >= self.from_ms) and (self.to_ms is None or at_ms < self.to_ms)


@dataclass(frozen=True, slots=True)
class JoinedDecision:
    """A decision all of whose drawn slots have an outcome.

    Attributes:
        decision: The record.
        rewards: By slot; slots that were placed have none.
    """

    decision: Decision
    rewards: dict[int, float]


def read_outcomes(
    config: Config, folder: Path, span: Span, *, wanted: Callable[[Decision], bool] | None = None
) -> Iterator[Outcome]:
    """Yield what every drawn slot became, as `reward` or `default`, in the order in which a learner learns it.

    Decisions whose window had not ended where the archive ends are left out: their outcome is not known yet.

    Args:
        config: how events become rewards.
        folder: of the archive.
        span: of decision times.
        wanted: which decisions, None for all.
    """
    joiner: Joiner[Decision] = Joiner(pending_ms=int(_longest_window_s(config) * 1000))
    for position, entry in _read_entries(folder, span, margin_ms=int(_longest_window_s(config) * 1000)):
        if isinstance(entry, JoinEvent):
            yield from _learned(joiner.add_event(position, entry))
        elif entry.decided_at_unix_ms in span and entry.surface in config.surfaces and (not wanted or wanted(entry)):
            yield from _learned(_add(joiner, config, position, entry))
        else:
            yield from _learned(joiner.advance(position[0]))
    ends = [entry_order(archived_position(folder, partition))[0] for partition in range(config.store.partitions)]
    yield from _learned(joiner.advance(min(ends)))


def whole_decisions(outcomes: Iterable[Outcome]) -> Iterator[JoinedDecision]:
    """Yield every decision once its last drawn slot has an outcome."""
    rewards: dict[str, dict[int, float]] = {}
    for outcome in outcomes:
        known = rewards.setdefault(outcome.event_id, {})
        known[outcome.slot] = outcome.reward
        if len(known) == sum(slot.reason not in PLACED_REASONS for slot in outcome.payload.slots):
            yield JoinedDecision(outcome.payload, rewards.pop(outcome.event_id))


def decision_times(folder: Path, model: str, span: Span) -> npt.NDArray[np.int64]:
    """Return the decision times of a model in a range, ascending."""
    found = [np.zeros(0, dtype=np.int64)]
    for path in (folder / "decisions").rglob("*.parquet"):
        table = pq.read_table(path, columns=["decided_at_unix_ms", "model"], partitioning=None)
        times = table["decided_at_unix_ms"].to_numpy()[np.asarray(table["model"]) == model]
        found.append(times[[time in span for time in times.tolist()]])
    return np.sort(np.concatenate(found))


def _learned(joined: Iterable[Outcome]) -> Iterator[Outcome]:
    return (outcome for outcome in joined if outcome.kind != "late")


def _longest_window_s(config: Config) -> float:
    return max((surface.reward.window_s for surface in config.surfaces.values()), default=600.0)


def _add(joiner: Joiner[Decision], config: Config, position: Position, decision: Decision) -> list[Outcome]:
    return joiner.add_decision(
        position,
        event_id=decision.event_id,
        policy=config.surfaces[decision.surface].reward,
        item_ids=[slot.item_id for slot in decision.slots],
        user_key=decision.user_key,
        learnable=[slot.reason not in PLACED_REASONS for slot in decision.slots],
        payload=decision,
    )


def _read_entries(folder: Path, span: Span, *, margin_ms: int) -> Iterator[tuple[Position, Decision | JoinEvent]]:
    """Yield decisions and events in merged journal order, an hour in memory at a time."""
    hours: dict[tuple[int, str], list[Path]] = {}
    for kind in ("decisions", "events"):
        for path in (folder / kind).rglob("*.parquet"):
            hours.setdefault((_hour_ms(path), kind), []).append(path)
    # A worker's clock and a spool may set decision times and journal times apart; an hour more costs little.
    margin_ms += _MS_PER_HOUR
    for hour_ms in sorted({hour for hour, _ in hours}):
        if span.from_ms is not None and hour_ms + _MS_PER_HOUR <= span.from_ms - margin_ms:
            continue
        if span.to_ms is not None and hour_ms >= span.to_ms + margin_ms:
            continue
        places: list[tuple[Position, Any]] = []
        for kind, read in (("decisions", _decisions), ("events", _events)):
            for path in hours.get((hour_ms, kind), ()):
                places += read(path)
        places.sort(key=lambda place: place[0])
        for position, stored in places:
            yield position, stored if isinstance(stored, JoinEvent) else _decision(stored)


def _decisions(path: Path) -> Iterator[tuple[Position, pa.BinaryScalar]]:
    table = pq.read_table(path, columns=["journal_id", "record"], partitioning=None)
    partition = _partition(path)
    for journal_id, record in zip(table["journal_id"].to_pylist(), table["record"], strict=True):
        yield position_of(partition, journal_id), record


def _events(path: Path) -> Iterator[tuple[Position, JoinEvent]]:
    partition = _partition(path)
    for row in pq.read_table(path, columns=_EVENT_COLUMNS, partitioning=None).to_pylist():
        yield position_of(partition, row.pop("journal_id")), JoinEvent(**row)


def _decision(record: pa.BinaryScalar) -> Decision:
    decision = journal_decoder.decode(record.as_buffer())
    assert isinstance(decision, Decision)
    return decision


def _partition(path: Path) -> int:
    return int(path.stem.split("-")[0][1:])


def _hour_ms(path: Path) -> int:
    """Return when the hour of a file `date=2026-11-23/hour=07/...` begins."""
    day, hour = path.parent.parent.name.partition("=")[2], path.parent.name.partition("=")[2]
    return int(datetime.fromisoformat(f"{day}T{hour}:00:00").replace(tzinfo=UTC).timestamp() * 1000)
