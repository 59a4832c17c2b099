"""The processes of the service: API worker, learner, archiver. Each runs until it is told to end."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal

import structlog
import uvloop
from aiohttp import web
from prometheus_client import start_http_server

from service.archive import Archiver
from service.bootstrap import (
    build_archiver,
    build_canary_watch,
    build_health_watch,
    build_learner,
    build_worker,
    writing_client,
)
from service.canary import CanaryWatch
from service.config import Config, MetricsConfig
from service.errors import Fenced, StoreUnavailable
from service.health import HealthWatch
from service.learn import ModelLoop
from service.logs import configure_logs
from service.metrics import Metrics
from service.web.app import build_app

_RETRY_S = 0.2
_STANDBY_POLL_S = 0.25
_DRAIN_S = 10.0
_KEEPALIVE_S = 75.0
_CANARY_POLL_S = 1.0

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
    """Learn every model until SIGTERM, then write the checkpoints. A model that another process learns is stood by."""
    configure_logs(config.log_level, process="learner")

    async def main() -> None:
        spare_the_garbage_collector()
        metrics = Metrics()
        stop = _stop_event()
        with _exposed(metrics, config.metrics, "learner_port"):
            client = writing_client(config)
            learning = (_learn(partial(build_learner, config, model, metrics, client), stop) for model in config.models)
            await asyncio.gather(*learning)
            await client.aclose()

    uvloop.run(main())


def spare_the_garbage_collector() -> None:
    """Let it look less often, and hardly ever at what is old.

    A learner holds every open decision of an attribution window, and nothing of it refers back to what holds it: by the
    defaults, looking through it again and again took a tenth of the learner's time.
    """
    gc.set_threshold(20_000, 50, 1_000)


def run_archiver(config: Config) -> None:
    """Archive, watch the health of the loop and the canaries, until SIGTERM; then write what was read."""
    configure_logs(config.log_level, process="archiver")

    async def main() -> None:
        metrics = Metrics()
        archiver = build_archiver(config, metrics)
        stop = _stop_event()
        with _exposed(metrics, config.metrics, "archiver_port"):
            watching = asyncio.create_task(_watch(build_health_watch(config), stop))
            trying = asyncio.create_task(_watch_canaries(build_canary_watch(config), stop))
            await _archive(archiver, stop)
            await watching
            await trying

    uvloop.run(main())


async def _archive(archiver: Archiver, stop: asyncio.Event) -> None:
    """Archive until told to stop, then write what was read; what cannot be written then is read again."""
    await _repeat(archiver.step, stop)
    try:
        await archiver.flush()
    except (StoreUnavailable, OSError) as error:
        _log.warning("archive.unfinished", error=str(error))


@contextmanager
def _exposed(metrics: Metrics, config: MetricsConfig, key: Literal["learner_port", "archiver_port"]) -> Iterator[None]:
    """Answer `/metrics` from a thread of its own, if a port is configured.

    Raises:
        OSError: it cannot be listened on.
    """
    port = config.learner_port if key == "learner_port" else config.archiver_port
    if not port:
        yield
        return
    try:
        server, thread = start_http_server(port, addr=config.host, registry=metrics.registry)
    except OSError as error:
        raise OSError(f"metrics.{key}: cannot listen on {config.host}:{port}: {error}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def _learn(build: Callable[[], ModelLoop[Any]], stop: asyncio.Event) -> None:
    """Learn whenever no other process does; each turn is of a new learner, which starts from the checkpoint."""
    while not stop.is_set():
        loop = build()
        try:
            await _stand_by(loop, stop)
            if stop.is_set():
                return
            await loop.start()
            await _repeat(loop.step, stop)
            # If this fails, the next learner starts from the last checkpoint and learns the rest again.
            await loop.end()
        except Fenced:
            _log.warning("learn.overtaken", model=loop.model)
        except StoreUnavailable as error:
            _log.warning("learn.waiting", error=str(error))
            await asyncio.sleep(_RETRY_S)
        finally:
            loop.show_standby()


async def _stand_by(loop: ModelLoop[Any], stop: asyncio.Event) -> None:
    """Return when nobody learns the model; two that start then are told apart by their epochs."""
    if await loop.is_led():
        _log.info("learn.standby", model=loop.model)
        while not stop.is_set() and await loop.is_led():
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _STANDBY_POLL_S)


async def _watch(watch: HealthWatch, stop: asyncio.Event) -> None:
    """Watch until told to stop. A watch that fails must not take the archive with it: its verdict expires, an alarm."""
    try:
        await _repeat(watch.step, stop)
        watch.save()
    except Exception:
        _log.exception("health.failed")


async def _watch_canaries(watch: CanaryWatch, stop: asyncio.Event) -> None:
    """Look at canaries until told to stop. A look that fails is logged and tried again: no canary may run unseen."""
    while not stop.is_set():
        try:
            await watch.step()
        except Exception:
            _log.exception("canary.failed")
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _CANARY_POLL_S)


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
