"""How good lists of candidates are: hit rate, NDCG, recall, precision, coverage, novelty. Pure numpy, float64.

A list is a row of item columns, best first. `hits` says of each place whether what stands there is relevant.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def best_places(scores: FloatArray, k: int) -> IntArray:
    """Return the places of the k largest scores of each row, largest first, equal ones by place.

    Equal scores fall to the smaller place, so whoever lays out the places decides ties: lay them out at random, or a
    method that says nothing is credited with the order of the catalogue.

    Args:
        scores: float64 [n, m]; -inf is never better than anything.
        k: How many, at most m.

    Returns:
        int64 [n, k].

    Raises:
        ValueError: a score is NaN, or k is not in 1..m.
    """
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k must be in 1..{scores.shape[1]}, got {k}")
    if np.isnan(scores).any():
        raise ValueError(f"scores must not be NaN, got {int(np.isnan(scores).sum())} of {scores.size}")
    places: IntArray = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return places


def hit_rate(hits: BoolArray) -> FloatArray:
    """Compute 1 for each list with a relevant item in it, else 0: float64 [n] for `hits` bool [n, k]."""
    return np.asarray(hits.any(axis=1), dtype=np.float64)


def precision(hits: BoolArray) -> FloatArray:
    """Compute the share of each list that is relevant, hits / k: float64 [n] for `hits` bool [n, k]."""
    shares: FloatArray = hits.sum(axis=1) / float(hits.shape[1])
    return shares


def recall(hits: BoolArray, n_relevant: IntArray) -> FloatArray:
    """Compute the share of what is relevant that each list holds, hits / n_relevant.

    Args:
        hits: bool [n, k].
        n_relevant: int64 [n], relevant items of each row, in its list or not; at least 1.

    Returns:
        float64 [n], in [0, 1].

    Raises:
        ValueError: a row has nothing relevant, or more hits than relevant items.
    """
    _check(hits, n_relevant)
    shares: FloatArray = hits.sum(axis=1) / n_relevant.astype(np.float64)
    return shares


def ndcg(hits: BoolArray, n_relevant: IntArray) -> FloatArray:
    """Compute the normalised discounted cumulative gain of each list, with relevance 0 or 1.

    DCG = sum over places j = 1..k of hit_j / log2(j + 1), divided by the DCG of the best possible list,
    sum over j = 1..min(k, n_relevant) of 1 / log2(j + 1). With one relevant item at place j it is 1 / log2(j + 1).

    Args:
        hits: bool [n, k].
        n_relevant: int64 [n], relevant items of each row, in its list or not; at least 1.

    Returns:
        float64 [n], in [0, 1].

    Raises:
        ValueError: a row has nothing relevant, or more hits than relevant items.

    Source:
        Järvelin, Kekäläinen (2002), Cumulated gain-based evaluation of IR techniques.
    """
    _check(hits, n_relevant)
    k = hits.shape[1]
    discounts = 1.0 / np.log2(np.arange(2, k + 2, dtype=np.float64))
    best = np.cumsum(discounts)[np.minimum(n_relevant, k) - 1]
    gained: FloatArray = (hits @ discounts) / best
    return gained


def coverage(lists: IntArray, n_items: int) -> float:
    """Compute the share of the catalogue's `n_items` items that stand in any list of `lists` int64 [n, k]."""
    return len(np.unique(lists)) / n_items


def novelty(lists: IntArray, n_interactions: IntArray, n_users: int) -> float:
    """Compute the mean self-information of what is listed, in bits: -log2 of the share of users who met the item.

    An item that nobody met counts as met by one user: its surprise is the largest there is, and finite.

    Args:
        lists: int64 [n, k], columns.
        n_interactions: int64 [m], users who met each item.
        n_users: How many users there are.

    Returns:
        Bits, from 0 (everybody met everything listed) to log2(n_users).

    Source:
        Zhou et al. (2010), Solving the apparent diversity-accuracy dilemma of recommender systems.
    """
    bits = np.log2(n_users) - np.log2(np.maximum(n_interactions, 1).astype(np.float64))
    return float(bits[lists].mean())


def _check(hits: BoolArray, n_relevant: IntArray) -> None:
    n_hits = hits.sum(axis=1)
    if len(n_relevant) != len(hits) or (n_relevant < 1).any() or (n_hits > n_relevant).any():
        raise ValueError(
            f"n_relevant must be [{len(hits)}], at least 1 and at least the hits of its row, got {n_relevant.tolist()}"
        )
