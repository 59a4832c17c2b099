"""Approximate nearest neighbours by lists of 8-bit codes (faiss), for large catalogues. Touches disk in save and load.

A vector is one byte a dimension in one of about sqrt(n) lists, see `retrieval.lists`. How many lists a search scans is
measured when the index is built.

Scores are those of the codes, which round every component to one of 256 steps. What the codes cannot hold, because it
lies outside of everything that the index was built from, goes to a side table that every search scans exactly, as in
the graph index.

A loaded index maps its file: processes of one machine share the pages. A list that changes is first copied, so a
process pays for the lists that it changed only.
"""

from __future__ import annotations

import math
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.exact import ExactIndex
from retrieval.lists import (
    QuantisedConfig,
    code_view,
    cut,
    faiss_threads,
    label_view,
    measure_probes,
    new_lists,
    probe,
)
from retrieval.vectors import Metric, as_labels, as_query, as_vectors, best_first, last_of_equal, unit_query, unit_rows

# A later vector may be clipped by so many steps of the code; an ordinary one is off by half a step.
_CLIPPED_STEPS = 2


class QuantisedIndex:
    """Coarse lists of 8-bit codes that take inserts, replacements and removals while they serve.

    A removed code is overwritten by the last one of its list: nothing of it stays, and a list that loses as much as
    it gains does not grow. Two bytes a label remember its list, so memory follows the largest label.

    Attributes:
        metric: "ip" scores the inner product, "cosine" the cosine (0 for a zero vector).
        dimension: d, the length of every vector.
        n_probe: Lists that a search for up to `config.k` neighbours scans.
        config: How it was built.
    """

    def __init__(
        self, lists: faiss.IndexIVFScalarQuantizer, *, metric: Metric, config: QuantisedConfig | None = None
    ) -> None:
        self.dimension = int(lists.d)
        self.metric: Metric = metric
        self.config = config or QuantisedConfig()
        self.n_probe = int(lists.nprobe)
        # Lists of its own lie over those that were built or mapped: an empty one shows what is beneath.
        self._built = lists
        self._beneath = faiss.downcast_InvertedLists(lists.invlists)
        self._own = faiss.ArrayInvertedLists(lists.nlist, lists.code_size)
        self._layers = faiss.MaskedInvertedLists(self._own, self._beneath)
        self._is_own = np.zeros(lists.nlist, dtype=bool)
        if isinstance(self._beneath, faiss.OnDiskInvertedLists):
            # faiss would start 32 threads a search to read ahead.
            self._beneath.prefetch_nthread = 0
        # Lists that were emptied hold one entry of label -1 instead, which faiss leaves out of its answers.
        self._hollow: set[int] = set()
        self._mean_of: NDArray[np.float32] = lists.quantizer.reconstruct_n(0, lists.nlist)
        self._by_distance = faiss.IndexFlatL2(self.dimension)
        self._by_distance.add(self._mean_of)
        self._ivf = new_lists(self._mean_of, faiss.vector_to_array(lists.sq.trained))
        self._ivf.replace_invlists(self._layers, False)
        self._list_of = np.full(0, -1, dtype=np.int16)
        self._n_listed = 0
        for number in range(lists.nlist):
            self._note(label_view(self._beneath, number), number)
        self._is_fresh = True
        self._aside = ExactIndex(self.dimension, metric=metric)

    @classmethod
    def build(
        cls,
        vectors: NDArray[np.float32],
        *,
        metric: Metric = "ip",
        queries: NDArray[np.float32] | None = None,
        config: QuantisedConfig | None = None,
    ) -> QuantisedIndex:
        """Build an index over vectors whose labels are their rows.

        Args:
            vectors: float32 [n, d]; of none, an index that keeps all later vectors in its side table.
            metric: "ip" or "cosine".
            queries: float32 [m, d], what will be asked; the vectors themselves when None.
            config: Build and search parameters.

        Returns:
            The index. With one thread the same vectors give the same codes.

        Raises:
            ValueError: wrong values, or one too large for float32 to sum its squares.
        """
        config = config or QuantisedConfig()
        rows = as_vectors(vectors, np.asarray(vectors).shape[-1])
        asked = rows if queries is None or not len(queries) else as_vectors(queries, rows.shape[1])
        asked = asked[np.sort(np.random.default_rng(config.seed).permutation(len(asked))[: config.n_queries])]
        if metric == "cosine":
            rows, asked = unit_rows(rows), unit_rows(asked)
        with faiss_threads(config.n_threads):
            lists = cut(rows, config)
            lists.nprobe = 1
            if len(rows):
                lists.nprobe = measure_probes(lists, rows, asked, config)
        return cls(lists, metric=metric, config=config)

    @classmethod
    def load(
        cls, path: Path, *, dimension: int, n: int, metric: Metric, config: QuantisedConfig | None = None
    ) -> QuantisedIndex:
        """Map what `save` wrote. The caller has verified the file: a damaged one may crash the process.

        Args:
            path: The file; it may be removed while it is mapped, but never changed.
            dimension: d.
            n: Vectors in it, labels 0..n-1.
            metric: As built.
            config: As built.

        Returns:
            The index.

        Raises:
            ValueError: the file holds something else.
        """
        lists = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
        if not isinstance(lists, faiss.IndexIVFScalarQuantizer) or (lists.d, lists.ntotal) != (dimension, n):
            raise ValueError(
                f"{path.name} must hold {n} vectors of {dimension} in lists, got {lists.ntotal} of {lists.d}"
            )
        if lists.quantizer.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"{path.name} must hold lists that are probed by product, got others")
        index = cls(lists, metric=metric, config=config)
        if len(index) != n or len(index._list_of) < n or (index._list_of[:n] < 0).any():
            raise ValueError(f"{path.name} must hold the labels 0..{n - 1}, got others")
        return index

    def save(self, path: Path) -> None:
        """Write an index as `build` made it.

        Raises:
            ValueError: vectors were added or removed since, or it was loaded: bundles hold fresh builds only.
        """
        if not self._is_fresh or not isinstance(self._beneath, faiss.ArrayInvertedLists):
            raise ValueError("only a freshly built index can be saved, got one that was changed; build it again")
        faiss.write_index(self._built, str(path))

    @property
    def n_lists(self) -> int:
        """How many lists there are, 2 to the power of about half of log2 n."""
        return len(self._is_own)

    @property
    def n_aside(self) -> int:
        """Vectors outside the lists, scanned exactly by every search."""
        return len(self._aside)

    def __len__(self) -> int:
        return self._n_listed + self.n_aside

    def search(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Find about the k best labels.

        Args:
            query: float32 [d].
            k: How many; all live vectors when there are fewer.

        Returns:
            Labels int64 [min(k, len)] and scores float64 [min(k, len)] (about the inner products or cosines), best
            first.

        Raises:
            ValueError: the query has another dimension or is not finite.
        """
        wanted = as_query(query, self.dimension)
        if self.metric == "cosine":
            wanted = unit_query(wanted)
        labels, scores = self._nearest(wanted, min(k, self._n_listed))
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
        self._is_fresh = False
        points = unit_rows(rows) if self.metric == "cosine" else rows
        with faiss_threads(1):
            numbers = self._by_distance.assign(points, 1).ravel()
            fits = self._fits(points, numbers)
            self._aside.add(ids[~fits], rows[~fits])
            ids, points, numbers = ids[fits], np.ascontiguousarray(points[fits]), numbers[fits]
            codes = np.empty((len(ids), self._ivf.code_size), dtype=np.uint8)
            self._ivf.encode_vectors(len(ids), faiss.swig_ptr(points), faiss.swig_ptr(numbers), faiss.swig_ptr(codes))
        for label, number, code in zip(ids, numbers.tolist(), codes, strict=True):
            self._put(label, number, code)

    def remove(self, labels: NDArray[np.int64]) -> None:
        """Take labels out; a label that is not there changes nothing."""
        ids = as_labels(labels)
        self._aside.remove(ids)
        for label in np.unique(ids[ids < len(self._list_of)]).tolist():
            number = int(self._list_of[label])
            if number < 0:
                continue
            self._copy(number)
            members, codes = label_view(self._own, number), code_view(self._own, number)
            place, last = int(np.argmax(members == label)), len(members) - 1
            if last:
                members[place], codes[place] = members[last], codes[last]
                self._own.resize(number, last)
            else:
                members[0] = -1
                self._hollow.add(number)
            self._list_of[label] = -1
            self._n_listed -= 1
            self._is_fresh = False

    def _put(self, label: np.int64, number: int, code: NDArray[np.uint8]) -> None:
        self._copy(number)
        if number in self._hollow:
            self._hollow.remove(number)
            label_view(self._own, number)[0], code_view(self._own, number)[0] = label, code
        else:
            self._own.add_entries(number, 1, faiss.swig_ptr(np.asarray([label])), faiss.swig_ptr(code))
        self._note(np.asarray([label]), number)

    def _copy(self, number: int) -> None:
        """Make a list this index's own before it changes."""
        n_beneath = self._beneath.list_size(number)
        if not self._is_own[number] and n_beneath:
            self._own.add_entries(number, n_beneath, self._beneath.get_ids(number), self._beneath.get_codes(number))
        self._is_own[number] = True

    def _note(self, labels: NDArray[np.int64], number: int) -> None:
        if len(labels) and int(labels.max()) >= len(self._list_of):
            extra = max(int(labels.max()) + 1, 2 * len(self._list_of)) - len(self._list_of)
            self._list_of = np.concatenate([self._list_of, np.full(extra, -1, dtype=np.int16)])
        self._list_of[labels] = number
        self._n_listed += len(labels)

    def _fits(self, points: NDArray[np.float32], numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool [n]: points that the codes hold. faiss gives list -1 to what overflows float32 when squared."""
        low, span = faiss.vector_to_array(self._ivf.sq.trained).astype(np.float64).reshape(2, -1)
        residuals = points.astype(np.float64) - self._mean_of[numbers]
        slack = span * (_CLIPPED_STEPS / 255)
        inside = (residuals >= low - slack) & (residuals <= low + span + slack)
        fits: NDArray[np.bool_] = inside.all(axis=1) & (numbers >= 0) & bool(self._built.ntotal)
        return fits

    def _nearest(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        if k < 1:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float64)
        n_lists = self.n_lists
        n_probe = min(n_lists, math.ceil(self.n_probe * max(1.0, k / self.config.k)))
        while True:
            labels, scores = probe(self._ivf, query[None, :], k + len(self._hollow), n_probe)
            # What is missing is at the end.
            n_found = k if labels[0, k - 1] >= 0 else int(np.count_nonzero(labels[0] >= 0))
            if n_probe == n_lists or n_found >= k:
                return labels[0, :n_found], scores[0, :n_found].astype(np.float64)
            n_probe = min(n_lists, 4 * n_probe)
