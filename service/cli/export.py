"""`hone export`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from service.adapters.embedded_store import running_store
from service.cli.output import json_text, unix_ms
from service.cli.settings import settings_of
from service.config import Config
from service.export import Exporter, Selection
from service.inspect_features import archive_folder
from service.item_history import ItemHistory
from service.retrain import fetch_item_history


class Format(StrEnum):
    """What a file is for."""

    training = "dsjson-training"
    evaluation = "dsjson-evaluation"
    explored = "explored"


def export(
    context: typer.Context,
    kind: Annotated[Format, typer.Option("--format", help="What the file is for.")],
    out: Annotated[Path, typer.Option(help="The file; it is replaced when the export is complete.")],
    surface: Annotated[str, typer.Option(help="Of the decisions; all by default.")] = "",
    model: Annotated[str, typer.Option(help="That learns the decisions; all by default.")] = "",
    since: Annotated[str, typer.Option("--from", help="First decision, such as 2026-11-22T13:00 (UTC).")] = "",
    until: Annotated[str, typer.Option("--to", help="Decisions before this time (UTC).")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write decided slots and their rewards as lines that VW reads with `--dsjson`.

    dsjson-training: shared features and the drawn item, in the order learned; `vw` trains from it to the weights of the
    learner. dsjson-evaluation: every item that the slot could hold, with exact probabilities; it reads the item
    features of the time from the live store. explored: training lines of what exploration drew, with its probabilities.
    """
    config = settings_of(context).load()
    everything = Selection()
    selection = Selection(
        surface=surface,
        model=model,
        from_ms=unix_ms("--from", since) if since else everything.from_ms,
        to_ms=unix_ms("--to", until) if until else everything.to_ms,
    )
    items = _live_items(config) if kind is Format.evaluation else None
    report = Exporter(config, archive_folder(config), items=items).write(out, kind.value, selection)
    if as_json:
        print(json_text(asdict(report)))
        return
    print(f"{report.n_lines} lines in {out}")
    for reason, count in sorted(report.left_out.items()):
        if count:
            print(f"  left out: {count} {reason}")
    if report.n_undescribed:
        print(f"  {report.n_undescribed} actions without item features: the store does not know them")
    if report.n_erased:
        print(f"  the archive is missing {report.n_erased} decisions that were erased with their users")


def _live_items(config: Config) -> ItemHistory:
    with running_store(config) as url:
        return fetch_item_history(url)


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command(epilog="Example: hone export --format dsjson-training --model films --out films.dsjson")(export)
