"""What the commands about models share: a connection, and how figures read."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from typing import TypeVar

from service.bootstrap import wall_clock_ms
from service.config import Config
from service.model_commands import ModelCommands, connected
from service.model_registry import Score

T = TypeVar("T")


def run_commands(config: Config, url: str, call: Callable[[ModelCommands], Awaitable[T]]) -> T:
    """Run one call on a store."""

    async def run() -> T:
        async with connected(config, url, clock=wall_clock_ms, author=getpass.getuser()) as commands:
            return await call(commands)

    return asyncio.run(run())


def interval_text(score: Score | None) -> str:
    """Return a figure with its interval, empty for none."""
    if score is None or score.value is None:
        return ""
    text = f"{score.value:.4f}"
    if score.low is not None and score.high is not None:
        text += f" [{score.low:.4f}, {score.high:.4f}]"
    return text + (" refused" if score.refusal else "")
