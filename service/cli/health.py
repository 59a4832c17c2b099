"""`hone health`, `hone health probe`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from service.adapters.embedded_store import running_store
from service.adapters.redis_store import RedisChangeLog, RedisHealthBoard, connect
from service.bootstrap import wall_clock_ms
from service.cli.output import json_text
from service.cli.settings import settings_of
from service.config import Config
from service.health_probe import build_probe, fetch_items, probe_path, sample_decisions
from service.health_report import fetch_verdict, status_of
from service.inspect_log import read_archive
from service.messages import Decision, HealthVerdict, ProbeFile, encode
from service.wire import HealthReport

_TIMEOUT_S = 5.0

health_app = typer.Typer(invoke_without_command=True, help="The health of the loop.")


@health_app.callback(epilog="Example: hone health --json")
def health(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Say what is wrong with the loop, and why; exit 1 when there is an alarm."""
    if context.invoked_subcommand is not None:
        return
    config = settings_of(context).load()
    with running_store(config) as url:
        verdict = asyncio.run(_fetch(url))
    status = status_of(verdict.alarms)
    if as_json:
        report = HealthReport(
            status=status, alarms=verdict.alarms, values=verdict.values, at_unix_ms=verdict.at_unix_ms
        )
        print(json_text(report))
    else:
        print(status)
        for alarm in verdict.alarms:
            print(f"  {alarm.level:<8} {alarm.name}: {alarm.reason}")
    if status == "alarm":
        sys.exit(1)


@health_app.command("probe", epilog="Example: hone health probe")
def probe(context: typer.Context) -> None:
    """Freeze 1,000 contexts of the archive, on which every model's entropy is compared before it is promoted."""
    config = settings_of(context).load()
    if not config.health.genre:
        raise ValueError("health.genre is not set: without genres there is no entropy to compare")
    decisions = sample_decisions(read_archive(config.data_path / "archive"))
    with running_store(config) as url:
        frozen = asyncio.run(_build(config, url, decisions))
    path = probe_path(config.data_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(encode(frozen))
    partial.rename(path)
    print(f"{len(frozen.contexts)} contexts in {path}")


async def _fetch(url: str) -> HealthVerdict:
    client = connect(url, timeout_s=_TIMEOUT_S)
    try:
        return await fetch_verdict(RedisHealthBoard(client), now_ms=wall_clock_ms())
    finally:
        await client.aclose()


async def _build(config: Config, url: str, decisions: Sequence[Decision]) -> ProbeFile:
    client = connect(url, timeout_s=_TIMEOUT_S)
    try:
        items = await fetch_items(RedisChangeLog(client), decisions)
    finally:
        await client.aclose()
    return build_probe(decisions, items, schema=config.features, genre=config.health.genre)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(health_app, name="health")
