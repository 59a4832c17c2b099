"""Run schedules by their seeds.

python -m tests.simulation.runner --seeds 10000     all of them, then the planted mistakes
python -m tests.simulation.runner --seed 4711       one, with what happened in it
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.failpoints import POINTS
from tests.simulation.checker import violations
from tests.simulation.planted import PLANTED
from tests.simulation.world import World, rules, simulate

# Points of what is not simulated: promotions, erasures, upkeep of the archive (no hour ends), workers that follow,
# live configuration, the supervisor. The fault matrix on real processes goes there.
_ELSEWHERE = (
    "learner.artefact",
    "learner.adopt",
    "feedback.erase",
    "archive.merge",
    "archive.drop",
    "archive.erase",
    "follower.",
    "config.",
    "supervise.",
)
REACHABLE = frozenset(point for point in POINTS if not point.startswith(_ELSEWHERE))
_CHUNK = 25
_MISPLANTED = ("TypeError", "AttributeError", "NameError")


def check(seed: int) -> tuple[World, list[str]]:
    """Run one schedule and return it with what did not hold."""
    world = simulate(seed)
    return world, violations(world.history, rules(world))


def first_caught(name: str, seeds: range) -> tuple[int, str] | None:
    """Return the first seed that finds a planted mistake, and by what; None when all miss it.

    A schedule that a process met with an error of these kinds does not count: the planting itself is at fault.
    """
    for seed in seeds:
        with PLANTED[name].plant():
            _, found = check(seed)
        if found and not any(error in violation for violation in found for error in _MISPLANTED):
            return seed, found[0]
    return None


def _check_all(seeds: range) -> tuple[list[tuple[int, list[str]]], set[str]]:
    failed, died_at = [], set()
    for seed in seeds:
        try:
            world, found = check(seed)
        except Exception as error:
            failed.append((seed, [f"the simulation itself failed: {error!r}"]))
            continue
        died_at |= world.died_at
        if found:
            failed.append((seed, found))
    return failed, died_at


def _chunks(seeds: range) -> Iterator[range]:
    return (seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK))


def _run_many(seeds: range, console: Console, *, n_processes: int) -> bool:
    failed: list[tuple[int, list[str]]] = []
    died_at: set[str] = set()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    context = multiprocessing.get_context("spawn")
    with Progress(*columns, console=console) as progress, ProcessPoolExecutor(n_processes, context) as pool:
        bar = progress.add_task("schedules", total=len(seeds))
        chunks = list(_chunks(seeds))
        for chunk, (of_chunk, reached) in zip(chunks, pool.map(_check_all, chunks), strict=True):
            for seed, found in of_chunk:
                # Printed at once: whoever stops the run has them.
                console.print(f"seed {seed}", *found[:3], sep="\n    ", soft_wrap=True, markup=False)
            failed += of_chunk
            died_at |= reached
            progress.advance(bar, len(chunk))
        names = progress.add_task("planted mistakes", total=len(PLANTED))
        missed = []
        caught = pool.map(partial(_catch, first=seeds.start), PLANTED)
        for name, found in zip(PLANTED, caught, strict=True):
            console.print(
                f"planted {name}:", "missed" if found is None else f"caught by seed {found[0]}: {found[1]}"[:150]
            )
            missed += [name] if found is None else []
            progress.advance(names)
    console.print(f"{len(seeds)} schedules, {len(failed)} with violations: seeds {[seed for seed, _ in failed]}")
    # Every failpoint comes up in some hundred schedules.
    unreached = sorted(REACHABLE - died_at) if len(seeds) >= 5_000 else []
    console.print(f"died at {len(died_at)} of {len(REACHABLE)} failpoints; never at {sorted(REACHABLE - died_at)}")
    console.print(f"{len(PLANTED) - len(missed)} of {len(PLANTED)} planted mistakes were caught; missed {missed}")
    return not (failed or unreached or missed)


def _catch(name: str, *, first: int) -> tuple[int, str] | None:
    return first_caught(name, range(first, first + PLANTED[name].n_seeds))


def _run_one(seed: int, console: Console) -> bool:
    world, found = check(seed)
    history = world.history
    for at_s, event_id, items, degraded in history.answers:
        chosen = "chosen" if event_id in history.chosen else ""
        console.print(f"{at_s:8.3f} s  answered {event_id} {items}", chosen, *degraded)
    n_entries = sum(len(entries) for name, entries in history.streams.items() if name.endswith(":journal"))
    console.print(f"{len(history.acknowledged)} events acknowledged, {n_entries} entries in the journal")
    console.print(f"troubles: {', '.join(f'{at_s:.2f} s {what}' for at_s, what in world.troubles)}")
    console.print(f"refused by the fence: {history.n_fenced}; digest {history.digest()[:16]}")
    console.print(*(found or ["everything holds"]), sep="\n", soft_wrap=True)
    return not found


def main() -> int:
    """Run what the arguments say; 1 when something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="replay this schedule alone")
    parser.add_argument("--seeds", type=int, default=1_000, help="how many schedules, each with a seed of its own")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="how many run at a time")
    arguments = parser.parse_args()
    console = Console()
    if arguments.seed is not None:
        return int(not _run_one(arguments.seed, console))
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    return int(not _run_many(seeds, console, n_processes=arguments.processes))


if __name__ == "__main__":
    sys.exit(main())
