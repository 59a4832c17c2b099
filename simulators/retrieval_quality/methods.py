"""Candidate sources as methods that learn from ratings and score every user and item.

A method is a frozen dataclass of its hyper-parameters; `fit` gives one score matrix a source. ALS, fold-in, content
map and similar items are the production functions on the production arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from retrieval.content import content_matrix
from retrieval.embeddings import AlsConfig, Embeddings, fold_in, train
from retrieval.items import Item
from retrieval.vectors import unit_rows
from service.offline import TrainingConfig
from simulators.retrieval_quality.splits import Ratings

Scores = NDArray[np.float64]
Weighting = Literal["binary", "rating", "bm25"]

_S_PER_DAY = 86_400.0


class Method(Protocol):
    """Learns from ratings, scores float64 [n_users, n_items], larger is better."""

    @property
    def source(self) -> str:
        """The source that the method is tuned for."""
        ...

    def fit(self, ratings: Ratings) -> dict[str, Scores]:
        """Learn and score: scores by source."""
        ...


@dataclass(frozen=True, slots=True)
class Rankings:
    """What asks nothing of the user: popular, trending, under-explored; and random, the control."""

    trending_half_life_days: float = 30.0
    """Age at which a rating counts half."""
    seed: int = 0
    """Draws the random scores."""
    source: str = "popular"

    def fit(self, ratings: Ratings) -> dict[str, Scores]:
        """Score items by ratings, by recent ratings, by fewness of ratings, at random."""
        shape = (ratings.n_users, ratings.n_items)
        n_ratings = np.bincount(ratings.item, minlength=ratings.n_items).astype(np.float64)
        age_days = (ratings.at_s.max() - ratings.at_s) / _S_PER_DAY
        recent = np.bincount(
            ratings.item, weights=np.exp2(-age_days / self.trending_half_life_days), minlength=ratings.n_items
        )
        return {
            "popular": np.broadcast_to(n_ratings, shape),
            "trending": np.broadcast_to(recent, shape),
            "under_explored": np.broadcast_to(-n_ratings, shape),
            "random": np.random.default_rng(self.seed).random(shape),
        }


@dataclass(frozen=True, slots=True)
class Fresh:
    """The newest items first, by year: MovieLens has no time of arrival."""

    items: Sequence[Item]
    source: str = "fresh"

    def fit(self, ratings: Ratings) -> dict[str, Scores]:
        """Score items by their year; an unknown year is the oldest."""
        years = np.array([item.attributes.get("year", 0.0) for item in self.items], dtype=np.float64)
        return {"fresh": np.broadcast_to(years, (ratings.n_users, ratings.n_items))}


@dataclass(frozen=True, slots=True)
class Als:
    """ALS as it is served, and what comes of it without a retrain: fold-in, content alone, similar items."""

    items: Sequence[Item]
    config: AlsConfig
    weighting: Literal["binary", "rating"] = "binary"
    """A positive's confidence: 1, or its rating."""
    source: str = "als"

    def fit(self, ratings: Ratings) -> dict[str, Scores]:
        """Train and score.

        als: trained user vector times item vector, a user whom training has seen. als_fold_in: the user is folded in
        from the ratings, as one who came after training. new_item: the trained user and what each item's content says,
        as for an item that nobody has met. similar: cosine to the newest rated item.
        """
        embeddings = self.embeddings(ratings)
        users, vectors = embeddings.user_vectors, embeddings.item_vectors
        from_content = content_matrix(self.items, embeddings.content_map.shape[0]) @ embeddings.content_map
        newest = _newest_items(ratings)
        directions = unit_rows(vectors)
        return {
            "als": (users @ vectors.T).astype(np.float64),
            "als_fold_in": (fold_in_all(ratings, embeddings) @ vectors.T).astype(np.float64),
            "new_item": (users @ from_content.T).astype(np.float64),
            "similar": (directions[newest] @ directions.T).astype(np.float64),
        }

    def embeddings(self, ratings: Ratings) -> Embeddings:
        """Train the production embeddings."""
        interactions = ratings.matrix()
        if self.weighting == "binary":
            interactions.data[:] = 1.0
        return train(
            interactions,
            item_ids=[item.id for item in self.items],
            user_ids=[str(user) for user in range(ratings.n_users)],
            items=self.items,
            config=self.config,
        )


