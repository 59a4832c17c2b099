"""Lines of VW's DSJSON, single actions and slates (CCB): what each says, or why it cannot be used.

A line has the logged pmf (`a` and `p`, or `_a` and `_p` of each of `_outcomes`), whose first entry is what was shown. A
cost is a reward with the other sign.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bandit.support import Float64Array
from simulators.logged.import_report import ImportReport, LogRefused
from simulators.logged.time_window import TimeWindow

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


class _State(msgspec.Struct, frozen=True):
    model_id: str = msgspec.field(name="m", default="")


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
    state: _State = msgspec.field(name="VWState", default=_State())
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
        actions: K positions in `_multi`, ascending: an order that says nothing of what was drawn.
        pmf: float64 [K], their logged probabilities.
        shown: Which of the K was shown.
        is_whole: Whether the logged pmf names all that could be drawn.
        target_propensity: What the line says of the target policy, None when it says nothing.
    """

    reward: float
    actions: Sequence[int]
    pmf: Float64Array
    shown: int
    is_whole: bool
    target_propensity: float | None

    @classmethod
    def of(
        cls, cost: float, actions: Sequence[int], pmf: Sequence[float], *, target_propensity: float | None = None
    ) -> LoggedChoice:
        """Build it from what a line has: the shown action first."""
        order = sorted(range(len(actions)), key=actions.__getitem__)
        return cls(
            reward=0.0 - cost,
            actions=[actions[place] for place in order],
            pmf=np.array([pmf[place] for place in order], dtype=np.float64),
            shown=order.index(0),
            is_whole=abs(sum(pmf) - 1.0) <= _SUM_TOLERANCE,
            target_propensity=target_propensity,
        )

    @property
    def propensity(self) -> float:
        """Return the logged probability of what was shown."""
        return float(self.pmf[self.shown])


@dataclass(frozen=True, slots=True)
class LoggedLine:
    """A line that can be used.

    Attributes:
        event_id: Names the decision, may be empty.
        timestamp: As written, may be empty.
        slots: At least one, over the actions that earlier slots have left.
        is_slate: Whether it is a line of CCB, be it of one slot.
        multi: The actions, encoded.
        model_id: Of the model that decided, may be empty.
        raw: The line itself.
    """

    event_id: str
    timestamp: str
    slots: Sequence[LoggedChoice]
    is_slate: bool
    multi: Sequence[msgspec.Raw]
    model_id: str
    raw: bytes


def read_lines(
    path: Path, report: ImportReport, *, any_order: bool, window: TimeWindow
) -> Iterator[tuple[int, LoggedLine]]:
    """Yield the number and content of every line of a time that can be used; the others are counted.

    Raises:
        LogRefused: the file cannot be read, a line is a sample of what was dropped, or time falls.
    """
    last: tuple[datetime, int] | None = None
    for row, raw in raw_lines(path):
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


def count_slots(path: Path) -> int:
    """Return the most slots that a line has, by a pass over the file.

    Raises:
        LogRefused: the file cannot be read.
    """
    most = 1
    for _, line in raw_lines(path):
        if b'"_outcomes"' in line:
            try:
                outcomes = _slots_decoder.decode(line).outcomes
            except msgspec.DecodeError:
                continue
            most = max(most, len(outcomes or ()))
    return most


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
    multi = line.context.actions
    slots = [_single(line, len(multi))] if line.outcomes is None else _slate(line.outcomes, len(multi))
    return LoggedLine(
        event_id=line.event_id,
        timestamp=line.timestamp,
        slots=slots,
        is_slate=line.outcomes is not None,
        multi=multi,
        model_id=line.state.model_id,
        raw=raw,
    )


def _single(line: _Line, n: int) -> LoggedChoice:
    # VW counts the actions of `a` from 1.
    actions = [action - 1 for action in line.actions]
    cost = _checked(line.cost, actions, line.pmf, n, names=("a", "p"))
    if line.probability is None:
        raise RejectedLine("_label_probability: missing")
    _check_propensity("_label_probability", line.probability)
    if abs(line.probability - line.pmf[0]) > _SAME:
        raise RejectedLine("_label_probability: must be the first of p")
    if line.label_index is not None and line.label_index != actions[0]:
        raise RejectedLine("_labelIndex: must be the first of a")
    return LoggedChoice.of(cost, actions, line.pmf, target_propensity=line.target_propensity)


def _slate(outcomes: Sequence[_SlotLine], n: int) -> list[LoggedChoice]:
    if not outcomes:
        raise RejectedLine("_outcomes: missing")
    slots: list[LoggedChoice] = []
    shown: set[int] = set()
    for outcome in outcomes:
        actions = outcome.actions if isinstance(outcome.actions, list) else [outcome.actions]
        pmf = outcome.pmf if isinstance(outcome.pmf, list) else [outcome.pmf]
        cost = _checked(outcome.cost, actions, pmf, n, names=("_a", "_p"))
        if actions[0] in shown:
            raise RejectedLine("_a: an action is shown twice")
        if any(probability and action in shown for action, probability in zip(actions, pmf, strict=True)):
            raise RejectedLine("_a: an action that is shown above could be drawn")
        # Some writers go on listing what is shown above, with probability 0.
        left = [place for place, action in enumerate(actions) if action not in shown]
        slots.append(
            LoggedChoice.of(
                cost,
                [actions[place] for place in left],
                [pmf[place] for place in left],
                target_propensity=outcome.target_propensity,
            )
        )
        shown.add(actions[0])
    return slots


def _checked(
    cost: float | None, actions: Sequence[int], pmf: Sequence[float], n: int, *, names: tuple[str, str]
) -> float:
    """Return the cost of a slot that can be used."""
    if cost is None:
        raise RejectedLine("_label_cost: missing")
    if not actions or not pmf:
        raise RejectedLine(f"{names[1] if actions else names[0]}: missing")
    if len(actions) != len(pmf):
        raise RejectedLine(f"{names[1]}: must be as long as {names[0]}")
    if min(actions) < 0 or max(actions) >= n or len(set(actions)) < len(actions):
        raise RejectedLine(f"{names[0]}: action outside the set")
    # What was not shown may have probability 0. JSON has no NaN.
    if min(pmf) < 0.0 or max(pmf) > 1.0:
        wrong = next(probability for probability in pmf if not 0.0 <= probability <= 1.0)
        raise RejectedLine(f"{names[1]}: " + ("above 1" if wrong > 1.0 else "below 0"))
    _check_propensity(names[1], pmf[0])
    return cost


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


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the number and bytes of every line that is not empty; `.gz` is unpacked on the way.

    Raises:
        LogRefused: the file cannot be read.
    """
    opened: Any = gzip.open if path.suffix == ".gz" else open
    row = 0
    try:
        with opened(path, "rb") as file:
            for row, line in enumerate(file, start=1):
                if line.strip():
                    yield row, line
    except (OSError, EOFError, zlib.error) as error:
        raise LogRefused(f"{path}: {error} (after line {row})") from error
