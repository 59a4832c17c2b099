"""Join candidates of several sources into one set."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from retrieval import _native

# Their positions are uint8.
_MAX_SOURCES = 255


class SourceResult(msgspec.Struct, frozen=True, eq=False, gc=False):
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
        raise ValueError(f"blend takes at most {_MAX_SOURCES} sources, got {len(sources)}")
    return _native.blend(
        [source.rows for source in sources],
        [source.scores for source in sources],
        [source.quota for source in sources],
        limit,
    )
