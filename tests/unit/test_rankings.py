"""Rankings against sorting everything, and weighted draws against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from retrieval.rankings import ItemArrays, RankingConfig, build_rankings, draw_weighted

DAY_MS = 86_400_000
NOW_MS = 1_000 * DAY_MS


def _items(n: int, seed: int) -> ItemArrays:
    rng = np.random.default_rng(seed)
    return ItemArrays(
        is_listed=rng.random(n) < 0.8,
        available_at_unix_ms=rng.integers(0, 4, n) * DAY_MS * 300,
        n_interactions=rng.integers(0, 4, n).astype(np.int32),
        impressions=rng.integers(0, 3, n).astype(np.float64),
        clicks=rng.integers(0, 2, n).astype(np.float64),
    )


@given(st.integers(0, 60), st.integers(1, 70), st.integers(0, 1_000))
def test_rankings_are_the_top_of_a_stable_sort_of_what_is_listed(n: int, n_kept: int, seed: int) -> None:
    items = _items(n, seed)
    ranked = build_rankings(items, now_ms=NOW_MS, config=RankingConfig(n_kept=n_kept))
    rows = np.flatnonzero(items.is_listed)

    def sorted_by(score: np.ndarray) -> list[int]:
        return sorted(rows.tolist(), key=lambda row: (-score[row], row))[:n_kept]

    assert ranked.popular.tolist() == sorted_by(items.n_interactions + items.clicks)
    assert ranked.fresh.tolist() == sorted_by(items.available_at_unix_ms)
    assert ranked.trending.tolist() == [row for row in sorted_by(items.clicks) if items.clicks[row] > 0]
    age = np.where(items.available_at_unix_ms == 0, 14.0, (NOW_MS - items.available_at_unix_ms) / DAY_MS)
    claim = -age / 14.0 - np.log2(1.0 + items.impressions + items.n_interactions)
    assert ranked.under_explored.tolist() == sorted_by(claim)
    weights = ranked.exploration_weight
    assert (weights > 0.0).all()
    assert weights.tolist() == sorted(weights.tolist(), reverse=True)


@pytest.mark.parametrize(("weights", "is_right"), [([5.0, 3.0, 2.0], True), ([5.0, 2.0, 3.0], False)])
def test_the_first_draw_is_in_proportion_to_the_weights(weights: list[float], is_right: bool) -> None:
    # False-alarm rate 1e-4; the control compares with the weights of other items.
    n = 20_000
    rng = np.random.default_rng(5)
    first = [int(draw_weighted(np.array([5.0, 3.0, 2.0]), 1, rng)[0]) for _ in range(n)]
    expected = np.array(weights) / 10.0 * n
    assert bool(stats.chisquare(np.bincount(first, minlength=3), expected).pvalue > 1e-4) is is_right


def test_a_draw_of_all_is_a_permutation_and_of_none_is_empty() -> None:
    rng = np.random.default_rng(1)
    assert sorted(draw_weighted(np.ones(7), 9, rng).tolist()) == list(range(7))
    assert draw_weighted(np.zeros(0), 3, rng).tolist() == []
