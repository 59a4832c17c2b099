"""`hone simulate`: a world's users against a service in this process, or against a running one."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bandit.exploration import Exploration
from bandit.explorer import parse_explorer_arguments
from service.logs import configure_logs
from simulators.closed_loop import OnProgress, run_loop
from simulators.datasets.fetch import FetchError
from simulators.http_loop import run_over_http
from simulators.loop_config import ServiceSettings, build_config, config_text
from simulators.loop_curve import LoopRun
from simulators.worlds.named import QUICK_SETTINGS, TRAINED_SETTINGS, WORLDS
from simulators.worlds.world import WorldSpec

simulate = typer.Typer(
    invoke_without_command=True, help="Let users of a known world use a service, and watch it learn."
)

_MAX_CANDIDATES = 200
_COLUMNS = {
    "n_decisions": "decisions",
    "value": "value",
    "optimal": "best",
    "regret": "regret",
    "skip_rate": "skips",
    "coverage": "coverage",
    "explored_share": "explored",
    "discovery_share": "discovery",
    "unproven_share": "unproven",
    "discovery_hit_rate": "hit rate",
    "new_good_share": "new good",
    "found_share": "found",
    "entropy": "entropy",
}


class WorldName(StrEnum):
    """Worlds that can be simulated."""

    SYNTHETIC = "synthetic"
    CLUSTERED = "clustered"
    CHURNING = "churning"
    MOVIELENS = "movielens"


class PolicyKind(StrEnum):
    """Policies of the simulated service."""

    GREEDY = "greedy"
    EPSILON = "epsilon"
    SOFTMAX = "softmax"
    SQUARECB = "squarecb"
    VW = "vw"


@simulate.callback(epilog="Example: hone simulate --world churning --decisions 5000 --rate 0.1 --out var/simulated")
def simulate_command(
    world: Annotated[WorldName, typer.Option(help="Who comes, what there is and what is liked.")] = WorldName.SYNTHETIC,
    decisions: Annotated[int, typer.Option(min=1, help="How many requests.")] = 5_000,
    seed: Annotated[int, typer.Option(help="Of users, items, visits, and of the simulated service.")] = 1,
    exploration: Annotated[PolicyKind, typer.Option(help="Policy of the simulated service.")] = PolicyKind.EPSILON,
    rate: Annotated[float | None, typer.Option(help="Exploration rate of epsilon.")] = None,
    shortlist: Annotated[int | None, typer.Option(help="Size of the policy's shortlist.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of epsilon's and softmax's softmax.")] = None,
    uniform_share: Annotated[float | None, typer.Option(help="Share of the uniform floor.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Of squarecb.")] = None,
    vw: Annotated[str, typer.Option(help="VW's arguments of vw, such as --cb_explore_adf --bag 5.")] = "",
    vw_learning_rate: Annotated[float, typer.Option(help="Of that explorer's own model.")] = 0.5,
    discovery_share: Annotated[float, typer.Option(help="Share of the slots reserved for discovery.")] = 0.0,
    vectors: Annotated[
        bool | None,
        typer.Option(
            "--vectors/--no-vectors", help="Train item vectors on clicks. [default: with a --discovery-share]"
        ),
    ] = None,
    candidates: Annotated[int, typer.Option(help="Candidates of a request; 0 takes all items, 200 at the most.")] = 0,
    learning_rate: Annotated[float, typer.Option(help="Of the simulated service's model.")] = 0.05,
    power_t: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Of the same: how far a feature's rate falls as it learns.")
    ] = 0.0,
    baseline: Annotated[
        bool, typer.Option(help="Whether the model has terms that are the same for every action of a request.")
    ] = True,
    every: Annotated[int, typer.Option(min=1, help="Decisions between two lines of the curve.")] = 500,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the log (the archive of a service), its items, hone.toml and the figures."),
    ] = None,
    url: Annotated[str, typer.Option(help="A running service to use instead; policy and model are its own.")] = "",
    surface: Annotated[str, typer.Option(help="With --url: which surface.")] = "home",
    speed: Annotated[float, typer.Option(help="With --url: simulated seconds in a real one.")] = 10.0,
    keep_items: Annotated[bool, typer.Option("--keep-items", help="With --url: leave the items there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Print how reward, regret, skips, coverage and new good items found go on, beside what the best slates are worth.

    The best is known: worlds know what everybody likes. With --url the world's items are put into a running service and
    taken out again, and requests and events are sent over HTTP.
    """
    configure_logs("warning", process="simulate")
    if url and out is not None:
        raise typer.BadParameter("a running service keeps its own log: use --out without --url")
    given = {"rate": rate, "shortlist": shortlist, "temperature": temperature, "uniform_share": uniform_share}
    policy = _policy(exploration, {**given, "gamma": gamma}, vw=vw)
    spec = WORLDS[world.value]()
    try:
        with _progress(decisions) as move:
            if url:
                run = asyncio.run(
                    run_over_http(
                        spec,
                        url=url,
                        surface=surface,
                        n_decisions=decisions,
                        seed=seed,
                        every=every,
                        speed=speed,
                        keep_items=keep_items,
                        on_progress=move,
                    )
                )
            else:
                n_candidates = candidates or min(spec.churn.n_live, _MAX_CANDIDATES)
                has_vectors = discovery_share > 0.0 if vectors is None else vectors
                usual = TRAINED_SETTINGS if has_vectors else QUICK_SETTINGS
                settings = replace(
                    usual,
                    n_candidates=n_candidates,
                    learning_rate=learning_rate,
                    power_t=power_t,
                    baseline=baseline,
                    explorer=vw,
                    explorer_learning_rate=vw_learning_rate,
                )
                run = _in_process(
                    spec,
                    policy=policy,
                    settings=settings,
                    out=out,
                    n_decisions=decisions,
                    seed=seed,
                    every=every,
                    discovery_share=discovery_share,
                    on_progress=move,
                )
    except FetchError as error:
        typer.echo(f"hone: {error}", err=True)
        raise typer.Exit(1) from error
    figures = {"world": world.value, "seed": seed, "decisions": decisions, **_service(url, policy, vw), **run.figures()}
    if out is not None:
        (out / "simulation.json").write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2) + b"\n")
    if as_json:
        typer.echo(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode())
    else:
        _show(run)


