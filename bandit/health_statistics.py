"""Statistics of the health watch: control charts, diversity and drift. Pure functions of counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import special

Float64Array = npt.NDArray[np.float64]

# Weight of the newest interval in a moving average: a lasting change shows whole within twenty intervals.
EWMA_WEIGHT = 0.1
# Probability that a chart in control is out of its limits at one look. A look a minute, for a year: 0.16 at the most.
FALSE_ALARM = 3e-7
# A significant change smaller than this share of the centre is not worth waking anybody.
SMALLEST_CHANGE = 0.05
# With fewer intervals to compare with, their spread is not known well enough.
MIN_REFERENCE = 30
# Standard errors at which two branches are said to differ, once an alarm is raised.
_COMPARED_AT = 3.0
# Bins of a feature that are compared one by one; the rarer ones are one bin.
_MAX_BINS = 20


class Moments(msgspec.Struct):
    """Sums over observations.

    Attributes:
        n: Observations.
        total: Sum of them.
        squares: Sum of their squares.
    """

    n: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Add one observation."""
        self.n += 1.0
        self.total += value
        self.squares += value * value

    def merge(self, other: Moments) -> None:
        """Add the observations of another."""
        self.n += other.n
        self.total += other.total
        self.squares += other.squares


@dataclass(frozen=True, slots=True)
class Chart:
    """An exponentially weighted moving average and what it should be.

    Attributes:
        value: The average now.
        center: The mean of the reference.
        sd: Standard error of value - center.
        n_sds: Standard errors below the center that make an alarm.
        n_sds_rise: The same above it; more, since counts of rare events have a long upper tail.
    """

    value: float
    center: float
    sd: float
    n_sds: float
    n_sds_rise: float

    @property
    def lower(self) -> float:
        """Return the limit below which the value has fallen."""
        return self.center - max(self.n_sds * self.sd, SMALLEST_CHANGE * abs(self.center))

    @property
    def upper(self) -> float:
        """Return the limit above which the value has risen."""
        return self.center + max(self.n_sds_rise * self.sd, SMALLEST_CHANGE * abs(self.center))


def build_chart(reference: Sequence[Moments], recent: Sequence[Moments]) -> Chart | None:
    """Return the EWMA of recent interval means against an earlier reference, None with too little of either.

    z = mu + sum_i w_i (x_i - mu), w_i = weight (1 - weight)^(k - i), over the k recent intervals, oldest first
    Var(z - mu) = phi s^2 (sum_i w_i^2 / n_i + (sum_i w_i)^2 / N)

    mu and s^2 are mean and variance of the N observations of the m reference intervals. phi >= 1 is the variance of
    their standardised interval means: where means vary more than chance allows (hours of the day, users who come
    again), limits widen, as in Laney's p' chart. The limit is Student's quantile of m - 1 degrees of freedom, since the
    spread is estimated; above the center it is widened by as much as a gamma law of the same mean and variance has a
    longer tail than the normal one. Each look at a chart in control is out with probability FALSE_ALARM, so that within
    n looks it is with at most n times that (union bound).

    Source: Roberts (1959); Lucas and Saccucci (1990); Laney (2002), Quality Engineering 14.
    """
    sizes, means, squares = _columns(reference)
    recent_sizes, recent_means, _ = _columns(recent)
    if len(sizes) < MIN_REFERENCE or not len(recent_sizes):
        return None
    n = sizes.sum()
    center = float((sizes * means).sum() / n)
    variance = float(squares.sum() / n) - center * center
    if variance <= 1e-12:
        return None
    standardised = (means - center) * np.sqrt(sizes / variance)
    spread = max(1.0, float(np.square(standardised).sum()) / (len(sizes) - 1))
    weights = EWMA_WEIGHT * (1.0 - EWMA_WEIGHT) ** np.arange(len(recent_sizes) - 1, -1, -1)
    error = (np.square(weights) / recent_sizes).sum() + weights.sum() ** 2 / n
    sd = math.sqrt(spread * variance * float(error))
    n_sds = -float(special.stdtrit(len(sizes) - 1, FALSE_ALARM))
    return Chart(
        value=center + float(weights @ (recent_means - center)),
        center=center,
        sd=sd,
        n_sds=n_sds,
        n_sds_rise=n_sds * _upper_tail(center / sd),
    )


def _upper_tail(mean_in_sds: float) -> float:
    """Return how much further out a gamma law's upper quantile is than the normal one's, in standard deviations."""
    if mean_in_sds <= 0.0:
        return 1.0
    shape = mean_in_sds * mean_in_sds
    quantile = (float(special.gammainccinv(shape, FALSE_ALARM)) - shape) / mean_in_sds
    return max(1.0, quantile / -float(special.ndtri(FALSE_ALARM)))


