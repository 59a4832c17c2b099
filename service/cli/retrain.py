"""`hone retrain`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from service.adapters.embedded_store import running_store
from service.bootstrap import wall_clock_ms
from service.cli.model_output import interval_text, run_commands
from service.cli.offline import progress_bar
from service.cli.output import json_text, unix_ms
from service.cli.settings import settings_of
from service.config import Config
from service.errors import InvalidRequest
from service.model_registry import Manifest
from service.offline import TrainingConfig
from service.retrain import (
    Progress,
    Trained,
    best_of,
    fetch_item_history,
    plan_retrain,
    run_search,
    search_configurations,
)
from service.retrain_report import write_report
from service.retrain_training import RetrainConfiguration, Weighting
from service.retrain_warm import Catalogue, current_items, read_history, train_warm, warm_manifest
from service.training_rows import Span

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def retrain(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="A declared model that ranks.")],
    begin: Annotated[
        str | None, typer.Option("--from", help="First decision time, ISO 8601; UTC without a zone.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="End of the decision times.")] = None,
    weights: Annotated[
        Weighting, typer.Option(help="Of the training rows; none is propensity 1 and repeats the log's popularity.")
    ] = "ips",
    configurations: Annotated[
        Path | None, typer.Option(help="JSON list of {learning_rate, interactions, clip, passes}.")
    ] = None,
    search: Annotated[int, typer.Option(min=1, help="Configurations to draw, the model's own first.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Configurations trained at the same time.")] = os.cpu_count() or 1,
    holdout: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of the decisions, the latest, to score on; 0 trains on all.")
    ] = 0.2,
    warm: Annotated[
        bool, typer.Option("--warm", help="From interactions without propensities, for a first day.")
    ] = False,
    surface: Annotated[str, typer.Option(help="Surface whose candidates a warm model is for.")] = "home",
    interactions: Annotated[
        str, typer.Option(help="Of --warm: CSV or Parquet with user_id, item_id, value, at_unix_ms; or demo.")
    ] = "demo",
    report: Annotated[Path | None, typer.Option(help="HTML file to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train from the archive, score on a later window, and store the best as an artefact to promote."""
    config = settings_of(context).load()
    with running_store(config) as url, progress_bar("Training") as progress:
        if warm:
            made = _warm(config, url, model, surface=surface, interactions=interactions, progress=progress)
            if report is not None:
                write_report(report, manifest=made, trained=[], plan=None)
            _show_made(made, [], as_json=as_json)
            return
        span = Span(
            Span().from_ms if begin is None else unix_ms("--from", begin),
            Span().to_ms if end is None else unix_ms("--to", end),
        )
        plan = plan_retrain(config, model, span=span, weighting=weights, holdout_share=holdout)
        chosen = _configurations(configurations) or search_configurations(config, model, n=search)
        trained = run_search(config, url, plan, chosen, jobs=min(jobs, len(chosen)), progress=progress)
        made = run_commands(
            config, url, lambda commands: commands.add_retrained(best_of(trained), plan, n_searched=len(chosen))
        )
    if report is not None:
        write_report(report, manifest=made, trained=trained, plan=plan)
    _show_made(made, trained, as_json=as_json)


def _warm(config: Config, url: str, model: str, *, surface: str, interactions: str, progress: Progress) -> Manifest:
    """Train a model from interactions without propensities and store it."""
    if config.surfaces.get(surface) is None or config.surfaces[surface].model != model:
        raise InvalidRequest(f"surface {surface!r} is not declared with model {model!r}", path="--surface")
    catalogue = Catalogue(config, current_items(fetch_item_history(url)))
    is_demo = interactions == "demo"
    path = config.data_path / "demo" / "interactions.parquet" if is_demo else Path(interactions)
    history = read_history(path, catalogue, positive_from=TrainingConfig().positive_from if is_demo else 1.0)
    learner, n_rows, scores = train_warm(config, model, history, catalogue, surface=surface, progress=progress)
    manifest, _ = warm_manifest(
        config, model, learner, history=history, n_rows=n_rows, scores=scores, now_ms=wall_clock_ms()
    )
    return run_commands(config, url, lambda commands: commands.add_warm(manifest, learner))


def _configurations(path: Path | None) -> list[RetrainConfiguration]:
    if path is None:
        return []
    try:
        found = msgspec.json.decode(path.read_bytes(), type=list[RetrainConfiguration])
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"--configurations {path}: {error}", path="--configurations") from error
    if not found:
        raise InvalidRequest(f"{path} lists no configuration", path="--configurations")
    return found


def _show_made(made: Manifest, trained: list[Trained], *, as_json: bool) -> None:
    if as_json:
        shown = [
            {
                "configuration": t.configuration,
                "n_rows": t.n_rows,
                "loss": t.progressive_loss,
                "figures": t.figures,
                "validation": t.validation,
                "n_skipped": t.n_skipped,
            }
            for t in trained
        ]
        print(json_text({"artefact": made, "configurations": shown}))
        return
    table = Table("rate", "clip", "passes", "rows", "dr", "advantage", "ess", "skipped")
    for t in trained:
        dr, ess = t.figures.get("dr"), t.figures.get("ess")
        c = t.configuration
        table.add_row(
            f"{c.learning_rate:g}",
            f"{c.clip:g}",
            str(c.passes),
            str(t.n_rows),
            interval_text(dr),
            interval_text(t.figures.get("advantage")),
            "" if ess is None else f"{ess.value:.0f}",
            str(t.n_skipped),
        )
    if trained:
        Console().print(table)
    print(
        f"{made.artefact}: {made.n_rows} rows{', warm: no propensities' if made.warm else ''}; "
        f"next: hone promote {made.artefact}"
    )


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(epilog="Example: hone retrain --model films --search 8 --report retrain.html")(retrain)
