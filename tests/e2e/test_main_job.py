"""The main job on the real stack: recommend films, take clicks, serve a changed model, every propensity exact."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec
import pytest

from service.adapters.embedded_store import store_url
from service.config import Config, load_config
from service.inspect_log import audit_journal, check_skew, read_journal
from service.messages import Decision
from tests.stack import Stack

GENRES = ("Comedy", "Drama", "Horror", "Thriller")
N_DECISIONS = 300
N_BEFORE = 30
N_SLOTS = 5

Slates = list[dict[str, Any]]


def config_of(stack: Stack) -> Config:
    """The configuration that the stack runs with."""
    return load_config(environment={"HONE_DATA_DIR": str(stack.data_dir)})


async def recommend(url: str, n: int, *, likes: Callable[[str], bool]) -> Slates:
    """Ask n times in one context and click everything that is liked."""
    slates = []
    async with aiohttp.ClientSession() as session:
        for _ in range(n):
            request = {"surface": "home", "n": N_SLOTS, "context": {"device": "tv"}}
            async with session.post(f"{url}/v1/recommend", json=request) as response:
                assert response.status == 200
                slate = await response.json()
            slates.append(slate)
            clicks = [
                {"type": "click", "event_id": slate["event_id"], "slot": item["slot"], "item_id": item["item_id"]}
                for item in slate["items"]
                if likes(item["item_id"])
            ]
            if clicks:
                async with session.post(f"{url}/v1/events", json=clicks) as response:
                    assert response.status == 202
                    assert (await response.json())["accepted"] == len(clicks)
    return slates


def likes_nothing(_item_id: str) -> bool:
    return False


def genres_by_id(stack: Stack) -> dict[str, list[str]]:
    lines = (stack.data_dir / "demo" / "items.ndjson").read_bytes().splitlines()
    return {item["id"]: item.get("attributes", {}).get("genres", []) for item in map(json.loads, lines)}


def greedy_share(slates: Slates, genre: str, genres: dict[str, list[str]]) -> float:
    greedy = [item for slate in slates for item in slate["items"] if item["reason"] == "greedy"]
    return sum(genre in genres[item["item_id"]] for item in greedy) / len(greedy)


def test_rewards_for_one_genre_raise_its_greedy_share_and_every_propensity_recomputes_exactly(stack: Stack) -> None:
    genres = genres_by_id(stack)
    untaught = asyncio.run(recommend(stack.url, N_BEFORE, likes=likes_nothing))
    # The genre that is shown least before anything was learned has the most to gain.
    genre = min(GENRES, key=lambda name: greedy_share(untaught, name, genres))
    taught = asyncio.run(recommend(stack.url, N_DECISIONS - N_BEFORE, likes=lambda item_id: genre in genres[item_id]))
    before, after = greedy_share(untaught, genre, genres), greedy_share(taught[-100:], genre, genres)
    assert after > before + 0.3, (genre, before, after)
    assert after > 0.7
    assert taught[-1]["model_version"] > untaught[0]["model_version"]

    config = config_of(stack)
    audit = asyncio.run(audit_journal(config, store_url(config)))
    assert audit.mismatches == 0, audit.examples
    assert audit.checked >= N_DECISIONS
    skew = asyncio.run(check_skew(config, store_url(config)))
    assert skew.mismatches == 0, skew.examples


async def journal_decisions(config: Config) -> dict[str, Decision]:
    entries = [entry async for entry in read_journal(config, store_url(config))]
    return {entry.event_id: entry for entry in entries if isinstance(entry, Decision)}


def test_what_was_answered_is_what_the_journal_holds(stack: Stack) -> None:
    slates = asyncio.run(recommend(stack.url, 100, likes=likes_nothing))
    logged = asyncio.run(journal_decisions(config_of(stack)))
    for slate in slates:
        record = logged[slate["event_id"]]
        assert [slot.item_id for slot in record.slots] == [item["item_id"] for item in slate["items"]]
        assert [slot.propensity for slot in record.slots] == [item["propensity"] for item in slate["items"]]


@pytest.mark.parametrize("as_json", [True, False])
def test_hone_explain_and_hone_audit_work_beside_the_running_service(stack: Stack, as_json: bool) -> None:
    (slate,) = asyncio.run(recommend(stack.url, 1, likes=likes_nothing))
    environment = {**os.environ, "HONE_DATA_DIR": str(stack.data_dir)}
    hone = [sys.executable, "-m", "service"]
    options = ["--json"] if as_json else []
    explained = subprocess.run(
        [*hone, "explain", slate["event_id"], *options], env=environment, check=True, capture_output=True
    )
    audited = subprocess.run([*hone, "audit", *options], env=environment, check=True, capture_output=True)
    if as_json:
        slots = msgspec.json.decode(explained.stdout)["slots"]
        assert [slot["item_id"] for slot in slots] == [item["item_id"] for item in slate["items"]]
        for slot in slots:
            assert sum(slot["arithmetic"].values()) == pytest.approx(slot["propensity"], abs=1e-12)
        assert msgspec.json.decode(audited.stdout)["mismatches"] == 0
    else:
        assert slate["items"][0]["item_id"] in explained.stdout.decode()
        assert "0 mismatches" in audited.stdout.decode()
