"""`hone features check` and `hone features materialise`."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from service.adapters.embedded_store import running_store
from service.bootstrap import load_salt
from service.cli.output import json_text
from service.cli.settings import settings_of
from service.inspect_features import check_archive, materialise

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

features = typer.Typer(no_args_is_help=True, help="The feature store.")


@features.callback()
def _features() -> None:
    """The feature store."""


@features.command("check", epilog="Example: hone features check --json")
def check(context: typer.Context, as_json: AsJson = False) -> None:
    """Compare features as served, as the archive recomputes them and as training reads them; exit 1 on a mismatch."""
    config = settings_of(context).load()
    with running_store(config) as url:
        report = asyncio.run(check_archive(config, url, salt=load_salt(config)))
    if as_json:
        print(json_text(asdict(report)))
    else:
        print(f"{report.n_decisions} decisions, {report.n_values} values compared, {report.n_mismatches} mismatches")
        for line in report.examples:
            print(f"  {line}")
    if report.n_mismatches:
        sys.exit(1)


@features.command("materialise", epilog="Example: hone features materialise --user-ids users.txt")
def materialise_command(
    context: typer.Context,
    user_ids: Annotated[
        typer.FileText | None, typer.Option(help="Ids of users to restore, one a line; the archive has keys only.")
    ] = None,
) -> None:
    """Backfill the online store from the archive: item statistics, and recent interactions and impressions of users.

    A running learner is replaced: it ends, and the next one goes on from the statistics written here.
    """
    config = settings_of(context).load()
    ids = [] if user_ids is None else [line.strip() for line in user_ids if line.strip()]
    with running_store(config) as url:
        done = asyncio.run(materialise(config, url, user_ids=ids, salt=load_salt(config)))
    print(f"{done.n_items} items, {done.n_users} users, {done.n_interactions} interactions, {done.n_impressions} shown")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(features, name="features")
