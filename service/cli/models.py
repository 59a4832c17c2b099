"""`hone promote`, `hone rollback`, `hone models`."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from service.adapters.embedded_store import running_store
from service.cli.model_output import interval_text, run_commands
from service.cli.output import json_text
from service.cli.settings import settings_of
from service.config import Canary
from service.model_commands import ArtefactStage, ModelCommands, Verdict
from service.promote import Gate

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Reason = Annotated[str, typer.Option(help="Why, for the log.")]


def promote(
    context: typer.Context,
    artefact: Annotated[str, typer.Argument(help="Its id; hone models lists them.")],
    stage: Annotated[Literal["shadow", "canary", "full"], typer.Option(help="shadow asks the gates only.")] = "shadow",
    surface: Annotated[str, typer.Option(help="Surface of a canary.")] = "home",
    share: Annotated[float, typer.Option(help="Share of the surface's users in a canary, at most 0.5.")] = 0.1,
    canary_model: Annotated[
        str, typer.Option(help="Declared model that serves the canary, and nothing else.")
    ] = "challenger",
    confidence: Annotated[float, typer.Option(min=0.5, help="Of the bounds that gate and roll back.")] = 0.98,
    unit_s: Annotated[
        float, typer.Option(help="A canary's user counts with the mean of so long after the first.")
    ] = 3600.0,
    watch_s: Annotated[
        float,
        typer.Option(
            min=0.0, help="Stay and look for so many seconds: promote a better canary, roll a worse model back."
        ),
    ] = 0.0,
    every_s: Annotated[float, typer.Option(min=1.0, help="Seconds between two looks.")] = 60.0,
    force: Annotated[bool, typer.Option("--force", help="Promote although a gate refuses; the log says so.")] = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Ask the gates, promote by stage; a canary that earns less ends by itself. Exit 1: refused or taken back."""
    config = settings_of(context).load()
    canary = msgspec.convert(
        {"model": canary_model, "share": share, "artefact": artefact, "unit_s": unit_s, "confidence": confidence},
        Canary,
    )

    async def run(commands: ModelCommands) -> tuple[list[Gate], bool, Verdict | None]:
        gates = await commands.gates(artefact, confidence=confidence)
        # A canary is there to find evidence: it starts unless the log speaks against the model.
        blocking = [
            g for g in gates if not g.passed and not (stage == "canary" and g.name == "advantage" and not g.is_refuted)
        ]
        if stage == "shadow" or (blocking and not force):
            return gates, not blocking, None
        why = "; ".join(
            [reason or "promoted", *(f"{g.name}: {g.reason}" for g in gates), *(["forced"] if blocking else [])]
        )
        if stage == "canary":
            await commands.start_canary(artefact, surface=surface, canary=canary, reason=why)
        else:
            await commands.promote(artefact, reason=why)
        if not watch_s:
            return gates, True, None
        watch = commands.watch_canary if stage == "canary" else commands.watch_promoted
        return gates, True, await watch(artefact, watch_s=watch_s, every_s=every_s, confidence=confidence)

    with running_store(config) as url:
        gates, passed, verdict = run_commands(config, url, run)
    if as_json:
        print(json_text({"artefact": artefact, "stage": stage, "passed": passed, "gates": gates, "verdict": verdict}))
    else:
        _show_gates(gates)
        print(f"{artefact}: {stage if passed else 'refused'}")
        if verdict is not None:
            print(f"{verdict.action}: {verdict.bounds}")
    if not passed or (verdict is not None and verdict.action in ("rollback", "refused")):
        sys.exit(1)


def rollback(
    context: typer.Context, model: Annotated[str, typer.Argument(help="The model.")], reason: Reason = ""
) -> None:
    """Let a model go on from what its last promotion replaced."""
    config = settings_of(context).load()
    with running_store(config) as url:
        done = run_commands(config, url, lambda commands: commands.roll_back(model, reason=reason or "asked for"))
    print(f"{model}: back to {done.artefact}")


def models(
    context: typer.Context,
    log: Annotated[
        bool, typer.Option("--log", help="Every change of model, policy and exploration, oldest first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List models, what they go on from, and the artefacts that could be promoted."""
    config = settings_of(context).load()
    with running_store(config) as url:
        if log:
            changes = run_commands(config, url, lambda commands: commands.changes())
            lines = [{"at": f"{p[0]}-{p[1]}-{p[2]}", **msgspec.to_builtins(change)} for p, change in changes]
            print(json_text(lines) if as_json else "\n".join(" ".join(map(str, line.values())) for line in lines))
            return
        lineage = run_commands(config, url, lambda commands: commands.lineage())
    if as_json:
        print(json_text(lineage))
        return
    for of_model in lineage:
        goes_on = f", goes on from {of_model.artefact}" if of_model.artefact else ""
        print(f"{of_model.model}: version {of_model.version}{goes_on}")
        for entry in of_model.artefacts:
            print(f"  {entry.manifest.artefact}  {', '.join(_facts(entry))}")


def _show_gates(gates: list[Gate]) -> None:
    table = Table("gate", "", "why")
    for gate in gates:
        table.add_row(gate.name, "passed" if gate.passed else "refused", gate.reason)
    Console().print(table)


def _facts(entry: ArtefactStage) -> list[str]:
    """Return what a line says of an artefact after its id."""
    m = entry.manifest
    facts = [m.kind, f"{m.n_rows} rows"]
    if (advantage := m.scores.get("advantage")) is not None:
        facts.append(f"advantage {interval_text(advantage)}")
    if m.warm:
        facts.append("no propensities")
    if m.parent:
        facts.append(f"parent {m.parent}")
    return [*facts, *([entry.stage] if entry.stage else [])]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(epilog="Example: hone promote 20261123T001500-1a2b3c4d --stage full")(promote)
    app.command(epilog="Example: hone rollback films --reason 'complaints'")(rollback)
    app.command(epilog="Example: hone models --json")(models)
