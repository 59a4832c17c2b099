"""Bounds of a streamed log: those of its rows, and only where what they assume holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from bandit.estimators import ActionRows, ips
from bandit.intervals import clopper_pearson, empirical_bernstein
from simulators.evaluate_log import LogEvaluation, evaluate_log
from simulators.logged.batches import LoggedBatch, clusters_of_rows
from simulators.logged.csv_log import ColumnMap, CsvLog
from simulators.logged.dsjson_lines import LoggedChoice
from simulators.logged.dsjson_log import DsjsonLog
from simulators.logged.dsjson_rows import max_weight
from simulators.logged.import_report import LogRefused
from simulators.panel_bounds import BoundSums
from tests.unit.test_log_csv import logged_rows
from tests.unit.test_log_csv import write as write_csv
from tests.unit.test_log_dsjson import single
from tests.unit.test_log_dsjson import write as write_dsjson

ALPHA = 1e-4
AT_THIS_LOOK, OF_THE_LOG = "value at this look", "value of the log's own policy"


def write_rows(path: Path, rows: dict[str, np.ndarray]) -> Path:
    lines = [",".join(map(repr, row)) for row in zip(*(column.tolist() for column in rows.values()), strict=True)]
    return write_csv(path, *lines, header=",".join(rows))


def evaluate_csv(tmp_path: Path, *, floor: float, with_users: bool = False) -> tuple[LogEvaluation, ActionRows]:
    rows = logged_rows(3_000)
    if not with_users:
        del rows["user"]
    path = write_rows(tmp_path / "log.csv", rows)
    weights = rows["target_propensity"] / rows["propensity"]
    return evaluate_log(CsvLog(path, ColumnMap(), floor=floor)), ActionRows(rows["reward"], weights)


def test_a_csv_log_with_a_floor_gets_the_interval_of_its_rows(tmp_path: Path) -> None:
    floor = float(logged_rows(3_000)["propensity"].min())
    found, rows = evaluate_csv(tmp_path, floor=floor)
    expected = empirical_bernstein(ips(rows), term_range=(0.0, 1.0 / floor))
    bound = found.bounds[AT_THIS_LOOK]
    assert (bound.lower, bound.upper) == pytest.approx((expected.lower, expected.upper), rel=1e-5)
    assert bound.method == "empirical Bernstein"
    assert found.report.floor == floor
    own = found.bounds[OF_THE_LOG]
    assert own == clopper_pearson(ips(ActionRows(rows.rewards, np.ones(3_000))))
    assert own.lower < found.logged_value < own.upper


def test_without_a_floor_or_with_users_the_report_says_why_the_interval_is_left_out(tmp_path: Path) -> None:
    without, _ = evaluate_csv(tmp_path, floor=0.0)
    assert AT_THIS_LOOK not in without.bounds
    assert OF_THE_LOG in without.bounds
    assert any("the largest weight that was possible is not known" in note for note in without.report.notes)
    users, _ = evaluate_csv(tmp_path, floor=0.01, with_users=True)
    assert not {AT_THIS_LOOK, OF_THE_LOG} & users.bounds.keys()
    assert any("rows of one user" in note for note in users.report.notes)


def test_a_floor_that_the_log_belies_refuses_it_by_row(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv", "1,0.5,0.5", "1,0.05,0.5")
    with pytest.raises(LogRefused, match=r"propensity must be at least the floor 0.1, got 0.05 \(row 3\)"):
        evaluate_log(CsvLog(path, ColumnMap(), floor=0.1))


def test_the_largest_weight_is_over_what_could_be_drawn_and_not_what_was() -> None:
    def logged(*pmf: float) -> LoggedChoice:
        return LoggedChoice.of(1.0, range(len(pmf)), pmf)

    assert max_weight(np.array([0.0, 0.0, 1.0]), logged(0.5, 0.3, 0.2)) == pytest.approx(5.0)
    assert max_weight(np.array([0.5, 0.0, 0.5]), logged(0.5, 0.5, 0.0)) == 1.0
    assert max_weight(np.ones(1), logged(0.3)) == np.inf


def test_a_dsjson_log_says_itself_how_large_a_weight_may_be(tmp_path: Path) -> None:
    """A 0.2 was never drawn, but could have been: uniform gives it a weight of 5/3."""
    found = evaluate_log(DsjsonLog(write_dsjson(tmp_path / "log", *[single() for _ in range(400)]), "uniform"))
    assert found.refusal is not None, "nothing but the first action was logged"
    lines = []
    rng = np.random.default_rng(1)
    for shown in rng.choice(3, p=[0.5, 0.3, 0.2], size=2_000).tolist():
        order = [shown, *(a for a in range(3) if a != shown)]
        pmf = [[0.5, 0.3, 0.2][a] for a in order]
        reward = -float(rng.random() < 0.4)
        a = [a + 1 for a in order]
        lines.append(single(a=a, p=pmf, _label_probability=pmf[0], _labelIndex=shown, _label_cost=reward))
    found = evaluate_log(DsjsonLog(write_dsjson(tmp_path / "log", *lines), "uniform"))
    assert found.refusal is None
    bound = found.bounds[AT_THIS_LOOK]
    line = found.lines[0]
    assert line.name == "ips"
    assert bound.lower < line.interval.lower < line.value < line.interval.upper < bound.upper
    lines[1_999]["VWState"] = {"m": "another"}
    changed = evaluate_log(DsjsonLog(write_dsjson(tmp_path / "log", *lines), "uniform"))
    assert not {AT_THIS_LOOK, OF_THE_LOG} & changed.bounds.keys()
    n, log_term = 2_000, np.log(80.0)
    assert bound.upper - line.value > 7.0 * (5.0 / 3.0) * log_term / (3.0 * (n - 1))
    assert bound.upper - line.value < 7.0 * (5.0 / 3.0) * log_term / (3.0 * (n - 1)) + np.sqrt(2 * log_term / n)


def batch_of(rewards: np.ndarray, weights: np.ndarray, *, max_weights: np.ndarray | None) -> LoggedBatch:
    n = len(rewards)
    propensities = np.full(n, 1e-6)
    return LoggedBatch.of_actions(
        rewards=rewards,
        propensities=propensities,
        targets=weights * propensities,
        clusters=clusters_of_rows(0, n),
        n_feasible=np.zeros(n, dtype=np.int64),
        max_weights=max_weights,
        are_independent=True,
    )


@pytest.mark.parametrize("knows_bound", [True, False])
def test_the_interval_covers_with_the_largest_possible_weight_and_not_with_the_largest_seen(knows_bound: bool) -> None:
    """Rows differ in their bounds; half of the value is in weights of 50 that most logs never show.

    200 logs of 60 rows, band at 1e-4. The negative control bounds a row by the weight that it had.
    """
    n_covered, n = 0, 60
    for run in range(200):
        rng = np.random.default_rng([61, run])
        rare = rng.random(n) < 0.5 / 50.0
        possible = np.where(np.arange(n) % 2 == 0, 50.0, 10.0)
        weights = np.where(rare, 50.0, 0.5) * np.where(possible == 50.0, 1.0, 0.2)
        sums = BoundSums()
        rewards = np.ones(n) * (rare | (rng.random(n) < 0.001))
        for part in (slice(0, 20), slice(20, n)):
            bounds = possible[part] if knows_bound else (weights * rewards)[part]
            sums.add(batch_of(rewards[part], weights[part], max_weights=bounds), position_weights=np.ones(1))
        # Of every other row 0.5 and a little, of the others a fifth of it.
        truth = float(np.mean([(0.5 + 0.5 * 0.001 * 0.99) * (1.0 if bound == 50.0 else 0.2) for bound in possible]))
        interval = sums.intervals()[AT_THIS_LOOK]
        n_covered += interval.lower <= truth <= interval.upper
    assert (n_covered >= binom.ppf(ALPHA, 200, 0.95)) == knows_bound, n_covered
