"""The aiohttp application of one worker."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from aiohttp import web

from service.bootstrap import Worker
from service.web import catalogue_handlers, handlers
from service.web.keys import READY, WORKER
from service.web.problems import error_middleware

STATIC = Path(__file__).with_name("static")
WORKER_HEADER = "X-Hone-Worker"


def build_app(worker: Worker, *, worker_index: int = 0) -> web.Application:
    """Build the application; the worker starts and stops with it."""
    app = web.Application(
        middlewares=[error_middleware(worker.metrics)], client_max_size=worker.config.http.max_body_bytes
    )
    app[WORKER] = worker
    app[READY] = asyncio.Event()
    handlers.add_routes(app)
    catalogue_handlers.add_routes(app)
    app.router.add_static("/static/", STATIC)
    name = f"{worker_index}:{os.getpid()}"

    async def name_worker(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers[WORKER_HEADER] = name

    async def run_worker(app: web.Application):  # type: ignore[no-untyped-def]  # noqa: ANN202 - aiohttp's cleanup context
        await worker.start()
        app[READY].set()
        yield
        await worker.close()

    app.on_response_prepare.append(name_worker)
    app.cleanup_ctx.append(run_worker)
    return app
