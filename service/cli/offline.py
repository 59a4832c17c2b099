"""`hone embeddings train` and `hone index build`: the offline steps with progress bars."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from retrieval.embeddings import AlsConfig
from service import offline
from service.cli.settings import settings_of

embeddings = typer.Typer(no_args_is_help=True, help="Train item and user embeddings.")
index = typer.Typer(no_args_is_help=True, help="Build the index bundles that the API serves from.")

DataDir = Annotated[
    Path, typer.Option("--data-dir", envvar="HONE_DATA_DIR", help="Folder of demo files, embeddings and indexes.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
HmacKey = Annotated[
    str | None, typer.Option("--hmac-key", envvar="HONE_ARTEFACT_KEY", help="Signs the manifest; set it in production.")
]


@embeddings.callback()
def _embeddings() -> None:
    """Train item and user embeddings."""


@index.callback()
def _index() -> None:
    """Build the index bundles that the API serves from."""


@embeddings.command(
    "train", epilog="Example: hone embeddings train --items items.ndjson --interactions ratings.parquet"
)
def train(
    items: Annotated[Path | None, typer.Option(help="NDJSON, one item a line. [default: demo/items.ndjson]")] = None,
    interactions: Annotated[
        Path | None,
        typer.Option(help="Parquet: user_id, item_id, value, at_unix_ms. [default: demo/interactions.parquet]"),
    ] = None,
    factors: Annotated[int, typer.Option(min=2, help="Length of a vector.")] = AlsConfig().factors,
    iterations: Annotated[
        int, typer.Option(min=1, help="Rounds; a killed run goes on from its last one.")
    ] = AlsConfig().iterations,
    positive_from: Annotated[
        float, typer.Option(help="Smallest value that counts as a positive: 3 of 5 stars, 1 for clicks.")
    ] = offline.TrainingConfig().positive_from,
    data_dir: DataDir = Path("var"),
    as_json: AsJson = False,
) -> None:
    """Train embeddings of every item, rated or not, and write them to embeddings/embeddings.npz of the data folder."""
    als = AlsConfig(factors=factors, iterations=iterations, n_threads=os.cpu_count() or 1)
    config = offline.TrainingConfig(positive_from=positive_from, als=als)
    with refusals(), progress_bar("Training") as progress:
        report = offline.train_embeddings(
            items or data_dir / "demo" / "items.ndjson",
            interactions or data_dir / "demo" / "interactions.parquet",
            embeddings_path(data_dir),
            config,
            progress,
        )
    if as_json:
        typer.echo(orjson.dumps(report).decode())
    else:
        typer.echo(describe_training(report))


@index.command("build", epilog="Example: hone index build --data-dir var --json")
def build(
    context: typer.Context,
    data_dir: DataDir = Path("var"),
    hmac_key: HmacKey = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if this bundle is there already.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build the bundle of the trained embeddings, make it current, print recall against the exact oracle.

    `index.kind` of the configuration says which kind of index; `auto` decides by the number of items.
    """
    with refusals(), progress_bar("Indexing") as progress:
        report = offline.build_index(
            embeddings_path(data_dir),
            bundles_root(data_dir),
            hmac_key=hmac_key.encode() if hmac_key else None,
            config=settings_of(context).load().index.build_config(),
            force=force,
            progress=progress,
        )
    if as_json:
        typer.echo(orjson.dumps(report, option=orjson.OPT_NON_STR_KEYS).decode())
    else:
        print_index(report)


def embeddings_path(data_dir: Path) -> Path:
    """Where the trained embeddings are."""
    return data_dir / "embeddings" / "embeddings.npz"


def bundles_root(data_dir: Path) -> Path:
    """Where the bundles are."""
    return data_dir / "index"


@contextmanager
def refusals() -> Iterator[None]:
    """Turn an input that cannot be used into its message and exit code 1."""
    try:
        yield
    except offline.OfflineError as error:
        typer.echo(f"hone: {error}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def progress_bar(title: str) -> Iterator[offline.Progress]:
    """Show a bar on standard error (nothing when it is no terminal) and give the function that moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=None)

        def move(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total or None)

        yield move


def describe_training(report: offline.TrainingReport) -> str:
    """Say what was trained in one line."""
    resumed = f", the first {report.n_rounds_resumed} rounds by an earlier run" if report.n_rounds_resumed else ""
    return (
        f"Trained {report.dimension} factors on {report.n_positives:,} positives of {report.n_users:,} users and "
        f"{report.n_items_with_interactions:,} of {report.n_items:,} items in {report.duration_s:.1f} s{resumed}: "
        f"{report.path}"
    )


def print_index(report: offline.IndexReport) -> None:
    """Print what was built and its recall as a table."""
    verb = "Built" if report.built else "Kept"
    typer.echo(
        f"{verb} bundle {report.version} ({report.kind}): {report.n_items:,} items x {report.dimension}, "
        f"{report.bundle_bytes / 1e6:.1f} MB, {report.duration_s:.1f} s: {report.path}"
    )
    table = Table(
        "recall@k", *(str(k) for k in report.recall_als), title=f"against the exact oracle, {report.n_queries} queries"
    )
    table.add_row("als (inner product)", *(f"{recall:.3f}" for recall in report.recall_als.values()))
    table.add_row("similar (cosine)", *(f"{recall:.3f}" for recall in report.recall_similar.values()))
    Console().print(table)
