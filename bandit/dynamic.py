"""Features of a whole candidate column at once: the same names and values as `FeatureSchema.named`, one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bandit.features import Feature, FeatureSchema
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


Column = npt.NDArray[np.float32] | CategoryColumn


def encode_dynamic(schema: FeatureSchema, columns: Mapping[str, Column], n: int) -> ActionFeatures:
    """Return the `dynamic` features of n candidates, one column a feature.

    Args:
        schema: declares them; each is numeric (NaN is missing) or categorical.
        columns: by source; a source that is not given is missing everywhere.
        n: candidates.

    Raises:
        ValueError: a column is not of the declared kind.
    """
    indices, values = [], []
    for feature in schema.features:
        column = columns.get(feature.source)
        if feature.namespace == "dynamic" and column is not None:
            column_indices, column_values = _encode_column(feature, column)
            indices.append(column_indices)
            values.append(column_values)
    if not indices:
        return ActionFeatures(indices=np.zeros((n, 0), dtype=np.uint32), values=np.zeros((n, 0), dtype=np.float32))
    return ActionFeatures(indices=np.column_stack(indices), values=np.column_stack(values))


def _encode_column(feature: Feature, column: Column) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
    if isinstance(column, CategoryColumn):
        if feature.kind != "categorical":
            raise ValueError(f"feature {feature.name!r} is {feature.kind}, its column is categorical")
        table = _indices(f"{feature.name}={name}" for name in column.names)
        return table[column.codes], np.ones(len(column.codes), dtype=np.float32)
    if feature.kind != "numeric":
        raise ValueError(f"feature {feature.name!r} is {feature.kind}, its column is numeric")
    known = ~np.isnan(column)
    if not feature.edges:
        scaled = np.where(known, column.astype(np.float64) * feature.scale, 0.0).astype(np.float32)
        return np.full(len(column), feature_index("dynamic", feature.name), dtype=np.uint32), scaled
    table = _indices(f"{feature.name}={bucket}" for bucket in range(len(feature.edges) + 1))
    buckets = np.searchsorted(np.asarray(feature.edges), column.astype(np.float64), side="right")
    # NaN sorts after every edge; its value 0 takes it out.
    return table[buckets], known.astype(np.float32)


def _indices(names: Iterable[str]) -> npt.NDArray[np.uint32]:
    return np.array([feature_index("dynamic", name) for name in names], dtype=np.uint32)
