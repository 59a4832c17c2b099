"""Measure score matrices by either protocol, and blend sources with the production function. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval import quality
from retrieval.sources import SourceResult, blend
from simulators.retrieval_quality.splits import IntArray, Ratings, Split

K = 10
METRICS = ("hit_rate", "ndcg", "precision", "recall", "coverage", "novelty")

Scores = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over seeds.

    Attributes:
        mean: The mean.
        se: Its standard error over seeds; what the draw of users does is not in it. NaN for one seed.
    """

    mean: float
    se: float


def figure(values: Sequence[float]) -> Figure:
    """Build the mean and its standard error."""
    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return Figure(mean=float(np.mean(values)), se=spread)


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """The lists of one method on one draw, and what they are judged by.

    Attributes:
        items: int64 [n, k] columns, best first.
        hits: bool [n, k].
        n_relevant: int64 [n].
    """

    items: IntArray
    hits: BoolArray
    n_relevant: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class SampledDraw:
    """Protocol (a): rank 100 candidates of each user, one of them held out; ties by place, and places are drawn.

    Attributes:
        split: One test rating a user.
        candidates: int64 [n_test, 100], from `sample_candidates`.
    """

    split: Split
    candidates: IntArray

    def rank(self, scores: Scores, k: int) -> IntArray:
        """Return int64 [n_test, k] columns, best first."""
        of_candidates = np.take_along_axis(scores[self.split.test.user], self.candidates, axis=1)
        return np.take_along_axis(self.candidates, quality.best_places(of_candidates, k), axis=1)

    def judge(self, items: IntArray) -> Lists:
        """Find the held-out item in each list."""
        return Lists(items, items == self.split.test.item[:, None], np.ones(len(items), dtype=np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class FullDraw:
    """Protocol (b): rank everything that somebody rated and the user did not; ties in a drawn order.

    Attributes:
        split: Any number of test ratings a user; users without one are left out of the judgement.
        order: int64 [n_items], a permutation of the columns.
    """

    split: Split
    order: IntArray

    def rank(self, scores: Scores, k: int) -> IntArray:
        """Return int64 [n_users, k] columns, best first."""
        train = self.split.train
        is_met = np.bincount(train.item, minlength=train.n_items) > 0
        open_scores = np.where(train.mask() | ~is_met, -np.inf, scores)
        return self.order[quality.best_places(open_scores[:, self.order], k)]

    def judge(self, items: IntArray) -> Lists:
        """Find the test ratings in each list."""
        relevant = self.split.test.mask()
        n_relevant = relevant.sum(axis=1)
        is_asked = n_relevant > 0
        hits = np.take_along_axis(relevant, items, axis=1)
        return Lists(items[is_asked], hits[is_asked], n_relevant[is_asked])


Draw = SampledDraw | FullDraw


def measure(lists: Lists, train: Ratings) -> dict[str, float]:
    """Compute every metric of the lists, k their length."""
    n_interactions = np.bincount(train.item, minlength=train.n_items)
    return {
        "hit_rate": float(quality.hit_rate(lists.hits).mean()),
        "ndcg": float(quality.ndcg(lists.hits, lists.n_relevant).mean()),
        "precision": float(quality.precision(lists.hits).mean()),
        "recall": float(quality.recall(lists.hits, lists.n_relevant).mean()),
        "coverage": quality.coverage(lists.items, train.n_items),
        "novelty": quality.novelty(lists.items, n_interactions, train.n_users),
    }


def blended(ranked: Mapping[str, IntArray], quotas: Mapping[str, int], *, limit: int) -> IntArray:
    """Blend the rankings of sources by quota, user by user, with the function that serves.

    Args:
        ranked: int64 [n, >= limit] by source, columns, best first.
        quotas: By source, the most important first.
        limit: Length of the blend.

    Returns:
        int64 [n, limit], in the order that `blend` gives.
    """
    n_users = len(next(iter(ranked.values())))
    no_scores = {name: np.zeros(items.shape[1], dtype=np.float32) for name, items in ranked.items()}
    rows = np.empty((n_users, limit), dtype=np.int64)
    for user in range(n_users):
        results = [
            SourceResult(name=name, rows=ranked[name][user].astype(np.int32), scores=no_scores[name], quota=quota)
            for name, quota in quotas.items()
        ]
        rows[user] = blend(results, limit=limit)[0]
    return rows