def _policy(kind: PolicyKind, given: dict[str, Any], *, vw: str) -> Exploration:
    """Return the policy; a parameter that it does not have is an error of usage."""
    if (kind is PolicyKind.VW) != bool(vw):
        raise typer.BadParameter("--exploration vw and --vw ARGUMENTS go together")
    fields = {name: value for name, value in given.items() if value is not None}
    if vw:
        fields["model"] = "explorer"
        try:
            parse_explorer_arguments(vw)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    try:
        policy: Exploration = msgspec.convert({"kind": kind.value, **fields}, Exploration)
        return policy
    except msgspec.ValidationError as error:
        raise typer.BadParameter(f"exploration {kind.value}: {error}") from error


def _in_process(
    spec: WorldSpec,
    *,
    policy: Exploration,
    settings: ServiceSettings,
    out: Path | None,
    n_decisions: int,
    seed: int,
    every: int,
    discovery_share: float,
    on_progress: OnProgress,
) -> LoopRun:
    run = partial(
        run_loop,
        spec,
        exploration=policy,
        n_decisions=n_decisions,
        seed=seed,
        every=every,
        discovery_share=discovery_share,
        settings=settings,
        on_progress=on_progress,
    )
    if out is None:
        return run()
    if (out / "archive").exists():
        raise FileExistsError(f"{out} holds a log already: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    config = build_config(spec, exploration=policy, discovery_share=discovery_share, settings=settings)
    (out / "hone.toml").write_text(config_text(config, data_dir=str(out)), encoding="utf-8")
    # A log does not hold the items that were not shown; who scores its candidates anew needs them.
    with (out / "items.ndjson").open("wb") as file:
        return run(
            archive_folder=out / "archive",
            on_items=lambda items: file.writelines(msgspec.json.encode(item) + b"\n" for item in items),
        )


def _service(url: str, policy: Exploration, vw: str) -> dict[str, Any]:
    if url:
        return {"url": url}
    return {"exploration": msgspec.to_builtins(policy), **({"explorer": vw} if vw else {})}


def _show(run: LoopRun) -> None:
    typer.echo("".join(f"{title:>11}" for title in _COLUMNS.values()))
    curves = [getattr(run, name).tolist() for name in _COLUMNS]
    for row in zip(*curves, strict=True):
        typer.echo("".join(f"{'' if math.isnan(number) else f'{number:,.4g}':>11}" for number in row))
    typer.echo(f"{run.n_decisions[-1]:,} decisions, {run.n_events:,} events, {run.decisions_per_s:,.0f} decisions/s")


@contextmanager
def _progress(total: int) -> Iterator[OnProgress]:
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bars:
        task = bars.add_task("simulating", total=total)
        yield lambda done: bars.update(task, completed=done)
