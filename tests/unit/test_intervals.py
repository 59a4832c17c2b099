from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from estimators.bandits import clopper_pearson as vw_clopper_pearson
from estimators.bandits import cs as vw_sequence
from scipy.stats import binomtest

from bandit.confidence_sequence import SHARES, ConfidenceSequence, Tally
from bandit.estimators import ActionRows, Estimate, ips, snips
from bandit.intervals import (
    Moments,
    bernstein_of_moments,
    clopper_pearson,
    clopper_pearson_of_counts,
    cluster_bootstrap,
    cluster_sums,
    empirical_bernstein,
)
from bandit.support import Support


def estimate_of(terms: np.ndarray) -> Estimate:
    return Estimate("mean", terms, (Support.of(np.ones(len(terms))),))


# Bootstrap --------------------------------------------------------------------------------------------------------


def test_rows_of_one_user_are_drawn_together() -> None:
    rng = np.random.default_rng(5)
    per_user = rng.random(100)
    estimate, users = estimate_of(np.repeat(per_user, 20)), np.repeat(np.arange(100), 20)
    by_user, once = (
        cluster_bootstrap([sums], rng=np.random.default_rng(7))[0]
        for sums in (
            cluster_sums(estimate, clusters=users, n_clusters=100),
            cluster_sums(estimate_of(per_user), clusters=np.arange(100), n_clusters=100),
        )
    )
    # Twenty copies of each row say no more than one.
    assert (by_user.lower, by_user.upper) == pytest.approx((once.lower, once.upper))
    by_row = cluster_bootstrap(
        [cluster_sums(estimate, clusters=np.arange(2000), n_clusters=2000)], rng=np.random.default_rng(7)
    )[0]
    assert by_user.upper - by_user.lower > 3.0 * (by_row.upper - by_row.lower)


def test_the_same_generator_gives_the_same_intervals_and_blocks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sums = cluster_sums(estimate_of(np.random.default_rng(3).random(50)), clusters=np.arange(50), n_clusters=50)
    first, again = (cluster_bootstrap([sums], rng=np.random.default_rng(11)) for _ in range(2))
    assert first == again
    monkeypatch.setattr("bandit.intervals.BLOCK_COUNTS", 50 * 7)
    [in_blocks] = cluster_bootstrap([sums], rng=np.random.default_rng(11))
    assert (in_blocks.lower, in_blocks.upper) == pytest.approx((first[0].lower, first[0].upper))


def test_estimates_of_a_panel_see_the_same_resamples() -> None:
    sums = cluster_sums(estimate_of(np.random.default_rng(3).random(50)), clusters=np.arange(50), n_clusters=50)
    one, other = cluster_bootstrap([sums, sums], rng=np.random.default_rng(11))
    assert (one.lower, one.upper) == pytest.approx((other.lower, other.upper), rel=1e-12)


def test_parts_of_a_log_add_up_by_cluster() -> None:
    rng = np.random.default_rng(3)
    rows = ActionRows(rng.random(60), rng.random(60))
    users = rng.integers(9, size=60)
    whole = cluster_sums(snips(rows), clusters=users, n_clusters=9)
    parts = sum(
        cluster_sums(snips(ActionRows(rows.rewards[part], rows.weights[part])), clusters=users[part], n_clusters=9)
        for part in (slice(0, 25), slice(25, None))
    )
    assert parts == pytest.approx(whole)


def test_a_bootstrap_of_one_cluster_or_of_different_ones_is_refused() -> None:
    for panel in ([np.ones((1, 2))], [np.ones((5, 2)), np.ones((6, 2))]):
        with pytest.raises(ValueError, match="must share their clusters, at least 2"):
            cluster_bootstrap(panel, rng=np.random.default_rng(1))


# Empirical Bernstein ----------------------------------------------------------------------------------------------


def test_empirical_bernstein_is_the_published_formula() -> None:
    terms = np.tile([0.0, 0.5], 500)
    found = empirical_bernstein(estimate_of(terms), term_range=(0.0, 2.0))
    log_term = math.log(4 / 0.05)
    margin = math.sqrt(2 * terms.var(ddof=1) * log_term / 1000) + 7 * 2.0 * log_term / (3 * 999)
    assert (found.lower, found.upper) == pytest.approx((0.25 - margin, 0.25 + margin), rel=1e-12)
    assert found.note == ""


def test_a_small_floor_makes_empirical_bernstein_vacuous_and_it_says_so() -> None:
    found = empirical_bernstein(estimate_of(np.tile([0.0, 0.5], 500)), term_range=(0.0, 1_000.0))
    assert (found.lower, found.upper) == (0.0, 1.0)
    assert found.note == "vacuous: terms may span 1,000, too wide for 1,000 rows"


