"""Write a recommendation into the live configuration of a surface, each key an audit entry."""

from __future__ import annotations

from typing import Any

import msgspec

from bandit.exploration import Epsilon
from service.config import SurfaceConfig
from service.config_writer import ConfigWriter
from service.messages import ConfigChange
from simulators.tune.candidates import Candidate, discovery_share_of


def live_changes(name: str, surface: SurfaceConfig, chosen: Candidate) -> list[tuple[str, Any]]:
    """Return the keys to set, with their values, so that a surface explores as chosen; none when it does already.

    >>> from bandit.exploration import Greedy
    >>> live_changes("home", SurfaceConfig(exploration=Epsilon(rate=0.1)), Candidate(Epsilon(rate=0.2)))
    [('surfaces.home.exploration.rate', 0.2)]
    """
    changes: list[tuple[str, Any]] = []
    now, wanted = surface.exploration, chosen.exploration
    if now != wanted:
        is_rate = isinstance(now, Epsilon) and isinstance(wanted, Epsilon)
        if is_rate and msgspec.structs.replace(now, rate=wanted.explore_rate) == wanted:
            changes.append((f"surfaces.{name}.exploration.rate", wanted.explore_rate))
        else:
            changes.append((f"surfaces.{name}.exploration", msgspec.to_builtins(wanted)))
    if discovery_share_of(surface.rules) != chosen.discovery_share:
        changes.append((f"surfaces.{name}.rules", msgspec.to_builtins(chosen.rules_from(surface.rules))))
    return changes


async def apply_choice(
    writer: ConfigWriter, name: str, chosen: Candidate, *, author: str, reason: str
) -> list[ConfigChange]:
    """Set what differs from what is effective now, and return the audit entries.

    Raises:
        ConfigError: a value cannot be used live; what was set before it stays.
    """
    surface = (await writer.effective()).current.config.surfaces[name]
    return [
        await writer.put(key, value, author=author, reason=reason) for key, value in live_changes(name, surface, chosen)
    ]


def command_for(name: str, surface: SurfaceConfig, chosen: Candidate) -> str:
    """Return the commands that do the same by hand; empty when there is nothing to change."""
    return " && ".join(
        f"hone config set {key} '{msgspec.json.encode(value).decode()}'"
        for key, value in live_changes(name, surface, chosen)
    )
