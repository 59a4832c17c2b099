"""Bounds beside the panel, from sums over batches: those of one look and those of every look; of single actions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from bandit.confidence_sequence import ConfidenceSequence
from bandit.intervals import Interval, Moments, bernstein_of_moments, clopper_pearson_of_counts
from bandit.support import Float64Array
from simulators.logged.batches import LoggedBatch


@dataclass(slots=True)
class BoundSums:
    """What bounds need of a log: sums that add up over its batches.

    A confidence sequence holds when rewards are in [0, 1], whoever the rows are of. Empirical Bernstein and
    Clopper-Pearson also need rows that do not depend on each other, as those of one user do, and those of a policy that
    learns on the way. Empirical Bernstein needs the largest weight that was possible, too: the largest one seen is no
    bound. It is then around the mean value over the contexts that came.

    Attributes:
        value: Of the target policy, at any look.
        advantage: Of the target policy over the log, at any look.
        terms: Moments of w r.
        max_weight: The largest that a row could have had, infinite when one is not known.
        n_yes: Rewards of 1.
        are_counts: Whether every reward was 0 or 1.
        are_actions: Whether rows are single actions with rewards in [0, 1].
        are_independent: Whether all rows can be taken for independent.
    """

    value: ConfidenceSequence = field(default_factory=ConfidenceSequence)
    advantage: ConfidenceSequence = field(default_factory=lambda: ConfidenceSequence(of_advantage=True))
    terms: Moments = field(default_factory=Moments)
    max_weight: float = 0.0
    n_yes: int = 0
    are_counts: bool = True
    are_actions: bool = True
    are_independent: bool = True

    def add(self, batch: LoggedBatch, *, position_weights: Float64Array) -> None:
        """Take in a batch."""
        rewards = batch.rewards[:, 0] * position_weights[0]
        if batch.rewards.shape[1] > 1 or rewards.min() < 0.0 or rewards.max() > 1.0:
            self.are_actions = False
        if not self.are_actions:
            return
        weights = batch.weights[:, 0] * batch.discovery_weights
        self.value = self.value.plus(weights=weights, rewards=rewards)
        self.advantage = self.advantage.plus(weights=weights, rewards=rewards)
        self.terms += Moments.of(weights * rewards)
        largest = math.inf if batch.max_weights is None else float(batch.max_weights.max())
        self.max_weight = max(self.max_weight, largest)
        n_yes, n_no = (int(np.count_nonzero(rewards == answer)) for answer in (1.0, 0.0))
        self.n_yes += n_yes
        self.are_counts &= n_yes + n_no == len(rewards)
        self.are_independent &= batch.are_independent

    def intervals(self) -> dict[str, Interval]:
        """Return the bounds that hold, by what they are around.

        Raises:
            ValueError: a weight was larger than any that was possible.
        """
        if not self.are_actions:
            return {}
        found = {
            "value at any look": self.value.interval(),
            "advantage over the log at any look": self.advantage.interval(),
        }
        if not self.are_independent or self.terms.n < 2:
            return found
        if math.isfinite(self.max_weight):
            found["value at this look"] = bernstein_of_moments(self.terms, term_range=(0.0, self.max_weight))
        if self.are_counts:
            found["value of the log's own policy"] = clopper_pearson_of_counts(self.n_yes, self.terms.n)
        return found

    def notes(self) -> Iterator[str]:
        """Yield why a bound is left out that somebody may look for."""
        if self.are_actions and not self.are_independent:
            yield (
                "empirical Bernstein and Clopper-Pearson are left out: rows of one user, and of a policy that learns "
                "or changes, depend on each other"
            )
        elif self.are_actions and not math.isfinite(self.max_weight):
            yield (
                "empirical Bernstein is left out: the largest weight that was possible is not known; where the log "
                "does not say it, give the lowest propensity that the logging policy could have (--floor)"
            )
