"""`hone bake-off`: every way to explore, on problems whose optimum is known."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from service.cli.offline import AsJson, progress_bar
from simulators.bake_off import BakeOff, Contestant, Result, contestants, run_bake_off
from simulators.benchmarks.report import save_result
from simulators.datasets import fetch as fetching
from simulators.datasets.classification import SETS, Classification, parse

bake_off = typer.Typer(invoke_without_command=True, help="Exploration policies beside VW's, on classification sets.")


@bake_off.callback(epilog="Example: hone bake-off --set digits --set satimage --seeds 5")
def bake_off_command(
    sets: Annotated[list[str] | None, typer.Option("--set", help="Repeatable. [default: all four]")] = None,
    rows: Annotated[int, typer.Option(min=100, help="Rows of a stream at most.")] = 4_000,
    seeds: Annotated[int, typer.Option(min=2, help="Streams reported; settings are chosen on another.")] = 5,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    offline: Annotated[bool, typer.Option("--offline", help="Use the cache folder only.")] = False,
    save: Annotated[bool, typer.Option("--save", help="Write tests/benchmarks/results/bake_off.json.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn classification sets into bandit problems and print the progressive loss of every exploration policy.

    The reward is 1 for the right class, so the optimum loses nothing. Hone's policies run through the production
    scorer, draw and learner; VW's explorers through its own command-line driver on the same rows in the same order.
    Each contestant's settings are chosen on a stream that is not reported.
    """
    names = sets or list(SETS)
    unknown = sorted(set(names) - set(SETS))
    if unknown:
        typer.echo(f"hone: --set must be of {sorted(SETS)}, got {unknown}", err=True)
        raise typer.Exit(2)
    try:
        found = [_load(name, offline=offline) for name in dict.fromkeys(names)]
    except (fetching.FetchError, ValueError) as error:
        typer.echo(f"hone: {error}", err=True)
        raise typer.Exit(1) from error
    entrants = contestants()
    with progress_bar("Bake-off") as progress:
        outcome = run_bake_off(
            found, entrants=entrants, seeds=range(1, seeds + 1), n_rows=rows, jobs=jobs, progress=progress
        )
    figures = as_figures(outcome)
    if save:
        path = save_result("bake_off", figures, command=f"hone bake-off --rows {rows} --seeds {seeds} --save")
        typer.echo(f"saved {path}", err=True)
    if as_json:
        typer.echo(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode())
    else:
        Console().print(_table(outcome, entrants))


def as_figures(outcome: BakeOff) -> dict[str, Any]:
    """Return the outcome as JSON-ready figures."""
    return {
        "optimal_loss": 0.0,
        "seeds": outcome.seeds,
        "sets": {
            name: {
                "n_rows": outcome.n_rows[name],
                "n_classes": outcome.n_classes[name],
                "blind_loss": 1.0 - 1.0 / outcome.n_classes[name],
                "contestants": {
                    contestant: {**asdict(result), "mean": result.mean, "margin": result.margin}
                    for contestant, result in results.items()
                },
            }
            for name, results in outcome.results.items()
        },
    }


def _load(name: str, *, offline: bool) -> Classification:
    typer.echo(SETS[name].notice, err=True)
    files = fetching.fetch(SETS[name], fetching.cache_folder(os.environ), offline=offline).files
    return parse(name, {file: path.read_bytes() for file, path in files.items()})


def _table(outcome: BakeOff, entrants: tuple[Contestant, ...]) -> Table:
    table = Table(
        "policy",
        *(f"{name}\n{n:,} rows\n{outcome.n_classes[name]} classes" for name, n in outcome.n_rows.items()),
        title=f"Progressive loss, {len(outcome.seeds)} seeds, 95% t-interval; the optimum loses 0",
        caption="Policies with -- are VW's own, through its command-line driver.",
    )
    for entrant in entrants:
        table.add_row(entrant.name, *(_cell(results[entrant.name]) for results in outcome.results.values()))
    table.add_row("blind", *(f"{1 - 1 / n:.3f}" for n in outcome.n_classes.values()))
    return table


def _cell(result: Result) -> str:
    return f"{result.mean:.3f}±{result.margin:.3f}"
