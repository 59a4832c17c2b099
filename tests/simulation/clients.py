"""Callers: they ask, report once or twice, early, late and in any order, and remember what they were told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from typing import Any

from service.errors import HoneError
from service.wire import EventBody, RecommendRequest
from tests.simulation.actors import ITEMS, ApiWorker
from tests.simulation.history import History

# A caller repeats its own event id for so long; claims live longer.
REPEAT_S = 1.0
_TYPES = {"quick": ("click", "click", "skip", "view"), "slow": ("play", "play", "view")}


class Callers:
    """Everybody who calls the API workers during a schedule."""

    def __init__(self, workers: Sequence[ApiWorker], history: History, rng: random.Random) -> None:
        self._workers = workers
        self._history = history
        self._rng = rng
        self._n_events = 0

    async def visit(self, name: str) -> None:
        """Ask for one slate and report what happens to it."""
        rng = self._rng
        surface, user_id = rng.choice(["quick", "quick", "slow"]), f"u{rng.randrange(3)}"
        event_id, is_chosen = f"e-{name}", rng.random() < 0.4
        request = RecommendRequest(
            surface=surface, user_id=user_id, n=rng.randint(1, 2), event_id=event_id if is_chosen else None
        )
        if is_chosen:
            self._history.chosen.add(event_id)
        events = [
            self._event(event_id, surface, user_id, slot=rng.randrange(request.n)) for _ in range(rng.randrange(5))
        ]
        if is_chosen and events and rng.random() < 0.3:
            await self._report([events.pop()])
        until_s = asyncio.get_running_loop().time() + REPEAT_S
        items = await self._ask(request, event_id)
        while is_chosen and asyncio.get_running_loop().time() < until_s and (items is None or rng.random() < 0.5):
            await asyncio.sleep(rng.random() * 0.4)
            items = await self._ask(request, event_id) or items
        if items is None:
            return
        for event in events:
            await asyncio.sleep(rng.choice([0.0, 0.05, 0.5, 2.0]) * rng.random())
            if event.event_id is None:
                event = EventBody(type=event.type, id=event.id, user_id=user_id, item_id=rng.choice(items))
                event = self._valued(event)
            batch = [event] if rng.random() < 0.7 else [event, self._event("e-nobody", surface, user_id, slot=0)]
            await self._report(batch)
            if event.id is not None and rng.random() < 0.25:
                await self._report([event])

    def _event(self, event_id: str, surface: str, user_id: str, *, slot: int) -> EventBody:
        rng = self._rng
        kind = rng.choice(_TYPES[surface])
        by_user = event_id != "e-nobody" and rng.random() < 0.3
        self._n_events += 1
        return self._valued(
            EventBody(
                type=kind,
                id=f"c{self._n_events}" if rng.random() < 0.8 else None,
                event_id=None if by_user else event_id,
                user_id=user_id if by_user else None,
                item_id=rng.choice(ITEMS) if by_user else None,
                slot=None if by_user else slot,
            )
        )

    def _valued(self, event: EventBody) -> EventBody:
        """Return it with a value of its own, by which the checker knows it."""
        self._n_events += 1
        fields = {name: getattr(event, name) for name in ("type", "id", "event_id", "user_id", "item_id", "slot")}
        return EventBody(**fields, value=float(self._n_events))

    async def _ask(self, request: RecommendRequest, event_id: str) -> list[str] | None:
        rng = self._rng
        item_ids = rng.sample(ITEMS, request.n)
        answer = await self._call(lambda worker: worker.decide(request, event_id, item_ids))
        if answer is None:
            return None
        shown = [item.item_id for item in answer.items]
        now_s = asyncio.get_running_loop().time()
        self._history.answers.append((now_s, answer.event_id, shown, list(answer.degraded)))
        return shown

    async def _report(self, events: list[EventBody]) -> None:
        """Report until it is acknowledged; what has no id of its own is reported once."""
        for _ in range(6 if all(event.id is not None for event in events) else 1):
            if await self._call(lambda worker: worker.happen(events), is_void=True):
                self._history.acknowledged += [
                    {name: getattr(e, name) for name in e.__struct_fields__ if name != "ts"} for e in events
                ]
                return
            await asyncio.sleep(0.1 + 0.5 * self._rng.random())

    async def _call(self, call: Any, *, is_void: bool = False) -> Any:
        """Call a worker that is up; None when it died meanwhile or could not take it."""
        ready = [worker for worker in self._workers if worker.is_ready]
        if not ready:
            await asyncio.sleep(0.05)
            return None
        worker = self._rng.choice(ready)
        coroutine: Coroutine[Any, Any, Any] = call(worker)
        task = worker.process.spawn(_answer(coroutine))
        await asyncio.wait({task})
        if task.cancelled() or task.exception() is not None:
            return None
        answer = task.result()
        return answer is not _REFUSED if is_void else None if answer is _REFUSED else answer


_REFUSED = object()


async def _answer(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Answer as the web handlers do: what a store or a disk refuses is a 503, not the end of the process."""
    try:
        return await coroutine
    except (HoneError, OSError):
        return _REFUSED
