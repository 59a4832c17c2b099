"""The journal as it was written, recorded from outside, and what an undisturbed run makes of it."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import redis

from bandit.learner import Learner
from service.adapters.memory_store import MemoryModelStore, MemoryStore, MemoryUserStates
from service.adapters.redis_store import RedisModelStore, connect
from service.bootstrap import wall_clock_ms
from service.config import Config
from service.journal_reader import START, entry_order, position_of
from service.learn import LearnerLoop
from service.messages import Checkpoint, JournalEntry, journal_decoder
from service.metrics import Metrics
from service.outcomes import OutcomeJoins
from tests.stack import eventually

MODEL = "films"
JOURNAL = "hone:{0}:journal"
_READ_S = 10.0


def weights_of(learner: Learner) -> np.ndarray:
    # The fourth column is scratch.
    return learner._workspace.weights()[:, 0, :3].copy()


async def load_checkpoint(url: str) -> Checkpoint | None:
    client = connect(url, timeout_s=10.0)
    try:
        stored = await RedisModelStore(client).load_checkpoint(MODEL)
    finally:
        await client.aclose()
    return None if stored is None else msgspec.msgpack.decode(stored, type=Checkpoint)


async def load_artefacts(url: str) -> dict[str, bytes]:
    client = connect(url, timeout_s=10.0)
    try:
        models = RedisModelStore(client)
        ids = await models.artefact_ids(MODEL)
        return {one: stored for one in ids if (stored := await models.load_artefact(MODEL, one)) is not None}
    finally:
        await client.aclose()


class TapeJournal:
    """A journal of one partition that ends where it is told to."""

    n_partitions = 1

    def __init__(self, entries: list[tuple[str, bytes]]) -> None:
        self._entries = entries
        self.last = START

    async def read(self, after: Mapping[int, str], *, count: int, block_ms: int) -> dict[int, list[tuple[str, bytes]]]:
        low, high = entry_order(after[0]), entry_order(self.last)
        return {0: [entry for entry in self._entries if low < entry_order(entry[0]) <= high][:count]}

    async def append(self, partition: int, entries: Any) -> list[str]:
        return [START]  # the undisturbed learner must not write heartbeats into the tape it is compared on


class Tape:
    """Reads the journal as it grows, whatever happens to the store, so that it is known when it was trimmed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.entries: list[tuple[str, bytes]] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._record, daemon=True)
        self._thread.start()

    def _record(self) -> None:
        client = redis.Redis.from_url(self._url, socket_timeout=5.0)
        last = START
        while not self._is_over.is_set():
            try:
                found = client.xread({JOURNAL: last}, count=1_000, block=200)
            except redis.RedisError:
                self._is_over.wait(0.05)
                continue
            for entry_id, fields in found[0][1] if found else []:
                last = entry_id.decode()
                self.entries.append((last, fields[b"e"]))
        client.close()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def decoded(self) -> list[tuple[str, JournalEntry]]:
        return [(entry_id, journal_decoder.decode(payload)) for entry_id, payload in list(self.entries)]

    def assert_complete(self) -> None:
        """Compare with the store's own count of what was ever added."""
        client = redis.Redis.from_url(self._url, socket_timeout=5.0)
        stream = client.xinfo_stream(JOURNAL)
        client.close()
        added, last = stream["entries-added"], entry_order(stream["last-generated-id"].decode())
        # What was added just now is on its way to the tape.
        eventually(
            lambda: bool(self.entries) and entry_order(self.entries[-1][0]) >= last,
            timeout_s=_READ_S,
            what=f"the tape has {added} entries",
        )
        n_until = sum(entry_order(entry_id) <= last for entry_id, _ in list(self.entries))
        assert n_until >= added, f"the tape has {n_until} of {added} entries"


class Undisturbed:
    """A learner on the tape that nothing ever happens to, and the joins of an archiver of the same luck."""

    def __init__(self, config: Config, tape: Tape) -> None:
        self._tape = tape
        self._config = config
        self._journal = TapeJournal(tape.entries)
        memory = MemoryStore(wall_clock_ms)
        self._models = MemoryModelStore(memory)
        self.loop = LearnerLoop(
            config=config,
            model=MODEL,
            journal=self._journal,
            models=self._models,
            users=MemoryUserStates(memory, config.store),
            metrics=Metrics(),
            clock=wall_clock_ms,
        )
        self._joins = OutcomeJoins(config)
        self._n_joined = 0
        self.outcomes: Counter[tuple[Any, ...]] = Counter()
        asyncio.run(self.loop.start())

    def learn_up_to(self, entry_id: str, artefacts: Mapping[str, bytes]) -> None:
        """Learn what the tape has up to an entry."""

        async def learn() -> None:
            for name, stored in artefacts.items():
                await self._models.put_artefact(MODEL, name, stored)
            self._journal.last = entry_id
            while await self.loop.step():
                pass

        asyncio.run(learn())

    def join_all(self, until: str) -> None:
        """Join what the tape has up to an entry, as the archive would."""
        entries = self._tape.entries
        while self._n_joined < len(entries) and entry_order(entries[self._n_joined][0]) <= entry_order(until):
            entry_id, payload = entries[self._n_joined]
            joined = self._joins.apply(position_of(0, entry_id), journal_decoder.decode(payload))
            for ordinal, o in enumerate(joined):
                self.outcomes[entry_id, ordinal, o.event_id, o.slot, o.item_id, o.reward, o.kind, o.user_key] += 1
            self._n_joined += 1
