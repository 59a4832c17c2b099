"""Rules: masks of the history, boosts of the context, positions of discovery."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.columns import NO_CODE, OTHER_TAG, BoolArray, Columns
from bandit.rules import Discovery, Diversity, Freshness, MaxPer, Prior

PROPERTY = settings(deadline=None, derandomize=True, max_examples=200)
DAY_MS = 86_400_000


@PROPERTY
@given(
    codes=st.lists(st.integers(NO_CODE, 2), min_size=1, max_size=8),
    limit=st.integers(1, 3),
    window=st.integers(1, 5),
    seed=st.integers(0, 99),
    n_placed=st.integers(0, 8),
)
def test_max_per_opens_what_would_stay_within_the_limit(
    codes: list[int], limit: int, window: int, seed: int, n_placed: int
) -> None:
    history = np.random.default_rng(seed).permutation(len(codes))[:n_placed].tolist()
    rule = MaxPer(column="creator", limit=limit, window=window)
    mask = _mask_after(rule, {"creator": np.array(codes, dtype=np.int32)}, history)
    for action, code in enumerate(codes):
        placed = [*history, action][-window:]
        fits = code == NO_CODE or sum(codes[a] == code for a in placed) <= limit
        assert fits == (mask is None or bool(mask[action]))


@PROPERTY
@given(
    tags=st.lists(st.integers(0, 2**4 - 1), min_size=1, max_size=8),
    limit=st.integers(1, 3),
    window=st.integers(1, 5),
    seed=st.integers(0, 99),
    n_placed=st.integers(0, 8),
)
def test_max_per_counts_an_item_towards_each_of_its_tags(
    tags: list[int], limit: int, window: int, seed: int, n_placed: int
) -> None:
    history = np.random.default_rng(seed).permutation(len(tags))[:n_placed].tolist()
    rule = MaxPer(column="genres", limit=limit, window=window)
    # The tag of all values beyond the first 63 counts towards nothing.
    column = np.array(tags, dtype=np.uint64) | OTHER_TAG
    mask = _mask_after(rule, {"genres": column}, history)
    for action, own in enumerate(tags):
        placed = [*history, action][-window:]
        fits = all(sum(bool(tags[a] & 1 << bit) for a in placed) <= limit for bit in range(4) if own & 1 << bit)
        assert fits == (mask is None or bool(mask[action]))


def _mask_after(rule: MaxPer, columns: Columns, history: list[int]) -> BoolArray | None:
    walk = rule.start(columns)
    for action in history:
        walk.place(action)
    return walk.mask


@pytest.mark.parametrize("column", [np.array([0, 1], dtype=np.int32), np.array([1, 2], dtype=np.uint64)])
def test_max_per_says_none_when_everything_is_open(column: np.ndarray) -> None:
    assert _mask_after(MaxPer(column="it"), {"it": column}, []) is None
    assert _mask_after(MaxPer(column="it", window=1), {"it": column}, [0]) is None
    assert _mask_after(MaxPer(column="it", limit=2), {"it": column}, [0]) is None


def test_max_per_reopens_a_creator_when_it_leaves_the_window() -> None:
    columns = {"creator": np.array([0, 0, 1, 2], dtype=np.int32)}
    rule = MaxPer(column="creator", limit=1, window=2)
    closed, reopened = _mask_after(rule, columns, [0]), _mask_after(rule, columns, [0, 2])
    assert closed is not None
    assert reopened is not None
    assert closed.tolist() == [False, False, True, True]
    assert reopened.tolist() == [True, True, False, True]


def test_likeness_is_to_the_most_alike_item_and_none_without_tags() -> None:
    walk = Diversity(weight=0.5, column="genres").start(
        {"genres": np.array([0b0011, 0b0110, 0b0000, 0b1000], dtype=np.uint64) | OTHER_TAG}
    )
    walk.place(2)
    assert walk.boost.tolist() == [0.0, 0.0, 0.0, 0.0]
    walk.place(0)
    assert walk.boost.tolist() == [-0.5, -0.5 / 3, 0.0, 0.0]
    walk.place(3)
    assert walk.boost.tolist() == [-0.5, -0.5 / 3, 0.0, -0.5]


def test_freshness_halves_with_every_half_life() -> None:
    now_ms = 100 * DAY_MS
    available = np.array([now_ms, now_ms - 7 * DAY_MS, now_ms - 14 * DAY_MS, now_ms + DAY_MS, 0])
    boost = Freshness(boost=0.8, half_life_days=7.0).build_boost({"available_at_unix_ms": available}, now_ms)
    assert boost.tolist() == pytest.approx([0.8, 0.4, 0.2, 0.8, 0.0])


def test_prior_adds_its_column_times_the_weight_and_nothing_where_unknown() -> None:
    column = np.array([2.0, np.nan, -1.0], dtype=np.float32)
    assert Prior(weight=0.5).build_boost({"affinity": column}, 0).tolist() == [1.0, 0.0, -0.5]


@PROPERTY
@given(share=st.floats(0.0, 1.0), n_slots=st.integers(1, 12), seed=st.integers(0, 999))
def test_discovery_positions_are_slots_of_the_slate_and_their_number_is_as_declared(
    share: float, n_slots: int, seed: int
) -> None:
    positions, probability = Discovery(share=share).draw_positions(n_slots, np.random.default_rng(seed))
    assert list(positions) == sorted(set(positions))
    assert set(positions) <= set(range(n_slots))
    assert len(positions) in (math.floor(share * n_slots), math.floor(share * n_slots) + 1)
    assert 0.0 < probability <= 1.0


@pytest.mark.parametrize("share", [0.0, 0.25, 0.3, 0.5, 0.8, 1.0])
def test_the_probabilities_of_all_discovery_sets_sum_to_one_and_are_as_defined(share: float) -> None:
    n_slots = 4
    rng = np.random.default_rng(1)
    logged = dict(Discovery(share=share).draw_positions(n_slots, rng) for _ in range(2_000))
    whole = math.floor(share * n_slots)
    fraction = share * n_slots - whole
    expected = {}
    for size, of_size in ((whole, 1.0 - fraction), (whole + 1, fraction)):
        if of_size > 0.0:
            sets = list(itertools.combinations(range(n_slots), size))
            expected |= dict.fromkeys(sets, of_size / len(sets))
    assert logged == pytest.approx(expected)
    assert sum(logged.values()) == pytest.approx(1.0)


def test_a_whole_number_of_discovery_slots_needs_no_coin() -> None:
    sizes = Counter(len(Discovery(share=0.2).draw_positions(10, np.random.default_rng(seed))[0]) for seed in range(200))
    assert sizes == {2: 200}


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        (MaxPer, {"column": "creator", "limit": 0}),
        (MaxPer, {"column": "creator", "window": 0}),
        (Freshness, {"boost": math.nan, "half_life_days": 1.0}),
        (Freshness, {"boost": 1.0, "half_life_days": 0.0}),
        (Freshness, {"boost": 1.0, "half_life_days": math.inf}),
        (Prior, {"weight": math.inf}),
        (Discovery, {"share": 1.5}),
        (Discovery, {"share": -0.1}),
    ],
)
def test_parameters_that_no_slate_could_follow_are_refused(rule: type, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must|needs"):
        rule(**wrong)
