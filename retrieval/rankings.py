"""Rankings of the whole catalogue that no request changes: popular, trending, fresh, under-explored. Pure numpy.

They are made again now and then, off the request path; a request reads the top of one and checks eligibility itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval import _native

Int32Array = NDArray[np.int32]
Float64Array = NDArray[np.float64]

_MS_PER_DAY = 86_400_000.0


@dataclass(frozen=True, slots=True)
class RankingConfig:
    """How the catalogue is ranked."""

    n_kept: int = 4_096
    """Items kept of each ranking; more than any quota with its over-fetch."""
    novelty_half_life_days: float = 14.0
    """Age at which an item's claim to be explored has halved."""


@dataclass(frozen=True, slots=True, eq=False)
class ItemArrays:
    """What rankings read of the n rows of a catalogue.

    Attributes:
        is_listed: bool [n].
        available_at_unix_ms: int64 [n]; 0 when unknown.
        n_interactions: int32 [n] that the embeddings were trained on.
        impressions: float64 [n], decayed.
        clicks: float64 [n], decayed.
    """

    is_listed: NDArray[np.bool_]
    available_at_unix_ms: NDArray[np.int64]
    n_interactions: Int32Array
    impressions: Float64Array
    clicks: Float64Array


@dataclass(frozen=True, slots=True, eq=False)
class Rankings:
    """Rows of listed items by ranking, best first; equal ones by row.

    Attributes:
        popular: int32 [<= n_kept], by interactions, those of training and those of now.
        trending: int32, by clicks of now; only items with any.
        fresh: int32, the newest first.
        under_explored: int32, by `exploration_weight`.
        exploration_weight: float64, of each row of `under_explored`.
    """

    popular: Int32Array
    trending: Int32Array
    fresh: Int32Array
    under_explored: Int32Array
    exploration_weight: Float64Array


_NONE = np.zeros(0, dtype=np.int32)
NO_RANKINGS = Rankings(popular=_NONE, trending=_NONE, fresh=_NONE, under_explored=_NONE, exploration_weight=np.zeros(0))


def build_rankings(items: ItemArrays, *, now_ms: int, config: RankingConfig) -> Rankings:
    """Rank every listed item.

    An item's claim to be explored is 2^(-age / half-life) / (1 + impressions + interactions): young and rarely shown
    ones first. An item without a date counts as one half-life old.
    """
    rows = np.flatnonzero(items.is_listed).astype(np.int32)
    interactions = items.n_interactions[rows] + items.clicks[rows]
    trending = items.clicks[rows]
    available = items.available_at_unix_ms[rows]
    age_days = np.maximum(now_ms - available, 0) / _MS_PER_DAY
    age_days[available == 0] = config.novelty_half_life_days
    # In logarithms: a very old item still has an order.
    novelty = -age_days / config.novelty_half_life_days
    claim = novelty - np.log2(1.0 + items.impressions[rows] + items.n_interactions[rows])
    explored = _native.best(claim, config.n_kept)
    return Rankings(
        popular=rows[_native.best(interactions, config.n_kept)],
        trending=rows[(best := _native.best(trending, config.n_kept))[trending[best] > 0.0]],
        fresh=rows[_native.best(available.astype(np.float64), config.n_kept)],
        under_explored=rows[explored],
        exploration_weight=np.exp2(np.maximum(claim[explored] - claim[explored].max(initial=0.0), -1000.0)),
    )


def draw_weighted(weights: Float64Array, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw min(n, len) positions without replacement, each draw in proportion to the weights that are left.

    By exponential keys (Efraimidis and Spirakis 2006): the smallest of E / w, with E standard exponential.

    Args:
        weights: float64 [m], positive.
        n: How many.
        rng: One number is taken of it for each weight.

    Returns:
        int64 positions, in the order of the draws.
    """
    keys = rng.exponential(size=len(weights)) / weights
    return _native.best(-keys, n)
