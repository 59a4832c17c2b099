"""`hone bench retrieval`: a thousand neighbours from each index, beside the libraries called directly.

Vectors are drawn around 1,000 centres: a centre is a normal draw of 64 dimensions whose j-th has variance 1 / j, as the
factors of a catalogue have few strong dimensions and many weak ones; a vector is its centre plus half of another such
draw, scaled to length 1. Queries are drawn in the same way and are not among the vectors. Recall is against all
products, computed exactly.

Every library is taken at the first setting of its grid that finds 0.95 of the thousand best. Ours and the library's own
call search the very same graph or lists in turns, query by query, so their ratio holds on a busy machine.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import hnswlib
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from retrieval.exact import ExactIndex
from retrieval.index import HnswConfig, HnswIndex
from retrieval.lists import QuantisedConfig
from retrieval.quantised import QuantisedIndex
from retrieval.vectors import VectorIndex
from simulators.benchmarks.sharing import measure_sharing

Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]
"""A query [d] to its labels."""

_DIMENSION, _N_CENTRES = 64, 1000
_K, _RECALL = 1000, 0.95
_N_QUERIES, _N_CHANGES, _N_THREADS = 200, 200, 2
_EFS = (1000, 1250, 1500, 2000, 2500, 3000, 4000, 6000, 8000)
_SIZES = (5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
_LARGE = 10_000_000
_CHUNK = 250_000


def bench_retrieval(n_items: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure all indexes at one size, and those that `auto` chooses from at smaller sizes."""
    threadpool_limits(1, "blas")
    vectors, queries = _vectors(n_items, tell)
    tell("exact answers")
    truth = _exact_answers(vectors, queries)
    figures: dict[str, Any] = {"n_items": n_items, "dimension": _DIMENSION, "k": _K, "n_queries": len(queries)}
    with tempfile.TemporaryDirectory() as folder:
        figures["quantised"] = _quantised(vectors, queries, truth, Path(folder), tell)
        figures["graph"] = _graph(vectors, queries, truth, Path(folder), tell)
    figures["usearch"] = _usearch(vectors, queries, truth, tell)
    figures["sizes"] = {f"{n:_}": _sizes(vectors[:n], queries, tell) for n in _SIZES if n < n_items}
    return figures


