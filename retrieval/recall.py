"""Measure an approximate index against the exact oracle. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.vectors import VectorIndex

# How far two float32 sums of the same products may lie apart, relative to them, in another order of adding.
_ROUNDING = 1e-6


def recall_at_k(index: VectorIndex, oracle: VectorIndex, queries: NDArray[np.float32], k: int) -> float:
    """Compute the mean share of the oracle's k best that the index finds.

    An item that ties with the oracle's last one, up to float32 rounding, counts as found: which of equals is returned
    is nobody's mistake.

    Args:
        index: The index to judge.
        oracle: Usually an `ExactIndex` over the same vectors and metric.
        queries: float32 [n, d], n >= 1.
        k: How many neighbours.

    Returns:
        A share in [0, 1]; 1.0 when the oracle is empty.

    Raises:
        ValueError: there is no query, or k is not positive.
    """
    if not len(queries) or k < 1:
        raise ValueError(f"recall needs a query and k >= 1, got {len(queries)} queries and k = {k}")
    shares = np.ones(len(queries))
    for position, query in enumerate(queries):
        best, best_scores = oracle.search(query, k)
        if not len(best):
            continue
        found, _ = index.search(query, k)
        n_hits = len(np.intersect1d(best, found))
        missed = np.setdiff1d(found, best)
        n_ties = _n_tied(oracle, query, missed, edge=float(best_scores[-1])) if len(missed) else 0
        shares[position] = min(len(best), n_hits + n_ties) / len(best)
    return float(shares.mean())


def _n_tied(oracle: VectorIndex, query: NDArray[np.float32], labels: NDArray[np.int64], *, edge: float) -> int:
    every, scores = oracle.search(query, len(oracle))
    tied = every[scores >= edge - _ROUNDING * max(1.0, abs(edge))]
    return len(np.intersect1d(labels, tied))
