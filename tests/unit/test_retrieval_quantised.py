"""What is particular to the index of coarse lists and 8-bit codes."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import faiss
import hnswlib
import numpy as np
import pytest
from implicit.als import AlternatingLeastSquares
from scipy import sparse
from threadpoolctl import threadpool_limits

from retrieval.exact import ExactIndex
from retrieval.lists import QuantisedConfig
from retrieval.quantised import QuantisedIndex
from retrieval.recall import recall_at_k
from simulators.benchmarks.sharing import measure_sharing

DIMENSION = 16


def _vectors(n: int, seed: int = 0) -> np.ndarray:
    """Draw vectors around 50 centres, of lengths that differ: what factors look like."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(77).normal(size=(50, DIMENSION))
    vectors = centres[rng.integers(0, 50, n)] + 0.5 * rng.normal(size=(n, DIMENSION))
    return (vectors * rng.gamma(4.0, 0.25, size=(n, 1))).astype(np.float32)


def _exact(vectors: np.ndarray, metric: str) -> ExactIndex:
    oracle = ExactIndex(DIMENSION, metric=metric)
    oracle.add(np.arange(len(vectors)), vectors)
    return oracle


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_recall_is_what_the_build_measured_it_to_be_and_fewer_lists_find_less(metric: str) -> None:
    vectors, queries = _vectors(8000), _vectors(60, seed=1)
    config = QuantisedConfig(k=200)
    index = QuantisedIndex.build(vectors, metric=metric, queries=_vectors(100, seed=2), config=config)
    oracle = _exact(vectors, metric)
    assert index.n_probe < index.n_lists
    assert recall_at_k(index, oracle, queries, 200) >= 0.95
    index.n_probe //= 2
    assert recall_at_k(index, oracle, queries, 200) < 0.95


def test_a_recall_that_codes_cannot_reach_takes_all_lists() -> None:
    index = QuantisedIndex.build(_vectors(2000), config=QuantisedConfig(recall=1.01))
    assert index.n_probe == index.n_lists


def test_more_neighbours_than_measured_for_scan_more_lists() -> None:
    vectors = _vectors(8000)
    index = QuantisedIndex.build(vectors, config=QuantisedConfig(k=50))
    assert recall_at_k(index, _exact(vectors, "ip"), vectors[:40], 1000) > 0.9


def test_the_file_is_a_quarter_of_float32_and_the_same_for_the_same_vectors(tmp_path: Path) -> None:
    for name in ("a", "b"):
        QuantisedIndex.build(_vectors(4000)).save(tmp_path / name)
    content = (tmp_path / "a").read_bytes()
    assert content == (tmp_path / "b").read_bytes()
    # One byte a dimension and eight a label; the means of 64 lists are the rest.
    assert len(content) < 4000 * (DIMENSION + 8) + 64 * (4 * DIMENSION + 8) + 1000


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_a_loaded_index_answers_like_the_saved_one_and_still_changes(tmp_path: Path, metric: str) -> None:
    vectors = _vectors(3000)
    index = QuantisedIndex.build(vectors, metric=metric)
    index.save(tmp_path / "lists")
    before = (tmp_path / "lists").read_bytes()
    loaded = QuantisedIndex.load(tmp_path / "lists", dimension=DIMENSION, n=3000, metric=metric)
    other = QuantisedIndex.load(tmp_path / "lists", dimension=DIMENSION, n=3000, metric=metric)
    assert loaded.n_probe == index.n_probe
    for query in _vectors(10, seed=1):
        expected, found = index.search(query, 20), loaded.search(query, 20)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
    loaded.remove(np.arange(2999))
    loaded.add(np.asarray([9000]), vectors[:1])
    assert sorted(loaded.search(vectors[0], 10)[0].tolist()) == [2999, 9000]
    # What one process changes is its own: neither the file nor another index on it sees it.
    assert (tmp_path / "lists").read_bytes() == before
    np.testing.assert_array_equal(other.search(vectors[0], 20)[0], index.search(vectors[0], 20)[0])


def test_an_index_whose_file_is_removed_goes_on(tmp_path: Path) -> None:
    vectors = _vectors(500)
    QuantisedIndex.build(vectors).save(tmp_path / "lists")
    loaded = QuantisedIndex.load(tmp_path / "lists", dimension=DIMENSION, n=500, metric="ip")
    (tmp_path / "lists").unlink()
    assert len(loaded.search(vectors[0], 500)[0]) == 500


def test_an_index_that_is_let_go_of_unmaps_its_file(tmp_path: Path) -> None:
    QuantisedIndex.build(_vectors(500)).save(tmp_path / "lists")
    loaded = QuantisedIndex.load(tmp_path / "lists", dimension=DIMENSION, n=500, metric="ip")
    assert str(tmp_path / "lists") in Path("/proc/self/maps").read_text()
    del loaded
    gc.collect()
    assert str(tmp_path / "lists") not in Path("/proc/self/maps").read_text()


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    QuantisedIndex.build(_vectors(500)).save(tmp_path / "lists")
    for dimension, n in ((DIMENSION, 499), (DIMENSION + 1, 500)):
        with pytest.raises(ValueError, match=f"must hold {n} vectors of {dimension}"):
            QuantisedIndex.load(tmp_path / "lists", dimension=dimension, n=n, metric="ip")


