"""A space of what items are like: hashed content projected to few dimensions, searched by cosine. Pure.

Factors say who likes what; mapped from content they keep what explains liking (genres) and lose what is rare (people).
This space keeps both: a random projection leaves cosines as they are, up to a noise of 1/sqrt(dimension).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mmh3
import msgspec
import numpy as np
from numpy.typing import NDArray

from retrieval.content import DEFAULT_BUCKETS, content_matrix, mapped_content
from retrieval.items import Item
from retrieval.vectors import VectorIndex, unit_rows

Float32Array = NDArray[np.float32]

CONTENT_DIMENSION = 128
_SEED = 20261126


@dataclass(frozen=True, slots=True, eq=False)
class ContentSpace:
    """Where the n items of a catalogue lie by content.

    Attributes:
        projection: float32 [F, c], from hashed content features.
        vectors: float32 [n, c], of norm 1, or 0 for an item without content.
        digests: int64 [n], of the content that each vector is of.
    """

    projection: Float32Array
    vectors: Float32Array
    digests: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together.

        Raises:
            ValueError: they do not.
        """
        n, c = len(self.digests), self.projection.shape[-1]
        if self.projection.ndim != 2 or self.vectors.shape != (n, c):
            raise ValueError(f"content vectors must have shape [{n}, {c}], got {list(self.vectors.shape)}")

    @property
    def dimension(self) -> int:
        """c, the length of a vector."""
        return int(self.projection.shape[-1])

    def vector(self, item: Item) -> Float32Array:
        """Place one item: float32 [c]."""
        placed: Float32Array = unit_rows(mapped_content(item, self.projection)[None, :])[0]
        return placed


def build_content_space(
    items: Sequence[Item], *, dimension: int = CONTENT_DIMENSION, n_buckets: int = DEFAULT_BUCKETS
) -> ContentSpace:
    """Place every item of a catalogue; the same arguments give the same space."""
    rng = np.random.default_rng(_SEED)
    projection = (rng.standard_normal((n_buckets, dimension)) / np.sqrt(dimension)).astype(np.float32)
    return ContentSpace(
        projection=projection,
        vectors=unit_rows(np.asarray(content_matrix(items, n_buckets) @ projection)),
        digests=np.array([content_digest(item) for item in items], dtype=np.int64),
    )


def content_digest(item: Item) -> int:
    """Return 64 bits of everything that content features read."""
    read = msgspec.msgpack.encode((item.attributes, item.creator), order="deterministic")
    return mmh3.hash64(read)[0]


class ContentSearch:
    """The items that are alike, kept up to date as items change. Labels are those of the space, and later ones.

    Args:
        space: As built; its labels are 0 to n - 1.
        index: Cosines over the space's vectors.
    """

    def __init__(self, space: ContentSpace, index: VectorIndex) -> None:
        self._space = space
        self._index = index
        # Vectors of items that came or changed since; None for one that is out of the index.
        self._moved: dict[int, Float32Array | None] = {}

    def put(self, label: int, item: Item) -> None:
        """Place an item; one whose content is that of the space costs no search structure."""
        is_built = label < len(self._space.digests)
        if is_built and label not in self._moved and self._space.digests[label] == content_digest(item):
            return
        vector = self._space.vector(item)
        self._moved[label] = vector
        self._index.add(np.array([label], dtype=np.int64), vector[None, :])

    def remove(self, label: int) -> None:
        """Take an item out."""
        if label < len(self._space.digests):
            self._moved[label] = None
        else:
            self._moved.pop(label, None)
        self._index.remove(np.array([label], dtype=np.int64))

    def search(self, seeds: Sequence[tuple[int, float]], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Find what is most like a weighted mean of items.

        Args:
            seeds: Labels with their weights.
            k: How many.

        Returns:
            Labels int64 [<= k] and cosines float64 [<= k], best first; nothing when no seed has content.
        """
        wanted = np.zeros(self._space.dimension, dtype=np.float32)
        for label, weight in seeds:
            vector = self._vector(label)
            if vector is not None:
                wanted += np.float32(weight) * vector
        if not wanted.any():
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float64)
        return self._index.search(wanted, k)

    def _vector(self, label: int) -> Float32Array | None:
        if label in self._moved:
            return self._moved[label]
        return self._space.vectors[label] if label < len(self._space.digests) else None
