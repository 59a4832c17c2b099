"""`hone items import` and `hone users import`: NDJSON files into the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.progress import Progress

from retrieval.items import Item
from service.adapters.embedded_store import running_store
from service.adapters.redis_store import RedisChangeLog, RedisUserStates, connect
from service.bootstrap import wall_clock_ms
from service.catalogue_writer import CatalogueWriter
from service.change_reader import read_stream
from service.cli.settings import settings_of
from service.config import Config
from service.errors import InvalidRequest
from service.items_view import ITEMS_STREAM
from service.messages import ItemUpsert, item_change_decoder
from service.web.problems import decode
from service.wire import UserBody

T = TypeVar("T")
_CHUNK_LINES = 5_000
_TIMEOUT_S = 30.0

items = typer.Typer(no_args_is_help=True, help="The catalogue.")
users = typer.Typer(no_args_is_help=True, help="User attributes.")

File = Annotated[Path | None, typer.Argument(help="NDJSON, one object a line. [default: the demo's]")]


@items.callback()
def _items() -> None:
    """The catalogue."""


@users.callback()
def _users() -> None:
    """User attributes."""


@items.command("import", epilog="Example: hone items import catalogue.ndjson")
def import_items(context: typer.Context, file: File = None) -> None:
    """Put every item of a file that is new or changed; repeating it changes nothing."""
    config = settings_of(context).load()
    known: dict[str, bytes] | None = None

    async def put(writer: CatalogueWriter, log: RedisChangeLog, batch: list[Item]) -> int:
        nonlocal known
        if known is None:
            known = await _known_items(log)
        changed = [item for item in batch if known.get(item.id) != _digest(item)]
        for item in changed:
            writer.check_item(item)
        await writer.put_items(changed)
        return len(changed)

    path = file or config.data_path / "demo" / "items.ndjson"
    count, n_put = _import(config, path, msgspec.json.Decoder(Item), put)
    print(f"{n_put} items put, {count - n_put} were there already")


@users.command("import", epilog="Example: hone users import users.ndjson")
def import_users(context: typer.Context, file: File = None) -> None:
    """Put the attributes of every user of a file; repeating it changes nothing."""
    config = settings_of(context).load()

    async def put(writer: CatalogueWriter, _log: RedisChangeLog, batch: list[UserBody]) -> int:
        await writer.put_users(batch)
        return len(batch)

    path = file or config.data_path / "demo" / "users.ndjson"
    _, n_put = _import(config, path, msgspec.json.Decoder(UserBody), put)
    print(f"{n_put} users put")


async def _known_items(log: RedisChangeLog) -> dict[str, bytes]:
    """Return a digest of every item that is in the catalogue, by id."""
    known: dict[str, bytes] = {}
    async for entry in read_stream(log, ITEMS_STREAM):
        change = item_change_decoder.decode(entry.payload)
        if isinstance(change, ItemUpsert):
            known[change.item.id] = _digest(change.item)
        else:
            known.pop(change.item_id, None)
    return known


def _digest(item: Item) -> bytes:
    return blake2b(msgspec.msgpack.encode(item, order="deterministic"), digest_size=16).digest()


def _import(
    config: Config,
    path: Path,
    decoder: msgspec.json.Decoder[T],
    put: Callable[[CatalogueWriter, RedisChangeLog, list[T]], Awaitable[int]],
) -> tuple[int, int]:
    """Decode and put a file in chunks; the first bad line ends it, and names itself.

    Returns:
        Lines read and lines put.
    """
    n_total = path.stat().st_size

    async def run(url: str) -> tuple[int, int]:
        client = connect(url, timeout_s=_TIMEOUT_S)
        log, states = RedisChangeLog(client), RedisUserStates(client, config.store)
        writer = CatalogueWriter(schema=config.features, log=log, users=states, clock=wall_clock_ms)
        count = n_put = 0
        try:
            with Progress(transient=True) as progress:
                task = progress.add_task(path.name, total=n_total)
                for batch, n_bytes in _chunks(path, decoder):
                    n_put += await put(writer, log, batch)
                    count += len(batch)
                    progress.advance(task, n_bytes)
        finally:
            await client.aclose()
        return count, n_put

    with running_store(config) as url:
        return asyncio.run(run(url))


def _chunks(path: Path, decoder: msgspec.json.Decoder[T]) -> Iterator[tuple[list[T], int]]:
    batch: list[T] = []
    n_bytes = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            n_bytes += len(line)
            if not line.strip():
                continue
            try:
                batch.append(decode(line, decoder))
            except InvalidRequest as error:
                raise ValueError(f"{path}, line {number}: {error.detail} (at {error.path})") from error
            if len(batch) >= _CHUNK_LINES:
                yield batch, n_bytes
                batch, n_bytes = [], 0
    yield batch, n_bytes


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(items, name="items")
    app.add_typer(users, name="users")
