"""The production classes as processes of the simulation."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from bandit.features import Feature, FeatureSchema
from bandit.rewards import EventReward, RewardPolicy
from service import processes
from service.adapters.parquet_archive import ParquetArchive
from service.archive import Archiver
from service.config import ArchiveConfig, Config, ModelConfig, SourceConfig, StoreConfig, SurfaceConfig
from service.count_items import ItemCounting
from service.feedback import Feedback
from service.learn import LearnerLoop
from service.live_config import LiveConfig
from service.messages import Decision
from service.metrics import Metrics
from service.numerics import keyed_digest
from service.recommend import Recommender
from service.spool import Spool
from service.wire import EventBody, RecommendRequest, RecommendResponse
from tests.make_golden import DECISION
from tests.simulation.process import Process
from tests.simulation.store import SimulatedStore

MODEL = "m"
SALT = b"salt"
CONFIG = Config(
    features=FeatureSchema(
        features=[
            Feature(name="device", namespace="context", source="device"),
            Feature(name="slot", namespace="position", source="slot"),
            Feature(name="id", namespace="item", source="id"),
        ],
        interactions=[("context", "item")],
    ),
    models={MODEL: ModelConfig(bits=10, learning_rate=0.1, checkpoint_s=0.8)},
    store=StoreConfig(timeout_s=0.3, lease_s=1.0),
    archive=ArchiveConfig(flush_s=0.7, flush_entries=12, journal_keep_s=0.2),
    surfaces={
        "quick": SurfaceConfig(
            model=MODEL,
            sources=[SourceConfig(name="popular", quota=1)],
            reward=RewardPolicy(
                events={"click": EventReward(base=1.0), "skip": EventReward(base=-0.5)},
                negative_window_s=0.7,
                window_s=1.8,
            ),
        ),
        "slow": SurfaceConfig(
            model=MODEL,
            reward=RewardPolicy(
                events={"play": EventReward(per_unit=0.1)},
                aggregation="sum",
                learn="at_close",
                negative_window_s=1.0,
                window_s=1.6,
            ),
        ),
    },
)
ITEMS = [f"i{n}" for n in range(5)]


class _Unread(Metrics):
    """Metrics that nobody reads, and that cost nothing."""

    def __init__(self) -> None:
        """Make no registry."""

    def __getattr__(self, name: str) -> Any:
        return _NOTHING


class _Nothing:
    def labels(self, *names: str) -> _Nothing:
        return self

    def inc(self, n: float = 1.0) -> None:
        """Count nothing."""

    def set(self, value: float) -> None:
        """Keep nothing."""


_NOTHING = _Nothing()
_METRICS = _Unread()


class _Actor:
    """Something that runs as a process and is started again after it died."""

    def __init__(self, process: Process, store: SimulatedStore, clock: Any) -> None:
        self.process = process
        self._store = store
        self._clock = lambda: clock(process)

    def start(self) -> None:
        """Begin as a fresh process."""
        self.process.begin()
        self.process.spawn(self._live())

    async def _live(self) -> None:
        try:
            await self._run()
        except OSError:
            # A process that cannot write where it must ends, and its supervisor starts it again.
            self.process.kill()

    async def _run(self) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        """End in good order."""
        raise NotImplementedError


class ApiWorker(_Actor):
    """Spool, decisions and events of one worker."""

    def __init__(self, process: Process, store: SimulatedStore, clock: Any, folder: Path) -> None:
        super().__init__(process, store, clock)
        self._folder = folder
        self.is_ready = False

    async def _run(self) -> None:
        journal, users = self._store.of(self.process, "journal"), self._store.of(self.process, "users")
        # A client of its own, as in a worker: what its repairs wait for is no part of shipping.
        self.spool = spool = Spool(self._folder, journal, _METRICS)
        self.process.on_death.append(self._close_file)
        spool.start()
        assert spool._task is not None
        self.process.adopt(spool._task)
        self.feedback = Feedback(
            config=CONFIG, users=users, journal=journal, spool=spool, metrics=_METRICS, clock=self._clock, salt=SALT
        )
        self.recommender = Recommender(
            live=LiveConfig(CONFIG),
            items=None,  # type: ignore[arg-type] # what is drawn is given; everything after the draw is real
            models={},
            explorers={},
            users=users,
            journal=journal,
            spool=spool,
            metrics=_METRICS,
            clock=self._clock,
            salt=SALT,
        )
        self.is_ready = True

    def _close_file(self) -> None:
        """Do as the kernel does at the end of a process: its locks go."""
        self.is_ready = False
        spoilt = [file for file, _ in self.spool._spoilt]
        for file in (self.spool._file, *spoilt):
            with suppress(OSError):
                os.close(file)

    async def decide(self, request: RecommendRequest, event_id: str, item_ids: list[str]) -> RecommendResponse:
        """Answer a request whose slate is drawn."""
        template = DECISION.slots[0]
        decision: Decision = msgspec.structs.replace(
            DECISION,
            event_id=event_id,
            decided_at_unix_ms=self._clock(),
            surface=request.surface,
            model=MODEL,
            user_id=request.user_id,
            user_key=keyed_digest(request.user_id, salt=SALT) if request.user_id else "",
            digest=msgspec.json.encode(request).hex(),
            features={"context": {f"device={request.user_id}": 1.0}, "user": {}, "position": {}},
            degraded=[],
            slots=[
                msgspec.structs.replace(
                    template,
                    item_id=item_id,
                    propensity=0.25 + 0.5 / (1 + slot),
                    features={"item": {f"id={item_id}": 1.0}, "dynamic": {}},
                )
                for slot, item_id in enumerate(item_ids)
            ],
        )
        return await self.recommender._record(request, CONFIG.surfaces[request.surface], decision)

    async def happen(self, bodies: list[EventBody]) -> None:
        """Take events."""
        await self.feedback.accept(bodies)

    async def stop(self) -> None:
        if self.is_ready:
            # No new calls; what was begun has some time to end.
            self.is_ready = False
            await asyncio.wait({self.process.spawn(self._close())})

    async def _close(self) -> None:
        await asyncio.sleep(0.3)
        # A file that cannot be removed stays for the next start.
        with suppress(OSError):
            await self.spool.close()
            self.process.on_death.clear()
        self.process.kill()


class LearnerProcess(_Actor):
    """`hone learn`: leads, or stands by."""

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        await processes._learn(self._build, self._stop)

    def _build(self) -> LearnerLoop:
        store, process = self._store, self.process
        self.loop = LearnerLoop(
            config=CONFIG,
            model=MODEL,
            journal=store.of(process, "journal"),
            models=store.of(process, "models"),
            users=store.of(process, "users"),
            metrics=_METRICS,
            clock=self._clock,
            counting=ItemCounting(config=CONFIG, log=store.of(process, "log")),
        )
        return self.loop

    async def stop(self) -> None:
        self._stop.set()
        if self.process.tasks:
            await asyncio.wait(self.process.tasks, timeout=30.0)
        self.process.kill()


class ArchiverProcess(_Actor):
    """`hone archive`, without the health watch."""

    def __init__(self, process: Process, store: SimulatedStore, clock: Any, folder: Path) -> None:
        super().__init__(process, store, clock)
        self._folder = folder

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        archiver = Archiver(
            config=CONFIG,
            journal=self._store.of(self.process, "journal"),
            models=self._store.of(self.process, "models"),
            archive=ParquetArchive(self._folder),
            metrics=_METRICS,
            clock=self._clock,
        )
        await processes._archive(archiver, self._stop)

    async def stop(self) -> None:
        self._stop.set()
        if self.process.tasks:
            await asyncio.wait(self.process.tasks, timeout=30.0)
        self.process.kill()
