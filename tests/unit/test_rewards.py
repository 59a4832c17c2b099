"""Rewards: what one event is worth, and several together."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.rewards import Aggregation, EventReward, RewardPolicy, aggregate

PROPERTY = settings(deadline=None, derandomize=True, max_examples=200)
finite = st.floats(-1e6, 1e6)


@PROPERTY
@given(base=finite, per_unit=finite, value=finite, bounds=st.tuples(finite, finite))
def test_an_event_is_worth_its_base_and_units_within_its_bounds(
    base: float, per_unit: float, value: float, bounds: tuple[float, float]
) -> None:
    low, high = sorted(bounds)
    reward = EventReward(base=base, per_unit=per_unit, low=low, high=high).reward(value)
    line = base + per_unit * value
    assert reward == (low if line < low else high if line > high else line)


def test_a_policy_knows_its_events_and_the_plain_reward() -> None:
    policy = RewardPolicy(events={"click": EventReward(base=1.0), "play_seconds": EventReward(per_unit=0.01)})
    assert policy.reward("click", 5.0) == 1.0
    assert policy.reward("play_seconds", 50.0) == 0.5
    assert policy.reward("reward", -7.5) == -7.5
    assert policy.reward("view", 1.0) is None


@pytest.mark.parametrize(
    ("how", "expected"), [("first", 3.0), ("last", 2.0), ("max", 4.0), ("sum", 4.0), ("mean", 1.0)]
)
def test_rewards_aggregate_as_declared(how: Aggregation, expected: float) -> None:
    assert aggregate([3.0, 4.0, -5.0, 2.0], how) == expected


@PROPERTY
@given(rewards=st.lists(finite, min_size=1, max_size=9), seed=st.permutations(range(9)))
def test_sum_mean_and_max_do_not_depend_on_the_order(rewards: list[float], seed: list[int]) -> None:
    shuffled = [rewards[place] for place in seed if place < len(rewards)]
    for how in ("sum", "mean", "max"):
        assert aggregate(shuffled, how) == aggregate(rewards, how)
    assert min(rewards) - 1e-9 <= aggregate(rewards, "mean") <= max(rewards) + 1e-9


def test_nothing_aggregates_to_nothing() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        aggregate([], "sum")


@pytest.mark.parametrize(
    "wrong", [{"low": 1.0, "high": 0.0}, {"base": math.nan}, {"per_unit": math.inf}, {"high": math.inf}]
)
def test_an_event_without_finite_ordered_numbers_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="finite numbers and low <= high"):
        EventReward(**wrong)


@pytest.mark.parametrize("how", ["sum", "mean", "max", "last"])
def test_learning_at_the_first_reward_allows_no_other_aggregation(how: Aggregation) -> None:
    with pytest.raises(ValueError, match="on_reward needs aggregation = first"):
        RewardPolicy(aggregation=how)
    assert RewardPolicy(aggregation=how, learn="at_close").aggregation == how


@pytest.mark.parametrize(("negative_s", "window_s"), [(0.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_windows_out_of_order_are_refused(negative_s: float, window_s: float) -> None:
    with pytest.raises(ValueError, match="negative_window_s <= window_s"):
        RewardPolicy(negative_window_s=negative_s, window_s=window_s)
