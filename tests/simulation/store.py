"""The store of the simulation: the ports in memory behind a network that delays, loses answers and goes away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from service.adapters.memory_store import MemoryChangeLog, MemoryJournal, MemoryModelStore, MemoryUserStates
from service.adapters.memory_streams import MemoryStore
from service.config import StoreConfig
from service.errors import Fenced, StoreUnavailable
from tests.simulation.history import History
from tests.simulation.process import Process

# These reach the store even when their process dies on the way.
_WRITES = frozenset(
    "ship append trim take_epoch publish hold_lease release_lease save_checkpoint publish_delta publish_snapshot"
    " add_interactions add_impressions".split()
)
# These ask nobody.
_PLAIN = frozenset({"partition_of", "n_partitions", "weights_stream"})
_APPENDS = frozenset({"publish", "publish_delta"})
_FENCED = frozenset("publish hold_lease release_lease save_checkpoint publish_delta publish_snapshot".split())


class _Recorded(MemoryStore):
    """Keeps every entry that was ever in a stream."""

    def __init__(self, clock: Callable[[], int], history: History) -> None:
        super().__init__(clock)
        self._history = history

    def add(self, stream: str, payload: bytes) -> str:
        entry_id = super().add(stream, payload)
        self._history.streams.setdefault(stream, []).append((entry_id, payload))
        return entry_id


class SimulatedStore:
    """What all processes share.

    Attributes:
        is_away: Whether every call is refused.
        flakiness: Share of the calls that fail, before they happen or after.
    """

    def __init__(self, clock: Callable[[], int], history: History, rng: random.Random, *, n_partitions: int) -> None:
        memory = _Recorded(clock, history)
        self.adapters = {
            "journal": MemoryJournal(memory, n_partitions=n_partitions),
            "models": MemoryModelStore(memory),
            "users": MemoryUserStates(memory, StoreConfig()),
            "log": MemoryChangeLog(memory),
        }
        self.is_away = False
        self.flakiness = 0.0
        self.history = history
        self.rng = rng

    def of(self, process: Process, port: str) -> Any:
        """Return a port as a process sees it."""
        return _Remote(self, process, self.adapters[port])

    async def take(self, adapter: Any, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Do a write, on time or late, and record it."""
        await asyncio.sleep(self.rng.choice([0.0, 0.0005, 0.003, 0.02]))
        self._fail_before()
        if name in ("ship", "append") and self.rng.random() < self.flakiness:
            # The connection broke in the middle of a pipeline.
            some = arguments[-1][: self.rng.randrange(len(arguments[-1]) + 1)]
            await getattr(adapter, name)(*arguments[:-1], some)
            raise StoreUnavailable("broke in the middle")
        # An append happens at once and then wakes readers; everything else waits first.
        n_before = len(self.history.fenced), len(self.history.published)
        if name in _APPENDS:
            self._record(name, arguments)
        try:
            answer = await getattr(adapter, name)(*arguments, **keywords)
        except Fenced:
            self.history.n_fenced += 1
            if name in _APPENDS:
                del self.history.fenced[n_before[0] :], self.history.published[n_before[1] :]
            raise
        if name == "take_epoch":
            self.history.fenced.append(("epoch", name, arguments[0], answer))
        elif name in _FENCED - _APPENDS:
            self._record(name, arguments)
        if name == "trim":
            stored = self.adapters["models"]._checkpoints
            self.history.trims.append((arguments[0], arguments[1], dict(stored)))
        return answer

    def _record(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.history.fenced.append(("write", name, arguments[0], arguments[1]))
        if name in ("publish_delta", "publish_snapshot", "save_checkpoint"):
            self.history.published.append((name, arguments[2]))

    def _fail_before(self) -> None:
        if self.is_away or self.rng.random() < self.flakiness:
            raise StoreUnavailable("away")

    def fail_after(self) -> None:
        """Lose an answer now and then."""
        if self.rng.random() < self.flakiness:
            raise StoreUnavailable("the answer was lost")


class _Remote:
    """A port over the network."""

    def __init__(self, store: SimulatedStore, process: Process, adapter: Any) -> None:
        self._store = store
        self._process = process
        self._adapter = adapter

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._adapter, name)
        return found if name in _PLAIN else partial(self._call, name, found)

    async def _call(self, name: str, method: Any, *arguments: Any, **keywords: Any) -> Any:
        store, process = self._store, self._process
        process.reach()
        await process.until_running()
        if name in _WRITES:
            on_its_way = asyncio.get_running_loop().create_task(store.take(self._adapter, name, arguments, keywords))
            on_its_way.add_done_callback(_retrieve)
            answer = await asyncio.shield(on_its_way)
        else:
            if store.is_away:
                await asyncio.sleep(0.01)
                raise StoreUnavailable("away")
            answer = await method(*arguments, **keywords)
        await process.until_running()
        process.reach()
        store.fail_after()
        return answer


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
