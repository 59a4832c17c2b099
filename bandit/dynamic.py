"""Features of a whole candidate column at once: the same names and values as `FeatureSchema.named`, one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bandit.features import NUMBER_KINDS, Feature, FeatureSchema
from bandit.policy import ActionFeatures
from bandit.vw_format import feature_index


@dataclass(frozen=True, slots=True)
class CategoryColumn:
    """A categorical column: value of candidate i is names[codes[i]].

    Attributes:
        codes: integer [n].
        names: the values.
    """

    codes: npt.NDArray[np.integer[Any]]
    names: Sequence[str]


# float32 where it is a number with gaps, int32 where it is a count.
Column = npt.NDArray[np.float32] | npt.NDArray[np.int32] | CategoryColumn


def encode_dynamic(schema: FeatureSchema, columns: Mapping[str, Column], n: int) -> ActionFeatures:
    """Return the `dynamic` features of n candidates, one column a feature.

    Args:
        schema: declares them; each is numeric (NaN is missing) or categorical.
        columns: by source; a source that is not given is missing everywhere.
        n: candidates.

    Raises:
        ValueError: a column is not of the declared kind.
    """
    encoded = []
    for feature in schema.by_namespace["dynamic"]:
        column = _value_column(feature, columns, n)
        if column is not None:
            encoded.append(_encode_column(feature, column))
    indices = np.empty((n, len(encoded)), dtype=np.uint32)
    values = np.empty((n, len(encoded)), dtype=np.float32)
    for place, (column_indices, column_values) in enumerate(encoded):
        indices[:, place] = column_indices
        values[:, place] = column_values
    return ActionFeatures(indices=indices, values=values)


def _value_column(feature: Feature, columns: Mapping[str, Column], n: int) -> Column | npt.NDArray[np.float64] | None:
    """Return what `Feature.value_in` returns for every candidate: float64 [n], NaN is missing; None is all missing."""
    column = columns.get(feature.source)
    if isinstance(column, CategoryColumn):
        return column
    if feature.kind == "categorical":
        if column is not None:
            raise ValueError(f"feature {feature.name!r} is categorical, its column is numeric")
        return None if feature.default is None else CategoryColumn(np.zeros(n, dtype=np.uint8), [str(feature.default)])
    value = None if column is None else column.astype(np.float64)
    if feature.kind == "ratio":
        trials = columns.get(feature.per)
        if value is None or trials is None or isinstance(trials, CategoryColumn):
            value = None
        else:
            value = (value + feature.prior[0]) / (trials.astype(np.float64) + feature.prior[1])
    elif feature.window_s is not None and value is not None:
        value = np.where(value > feature.window_s, np.nan, value)
    if feature.default is None:
        return value
    if value is None:
        return np.full(n, float(feature.default))
    return np.where(np.isnan(value), float(feature.default), value)


def _encode_column(
    feature: Feature, column: Column | npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.uint32] | int, npt.NDArray[Any] | float]:
    """Return indices and values of every candidate, a single one where all have it."""
    if isinstance(column, CategoryColumn):
        if feature.kind != "categorical":
            raise ValueError(f"feature {feature.name!r} is {feature.kind}, its column is categorical")
        table = _indices(f"{feature.name}={name}" for name in column.names)
        return table[column.codes], 1.0
    if feature.kind not in NUMBER_KINDS:
        raise ValueError(f"feature {feature.name!r} is {feature.kind}, its column is numeric")
    known = ~np.isnan(column)
    edges = feature.bucket_edges
    if not edges:
        return feature_index("dynamic", feature.name), np.where(known, column.astype(np.float64) * feature.scale, 0.0)
    table = _indices(f"{feature.name}={bucket}" for bucket in range(len(edges) + 1))
    buckets = np.searchsorted(np.asarray(edges), column.astype(np.float64), side="right")
    # NaN sorts after every edge; its value 0 takes it out.
    return table[buckets], known


def _indices(names: Iterable[str]) -> npt.NDArray[np.uint32]:
    return np.array([feature_index("dynamic", name) for name in names], dtype=np.uint32)
