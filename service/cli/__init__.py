"""The `hone` command. Packages above the service add their commands through the entry-point group `hone.commands`."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from retrieval.manifest import BundleError
from service.cli import (
    catalogue,
    configuration,
    export,
    features,
    health,
    inspection,
    models,
    offline,
    processes,
    retrain,
)
from service.cli.settings import Settings
from service.config import ConfigError
from service.errors import Fenced, InvalidRequest, NotFound, StoreUnavailable
from service.failpoints import arm_from_environment

app = typer.Typer(
    name="hone",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Real-time personalisation.",
)


@app.callback()
def _main(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", envvar="HONE_CONFIG", help="hone.toml; the film demo's by default.")
    ] = None,
) -> None:
    """Retrieve, rank with a contextual bandit, learn within seconds, log exact propensities."""
    arm_from_environment(os.environ)
    context.obj = Settings(config_path=config)


for register in (
    processes.register,
    catalogue.register,
    inspection.register,
    features.register,
    health.register,
    export.register,
    retrain.register,
    models.register,
):
    register(app)
app.add_typer(configuration.config_app, name="config")
app.add_typer(offline.embeddings, name="embeddings")
app.add_typer(offline.index, name="index")
for entry_point in entry_points(group="hone.commands"):
    app.add_typer(entry_point.load(), name=entry_point.name)


def main() -> None:
    """Run the command; what the user can mend is one line and exit code 1 (2 for the configuration)."""
    try:
        app()
    except ConfigError as error:
        _fail(str(error), code=2)
    except (BundleError, StoreUnavailable, Fenced, InvalidRequest, NotFound, OSError, ValueError) as error:
        _fail(str(error), code=1)


def _fail(message: str, *, code: int) -> None:
    print(f"hone: {message}", file=sys.stderr)
    sys.exit(code)
