"""Logs in VW's DSJSON, single actions and slates (CCB), read line by line.

A line has the logged pmf (`a` and `p`, or `_a` and `_p` of each of `_outcomes`), whose first entry is what was shown.
So a target policy can be one that follows from that pmf. A cost is a reward with the other sign.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from bandit.support import Float64Array
from simulators.logged.batches import LoggedBatch, clusters_of_rows
from simulators.logged.import_report import ImportReport, LogRefused
from simulators.logged.time_window import ALL_TIME, TimeWindow

DsjsonTarget = Literal["uniform", "greedy", "epsilon", "column"]

_ROWS_AT_ONCE = 4096
# VW writes float32.
_SUM_TOLERANCE = 1e-4
_SAME = 1e-6


class _Context(msgspec.Struct, frozen=True):
    actions: list[msgspec.Raw] = msgspec.field(name="_multi", default_factory=list)


class _SlotLine(msgspec.Struct, frozen=True):
    cost: float | None = msgspec.field(name="_label_cost", default=None)
    actions: list[int] | int = msgspec.field(name="_a", default_factory=list)
    pmf: list[float] | float = msgspec.field(name="_p", default_factory=list)
    target_propensity: float | None = None


class _Line(msgspec.Struct, frozen=True):
    context: _Context = msgspec.field(name="c")
    version: str = msgspec.field(name="Version", default="1")
    event_id: str = msgspec.field(name="EventId", default="")
    timestamp: str = msgspec.field(name="Timestamp", default="")
    cost: float | None = msgspec.field(name="_label_cost", default=None)
    probability: float | None = msgspec.field(name="_label_probability", default=None)
    label_index: int | None = msgspec.field(name="_labelIndex", default=None)
    actions: list[int] = msgspec.field(name="a", default_factory=list)
    pmf: list[float] = msgspec.field(name="p", default_factory=list)
    outcomes: list[_SlotLine] | None = msgspec.field(name="_outcomes", default=None)
    dropped: float = msgspec.field(name="pdrop", default=0.0)
    is_deferred: bool = msgspec.field(name="_skipLearn", default=False)
    target_propensity: float | None = None


class _Slots(msgspec.Struct, frozen=True):
    outcomes: list[msgspec.Raw] | None = msgspec.field(name="_outcomes", default=None)


_line_decoder = msgspec.json.Decoder(_Line)
_slots_decoder = msgspec.json.Decoder(_Slots)


class RejectedLine(Exception):
    """A line that cannot be used; the message is the reason."""


@dataclass(frozen=True, slots=True)
class LoggedChoice:
    """One slot of a line.

    Attributes:
        reward: Better is up.
        actions: int64 [K], positions in `_multi`, the shown one first.
        pmf: float64 [K], their logged probabilities.
        target_propensity: What the line says of the target policy, None when it says nothing.
    """

    reward: float
    actions: Sequence[int]
    pmf: Float64Array
    target_propensity: float | None


@dataclass(frozen=True, slots=True)
class LoggedLine:
    """A line that can be used.

    Attributes:
        event_id: Names the decision, may be empty.
        timestamp: As written, may be empty.
        slots: At least one.
        raw: The line itself.
    """

    event_id: str
    timestamp: str
    slots: Sequence[LoggedChoice]
    raw: bytes


@dataclass(frozen=True, slots=True)
class DsjsonLog:
    """A DSJSON file and the target policy.

    Attributes:
        path: Of the file; `.gz` is unpacked on the way.
        target: `uniform` over the actions of a line; `greedy`, the most probable of them, ties shared; `epsilon`, that
            one but for `rate`, which is uniform; `column`, the field `target_propensity` of the line or slot.
        rate: Of `epsilon`.
        any_order: Whether lines may be out of the order of time.
        window: Which lines, by their time.
    """

    path: Path
    target: DsjsonTarget
    rate: float = 0.1
    any_order: bool = False
    window: TimeWindow = ALL_TIME

    def count_slots(self) -> int:
        """Return the most slots that a line has, by a pass over the file.

        Raises:
            LogRefused: the file cannot be read.
        """
        most = 1
        for _, line in _lines(self.path):
            if b'"_outcomes"' in line:
                try:
                    outcomes = _slots_decoder.decode(line).outcomes
                except msgspec.DecodeError:
                    continue
                most = max(most, len(outcomes or ()))
        return most

    @property
    def unsupported(self) -> str:
        """Return nothing: what the format cannot carry shows in its weights."""
        return ""

    def batches(self, report: ImportReport, *, n_slots: int) -> Iterator[LoggedBatch]:
        """Yield the accepted lines, some at a time, counting what is rejected.

        Raises:
            LogRefused: the file cannot be read, or its time falls.
        """
        yield from report.watch(self._batches(report, n_slots))

    def _batches(self, report: ImportReport, n_slots: int) -> Iterator[LoggedBatch]:
        held: list[list[_Row]] = []
        first = 0
        for row, line in read_lines(self.path, report, any_order=self.any_order, window=self.window):
            try:
                held.append([self._row(choice) for choice in line.slots])
            except RejectedLine as error:
                report.reject(str(error), [row])
                continue
            if len(held) == _ROWS_AT_ONCE:
                yield _batch(held, n_slots, first)
                first, held = first + len(held), []
        if held:
            yield _batch(held, n_slots, first)

    def _row(self, choice: LoggedChoice) -> _Row:
        if self.target == "column":
            target = choice.target_propensity
            if target is None:
                raise RejectedLine("target_propensity: missing")
            if not 0.0 <= target <= 1.0:
                raise RejectedLine("target_propensity: must be in [0, 1]")
            # What the target policy gives the other actions is not known: at most 1.
            return _Row.of(choice, target, largest=max_weight(np.ones(len(choice.pmf)), choice.pmf))
        pmf = self._target_pmf(choice.pmf)
        return _Row.of(choice, float(pmf[0]), largest=max_weight(pmf, choice.pmf))

    def _target_pmf(self, pmf: Float64Array) -> Float64Array:
        """Return float64 [K], what the target policy makes of a logged pmf.

        Raises:
            RejectedLine: the logged pmf is not whole.
        """
        if not is_whole(pmf):
            raise RejectedLine("p: must sum to 1 for a target policy that follows from it")
        uniform = np.full(len(pmf), 1.0 / len(pmf))
        if self.target == "uniform":
            return uniform
        best = pmf == pmf.max()
        greedy = best / np.count_nonzero(best)
        rate = self.rate if self.target == "epsilon" else 0.0
        mixed: Float64Array = (1.0 - rate) * greedy + rate * uniform
        return mixed


class _Row(NamedTuple):
    """One slot as estimators need it; `largest` is the largest weight that it could have had."""

    reward: float
    propensity: float
    target: float
    n_feasible: int
    largest: float

    @classmethod
    def of(cls, choice: LoggedChoice, target: float, *, largest: float) -> _Row:
        return cls(choice.reward, float(choice.pmf[0]), target, len(choice.pmf), largest)


def is_whole(pmf: Float64Array) -> bool:
    """Return whether a logged pmf names all that could be drawn."""
    return abs(float(pmf.sum()) - 1.0) <= _SUM_TOLERANCE


def max_weight(target: Float64Array, logged: Float64Array) -> float:
    """Return the largest weight of a row: over all actions that could be drawn, not the drawn one alone.

    Infinite when the logged pmf does not name them all.

    Args:
        target: float64 [K], the target policy's probabilities, or what they are at most.
        logged: float64 [K].
    """
    if not is_whole(logged):
        return math.inf
    drawable = logged > 0.0
    return float((target[drawable] / logged[drawable]).max())


def read_lines(
    path: Path, report: ImportReport, *, any_order: bool, window: TimeWindow
) -> Iterator[tuple[int, LoggedLine]]:
    """Yield the number and content of every line of a time that can be used; the others are counted.

    Raises:
        LogRefused: the file cannot be read, a line is a sample of what was dropped, or time falls.
    """
    last: tuple[datetime, int] | None = None
    for row, raw in _lines(path):
        report.n_read += 1
        try:
            line = _parse(raw)
            at = _time(line.timestamp)
        except RejectedLine as error:
            report.reject(str(error), [row])
            continue
        except _Sampled as error:
            raise LogRefused(f"{path}: {error} (line {row})") from error
        if at is not None:
            if last is not None and at < last[0] and not any_order:
                raise LogRefused(
                    f"{path}: Timestamp must not fall, got an earlier one in line {row} than in line {last[1]}; "
                    "sort the file, or say that any order will do"
                )
            last = at, row
        if not window or (at is not None and at in window):
            yield row, line
        elif at is None:
            report.reject("Timestamp: missing, so that nobody knows whether it is in the time asked for", [row])
        else:
            report.n_filtered += 1


class _Sampled(Exception):
    pass


def _parse(raw: bytes) -> LoggedLine:
    """Return a line's content.

    Raises:
        RejectedLine: saying which field is wrong.
    """
    try:
        line = _line_decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise RejectedLine(f"json: {error}") from error
    except msgspec.DecodeError as error:
        raise RejectedLine("json: unreadable" + ("" if raw.endswith(b"\n") else ", it may be truncated")) from error
    if line.version != "1":
        raise RejectedLine("Version: must be 1")
    if line.dropped:
        # Lines that were kept with probability 1 - pdrop stand for more than themselves.
        raise _Sampled(f"pdrop must be 0, got {line.dropped}")
    if line.is_deferred:
        raise RejectedLine("_skipLearn: the decision was not shown")
    n = len(line.context.actions)
    if line.outcomes is not None:
        if not line.outcomes:
            raise RejectedLine("_outcomes: missing")
        slots = [_slot(slot, n) for slot in line.outcomes]
        shown = [slot.actions[0] for slot in slots]
        if len(set(shown)) < len(shown):
            raise RejectedLine("_a: an action is shown twice")
        return LoggedLine(line.event_id, line.timestamp, slots, raw)
    return LoggedLine(line.event_id, line.timestamp, [_single(line, n)], raw)


def _single(line: _Line, n: int) -> LoggedChoice:
    # VW counts the actions of `a` from 1.
    choice = _choice(line.cost, [action - 1 for action in line.actions], line.pmf, n, names=("a", "p"))
    if line.probability is None:
        raise RejectedLine("_label_probability: missing")
    _check_propensity("_label_probability", line.probability)
    if abs(line.probability - choice.pmf[0]) > _SAME:
        raise RejectedLine("_label_probability: must be the first of p")
    if line.label_index is not None and line.label_index != choice.actions[0]:
        raise RejectedLine("_labelIndex: must be the first of a")
    return LoggedChoice(choice.reward, choice.actions, choice.pmf, line.target_propensity)


def _slot(slot: _SlotLine, n: int) -> LoggedChoice:
    actions = slot.actions if isinstance(slot.actions, list) else [slot.actions]
    pmf = slot.pmf if isinstance(slot.pmf, list) else [slot.pmf]
    choice = _choice(slot.cost, actions, pmf, n, names=("_a", "_p"))
    return LoggedChoice(choice.reward, choice.actions, choice.pmf, slot.target_propensity)


def _choice(
    cost: float | None, actions: Sequence[int], pmf: Sequence[float], n: int, *, names: tuple[str, str]
) -> LoggedChoice:
    if cost is None:
        raise RejectedLine("_label_cost: missing")
    if not actions or not pmf:
        raise RejectedLine(f"{names[1] if actions else names[0]}: missing")
    if len(actions) != len(pmf):
        raise RejectedLine(f"{names[1]}: must be as long as {names[0]}")
    if not all(0 <= action < n for action in actions) or len(set(actions)) < len(actions):
        raise RejectedLine(f"{names[0]}: action outside the set")
    for probability in pmf:
        # What was not shown may have probability 0.
        if not 0.0 <= probability <= 1.0:
            raise RejectedLine(f"{names[1]}: " + ("above 1" if probability > 1.0 else "below 0"))
    _check_propensity(names[1], pmf[0])
    return LoggedChoice(0.0 - cost, actions, np.array(pmf, dtype=np.float64), None)


def _check_propensity(name: str, propensity: float) -> None:
    if not 0.0 < propensity <= 1.0:
        raise RejectedLine(f"{name}: " + ("0" if propensity == 0.0 else "above 1" if propensity > 1.0 else "below 0"))


def _time(text: str) -> datetime | None:
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise RejectedLine("Timestamp: not a time") from error
    # The format is in UTC; some writers leave the zone out.
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    row = 0
    try:
        with opened(path, "rb") as file:
            for row, line in enumerate(file, start=1):
                if line.strip():
                    yield row, line
    except (OSError, EOFError, zlib.error) as error:
        raise LogRefused(f"{path}: {error} (after line {row})") from error


def _batch(held: Sequence[Sequence[_Row]], n_slots: int, first: int) -> LoggedBatch:
    n = len(held)
    columns = np.zeros((5, n, n_slots))
    columns[1:3] = 1.0
    for row, slots in enumerate(held):
        columns[:, row, : len(slots)] = np.array(slots).T
    return LoggedBatch(
        rewards=columns[0],
        propensities=columns[1],
        targets=columns[2],
        # The format names no users; a decision is a cluster.
        clusters=clusters_of_rows(first, n),
        discovery_weights=np.ones(n),
        n_feasible=columns[3].astype(np.int64),
        max_weights=columns[4, :, 0],
        are_independent=True,
    )
