"""Bounds on how much better a model is than the one it would replace: off the log, or from a canary's live reward.

Both hold at every look, so that a gate may be asked again and again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from bandit.confidence_sequence import ConfidenceSequence
from service.config import Canary
from service.retrain_figures import advantage, mean_advantage
from service.retrain_scoring import ScoredSlots


@dataclass(frozen=True, slots=True)
class Bounds:
    """A difference of mean rewards of a slot, with an interval that holds at every look.

    Attributes:
        n: Decisions, or users, that it rests on.
        value: The estimate; 0 without any.
        low: Lower end.
        high: Upper end. Below the lower end, the weights cannot be right, and the bounds say nothing.
    """

    n: int
    value: float
    low: float
    high: float

    @property
    def is_better(self) -> bool:
        """Return whether the difference is above 0."""
        return 0.0 < self.low <= self.high

    @property
    def is_worse(self) -> bool:
        """Return whether the difference is below 0."""
        return self.low <= self.high < 0.0

    def __str__(self) -> str:
        """Return `+0.0120 in [+0.0031, +0.0210], n = 18000`."""
        return f"{self.value:+.4f} in [{self.low:+.4f}, {self.high:+.4f}], n = {self.n}"


def shared_confidence(confidence: float, *, share: float = 1.0) -> float:
    """Return at which confidence each bound must hold, so that all that may promote hold together with `confidence`.

    A model may be promoted off the log and by its canary, and the best of several is the one that luck helped most.

    Args:
        confidence: of all together.
        share: of the error on the log, for a bound off it.
    """
    return 1.0 - (1.0 - confidence) / 2.0 * share


def off_policy_bounds(scored: ScoredSlots, *, rewards_in: tuple[float, float], confidence: float) -> Bounds:
    """Return the one-slot value of a model minus that of the logging policy, on the same slots."""
    interval = advantage(scored, rewards_in=rewards_in, confidence=confidence).interval()
    value = mean_advantage(scored) if len(scored.reward) else 0.0
    return Bounds(len(np.unique(scored.decision)), value, interval.lower, interval.upper)


class RewardedSlot(NamedTuple):
    """What a drawn slot earned, and for whom.

    Attributes:
        decided_at_ms: Time of its decision.
        who: The user's key, or the event id of an anonymous user.
        model: That scored.
        reward: Of the slot.
    """

    decided_at_ms: int
    who: str
    model: str
    reward: float


@dataclass(slots=True)
class _Unit:
    """What one user was given within the first while of a canary; nothing of what came later is kept."""

    began_ms: int
    is_canary: bool
    rewards: list[tuple[int, float]] = field(default_factory=list)

    def add(self, slot: RewardedSlot, *, is_canary: bool, unit_ms: int) -> None:
        """Add a slot that is within the while; one that is earlier than all begins it anew."""
        if slot.decided_at_ms < self.began_ms:
            self.began_ms, self.is_canary = slot.decided_at_ms, is_canary
            self.rewards = [kept for kept in self.rewards if kept[0] < self.began_ms + unit_ms]
        if slot.decided_at_ms < self.began_ms + unit_ms:
            self.rewards.append((slot.decided_at_ms, slot.reward))

    def mean(self) -> float:
        """Return the mean reward."""
        return sum(reward for _, reward in self.rewards) / len(self.rewards)


def canary_difference(
    slots: Iterable[RewardedSlot],
    *,
    canary: Canary,
    until_ms: int,
    rewards_in: tuple[float, float],
    confidence: float,
) -> Bounds:
    """Return mean reward under the canary minus that under the other model, of the same time.

    A user stays with one model, so rewards of one user are not independent: a user counts once, with the mean reward
    of the slots decided within the canary's `unit_s` of the first one. Users whose while is not over yet wait.

    With A = 1 for canary users, drawn with probability s, E[(A / s - 1) y] is (1 - s) times the difference: the bound
    on an advantage whose weight is A / s.

    Args:
        slots: of both models on the surface since the canary began, in any order.
        canary: on trial.
        until_ms: decision time up to which every outcome is known.
        rewards_in: range of rewards.
        confidence: of both bounds.
    """
    unit_ms = int(canary.unit_s * 1000)
    units: dict[str, _Unit] = {}
    for slot in slots:
        is_canary = slot.model == canary.model
        if slot.who not in units:
            units[slot.who] = _Unit(slot.decided_at_ms, is_canary)
        units[slot.who].add(slot, is_canary=is_canary, unit_ms=unit_ms)
    closed = [unit for unit in units.values() if unit.began_ms + unit_ms <= until_ms]
    in_canary = np.array([unit.is_canary for unit in closed], dtype=np.float64)
    means = np.clip(np.array([unit.mean() for unit in closed], dtype=np.float64), *rewards_in)
    sequence = ConfidenceSequence(of_advantage=True, reward_range=rewards_in, confidence=confidence)
    interval = sequence.plus(weights=in_canary / canary.share, rewards=means).interval()
    scale = 1.0 - canary.share
    n_canary = int(in_canary.sum())
    value = 0.0
    if 0 < n_canary < len(closed):
        value = float(means[in_canary == 1.0].mean() - means[in_canary == 0.0].mean())
    return Bounds(len(closed), value, interval.lower / scale, interval.upper / scale)
