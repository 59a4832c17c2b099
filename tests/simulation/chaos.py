"""What is done to the processes during a schedule."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from service.failpoints import FILE_POINTS, POINTS

if TYPE_CHECKING:
    from tests.simulation.actors import _Actor
    from tests.simulation.world import World

END_S = 4.0
# Ids of streams never go back: behind such a clock journal time rests until it has come up again.
STORE_STEP_MS = 900
_KINDS = ("kill", "kill", "effect", "effect", "effect", "point", "point", "point", "full", "power", "away", "flaky")
_MORE_KINDS = ("pause", "clock", "store clock", "long leave", "dark", "dark", "end", "end")
_OWN_POINTS = {
    "api": ("spool.", "recommend.", "feedback."),
    "learner": ("learner.", "counting.", "journal."),
    "archiver": ("archiver.", "archive.", "files.", "journal."),
}


class Chaos:
    """Troubles of one schedule, drawn before it begins; whoever died is started again after a while."""

    def __init__(self, world: World) -> None:
        self._world = world
        rng = self._rng = world.rng
        kinds = rng.choices(_KINDS + _MORE_KINDS, k=rng.choice([0, 1, 2, 3, 5, 8]))
        self._plan = sorted((rng.random() * END_S * 0.9, n, kind) for n, kind in enumerate(kinds))
        self._restarts: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        # How long the first worker stays away once it has died, also past the other troubles.
        self.leave_s = 0.0

    async def run(self) -> None:
        """Do what was drawn, until the end of the troubles; whoever is ending then has ended."""
        loop = asyncio.get_running_loop()
        watching = loop.create_task(self._watch())
        for at_s, _, kind in self._plan:
            await asyncio.sleep(max(0.0, at_s - loop.time()))
            self._do(kind)
        await asyncio.sleep(max(0.0, END_S - loop.time()))
        watching.cancel()
        self.heal()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def heal(self) -> None:
        """End every trouble; what is to die at an effect or a failpoint does not die any more."""
        self._world.store.is_away, self._world.store.flakiness = False, 0.0
        for task in self._restarts.values():
            task.cancel()
        for actor in self._world.actors:
            actor.process.go_on()
            actor.process.kill_after(0)
            actor.process.dies_at = actor.process.fails_at = ""

    def _do(self, kind: str) -> None:
        rng, world = self._rng, self._world
        world.troubles.append((asyncio.get_running_loop().time(), kind))
        actor = rng.choice(world.actors)
        process = actor.process
        if kind == "kill":
            process.kill()
        elif kind == "effect":
            process.kill_after(rng.randint(1, 30))
        elif kind in ("point", "full"):
            points = FILE_POINTS if kind == "full" else POINTS
            own = _OWN_POINTS[process.name.partition("-")[0]]
            point = rng.choice(sorted(p for p in points if p.startswith(own)) or [""])
            if kind == "point":
                process.dies_at = point
            else:
                process.fails_at = point
        elif kind == "power":
            self._lose_power(rng.choice(["front", "back"]))
        elif kind == "away":
            self._later("away", rng.choice([0.1, 0.6, 2.0, 4.0]) * (0.5 + rng.random()))
        elif kind == "flaky":
            self._later("flaky", rng.random() * 3.0)
        elif kind == "pause":
            process.pause()
            self._tasks.append(self._go_on_after(actor, rng.random() * 3.0))
        elif kind == "clock":
            process.skew_ms += rng.choice([-60_000, -3_000, -400, -30, 30, 400, 3_000, 60_000])
        elif kind == "store clock":
            world.store_skew_ms = rng.choice([-STORE_STEP_MS, -20, 0, 20, 200])
        elif kind == "end":
            if process.is_alive:
                self._tasks.append(asyncio.get_running_loop().create_task(actor.stop()))
        elif kind == "dark":
            # Everything hangs on the spools.
            self._later("away", 1.5 + rng.random())
            self._tasks.append(asyncio.get_running_loop().create_task(self._end_workers()))
        else:
            # So long that claims are over when its spool is found.
            self.leave_s = 3.8
            process = world.workers[0].process
            if rng.random() < 0.5:
                process.dies_at = rng.choice(["spool.shipped", "spool.claimed", "spool.empty"])
            else:
                process.kill_after(rng.randint(1, 10))

    def _later(self, what: str, for_s: float) -> None:
        store = self._world.store

        async def end() -> None:
            await asyncio.sleep(for_s)
            store.is_away, store.flakiness = False, 0.0

        if what == "away":
            store.is_away = True
        else:
            store.flakiness = self._rng.choice([0.02, 0.1, 0.3])
        self._tasks.append(asyncio.get_running_loop().create_task(end()))

    def _go_on_after(self, actor: _Actor, for_s: float) -> asyncio.Task[None]:
        async def go_on() -> None:
            await asyncio.sleep(for_s)
            actor.process.go_on()

        return asyncio.get_running_loop().create_task(go_on())

    async def _end_workers(self) -> None:
        for _ in range(self._rng.choice([1, 2])):
            await asyncio.sleep(0.3 + 0.5 * self._rng.random())
            if self._rng.random() < 0.6:
                self._lose_power("front")
            else:
                for worker in self._world.workers:
                    worker.process.kill()

    def _lose_power(self, machine: str) -> None:
        world = self._world
        for actor in world.actors:
            if actor.process.machine == machine:
                actor.process.kill()
        world.disks[machine].lose_power(world.rng)
        if machine == "front":
            world.history.power_lost_s.append(asyncio.get_running_loop().time())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            for actor in self._world.actors:
                restart = self._restarts.get(actor.process.name)
                if not actor.process.is_alive and (restart is None or restart.done()):
                    self._restarts[actor.process.name] = asyncio.get_running_loop().create_task(self._restart(actor))

    async def _restart(self, actor: _Actor) -> None:
        wait_s = self._rng.choice([0.05, 0.3, 1.0])
        if actor is self._world.workers[0]:
            wait_s += self.leave_s
        await asyncio.sleep(wait_s)
        actor.start()
