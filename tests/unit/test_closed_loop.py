"""The closed loop runs the production use cases: its log passes the audit, repeats, and learning pays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bandit.exploration import Epsilon, Exploration
from service.config import load_config
from service.inspect_log import AuditFindings, read_archive
from simulators.benchmarks.model_settings import bench_model_settings
from simulators.closed_loop import learn_model, run_loop, true_value
from simulators.loop_config import MODEL, build_config, config_text
from simulators.loop_curve import LoopRun
from simulators.worlds.named import QUICK_SETTINGS, churning_world, clustered_world, synthetic_world

EXPLORING = Epsilon(rate=0.1)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def log_of(folder: Path, *, seed: int, n_decisions: int = 300) -> LoopRun:
    return run_loop(
        synthetic_world(),
        exploration=EXPLORING,
        n_decisions=n_decisions,
        seed=seed,
        every=100,
        discovery_share=0.2,
        settings=QUICK_SETTINGS,
        archive_folder=folder,
    )


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoopRun]:
    folder = tmp_path_factory.mktemp("loop") / "archive"
    return folder, log_of(folder, seed=1)


def test_the_log_passes_the_audit_and_every_slot_has_one_outcome(logged: tuple[Path, LoopRun]) -> None:
    folder, run = logged
    findings = AuditFindings()
    findings.audit(read_archive(folder))
    assert (findings.checked, findings.mismatches) == (300, 0)
    assert findings.is_clean
    decisions = list(read_archive(folder))
    assert sum(len(decision.slots) for decision in decisions) == 300 * synthetic_world().n_slots
    assert all(not decision.degraded for decision in decisions)
    assert run.n_events > 0


def test_the_same_seed_gives_the_same_log_to_the_bit(logged: tuple[Path, LoopRun], tmp_path: Path) -> None:
    folder, run = logged
    again = log_of(tmp_path / "again", seed=1)
    assert files_of(folder) == files_of(tmp_path / "again")
    assert np.array_equal(run.regret, again.regret)
    log_of(tmp_path / "other", seed=2, n_decisions=50)
    assert not set(files_of(tmp_path / "other").values()) & set(files_of(folder).values()) - {b""}


def test_the_best_slates_are_an_upper_bound(logged: tuple[Path, LoopRun]) -> None:
    _, run = logged
    assert (run.optimal >= run.value).all()
    assert (np.diff(run.regret) >= 0.0).all()
    assert run.n_decisions.tolist() == [100, 200, 300]


def test_learning_beats_a_model_that_does_not_learn() -> None:
    world = clustered_world()
    arguments = {"exploration": EXPLORING, "seed": 3, "settings": QUICK_SETTINGS}
    blank = learn_model(world, n_decisions=1, **arguments)  # type: ignore[arg-type]
    learning = run_loop(world, n_decisions=1_500, every=500, **arguments)  # type: ignore[arg-type]
    standing = run_loop(world, n_decisions=500, every=500, frozen=blank, **arguments)  # type: ignore[arg-type]
    assert learning.value[-1] > 1.3 * standing.value[-1]
    assert learning.value[-1] > learning.value[0]


def late_value(exploration: Exploration, *, seed: int, n_decisions: int) -> tuple[float, float]:
    """Return the mean value after the first half, and the share of new good items that were found."""
    run = run_loop(
        churning_world(),
        exploration=exploration,
        n_decisions=n_decisions,
        seed=seed,
        every=n_decisions // 10,
        settings=QUICK_SETTINGS,
    )
    return run.mean("value", after=n_decisions // 2), float(run.found_share[-1])


def test_exploring_finds_new_good_items() -> None:
    """One seed of the long form: without exploring, new items are not shown, and what is known goes away."""
    (explored, found), (greedy, missed) = (
        late_value(Epsilon(rate=rate), seed=1, n_decisions=2_000) for rate in (0.1, 0.0)
    )
    assert found > missed
    assert explored > greedy


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_exploring_pays_in_the_long_run() -> None:
    """Ten seeds, 5,000 decisions: new good items are found, at 1e-4; the value is a fact of these seeds."""
    rates = (0.1, 0.0)
    runs = [[late_value(Epsilon(rate=rate), seed=seed, n_decisions=5_000) for rate in rates] for seed in range(1, 11)]
    gains, found = (np.array([explored[i] - greedy[i] for explored, greedy in runs]) for i in (0, 1))
    # Of the mean, one-sided at 1e-4 with 9 degrees of freedom.
    assert found.mean() / (found.std(ddof=1) / len(found) ** 0.5) > 5.69, found
    assert gains.mean() > 0.05, gains
    assert (gains > 0.0).sum() >= 8, gains


def test_a_frozen_model_does_not_learn_and_has_a_value() -> None:
    world = replace(clustered_world(), seed=5)
    model = learn_model(world, exploration=EXPLORING, n_decisions=300, seed=1, settings=QUICK_SETTINGS)
    runs = [
        true_value(
            world, exploration=Epsilon(rate=rate), frozen=model, n_decisions=300, seed=2, settings=QUICK_SETTINGS
        )
        for rate in (0.0, 1.0)
    ]
    assert runs[0].value > runs[1].value
    assert all(0.0 < run.standard_error < 0.1 for run in runs)


def test_the_configuration_of_a_loop_is_written_as_a_service_reads_it(tmp_path: Path) -> None:
    config = build_config(
        synthetic_world(), exploration=EXPLORING, discovery_share=0.2, settings=QUICK_SETTINGS, data_dir=str(tmp_path)
    )
    path = tmp_path / "hone.toml"
    path.write_text(config_text(config, data_dir=str(tmp_path)), encoding="utf-8")
    read = load_config(path)
    assert (read.features, read.models, read.surfaces) == (config.features, config.models, config.surfaces)
    assert read.version == config.version
    assert read.data_dir == str(tmp_path)


def test_a_models_own_settings_reach_the_model_that_serves_and_learns() -> None:
    settings = replace(QUICK_SETTINGS, learning_rate=0.2, power_t=0.5, baseline=False)
    spec = build_config(clustered_world(), exploration=EXPLORING, settings=settings).model_spec(MODEL)
    assert (spec.learning_rate, spec.power_t, spec.baseline) == (0.2, 0.5, False)
    usual, other = (
        run_loop(clustered_world(), exploration=EXPLORING, n_decisions=300, seed=1, every=300, settings=each)
        for each in (QUICK_SETTINGS, settings)
    )
    assert usual.mean("value") != other.mean("value")


def test_settings_are_compared_on_the_same_runs() -> None:
    settings = {"as is": QUICK_SETTINGS, "adaptive": replace(QUICK_SETTINGS, power_t=0.5)}
    found = bench_model_settings(
        lambda said: None, n_seeds=2, jobs=1, worlds={"clustered": (clustered_world(), 200)}, settings=settings
    )
    by_name = found["worlds"]["clustered"]["settings"]
    assert by_name["as is"]["gain"] == 0.0
    assert by_name["as is"]["by_seed"] != by_name["adaptive"]["by_seed"]
    assert all(0.0 < share < 1.0 for one in by_name.values() for share in one["by_seed"])


@pytest.mark.parametrize(("n_decisions", "every"), [(0, 1), (1, 0)])
def test_a_run_of_nothing_is_refused(n_decisions: int, every: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        run_loop(clustered_world(), exploration=EXPLORING, n_decisions=n_decisions, seed=1, every=every)
