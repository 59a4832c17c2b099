"""Exact nearest neighbours by brute force: the oracle of every index, and the index of small catalogues. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.vectors import Metric, as_labels, as_query, as_vectors, best_first, unit_query, unit_rows

FIRST_CAPACITY = 16


class ExactIndex:
    """Score every vector against the query, keep the best k.

    Vectors lie dense in one array; a removed row is filled with the last one, so nothing of it stays behind.

    Attributes:
        metric: "ip" scores the inner product, "cosine" the cosine (0 for a zero vector).
        dimension: d, the length of every vector.
    """

    def __init__(self, dimension: int, *, metric: Metric = "ip") -> None:
        self.dimension = dimension
        self.metric: Metric = metric
        self._vectors = np.zeros((FIRST_CAPACITY, dimension), dtype=np.float32)
        self._labels = np.zeros(FIRST_CAPACITY, dtype=np.int64)
        self._row_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._row_of)

    def search(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Find the k best labels.

        Args:
            query: float32 [d].
            k: How many; all live vectors when there are fewer.

        Returns:
            Labels int64 [<= k] and scores float64 [<= k], best first; equal scores by smaller label.

        Raises:
            ValueError: the query has another dimension or is not finite.
        """
        wanted = as_query(query, self.dimension)
        n_live = len(self)
        if k < 1 or not n_live:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float64)
        if self.metric == "cosine":
            wanted = unit_query(wanted)
        scores = (self._vectors[:n_live] @ wanted).astype(np.float64)
        return best_first(self._labels[:n_live], scores, k)

    def add(self, labels: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Add vectors, or replace those of labels that are there already.

        Args:
            labels: int64 [n], not negative; the last one wins when a label is repeated.
            vectors: float32 [n, d].

        Raises:
            ValueError: shapes, dimension or values are wrong; nothing has been added then.
        """
        rows = as_vectors(vectors, self.dimension)
        ids = as_labels(labels, n=len(rows))
        if self.metric == "cosine":
            rows = unit_rows(rows)
        self._reserve(len(self) + len(ids))
        places = [self._row_of.setdefault(label, len(self._row_of)) for label in ids.tolist()]
        # Of repeated places the last one stays.
        self._vectors[places] = rows
        self._labels[places] = ids

    def remove(self, labels: NDArray[np.int64]) -> None:
        """Take labels out; a label that is not there changes nothing."""
        for label in as_labels(labels).tolist():
            row = self._row_of.pop(label, None)
            if row is None:
                continue
            last = len(self._row_of)
            if row != last:
                self._vectors[row] = self._vectors[last]
                self._labels[row] = self._labels[last]
                self._row_of[int(self._labels[row])] = row

    def _reserve(self, size: int) -> None:
        capacity = len(self._labels)
        if size <= capacity:
            return
        grown = max(size, 2 * capacity)
        self._vectors = np.concatenate([self._vectors, np.zeros((grown - capacity, self.dimension), np.float32)])
        self._labels = np.concatenate([self._labels, np.zeros(grown - capacity, np.int64)])
