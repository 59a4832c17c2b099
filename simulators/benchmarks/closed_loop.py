"""`decisions_per_s` of `hone bench simulators`: the production use cases in one process, learning included."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Callable
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
# Items of the catalogue, candidates of a request, slots.
_SHAPES = ((50, 50, 3), (1_000, 50, 5), (1_000, 200, 10))
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
    statistics are all in it; start and end of a run are not. The best of several runs counts: what else a machine does
    only makes a run slower.
    """
    shapes = []
    for n_items, n_candidates, n_slots in _SHAPES:
        say(f"closed loop: {n_items} items, {n_candidates} candidates, {n_slots} slots")
        world = WorldSpec(crowd=Crowd(n_users=2_000, gap_s=100.0), churn=Churn(n_live=n_items), n_slots=n_slots)
        settings = ServiceSettings(n_candidates=n_candidates)
        runs = [_timed(world, settings, _N_DECISIONS) for _ in range(_N_REPEATS)]
        shapes.append(
            {
                "n_items": n_items,
                "n_candidates": n_candidates,
                "n_slots": n_slots,
                "decisions_per_s": round(max(per_s for per_s, _, _ in runs)),
                "decisions_per_cpu_s": round(max(per_cpu_s for _, per_cpu_s, _ in runs)),
                "events_per_decision": round(runs[0][2] / _N_DECISIONS, 2),
                "share_of_profiled_time": _shares(world, settings),
            }
        )
    return {"n_decisions": _N_DECISIONS, "n_repeats": _N_REPEATS, "shapes": shapes}


def _timed(world: WorldSpec, settings: ServiceSettings, n_decisions: int) -> tuple[float, float, int]:
    """Return decisions a second, decisions a second of processor time (start and end in it), and events."""
    before_s = time.process_time()
    run = run_loop(
        world, exploration=Epsilon(rate=0.1), n_decisions=n_decisions, seed=1, every=n_decisions, settings=settings
    )
    return run.decisions_per_s, n_decisions / (time.process_time() - before_s), run.n_events


def _shares(world: WorldSpec, settings: ServiceSettings) -> dict[str, float]:
    """Return the share of a profiled run that each part took; a profiler makes small functions look larger."""
    profile = cProfile.Profile()
    profile.runcall(_timed, world, settings, _N_PROFILED)
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    whole = max(cumulative for _, _, _, cumulative, _ in stats.values())
    found = {}
    for part, (file, function) in _PARTS.items():
        took = [row[3] for (path, _, name), row in stats.items() if path.endswith(f"/{file}") and name == function]
        found[part] = round(max(took, default=0.0) / whole, 3)
    return found
