"""Every adapter of the store ports: in memory on a clock that tests move, and Redis on a real server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from redis.asyncio import Redis

from service.adapters.memory_store import (
    MemoryChangeLog,
    MemoryHealthBoard,
    MemoryJournal,
    MemoryModelStore,
    MemoryUserStates,
)
from service.adapters.memory_streams import MemoryStore
from service.adapters.redis_store import (
    RedisChangeLog,
    RedisHealthBoard,
    RedisJournal,
    RedisModelStore,
    RedisUserStates,
)
from service.config import StoreConfig
from service.ports import ChangeLog, HealthBoard, Journal, ModelStore, UserStates


@dataclass
class MemoryAdapters:
    now_ms: int = 1_700_000_000_000

    def __post_init__(self) -> None:
        self._store = MemoryStore(lambda: self.now_ms)

    def journal(self, n_partitions: int = 1) -> Journal:
        return MemoryJournal(self._store, n_partitions=n_partitions)

    def change_log(self) -> ChangeLog:
        return MemoryChangeLog(self._store)

    def user_states(self, config: StoreConfig) -> UserStates:
        return MemoryUserStates(self._store, config)

    def models(self) -> ModelStore:
        return MemoryModelStore(self._store)

    def health_board(self) -> HealthBoard:
        return MemoryHealthBoard(self._store)

    async def pass_ms(self, duration_ms: int) -> None:
        self.now_ms += duration_ms


@dataclass
class RedisAdapters:
    client: Redis

    def journal(self, n_partitions: int = 1) -> Journal:
        return RedisJournal(self.client, n_partitions=n_partitions)

    def change_log(self) -> ChangeLog:
        return RedisChangeLog(self.client)

    def user_states(self, config: StoreConfig) -> UserStates:
        return RedisUserStates(self.client, config)

    def models(self) -> ModelStore:
        return RedisModelStore(self.client)

    def health_board(self) -> HealthBoard:
        return RedisHealthBoard(self.client)

    async def pass_ms(self, duration_ms: int) -> None:
        await asyncio.sleep(duration_ms / 1000)


Adapters = MemoryAdapters | RedisAdapters
