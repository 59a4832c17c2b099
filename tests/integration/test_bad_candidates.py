"""Candidates that cannot be used, or hardly: each gets a defined answer, and what was drawn has exact propensities."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from bandit.features import Feature, FeatureSchema
from retrieval.catalogue import Catalogue
from retrieval.items import Item
from service.adapters.embedded_store import socket_path
from service.adapters.memory_store import MemoryJournal, MemoryUserStates
from service.adapters.memory_streams import MemoryStore
from service.adapters.redis_store import RedisJournal, connect
from service.audit import audit_decision
from service.config import Config, ModelConfig, StoreConfig, SurfaceConfig
from service.errors import InvalidRequest
from service.explain import find_decision
from service.items_view import ItemsView
from service.live_config import LiveConfig
from service.messages import Decision, ItemUpsert, journal_decoder
from service.metrics import Metrics
from service.recommend import Recommender
from service.retriever import Retriever
from service.rule_columns import AttributeColumns
from service.served_model import ServedModel
from service.spool import SpoolEntry
from service.web.problems import decode
from service.wire import RecommendRequest
from tests.integration.api import Api
from tests.stack import Stack


def _inline(*attributes: bytes) -> bytes:
    """A request that describes candidates by the JSON of their attributes."""
    described = b", ".join(b'{"id": "c%d", "attributes": %s}' % entry for entry in enumerate(attributes))
    return b'{"surface": "home", "candidates": [' + described + b"]}"


def _context(value: bytes) -> bytes:
    return b'{"surface": "home", "context": {"hour": ' + value + b"}}"


# name: (body, status, path of the field)
REFUSED: dict[str, tuple[bytes, int, str]] = {
    "candidate of an unknown field": (
        b'{"surface": "home", "candidates": ["a", {"id": "b", "colour": "red"}]}',
        422,
        "$.candidates[1].colour",
    ),
    "candidate that is a number": (b'{"surface": "home", "candidates": ["a", 5]}', 422, "$.candidates[1]"),
    "candidate that is nothing": (b'{"surface": "home", "candidates": [null]}', 422, "$.candidates[0]"),
    "candidates that are one": (b'{"surface": "home", "candidates": {"id": "a"}}', 422, "$.candidates"),
    "candidate with an empty id": (b'{"surface": "home", "candidates": [{"id": ""}]}', 422, "$.candidates[0].id"),
    "attributes that are a list": (_inline(b"[1]"), 422, "$.candidates[0].attributes"),
    "attribute that is nested": (_inline(b'{"year": {"a": 1}}'), 422, "$.candidates[0].attributes[...]"),
    "text for a number": (_inline(b"{}", b'{"year": "old"}'), 422, "$.candidates[1].attributes.year"),
    "number for a list": (_inline(b'{"year": 1}', b'{"genres": 5}'), 422, "$.candidates[1].attributes.genres"),
    "list for a text": (_inline(b'{"language": ["x"]}'), 422, "$.candidates[0].attributes.language"),
    "creator that is a number": (
        b'{"surface": "home", "candidates": [{"id": "a", "creator": 5}]}',
        422,
        "$.candidates[0].creator",
    ),
    "attribute NaN": (_inline(b'{"year": NaN}'), 400, "$.candidates[0].attributes.year"),
    "attribute -Infinity": (_inline(b"{}", b'{"year": -Infinity}'), 400, "$.candidates[1].attributes.year"),
    "attribute 1e999": (_inline(b'{"year": 1e999}'), 422, "$.candidates[0].attributes[...]"),
    "context Infinity": (_context(b"Infinity"), 400, "$.context.hour"),
    "context 1e999": (_context(b"1e999"), 422, "$.context[...]"),
    "context 1e300": (_context(b"1e300"), 422, "$.context.hour"),
    "context text for a number": (_context(b'"noon"'), 422, "$.context.hour"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_by_field(api: Api, name: str) -> None:
    body, status, path = REFUSED[name]
    answer = api.call("POST", "/v1/recommend", body)
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status, answer.body["path"]) == (status, path), answer.raw
    assert answer.body["detail"]


async def _logged(stack: Stack, answer: dict[str, Any]) -> Decision:
    """Return the record of an answer, after an audit that finds nothing and a look at what was answered."""
    client = connect(f"unix://{socket_path(stack.data_dir)}", timeout_s=10.0)
    try:
        decision = await find_decision(RedisJournal(client, n_partitions=1), answer["event_id"])
    finally:
        await client.aclose()
    assert decision is not None
    assert audit_decision(decision) == []
    shown = [(slot.item_id, slot.propensity) for slot in decision.slots]
    assert shown == [(item["item_id"], item["propensity"]) for item in answer["items"]]
    return decision


def _decide(api: Api, **body: Any) -> dict[str, Any]:
    """Recommend with an event id of the caller's, so that the decision is in the journal when it is answered."""
    answer: dict[str, Any] = api.recommend(event_id=f"bad-{uuid.uuid4()}", **body)
    explained = api.call("GET", f"/v1/decisions/{answer['event_id']}")
    assert explained.status == 200, explained.raw
    assert len(explained.body["slots"]) == len(answer["items"])
    return answer


