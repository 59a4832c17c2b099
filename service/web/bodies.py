"""Read request bodies: one object, an array, or NDJSON line by line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec
from aiohttp import web

from service.errors import InvalidRequest
from service.turns import Turns
from service.web.problems import decode
from service.wire import Rejection

T = TypeVar("T")

NDJSON = "application/x-ndjson"
_MAX_LINE_BYTES = 1_048_576


async def read_body(request: web.Request, *, timeout_s: float) -> bytes:
    """Read a whole body, no larger than the application's bound.

    Raises:
        TimeoutError: it did not arrive in time.
    """
    async with asyncio.timeout(timeout_s):
        return await request.read()


def is_ndjson(request: web.Request) -> bool:
    """Return whether the body is one JSON value a line."""
    return request.content_type in (NDJSON, "application/ndjson", "application/jsonl")


async def read_lines(request: web.Request, *, max_bytes: int, timeout_s: float) -> AsyncIterator[bytes]:
    """Yield the lines of a streamed body; only one is held at a time.

    Raises:
        InvalidRequest: the body or a line is too large.
        TimeoutError: nothing came for `timeout_s`.
    """
    total = 0
    rest = b""
    while True:
        async with asyncio.timeout(timeout_s):
            chunk = await request.content.readany()
        if not chunk:
            break
        total += len(chunk)
        if total > max_bytes:
            raise InvalidRequest(f"the body must be at most {max_bytes} bytes", path="$", status=413)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
        if len(rest) > _MAX_LINE_BYTES:
            raise InvalidRequest(f"a line must be at most {_MAX_LINE_BYTES} bytes", path="$", status=413)
    yield rest


async def decode_each(
    raws: list[bytes], decoder: msgspec.json.Decoder[T], *, first_index: int = 0
) -> tuple[list[tuple[int, T]], list[Rejection]]:
    """Decode entries one by one, in turns: those that are well formed with their index, and why the others are not."""
    turns = Turns()
    good: list[tuple[int, T]] = []
    rejected: list[Rejection] = []
    for index, raw in enumerate(raws, start=first_index):
        await turns.rest_if_due()
        if not raw.strip():
            continue
        try:
            good.append((index, decode(raw, decoder)))
        except InvalidRequest as error:
            rejected.append(Rejection(index=index, detail=error.detail, path=error.path))
    return good, rejected
