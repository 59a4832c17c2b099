"""CCB lines replayed: a policy goes along the logged slate, over what is left of it, and learns it when it is over."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from vowpal_wabbit_next import DSJsonFormatParser, Workspace

from bandit.exploration import Softmax
from simulators.evaluate_log import evaluate_log
from simulators.logged.batches import LoggedBatch
from simulators.logged.dsjson_lines import read_lines
from simulators.logged.dsjson_log import DsjsonLog
from simulators.logged.dsjson_model import LineModel, slot_lines
from simulators.logged.import_report import ImportReport
from simulators.logged.time_window import ALL_TIME
from simulators.replay import ReplayResult
from simulators.replay_dsjson import DsjsonReplay
from simulators.replay_report import verdict
from simulators.replay_sources import ReplayRequest, replay_dsjson
from tests.unit.test_log_dsjson import ccb, single, write

NO_WEIGHTS = np.zeros(0)
ARGUMENTS = "--cb_adf --cb_type mtr -q UA -q SA --power_t 0 -l 0.05"
EPSILON = '{"kind": "epsilon", "rate": 0.2, "uniform_share": 1.0}'
N_ACTIONS, N_SLOTS = 4, 2
# Two kinds of people who like two actions each; the second slot is looked at half of the time.
WORTH = np.array([[0.9, 0.1, 0.6, 0.1], [0.1, 0.9, 0.1, 0.6]])
EXAMINATION = (1.0, 0.5)
SLOT_PMF = (0.4, 0.3, 0.2, 0.1)


def context_of(user: int) -> dict[str, Any]:
    return {
        "U": {"id": f"u{user}"},
        "_multi": [{"A": {"id": f"a{action}"}} for action in range(N_ACTIONS)],
        "_slots": [{"_id": f"s{slot}", "S": {"id": f"s{slot}"}} for slot in range(N_SLOTS)],
    }


def slate_line(user: int, shown: Sequence[int], rewards: Sequence[float]) -> dict[str, Any]:
    """A line of a policy that draws from `SLOT_PMF`, over what is left."""
    outcomes, left = [], list(range(N_ACTIONS))
    for action, reward in zip(shown, rewards, strict=True):
        pmf = np.array([SLOT_PMF[a] for a in left])
        pmf = dict(zip(left, (pmf / pmf.sum()).tolist(), strict=True))
        order = [action, *(a for a in left if a != action)]
        outcomes.append({"_label_cost": -reward, "_a": order, "_p": [pmf[a] for a in order]})
        left.remove(action)
    return ccb(*outcomes, c=context_of(user))


def draw_slates(n: int, *, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(n):
        user, shown = int(rng.integers(2)), rng.choice(N_ACTIONS, size=N_SLOTS, replace=False, p=SLOT_PMF).tolist()
        rewards = [float(rng.random() < WORTH[user, a] * looked) for a, looked in zip(shown, EXAMINATION, strict=True)]
        lines.append(slate_line(user, shown, rewards))
    return lines


def run(path: Path, **given: Any) -> ReplayResult:
    request = ReplayRequest(path=path, **{"vw": ARGUMENTS, "position_weights": NO_WEIGHTS} | given)
    return replay_dsjson(request, advance=lambda _: None)


def test_a_policy_that_knows_nothing_is_the_uniform_one_over_what_is_left(tmp_path: Path) -> None:
    path = write(tmp_path / "log", *draw_slates(400, seed=1))
    found = {line.name: line.value for line in run(path, exploration=EPSILON).evaluation.lines}
    expected = {line.name: line.value for line in evaluate_log(DsjsonLog(path, "uniform")).lines}
    assert found == {name: pytest.approx(value, rel=1e-12) for name, value in expected.items()}
    assert {"slate_ips", "rips", "one_slot"} <= found.keys()


def test_a_policy_that_learns_slates_is_better_than_the_log(tmp_path: Path) -> None:
    path = write(tmp_path / "log", *draw_slates(1_500, seed=2))
    steps: list[int] = []
    request = ReplayRequest(path=path, vw=ARGUMENTS, exploration=EPSILON, learn=True, position_weights=NO_WEIGHTS)
    result = replay_dsjson(request, advance=steps.append)
    assert sum(steps) == path.stat().st_size
    assert result.n_predicted == 1_500 * N_SLOTS
    assert verdict(result).startswith("Better than the log: slate_ips ")
    assert result.curve[-1].window_loss < result.curve[0].window_loss  # type: ignore[operator]
    assert "cascade_dr" in {line.name for line in result.evaluation.lines}
    still = run(path, exploration=EPSILON)
    assert verdict(still).startswith(("Worse", "Cannot tell"))
    assert "cascade_dr" not in {line.name for line in still.evaluation.lines}


def expected_value(model: LineModel, path: Path, policy: Callable[[np.ndarray], np.ndarray]) -> float:
    """The value of a policy on a model's scores, over both kinds of people and every slate."""
    value = 0.0
    for user in (0, 1):
        for shown in itertools.permutations(range(N_ACTIONS), N_SLOTS):
            file = write(path / "one", slate_line(user, shown, (0.0, 0.0)))
            ((_, line),) = read_lines(file, ImportReport(), any_order=True, window=ALL_TIME)
            chance, earned = 0.5, []
            for slot, choice, looked in zip(slot_lines(line), line.slots, EXAMINATION, strict=True):
                chance *= float(policy(model.predict(slot))[choice.shown])
                earned.append(WORTH[user, choice.actions[choice.shown]] * looked)
            value += chance * sum(earned)
    return value


