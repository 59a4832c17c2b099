"""Which index a catalogue gets, and its file. Touches disk in save and load."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.exact import ExactIndex
from retrieval.index import HnswConfig, HnswIndex
from retrieval.lists import QuantisedConfig
from retrieval.quantised import QuantisedIndex
from retrieval.vectors import Metric, VectorIndex

IndexKind = Literal["graph", "quantised", "exact"]

# Measured, see ADR 28: up to here a thousand neighbours cost about as much exactly as by lists, and none is missed.
EXACT_UP_TO = 20_000
_SUFFIX: dict[IndexKind, str] = {"graph": ".hnsw", "quantised": ".ivf"}


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """Which index, and how it is built and searched."""

    kind: Literal["auto", "graph", "quantised", "exact"] = "auto"
    """`auto` takes exact search for small catalogues, lists of codes for all others."""
    graph: HnswConfig = field(default_factory=HnswConfig)
    """Parameters of a graph."""
    quantised: QuantisedConfig = field(default_factory=QuantisedConfig)
    """Parameters of coarse lists."""

    def kind_for(self, n_items: int) -> IndexKind:
        """Return the kind that a catalogue of so many items gets."""
        if self.kind != "auto":
            return self.kind
        return "exact" if n_items <= EXACT_UP_TO else "quantised"


def index_files(kind: IndexKind, names: Iterable[str]) -> set[str]:
    """Return the files of the named indexes; an exact one has none, it is made of the vectors."""
    return {f"{name}{_SUFFIX[kind]}" for name in names if kind in _SUFFIX}


def save_index(
    folder: Path,
    name: str,
    vectors: NDArray[np.float32],
    *,
    kind: IndexKind,
    metric: Metric,
    queries: NDArray[np.float32],
    config: IndexConfig,
) -> float:
    """Build an index over vectors [n, d] whose labels are their rows, and write its file.

    Returns:
        The largest norm that it has room for, 0 when that is no matter of this kind.
    """
    path = folder / f"{name}{_SUFFIX.get(kind, '')}"
    if kind == "graph":
        graph = HnswIndex.build(vectors, metric=metric, config=config.graph)
        graph.save(path)
        return graph.norm_bound
    if kind == "quantised":
        QuantisedIndex.build(vectors, metric=metric, queries=queries, config=config.quantised).save(path)
    return 0.0


def load_index(
    folder: Path,
    name: str,
    vectors: NDArray[np.float32],
    *,
    kind: IndexKind,
    metric: Metric,
    norm_bound: float,
    config: IndexConfig,
) -> VectorIndex:
    """Load what `save_index` wrote for the same vectors. The caller has verified the file.

    Raises:
        ValueError: the file holds something else.
    """
    n, dimension = vectors.shape
    path = folder / f"{name}{_SUFFIX.get(kind, '')}"
    if kind == "graph":
        return HnswIndex.load(path, dimension=dimension, n=n, metric=metric, norm_bound=norm_bound, config=config.graph)
    if kind == "quantised":
        return QuantisedIndex.load(path, dimension=dimension, n=n, metric=metric, config=config.quantised)
    exact = ExactIndex(dimension, metric=metric)
    exact.add(np.arange(n), vectors)
    return exact
