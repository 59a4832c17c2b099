"""Run schedules by their seeds: `python -m tests.simulation.runner --seeds 10000`, `--seed N` for one."""

from __future__ import annotations

from tests.simulation.checker import violations
from tests.simulation.world import World, rules, simulate


def check(seed: int) -> tuple[World, list[str]]:
    """Run one schedule and return it with what did not hold."""
    world = simulate(seed)
    return world, violations(world.history, rules(world))
