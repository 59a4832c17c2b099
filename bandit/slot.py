"""One slot: what it may hold, best first, and its pmf as a mixture of three parts.

The parts are a mass shared by the tied best actions, a pmf over a shortlist, and a uniform floor over all that is
allowed. The pmf is the marginal over the part, which nothing later reads: the mixture is what is sampled from and what
is logged, never the probability of the part taken.
"""

from __future__ import annotations

import msgspec
import numpy as np

from bandit import _native
from bandit._native import rank_best
from bandit.columns import BoolArray, Float64Array, Int64Array


class SlotView(msgspec.Struct, frozen=True):
    """What a policy sees of one slot.

    Attributes:
        scores: float64 [n] of all candidates in UTF-8 id order, boosts included.
        allowed: bool [n], at least one True: what the slot may hold.
        n_allowed: how many.
        greedy: int64 [g], the allowed actions that tie for best, in UTF-8 id order.
        top: int64 [m], the shortlist: best first, ties in UTF-8 id order.
        explorer_pmf: float64 [m], what an explorer says of the shortlist; only `VwExplorer` looks at it.
    """

    scores: Float64Array
    allowed: BoolArray
    n_allowed: int
    greedy: Int64Array
    top: Int64Array
    explorer_pmf: Float64Array | None = None

    @property
    def top_scores(self) -> Float64Array:
        """Return float64 [m], the scores of the shortlist."""
        return self.scores[self.top]


def view_slot(scores: Float64Array, allowed: BoolArray, *, shortlist: int) -> SlotView:
    """Return the view of a slot with a shortlist of at most `shortlist` actions.

    Args:
        scores: float64 [n].
        allowed: bool [n], at least one True.
        shortlist: size; ties at its edge enter in UTF-8 id order.
    """
    greedy, top = rank_best(scores, allowed, shortlist)
    n_allowed = int(np.count_nonzero(allowed))
    return SlotView(scores=scores, allowed=allowed, n_allowed=n_allowed, greedy=greedy, top=top)


class Mixture(msgspec.Struct, frozen=True):
    """The parts of one slot's pmf; their masses sum to 1.

    Attributes:
        greedy: Mass that the tied best actions share equally.
        shortlist: float64 [m], masses of the shortlist, best first.
        uniform: Mass that everything allowed shares equally.
    """

    greedy: float
    shortlist: Float64Array
    uniform: float


def build_pmf(view: SlotView, mixture: Mixture) -> Float64Array:
    """Add up the parts: float64 [n] that is 0 where not allowed and sums to 1 within 1e-12.

    Tied best actions share the greedy mass equally; ties at the edge of a shortlist enter in UTF-8 id order.

    Raises:
        ValueError: the shortlist's masses are not one for each of its actions.
    """
    return _native.build_pmf(
        view.allowed, view.n_allowed, view.greedy, view.top, mixture.greedy, mixture.shortlist, mixture.uniform
    )
