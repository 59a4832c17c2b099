"""Both cold starts on a real stack: a new item within a second of its acknowledgement, and an unknown user."""

from __future__ import annotations

import time
import uuid
from typing import Any

from tests.integration.api import Api

BOUND_S = 1.0


def test_a_new_item_is_retrieved_by_every_worker_within_a_second_of_its_acknowledgement(
    workers: list[Api], known_items: list[dict[str, Any]]
) -> None:
    seed_id, item_id = (f"new-{uuid.uuid4()}" for _ in range(2))
    try:
        assert workers[0].call("PUT", "/v1/items", {**known_items[3], "id": seed_id}).status == 202
        assert workers[0].call("PUT", "/v1/items", {**known_items[3], "id": item_id}).status == 202
        acknowledged_s = time.monotonic()
        for api in workers:
            while True:
                # The caller names only what it is like: what is found of it are its vectors. All candidates are slots.
                asked_s = time.monotonic() - acknowledged_s
                slate = api.call("POST", "/v1/recommend", {"surface": "similar", "seed_item_id": seed_id, "n": 200})
                if slate.status == 200 and item_id in {item["item_id"] for item in slate.body["items"]}:
                    break
                # What was asked for a second after it was acknowledged must have it.
                assert asked_s < BOUND_S, slate.raw[:200]
    finally:
        for put in (seed_id, item_id):
            workers[0].call("DELETE", f"/v1/items/{put}")


def test_somebody_of_whom_only_the_context_is_known_gets_a_full_slate(api: Api) -> None:
    for body in ({}, {"user_id": f"nobody {uuid.uuid4()}"}):
        slate = api.recommend(n=20, context={"device": "tv", "country": "DE"}, **body)
        assert len({item["item_id"] for item in slate["items"]}) == 20
        assert slate["degraded"] == []
        # Sources that need somebody known leave their room to the others.
        assert {item["source"] for item in slate["items"]} <= {"popular", "fresh", "random"}
