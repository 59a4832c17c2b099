"""Estimate what a policy would have earned, from a log of another policy's single actions.

Symbols: row i has context x, logged action a, reward r, weight w = pi(a|x) / mu(a|x) of the target policy pi over the
logging policy mu, and for the model-based estimators q = q(x, a) and Q = sum over actions b of pi(b|x) q(x, b), with
q a model of the reward. Averages are over the n rows. `slate_estimators` has the estimators of whole slates.

An estimate keeps its terms by row, so that `intervals` can resample or bound them, and the support of its weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bandit.support import Float64Array, Support, refusal_of

Ratio = tuple[Float64Array, Float64Array]


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimated value: the mean of the terms plus the sum of the ratios.

    Attributes:
        name: Of the estimator.
        terms: float64 [n], averaged over the rows.
        ratios: Pairs of float64 [n]; each adds sum(numerators) / sum(denominators). Empty for plain means.
        supports: One per slot, of the weights before any clipping; a single action has one.
    """

    name: str
    terms: Float64Array
    supports: tuple[Support, ...]
    ratios: tuple[Ratio, ...] = ()

    @property
    def value(self) -> float:
        """Return the point estimate; NaN where a ratio has no weight at all."""
        return float(value_of_sums(self.sums()))

    @property
    def support(self) -> Support:
        """Return the worst of the supports."""
        return min(self.supports, key=lambda support: support.ess)

    @property
    def refusal(self) -> str | None:
        """Return why the value must not be used, None when it may be."""
        return refusal_of(self.supports)

    def columns(self) -> Float64Array:
        """Return float64 [n, 2 + 2 * ratios]: ones, terms, then numerators and denominators.

        Sums of these columns over any rows, passed to `value_of_sums`, give the value on those rows.
        """
        paired = [column for ratio in self.ratios for column in ratio]
        return np.column_stack([np.ones(len(self.terms)), self.terms, *paired])

    def sums(self) -> Float64Array:
        """Return float64 [2 + 2 * ratios], the columns summed over the rows."""
        paired = [float(column.sum()) for ratio in self.ratios for column in ratio]
        return np.array([len(self.terms), float(self.terms.sum()), *paired])


