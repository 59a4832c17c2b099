"""Whether one model is better than another, from logged or live rewards, valid however often one looks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

# Stakes of the bettors, as shares of the largest that cannot go bankrupt; their mean wealth is what counts.
_STAKES = np.geomspace(1e-4, 0.9, 24)
_PRECISION = 1e-4


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference of two mean rewards, scaled to [-1, 1], with an anytime-valid interval.

    Attributes:
        n: Decisions or users that it rests on.
        mean: The estimate.
        lower: Lower end of the confidence sequence.
        upper: Upper end.
        alpha: Probability that either end is ever wrong, in (0, 1).
    """

    n: int
    mean: float
    lower: float
    upper: float
    alpha: float


def lower_bound(values: Float64Array, *, alpha: float) -> float:
    """Return a lower bound of the mean of values >= -1, wrong at any time with probability at most alpha.

    A value m is ruled out once betting against "the mean is at most m" has multiplied its money by 1 / alpha at any
    time so far. Nothing is assumed about how large values get, so heavy importance weights need no bound.

    Args:
        values: float64 [n] in the order they came.
        alpha: in (0, 1).

    Source: Waudby-Smith and Ramdas (2024); Karampatziakis, Mineiro and Ramdas (2021).
    """
    if len(values) == 0 or not _rules_out(values, -1.0 + _PRECISION, alpha):
        return -1.0
    low, high = -1.0, max(float(values.mean()), -1.0 + _PRECISION)
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if _rules_out(values, middle, alpha) else (low, middle)
    return low


def _rules_out(values: Float64Array, mean: float, alpha: float) -> bool:
    stakes = _STAKES / (1.0 + mean)
    wealth = np.cumsum(np.log1p(stakes[:, None] * (values - mean)), axis=1)
    highest = wealth.max(axis=0)
    total = highest + np.log(np.exp(wealth - highest).mean(axis=0))
    return bool(total.max() >= -np.log(alpha))
