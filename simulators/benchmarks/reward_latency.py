"""How soon a reward changes what every worker of a whole stack serves, while many others come in.

The load is an open loop of a process of its own: each request has its time, is sent whether or not earlier ones were
answered, and its latency counts from that time. Slates are asked for at a tenth of the rate of rewards, and every slot
of a slate gets one reward event; rewards are sent one a request, and again as lists of a slate's ten, as back ends do.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import aiohttp
import numpy as np
import uvloop

from service.config import Config
from service.doctor import worker_sessions

_REWARDS_PER_S, _SLOTS = 500, 10
# Slates are asked for so long before the first reward, and rewards are sent so long before the first probe.
_AHEAD_S, _WARM_S = 1.0, 3.0
_N_PROBES, _PROBING_S = 60, 90.0
_N_USERS = 900
# What is measured is at most so much too long; asking more often would be a load of its own.
_POLL_S = 0.025


async def bench_reward_latency(config: Config, url: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure probes on every worker in turn with the load of other rewards, on the `home` surface."""
    results = {}
    for name, per_request in (("one_a_request", 1), ("ten_a_request", _SLOTS)):
        say(f"rewards to served: {_N_PROBES} probes among {_REWARDS_PER_S} rewards/s, {per_request} a request")
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        load = context.Process(target=_run_load, args=(url, per_request, theirs), daemon=True)
        load.start()
        try:
            async with worker_sessions(url, config.http.workers) as sessions:
                await asyncio.to_thread(ours.recv)
                ours.send("count")
                latencies: list[float] = []
                # A stack that falls ever further behind would not end by itself.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PROBING_S):
                        for number in range(_N_PROBES):
                            latencies.append(await _probe(url, sessions, number))
                ours.send("stop")
                figures = await asyncio.to_thread(ours.recv)
        finally:
            load.terminate()
            load.join()
        results[name] = {
            "n_probes": len(latencies),
            "n_probes_asked": _N_PROBES,
            "n_workers": config.http.workers,
            "asked_rewards_per_s": _REWARDS_PER_S,
            **_percentiles_ms("", latencies),
            **figures,
        }
    return results


async def _probe(url: str, sessions: list[aiohttp.ClientSession], number: int) -> float:
    """Return ms from a reward's request to its effect on the slowest worker.

    Two items that differ in their id alone score the same until one of them is learned; what else is learned meanwhile
    moves both.
    """
    probe, control = f"probe-{number}-{time.time_ns()}", f"control-{number}"
    slate = await _recommend(sessions[0], url, [probe])
    event = {"type": "reward", "event_id": slate["event_id"], "slot": 0, "value": 1.0}
    started = time.perf_counter()
    async with sessions[0].post(f"{url}/v1/events", json=event) as response:
        response.raise_for_status()

    async def seen(session: aiohttp.ClientSession) -> None:
        while True:
            items = (await _recommend(session, url, [probe, control]))["items"]
            if items[0]["score"] != items[1]["score"]:
                return
            await asyncio.sleep(_POLL_S)

    await asyncio.gather(*map(seen, sessions))
    return (time.perf_counter() - started) * 1e3


async def _recommend(session: aiohttp.ClientSession, url: str, item_ids: list[str]) -> Any:  # noqa: ANN401 - JSON
    candidates = [{"id": item_id, "attributes": {"genres": ["Comedy"]}} for item_id in item_ids]
    body = {"surface": "home", "n": len(item_ids), "candidates": candidates, "context": {"device": "phone"}}
    async with session.post(f"{url}/v1/recommend", json=body) as response:
        response.raise_for_status()
        return await response.json()


def _percentiles_ms(prefix: str, latencies_ms: list[float]) -> dict[str, float | None]:
    names = (f"{prefix}p50_ms", f"{prefix}p95_ms", f"{prefix}max_ms")
    if not latencies_ms:
        return dict.fromkeys(names)
    return dict(zip(names, np.percentile(latencies_ms, (50, 95, 100)).round(1).tolist(), strict=True))


def _run_load(url: str, per_request: int, probes: Any) -> None:  # noqa: ANN401 - a connection
    uvloop.run(_Load(url, per_request).run(probes))


class _Load:
    """Slates at a constant rate and rewards of their slots at ten times that rate, over kept connections."""

    def __init__(self, url: str, per_request: int) -> None:
        self._url = url
        self._per_request = per_request
        self._due: deque[dict[str, Any]] = deque()
        self._n_asked = 0
        self._statuses: Counter[str] = Counter()
        self._latencies_ms: list[float] = []
        self._counted_from_s = 0.0

    async def run(self, probes: Any) -> None:  # noqa: ANN401 - a connection
        """Run until the other side says that it has measured; the figures are from when it began to."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0)
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            rate = _REWARDS_PER_S / _SLOTS
            asking = asyncio.create_task(self._at_rate(rate, lambda number, _: self._ask(session, number)))
            await asyncio.sleep(_AHEAD_S)
            rate = _REWARDS_PER_S / self._per_request
            rewarding = asyncio.create_task(self._at_rate(rate, lambda _, due_s: self._reward(session, due_s)))
            await asyncio.sleep(_WARM_S)
            probes.send("ready")
            await asyncio.to_thread(probes.recv)
            self._n_asked, self._counted_from_s = 0, time.perf_counter()
            self._statuses.clear()
            self._latencies_ms.clear()
            await asyncio.to_thread(probes.recv)
            probes.send(self._figures(time.perf_counter() - self._counted_from_s))
            asking.cancel()
            rewarding.cancel()

    def _figures(self, seconds: float) -> dict[str, Any]:
        return {
            "sent_rewards_per_s": round(self._n_asked / seconds),
            "accepted_rewards_per_s": round(self._statuses["202"] / seconds),
            "statuses": dict(self._statuses),
            **_percentiles_ms("answered_", self._latencies_ms),
        }

    @staticmethod
    async def _at_rate(rate: float, send: Callable[[int, float], Coroutine[Any, Any, None]]) -> None:
        """Start a request at each of its times; one that is late is started at once, and its latency says so."""
        started, number = time.perf_counter(), 0
        async with asyncio.TaskGroup() as group:
            while True:
                due_s = started + number / rate
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                group.create_task(send(number, due_s))
                number += 1

    async def _ask(self, session: aiohttp.ClientSession, number: int) -> None:
        user_id = f"ml-{number % _N_USERS + 1}"
        body = {"surface": "home", "user_id": user_id, "n": _SLOTS, "context": {"device": "tv"}}
        try:
            async with session.post(f"{self._url}/v1/recommend", json=body) as response:
                slate = await response.json()
        except (aiohttp.ClientError, TimeoutError):
            self._statuses["slate_error"] += 1
            return
        for item in slate["items"]:
            value = float(item["slot"] == 0)
            self._due.append({"type": "reward", "event_id": slate["event_id"], "slot": item["slot"], "value": value})

    async def _reward(self, session: aiohttp.ClientSession, due_s: float) -> None:
        if len(self._due) < self._per_request:
            # Slates are late: these rewards are not sent, and missing in the rate.
            self._statuses["no_slate"] += self._per_request
            return
        events = [self._due.popleft() for _ in range(self._per_request)]
        self._n_asked += len(events)
        try:
            body = events if self._per_request > 1 else events[0]
            async with session.post(f"{self._url}/v1/events", json=body) as response:
                await response.read()
                status = str(response.status)
        except (aiohttp.ClientError, TimeoutError):
            status = "error"
        self._statuses[status] += len(events)
        self._latencies_ms.append((time.perf_counter() - due_s) * 1e3)
