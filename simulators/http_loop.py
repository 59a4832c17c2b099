"""Let the users of a world use a running service over HTTP: real requests, events with their delays, the same curve."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import msgspec

from retrieval.items import Item
from service.errors import StoreUnavailable
from service.wire import EventBody, RecommendRequest, RecommendResponse
from simulators.loop_curve import CurveRecorder, LoopRun
from simulators.worlds.visits import Visit
from simulators.worlds.world import WorldSpec

# What a service holds already is left alone: everything of a simulation carries this.
PREFIX = "simulated-"
_TIMEOUT_S = 30.0
# Somebody who has not reported by then, in real time, never does.
_LAST_REPORTS_S = 10.0

_response_decoder = msgspec.json.Decoder(RecommendResponse)


async def run_over_http(
    world: WorldSpec,
    *,
    url: str,
    surface: str,
    n_decisions: int,
    seed: int,
    every: int = 100,
    speed: float = 1.0,
    keep_items: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> LoopRun:
    """Put a world's items into a service, ask for slates of them, report what users do, and return the curve.

    The service ranks the items that are there as candidates of the caller's own, so whatever else its catalogue holds
    is not shown. Its model, policy and rules are its own; the world's items have `genres`, requests their context.

    Args:
        world: Who comes, what there is and what is liked.
        url: Of the service.
        surface: Which surface to ask; it should reward `click`.
        n_decisions: How many requests.
        seed: Of visits; of users and items too, unless the world has a seed.
        every: Decisions between checkpoints of the curve.
        speed: Simulated seconds in a real one. Requests that the service is too slow for are late, none is left out.
        keep_items: Leave the items in the catalogue; otherwise they are deleted in the end.
        on_progress: Told of the number of decisions so far.

    Raises:
        StoreUnavailable: the service cannot be reached, or answers with an error.
        ValueError: a parameter is out of range.
    """
    if n_decisions < 1 or every < 1 or not 0.0 < speed < float("inf"):
        raise ValueError(
            f"n_decisions and every must be at least 1 and speed positive, got {n_decisions}, {every}, {speed}"
        )
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            loop = _HttpLoop(world, _Client(session, url), surface=surface, seed=seed, every=every, speed=speed)
            try:
                return await loop.run(n_decisions, on_progress)
            finally:
                if not keep_items:
                    await loop.delete_items()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise StoreUnavailable(f"{url} does not answer: {error or type(error).__name__}") from error


class _Client:
    """The calls of the API that a simulation makes."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url.rstrip("/")

    async def recommend(self, request: RecommendRequest) -> RecommendResponse:
        return _response_decoder.decode(await self._call("POST", "/v1/recommend", request))

    async def report(self, events: Sequence[EventBody]) -> None:
        await self._call("POST", "/v1/events", list(events))

    async def put_items(self, items: Sequence[Item]) -> None:
        await self._call("PUT", "/v1/items", list(items))

    async def delete_item(self, item_id: str) -> None:
        await self._call("DELETE", f"/v1/items/{item_id}", None)

    async def _call(self, method: str, path: str, body: object) -> bytes:
        raw = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"}
        async with self._session.request(method, self._url + path, data=raw, headers=headers) as answer:
            content = await answer.read()
            if answer.status >= 400:
                raise StoreUnavailable(f"{method} {path} was answered {answer.status}: {content[:300].decode()}")
            return content


class _HttpLoop:
    """One run."""

    def __init__(self, spec: WorldSpec, client: _Client, *, surface: str, seed: int, every: int, speed: float) -> None:
        self._world = world = spec.build(seed)
        # Of another seed it is another user.
        self._seed = seed
        self._client = client
        self._surface = surface
        self._speed = speed
        self._curve = CurveRecorder(world, every=every)
        self._start_ms = time.time_ns() // 1_000_000
        self._live = range(0)
        # Ids of the items in the service's catalogue, by number.
        self._ids: dict[int, str] = {}
        self._due: list[tuple[float, int, EventBody]] = []
        self._n_events = 0

    async def run(self, n_decisions: int, on_progress: Callable[[int], None] | None) -> LoopRun:
        """Let visits happen at their times."""
        await self._change_items(self._world.live(0))
        started_s = time.perf_counter()
        elapsed_ms = 0
        visits = self._world.visits()
        for index in range(n_decisions):
            visit = next(visits)
            elapsed_ms = visit.elapsed_ms
            await asyncio.sleep(max(0.0, started_s + elapsed_ms / 1000.0 / self._speed - time.perf_counter()))
            await self._report(elapsed_ms)
            live = self._world.live(elapsed_ms)
            if live != self._live:
                await self._change_items(live)
            await self._visit(visit)
            if on_progress is not None:
                on_progress(index + 1)
        seconds = time.perf_counter() - started_s
        await self._report_rest(elapsed_ms)
        return self._curve.run(seconds=seconds, elapsed_ms=elapsed_ms)

    async def delete_items(self) -> None:
        """Take what is left of the world out of the catalogue."""
        for item_id in self._ids.values():
            await self._client.delete_item(item_id)
        self._ids = {}

    async def _visit(self, visit: Visit) -> None:
        world = self._world
        attraction = world.attraction(visit)
        request = RecommendRequest(
            surface=self._surface,
            user_id=f"{PREFIX}{self._seed}-u{visit.user}",
            context=world.context(visit),
            n=world.spec.n_slots,
            candidates=list(self._ids.values()),
        )
        answer = await self._client.recommend(request)
        number_of = {item_id: number for number, item_id in self._ids.items()}
        numbers = [number_of[item.item_id] for item in answer.items]
        response = world.respond(visit, numbers, attraction)
        for reaction in response.reactions:
            self._n_events += 1
            event = EventBody(
                type=reaction.event_type,
                id=f"{answer.event_id}-{reaction.slot}",
                event_id=answer.event_id,
                slot=reaction.slot,
            )
            heapq.heappush(self._due, (visit.elapsed_ms + reaction.delay_ms, self._n_events, event))
        places, optimal = world.best(attraction)
        best = (places + self._live.start).tolist()
        self._curve.add(visit, numbers, answer.items, response, best=best, optimal=optimal)

    async def _report(self, elapsed_ms: float) -> None:
        due = []
        while self._due and self._due[0][0] <= elapsed_ms:
            due.append(heapq.heappop(self._due)[2])
        if due:
            await self._client.report(due)

    async def _report_rest(self, elapsed_ms: float) -> None:
        """Wait for the delays that are left, up to a bound."""
        last_ms = max((at_ms for at_ms, _, _ in self._due), default=elapsed_ms)
        until_ms = min(last_ms, elapsed_ms + 1000.0 * _LAST_REPORTS_S * self._speed)
        await asyncio.sleep((until_ms - elapsed_ms) / 1000.0 / self._speed)
        await self._report(until_ms)

    async def _change_items(self, live: range) -> None:
        for number in sorted(set(self._live) - set(live)):
            await self._client.delete_item(self._ids.pop(number))
        came = sorted(set(live) - set(self._live))
        if came:
            items = [self._item(number) for number in came]
            await self._client.put_items(items)
            self._ids |= {number: item.id for number, item in zip(came, items, strict=True)}
        self._live = live

    def _item(self, number: int) -> Item:
        # Simulated time runs faster than real time, so an item may not claim to appear after now.
        item = self._world.item(number, start_ms=self._start_ms)
        available_at_ms = min(item.available_at_unix_ms or 0, time.time_ns() // 1_000_000 - 1)
        changes: dict[str, Any] = {"id": PREFIX + item.id, "available_at_unix_ms": available_at_ms}
        return msgspec.structs.replace(item, **changes)
