"""Cut vectors into lists of 8-bit codes (faiss), and measure how many lists a search has to scan. Pure.

k-means cuts n vectors into about sqrt(n) lists. A vector is kept as its difference from the mean of its list, one byte
a dimension, in the list whose mean is nearest. A search compares the query with the means and scans the lists with the
largest inner products: the mean inner product of the vectors of a list is that of their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

# k-means needs some points a list to place its mean; faiss warns below this.
_POINTS_PER_LIST = 39
_MAX_LISTS = 2**14
_CHUNK = 100_000
_LARGEST = 1e15


@dataclass(frozen=True, slots=True)
class QuantisedConfig:
    """How the lists are built and searched."""

    recall: float = 0.96
    """A build takes the fewest lists that find this share of the `k` best on `n_queries` sampled queries."""
    k: int = 1000
    """Neighbours that `recall` is about; a search for more of them scans more lists in proportion."""
    n_queries: int = 100
    """Queries that `recall` is measured on."""
    rounds: int = 10
    """Rounds of k-means."""
    seed: int = 100
    """Draws the sample and the first means of k-means, and the measured queries."""
    n_threads: int = 1
    """Threads of a build; with more than one the sums of a product may differ in the last bit from run to run."""


def cut(rows: NDArray[np.float32], config: QuantisedConfig) -> faiss.IndexIVFScalarQuantizer:
    """Cut rows [n, d] into lists, take the range of the codes from all of them, and encode them.

    Raises:
        ValueError: a component is too large for float32 to sum its squares.
    """
    n, dimension = rows.shape
    largest = float(np.abs(rows).max(initial=0.0))
    if largest > _LARGEST:
        # k-means of faiss ends the process when sums of squares overflow.
        raise ValueError(f"vectors must have components up to {_LARGEST:g}, got {largest:g}")
    n_lists = max(1, min(2 ** round(math.log2(max(n, 1)) / 2), n // _POINTS_PER_LIST, _MAX_LISTS))
    quantiser = faiss.IndexFlatL2(dimension)
    if n:
        clusters = faiss.Kmeans(dimension, n_lists, niter=config.rounds, seed=config.seed, min_points_per_centroid=1)
        clusters.train(rows)
        quantiser.add(clusters.centroids)
    else:
        quantiser.add(np.zeros((1, dimension), dtype=np.float32))
    means = quantiser.reconstruct_n(0, n_lists)
    numbers = np.empty(n, dtype=np.int64)
    low, high = np.full(dimension, np.inf, np.float32), np.full(dimension, -np.inf, np.float32)
    for start in range(0, n, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        numbers[chunk] = quantiser.assign(rows[chunk], 1).ravel()
        residuals = rows[chunk] - means[numbers[chunk]]
        low, high = np.minimum(low, residuals.min(axis=0)), np.maximum(high, residuals.max(axis=0))
    if not n:
        low = high = np.zeros(dimension, dtype=np.float32)
    lists = new_lists(means, np.concatenate([low, high - low]))
    labels = np.arange(n, dtype=np.int64)
    lists.add_core(n, faiss.swig_ptr(rows), faiss.swig_ptr(labels), faiss.swig_ptr(numbers))
    return lists


def new_lists(means: NDArray[np.float32], ranges: NDArray[np.float32]) -> faiss.IndexIVFScalarQuantizer:
    """Make empty lists around means [m, d], probed by product; ranges [2 d]: lowest differences, and their spans."""
    n_lists, dimension = means.shape
    by_product = faiss.IndexFlatIP(dimension)
    by_product.add(means)
    lists = faiss.IndexIVFScalarQuantizer(
        by_product, dimension, n_lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, True
    )
    faiss.copy_array_to_vector(ranges, lists.sq.trained)
    lists.is_trained = True
    return lists


def measure_probes(
    lists: faiss.IndexIVFScalarQuantizer,
    rows: NDArray[np.float32],
    queries: NDArray[np.float32],
    config: QuantisedConfig,
) -> int:
    """Find the fewest lists, in steps of a quarter, that reach the recall; all of them when none do."""
    k, n_lists = min(config.k, len(rows)), int(lists.nlist)
    best, _ = faiss.knn(queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)
    n_probe = 1
    while n_probe < n_lists:
        found, _ = probe(lists, queries, k, n_probe)
        # An item that ties with the last of the best, up to rounding, counts as found.
        edges = best[:, -1] - 1e-6 * np.maximum(1.0, np.abs(best[:, -1]))
        hits = [
            min(k, int(np.count_nonzero(rows[labels[labels >= 0]] @ query >= edge)))
            for labels, query, edge in zip(found, queries, edges, strict=True)
        ]
        if sum(hits) >= config.recall * k * len(queries):
            return n_probe
        n_probe = min(n_lists, n_probe + max(1, n_probe // 4))
    return n_lists


def probe(
    lists: faiss.IndexIVFScalarQuantizer, queries: NDArray[np.float32], k: int, n_probe: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Scan the best n_probe lists of each query [m, d]: labels int64 [m, k], -1 where none is left, and scores."""
    lists.nprobe = n_probe
    scores, labels = lists.search(queries, k)
    return labels, scores


def label_view(lists: faiss.InvertedLists, number: int) -> NDArray[np.int64]:
    """View the labels int64 [n] of a list; a change of its length ends the view."""
    n = lists.list_size(number)
    if not n:
        return np.zeros(0, dtype=np.int64)
    ids: NDArray[np.int64] = faiss.rev_swig_ptr(lists.get_ids(number), n)
    return ids


def code_view(lists: faiss.InvertedLists, number: int) -> NDArray[np.uint8]:
    """View the codes uint8 [n, d] of a list; a change of its length ends the view."""
    n = lists.list_size(number)
    codes: NDArray[np.uint8] = faiss.rev_swig_ptr(lists.get_codes(number), n * lists.code_size)
    return codes.reshape(n, lists.code_size)


@contextmanager
def faiss_threads(n: int) -> Iterator[None]:
    """Let faiss use n threads: a pool that was started before a fork hangs the child."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(n)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
