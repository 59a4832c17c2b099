"""Item-to-item: neighbours of a history against a plain count, live counts in any order, both laid together."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from retrieval.co_counts import CoCountConfig, CoCounter
from retrieval.item_to_item import SHRINKAGE, ItemToItem, NeighbourConfig, Neighbours, find_neighbours

PROPERTY = settings(deadline=None, derandomize=True, max_examples=100)
HALF_LIFE_MS = 1_000.0
BASKETS = st.lists(st.sets(st.integers(0, 7), max_size=6), min_size=1, max_size=10)


def _matrix(baskets: Sequence[set[int]], n: int = 8) -> sparse.csr_matrix:
    dense = np.zeros((len(baskets), n))
    for user, basket in enumerate(baskets):
        dense[user, sorted(basket)] = 1.0 + user % 3
    return sparse.csr_matrix(dense)


def _neighbours(baskets: Sequence[set[int]], *, n_kept: int = 50, cap: int = 500, n: int = 8) -> Neighbours:
    config = NeighbourConfig(n_neighbours=n_kept, max_items_per_user=cap)
    return find_neighbours(_matrix(baskets, n), positions=np.arange(n), n_items=n, config=config)


def _of(found: Neighbours, item: int) -> list[tuple[int, float]]:
    run = slice(found.ends[item], found.ends[item + 1])
    return list(zip(found.items[run].tolist(), found.counts[run].tolist(), strict=True))


def _alike(co: float, left: float, right: float) -> float:
    return co / ((left * right) ** 0.5 + SHRINKAGE)


@PROPERTY
@given(BASKETS, st.integers(1, 8))
def test_neighbours_are_those_of_a_plain_count(baskets: list[set[int]], n_kept: int) -> None:
    found = _neighbours(baskets, n_kept=n_kept)
    users = [sum(i in basket for basket in baskets) for i in range(8)]
    assert found.n_users.tolist() == users
    for i in range(8):
        co = {j: sum({i, j} <= basket for basket in baskets) for j in range(8) if j != i}
        best = sorted((j for j in co if co[j]), key=lambda j: (-_alike(co[j], users[i], users[j]), j))[:n_kept]
        assert _of(found, i) == [(j, co[j]) for j in best]


def test_columns_outside_the_catalogue_are_left_out_and_positions_are_the_catalogues() -> None:
    baskets = [{0, 1, 2}] * 3
    positions = np.array([5, -1, 2])
    found = find_neighbours(_matrix(baskets, 3), positions=positions, n_items=6, config=NeighbourConfig())
    assert _of(found, 5) == [(2, 3.0)]
    assert _of(found, 2) == [(5, 3.0)]
    assert found.n_users.tolist() == [0, 0, 3, 0, 0, 3]


def test_of_a_user_with_very_many_items_the_surest_count() -> None:
    dense = np.array([[3.0, 1.0, 2.0, 2.0]])
    found = find_neighbours(
        sparse.csr_matrix(dense),
        positions=np.arange(4),
        n_items=4,
        config=NeighbourConfig(max_items_per_user=2),
    )
    assert found.n_users.tolist() == [1, 0, 1, 0]


def test_many_common_users_beat_a_perfect_match_of_one() -> None:
    # 0 and 1 share their only user; 0 and 2 would too, but 2 is liked with 3 by twenty people.
    found = _neighbours([{0, 1}, *[{2, 3}] * 20, {2}])
    assert _alike(20, 21, 20) > _alike(1, 1, 1)
    assert _of(found, 2)[0] == (3, 20.0)


LIKES = st.lists(
    st.tuples(st.sampled_from(["u", "v", "w"]), st.sampled_from("abcdef"), st.integers(0, 5_000)),
    max_size=18,
    unique_by=lambda like: like[:2],
)


def _counted(likes: Sequence[tuple[str, str, int]], config: CoCountConfig | None = None) -> CoCounter:
    counter = CoCounter(config or CoCountConfig(half_life_ms=HALF_LIFE_MS))
    for user, item, at_ms in likes:
        counter.add(user, item, at_ms)
    return counter


def _at(counter: CoCounter, now_ms: int) -> dict[str, tuple[float, dict[str, float]]]:
    state = {}
    for item_id, counts in counter.counts():
        kept = 2.0 ** -((now_ms - counts.at_ms) / HALF_LIFE_MS)
        state[item_id] = (counts.n_users * kept, {other: co * kept for other, co in counts.partners.items()})
    return state


@PROPERTY
@given(LIKES, st.integers(0, 1_000))
def test_counts_are_sums_of_decayed_weights_in_any_order(likes: list[tuple[str, str, int]], seed: int) -> None:
    shuffled = list(likes)
    random.Random(seed).shuffle(shuffled)
    weight = {(user, item): 2.0 ** -((10_000 - at_ms) / HALF_LIFE_MS) for user, item, at_ms in likes}
    state = _at(_counted(shuffled), 10_000)
    assert set(state) == {item for _, item, _ in likes}
    for item, (n_users, partners) in state.items():
        assert n_users == pytest.approx(sum(w for (_, i), w in weight.items() if i == item), rel=1e-9)
        for other, co in partners.items():
            pairs = [(weight[u, item], weight[u, other]) for u in "uvw" if {(u, item), (u, other)} <= weight.keys()]
            assert co == pytest.approx(sum((a * b) ** 0.5 for a, b in pairs), rel=1e-9)
            # So a cosine of decayed counts is never above 1.
            assert co**2 <= n_users * state[other][0] * (1 + 1e-9)


def test_liking_an_item_again_counts_nothing() -> None:
    once, again = _counted([("u", "a", 0), ("u", "b", 0)]), _counted([("u", "a", 0), ("u", "b", 0), ("u", "a", 0)])
    assert _at(once, 0) == _at(again, 0) == {"a": (1.0, {"b": 1.0}), "b": (1.0, {"a": 1.0})}


def test_a_forgotten_user_is_paired_with_nothing_of_before() -> None:
    counter = _counted([("u", "a", 0)])
    counter.forget_user("u")
    counter.add("u", "b", 0)
    assert _at(counter, 0)["b"] == (1.0, {})


def test_memory_is_bounded_and_what_weighs_most_stays() -> None:
    config = CoCountConfig(half_life_ms=1e12, recent_per_user=3, max_users=50, max_items=100, partners_per_item=5)
    rng = random.Random(4)
    likes = [(f"u{rng.randrange(400)}", f"i{int(rng.paretovariate(0.5)) % 3_000}", n) for n in range(20_000)]
    counter = _counted(likes, config)
    assert len(counter) <= 110
    assert len(counter.recent()) <= 50
    assert max(map(len, counter.recent().values())) <= 3
    assert max(len(counts.partners) for _, counts in counter.counts()) <= 10
    assert "i1" in counter.items()
    # And it is a function of the events in their order.
    assert list(_counted(likes, config).counts()) == list(counter.counts())


def _laid(history: Neighbours | None, rows: dict[str, int]) -> ItemToItem:
    places = {f"t{n}": n for n in range(8)}
    table = ItemToItem(places, history, rows.get)
    for item_id, row in rows.items():
        table.bind(row, item_id)
    return table


def test_history_and_live_counts_add_up_before_the_cosine() -> None:
    table = _laid(_neighbours([{0, 1}] * 4 + [{0, 2}] * 2), {"t0": 10, "t1": 11, "t2": 12, "new": 13})
    live = {"t0": (3.0, {"t2": 2.0, "new": 1.0}), "t2": (2.0, {"t0": 2.0}), "new": (1.0, {"t0": 1.0})}
    for item_id, (n_users, partners) in live.items():
        table.put_live(
            item_id,
            n_users=n_users,
            at_ms=0,
            half_life_ms=HALF_LIFE_MS,
            partners=list(partners),
            counts=np.array(list(partners.values())),
        )
    for now_ms, kept in ((0, 1.0), (1_000, 0.5), (10**9, 0.0)):
        rows, scores = table.also_liked([("t0", 1.0)], now_ms=now_ms)
        expected = {
            11: _alike(4, 6 + 3 * kept, 4),
            12: _alike(2 + 2 * kept, 6 + 3 * kept, 2 + 2 * kept),
            13: _alike(kept, 6 + 3 * kept, kept),
        }
        assert dict(zip(rows.tolist(), scores.tolist(), strict=True)) == pytest.approx(expected, rel=1e-5)
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    table.clear_live()
    assert table.also_liked([("t0", 1.0)], now_ms=0)[0].tolist() == [11, 12]


def test_seeds_add_up_by_weight_and_unknown_ones_say_nothing() -> None:
    table = _laid(_neighbours([{0, 2}] * 3 + [{1, 2}] * 3 + [{1, 3}] * 3), {"t0": 0, "t1": 1, "t2": 2, "t3": 3})
    rows, scores = table.also_liked([("t0", 1.0), ("t1", 0.5), ("nobody's", 9.0)], now_ms=0)
    assert rows.tolist() == [2, 3]
    assert scores.tolist() == pytest.approx([_alike(3, 3, 6) + 0.5 * _alike(3, 6, 6), 0.5 * _alike(3, 6, 3)], rel=1e-5)
    assert table.also_liked([("nobody's", 1.0)], now_ms=0)[0].tolist() == []


def test_an_item_that_left_is_not_found_until_it_is_back() -> None:
    rows = {"t0": 0, "t1": 1}
    table = _laid(_neighbours([{0, 1}] * 3), rows)
    table.release("t1")
    assert table.also_liked([("t0", 1.0)], now_ms=0)[0].tolist() == []
    table.bind(7, "t1")
    assert table.also_liked([("t0", 1.0)], now_ms=0)[0].tolist() == [7]
