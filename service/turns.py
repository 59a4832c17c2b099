"""Long work on the event loop in short turns, so that other requests are answered meanwhile."""

from __future__ import annotations

import asyncio

TURN_S = 0.002


class Turns:
    """Counts how long the present turn is; make one where the work begins."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()

    async def rest_if_due(self) -> None:
        """Let others have the loop when the turn was long enough."""
        if self._loop.time() - self._began_s > TURN_S:
            await asyncio.sleep(0)
            self._began_s = self._loop.time()
