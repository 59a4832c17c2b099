"""`hone doctor`, `hone audit`, `hone explain`."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from service.adapters.archive_files import n_erased
from service.adapters.embedded_store import running_store
from service.adapters.redis_store import RedisChangeLog, RedisJournal, RedisModelStore, connect
from service.audit_simulation import simulate_decisions
from service.cli.output import json_text
from service.cli.settings import settings_of
from service.config import Config
from service.doctor import Diagnosis, diagnose
from service.explain import Explainer
from service.explanation import Explanation
from service.inspect_log import AuditFindings, audit_journal, read_archive

_STORE_TIMEOUT_S = 5.0

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
        print(json_text({**diagnosis.report, "promises": promises, "healthy": diagnosis.healthy}))
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
        findings.erased = n_erased(config.data_path / "archive", "decisions")
    else:
        with running_store(config) as url:
            findings = asyncio.run(audit_journal(config, url))
    if as_json:
        print(json_text(findings.summary()))
    else:
        print(f"{findings.checked} decisions checked, {findings.mismatches} mismatches")
        if findings.erased:
            print(f"{findings.erased} decisions are missing: they were erased with their users")
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
        explanation = asyncio.run(_explain(config, url, event_id))
    if as_json:
        print(json_text(explanation))
        return
    print(f"{event_id} on {explanation.surface}, {explanation.n_candidates} candidates")
    print(explanation.weights.in_words)
    for slot in explanation.slots:
        print(f"{slot.slot:>3}  {slot.reason:<9} from {slot.source}. {slot.in_words}")
        of_explorer = slot.explorer.in_words if slot.explorer else ""
        gave_way = f"Gave way: {', '.join(slot.rules_that_gave_way)}." if slot.rules_that_gave_way else ""
        for line in filter(None, (of_explorer, slot.score_in_words, slot.rules_in_words, gave_way)):
            print(f"     {line}")


async def _explain(config: Config, url: str, event_id: str) -> Explanation:
    client = connect(url, timeout_s=_STORE_TIMEOUT_S)
    try:
        explainer = Explainer(
            config=config,
            journal=RedisJournal(client, n_partitions=config.store.partitions),
            models=RedisModelStore(client),
            log=RedisChangeLog(client),
        )
        return await explainer.explain(event_id)
    finally:
        await client.aclose()


def _show(diagnosis: Diagnosis) -> None:
    table = Table("promise", "measured", "bound", "")
    for promise in diagnosis.promises:
        table.add_row(
            promise.name, f"{promise.measured:g}", f"{promise.bound:g}", "kept" if promise.kept else "[red]BROKEN[/red]"
        )
    Console().print(table)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(epilog="Example: hone doctor --json")(doctor)
    app.command(epilog="Example: hone audit --json")(audit)
    app.command("explain", epilog="Example: hone explain 01M82JHSBTGSVG6S5R2DSNGQ6A")(explain_command)
