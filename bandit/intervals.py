"""Intervals around estimates: bootstrap by user, empirical Bernstein, Clopper-Pearson. Pure; randomness is an argument.

| interval | holds | price |
|---|---|---|
| cluster bootstrap | approximately, for many users of any size | none for rare, huge weights it has not seen |
| empirical Bernstein | for every n, independent rows with known bounds | wide; vacuous for small floors |
| Clopper-Pearson | exactly, for counts of yes and no | rewards of 0 and 1 under the logging policy itself |
| confidence sequence (`confidence_sequence`) | at every look at once | wider at any one look |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from bandit.estimators import Estimate, value_of_sums
from bandit.support import Float64Array

# Counts of one block of resamples: clusters * resamples, 8 bytes each.
BLOCK_COUNTS = 4_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval for a value.

    Attributes:
        lower: Lower bound.
        upper: Upper bound.
        confidence: Probability with which it holds.
        method: Where it comes from.
        note: A warning for the reader, such as that the interval says nothing; empty without one.
    """

    lower: float
    upper: float
    confidence: float
    method: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Moments:
    """Of the terms of a mean; those of parts of a log add up to those of the whole.

    Attributes:
        n: Terms.
        mean: Of them.
        square_sum: Sum of the squares of their differences from the mean.
        lowest: The smallest.
        highest: The largest.
    """

    n: int = 0
    mean: float = 0.0
    square_sum: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf

    @classmethod
    def of(cls, terms: Float64Array) -> Moments:
        """Sum up float64 [n] terms."""
        if not len(terms):
            return cls()
        mean = float(terms.mean())
        return cls(len(terms), mean, float(((terms - mean) ** 2).sum()), float(terms.min()), float(terms.max()))

    def __add__(self, other: Moments) -> Moments:
        n = self.n + other.n
        if not n:
            return self
        # Differences of means, not of sums of squares: those of a long log agree in most of their digits.
        apart = other.mean - self.mean
        return Moments(
            n=n,
            mean=self.mean + apart * other.n / n,
            square_sum=self.square_sum + other.square_sum + apart**2 * self.n * other.n / n,
            lowest=min(self.lowest, other.lowest),
            highest=max(self.highest, other.highest),
        )

    @property
    def variance(self) -> float:
        """Return the sample variance, of at least two terms."""
        return self.square_sum / (self.n - 1)


def cluster_sums(estimate: Estimate, *, clusters: npt.NDArray[np.int64], n_clusters: int) -> Float64Array:
    """Return float64 [n_clusters, columns]: the estimate's columns summed by cluster.

    The sums of parts of a log add up to those of the whole, so that a long log needs no more memory than its clusters.

    Args:
        estimate: Of some rows.
        clusters: int64 [n], the cluster (user) of each row, below `n_clusters`. Without users: `np.arange(n)`.
        n_clusters: How many there are.
    """
    columns = [np.bincount(clusters, weights=column, minlength=n_clusters) for column in estimate.columns().T]
    return np.column_stack(columns)


