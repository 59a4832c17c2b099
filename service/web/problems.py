"""Errors as `application/problem+json` that name the bad field, whatever went wrong."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import structlog
from aiohttp import web

from service.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable
from service.metrics import Metrics
from service.wire import Problem

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = structlog.get_logger("hone.http")
_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_FIELD = re.compile(r"(?:missing required|unknown) field `([^`]*)`")


def decode(raw: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode a body.

    Raises:
        InvalidRequest: it is not JSON, or not of the declared form; the path names the field.
    """
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise invalid_field(str(error)) from error
    except RecursionError as error:
        raise InvalidRequest("the JSON is nested too deeply", path="$", status=400) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        path, detail = _non_finite(raw) or ("$", f"malformed JSON: {error}")
        raise InvalidRequest(detail, path=path, status=400) from error


def invalid_field(message: str) -> InvalidRequest:
    """Return the error of a message of msgspec, with the path to the field itself."""
    match = _WHERE.match(message)
    assert match is not None
    path = match["path"] or "$"
    field = _FIELD.search(match["what"])
    # What an item itself refuses of its id, msgspec reports at the item.
    name = field[1] if field else "id" if match["what"].startswith("item id ") and not path.endswith("id") else ""
    return InvalidRequest(match["what"], path=f"{path}.{name}" if name else path)


def problem_response(problem: Problem) -> web.Response:
    """Return the response of a problem."""
    return web.Response(
        status=problem.status, body=msgspec.json.encode(problem), content_type="application/problem+json"
    )


def error_middleware(metrics: Metrics) -> Any:  # noqa: ANN401 - aiohttp's middleware type is not public
    """Return the middleware that answers every error and writes one log line a request."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        fields: dict[str, Any] = {}
        try:
            response = await handler(request)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            problem = _problem_of(error)
            fields = {"detail": problem.detail, "path": problem.path}
            if problem.status == 500:
                _log.exception("http.failed", route=request.path)
            response = problem_response(problem)
            if isinstance(error, web.HTTPMethodNotAllowed):
                response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        seconds = time.perf_counter() - started
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "unknown"
        metrics.requests.labels(route, str(response.status)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        _log.info(
            "http.request",
            method=request.method,
            route=route,
            status=response.status,
            ms=round(seconds * 1e3, 3),
            **fields,
        )
        return response

    return middleware


def _problem_of(error: Exception) -> Problem:
    if isinstance(error, InvalidRequest):
        return Problem(title="Invalid request", status=error.status, detail=error.detail, path=error.path)
    if isinstance(error, NotFound):
        return Problem(title="Not found", status=404, detail=str(error))
    if isinstance(error, Conflict):
        return Problem(title="Conflict", status=409, detail=str(error), path="$.event_id")
    if isinstance(error, StoreUnavailable):
        return Problem(title="Store unavailable", status=503, detail="the store did not answer; try again")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return Problem(title="Body too large", status=413, detail=error.text or "the body is too large", path="$")
    if isinstance(error, TimeoutError):
        return Problem(title="Request timeout", status=408, detail="the body did not arrive in time", path="$")
    if isinstance(error, web.HTTPException):
        return Problem(title=error.reason, status=error.status, detail=error.text or error.reason)
    return Problem(title="Internal error", status=500, detail="the request failed; the log has the reason")


def _non_finite(raw: bytes) -> tuple[str, str] | None:
    """Return the path and a message when the body is JSON but for NaN or Infinity."""
    try:
        path = _find_non_finite(json.loads(raw), "$")
    except (ValueError, RecursionError):
        return None
    return None if path is None else (path, "must be a finite number, got NaN or Infinity")


def _find_non_finite(tree: Any, path: str) -> str | None:  # noqa: ANN401 - any JSON
    if isinstance(tree, float):
        return None if math.isfinite(tree) else path
    children: list[tuple[str, Any]] = []
    if isinstance(tree, dict):
        children = [(f"{path}.{key}", value) for key, value in tree.items()]
    elif isinstance(tree, list):
        children = [(f"{path}[{index}]", value) for index, value in enumerate(tree)]
    return next((found for name, value in children if (found := _find_non_finite(value, name))), None)
