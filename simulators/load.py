"""A load generator: open loop at a constant rate, or closed loop with a number of clients.

An open loop starts each request at its appointed time whether or not earlier ones have been answered, and counts
latency from that time; a closed loop would wait with a slow server and hide its stalls.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

Request = dict[str, Any]


@dataclass(slots=True)
class LoadResult:
    """What a run saw.

    Attributes:
        latencies_ms: One a request.
        statuses: Answers by HTTP status; `error` for none.
        seconds: From the first request to the last answer.
    """

    latencies_ms: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Return counts, rate and percentiles."""
        q50, q90, q99, worst = np.percentile(self.latencies_ms, (50, 90, 99, 100)).tolist()
        return {
            "n": len(self.latencies_ms),
            "requests_per_s": round(len(self.latencies_ms) / self.seconds, 1),
            "p50_ms": round(q50, 3),
            "p90_ms": round(q90, 3),
            "p99_ms": round(q99, 3),
            "max_ms": round(worst, 3),
            "statuses": dict(self.statuses),
        }


def recommend_requests(surface: str, *, n: int, n_users: int) -> Iterator[Request]:
    """Yield requests of known users in turn, without end."""
    for index in itertools.count():
        yield {"surface": surface, "user_id": f"ml-{index % n_users + 1}", "n": n, "context": {"device": "tv"}}


async def open_loop(url: str, requests: Iterator[Request], *, rate: float, seconds: float) -> LoadResult:
    """Send `rate` requests a second for `seconds`, each at its own time."""
    result = LoadResult()
    async with _session(limit=0) as session:
        started = time.perf_counter()
        tasks = []
        for index in range(int(rate * seconds)):
            due = started + index / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(_send(session, url, next(requests), result, due)))
        await asyncio.gather(*tasks)
        result.seconds = time.perf_counter() - started
    return result


async def closed_loop(url: str, requests: Iterator[Request], *, n_clients: int, seconds: float) -> LoadResult:
    """Let clients send one request after the other for `seconds`."""
    result = LoadResult()
    async with _session(limit=n_clients) as session:
        started = time.perf_counter()

        async def client() -> None:
            while time.perf_counter() - started < seconds:
                await _send(session, url, next(requests), result, time.perf_counter())

        clients: list[Awaitable[None]] = [client() for _ in range(n_clients)]
        await asyncio.gather(*clients)
        result.seconds = time.perf_counter() - started
    return result


def _session(*, limit: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=limit), timeout=aiohttp.ClientTimeout(total=30))


async def _send(session: aiohttp.ClientSession, url: str, request: Request, result: LoadResult, due: float) -> None:
    try:
        async with session.post(f"{url}/v1/recommend", json=request) as response:
            await response.read()
            status = str(response.status)
    except (aiohttp.ClientError, TimeoutError):
        status = "error"
    result.latencies_ms.append((time.perf_counter() - due) * 1e3)
    result.statuses[status] += 1
