"""`hone bench learning`: join, learn and publish on one core, and how soon a reward is served by a whole stack.

The journal of the first two parts is filled with decisions that a real stack made on the demo data, under new ids.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvloop
from redis.asyncio import Redis
from vowpal_wabbit_next import CBLabel, Workspace

from bandit.vw_format import ExamplePool, VwWorkspace, predict_then_learn_cost
from service.adapters.embedded_store import EmbeddedStore, store_url
from service.adapters.redis_store import RedisChangeLog, RedisJournal, RedisModelStore, RedisUserStates, connect
from service.bootstrap import wall_clock_ms
from service.config import Config
from service.count_items import ItemCounting
from service.learn import LearnerLoop
from service.learned import Learnable, learned_decision
from service.messages import Decision, Event, Heartbeat, encode
from service.metrics import Metrics
from service.private_stack import private_stack
from simulators.benchmarks.reward_latency import bench_reward_latency
from simulators.optimism import bench_optimism

# Written with ids of one's own, so that hours of journal time can be filled in seconds.
_JOURNAL = "hone:{0}:journal"
_N_TEMPLATES = 400
_N_USERS = 900
_N_DECISIONS, _DECISIONS_PER_S = 3_000, 1_000
# Of the 10 slots of a slate, so many get a reward event; the others learn the default.
_REWARDS_PER_DECISION = 5
_FEED_EVENTS_PER_S, _FEED_S = 5_000, 12.0
_FEED_NEGATIVE_WINDOW_S = 2.0
_TICK_S = 0.02


def bench_learning(config: Config, config_path: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure a full journal, a journal that is fed at a constant rate, a whole stack, and the optimism of modes."""
    config = msgspec.structs.replace(config, http=msgspec.structs.replace(config.http, workers=2))
    with private_stack(config, config_path, say) as (private, url):
        latency = asyncio.run(bench_reward_latency(private, url, say))
        templates = asyncio.run(_decisions(private))
    say("learning a full journal on one core")
    with _store(config) as own:
        throughput = uvloop.run(_throughput(own, templates))
    say(f"learning while {_FEED_EVENTS_PER_S} events/s come in")
    with _store(config) as own:
        fed = uvloop.run(_fed(_with_window(own, _FEED_NEGATIVE_WINDOW_S), templates))
    say("measuring optimism")
    return {"throughput": throughput, "fed": fed, "reward_to_served": latency, "optimism": bench_optimism()}


class _TimedModels(RedisModelStore):
    """Adds up the time that publishing and checkpoints take."""

    def __init__(self, client: Redis) -> None:
        super().__init__(client)
        self.publish_s = 0.0
        self.n_bytes = 0

    async def publish_delta(self, model: str, epoch: int, delta: bytes) -> str:
        started = time.perf_counter()
        entry_id = await super().publish_delta(model, epoch, delta)
        self.publish_s += time.perf_counter() - started
        self.n_bytes += len(delta)
        return entry_id