def test_the_value_of_a_saved_model_is_that_of_its_policy(tmp_path: Path) -> None:
    """Within 4 standard errors of the truth by enumeration, a false alarm once in 16,000 seeds."""
    workspace: Workspace[Any] = Workspace([*ARGUMENTS.split(), "--quiet"])
    parser = DSJsonFormatParser(workspace)
    train = write(tmp_path / "train", *draw_slates(300, seed=3))
    for _, line in read_lines(train, ImportReport(), any_order=True, window=ALL_TIME):
        for slot in slot_lines(line):
            workspace.learn_one(parser.parse_json(slot.text))
    saved = workspace.serialize()

    def policy(scores: np.ndarray) -> np.ndarray:
        best = scores == scores.max()
        return 0.8 * best / best.sum() + 0.2 / len(scores)

    truth = expected_value(LineModel([], model=saved), tmp_path, policy)
    (tmp_path / "model").write_bytes(saved)
    path = write(tmp_path / "log", *draw_slates(2_000, seed=4))
    found = run(path, saved=str(tmp_path / "model"), vw="", exploration=EPSILON)
    assert found.evaluation.refusal is None
    for line in found.evaluation.lines:
        if line.name in ("slate_ips", "rips", "sn_rips", "cascade_dr", "sn_cascade_dr"):
            error = (line.interval.upper - line.interval.lower) / 3.92  # type: ignore[union-attr]
            assert abs(line.value - truth) < 4.0 * error, line
            assert found.evaluation.logged_value < line.value - 4.0 * error, line


def targets_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    replayed = DsjsonReplay(
        path,
        model=LineModel(ARGUMENTS.split()),
        exploration=Softmax(temperature=0.2, uniform_share=0.1),
        learns=True,
        knows=True,
        any_order=False,
        window=ALL_TIME,
        advance=lambda _: None,
    ).batches(ImportReport(), n_slots=N_SLOTS, position_weights=np.ones(N_SLOTS))
    batches: list[LoggedBatch] = [one.batch for one in replayed]
    logged = [batch.model_logged for batch in batches if batch.model_logged is not None]
    return np.concatenate([batch.targets for batch in batches]), np.concatenate(logged)


def test_what_a_slate_earned_changes_later_slates_and_no_slot_of_its_own(tmp_path: Path) -> None:
    lines = draw_slates(30, seed=5)
    before = targets_of(write(tmp_path / "a", *lines))
    other = orjson.loads(orjson.dumps(lines))
    other[20]["_outcomes"][0]["_label_cost"] -= 5.0
    after = targets_of(write(tmp_path / "b", *other))
    for one, two in zip(before, after, strict=True):
        assert (one[:21] == two[:21]).all()
        assert (one[21:] != two[21:]).any()


def test_a_slate_of_one_slot_is_a_single_action(tmp_path: Path) -> None:
    """The same decisions, written both ways, teach and earn the same."""
    rng = np.random.default_rng(6)
    slates, singles = [], []
    for _ in range(300):
        user, shown, reward = int(rng.integers(2)), int(rng.integers(3)), float(rng.random() < 0.5)
        order = [shown, *(a for a in range(3) if a != shown)]
        context = {"U": {"id": f"u{user}"}, "_multi": [{"A": {"id": f"a{a}"}} for a in range(3)]}
        slates.append(ccb({"_label_cost": -reward, "_a": order, "_p": [1 / 3] * 3}, c=context | {"_slots": [{}]}))
        labels = {"_label_cost": -reward, "_label_probability": 1 / 3, "_labelIndex": shown, "_label_Action": shown + 1}
        singles.append(single(**labels, a=[a + 1 for a in order], p=[1 / 3] * 3, c=context))
    found = [run(write(tmp_path / "log", *lines), exploration=EPSILON, learn=True) for lines in (slates, singles)]
    assert found[0].evaluation.lines == found[1].evaluation.lines
    assert found[0].loss == found[1].loss


