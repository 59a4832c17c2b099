"""`hone retrieval`: how good candidates are."""

from __future__ import annotations

import os
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from service.cli.offline import AsJson
from service.cli.settings import settings_of
from simulators.datasets import fetch as fetching
from simulators.datasets import movielens
from simulators.retrieval_quality import published
from simulators.retrieval_quality.evaluate import catalogue_items, evaluate_full, evaluate_sampled
from simulators.retrieval_quality.new_items import NewItemsConfig, evaluate_new_items
from simulators.retrieval_quality.splits import unfiltered
from simulators.retrieval_quality.text import print_full, print_new_items, print_sampled
from simulators.retrieval_quality.tuning import Grids

retrieval = typer.Typer(no_args_is_help=True, help="How good candidates are.")


class DatasetName(StrEnum):
    """Data sets with published figures."""

    MOVIELENS = "movielens-100k"


@retrieval.callback()
def _retrieval() -> None:
    """How good candidates are."""


@retrieval.command("evaluate", epilog="Example: hone retrieval evaluate --dataset movielens-100k --report quality.html")
def evaluate_command(
    context: typer.Context,
    dataset: Annotated[DatasetName, typer.Option(help="What to evaluate on.")] = DatasetName.MOVIELENS,
    seeds: Annotated[int, typer.Option(min=2, help="Draws of negatives (a), splits (b).")] = 10,
    report: Annotated[Path | None, typer.Option(help="Also write plots to this HTML file.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use the cache folder only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate every candidate source and the blend beside published figures, by two protocols that never mix.

    (a) The latest rating of each user among 99 sampled negatives. (b) A quarter of each user's ratings, ranked among
    everything; also what the quotas of the configured surfaces bring, and the recall of the index. Hyper-parameters
    are chosen on validation data. The exit code is 1 when a published hit rate is missed.
    """
    if report is not None and not report.parent.is_dir():
        typer.echo(f"hone: --report: folder {report.parent} does not exist", err=True)
        raise typer.Exit(2)
    data = _movielens(offline=offline)
    stderr = Console(stderr=True)
    surfaces = settings_of(context).load().surfaces
    with stderr.status("starting") as status:
        sampled = evaluate_sampled(data, n_seeds=seeds, grids=Grids(), say=status.update)
        full = evaluate_full(data, surfaces, n_seeds=seeds, grids=Grids(), say=status.update)
    if report is not None:
        # Every `hone` command imports this module; plotly would cost each of them a second.
        from simulators.retrieval_quality.plot import write_report

        write_report(report, sampled, full)
        typer.echo(f"saved {report}", err=True)
    if as_json:
        figures = {
            "dataset": dataset.value,
            "sampled_negatives": {**asdict(sampled), "published": published.SAMPLED},
            "full_ranking": {**asdict(full), "published": published.FULL},
        }
        typer.echo(orjson.dumps(figures, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode())
    else:
        console = Console()
        print_sampled(console, sampled)
        print_full(console, full)
    if not all(check.holds for check in sampled.checks):
        raise typer.Exit(1)


@retrieval.command("new-items", epilog="Example: hone retrieval new-items --seeds 5")
def new_items_command(
    seeds: Annotated[int, typer.Option(min=2, help="Draws of the split, the new films and the negatives.")] = 5,
    offline: Annotated[bool, typer.Option("--offline", help="Use the cache folder only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how soon a new item is found without a retraining, on MovieLens 100k.

    150 films are taken out of the training but for their first n ratings, and moved as a worker moves them. The exit
    code is 1 when that is worse than content alone, or no better than by what users of another film like.
    """
    data = _movielens(offline=offline)
    known, film_ids = unfiltered(data.ratings)
    with Console(stderr=True).status("starting") as status:
        report = evaluate_new_items(
            known, catalogue_items(data, film_ids), n_seeds=seeds, config=NewItemsConfig(), say=status.update
        )
    if as_json:
        typer.echo(orjson.dumps(asdict(report), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode())
    else:
        print_new_items(Console(), report)
    if not report.holds:
        raise typer.Exit(1)


def _movielens(*, offline: bool) -> movielens.MovieLens:
    data_set = fetching.movielens()
    typer.echo(data_set.notice, err=True)
    try:
        files = fetching.fetch(data_set, fetching.cache_folder(os.environ), offline=offline).files
        return movielens.parse({name: path.read_bytes() for name, path in files.items()})
    except (fetching.FetchError, ValueError) as error:
        typer.echo(f"hone: {error}", err=True)
        raise typer.Exit(1) from error
