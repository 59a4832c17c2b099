"""One slot: what it may hold, best first, and its pmf as a mixture of three parts.

The parts are a mass shared by the tied best actions, a pmf over a shortlist, and a uniform floor over all that is
allowed. The pmf is the marginal over the part, which nothing later reads: the mixture is what is sampled from and what
is logged, never the probability of the part taken.
"""

from __future__ import annotations

import msgspec
import numpy as np

from bandit.columns import BoolArray, Float64Array, Int64Array


class SlotView(msgspec.Struct, frozen=True):
    """What a policy sees of one slot.

    Attributes:
        scores: float64 [n] of all candidates in UTF-8 id order, boosts included.
        allowed: bool [n], at least one True: what the slot may hold.
        n_allowed: how many.
        greedy: int64 [g], the allowed actions that tie for best, in UTF-8 id order.
        top: int64 [m], the shortlist: best first, ties in UTF-8 id order.
        top_scores: float64 [m], their scores.
        reach: The lowest score that was ranked to find them; `view_slot` takes it as a hint for the next slot.
        explorer_pmf: float64 [m], what an explorer says of the shortlist; only `VwExplorer` looks at it.
    """

    scores: Float64Array
    allowed: BoolArray
    n_allowed: int
    greedy: Int64Array
    top: Int64Array
    top_scores: Float64Array
    reach: float
    explorer_pmf: Float64Array | None = None


def view_slot(scores: Float64Array, allowed: BoolArray, *, shortlist: int, reach: float = -np.inf) -> SlotView:
    """Return the view of a slot with a shortlist of at most `shortlist` actions.

    Args:
        scores: float64 [n].
        allowed: bool [n], at least one True.
        shortlist: size; ties at its edge enter in UTF-8 id order.
        reach: a score that a few more actions than the shortlist are expected to reach, as in the slot before. A good
            one saves time; the view is the same whatever it is.
    """
    n_allowed = int(np.count_nonzero(allowed))
    ranked = (allowed & (scores >= reach)).nonzero()[0]
    if len(ranked) < max(1, min(shortlist, n_allowed)):
        ranked = allowed.nonzero()[0]
    best = scores[ranked]
    # Only the best few are sorted: sorting a thousand candidates for every slot would cost more than the draw. They
    # are twice as many as needed, so that the same reach still finds enough when some of them are placed or closed.
    n_few = 2 * shortlist + 8
    if len(ranked) > 2 * n_few:
        edge_index = len(best) - n_few
        is_few = best >= np.partition(best, edge_index)[edge_index]
        ranked, best = ranked[is_few], best[is_few]
    order = best.argsort()[::-1]
    falling = best[order]
    n_greedy = 1
    if np.count_nonzero(falling[1:] == falling[:-1]):
        # The faster sort leaves ties in any order; they belong in id order.
        order = (-best).argsort(kind="stable")
        n_greedy = int(np.count_nonzero(best == falling[0]))
    ranked = ranked[order]
    return SlotView(
        scores=scores,
        allowed=allowed,
        n_allowed=n_allowed,
        greedy=ranked[:n_greedy],
        top=ranked[:shortlist],
        top_scores=falling[:shortlist],
        reach=falling.item(-1),
    )


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
    """
    floor = mixture.uniform / view.n_allowed
    pmf: Float64Array = view.allowed.astype(np.float64)
    pmf *= floor
    pmf[view.top] = floor + mixture.shortlist
    # Mostly one action is best, and an element is found faster than an array of one.
    pmf[view.greedy if len(view.greedy) > 1 else view.greedy[0]] += mixture.greedy / len(view.greedy)
    return pmf
