"""The effective configuration of a running worker: what was declared, with live overrides laid over it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from service.config import Config, ConfigError, explorer_of
from service.messages import ConfigOverride
from service.rule_columns import attribute_kinds

CONFIG_STREAM = "hone:config"
# What decides a slate, and nothing that a learner reads: a model stays a function of its journal.
LIVE_KEYS = (
    "exploration",
    "rules",
    "campaigns",
    "sources",
    "n_candidates",
    "max_n",
    "seen",
    "fatigue",
    "age_gate",
    "deadline_ms",
    "canary",
)


@dataclass(frozen=True, slots=True)
class Effective:
    """One effective configuration.

    Attributes:
        config: It.
        version: Its digest, as logged.
    """

    config: Config
    version: str


class LiveConfig:
    """Applies the entries of the configuration stream in order; the last word on a key counts.

    Args:
        declared: from the file and the environment.
    """

    def __init__(self, declared: Config) -> None:
        self._declared = declared
        self._overrides: dict[str, ConfigOverride] = {}
        self.current = Effective(declared, declared.version)

    @property
    def overrides(self) -> tuple[ConfigOverride, ...]:
        """Return what is laid over the declared configuration, in the order of application."""
        return tuple(self._overrides.values())

    def apply(self, override: ConfigOverride) -> None:
        """Make an override effective; one without a value takes those of its key and below away.

        Raises:
            ConfigError: the key is not live or the value cannot be used; nothing changed.
        """
        inside = f"{override.key}."
        kept = {k: o for k, o in self._overrides.items() if k != override.key and not k.startswith(inside)}
        if override.value is not None:
            kept[override.key] = override
        _check_key(self._declared, override.key)
        config = _overlay(self._declared, kept)
        _check_prepared(self._declared, config)
        self._overrides = kept
        self.current = Effective(config, config.version)


def value_at(config: Config, key: str) -> Any:  # noqa: ANN401 - whatever the key holds
    """Return the value of a dotted key as plain types.

    Raises:
        ConfigError: there is no such key.
    """
    value: Any = _tree(config)
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ConfigError(f"{key}: unknown key {part!r}")
        value = value[part]
    return value


def _check_key(declared: Config, key: str) -> None:
    head, _, rest = key.partition(".")
    surface, _, of_surface = rest.partition(".")
    if head != "surfaces" or of_surface.split(".")[0] not in LIVE_KEYS:
        raise ConfigError(f"{key}: cannot be changed live; surfaces.NAME.KEY can, with KEY one of {sorted(LIVE_KEYS)}")
    if surface not in declared.surfaces:
        raise ConfigError(f"{key}: unknown surface {surface!r}, declared are {sorted(declared.surfaces)}")


def _check_prepared(declared: Config, config: Config) -> None:
    """Refuse what running workers and learners did not prepare for."""
    prepared = attribute_kinds(declared)
    for name, surface in config.surfaces.items():
        if explorer_of(surface) not in ("", explorer_of(declared.surfaces[name])):
            raise ConfigError(f"surfaces.{name}.exploration: a VW explorer is learned, so the file must declare it")
    missing = sorted(set(attribute_kinds(config)) - set(prepared))
    if missing:
        raise ConfigError(f"rules read attributes {missing}, which no declared rule reads; declare such a rule first")


def _overlay(declared: Config, overrides: dict[str, ConfigOverride]) -> Config:
    tree = _tree(declared)
    for key, override in overrides.items():
        *path, last = key.split(".")
        section = tree
        for part in path:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{key}: {part!r} is not a section")
        section[last] = override.value
    try:
        return msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{', '.join(overrides)}: {error}") from error


def _tree(config: Config) -> dict[str, Any]:
    tree: dict[str, Any] = msgspec.to_builtins(config, builtin_types=(datetime,))
    return tree
