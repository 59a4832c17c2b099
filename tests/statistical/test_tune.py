"""How often tuning says what is not so: on worlds where nothing differs, and with a budget that must be kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from bandit.exploration import Epsilon
from bandit.intervals import Interval
from simulators.logged_world import LoggedWorld, null_world
from simulators.tune.candidates import Candidate
from simulators.tune.judge import Evidence, Limits, judge, paired_gain
from simulators.tune.live import Branches, RateEvidence, Terms, choose_rate, weigh
from simulators.tune.log_values import build_slates, value_of
from tests.unit.test_tune import logged
from tests.unit.test_tune_live import branches

ALPHA = 1e-4
LIMITS = Limits()


def most(n: int, *, share: float) -> int:
    """The most of n that go wrong at a rate of `share`, but for one test in ten thousand."""
    return int(binom.isf(ALPHA, n, share))


def null_verdict(rng: np.random.Generator, *, confidence: float, n_tried: int = 7, n_seeds: int = 10) -> str:
    """The verdict on runs of a world where nothing that is tried makes a difference but luck."""
    of_seed = rng.normal(0.3, 0.03, n_seeds)
    base: np.ndarray = np.zeros(0)
    evidence = []
    for number in range(n_tried + 1):
        runs = of_seed + rng.normal(0.0, 0.01, n_seeds)
        base = base if number else runs
        evidence.append(
            Evidence(
                candidate=Candidate(Epsilon(rate=number / 100)),
                long_run=paired_gain(runs, base, confidence=confidence),
                price=None,
                refusal=None,
                discovery=math.nan,
                coverage=float(rng.random()),
                skip_rate=0.1,
            )
        )
    return judge(evidence, LIMITS).word


def test_on_a_null_world_the_verdict_is_cannot_tell_at_the_stated_rate() -> None:
    n = 600
    rng = np.random.default_rng(1)
    n_wrong = sum(null_verdict(rng, confidence=LIMITS.shared(7)) != "cannot tell" for _ in range(n))
    assert n_wrong <= most(n, share=1 - LIMITS.confidence)


def test_without_sharing_the_error_among_what_was_tried_the_same_test_fails() -> None:
    n = 600
    rng = np.random.default_rng(1)
    n_wrong = sum(null_verdict(rng, confidence=0.9) != "cannot tell" for _ in range(n))
    assert n_wrong > most(n, share=1 - LIMITS.confidence)


def n_excluding(world: LoggedWorld, n_logs: int) -> int:
    """On how many logs of a world a bound on what a candidate changes today is not around 0."""
    now = world.exploration
    candidates = [Candidate(now), *(Candidate(Epsilon(rate=r, uniform_share=now.uniform_share)) for r in (0.0, 0.6))]
    n_wrong = 0
    for seed in range(n_logs):
        slates = build_slates(logged(world, 400, seed=seed), set(), candidates)
        bounds = [value_of(slates, one, rewards_in=(0.0, 1.0), confidence=LIMITS.shared(2)) for one in candidates[1:]]
        n_wrong += any(not one.advantage.lower <= 0.0 <= one.advantage.upper for one in bounds)
    return n_wrong


def test_bounds_on_what_changes_today_are_around_zero_where_nothing_changes_anything() -> None:
    assert n_excluding(null_world(seed=0), 10) <= most(10, share=1 - LIMITS.confidence)


def test_in_a_world_where_rates_matter_the_same_test_fails() -> None:
    world = null_world(seed=0)
    rewards = np.where(world.scores == world.scores.max(axis=1, keepdims=True), 0.9, 0.1)
    assert n_excluding(replace(world, rewards=rewards), 10) > most(10, share=1 - LIMITS.confidence)


# What is given up at a rate is 60% of the rate, so that the budget allows 1/12.
TERMS = Terms(budget=0.05, low=0.02, high=0.3)
GREEDY, EXPLORE = 0.5, 0.2
ALLOWED = TERMS.budget * GREEDY / (GREEDY - EXPLORE)


def joined(one: Branches | None, more: Branches) -> Branches:
    """A log and what came after it."""
    if one is None:
        return more
    return Branches(
        np.concatenate([one.decision, more.decision + one.decision[-1] + 1]),
        np.concatenate([one.is_greedy, more.is_greedy]),
        np.concatenate([one.reward, more.reward]),
    )


def live_rates(seed: int, *, choose: Callable[[RateEvidence], float | None], n_looks: int = 6) -> list[float]:
    """The rates that are set while a log grows, looked at again and again; a change begins it anew."""
    rate, log, found = 0.04, None, []
    for look in range(n_looks):
        log = joined(log, branches(3_000, rate, greedy=GREEDY, explore=EXPLORE, seed=1_000 * seed + look))
        confidence = TERMS.of_change(len(found))
        chosen = choose(weigh(log, rate=rate, rewards_in=(0.0, 1.0), confidence=confidence))
        if chosen is not None:
            rate, log = chosen, None
            found.append(chosen)
    return found


def by_bounds(evidence: RateEvidence) -> float | None:
    change = choose_rate(evidence, TERMS)
    return change.rate if change.changes else None


def by_estimates(evidence: RateEvidence) -> float | None:
    """The same rule on point estimates: what it would do if there were no luck."""
    value, given_up = evidence.estimates
    sure = {"greedy": Interval(value, value, 0.95, ""), "given_up": Interval(given_up, given_up, 0.95, "")}
    change = choose_rate(
        RateEvidence(
            rate=evidence.rate,
            n=evidence.n,
            estimates=evidence.estimates,
            n_slots=evidence.n_slots,
            n_greedy=evidence.n_greedy,
            **sure,
        ),
        TERMS,
    )
    return change.rate if change.changes else None


@pytest.fixture(scope="module")
def runs() -> list[list[float]]:
    return [live_rates(seed, choose=by_bounds) for seed in range(40)]


def test_the_live_rate_keeps_to_its_budget_in_all_but_the_stated_share_of_runs(runs: list[list[float]]) -> None:
    n_over = sum(any(rate > ALLOWED for rate in rates) for rates in runs)
    assert n_over <= most(len(runs), share=1 - TERMS.confidence)


def test_the_live_rate_is_raised_where_the_budget_allows_it(runs: list[list[float]]) -> None:
    assert sum(any(rate > 0.04 for rate in rates) for rates in runs) > len(runs) / 2


def test_going_by_estimates_in_place_of_bounds_breaks_the_budget() -> None:
    found = [live_rates(seed, choose=by_estimates) for seed in range(40)]
    n_over = sum(any(rate > ALLOWED for rate in rates) for rates in found)
    assert n_over > most(len(found), share=1 - TERMS.confidence)