async def test_a_feature_that_nobody_declared_says_nothing(stack: Stack, api: Api) -> None:
    described = [{"id": "a", "attributes": {"colour": "red", "genres": ["Drama"]}}]
    context = {"device": "tv", "colour": "red", "numbers": 7}
    known = await _logged(stack, _decide(api, candidates=described, context=context))
    described[0]["attributes"].pop("colour")  # type: ignore[attr-defined]
    without = await _logged(stack, _decide(api, candidates=described, context={"device": "tv"}))
    assert known.features["context"] == without.features["context"]
    assert known.slots[0].features["item"] == without.slots[0].features["item"]
    assert known.candidates.scores == without.candidates.scores


@pytest.mark.parametrize("surface", ["home", "playlist"])
async def test_an_empty_list_of_candidates_is_an_empty_slate(stack: Stack, api: Api, surface: str) -> None:
    answer = _decide(api, surface=surface, candidates=[], n=5)
    assert (answer["items"], answer["degraded"]) == ([], [])
    assert (await _logged(stack, answer)).candidates.ids == []


@pytest.mark.parametrize("surface", ["home", "playlist"])
async def test_one_candidate_is_shown_with_certainty(
    stack: Stack, api: Api, known_items: list[dict[str, Any]], surface: str
) -> None:
    for candidate in (known_items[0]["id"], {"id": "mine", "creator": "x"}):
        answer = _decide(api, surface=surface, candidates=[candidate], n=1)
        assert [item["propensity"] for item in answer["items"]] == [1.0]
        assert (await _logged(stack, answer)).slots[0].n_feasible == 1


@pytest.mark.parametrize("surface", ["home", "playlist", "similar"])
async def test_of_fewer_candidates_than_slots_all_are_placed_once(
    stack: Stack, api: Api, known_items: list[dict[str, Any]], surface: str
) -> None:
    # All of one creator: the rules that limit it give way one slot after the other, and the log says so.
    same = [{"id": f"c{n}", "creator": "same", "attributes": {"genres": ["Drama"]}} for n in range(5)]
    for candidates in ([item["id"] for item in known_items[:4]], same):
        answer = _decide(api, surface=surface, candidates=candidates, n=20)
        decision = await _logged(stack, answer)
        wanted = {c if isinstance(c, str) else c["id"] for c in candidates}
        assert {item["item_id"] for item in answer["items"]} == wanted
        assert len(answer["items"]) == len(wanted)
        assert answer["items"][-1]["propensity"] == 1.0
        assert decision.slots[-1].n_feasible == 1
    assert "max_per:creator" in decision.slots[-1].gave_way


async def test_candidates_that_are_all_filtered_are_an_empty_slate(
    stack: Stack, api: Api, known_items: list[dict[str, Any]]
) -> None:
    every = [item["id"] for item in known_items]
    api.call("PUT", "/v1/users", {"user_id": "small", "birth_date": "2022-06-01"})
    grown_up = [item["id"] for item in known_items if (item.get("min_age") or 0) >= 16][:5]
    assert grown_up
    filtered: list[dict[str, Any]] = [
        {"candidates": every[:3], "exclude": every[:3]},
        {"candidates": [{"id": "mine"}], "exclude": ["mine"]},
        {"candidates": grown_up, "user_id": "small"},
    ]
    for body in filtered:
        answer = _decide(api, n=3, **body)
        assert (answer["items"], answer["degraded"]) == ([], [])
        assert (await _logged(stack, answer)).candidates.ids == []
    answer = _decide(api, n=3, candidates=["nothing", "nobody"])
    assert (answer["items"], answer["degraded"]) == ([], ["unknown_candidates"])
    # Of the catalogue nothing is left either, but what other tests have put.
    for surface in ("home", "playlist"):
        rest = _decide(api, n=3, exclude=every, surface=surface)
        assert {item["item_id"] for item in rest["items"]}.isdisjoint(every)
        await _logged(stack, rest)


