"""`hone config check`."""

from __future__ import annotations

import msgspec
import typer

from service.cli.settings import settings_of

config_app = typer.Typer(no_args_is_help=True, help="The configuration.")


@config_app.callback()
def _config() -> None:
    """The configuration."""


@config_app.command("check", epilog="Example: hone --config hone.toml config check")
def check(context: typer.Context) -> None:
    """Check the configuration and print the effective one as JSON."""
    config = settings_of(context).load()
    safe = msgspec.structs.replace(
        config, salt="(set)" if config.salt else "", artefact_key="(set)" if config.artefact_key else ""
    )
    print(msgspec.json.format(msgspec.json.encode(safe), indent=2).decode())


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(config_app, name="config")
