"""A replay is the production policy on the log: the same weights, the same learning, nothing learned too early."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from bandit.exploration import Epsilon
from service.cli import app
from service.export import Selection
from service.retrain_training import configured, table_of, train, training_rows
from simulators.counterfactual import TargetPolicy
from simulators.evaluate_log import evaluate_log
from simulators.evaluate_sources import Unanswerable
from simulators.logged.archive_log import ArchiveLog
from simulators.logged.import_report import LogRefused
from simulators.logged_world import MODEL, LoggedWorld, better_world
from simulators.replay import ReplayResult
from simulators.replay_archive import ReplayedPolicy
from simulators.replay_report import verdict, write_report
from simulators.replay_sources import ReplayRequest, build_policy, replay_dsjson, run_archive
from tests.archived_world import write_archive
from tests.unit.test_log_dsjson import single, write

NO_WEIGHTS = np.zeros(0)
WORLD = better_world(seed=3, gain=0.3)
SLATES = replace(WORLD, n_slots=2, examination=(1.0, 0.5))


def request(folder: Path, **given: object) -> ReplayRequest:
    return ReplayRequest(path=folder, model=MODEL, position_weights=NO_WEIGHTS, **given)  # type: ignore[arg-type]


def run(
    world: LoggedWorld, asked: ReplayRequest, *, with_items: bool = True
) -> tuple[ReplayResult, ReplayedPolicy, list[int]]:
    steps: list[int] = []
    policy = build_policy(asked, world.config, items=world.items() if with_items else None, learner=None)
    return run_archive(asked, world.config, policy, advance=steps.append), policy, steps


def test_a_replay_without_changes_is_the_log_itself(tmp_path: Path) -> None:
    write_archive(tmp_path, log := SLATES.log(400, seed=1))
    result, _, steps = run(SLATES, request(tmp_path), with_items=False)
    lines = {line.name: line for line in result.evaluation.lines}
    assert lines["slate_ips"].value == pytest.approx(result.evaluation.logged_value, rel=1e-12)
    assert lines["slate_ips"].support.max_weight == 1.0
    assert (result.n_predicted, sum(steps), result.curve[-1].n) == (800, 400, 400)
    errors = [
        (j.reward - float(SLATES.scores[int(j.payload.context["segment"][1:]), j.payload.slots[j.slot].action])) ** 2
        for j in log
    ]
    assert result.loss == pytest.approx(np.mean(errors), rel=1e-6)


def test_another_exploration_is_valued_as_by_evaluate(tmp_path: Path) -> None:
    write_archive(tmp_path, SLATES.log(400, seed=1))
    asked = request(tmp_path, exploration='{"kind": "epsilon", "rate": 0.6, "uniform_share": 1.0}')
    result, _, _ = run(SLATES, asked, with_items=False)
    target = TargetPolicy(exploration=Epsilon(rate=0.6, uniform_share=1.0))
    log = ArchiveLog(config=SLATES.config, folder=tmp_path, selection=Selection(), target=target)
    expected = {line.name: line.value for line in evaluate_log(log).lines}
    found = {line.name: line.value for line in result.evaluation.lines}
    assert found == {name: pytest.approx(expected[name], rel=1e-12) for name in found}


def test_learning_as_it_goes_ends_with_the_weights_of_training_and_predicts_before_it_learns(tmp_path: Path) -> None:
    write_archive(tmp_path, log := WORLD.log(1_500, seed=1))
    result, policy, _ = run(WORLD, request(tmp_path, learn=True))
    rows = list(training_rows(log, schema=WORLD.schema, weighting="ips"))
    configuration = configured(WORLD.config, MODEL)
    learner, _ = train(rows.copy, spec=WORLD.config.model_spec(MODEL), configuration=configuration)
    assert policy.learner is not None
    assert np.array_equal(table_of(policy.learner).weights, table_of(learner).weights)
    assert result.loss == pytest.approx(learner.loss_sum / learner.n_learned, rel=1e-12)


def test_a_policy_that_learns_on_the_way_is_better_than_a_log_that_does_not(tmp_path: Path) -> None:
    world = better_world(seed=3, gain=0.6)
    write_archive(tmp_path, world.log(2_500, seed=1))
    result, _, _ = run(world, request(tmp_path, learn=True, publish_every=20))
    assert result.evaluation.refusal is None
    assert verdict(result).startswith("Better than the log: ips ")
    unlearned, _, _ = run(world, request(tmp_path), with_items=False)
    assert verdict(unlearned).startswith("Cannot tell from the log's policy")


def test_what_an_outcome_teaches_serves_later_decisions_only(tmp_path: Path) -> None:
    """Every outcome comes after all decisions: none of them may be decided with what it teaches."""
    log = [msgspec.structs.replace(one, at_ms=one.at_ms + 10**9) for one in WORLD.log(300, seed=1)]
    write_archive(tmp_path, log)
    late, _, _ = run(WORLD, request(tmp_path, learn=True, publish_every=1))
    cold, _, _ = run(WORLD, request(tmp_path, learn=True, publish_every=10**6))
    values = [{line.name: line.value for line in one.evaluation.lines} for one in (late, cold)]
    assert values[0] == values[1]


def test_a_vw_explorer_is_replayed_and_learns(tmp_path: Path) -> None:
    write_archive(tmp_path, WORLD.log(300, seed=1))
    result, policy, _ = run(WORLD, request(tmp_path, vw="--cb_explore_adf --squarecb", learn=True))
    assert policy.explorer is not None
    assert policy.explorer.n_learned == 300
    assert result.evaluation.report.n_rejected == 0
    assert result.evaluation.lines[0].support.mean_weight == pytest.approx(1.0, abs=0.25)


def test_decisions_of_items_that_nobody_knows_are_counted(tmp_path: Path) -> None:
    write_archive(tmp_path, log := WORLD.log(150, seed=1))
    stranger = log[7].payload
    candidates = msgspec.structs.replace(stranger.candidates, ids=[*stranger.candidates.ids[:-1], "z9"])
    log[7] = msgspec.structs.replace(log[7], payload=msgspec.structs.replace(stranger, candidates=candidates))
    write_archive(tmp_path / "b", log)
    result, _, _ = run(WORLD, request(tmp_path / "b", learn=True))
    reason = "item: not in the history of items, so that no model can score it"
    assert dict(result.evaluation.report.rejected) == {reason: 1}


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    for given, message in {
        '{"kind": "greedy", "rate": 1}': "exploration must be JSON as in the configuration",
        '{"kind": "epsilon", "rate": 2}': "rate must be in",
    }.items():
        with pytest.raises(Unanswerable, match=message):
            build_policy(request(tmp_path, exploration=given), WORLD.config, items=None, learner=None)
    with pytest.raises(Unanswerable, match="cannot be set for an explorer"):
        build_policy(request(tmp_path, vw="--cb_explore_adf --oaa 3"), WORLD.config, items=WORLD.items(), learner=None)
    other = replace(request(tmp_path, learn=True), model="x")
    with pytest.raises(Unanswerable, match="scoring anew needs the model that the log is of, one of m, got 'x'"):
        build_policy(other, WORLD.config, items=WORLD.items(), learner=None)


def dsjson_log(path: Path, n: int) -> Path:
    """A log where the second action pays for one user and the third for the other."""
    rng = np.random.default_rng(7)
    lines = []
    for _ in range(n):
        user, shown = int(rng.integers(2)), int(rng.integers(3))
        reward = float(rng.random() < (0.8 if shown == user + 1 else 0.2))
        order = [shown, *(a for a in range(3) if a != shown)]
        context = {"U": {"id": f"u{user}"}, "_multi": [{"A": {"id": f"a{a}"}} for a in range(3)]}
        lines.append(
            single(
                _label_cost=-reward,
                _label_probability=1 / 3,
                _labelIndex=shown,
                _label_Action=shown + 1,
                a=[a + 1 for a in order],
                p=[1 / 3] * 3,
                c=context,
            )
        )
    return write(path, *lines)


@pytest.mark.parametrize(
    ("vw", "exploration"),
    [
        ("--cb_adf --cb_type mtr -q UA --power_t 0 -l 0.05", '{"kind": "epsilon", "rate": 0.1}'),
        ("--cb_explore_adf --epsilon 0.1 --cb_type mtr -q UA --power_t 0 -l 0.05", ""),
    ],
)
def test_vw_learns_a_dsjson_log_and_is_worth_more_than_it(tmp_path: Path, vw: str, exploration: str) -> None:
    path = dsjson_log(tmp_path / "log", 2_500)
    steps: list[int] = []
    asked = ReplayRequest(path=path, vw=vw, exploration=exploration, learn=True, position_weights=NO_WEIGHTS)
    result = replay_dsjson(asked, advance=steps.append)
    assert sum(steps) == path.stat().st_size
    assert verdict(result).startswith("Better than the log: ips ")
    assert result.curve[0].n == 1024
    if exploration:
        assert result.loss is not None
        assert result.curve[-1].window_loss < result.curve[0].window_loss  # type: ignore[operator]
    else:
        assert result.loss is None
    still = replay_dsjson(replace(asked, learn=False), advance=steps.append)
    assert verdict(still).startswith("Cannot tell")


def test_what_vw_cannot_replay_is_refused(tmp_path: Path) -> None:
    asked = ReplayRequest(path=write(tmp_path / "log", single()), position_weights=NO_WEIGHTS)
    for vw, message in {
        "--nonsense": "VW refuses '--nonsense",
        "--oaa 3": "must be of --cb_adf or --cb_explore_adf",
    }.items():
        with pytest.raises(LogRefused, match=message):
            replay_dsjson(replace(asked, vw=vw), advance=lambda _: None)


def test_the_command_writes_json_and_one_page_that_needs_no_network(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", SLATES.log(300, seed=1))
    out = tmp_path / "report" / "replay.html"
    arguments = ["replay", "--log", str(tmp_path / "archive"), "--exploration", '{"kind": "greedy"}', "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads(out.with_suffix(".json").read_text())
    assert figures["decisions"] == 300
    page = out.read_text()
    assert page.index("the log earned") < page.index("<h2>")
    assert "<script src=" not in page


def test_a_refused_replay_says_so_first(tmp_path: Path) -> None:
    write_archive(tmp_path, replace(SLATES, exploration=Epsilon(rate=0.0)).log(200, seed=1))
    result, _, _ = run(SLATES, request(tmp_path, exploration='{"kind": "epsilon", "rate": 1.0}'), with_items=False)
    write_report(tmp_path / "r.html", result)
    assert "Cannot tell: " in (tmp_path / "r.html").read_text()
