"""A part of a log by time: half-open, counted as filtered and not as rejected, in every format and in replays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from service.cli import app
from service.export import Selection
from simulators.counterfactual import TargetPolicy
from simulators.evaluate_log import evaluate_log
from simulators.logged.archive_log import ArchiveLog
from simulators.logged.csv_log import ColumnMap, CsvLog, TimeUnit
from simulators.logged.dsjson_log import DsjsonLog
from simulators.logged.import_report import ImportReport, LogRefused
from simulators.logged.time_window import TimeWindow
from tests.archived_world import write_archive
from tests.unit.test_log_archive import WORLD
from tests.unit.test_log_csv import write as write_csv
from tests.unit.test_log_dsjson import single
from tests.unit.test_log_dsjson import write as write_dsjson
from tests.unit.test_replay import SLATES

DAY = "2024-03-01T12:00:0"
WINDOW = TimeWindow.parse(f"{DAY}1", f"{DAY}3")


def test_dates_are_read_as_utc_unless_they_name_a_zone() -> None:
    assert TimeWindow.parse("2024-03-01", "").from_ms == 1_709_251_200_000
    assert TimeWindow.parse("2024-03-01T02:00+02:00", "") == TimeWindow.parse("2024-03-01", "")
    assert TimeWindow.parse("2024-03-01T00:00:00.0001", "").from_ms == 1_709_251_200_001
    assert not TimeWindow.parse("", "")


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("soon", "", "from must be an ISO date or time such as 2026-11-01, got 'soon'"),
        ("", "2024-13-01", "to must be an ISO date"),
        ("2024-03-02", "2024-03-02", "the start of a window must be before its end"),
    ],
)
def test_what_is_no_window_is_refused(start: str, end: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimeWindow.parse(start, end)


def counts(report: ImportReport) -> tuple[int, int, int, int]:
    return report.n_read, report.n_filtered, report.n_rejected, report.n_slots


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        ([f"{DAY}{n}" for n in range(5)], None),
        ([f"{DAY}{n}Z" for n in range(5)], None),
        ([str(1_709_294_400 + n) for n in range(5)], "s"),
        ([str((1_709_294_400 + n) * 1000) for n in range(5)], "ms"),
        ([str((1_709_294_400 + n) * 10**9) for n in range(5)], "ns"),
    ],
)
def test_rows_of_csv_from_the_start_up_to_the_end_are_used(
    tmp_path: Path, times: list[str], unit: TimeUnit | None
) -> None:
    rows = [f"1,0.5,{n / 10},{time}" for n, time in enumerate(times)]
    # A row outside of the time is not looked at any further.
    rows[4] = rows[4].replace("0.5", "7")
    path = write_csv(tmp_path / "log.csv", *rows, header="reward,propensity,target_propensity,time")
    report = ImportReport()
    batches = list(CsvLog(path, ColumnMap(), window=WINDOW, time_unit=unit).batches(report, n_slots=1))
    assert np.concatenate([batch.targets[:, 0] for batch in batches]).tolist() == [0.1, 0.2]
    assert counts(report) == (5, 3, 0, 2)
    assert report.lines()[0] == "rows read 5  outside of the time asked for 3  rejected 0"
    assert report.figures()["rows_filtered"] == 3


def test_a_number_without_a_unit_or_a_log_without_time_cannot_be_filtered(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv", "1,0.5,0.5,17", header="reward,propensity,target_propensity,time")
    with pytest.raises(LogRefused, match="time is a number in row 2: say in which unit"):
        evaluate_log(CsvLog(path, ColumnMap(), window=WINDOW))
    with pytest.raises(LogRefused, match="needs a column for time; map one"):
        evaluate_log(CsvLog(write_csv(tmp_path / "log.csv", "1,0.5,0.5"), ColumnMap(), window=WINDOW))


def test_lines_of_dsjson_from_the_start_up_to_the_end_are_used(tmp_path: Path) -> None:
    lines = [single(Timestamp=f"{DAY}{n}.0000000Z") for n in range(5)]
    lines.append(single(Timestamp=...))
    report = ImportReport()
    path = write_dsjson(tmp_path / "log", *lines)
    list(DsjsonLog(path, "uniform", window=WINDOW).batches(report, n_slots=1))
    assert counts(report) == (6, 3, 1, 2)
    assert report.first_rows == {"Timestamp: missing, so that nobody knows whether it is in the time asked for": [6]}


def test_decisions_of_an_archive_from_the_start_up_to_the_end_are_used(tmp_path: Path) -> None:
    log = WORLD.log(300, seed=1)
    write_archive(tmp_path, log)
    start, end = (log[n * WORLD.n_slots].payload.decided_at_unix_ms for n in (40, 260))
    selection = Selection(from_ms=start, to_ms=end)
    found = evaluate_log(ArchiveLog(config=WORLD.config, folder=tmp_path, selection=selection, target=TargetPolicy()))
    assert (found.n, found.report.n_read, found.report.n_filtered, found.report.n_rejected) == (220, 300, 80, 0)
    expected = np.mean([one.reward for one in log[40 * WORLD.n_slots : 260 * WORLD.n_slots]]) * WORLD.n_slots
    assert found.logged_value == pytest.approx(expected)
    other = Selection(surface="elsewhere", from_ms=start, to_ms=end)
    log_of_other = ArchiveLog(config=WORLD.config, folder=tmp_path, selection=other, target=TargetPolicy())
    with pytest.raises(LogRefused, match="no row of the log can be used"):
        evaluate_log(log_of_other)


def test_evaluate_and_replay_take_the_window_as_options(tmp_path: Path) -> None:
    """Decisions are a second apart."""
    write_archive(tmp_path, SLATES.log(400, seed=1))
    times = ["--from", "2026-11-18T11:08:20", "--to", "2026-11-18T11:11:40", "--json"]
    assert TimeWindow.parse(times[1], "").from_ms == SLATES.log(1, seed=1)[0].payload.decided_at_unix_ms + 100_000
    for command in (["evaluate", "--policy", "logged"], ["replay"]):
        result = CliRunner().invoke(app, [*command, "--log", str(tmp_path), *times])
        assert result.exit_code == 0, result.output
        figures = json.loads(result.stdout)
        assert figures["decisions"] == 200
        assert figures["import"]["rows_filtered"] == 200
        assert figures["import"]["rows_rejected"] == 0
    wrong = CliRunner().invoke(app, ["replay", "--log", str(tmp_path), "--from", "noon"])
    assert (wrong.exit_code, "ISO date or time" in " ".join(wrong.output.split())) == (2, True)
