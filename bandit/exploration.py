"""Closed-form exploration: scores of the feasible actions to a pmf.

The pmf is the marginal over every coin that nothing later reads: the mixture is what is sampled from and what is
logged, never the probability of the branch taken.
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class SlotView:
    """What a policy sees of one slot.

    Attributes:
        scores: float64 [n] of all candidates in UTF-8 id order, boosts included.
        allowed: bool [n], at least one True: what the slot may hold.
        ranked: int64 [m], positions of what is allowed, best first, ties in UTF-8 id order.
        n_greedy: how many of `ranked` tie for best.
    """

    scores: Float64Array
    allowed: npt.NDArray[np.bool_]
    ranked: npt.NDArray[np.int64]
    n_greedy: int


def view_slot(scores: Float64Array, allowed: npt.NDArray[np.bool_], descending: npt.NDArray[np.int64]) -> SlotView:
    """Return the view of a slot.

    Args:
        scores: float64 [n].
        allowed: bool [n], at least one True.
        descending: int64 [n], all positions by descending score, ties by position.
    """
    ranked = descending[allowed[descending]]
    # Ties are a prefix, so the first position below the best ends them.
    best = scores[ranked]
    n_greedy = len(best) - int(np.searchsorted(best[::-1], best[0]))
    return SlotView(scores=scores, allowed=allowed, ranked=ranked, n_greedy=n_greedy)


def build_pmf(view: SlotView, exploration: Exploration) -> Float64Array:
    """Build the pmf of one slot: float64 [n] that is 0 where not allowed and sums to 1 within 1e-12.

    Tied greedy actions share the greedy mass equally; ties at the edge of the shortlist enter in UTF-8 id order.

    Source: SCIENCE notes, section 1 (epsilon-greedy with a shortlist mixture).
    """
    eps, lam = exploration.rate, exploration.uniform_share
    n_allowed = len(view.ranked)
    pmf: Float64Array = view.allowed.astype(np.float64) * (eps * lam / n_allowed)
    if eps > 0.0:
        shortlist = view.ranked[: exploration.shortlist]
        pmf[shortlist] += eps * (1.0 - lam) * softmax(view.scores[shortlist], exploration.temperature)
    pmf[view.ranked[: view.n_greedy]] += (1.0 - eps) / view.n_greedy
    return pmf


def softmax(descending: Float64Array, temperature: float | None) -> Float64Array:
    """Return the softmax of descending scores; without a temperature it is their interquartile range.

    A zero range means that the middle half of the scores tie; the softmax is then uniform.
    """
    tau = temperature if temperature is not None else _interquartile_range(descending)
    if tau <= 0.0:
        return np.full(len(descending), 1.0 / len(descending))
    weights: Float64Array = np.exp((descending - descending[0]) / tau)
    weights /= weights.sum()
    return weights


def _interquartile_range(descending: Float64Array) -> float:
    """Return the range between the linearly interpolated quartiles; np.percentile does the same, 30 times slower."""
    last = len(descending) - 1

    def quantile(share: float) -> float:
        below, fraction = divmod(share * last, 1.0)
        low = float(descending[last - int(below)])
        high = float(descending[last - min(int(below) + 1, last)])
        return low + (high - low) * fraction

    return quantile(0.75) - quantile(0.25)
