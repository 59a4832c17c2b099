"""Turn an item's attributes into a hashed content vector. Pure: no I/O, no state, no statistics of the catalogue.

Hashing needs no vocabulary, so an item that arrives at noon has the same columns as the items the content map was
fitted on, and a vector can be computed for one item alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import mmh3
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from retrieval.items import Attribute, Item

DEFAULT_BUCKETS = 2048
NUMERIC_STEPS_PER_DOUBLING = 2
"""Buckets of a plain number above 1 between x and 2x: 90 and 120 minutes are neighbours, 90 and 180 are not."""
NUMERIC_STEPS_PER_UNIT = 6
"""Buckets of a number from 0 to 1, for shares such as energy: 0.8 and 0.9 are neighbours, 0.2 and 0.6 are not."""
MAX_WORDS_OF_A_NAME = 4
"""Text of more words is prose: its words are features, not the whole."""


def feature_weights(item: Item) -> dict[str, float]:
    """Name the content features of an item and weigh them.

    Every attribute has the same total energy, however many values it lists, so that five actors do not outvote one
    language. The title is never a feature.

    - text: `language=French`; of more than four words: one feature a word (`plot:heist`), as of a list;
    - a list: one feature a value (`genres=Drama`), each weighing 1/sqrt(number of values);
    - a boolean: `subtitled=true`;
    - `year` (or a name that ends in `_year`): its decade, `decade=1990` (`made_decade=1990` for `made_year`);
    - any other number: buckets, even up to 1 and logarithmic above, shared linearly between the two nearest
      (`runtime~17`), so that nearly equal numbers have nearly equal vectors: a tempo of 120 beside 124, an energy of
      0.8 beside 0.82;
    - the creator: `creator=Agnes Varda`.

    Empty text, NaN and infinities give no feature.

    Args:
        item: The item.

    Returns:
        Weight by feature name, before normalisation.

    Examples:
        >>> feature_weights(Item(id="m1", attributes={"genres": ["Drama", "Crime", "War", "Music"], "year": 1994.0}))
        {'genres=Drama': 0.5, 'genres=Crime': 0.5, 'genres=War': 0.5, 'genres=Music': 0.5, 'decade=1990': 1.0}
    """
    weights: dict[str, float] = {}
    for name, value in item.attributes.items():
        for feature, weight in _attribute_features(name, value):
            weights[feature] = weights.get(feature, 0.0) + weight
    if item.creator:
        weights[f"creator={item.creator}"] = 1.0
    return weights


def content_matrix(items: Sequence[Item], n_buckets: int = DEFAULT_BUCKETS) -> sparse.csr_matrix:
    """Build the content vectors of many items.

    Args:
        items: n items.
        n_buckets: Columns to hash into, F.

    Returns:
        float32 CSR matrix [n, F]; rows have l2 norm 1, or 0 for an item without content.

    Raises:
        ValueError: `n_buckets` is not positive.
    """
    if n_buckets < 1:
        raise ValueError(f"n_buckets must be at least 1, got {n_buckets}")
    bucket_of: dict[str, int] = {}
    columns: list[int] = []
    values: list[float] = []
    row_ends = np.zeros(len(items) + 1, dtype=np.int64)
    for row, item in enumerate(items):
        for feature, weight in feature_weights(item).items():
            bucket = bucket_of.get(feature)
            if bucket is None:
                bucket = bucket_of[feature] = mmh3.hash(feature, signed=False) % n_buckets
            columns.append(bucket)
            values.append(weight)
        row_ends[row + 1] = len(columns)
    matrix = sparse.csr_matrix(
        (np.asarray(values, dtype=np.float64), np.asarray(columns, dtype=np.int32), row_ends),
        shape=(len(items), n_buckets),
    )
    matrix.sum_duplicates()
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    return sparse.csr_matrix(sparse.diags_array(scale) @ matrix).astype(np.float32)


def content_vector(item: Item, n_buckets: int = DEFAULT_BUCKETS) -> NDArray[np.float32]:
    """Build the content vector of one item: float32 [n_buckets], equal to its row of `content_matrix`."""
    buckets, weights = _content_entries(item, n_buckets)
    vector = np.zeros(n_buckets, dtype=np.float32)
    vector[buckets] = weights
    return vector


def mapped_content(item: Item, content_map: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply the content vector of one item with a map [F, d]: float32 [d], without the zeros of that vector."""
    buckets, weights = _content_entries(item, len(content_map))
    mapped: NDArray[np.float32] = weights @ content_map[buckets]
    return mapped


def _content_entries(item: Item, n_buckets: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return what is not zero of a content vector: rising buckets int64 [m] and weights float32 [m]."""
    weight_of: dict[int, float] = {}
    for feature, weight in feature_weights(item).items():
        bucket = mmh3.hash(feature, signed=False) % n_buckets
        weight_of[bucket] = weight_of.get(bucket, 0.0) + weight
    buckets = np.array(sorted(weight_of), dtype=np.int64)
    weights = np.array([weight_of[bucket] for bucket in buckets.tolist()])
    norm = math.sqrt(float(weights @ weights))
    return buckets, (weights / norm if norm else weights).astype(np.float32)


def _attribute_features(name: str, value: Attribute) -> Iterator[tuple[str, float]]:
    if isinstance(value, bool):
        yield f"{name}={'true' if value else 'false'}", 1.0
    elif isinstance(value, str):
        words = dict.fromkeys(re.findall(r"\w+", value.casefold()))
        if len(words) > MAX_WORDS_OF_A_NAME:
            for word in words:
                yield f"{name}:{word}", 1.0 / math.sqrt(len(words))
        elif value:
            yield f"{name}={value}", 1.0
    elif isinstance(value, list):
        distinct = list(dict.fromkeys(entry for entry in value if entry))
        for entry in distinct:
            yield f"{name}={entry}", 1.0 / math.sqrt(len(distinct))
    elif math.isfinite(value):
        yield from _numeric_features(name, float(value))


def _numeric_features(name: str, value: float) -> Iterator[tuple[str, float]]:
    if name == "year" or name.endswith("_year"):
        yield f"{name.removesuffix('year')}decade={math.floor(value / 10) * 10}", 1.0
        return
    size = abs(value)
    position = NUMERIC_STEPS_PER_UNIT * min(size, 1.0)
    if size > 1.0:
        position += NUMERIC_STEPS_PER_DOUBLING * (math.log2(1.0 + size) - 1.0)
    position = math.copysign(position, value)
    below = math.floor(position)
    share = position - below
    if share < 1.0:
        yield f"{name}~{below}", 1.0 - share
    if share > 0.0:
        yield f"{name}~{below + 1}", share
