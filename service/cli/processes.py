"""`hone serve`, `hone api`, `hone learn`, `hone archive`."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.settings import settings_of, with_http
from service.logs import configure_logs
from service.processes import run_api, run_archiver, run_learner
from service.supervise import Supervisor

Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(help="Port; 0 picks a free one.")]


def serve(context: typer.Context, host: Host = None, port: Port = None) -> None:
    """Run the whole stack: store, API workers, learner, archiver."""
    settings = settings_of(context)
    config = with_http(settings.load(), host=host, port=port)
    configure_logs(config.log_level, process="serve")
    Supervisor(config=config, config_path=settings.config_path, on_ready=_announce).run()


def api(
    context: typer.Context,
    host: Host = None,
    port: Port = None,
    worker_index: Annotated[int, typer.Option(help="Names the worker in logs and responses.")] = 0,
) -> None:
    """Run one API worker; several may share a port."""
    run_api(with_http(settings_of(context).load(), host=host, port=port), worker_index=worker_index)


def learn(context: typer.Context) -> None:
    """Run the learner: the one writer of every model."""
    run_learner(settings_of(context).load())


def archive(context: typer.Context) -> None:
    """Run the archiver: journal and outcomes to Parquet; merges, expires and erases what is archived."""
    run_archiver(settings_of(context).load())


def _announce(url: str) -> None:
    print(f"Hone is ready.\n  demo page  {url}/\n  API docs   {url}/docs\n  metrics    {url}/metrics", flush=True)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(epilog="Example: HONE_PORT=9000 hone serve")(serve)
    app.command(epilog="Example: HONE_REDIS_URL=redis://localhost:6379/0 hone api --port 8080")(api)
    app.command(epilog="Example: HONE_REDIS_URL=redis://localhost:6379/0 hone learn")(learn)
    app.command(epilog="Example: HONE_REDIS_URL=redis://localhost:6379/0 hone archive")(archive)
