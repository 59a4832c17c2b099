"""Approximate nearest neighbours by graph (hnswlib), for inner product and cosine. Touches disk only in save and load.

Maximum inner product is searched as a nearest neighbour: a vector x of norm at most B becomes
`[x, sqrt(B^2 - |x|^2)]`, a query q becomes `[q, 0]`, and the squared distance is `|q|^2 + B^2 - 2 q.x`: the nearest
has the largest inner product, and the inner product is read back from the distance.

B is fixed when the index is built. A later vector longer than B has no such extension, so it goes to a small side
table that every search scans exactly. So does a later vector that a search of the graph for itself cannot find
(deleted neighbours route, but are not linked to). Results are the same, only slower: rebuild when `n_aside` grows.

On the demo catalogue the norm dimension finds 0.99 of the 1,000 largest inner products, hnswlib's own `ip` space
less than half: there, short vectors get no incoming links.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import hnswlib
import numpy as np
from numpy.typing import NDArray

from retrieval.exact import ExactIndex
from retrieval.vectors import (
    Metric,
    as_labels,
    as_query,
    as_vectors,
    best_first,
    last_of_equal,
    unit_query,
    unit_rows,
)

# Forgotten numbers are not looked for while there are fewer.
_FEW_NUMBERS = 1_024


@dataclass(frozen=True, slots=True)
class HnswConfig:
    """How the graph is built and searched."""

    links: int = 16
    """M of the HNSW paper: links of a node a layer. More costs memory and build time, gains recall."""
    ef_construction: int = 200
    """Candidates kept while a node is linked."""
    ef: int = 1000
    """Candidates kept while searching; a search for k neighbours keeps at least `ef_per_neighbour * k`."""
    ef_per_neighbour: float = 2.0
    """Candidates kept for each neighbour asked for."""
    seed: int = 100
    """Draws the layers of the nodes."""
    n_threads: int = 1
    """Threads of a build; with more than one the graph differs from run to run."""


class HnswIndex:
    """An HNSW graph that takes inserts, replacements and removals while it serves.

    hnswlib cannot replace a vector whose slot is deleted and would answer a replaced label twice, so every vector
    gets a number of its own, and two arrays translate between numbers and labels. A removed number is marked deleted,
    therefore never found, and its slot is reused by the next vector that comes; from then on hnswlib does not know the
    number, which is given to a later vector.

    Attributes:
        metric: "ip" scores the inner product, "cosine" the cosine (0 for a zero vector).
        dimension: d, the length of every vector.
        norm_bound: B; 0 when the metric is cosine.
        config: How it was built; `ef` may be changed with `set_ef`.
    """

    def __init__(
        self,
        dimension: int,
        *,
        metric: Metric = "ip",
        norm_bound: float = 1.0,
        capacity: int = 1024,
        config: HnswConfig | None = None,
    ) -> None:
        if metric == "ip" and not (math.isfinite(norm_bound) and norm_bound > 0):
            raise ValueError(f"norm_bound must be positive and finite, got {norm_bound}")
        self.dimension = dimension
        self.metric: Metric = metric
        self.norm_bound = float(norm_bound) if metric == "ip" else 0.0
        self.config = config or HnswConfig()
        self._ef = self.config.ef
        self._graph = self._empty_graph(capacity)
        self._label_of = np.zeros(0, dtype=np.int64)
        self._number_of = np.full(0, -1, dtype=np.int64)
        self._next_number = 0
        self._free_numbers = np.zeros(0, dtype=np.int64)
        self._n_live = 0
        self._aside = ExactIndex(dimension, metric=metric)

    @classmethod
    def build(
        cls,
        vectors: NDArray[np.float32],
        *,
        metric: Metric = "ip",
        headroom: float = 1.0,
        config: HnswConfig | None = None,
    ) -> HnswIndex:
        """Build an index over vectors whose labels are their rows.

        Args:
            vectors: float32 [n, d].
            metric: "ip" or "cosine".
            headroom: B over the largest norm, at least 1; more room for later vectors costs recall.
            config: Graph parameters.

        Returns:
            The index. With one thread the same vectors give the same graph.
        """
        rows = as_vectors(vectors, np.asarray(vectors).shape[-1])
        largest = float(np.linalg.norm(rows.astype(np.float64), axis=1).max(initial=0.0))
        # The smallest step above the largest norm: rounding must not push the longest vector out of its own bound.
        bound = max(headroom, 1.0) * float(np.nextafter(np.float32(largest), np.float32(np.inf)))
        index = cls(rows.shape[1], metric=metric, norm_bound=bound, capacity=len(rows), config=config)
        points = index._points(rows)
        index._insert(np.arange(len(rows), dtype=np.int64), points)
        return index

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        dimension: int,
        n: int,
        metric: Metric,
        norm_bound: float,
        config: HnswConfig | None = None,
    ) -> HnswIndex:
        """Read a graph that `save` wrote. The caller has verified the file: a damaged one crashes the process.

        Args:
            path: The file.
            dimension: d.
            n: Vectors in it, labels 0..n-1.
            metric: As built.
            norm_bound: As built.
            config: Search parameters; `ef` is taken from here.

        Returns:
            The index.

        Raises:
            ValueError: the file holds another number of vectors.
        """
        index = cls(dimension, metric=metric, norm_bound=norm_bound if metric == "ip" else 1.0, config=config)
        graph = _new_graph(dimension, metric)
        graph.load_index(str(path), max_elements=n, allow_replace_deleted=True)
        if graph.get_current_count() != n:
            raise ValueError(f"{path.name} must hold {n} vectors, got {graph.get_current_count()}")
        index._graph = graph
        index._label_of = np.arange(n, dtype=np.int64)
        index._number_of = np.arange(n, dtype=np.int64)
        index._next_number = index._n_live = n
        return index

    def save(self, path: Path) -> None:
        """Write the graph of an index as `build` made it.

        Raises:
            ValueError: vectors were added or removed since: bundles hold fresh builds only.
        """
        fresh = np.array_equal(self._label_of[: self._next_number], np.arange(self._n_live))
        if not fresh or self.n_aside or len(self._number_of) > self._next_number:
            raise ValueError("only a freshly built index can be saved, got one that was changed; build it again")
        self._graph.save_index(str(path))

    @property
    def n_aside(self) -> int:
        """Vectors outside the graph, scanned exactly by every search."""
        return len(self._aside)

    def set_ef(self, ef: int) -> None:
        """Keep at least this many candidates while searching."""
        if ef < 1:
            raise ValueError(f"ef must be at least 1, got {ef}")
        self._ef = ef

    def __len__(self) -> int:
        return self._n_live + self.n_aside

    def search(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Find about the k best labels.

        Args:
            query: float32 [d].
            k: How many; all live vectors when there are fewer.

        Returns:
            Labels int64 [min(k, len)] and scores float64 [min(k, len)] (inner products or cosines), best first.

        Raises:
            ValueError: the query has another dimension or is not finite.
        """
        wanted = as_query(query, self.dimension)
        numbers, distances = self._nearest(wanted, min(k, self._n_live))
        scores = self._scores(wanted, distances)
        labels = self._label_of[numbers]
        if self.n_aside and k > 0:
            more, more_scores = self._aside.search(wanted, k)
            labels, scores = np.concatenate([labels, more]), np.concatenate([scores, more_scores])
        return best_first(labels, scores, max(k, 0))

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
        if not len(ids):
            return
        kept = last_of_equal(ids)
        ids, rows = ids[kept], rows[kept]
        self.remove(ids)
        inside = self._fits(rows)
        self._aside.add(ids[~inside], rows[~inside])
        ids, rows = ids[inside], rows[inside]
        points = self._points(rows)
        n_nodes = int(self._graph.get_current_count())
        if n_nodes > 2 * self._n_live:
            self._compact()
        self._insert(ids, points)
        lost = ~np.asarray(
            [self._finds_itself(int(i), point) for i, point in zip(ids, points, strict=True)], dtype=bool
        )
        if lost.any():
            self.remove(ids[lost])
            self._aside.add(ids[lost], rows[lost])

    def remove(self, labels: NDArray[np.int64]) -> None:
        """Take labels out; a label that is not there changes nothing."""
        ids = as_labels(labels)
        self._aside.remove(ids)
        known = np.unique(ids[ids < len(self._number_of)])
        for number in self._number_of[known].tolist():
            if number >= 0:
                self._graph.mark_deleted(number)
                self._n_live -= 1
        self._number_of[known] = -1

    def _empty_graph(self, capacity: int) -> hnswlib.Index:
        graph = _new_graph(self.dimension, self.metric)
        graph.init_index(
            max_elements=max(capacity, 1),
            M=self.config.links,
            ef_construction=self.config.ef_construction,
            random_seed=self.config.seed,
            allow_replace_deleted=True,
        )
        return graph

    def _fits(self, rows: NDArray[np.float32]) -> NDArray[np.bool_]:
        if self.metric == "cosine":
            return np.ones(len(rows), dtype=bool)
        fits: NDArray[np.bool_] = np.linalg.norm(rows.astype(np.float64), axis=1) <= self.norm_bound
        return fits

    def _points(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Place vectors [n, d] in the graph's space: [n, d + 1] for inner products, [n, d] for cosines."""
        if self.metric == "cosine":
            return unit_rows(rows)
        squared = np.square(rows.astype(np.float64)).sum(axis=1)
        gaps = np.sqrt(np.maximum(self.norm_bound**2 - squared, 0.0))
        return np.column_stack([rows, gaps]).astype(np.float32)

    def _finds_itself(self, label: int, point: NDArray[np.float32]) -> bool:
        self._graph.set_ef(self._ef)
        try:
            numbers, _ = self._graph.knn_query(point, k=1, num_threads=1)
        except RuntimeError:
            return False
        twin = np.array_equal(self._graph.get_items(numbers[0])[0], point)
        return twin or int(self._label_of[int(numbers[0, 0])]) == label

    def _compact(self) -> None:
        """Build the graph again from its live vectors: among too many deleted ones, new ones find no neighbours."""
        labels = np.flatnonzero(self._number_of >= 0)
        points = np.zeros((0, 0), dtype=np.float32)
        if len(labels):
            points = np.asarray(self._graph.get_items(self._number_of[labels]), dtype=np.float32)
        self._graph = self._empty_graph(self._graph.get_max_elements())
        self._label_of = np.zeros(0, dtype=np.int64)
        self._number_of = np.full(0, -1, dtype=np.int64)
        self._next_number = self._n_live = 0
        self._free_numbers = np.zeros(0, dtype=np.int64)
        self._insert(labels, points)

    def _insert(self, labels: NDArray[np.int64], points: NDArray[np.float32]) -> None:
        n = len(labels)
        if not n:
            return
        # Slots of deleted numbers are refilled first; asking for room as if they were not is only generous.
        needed = int(self._graph.get_current_count()) + n
        if needed > self._graph.get_max_elements():
            self._graph.resize_index(max(needed, 2 * self._graph.get_max_elements()))
        numbers = self._take_numbers(n)
        self._label_of = _grown(self._label_of, self._next_number, fill=-1)
        self._number_of = _grown(self._number_of, int(labels.max()) + 1, fill=-1)
        self._graph.add_items(points, numbers, num_threads=self.config.n_threads, replace_deleted=True)
        self._label_of[numbers] = labels
        self._number_of[labels] = numbers
        self._n_live += n

    def _take_numbers(self, n: int) -> NDArray[np.int64]:
        """Return numbers that hnswlib does not know: forgotten ones, looked for when they are many, or new ones."""
        if len(self._free_numbers) < n and self._next_number > 2 * self._graph.get_current_count() + _FEW_NUMBERS:
            known = np.asarray(self._graph.get_ids_list(), dtype=np.int64)
            self._free_numbers = np.setdiff1d(np.arange(self._next_number), known)
        taken, self._free_numbers = self._free_numbers[:n], self._free_numbers[n:]
        fresh = np.arange(self._next_number, self._next_number + n - len(taken))
        self._next_number += len(fresh)
        return np.concatenate([taken, fresh])

    def _nearest(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        if k < 1:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float64)
        if self.metric == "cosine":
            point = unit_query(query)
        else:
            point = np.zeros(self.dimension + 1, dtype=np.float32)
            point[:-1] = query
        # hnswlib does not save ef, and the right one depends on k: set it before every search.
        self._graph.set_ef(max(self._ef, math.ceil(self.config.ef_per_neighbour * k)))
        try:
            numbers, distances = self._graph.knn_query(point, k=k, num_threads=1)
        except RuntimeError as error:
            if "contiguous 2D array" not in str(error):
                raise
            # Fewer than k live nodes can be reached from the entry point, however large ef is.
            return self._scan(point, k)
        return numbers[0].view(np.int64), distances[0].astype(np.float64)

    def _scan(self, point: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Compare every live node: right, and affordable because graphs with so few reachable nodes are small."""
        live = self._number_of[self._number_of >= 0]
        points = np.asarray(self._graph.get_items(live), dtype=np.float64)
        wide = point.astype(np.float64)
        distances = 1.0 - points @ wide if self.metric == "cosine" else np.square(points - wide).sum(axis=1)
        numbers, negated = best_first(live, -distances, k)
        return numbers, -negated

    def _scores(self, query: NDArray[np.float32], distances: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.metric == "cosine":
            return 1.0 - distances
        squared = float(query.astype(np.float64) @ query.astype(np.float64))
        scores: NDArray[np.float64] = (squared + self.norm_bound**2 - distances) / 2.0
        return scores


def _new_graph(dimension: int, metric: Metric) -> hnswlib.Index:
    if metric == "cosine":
        # Rows are normalised before they come here; on unit vectors the inner product is the cosine.
        return hnswlib.Index(space="ip", dim=dimension)
    return hnswlib.Index(space="l2", dim=dimension + 1)


def _grown(array: NDArray[np.int64], size: int, *, fill: int) -> NDArray[np.int64]:
    if size <= len(array):
        return array
    extra = max(size, 2 * len(array)) - len(array)
    return np.concatenate([array, np.full(extra, fill, dtype=np.int64)])
