"""`hone features check` on a real stack: two workers, repeated and late events, a learner that was killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import aiohttp
import pyarrow.parquet as pq
import pytest

from tests.stack import Stack, eventually, short_folder, start_stack

N_ROUNDS = 8


@pytest.fixture
def stack() -> Iterator[Stack]:
    with short_folder() as folder:
        env = {"HONE_ARCHIVE__FLUSH_S": "0.5", "HONE_MODELS__FILMS__CHECKPOINT_S": "1"}
        running = start_stack(folder, n_items=2_000, env=env)
        try:
            yield running
        finally:
            running.stop()


async def run_users(url: str, rng: random.Random) -> list[dict[str, Any]]:
    """Let 20 users ask at once, and report what they did once or twice, some of it later."""
    slates: list[dict[str, Any]] = []
    later: list[dict[str, Any]] = []

    async def visit(session: aiohttp.ClientSession, user: int) -> None:
        request = {"surface": "home", "n": 5, "user_id": f"ml-{user}", "context": {"device": "tv"}}
        async with session.post(f"{url}/v1/recommend", json=request) as response:
            assert response.status == 200
            slate = await response.json()
        slates.append({**slate, "user": user})
        item = rng.choice(slate["items"])
        event = {
            "id": f"c{rng.getrandbits(50)}",
            "type": rng.choice(["click", "skip", "view"]),
            "event_id": slate["event_id"],
            "slot": item["slot"],
        }
        for _ in range(rng.choice([1, 2])):
            if rng.random() < 0.3:
                later.append(event)
            else:
                async with session.post(f"{url}/v1/events", json=event) as response:
                    assert response.status == 202

    async with aiohttp.ClientSession() as session:
        for _ in range(N_ROUNDS):
            await asyncio.gather(*(visit(session, user) for user in range(20)))
            for event in [later.pop() for _ in range(len(later) // 2)]:
                async with session.post(f"{url}/v1/events", json=event) as response:
                    assert response.status == 202
            await asyncio.sleep(0.3)
    return slates


def n_archived(stack: Stack) -> int:
    files = (stack.data_dir / "archive" / "decisions").rglob("*.parquet")
    return sum(pq.ParquetFile(path).metadata.num_rows for path in files)


def check(stack: Stack) -> tuple[int, dict[str, Any]]:
    environment = {**os.environ, **stack.environment}
    command = [sys.executable, "-m", "service", "features", "check", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    return done.returncode, json.loads(done.stdout)


def test_what_a_real_stack_served_is_what_its_archive_says(stack: Stack) -> None:
    rng = random.Random(1)
    slates = asyncio.run(run_users(stack.url, rng))
    old = stack.kill("learner")
    slates += asyncio.run(run_users(stack.url, rng))
    stack.wait_restarted("learner", old_pid=old)
    slates += asyncio.run(run_users(stack.url, rng))
    eventually(lambda: n_archived(stack) == len(slates), what="every decision is archived")
    code, report = check(stack)
    assert report["examples"] == []
    assert (code, report["n_mismatches"], report["n_decisions"]) == (0, 0, len(slates))
    assert report["n_profiles_changed"] == 0
    assert report["n_values"] > 60_000

    # The archive and the store disagree about one profile now, and say so rather than call it a mismatch.
    asyncio.run(move(stack.url, "ml-3"))
    code, report = check(stack)
    assert (code, report["n_mismatches"]) == (0, 0)
    # A state that was not read in time was read as empty, and that is what it is compared with.
    read = [slate for slate in slates if slate["user"] == 3 and "features" not in slate["degraded"]]
    assert report["n_profiles_changed"] == len(read) > 0


async def move(url: str, user_id: str) -> None:
    async with aiohttp.ClientSession() as session:
        body = [{"user_id": user_id, "country": "NZ"}]
        async with session.put(f"{url}/v1/users", json=body) as response:
            assert response.status < 300, await response.text()
