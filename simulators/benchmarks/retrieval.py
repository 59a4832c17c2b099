"""`hone bench retrieval`: a thousand neighbours from each index, beside the libraries called directly.

Every search is tuned to find 0.95 of the thousand best on 200 queries and measured on 500 others, see `clustered` for
the vectors. All take turns, query by query, so their figures can be compared on a busy machine too. What our code adds
to a library is measured apart, two searches of the very same graph or lists in turns.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.exact import ExactIndex
from retrieval.index import HnswConfig, HnswIndex
from retrieval.lists import QuantisedConfig
from retrieval.quantised import QuantisedIndex
from retrieval.vectors import VectorIndex
from simulators.benchmarks.clustered import DIMENSION, N_QUERIES, N_TUNING, Asked, K, ask, draw_vectors
from simulators.benchmarks.contenders import (
    RECALL,
    Contender,
    build_faiss,
    build_hnswlib,
    build_usearch,
    measure_in_turns,
    measure_overhead,
    our_graph,
    our_lists,
    our_search,
    raw_faiss,
    raw_hnswlib,
)
from simulators.benchmarks.sharing import measure_sharing

_N_CHANGES, _N_THREADS = 200, 2
_SIZES = (5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
_LARGE = 10_000_000

Tell = Callable[[str], None]


def bench_retrieval(n_items: int, tell: Tell) -> dict[str, Any]:
    """Measure all indexes at one size, and those that `auto` chooses from at smaller sizes."""
    tell(f"drawing {n_items:,} vectors")
    vectors, queries = draw_vectors(n_items)
    tell("exact answers")
    tuning, asked = ask(vectors, queries)
    with tempfile.TemporaryDirectory() as folder:
        lists, raw_lists, lists_figures = _lists(vectors, asked, Path(folder), tell)
        graph, raw_graph, graph_figures = _graph(vectors, Path(folder), tell)
    tell("building with faiss")
    contenders: dict[str, Contender | None] = {
        "our_lists": our_lists(lists),
        "faiss": build_faiss(vectors, lists.n_lists, _N_THREADS),
        "our_graph": our_graph(graph),
        "hnswlib": raw_graph,
    }
    tell("building with usearch")
    contenders["usearch"] = build_usearch(vectors, HnswConfig(), _N_THREADS)
    tell("measuring our lists beside faiss")
    lists_figures["overhead"] = measure_overhead(our_search(lists), raw_lists.search, asked)
    as_built = lists.n_probe
    tell("tuning")
    there = {name: contender for name, contender in contenders.items() if contender is not None}
    settings = {name: contender.tune(tuning) for name, contender in there.items()}
    tell("measuring all in turns")
    measured = measure_in_turns({name: contender.search for name, contender in there.items()}, asked)
    compared: dict[str, Any] = {
        name: {"setting": settings[name], **measured[name], **contender.built} for name, contender in there.items()
    }
    if "usearch" not in there:
        compared["usearch"] = {"left_out": "not installed; it is a dependency of development"}
    tell("measuring our graph beside hnswlib")
    graph_figures["overhead"] = measure_overhead(our_search(graph), raw_graph.search, asked)
    tell("changes")
    lists.n_probe = as_built
    lists_figures["change"], graph_figures["change"] = _changes(lists, queries), _changes(graph, queries)
    return {
        **_setting(n_items),
        "at_the_same_recall": compared,
        "quantised": lists_figures,
        "graph": graph_figures,
        "sizes": {f"{n:_}": _sizes(vectors[:n], queries, tell) for n in _SIZES if n < n_items},
    }


def bench_retrieval_large(tell: Tell) -> dict[str, Any]:
    """Measure the quantised index on ten million vectors."""
    tell(f"drawing {_LARGE:,} vectors")
    vectors, queries = draw_vectors(_LARGE)
    tell("exact answers")
    _, asked = ask(vectors, queries)
    with tempfile.TemporaryDirectory() as folder:
        lists, raw_lists, figures = _lists(vectors, asked, Path(folder), tell)
    tell("measuring our lists beside faiss")
    figures["overhead"] = measure_overhead(our_search(lists), raw_lists.search, asked)
    figures["change"] = _changes(lists, queries)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "command": "hone bench retrieval --large",
        **_setting(_LARGE),
        "quantised": figures,
        "peak_rss_gb": round(peak_gb, 2),
    }


def _setting(n_items: int) -> dict[str, Any]:
    return {
        "n_items": n_items,
        "dimension": DIMENSION,
        "k": K,
        "recall_target": RECALL,
        "n_tuning_queries": N_TUNING,
        "n_queries": N_QUERIES,
        "n_build_threads": _N_THREADS,
    }


def _lists(
    vectors: NDArray[np.float32], asked: Asked, folder: Path, tell: Tell
) -> tuple[QuantisedIndex, Contender, dict[str, Any]]:
    """Build lists, save them, map them as ours and read them with faiss, at the setting that the build chose."""
    tell("building lists")
    path = folder / "lists.ivf"
    started = time.perf_counter()
    QuantisedIndex.build(vectors, config=QuantisedConfig(n_threads=_N_THREADS)).save(path)
    build_s = time.perf_counter() - started
    # Before this process has the file as well: it would count as a third one.
    tell("two processes on one file")
    sharing = measure_sharing(path, dimension=DIMENSION, n=len(vectors), queries=asked.queries)
    started = time.perf_counter()
    index = QuantisedIndex.load(path, dimension=DIMENSION, n=len(vectors), metric="ip")
    load_s = time.perf_counter() - started
    raw = faiss.read_index(str(path))
    raw.nprobe = index.n_probe
    figures: dict[str, Any] = {
        "n_lists": index.n_lists,
        "n_probe": index.n_probe,
        "build_s": round(build_s, 1),
        "load_s": round(load_s, 2),
        "file_mb": round(path.stat().st_size / 1e6, 1),
        "bytes_an_item": round(path.stat().st_size / len(vectors), 1),
        "two_processes": sharing,
    }
    return index, raw_faiss(raw), figures


def _graph(vectors: NDArray[np.float32], folder: Path, tell: Tell) -> tuple[HnswIndex, Contender, dict[str, Any]]:
    """Build one graph with hnswlib, and load it as ours too."""
    tell("building a graph")
    path = folder / "graph.hnsw"
    raw, build_s = build_hnswlib(vectors, HnswConfig(), _N_THREADS)
    raw.save_index(str(path))
    # What HnswIndex keeps is its `ef`, or so many for each neighbour when that is more.
    config = HnswConfig(ef_per_neighbour=0.0)
    index = HnswIndex.load(path, dimension=DIMENSION, n=len(vectors), metric="cosine", norm_bound=1.0, config=config)
    figures: dict[str, Any] = {
        "build_s": build_s,
        "file_mb": round(path.stat().st_size / 1e6, 1),
        "bytes_an_item": round(path.stat().st_size / len(vectors), 1),
    }
    return index, raw_hnswlib(raw, build_s=build_s), figures


def _sizes(vectors: NDArray[np.float32], queries: NDArray[np.float32], tell: Tell) -> dict[str, Any]:
    """Measure what `auto` chooses from, as a bundle would build it, in turns."""
    tell(f"{len(vectors):,} vectors")
    exact = ExactIndex(DIMENSION)
    exact.add(np.arange(len(vectors)), vectors)
    indexes: dict[str, VectorIndex] = {
        "exact": exact,
        "graph": HnswIndex.build(vectors, config=HnswConfig(n_threads=_N_THREADS)),
        "quantised": QuantisedIndex.build(vectors, config=QuantisedConfig(n_threads=_N_THREADS)),
    }
    return measure_in_turns({name: our_search(index) for name, index in indexes.items()}, ask(vectors, queries)[1])


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
