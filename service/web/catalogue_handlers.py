"""HTTP handlers: items and users."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from retrieval.items import Attribute, Item
from service.bootstrap import Worker
from service.errors import InvalidRequest, NotFound, StoreUnavailable
from service.turns import Turns
from service.web.bodies import decode_each, is_ndjson, read_body, read_lines
from service.web.handlers import json_response
from service.web.keys import WORKER
from service.web.problems import decode, invalid_field
from service.wire import AcceptedResponse, Body, Rejection, UserBody

T = TypeVar("T")

_LINES_AT_ONCE = 1_000
MAX_REJECTIONS = 1_000
_MAX_IDS = 1_000
# The writer's own worker shows a change before it is acknowledged; past this the acknowledgement goes out without.
_OWN_APPLY_TIMEOUT_S = 1.0
# What hides items is acknowledged only then, and a large body takes its time.
_BULK_APPLY_TIMEOUT_S = 30.0

_item_decoder = msgspec.json.Decoder(Item)
_items_decoder = msgspec.json.Decoder(list[Item])
_user_decoder = msgspec.json.Decoder(UserBody)
_users_decoder = msgspec.json.Decoder(list[UserBody])


class ItemPatch(Body, frozen=True, kw_only=True, omit_defaults=True):
    """`PATCH /v1/items/{id}`: fields that are given replace; attributes are merged, null removes one."""

    title: str | msgspec.UnsetType = msgspec.UNSET
    attributes: dict[str, Attribute | None] | msgspec.UnsetType = msgspec.UNSET
    creator: str | msgspec.UnsetType | None = msgspec.UNSET
    min_age: int | msgspec.UnsetType | None = msgspec.UNSET
    regions: list[str] | msgspec.UnsetType | None = msgspec.UNSET
    available_at_unix_ms: int | msgspec.UnsetType | None = msgspec.UNSET
    expires_at_unix_ms: int | msgspec.UnsetType | None = msgspec.UNSET
    listed: bool | msgspec.UnsetType = msgspec.UNSET


_patch_decoder = msgspec.json.Decoder(ItemPatch)


async def put_items(request: web.Request) -> web.Response:
    """PUT /v1/items: an array is taken whole or not at all; of NDJSON good lines are taken and bad ones reported."""
    worker = request.app[WORKER]
    if is_ndjson(request):
        return json_response(await _put_item_lines(request, worker), status=202)
    raw = await read_body(request, timeout_s=worker.config.http.header_timeout_s)
    items = _one_or_many(raw, _item_decoder, _items_decoder)
    turns = Turns()
    for index, item in enumerate(items):
        _check_item(worker, item, f"$[{index}]")
        await turns.rest_if_due()
    if items:
        is_applied = await _applied(worker, await worker.writer.put_items(items))
        _check_hidden(is_applied, any(not item.listed for item in items))
    return json_response(AcceptedResponse(accepted=len(items)), status=202)


async def _put_item_lines(request: web.Request, worker: Worker) -> AcceptedResponse:
    http = worker.config.http
    batch = _ItemLines(worker)
    async for line in read_lines(request, max_bytes=http.max_ndjson_bytes, timeout_s=http.header_timeout_s):
        await batch.add(line)
    await batch.put()
    if batch.last:
        timeout_s = _BULK_APPLY_TIMEOUT_S if batch.is_hiding else _OWN_APPLY_TIMEOUT_S
        _check_hidden(await _applied(worker, batch.last, timeout_s=timeout_s), batch.is_hiding)
    return AcceptedResponse(accepted=batch.n_accepted, rejected=batch.rejected, n_rejected=batch.n_rejected)


class _ItemLines:
    """Puts lines some at a time, and holds no more of them; of rejected ones it keeps so many reasons at most.

    Attributes:
        n_accepted: Items durably taken.
        n_rejected: Lines that were not.
        rejected: The first reasons.
        last: Position of the last item in the stream, empty without any.
        is_hiding: Whether an item is not listed.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lines: list[bytes] = []
        self._n_lines = 0
        self.n_accepted = self.n_rejected = 0
        self.rejected: list[Rejection] = []
        self.last = ""
        self.is_hiding = False

    async def add(self, line: bytes) -> None:
        """Take a line, and put what has come when that is many."""
        self._lines.append(line)
        if len(self._lines) >= _LINES_AT_ONCE:
            await self.put()

    async def put(self) -> None:
        """Put what has come."""
        good, bad = await decode_each(self._lines, _item_decoder, first_index=self._n_lines)
        self._n_lines += len(self._lines)
        self._lines.clear()
        turns = Turns()
        items = []
        for index, item in good:
            await turns.rest_if_due()
            try:
                _check_item(self._worker, item, "$")
                items.append(item)
            except InvalidRequest as error:
                bad.append(Rejection(index=index, detail=error.detail, path=error.path))
        self.n_rejected += len(bad)
        self.rejected.extend(sorted(bad, key=lambda r: r.index)[: MAX_REJECTIONS - len(self.rejected)])
        if items:
            self.last = await self._worker.writer.put_items(items)
            self.n_accepted += len(items)
            self.is_hiding |= any(not item.listed for item in items)


