"""What a target policy would have done is what production code does on the logged inputs, and weights follow from it.

The worlds are small enough to list every slate with its probability, so the means below are exact, not sampled.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.exploration import Epsilon, Exploration, Greedy, Softmax, SquareCB, VwExplorer
from bandit.rules import Discovery, Freshness, MaxPer, Pinned, Prior, Rule, Sponsored
from service.decision_record import pack_actions
from service.messages import Decision
from simulators.counterfactual import TargetPolicy, build_counterfactual
from tests.slate_logs import ACTIONS, N_SLOTS, cells, coins, decision_of, walk_along

LOGGING = Epsilon(rate=0.5, uniform_share=0.4, shortlist=3)
POLICIES: list[Exploration] = [
    Greedy(),
    LOGGING,
    Epsilon(rate=1.0, uniform_share=1.0),
    Softmax(shortlist=3),
    SquareCB(gamma=5.0, shortlist=4),
]
FULL_SUPPORT = [policy for policy in POLICIES if policy.uniform_floor > 0.0]
RULES: list[Rule] = [
    MaxPer(column="creator", limit=1, window=2),
    Freshness(boost=0.5, half_life_days=1.0),
    Prior(weight=0.3),
    Discovery(share=0.4),
    Sponsored(slots=[1]),
    Pinned(),
]


def slate_weight(decision: Decision, target: TargetPolicy) -> float:
    found = build_counterfactual(decision, target)
    return found.discovery_weight * float(found.weights.prod()) * found.ends_alike


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    policy=st.sampled_from(POLICIES),
    rules=st.lists(st.sampled_from(RULES), max_size=3, unique_by=repr),
    place=st.integers(0, 10**6),
)
def test_under_the_logged_policy_every_weight_is_exactly_1(policy: Exploration, rules: list[Rule], place: int) -> None:
    logged = [decision for decision, _ in cells(policy, rules)]
    decision = logged[place % len(logged)]
    for target in (TargetPolicy(), TargetPolicy(exploration=policy, rules=rules)):
        found = build_counterfactual(decision, target)
        assert found.target.tobytes() == found.logged.tobytes()
        assert (found.weights == 1.0).all()
        assert (found.discovery_weight, found.ends_alike, found.unsupported) == (1.0, True, "")


@pytest.mark.parametrize("rules", [[], [RULES[0], RULES[2]], [RULES[3], RULES[0]]], ids=["none", "some", "discovery"])
@pytest.mark.parametrize("target", POLICIES, ids=lambda policy: type(policy).__name__)
def test_the_mean_slate_weight_is_1_and_so_the_mean_of_any_reward_is_that_of_the_target(
    target: Exploration, rules: list[Rule]
) -> None:
    swapped = TargetPolicy(exploration=target)
    weighed = [(d, mass * slate_weight(d, swapped)) for d, mass in cells(LOGGING, rules)]
    assert math.fsum(mass for _, mass in weighed) == pytest.approx(1.0, abs=1e-12)
    assert expected_reward(weighed) == pytest.approx(expected_reward(cells(target, rules)), abs=1e-12)


def expected_reward(weighed: object) -> float:
    """Mean of a reward that depends on the whole slate."""
    return math.fsum(
        mass * sum((k + 1) * slot.action**2 for k, slot in enumerate(d.slots))
        for d, mass in weighed  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize(
    ("logged", "target"),
    [
        ([], [MaxPer(column="creator", limit=1, window=2), Prior(weight=1.0)]),
        ([Prior(weight=1.0)], [Freshness(boost=2.0, half_life_days=1.0)]),
        ([Discovery(share=0.4)], [Discovery(share=0.6)]),
        ([Discovery(share=0.4)], [Discovery(share=1 / 3)]),
        ([Discovery(share=0.3)], []),
        ([Discovery(share=0.3)], [Discovery(share=0.1), RULES[0]]),
        ([], [Discovery(share=0.0)]),
    ],
)
def test_other_rules_and_another_discovery_share_are_weighed_exactly(logged: list[Rule], target: list[Rule]) -> None:
    swapped = TargetPolicy(rules=target)
    weighed = [(d, mass * slate_weight(d, swapped)) for d, mass in cells(LOGGING, logged)]
    assert math.fsum(mass for _, mass in weighed) == pytest.approx(1.0, abs=1e-12)
    assert expected_reward(weighed) == pytest.approx(expected_reward(cells(LOGGING, target)), abs=1e-12)
    assert all(not build_counterfactual(d, swapped).unsupported for d, _ in weighed)


def test_leaving_the_discovery_coin_out_of_the_weights_misses_the_truth() -> None:
    """Negative control of the test above."""
    logged, target = [Discovery(share=0.4)], [Discovery(share=0.6)]
    swapped = TargetPolicy(rules=target)
    weighed = [(d, m * float(build_counterfactual(d, swapped).weights.prod())) for d, m in cells(LOGGING, logged)]
    assert abs(expected_reward(weighed) - expected_reward(cells(LOGGING, target))) > 1e-3


def test_other_scores_are_those_of_the_policy_that_has_them() -> None:
    scores = ACTIONS.scores[::-1].copy()
    target = TargetPolicy(score=lambda _: scores)
    weighed = [(d, mass * slate_weight(d, target)) for d, mass in cells(LOGGING)]
    assert math.fsum(mass for _, mass in weighed) == pytest.approx(1.0, abs=1e-12)
    mirrored = [(d, mass) for d, mass in cells(LOGGING)]
    mirror = [
        (msgspec.structs.replace(d, slots=[msgspec.structs.replace(s, action=4 - s.action) for s in d.slots]), mass)
        for d, mass in mirrored
    ]
    # Items tie at 0.5 in the same way whichever end they are counted from.
    assert expected_reward(weighed) == pytest.approx(expected_reward(mirror), abs=1e-12)


@pytest.mark.parametrize(
    ("logged", "target", "reason"),
    [
        ([], [Discovery(share=0.5)], "share 0.5 reserves 1 or 2 of 3 slots, share 0 of the log reserved 0"),
        ([Discovery(share=0.4)], [], "share 0 reserves 0 of 3 slots, share 0.4 of the log reserved 1 or 2"),
    ],
)
def test_a_discovery_share_that_the_log_never_drew_is_unsupported(
    logged: list[Rule], target: list[Rule], reason: str
) -> None:
    weighed = [(d, m, build_counterfactual(d, TargetPolicy(rules=target))) for d, m in cells(LOGGING, logged)]
    assert {found.unsupported for *_, found in weighed} == {f"discovery {reason} (decision e)"}
    assert all(found.discovery_weight == 0.0 for *_, found in weighed)


def test_a_log_that_reserved_nothing_needs_no_pool_to_say_what_it_cannot_carry() -> None:
    """What rules do not read is not logged: a log without the rule lacks its column."""
    decision = next(cells(LOGGING))[0]
    columns = {name: column for name, column in ACTIONS.columns.items() if name != "discovery"}
    bare = pack_actions(
        msgspec.structs.replace(ACTIONS, columns=columns), sources=np.zeros(5, dtype=np.uint8), source_names=["x"]
    )
    decision = msgspec.structs.replace(decision, candidates=bare)
    found = build_counterfactual(decision, TargetPolicy(rules=[Discovery(share=0.5)]))
    assert found.unsupported.startswith("discovery share 0.5 reserves 1 or 2 of 3 slots")
    assert (found.weights == 1.0).all()
    reserved = msgspec.structs.replace(decision, rules=[Discovery(share=0.5)], discovery_positions=[1])
    with pytest.raises(ValueError, match="a rule reads column 'discovery', which the log lacks"):
        build_counterfactual(reserved, TargetPolicy())


def test_a_slate_that_ended_where_the_target_goes_on_has_weight_0() -> None:
    rules: list[Rule] = [Pinned(), Sponsored(slots=[])]
    ended = msgspec.structs.replace(next(cells(LOGGING, rules))[0], slots=[])
    assert not build_counterfactual(ended, TargetPolicy()).ends_alike


@pytest.mark.parametrize("propensity", [0.0, -0.1, 1.5, math.nan, math.inf])
def test_a_logged_propensity_that_is_none_is_refused_by_decision_and_slot(propensity: float) -> None:
    decision = next(cells(LOGGING))[0]
    slots = [decision.slots[0], msgspec.structs.replace(decision.slots[1], propensity=propensity), decision.slots[2]]
    with pytest.raises(ValueError, match=r"propensity must be in \(0, 1\], got .* \(decision e, slot 1\)"):
        build_counterfactual(msgspec.structs.replace(decision, slots=slots), TargetPolicy())


@pytest.mark.parametrize("action", [-1, 5])
def test_an_action_outside_the_candidates_is_refused(action: int) -> None:
    decision = next(cells(LOGGING))[0]
    slots = [msgspec.structs.replace(decision.slots[0], action=action), *decision.slots[1:]]
    with pytest.raises(ValueError, match=r"action must be one of 5 candidates .* \(decision e, slot 0\)"):
        build_counterfactual(msgspec.structs.replace(decision, slots=slots), TargetPolicy())


def test_a_vw_target_needs_an_explorer_and_is_weighed_with_it() -> None:
    target = VwExplorer(model="x", shortlist=2, uniform_share=0.5)
    decisions = list(cells(LOGGING))
    with pytest.raises(ValueError, match=r"the target policy cannot be evaluated: slot 0: .*shortlist"):
        build_counterfactual(decisions[0][0], TargetPolicy(exploration=target))
    asked = TargetPolicy(
        exploration=target, explorer=lambda _: lambda _, shortlist: np.full(len(shortlist), 1 / len(shortlist))
    )
    assert math.fsum(mass * slate_weight(d, asked) for d, mass in decisions) == pytest.approx(1.0, abs=1e-12)


def test_a_rule_on_a_column_that_was_not_logged_is_refused() -> None:
    decision = next(cells(LOGGING))[0]
    with pytest.raises(ValueError, match="a rule reads column 'genre', which the log lacks"):
        build_counterfactual(decision, TargetPolicy(rules=[MaxPer(column="genre", limit=1, window=2)]))


def test_the_probabilities_of_reserved_positions_are_those_they_are_drawn_with() -> None:
    rule = Discovery(share=0.4)
    assert {
        positions: rule.positions_probability(positions, N_SLOTS) for positions, _ in coins([rule])
    } == pytest.approx(dict(coins([rule])))
    positions, probability = rule.draw_positions(N_SLOTS, np.random.default_rng(1))
    assert rule.positions_probability(positions, N_SLOTS) == probability
    assert walk_along(LOGGING, [rule], positions, []).pmf() is not None
    assert decision_of([], LOGGING, [rule]).discovery_positions == []
