"""Choose hyper-parameters on draws that are made of training ratings alone. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from retrieval import quality
from retrieval.embeddings import AlsConfig
from retrieval.items import Item
from simulators.retrieval_quality.measure import Draw, K, blended
from simulators.retrieval_quality.methods import Als, AlsAsShipped, Fresh, ItemItem, Method, Rankings, Scores, Weighting
from simulators.retrieval_quality.served import AlsoLiked, Content
from simulators.retrieval_quality.splits import IntArray

BLENDED = ("als", "item_item")
"""Sources of the blend that is tuned at k = 10."""


@dataclass(frozen=True, slots=True)
class Grids:
    """What is tried."""

    factors: tuple[int, ...] = (32, 64)
    regularization: tuple[float, ...] = (5.0, 10.0, 20.0, 40.0)
    alpha: tuple[float, ...] = (1.0, 2.0, 5.0)
    als_weighting: tuple[Literal["binary", "rating"], ...] = ("binary", "rating")
    n_neighbours: tuple[int, ...] = (50, 100, 300, 1000)
    shrink: tuple[float, ...] = (0.0, 10.0, 100.0, 1000.0)
    item_weighting: tuple[Weighting, ...] = ("binary", "rating", "bm25")

    def als(self, items: Sequence[Item]) -> list[Method]:
        """List the ALS methods; what is not tuned is as shipped."""
        return [
            Als(items, AlsConfig(factors=factors, regularization=regularization, alpha=alpha), weighting)
            for factors, regularization, alpha, weighting in itertools.product(
                self.factors, self.regularization, self.alpha, self.als_weighting
            )
        ]

    def item_item(self) -> list[Method]:
        """List the item-item methods."""
        return [
            ItemItem(n_neighbours, shrink, weighting)
            for n_neighbours, shrink, weighting in itertools.product(
                self.n_neighbours, self.shrink, self.item_weighting
            )
        ]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was chosen for a source.

    Attributes:
        n_tried: Points of the grid.
        chosen: Hyper-parameters.
        validation: What the choice was made by, on validation.
    """

    n_tried: int
    chosen: dict[str, Any]
    validation: float


@dataclass(frozen=True, slots=True)
class Choice:
    """Methods and quotas that validation chose, and the record of it by source."""

    methods: list[Method]
    quotas: dict[str, int]
    tuned: dict[str, Tuned]


def choose(draws: Sequence[Draw], items: Sequence[Item], grids: Grids, say: Callable[[str], None]) -> Choice:
    """Choose each method by its NDCG@10, then the quotas of the blend by its hit rate: a blend is a set.

    Args:
        draws: Of one validation split; its training ratings are learned from.
        items: The catalogue, in the order of the columns.
        grids: What is tried.
        say: Told what is going on.
    """
    methods: list[Method] = [Rankings(), Fresh(items), AlsAsShipped(items), AlsoLiked(items), Content(items)]
    tuned: dict[str, Tuned] = {}
    ranked: dict[str, list[IntArray]] = {}
    for grid in (grids.als(items), grids.item_item()):
        best, best_value, best_scores = grid[0], -1.0, None
        for place, method in enumerate(grid):
            say(f"tuning {method.source}: {place + 1} of {len(grid)}")
            scores = method.fit(draws[0].split.train)[method.source]
            value = _ndcg(draws, scores)
            if value > best_value:
                best, best_value, best_scores = method, value, scores
        assert best_scores is not None
        methods.append(best)
        ranked[best.source] = [draw.rank(best_scores, K) for draw in draws]
        tuned[best.source] = Tuned(len(grid), describe(best), best_value)
    say("tuning the blend")
    quotas, hit_rate = _best_quotas(draws, ranked)
    tuned["blend"] = Tuned(K + 1, {"quotas": quotas}, hit_rate)
    return Choice(methods, quotas, tuned)


def describe(method: Method) -> dict[str, Any]:
    """Return the hyper-parameters of a method that was tuned."""
    if isinstance(method, Als):
        return {**asdict(method.config), "weighting": method.weighting}
    assert isinstance(method, ItemItem)
    return {"n_neighbours": method.n_neighbours, "shrink": method.shrink, "weighting": method.weighting}


def _ndcg(draws: Sequence[Draw], scores: Scores) -> float:
    lists = [draw.judge(draw.rank(scores, K)) for draw in draws]
    return float(np.mean([quality.ndcg(found.hits, found.n_relevant).mean() for found in lists]))


def _best_quotas(draws: Sequence[Draw], ranked: Mapping[str, Sequence[IntArray]]) -> tuple[dict[str, int], float]:
    """Try every way to share 10 places between two sources, each alone included."""
    first, second = BLENDED
    rates = []
    for quota in range(K + 1):
        quotas = {first: quota, second: K - quota}
        lists = [
            draw.judge(blended({name: ranked[name][place] for name in BLENDED}, quotas, limit=K))
            for place, draw in enumerate(draws)
        ]
        rates.append(float(np.mean([quality.hit_rate(found.hits).mean() for found in lists])))
    best = int(np.argmax(rates))
    return {first: best, second: K - best}, rates[best]
