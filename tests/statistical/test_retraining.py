"""Retraining and its gate: nothing is promoted where nothing is better, and weights undo popularity.

The gate bounds each side at 0.5%: of 60 null worlds at most 0.3 would be promoted on average; bets are spread over many
stakes, so that far fewer are. The long forms (`-m long`) have the numbers of seeds that the docs state, and print what
they found (`-s`).
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest

from bandit.exploration import Epsilon
from bandit.learner import Learner
from service.config import Canary
from service.promote_evidence import (
    Bounds,
    RewardedSlot,
    canary_difference,
    off_policy_bounds,
    shared_confidence,
)
from service.retrain import RetrainPlan, drawn_uniformly, train_and_score
from service.retrain_figures import figures_of
from service.retrain_scoring import CandidateFeatures, score_decisions
from service.retrain_training import (
    RetrainConfiguration,
    explored_propensity,
    propensity_without_uniform,
    spec_of,
    table_of,
    train,
    training_row,
)
from service.training_rows import Outcome, Span, whole_decisions
from simulators.benchmarks.retraining import compare_weightings
from simulators.logged_world import MODEL, LoggedWorld, better_world, biased_world, null_world

CONFIGURATION = RetrainConfiguration(learning_rate=0.001, interactions=[("context", "item")], clip=50.0, passes=4)
# Decisions of which half train and half are held out: what a 20% better model needs to be promoted in 80% of seeds.
# The weighted rewards of that world have a standard deviation of about 2.65 and the advantage is about 0.096, so that
# 24,000 held-out rows put it 5.6 standard errors above 0; the bound needs about 4.
N_STATED = 48_000


@pytest.fixture(autouse=True)
def _no_cycles() -> Iterator[None]:
    """Logs of many small records make the collector of cycles quadratic; they have none."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()


def _split(log: list[Outcome], share: float = 0.5) -> RetrainPlan:
    first, end = log[0].payload.decided_at_unix_ms, log[-1].payload.decided_at_unix_ms + 1
    cut = first + int((end - first) * share)
    return RetrainPlan(MODEL, Span(first, cut), Span(cut, end), "ips", 1, shared_confidence(0.98, share=0.5))


def _advantage_low(world: LoggedWorld, n: int, *, seed: int) -> float:
    """Retrain on half of a log and return the lower bound that the gate reads on the other half."""
    log = world.log(n, seed=seed)

    def outcomes(span: Span) -> Iterator[Outcome]:
        return (o for o in log if span.from_ms <= o.payload.decided_at_unix_ms < span.to_ms)

    trained = train_and_score(world.config, _split(log), CONFIGURATION, outcomes=outcomes, items=world.items())
    low = trained.figures["advantage"].low
    assert low is not None
    return low


def _null_low(seed: int, n: int) -> float:
    return _advantage_low(null_world(seed=seed), n, seed=1_000 + seed)


def _better_low(seed: int, n: int) -> float:
    return _advantage_low(better_world(seed=seed), n, seed=2_000 + seed)