def bench_retrieval_large(tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure the quantised index on ten million vectors."""
    threadpool_limits(1, "blas")
    vectors, queries = _vectors(_LARGE, tell)
    tell("exact answers")
    truth = _exact_answers(vectors, queries)
    figures: dict[str, Any] = {"n_items": _LARGE, "dimension": _DIMENSION, "k": _K, "n_queries": len(queries)}
    with tempfile.TemporaryDirectory() as folder:
        figures["quantised"] = _quantised(vectors, queries, truth, Path(folder), tell)
    return figures


def _vectors(n: int, tell: Callable[[str], None]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    tell(f"drawing {n:,} vectors")
    rng = np.random.default_rng(20)
    scales = (1.0 / np.sqrt(np.arange(1, _DIMENSION + 1))).astype(np.float32)
    centres = scales * rng.standard_normal((_N_CENTRES, _DIMENSION), dtype=np.float32)
    drawn = np.empty((n + _N_QUERIES, _DIMENSION), dtype=np.float32)
    for start in range(0, len(drawn), _CHUNK):
        part = drawn[start : start + _CHUNK]
        rng.standard_normal(out=part, dtype=np.float32)
        part *= 0.5 * scales
        part += centres[rng.integers(0, _N_CENTRES, len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return drawn[:n], drawn[n:]


def _exact_answers(vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """Find the best rows int64 [m, k] by all products."""
    k = min(_K, len(vectors))
    scores = np.full((len(queries), 0), -np.inf, dtype=np.float32)
    labels = np.zeros((len(queries), 0), dtype=np.int64)
    for start in range(0, len(vectors), _CHUNK):
        products = queries @ vectors[start : start + _CHUNK].T
        numbers = np.broadcast_to(np.arange(start, start + products.shape[1]), products.shape)
        scores, labels = np.concatenate([scores, products], axis=1), np.concatenate([labels, numbers], axis=1)
        best = np.argpartition(-scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
        scores, labels = np.take_along_axis(scores, best, axis=1), np.take_along_axis(labels, best, axis=1)
    return labels


def _quantised(
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    truth: NDArray[np.int64],
    folder: Path,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    tell("building lists")
    path = folder / "lists.ivf"
    started = time.perf_counter()
    QuantisedIndex.build(vectors, config=QuantisedConfig(n_threads=_N_THREADS)).save(path)
    build_s = time.perf_counter() - started
    # Before this process has the file as well: it would count as a third one.
    tell("two processes on one file")
    sharing = measure_sharing(path, dimension=_DIMENSION, n=len(vectors), queries=queries)
    started = time.perf_counter()
    index = QuantisedIndex.load(path, dimension=_DIMENSION, n=len(vectors), metric="ip")
    load_s = time.perf_counter() - started
    raw = faiss.read_index(str(path))
    raw.nprobe = index.n_probe
    tell("searching lists")
    figures = _in_turns(_ours(index), lambda query: raw.search(query[None, :], _K)[1][0], queries, truth)
    return {
        "n_lists": index.n_lists,
        "n_probe": index.n_probe,
        "build_s": round(build_s, 1),
        "load_s": round(load_s, 2),
        "file_mb": round(path.stat().st_size / 1e6, 1),
        "bytes_an_item": round(path.stat().st_size / len(vectors), 1),
        **figures,
        "change": _changes(index, queries),
        "two_processes": sharing,
    }


def _graph(
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    truth: NDArray[np.int64],
    folder: Path,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    tell("building a graph")
    path, config = folder / "graph.hnsw", HnswConfig()
    started = time.perf_counter()
    raw = hnswlib.Index(space="ip", dim=_DIMENSION)
    raw.init_index(max_elements=len(vectors), M=config.links, ef_construction=config.ef_construction, random_seed=100)
    raw.add_items(vectors, np.arange(len(vectors)), num_threads=_N_THREADS)
    raw.save_index(str(path))
    build_s = time.perf_counter() - started

    def search_raw(query: NDArray[np.float32]) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = raw.knn_query(query, k=_K, num_threads=1)[0][0]
        return labels

    tell("searching the graph")
    ef = _first_that_finds(search_raw, raw.set_ef, _EFS, queries, truth)
    # What HnswIndex keeps is its `ef`, or so many for each neighbour when that is more.
    config = HnswConfig(ef=ef, ef_per_neighbour=0.0)
    index = HnswIndex.load(path, dimension=_DIMENSION, n=len(vectors), metric="cosine", norm_bound=1.0, config=config)
    return {
        "ef": ef,
        "build_s": round(build_s, 1),
        "file_mb": round(path.stat().st_size / 1e6, 1),
        "bytes_an_item": round(path.stat().st_size / len(vectors), 1),
        **_in_turns(_ours(index), search_raw, queries, truth),
        "change": _changes(index, queries),
    }


def _usearch(
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    truth: NDArray[np.int64],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    try:
        from usearch.index import Index
    except ImportError:
        return {"left_out": "usearch is not installed; it is a dependency of development"}
    tell("building with usearch")
    started = time.perf_counter()
    raw = Index(ndim=_DIMENSION, metric="ip", dtype="f32", connectivity=16, expansion_add=200)
    raw.add(np.arange(len(vectors)), vectors, threads=_N_THREADS)
    build_s = time.perf_counter() - started

    def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = raw.search(query, _K, threads=1).keys.astype(np.int64)
        return labels

    def keep(ef: int) -> None:
        raw.expansion_search = ef

    tell("searching with usearch")
    ef = _first_that_finds(search, keep, _EFS, queries, truth)
    found, seconds = _timed(search, queries)
    return {
        "expansion_search": ef,
        "build_s": round(build_s, 1),
        "memory_mb": round(raw.memory_usage / 1e6, 1),
        "recall": _recall(found, truth),
        "raw": _milliseconds(seconds),
    }


def _sizes(vectors: NDArray[np.float32], queries: NDArray[np.float32], tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure what `auto` chooses from, as a bundle would build it, in turns."""
    tell(f"{len(vectors):,} vectors")
    exact = ExactIndex(_DIMENSION)
    exact.add(np.arange(len(vectors)), vectors)
    truth = _exact_answers(vectors, queries)
    indexes: dict[str, VectorIndex] = {
        "exact": exact,
        "graph": HnswIndex.build(vectors, config=HnswConfig(n_threads=_N_THREADS)),
        "quantised": QuantisedIndex.build(vectors, config=QuantisedConfig(n_threads=_N_THREADS)),
    }
    found: dict[str, list[NDArray[np.int64]]] = {name: [] for name in indexes}
    seconds: dict[str, list[float]] = {name: [] for name in indexes}
    for query in queries:
        for name, index in indexes.items():
            started = time.perf_counter()
            labels = index.search(query, _K)[0]
            seconds[name].append(time.perf_counter() - started)
            found[name].append(labels)
    return {name: {"recall": _recall(found[name], truth), **_milliseconds(seconds[name])} for name in indexes}


def _ours(index: VectorIndex) -> Search:
    return lambda query: index.search(query, _K)[0]


def _in_turns(ours: Search, raw: Search, queries: NDArray[np.float32], truth: NDArray[np.int64]) -> dict[str, Any]:
    seconds: tuple[list[float], list[float]] = ([], [])
    found: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    for warm in (True, False):
        for query in queries:
            for place, search in enumerate((ours, raw)):
                started = time.perf_counter()
                labels = search(query)
                spent = time.perf_counter() - started
                if not warm:
                    seconds[place].append(spent)
                    found[place].append(labels)
    return {
        "recall": _recall(found[0], truth),
        "recall_raw": _recall(found[1], truth),
        "ours": _milliseconds(seconds[0]),
        "raw": _milliseconds(seconds[1]),
        "ours_over_raw_p50": round(float(np.median(seconds[0]) / np.median(seconds[1])), 3),
    }


def _changes(index: VectorIndex, vectors: NDArray[np.float32]) -> dict[str, float]:
    """Add vectors under new labels, replace them, take them out again, one at a time."""
    n = len(index)
    spent: dict[str, list[float]] = {"add": [], "replace": [], "remove": []}
    for row in range(_N_CHANGES):
        label, vector = np.asarray([n + row]), vectors[row % len(vectors)][None, :]
        for name in spent:
            started = time.perf_counter()
            if name == "remove":
                index.remove(label)
            else:
                index.add(label, vector if name == "add" else -vector)
            spent[name].append(time.perf_counter() - started)
    return {f"{name}_us_p50": round(float(np.median(seconds)) * 1e6, 1) for name, seconds in spent.items()}


def _first_that_finds(
    search: Search,
    keep: Callable[[int], None],
    settings: Sequence[int],
    queries: NDArray[np.float32],
    truth: NDArray[np.int64],
) -> int:
    for setting in settings:
        keep(setting)
        if _recall([search(query) for query in queries], truth) >= _RECALL:
            return setting
    return settings[-1]


def _timed(search: Search, queries: NDArray[np.float32]) -> tuple[list[NDArray[np.int64]], list[float]]:
    found, seconds = [], []
    for query in queries:
        started = time.perf_counter()
        labels = search(query)
        seconds.append(time.perf_counter() - started)
        found.append(labels)
    return found, seconds


def _recall(found: Sequence[NDArray[np.int64]], truth: NDArray[np.int64]) -> float:
    hits = [len(np.intersect1d(labels, best)) for labels, best in zip(found, truth, strict=True)]
    return round(sum(hits) / truth.size, 4)


def _milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1e3
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}
