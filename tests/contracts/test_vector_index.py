"""The contract of VectorIndex, run on every index."""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.exact import ExactIndex
from retrieval.index import HnswIndex
from retrieval.quantised import QuantisedIndex
from retrieval.vectors import Metric, VectorIndex

DIMENSION = 8


def _hnsw_ip() -> VectorIndex:
    return HnswIndex(DIMENSION, metric="ip", norm_bound=4.0, capacity=4)


def _hnsw_cosine() -> VectorIndex:
    return HnswIndex(DIMENSION, metric="cosine", capacity=4)


def _exact_ip() -> VectorIndex:
    return ExactIndex(DIMENSION, metric="ip")


def _exact_cosine() -> VectorIndex:
    return ExactIndex(DIMENSION, metric="cosine")


@cache
def _built(metric: Metric, *, largest: float) -> Path:
    """Build on other vectors, as long as nearly all that the tests add, so that lists take them, not the side table."""
    vectors = np.random.default_rng(9).normal(size=(160, DIMENSION)).astype(np.float32)
    vectors[: 2 * DIMENSION] = largest * np.concatenate([np.eye(DIMENSION), -np.eye(DIMENSION)])
    path = Path(mkdtemp()) / "lists"
    atexit.register(shutil.rmtree, path.parent)
    QuantisedIndex.build(vectors, metric=metric).save(path)
    return path


def _quantised(metric: Metric, *, largest: float) -> VectorIndex:
    index = QuantisedIndex.load(_built(metric, largest=largest), dimension=DIMENSION, n=160, metric=metric)
    index.remove(np.arange(160))
    return index


def _quantised_ip() -> VectorIndex:
    return _quantised("ip", largest=4.0)


def _quantised_cosine() -> VectorIndex:
    return _quantised("cosine", largest=1.0)


def _quantised_of_nothing() -> VectorIndex:
    return QuantisedIndex.build(np.zeros((0, DIMENSION), dtype=np.float32))


MAKERS = [
    _hnsw_ip,
    _hnsw_cosine,
    _exact_ip,
    _exact_cosine,
    _quantised_ip,
    _quantised_cosine,
    _quantised_of_nothing,
]
every_index = pytest.mark.parametrize("make", MAKERS)
Maker = Callable[[], VectorIndex]


def _vectors(n: int, seed: int = 0, dimension: int = DIMENSION) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dimension)).astype(np.float32)


