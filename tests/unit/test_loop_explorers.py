"""A VW explorer in the closed loop is served and learned as on a surface of a real service."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bandit.exploration import Epsilon, VwExplorer
from bandit.explorer import Explorer
from bandit.vw_format import encode
from service.cli import app
from service.decision_record import unpack_shortlisted
from service.inspect_log import AuditFindings, read_archive
from service.messages import Decision
from simulators.closed_loop import learn_model, run_loop
from simulators.loop_config import ServiceSettings, build_config
from simulators.loop_curve import LoopRun
from simulators.worlds.churn import Churn
from simulators.worlds.named import QUICK_SETTINGS, clustered_world

# Every item is on the shortlist, so that what is shown is the explorer's choice alone.
WORLD = replace(clustered_world(), churn=Churn(n_live=12), n_slots=2)
EXPLORER = VwExplorer(model="explorer", shortlist=50, uniform_share=0.05)
# By gaps between costs: where nothing is learned, there are none.
GAPS = replace(QUICK_SETTINGS, explorer="--cb_explore_adf --squarecb")
BAG = replace(QUICK_SETTINGS, explorer="--cb_explore_adf --bag 3")


def run(settings: ServiceSettings, *, n_decisions: int, archive_folder: Path | None = None) -> LoopRun:
    return run_loop(
        WORLD,
        exploration=EXPLORER,
        n_decisions=n_decisions,
        seed=1,
        every=n_decisions // 4,
        settings=settings,
        archive_folder=archive_folder,
    )


def test_an_explorer_learns_in_a_world_and_one_that_hardly_learns_does_not() -> None:
    """A fact of one seed, and its control: the same explorer with a learning rate that moves nothing."""
    learning = run(GAPS, n_decisions=400)
    standing = run(replace(GAPS, explorer_learning_rate=1e-9), n_decisions=400)
    assert learning.value[-1] > 1.3 * learning.value[0]
    assert learning.value[-1] > 1.3 * standing.value[-1]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loop") / "archive"
    run(BAG, n_decisions=160, archive_folder=folder)
    return folder


def in_order(folder: Path) -> list[Decision]:
    return sorted(read_archive(folder), key=lambda decision: decision.decided_at_unix_ms)


def asked_anew(decision: Decision) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """What an explorer that has learned nothing says of the first slot's shortlist, with the floor under it."""
    spec = build_config(WORLD, exploration=EXPLORER, settings=BAG).explorer_spec("explorer")
    shared = {namespace: encode(namespace, named) for namespace, named in decision.features.items()}
    assert decision.shortlisted is not None
    features = unpack_shortlisted(decision.shortlisted)
    shortlist = np.frombuffer(decision.slots[0].shortlist, dtype="<u4").tolist()
    pmf = Explorer(spec).pmf(shared, [features[action] for action in shortlist])
    mixed = np.zeros(len(decision.candidates.ids))
    mixed[shortlist] = (1.0 - EXPLORER.uniform_share) * pmf
    return mixed + EXPLORER.uniform_share / len(mixed)


def test_recorded_propensities_are_the_explorers_and_the_log_passes_the_audit(logged: Path) -> None:
    decisions = in_order(logged)
    first, last = decisions[0].slots[0], decisions[-1].slots[0]
    assert first.propensity == pytest.approx(asked_anew(decisions[0])[first.action], abs=1e-12)
    # The control: what was learned since is not what an empty explorer says.
    assert abs(last.propensity - asked_anew(decisions[-1])[last.action]) > 0.01
    findings = AuditFindings()
    findings.audit(decisions)
    assert (findings.checked, findings.mismatches) == (160, 0)


def test_an_explorer_is_published_now_and_then_while_it_learns(logged: Path) -> None:
    versions = [decision.versions.explorer for decision in in_order(logged)]
    assert versions == sorted(versions)
    # Half a minute, at most one publication in five seconds.
    assert 3 <= len(set(versions)) <= 8


def test_the_same_seed_gives_the_same_log_to_the_bit(logged: Path, tmp_path: Path) -> None:
    run(BAG, n_decisions=160, archive_folder=tmp_path)
    first, again = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (logged, tmp_path)
    )
    assert first == again


def test_an_explorer_without_arguments_and_a_frozen_one_are_refused() -> None:
    with pytest.raises(ValueError, match="explorer 'explorer' needs VW's arguments"):
        run(QUICK_SETTINGS, n_decisions=4)
    model = learn_model(WORLD, exploration=Epsilon(), n_decisions=1, seed=1, settings=QUICK_SETTINGS)
    with pytest.raises(ValueError, match="it cannot be frozen"):
        run_loop(WORLD, exploration=EXPLORER, n_decisions=1, seed=1, settings=BAG, frozen=model)


def test_the_command_takes_an_explorer_with_its_arguments() -> None:
    command = ["simulate", "--world", "clustered", "--decisions", "20", "--json"]
    vw = ["--exploration", "vw", "--vw", "--cb_explore_adf --cover 3", "--shortlist", "5"]
    result = CliRunner().invoke(app, [*command, *vw])
    assert result.exit_code == 0, result.output
    assert '"explorer": "--cb_explore_adf --cover 3"' in result.stdout
    assert '"shortlist": 5' in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--exploration", "vw"], "go together"),
        (["--vw", "--cb_explore_adf"], "go together"),
        (["--exploration", "vw", "--vw", "--cb_explore_adf --passes 2"], "cannot be set for an explorer"),
        (["--exploration", "vw", "--vw", "--cb_explore_adf", "--rate", "0.1"], "rate"),
    ],
)
def test_options_that_do_not_go_with_an_explorer_are_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["simulate", "--decisions", "1", *options])
    assert result.exit_code == 2
    assert message in result.output
