"""Join candidates of several sources into one set. Pure numpy; loops run over sources, never over candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


_MAX_SOURCES = 255


@dataclass(frozen=True, slots=True, eq=False)
class SourceResult:
    """What one source found.

    Attributes:
        name: The source, as configuration and logs call it.
        rows: int32 [n], catalogue rows, best first.
        scores: float32 [n], the source's own scores; not comparable between sources.
        quota: Candidates it may place before spare room is shared out.
    """

    name: str
    rows: NDArray[np.int32]
    scores: NDArray[np.float32]
    quota: int

    def __post_init__(self) -> None:
        """Refuse what cannot be blended.

        Raises:
            ValueError: rows and scores differ in length, or the quota is negative.
        """
        if self.rows.shape != self.scores.shape or self.rows.ndim != 1:
            raise ValueError(
                f"rows and scores must be equally long, got {list(self.rows.shape)} and {list(self.scores.shape)}"
                f" (source {self.name})"
            )
        if self.quota < 0:
            raise ValueError(f"quota must not be negative, got {self.quota} (source {self.name})")


def blend(
    sources: Sequence[SourceResult], *, limit: int
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.float32]]:
    """Choose at most `limit` distinct rows.

    Each source in turn places its best rows up to its quota, skipping rows that an earlier source has placed. Room
    that is left then goes round the sources in order, one row each, until it is full or nothing is left.

    Args:
        sources: Results, the most important source first; at most 255.
        limit: Candidates wanted.

    Returns:
        Rows int32 [n], the position of each row's source in `sources` uint8 [n], and its score there float32 [n];
        first what quotas placed, source by source, then what filled the room. No row occurs twice.

    Raises:
        ValueError: there are more than 255 sources.
    """
    if len(sources) > _MAX_SOURCES:
        raise ValueError(f"blend takes at most 255 sources, got {len(sources)}")
    taken = np.zeros(0, dtype=np.int32)
    codes = np.zeros(0, dtype=np.uint8)
    scores = np.zeros(0, dtype=np.float32)
    rest: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = []
    for code, source in enumerate(sources):
        fresh = _first_occurrences(source.rows)
        if len(taken):
            fresh = fresh[~np.isin(source.rows[fresh], taken)]
        placed = fresh[: max(min(source.quota, limit - len(taken)), 0)]
        taken = np.concatenate([taken, source.rows[placed].astype(np.int32)])
        codes = np.concatenate([codes, np.full(len(placed), code, dtype=np.uint8)])
        scores = np.concatenate([scores, source.scores[placed].astype(np.float32)])
        left = fresh[len(placed) :]
        rest.append((source.rows[left].astype(np.int32), source.scores[left].astype(np.float32)))
    room = limit - len(taken)
    if room <= 0 or not any(len(rows) for rows, _ in rest):
        return taken, codes, scores
    # A later quota may have placed what an earlier source still holds.
    kept = [~np.isin(rows, taken) for rows, _ in rest]
    more = np.concatenate([rows[mask] for (rows, _), mask in zip(rest, kept, strict=True)])
    more_scores = np.concatenate([values[mask] for (_, values), mask in zip(rest, kept, strict=True)])
    sizes = [int(mask.sum()) for mask in kept]
    turns = np.concatenate([np.arange(size) for size in sizes])
    more_codes = np.repeat(np.arange(len(sizes), dtype=np.uint8), sizes)
    order = np.lexsort((more_codes, turns))
    order = order[_first_occurrences(more[order])][:room]
    return (
        np.concatenate([taken, more[order]]),
        np.concatenate([codes, more_codes[order]]),
        np.concatenate([scores, more_scores[order]]),
    )


def _first_occurrences(rows: NDArray[np.int32]) -> NDArray[np.int64]:
    _, first = np.unique(rows, return_index=True)
    return np.sort(first).astype(np.int64)
