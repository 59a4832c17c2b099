"""Estimates from our own service's logs against the closed-loop truth of the policy they are about.

The log: a model that does not learn, in a world that stands still. The truth: the target policy on that model in runs
of its own, where the expected reward of every slate is known. Slots are looked at one by one, so every estimator's
assumption holds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from bandit.exploration import Epsilon, Exploration
from service.export import Selection
from service.messages import ModelSnapshot
from simulators.closed_loop import learn_model, run_loop, true_value
from simulators.counterfactual import TargetPolicy
from simulators.evaluate_log import evaluate_log
from simulators.logged.archive_log import ArchiveLog
from simulators.loop_config import build_config
from simulators.worlds.churn import Churn
from simulators.worlds.delays import ClickDelay
from simulators.worlds.named import QUICK_SETTINGS, clustered_world

ALPHA = 1e-4
CONFIDENCE = 0.95
# Every click is within the window in which a slot waits for it.
WORLD = replace(clustered_world(), seed=5, churn=Churn(n_live=12), delay=ClickDelay(median_s=1.0, spread=0.5))
LOGGING = Epsilon(rate=0.3, uniform_share=0.5, shortlist=6)
TARGET = Epsilon(rate=0.1, uniform_share=0.5, shortlist=6)
FAR = Epsilon(rate=1.0, uniform_share=1.0)
ESTIMATORS = ("slate_ips", "rips", "iips")


@pytest.fixture(scope="module")
def model() -> ModelSnapshot:
    return learn_model(WORLD, exploration=LOGGING, n_decisions=500, seed=1_000, settings=QUICK_SETTINGS)


def truth(model: ModelSnapshot, exploration: Exploration, *, n_decisions: int) -> tuple[float, float]:
    """Return the value of a slate and its standard error."""
    found = true_value(
        WORLD, exploration=exploration, frozen=model, n_decisions=n_decisions, seed=2_000, settings=QUICK_SETTINGS
    )
    return found.value * WORLD.n_slots, found.standard_error * WORLD.n_slots


def bounds(folder: Path, model: ModelSnapshot, *, seed: int, n_decisions: int) -> dict[str, tuple[float, float]]:
    """Return the interval of each estimator from one log."""
    run_loop(
        WORLD,
        exploration=LOGGING,
        n_decisions=n_decisions,
        seed=seed,
        every=n_decisions,
        settings=QUICK_SETTINGS,
        frozen=model,
        archive_folder=folder,
    )
    log = ArchiveLog(
        config=build_config(WORLD, exploration=LOGGING, settings=QUICK_SETTINGS),
        folder=folder,
        selection=Selection(),
        target=TargetPolicy(exploration=TARGET),
    )
    found = evaluate_log(log)
    assert found.report.n_rejected == 0
    intervals = {line.name: line.interval for line in found.lines if line.name in ESTIMATORS}
    assert intervals.keys() == set(ESTIMATORS)
    return {name: (one.lower, one.upper) for name, one in intervals.items() if one is not None}


def n_inside(found: list[dict[str, tuple[float, float]]], name: str, value: float, error: float) -> int:
    """Count the intervals that hold the truth, give or take two standard errors of the truth itself."""
    return sum(one[name][0] - 2.0 * error <= value <= one[name][1] + 2.0 * error for one in found)


def check(folder: Path, model: ModelSnapshot, *, n_runs: int, n_decisions: int) -> None:
    """Compare the intervals of some logs with the truth, and with that of a policy far away, which they must not hold.

    Counts may fall short of the stated rate by what chance does once in 10,000 times.
    """
    found = [bounds(folder / str(seed), model, seed=seed, n_decisions=n_decisions) for seed in range(n_runs)]
    value, error = truth(model, TARGET, n_decisions=max(1_500, 5 * n_decisions))
    far, far_error = truth(model, FAR, n_decisions=300)
    fewest = int(stats.binom.ppf(ALPHA, n_runs, CONFIDENCE))
    counts = {name: n_inside(found, name, value, error) for name in ESTIMATORS}
    assert min(counts.values()) >= fewest, (counts, value, found)
    assert max(n_inside(found, name, far, far_error) for name in ESTIMATORS) < fewest


def test_estimates_from_a_few_logs_hold_the_closed_loop_truth(tmp_path: Path, model: ModelSnapshot) -> None:
    check(tmp_path, model, n_runs=5, n_decisions=200)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_estimates_from_fifty_logs_hold_the_closed_loop_truth(tmp_path: Path, model: ModelSnapshot) -> None:
    check(tmp_path, model, n_runs=50, n_decisions=800)