# --- numbers that are features as they are: the demo has none, so this worker is wired here ---------------------------

SCHEMA = FeatureSchema(
    features=[
        Feature(name="load", namespace="context", source="load", kind="numeric"),
        Feature(name="slot", namespace="position", source="slot"),
        Feature(name="weight", namespace="item", source="weight", kind="numeric"),
        Feature(name="votes", namespace="item", source="votes", kind="counter", edges=[1.0, 10.0]),
    ],
    interactions=[("context", "item")],
)


class Spool:
    """Keeps what was written to it."""

    def __init__(self) -> None:
        self.entries: list[SpoolEntry] = []

    def append(self, entry: SpoolEntry) -> None:
        self.entries.append(entry)

    def last(self) -> Decision:
        decision = journal_decoder.decode(self.entries[-1].payload)
        assert isinstance(decision, Decision)
        return decision


@pytest.fixture
def numbers() -> Iterator[tuple[Recommender, Spool]]:
    """A worker that scores unbucketed numbers with large weights."""
    config = Config(
        features=SCHEMA,
        models={"m": ModelConfig(bits=10, learning_rate=0.1)},
        surfaces={"home": SurfaceConfig(model="m")},
    )
    store, metrics, spool = MemoryStore(lambda: 1_000_000), Metrics(), Spool()
    items = ItemsView(SCHEMA, Retriever(Catalogue(), None), AttributeColumns({}))
    items.apply("1-0", ItemUpsert(item=Item(id="known", attributes={"weight": 2.0})))
    model = ServedModel("m", config.model_spec("m"), metrics)
    model._table.weights[:] = 1_000.0
    yield (
        Recommender(
            live=LiveConfig(config),
            items=items,
            models={"m": model},
            explorers={},
            users=MemoryUserStates(store, StoreConfig()),
            journal=MemoryJournal(store),
            spool=spool,  # type: ignore[arg-type]
            metrics=metrics,
            clock=lambda: 1_000_000,
            salt=b"salt",
        ),
        spool,
    )
    assert metrics.registry.get_sample_value("hone_scorer_mismatches_total") == 0.0


def _request(weight: str, load: str = "1.0") -> RecommendRequest:
    body = f"""{{"surface": "home", "n": 3, "context": {{"load": {load}}},
        "candidates": ["known", {{"id": "a"}}, {{"id": "b", "attributes": {{"weight": {weight}}}}}]}}"""
    return decode(body.encode(), msgspec.json.Decoder(RecommendRequest))


@pytest.mark.parametrize("weight", ["1e16", "-1e38", "3e38", "1e39", "1e300", str(2**70)])
async def test_a_number_whose_score_could_overflow_is_refused_by_field(
    numbers: tuple[Recommender, Spool], weight: str
) -> None:
    recommender, spool = numbers
    with pytest.raises(InvalidRequest, match="feature 'weight' must have numbers within") as refused:
        await recommender.recommend(_request(weight))
    assert (refused.value.path, refused.value.status) == ("$.candidates[2].attributes.weight", 422)
    with pytest.raises(InvalidRequest) as refused:
        await recommender.recommend(_request("1.0", load=weight))
    assert refused.value.path == "$.context.load"
    assert spool.entries == []


@pytest.mark.parametrize(("weight", "load"), [("0.0", "0.0"), ("1e-300", "1.0"), ("9e15", "9e15"), ("-9e15", "-9e15")])
async def test_the_largest_and_smallest_numbers_are_scored_and_drawn_exactly(
    numbers: tuple[Recommender, Spool], weight: str, load: str
) -> None:
    recommender, spool = numbers
    answer = await recommender.recommend(_request(weight, load))
    assert {item.item_id for item in answer.items} == {"known", "a", "b"}
    assert audit_decision(spool.last()) == []
    assert [item.propensity for item in answer.items] == [slot.propensity for slot in spool.last().slots]
    assert answer.items[-1].propensity == 1.0
