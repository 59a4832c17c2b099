"""An interval that holds at every look at once, for gates that look again and again (promotion, rollback).

A bettor doubts that the mean of X >= 0 is as low as m. Betting the share c of the wealth on each row multiplies it by
(1 - c) + c X / m, whose mean is at most 1 when the doubt is wrong; the wealth then reaches 1 / alpha with probability
at most alpha, ever (Ville). The lower bound is the largest m that wealth 1 / alpha has refuted. Nothing is assumed of
the largest weight. The wealth here is spread over a fixed grid of shares, so the order of the rows does not matter.

Sources: Waudby-Smith and Ramdas 2024 (betting); Karampatziakis, Mineiro and Ramdas 2021 (off-policy, no largest
weight); Waudby-Smith, Wu, Ramdas, Karampatziakis and Mineiro 2022.

Why not `vw-estimators`' `cs`: its wealth is a bound on this one (its intervals are wider), it is a Python loop over
rows, and its centre (sum X + 1/2) / (t + 1) may exceed 1, which the proof behind it does not cover.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from bandit.estimators import check_column, check_weights
from bandit.intervals import Interval
from bandit.support import Float64Array

Int64Array = npt.NDArray[np.int64]

# Shares of the wealth that are bet, from timid (for long logs) to bold; equal wealth starts on each.
SHARES = np.concatenate([2.0 ** -np.arange(16, 0, -1), [0.75]])
# X is rounded down to 13 significant bits: at most 0.025% lower, on the safe side, and exact for 0 and 1.
DROPPED_BITS = 40
SMALLEST_MEAN = 1e-12


@dataclass(frozen=True, slots=True)
class Tally:
    """How often each rounded value of X was seen: all that the wealth against any m depends on.

    Attributes:
        keys: int64 [u], leading bits of the float64, ascending.
        counts: int64 [u].
    """

    keys: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))

    def plus(self, values: Float64Array) -> Tally:
        """Return the tally with more values, float64 [n] >= 0."""
        # Positive floats are ordered as their bits, so cutting low bits rounds down. abs() takes the sign of -0.0 away.
        keys, counts = np.unique(np.abs(values).view(np.int64) >> DROPPED_BITS, return_counts=True)
        merged, where = np.unique(np.concatenate([self.keys, keys]), return_inverse=True)
        total = np.zeros(len(merged), np.int64)
        np.add.at(total, where, np.concatenate([self.counts, counts]))
        return Tally(merged, total)

    def values(self) -> Float64Array:
        """Return float64 [u], the rounded values."""
        return (self.keys << DROPPED_BITS).view(np.float64)

    def lower_bound(self, alpha: float) -> float:
        """Return the largest mean that is refuted with error probability `alpha`, 0 when none is."""
        values, goal = self.values(), math.log(1.0 / alpha)
        if not values.any():
            return 0.0

        def excess(mean: float) -> float:
            gains = np.log1p(SHARES[:, None] * (values / mean - 1.0)) @ self.counts
            return float(np.logaddexp.reduce(gains)) - math.log(len(SHARES)) - goal

        # At the sample mean no bettor has gained (Jensen), and less is refuted the higher the mean.
        highest = float(values @ self.counts / self.counts.sum())
        if highest <= SMALLEST_MEAN or excess(SMALLEST_MEAN) <= 0.0:
            return 0.0
        return float(brentq(excess, SMALLEST_MEAN, highest, xtol=1e-10))


@dataclass(frozen=True, slots=True)
class ConfidenceSequence:
    """Bounds on a policy's value, or on its advantage over the logging policy, that hold at every look.

    For any fixed threshold, the probability that `lower` ever exceeds it while the mean value of the rows so far does
    not is at most (1 - confidence) / 2; the same holds for `upper`. Values may drift. Weights and rewards must be
    right on average given everything before them; rows of one user may depend on each other through that past. Slots
    of one slate may not: the reward of an early slot can hang on what stood in a later one. `units` makes one row of
    them.

        gate = ConfidenceSequence(of_advantage=True)
        gate = gate.plus(weights=weights, rewards=rewards)   # after each batch
        promote = gate.interval().lower > 0.0                 # may be asked at any time

    Attributes:
        of_advantage: Bound V(pi) - V(mu), from the same rows, in place of V(pi).
        reward_range: Lowest and highest possible reward of one row.
        confidence: Of both bounds together.
        n: Rows so far, or units.
        low: Tally for the lower bound.
        high: Tally for the upper bound.
    """

    of_advantage: bool = False
    reward_range: tuple[float, float] = (0.0, 1.0)
    confidence: float = 0.95
    n: int = 0
    low: Tally = field(default_factory=Tally)
    high: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        """Refuse an empty range of rewards or a confidence outside (0, 1).

        Raises:
            ValueError: saying which.
        """
        if not self.reward_range[0] < self.reward_range[1]:
            raise ValueError(f"reward_range must be (lowest, highest), got {self.reward_range}")
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence must be in (0, 1), got {self.confidence}")

    def plus(
        self, *, weights: Float64Array, rewards: Float64Array, units: Int64Array | None = None
    ) -> ConfidenceSequence:
        """Return the sequence after more rows.

        Args:
            weights: float64 [n], w = pi/mu of one slot.
            rewards: float64 [n].
            units: int64 [n], which rows count as one, with the mean of their X; all rows of a unit come in one call.
                The bounds are then on the mean over units.

        Raises:
            ValueError: a weight is below 0 or a reward outside the range.
        """
        lowest, highest = self.reward_range
        check_column("rewards", rewards, shape=weights.shape)
        check_column("weights", weights, shape=weights.shape)
        if not len(weights):
            return self
        check_weights("weights", weights)
        if rewards.min() < lowest or rewards.max() > highest:
            raise ValueError(f"rewards must be in [{lowest}, {highest}], got {rewards.min()} to {rewards.max()}")
        scaled = (rewards - lowest) / (highest - lowest)
        # Both X are at least 0 whatever the weight: w r and w (1 - r), or 1 + (w - 1) r and 1 + (w - 1) (1 - r).
        bet, shift = (weights - 1.0, 1.0) if self.of_advantage else (weights, 0.0)
        low, high = shift + bet * scaled, shift + bet * (1.0 - scaled)
        if units is not None:
            _, of_unit = np.unique(units, return_inverse=True)
            n_rows = np.bincount(of_unit)
            low, high = (np.bincount(of_unit, weights=x) / n_rows for x in (low, high))
        return replace(self, n=self.n + len(low), low=self.low.plus(low), high=self.high.plus(high))

    def interval(self) -> Interval:
        """Return the bounds after the rows so far; they may be read at any time and acted on.

        For rare rewards the lower bound is the tight one: the upper bound has the variance of w (1 - r). Bounds that
        cross refute the weights themselves, and the note says so.
        """
        lowest, highest = self.reward_range
        alpha = (1.0 - self.confidence) / 2.0
        # The mean of X less this, in units of the range, is the value, or the advantage.
        start, least = (1.0, -1.0) if self.of_advantage else (0.0, 0.0)
        lower = self.low.lower_bound(alpha) - start
        upper = 1.0 - self.high.lower_bound(alpha)
        note = "the weights cannot be right: the bounds cross" if lower > upper else ""
        width, offset = highest - lowest, 0.0 if self.of_advantage else lowest
        lower, upper = (offset + width * min(1.0, max(least, bound)) for bound in (lower, upper))
        return Interval(lower, upper, self.confidence, "confidence sequence", note)
