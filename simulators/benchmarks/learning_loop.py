"""A learner whose time is added up by stage, on a store of its own and on one core."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis

from service.adapters.embedded_store import EmbeddedStore
from service.adapters.redis_store import RedisChangeLog, RedisJournal, RedisModelStore, RedisUserStates
from service.bootstrap import wall_clock_ms
from service.config import Config
from service.count_items import ItemCounting
from service.learn import LearnerLoop
from service.metrics import Metrics
from service.processes import spare_the_garbage_collector


@contextmanager
def private_store(config: Config) -> Iterator[Config]:
    """Run a store in a folder of its own and yield the configuration that leads to it."""
    folder = Path(tempfile.mkdtemp(prefix="hone-bench-", dir="/tmp"))  # socket paths must be short
    store = EmbeddedStore(folder)
    try:
        store.start()
        url = msgspec.structs.replace(config.store, url="")
        yield msgspec.structs.replace(config, data_dir=str(folder), store=url)
    finally:
        store.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core; children that run already keep theirs."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


class CountedModels(RedisModelStore):
    """Adds up what is published."""

    def __init__(self, client: Redis) -> None:
        super().__init__(client)
        self.n_bytes = 0

    async def publish_delta(self, model: str, epoch: int, delta: bytes) -> str:
        """Publish, and count the bytes."""
        self.n_bytes += len(delta)
        return await super().publish_delta(model, epoch, delta)


class StagedLoop(LearnerLoop):
    """A learner that knows what each of its stages cost, in seconds of processor time."""

    def time_stages(self) -> dict[str, float]:
        """Time every stage from now on, which itself costs a microsecond or two an entry and slot."""
        spent: dict[str, float] = defaultdict(float)
        self._joins.decode = _timed(self._joins.decode, spent, "decode")  # type: ignore[method-assign] # this instance
        self._joins.apply = _timed(self._joins.apply, spent, "join_and_count")  # type: ignore[method-assign]
        self._learn = _timed(self._learn, spent, "learn")  # type: ignore[method-assign]
        self._note_user = _timed(self._note_user, spent, "note_users")  # type: ignore[method-assign]
        self._next_entries = _timed_async(self._next_entries, spent, "read")  # type: ignore[method-assign]
        self._publish_change = _timed_async(self._publish_change, spent, "publish_weights")  # type: ignore[method-assign]
        self._repairs.write = _timed_async(self._repairs.write, spent, "repair_users")  # type: ignore[method-assign]
        self.step = _timed_async(self.step, spent, "step")  # type: ignore[method-assign]
        return spent


def _timed(call: Callable[..., Any], spent: dict[str, float], stage: str) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:  # noqa: ANN401 - as the call
        started = time.thread_time()
        answer = call(*arguments)
        spent[stage] += time.thread_time() - started
        return answer

    return timed


def _timed_async(call: Callable[..., Any], spent: dict[str, float], stage: str) -> Callable[..., Any]:
    async def timed(*arguments: Any) -> Any:  # noqa: ANN401 - as the call
        started = time.thread_time()
        answer = await call(*arguments)
        spent[stage] += time.thread_time() - started
        return answer

    return timed


def measured_loop(config: Config, client: Redis) -> tuple[StagedLoop, CountedModels]:
    """Return the learner of the demo's model as its process builds it."""
    spare_the_garbage_collector()
    models = CountedModels(client)
    loop = StagedLoop(
        config=config,
        model="films",
        journal=RedisJournal(client, n_partitions=1),
        models=models,
        users=RedisUserStates(client, config.store),
        metrics=Metrics(),
        clock=wall_clock_ms,
        counting=ItemCounting(config=config, log=RedisChangeLog(client)),
    )
    return loop, models
