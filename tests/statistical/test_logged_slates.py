"""Another policy's value from logs of slates of a known world: inside its interval, and its mean weight is 1.

One fixed log a case. Intervals are bootstraps at 95%; to have a false-alarm rate of 1e-4 a case, the truth must be
within twice the interval's width of its middle: 3.9 standard errors.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy import stats

from bandit.exploration import Epsilon, Exploration, Greedy, Softmax
from service.export import Selection
from simulators.counterfactual import TargetPolicy, build_counterfactual
from simulators.evaluate_log import evaluate_log
from simulators.logged.archive_log import ArchiveLog
from simulators.logged_world import LoggedWorld
from simulators.marginals import position_marginals
from tests.archived_world import write_archive

ALPHA = 1e-4
TARGETS: dict[str, Exploration] = {
    "greedy": Greedy(),
    "uniform": Epsilon(rate=1.0, uniform_share=1.0),
    "epsilon": Epsilon(rate=0.2, uniform_share=0.5, shortlist=3),
    "softmax": Softmax(shortlist=4, temperature=0.5),
}
RNG = np.random.default_rng(8)
WORLD = LoggedWorld(
    rewards=RNG.uniform(0.1, 0.9, (3, 5)),
    scores=RNG.uniform(0.1, 0.9, (3, 5)),
    exploration=Epsilon(rate=0.6, uniform_share=0.7, shortlist=3),
    n_slots=3,
    examination=(1.0, 0.7, 0.4),
)


def true_value(world: LoggedWorld, exploration: Exploration) -> float:
    """Exact: the marginals of every item at every position, over all slates."""
    other = replace(world, exploration=exploration)
    segments = {}
    for joined in other.log(200, seed=1):
        segments.setdefault(joined.payload.context["segment"], joined.payload)
    assert len(segments) == len(world.rewards)
    value = 0.0
    for segment, decision in segments.items():
        marginals = position_marginals(decision)
        assert marginals is not None
        assert marginals.sum(axis=1) == pytest.approx(1.0, abs=1e-12)
        value += float(np.array(world.examination) @ marginals @ world.rewards[int(segment[1:])])
    return value / len(world.rewards)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, WORLD.log(2_000, seed=4))
    return folder


@pytest.mark.parametrize("name", TARGETS)
def test_the_value_of_another_policy_is_inside_its_intervals(archive: Path, name: str) -> None:
    target = TargetPolicy(exploration=TARGETS[name])
    log = ArchiveLog(config=WORLD.config, folder=archive, selection=Selection(), target=target)
    found = evaluate_log(log)
    truth = true_value(WORLD, TARGETS[name])
    assert found.report.n_rejected == 0
    inverse = found.report.inverse
    assert inverse is not None
    assert abs(inverse.mean_weight - 1.0) < stats.norm.isf(ALPHA / 2) * inverse.mean_weight_se
    for line in found.lines:
        assert (line.refusal, line.name) == (None, line.name)
        assert abs(line.support.mean_weight - 1.0) < stats.norm.isf(ALPHA / 2) * line.support.mean_weight_se
        if line.name != "one_slot":
            assert line.interval is not None
            assert line.value is not None
            half = (line.interval.upper - line.interval.lower) / 2
            assert abs(line.value - truth) < 2.0 * half, line


def test_a_log_with_the_propensities_of_another_policy_is_refused(tmp_path: Path) -> None:
    """Negative control: records say that a greedier policy drew what the world's own policy drew."""
    claimed = Epsilon(rate=0.3, uniform_share=0.7, shortlist=3)
    log = []
    for joined in WORLD.log(1_000, seed=4):
        decision = joined.payload
        found = build_counterfactual(decision, TargetPolicy(exploration=claimed))
        slots = [
            msgspec.structs.replace(slot, propensity=float(propensity))
            for slot, propensity in zip(decision.slots, found.target, strict=True)
        ]
        payload = msgspec.structs.replace(decision, exploration=claimed, slots=slots)
        log.append(msgspec.structs.replace(joined, payload=payload))
    write_archive(tmp_path, log)
    target = TargetPolicy(exploration=TARGETS["uniform"])
    refused = evaluate_log(ArchiveLog(config=WORLD.config, folder=tmp_path, selection=Selection(), target=target))
    assert refused.report.n_rejected == 0
    assert [line.name for line in refused.lines if line.refusal is None] == []
