"""Set the live rate of a surface from its own log, within bounds and a budget, or refuse when the log cannot tell.

In a slot, exploring with probability e gives V(e) = (1 - e) V_greedy + e V_explore, so what is given up is
V(0) - V(e) = e (V_greedy - V_explore): linear in e. The log says which slots the greedy part of the mixture filled; it
does so with probability 1 - e whatever the context, so that the weight 1 / (1 - e) on those slots gives V_greedy, and
its advantage over the log is what is given up at the rate of now. A slot is taken as it stands, after the slots before
it as they were logged: what exploring in one slot does to the others is not in it. Where people leave after a bad slot
that is too little; where a displaced item comes a slot later it is too much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from bandit.confidence_sequence import ConfidenceSequence
from bandit.intervals import Interval
from service.adapters.archive_files import read_rows, reading
from service.adapters.parquet_archive import archived_position
from service.config import SurfaceConfig
from service.journal_reader import entry_order
from service.messages import ConfigOverride

REASON = "hone tune --live"
# Workers follow a change within a second.
_FOLLOWED_MS = 5_000
# A change by less than this share of the rate is none.
_DEAD_BAND = 0.05
_BY_CHANCE = 1e-6
_OUTCOME_COLUMNS = ["event_id", "surface", "reward", "kind", "branch", "decided_at_unix_ms"]

Word = Literal["raise", "lower", "keep", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Terms:
    """What an operator allows.

    Attributes:
        budget: Largest share of the greedy policy's reward that may be given up.
        low: Lowest rate.
        high: Highest rate.
        confidence: With which everything ever set keeps to the budget.
    """

    budget: float
    low: float
    high: float
    confidence: float = 0.95

    def __post_init__(self) -> None:
        """Refuse terms that cannot be met.

        Raises:
            ValueError: saying which.
        """
        if not 0.0 < self.budget < 1.0:
            raise ValueError(f"budget must be in (0, 1), got {self.budget}")
        if not 0.0 < self.low <= self.high < 1.0:
            raise ValueError(f"bounds must be 0 < low <= high < 1, got {self.low} and {self.high}")
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence must be in (0, 1), got {self.confidence}")

    def of_change(self, n_before: int) -> float:
        """Return the confidence for the next change: errors of all changes, however many, add up to what is allowed."""
        return 1.0 - (1.0 - self.confidence) / ((n_before + 1) * (n_before + 2))


@dataclass(frozen=True, slots=True)
class Branches:
    """Drawn slots of a log, all decided at one rate.

    Attributes:
        decision: int64 [m], which decision a slot belongs to, from 0 without gaps.
        is_greedy: bool [m], whether the greedy part of the mixture filled it.
        reward: float64 [m].
    """

    decision: npt.NDArray[np.int64]
    is_greedy: npt.NDArray[np.bool_]
    reward: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.reward)


@dataclass(frozen=True, slots=True)
class RateEvidence:
    """What decisions under one rate say.

    Attributes:
        rate: Of the log.
        n: Decisions.
        greedy: Bounds on the reward of a slot that is filled greedily.
        given_up: Bounds on what the rate gives up of it.
        estimates: Point estimates of both.
        n_slots: Drawn slots.
        n_greedy: Of them, those that the greedy part filled.
    """

    rate: float
    n: int
    greedy: Interval
    given_up: Interval
    estimates: tuple[float, float]
    n_slots: int
    n_greedy: int

    @property
    def contradicts_rate(self) -> bool:
        """Return whether as many greedy slots, or as few, come by chance less than once in a million logs."""
        if not self.n_slots:
            return False
        return float(binomtest(self.n_greedy, self.n_slots, 1.0 - self.rate).pvalue) < _BY_CHANCE


@dataclass(frozen=True, slots=True)
class RateChange:
    """What to do.

    Attributes:
        word: raise, lower, keep, or that the log cannot tell.
        rate: The rate to set; that of now unless it is to change.
        reason: For the audit entry.
    """

    word: Word
    rate: float
    reason: str

    @property
    def changes(self) -> bool:
        """Return whether something is to be set."""
        return self.word in ("raise", "lower")


def weigh(slots: Branches, *, rate: float, rewards_in: tuple[float, float], confidence: float) -> RateEvidence:
    """Bound the reward of greedy slots and what exploring gives up; a decision counts once.

    Args:
        slots: Of decisions that were all made at `rate`.
        rate: Above 0 and below 1.
        rewards_in: Range of rewards; what is outside is cut.
        confidence: With which all bounds hold together, at every look.

    Raises:
        ValueError: nothing is explored, or nothing else is.
    """
    if not 0.0 < rate < 1.0:
        raise ValueError(
            f"rate must be in (0, 1), got {rate}: without both, greedy and explored slots, nothing is seen"
        )
    weights = slots.is_greedy / (1.0 - rate)
    rewards = np.clip(slots.reward, *rewards_in)
    each = 1.0 - (1.0 - confidence) / 2.0
    value = ConfidenceSequence(reward_range=rewards_in, confidence=each)
    advantage = ConfidenceSequence(of_advantage=True, reward_range=rewards_in, confidence=each)
    if not len(slots):
        return RateEvidence(rate, 0, value.interval(), advantage.interval(), (0.0, 0.0), 0, 0)
    value, advantage = (one.plus(weights=weights, rewards=rewards, units=slots.decision) for one in (value, advantage))
    n_slots = np.bincount(slots.decision)
    means = [
        float((np.bincount(slots.decision, weights=w * rewards) / n_slots).mean()) for w in (weights, weights - 1.0)
    ]
    return RateEvidence(
        rate=rate,
        n=len(n_slots),
        greedy=value.interval(),
        given_up=advantage.interval(),
        estimates=(means[0], means[1]),
        n_slots=len(slots),
        n_greedy=int(np.count_nonzero(slots.is_greedy)),
    )


def choose_rate(found: RateEvidence, terms: Terms) -> RateChange:
    """Return the highest rate within the bounds that keeps to the budget for sure, or why the log cannot tell.

    A rate that is shown to be within the budget is raised to what is shown to be; one that is shown to be over it is
    lowered; one of which neither is shown stays.
    """
    rate, greedy, given_up = found.rate, found.greedy, found.given_up
    if found.contradicts_rate or given_up.lower > given_up.upper or greedy.lower > greedy.upper:
        share = f"{found.n_greedy:,} of {found.n_slots:,} slots are greedy, at a rate of {rate:g}"
        return RateChange("cannot tell", rate, f"the logged branches cannot be right: {share}")
    if greedy.lower <= 0.0:
        return RateChange("cannot tell", rate, f"no reward is shown yet in {found.n:,} decisions")
    most = terms.budget * greedy.lower
    allowed = math.inf if given_up.upper <= 0.0 else most * rate / given_up.upper
    said = (
        f"at rate {rate:g}, {found.n:,} decisions give up {given_up.lower:+.5f} to {given_up.upper:+.5f} of "
        f"{greedy.lower:.4f} to {greedy.upper:.4f} a slot; budget {terms.budget:.2%}"
    )
    if given_up.lower > terms.budget * greedy.upper:
        lowered = min(rate, max(terms.low, min(allowed, terms.high)))
        note = "" if allowed >= terms.low else f"; not even the lowest rate {terms.low:g} is shown to be within it"
        return RateChange("lower" if lowered < rate else "keep", lowered, said + note)
    if allowed >= rate:
        raised = max(min(allowed, terms.high), terms.low)
        if raised > rate * (1.0 + _DEAD_BAND):
            return RateChange("raise", _rounded_down(raised, terms), said)
        if rate > terms.high:
            return RateChange("lower", terms.high, f"{said}; the rate was above its bounds")
        return RateChange("keep", rate, said)
    return RateChange("cannot tell", rate, f"{said}; {_wait(found, terms)}")


def _rounded_down(rate: float, terms: Terms) -> float:
    """Return a rate with four decimals that is no higher, within the bounds."""
    return max(terms.low, math.floor(rate * 1e4) / 1e4)


def _wait(found: RateEvidence, terms: Terms) -> str:
    """Say about how many more decisions it would take; a bound's width shrinks as one over the root of their number."""
    value, given_up = found.estimates
    distance = abs(terms.budget * value - given_up)
    width = max(found.given_up.upper - given_up, given_up - found.given_up.lower)
    width += terms.budget * (found.greedy.upper - found.greedy.lower)
    if distance <= 0.0:
        return "what is given up is the budget itself, which no log can tell from either side"
    more = found.n * max(0.1, (width / distance) ** 2 - 1.0)
    return f"about {more:,.0f} more decisions would tell" if more < 1e9 else "no log of any size would tell"


