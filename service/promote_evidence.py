"""Bounds on how much better a model is than the one it would replace: off the log, or from a canary's live reward.

Both hold at every look, so that a gate may be asked again and again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from bandit.confidence_sequence import ConfidenceSequence
from service.retrain_figures import advantage
from service.retrain_scoring import ScoredSlots
from service.training_rows import Outcome


@dataclass(frozen=True, slots=True)
class Bounds:
    """A difference of mean rewards of a slot, with an interval that holds at every look.

    Attributes:
        n: Slots, or users, that it rests on.
        value: The estimate; 0 without any.
        low: Lower end.
        high: Upper end.
    """

    n: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return `+0.0120 in [+0.0031, +0.0210], n = 18000`."""
        return f"{self.value:+.4f} in [{self.low:+.4f}, {self.high:+.4f}], n = {self.n}"


def off_policy_bounds(scored: ScoredSlots, *, rewards_in: tuple[float, float], confidence: float) -> Bounds:
    """Return the one-slot value of a model minus that of the logging policy, on the same slots."""
    interval = advantage(scored, rewards_in=rewards_in, confidence=confidence).interval()
    value = float(((scored.weight - 1.0) * scored.reward).mean()) if len(scored.reward) else 0.0
    return Bounds(len(scored.reward), value, interval.lower, interval.upper)


@dataclass(slots=True)
class _Unit:
    """What one user was given within the first while of a canary."""

    began_ms: int
    is_canary: bool
    rewards: list[float] = field(default_factory=list)


def canary_difference(
    outcomes: Iterable[Outcome],
    *,
    canary_model: str,
    share: float,
    unit_ms: int,
    until_ms: int,
    rewards_in: tuple[float, float],
    confidence: float,
) -> Bounds:
    """Return mean reward under the canary minus that under the other model, of the same time.

    A user stays with one model, so rewards of one user are not independent: a user counts once, with the mean reward
    of the slots decided within `unit_ms` of the first one. Users whose while is not over yet wait.

    With A = 1 for canary users, drawn with probability s, E[(A / s - 1) y] is (1 - s) times the difference: the bound
    on an advantage whose weight is A / s.

    Args:
        outcomes: of both models on the surface since the canary began, in any order.
        canary_model: name of the model on trial.
        share: of the users that it got.
        unit_ms: the while.
        until_ms: decision time up to which every outcome is known.
        rewards_in: range of rewards.
        confidence: of both bounds.
    """
    units: dict[str, _Unit] = {}
    for outcome in sorted(outcomes, key=lambda o: (o.payload.decided_at_unix_ms, o.event_id, o.slot)):
        decision = outcome.payload
        who = decision.user_key or decision.event_id
        unit = units.setdefault(who, _Unit(decision.decided_at_unix_ms, decision.model == canary_model))
        if decision.decided_at_unix_ms < unit.began_ms + unit_ms:
            unit.rewards.append(outcome.reward)
    closed = [unit for unit in units.values() if unit.began_ms + unit_ms <= until_ms]
    is_canary = np.array([unit.is_canary for unit in closed], dtype=np.float64)
    means = np.clip(np.array([float(np.mean(unit.rewards)) for unit in closed], dtype=np.float64), *rewards_in)
    sequence = ConfidenceSequence(of_advantage=True, reward_range=rewards_in, confidence=confidence)
    interval = sequence.plus(weights=is_canary / share, rewards=means).interval()
    scale = 1.0 - share
    n_canary = int(is_canary.sum())
    value = 0.0
    if 0 < n_canary < len(closed):
        value = float(means[is_canary == 1.0].mean() - means[is_canary == 0.0].mean())
    return Bounds(len(closed), value, interval.lower / scale, interval.upper / scale)