def cluster_bootstrap(
    panel: Sequence[Float64Array], *, rng: np.random.Generator, n_resamples: int = 1000, confidence: float = 0.95
) -> list[Interval]:
    """Draw whole clusters again and again, and return the percentile interval of each estimate.

    Rows of one user are alike; drawing rows one by one would make the interval too narrow. All estimates see the same
    resamples. Needs some hundred clusters; blind to rare weights that were not drawn, which the support shows.

    Args:
        panel: `cluster_sums` of each estimate, all over the same clusters, float64 [n_clusters, any].
        rng: Source of the draws.
        n_resamples: How many draws.
        confidence: Of each interval.

    Raises:
        ValueError: the panel's clusters differ in number, or are fewer than two.
    """
    numbers = {len(sums) for sums in panel}
    if len(numbers) != 1 or min(numbers) < 2:
        raise ValueError(f"estimates must share their clusters, at least 2 of them, got {sorted(numbers)}")
    n_clusters = numbers.pop()
    stacked = np.column_stack(panel)
    resampled = np.empty((n_resamples, stacked.shape[1]))
    block = max(1, BLOCK_COUNTS // n_clusters)
    for start in range(0, n_resamples, block):
        n_here = min(block, n_resamples - start)
        drawn = rng.integers(n_clusters, size=(n_here, n_clusters)) + np.arange(n_here)[:, None] * n_clusters
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        resampled[start : start + n_here] = counts.astype(np.float64) @ stacked
    tails = [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0]
    edges = np.cumsum([0] + [sums.shape[1] for sums in panel])
    intervals = []
    for first, last in pairwise(edges):
        lower, upper = np.quantile(value_of_sums(resampled[:, first:last]), tails)
        intervals.append(Interval(float(lower), float(upper), confidence, "cluster bootstrap"))
    return intervals


def empirical_bernstein(
    estimate: Estimate,
    *,
    term_range: tuple[float, float],
    value_range: tuple[float, float] = (0.0, 1.0),
    confidence: float = 0.95,
) -> Interval:
    """Bound a mean of independent, bounded terms at any number of rows.

    Each side is off by at most sqrt(2 V L / n) + 7 R L / (3 (n - 1)) with L = ln(4 / (1 - confidence)), V the sample
    variance and R the width of `term_range`. R must come from what was *possible*: for IPS with rewards in [0, 1] the
    range is (0, 1 / floor), with the logging policy's lowest propensity as the floor. The largest weight seen is not a
    bound. Source: Maurer and Pontil 2009, theorem 4, on both sides.

    Args:
        estimate: A plain mean; ratios are not sums of independent terms.
        term_range: Lowest and highest possible term of one row.
        value_range: Lowest and highest possible value; the interval is cut to it.
        confidence: Of the interval.

    Returns:
        The interval; its note says when it is vacuous, which small floors make it until n is many times 1 / floor.

    Raises:
        ValueError: the estimate is a ratio, has fewer than two rows, or a term outside the range.
    """
    if estimate.ratios:
        raise ValueError(f"empirical Bernstein needs a mean of independent terms, got the ratio {estimate.name}")
    moments = Moments.of(estimate.terms)
    return bernstein_of_moments(moments, term_range=term_range, value_range=value_range, confidence=confidence)


def bernstein_of_moments(
    moments: Moments,
    *,
    term_range: tuple[float, float],
    value_range: tuple[float, float] = (0.0, 1.0),
    confidence: float = 0.95,
) -> Interval:
    """Return what `empirical_bernstein` does, of terms that were summed up part by part.

    Terms need not be of one distribution: the interval is around the mean of their expectations.

    Raises:
        ValueError: there are fewer than two terms, or one is outside the range.
    """
    (low, high), n = term_range, moments.n
    if n < 2:
        raise ValueError(f"empirical Bernstein needs at least 2 rows, got {n}")
    # A propensity of exactly the floor may give a weight one rounding above its bound.
    slack = 1e-9 * (high - low)
    if moments.lowest < low - slack or moments.highest > high + slack:
        got = f"{moments.lowest} to {moments.highest}"
        raise ValueError(f"terms must be in [{low}, {high}], got {got}: the floor is wrong")
    log_term = math.log(4.0 / (1.0 - confidence))
    margin = math.sqrt(2.0 * moments.variance * log_term / n) + 7.0 * (high - low) * log_term / (3.0 * (n - 1))
    lower, upper = max(value_range[0], moments.mean - margin), min(value_range[1], moments.mean + margin)
    note = ""
    if lower <= value_range[0] and upper >= value_range[1]:
        note = f"vacuous: terms may span {high - low:,.0f}, too wide for {n:,} rows"
    return Interval(lower, upper, confidence, "empirical Bernstein", note)


def clopper_pearson(estimate: Estimate, *, confidence: float = 0.95) -> Interval:
    """Bound a probability exactly, from independent rows that each say yes or no.

    Applies to rewards of 0 and 1 with weights of 1: the value of the logging policy itself. Weighted rewards are not
    counts, and dividing by the largest weight seen, as some do, gives no guarantee. Source: Clopper and Pearson 1934.

    Raises:
        ValueError: the terms are not all 0 or 1, or the estimate is a ratio.
    """
    terms = estimate.terms
    if estimate.ratios or not np.isin(terms, (0.0, 1.0)).all():
        raise ValueError(f"Clopper-Pearson needs terms of 0 and 1 with weight 1, got those of {estimate.name}")
    return clopper_pearson_of_counts(int(terms.sum()), len(terms), confidence=confidence)


def clopper_pearson_of_counts(n_yes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Return what `clopper_pearson` does, of rows that were counted."""
    tail = (1.0 - confidence) / 2.0
    lower = float(betaincinv(n_yes, n - n_yes + 1, tail)) if n_yes else 0.0
    upper = float(betaincinv(n_yes + 1, n - n_yes, 1.0 - tail)) if n_yes < n else 1.0
    return Interval(lower, upper, confidence, "Clopper-Pearson")