async def get_items(request: web.Request) -> web.Response:
    """GET /v1/items?ids=a,b: the items that exist, in the order asked for."""
    ids = [item_id for item_id in request.query.get("ids", "").split(",") if item_id]
    if not 1 <= len(ids) <= _MAX_IDS:
        raise InvalidRequest(f"ids must name 1 to {_MAX_IDS} items, got {len(ids)}", path="ids")
    catalogue = request.app[WORKER].items.catalogue
    return json_response([item for item in map(catalogue.item, ids) if item is not None])


async def get_item(request: web.Request) -> web.Response:
    """GET /v1/items/{id}."""
    return json_response(_item(request))


async def patch_item(request: web.Request) -> web.Response:
    """PATCH /v1/items/{id}."""
    worker = request.app[WORKER]
    raw = await read_body(request, timeout_s=worker.config.http.header_timeout_s)
    patch = decode(raw, _patch_decoder)
    old = _item(request)
    changes = msgspec.structs.asdict(patch)
    fields: dict[str, Any] = {name: value for name, value in changes.items() if value is not msgspec.UNSET}
    if "attributes" in fields:
        merged = {**old.attributes, **fields["attributes"]}
        fields["attributes"] = {name: value for name, value in merged.items() if value is not None}
    # Through the wire form, so that a patched item is checked as a put one is.
    item = decode(msgspec.json.encode({**msgspec.to_builtins(old), **fields}), _item_decoder)
    _check_item(worker, item, "$")
    _check_hidden(await _applied(worker, await worker.writer.put_items([item])), not item.listed)
    return json_response(item)


async def delete_item(request: web.Request) -> web.Response:
    """DELETE /v1/items/{id}: gone from this worker when acknowledged, from every worker within a second."""
    worker = request.app[WORKER]
    item = _item(request)
    _check_hidden(await _applied(worker, await worker.writer.delete_item(item.id)), True)
    return web.Response(status=204)


async def put_users(request: web.Request) -> web.Response:
    """PUT /v1/users: one user, an array (whole or not at all), or NDJSON (bad lines reported)."""
    worker = request.app[WORKER]
    raw = await read_body(request, timeout_s=worker.config.http.header_timeout_s)
    rejected: list[Rejection] = []
    if is_ndjson(request):
        good, rejected = await decode_each(raw.split(b"\n"), _user_decoder)
        users = [user for _, user in good]
    else:
        users = _one_or_many(raw, _user_decoder, _users_decoder)
    await worker.writer.put_users(users)
    return json_response(AcceptedResponse(accepted=len(users), rejected=rejected), status=202)


async def get_user(request: web.Request) -> web.Response:
    """GET /v1/users/{id}: profile and recent interactions."""
    state = await request.app[WORKER].users.fetch(request.match_info["user_id"])
    born = state.profile.birth_date
    return json_response(
        {
            "user_id": request.match_info["user_id"],
            "birth_date": date.fromisoformat(born) if born else None,
            "country": state.profile.country,
            "attributes": state.profile.attributes,
            "recent": state.recent,
            "consumed": sorted(state.consumed),
        }
    )


async def delete_user(request: web.Request) -> web.Response:
    """DELETE /v1/users/{id}: erase what is stored under the id, and have the archive erase it."""
    worker, user_id = request.app[WORKER], request.match_info["user_id"]
    await worker.feedback.erase(user_id)
    await worker.writer.erase_user(user_id)
    return web.Response(status=204)


def add_routes(app: web.Application) -> None:
    """Add these handlers."""
    app.router.add_put("/v1/items", put_items)
    app.router.add_get("/v1/items", get_items)
    app.router.add_get("/v1/items/{item_id}", get_item)
    app.router.add_patch("/v1/items/{item_id}", patch_item)
    app.router.add_delete("/v1/items/{item_id}", delete_item)
    app.router.add_put("/v1/users", put_users)
    app.router.add_get("/v1/users/{user_id}", get_user)
    app.router.add_delete("/v1/users/{user_id}", delete_user)


def _one_or_many(raw: bytes, one: msgspec.json.Decoder[T], many: msgspec.json.Decoder[list[T]]) -> list[T]:
    return decode(raw, many) if raw.lstrip()[:1] == b"[" else [decode(raw, one)]


def _item(request: web.Request) -> Item:
    item_id = request.match_info["item_id"]
    item = request.app[WORKER].items.catalogue.item(item_id)
    if item is None:
        raise NotFound(f"no item {item_id!r}")
    return item


def _check_item(worker: Worker, item: Item, path: str) -> None:
    try:
        worker.writer.check_item(item)
    except InvalidRequest as error:
        raise InvalidRequest(error.detail, path=path + error.path[1:]) from error
    except msgspec.ValidationError as error:
        raise invalid_field(str(error)) from error


def _check_hidden(is_applied: bool, is_hiding: bool) -> None:
    """Acknowledge what hides items only when this worker serves them no more; asking again gets it when that is true.

    Raises:
        StoreUnavailable: it may still serve one.
    """
    if is_hiding and not is_applied:
        raise StoreUnavailable("the change is stored but this worker does not show it yet; try again")


async def _applied(worker: Worker, entry_id: str, *, timeout_s: float = _OWN_APPLY_TIMEOUT_S) -> bool:
    """Wait until this worker shows a change that is durable already; return whether it does within the time-out."""
    try:
        async with asyncio.timeout(timeout_s):
            await worker.follower.apply_own(entry_id)
    except TimeoutError:
        return False
    return True
