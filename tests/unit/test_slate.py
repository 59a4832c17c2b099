"""Slates: drawn by inverse CDF from the pmfs that are logged, within the rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.columns import NO_CODE
from bandit.exploration import Epsilon
from bandit.rules import Discovery, Freshness, MaxPer, Prior, Rule
from bandit.slate import ActionSet, SlateWalk, draw_slate
from bandit.slot import SlotPmf

PROPERTY = settings(deadline=None, derandomize=True, max_examples=100)
ALMOST_ONE = float(np.nextafter(1.0, 0.0))
UNIFORMS = st.sampled_from([0.0, 0.5, ALMOST_ONE]) | st.floats(0.0, ALMOST_ONE)


def _walk(
    scores: list[float],
    *,
    codes: list[int] | None = None,
    pool: list[bool] | None = None,
    rules: tuple[Rule, ...] = (),
    exploration: Epsilon | None = None,
    positions: tuple[int, ...] = (),
) -> SlateWalk:
    n = len(scores)
    columns = {
        "creator": np.array(codes or [NO_CODE] * n, dtype=np.int32),
        "discovery": np.array(pool or [False] * n),
        "affinity": np.arange(n, dtype=np.float32),
        "available_at_unix_ms": np.arange(n, dtype=np.int64),
    }
    actions = ActionSet(ids=[f"i{a:03d}" for a in range(n)], scores=np.array(scores, dtype=np.float32), columns=columns)
    return SlateWalk(
        actions=actions,
        exploration=exploration or Epsilon(rate=0.5, shortlist=3),
        rules=rules,
        now_ms=10,
        n_slots=8,
        discovery_positions=positions,
    )


@st.composite
def _worlds(draw: st.DrawFn) -> dict[str, object]:
    n = draw(st.integers(1, 9))
    rules: list[Rule] = [
        MaxPer(column="creator", limit=draw(st.integers(1, 2)), window=draw(st.integers(1, 4))),
        Discovery(share=0.5),
        Freshness(boost=0.5, half_life_days=1e-7),
        Prior(weight=0.1),
    ]
    return {
        "scores": draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5, 2.0]), min_size=n, max_size=n)),
        "codes": draw(st.lists(st.integers(NO_CODE, 2), min_size=n, max_size=n)),
        "pool": draw(st.lists(st.booleans(), min_size=n, max_size=n)),
        "rules": tuple(draw(st.lists(st.sampled_from(rules), unique=True))),
        "exploration": Epsilon(
            rate=draw(st.sampled_from([0.0, 0.1, 1.0])),
            uniform_share=draw(st.sampled_from([0.0, 0.25, 1.0])),
            shortlist=draw(st.integers(1, 5)),
        ),
        "positions": tuple(draw(st.lists(st.integers(0, 5), unique=True))),
    }


uniform_lists = st.lists(UNIFORMS, min_size=1, max_size=6)


@PROPERTY
@given(world=_worlds(), uniforms=uniform_lists)
def test_a_slate_repeats_no_item_and_is_short_only_when_candidates_run_out(
    world: dict[str, object], uniforms: list[float]
) -> None:
    draws = draw_slate(_walk(**world), np.array(uniforms))
    placed = [draw.action for draw in draws]
    assert len(set(placed)) == len(placed) == min(len(uniforms), len(world["scores"]))
    assert [draw.slot for draw in draws] == list(range(len(draws)))


@PROPERTY
@given(world=_worlds(), uniforms=uniform_lists)
def test_max_per_holds_in_every_slot_where_it_did_not_give_way(world: dict[str, object], uniforms: list[float]) -> None:
    draws = draw_slate(_walk(**world), np.array(uniforms))
    codes = world["codes"]
    for rule in world["rules"]:
        if not isinstance(rule, MaxPer):
            continue
        for slot, draw in enumerate(draws):
            window = [codes[d.action] for d in draws[max(0, slot - rule.window + 1) : slot + 1]]
            holds = codes[draw.action] == NO_CODE or window.count(codes[draw.action]) <= rule.limit
            assert holds or "max_per:creator" in draw.here.gave_way


@PROPERTY
@given(world=_worlds(), uniforms=uniform_lists)
def test_a_rule_gives_way_only_when_nothing_met_it(world: dict[str, object], uniforms: list[float]) -> None:
    walk = _walk(**world)
    draws = draw_slate(_walk(**world), np.array(uniforms))
    codes, pool = np.array(world["codes"]), np.array(world["pool"])
    for draw in draws:
        left = np.ones(len(codes), dtype=bool)
        left[walk.history] = False
        for rule in world["rules"]:
            if isinstance(rule, Discovery) and draw.slot in world["positions"]:
                left &= pool
            elif isinstance(rule, MaxPer):
                of_rule = rule.start(walk.actions.columns)
                for action in walk.history:
                    of_rule.place(action)
                left &= True if of_rule.mask is None else of_rule.mask
        assert bool(draw.here.gave_way) == (not left.any())
        if not draw.here.gave_way:
            assert draw.here.view.n_allowed == left.sum()
        walk.place(draw.action)


@PROPERTY
@given(world=_worlds(), uniforms=uniform_lists)
def test_discovery_slots_hold_items_of_the_pool_and_say_so(world: dict[str, object], uniforms: list[float]) -> None:
    reserved = any(isinstance(rule, Discovery) for rule in world["rules"])
    for draw in draw_slate(_walk(**world), np.array(uniforms)):
        is_reserved = reserved and draw.slot in world["positions"]
        assert draw.here.is_discovery == (is_reserved and "discovery" not in draw.here.gave_way)
        assert not draw.here.is_discovery or world["pool"][draw.action]


@PROPERTY
@given(world=_worlds(), uniforms=uniform_lists)
def test_what_is_sampled_from_is_what_is_logged(world: dict[str, object], uniforms: list[float]) -> None:
    walk = _walk(**world)
    slate_propensity, product = 1.0, 1.0
    for draw in draw_slate(_walk(**world), np.array(uniforms)):
        here = walk.pmf()
        assert here is not None
        assert abs(math.fsum(here.pmf) - 1.0) < 1e-12
        assert not here.pmf[~here.view.allowed].any()
        cdf = np.cumsum(here.pmf)
        assert draw.propensity == here.pmf[draw.action] > 0.0
        assert draw.cumulative_before == (cdf[draw.action - 1] if draw.action else 0.0)
        assert draw.uniform == uniforms[draw.slot] >= draw.cumulative_before
        is_last = not here.pmf[draw.action + 1 :].any()
        assert draw.uniform < cdf[draw.action] or is_last
        assert draw.here.view.n_allowed == here.view.allowed.sum()
        best = here.view.scores[here.view.allowed].max()
        is_greedy = here.view.allowed & (here.view.scores == best)
        assert here.view.greedy.tolist() == np.flatnonzero(is_greedy).tolist()
        assert len(draw.here.view.greedy) == is_greedy.sum()
        assert draw.is_greedy == is_greedy[draw.action]
        assert draw.here.view.greedy[0] == here.view.greedy[0]
        assert draw.here.explore_propensity == pytest.approx(here.pmf[~is_greedy].sum(), abs=1e-15)
        slate_propensity *= draw.propensity
        product *= here.pmf[draw.action]
        walk.place(draw.action)
    assert slate_propensity == product


@PROPERTY
@given(world=_worlds())
def test_the_floor_holds_over_what_a_slot_may_hold(world: dict[str, object]) -> None:
    walk = _walk(**world)
    while (here := walk.pmf()) is not None:
        exploration = world["exploration"]
        feasible = np.flatnonzero(here.view.allowed)
        assert (here.pmf[feasible] >= exploration.rate * exploration.uniform_share / len(feasible)).all()
        walk.place(int(feasible[0]))


@PROPERTY
@given(
    scores=st.lists(st.integers(-50, 50), min_size=2, max_size=8, unique=True),
    codes_seed=st.integers(0, 99),
    order_seed=st.integers(0, 99),
)
def test_renaming_items_permutes_every_pmf(scores: list[int], codes_seed: int, order_seed: int) -> None:
    n = len(scores)
    codes = np.random.default_rng(codes_seed).integers(NO_CODE, 2, size=n).tolist()
    order = np.random.default_rng(order_seed).permutation(n).tolist()
    rules = (MaxPer(column="creator", limit=1, window=2),)
    plain = _walk([float(s) for s in scores], codes=codes, rules=rules)
    renamed = _walk([float(scores[a]) for a in order], codes=[codes[a] for a in order], rules=rules)
    for _ in range(n):
        here, there = plain.pmf(), renamed.pmf()
        assert here is not None
        assert there is not None
        assert there.pmf == pytest.approx(here.pmf[order], abs=1e-15)
        action = int(np.flatnonzero(here.view.allowed)[-1])
        plain.place(action)
        renamed.place(order.index(action))


def test_boosts_act_on_the_scores_that_the_pmf_is_made_of() -> None:
    greedy = Epsilon(rate=0.0)
    boosted = _walk([0.3, 0.2, 0.1], rules=(Prior(weight=1.0),), exploration=greedy)
    (draw,) = draw_slate(boosted, np.array([0.5]))
    assert (draw.action, draw.here.boosts[draw.action], draw.propensity) == (2, 2.0, 1.0)
    twice = _walk([0.3, 0.2, 0.1], rules=(Prior(weight=1.0), Prior(weight=-3.0)), exploration=greedy)
    (draw,) = draw_slate(twice, np.array([0.5]))
    assert (draw.action, draw.here.boosts[draw.action]) == (0, 0.0)
    assert draw.here.boosts.tolist() == [0.0, -2.0, -4.0]
    (draw,) = draw_slate(_walk([0.3, 0.2, 0.1], exploration=greedy), np.array([0.5]))
    assert (draw.action, draw.here.boosts[draw.action]) == (0, 0.0)


def test_freshness_decides_between_equal_scores() -> None:
    rules = (Freshness(boost=1.0, half_life_days=1e-7),)
    (draw,) = draw_slate(_walk([0.5] * 4, rules=rules, exploration=Epsilon(rate=0.0)), np.array([0.0]))
    assert draw.action == 3


@pytest.mark.parametrize("uniform", [0.0, ALMOST_ONE])
def test_an_action_without_probability_is_never_drawn(uniform: float) -> None:
    greedy = Epsilon(rate=0.0)
    (draw,) = draw_slate(_walk([0.0, 1.0, 1.0, 1.0, 0.0], exploration=greedy), np.array([uniform]))
    assert draw.action == (1 if uniform == 0.0 else 3)
    assert draw.propensity == pytest.approx(1 / 3)


def test_a_cumulative_sum_short_of_one_ends_on_the_last_possible_action() -> None:
    # Ten times 0.1 sums to 1 - 1.1e-16 in float64, which is the largest uniform.
    (draw,) = draw_slate(_walk([1.0] * 10 + [0.0], exploration=Epsilon(rate=0.0)), np.array([ALMOST_ONE]))
    assert np.cumsum(np.full(10, 0.1))[-1] < 1.0
    assert draw.action == 9


def test_rules_give_way_in_the_reverse_of_their_order() -> None:
    max_per, discovery = MaxPer(column="creator", limit=1, window=5), Discovery(share=1.0)
    world = {"scores": [0.0, 1.0, 2.0], "codes": [0, 0, 1], "pool": [False, True, False], "positions": (0, 1, 2)}

    def second_slot(rules: tuple[Rule, ...]) -> SlotPmf:
        walk = _walk(**world, rules=rules)
        walk.place(0)
        here = walk.pmf()
        assert here is not None
        return here

    # After item 0 the pool holds only item 1, of the same creator.
    assert second_slot((max_per, discovery)).gave_way == ("discovery",)
    assert second_slot((max_per, discovery)).view.top.tolist() == [2]
    assert second_slot((discovery, max_per)).gave_way == ("max_per:creator",)
    assert second_slot((discovery, max_per)).view.top.tolist() == [1]


def test_a_slate_without_candidates_is_empty() -> None:
    assert draw_slate(_walk([]), np.array([0.1, 0.2])) == []


def test_placing_an_item_twice_is_refused() -> None:
    walk = _walk([0.0, 1.0])
    walk.place(1)
    with pytest.raises(ValueError, match="already in the slate"):
        walk.place(1)


@pytest.mark.parametrize(
    ("scores", "column", "message"),
    [([0.0], [1, 2], "shape"), ([0.0, np.nan], [1, 2], "finite"), ([0.0, np.inf], [1, 2], "finite")],
)
def test_actions_of_uneven_length_or_without_finite_scores_are_refused(
    scores: list[float], column: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ActionSet(ids=["a", "b"], scores=np.array(scores, dtype=np.float32), columns={"creator": np.array(column)})
    with pytest.raises(ValueError, match="creator must have shape"):
        ActionSet(ids=["a"], scores=np.zeros(1, dtype=np.float32), columns={"creator": np.array([1, 2])})


def test_each_branch_takes_its_part_of_the_mixture() -> None:
    exploration = Epsilon(rate=0.4, uniform_share=0.5, shortlist=2, temperature=1e-3)
    # p = [0.6 + 0.1 + 0.2, 0.1]: greedy, uniform and shortlist mass of the first action, then uniform of the second.
    drawn = {
        u: draw_slate(_walk([1.0, 0.0], exploration=exploration), np.array([u]))[0] for u in (0.3, 0.65, 0.8, 0.95)
    }
    assert {u: (draw.action, draw.branch) for u, draw in drawn.items()} == {
        0.3: (0, "greedy"),
        0.65: (0, "uniform"),
        0.8: (0, "shortlist"),
        0.95: (1, "uniform"),
    }
