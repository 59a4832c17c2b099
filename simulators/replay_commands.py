"""`hone replay`: a log through production policy code, learning as it goes if asked."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.adapters.archive_files import files_of, reading
from service.cli.settings import settings_of
from simulators.evaluate_sources import Unanswerable, parse_position_weights, parse_window
from simulators.logged.import_report import LogRefused
from simulators.replay import ReplayResult
from simulators.replay_archive import PUBLISH_EVERY
from simulators.replay_report import verdict, write_report
from simulators.replay_sources import ReplayRequest, replay_archive, replay_dsjson

replay = typer.Typer(invoke_without_command=True, help="Replay a log through production policy code.")


class ReplayFormat(StrEnum):
    """Formats of logs that hold what a policy looks at."""

    ARCHIVE = "archive"
    DSJSON = "dsjson"


@replay.callback(
    epilog='Example: hone replay --log var/archive --exploration \'{"kind": "softmax", "temperature": 0.1}\', or '
    "hone replay --log clicks.dsjson --format dsjson --vw '--cb_adf --cb_type mtr -q UA' --learn"
)
def replay_command(
    context: typer.Context,
    log: Annotated[Path, typer.Option(help="The log: a file, or the folder of an archive.")],
    log_format: Annotated[ReplayFormat, typer.Option("--format", help="Of the log.")] = ReplayFormat.ARCHIVE,
    exploration: Annotated[str, typer.Option(help="A policy as JSON, as in hone.toml; else as logged.")] = "",
    rules: Annotated[str, typer.Option(help="All rules as a JSON list, as in hone.toml; else as logged.")] = "",
    vw: Annotated[str, typer.Option(help="VW's arguments: of an explorer (archive), of any model (dsjson).")] = "",
    learn: Annotated[bool, typer.Option("--learn", help="Learn every outcome as it comes.")] = False,
    surface: Annotated[str, typer.Option(help="Of an archive's decisions; all by default.")] = "",
    model: Annotated[str, typer.Option(help="The archive's model; needed to score anew.")] = "",
    items: Annotated[
        Path | None, typer.Option(help="NDJSON of an archive's items, to score anew with; else those of the store.")
    ] = None,
    saved: Annotated[str, typer.Option(help="Go on from: an artefact's id (archive), a model file (dsjson).")] = "",
    publish_every: Annotated[
        int, typer.Option(min=1, help="Outcomes learned between two publications of the weights.")
    ] = PUBLISH_EVERY,
    position_weights: Annotated[str, typer.Option(help="What a reward is worth by slot: 1,0.7,...; else 1.")] = "",
    start: Annotated[str, typer.Option("--from", help="Only what was logged from this ISO date or time on; UTC.")] = "",
    end: Annotated[str, typer.Option("--to", help="Only what was logged before this ISO date or time; UTC.")] = "",
    any_order: Annotated[bool, typer.Option("--any-order", help="The log may be out of the order of time.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the report: this HTML file, and JSON beside it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Feed a log through a policy: what it would have earned, and how well its model predicts before it learns.

    The order is the journal's: what is learned at an outcome is used by later decisions only.
    """
    try:
        request = ReplayRequest(
            path=log,
            exploration=exploration,
            rules=rules,
            vw=vw,
            learn=learn,
            surface=surface,
            model=model,
            items=items,
            saved=saved,
            publish_every=publish_every,
            any_order=any_order,
            window=parse_window(start, end),
            position_weights=parse_position_weights(position_weights),
        )
        result = _run(context, request, log_format)
    except Unanswerable as error:
        raise typer.BadParameter(str(error)) from error
    except LogRefused as error:
        typer.echo(f"hone: {error}", err=True)
        raise typer.Exit(1) from error
    figures = orjson.dumps(result.figures(), option=orjson.OPT_INDENT_2)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_report(out, result)
        out.with_suffix(".json").write_bytes(figures + b"\n")
        typer.echo(f"wrote {out} and {out.with_suffix('.json')}", err=True)
    typer.echo(figures.decode() if as_json else _text(result))
    if result.evaluation.refusal is not None:
        typer.echo(f"hone: refused: {result.evaluation.refusal}", err=True)
        raise typer.Exit(1)


def _run(context: typer.Context, request: ReplayRequest, log_format: ReplayFormat) -> ReplayResult:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task("replay", total=_size(request.path, log_format))

        def advance(n: int) -> None:
            bar.advance(task, n)

        if log_format is ReplayFormat.DSJSON:
            return replay_dsjson(request, advance=advance)
        return replay_archive(request, settings_of(context).load(), advance=advance)


def _size(path: Path, log_format: ReplayFormat) -> float | None:
    """Return the length of the bar: decisions of an archive, bytes of a file; None when it cannot be told."""
    try:
        if log_format is ReplayFormat.DSJSON:
            return None if path.suffix == ".gz" else path.stat().st_size
        with reading(path):
            return sum(pq.read_metadata(file.path).num_rows for file in files_of(path, "decisions")) or None
    except (OSError, ValueError, pa.ArrowInvalid):
        return None


def _text(result: ReplayResult) -> str:
    said = [verdict(result), result.evaluation.text()]
    if result.loss is not None:
        said.append(f"progressive validation loss {result.loss:.6f} over {result.n_predicted:,} predicted rewards")
    return "\n".join(said)
