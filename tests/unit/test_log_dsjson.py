"""DSJSON logs, single and CCB: every bad value is refused or counted with its field and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from simulators.evaluate_log import evaluate_log
from simulators.logged.batches import LoggedBatch
from simulators.logged.dsjson_log import DsjsonLog, DsjsonTarget
from simulators.logged.import_report import ImportReport, LogRefused


def single(**changes: Any) -> dict[str, Any]:
    """A line as VW's service wrote them: the second of three actions was shown."""
    line = {
        "_label_cost": -1.0,
        "_label_probability": 0.5,
        "_label_Action": 2,
        "_labelIndex": 1,
        "o": [{"v": 1.0}],
        "Timestamp": "2024-03-01T12:00:00.5000000Z",
        "Version": "1",
        "EventId": "e",
        "a": [2, 1, 3],
        "c": {"User": {"id": "u"}, "_multi": [{"A": {"x": 1}}, {"A": {"x": 2}}, {"A": {"x": 3}}]},
        "p": [0.5, 0.3, 0.2],
        "VWState": {"m": "m"},
    }
    return {name: value for name, value in (line | changes).items() if value is not ...}


def ccb(*outcomes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    slots = list(outcomes) or [
        {"_id": "s1", "_label_cost": 0, "_a": [2, 0, 1], "_p": [0.5, 0.25, 0.25]},
        {"_id": "s2", "_label_cost": -1.0, "_a": [0, 1], "_p": [0.4, 0.6]},
        {"_id": "s3", "_label_cost": 0, "_a": 1, "_p": 1.0},
    ]
    context = {"_multi": [{"A": {"x": n}} for n in range(3)], "_slots": [{"_id": "s1"}] * len(slots)}
    return {"Timestamp": "2024-03-01T12:00:00Z", "Version": "1", "c": context, "_outcomes": slots} | changes


def write(path: Path, *lines: dict[str, Any] | bytes, end: bytes = b"\n") -> Path:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines) + end)
    return path


def read(path: Path, target: DsjsonTarget = "uniform", **given: Any) -> tuple[list[LoggedBatch], ImportReport]:
    log, report = DsjsonLog(path, target, **given), ImportReport()
    return list(log.batches(report, n_slots=log.count_slots())), report


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("uniform", [1 / 3, 1 / 3]),
        ("greedy", [1.0, 0.0]),
        ("epsilon", [0.8 + 0.2 / 3, 0.2 / 3]),
        ("column", [0.7, 0.1]),
    ],
)
def test_a_single_action_has_the_target_that_follows_from_its_pmf(
    tmp_path: Path, target: DsjsonTarget, expected: list[float]
) -> None:
    rare = {"a": [3, 1, 2], "p": [0.2, 0.3, 0.5], "_label_probability": 0.2, "_labelIndex": 2, "_label_cost": 0.5}
    path = write(tmp_path / "log", single(target_propensity=0.7), single(**rare, target_propensity=0.1))
    (batch,), report = read(path, target, rate=0.2)
    assert batch.targets[:, 0] == pytest.approx(expected)
    assert batch.propensities[:, 0].tolist() == [0.5, 0.2]
    assert batch.rewards[:, 0].tolist() == [1.0, -0.5]
    assert (batch.n_feasible[:, 0].tolist(), report.n_read, report.n_rejected) == ([3, 3], 2, 0)


def test_slots_of_ccb_are_slots_each_over_the_actions_that_are_left(tmp_path: Path) -> None:
    two = ccb({"_label_cost": 0, "_a": [1, 0, 2], "_p": [0.2, 0.4, 0.4]})
    (batch,), _ = read(write(tmp_path / "log", ccb(), two))
    assert batch.rewards.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert batch.propensities.tolist() == [[0.5, 0.4, 1.0], [0.2, 1.0, 1.0]]
    assert batch.n_feasible.tolist() == [[3, 2, 1], [3, 0, 0]]
    assert batch.targets[0] == pytest.approx([1 / 3, 1 / 2, 1.0])
    (greedy,), _ = read(tmp_path / "log", "greedy")
    assert greedy.targets.tolist() == [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]


