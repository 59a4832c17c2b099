"""One schedule: the processes, what is done to them, and what came of it. All of it follows from the seed."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import structlog

from service import failpoints
from service.messages import Heartbeat, encode
from tests.simulation.actors import CONFIG, MODEL, ApiWorker, ArchiverProcess, LearnerProcess, _Actor
from tests.simulation.chaos import END_S, STORE_STEP_MS, Chaos
from tests.simulation.checker import Rules, Surface
from tests.simulation.clients import Callers
from tests.simulation.disk import Disk, simulated_calls
from tests.simulation.history import History
from tests.simulation.light_model import LightArrow, LightLearner, light_rows, training
from tests.simulation.loop import SimulatedLoop
from tests.simulation.process import Process, current
from tests.simulation.store import SimulatedStore

# In the middle of an hour, so that no file of it is merged.
START_MS = 1_795_383_000_000
CLAIM_MS = 3_200
_QUIET_S = max(s.reward.window_s for s in CONFIG.surfaces.values()) + 0.5
# Every so many schedules learn with Vowpal Wabbit itself, whose workspaces are slow to make.
_REAL_MODEL_EVERY = 10


class World:
    """The simulated machines.

    Attributes:
        seed: Of everything.
        history: What happened.
        troubles: What was done to the processes, and when.
    """

    def __init__(self, seed: int, folder: Path, loop: SimulatedLoop) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.history = History()
        self.troubles: list[tuple[float, str]] = []
        self._loop = loop
        self.store_skew_ms = 0
        self.disks = {name: Disk(folder / name) for name in ("front", "back")}
        n_partitions = self.rng.choice([1, 1, 2])
        self.store = SimulatedStore(self._store_ms, self.history, self.rng, n_partitions=n_partitions)
        front, back = self.disks["front"].root, self.disks["back"].root
        self.workers = [ApiWorker(self._process(f"api-{n}", "front"), self.store, self._now_ms, front) for n in (0, 1)]
        self.learners = [
            LearnerProcess(self._process(f"learner-{n}", "none"), self.store, self._now_ms)
            for n in range(self.rng.choice([1, 2]))
        ]
        self.archiver = ArchiverProcess(self._process("archiver", "back"), self.store, self._now_ms, back)

    @property
    def died_at(self) -> set[str]:
        """Return the failpoints at which a process died."""
        return set().union(*(actor.process.died_at for actor in self.actors))

    @property
    def actors(self) -> list[_Actor]:
        """Return every process."""
        return [*self.workers, *self.learners, self.archiver]

    async def run(self) -> None:
        """Let callers call while things go wrong, then let everything come to rest."""
        callers = Callers(self.workers, self.history, self.rng)
        chaos = Chaos(self)
        for actor in self.actors:
            actor.start()
        visits = [
            self._loop.create_task(self._visit(callers, f"{n}", self.rng.random() * 0.8 * END_S))
            for n in range(self.rng.randint(4, 14))
        ]
        await chaos.run()
        await asyncio.wait(visits)
        await self._come_to_rest(chaos.leave_s)

    async def _visit(self, callers: Callers, name: str, at_s: float) -> None:
        await asyncio.sleep(at_s)
        await callers.visit(name)

    async def _come_to_rest(self, leave_s: float) -> None:
        for actor in self.actors:
            if not actor.process.is_alive and (actor is not self.workers[0] or not leave_s):
                actor.start()
        if not self.workers[0].process.is_alive:
            await asyncio.sleep(leave_s)
            self.workers[0].start()
        for _ in range(200):
            await asyncio.sleep(0.1)
            if all(w.is_ready and not w.spool.n_waiting for w in self.workers):
                break
        journal = self.store.adapters["journal"]
        # Windows close, whoever waits gives up, and then everyone reads that far.
        for pause_s in (_QUIET_S, 0.3, 0.9):
            await asyncio.sleep(pause_s)
            for partition in range(journal.n_partitions):
                await journal.append(partition, [encode(Heartbeat(at_unix_ms=self._store_ms()))])
        await asyncio.sleep(1.0)
        for actor in self.actors:
            if actor.process.is_alive:
                await actor.stop()
        await self._record()

    async def _record(self) -> None:
        history = self.history
        stored = await self.store.adapters["models"].load_checkpoint(MODEL)
        if stored is not None:
            history.checkpoint = msgspec.msgpack.decode(stored)
            history.weights = training(self.is_light)(history.checkpoint["workspace"])
        root = self.disks["back"].root
        if (root / "state.json").exists():
            positions = msgspec.json.decode((root / "state.json").read_bytes())["positions"]
            history.archive_positions = {int(partition): entry_id for partition, entry_id in positions.items()}
        for path in sorted(root.rglob("*.parquet")):
            kind, partition = path.relative_to(root).parts[0], int(path.name.split("-")[0][1:])
            try:
                rows = msgspec.msgpack.decode(path.read_bytes())
            except msgspec.DecodeError as error:
                history.unexpected.append(f"archive: {path.name} cannot be read: {error}")
                continue
            history.archived.setdefault(kind, []).extend((partition, row) for row in rows)

    @property
    def is_light(self) -> bool:
        """Return whether a small model stands for Vowpal Wabbit's."""
        return self.seed % _REAL_MODEL_EVERY != 0

    def _process(self, name: str, machine: str) -> Process:
        return Process(name, machine, self._unexpected)

    def _unexpected(self, name: str, error: BaseException) -> None:
        # A caller's task that failed is no process.
        self.history.unexpected.append(f"{name}: {type(error).__name__}: {error}")

    def _store_ms(self) -> int:
        return START_MS + int(self._loop.now_s * 1000) + self.store_skew_ms

    def _now_ms(self, process: Process) -> int:
        return START_MS + int(self._loop.now_s * 1000) + process.skew_ms

    def reach(self, name: str) -> None:
        """Come to a failpoint, where the process may die."""
        process = current.get()
        if process is not None:
            process.reach_point(name)


