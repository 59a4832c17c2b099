"""`hone bench` and `hone load`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from service.cli.settings import settings_of
from service.logs import configure_logs
from simulators.benchmarks.closed_loop import bench_closed_loop
from simulators.benchmarks.embeddings import bench_embeddings
from simulators.benchmarks.learning import bench_learning
from simulators.benchmarks.model_settings import bench_model_settings
from simulators.benchmarks.ranking import bench_ranking
from simulators.benchmarks.report import save_result
from simulators.benchmarks.retraining import bench_retraining
from simulators.benchmarks.retrieval import bench_retrieval, bench_retrieval_large
from simulators.benchmarks.service import bench_service
from simulators.benchmarks.simulators import bench_simulators
from simulators.load import closed_loop, open_loop, recommend_requests

bench = typer.Typer(no_args_is_help=True, help="Benchmarks: run now, print, save JSON under tests/benchmarks/results.")
load = typer.Typer(invoke_without_command=True, help="Send load to a running service.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@bench.callback()
def _bench() -> None:
    """Benchmarks: run now, print, save JSON under tests/benchmarks/results."""


@bench.command("service", epilog="Example: hone bench service --json")
def service_command(context: typer.Context, as_json: AsJson = False) -> None:
    """Latency and throughput of a whole stack on the demo data."""
    settings = settings_of(context)
    with Console(stderr=True).status("starting") as status:
        figures = bench_service(settings.load(), settings.config_path, status.update)
    _report("service", figures, as_json=as_json)


@bench.command("learning", epilog="Example: hone bench learning --json")
def learning_command(context: typer.Context, as_json: AsJson = False) -> None:
    """Join, learn and publish on one core, and how soon a reward is served."""
    settings = settings_of(context)
    with Console(stderr=True).status("starting") as status:
        figures = bench_learning(settings.load(), settings.config_path, status.update)
    _report("learning", figures, as_json=as_json)


@bench.command("ranking", epilog="Example: hone bench ranking --json")
def ranking_command(as_json: AsJson = False) -> None:
    """Scoring beside VW's own predict, and the slate draw with every rule on."""
    with Console(stderr=True).status("starting") as status:
        figures = bench_ranking(status.update)
    _report("ranking", figures, as_json=as_json)


@bench.command("retraining", epilog="Example: hone bench retraining --json")
def retraining_command(as_json: AsJson = False) -> None:
    """How well a model ranks that was retrained on a popularity-biased log, by the weights of its rows."""
    with Console(stderr=True).status("starting") as status:
        figures = bench_retraining(status.update)
    _report("retraining", figures, as_json=as_json)


@bench.command("model-settings", epilog="Example: hone bench model-settings --seeds 8 --json")
def model_settings_command(
    seeds: Annotated[int, typer.Option(min=2, help="Runs of each.")] = 5,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    as_json: AsJson = False,
) -> None:
    """Learning rate, its decay and the baseline of a model, in the closed loop of several worlds."""
    with Console(stderr=True).status("starting") as status:
        figures = bench_model_settings(status.update, n_seeds=seeds, jobs=jobs)
    _report("model_settings", figures, as_json=as_json)


@bench.command("simulators", epilog="Example: hone bench simulators --obp-python obp/bin/python --json")
def simulators_command(
    n_rows: Annotated[int, typer.Option(min=100_000, help="Rows of the log that is evaluated.")] = 10_000_000,
    obp_python: Annotated[
        Path | None, typer.Option(help="Interpreter that has the Open Bandit Pipeline; left out without one.")
    ] = None,
    loop_only: Annotated[bool, typer.Option("--loop-only", help="The closed loop alone.")] = False,
    evaluation_only: Annotated[bool, typer.Option("--evaluation-only", help="The evaluation alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Decisions a second of the closed loop; rows a second of off-policy evaluation beside the Open Bandit Pipeline."""
    configure_logs("warning", process="bench")
    with Console(stderr=True).status("starting") as status:
        # First, while this process is small: the system counts its peak as one of the processes that it starts.
        evaluation = {} if loop_only else bench_simulators(status.update, n_rows=n_rows, pipeline=obp_python)
        loop = {} if evaluation_only else {"closed_loop": bench_closed_loop(status.update)}
    name = "closed_loop" if loop_only else "evaluation" if evaluation_only else "simulators"
    _report(name, evaluation | loop, as_json=as_json)


@bench.command("retrieval", epilog="Example: hone bench retrieval --n-items 1000000 --json")
def retrieval_command(
    n_items: Annotated[int, typer.Option(min=10_000, help="Vectors, of 64 dimensions.")] = 1_000_000,
    large: Annotated[bool, typer.Option("--large", help="The quantised index alone, on 10 million vectors.")] = False,
    as_json: AsJson = False,
) -> None:
    """A thousand neighbours: recall, latency, build and bytes of each index, beside the libraries called directly."""
    with Console(stderr=True).status("starting") as status:
        if large:
            figures = bench_retrieval_large(status.update)
        else:
            figures = bench_retrieval(n_items, status.update)
    _report("retrieval_large" if large else "retrieval", figures, as_json=as_json)


@bench.command("embeddings", epilog="Example: hone bench embeddings --json")
def embeddings_command(
    n_users: Annotated[int, typer.Option(min=100, help="Users.")] = 1_000_000,
    n_items: Annotated[int, typer.Option(min=100, help="Items.")] = 1_000_000,
    n_interactions: Annotated[int, typer.Option(min=1000, help="Interactions, some of them repeated.")] = 20_000_000,
    rounds: Annotated[int, typer.Option(min=3, help="Rounds of ALS.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Training at scale, killed once and started again: time of a round, peak memory."""
    with Console(stderr=True).status("starting") as status:
        figures = bench_embeddings(n_users, n_items, n_interactions, rounds, status.update)
    _report("embeddings", figures, as_json=as_json)


@load.callback(epilog="Example: hone load --url http://127.0.0.1:8080 --rate 100 --seconds 30")
def load_command(
    url: Annotated[str, typer.Option(help="Of the service.")] = "http://127.0.0.1:8080",
    surface: Annotated[str, typer.Option(help="Surface to ask.")] = "home",
    rate: Annotated[float, typer.Option(help="Requests a second, open loop; 0 is a closed loop.")] = 50.0,
    clients: Annotated[int, typer.Option(help="Clients of the closed loop.")] = 4,
    seconds: Annotated[float, typer.Option(help="How long.")] = 10.0,
    n: Annotated[int, typer.Option(help="Slots.")] = 10,
) -> None:
    """Send recommendations at a constant rate (open loop), or as fast as some clients can (rate 0)."""
    requests = recommend_requests(surface, n=n, n_users=900)
    if rate > 0:
        result = asyncio.run(open_loop(url, requests, rate=rate, seconds=seconds))
    else:
        result = asyncio.run(closed_loop(url, requests, n_clients=clients, seconds=seconds))
    typer.echo(orjson.dumps(result.summary(), option=orjson.OPT_INDENT_2).decode())


def _report(name: str, figures: dict[str, Any], *, as_json: bool) -> None:
    path = save_result(name, figures)
    typer.echo(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode() if as_json else _lines(figures))
    typer.echo(f"saved {path}", err=True)


def _lines(figures: dict[str, Any], indent: str = "") -> str:
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", _lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name:<24} {value}")
    return "\n".join(lines)
