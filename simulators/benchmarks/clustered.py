"""Vectors around centres, queries that are not among them, and their exact neighbours.

A centre is a normal draw of 64 dimensions whose j-th has variance 1 / j, as the factors of a catalogue have few strong
dimensions and many weak ones; a vector is its centre plus half of another such draw, scaled to length 1. Queries are
drawn in the same way. Recall is against all products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DIMENSION, K = 64, 1000
N_CENTRES, N_TUNING, N_QUERIES = 1000, 200, 500
_CHUNK, _EXACT_CHUNK = 250_000, 50_000


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Queries and what they should find.

    Attributes:
        queries: float32 [m, d].
        truth: int64 [m, k], the rows with the largest products, in no order.
    """

    queries: NDArray[np.float32]
    truth: NDArray[np.int64]


def draw_vectors(n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw vectors float32 [n, d], and float32 [tuning + queries, d] that are asked."""
    rng = np.random.default_rng(20)
    scales = (1.0 / np.sqrt(np.arange(1, DIMENSION + 1))).astype(np.float32)
    centres = scales * rng.standard_normal((N_CENTRES, DIMENSION), dtype=np.float32)
    drawn = np.empty((n + N_TUNING + N_QUERIES, DIMENSION), dtype=np.float32)
    for start in range(0, len(drawn), _CHUNK):
        part = drawn[start : start + _CHUNK]
        rng.standard_normal(out=part, dtype=np.float32)
        part *= 0.5 * scales
        part += centres[rng.integers(0, N_CENTRES, len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return drawn[:n], drawn[n:]


def ask(vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> tuple[Asked, Asked]:
    """Answer all queries exactly, and part them: those to tune on, those to measure with."""
    truth = exact_answers(vectors, queries)
    return Asked(queries[:N_TUNING], truth[:N_TUNING]), Asked(queries[N_TUNING:], truth[N_TUNING:])


def exact_answers(vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """Find the best rows int64 [m, k] by all products."""
    k = min(K, len(vectors))
    labels: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64) for _ in queries]
    scores: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32) for _ in queries]
    edges = np.full(len(queries), -np.inf, dtype=np.float32)
    for start in range(0, len(vectors), _EXACT_CHUNK):
        products = queries @ vectors[start : start + _EXACT_CHUNK].T
        for row, (found, edge) in enumerate(zip(products, edges.tolist(), strict=True)):
            better = np.flatnonzero(found > edge)
            labels[row] = np.concatenate([labels[row], better + start])
            scores[row] = np.concatenate([scores[row], found[better]])
            if len(labels[row]) > k:
                best = np.argpartition(-scores[row], k - 1)[:k]
                labels[row], scores[row] = labels[row][best], scores[row][best]
                # With fewer than k so far, anything is better.
                edges[row] = scores[row].min()
    return np.stack(labels)


def recall_of(found: Sequence[NDArray[np.int64]], truth: NDArray[np.int64]) -> float:
    """Return the share of the true neighbours [m, k] that were found."""
    hits = [len(np.intersect1d(labels, best)) for labels, best in zip(found, truth, strict=True)]
    return round(sum(hits) / truth.size, 4)