def _truth(make: Maker, vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    wide, q = vectors.astype(np.float64), query.astype(np.float64)
    if make not in (_hnsw_cosine, _exact_cosine, _quantised_cosine):
        return wide @ q
    norms = np.linalg.norm(wide, axis=1) * np.linalg.norm(q)
    return np.divide(wide @ q, norms, out=np.zeros(len(wide)), where=norms > 0)


def _off_by(make: Maker, vectors: np.ndarray, query: np.ndarray, *, at_most: float) -> float:
    """How far a score may lie from the truth: what float32 rounds off, or half a step of every code."""
    if make not in (_quantised_ip, _quantised_cosine):
        return at_most
    if make == _quantised_cosine:
        query = query / max(float(np.linalg.norm(query)), 1e-30)
    # Codes hold the difference of a vector from a mean, so their range is at most twice that of what was built.
    step = 2 * (4.0 if make == _quantised_ip else 1.0) * 2 / 255
    return at_most + step / 2 * float(np.abs(query).sum()) + 1e-6 * float(np.abs(vectors).max(initial=0.0))


@every_index
def test_an_empty_index_finds_nothing(make: Maker) -> None:
    labels, scores = make().search(_vectors(1)[0], 5)
    assert labels.dtype == np.int64
    assert scores.dtype == np.float64
    assert len(labels) == len(scores) == 0


@every_index
def test_scores_are_the_metric_of_the_vectors_found_and_fall(make: Maker) -> None:
    index, vectors, query = make(), _vectors(200), _vectors(1, seed=1)[0]
    index.add(np.arange(200) * 3, vectors)
    labels, scores = index.search(query, 20)
    assert labels.dtype == np.int64
    assert scores.dtype == np.float64
    assert len(set(labels.tolist())) == 20
    atol = _off_by(make, vectors, query, at_most=1e-5)
    np.testing.assert_allclose(scores, _truth(make, vectors, query)[labels // 3], atol=atol)
    assert (np.diff(scores) <= 0).all()


@every_index
def test_the_best_of_a_small_index_are_found(make: Maker) -> None:
    index, vectors, query = make(), _vectors(200), _vectors(1, seed=1)[0]
    index.add(np.arange(200), vectors)
    labels, _ = index.search(query, 10)
    truth = _truth(make, vectors, query)
    # Of items that lie closer together than a score may be off, either is right.
    assert truth[labels].min() >= np.sort(truth)[-10] - 2 * _off_by(make, vectors, query, at_most=0.0)
    assert len(labels) == 10


@every_index
def test_k_beyond_the_live_vectors_returns_all_of_them(make: Maker) -> None:
    index = make()
    index.add(np.arange(30), _vectors(30))
    index.remove(np.arange(10))
    labels, _ = index.search(_vectors(1, seed=1)[0], 1000)
    assert sorted(labels.tolist()) == list(range(10, 30))


@every_index
def test_k_of_zero_finds_nothing(make: Maker) -> None:
    index = make()
    index.add(np.arange(3), _vectors(3))
    assert len(index.search(_vectors(1)[0], 0)[0]) == 0


@every_index
def test_a_replaced_vector_is_found_once_by_its_new_place(make: Maker) -> None:
    index, vectors = make(), _vectors(50)
    index.add(np.arange(50), vectors)
    index.add(np.asarray([7]), -vectors[7:8])
    labels, scores = index.search(-vectors[7], 50)
    assert len(index) == 50
    assert sorted(labels.tolist()) == list(range(50))
    expected = _truth(make, -vectors[7:8], -vectors[7])[0]
    atol = _off_by(make, vectors, vectors[7], at_most=1e-4)
    assert scores[labels.tolist().index(7)] == pytest.approx(expected, abs=atol)


@every_index
def test_the_last_of_equal_labels_in_one_call_wins(make: Maker) -> None:
    index, vectors = make(), _vectors(2)
    index.add(np.asarray([5, 5]), vectors)
    labels, scores = index.search(vectors[1], 5)
    assert labels.tolist() == [5]
    atol = _off_by(make, vectors, vectors[1], at_most=1e-4)
    assert scores[0] == pytest.approx(_truth(make, vectors[1:], vectors[1])[0], abs=atol)


@every_index
def test_removing_an_absent_label_changes_nothing(make: Maker) -> None:
    index = make()
    index.add(np.arange(3), _vectors(3))
    index.remove(np.asarray([2, 2, 99, 10_000]))
    assert len(index) == 2


@every_index
def test_an_index_emptied_and_filled_again_finds_the_new_vectors_only(make: Maker) -> None:
    index = make()
    index.add(np.arange(300), _vectors(300))
    index.remove(np.arange(300))
    assert len(index) == 0
    index.add(np.asarray([1, 500]), _vectors(2, seed=2))
    assert sorted(index.search(_vectors(1, seed=3)[0], 10)[0].tolist()) == [1, 500]


@every_index
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused_and_adds_nothing(make: Maker, bad: float) -> None:
    index, vectors = make(), _vectors(3)
    vectors[1, 2] = bad
    with pytest.raises(ValueError, match=r"vectors must be finite, got -?(nan|inf) in row 1"):
        index.add(np.arange(3), vectors)
    assert len(index) == 0
    with pytest.raises(ValueError, match=r"query must be finite"):
        index.search(vectors[1], 1)


@every_index
def test_a_wrong_dimension_is_refused(make: Maker) -> None:
    index = make()
    with pytest.raises(ValueError, match=r"vectors must have shape \[n, 8\], got \[2, 7\]"):
        index.add(np.arange(2), _vectors(2, dimension=7))
    with pytest.raises(ValueError, match=r"query must have shape \[8\], got \[9\]"):
        index.search(_vectors(1, dimension=9)[0], 1)


@every_index
@pytest.mark.parametrize("labels", [np.asarray([-1, 0]), np.asarray([0, 2**31]), np.asarray([0.5, 1.0]), np.arange(3)])
def test_wrong_labels_are_refused(make: Maker, labels: np.ndarray) -> None:
    index = make()
    with pytest.raises(ValueError, match="labels must be"):
        index.add(labels, _vectors(2))
    assert len(index) == 0


@every_index
def test_equal_vectors_are_all_found(make: Maker) -> None:
    index = make()
    index.add(np.arange(40), np.repeat(_vectors(1), 40, axis=0))
    assert sorted(index.search(_vectors(1)[0], 40)[0].tolist()) == list(range(40))


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "remove"]), st.lists(st.integers(0, 30), min_size=1, max_size=12)), max_size=12
)


@every_index
@settings(max_examples=40, deadline=None)
@given(steps=STEPS, seed=st.integers(0, 1000))
def test_after_any_history_only_live_labels_are_found_and_the_best_one_is(
    make: Maker, steps: list[tuple[str, list[int]]], seed: int
) -> None:
    index, rng = make(), np.random.default_rng(seed)
    live: dict[int, np.ndarray] = {}
    for kind, labels in steps:
        if kind == "add":
            vectors = rng.normal(size=(len(labels), DIMENSION)).astype(np.float32) * rng.gamma(2.0)
            index.add(np.asarray(labels), vectors)
            live.update(zip(labels, vectors, strict=True))
        else:
            index.remove(np.asarray(labels))
            for label in labels:
                live.pop(label, None)
    query = rng.normal(size=DIMENSION).astype(np.float32)
    labels, scores = index.search(query, 50)
    assert len(index) == len(live)
    assert set(labels.tolist()) <= set(live)
    assert len(set(labels.tolist())) == len(labels)
    if live:
        rows = np.stack([live[label] for label in labels.tolist()])
        every = np.stack(list(live.values()))
        atol = _off_by(make, every, query, at_most=1e-3)
        np.testing.assert_allclose(scores, _truth(make, rows, query), atol=atol)
        assert scores[0] == pytest.approx(_truth(make, every, query).max(), abs=atol)
