"""Metrics of lists: worked examples, a slow oracle, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval import quality

# Two lists of three. The first hits at places 1 and 3 of 4 relevant items, the second at none of 1.
HITS = np.array([[True, False, True], [False, False, False]])
N_RELEVANT = np.array([4, 1])


def test_hit_rate_precision_and_recall_of_a_worked_example() -> None:
    np.testing.assert_allclose(quality.hit_rate(HITS), [1.0, 0.0])
    np.testing.assert_allclose(quality.precision(HITS), [2 / 3, 0.0])
    np.testing.assert_allclose(quality.recall(HITS, N_RELEVANT), [0.5, 0.0])


def test_ndcg_of_a_worked_example() -> None:
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    np.testing.assert_allclose(quality.ndcg(HITS, N_RELEVANT), [1.5 / ideal, 0.0])


@pytest.mark.parametrize("place", [1, 2, 10])
def test_ndcg_of_one_relevant_item_is_the_discount_of_its_place(place: int) -> None:
    hits = np.zeros((1, 10), dtype=np.bool_)
    hits[0, place - 1] = True
    assert quality.ndcg(hits, np.array([1]))[0] == pytest.approx(1 / math.log2(place + 1))


def test_the_ideal_list_is_no_longer_than_the_list() -> None:
    assert quality.ndcg(np.ones((1, 3), dtype=np.bool_), np.array([50]))[0] == pytest.approx(1.0)


def test_coverage_counts_each_item_once() -> None:
    assert quality.coverage(np.array([[0, 1], [1, 2]]), 12) == 0.25


def test_novelty_is_the_mean_surprise_in_bits() -> None:
    # Of 8 users, all met item 0 (0 bits), 2 met item 1 (2 bits), nobody met item 2 (3 bits, as if one had).
    assert quality.novelty(np.array([[0, 1], [2, 2]]), np.array([8, 2, 0]), 8) == pytest.approx((0 + 2 + 3 + 3) / 4)


def test_best_places_put_equal_scores_in_the_order_of_places() -> None:
    scores = np.array([[1.0, 3.0, 3.0, -np.inf], [0.0, 0.0, 0.0, 0.0]])
    assert quality.best_places(scores, 3).tolist() == [[1, 2, 0], [0, 1, 2]]


def test_nan_scores_and_lists_longer_than_the_row_are_refused() -> None:
    with pytest.raises(ValueError, match="scores must not be NaN, got 1 of 2"):
        quality.best_places(np.array([[np.nan, 1.0]]), 1)
    with pytest.raises(ValueError, match=r"k must be in 1\.\.2, got 3"):
        quality.best_places(np.zeros((1, 2)), 3)


@pytest.mark.parametrize("n_relevant", [[4], [4, 0], [1, 1]])
def test_relevant_counts_that_cannot_be_are_refused(n_relevant: list[int]) -> None:
    for metric in (quality.recall, quality.ndcg):
        with pytest.raises(ValueError, match="n_relevant must be"):
            metric(HITS, np.array(n_relevant))


@given(
    st.integers(1, 6).flatmap(lambda k: arrays(np.bool_, st.tuples(st.integers(1, 5), st.just(k)))),
    st.lists(st.integers(0, 9), min_size=5, max_size=5),
)
def test_metrics_equal_a_slow_computation(hits: np.ndarray, extra: list[int]) -> None:
    n_relevant = np.maximum(hits.sum(axis=1) + extra[: len(hits)], 1)
    for row, relevant, of_recall, of_ndcg, of_precision in zip(
        hits.tolist(),
        n_relevant.tolist(),
        quality.recall(hits, n_relevant),
        quality.ndcg(hits, n_relevant),
        quality.precision(hits),
        strict=True,
    ):
        gained = sum(1 / math.log2(place + 1) for place, hit in enumerate(row, start=1) if hit)
        ideal = sum(1 / math.log2(place + 1) for place in range(1, min(relevant, len(row)) + 1))
        assert of_ndcg == pytest.approx(gained / ideal)
        assert of_recall == pytest.approx(row.count(True) / relevant)
        assert of_precision == pytest.approx(row.count(True) / len(row))
        assert 0 <= of_ndcg <= 1 + 1e-12
