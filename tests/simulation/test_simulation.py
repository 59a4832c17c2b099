"""The short form of the simulation; `make faults` runs 10,000 schedules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.planted import PLANTED
from tests.simulation.runner import REACHABLE, check, first_caught
from tests.simulation.world import simulate

N_SCHEDULES = 100


@pytest.mark.parametrize("first", [1, 101, 201])
def test_nothing_is_lost_doubled_or_mislearned_in_any_schedule(first: int) -> None:
    died_at, n_fenced, n_taken_over = set(), 0, 0
    for seed in range(first, first + N_SCHEDULES):
        world, found = check(seed)
        assert found == [], f"python -m tests.simulation.runner --seed {seed}"
        died_at |= world.died_at
        n_fenced += world.history.n_fenced
        n_taken_over += sum(what == "epoch" for what, *_ in world.history.fenced) > 2
    # The schedules are no walk in the park.
    assert died_at <= REACHABLE
    assert len(died_at) >= 8
    assert n_fenced >= 3
    assert n_taken_over >= 20


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found(name: str) -> None:
    planted = PLANTED[name]
    caught = first_caught(name, range(planted.first, planted.first + planted.n_seeds))
    assert caught is not None, f"none of {planted.n_seeds} schedules from seed {planted.first} on finds {name!r}"


def test_a_seed_replays_to_the_bit_in_another_process_after_other_schedules() -> None:
    program = (
        "import sys; from tests.simulation.world import simulate; print(simulate(int(sys.argv[1])).history.digest())"
    )
    for seed in (7, 10):
        here = simulate(seed).history.digest()
        there = subprocess.run(
            [sys.executable, "-c", program, str(seed)],
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": "4711"},
            check=True,
            capture_output=True,
            text=True,
        )
        assert there.stdout.strip() == here


def test_the_checker_imports_nothing_of_the_service() -> None:
    program = "import sys, tests.simulation.checker; print([m for m in sys.modules if m.split('.')[0] in %s])"
    loaded = subprocess.run(
        [sys.executable, "-c", program % (("service", "bandit", "retrieval"),)],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    assert loaded.stdout.strip() == "[]"