def test_empirical_bernstein_refuses_ratios_and_a_range_that_was_exceeded() -> None:
    rows = ActionRows(np.ones(10), np.full(10, 3.0))
    with pytest.raises(ValueError, match="got the ratio snips"):
        empirical_bernstein(snips(rows), term_range=(0.0, 4.0))
    with pytest.raises(ValueError, match="the floor is wrong"):
        empirical_bernstein(ips(rows), term_range=(0.0, 2.0))


# Clopper-Pearson --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_yes", [0, 1, 17, 49, 50])
def test_clopper_pearson_equals_scipy_and_vw_estimators(n_yes: int) -> None:
    rewards = (np.arange(50) < n_yes).astype(np.float64)
    found = clopper_pearson(ips(ActionRows(rewards, np.ones(50))))
    theirs = vw_clopper_pearson.Interval()
    for reward in rewards.tolist():
        theirs.add_example(1.0, reward, 1.0)
    assert [found.lower, found.upper] == pytest.approx(theirs.get(0.05), abs=1e-9)
    exact = binomtest(n_yes, 50).proportion_ci(0.95, method="exact")
    assert (found.lower, found.upper) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_clopper_pearson_does_not_apply_to_weighted_rewards() -> None:
    with pytest.raises(ValueError, match="needs terms of 0 and 1"):
        clopper_pearson(ips(ActionRows(np.ones(10), np.full(10, 1.5))))


# Confidence sequence ----------------------------------------------------------------------------------------------