@contextmanager
def _store(config: Config) -> Iterator[Config]:
    folder = Path(tempfile.mkdtemp(prefix="hone-bench-", dir="/tmp"))  # socket paths must be short
    store = EmbeddedStore(folder)
    try:
        store.start()
        url = msgspec.structs.replace(config.store, url="")
        yield msgspec.structs.replace(config, data_dir=str(folder), store=url)
    finally:
        store.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _one_core() -> Iterator[None]:
    """Keep this process on one core; children that run already keep theirs."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


async def _decisions(config: Config) -> list[Decision]:
    """Return decisions of full slates from a journal."""
    client = connect(store_url(config), timeout_s=30.0)
    found: list[Decision] = []
    decoder = msgspec.msgpack.Decoder(Decision)
    after = "0-0"
    while len(found) < _N_TEMPLATES:
        entries = (await RedisJournal(client, n_partitions=1).read({0: after}, count=200, block_ms=0)).get(0)
        if not entries:
            break
        after = entries[-1][0]
        # The tag stands near the beginning of an entry; events and probes are no slates.
        decisions = (decoder.decode(payload) for _, payload in entries if b"decision" in payload[:40])
        found += [decision for decision in decisions if len(decision.slots) == 10]
    await client.aclose()
    return found[:_N_TEMPLATES]


def _learner(config: Config, client: Redis) -> tuple[LearnerLoop, _TimedModels]:
    models = _TimedModels(client)
    loop = LearnerLoop(
        config=config,
        model="films",
        journal=RedisJournal(client, n_partitions=1),
        models=models,
        users=RedisUserStates(client, config.store),
        metrics=Metrics(),
        clock=wall_clock_ms,
        counting=ItemCounting(config=config, log=RedisChangeLog(client)),
    )
    return loop, models


def _entries(templates: Sequence[Decision], number: int, at_ms: int, rng: np.random.Generator) -> list[bytes]:
    """Return a decision and the reward events of its slate."""
    user, template = number % _N_USERS, templates[number % len(templates)]
    event_id = f"bench-{number}"
    decision = msgspec.structs.replace(
        template, event_id=event_id, user_id=f"ml-{user}", user_key=f"key-{user}", decided_at_unix_ms=at_ms
    )
    slots = rng.permutation(len(template.slots))[:_REWARDS_PER_DECISION].tolist()
    clicks = [
        Event(
            accepted_at_unix_ms=at_ms,
            client_id=f"{event_id}-{slot}",
            event_type="click",
            event_id=event_id,
            user_id=f"ml-{user}",
            user_key=f"key-{user}",
            item_id=None,
            slot=slot,
            value=1.0,
            client_unix_ms=None,
        )
        for slot in slots
    ]
    return [encode(decision), *map(encode, clicks)]


async def _throughput(config: Config, templates: Sequence[Decision]) -> dict[str, Any]:
    client = connect(store_url(config), timeout_s=60.0)
    n_entries = await _fill(client, templates)
    loop, models = _learner(config, client)
    await loop.start()
    learn_us = _bare_learn_us(config, templates)
    with _one_core():
        started, started_cpu = time.perf_counter(), time.process_time()
        n_applied = 0
        while n_applied < n_entries:
            n_applied += await loop.step()
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    await client.aclose()
    counters = loop.counters
    n_slots = counters["slot_reward"] + counters["slot_default"]
    return {
        "n_decisions": counters["decision"],
        "n_slots_per_decision": 10,
        "n_reward_events": counters["reward_joined"],
        "seconds": round(wall_s, 2),
        "joined_events_per_s": round(counters["reward_joined"] / wall_s),
        "learned_slots_per_s": round(n_slots / wall_s),
        "joined_events_per_cpu_s": round(counters["reward_joined"] / cpu_s),
        "learned_slots_per_cpu_s": round(n_slots / cpu_s),
        "cpu_us_per_slot": round(cpu_s / n_slots * 1e6, 1),
        "bare_vw_us_per_slot": round(learn_us, 1),
        "publish_share": round(models.publish_s / wall_s, 3),
        "published_mb": round(models.n_bytes / 1e6, 1),
    }


def _bare_learn_us(config: Config, templates: Sequence[Decision]) -> float:
    """Return what VW alone takes to learn one slot, on this machine now."""
    spec = config.model_spec("films")
    workspace: VwWorkspace = Workspace(spec.arguments())
    pool, took_s = ExamplePool(), []
    for template in templates:
        held = Learnable.of(learned_decision(encode(template)))
        for slot, action in enumerate(held.actions):
            label = CBLabel(label=(-float(slot == 0), held.propensities[slot]))
            examples = [pool.fill_shared(held.shared), pool.fill_action(0, action, label=label)]
            started = time.perf_counter()
            predict_then_learn_cost(workspace, examples)
            took_s.append(time.perf_counter() - started)
    return float(np.median(took_s)) * 1e6


async def _fill(client: Redis, templates: Sequence[Decision]) -> int:
    """Write the journal of some seconds, and a heartbeat that closes every window; return the number of entries."""
    rng = np.random.default_rng(21)
    begin_ms = wall_clock_ms() - 3_600_000
    happened: list[tuple[int, bytes]] = []
    for number in range(_N_DECISIONS):
        at_ms = begin_ms + number * 1_000 // _DECISIONS_PER_S
        decision, *clicks = _entries(templates, number, at_ms, rng)
        happened.append((at_ms, decision))
        happened += [(at_ms + 1 + int(rng.exponential(5_000)), click) for click in clicks]
    happened.sort(key=lambda entry: entry[0])
    happened.append((happened[-1][0] + 120_000, encode(Heartbeat(at_unix_ms=happened[-1][0]))))
    for first in range(0, len(happened), 500):
        pipeline = client.pipeline(transaction=False)
        for sequence, (at_ms, entry) in enumerate(happened[first : first + 500], first):
            pipeline.xadd(_JOURNAL, {"e": entry}, id=f"{at_ms}-{sequence}")
        await pipeline.execute()
    return len(happened)


async def _fed(config: Config, templates: Sequence[Decision]) -> dict[str, Any]:
    client = connect(store_url(config), timeout_s=60.0)
    loop, _ = _learner(config, client)
    await loop.start()
    context = multiprocessing.get_context("spawn")
    payloads = [encode(template) for template in templates]
    feeder = context.Process(target=_feed, args=(store_url(config), payloads), daemon=True)
    feeder.start()
    lags: list[tuple[float, float]] = []
    with _one_core():
        while not await loop.step():
            pass
        started, idle = time.perf_counter(), 0
        while idle < 10:
            n_applied = await loop.step()
            # Heartbeats of its own keep an idle learner at one entry a second.
            idle = 0 if n_applied > 5 else idle + 1
            if n_applied > 5:
                lags.append((time.perf_counter() - started, loop.lag_s))
    feeder.join()
    await client.aclose()
    counters = loop.counters
    fed_s = lags[-1][0]
    thirds = [[lag for at, lag in lags if first <= at < last] for first, last in pairwise(np.linspace(0, fed_s, 4))]
    return {
        "asked_events_per_s": _FEED_EVENTS_PER_S,
        "fed_events_per_s": round(counters["reward_joined"] / fed_s),
        "learned_slots_per_s": round((counters["slot_reward"] + counters["slot_default"]) / fed_s),
        "seconds": round(fed_s, 1),
        "lag_s_p50_by_third": [round(float(np.median(third)), 3) for third in thirds if third],
        "lag_s_max": round(max(lag for _, lag in lags), 3),
    }


def _feed(url: str, payloads: Sequence[bytes]) -> None:
    uvloop.run(_feed_at_rate(url, [msgspec.msgpack.decode(payload, type=Decision) for payload in payloads]))


async def _feed_at_rate(url: str, templates: Sequence[Decision]) -> None:
    """Append decisions at a constant rate, and the events of each half a second after it."""
    client, rng = connect(url, timeout_s=60.0), np.random.default_rng(22)
    per_tick = round(_FEED_EVENTS_PER_S / _REWARDS_PER_DECISION * _TICK_S)
    clicks: deque[list[bytes]] = deque([[] for _ in range(25)])
    number, started = 0, time.perf_counter()
    for tick in range(int(_FEED_S / _TICK_S)):
        await asyncio.sleep(max(0.0, started + tick * _TICK_S - time.perf_counter()))
        pipeline, later = client.pipeline(transaction=False), []
        for entry in clicks.popleft():
            pipeline.xadd(_JOURNAL, {"e": entry})
        for _ in range(per_tick):
            decision, *rewards = _entries(templates, number, wall_clock_ms(), rng)
            pipeline.xadd(_JOURNAL, {"e": decision})
            later += rewards
            number += 1
        clicks.append(later)
        await pipeline.execute()
    await client.aclose()


def _with_window(config: Config, negative_window_s: float) -> Config:
    """Return the configuration with short negative windows, so that defaults are learned during the run."""
    surfaces = {
        name: msgspec.structs.replace(
            surface, reward=msgspec.structs.replace(surface.reward, negative_window_s=negative_window_s)
        )
        for name, surface in config.surfaces.items()
    }
    return msgspec.structs.replace(config, surfaces=surfaces)
