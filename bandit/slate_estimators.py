"""Estimate what a policy would have earned, from a log of another policy's slates.

Symbols: slate i has slots k = 1..S with reward r_k, position weight alpha_k, and conditional weight
w_k = pi(a_k | x, h_k) / mu(a_k | x, h_k), where h_k is what stands in the earlier slots. w_1:k is the product of the
first k, times v = pi(D) / mu(D) of the coin that drew the discovery positions D: later slots read that coin, so it is
history like any other. The value is that of sum over k of alpha_k r_k.

The estimators differ in what they assume of users, and pay for weaker assumptions with variance. A slate shorter than
S is padded with weight 1 and reward 0. A forced item has weight 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bandit.estimators import Estimate, Ratio, check_column, check_weights
from bandit.support import Float64Array, Support


@dataclass(frozen=True, slots=True)
class SlateRows:
    """Logged slates and what the target policy says of them.

    Attributes:
        rewards: float64 [n, S].
        weights: float64 [n, S], the conditional weights w_k >= 0.
        position_weights: float64 [S], alpha_k.
        discovery_weights: float64 [n], v = pi(D) / mu(D); ones when the target policy draws D as the log did.

    Raises:
        ValueError: on construction, when a column does not fit or holds what it may not.
    """

    rewards: Float64Array
    weights: Float64Array
    position_weights: Float64Array
    discovery_weights: Float64Array

    def __post_init__(self) -> None:
        """Check the columns."""
        if self.rewards.ndim != 2 or not self.rewards.size:
            raise ValueError(f"rewards must have shape (slates, slots), got {self.rewards.shape}")
        n, n_slots = self.rewards.shape
        check_column("rewards", self.rewards, shape=(n, n_slots))
        check_column("weights", self.weights, shape=(n, n_slots))
        check_column("position_weights", self.position_weights, shape=(n_slots,))
        check_column("discovery_weights", self.discovery_weights, shape=(n,))
        check_weights("weights", self.weights)
        check_weights("discovery_weights", self.discovery_weights)

    def weighted_rewards(self) -> Float64Array:
        """Return float64 [n, S], alpha_k r_k."""
        return self.rewards * self.position_weights

    def prefix_weights(self) -> Float64Array:
        """Return float64 [n, S], w_1:k with the discovery coin."""
        return np.cumprod(self.weights, axis=1) * self.discovery_weights[:, None]


def slate_ips(rows: SlateRows, *, self_normalised: bool = False) -> Estimate:
    """Return mean(w_1:S sum_k alpha_k r_k), or with sum(w_1:S) for n when self-normalised.

    Unbiased when: propensities are right and every slate of pi has support; nothing is assumed of users. The
    self-normalised form is consistent. Weakness: the variance of a product over all slots. Source: Swaminathan et al.
    2017 (as the baseline); McInerney et al. 2020.
    """
    weights = rows.prefix_weights()[:, -1:]
    return _weighted(
        "slate_ips", weights, rows.weighted_rewards().sum(axis=1, keepdims=True), self_normalised=self_normalised
    )


def rips(rows: SlateRows, *, self_normalised: bool = False) -> Estimate:
    """Return sum_k mean(alpha_k w_1:k r_k), or with sum(w_1:k) for n at each slot when self-normalised.

    Unbiased when: what stands in later slots does not change r_k (users go from the top down). The self-normalised form
    is consistent. Weakness: biased when a later slot takes attention from an earlier one; still a product of weights.
    Source: McInerney et al. 2020.
    """
    return _weighted("rips", rows.prefix_weights(), rows.weighted_rewards(), self_normalised=self_normalised)


def iips(rows: SlateRows, *, marginal_weights: Float64Array, self_normalised: bool = False) -> Estimate:
    """Return sum_k mean(alpha_k m_k r_k) with m_k = pi(a_k at k | x) / mu(a_k at k | x).

    The m_k are ratios of *marginal* probabilities of an item at a position, over everything that may stand before it
    and over the discovery coin; the conditional weights of the log give a biased answer.

    Unbiased when: r_k depends on the item in slot k alone. The self-normalised form is consistent. Weakness: biased
    when slots affect each other. Source: Li et al. 2018.

    Args:
        rows: The log.
        marginal_weights: float64 [n, S], m_k.
        self_normalised: divide by sum(m_k) at each slot, in place of n.

    Raises:
        ValueError: the marginal weights do not fit.
    """
    check_column("marginal_weights", marginal_weights, shape=rows.rewards.shape)
    check_weights("marginal_weights", marginal_weights)
    return _weighted("iips", marginal_weights, rows.weighted_rewards(), self_normalised=self_normalised)


def one_slot_deviation(rows: SlateRows) -> Estimate:
    """Return sum_k mean(alpha_k v w_k r_k): pi acts at slot k alone, the logging policy before it.

    Unbiased for that hybrid, slot by slot, when later slots do not change r_k; with a position weight of 1 at one slot
    and 0 elsewhere it is the value of that slot. Weakness: it is not the value of pi on the whole slate. For tuning.
    Source: the one-step deviation of Kakade and Langford 2002.
    """
    weights = rows.weights * rows.discovery_weights[:, None]
    return _weighted("one_slot", weights, rows.weighted_rewards(), self_normalised=False)


def cascade_doubly_robust(
    rows: SlateRows, *, model_logged: Float64Array, model_target: Float64Array, self_normalised: bool = False
) -> Estimate:
    """Return mean(sum_k w_1:k (alpha_k r_k - Q_k) + w_1:k-1 E_pi Q_k), w_1:0 being the discovery coin's weight.

    Q_k is a model's value-to-go: of slots k..S, given x, the items before k, and the item at k, under pi afterwards.

    Unbiased when: RIPS is, whatever the model. The self-normalised form divides each weighted sum by the sum of its
    weights, and is consistent. Weakness: as RIPS, with less variance when the model is good. Source: Kiyohara et al.
    2022.

    Args:
        rows: The log.
        model_logged: float64 [n, S], Q_k of the logged item.
        model_target: float64 [n, S], E_pi Q_k over the items that pi may put at k after the logged ones.
        self_normalised: see above.

    Raises:
        ValueError: a model column does not fit.
    """
    check_column("model_logged", model_logged, shape=rows.rewards.shape)
    check_column("model_target", model_target, shape=rows.rewards.shape)
    weights = rows.prefix_weights()
    before = np.column_stack([rows.discovery_weights, weights[:, :-1]])
    residuals = rows.weighted_rewards() - model_logged
    supports = tuple(Support.of(column) for column in weights.T)
    if not self_normalised:
        terms = (weights * residuals + before * model_target).sum(axis=1)
        return Estimate("cascade_dr", terms, supports)
    ratios = _ratios(weights, residuals) + _ratios(before, model_target)
    return Estimate("sn_cascade_dr", np.zeros(len(weights)), supports, ratios)


def _weighted(name: str, weights: Float64Array, rewards: Float64Array, *, self_normalised: bool) -> Estimate:
    """Return sum_k mean(w_k r_k), or sum_k sum(w_k r_k) / sum(w_k); both arrays are [n, slots]."""
    supports = tuple(Support.of(column) for column in weights.T)
    if not self_normalised:
        return Estimate(name, (weights * rewards).sum(axis=1), supports)
    return Estimate(f"sn_{name}", np.zeros(len(weights)), supports, _ratios(weights, rewards))


def _ratios(weights: Float64Array, rewards: Float64Array) -> tuple[Ratio, ...]:
    return tuple((column, weight) for column, weight in zip((weights * rewards).T, weights.T, strict=True))