def _columns(moments: Sequence[Moments]) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return sizes, means and sums of squares of the intervals that have observations."""
    kept = np.array([(m.n, m.total / m.n, m.squares) for m in moments if m.n], dtype=np.float64).reshape(-1, 3)
    return kept[:, 0], kept[:, 1], kept[:, 2]


def blame(greedy: Chart, control: Chart | None) -> str:
    """Say why the greedy reward fell: `model`, `traffic`, or `unclear` when the control has too few slots to tell.

    The control are slots drawn uniformly from all that was allowed: they see the same users and the same catalogue, and
    no model has a say in them. Had the traffic changed, their reward would have fallen in the same proportion; the
    difference to that, against its standard error, decides.
    """
    if control is None:
        return "unclear"
    share = control.center / greedy.center if control.center > 0.0 and greedy.center > 0.0 else 1.0
    held_up = (control.value - control.center) - share * (greedy.value - greedy.center)
    if held_up > _COMPARED_AT * math.hypot(control.sd, share * greedy.sd):
        return "model"
    return "traffic" if control.center - control.value > _COMPARED_AT * control.sd else "unclear"


def normalised_entropy(counts: Iterable[float], *, n_values: int) -> float:
    """Return H / ln(n_values) of counts in [0, 1]: 1 is an even spread over all values, 0 is one value alone.

    >>> normalised_entropy([5.0, 5.0], n_values=4)
    0.5
    """
    shares = np.array([count for count in counts if count > 0.0], dtype=np.float64)
    if len(shares) < 2:
        return 0.0
    shares /= shares.sum()
    return float(-(shares * np.log(shares)).sum()) / math.log(max(n_values, len(shares)))


def gini(counts: Iterable[float]) -> float:
    """Return the Gini coefficient of counts: 0 when all are equal, towards 1 when one has everything.

    >>> gini([1.0, 1.0, 1.0, 1.0]), gini([0.0, 0.0, 0.0, 4.0])
    (0.0, 0.75)
    """
    ascending = np.sort(np.array(list(counts), dtype=np.float64))
    n, total = len(ascending), ascending.sum()
    if not total:
        return 0.0
    return float((2.0 * np.arange(1, n + 1) - n - 1) @ ascending / (n * total))


def variety(counts: Iterable[float], *, sample: int) -> float | None:
    """Return how many different items `sample` draws from the impressions would hold, None when there are fewer.

    Rarefaction makes quiet and busy intervals comparable: sum_i 1 - (1 - n_i / N)^sample. Source: Hurlbert (1971), with
    draws that are put back.
    """
    n = np.array(list(counts), dtype=np.float64)
    total = n.sum()
    if total < sample:
        return None
    return float((1.0 - (1.0 - n / total) ** sample).sum())


@dataclass(frozen=True, slots=True)
class Drift:
    """How far a distribution has moved.

    Attributes:
        psi: Population stability index.
        noise: What it exceeds with probability FALSE_ALARM when nothing moved.
    """

    psi: float
    noise: float


def drift(reference: Mapping[str, float], current: Mapping[str, float]) -> Drift | None:
    """Return PSI = sum_b (q_b - p_b) ln(q_b / p_b) over the bins of a feature, None without either side.

    Half a count is added to every bin. Under no change PSI is about (1/N + 1/M) chi2 with B - 1 degrees of freedom,
    which gives the noise. Source: Siddiqi (2006), from .25 on a major shift; Yurdakul (2018) for the law.
    """
    n_reference, n_current = sum(reference.values()), sum(current.values())
    if not n_reference or not n_current:
        return None
    both = {name: reference.get(name, 0.0) + current.get(name, 0.0) for name in {*reference, *current}}
    common = sorted(both, key=lambda name: (-both[name], name))[: _MAX_BINS - 1]
    p, q = (_shares(counts, common) for counts in (reference, current))
    noise = float(special.chdtri(max(1, len(p) - 1), FALSE_ALARM)) * (1.0 / n_reference + 1.0 / n_current)
    return Drift(psi=float((q - p) @ np.log(q / p)), noise=noise)


def _shares(counts: Mapping[str, float], common: Sequence[str]) -> Float64Array:
    """Return smoothed shares of the common bins and of all others together."""
    of_common = [counts.get(name, 0.0) for name in common]
    rest = max(0.0, sum(counts.values()) - sum(of_common))
    smoothed = np.array([*of_common, rest]) + 0.5
    shares: Float64Array = smoothed / smoothed.sum()
    return shares
