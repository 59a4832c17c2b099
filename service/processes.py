"""The processes of the service: API worker, learner, archiver. Each runs until it is told to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import uvloop
from aiohttp import web

from service.bootstrap import build_archiver, build_health_watch, build_learner, build_worker
from service.config import Config
from service.errors import Fenced, StoreUnavailable
from service.health import HealthWatch
from service.learn import ModelLoop
from service.logs import configure_logs
from service.metrics import Metrics
from service.web.app import build_app

_RETRY_S = 0.2
_DRAIN_S = 10.0
_KEEPALIVE_S = 75.0

_log = structlog.get_logger("hone.process")


def run_api(config: Config, *, worker_index: int) -> None:
    """Serve HTTP until SIGTERM, then finish what was begun and ship the spool."""
    configure_logs(config.log_level, process=f"api-{worker_index}")

    async def build() -> web.Application:
        return build_app(build_worker(config), worker_index=worker_index)

    web.run_app(
        build(),
        host=config.http.host,
        port=config.http.port,
        reuse_port=True,
        access_log=None,
        print=lambda *_: None,
        shutdown_timeout=_DRAIN_S,
        keepalive_timeout=_KEEPALIVE_S,
        loop=uvloop.new_event_loop(),
    )


def run_learner(config: Config) -> None:
    """Learn every model until SIGTERM, then write the checkpoints.

    Raises:
        Fenced: another learner has taken over.
    """
    configure_logs(config.log_level, process="learner")

    async def main() -> None:
        metrics = Metrics()
        stop = _stop_event()
        await asyncio.gather(*(_learn(build_learner(config, model, metrics), stop) for model in config.models))

    uvloop.run(main())


def run_archiver(config: Config) -> None:
    """Archive, and watch the health of the loop, until SIGTERM; then write what was read."""
    configure_logs(config.log_level, process="archiver")

    async def main() -> None:
        archiver = build_archiver(config, Metrics())
        stop = _stop_event()
        watching = asyncio.create_task(_watch(build_health_watch(config), stop))
        await _repeat(archiver.step, stop)
        await archiver.flush()
        await watching

    uvloop.run(main())


async def _learn(loop: ModelLoop[Any], stop: asyncio.Event) -> None:
    while not stop.is_set():
        try:
            await loop.start()
            break
        except StoreUnavailable as error:
            _log.warning("learn.waiting", error=str(error))
            await asyncio.sleep(_RETRY_S)
    await _repeat(loop.step, stop)
    try:
        await loop.save()
    except (StoreUnavailable, Fenced) as error:
        # The next learner starts from the last checkpoint and learns the rest again, to the same model.
        _log.warning("learn.unsaved", error=str(error))


async def _watch(watch: HealthWatch, stop: asyncio.Event) -> None:
    """Watch until told to stop. A watch that fails must not take the archive with it: its verdict expires, an alarm."""
    try:
        await _repeat(watch.step, stop)
        watch.save()
    except Exception:
        _log.exception("health.failed")


async def _repeat(step: Callable[[], Awaitable[object]], stop: asyncio.Event) -> None:
    """Call `step` until told to stop; an unavailable store or a full disk is waited for."""
    while not stop.is_set():
        try:
            await step()
        except (StoreUnavailable, OSError) as error:
            _log.warning("process.retry", error=str(error))
            await asyncio.sleep(_RETRY_S)


def _stop_event() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
