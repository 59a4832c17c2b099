"""`hone data`: fetch the demo data, prepare what the service serves from it."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import msgspec
import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from retrieval.embeddings import AlsConfig
from service import offline
from service.cli.offline import (
    AsJson,
    DataDir,
    HmacKey,
    bundles_root,
    describe_training,
    embeddings_path,
    print_index,
    progress_bar,
    refusals,
)
from service.cli.settings import settings_of
from simulators.datasets import fetch as fetching
from simulators.datasets import prepare as preparing

data = typer.Typer(no_args_is_help=True, help="Fetch the demo data and prepare it.")

Force = Annotated[bool, typer.Option("--force", help="Do it again even if nothing has changed.")]


@data.callback()
def _data() -> None:
    """Fetch the demo data and prepare it."""


@data.command("fetch", epilog="Example: hone data fetch --data-dir var")
def fetch(
    data_dir: DataDir = Path("var"),
    movielens_url: Annotated[
        str, typer.Option(help="Where MovieLens 100k is asked for first.")
    ] = fetching.MOVIELENS_URL,
    offline_only: Annotated[bool, typer.Option("--offline", help="Use the cache folder only.")] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Fetch the films and MovieLens 100k and write items, users and interactions into demo/ of the data folder.

    Downloads are kept in $HONE_CACHE_DIR, else in hone/ of the user's cache folder.
    """
    cache = fetching.cache_folder(os.environ)
    datasets = (fetching.FILMS, fetching.movielens(movielens_url))
    try:
        fetched = []
        for dataset in datasets:
            typer.echo(dataset.notice, err=True)
            with _download_bar(dataset.title) as progress:
                fetched.append(fetching.fetch(dataset, cache, offline=offline_only, on_progress=progress))
        summary, written = preparing.prepare_demo(
            data_dir / "demo", film_files=fetched[0], rating_files=fetched[1], force=force
        )
    except (fetching.FetchError, ValueError) as error:
        typer.echo(f"hone: {error}", err=True)
        raise typer.Exit(1) from error
    if as_json:
        sources = {found.name: found.source for found in fetched}
        typer.echo(orjson.dumps({**asdict(summary), "written": written, "sources": sources}).decode())
        return
    for found in fetched:
        typer.echo(f"{found.name}: from {found.source}")
    typer.echo(
        f"{summary.n_items:,} films, {summary.n_users:,} users, {summary.n_interactions:,} ratings"
        f" ({'written' if written else 'up to date'}: {data_dir / 'demo'})"
    )
    typer.echo(
        f"{summary.n_matched_films:,} of {summary.n_rated_films:,} rated films found in the catalogue"
        f" ({summary.n_matched_items:,} items), {summary.matched_share:.1%} of {summary.n_ratings:,} ratings"
    )


@data.command("prepare", epilog="Example: hone data prepare --data-dir var")
def prepare(
    context: typer.Context,
    data_dir: DataDir = Path("var"),
    hmac_key: HmacKey = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train embeddings from the demo files and build the index bundle, printing its recall."""
    items, interactions = data_dir / "demo" / preparing.ITEMS, data_dir / "demo" / preparing.INTERACTIONS
    for path in (items, interactions):
        if not path.is_file():
            typer.echo(f"hone: {path} is missing; run `hone data fetch` first", err=True)
            raise typer.Exit(1)
    config = offline.TrainingConfig()
    target = embeddings_path(data_dir)
    record = target.with_name("training.json")
    fingerprint = _fingerprint(items, interactions, config)
    with refusals():
        training = None if force else _recorded(record, target, fingerprint)
        trained = training is None
        if training is None:
            with progress_bar("Training") as progress:
                training = offline.train_embeddings(items, interactions, target, config, progress)
            entry = {"fingerprint": fingerprint, "sha256": _digest(target), "report": asdict(training)}
            record.write_bytes(orjson.dumps(entry, option=orjson.OPT_INDENT_2))
        with progress_bar("Indexing") as progress:
            report = offline.build_index(
                target,
                bundles_root(data_dir),
                hmac_key=hmac_key.encode() if hmac_key else None,
                config=settings_of(context).load().index.build_config(),
                force=force,
                progress=progress,
            )
    if as_json:
        both = {"trained": trained, "training": asdict(training), "index": asdict(report)}
        typer.echo(orjson.dumps(both, option=orjson.OPT_NON_STR_KEYS).decode())
        return
    typer.echo(describe_training(training) if trained else f"Embeddings are up to date: {target}")
    print_index(report)


def _fingerprint(items: Path, interactions: Path, config: offline.TrainingConfig) -> str:
    """Digest what training depends on: inputs, configuration, the code of features and training."""
    digest = hashlib.sha256(orjson.dumps(asdict(config), option=orjson.OPT_SORT_KEYS))
    code = Path(sys.modules[AlsConfig.__module__].__file__ or "")
    features = [code.with_name(f"{name}.py") for name in ("content", "content_space", "item_to_item")]
    for path in (items, interactions, code, *features, Path(offline.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _recorded(record: Path, target: Path, fingerprint: str) -> offline.TrainingReport | None:
    try:
        entry = orjson.loads(record.read_bytes())
        if entry["fingerprint"] == fingerprint and entry["sha256"] == _digest(target):
            return msgspec.convert(entry["report"], offline.TrainingReport)
    except (OSError, KeyError, TypeError, orjson.JSONDecodeError, msgspec.MsgspecError):
        pass
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _download_bar(title: str) -> Iterator[fetching.Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task(title, total=None)

        def move(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total or None)

        yield move
