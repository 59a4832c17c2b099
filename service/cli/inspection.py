"""`hone doctor`, `hone audit`, `hone explain`."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from service.adapters.embedded_store import running_store
from service.adapters.redis_store import RedisJournal, connect
from service.audit_simulation import simulate_decisions
from service.cli.settings import settings_of
from service.config import Config
from service.doctor import Diagnosis, diagnose
from service.errors import NotFound
from service.explain import explain, find_decision
from service.inspect_log import AuditFindings, audit_journal, read_archive
from service.messages import Decision

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def doctor(context: typer.Context, as_json: AsJson = False) -> None:
    """Start a private stack on the demo data, close the loop, check every promise; exit 1 on a broken one."""
    settings = settings_of(context)
    console = Console(stderr=True)
    with console.status("starting") as status:
        diagnosis = diagnose(settings.load(), settings.config_path, lambda text: status.update(text))
    if as_json:
        promises = [
            {"name": p.name, "measured": p.measured, "bound": p.bound, "kept": p.kept} for p in diagnosis.promises
        ]
        print(_json({**diagnosis.report, "promises": promises, "healthy": diagnosis.healthy}))
    else:
        _show(diagnosis)
    if not diagnosis.healthy:
        sys.exit(1)


def audit(
    context: typer.Context,
    archive: Annotated[bool, typer.Option("--archive", help="Audit the archive rather than the journal.")] = False,
    simulate: Annotated[int, typer.Option(help="Audit so many decisions of a mixed-rules simulation instead.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 20261122,
    as_json: AsJson = False,
) -> None:
    """Recompute every logged propensity from its record alone, and test the draws; exit 1 when something is off."""
    config = settings_of(context).load()
    findings = AuditFindings()
    if simulate:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            decisions = simulate_decisions(simulate, seed=seed)
            findings.audit(progress.track(decisions, total=simulate, description="auditing"))
    elif archive:
        findings.audit(read_archive(config.data_path / "archive"))
    else:
        with running_store(config) as url:
            findings = asyncio.run(audit_journal(config, url))
    if as_json:
        print(_json(findings.summary()))
    else:
        print(f"{findings.checked} decisions checked, {findings.mismatches} mismatches")
        for line in (*findings.examples, *findings.statistics.alarms):
            print(f"  {line}")
    if not findings.is_clean:
        sys.exit(1)


def explain_command(
    context: typer.Context, event_id: Annotated[str, typer.Argument(help="The decision.")], as_json: AsJson = False
) -> None:
    """Say why each slot of a decision holds what it holds."""
    config = settings_of(context).load()
    with running_store(config) as url:
        explanation = explain(asyncio.run(_find(config, url, event_id)))
    if as_json:
        print(_json(explanation))
        return
    print(f"{event_id} on {explanation['surface']}, {explanation['n_candidates']} candidates")
    for slot in explanation["slots"]:
        print(f"{slot['slot']:>3}  {slot['reason']:<9} score {slot['score']:+.4f} boost {slot['boost']:+.4f}  ", end="")
        print(f"from {slot['source']}. {slot['in_words']}")


async def _find(config: Config, url: str, event_id: str) -> Decision:
    client = connect(url, timeout_s=5.0)
    try:
        found = await find_decision(RedisJournal(client, n_partitions=config.store.partitions), event_id)
    finally:
        await client.aclose()
    if found is None:
        raise NotFound(f"no decision {event_id!r} in the journal")
    return found


def _show(diagnosis: Diagnosis) -> None:
    table = Table("promise", "measured", "bound", "")
    for promise in diagnosis.promises:
        table.add_row(
            promise.name, f"{promise.measured:g}", f"{promise.bound:g}", "kept" if promise.kept else "[red]BROKEN[/red]"
        )
    Console().print(table)


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(epilog="Example: hone doctor --json")(doctor)
    app.command(epilog="Example: hone audit --json")(audit)
    app.command("explain", epilog="Example: hone explain 01M82JHSBTGSVG6S5R2DSNGQ6A")(explain_command)
