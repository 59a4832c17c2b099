"""One write for all who want to write at once, as databases do with their logs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class GroupCommit(Generic[T]):
    """Commits what came while the commit before ran; one that finds nobody waiting is begun at once.

    Args:
        commit: commits parts and returns for each what went wrong with it, or None. What it raises goes to all.
    """

    def __init__(self, commit: Callable[[Sequence[T]], Awaitable[Sequence[Exception | None]]]) -> None:
        self._commit = commit
        self._waiting: list[tuple[T, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def add(self, part: T) -> None:
        """Return once a part is committed. A caller that is cancelled takes nobody else's part with it.

        Raises:
            Exception: what went wrong with it.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((part, done))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        await done

    async def _run(self) -> None:
        group: list[tuple[T, asyncio.Future[None]]] = []
        try:
            while self._waiting:
                group, self._waiting = self._waiting, []
                for (_, done), error in zip(group, await self._outcomes(group), strict=True):
                    if done.done():
                        continue
                    if error is None:
                        done.set_result(None)
                    else:
                        done.set_exception(error)
        finally:
            self._task = None
            # Cancelled, or the process ends: nobody may wait for ever, of this group or of the next.
            for _, done in (*group, *self._waiting):
                done.cancel()
            self._waiting = []

    async def _outcomes(self, group: Sequence[tuple[T, asyncio.Future[None]]]) -> Sequence[Exception | None]:
        try:
            return await self._commit([part for part, _ in group])
        except Exception as error:
            return [error] * len(group)