@contextmanager
def _environment(world: World) -> Iterator[None]:
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(simulated_calls(world.disks, world.rng))
        enter(failpoints.armed(world.reach))
        enter(patch("service.recommend.MIN_CLAIM_MS", CLAIM_MS))
        enter(patch("service.learn._BLOCK_MS", 350))
        enter(patch("service.archive._BLOCK_MS", 400))
        enter(patch("service.adapters.parquet_archive.write_rows", light_rows))
        enter(patch("service.adapters.parquet_archive.pa", LightArrow))
        if world.is_light:
            enter(patch("service.learn.Learner", LightLearner))
        yield


def simulate(seed: int) -> World:
    """Run one schedule and return what came of it."""
    logs = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    gc.disable()
    loop = SimulatedLoop(random.Random(f"loop {seed}"))
    loop.set_exception_handler(lambda loop, context: None)
    folder = Path(tempfile.mkdtemp(prefix="hone-simulation-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        asyncio.set_event_loop(loop)
        world = World(seed, folder, loop)
        with _environment(world):
            loop.run_until_complete(world.run())
        _abandon(loop)
        return world
    finally:
        asyncio.set_event_loop(None)
        loop.close()
        gc.enable()
        structlog.configure(**logs)
        shutil.rmtree(folder, ignore_errors=True)


def _abandon(loop: SimulatedLoop) -> None:
    """Let go of what nobody waits for."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))


def rules(world: World) -> Rules:
    """Return what the checker is told."""
    surfaces = {
        name: Surface(
            worth={kind: (e.base, e.per_unit, e.low, e.high) for kind, e in surface.reward.events.items()},
            learns_at_close=surface.reward.learn == "at_close",
            negative_ms=int(surface.reward.negative_window_s * 1000),
            window_ms=int(surface.reward.window_s * 1000),
        )
        for name, surface in CONFIG.surfaces.items()
    }
    return Rules(
        surfaces=surfaces,
        claim_ms=CLAIM_MS - STORE_STEP_MS - 300,
        train=lambda learned: _train(learned, is_light=world.is_light),
    )


def _train(learned: list[tuple[dict[str, Any], int, float]], *, is_light: bool) -> np.ndarray:
    from bandit.learner import Learner
    from bandit.vw_format import encode as encode_features

    learner = (LightLearner if is_light else Learner)(CONFIG.model_spec(MODEL))
    for entry, slot, reward in learned:
        record = entry["slots"][slot]
        shared = {name: encode_features(name, features) for name, features in entry["features"].items()}
        shared["position"] = CONFIG.features.encode("position", {"slot": slot})
        action = {name: encode_features(name, features) for name, features in record["features"].items()}
        learner.learn(shared, action, reward=reward, propensity=record["propensity"])
    return training(is_light)(learner.serialize())
