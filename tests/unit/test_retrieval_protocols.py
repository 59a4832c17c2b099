"""The two protocols on small data: what is held out, what is a negative, who wins ties; and two controls."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from retrieval import quality
from simulators.retrieval_quality.measure import FullDraw, SampledDraw, blended, figure, measure
from simulators.retrieval_quality.methods import ItemItem, Rankings
from simulators.retrieval_quality.splits import (
    Ratings,
    filtered,
    hold_out_share,
    leave_latest_out,
    leave_random_out,
    sample_candidates,
    unfiltered,
)

ALPHA = 1e-4


def _world(n_users: int = 60, n_items: int = 400, n_each: int = 20, seed: int = 5) -> Ratings:
    rng = np.random.default_rng(seed)
    item = np.concatenate([rng.choice(n_items, n_each, replace=False) for _ in range(n_users)])
    user = np.repeat(np.arange(n_users), n_each)
    return Ratings(user, item, np.ones(len(user)), rng.integers(0, 10**9, len(user)), n_users, n_items)


def _pairs(ratings: Ratings) -> set[tuple[int, int]]:
    return set(zip(ratings.user.tolist(), ratings.item.tolist(), strict=True))


def test_columns_are_numbered_in_the_order_in_which_films_first_appear() -> None:
    ratings, film_ids = unfiltered(np.array([[7, 30, 5, 1], [3, 10, 4, 2], [7, 10, 3, 3], [3, 20, 1, 4]]))
    assert film_ids.tolist() == [30, 10, 20]
    assert ratings.user.tolist() == [0, 1, 0, 1]
    assert ratings.item.tolist() == [0, 1, 1, 2]


def test_rare_films_go_before_users_with_few_ratings() -> None:
    # Film 99 has 4 ratings, one of them the 20th of user 1, who goes with it. Films 0..19 have 5 users each or more.
    rows = [[user, film, 3, film] for user in range(2, 8) for film in range(20)]
    rows += [[1, film, 3, film] for film in range(19)] + [[user, 99, 3, 50] for user in (1, 2, 3, 4)]
    ratings, film_ids = filtered(np.array(rows))
    assert ratings.n_users == 6
    assert sorted(film_ids.tolist()) == list(range(20))
    assert len(ratings.user) == 120


def test_the_latest_rating_is_held_out_and_of_equal_times_the_smallest_column() -> None:
    ratings = Ratings(
        user=np.array([0, 0, 0, 1, 1, 1]),
        item=np.array([0, 2, 1, 2, 1, 0]),
        value=np.ones(6),
        at_s=np.array([1, 9, 9, 5, 7, 6]),
        n_users=2,
        n_items=3,
    )
    split = leave_latest_out(ratings)
    assert _pairs(split.test) == {(0, 1), (1, 1)}
    assert _pairs(split.train) == {(0, 0), (0, 2), (1, 2), (1, 0)}


def test_splits_part_the_ratings_user_by_user() -> None:
    known = _world()
    for split, n_test in (
        (leave_random_out(known, np.random.default_rng(1)), 1),
        (hold_out_share(known, np.random.default_rng(1)), 5),
    ):
        assert _pairs(split.train) | _pairs(split.test) == _pairs(known)
        assert not _pairs(split.train) & _pairs(split.test)
        assert np.bincount(split.test.user).tolist() == [n_test] * known.n_users


def test_candidates_are_the_held_out_item_and_99_that_the_user_never_rated() -> None:
    known = _world()
    split = leave_latest_out(known)
    candidates = sample_candidates(split, known, np.random.default_rng(2))
    assert candidates.shape == (known.n_users, 100)
    rated = known.mask()
    for user, held_out, row in zip(split.test.user, split.test.item, candidates, strict=True):
        assert len(set(row.tolist())) == 100
        assert [item for item in row.tolist() if rated[user, item]] == [held_out]


def test_too_few_unrated_items_are_refused() -> None:
    known = _world(n_items=110)
    with pytest.raises(ValueError, match="every user needs 99 unrated items, got one with 90"):
        sample_candidates(leave_latest_out(known), known, np.random.default_rng(2))


def _hit_rate_of(scores: np.ndarray, known: Ratings) -> float:
    split = leave_latest_out(known)
    draw = SampledDraw(split, sample_candidates(split, known, np.random.default_rng(3)))
    return float(quality.hit_rate(draw.judge(draw.rank(scores, 10)).hits).mean())


@pytest.mark.parametrize("is_constant", [False, True])
def test_chance_hits_in_a_tenth_of_the_lists(is_constant: bool) -> None:
    """A random scorer, and one whose scores all tie; false alarm rate 1e-4 each."""
    known = _world(n_users=2_000)
    shape = (known.n_users, known.n_items)
    scores = np.zeros(shape) if is_constant else np.random.default_rng(4).random(shape)
    n_hits = round(_hit_rate_of(scores, known) * known.n_users)
    assert stats.binomtest(n_hits, known.n_users, 0.1).pvalue > ALPHA


def test_a_scorer_that_sees_the_test_item_always_hits() -> None:
    known = _world()
    assert _hit_rate_of(leave_latest_out(known).test.mask().astype(np.float64), known) == 1.0


def test_candidates_left_in_place_would_credit_a_scorer_that_says_nothing() -> None:
    """The control of the one above: without the drawn order, ties are won by the held-out item, which is first."""
    known = _world(n_users=2_000)
    split = leave_latest_out(known)
    drawn = sample_candidates(split, known, np.random.default_rng(3))
    others = drawn[drawn != split.test.item[:, None]].reshape(known.n_users, 99)
    draw = SampledDraw(split, np.column_stack([split.test.item, others]))
    n_hits = int(draw.judge(draw.rank(np.zeros((known.n_users, known.n_items)), 10)).hits.sum())
    assert stats.binomtest(n_hits, known.n_users, 0.1).pvalue < ALPHA


def test_full_ranking_leaves_out_what_the_user_or_nobody_met() -> None:
    known = _world(n_users=10)
    split = hold_out_share(known, np.random.default_rng(1))
    draw = FullDraw(split, np.random.default_rng(2).permutation(known.n_items))
    is_met = np.bincount(split.train.item, minlength=known.n_items) > 0
    items = draw.rank(np.random.default_rng(3).random((10, known.n_items)), 30)
    assert is_met[items].all()
    assert not np.take_along_axis(split.train.mask(), items, axis=1).any()
    oracle = measure(draw.judge(draw.rank(split.test.mask().astype(np.float64), 5)), split.train)
    assert oracle["recall"] == pytest.approx(is_met[split.test.item].mean())


def test_users_without_a_test_rating_are_not_judged() -> None:
    known = _world(n_users=10)
    split = hold_out_share(known, np.random.default_rng(1))
    split.test.user[split.test.user == 4] = 5
    draw = FullDraw(split, np.arange(known.n_items))
    assert len(draw.judge(draw.rank(np.zeros((10, known.n_items)), 10)).hits) == 9


def test_the_blend_shares_places_by_quota() -> None:
    ranked = {"a": np.array([[1, 2, 3, 4]]), "b": np.array([[2, 9, 8, 7]])}
    assert blended(ranked, {"a": 2, "b": 2}, limit=4).tolist() == [[1, 2, 9, 8]]
    assert blended(ranked, {"a": 4, "b": 0}, limit=4).tolist() == [[1, 2, 3, 4]]


def test_item_item_scores_equal_a_slow_computation() -> None:
    known = _world(n_users=12, n_items=15, n_each=5)
    known.value[:] = np.random.default_rng(1).integers(1, 6, len(known.value))
    shrink, n_neighbours = 3.0, 4
    found = ItemItem(n_neighbours, shrink, "rating").fit(known)["item_item"]
    rated = known.matrix().toarray()
    for item in range(known.n_items):
        similarity = np.zeros(known.n_items)
        for other in range(known.n_items):
            if other != item:
                norms = np.linalg.norm(rated[:, item]) * np.linalg.norm(rated[:, other])
                similarity[other] = rated[:, item] @ rated[:, other] / max(norms + shrink, 1e-12)
        similarity[similarity < np.sort(similarity)[-n_neighbours]] = 0.0
        np.testing.assert_allclose(found[:, item], rated @ similarity)


def test_trending_weighs_recent_ratings_more_than_popular_does() -> None:
    day = 86_400
    known = Ratings(
        user=np.array([0, 1, 2]), item=np.array([0, 0, 1]), value=np.ones(3),
        at_s=np.array([0, 0, 100 * day]), n_users=3, n_items=2,
    )  # fmt: skip
    scores = Rankings(trending_half_life_days=30.0).fit(known)
    assert scores["popular"][0].tolist() == [2.0, 1.0]
    assert scores["trending"][0].tolist() == pytest.approx([2 * 2 ** (-100 / 30), 1.0])


def test_a_figure_is_the_mean_and_its_standard_error() -> None:
    found = figure([1.0, 2.0, 3.0, 6.0])
    assert (found.mean, found.se) == (3.0, pytest.approx(np.sqrt(14 / 3) / 2))
