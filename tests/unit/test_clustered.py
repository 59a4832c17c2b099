"""The oracle of the retrieval benchmark, and the recall that is counted against it."""

from __future__ import annotations

import numpy as np

from simulators.benchmarks import clustered
from simulators.benchmarks.clustered import exact_answers, recall_of


def test_the_oracle_finds_the_largest_of_all_products_over_several_blocks(monkeypatch) -> None:
    monkeypatch.setattr(clustered, "_EXACT_CHUNK", 700)
    monkeypatch.setattr(clustered, "K", 50)
    rng = np.random.default_rng(0)
    vectors, queries = rng.standard_normal((3000, 8)), rng.standard_normal((20, 8))
    expected = np.argsort(-(queries @ vectors.T), axis=1)[:, :50]
    found = exact_answers(vectors, queries)
    np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(expected, axis=1))
    assert recall_of(list(found), expected) == 1.0
    assert recall_of([row[:40] for row in found], expected) == 0.8


def test_of_fewer_vectors_than_asked_for_all_are_the_best() -> None:
    vectors = np.random.default_rng(0).standard_normal((30, 8))
    assert np.sort(exact_answers(vectors, vectors[:2]), axis=1).tolist() == [list(range(30))] * 2
