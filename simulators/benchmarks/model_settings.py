"""`hone bench model-settings`: what a model's own settings bring in the closed loop, on the same visits for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import numpy as np

from bandit.exploration import Epsilon
from service.logs import configure_logs
from simulators.closed_loop import run_loop
from simulators.loop_config import ServiceSettings
from simulators.tune.judge import paired_gain
from simulators.worlds.named import QUICK_SETTINGS, churning_world, clustered_world
from simulators.worlds.tastes import ClusterTasteSpec
from simulators.worlds.world import WorldSpec

_N_CANDIDATES = 200
_EXPLORATION = Epsilon(rate=0.1)
_REFERENCE = "constant .02"


def model_settings() -> dict[str, ServiceSettings]:
    """Return the settings that are compared, by name; all of them differ in the model alone."""

    def model(rate: float, *, power_t: float = 0.0, baseline: bool = True) -> ServiceSettings:
        return replace(QUICK_SETTINGS, learning_rate=rate, power_t=power_t, baseline=baseline)

    return {
        _REFERENCE: model(0.02),
        "constant .005": model(0.005),
        "adaptive .1": model(0.1, power_t=0.5),
        "constant .02, no baseline": model(0.02, baseline=False),
        "adaptive .1, no baseline": model(0.1, power_t=0.5, baseline=False),
    }


def model_worlds() -> dict[str, tuple[WorldSpec, int]]:
    """Return worlds and how many decisions they run for: one stands still, the others move each in its way."""
    # Tastes turn into others, and back, within the run.
    drifting = replace(clustered_world(), tastes=ClusterTasteSpec(drift_period_s=900.0))
    return {
        "clustered": (clustered_world(), 3_000),
        "churning": (churning_world(), 3_000),
        "drifting": (drifting, 5_000),
    }


def bench_model_settings(
    say: Callable[[str], None],
    *,
    n_seeds: int,
    jobs: int,
    worlds: Mapping[str, tuple[WorldSpec, int]] | None = None,
    settings: Mapping[str, ServiceSettings] | None = None,
) -> dict[str, Any]:
    """Return by world and setting the share of the best slates' value that was earned, and the gain on the reference.

    Args:
        say: told what was done.
        n_seeds: runs of each, at least 2.
        jobs: processes.
        worlds: None takes all.
        settings: None takes all; the first is the reference.
    """
    worlds, settings = worlds or model_worlds(), settings or model_settings()
    shares: dict[tuple[str, str], list[float]] = {(w, s): [0.0] * n_seeds for w in worlds for s in settings}
    with ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn")) as pool:
        waiting = {
            pool.submit(share_of_best, *world, setting=setting, seed=1 + place): (world_name, name, place)
            for world_name, world in worlds.items()
            for name, setting in settings.items()
            for place in range(n_seeds)
        }
        for n_done, future in enumerate(as_completed(waiting), start=1):
            world_name, name, place = waiting[future]
            shares[world_name, name][place] = future.result()
            say(f"{n_done} of {len(waiting)} runs")
    reference = next(iter(settings))
    return {
        "exploration": repr(_EXPLORATION),
        "reference": reference,
        "n_seeds": n_seeds,
        "worlds": {
            world_name: {
                "n_decisions": n_decisions,
                "settings": {
                    name: _compared(shares[world_name, name], shares[world_name, reference]) for name in settings
                },
            }
            for world_name, (_, n_decisions) in worlds.items()
        },
    }


def share_of_best(world: WorldSpec, n_decisions: int, *, setting: ServiceSettings, seed: int) -> float:
    """Return what a run earned as a share of what the best slates would have, in expected rewards."""
    configure_logs("warning", process="bench")
    run = run_loop(
        world,
        exploration=_EXPLORATION,
        n_decisions=n_decisions,
        seed=seed,
        every=n_decisions,
        settings=replace(setting, n_candidates=min(world.churn.n_live, _N_CANDIDATES)),
    )
    return run.mean("value") / run.mean("optimal")


def _compared(shares: list[float], reference: list[float]) -> dict[str, Any]:
    """Return the mean share, and the relative gain with its 95% t-interval between seeds."""
    gain = paired_gain(np.array(shares), np.array(reference), confidence=0.95)
    return {
        "share_of_best": round(float(np.mean(shares)), 4),
        "gain": round(gain.value, 4),
        "low": round(gain.low, 4),
        "high": round(gain.high, 4),
        "by_seed": [round(share, 4) for share in shares],
    }
