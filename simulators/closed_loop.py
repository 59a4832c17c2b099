"""Run a world against the production use cases in this process: recommend, click, report, learn, recommend better."""

from __future__ import annotations

import gc
import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import uvloop
from threadpoolctl import threadpool_limits

from bandit.exploration import Exploration, VwExplorer
from bandit.rules import Rule
from retrieval.items import Item
from service.messages import ModelSnapshot
from service.processes import spare_the_garbage_collector
from service.wire import EventBody, RecommendRequest
from simulators.loop_config import SURFACE, ServiceSettings, build_config
from simulators.loop_curve import CurveRecorder, LoopRun
from simulators.loop_service import LoopService
from simulators.loop_vectors import clicks_before
from simulators.worlds.visits import Visit
from simulators.worlds.world import Response, World, WorldSpec

START_MS = 1_795_000_000_000
# What runs beside requests gets its turn so often: a service ships and learns within a second.
_TURN_MS = 1_000
# The spool writes a file for every decision: in memory, as all else of the loop is, where the system has such a place.
_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder in it is made by tempfile

OnOutcome = Callable[[Visit, Sequence[int], Response], None]
OnProgress = Callable[[int], None]
OnModel = Callable[[ModelSnapshot], None]
OnItems = Callable[[Sequence[Item]], None]