def test_an_action_that_is_shown_above_is_not_one_that_a_slot_could_hold(tmp_path: Path) -> None:
    above = {"_label_cost": 0, "_a": [1, 0, 2], "_p": [0.2, 0.4, 0.4]}
    below = {"_label_cost": 0, "_a": [2, 1, 0], "_p": [0.5, 0.0, 0.5]}
    (batch,), _ = read(write(tmp_path / "log", ccb(above, below)))
    assert batch.n_feasible.tolist() == [[3, 2]]
    assert batch.targets[0] == pytest.approx([1 / 3, 1 / 2])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (single(_label_probability=0.0, p=[0.0, 0.5, 0.5]), "p: 0"),
        (single(_label_probability=1.5, p=[1.5, 0.5, 0.5]), "p: above 1"),
        (single(_label_probability=-0.5, p=[-0.5, 0.5, 0.5]), "p: below 0"),
        (single(_label_probability=...), "_label_probability: missing"),
        (single(_label_probability=0.4), "_label_probability: must be the first of p"),
        (single(_label_probability=0.0), "_label_probability: 0"),
        (single(_label_cost=...), "_label_cost: missing"),
        (single(p=...), "p: missing"),
        (single(p=[0.5, 0.5]), "p: must be as long as a"),
        (single(p=[0.5, 0.3, 0.1]), "p: must sum to 1 for a target policy that follows from it"),
        (single(a=[2, 1, 4]), "a: action outside the set"),
        (single(a=[2, 1, 2]), "a: action outside the set"),
        (single(_labelIndex=2), "_labelIndex: must be the first of a"),
        (single(Version="2"), "Version: must be 1"),
        (single(Timestamp="soon"), "Timestamp: not a time"),
        (single(_skipLearn=True), "_skipLearn: the decision was not shown"),
        (orjson.dumps(single()).replace(b"0.3", b"NaN"), "json: unreadable"),
        (ccb({"_label_cost": 0, "_a": [0, 3], "_p": [0.5, 0.5]}), "_a: action outside the set"),
        (ccb({"_label_cost": 0, "_a": [0, 1], "_p": [1.5, 0.5]}), "_p: above 1"),
        (
            ccb({"_label_cost": 0, "_a": 0, "_p": 1}, {"_label_cost": 0, "_a": 0, "_p": 1}),
            "_a: an action is shown twice",
        ),
        (
            ccb({"_label_cost": 0, "_a": 0, "_p": 1}, {"_label_cost": 0, "_a": [1, 0], "_p": [0.5, 0.5]}),
            "_a: an action that is shown above could be drawn",
        ),
        (ccb({"_a": [0], "_p": [1.0]}), "_label_cost: missing"),
    ],
)
def test_a_bad_line_is_counted_with_its_field_and_number_and_the_others_are_read(
    tmp_path: Path, line: dict[str, Any] | bytes, reason: str
) -> None:
    batches, report = read(write(tmp_path / "log", single(Timestamp=...), line, single(Timestamp=...)))
    assert (dict(report.rejected), report.first_rows) == ({reason: 1}, {reason: [2]})
    assert (report.n_read, sum(map(len, batches))) == (3, 2)


def test_a_field_of_the_wrong_type_is_counted_with_its_path(tmp_path: Path) -> None:
    _, report = read(write(tmp_path / "log", single(p="half")))
    assert list(report.rejected) == ["json: Expected `array`, got `str` - at `$.p`"]


def test_a_truncated_last_line_is_counted(tmp_path: Path) -> None:
    _, report = read(write(tmp_path / "log", single(), orjson.dumps(single())[:-20], end=b""))
    assert report.first_rows == {"json: unreadable, it may be truncated": [2]}


def test_time_that_falls_refuses_the_log_by_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "log", single(), single(Timestamp="2024-03-01T11:59:59Z"))
    with pytest.raises(LogRefused, match="Timestamp must not fall, got an earlier one in line 2 than in line 1"):
        read(path)
    assert read(path, any_order=True)[1].n_slots == 2


def test_lines_that_stand_for_dropped_ones_refuse_the_log(tmp_path: Path) -> None:
    with pytest.raises(LogRefused, match=r"pdrop must be 0, got 0.5 \(line 2\)"):
        read(write(tmp_path / "log", single(), single(pdrop=0.5)))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogRefused, match="No such file"):
        read(tmp_path / "none")


def test_the_uniform_policy_is_valued_right_from_a_ccb_log(tmp_path: Path) -> None:
    """Slot 1 pays what its item is worth, slot 2 half of it; the truth is the mean over items."""
    rng = np.random.default_rng(3)
    worth = np.array([0.2, 0.5, 0.8])
    lines = []
    for _ in range(4_000):
        left, slots = [0, 1, 2], []
        for k in range(2):
            pmf = np.array([0.6, 0.25, 0.15])[: len(left)]
            pmf = pmf / pmf.sum()
            chosen = int(rng.choice(len(left), p=pmf))
            order = [chosen, *(n for n in range(len(left)) if n != chosen)]
            cost = -float(rng.random() < worth[left[chosen]] / (k + 1))
            slots.append({"_label_cost": cost, "_a": [left[n] for n in order], "_p": pmf[order].tolist()})
            left.pop(chosen)
        lines.append(ccb(*slots))
    found = evaluate_log(DsjsonLog(write(tmp_path / "log", *lines), "uniform"))
    truth = worth.mean() * 1.5
    assert found.refusal is None
    assert {"slate_ips", "rips", "sn_rips", "one_slot"} <= {line.name for line in found.lines}
    for line in found.lines:
        assert line.interval is not None
        if line.name != "one_slot":
            assert line.interval.lower <= truth <= line.interval.upper
    assert not found.lines[0].interval.lower <= found.logged_value <= found.lines[0].interval.upper  # type: ignore[union-attr]
