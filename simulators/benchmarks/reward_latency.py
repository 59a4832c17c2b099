"""How soon a reward changes what every worker of a whole stack serves, while many others come in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import aiohttp
import numpy as np

from service.config import Config
from service.doctor import worker_sessions

_REWARDS_PER_S, _SLOTS = 500, 10
_N_PROBES = 60
_N_USERS = 900
_POLL_S = 0.01


async def bench_reward_latency(config: Config, url: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure probes on every worker in turn with the load of other rewards, on the `home` surface."""
    async with worker_sessions(url, config.http.workers) as sessions:
        say(f"rewards to served: {_N_PROBES} probes among {_REWARDS_PER_S} rewards/s")
        load = _Load(url)
        loading = asyncio.create_task(load.run())
        await asyncio.sleep(2.0)
        load.start_counting()
        latencies = [await _probe(url, sessions, number) for number in range(_N_PROBES)]
        rate = load.rewards_per_s()
        loading.cancel()
        with suppress(asyncio.CancelledError):
            await loading
    q50, q95, worst = np.percentile(latencies, (50, 95, 100)).tolist()
    return {
        "n_probes": len(latencies),
        "n_workers": len(sessions),
        "asked_rewards_per_s": _REWARDS_PER_S,
        "accepted_rewards_per_s": round(rate),
        "p50_ms": round(q50, 1),
        "p95_ms": round(q95, 1),
        "max_ms": round(worst, 1),
    }


async def _probe(url: str, sessions: list[aiohttp.ClientSession], number: int) -> float:
    """Return ms from a reward's request to its effect on the slowest worker.

    Two items that differ in their id alone score the same until one of them is learned; what else is learned meanwhile
    moves both.
    """
    probe, control = f"probe-{number}", f"control-{number}"
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


class _Load:
    """Slates at a constant rate, each followed by a reward for every slot, one request a reward."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._n_accepted = 0
        self._counted_from_s = 0.0

    async def run(self) -> None:
        """Run until cancelled."""
        connector = aiohttp.TCPConnector(limit=64)
        async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
            started, number = time.perf_counter(), 0
            while True:
                due_s = started + number * _SLOTS / _REWARDS_PER_S
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                group.create_task(self._visit(session, number))
                number += 1

    def start_counting(self) -> None:
        """Count rewards from now on."""
        self._n_accepted, self._counted_from_s = 0, time.perf_counter()

    def rewards_per_s(self) -> float:
        """Return the rate of rewards that were accepted."""
        return self._n_accepted / (time.perf_counter() - self._counted_from_s)

    async def _visit(self, session: aiohttp.ClientSession, number: int) -> None:
        body = {"surface": "home", "user_id": f"ml-{number % _N_USERS + 1}", "n": _SLOTS, "context": {"device": "tv"}}
        with suppress(aiohttp.ClientError):
            async with session.post(f"{self._url}/v1/recommend", json=body) as response:
                slate = await response.json()
            for item in slate["items"]:
                value = float(item["slot"] == number % _SLOTS)
                event = {"type": "reward", "event_id": slate["event_id"], "slot": item["slot"], "value": value}
                async with session.post(f"{self._url}/v1/events", json=event) as response:
                    self._n_accepted += response.status == 202
