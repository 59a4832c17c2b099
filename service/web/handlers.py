"""HTTP handlers: recommend, events, decisions, health, pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.errors import InvalidRequest
from service.web.bodies import decode_each, is_ndjson, read_body
from service.web.keys import READY, WORKER
from service.web.openapi import build_openapi
from service.web.problems import decode
from service.wire import AcceptedResponse, EventBody, RecommendRequest, Rejection, RewardBody

_STATIC = Path(__file__).with_name("static")

_recommend_decoder = msgspec.json.Decoder(RecommendRequest)
_event_decoder = msgspec.json.Decoder(EventBody)
_reward_decoder = msgspec.json.Decoder(RewardBody)
_raws_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_encode = msgspec.json.Encoder().encode


def json_response(value: Any, *, status: int = 200) -> web.Response:  # noqa: ANN401 - anything msgspec encodes
    """Return a JSON response."""
    return web.Response(status=status, body=_encode(value), content_type="application/json")


async def recommend(request: web.Request) -> web.Response:
    """POST /v1/recommend."""
    worker = request.app[WORKER]
    raw = await read_body(request, timeout_s=worker.config.http.header_timeout_s)
    body = decode(raw, _recommend_decoder)
    return json_response(await worker.recommender.recommend(body))


async def events(request: web.Request) -> web.Response:
    """POST /v1/events: one event, an array, or NDJSON; of a batch, good entries are taken and bad ones reported."""
    worker = request.app[WORKER]
    raw = await read_body(request, timeout_s=worker.config.http.header_timeout_s)
    if is_ndjson(request):
        raws = raw.split(b"\n")
    elif raw.lstrip()[:1] == b"[":
        raws = [bytes(entry) for entry in decode(raw, _raws_decoder)]
    else:
        accepted = await worker.feedback.accept([decode(raw, _event_decoder)])
        if accepted.rejected:
            raise InvalidRequest(accepted.rejected[0].detail, path=accepted.rejected[0].path)
        return json_response(accepted, status=202)
    good, malformed = await decode_each(raws, _event_decoder)
    accepted = await worker.feedback.accept([body for _, body in good])
    unusable = [
        Rejection(index=good[r.index][0], detail=r.detail, path=f"$[{good[r.index][0]}]{r.path[1:]}")
        for r in accepted.rejected
    ]
    malformed = [msgspec.structs.replace(r, path=f"$[{r.index}]{r.path[1:]}") for r in malformed]
    rejected = sorted([*malformed, *unusable], key=lambda r: r.index)
    answer = AcceptedResponse(accepted=accepted.accepted, duplicate=accepted.duplicate, rejected=rejected)
    return json_response(answer, status=202)


async def reward(request: web.Request) -> web.Response:
    """POST /v1/reward."""
    worker = request.app[WORKER]
    raw = await read_body(request, timeout_s=worker.config.http.header_timeout_s)
    return json_response(await worker.feedback.reward(decode(raw, _reward_decoder)), status=202)


async def decision(request: web.Request) -> web.Response:
    """GET /v1/decisions/{event_id}: why each slot."""
    return json_response(await request.app[WORKER].explainer.explain(request.match_info["event_id"]))


async def surfaces(request: web.Request) -> web.Response:
    """GET /v1/surfaces: what is declared, with what was set live."""
    return json_response(request.app[WORKER].live.current.config.surfaces)


async def health(request: web.Request) -> web.Response:
    """GET /v1/health: the verdict of the health watch."""
    return json_response(await request.app[WORKER].health.report())


async def healthz(_request: web.Request) -> web.Response:
    """GET /healthz: the process answers."""
    return json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """GET /readyz: the worker has caught up and still follows."""
    worker = request.app[WORKER]
    ready = request.app[READY].is_set() and worker.is_following
    state = {
        "ready": ready,
        "n_items": len(worker.items.catalogue),
        "index": worker.items.retriever.version,
        "models": {name: model.version for name, model in worker.models.items()},
        "spool_waiting": worker.spool.n_waiting,
    }
    return json_response(state, status=200 if ready else 503)


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics: of the worker that answers, and of the health watch."""
    worker = request.app[WORKER]
    await worker.health.report()
    body = generate_latest(worker.metrics.registry)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def openapi(_request: web.Request) -> web.Response:
    """GET /openapi.json."""
    return json_response(build_openapi())


def _page(name: str) -> Any:  # noqa: ANN401 - an aiohttp handler
    async def page(_request: web.Request) -> web.FileResponse:
        return web.FileResponse(_STATIC / name)

    return page


def add_routes(app: web.Application) -> None:
    """Add these handlers."""
    app.router.add_post("/v1/recommend", recommend)
    app.router.add_post("/v1/events", events)
    app.router.add_post("/v1/reward", reward)
    app.router.add_get("/v1/decisions/{event_id}", decision)
    app.router.add_get("/v1/surfaces", surfaces)
    app.router.add_get("/v1/health", health)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/openapi.json", openapi)
    app.router.add_get("/", _page("index.html"))
    app.router.add_get("/docs", _page("docs.html"))