@pytest.mark.parametrize("vw", [ARGUMENTS, "--cb_explore_adf --softmax --lambda 3 --cb_type mtr -q UA -q SA"])
def test_single_actions_and_slates_of_one_file_are_replayed_together(tmp_path: Path, vw: str) -> None:
    lines = draw_slates(300, seed=7)
    for n in range(0, 300, 3):
        one = orjson.loads(orjson.dumps(lines[n]))["_outcomes"][0]
        action = one["_a"][0]
        label = {"_label_cost": one["_label_cost"], "_label_probability": one["_p"][0]}
        a = [position + 1 for position in one["_a"]]
        context = {name: value for name, value in lines[n]["c"].items() if name != "_slots"}
        lines[n] = single(**label, a=a, p=one["_p"], _labelIndex=action, _label_Action=action + 1, c=context)
        lines[n]["Timestamp"] = "2024-03-01T12:00:00Z"
    result = run(write(tmp_path / "log", *lines), vw=vw, exploration="" if "explore" in vw else EPSILON, learn=True)
    assert (result.evaluation.n, result.evaluation.report.n_rejected) == (300, 0)
    assert (result.n_predicted == 500) == (vw == ARGUMENTS)
    assert result.evaluation.lines[0].support.mean_weight == pytest.approx(1.0, abs=0.25)


def test_what_was_shown_does_not_decide_a_tie(tmp_path: Path) -> None:
    """Nothing is known and two of four are on the shortlist: the same two, whatever stands first in the line.

    The negative control breaks ties in the order of the line, which gives what was shown its half every time.
    """
    path = write(tmp_path / "log", *draw_slates(1_000, seed=12))
    result = run(path, exploration='{"kind": "softmax", "shortlist": 2, "temperature": 1.0, "uniform_share": 0.0}')
    assert {line.name: line.refusal for line in result.evaluation.lines}["one_slot"] is None
    one_slot = next(line for line in result.evaluation.lines if line.name == "one_slot")
    within = pytest.approx(1.0, abs=4.0 * one_slot.support.mean_weight_se)
    assert one_slot.support.mean_weight == within
    lines = read_lines(path, ImportReport(), any_order=True, window=ALL_TIME)
    assert np.mean([0.5 / line.slots[1].propensity for _, line in lines]) != within


def test_lines_of_which_a_slot_is_not_known_are_counted(tmp_path: Path) -> None:
    good = draw_slates(1, seed=9)[0]
    partial, fewer, twice = (orjson.loads(orjson.dumps(good)) for _ in range(3))
    partial["_outcomes"][1] = {"_label_cost": 0, "_a": partial["_outcomes"][1]["_a"][0], "_p": 0.25}
    fewer["c"]["_slots"].pop()
    twice["c"]["_slots"][0]["U"] = {"id": "u"}
    bare = replace_slots(good)
    report = run(write(tmp_path / "log", good, partial, fewer, twice, bare)).evaluation.report
    assert report.first_rows == {
        "_p: must sum to 1, or nobody knows what the slot could hold": [2],
        "_slots: must be as many as _outcomes": [3],
        "_slots: a namespace is one of the context, too": [4],
    }


def replace_slots(line: dict[str, Any]) -> dict[str, Any]:
    """A line whose slots have no features."""
    return line | {"c": {name: value for name, value in line["c"].items() if name != "_slots"}}


def test_rewards_are_weighed_by_slot(tmp_path: Path) -> None:
    path = write(tmp_path / "log", *draw_slates(200, seed=1))
    both = run(path, exploration=EPSILON)
    each = [run(path, exploration=EPSILON, position_weights=np.array(of)) for of in ([1.0, 0.0], [0.0, 1.0])]
    rips = [{line.name: line.value for line in one.evaluation.lines}["rips"] for one in (both, *each)]
    assert rips[0] == pytest.approx(rips[1] + rips[2])
    assert 0.0 < rips[2] < rips[1]
