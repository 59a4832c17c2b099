"""What is particular to the graph index, the oracle's recall, and the order of results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrieval.exact import ExactIndex
from retrieval.index import HnswConfig, HnswIndex
from retrieval.recall import recall_at_k
from retrieval.vectors import best_first


def _vectors(n: int, d: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_vectors_longer_than_the_bound_are_found_with_their_true_score() -> None:
    vectors = _vectors(100)
    index = HnswIndex.build(vectors)
    index.add(np.asarray([100]), vectors[:1] * 50)
    labels, scores = index.search(vectors[0], 3)
    assert index.n_aside == 1
    assert len(index) == 101
    assert labels[0] == 100
    assert scores[0] == pytest.approx(50 * float(vectors[0] @ vectors[0]), rel=1e-5)
    index.remove(np.asarray([100]))
    assert index.n_aside == 0
    assert 100 not in index.search(vectors[0], 101)[0]


def test_a_build_places_its_longest_vector_in_the_graph() -> None:
    vectors = _vectors(100)
    assert HnswIndex.build(vectors).n_aside == 0
    assert len(HnswIndex.build(vectors)) == 100


def test_a_build_of_zero_vectors_works() -> None:
    index = HnswIndex.build(np.zeros((5, 4), dtype=np.float32))
    labels, scores = index.search(np.ones(4, dtype=np.float32), 5)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(scores, 0.0, atol=1e-6)


def test_the_same_vectors_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        HnswIndex.build(_vectors(500)).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_a_loaded_index_answers_like_the_saved_one_and_still_changes(tmp_path: Path, metric: str) -> None:
    vectors = _vectors(300)
    index = HnswIndex.build(vectors, metric=metric)
    index.save(tmp_path / "graph")
    loaded = HnswIndex.load(
        tmp_path / "graph", dimension=8, n=300, metric=metric, norm_bound=index.norm_bound, config=HnswConfig(ef=77)
    )
    for query in _vectors(10, seed=1):
        expected, found = index.search(query, 20), loaded.search(query, 20)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
    loaded.remove(np.arange(299))
    loaded.add(np.asarray([900]), vectors[:1])
    assert sorted(loaded.search(vectors[0], 10)[0].tolist()) == [299, 900]


def test_a_changed_index_refuses_to_be_saved(tmp_path: Path) -> None:
    for change in ("remove", "replace", "long"):
        index = HnswIndex.build(_vectors(20))
        if change == "remove":
            index.remove(np.asarray([3]))
        else:
            index.add(np.asarray([3]), _vectors(1) * (100 if change == "long" else 0.1))
        with pytest.raises(ValueError, match="freshly built"):
            index.save(tmp_path / "graph")


def test_slots_of_removed_labels_are_reused() -> None:
    index = HnswIndex(8, norm_bound=10.0, capacity=100)
    index.add(np.arange(100), _vectors(100))
    for turn in range(7):
        index.remove(np.arange(10) + 10 * turn)
        index.add(np.arange(10) + 10 * turn + 100, _vectors(10, seed=turn))
    assert len(index) == 100
    assert index._graph.get_current_count() == 100


def test_a_lower_ef_than_k_still_gives_k() -> None:
    index = HnswIndex.build(_vectors(500), config=HnswConfig(ef=1, ef_per_neighbour=0.0))
    assert len(index.search(_vectors(1, seed=1)[0], 300)[0]) == 300


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_nodes_that_the_graph_cannot_reach_are_still_returned_when_k_needs_them(metric: str) -> None:
    vectors, query = _vectors(500), _vectors(1, seed=1)[0]
    index = HnswIndex.build(vectors, metric=metric, config=HnswConfig(links=2, ef_construction=2))
    with pytest.raises(RuntimeError, match="contiguous 2D array"):
        index._graph.knn_query(index._points(query[None, :]), k=500)
    oracle = ExactIndex(8, metric=metric)
    oracle.add(np.arange(500), vectors)
    labels, scores = index.search(query, 500)
    assert sorted(labels.tolist()) == list(range(500))
    np.testing.assert_allclose(scores, oracle.search(query, 500)[1], atol=1e-5)


def test_every_vector_added_among_deleted_neighbours_is_found() -> None:
    near, far, fresh = (_vectors(n, seed=seed) * 0.05 for seed, n in enumerate((600, 600, 200)))
    near[:, 0] += 1.0
    far[:, 1] += 1.0
    fresh[:, 0] += 1.0
    config = HnswConfig(links=2, ef=10, ef_construction=20)
    index = HnswIndex.build(np.concatenate([near, far]), metric="cosine", config=config)
    index.remove(np.arange(600))
    index.add(np.arange(2000, 2200), fresh)
    assert index.n_aside > 0
    for row in range(200):
        assert index.search(fresh[row], 10)[0][0] == 2000 + row


def test_a_graph_that_was_emptied_takes_new_vectors_itself() -> None:
    index = HnswIndex.build(_vectors(300), metric="cosine")
    index.remove(np.arange(300))
    index.add(np.arange(50), _vectors(50, seed=1))
    assert (len(index), index.n_aside) == (50, 0)
    assert index._graph.get_current_count() == 50


def test_search_survives_more_removals_than_ef_reaches() -> None:
    index = HnswIndex.build(_vectors(2000), config=HnswConfig(ef=10))
    index.remove(np.arange(1980))
    labels, _ = index.search(_vectors(1, seed=1)[0], 20)
    assert sorted(labels.tolist()) == list(range(1980, 2000))


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf")])
def test_a_norm_bound_that_is_no_length_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="norm_bound must be positive and finite"):
        HnswIndex(4, norm_bound=bound)


def test_ef_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="ef must be at least 1, got 0"):
        HnswIndex(4).set_ef(0)


def test_equal_scores_are_ordered_by_label_also_at_the_edge() -> None:
    labels, scores = best_first(np.asarray([9, 4, 7, 1]), np.asarray([1.0, 1.0, 2.0, 1.0]), 3)
    assert labels.tolist() == [7, 1, 4]
    assert scores.tolist() == [2.0, 1.0, 1.0]


def _exact(vectors: np.ndarray) -> ExactIndex:
    index = ExactIndex(vectors.shape[1])
    index.add(np.arange(len(vectors)), vectors)
    return index


def test_the_oracle_has_recall_one_and_half_an_index_half() -> None:
    vectors, queries = _vectors(200), _vectors(50, seed=1)
    oracle, half = _exact(vectors), _exact(vectors)
    half.remove(np.arange(0, 200, 2))
    assert recall_at_k(oracle, oracle, queries, 20) == 1.0
    assert 0.4 < recall_at_k(half, oracle, queries, 20) < 0.6


def test_another_item_of_the_same_score_counts_as_found() -> None:
    twins = np.repeat(_vectors(1), 2, axis=0)
    oracle, other = _exact(twins), _exact(twins)
    other.remove(np.asarray([0]))
    assert recall_at_k(other, oracle, twins[:1], 1) == 1.0
    assert recall_at_k(other, oracle, twins[:1], 2) == 0.5


def test_recall_without_queries_is_refused() -> None:
    oracle = _exact(_vectors(3))
    with pytest.raises(ValueError, match="recall needs a query"):
        recall_at_k(oracle, oracle, np.zeros((0, 8), dtype=np.float32), 1)
