"""kill -9 between an acknowledged reward and its learning: after the restart it is learned, once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from bandit.learner import Learner
from service.adapters.embedded_store import EmbeddedStore, store_url
from service.adapters.memory_store import MemoryModelStore, MemoryStore, MemoryUserStates
from service.adapters.redis_store import RedisJournal, RedisModelStore, connect
from service.bootstrap import wall_clock_ms
from service.config import Config, load_config
from service.journal_reader import position_of
from service.learn import LearnerLoop
from service.messages import Checkpoint
from service.metrics import Metrics
from tests.stack import Stack, eventually, short_folder, start_stack

MODEL = "films"
# No window closes before its reward comes, however slow the machine, and a checkpoint is always close by.
SETTINGS = {
    "HONE_SURFACES__HOME__REWARD__NEGATIVE_WINDOW_S": "300",
    "HONE_SURFACES__HOME__REWARD__WINDOW_S": "600",
    "HONE_MODELS__FILMS__CHECKPOINT_S": "0.5",
}


@pytest.fixture
def fresh_stack() -> Iterator[Stack]:
    with short_folder() as folder:
        stack = start_stack(folder, env=SETTINGS, n_items=2_000)
        try:
            yield stack
        finally:
            stack.stop()


def call(stack: Stack, path: str, body: Any) -> Any:
    request = urllib.request.Request(stack.url + path, data=json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.loads(response.read())


def recommend(stack: Stack) -> Any:
    return call(stack, "/v1/recommend", {"surface": "home", "n": 5, "user_id": "ml-7", "context": {"device": "tv"}})


def click(stack: Stack, slate: Any, slot: int) -> None:
    event = {"type": "click", "event_id": slate["event_id"], "slot": slot, "id": f"{slate['event_id']}-{slot}"}
    assert call(stack, "/v1/events", [event]) == {"accepted": 1, "duplicate": 0, "rejected": []}


def config_of(stack: Stack) -> Config:
    return load_config(environment={"HONE_DATA_DIR": str(stack.data_dir), **SETTINGS})


async def load_checkpoint(config: Config) -> Checkpoint:
    client = connect(store_url(config), timeout_s=10.0)
    try:
        stored = await RedisModelStore(client).load_checkpoint(MODEL)
    finally:
        await client.aclose()
    assert stored is not None
    return msgspec.msgpack.decode(stored, type=Checkpoint)


class JournalUpTo(RedisJournal):
    """The real journal, cut at the checkpoint, so that an undisturbed learner sees exactly what was applied."""

    def __init__(self, client: Any, *, last: str) -> None:
        super().__init__(client, n_partitions=1)
        self._last = position_of(0, last)

    async def read(self, after: Any, *, count: int, block_ms: int) -> Any:
        found = await super().read(after, count=count, block_ms=0)
        return {
            p: [entry for entry in entries if position_of(p, entry[0]) <= self._last] for p, entries in found.items()
        }

    async def append(self, partition: int, entries: Any) -> list[str]:
        return ["0-0"]  # the undisturbed learner must not write heartbeats into the journal it is compared on


async def undisturbed_learner(config: Config, last: str) -> LearnerLoop:
    client = connect(store_url(config), timeout_s=10.0)
    memory = MemoryStore(wall_clock_ms)
    try:
        loop = LearnerLoop(
            config=config,
            model=MODEL,
            journal=JournalUpTo(client, last=last),
            models=MemoryModelStore(memory),
            users=MemoryUserStates(memory, config.store),
            metrics=Metrics(),
            clock=wall_clock_ms,
        )
        await loop.start()
        while await loop.step():
            pass
    finally:
        await client.aclose()
    return loop


def weights_of(learner: Learner) -> np.ndarray:
    # The fourth column is scratch.
    return learner._workspace.weights()[:, 0, :3].copy()


def assert_learned_once(stack: Stack, *, n_clicks: int) -> None:
    """Stop the stack and compare its model, bit for bit, with a learner that was never disturbed."""
    config = config_of(stack)
    stack.stop()
    store = EmbeddedStore(stack.data_dir)
    store.start()
    try:
        checkpoint = asyncio.run(load_checkpoint(config))
        undisturbed = asyncio.run(undisturbed_learner(config, checkpoint.positions["0"]))
    finally:
        store.stop()
    disturbed = Learner(config.model_spec(MODEL), checkpoint.workspace)
    assert checkpoint.counters["slot_reward"] == n_clicks
    assert dict(undisturbed._joiner.counters) == checkpoint.counters
    assert undisturbed._learner.n_learned == checkpoint.n_learned
    np.testing.assert_array_equal(weights_of(disturbed), weights_of(undisturbed._learner))
    assert np.count_nonzero(weights_of(disturbed)) > 0


def wait_until_learned(stack: Stack, version: int) -> None:
    eventually(lambda: recommend(stack)["model_version"] > version, timeout_s=60, what="a newer model is served")


def test_a_reward_acknowledged_before_the_learner_dies_is_learned_once(fresh_stack: Stack) -> None:
    first = recommend(fresh_stack)
    click(fresh_stack, first, 0)
    wait_until_learned(fresh_stack, first["model_version"])
    # The learner is held, so that the next reward is surely acknowledged before it is learned.
    learner = fresh_stack.processes()["learner"]
    os.kill(learner, signal.SIGSTOP)
    slate = recommend(fresh_stack)
    click(fresh_stack, slate, 1)
    fresh_stack.kill("learner")
    fresh_stack.wait_restarted("learner", old_pid=learner)
    wait_until_learned(fresh_stack, slate["model_version"])
    click(fresh_stack, slate, 1)  # the caller retries: the same client id counts once
    assert_learned_once(fresh_stack, n_clicks=2)


def test_a_reward_acknowledged_before_the_store_dies_is_learned_once(fresh_stack: Stack) -> None:
    first = recommend(fresh_stack)
    click(fresh_stack, first, 0)
    wait_until_learned(fresh_stack, first["model_version"])
    learner = fresh_stack.processes()["learner"]
    os.kill(learner, signal.SIGSTOP)
    slate = recommend(fresh_stack)
    click(fresh_stack, slate, 1)
    old = fresh_stack.kill("store")
    fresh_stack.wait_restarted("store", old_pid=old)
    os.kill(learner, signal.SIGCONT)
    wait_until_learned(fresh_stack, slate["model_version"])
    assert_learned_once(fresh_stack, n_clicks=2)


def test_rewards_and_decisions_taken_while_the_store_is_down_are_learned_once(fresh_stack: Stack) -> None:
    first = recommend(fresh_stack)
    fresh_stack.kill("store")
    # Whatever of these falls into the outage goes through the spool.
    during = [recommend(fresh_stack) for _ in range(5)]
    for slate in during:
        click(fresh_stack, slate, 0)
    eventually(lambda: "store" in fresh_stack.processes(), what="the store runs again")
    version = max(slate["model_version"] for slate in during)
    wait_until_learned(fresh_stack, version)
    click(fresh_stack, first, 2)
    wait_until_learned(fresh_stack, version + 1)
    assert_learned_once(fresh_stack, n_clicks=6)


@pytest.mark.parametrize("name", ["api-0", "archiver"])
def test_a_killed_process_is_started_again_and_nothing_answered_is_lost(fresh_stack: Stack, name: str) -> None:
    slates = [recommend(fresh_stack) for _ in range(10)]
    old = fresh_stack.kill(name)
    fresh_stack.wait_restarted(name, old_pid=old)
    fresh_stack.wait_ready()
    slates += [recommend(fresh_stack) for _ in range(10)]
    for slate in slates:
        click(fresh_stack, slate, 0)
    wait_until_learned(fresh_stack, slates[-1]["model_version"])
    assert_learned_once(fresh_stack, n_clicks=20)
