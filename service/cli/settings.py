"""What every command starts from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import typer

from service.config import Config, load_config


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of `hone` itself.

    Attributes:
        config_path: The file; None is the shipped one.
    """

    config_path: Path | None

    def load(self) -> Config:
        """Read the configuration with the environment over it.

        Raises:
            ConfigError: it cannot be used.
        """
        return load_config(self.config_path, os.environ)


def settings_of(context: typer.Context) -> Settings:
    """Return the settings that `hone` was called with."""
    settings: Settings = context.obj
    return settings


def with_http(config: Config, *, host: str | None, port: int | None) -> Config:
    """Return the configuration with another address."""
    changes = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    return msgspec.structs.replace(config, http=msgspec.structs.replace(config.http, **changes))
