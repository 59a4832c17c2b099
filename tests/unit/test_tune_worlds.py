"""Simulated worlds whose answer is known get that answer from `hone tune`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from bandit.exploration import Epsilon
from simulators.tune.candidates import Candidate
from simulators.tune.curves import Curves, Plan, simulate
from simulators.tune.judge import Evidence, Limits, Verdict, judge, paired_gain
from simulators.tune.sample import Sample, make_sample
from simulators.worlds.churn import Churn
from simulators.worlds.clicks import PositionBased
from simulators.worlds.named import churning_world
from simulators.worlds.tastes import ClusterTasteSpec
from simulators.worlds.visits import Crowd
from simulators.worlds.world import WorldSpec


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


# --- simulated worlds whose answer is known -----------------------------------------------------------------------

# Whatever is clicked first is shown ever after by a policy that does not explore; one item is worth finding.
PAYS = WorldSpec(
    tastes=ClusterTasteSpec(
        n_clusters=1, n_genres=1, base=-0.85, taste=0, own=0, affinity=0, quality=0, hit=2.6, hit_share=0.1
    ),
    churn=Churn(n_live=15),
    # One visit a second: slow enough for a slot without a click to be learned within the run.
    crowd=Crowd(n_users=1_000, gap_s=1_000.0),
    clicks=PositionBased(decay=1.0),
    n_slots=1,
    # One of its fifteen items is a hit.
    seed=2,
)
# Only what is as good as anything is ever clicked, so that the first click ends the search; to go on only costs.
COSTS = replace(PAYS, tastes=replace(PAYS.tastes, base=-8.0, hit=9.0, hit_share=0.3))
EXPLORES = Candidate(Epsilon(rate=0.3, uniform_share=1.0))
DOES_NOT = Candidate(Epsilon(rate=0.0, uniform_share=1.0))


def verdict(curves: Curves, incumbent: Candidate) -> Verdict:
    """The verdict on simulated runs alone, with one of the candidates as what is set now."""
    return judge(as_evidence(curves, incumbent), Limits())


def as_evidence(curves: Curves, base: Candidate) -> list[Evidence]:
    return [
        Evidence(
            candidate=one,
            long_run=paired_gain(curves.measure(one, "value"), curves.measure(base, "value"), confidence=0.95),
            price=None,
            refusal=None,
            discovery=math.nan,
            coverage=float(curves.measure(one, "coverage").mean()),
            skip_rate=float(curves.measure(one, "skip_rate").mean()),
        )
        for one in sorted(curves.runs, key=lambda one: one != base)
    ]


@pytest.mark.parametrize(
    ("n_decisions", "seeds"),
    [
        # One first click in ten falls on the hit, and not to explore is best then: none of these three.
        (250, [1, 2, 3]),
        pytest.param(500, range(16), marks=pytest.mark.long),
    ],
)
def test_where_only_exploring_finds_what_is_good_a_rate_above_zero_is_recommended(
    pool: Executor, n_decisions: int, seeds: Sequence[int]
) -> None:
    found = verdict(simulate([DOES_NOT, EXPLORES], Plan(PAYS, n_decisions, seeds), pool=pool), DOES_NOT)
    assert (found.word, found.recommended) == ("better", EXPLORES)


def test_where_exploring_only_costs_none_is_recommended_whichever_way_it_is_asked(pool: Executor) -> None:
    curves = simulate([EXPLORES, DOES_NOT], Plan(COSTS, 150, range(3)), pool=pool)
    left = verdict(curves, EXPLORES)
    assert (left.word, left.recommended) == ("better", DOES_NOT)
    kept = verdict(curves, DOES_NOT)
    assert (kept.word, kept.recommended) == ("worse", DOES_NOT)


def test_halving_keeps_the_incumbent_and_gives_every_seed_to_the_best_only(pool: Executor) -> None:
    others = [Candidate(Epsilon(rate=r, uniform_share=1.0)) for r in (0.9, 0.7, 0.3)]
    plan = Plan(PAYS, 25, range(6), "halving")
    curves = simulate([DOES_NOT, *others], plan, pool=pool)
    n_runs = [len(curves.runs[one]) for one in curves.runs]
    assert n_runs[0] == 6
    assert sorted(n_runs) == [2, 2, 6, 6]
    assert len(curves.finished) == 2


def test_a_sample_is_made_once_and_read_after_that(tmp_path: Path) -> None:
    sample = Sample(churning_world(), EXPLORES, n_learned=20, n_logged=30)
    first = make_sample(sample, tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file())
    again = make_sample(sample, tmp_path)
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()) == before
    assert again.model == first.model
    assert Sample(churning_world(), DOES_NOT, n_learned=20, n_logged=30).key != sample.key
