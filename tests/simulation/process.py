"""A process of the simulation: tasks that die together, at any of their effects on the outside."""

from __future__ import annotations

import asyncio
import contextvars
import errno
from collections.abc import Callable, Coroutine
from typing import Any

current: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Killed(BaseException):
    """The process ends here; nothing of it runs on."""


class Process:
    """Tasks with one fate.

    Attributes:
        name: Of the process.
        machine: Whose disk it writes, and whose power it loses.
        skew_ms: Of its clock.
        dies_at: The failpoint that kills it, if it comes to it.
        fails_at: The failpoint at which the disk is full once.
        died_at: The failpoints that have killed it.
        unexpected: Told of an exception that nobody in the process handled.
    """

    def __init__(self, name: str, machine: str, unexpected: Callable[[str, BaseException], None]) -> None:
        self.name = name
        self.machine = machine
        self.is_alive = False
        self.skew_ms = 0
        self.dies_at = ""
        self.fails_at = ""
        self.died_at: set[str] = set()
        self.unexpected = unexpected
        self.on_death: list[Callable[[], None]] = []
        self._running = asyncio.Event()
        # In the order they were started: the order of a set of tasks is another one in each run.
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._n_left = 0

    def begin(self) -> None:
        """Be alive, with no tasks yet."""
        self.is_alive = True
        self._n_left = 0
        self._running.set()

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task of this process; what it starts belongs to the process too."""
        context = contextvars.copy_context()
        context.run(current.set, self)
        task = asyncio.get_running_loop().create_task(coroutine, context=context)
        self.adopt(task)
        return task

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Take a task that this process's code has started."""
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def kill_after(self, n_effects: int) -> None:
        """Die at the n-th effect from now on."""
        self._n_left = n_effects

    def kill(self) -> None:
        """Die now. Tasks are told at their next turn; their effects are refused from now on."""
        self.is_alive = False
        self._running.set()
        me = asyncio.current_task()
        for task in list(self._tasks):
            if task is not me:
                task.cancel()
        self._tasks.clear()
        for close in self.on_death:
            close()
        self.on_death.clear()

    def pause(self) -> None:
        """Stop at the next effect, until `go_on`."""
        self._running.clear()

    def go_on(self) -> None:
        """End the pause."""
        self._running.set()

    async def until_running(self) -> None:
        """Wait for the end of a pause."""
        await self._running.wait()

    def is_last_effect(self) -> bool:
        """Count an effect; whether the process dies at it.

        Raises:
            Killed: the process is dead already.
        """
        if not self.is_alive:
            raise Killed(self.name)
        self._n_left -= 1
        return self._n_left == 0

    def reach(self) -> None:
        """Count an effect and die at it, if it is the one.

        Raises:
            Killed: the process is dead.
        """
        if self.is_last_effect():
            self.kill()
            raise Killed(self.name)

    def reach_point(self, name: str) -> None:
        """Die or fail at a failpoint, if it is the one."""
        if not self.is_alive:
            raise Killed(self.name)
        if name == self.dies_at:
            self.dies_at = ""
            self.died_at.add(name)
            self.kill()
            raise Killed(name)
        if name == self.fails_at:
            self.fails_at = ""
            raise OSError(errno.ENOSPC, "the disk is full", name)

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        """Return what runs."""
        return list(self._tasks)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Killed):
            self.unexpected(self.name, error)
