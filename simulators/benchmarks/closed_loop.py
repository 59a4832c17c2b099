"""`decisions_per_s` of `hone bench simulators`: the production use cases in one process, learning included."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bandit.exploration import Epsilon
from simulators.closed_loop import run_loop
from simulators.loop_config import ServiceSettings
from simulators.worlds.churn import Churn
from simulators.worlds.visits import Crowd
from simulators.worlds.world import WorldSpec

_N_DECISIONS = 6_000
_N_PROFILED = 2_000
_N_REPEATS = 3
_GAP_S = 100.0
# So long until slots without a click are learned as fast as slates are shown.
_WARM_S = 70.0
# Items of the catalogue, candidates of a request, slots, requests a second of simulated time: as many as a core of the
# service is promised to answer, and few, where what a turn costs is shared by few.
_SHAPES = ((50, 50, 3, 250), (50, 50, 3, 20), (1_000, 50, 5, 250), (1_000, 200, 10, 250))
# What a decision's time goes into: the function below which it is counted.
_PARTS = {
    "recommend": ("recommend.py", "recommend"),
    "report": ("feedback.py", "accept"),
    "learn": ("learn.py", "step"),
    "follow": ("follow.py", "apply_waiting"),
    "ship": ("spool.py", "_ship_forever"),
    "users who react": ("world.py", "respond"),
    "tastes": ("world.py", "attraction"),
    "best slates": ("world.py", "best"),
}


def bench_closed_loop(say: Callable[[str], None]) -> dict[str, Any]:
    """Measure decisions a second on one core at several sizes: of the clock, and of the processor's own time.

    A visit to the world, the request, the slate's reactions, their events, joining, learning, publishing and item
    statistics are all in it, slots without a click included: it is measured once these are learned as fast as slates
    are shown. The best of several runs counts: what else a machine does only makes a run slower.
    """
    shapes = []
    for n_items, n_candidates, n_slots, per_s in _SHAPES:
        say(f"closed loop: {n_items} items, {n_candidates} candidates, {n_slots} slots, {per_s} requests/s")
        crowd = Crowd(n_users=round(per_s * _GAP_S), gap_s=_GAP_S)
        world = WorldSpec(crowd=crowd, churn=Churn(n_live=n_items), n_slots=n_slots)
        settings = ServiceSettings(n_candidates=n_candidates)
        runs = [_timed(world, settings, round(per_s * _WARM_S)) for _ in range(_N_REPEATS)]
        shapes.append(
            {
                "n_items": n_items,
                "n_candidates": n_candidates,
                "n_slots": n_slots,
                "requests_per_simulated_s": per_s,
                "decisions_per_s": round(max(run.per_s for run in runs)),
                "decisions_per_cpu_s": round(max(run.per_cpu_s for run in runs)),
                "every_run": [round(run.per_s) for run in runs],
                "events_per_decision": round(runs[0].events_per_decision, 2),
                "share_of_profiled_time": _shares(world, settings),
            }
        )
    return {"n_decisions": _N_DECISIONS, "n_repeats": _N_REPEATS, "warm_s": _WARM_S, "shapes": shapes}


@dataclass(frozen=True, slots=True)
class _Speed:
    """Decisions a second once warm, of the clock and of the processor, and events of the whole run."""

    per_s: float
    per_cpu_s: float
    events_per_decision: float


def _timed(world: WorldSpec, settings: ServiceSettings, n_warm: int) -> _Speed:
    marks: list[tuple[int, float, float]] = []

    def mark(n_so_far: int) -> None:
        if n_so_far >= n_warm:
            marks.append((n_so_far, time.perf_counter(), time.process_time()))

    n_decisions = n_warm + _N_DECISIONS
    run = run_loop(
        world,
        exploration=Epsilon(rate=0.1),
        n_decisions=n_decisions,
        seed=1,
        every=n_decisions,
        settings=settings,
        on_progress=mark,
    )
    (first, began_s, began_cpu_s), (last, ended_s, ended_cpu_s) = marks[0], marks[-1]
    n = last - first
    return _Speed(n / (ended_s - began_s), n / (ended_cpu_s - began_cpu_s), run.n_events / n_decisions)


def _shares(world: WorldSpec, settings: ServiceSettings) -> dict[str, float]:
    """Return the share of a profiled run that each part took; a profiler makes small functions look larger."""
    profile = cProfile.Profile()
    profile.runcall(
        run_loop,
        world,
        exploration=Epsilon(rate=0.1),
        n_decisions=_N_PROFILED,
        seed=1,
        every=_N_PROFILED,
        settings=settings,
    )
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    whole = max(cumulative for _, _, _, cumulative, _ in stats.values())
    found = {}
    for part, (file, function) in _PARTS.items():
        took = [row[3] for (path, _, name), row in stats.items() if path.endswith(f"/{file}") and name == function]
        found[part] = round(max(took, default=0.0) / whole, 3)
    return found
