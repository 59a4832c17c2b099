"""The simulated part: every candidate in the closed loop of one world, on the same visits seed by seed.

Users, items and luck of a seed are the same for all candidates, so candidates are compared pair by pair and differ by
what they did alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Literal

import numpy as np
import structlog

from bandit.support import Float64Array
from simulators.closed_loop import run_loop
from simulators.loop_config import ServiceSettings
from simulators.loop_curve import LoopRun
from simulators.tune.candidates import Candidate
from simulators.worlds.named import QUICK_SETTINGS
from simulators.worlds.world import WorldSpec

Progress = Callable[[int, int], None]

# What a run is summed up in: name, curve, and whether more of it is better. Means over the whole run.
MEASURES = (
    "value",
    "skip_rate",
    "coverage",
    "discovery_hit_rate",
    "discovery_share",
    "unproven_share",
    "new_good_share",
    "entropy",
)
# Of these the last checkpoint counts.
AT_THE_END = ("regret", "days_to_find", "found_share")
_N_CHECKPOINTS = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """What is simulated.

    Attributes:
        world: Where.
        n_decisions: Length of a run.
        seeds: One run each.
        search: `grid` gives every candidate every seed; `halving` drops the worse half as seeds are added, never the
            incumbent.
        settings: Of the simulated service, apart from the candidate.
    """

    world: WorldSpec
    n_decisions: int
    seeds: Sequence[int]
    search: Literal["grid", "halving"] = "grid"
    settings: ServiceSettings = QUICK_SETTINGS

    @property
    def every(self) -> int:
        """Return the decisions between checkpoints."""
        return max(1, self.n_decisions // _N_CHECKPOINTS)


@dataclass(frozen=True, slots=True)
class Curves:
    """The runs of the candidates.

    Attributes:
        runs: By candidate, in the order given, then by seed.
        n_decisions: Length of a run.
    """

    runs: Mapping[Candidate, Mapping[int, LoopRun]]
    n_decisions: int

    @property
    def seeds(self) -> list[int]:
        """Return the seeds that those have that were run most."""
        return max((sorted(runs) for runs in self.runs.values()), key=len)

    @property
    def finished(self) -> list[Candidate]:
        """Return the candidates that were run on every seed."""
        return [candidate for candidate, runs in self.runs.items() if len(runs) == len(self.seeds)]

    def measure(self, candidate: Candidate, name: str) -> Float64Array:
        """Return float64 [seeds], one figure a run; NaN where a run says nothing of it."""
        runs = self.runs[candidate]
        return np.array([_figure(runs[seed], name) for seed in sorted(runs)])

    def curve(self, candidate: Candidate, name: str) -> tuple[Float64Array, Float64Array]:
        """Return the mean curve over seeds and the standard error of it, float64 [checkpoints] each."""
        stacked = np.array([getattr(run, name) for run in self.runs[candidate].values()])
        known = ~np.isnan(stacked)
        n = known.sum(axis=0)
        mean = np.where(n > 0, np.where(known, stacked, 0.0).sum(axis=0) / np.maximum(n, 1), np.nan)
        spread = np.where(known, stacked - mean, 0.0)
        se = np.sqrt((spread**2).sum(axis=0) / np.maximum(n - 1, 1) / np.maximum(n, 1))
        return mean, np.where(n > 1, se, np.nan)

    def steps(self) -> list[int]:
        """Return the decisions at the checkpoints."""
        first = next(iter(next(iter(self.runs.values())).values()))
        steps: list[int] = first.n_decisions.tolist()
        return steps


def _figure(run: LoopRun, name: str) -> float:
    if name in AT_THE_END:
        return float(getattr(run, name)[-1])
    curve: Float64Array = getattr(run, name)
    return math.nan if np.isnan(curve).all() else run.mean(name)


@dataclass(slots=True)
class _Search:
    """Runs that are done, and the pool for more."""

    plan: Plan
    pool: Executor
    n_planned: int
    progress: Progress | None
    runs: dict[Candidate, dict[int, LoopRun]] = field(default_factory=dict)

    def run(self, candidates: Iterable[Candidate], seeds: Sequence[int]) -> None:
        plan = self.plan
        waiting = {
            self.pool.submit(
                run_candidate,
                plan.world,
                one,
                n_decisions=plan.n_decisions,
                seed=seed,
                every=plan.every,
                settings=plan.settings,
            ): (one, seed)
            for seed in seeds
            for one in candidates
        }
        for future in as_completed(waiting):
            candidate, seed = waiting[future]
            self.runs.setdefault(candidate, {})[seed] = future.result()
            if self.progress is not None:
                self.progress(sum(map(len, self.runs.values())), self.n_planned)


def simulate(
    candidates: Sequence[Candidate], plan: Plan, *, pool: Executor, progress: Progress | None = None
) -> Curves:
    """Run the candidates, the first of which is the incumbent.

    Raises:
        ValueError: there is no seed.
    """
    if not plan.seeds:
        raise ValueError("seeds must not be empty")
    steps = _steps(len(candidates), plan)
    n_planned = sum(n_kept * len(seeds) for n_kept, seeds in steps)
    search = _Search(plan, pool, n_planned, progress)
    kept = list(candidates)
    for n_kept, seeds in steps:
        kept = _best(kept, search.runs, n_kept)
        search.run(kept, seeds)
    ordered = {one: dict(sorted(search.runs[one].items())) for one in candidates if one in search.runs}
    return Curves(ordered, plan.n_decisions)


def run_candidate(
    world: WorldSpec, candidate: Candidate, *, n_decisions: int, seed: int, every: int, settings: ServiceSettings
) -> LoopRun:
    """Run one candidate once."""
    return run_loop(
        world,
        exploration=candidate.exploration,
        discovery_share=candidate.discovery_share,
        n_decisions=n_decisions,
        seed=seed,
        every=every,
        settings=replace(settings, explorer=candidate.explorer),
    )


def _steps(n_candidates: int, plan: Plan) -> list[tuple[int, Sequence[int]]]:
    """Return how many candidates are kept for which further seeds."""
    if plan.search == "grid":
        return [(n_candidates, plan.seeds)]
    first = max(2, len(plan.seeds) // 4)
    edges = [0, first, max(first + 1, len(plan.seeds) // 2), len(plan.seeds)]
    kept = [n_candidates, -(-n_candidates // 2), -(-n_candidates // 4)]
    return [
        (max(2, n), plan.seeds[begin:end])
        for n, begin, end in zip(kept, edges[:-1], edges[1:], strict=True)
        if begin < end
    ]


def _best(
    candidates: Sequence[Candidate], runs: Mapping[Candidate, Mapping[int, LoopRun]], n_kept: int
) -> list[Candidate]:
    """Return the incumbent and the best others so far, in their order."""
    if n_kept >= len(candidates):
        return list(candidates)
    incumbent, *others = candidates
    means = {one: np.mean([_figure(run, "value") for run in runs[one].values()]) for one in others}
    kept = sorted(others, key=lambda one: -means[one])[: n_kept - 1]
    return [incumbent, *(one for one in others if one in kept)]


def worker_pool(jobs: int) -> Executor:
    """Return processes to simulate in."""
    # VW and Arrow have threads of their own: a forked child could inherit a lock that nobody holds.
    return ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn"), initializer=quieten)


def quieten() -> None:
    """Keep the simulated services' own log out of the command's output."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
