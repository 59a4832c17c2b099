"""Candidate sources on a real stack: their names in the decision record, and co-occurrence that is served at once."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import redis

from retrieval.content import content_matrix
from retrieval.items import Item
from service.adapters.embedded_store import socket_path
from service.messages import Decision, journal_decoder
from tests.integration.api import Api
from tests.stack import Stack, eventually

SURFACE = "because_you_watched"


def _decide(api: Api, stack: Stack, **fields: Any) -> Decision:
    """Recommend with an event id of the caller's, and return the record that the journal has of it."""
    event_id = f"from-{uuid.uuid4()}"
    api.recommend(surface=SURFACE, event_id=event_id, **fields)
    # A busy store may let the answer go before the decision is in the journal.
    found: list[Decision] = []
    eventually(lambda: found.extend(_find(stack, event_id)) or bool(found), what=f"{event_id} is in the journal")
    return found[0]


def _find(stack: Stack, event_id: str) -> list[Decision]:
    store = redis.Redis(unix_socket_path=str(socket_path(stack.data_dir)))
    try:
        for _, entry in store.xrevrange("hone:{0}:journal", count=500):
            (payload,) = entry.values()
            decision = journal_decoder.decode(payload)
            if isinstance(decision, Decision) and decision.event_id == event_id:
                return [decision]
    finally:
        store.close()
    return []


def _by_source(decision: Decision) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for item_id, source in zip(decision.candidates.ids, decision.candidates.sources, strict=True):
        found[decision.candidates.source_names[source]].append(item_id)
    return found


def test_what_the_same_people_like_is_served_without_a_retraining_and_named_in_the_record(
    stack: Stack, workers: list[Api], known_items: list[dict[str, Any]]
) -> None:
    seed, other = known_items[-1]["id"], known_items[-2]["id"]
    assert all(other not in _by_source(_decide(api, stack, seed_item_id=seed))["also_liked"] for api in workers)
    liked = [
        {"type": "click", "user_id": f"pair-{n}", "item_id": item_id, "id": f"{n}-{item_id}"}
        for n in range(4)
        for item_id in (seed, other)
    ]
    assert workers[0].call("POST", "/v1/events", liked).body["accepted"] == len(liked)
    for api in workers:
        eventually(
            lambda api=api: other in _by_source(_decide(api, stack, seed_item_id=seed))["also_liked"],
            what="the pair is a candidate on every worker",
        )
    decision = _decide(workers[0], stack, seed_item_id=seed)
    assert decision.versions.item_pairs not in ("", "0-0")
    # Seeds of a user without a seed item are what the user liked.
    assert other in _by_source(_decide(workers[0], stack, user_id=None, seed_item_id=seed))["also_liked"]
    newcomer = {"type": "click", "user_id": "pair-new", "item_id": seed, "id": "new"}
    assert workers[0].call("POST", "/v1/events", newcomer).body["accepted"] == 1
    assert other in _by_source(_decide(workers[0], stack, user_id="pair-new"))["also_liked"]


def test_content_candidates_are_like_the_seed(stack: Stack, api: Api, known_items: list[dict[str, Any]]) -> None:
    place = {item["id"]: n for n, item in enumerate(known_items)}
    content = content_matrix([msgspec.convert(item, Item) for item in known_items])
    found_alike, all_alike = [], []
    for n, item in enumerate(known_items[:8]):
        found = _by_source(_decide(api, stack, seed_item_id=item["id"]))["content"]
        assert found
        cosines = (content @ content[n].T).toarray().ravel()
        found_alike.append(cosines[[place[other] for other in found]].mean())
        all_alike.append(cosines.mean())
    assert sum(found_alike) > 1.4 * sum(all_alike)


def test_a_new_item_moves_to_the_people_who_like_it_on_every_worker(
    stack: Stack, workers: list[Api], known_items: list[dict[str, Any]]
) -> None:
    interactions = pq.read_table(stack.data_dir / "demo" / "interactions.parquet", columns=["item_id"])
    liked = [item_id for item_id, _ in Counter(interactions["item_id"].to_pylist()).most_common(6)]
    new, reader = f"new-{uuid.uuid4()}", f"reader-{uuid.uuid4()}"

    def post(users: list[str], item_ids: list[str]) -> None:
        clicks = [{"type": "click", "user_id": u, "item_id": i, "id": f"{u}-{i}"} for u in users for i in item_ids]
        assert workers[0].call("POST", "/v1/events", clicks).body["accepted"] == len(clicks)

    def affinity(api: Api) -> float:
        decision = _decide(api, stack, user_id=reader, candidates=[new], n=1)
        dtype, raw = decision.candidates.columns["affinity"]
        return float(np.nan_to_num(np.frombuffer(raw, dtype=dtype)[0]))

    assert workers[0].call("PUT", "/v1/items", {**known_items[-3], "id": new}).status == 202
    try:
        post([reader], liked)
        eventually(lambda: all(affinity(api) != 0.0 for api in workers), what="the item and the reader are known")
        before = [affinity(api) for api in workers]
        post([f"{new}-{n}" for n in range(12)], [*liked, new])
        for api, at_content in zip(workers, before, strict=True):
            eventually(lambda api=api, at=at_content: affinity(api) > at + 0.02, what="the item has moved")
    finally:
        workers[0].call("DELETE", f"/v1/items/{new}")