def test_a_changed_index_refuses_to_be_saved(tmp_path: Path) -> None:
    for change in ("remove", "replace", "load"):
        index = QuantisedIndex.build(_vectors(200))
        if change == "remove":
            index.remove(np.asarray([3]))
        elif change == "replace":
            index.add(np.asarray([3]), _vectors(1))
        else:
            index.save(tmp_path / "lists")
            index = QuantisedIndex.load(tmp_path / "lists", dimension=DIMENSION, n=200, metric="ip")
        with pytest.raises(ValueError, match="freshly built"):
            index.save(tmp_path / "again")


def test_vectors_beyond_the_codes_are_found_with_their_true_score() -> None:
    vectors = _vectors(1000)
    index = QuantisedIndex.build(vectors)
    index.add(np.asarray([1000, 1001]), np.stack([vectors[0] * 50, np.full(DIMENSION, 1e30, dtype=np.float32)]))
    assert (index.n_aside, len(index)) == (2, 1002)
    index.remove(np.asarray([1001]))
    labels, scores = index.search(vectors[0], 3)
    assert labels[0] == 1000
    assert scores[0] == pytest.approx(50 * float(vectors[0] @ vectors[0]), rel=1e-5)


def test_vectors_like_those_built_from_go_to_the_lists() -> None:
    vectors = _vectors(5000)
    index = QuantisedIndex.build(vectors[:4000])
    index.add(np.arange(4000, 5000), vectors[4000:])
    assert index.n_aside <= 10
    oracle = _exact(vectors, "ip")
    assert recall_at_k(index, oracle, vectors[4000:4050], 100) > 0.95


def test_vectors_whose_squares_overflow_are_refused_by_a_build() -> None:
    vectors = _vectors(100)
    vectors[3] = 1e30
    with pytest.raises(ValueError, match=r"vectors must have components up to 1e\+15, got 1e\+30"):
        QuantisedIndex.build(vectors)


def test_lists_do_not_grow_over_many_adds_and_removals() -> None:
    vectors = _vectors(2000)
    index = QuantisedIndex.build(vectors)
    rng = np.random.default_rng(5)

    def n_entries() -> int:
        return sum(index._layers.list_size(number) for number in range(index.n_lists))

    for turn in range(100):
        labels = np.arange(50) + 2000 + 50 * (turn % 4)
        index.add(labels, vectors[rng.integers(0, 2000, 50)])
        if turn >= 3:
            index.remove(np.arange(50) + 2000 + 50 * ((turn - 3) % 4))
            assert n_entries() == len(index) + len(index._hollow) <= 2150
    assert len(index._list_of) <= 2 * 2200


def test_lists_that_were_emptied_leave_room_for_all_that_is_asked_for() -> None:
    vectors = _vectors(2000)
    index = QuantisedIndex.build(vectors)
    index.remove(np.arange(1000, 2000))
    index.remove(np.setdiff1d(np.arange(1000), np.arange(0, 1000, 40)))
    assert len(index._hollow) > 3
    labels, _ = index.search(vectors[0], 25)
    assert sorted(labels.tolist()) == list(range(0, 1000, 40))
    index.add(np.arange(2000), vectors)
    assert not index._hollow
    assert sorted(index.search(vectors[0], 2000)[0].tolist()) == list(range(2000))


def test_searching_starts_no_thread_and_works_in_a_child_of_a_process_that_built_with_threads() -> None:
    vectors = _vectors(3000)
    # Three libraries with an OpenMP runtime each, every one with its pool started before the fork.
    graph = hnswlib.Index(space="l2", dim=DIMENSION)
    graph.init_index(max_elements=3000)
    graph.add_items(vectors, num_threads=2)
    with threadpool_limits(1, "blas"):
        als = AlternatingLeastSquares(factors=8, iterations=1, num_threads=2, random_state=1)
        als.fit(sparse.random(50, 40, density=0.2, format="csr", random_state=1), show_progress=False)
    index = QuantisedIndex.build(vectors, config=QuantisedConfig(n_threads=2))
    n_threads = len(os.listdir("/proc/self/task"))
    expected = index.search(vectors[0], 100)[0]
    assert len(os.listdir("/proc/self/task")) == n_threads
    child = os.fork()
    if not child:
        works = False
        try:
            found = index.search(vectors[0], 100)[0]
            index.add(np.arange(3000, 3010), vectors[:10])
            index.remove(np.arange(3000, 3010))
            graph.knn_query(vectors[:1], k=10, num_threads=1)
            QuantisedIndex.build(vectors[:500])
            works = np.array_equal(found, expected) and faiss.omp_get_max_threads() >= 1
        finally:
            os._exit(0 if works else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_processes_that_load_one_file_share_its_pages(tmp_path: Path) -> None:
    vectors = np.repeat(_vectors(4000), 4, axis=1)
    QuantisedIndex.build(vectors).save(tmp_path / "lists")
    shared = measure_sharing(tmp_path / "lists", dimension=4 * DIMENSION, n=4000, queries=vectors[:20])
    assert shared["file_rss_mb"] >= 0.9 * (tmp_path / "lists").stat().st_size / 2**20
    # Pss counts a page that two processes have as half a page in each.
    assert shared["file_pss_mb"] <= 0.55 * shared["file_rss_mb"]