def began_at(history: Sequence[ConfigOverride], surface: str) -> int:
    """Return when the surface's exploration, or a part of it, was last changed; 0 when it never was."""
    key = f"surfaces.{surface}.exploration"
    return max((one.at_unix_ms for one in history if one.key == key or one.key.startswith(f"{key}.")), default=0)


def n_changes(history: Sequence[ConfigOverride], surface: str) -> int:
    """Return how often this mode has set the surface's rate."""
    key = f"surfaces.{surface}.exploration.rate"
    return sum(one.key == key and one.reason.startswith(REASON) for one in history)


def settled_until(folder: Path, *, n_partitions: int, surface: SurfaceConfig) -> int:
    """Return up to which decision time every outcome is in the archive, in unix milliseconds."""
    archived_ms = min(entry_order(archived_position(folder, p))[0] for p in range(n_partitions))
    return archived_ms - int(surface.reward.negative_window_s * 1000)


def read_branches(folder: Path, surface: str, *, rate: float, from_ms: int, until_ms: int) -> Branches:
    """Return the drawn slots of a surface's decisions at a rate, decided within a time.

    Args:
        folder: Of the archive.
        surface: Which one.
        rate: Decisions at another one, such as of workers that had not followed yet, are left out.
        from_ms: When the rate was set.
        until_ms: See `settled_until`.
    """
    from_ms = from_ms + _FOLLOWED_MS if from_ms else 0
    with reading(folder):
        number = {event_id: n for n, event_id in enumerate(_decided_at(folder, surface, rate=rate, from_ms=from_ms))}
        rows = [
            (number[row["event_id"]], row["branch"] == "greedy", row["reward"])
            for row in _outcomes(folder, surface, from_ms, until_ms)
            if row["event_id"] in number
        ]
    decision, is_greedy, reward = np.array(rows, dtype=np.float64).reshape(len(rows), 3).T
    _, without_gaps = np.unique(decision, return_inverse=True)
    return Branches(without_gaps.astype(np.int64), is_greedy.astype(np.bool_), reward)


def _decided_at(folder: Path, surface: str, *, rate: float, from_ms: int) -> Iterator[str]:
    rows = read_rows(folder, "decisions", ["event_id", "surface", "explore_rate"], from_ms=from_ms)
    return (row["event_id"] for _, row in rows if row["surface"] == surface and row["explore_rate"] == rate)


def _outcomes(folder: Path, surface: str, from_ms: int, until_ms: int) -> Iterator[dict[str, Any]]:
    for _, row in read_rows(folder, "outcomes", _OUTCOME_COLUMNS, from_ms=from_ms):
        if row["surface"] == surface and row["kind"] != "late" and from_ms <= row["decided_at_unix_ms"] < until_ms:
            yield row