def _n_promoted(low_of: Callable[[int], float], n_seeds: int) -> int:
    """Return in how many seeds the gate promotes; each seed in a process of its own, as many at a time as cores."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), initializer=gc.disable) as pool:
        lows = list(pool.map(low_of, range(n_seeds)))
    n_promoted = sum(low > 0.0 for low in lows)
    sys.stdout.write(
        f"promoted in {n_promoted} of {n_seeds} seeds; lower bounds {np.quantile(lows, [0, 0.25, 0.5, 0.75, 1])}\n"
    )
    return n_promoted


def test_nothing_is_promoted_where_nothing_is_better() -> None:
    assert not any(_null_low(seed, 400) > 0.0 for seed in range(4))


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_nothing_is_promoted_in_sixty_null_worlds() -> None:
    assert _n_promoted(partial(_null_low, n=4_000), 60) == 0


def test_a_model_that_is_far_better_is_promoted() -> None:
    """A short form of the stated power: 60% better at 3,000 decisions."""
    world = better_world(seed=1, gain=0.6)
    assert _advantage_low(world, 3_000, seed=6) > 0.0


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_a_model_that_is_a_fifth_better_is_promoted_at_the_stated_number_of_decisions() -> None:
    n_seeds = 20
    assert _n_promoted(partial(_better_low, n=N_STATED), n_seeds) >= 0.8 * n_seeds


def test_a_gate_without_weights_promotes_what_is_not_better() -> None:
    """The negative control: taking logged rewards of what the candidate would show as its value fools the gate.

    The live model of this world shows each segment its best item; the candidate always shows what explores least well.
    """
    world = null_world(seed=1)
    log = world.log(600, seed=3)
    table = table_of(Learner(spec_of(world.config, MODEL, CONFIGURATION)))
    features = CandidateFeatures(world.config.features, world.items())
    scored = score_decisions(whole_decisions(iter(log)), table=table, features=features)
    exact = off_policy_bounds(scored, rewards_in=(0.0, 1.0), confidence=0.98)
    assert exact.low < 0.0 < exact.high
    # As if every logged propensity had been lower than it was.
    wrong = type(scored)(**{f: getattr(scored, f) for f in scored.__slots__} | {"logged": scored.logged / 1.5})
    assert off_policy_bounds(wrong, rewards_in=(0.0, 1.0), confidence=0.98).low > 0.0


def test_off_policy_values_are_the_true_ones() -> None:
    """5 standard errors: false alarm below 1e-6."""
    world = better_world(seed=4)
    log = world.log(2_000, seed=9)
    rows = [training_row(o, schema=world.config.features, weighting="ips") for o in log]
    learner, _ = train(lambda: rows, spec=spec_of(world.config, MODEL, CONFIGURATION), configuration=CONFIGURATION)
    table = table_of(learner)
    fresh = world.log(3_000, seed=10)
    features = CandidateFeatures(world.config.features, world.items())
    scored = score_decisions(whole_decisions(iter(fresh)), table=table, features=features)
    truth = world.value(world.scores_of(table))
    terms = scored.weight * scored.reward
    assert abs(terms.mean() - truth) < 5 * terms.std() / np.sqrt(len(terms))
    figures = figures_of(scored, rewards_in=(0.0, 1.0), confidence=0.95)
    dr = figures["dr"]
    assert dr.value is not None
    assert dr.low is not None
    assert dr.high is not None
    assert abs(dr.value - truth) < 2.5 * (dr.high - dr.low)
    # The rows of the uniform part alone say the same.
    uniform = drawn_uniformly(scored)
    assert 600 < len(uniform.reward) < 1_200
    terms = uniform.weight * uniform.reward
    assert abs(terms.mean() - truth) < 5 * terms.std() / np.sqrt(len(terms))


def test_conditional_propensities_are_those_of_what_was_drawn() -> None:
    """Over all that a slot may hold, weighing each outcome by its conditional probability gives the mean of the part.

    E[1 / p'] over the rows that are kept is the number of actions, within 5 standard errors (false alarm below 1e-6).
    """
    rng = np.random.default_rng(2)
    exploration = Epsilon(rate=0.5, uniform_share=0.4, shortlist=8, temperature=1.0)
    world = LoggedWorld(np.full((2, 8), 0.5), rng.random((2, 8)), exploration)
    log = world.log(3_000, seed=4)
    n_items = len(world.item_ids)
    without = [p for o in log if (p := propensity_without_uniform(o.payload, o.payload.slots[0])) is not None]
    explored = [p for o in log if (p := explored_propensity(o.payload, 0)) is not None]
    assert 200 < len(explored) < len(without) < len(log)
    for kept in (without, explored):
        inverse = 1.0 / np.array(kept)
        assert abs(inverse.mean() - n_items) < 5 * inverse.std() / np.sqrt(len(inverse))
    # The negative control: the unconditional propensity of a slot that is known to have explored.
    raw = np.array([1.0 / o.payload.slots[0].propensity for o in log if explored_propensity(o.payload, 0) is not None])
    assert abs(raw.mean() - n_items) > 5 * raw.std() / np.sqrt(len(raw))


def test_debiased_retraining_ranks_better_than_naive_on_a_popularity_biased_log() -> None:
    """A short form of `hone bench retraining`, which saves ten seeds."""
    values = [
        compare_weightings(biased_world(seed=seed), n_decisions=700, seed=100 + seed, weightings=("ips", "none"))
        for seed in range(3)
    ]
    debiased, naive = (float(np.mean([value[name] for value in values])) for name in ("ips", "none"))
    assert debiased > 1.05 * naive


def _canary(n: int, *, lift: float, share: float, seed: int) -> list[RewardedSlot]:
    """Return what slots earned where a share of the users has another model, whose rewards are higher by `lift`."""
    rng = np.random.default_rng(seed)
    log = null_world(seed=1).log(n, seed=5)
    in_canary = {who: rng.random() < share for who in {o.payload.user_key for o in log}}
    return [
        RewardedSlot(
            decided_at_ms=o.payload.decided_at_unix_ms,
            who=o.payload.user_key,
            model="challenger" if in_canary[o.payload.user_key] else MODEL,
            reward=float(rng.random() < 0.4 + lift * in_canary[o.payload.user_key]),
        )
        for o in log
    ]


def _difference(slots: list[RewardedSlot], *, unit_s: float, until_ms: int) -> Bounds:
    canary = Canary(model="challenger", share=0.3, unit_s=unit_s)
    confidence = shared_confidence(canary.confidence)
    return canary_difference(slots, canary=canary, until_ms=until_ms, rewards_in=(0.0, 1.0), confidence=confidence)


@pytest.mark.parametrize(("lift", "verdict"), [(0.3, 1), (-0.3, -1), (0.0, 0)])
def test_a_canary_is_told_better_worse_or_neither_from_live_reward(lift: float, verdict: int) -> None:
    slots = _canary(3_000, lift=lift, share=0.3, seed=2)
    bounds = _difference(slots, unit_s=3_600.0, until_ms=2**60)
    assert bounds.is_better - bounds.is_worse == verdict
    assert bounds.low < lift < bounds.high
    assert bounds.n == len({slot.who for slot in slots})


def test_users_whose_while_is_not_over_do_not_count_yet() -> None:
    slots = _canary(500, lift=0.0, share=0.3, seed=2)
    began = slots[0].decided_at_ms
    some = _difference(slots, unit_s=10.0, until_ms=began + 110_000)
    early = {slot.who for slot in slots if slot.decided_at_ms <= began + 100_000}
    assert some.n == len(early) < len({slot.who for slot in slots})