def value_of_sums(sums: Float64Array) -> Float64Array:
    """Return the values float64 [...] of sums of columns, float64 [..., 2 + 2 * ratios]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = sums[..., 2::2] / sums[..., 3::2]
    values: Float64Array = sums[..., 1] / sums[..., 0] + ratios.sum(axis=-1)
    return values


@dataclass(frozen=True, slots=True)
class ActionRows:
    """Logged single actions and what the target policy and a reward model say of them.

    Attributes:
        rewards: float64 [n].
        weights: float64 [n], pi(a|x) / mu(a|x) >= 0 of the logged action.
        model_logged: float64 [n], q(x, a) of the logged action; None without a model.
        model_target: float64 [n], Q(x), the model's mean under the target policy; None without a model.

    The model must not have been fitted on the rows that it values, or the intervals are too narrow (cross-fit).

    Raises:
        ValueError: on construction, when a column does not fit or holds what it may not.
    """

    rewards: Float64Array
    weights: Float64Array
    model_logged: Float64Array | None = None
    model_target: Float64Array | None = None

    def __post_init__(self) -> None:
        """Check the columns."""
        if not len(self.rewards):
            raise ValueError("rows must not be empty")
        for name in ("rewards", "weights", "model_logged", "model_target"):
            check_column(name, getattr(self, name), shape=self.rewards.shape)
        check_weights("weights", self.weights)

    def model(self) -> tuple[Float64Array, Float64Array]:
        """Return q of the logged actions and Q.

        Raises:
            ValueError: there is no model.
        """
        if self.model_logged is None or self.model_target is None:
            raise ValueError("this estimator needs a reward model: give model_logged and model_target")
        return self.model_logged, self.model_target


def check_column(name: str, column: Float64Array | None, *, shape: tuple[int, ...]) -> None:
    """Refuse a column of another shape, or one that is not finite; None passes.

    Raises:
        ValueError: naming the column and the row.
    """
    if column is None:
        return
    if column.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {column.shape}")
    wrong = ~np.isfinite(column)
    if wrong.any():
        raise ValueError(f"{name} must be finite, got {column[wrong][0]} (row {np.argwhere(wrong)[0][0]})")


def check_weights(name: str, weights: Float64Array) -> None:
    """Refuse weights below 0.

    Raises:
        ValueError: naming the row.
    """
    if weights.min() < 0.0:
        where = np.argwhere(weights < 0.0)[0][0]
        raise ValueError(f"{name} must be at least 0, got {weights.min()} (row {where})")


def direct_method(rows: ActionRows) -> Estimate:
    """Return mean(Q): what the reward model says of the target policy.

    Unbiased when: the model is right on average under pi. Weakness: any error of the model is an error of the estimate
    that no amount of data removes, and no interval shows. Source: Beygelzimer and Langford 2009.
    """
    _, target = rows.model()
    return Estimate("dm", target, (Support.of(rows.weights),))


def ips(rows: ActionRows) -> Estimate:
    """Return mean(w r): inverse propensity scoring.

    Unbiased when: propensities are right and mu(a|x) > 0 wherever pi(a|x) > 0. Weakness: variance grows with the mean
    square of the weights. Source: Horvitz and Thompson 1952.
    """
    return Estimate("ips", rows.weights * rows.rewards, (Support.of(rows.weights),))


def snips(rows: ActionRows) -> Estimate:
    """Return sum(w r) / sum(w): self-normalised inverse propensity scoring.

    Consistent when IPS is unbiased; its bias shrinks as 1/n. It stays within the range of the rewards and does not move
    when a constant is added to them all. Weakness: biased at a small effective sample size. Source: Swaminathan and
    Joachims 2015.
    """
    zeros = np.zeros(len(rows.rewards))
    ratio = (rows.weights * rows.rewards, rows.weights)
    return Estimate("snips", zeros, (Support.of(rows.weights),), (ratio,))


def clipped_ips(rows: ActionRows, *, clip: float) -> Estimate:
    """Return mean(min(w, clip) r).

    Unbiased when: no weight exceeds `clip`. Weakness: biased down, for rewards of at least 0, by what the cut removed:
    look at the clipped share and at several values of `clip`. Source: Ionides 2008; Bottou et al. 2013.

    Args:
        rows: The log.
        clip: The largest weight kept, above 0.

    Raises:
        ValueError: `clip` is not above 0.
    """
    _check_positive("clip", clip)
    terms = np.minimum(rows.weights, clip) * rows.rewards
    return Estimate("clipped_ips", terms, (Support.of(rows.weights, clip=clip),))


def doubly_robust(rows: ActionRows) -> Estimate:
    """Return mean(Q + w (r - q)).

    Unbiased when: IPS is, whatever the model; or the model is right, whatever the propensities. Weakness: a model
    worse than none adds variance. Source: Dudik, Langford and Li 2011.
    """
    logged, target = rows.model()
    return Estimate("dr", target + rows.weights * (rows.rewards - logged), (Support.of(rows.weights),))


def self_normalised_doubly_robust(rows: ActionRows) -> Estimate:
    """Return mean(Q) + sum(w (r - q)) / sum(w).

    Consistent when IPS is unbiased. Weakness: biased at a small effective sample size. Source: Thomas and Brunskill
    2016 (weighted doubly robust); Kallus and Uehara 2019.
    """
    logged, target = rows.model()
    ratio = (rows.weights * (rows.rewards - logged), rows.weights)
    return Estimate("sndr", target, (Support.of(rows.weights),), (ratio,))


def switch_doubly_robust(rows: ActionRows, *, threshold: float) -> Estimate:
    """Return mean(Q + 1[w <= threshold] w (r - q)): the model alone where the weight is large.

    Unbiased when: no weight exceeds `threshold`, or the model is right where one does. Weakness: elsewhere it has the
    model's bias. Source: Wang, Agarwal and Dudik 2017.

    Args:
        rows: The log.
        threshold: The largest weight at which rewards correct the model, above 0.

    Raises:
        ValueError: `threshold` is not above 0.
    """
    _check_positive("threshold", threshold)
    logged, target = rows.model()
    kept = np.where(rows.weights <= threshold, rows.weights, 0.0)
    terms = target + kept * (rows.rewards - logged)
    return Estimate("switch_dr", terms, (Support.of(rows.weights, clip=threshold),))


def shrunk_doubly_robust(rows: ActionRows, *, shrinkage: float) -> Estimate:
    """Return mean(Q + shrinkage w / (w^2 + shrinkage) (r - q)): DR with optimistic shrinkage (DRos).

    The weight minimises a bound on the mean squared error; 0 gives the direct method, infinity DR. Unbiased when: the
    model is right. Weakness: biased by the model's error times what the weights lost; rows that lost more than half
    count as clipped. Source: Su, Dimakopoulou, Krishnamurthy and Dudik 2020.

    Args:
        rows: The log.
        shrinkage: At least 0.

    Raises:
        ValueError: `shrinkage` is below 0.
    """
    if not shrinkage >= 0.0:
        raise ValueError(f"shrinkage must be at least 0, got {shrinkage}")
    logged, target = rows.model()
    if math.isinf(shrinkage):
        shrunk = rows.weights
    else:
        # Where both are 0 the weight is 0.
        scale = rows.weights**2 + shrinkage
        shrunk = np.divide(shrinkage * rows.weights, scale, out=np.zeros_like(scale), where=scale > 0.0)
    terms = target + shrunk * (rows.rewards - logged)
    return Estimate("dr_os", terms, (Support.of(rows.weights, clip=math.sqrt(shrinkage)),))


def marginal_weights(
    target_pmf: Float64Array,
    logging_pmf: Float64Array,
    *,
    embedding_pmf: Float64Array,
    embeddings: npt.NDArray[np.int64],
) -> Float64Array:
    """Return p(e|x, pi) / p(e|x, mu) for the embedding e seen in each row.

    Args:
        target_pmf: float64 [n, K], pi(a|x).
        logging_pmf: float64 [n, K], mu(a|x).
        embedding_pmf: float64 [K, E], p(e|a); one-hot rows when each action belongs to one cluster.
        embeddings: int64 [n], the embedding of the logged action.

    Returns:
        float64 [n].

    Raises:
        ValueError: a logged embedding has probability 0 under the logging policy.
    """
    rows = np.arange(len(embeddings))
    logging = (logging_pmf @ embedding_pmf)[rows, embeddings]
    if not (logging > 0.0).all():
        where = int(np.argmin(logging > 0.0))
        raise ValueError(f"logging policy must give the logged embedding a probability above 0, got 0 (row {where})")
    weights: Float64Array = (target_pmf @ embedding_pmf)[rows, embeddings] / logging
    return weights


def mips(rows: ActionRows) -> Estimate:
    """Return mean(w(x, e) r): marginalised inverse propensity scoring.

    `rows.weights` are those of `marginal_weights`, w(x, e) = p(e|x, pi) / p(e|x, mu).

    Unbiased when: every embedding that pi reaches has support, and the action has no effect on the reward beyond its
    embedding. Weakness: a direct effect of the action biases it; a coarser embedding has less variance and more bias.
    Source: Saito and Joachims 2022.
    """
    return Estimate("mips", rows.weights * rows.rewards, (Support.of(rows.weights),))


def _check_positive(name: str, value: float) -> None:
    if not value > 0.0:
        raise ValueError(f"{name} must be above 0, got {value}")
