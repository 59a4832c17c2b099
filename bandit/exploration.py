"""Closed-form exploration: scores of the feasible actions to a pmf.

The pmf is the marginal over every coin that nothing later reads: the mixture is what is sampled from and what is
logged, never the probability of the branch taken.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


class Exploration(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="epsilon"
):
    """Epsilon-greedy whose exploration is a softmax over a shortlist mixed with a uniform floor.

    p(a) = (1 - rate) [a greedy] / |greedy| + rate ((1 - uniform_share) softmax over shortlist (s / temperature)(a)
    + uniform_share / n). Every feasible action keeps p >= rate * uniform_share / n.

    Attributes:
        rate: Probability of exploring, in [0, 1].
        uniform_share: Share of exploration that is uniform over all feasible actions, in [0, 1].
        shortlist: How many of the best actions the softmax covers.
        temperature: Softmax temperature in units of the score; None takes the interquartile range of the shortlist.
    """

    rate: float = 0.1
    uniform_share: float = 0.25
    shortlist: int = 50
    temperature: float | None = None

    def __post_init__(self) -> None:
        """Refuse parameters outside their ranges.

        Raises:
            ValueError: a parameter is out of range; the message names it.
        """
        for name in ("rate", "uniform_share"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"exploration {name} must be in [0, 1], got {value}")
        if self.shortlist < 1:
            raise ValueError(f"exploration shortlist must be at least 1, got {self.shortlist}")
        if self.temperature is not None and not 0.0 < self.temperature < np.inf:
            raise ValueError(f"exploration temperature must be positive and finite, got {self.temperature}")


def shortlist_mask(scores: Float64Array, size: int) -> npt.NDArray[np.bool_]:
    """Return bool [n], True for the `size` best; ties at the edge enter in the order given (UTF-8 id order)."""
    n = len(scores)
    if size >= n:
        return np.ones(n, dtype=np.bool_)
    edge = np.partition(scores, n - size)[n - size]
    chosen: npt.NDArray[np.bool_] = scores > edge
    at_edge = np.flatnonzero(scores == edge)
    chosen[at_edge[: size - int(chosen.sum())]] = True
    return chosen


def build_pmf(scores: Float64Array, exploration: Exploration) -> Float64Array:
    """Build the pmf over the feasible actions of one slot.

    Args:
        scores: float64 [n], n >= 1, finite, in UTF-8 id order; higher is better.
        exploration: the policy's parameters.

    Returns:
        float64 [n] that sums to 1 within 1e-12. Tied greedy actions share the greedy mass equally.

    Source: SCIENCE notes, section 1 (epsilon-greedy with a shortlist mixture).
    """
    n = len(scores)
    eps, lam = exploration.rate, exploration.uniform_share
    greedy = scores == scores.max()
    pmf: Float64Array = np.where(greedy, (1.0 - eps) / greedy.sum(), 0.0)
    if eps == 0.0:
        return pmf
    mask = shortlist_mask(scores, exploration.shortlist)
    top = scores[mask]
    tau = exploration.temperature
    if tau is None:
        low, high = np.percentile(top, (25, 75))
        tau = float(high - low)
    # A zero range means that the middle half of the shortlist ties; the softmax is then uniform over the shortlist.
    weights = np.exp((top - top.max()) / tau) if tau > 0.0 else np.ones(len(top))
    pmf[mask] += eps * (1.0 - lam) * (weights / weights.sum())
    pmf += eps * lam / n
    return pmf
