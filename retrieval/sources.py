"""Join candidates of several sources into one set. Pure numpy; loops run over sources, never over candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NO_ROWS = np.zeros(0, dtype=np.int32)
_NO_SCORES = np.zeros(0, dtype=np.float32)


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
    if len(sources) > np.iinfo(np.uint8).max:
        raise ValueError(f"blend takes at most 255 sources, got {len(sources)}")
    rows = np.concatenate([_NO_ROWS, *(source.rows for source in sources)]).astype(np.int32)
    scores = np.concatenate([_NO_SCORES, *(source.scores for source in sources)]).astype(np.float32)
    # One sort of all rows; what is taken is then a lookup in few places.
    distinct, place = np.unique(rows, return_inverse=True)
    is_taken = np.zeros(len(distinct), dtype=np.bool_)
    placed: list[NDArray[np.intp]] = []
    rest: list[NDArray[np.intp]] = []
    room, start = limit, 0
    for source in sources:
        own = place[start : start + len(source.rows)]
        fresh = start + np.flatnonzero(_is_first(own, len(distinct)) & ~is_taken[own])
        n_placed = max(min(source.quota, room), 0)
        placed.append(fresh[:n_placed])
        rest.append(fresh[n_placed:])
        is_taken[place[placed[-1]]] = True
        room -= len(placed[-1])
        start += len(own)
    # A later quota may have placed what an earlier source still holds.
    rest = [left[~is_taken[place[left]]] for left in rest] if room > 0 else []
    turns = np.concatenate([_NO_ROWS, *(np.arange(len(left)) for left in rest)])
    codes = np.repeat(np.arange(len(sources), dtype=np.uint8), [len(source.rows) for source in sources])
    more = np.concatenate([_NO_ROWS, *rest]).astype(np.intp)
    more = more[np.lexsort((codes[more], turns))]
    more = more[_is_first(place[more], len(distinct))][: max(room, 0)]
    chosen = np.concatenate([*placed, more])
    return rows[chosen], codes[chosen], scores[chosen]


def _is_first(places: NDArray[np.intp], n_places: int) -> NDArray[np.bool_]:
    """Return bool [n]: where each of `places` (0 to n_places - 1) stands for the first time."""
    order = np.arange(len(places))
    first = np.empty(n_places, dtype=np.intp)
    # Of repeated places the last assignment stays, so they are assigned from the end.
    first[places[::-1]] = order[::-1]
    is_first: NDArray[np.bool_] = first[places] == order
    return is_first
