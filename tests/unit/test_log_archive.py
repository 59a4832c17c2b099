"""Archives: logged slates come back with exact weights; what cannot be used is refused or counted with its decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from bandit.exploration import Epsilon, Greedy
from bandit.joining import Joined
from service.cli import app
from service.export import Selection
from service.messages import Decision
from simulators.counterfactual import TargetPolicy
from simulators.evaluate_log import LogEvaluation, evaluate_log
from simulators.logged.archive_log import ArchiveLog
from simulators.logged.import_report import ImportReport, LogRefused
from simulators.logged_world import LoggedWorld, null_world
from tests.archived_world import write_archive

UNIFORM = TargetPolicy(exploration=Epsilon(rate=1.0, uniform_share=1.0))
WORLD = replace(null_world(seed=1), n_slots=2, examination=(1.0, 0.5))


def log_of(world: LoggedWorld, folder: Path, target: TargetPolicy) -> ArchiveLog:
    return ArchiveLog(config=world.config, folder=folder, selection=Selection(), target=target)


def evaluate(folder: Path, target: TargetPolicy = UNIFORM) -> LogEvaluation:
    return evaluate_log(log_of(WORLD, folder, target))


def test_the_logged_policy_has_weights_of_1_and_the_value_of_its_own_log(tmp_path: Path) -> None:
    write_archive(tmp_path, WORLD.log(700, seed=2))
    found = evaluate(tmp_path, TargetPolicy())
    assert (found.n, found.report.n_rejected, found.report.floor) == (700, 0, pytest.approx(0.3 / 5))
    assert {line.name for line in found.lines} == {
        *("slate_ips", "rips", "iips", "cascade_dr", "sn_slate_ips", "sn_rips", "sn_iips", "sn_cascade_dr", "one_slot")
    }
    for line in found.lines:
        assert (line.support.max_weight, line.support.ess) == (1.0, pytest.approx(700.0))
        # A model takes noise out of the mean of the very log.
        assert line.value == pytest.approx(found.logged_value, rel=0.01 if "cascade" in line.name else 1e-12)


def test_position_weights_say_what_a_slot_is_worth(tmp_path: Path) -> None:
    write_archive(tmp_path, log := WORLD.log(300, seed=2))
    found = evaluate_log(log_of(WORLD, tmp_path, TargetPolicy()), position_weights=np.array([0.0, 2.0]))
    expected = 2.0 * sum(joined.reward for joined in log if joined.slot == 1) / 300
    assert found.lines[0].value == pytest.approx(expected)
    with pytest.raises(LogRefused, match="at most one for each of 2 slots, got 3"):
        evaluate_log(log_of(WORLD, tmp_path, TargetPolicy()), position_weights=np.ones(3))


def test_a_log_without_exploration_is_refused_for_another_policy(tmp_path: Path) -> None:
    world = replace(WORLD, exploration=Epsilon(rate=0.0))
    write_archive(tmp_path, world.log(500, seed=2))
    found = evaluate_log(log_of(world, tmp_path, UNIFORM))
    assert found.refusal is not None
    assert "mean weight" in found.refusal
    assert all(line.value is None for line in found.lines)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"propensity": 0.0}, "propensity: 0"),
        ({"propensity": 1.5}, "propensity: above 1"),
        ({"propensity": float("nan")}, "propensity: NaN"),
        ({"propensity": 0.123}, "propensity: does not follow from the record"),
        ({"action": 5}, "action: outside the set"),
    ],
)
def test_a_decision_with_a_bad_slot_is_counted_by_its_id(
    tmp_path: Path, changes: dict[str, float], reason: str
) -> None:
    def damage(decision: Decision) -> Decision:
        slots = [decision.slots[0], msgspec.structs.replace(decision.slots[1], **changes)]
        return msgspec.structs.replace(decision, slots=slots)

    write_archive(tmp_path, _changed(WORLD.log(150, seed=2), "e7", damage))
    report = evaluate(tmp_path).report
    assert (dict(report.rejected), report.first_rows) == ({reason: 1}, {reason: ["e7"]})
    assert (report.n_read, report.n_slots) == (150, 2 * 149)


def _changed(
    log: list[Joined[Decision]], event_id: str, change: Callable[[Decision], Decision]
) -> list[Joined[Decision]]:
    return [
        msgspec.structs.replace(one, payload=change(one.payload)) if one.event_id == event_id else one for one in log
    ]


def test_a_decision_of_another_schema_version_is_counted(tmp_path: Path) -> None:
    log = _changed(WORLD.log(150, seed=2), "e3", lambda decision: msgspec.structs.replace(decision, v=2))
    write_archive(tmp_path, log)
    assert evaluate(tmp_path).report.first_rows == {"v: schema version of the decision must be 1": ["e3"]}


def test_a_reward_that_is_none_is_counted(tmp_path: Path) -> None:
    log = [
        msgspec.structs.replace(one, reward=float("nan")) if one.event_id == "e3" else one
        for one in WORLD.log(150, seed=2)
    ]
    write_archive(tmp_path, log)
    assert evaluate(tmp_path).report.first_rows == {"reward: not finite": ["e3"]}


def test_files_of_another_schema_version_refuse_the_archive_by_name(tmp_path: Path) -> None:
    write_archive(tmp_path, WORLD.log(20, seed=2))
    (path,) = (tmp_path / "decisions").rglob("*.parquet")
    table = pq.ParquetFile(path).read()
    pq.write_table(table.replace_schema_metadata({"hone_schema": "decisions-9"}), path)
    with pytest.raises(LogRefused, match=rf"{path.name}: hone_schema must be decisions-1 .* got 'decisions-9'"):
        evaluate(tmp_path)


@pytest.mark.parametrize("kind", ["decisions", "outcomes"])
def test_a_truncated_file_refuses_the_archive(tmp_path: Path, kind: str) -> None:
    write_archive(tmp_path, WORLD.log(20, seed=2))
    (path,) = (tmp_path / kind).rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LogRefused, match=str(tmp_path)):
        evaluate(tmp_path)


def test_a_folder_without_an_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogRefused, match="no row of the log can be used: it is empty"):
        evaluate(tmp_path / "none")


def test_marginals_of_long_slates_are_not_listed_and_the_report_says_so(tmp_path: Path) -> None:
    world = replace(null_world(seed=1, n_items=30), n_slots=4, examination=(1.0,) * 4)
    write_archive(tmp_path, world.log(120, seed=2))
    found = evaluate_log(log_of(world, tmp_path, TargetPolicy()))
    assert not any("iips" in line.name for line in found.lines)
    assert any("iips is left out" in note for note in found.report.notes)


def test_decisions_are_read_in_batches_that_add_up(tmp_path: Path) -> None:
    write_archive(tmp_path, WORLD.log(1_100, seed=2))
    log = log_of(WORLD, tmp_path, TargetPolicy(exploration=Greedy()))
    sizes = [len(batch) for batch in log.batches(ImportReport(), n_slots=log.count_slots())]
    assert sizes == [512, 512, 76]


def test_the_command_evaluates_an_archive(tmp_path: Path) -> None:
    write_archive(tmp_path, WORLD.log(400, seed=2))
    result = CliRunner().invoke(app, ["evaluate", "--log", str(tmp_path), "--policy", "epsilon", "--rate", "0.2"])
    assert result.exit_code == 0, result.output
    assert "cascade_dr" in result.stdout
