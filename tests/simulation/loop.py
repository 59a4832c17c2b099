"""A deterministic event loop: time moves only when nobody can run, and who runs next is drawn from a seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any


class Deadlock(Exception):
    """Nobody can run and nobody waits for a time."""


class _NoSockets:
    """Stands where a loop waits for sockets: moves time, and shuffles who is ready."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        loop = self._loop
        if timeout is None:
            raise Deadlock
        loop.now_s += timeout
        if len(loop._ready) > 1:
            ready = list(loop._ready)
            loop.rng.shuffle(ready)
            loop._ready.clear()
            loop._ready.extend(ready)
        return []


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs coroutines without real time or real waiting.

    Args:
        rng: draws the order of ready tasks and how long threads take.
    """

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng
        self.now_s = 0.0
        self._clock_resolution = 1e-6
        self._selector = _NoSockets(self)

    def time(self) -> float:
        return self.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Run it in one go, a while later."""
        done: asyncio.Future[Any] = self.create_future()

        def run() -> None:
            if done.cancelled():
                return
            try:
                done.set_result(func(*args))
            except BaseException as error:
                done.set_exception(error)

        self.call_later(self.rng.random() * 0.02, run)
        return done

    def _process_events(self, event_list: Any) -> None:
        """Have none."""

    def _write_to_self(self) -> None:
        """Nobody is outside."""
