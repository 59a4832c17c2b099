"""CSV logs: every bad value is refused or counted with its field and row, and blocks add up to the whole."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bandit.estimators import ActionRows
from service.cli import app
from simulators.benchmarks.evaluation import N_ACTIONS, write_log
from simulators.evaluate_log import LogEvaluation, evaluate_log
from simulators.logged import csv_blocks
from simulators.logged.batches import LoggedBatch
from simulators.logged.csv_log import ColumnMap, CsvLog
from simulators.logged.import_report import ImportReport, LogRefused
from simulators.logged.pmf_file import ContextFreePmf
from simulators.panel import action_panel

HEADER = "reward,propensity,target_propensity"


def write(path: Path, *rows: str, header: str = HEADER, end: str = "\n") -> Path:
    path.write_text("\n".join([header, *rows]) + end)
    return path


def read(log: CsvLog) -> tuple[list[LoggedBatch], ImportReport]:
    report = ImportReport()
    return list(log.batches(report, n_slots=1)), report


def read_rows(tmp_path: Path, *rows: str, header: str = HEADER, end: str = "\n", n_actions: int = 0) -> ImportReport:
    _, report = read(
        CsvLog(write(tmp_path / "log.csv", *rows, header=header, end=end), ColumnMap(), n_actions=n_actions)
    )
    return report


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,0,0.5", "propensity: 0"),
        ("1,1.5,0.5", "propensity: above 1"),
        ("1,-0.5,0.5", "propensity: below 0"),
        ("1,NaN,0.5", "propensity: NaN"),
        ("1,,0.5", "propensity: missing"),
        ("1,often,0.5", "propensity: not a number"),
        (",0.5,0.5", "reward: missing"),
        ("inf,0.5,0.5", "reward: not finite"),
        ("1,0.5,1.5", "target_propensity: must be in [0, 1]"),
        ("1,0.5,nan", "target_propensity: must be in [0, 1]"),
        ("1,0.5", "columns: a row must have 3"),
        ("1,0.5,0.5,0.5", "columns: a row must have 3"),
    ],
)
def test_a_bad_value_is_counted_with_its_field_and_row_and_the_others_are_read(
    tmp_path: Path, row: str, reason: str
) -> None:
    report = read_rows(tmp_path, "0,0.5,0.5", row, "1,0.25,0.5", row, "1,0.5,0.25")
    assert dict(report.rejected) == {reason: 2}
    assert report.first_rows == {reason: [3, 5]}
    assert (report.n_read, report.n_slots, report.lowest, report.highest) == (5, 3, 0.25, 0.5)


@pytest.mark.parametrize("action", ["3", "-1", "0.5"])
def test_an_action_outside_the_set_is_counted(tmp_path: Path, action: str) -> None:
    rows = [f"1,0.5,0.5,{action}", "1,0.5,0.5,2"]
    report = read_rows(tmp_path, *rows, header=f"{HEADER},action", n_actions=3)
    assert (dict(report.rejected), report.first_rows) == (
        {"action: outside the set": 1},
        {"action: outside the set": [2]},
    )


def test_time_that_falls_refuses_the_log_by_rows_unless_any_order_will_do(tmp_path: Path) -> None:
    for times in (["3", "5", "4"], ["2024-01-01", "2024-01-03", "2024-01-02"], ["1", "2024-01-03", "2024-01-02"]):
        path = write(tmp_path / "log.csv", *(f"1,0.5,0.5,{time}" for time in times), header=f"{HEADER},time")
        with pytest.raises(
            LogRefused, match=r"log\.csv: time must not fall, got an earlier one in row 4 than in row 3"
        ):
            read(CsvLog(path, ColumnMap()))
        assert read(CsvLog(path, ColumnMap(), any_order=True))[1].n_slots == 3


def test_a_row_without_time_is_counted(tmp_path: Path) -> None:
    report = read_rows(tmp_path, "1,0.5,0.5,4", "1,0.5,0.5,", "1,0.5,0.5,soon", header=f"{HEADER},time")
    assert dict(report.rejected) == {"time: missing": 1, "time: not a time": 1}


def test_a_file_that_was_cut_off_loses_its_last_row_and_says_so(tmp_path: Path) -> None:
    report = read_rows(tmp_path, "1,0.5,0.5", "1,0.5,0.2", end="")
    assert report.first_rows == {"row: no line end, it may be truncated": [3]}
    assert report.n_slots == 1


def test_a_file_cut_off_within_quotes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "1,0.5,0.5", '1,0.5,"0.5', "1,0.5,0.5")
    with pytest.raises(LogRefused, match="a quoted field is not closed"):
        read(CsvLog(path, ColumnMap()))


def test_a_truncated_gzip_file_is_refused(tmp_path: Path) -> None:
    rows = "\n".join([HEADER, *("1,0.5,0.5" for _ in range(9_999))]) + "\n"
    whole = gzip.compress(rows.encode())
    path = tmp_path / "log.csv.gz"
    path.write_bytes(whole)
    assert read(CsvLog(path, ColumnMap()))[1].n_slots == 9_999
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LogRefused, match=r"log\.csv\.gz: "):
        read(CsvLog(path, ColumnMap()))


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        ("reward,p", "", "propensity must be a column, got 'propensity'; columns: reward, p"),
        ("reward,p", "propensity=p", "the target policy needs a column for target_propensity"),
        ("reward,p,q", "propensity=p,target_propensity=q,user=who", "user must be a column, got 'who'"),
    ],
)
def test_a_column_that_is_not_there_refuses_the_file(tmp_path: Path, header: str, columns: str, message: str) -> None:
    path = write(tmp_path / "log.csv", header=header)
    with pytest.raises(LogRefused, match=message):
        read(CsvLog(path, ColumnMap.parse(columns)))


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("")
    for path in (tmp_path / "log.csv", tmp_path / "none.csv"):
        with pytest.raises(LogRefused, match=path.name):
            read(CsvLog(path, ColumnMap()))


@pytest.mark.parametrize("text", ["reward", "clicks=c", "reward="])
def test_a_mapping_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a mapping must be NAME=COLUMN with NAME one of reward, propensity"):
        ColumnMap.parse(text)


def test_a_pmf_file_weighs_actions_by_position_and_refuses_what_is_no_pmf(tmp_path: Path) -> None:
    pmf = tmp_path / "pmf.csv"
    pmf.write_text("action,position,probability\na,1,0.25\nb,1,0.75\na,2,1\nb,2,0\n")
    path = write(
        tmp_path / "log.csv", "1,0.5,a,1", "0,0.5,b,2", "1,0.5,c,1", header="reward,propensity,action,position"
    )
    batches, report = read(CsvLog(path, ColumnMap(), target=ContextFreePmf.read(pmf)))
    assert batches[0].targets[:, 0].tolist() == [0.25, 0.0]
    assert dict(report.rejected) == {"action: outside the set of the pmf": 1}
    for text, message in {
        "action,probability\na,0.5\nb,0.4\n": "must sum to 1, got 0.9",
        "action,probability\na,1.5\n": r"must be in \[0, 1\], got 1.5 \(row 2\)",
        "action,probability\na,0.5\na,0.5\n": r"'a' must stand once at a position \(row 3\)",
        "action,mass\na,1\n": "must have the column probability",
    }.items():
        pmf.write_text(text)
        with pytest.raises(LogRefused, match=message):
            ContextFreePmf.read(pmf)


def logged_rows(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    logging, target = rng.dirichlet(np.full(4, 3.0)), rng.dirichlet(np.full(4, 3.0))
    action = rng.choice(4, p=logging, size=n)
    return {
        "reward": (rng.random(n) < 0.2 + 0.1 * action).astype(np.float64),
        "propensity": logging[action],
        "target_propensity": target[action],
        "user": rng.integers(0, 300, size=n),
    }


def test_estimates_from_many_blocks_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = logged_rows(3_000)
    lines = [",".join(map(repr, row)) for row in zip(*(column.tolist() for column in rows.values()), strict=True)]
    lines.insert(1_000, "x,0.5,0.5,1")
    path = write(tmp_path / "log.csv", *lines, header=",".join(rows))
    monkeypatch.setattr(csv_blocks, "_BLOCK_BYTES", 10_000)
    assert len(read(CsvLog(path, ColumnMap()))[0]) > 10
    found = evaluate_log(CsvLog(path, ColumnMap()))
    panel = action_panel(ActionRows(rows["reward"], rows["target_propensity"] / rows["propensity"]))
    assert found.report.first_rows == {"reward: not a number": [1_002]}
    for line in found.lines:
        assert line.value == pytest.approx(panel[line.name].value, rel=1e-12)
        assert line.support.ess == pytest.approx(panel[line.name].support.ess, rel=1e-12)
        assert line.interval is not None
        assert line.interval.lower < line.value < line.interval.upper


def evaluate_rows(tmp_path: Path, *, factor: float = 1.0) -> LogEvaluation:
    rows = logged_rows(3_000)
    rows["propensity"] = rows["propensity"] * factor
    lines = [",".join(map(repr, row)) for row in zip(*(column.tolist() for column in rows.values()), strict=True)]
    return evaluate_log(CsvLog(write(tmp_path / "log.csv", *lines, header=",".join(rows)), ColumnMap()))


def test_wrong_propensities_are_refused_and_right_ones_are_not(tmp_path: Path) -> None:
    assert evaluate_rows(tmp_path).refusal is None
    refused = evaluate_rows(tmp_path, factor=0.5)
    assert refused.refusal is not None
    assert refused.refusal.startswith("mean weight must be within 3 standard errors of 1")
    assert all(line.value is None and line.interval is None for line in refused.lines)


def test_the_command_prints_json_and_exits_1_when_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", *("1,0.5,0.5" for _ in range(99)), "1,2,0.5")
    arguments = ["evaluate", "--log", str(path), "--format", "csv", "--policy", "column", "--json"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert '"propensity: above 1": {' in refused.stdout
    assert "refused: effective sample size must be at least 100, got 99.0 of 99 rows" in refused.stderr
    unknown = CliRunner().invoke(app, [*arguments[:6], "greedy"])
    assert unknown.exit_code == 2
    assert "the target policy from csv must be" in " ".join(unknown.output.replace("│", " ").split())
    missing = CliRunner().invoke(app, ["evaluate", "--log", str(tmp_path / "no.csv"), *arguments[3:]])
    assert (missing.exit_code, "no.csv" in missing.stderr) == (1, True)


def test_the_log_of_the_benchmark_is_valued_right(tmp_path: Path) -> None:
    """Within 4 standard errors: a false alarm once in 16,000 seeds."""
    truth = write_log(tmp_path / "log.csv", 30_000, seed=1)
    found = evaluate_log(CsvLog(tmp_path / "log.csv", ColumnMap(), n_actions=N_ACTIONS))
    (ips, *_) = found.lines
    assert ips.value is not None
    assert ips.interval is not None
    assert abs(ips.value - truth) < 4.0 * (ips.interval.upper - ips.interval.lower) / 3.92
    assert (found.n, found.report.n_rejected) == (30_000, 0)
