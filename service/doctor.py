"""`hone doctor`: start a private stack on real data, close the loop, and check every promise."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson

from service.adapters.embedded_store import store_url
from service.config import Config
from service.errors import StoreUnavailable
from service.inspect_log import audit_journal, check_skew
from service.private_stack import private_stack, require_demo
from service.web.app import WORKER_HEADER

_N_LATENCY = 300
_N_WARM_UP = 20
_N_REWARDS = 30
_N_UNLISTED = 10
_START_TIMEOUT_S = 120.0
_CHANGE_TIMEOUT_S = 10.0
_SURFACE = "home"


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise: a measured number and its bound."""

    name: str
    measured: float
    bound: float

    @property
    def kept(self) -> bool:
        """Return whether the number is within its bound."""
        return self.measured <= self.bound


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the doctor saw.

    Attributes:
        report: For JSON.
        promises: Each with its bound.
    """

    report: dict[str, Any]
    promises: list[Promise]

    @property
    def healthy(self) -> bool:
        """Return whether every promise was kept."""
        return all(promise.kept for promise in self.promises)


def diagnose(config: Config, config_path: Path | None, say: Callable[[str], None]) -> Diagnosis:
    """Run the whole examination; it touches nothing of a running service.

    Raises:
        StoreUnavailable: the private stack does not come up.
        OSError: the demo data is missing.
    """
    summary = orjson.loads(require_demo(config).read_bytes())
    with private_stack(config, config_path, say) as (private, url):
        return asyncio.run(_examine(private, url, summary, say))


async def _examine(config: Config, url: str, summary: dict[str, Any], say: Callable[[str], None]) -> Diagnosis:
    async with worker_sessions(url, config.http.workers) as sessions:
        patient = _Patient(url, sessions)
        say(f"{_N_LATENCY} recommendations")
        latencies = await patient.recommend_latencies()
        say(f"{_N_REWARDS} rewards, each awaited on {len(sessions)} workers")
        rewards = await patient.reward_latencies()
        say(f"{_N_UNLISTED} items unlisted, {_N_UNLISTED} put")
        unlisted = await patient.unlist_latencies()
        put = await patient.put_latencies()
    # The workers ship their spools within milliseconds; the audit reads what is then in the journal.
    await asyncio.sleep(0.5)
    say("auditing propensities and features")
    audit = await audit_journal(config, store_url(config))
    skew = await check_skew(config, store_url(config))
    report = {
        "recommend_ms": _percentiles(latencies, 50, 95, 99),
        "reward_to_served_ms": {**_percentiles(rewards, 50, 95), "n": len(rewards), "workers": len(sessions)},
        "propensity_audit": audit.summary(),
        "feature_skew": skew,
        "unlist_ms": _percentiles(unlisted, 50, 95),
        "put_to_recommendable_ms": _percentiles(put, 50, 95),
        "n_items": summary["n_items"],
        "n_interactions": summary["n_interactions"],
        "cpu_count": os.cpu_count(),
    }
    promises = [
        Promise("recommend p99, ms (outer bound)", report["recommend_ms"]["p99"], 100.0),
        Promise("reward to served p95, ms", report["reward_to_served_ms"]["p95"], 1_000.0),
        Promise("item unlisted everywhere p95, ms", report["unlist_ms"]["p95"], 1_000.0),
        Promise("item put to recommendable p95, ms", report["put_to_recommendable_ms"]["p95"], 1_000.0),
        Promise("propensity mismatches", audit.mismatches, 0),
        Promise("decisions missing from the audit", max(0, patient.n_decisions - audit.checked), 0),
        Promise("feature mismatches", skew.mismatches, 0),
    ]
    return Diagnosis(report=report, promises=promises)


@asynccontextmanager
async def worker_sessions(url: str, n_workers: int) -> AsyncIterator[list[aiohttp.ClientSession]]:
    """Yield one keep-alive session to each worker; the kernel spreads connections, so open until all are met."""
    by_worker: dict[str, aiohttp.ClientSession] = {}
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    try:
        while len(by_worker) < n_workers:
            if time.monotonic() > deadline_s:
                raise StoreUnavailable(f"met {len(by_worker)} of {n_workers} workers")
            session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1, keepalive_timeout=3600))
            async with session.get(f"{url}/readyz") as response:
                worker = response.headers[WORKER_HEADER]
                ready = response.status == 200
            if worker in by_worker or not ready:
                await session.close()
                await asyncio.sleep(0.01)
            else:
                by_worker[worker] = session
        yield list(by_worker.values())
    finally:
        for session in by_worker.values():
            await session.close()


class _Patient:
    """The stack under examination, seen from outside."""

    def __init__(self, url: str, sessions: list[aiohttp.ClientSession]) -> None:
        self._url = url
        self._sessions = sessions
        self.n_decisions = 0

    async def recommend(self, session: aiohttp.ClientSession, **body: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        async with session.post(f"{self._url}/v1/recommend", json={"surface": _SURFACE, **body}) as response:
            answer: dict[str, Any] = await response.json()
            if response.status != 200:
                raise StoreUnavailable(f"recommend answered {response.status}: {answer}")
            self.n_decisions += 1
            return answer

    async def recommend_latencies(self) -> list[float]:
        """Return ms of recommendations for known users who click, workers in turn, after a warm-up."""
        took = []
        for index in range(_N_LATENCY + _N_WARM_UP):
            session = self._sessions[index % len(self._sessions)]
            started = time.perf_counter()
            slate = await self.recommend(session, user_id=f"ml-{index % 30 + 1}", n=10, context={"device": "tv"})
            took.append((time.perf_counter() - started) * 1e3)
            # The next request of this user, on whichever worker, must have it in its features.
            await self._report(session, {"type": "click", "event_id": slate["event_id"], "slot": index % 10})
        return took[_N_WARM_UP:]

    async def reward_latencies(self) -> list[float]:
        """Return ms from a reward's request to a changed score of the item, on the slowest worker."""
        took = []
        for index in range(_N_REWARDS):
            slate = await self.recommend(self._sessions[0], user_id=f"doctor-{index}", n=5, context={"device": "phone"})
            shown = slate["items"][0]
            item_id = shown["item_id"]
            before = [await self._score(session, item_id) for session in self._sessions]
            started = time.perf_counter()
            # A model that predicts the reward already has nothing to learn from it: give the one it does not expect.
            reward = 0.0 if (before[0] or 0.0) > 0.5 else 1.0
            await self._report(
                self._sessions[0], {"type": "reward", "event_id": slate["event_id"], "slot": 0, "value": reward}
            )
            waits = [
                self._until(f"reward of {item_id}", partial(self._differs, session, item_id, old))
                for session, old in zip(self._sessions, before, strict=True)
            ]
            await asyncio.gather(*waits)
            took.append((time.perf_counter() - started) * 1e3)
        return took

    async def unlist_latencies(self) -> list[float]:
        """Return ms from the acknowledgement of an unlisting until no worker serves the item."""
        slate = await self.recommend(self._sessions[0], n=_N_UNLISTED)
        took = []
        for shown in slate["items"]:
            item_id = shown["item_id"]
            async with self._sessions[0].patch(f"{self._url}/v1/items/{item_id}", json={"listed": False}) as response:
                response.raise_for_status()
            started = time.perf_counter()
            await asyncio.gather(
                *(
                    self._until(f"unlisting of {item_id}", partial(self._is_gone, session, item_id))
                    for session in self._sessions
                )
            )
            took.append((time.perf_counter() - started) * 1e3)
        return took

    async def put_latencies(self) -> list[float]:
        """Return ms from the acknowledgement of a new item until every worker can recommend it."""
        took = []
        for index in range(_N_UNLISTED):
            item_id = f"doctor-item-{index}"
            item = {"id": item_id, "title": "New", "attributes": {"genres": ["Comedy"]}, "min_age": 0}
            async with self._sessions[0].put(f"{self._url}/v1/items", json=[item]) as response:
                response.raise_for_status()
            started = time.perf_counter()
            await asyncio.gather(
                *(
                    self._until(f"putting of {item_id}", partial(self._is_there, session, item_id))
                    for session in self._sessions
                )
            )
            took.append((time.perf_counter() - started) * 1e3)
        return took

    async def _report(self, session: aiohttp.ClientSession, event: dict[str, Any]) -> None:
        async with session.post(f"{self._url}/v1/events", json=event) as response:
            response.raise_for_status()

    async def _score(self, session: aiohttp.ClientSession, item_id: str) -> float | None:
        answer = await self.recommend(session, candidates=[item_id], n=1, context={"device": "phone"})
        return answer["items"][0]["score"] if answer["items"] else None

    async def _differs(self, session: aiohttp.ClientSession, item_id: str, before: float | None) -> bool:
        return await self._score(session, item_id) != before

    async def _is_gone(self, session: aiohttp.ClientSession, item_id: str) -> bool:
        return await self._score(session, item_id) is None

    async def _is_there(self, session: aiohttp.ClientSession, item_id: str) -> bool:
        return await self._score(session, item_id) is not None

    async def _until(self, what: str, holds: Callable[[], Awaitable[bool]]) -> None:
        try:
            async with asyncio.timeout(_CHANGE_TIMEOUT_S):
                while not await holds():  # noqa: ASYNC110 - polls another process over HTTP
                    await asyncio.sleep(0.005)
        except TimeoutError as error:
            raise StoreUnavailable(f"{what}: not seen within {_CHANGE_TIMEOUT_S:.0f} s") from error


def _percentiles(values: list[float], *which: int) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in which}
