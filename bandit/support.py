"""Say whether a log supports a target policy: effective sample size, weights, and the reason for a refusal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

MIN_ESS = 100.0
MAX_STANDARD_ERRORS = 3.0
# Rounding of logged float32 propensities; without it a log evaluated on its own policy could be refused.
WEIGHT_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Support:
    """Sums of the importance weights of a log, which add up over its parts.

    Attributes:
        n: Rows.
        weight_sum: Sum of the weights.
        weight_square_sum: Sum of their squares.
        max_weight: The largest.
        n_clipped: Rows whose weight the estimator cut, switched off or shrank to less than half.
    """

    n: int
    weight_sum: float
    weight_square_sum: float
    max_weight: float
    n_clipped: int

    @classmethod
    def of(cls, weights: Float64Array, *, clip: float = math.inf) -> Support:
        """Sum up weights.

        Args:
            weights: float64 [n], at least one.
            clip: weights above it count as clipped.
        """
        return cls(
            n=len(weights),
            weight_sum=float(weights.sum()),
            weight_square_sum=float(weights @ weights),
            max_weight=float(weights.max()),
            n_clipped=int(np.count_nonzero(weights > clip)),
        )

    def __add__(self, other: Support) -> Support:
        return Support(
            n=self.n + other.n,
            weight_sum=self.weight_sum + other.weight_sum,
            weight_square_sum=self.weight_square_sum + other.weight_square_sum,
            max_weight=max(self.max_weight, other.max_weight),
            n_clipped=self.n_clipped + other.n_clipped,
        )

    @property
    def ess(self) -> float:
        """Return Kish's effective sample size (sum w)^2 / sum w^2; 0 when every weight is 0."""
        return self.weight_sum**2 / self.weight_square_sum if self.weight_square_sum else 0.0

    @property
    def mean_weight(self) -> float:
        """Return the mean weight. Its expectation is 1 when the log supports all that the target policy does."""
        return self.weight_sum / self.n

    @property
    def mean_weight_se(self) -> float:
        """Return the standard error of the mean weight; infinite for one row."""
        if self.n < 2:
            return math.inf
        # Rounding may push the difference of nearly equal sums below 0.
        spread = max(0.0, self.weight_square_sum - self.n * self.mean_weight**2)
        return math.sqrt(spread / (self.n - 1) / self.n)

    @property
    def clipped_share(self) -> float:
        """Return the share of rows whose weight was clipped."""
        return self.n_clipped / self.n

    @property
    def refusal(self) -> str | None:
        """Return why no estimate may be read from this log, None when it may.

        An ESS below 100 leaves too little to average. A mean weight more than three standard errors from 1 says that
        the target policy does what was never logged, or that the propensities are wrong.
        """
        if self.ess < MIN_ESS:
            return (
                f"effective sample size must be at least {MIN_ESS:.0f}, got {self.ess:,.1f} of {self.n:,} rows "
                f"(largest weight {self.max_weight:,.0f})"
            )
        if abs(self.mean_weight - 1.0) > MAX_STANDARD_ERRORS * self.mean_weight_se + WEIGHT_ROUNDING:
            return (
                f"mean weight must be within {MAX_STANDARD_ERRORS:.0f} standard errors of 1, got "
                f"{self.mean_weight:.4f} with standard error {self.mean_weight_se:.4f}"
            )
        return None

    def figures(self) -> dict[str, float]:
        """Return what is shown beside every estimate."""
        return {
            "n": self.n,
            "ess": self.ess,
            "max_weight": self.max_weight,
            "mean_weight": self.mean_weight,
            "mean_weight_se": self.mean_weight_se,
            "clipped_share": self.clipped_share,
        }


def refusal_of(supports: Sequence[Support]) -> str | None:
    """Return why an estimate on these supports, one per slot, must not be used, None when it may be."""
    for slot, support in enumerate(supports):
        if reason := support.refusal:
            return reason if len(supports) == 1 else f"{reason} (slot {slot})"
    return None
