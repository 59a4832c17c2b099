"""A simulated service trains vectors on clicks, so that some items are known, others are to be discovered."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bandit.exploration import Epsilon
from service.cli import app
from service.decision_record import unpack_actions
from service.inspect_log import AuditFindings, read_archive
from service.messages import Decision
from simulators.closed_loop import learn_model, run_loop
from simulators.loop_config import ServiceSettings, Training, build_config
from simulators.loop_vectors import clicks_before
from simulators.tune.candidates import Candidate
from simulators.tune.curves import Curves, Plan, simulate
from simulators.tune.judge import Evidence, Limits, judge, paired_gain
from simulators.worlds.named import QUICK_SETTINGS, TRAINED_SETTINGS, churning_world, synthetic_world
from simulators.worlds.visits import Crowd, visits

EXPLORES = Epsilon(rate=0.1)
PLAIN, DISCOVERS = Candidate(EXPLORES), Candidate(EXPLORES, discovery_share=0.2)
N_SLOTS = churning_world().n_slots


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def simulated(settings: ServiceSettings, pool: Executor, *, seeds: range, n_decisions: int) -> Curves:
    plan = Plan(churning_world(), n_decisions, seeds, settings=settings)
    return simulate([PLAIN, DISCOVERS], plan, pool=pool)


@pytest.fixture(scope="module")
def trained(pool: Executor) -> Curves:
    return simulated(TRAINED_SETTINGS, pool, seeds=range(1, 4), n_decisions=300)


@pytest.fixture(scope="module")
def untrained(pool: Executor) -> Curves:
    return simulated(QUICK_SETTINGS, pool, seeds=range(1, 3), n_decisions=300)


# --- what a discovery share does ----------------------------------------------------------------------------------


def test_the_declared_share_of_slots_is_filled_from_the_pool(trained: Curves) -> None:
    """Of 3 slots none or one is reserved, the one with probability 0.6; at 1e-4 over 900 decisions."""
    found = trained.measure(DISCOVERS, "discovery_share")
    margin = 3.9 * math.sqrt(0.6 * 0.4 / (300 * len(found))) / N_SLOTS
    assert found.mean() == pytest.approx(0.2, abs=margin)
    assert (trained.measure(PLAIN, "discovery_share") == 0.0).all()


def test_a_discovery_share_shows_items_of_which_little_is_known(trained: Curves) -> None:
    """A fact of three seeds; the long form tests it at 1e-4."""
    gains = trained.measure(DISCOVERS, "unproven_share") - trained.measure(PLAIN, "unproven_share")
    assert gains.mean() > 0.05, gains


def test_without_vectors_a_discovery_share_changes_nothing(untrained: Curves) -> None:
    """The control: nothing is better known than anything else, so that the pool is everything."""
    for seed in untrained.seeds:
        plain, discovers = (untrained.runs[one][seed] for one in (PLAIN, DISCOVERS))
        assert discovers.mean("discovery_share") > 0.15
        for name in ("value", "coverage", "unproven_share", "new_good_share", "skip_rate"):
            assert np.array_equal(getattr(plain, name), getattr(discovers, name)), name


def test_vectors_alone_change_nothing_where_every_item_is_a_candidate(trained: Curves, untrained: Curves) -> None:
    for seed in untrained.seeds:
        plain, vectors = (curves.runs[PLAIN][seed].value for curves in (untrained, trained))
        assert np.array_equal(plain, vectors)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_a_discovery_share_shows_items_of_which_little_is_known_in_many_worlds(pool: Executor) -> None:
    """Ten seeds, the mean one-sided at 1e-4 with 9 degrees of freedom."""
    curves = simulated(TRAINED_SETTINGS, pool, seeds=range(1, 11), n_decisions=1_500)
    gains = curves.measure(DISCOVERS, "unproven_share") - curves.measure(PLAIN, "unproven_share")
    assert gains.mean() / (gains.std(ddof=1) / len(gains) ** 0.5) > 5.69, gains


# --- what `hone tune` makes of it ---------------------------------------------------------------------------------


def figures(curves: Curves) -> Mapping[Candidate, Evidence]:
    base = curves.measure(PLAIN, "value")
    return {
        one: Evidence(
            candidate=one,
            long_run=paired_gain(curves.measure(one, "value"), base, confidence=0.95),
            price=None,
            refusal=None,
            discovery=float(curves.measure(one, "new_good_share").mean()),
            coverage=float(curves.measure(one, "coverage").mean()),
            skip_rate=float(curves.measure(one, "skip_rate").mean()),
        )
        for one in curves.runs
    }


def test_the_front_of_a_tuning_has_points_that_differ_by_their_discovery_share(
    trained: Curves, untrained: Curves
) -> None:
    found = figures(trained)
    assert found[DISCOVERS].coverage > found[PLAIN].coverage
    assert found[DISCOVERS].discovery != found[PLAIN].discovery
    verdict = judge(list(found.values()), Limits())
    assert set(verdict.front) == {PLAIN, DISCOVERS}
    # The control: without vectors both are one point.
    same = figures(untrained)
    assert replace(same[DISCOVERS], candidate=PLAIN) == same[PLAIN]


# --- how it is trained --------------------------------------------------------------------------------------------


def log_of(
    folder: Path, *, seed: int = 1, n_decisions: int = 300, settings: ServiceSettings = TRAINED_SETTINGS
) -> None:
    run_loop(
        churning_world(),
        exploration=EXPLORES,
        discovery_share=0.2,
        n_decisions=n_decisions,
        seed=seed,
        settings=settings,
        archive_folder=folder,
    )


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loop") / "archive"
    log_of(folder)
    return folder


def in_order(folder: Path) -> list[Decision]:
    return sorted(read_archive(folder), key=lambda decision: decision.decided_at_unix_ms)


def test_discovery_slots_hold_items_of_the_pool_and_the_log_passes_the_audit(logged: Path) -> None:
    decisions = in_order(logged)
    n_discovered = 0
    for decision in decisions:
        is_pool = unpack_actions(decision.candidates).columns["discovery"]
        assert 0 < is_pool.sum() < len(is_pool)
        for slot in decision.slots:
            if slot.reason == "discovery":
                n_discovered += 1
                assert is_pool[slot.action]
    assert n_discovered > 100
    findings = AuditFindings()
    findings.audit(decisions)
    assert (findings.checked, findings.mismatches) == (300, 0)


def test_vectors_are_trained_again_and_what_was_clicked_meanwhile_leaves_the_pool(logged: Path) -> None:
    """300 decisions are a minute: one training at the start, one after it."""
    decisions = in_order(logged)
    assert [decisions[0].versions.index, decisions[-1].versions.index] == ["t00001", "t00002"]

    def pool_of(decision: Decision) -> set[str]:
        actions = unpack_actions(decision.candidates)
        return {actions.ids[place] for place in np.flatnonzero(actions.columns["discovery"])}

    last_before = max(n for n, one in enumerate(decisions) if one.versions.index == "t00001")
    before, after = (pool_of(decisions[n]) for n in (last_before, last_before + 1))
    assert before > after


def test_a_service_that_does_not_learn_keeps_its_first_vectors(tmp_path: Path) -> None:
    model = learn_model(churning_world(), exploration=EXPLORES, n_decisions=1, seed=1, settings=TRAINED_SETTINGS)
    run_loop(
        churning_world(),
        exploration=EXPLORES,
        discovery_share=0.2,
        n_decisions=320,
        seed=1,
        settings=TRAINED_SETTINGS,
        frozen=model,
        archive_folder=tmp_path,
    )
    assert {decision.versions.index for decision in read_archive(tmp_path)} == {"t00001"}


def test_without_a_past_the_service_begins_without_vectors(tmp_path: Path) -> None:
    log_of(tmp_path, n_decisions=150, settings=replace(QUICK_SETTINGS, training=Training(showings=0, every_s=20.0)))
    versions = [decision.versions.index for decision in in_order(tmp_path)]
    assert (versions[0], versions[-1]) == ("", "t00001")


def test_the_same_seed_trains_the_same_vectors(logged: Path, tmp_path: Path) -> None:
    log_of(tmp_path)
    first, again = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (logged, tmp_path)
    )
    assert first == again


def test_the_past_is_of_the_same_people_on_visits_that_the_run_does_not_know() -> None:
    world = churning_world()
    clicks = clicks_before(world, seed=1, showings=20)
    n_shown = 20 * world.churn.n_live
    assert 0.02 * n_shown < len(clicks) < 0.4 * n_shown
    assert clicks != clicks_before(world, seed=2, showings=20)
    fixed = replace(world, seed=1)
    assert clicks_before(fixed, seed=5, showings=20) == clicks
    # Visits of a user are the same in a crowd of any size; those of the past have a seed that no run has.
    past, run = (next(visits(Crowd(n_users=1), seed=seed, n_slots=3)) for seed in (-2, 1))
    assert not np.array_equal(past.uniforms, run.uniforms)


def test_what_was_seen_in_the_past_tires_nobody_in_the_run() -> None:
    """The past has a memory of its own: a world that tires and one that does not have the same one."""
    tiring = synthetic_world()
    calm = replace(tiring, fatigue=churning_world().fatigue, popularity=churning_world().popularity)
    assert clicks_before(tiring, seed=1, showings=5) == clicks_before(calm, seed=1, showings=5)


def simulated_by_command(*options: str) -> dict[str, object]:
    result = CliRunner().invoke(app, ["simulate", "--world", "churning", "--decisions", "80", "--json", *options])
    assert result.exit_code == 0, result.output
    # The loggers of tests write before it.
    found: dict[str, object] = json.loads(result.stdout[result.stdout.index("{") :])
    return found


def test_the_command_trains_vectors_where_there_is_a_share_unless_it_is_told_otherwise() -> None:
    plain, share, bare = (
        simulated_by_command(*options)
        for options in ([], ["--discovery-share", "0.4"], ["--discovery-share", "0.4", "--no-vectors"])
    )
    assert bare["value"] == plain["value"]
    assert share["value"] != plain["value"]
    assert simulated_by_command("--vectors")["value"] == plain["value"]


@pytest.mark.parametrize("wrong", [{"showings": -1}, {"every_s": 0.0}, {"every_s": math.nan}])
def test_a_training_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="training needs"):
        Training(**wrong)  # type: ignore[arg-type]


def test_a_part_of_the_catalogue_is_found_by_vectors_where_there_are_some() -> None:
    names = []
    for usual in (QUICK_SETTINGS, TRAINED_SETTINGS):
        settings = replace(usual, n_candidates=20)
        sources = build_config(churning_world(), exploration=EXPLORES, settings=settings).surfaces["home"].sources
        assert sum(source.quota for source in sources) == 20
        names.append([source.name for source in sources])
    assert names == [["popular", "under_explored", "random"], ["als", "popular", "under_explored", "random"]]