def run_loop(
    world: WorldSpec,
    *,
    exploration: Exploration,
    n_decisions: int,
    seed: int,
    every: int = 500,
    rules: Sequence[Rule] = (),
    discovery_share: float = 0.0,
    settings: ServiceSettings | None = None,
    frozen: ModelSnapshot | None = None,
    archive_folder: Path | None = None,
    on_outcome: OnOutcome | None = None,
    on_progress: OnProgress | None = None,
    on_model: OnModel | None = None,
    on_items: OnItems | None = None,
) -> LoopRun:
    """Let users of a world use a service for a number of decisions, and return what came of it.

    Args:
        world: Who comes, what there is and what is liked.
        exploration: Policy of the service.
        n_decisions: How long.
        seed: Of visits and of the service's own randomness; of users and items too, unless the world has a seed.
        every: Decisions between checkpoints of the curve.
        rules: Business rules of the service.
        discovery_share: Share of the slots that is reserved for discovery.
        settings: What else the service is set to.
        frozen: A model to serve without learning; None learns from nothing.
        archive_folder: Where the log is written as the production archive, outcomes included; None for nowhere.
        on_outcome: Told of every decision: who came, which items were shown, what came of it.
        on_progress: Told of the number of decisions so far, now and then.
        on_model: Told of the model in the end, to be served `frozen` elsewhere.
        on_items: Told of items when they are put, each once; they do not change.

    Raises:
        ValueError: a parameter is out of range, or a service that does not learn is to ask a VW explorer.
    """
    if n_decisions < 1 or every < 1:
        raise ValueError(f"n_decisions and every must be at least 1, got {n_decisions} and {every}")
    if frozen is not None and isinstance(exploration, VwExplorer):
        raise ValueError(f"explorer {exploration.model!r} explores by what it learns: it cannot be frozen")
    # As processes of the service do: small products are not worth the threads.
    threadpool_limits(1, "blas")
    config = build_config(
        world, exploration=exploration, rules=rules, discovery_share=discovery_share, settings=settings
    )
    training = settings.training if settings is not None else None
    with TemporaryDirectory(prefix="hone-loop-", dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        service = LoopService(
            config,
            salt=b"loop" + seed.to_bytes(8, "little", signed=True),
            start_ms=START_MS,
            spool_folder=Path(folder) / "spool",
            archive_folder=archive_folder,
            frozen=frozen,
            training=training,
            before=() if training is None else clicks_before(world, seed=seed, showings=training.showings),
        )
        loop = _Loop(
            world.build(seed),
            service,
            every=every,
            on_outcome=on_outcome,
            on_progress=on_progress,
            on_model=on_model,
            on_items=on_items,
        )
        # And so do they: old objects are not worth looking at.
        thresholds = gc.get_threshold()
        spare_the_garbage_collector()
        try:
            return uvloop.run(loop.run(n_decisions))
        finally:
            gc.set_threshold(*thresholds)


def learn_model(
    world: WorldSpec,
    *,
    exploration: Exploration,
    n_decisions: int,
    seed: int,
    discovery_share: float = 0.0,
    settings: ServiceSettings | None = None,
) -> ModelSnapshot:
    """Return the model that a closed loop has learned, to be served `frozen` elsewhere."""
    models: list[ModelSnapshot] = []
    run_loop(
        world,
        exploration=exploration,
        n_decisions=n_decisions,
        seed=seed,
        every=n_decisions,
        discovery_share=discovery_share,
        settings=settings,
        on_model=models.append,
    )
    return models[0]


@dataclass(frozen=True, slots=True)
class TrueValue:
    """What a policy is worth in a world.

    Attributes:
        value: Expected reward of a slot.
        standard_error: Of it, between users.
        n_decisions: It is the mean of so many.
        n_users: They were of so many.
    """

    value: float
    standard_error: float
    n_decisions: int
    n_users: int


def true_value(
    world: WorldSpec,
    *,
    exploration: Exploration,
    frozen: ModelSnapshot,
    n_decisions: int,
    seed: int,
    rules: Sequence[Rule] = (),
    discovery_share: float = 0.0,
    settings: ServiceSettings | None = None,
) -> TrueValue:
    """Return what a policy on a model that does not learn is worth, from a loop of its own.

    The expected reward of every slate that was shown is known, so only who came and what was drawn is left to chance.
    For the truth of an estimate take another seed than that of the log, and a world with a seed, so that users and
    items are the same.
    """
    sums: dict[int, tuple[float, int]] = {}

    def count(visit: Visit, numbers: Sequence[int], response: Response) -> None:
        total, n = sums.get(visit.user, (0.0, 0))
        sums[visit.user] = (total + float(response.expected.sum()), n + len(numbers))

    run_loop(
        world,
        exploration=exploration,
        n_decisions=n_decisions,
        seed=seed,
        every=n_decisions,
        rules=rules,
        discovery_share=discovery_share,
        settings=settings,
        frozen=frozen,
        on_outcome=count,
    )
    totals, counts = (np.array(column, dtype=np.float64) for column in zip(*sums.values(), strict=True))
    value = float(totals.sum() / counts.sum())
    # Of a ratio of sums over users, linearised.
    error = float(np.sqrt(((totals - value * counts) ** 2).sum()) / counts.sum())
    return TrueValue(value, error, n_decisions, len(sums))


class _Loop:
    """One run."""

    def __init__(
        self,
        world: World,
        service: LoopService,
        *,
        every: int,
        on_outcome: OnOutcome | None,
        on_progress: OnProgress | None,
        on_model: OnModel | None,
        on_items: OnItems | None,
    ) -> None:
        self._world = world
        self._service = service
        self._curve = CurveRecorder(world, every=every)
        self._on_outcome = on_outcome
        self._on_progress = on_progress
        self._on_model = on_model
        self._on_items = on_items
        self._live = range(0)
        self._ids: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        # (when it is reported, its number, the event): what users have done and not reported yet.
        self._due: list[tuple[int, int, EventBody]] = []
        self._n_events = 0

    async def run(self, n_decisions: int) -> LoopRun:
        await self._service.start()
        await self._change_items(self._world.live(0))
        await self._service.train()
        started_s = time.perf_counter()
        next_turn_ms, elapsed_ms = _TURN_MS, 0
        visits = self._world.visits()
        for index in range(n_decisions):
            visit = next(visits)
            elapsed_ms = visit.elapsed_ms
            if elapsed_ms >= next_turn_ms:
                # One turn for all that nobody came in between.
                next_turn_ms = elapsed_ms // _TURN_MS * _TURN_MS
                await self._turn(next_turn_ms)
                next_turn_ms += _TURN_MS
                if self._on_progress is not None:
                    self._on_progress(index)
            self._service.now_ms = START_MS + elapsed_ms
            live = self._world.live(elapsed_ms)
            if live != self._live:
                await self._change_items(live)
            await self._visit(visit)
        await self._service.turn()
        seconds = time.perf_counter() - started_s
        await self._finish(elapsed_ms)
        if self._on_model is not None:
            self._on_model(await self._service.snapshot())
        await self._service.close()
        return self._curve.run(seconds=seconds, elapsed_ms=elapsed_ms)

    async def _visit(self, visit: Visit) -> None:
        world = self._world
        user_id = f"u{visit.user}"
        event_id = f"{user_id}-{visit.number}"
        attraction = world.attraction(visit)
        request = RecommendRequest(surface=SURFACE, user_id=user_id, context=world.context(visit), n=world.spec.n_slots)
        answer = await self._service.recommend(request, event_id=event_id)
        numbers = [self._numbers[item.item_id] for item in answer.items]
        response = world.respond(visit, numbers, attraction)
        for reaction in response.reactions:
            event = EventBody(
                type=reaction.event_type,
                id=f"{event_id}-{reaction.slot}",
                event_id=event_id,
                user_id=user_id,
                item_id=answer.items[reaction.slot].item_id,
                slot=reaction.slot,
            )
            self._n_events += 1
            heapq.heappush(self._due, (visit.elapsed_ms + reaction.delay_ms, self._n_events, event))
        places, optimal = world.best(attraction)
        best = (places + self._live.start).tolist()
        self._curve.add(visit, numbers, answer.items, response, best=best, optimal=optimal)
        if self._on_outcome is not None:
            self._on_outcome(visit, numbers, response)

    async def _turn(self, elapsed_ms: int) -> None:
        """Report what was done until now, as a client does that reports once a second, and let the service work."""
        self._service.now_ms = START_MS + elapsed_ms
        due = []
        while self._due and self._due[0][0] <= elapsed_ms:
            due.append(heapq.heappop(self._due)[2])
        await self._service.report(due)
        await self._service.turn()

    async def _finish(self, elapsed_ms: int) -> None:
        """Report what is still to be reported, each at its time, and close every window."""
        while self._due:
            elapsed_ms = max(elapsed_ms, self._due[0][0])
            await self._turn(elapsed_ms + _TURN_MS)
        await self._service.finish()

    async def _change_items(self, live: range) -> None:
        gone, came = set(self._live) - set(live), sorted(set(live) - set(self._live))
        items = [self._world.item(number, start_ms=START_MS) for number in came]
        for number, item in zip(came, items, strict=True):
            self._ids[number], self._numbers[item.id] = item.id, number
        await self._service.put_items(items, deleted=[self._ids[number] for number in sorted(gone)])
        if self._on_items is not None:
            self._on_items(items)
        self._live = live
