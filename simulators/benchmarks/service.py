"""`hone bench service`: a whole private stack under load, the load generator on the same machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.config import Config
from service.private_stack import private_stack
from simulators.load import closed_loop, open_loop, recommend_requests

_N_USERS = 900
_N_SLOTS = 10
_SECONDS = 15.0
_WARM_UP_SECONDS = 3.0
_N_CLIENTS = 8


def bench_service(config: Config, config_path: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure one client alone, saturation, and latency at half of it on the `home` surface."""

    async def run(url: str) -> dict[str, Any]:
        requests = recommend_requests("home", n=_N_SLOTS, n_users=_N_USERS)
        await closed_loop(url, requests, n_clients=2, seconds=_WARM_UP_SECONDS)
        say("one client")
        alone = await closed_loop(url, requests, n_clients=1, seconds=_SECONDS)
        say("saturation")
        full = await closed_loop(url, requests, n_clients=_N_CLIENTS, seconds=_SECONDS)
        rate = len(full.latencies_ms) / full.seconds / 2
        say(f"half of saturation: {rate:.0f} requests/s")
        half = await open_loop(url, requests, rate=rate, seconds=_SECONDS)
        return {
            "surface": "home",
            "n_slots": _N_SLOTS,
            "n_workers": config.http.workers,
            "n_candidates": config.surfaces["home"].n_candidates,
            "one_client": alone.summary(),
            "saturation": {"n_clients": _N_CLIENTS, **full.summary()},
            "half_of_saturation": half.summary(),
        }

    with private_stack(config, config_path, say) as (_, url):
        return asyncio.run(run(url))
