"""What handlers find in the application."""

from __future__ import annotations

import asyncio

from aiohttp import web

from service.bootstrap import Worker

WORKER: web.AppKey[Worker] = web.AppKey("worker", Worker)
READY: web.AppKey[asyncio.Event] = web.AppKey("ready", asyncio.Event)
