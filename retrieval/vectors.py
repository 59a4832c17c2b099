"""What every index shares: the protocol, the checks on vectors and labels, the order of results. Pure."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval import _native

Metric = Literal["ip", "cosine"]

MAX_LABEL = 2**31 - 1

_ROWS_AT_ONCE = 100_000


class VectorIndex(Protocol):
    """Nearest neighbours by label. Higher scores are better. Not safe for threads: one owner at a time."""

    def search(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Find the k best of the live vectors: labels int64 [<= k], scores float64 [<= k], best first."""
        ...

    def add(self, labels: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Add vectors float32 [n, d] under labels int64 [n], or replace those that are there."""
        ...

    def remove(self, labels: NDArray[np.int64]) -> None:
        """Take labels out; a label that is not there changes nothing."""
        ...

    def __len__(self) -> int: ...


def as_vectors(vectors: NDArray[np.float32], dimension: int) -> NDArray[np.float32]:
    """Check vectors and make them contiguous float32 [n, dimension].

    Raises:
        ValueError: another shape, NaN, an infinity, or a value too large for float32.
    """
    given = np.asarray(vectors)
    if given.ndim != 2 or given.shape[1] != dimension:
        raise ValueError(f"vectors must have shape [n, {dimension}], got {list(given.shape)}")
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(given, dtype=np.float32)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        bad = int(np.argmin(finite))
        raise ValueError(f"vectors must be finite, got {_first_bad(rows[bad])} in row {bad}")
    return rows


def as_query(query: NDArray[np.float32], dimension: int) -> NDArray[np.float32]:
    """Check a query and make it contiguous float32 [dimension].

    Raises:
        ValueError: another shape, NaN, an infinity, or a value too large for float32.
    """
    row = np.asarray(query)
    if row.shape != (dimension,):
        raise ValueError(f"query must have shape [{dimension}], got {list(row.shape)}")
    if row.dtype != np.float32:
        with np.errstate(over="ignore"):
            row = row.astype(np.float32)
    row = np.ascontiguousarray(row)
    # One product instead of two passes: it is finite for all but values that are not, and very large ones.
    if not math.isfinite(row.dot(row)) and not np.isfinite(row).all():
        raise ValueError(f"query must be finite, got {_first_bad(row)}")
    return row


def as_labels(labels: NDArray[np.int64], *, n: int | None = None) -> NDArray[np.int64]:
    """Check labels (int64 [n], 0 to 2**31 - 1: they are rows of a catalogue, and arrays are indexed by them).

    Raises:
        ValueError: not whole numbers, another length than `n`, or out of range.
    """
    given = np.asarray(labels)
    if given.ndim != 1 or (given.size and not np.issubdtype(given.dtype, np.integer)):
        raise ValueError(f"labels must be whole numbers of shape [n], got {given.dtype} {list(given.shape)}")
    if n is not None and len(given) != n:
        raise ValueError(f"labels must be as many as the vectors, {n}, got {len(given)}")
    if given.size and not 0 <= int(given.min()) <= int(given.max()) <= MAX_LABEL:
        raise ValueError(f"labels must be in 0..{MAX_LABEL}, got {int(given.min())}..{int(given.max())}")
    return given.astype(np.int64)


def last_of_equal(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions int64 [<= n], rising, of the last of each label: the later of equals wins."""
    _, from_end = np.unique(labels[::-1], return_index=True)
    positions: NDArray[np.int64] = np.sort(len(labels) - 1 - from_end)
    return positions


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows [n, d] to l2 norm 1; zero rows stay zero."""
    scaled = np.zeros(rows.shape, dtype=np.float32)
    # In parts: float64 of a whole large catalogue is twice its size, several times over.
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        # Halved exponents in float64: the square of a large float32 would overflow.
        wide = rows[start : start + _ROWS_AT_ONCE].astype(np.float64)
        norms = np.linalg.norm(wide, axis=1, keepdims=True)
        scaled[start : start + _ROWS_AT_ONCE] = np.divide(wide, norms, out=np.zeros(wide.shape), where=norms > 0)
    return scaled


def unit_query(query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale one vector [d] to l2 norm 1; zero stays zero."""
    wide = query.astype(np.float64)
    norm = math.sqrt(wide.dot(wide))
    return (wide / norm).astype(np.float32) if norm > 0 else np.zeros_like(query)


def best_first(
    labels: NDArray[np.int64], scores: NDArray[np.float64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Keep the k best: labels int64 [<= k] and scores float64 [<= k], by falling score, then by rising label."""
    if len(scores) <= k and (scores[1:] < scores[:-1]).all():
        return labels, scores
    if len(scores) <= k and (scores[1:] <= scores[:-1]).all():
        return _by_label_where_tied(labels, scores), scores
    order = _native.best(scores, k, labels=labels)
    return labels[order], scores[order]


def _by_label_where_tied(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Order labels by label where the falling scores are equal: a whole sort costs as much as a search."""
    tied = np.flatnonzero(scores[1:] == scores[:-1])
    places = np.union1d(tied, tied + 1)
    ordered = labels.copy()
    ordered[places] = labels[places[np.lexsort((labels[places], -scores[places]))]]
    return ordered


def _first_bad(row: NDArray[Any]) -> float:
    return float(row[~np.isfinite(row)][0])
