"""A request's user state is one round trip, whatever the state and however many features read it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from service.adapters.redis_store import RedisUserStates, connect
from service.config import StoreConfig
from service.messages import Impression, Interaction, UserProfile


class CountingProxy:
    """Stands between client and store and counts how often the client speaks after the store has."""

    def __init__(self, store_path: str) -> None:
        self._store_path = store_path
        self.n_round_trips = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        store_reader, store_writer = await asyncio.open_unix_connection(self._store_path)
        self._answered = True

        async def ask() -> None:
            while chunk := await reader.read(65_536):
                self.n_round_trips += self._answered
                self._answered = False
                store_writer.write(chunk)

        async def answer() -> None:
            while chunk := await store_reader.read(65_536):
                self._answered = True
                writer.write(chunk)

        asking, answering = asyncio.create_task(ask()), asyncio.create_task(answer())
        await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
        for task in (asking, answering):
            task.cancel()
        for stream in (writer, store_writer):
            stream.close()


@asynccontextmanager
async def counted(store_url: str, folder: Path) -> AsyncIterator[tuple[RedisUserStates, CountingProxy]]:
    proxy = CountingProxy(store_url.removeprefix("unix://"))
    server = await asyncio.start_unix_server(proxy.serve, folder / "proxy.sock")
    client = connect(f"unix://{folder / 'proxy.sock'}", timeout_s=5.0)
    await client.ping()
    try:
        yield RedisUserStates(client, StoreConfig()), proxy
    finally:
        await client.aclose()
        server.close()
        await asyncio.sleep(0.05)


async def test_fetching_everything_is_one_round_trip(store_url: str, tmp_path: Path) -> None:
    async with counted(store_url, tmp_path) as (users, proxy):
        before = proxy.n_round_trips
        await users.fetch("stranger")
        assert proxy.n_round_trips - before == 1
        await users.put_profiles({"u": UserProfile(country="DE")})
        await users.add_interactions(
            {
                "u": [
                    Interaction(item_id=f"i{n}", event_type="click", reward=1.0, at_unix_ms=n, client_id=f"c{n}")
                    for n in range(30)
                ]
            }
        )
        before = proxy.n_round_trips
        shown = [Impression(item_id=f"item-{n}", event_id="e" * 26, shown_at_unix_ms=n) for n in range(500)]
        await users.add_impressions({"u": shown, "other": shown[:5]})
        assert proxy.n_round_trips - before == 1
        before = proxy.n_round_trips
        state = await users.fetch("u")
        assert proxy.n_round_trips - before == 1
        assert (len(state.recent), len(state.impressions), len(state.consumed)) == (10, 200, 30)


async def test_the_counter_counts(store_url: str, tmp_path: Path) -> None:
    async with counted(store_url, tmp_path) as (users, proxy):
        before = proxy.n_round_trips
        for _ in range(3):
            await users.fetch("u")
        assert proxy.n_round_trips - before == 3
