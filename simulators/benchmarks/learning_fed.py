"""A learner that another process feeds at a constant rate: how old what it applies is, and when it keeps up."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import uvloop

from service.adapters.embedded_store import store_url
from service.adapters.redis_store import connect
from service.bootstrap import wall_clock_ms
from service.config import Config
from service.messages import Decision, encode
from simulators.benchmarks.learning_journal import JOURNAL, Slates, write_entries
from simulators.benchmarks.learning_loop import measured_loop, one_core, private_store

# Tried from the first on, until one is sustained.
_EVENTS_PER_S = (5_000, 4_000, 3_000, 2_000, 1_000)
_FEED_S = 60.0
_NEGATIVE_WINDOW_S = 2.0
_TICK_S = 0.02
# Rewards come half a second after their decision.
_DELAY_TICKS = 25
# Lag is bounded when 95% of it is below this in the last third of the run, with nothing fed that was not joined.
_BOUND_S = 1.0
# What the archiver of a stack does: the journal does not grow for ever.
_TRIM_EVERY_TICKS, _KEPT_MS = 100, 30_000


def bench_fed(
    config: Config, templates: Sequence[Decision], rewards_per_slate: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return the figures by rate, from 5,000 joined events a second down to the first that is sustained."""
    runs = {}
    for rate in _EVENTS_PER_S:
        say(f"learning while {rate} events/s come in, {rewards_per_slate} a slate")
        with private_store(config) as own:
            run = uvloop.run(_fed(_with_window(own), templates, rate, rewards_per_slate))
        runs[str(rate)] = run
        if run["is_bounded"]:
            break
    return runs


async def _fed(config: Config, templates: Sequence[Decision], rate: int, rewards_per_slate: int) -> dict[str, Any]:
    client = connect(store_url(config), timeout_s=60.0)
    loop, _ = measured_loop(config, client)
    await loop.start()
    context = multiprocessing.get_context("spawn")
    n_fed = context.Value("q", 0)
    payloads = [encode(template) for template in templates]
    arguments = (store_url(config), payloads, rate, rewards_per_slate, _FEED_S, n_fed)
    feeder = context.Process(target=_feed, args=arguments, daemon=True)
    feeder.start()
    lags: list[tuple[float, float]] = []
    with one_core():
        while not loop.counters["decision"]:
            await loop.step()
        started, started_cpu = time.perf_counter(), time.process_time()
        # A learner that falls ever further behind is not waited for.
        while time.perf_counter() - started < 2 * _FEED_S:
            # An idle learner applies only its own heartbeats, which are as old as it lets them become.
            if await loop.step() > 1:
                lags.append((time.perf_counter() - started, loop.lag_s))
            if not feeder.is_alive() and loop.counters["reward_joined"] >= n_fed.value:
                break
        cpu_s = time.process_time() - started_cpu
    feeder.terminate()
    feeder.join()
    await client.aclose()
    counters, seconds = loop.counters, lags[-1][0]
    # Until the feeder ended: what is caught up afterwards says nothing of the rate.
    while_fed = [lag for lag in lags if lag[0] <= _FEED_S]
    thirds = [
        [lag for at_s, lag in while_fed if first <= at_s < last] for first, last in pairwise(np.linspace(0, _FEED_S, 4))
    ]
    q50, q95, worst = np.percentile([lag for _, lag in while_fed], (50, 95, 100)).tolist()
    last_q95 = float(np.percentile(thirds[-1], 95)) if thirds[-1] else float("inf")
    return {
        "asked_events_per_s": rate,
        "fed_events_per_s": round(n_fed.value / _FEED_S),
        "joined_events_per_s": round(counters["reward_joined"] / max(seconds, _FEED_S)),
        "learned_slots_per_s": round((counters["slot_reward"] + counters["slot_default"]) / max(seconds, _FEED_S)),
        "seconds": round(seconds, 1),
        "learner_cpu_share": round(cpu_s / seconds, 3),
        "lag_s_p50": round(q50, 3),
        "lag_s_p95": round(q95, 3),
        "lag_s_max": round(worst, 3),
        "lag_s_p95_by_third": [round(float(np.percentile(third, 95)), 3) for third in thirds if third],
        "n_fed_not_joined": n_fed.value - counters["reward_joined"],
        "is_bounded": last_q95 <= _BOUND_S and n_fed.value == counters["reward_joined"],
    }


def _feed(url: str, payloads: Sequence[bytes], rate: int, rewards_per_slate: int, feed_s: float, n_fed: Any) -> None:  # noqa: ANN401 - a shared value
    templates = [msgspec.msgpack.decode(payload, type=Decision) for payload in payloads]
    slates = Slates(templates, rewards_per_slate=rewards_per_slate, seed=22)
    uvloop.run(_feed_at_rate(url, slates, rate / rewards_per_slate, feed_s, n_fed))


async def _feed_at_rate(url: str, slates: Slates, decisions_per_s: float, feed_s: float, n_fed: Any) -> None:  # noqa: ANN401 - a shared value
    """Append decisions at a constant rate, whatever the learner does, and the events of each after it."""
    client = connect(url, timeout_s=60.0)
    clicks: deque[list[bytes]] = deque([[] for _ in range(_DELAY_TICKS)])
    number, started = 0, time.perf_counter()
    for tick in range(int(feed_s / _TICK_S)):
        await asyncio.sleep(max(0.0, started + tick * _TICK_S - time.perf_counter()))
        happened, later = clicks.popleft(), []
        n_rewards = len(happened)
        while number < (tick + 1) * _TICK_S * decisions_per_s:
            decision, rewards = slates.decide(number, wall_clock_ms())
            happened.append(decision)
            later += rewards
            number += 1
        clicks.append(later)
        await write_entries(client, [("*", entry) for entry in happened])
        n_fed.value += n_rewards
        if tick % _TRIM_EVERY_TICKS == 0:
            await client.xtrim(JOURNAL, minid=str(wall_clock_ms() - _KEPT_MS), approximate=True)
    await client.aclose()


def _with_window(config: Config) -> Config:
    """Return the configuration with short negative windows, so that defaults are learned during the run."""
    surfaces = {
        name: msgspec.structs.replace(
            surface, reward=msgspec.structs.replace(surface.reward, negative_window_s=_NEGATIVE_WINDOW_S)
        )
        for name, surface in config.surfaces.items()
    }
    return msgspec.structs.replace(config, surfaces=surfaces)