@dataclass(frozen=True, slots=True)
class AlsAsShipped:
    """ALS with what `hone embeddings train` does unless told otherwise: not tuned, low ratings are no positives."""

    items: Sequence[Item]
    source: str = "als_shipped"

    def fit(self, ratings: Ratings) -> dict[str, Scores]:
        """Train on ratings from 3 stars on, which weigh 1, 2, 3."""
        shipped = TrainingConfig()
        positives = ratings.take(ratings.value >= shipped.positive_from)
        confidence = replace(positives, value=positives.value - shipped.positive_from + 1.0)
        return {"als_shipped": Als(self.items, shipped.als, "rating").fit(confidence)["als"]}


@dataclass(frozen=True, slots=True)
class ItemItem:
    """Cosine of items over the users who rated both, shrunk, with the nearest neighbours kept of each item."""

    n_neighbours: int
    shrink: float
    """Added to the product of norms: a small overlap says little."""
    weighting: Weighting
    source: str = "item_item"

    def fit(self, ratings: Ratings) -> dict[str, Scores]:
        """Score an item by the sum of its similarities to what the user rated, in the user's weights."""
        profile = _weighted(ratings.matrix(), self.weighting)
        norms = np.sqrt(np.asarray(profile.multiply(profile).sum(axis=0)).ravel())
        similarity = (profile.T @ profile).toarray() / np.maximum(np.outer(norms, norms) + self.shrink, 1e-12)
        np.fill_diagonal(similarity, 0.0)
        if self.n_neighbours < ratings.n_items:
            least = np.partition(similarity, -self.n_neighbours, axis=0)[-self.n_neighbours]
            similarity[similarity < least] = 0.0
        return {"item_item": np.asarray(profile @ similarity)}


def fold_in_all(ratings: Ratings, embeddings: Embeddings) -> NDArray[np.float32]:
    """Fold every user in from all of his ratings, without a prior: float32 [n_users, d]."""
    rated = ratings.matrix()
    return np.stack(
        [
            fold_in(
                embeddings.item_vectors[rated.indices[start:end]],
                gram=embeddings.gram,
                alpha0=embeddings.alpha0,
                regularization=embeddings.regularization,
            )
            for start, end in zip(rated.indptr[:-1], rated.indptr[1:], strict=True)
        ]
    )


def _newest_items(ratings: Ratings) -> NDArray[np.int64]:
    newest = np.zeros(ratings.n_users, dtype=np.int64)
    order = np.lexsort((-ratings.item, ratings.at_s))
    newest[ratings.user[order]] = ratings.item[order]
    return newest


def _weighted(ratings: sparse.csr_matrix, weighting: Weighting) -> sparse.csr_matrix:
    """Weigh ratings: 1, as they are, or by Okapi BM25 with items as documents and users as terms.

    BM25 of rating r of item i by user u: r (k1 + 1) / (k1 (1 - b + b |i| / mean |i|) + r) log(n_items / (1 + n_u)),
    k1 = 1.2, b = .75, |i| the sum of the item's ratings, n_u the number of the user's.
    """
    weighted = ratings.copy()
    if weighting == "binary":
        weighted.data[:] = 1.0
    elif weighting == "bm25":
        k1, b = 1.2, 0.75
        length = np.asarray(ratings.sum(axis=0)).ravel()
        relative = (1.0 - b + b * length / length.mean())[ratings.indices]
        n_rated = np.diff(ratings.indptr)
        rarity = np.repeat(np.log(ratings.shape[1] / (1.0 + n_rated)), n_rated)
        weighted.data = ratings.data * (k1 + 1.0) / (k1 * relative + ratings.data) * rarity
    return weighted
