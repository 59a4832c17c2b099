"""`hone bench learning`: join, learn and publish on one core, and how soon a reward is served by a whole stack.

A joined event is a reward event that was joined with the decision it belongs to. Events that were dropped, and slots
that nobody rewarded, are none. Every slot of a decision is learned exactly once, with its reward or with the default,
so of slates of 10 slots with 5 rewards a learner learns two slots for each joined event; both rates are reported, each
by wall clock and by the processor time of the learner's process, which says more where a machine is shared.

The journal is filled with slates that a real stack decided on the demo data, see `learning_journal`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvloop
from redis.asyncio import Redis
from vowpal_wabbit_next import CBLabel, Workspace

from bandit.vw_format import ExamplePool, VwWorkspace, predict_then_learn_cost
from service.adapters.embedded_store import store_url
from service.adapters.redis_store import connect
from service.bootstrap import wall_clock_ms
from service.config import Config
from service.learned import Learnable, learned_decision
from service.messages import Decision, Heartbeat, encode
from service.private_stack import private_stack
from simulators.benchmarks.learning_fed import bench_fed
from simulators.benchmarks.learning_journal import N_SLOTS, N_USERS, Slates, fetch_templates, write_entries
from simulators.benchmarks.learning_loop import measured_loop, one_core, private_store
from simulators.benchmarks.reward_latency import bench_reward_latency
from simulators.optimism import bench_optimism

_N_DECISIONS, _DECISIONS_PER_S = 4_000, 1_000
# Of the 10 slots of a slate, so many get a reward event; the others learn the default.
_REWARDS_PER_SLATE = (10, 5)
_BATCH = 500
_N_BARE = 400


def bench_learning(config: Config, config_path: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure a whole stack, a full journal, one that is fed at a constant rate, and the optimism of modes."""
    config = msgspec.structs.replace(config, http=msgspec.structs.replace(config.http, workers=2))
    with private_stack(config, config_path, say) as (private, url):
        latency = asyncio.run(bench_reward_latency(private, url, say))
        templates = asyncio.run(fetch_templates(private))
    throughput, fed = {}, {}
    for n_rewards in _REWARDS_PER_SLATE:
        name = f"{n_rewards}_rewards_a_slate"
        say(f"learning a full journal on one core, {n_rewards} rewards a slate")
        throughput[name] = bench_throughput(config, templates, n_rewards)
        fed[name] = bench_fed(config, templates, n_rewards, say)
    say("measuring optimism")
    return {"throughput": throughput, "fed": fed, "reward_to_served": latency, "optimism": bench_optimism()}


def bench_throughput(config: Config, templates: Sequence[Decision], rewards_per_slate: int) -> dict[str, Any]:
    """Learn a full journal as fast as one core can, and again with every stage timed."""
    slates = Slates(templates, rewards_per_slate=rewards_per_slate, seed=21)
    with private_store(config) as own:
        figures = uvloop.run(_throughput(own, slates, is_staged=False))
    with private_store(config) as own:
        staged = uvloop.run(_throughput(own, slates, is_staged=True))
    return {
        **figures,
        "bare_vw_us_per_slot": round(_bare_learn_us(config, slates), 1),
        "stages_cpu_us_per_joined_event": staged["stages_cpu_us_per_joined_event"],
    }


async def _throughput(config: Config, slates: Slates, *, is_staged: bool) -> dict[str, Any]:
    client = connect(store_url(config), timeout_s=60.0)
    n_entries = await _fill(client, slates)
    loop, models = measured_loop(config, client)
    await loop.start()
    with one_core():
        spent = loop.time_stages() if is_staged else {}
        started, started_cpu = time.perf_counter(), time.process_time()
        n_applied = 0
        while n_applied < n_entries:
            n_applied += await loop.step()
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    await client.aclose()
    counters = loop.counters
    n_joined, n_slots = counters["reward_joined"], counters["slot_reward"] + counters["slot_default"]
    spent = {**spent, "other": spent["step"] - (sum(spent.values()) - spent["step"])} if spent else {}
    return {
        "n_decisions": counters["decision"],
        "n_users": N_USERS,
        "n_slots_per_decision": N_SLOTS,
        "n_joined_events": n_joined,
        "n_learned_slots": n_slots,
        "seconds": round(wall_s, 2),
        "joined_events_per_s": round(n_joined / wall_s),
        "learned_slots_per_s": round(n_slots / wall_s),
        "joined_events_per_cpu_s": round(n_joined / cpu_s),
        "learned_slots_per_cpu_s": round(n_slots / cpu_s),
        "cpu_us_per_joined_event": round(cpu_s / n_joined * 1e6, 1),
        "cpu_us_per_slot": round(cpu_s / n_slots * 1e6, 1),
        "published_mb": round(models.n_bytes / 1e6, 1),
        "stages_cpu_us_per_joined_event": {name: round(s / n_joined * 1e6, 1) for name, s in spent.items()},
    }


def _bare_learn_us(config: Config, slates: Slates) -> float:
    """Return what VW alone takes to learn one slot, on this machine now: the floor of every learner."""
    spec = config.model_spec("films")
    workspace: VwWorkspace = Workspace(spec.arguments())
    pool, took_s = ExamplePool(), []
    for number in range(_N_BARE):
        held = Learnable.of(learned_decision(slates.decide(number, wall_clock_ms())[0]))
        for slot, action in enumerate(held.actions):
            label = CBLabel(label=(-float(slot == 0), held.propensities[slot]))
            examples = [pool.fill_shared(held.shared), pool.fill_action(0, action, label=label)]
            started = time.perf_counter()
            predict_then_learn_cost(workspace, examples)
            took_s.append(time.perf_counter() - started)
    return float(np.median(took_s)) * 1e6


async def _fill(client: Redis, slates: Slates) -> int:
    """Write the journal of some seconds, and a heartbeat that closes every window; return the number of entries."""
    rng = np.random.default_rng(23)
    begin_ms = wall_clock_ms() - 3_600_000
    happened: list[tuple[int, bytes]] = []
    for number in range(_N_DECISIONS):
        at_ms = begin_ms + number * 1_000 // _DECISIONS_PER_S
        decision, clicks = slates.decide(number, at_ms)
        happened.append((at_ms, decision))
        happened += [(at_ms + 1 + int(rng.exponential(5_000)), click) for click in clicks]
    happened.sort(key=lambda entry: entry[0])
    happened.append((happened[-1][0] + 120_000, encode(Heartbeat(at_unix_ms=happened[-1][0]))))
    named = [(f"{at_ms}-{sequence}", entry) for sequence, (at_ms, entry) in enumerate(happened)]
    for first in range(0, len(named), _BATCH):
        await write_entries(client, named[first : first + _BATCH])
    return len(happened)
