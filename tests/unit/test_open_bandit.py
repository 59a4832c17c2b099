from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from service.cli import app
from simulators.datasets.fetch import Fetched, cache_folder, fetch
from simulators.evaluate_log import evaluate_log
from simulators.logged.csv_log import CsvLog
from simulators.logged.open_bandit import CSV_COLUMNS, OPEN_BANDIT, read_log, read_prior, thompson_pmf, uniform_pmf
from simulators.logged.pmf_file import ContextFreePmf
from simulators.logged.schema import LoggedBandit
from tests.make_obp_golden import GOLDEN

OBP = json.loads(GOLDEN.read_text())["open_bandit"]
N_ACTIONS = {"all": 80, "men": 34, "women": 46}
# As published in the science page: on-policy random and BTS, IPW, SNIPW, relative-EE of IPW, ESS, as printed there.
PUBLISHED = {
    "all": (".0038", ".0042", ".004553", ".004776", ".084019", "1,640"),
    "men": (".0046", ".0069", ".004534", ".004604", ".342962", "2,467"),
    "women": (".0046", ".0046", ".006813", ".006811", ".481190", "1,954"),
}


@pytest.fixture(scope="module")
def files() -> Fetched:
    """The sample in the cache folder, where `make test` puts it once."""
    return fetch(OPEN_BANDIT, cache_folder(os.environ), offline=True)


def run(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(app, ["evaluate", "--offline", "--json", *arguments])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def shown(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".removeprefix("0")


@pytest.mark.parametrize("campaign", ["all", "men", "women"])
def test_the_published_figures_come_out_to_every_printed_digit(files: Fetched, campaign: str) -> None:
    found = run("--dataset", "open-bandit", "--campaign", campaign)
    estimates = found["estimates"]
    assert (
        shown(found["on_policy"]["random"], 4),
        shown(found["on_policy"]["bts"], 4),
        shown(estimates["ips"]["value"], 6),
        shown(estimates["snips"]["value"], 6),
        shown(estimates["ips"]["relative_ee"], 6),
        f"{found['support']['ess']:,.0f}",
    ) == PUBLISHED[campaign]
    ours = {name: estimates[name]["value"] for name in ("ips", "snips")}
    assert ours == pytest.approx(OBP[campaign], rel=0.0, abs=1e-9)
    assert found["refusal"] is None
    assert all(line["interval"]["lower"] <= line["value"] <= line["interval"]["upper"] for line in estimates.values())


def test_a_log_without_support_is_refused_with_its_reason_and_no_value(files: Fetched) -> None:
    result = CliRunner().invoke(app, ["evaluate", "--offline", "--json", "--campaign", "women", "--reverse"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["estimates"] == found["intervals"] == {}
    assert f"{found['support']['max_weight']:,.0f}" == "21,739"
    assert f"{found['support']['ess']:.1f}" == "2.1"
    assert found["refusal"] in result.stderr
    assert "effective sample size must be at least 100, got 2.1 of 10,000 rows (largest weight 21,739)" in result.stderr


def test_the_printed_report_shows_support_before_values(files: Fetched) -> None:
    result = CliRunner().invoke(app, ["evaluate", "--offline", "--campaign", "men"])
    assert result.exit_code == 0
    assert 0 < result.stdout.index("ESS 2,467.4") < result.stdout.index("0.004534")
    refused = CliRunner().invoke(app, ["evaluate", "--offline", "--campaign", "women", "--reverse"])
    assert "largest weight 21,739.1" in refused.stdout
    assert "estimator" not in refused.stdout


def test_what_is_not_there_ends_with_one_and_what_is_not_known_with_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_CACHE_DIR", str(tmp_path))
    absent = CliRunner().invoke(app, ["evaluate", "--offline"])
    assert absent.exit_code == 1
    assert "python -m pip download --no-deps obp==0.4.1" in absent.stderr
    assert CliRunner().invoke(app, ["evaluate", "--campaign", "children"]).exit_code == 2
    assert CliRunner().invoke(app, ["evaluate", "--dataset", "netflix"]).exit_code == 2
    assert "Example: hone evaluate" in CliRunner().invoke(app, ["evaluate", "--help"]).stdout


def test_the_uniform_log_has_uniform_propensities(files: Fetched) -> None:
    for campaign, n_actions in N_ACTIONS.items():
        log = read_log(files, campaign=campaign, policy="random")
        assert log.n_actions == n_actions
        assert log.contexts.shape[0] == len(log.actions) == 10_000
        assert log.weights(uniform_pmf(n_actions)) == pytest.approx(np.ones(10_000), abs=1e-9)


def test_thompson_sampling_fills_every_position_and_never_one_item_twice(files: Fetched) -> None:
    alpha, beta = read_prior(files, campaign="men")
    pmf = thompson_pmf(alpha, beta)
    assert pmf.sum(axis=0) == pytest.approx(np.ones(3), abs=1e-12)
    assert (pmf.sum(axis=1) <= 1.0 + 1e-12).all()
    assert pmf[np.argmax(alpha / (alpha + beta)), 0] > 1 / len(alpha)


# Schema -----------------------------------------------------------------------------------------------------------


def rows(**changed: object) -> LoggedBandit:
    columns: dict[str, object] = {
        "contexts": np.zeros((3, 1)),
        "actions": np.array([0, 1, 2]),
        "rewards": np.zeros(3),
        "propensities": np.array([0.5, 0.25, 1.0]),
        "positions": np.zeros(3, np.int64),
        "clusters": np.arange(3),
        "n_actions": 3,
        "n_positions": 1,
    }
    return LoggedBandit(**{**columns, **changed})


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("propensities", [0.5, 0.0, 1.0], r"propensity must be in \(0, 1\], got 0.0 \(row 1\)"),
        ("propensities", [0.5, 0.5, 1.3], r"propensity must be in \(0, 1\], got 1.3 \(row 2\)"),
        ("propensities", [np.nan, 0.5, 1.0], r"propensity must be in \(0, 1\], got nan \(row 0\)"),
        ("propensities", [0.5, 0.5], "propensities must have 3 rows, got 2"),
        ("rewards", [0.0, np.inf, 0.0], r"reward must be finite, got inf \(row 1\)"),
    ],
)
def test_bad_rows_are_refused_by_name(column: str, values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows(**{column: np.array(values)})


def test_actions_and_positions_outside_their_sets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"action must be in \[0, 3\), got 3 \(row 2\)"):
        rows(actions=np.array([0, 1, 3]))
    with pytest.raises(ValueError, match=r"position must be in \[0, 1\), got -1 \(row 0\)"):
        rows(positions=np.array([-1, 0, 0]))
    assert rows().n_actions == 3


def test_the_published_figure_comes_out_of_the_stream_as_well(files: Fetched, tmp_path: Path) -> None:
    pmf = thompson_pmf(*read_prior(files, campaign="all"))
    rows = [f"{action},{k + 1},{float(pmf[action, k])!r}" for action in range(len(pmf)) for k in range(pmf.shape[1])]
    (tmp_path / "pmf.csv").write_text("\n".join(["action,position,probability", *rows]) + "\n")
    target = ContextFreePmf.read(tmp_path / "pmf.csv")
    log = CsvLog(files.files["random-all.csv"], CSV_COLUMNS, target=target, any_order=True)
    found = evaluate_log(log)
    estimates = {line.name: line.value for line in found.lines}
    assert found.report.n_read == 10_000
    assert {name: estimates[name] for name in OBP["all"]} == pytest.approx(OBP["all"], rel=0.0, abs=1e-9)
