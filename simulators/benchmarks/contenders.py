"""Searches beside each other: tuned to one recall on some queries, measured in turns on others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import faiss
import hnswlib
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from retrieval.index import HnswConfig, HnswIndex
from retrieval.quantised import QuantisedIndex
from retrieval.vectors import VectorIndex
from simulators.benchmarks.clustered import Asked, K, recall_of

Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]
"""A query [d] to its labels."""

RECALL = 0.95
# A graph cannot keep fewer candidates than it is asked for, so its grid starts at k.
_EFS = (1000, 1100, 1250, 1500, 1750, 2000, 2500, 3000, 4000, 6000, 8000)


@dataclass(frozen=True, slots=True)
class Contender:
    """A search with its one knob.

    Attributes:
        search: Labels of a query.
        keep: Sets the knob.
        settings: To try, from the cheapest.
        built: What it cost to build.
    """

    search: Search
    keep: Callable[[int], None]
    settings: Sequence[int]
    built: dict[str, float] = field(default_factory=dict)

    def tune(self, asked: Asked) -> int:
        """Set and return the first setting that finds `RECALL`; the last one when none does."""
        for setting in self.settings:
            self.keep(setting)
            if recall_of([self.search(query) for query in asked.queries], asked.truth) >= RECALL:
                return setting
        return self.settings[-1]


def our_search(index: VectorIndex) -> Search:
    """Return our own search as callers get it."""
    return lambda query: index.search(query, K)[0]


def our_lists(index: QuantisedIndex) -> Contender:
    """Our lists; what the build measured is left aside."""

    def keep(n_probe: int) -> None:
        index.n_probe = n_probe

    return Contender(our_search(index), keep, _probes(index.n_lists))


def our_graph(index: HnswIndex) -> Contender:
    """Our graph, loaded with an `ef_per_neighbour` that leaves `ef` alone."""
    return Contender(our_search(index), index.set_ef, _EFS)


def raw_faiss(lists: faiss.IndexIVF, **built: float) -> Contender:
    """Faiss, called as its documentation does."""

    def keep(n_probe: int) -> None:
        lists.nprobe = n_probe

    return Contender(lambda query: lists.search(query[None, :], K)[1][0], keep, _probes(lists.nlist), built)


def raw_hnswlib(graph: hnswlib.Index, **built: float) -> Contender:
    """Hnswlib, called as its documentation does."""

    def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = graph.knn_query(query, k=K, num_threads=1)[0][0]
        return labels

    return Contender(search, graph.set_ef, _EFS, built)


def build_faiss(vectors: NDArray[np.float32], n_lists: int, n_threads: int) -> Contender:
    """Build faiss' own IVF with 8-bit codes, of as many lists as ours has."""
    started = time.perf_counter()
    lists = faiss.index_factory(vectors.shape[1], f"IVF{n_lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(n_threads)
    lists.train(vectors)
    lists.add(vectors)
    faiss.omp_set_num_threads(before)
    return raw_faiss(lists, build_s=_since(started))


def build_hnswlib(vectors: NDArray[np.float32], config: HnswConfig, n_threads: int) -> tuple[hnswlib.Index, float]:
    """Build hnswlib's graph with our parameters, and return the seconds that it took."""
    started = time.perf_counter()
    graph = hnswlib.Index(space="ip", dim=vectors.shape[1])
    graph.init_index(max_elements=len(vectors), M=config.links, ef_construction=config.ef_construction, random_seed=100)
    graph.add_items(vectors, np.arange(len(vectors)), num_threads=n_threads)
    return graph, _since(started)


def build_usearch(vectors: NDArray[np.float32], config: HnswConfig, n_threads: int) -> Contender | None:
    """Build usearch's graph with the same links and construction; None when it is not installed."""
    try:
        from usearch.index import Index
    except ImportError:
        return None
    started = time.perf_counter()
    graph = Index(
        ndim=vectors.shape[1],
        metric="ip",
        dtype="f32",
        connectivity=config.links,
        expansion_add=config.ef_construction,
    )
    graph.add(np.arange(len(vectors)), vectors, threads=n_threads)
    built = {"build_s": _since(started), "memory_mb": round(graph.memory_usage / 1e6, 1)}

    def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = graph.search(query, K, threads=1).keys.astype(np.int64)
        return labels

    def keep(ef: int) -> None:
        graph.expansion_search = ef

    return Contender(search, keep, _EFS, built)


def measure_in_turns(searches: Mapping[str, Search], asked: Asked) -> dict[str, dict[str, float]]:
    """Let all search each query, in an order drawn anew each time, after a round that is not counted.

    In a fixed order one would always find in the caches what the one before it has left there.
    """
    names, rng = list(searches), np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    found: dict[str, list[NDArray[np.int64]]] = {name: [] for name in names}
    # As a worker has it: one thread a product.
    with threadpool_limits(limits=1, user_api="blas"):
        for is_warm in (False, True):
            for query in asked.queries:
                for name in rng.permutation(names).tolist():
                    started = time.perf_counter()
                    labels = searches[name](query)
                    spent = time.perf_counter() - started
                    if is_warm:
                        seconds[name].append(spent)
                        found[name].append(labels)
    return {name: {"recall": recall_of(found[name], asked.truth), **milliseconds(seconds[name])} for name in names}


def measure_overhead(ours: Search, raw: Search, asked: Asked) -> dict[str, Any]:
    """Measure our search beside the library's own of the same structure, and the ratio of their medians."""
    figures = measure_in_turns({"ours": ours, "raw": raw}, asked)
    return {**figures, "ours_over_raw_p50": round(figures["ours"]["p50_ms"] / figures["raw"]["p50_ms"], 3)}


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50 and p99 in ms."""
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1e3
    return {"p50_ms": round(float(p50), 4), "p99_ms": round(float(p99), 4)}


def _probes(n_lists: int) -> list[int]:
    return sorted({min(n_lists, round(1.15**power)) for power in range(60)} | set(range(1, 11)))


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 1)