def drawn(n: int = 3_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(13)
    return rng.choice([0.0, 0.5, 2.5], p=[0.3, 0.375, 0.325], size=n), (rng.random(n) < 0.2).astype(np.float64)


def test_batches_and_their_order_do_not_matter() -> None:
    weights, rewards = drawn()
    whole = ConfidenceSequence().plus(weights=weights, rewards=rewards)
    parts = ConfidenceSequence()
    for part in np.array_split(np.random.default_rng(1).permutation(len(weights)), 7):
        parts = parts.plus(weights=weights[part], rewards=rewards[part])
    assert parts.n == whole.n == len(weights)
    assert parts.interval() == whole.interval()


def test_the_bound_is_where_the_wealth_reaches_one_over_alpha() -> None:
    values = np.array([0.0, 0.5, 1.0, 4.0] * 200)
    bound = Tally().plus(values).lower_bound(0.025)
    wealth = [np.mean(np.exp(np.log1p(SHARES[:, None] * (values / m - 1.0)).sum(axis=1))) for m in (bound, bound * 0.9)]
    assert wealth[0] == pytest.approx(40.0, rel=1e-4)
    assert wealth[1] > 40.0
    assert 0.9 < bound < values.mean()


def test_wealth_against_the_true_mean_is_one_on_average() -> None:
    """Exactly, over all 3^4 sequences of a fair game; against a lower mean it grows, which is the control."""
    values, pmf = np.array([0.0, 0.5, 4.0]), np.array([0.5, 0.35, 0.15])
    for mean, expected in ((values @ pmf, pytest.approx(1.0, rel=1e-12)), (0.8 * values @ pmf, None)):
        wealth = 0.0
        for draws in itertools.product(range(3), repeat=4):
            gains = np.prod(1.0 + SHARES[:, None] * (values[list(draws)] / mean - 1.0), axis=1)
            wealth += float(np.prod(pmf[list(draws)]) * gains.mean())
        assert wealth == expected if expected is not None else wealth > 1.01


def test_rounding_is_downwards_small_and_exact_for_nothing_and_one() -> None:
    values = np.concatenate([[0.0, 1.0, -0.0], np.random.default_rng(1).lognormal(size=1_000)])
    tally = Tally().plus(values)
    rounded = np.repeat(tally.values(), tally.counts)
    ordered = np.sort(np.abs(values))
    assert (rounded <= ordered).all()
    assert (ordered - rounded <= 2.5e-4 * ordered).all()
    assert {0.0, 1.0} <= set(rounded)


def test_no_largest_weight_is_needed_and_an_impossible_one_refutes_the_weights() -> None:
    weights, rewards = drawn()
    calm = ConfidenceSequence().plus(weights=weights, rewards=rewards)
    heavy = calm.plus(weights=np.array([50.0]), rewards=np.array([1.0])).interval()
    assert calm.interval().lower < heavy.lower < heavy.upper < calm.interval().upper + 0.01
    assert heavy.note == ""
    absurd = calm.plus(weights=np.array([1e9]), rewards=np.array([1.0])).interval()
    assert absurd.note == "the weights cannot be right: the bounds cross"
    assert 0.0 <= absurd.upper < absurd.lower <= 1.0


def test_rewards_of_any_range_are_scaled() -> None:
    weights, rewards = drawn()
    for of_advantage in (False, True):
        plain = ConfidenceSequence(of_advantage=of_advantage).plus(weights=weights, rewards=rewards).interval()
        scaled = ConfidenceSequence(of_advantage=of_advantage, reward_range=(-2.0, 2.0))
        found = scaled.plus(weights=weights, rewards=4.0 * rewards - 2.0).interval()
        shift = 0.0 if of_advantage else 2.0
        assert (found.lower, found.upper) == pytest.approx((4 * plain.lower - shift, 4 * plain.upper - shift))


def test_a_policy_has_no_advantage_over_itself() -> None:
    _, rewards = drawn()
    found = ConfidenceSequence(of_advantage=True).plus(weights=np.ones(len(rewards)), rewards=rewards).interval()
    assert found.lower <= 0.0 <= found.upper
    assert found.upper - found.lower < 0.01


def test_a_better_policy_is_seen_to_be_better() -> None:
    rng = np.random.default_rng(17)
    good = rng.random(20_000) < 0.5  # the target policy always takes the good action
    rewards = (rng.random(20_000) < np.where(good, 0.3, 0.2)).astype(np.float64)
    found = ConfidenceSequence(of_advantage=True).plus(weights=2.0 * good, rewards=rewards).interval()
    assert 0.0 < found.lower < 0.05 < found.upper


def test_before_any_row_nothing_is_known() -> None:
    assert ConfidenceSequence().interval().lower == 0.0
    assert ConfidenceSequence().interval().upper == 1.0
    advantage = ConfidenceSequence(of_advantage=True).interval()
    assert (advantage.lower, advantage.upper) == (-1.0, 1.0)


def test_bounds_lie_inside_those_of_vw_estimators_where_both_are_sound() -> None:
    weights, rewards = drawn()
    theirs = vw_sequence.Interval()
    for weight, reward in zip(weights.tolist(), rewards.tolist(), strict=True):
        theirs.add_example(1.0, reward, weight)
    lower, upper = theirs.get(0.05)
    ours = ConfidenceSequence().plus(weights=weights, rewards=rewards).interval()
    assert lower < ours.lower < ips(ActionRows(rewards, weights)).value < ours.upper < upper


def test_rewards_out_of_range_and_wrong_weights_are_refused() -> None:
    for weights, rewards, message in (
        (np.ones(2), np.array([0.0, 1.5]), r"rewards must be in \[0.0, 1.0\], got 0.0 to 1.5"),
        (np.array([1.0, -1.0]), np.zeros(2), "weights must be at least 0"),
        (np.array([1.0, np.nan]), np.zeros(2), "weights must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            ConfidenceSequence().plus(weights=weights, rewards=rewards)
    with pytest.raises(ValueError, match="reward_range must be"):
        ConfidenceSequence(reward_range=(1.0, 1.0))
    with pytest.raises(ValueError, match="confidence must be in"):
        ConfidenceSequence(confidence=1.0)


# Parts of a log ---------------------------------------------------------------------------------------------------


def test_moments_of_parts_are_those_of_the_whole_however_far_from_0_the_terms_are() -> None:
    terms = 1e8 + np.random.default_rng(3).random(1_000)
    parts = sum((Moments.of(part) for part in np.split(terms, [0, 1, 400])), Moments())
    assert (parts.n, parts.lowest, parts.highest) == (1_000, terms.min(), terms.max())
    assert parts.mean == pytest.approx(terms.mean(), rel=1e-14)
    assert parts.variance == pytest.approx(terms.var(ddof=1), rel=1e-6)
    # The control: sums of squares lose all digits here.
    assert (terms**2).sum() / 999 - 1_000 / 999 * terms.mean() ** 2 != pytest.approx(terms.var(ddof=1), rel=1e-3)


def test_intervals_of_sums_are_those_of_rows() -> None:
    rng = np.random.default_rng(3)
    terms = (rng.random(500) < 0.3) * rng.uniform(0.0, 4.0, 500)
    parts = Moments.of(terms[:100]) + Moments.of(terms[100:])
    (of_rows, of_sums) = (
        empirical_bernstein(estimate_of(terms), term_range=(0.0, 5.0)),
        bernstein_of_moments(parts, term_range=(0.0, 5.0)),
    )
    assert (of_sums.lower, of_sums.upper) == pytest.approx((of_rows.lower, of_rows.upper), rel=1e-12)
    with pytest.raises(ValueError, match=r"terms must be in \[0.0, 1.0\]"):
        bernstein_of_moments(parts, term_range=(0.0, 1.0))
    clicks = (terms > 0.0).astype(np.float64)
    assert clopper_pearson_of_counts(int(clicks.sum()), 500) == clopper_pearson(estimate_of(clicks))
