"""The HTTP API on a real stack: bad inputs get a problem that names the field, good ones what was promised."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from typing import Any
from urllib.parse import quote

import pytest
import redis

from service.adapters.embedded_store import socket_path
from service.messages import Erasure, journal_decoder
from tests.integration.api import Answer, Api
from tests.stack import Stack, eventually

MB = 1_048_576


def _recommend(**fields: Any) -> tuple[str, str, Any]:
    return "POST", "/v1/recommend", {"surface": "home", **fields}


def _raw(body: bytes) -> tuple[str, str, Any]:
    return "POST", "/v1/recommend", body


def _item(**fields: Any) -> tuple[str, str, Any]:
    return "PUT", "/v1/items", [{"id": "good"}, {"id": "bad", **fields}]


def _event(**fields: Any) -> tuple[str, str, Any]:
    return "POST", "/v1/events", {"type": "click", "event_id": "e", "slot": 0, **fields}


def _reward(**fields: Any) -> tuple[str, str, Any]:
    return "POST", "/v1/reward", {"event_id": "e", "reward": 1.0, "slot": 0, **fields}


def _nested(depth: int) -> bytes:
    return b'{"surface": "home", "context": ' + b'{"a": ' * depth + b"1" + b"}" * depth + b"}"


# name: (request, status, path of the field)
BAD: dict[str, tuple[tuple[str, str, Any], int, str | None]] = {
    "malformed JSON": (_raw(b'{"surface": '), 400, "$"),
    "empty body": (_raw(b""), 400, "$"),
    "two values": (_raw(b'{"surface": "home"} {}'), 400, "$"),
    "an array": (_raw(b"[]"), 422, "$"),
    "a number": (_raw(b"1"), 422, "$"),
    "invalid UTF-8": (_raw(b'{"surface": "home", "user_id": "\xff\xfe"}'), 400, "$"),
    "lone surrogate": (_raw(b'{"surface": "home", "user_id": "\\ud800 and more text"}'), 400, "$"),
    "10,000 levels": (_raw(_nested(10_000)), 400, "$"),
    "900 levels with NaN": (_raw(_nested(900).replace(b"1", b"NaN")), 400, None),
    "10,000 open brackets": (_raw(b"[" * 10_000), 422, "$"),
    "no surface": (_raw(b"{}"), 422, "$.surface"),
    "unknown surface": (_recommend(surface="nowhere"), 422, "$.surface"),
    "surface that is no text": (_recommend(surface=7), 422, "$.surface"),
    "unknown field": (_recommend(colour="red"), 422, "$.colour"),
    "n = 0": (_recommend(n=0), 422, "$.n"),
    "n = -1": (_recommend(n=-1), 422, "$.n"),
    "n = 1.5": (_recommend(n=1.5), 422, "$.n"),
    "n as text": (_recommend(n="10"), 422, "$.n"),
    "n beyond the surface": (_recommend(n=101), 422, "$.n"),
    "n beyond everything": (_recommend(n=10**30), 422, "$.n"),
    "n beyond the catalogue": (_recommend(surface="similar", n=990), 422, "$.n"),
    "NaN": (_raw(b'{"surface": "home", "context": {"a": [1, {"b": NaN}]}}'), 400, "$.context.a[1].b"),
    "Infinity": (_raw(b'{"surface": "home", "context": {"a": -Infinity}}'), 400, "$.context.a"),
    "1e999": (_raw(b'{"surface": "home", "context": {"a": 1e999}}'), 422, "$.context[...]"),
    "1 MB of context": (_recommend(context={"a": "x" * MB}), 422, "$.context.a"),
    "65 keys of context": (_recommend(context={f"k{n}": 1 for n in range(65)}), 422, "$.context"),
    "long context key": (_recommend(context={"k" * 300: 1}), 422, "$.context." + "k" * 64),
    "nested context": (_recommend(context={"a": {"b": 1}}), 422, "$.context.a"),
    "context list of numbers": (_recommend(context={"a": [1, 2]}), 422, "$.context.a"),
    "context of another kind": (_recommend(context={"device": ["tv"]}), 422, "$.context.device"),
    "context that is a list": (_recommend(context=[]), 422, "$.context"),
    "empty user": (_recommend(user_id=""), 422, "$.user_id"),
    "long user": (_recommend(user_id="u" * 257), 422, "$.user_id"),
    "event id of 1 KB": (_recommend(event_id="e" * 1_024), 422, "$.event_id"),
    "unknown seed": (_recommend(surface="similar", seed_item_id="nothing"), 422, "$.seed_item_id"),
    "excluded number": (_recommend(exclude=["a", 1]), 422, "$.exclude[1]"),
    "repeated candidate": (_recommend(candidates=["a", "a"]), 422, "$.candidates"),
    "candidate without id": (_recommend(candidates=[{"attributes": {}}]), 422, "$.candidates[0].id"),
    "candidate of a wrong kind": (
        _recommend(candidates=[{"id": "a", "attributes": {"genres": 5}}]),
        422,
        "$.candidates[0].attributes.genres",
    ),
    "10,001 candidates": (_recommend(candidates=[str(n) for n in range(10_001)]), 422, "$.candidates"),
    "body over the limit": (_raw(b" " * (4 * MB) + b"{}"), 413, "$"),
    "item without id": (("PUT", "/v1/items", [{"title": "x"}]), 422, "$[0].id"),
    "single item without id": (("PUT", "/v1/items", {"title": "x"}), 422, "$.id"),
    "item id of 1 KB": (_item(id="i" * 1_024), 422, "$[1].id"),
    "empty item id": (_item(id=""), 422, "$[1].id"),
    "item id with a control character": (_item(id="a\nb"), 422, "$[1].id"),
    "item with an unknown field": (_item(colour="red"), 422, "$[1].colour"),
    "item attribute of a wrong kind": (_item(attributes={"genres": 5}), 422, "$[1].attributes"),
    "item attribute that is nested": (_item(attributes={"genres": {"a": 1}}), 422, "$[1].attributes[...]"),
    "item attribute NaN": (
        ("PUT", "/v1/items", b'[{"id": "bad", "attributes": {"year": NaN}}]'),
        400,
        "$[0].attributes.year",
    ),
    "region that is no country": (_item(regions=["DE", "Atlantis"]), 422, "$[1].regions[1]"),
    "item age as text": (_item(min_age="x"), 422, "$[1].min_age"),
    "items that are no items": (("PUT", "/v1/items", b'"x"'), 422, "$"),
    "user without id": (("PUT", "/v1/users", [{"country": "DE"}]), 422, "$[0].user_id"),
    "birth date of no calendar": (
        ("PUT", "/v1/users", [{"user_id": "u", "birth_date": "2020-13-01"}]),
        422,
        "$[0].birth_date",
    ),
    "country of three letters": (("PUT", "/v1/users", {"user_id": "u", "country": "DEU"}), 422, "$.country"),
    "event of nothing": (("POST", "/v1/events", {"type": "click"}), 422, "$.event_id"),
    "event without type": (("POST", "/v1/events", {"event_id": "e", "slot": 0}), 422, "$.type"),
    "event without slot": (_event(slot=None), 422, "$.slot"),
    "event with a negative slot": (_event(slot=-1), 422, "$.slot"),
    "event value 1e999": (
        ("POST", "/v1/events", b'{"type": "c", "event_id": "e", "slot": 0, "value": 1e999}'),
        422,
        "$.value",
    ),
    "event value NaN": (("POST", "/v1/events", b'{"type": "c", "value": NaN}'), 400, "$.value"),
    "event time of no calendar": (_event(ts="yesterday"), 422, "$.ts"),
    "event with an unknown field": (_event(colour="red"), 422, "$.colour"),
    "reward without slot": (_reward(slot=None), 422, "$.slot"),
    "reward missing": (("POST", "/v1/reward", {"event_id": "e", "slot": 0}), 422, "$.reward"),
    "reward as text": (_reward(reward="much"), 422, "$.reward"),
    "reward NaN": (("POST", "/v1/reward", b'{"event_id": "e", "reward": NaN}'), 400, "$.reward"),
    "patch of a wrong kind": (("PATCH", "/v1/items/KNOWN", {"min_age": "x"}), 422, "$.min_age"),
    "patch to a wrong attribute": (("PATCH", "/v1/items/KNOWN", {"attributes": {"genres": 5}}), 422, "$.attributes"),
    "patch of the id": (("PATCH", "/v1/items/KNOWN", {"id": "other"}), 422, "$.id"),
    "items without ids": (("GET", "/v1/items", None), 422, "ids"),
    "unknown item": (("GET", "/v1/items/nothing", None), 404, None),
    "delete of an unknown item": (("DELETE", "/v1/items/nothing", None), 404, None),
    "patch of an unknown item": (("PATCH", "/v1/items/nothing", {"title": "x"}), 404, None),
    "unknown decision": (("GET", "/v1/decisions/nothing", None), 404, None),
    "wrong method": (("GET", "/v1/recommend", None), 405, None),
    "unknown route": (("GET", "/v1/nothing", None), 404, None),
    "static file outside": (("GET", "/static/../app.py", None), 404, None),
}
# These pass the door and fail behind it, or are refused there in silence.
UNBOUNDED: dict[str, tuple[tuple[str, str, Any], str]] = {
    "context number of 70 bits": (_recommend(context={"a": 2**70}), "$.context.a"),
    "event slot of 70 bits": (_event(slot=2**70), "$.slot"),
    "event slot of 40 bits": (_event(slot=2**40), "$.slot"),
    "reward slot of 70 bits": (_reward(slot=2**70), "$.slot"),
    "item age of 17 bits": (_item(min_age=2**17), "$[1].min_age"),
    "negative item age": (_item(min_age=-1), "$[1].min_age"),
    "item expiry of 70 bits": (_item(expires_at_unix_ms=2**70), "$[1].expires_at_unix_ms"),
}


def _send(api: Api, request: tuple[str, str, Any], known_id: str) -> Answer:
    method, path, body = request
    return api.call(method, path.replace("KNOWN", known_id), body)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_gets_a_problem_that_names_the_field(api: Api, known_items: list[Any], name: str) -> None:
    request, status, path = BAD[name]
    answer = _send(api, request, known_items[0]["id"])
    assert answer.headers["content-type"] == "application/problem+json", answer.raw
    assert (answer.status, answer.body["status"]) == (status, status), answer.raw
    if path is not None:
        assert answer.body["path"] == path
    assert answer.body["title"]
    assert answer.body["detail"]


@pytest.mark.parametrize("name", UNBOUNDED)
def test_a_number_beyond_any_use_gets_a_problem_that_names_the_field(
    api: Api, known_items: list[Any], name: str
) -> None:
    request, path = UNBOUNDED[name]
    answer = _send(api, request, known_items[0]["id"])
    assert (answer.status, answer.body["path"]) == (422, path)


def test_after_all_bad_inputs_the_same_workers_still_answer(
    stack: Stack, workers: list[Api], known_items: list[Any]
) -> None:
    before = stack.processes()
    for worker in workers:
        for request, *_ in (*BAD.values(), *UNBOUNDED.values()):
            _send(worker, request, known_items[0]["id"])
    for worker in workers:
        assert len(worker.recommend(n=5)["items"]) == 5
        assert worker.call("GET", "/readyz").status == 200
    assert stack.processes() == before
    assert len(stack.ready_workers()) == stack.n_workers


def test_a_refused_array_puts_none_of_its_items(api: Api) -> None:
    assert api.call("PUT", "/v1/items", [{"id": "fine"}, {"id": ""}]).status == 422
    assert api.call("GET", "/v1/items/fine").status == 404


def test_a_wrong_method_is_told_the_right_one(api: Api) -> None:
    answer = api.call("GET", "/v1/recommend")
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"


def test_of_a_batch_of_events_the_good_are_taken_and_the_bad_are_named(api: Api) -> None:
    events = [
        {"type": "click", "user_id": "u-batch", "item_id": "x", "id": "1"},
        {"type": "click"},
        {"type": "click", "user_id": "u-batch", "item_id": "x", "id": "1"},
        {"type": 7},
        {"type": "click", "user_id": "u-batch", "item_id": "y", "colour": "red"},
    ]
    answer = api.call("POST", "/v1/events", events)
    assert answer.status == 202
    assert (answer.body["accepted"], answer.body["duplicate"]) == (1, 1)
    assert [(r["index"], r["path"]) for r in answer.body["rejected"]] == [
        (1, "$[1].event_id"),
        (3, "$[3].type"),
        (4, "$[4].colour"),
    ]


def test_ndjson_lines_are_taken_one_by_one(api: Api) -> None:
    lines = b'{"id": "nd1"}\n\nnot json\n{"id": ""}\n{"id": "nd2"}\n'
    answer = api.call("PUT", "/v1/items", lines, content_type="application/x-ndjson")
    assert answer.status == 202
    assert answer.body["accepted"] == 2
    assert [r["index"] for r in answer.body["rejected"]] == [2, 3]
    assert [item["id"] for item in api.call("GET", "/v1/items?ids=nd2,nd1").body] == ["nd2", "nd1"]
    users = api.call("PUT", "/v1/users", b'{"user_id": "ndu"}\n{"user": 1}', content_type="application/x-ndjson")
    assert (users.body["accepted"], [r["index"] for r in users.body["rejected"]]) == (1, [1])


@pytest.mark.parametrize("item_id", ["ünï/cödé", "日本語", "a b+c%20d", "🎬", "..", "?&#"])
def test_any_printable_text_is_an_item_id(api: Api, item_id: str) -> None:
    title = f"Title of {item_id}"
    assert api.call("PUT", "/v1/items", {"id": item_id, "title": title}).status == 202
    body = api.recommend(candidates=[item_id, "unknown"], n=1, user_id=f"user {item_id}")
    assert [item["item_id"] for item in body["items"]] == [item_id]
    if item_id != "..":  # a path of two dots is another path
        path = f"/v1/items/{quote(item_id, safe='')}"
        assert api.call("GET", path).body == {"id": item_id, "title": title}
        assert api.call("DELETE", path).status == 204
        assert api.call("GET", path).status == 404


def test_a_deleted_item_is_gone_from_its_worker_at_once_and_from_all_within_a_second(
    workers: list[Api],
) -> None:
    first, *others = workers
    doomed = [f"doomed{n}" for n in range(10)]
    first.call("PUT", "/v1/items", [{"id": item_id} for item_id in doomed])
    eventually(lambda: all(_serves(worker, doomed[-1]) for worker in workers), what="every worker serves them")
    for item_id in doomed:
        assert first.call("DELETE", f"/v1/items/{item_id}").status == 204
        assert not _serves(first, item_id)
    # The promise: whoever asks a second after the acknowledgement never finds it.
    time.sleep(1.0)
    for worker in others:
        assert not any(_serves(worker, item_id) for item_id in doomed)
        everything = worker.recommend(candidates=doomed, n=10)
        assert (everything["items"], everything["degraded"]) == ([], ["unknown_candidates"])


def _serves(worker: Api, item_id: str) -> bool:
    served = worker.recommend(candidates=[item_id], n=1)["items"]
    return [item["item_id"] for item in served] == [item_id]


def test_an_unlisted_item_is_not_served_and_returns_when_listed(workers: list[Api]) -> None:
    first, *_ = workers
    first.call("PUT", "/v1/items", {"id": "shy"})
    for listed in (False, True, False):
        assert first.call("PATCH", "/v1/items/shy", {"listed": listed}).body.get("listed", True) is listed
        assert _serves(first, "shy") is listed
        eventually(lambda wanted=listed: all(_serves(worker, "shy") is wanted for worker in workers))


def test_a_new_item_is_recommendable_at_once_by_its_worker_and_soon_by_all(workers: list[Api]) -> None:
    first, *_ = workers
    content = {
        "attributes": {"genres": ["Western", "Musical"], "language": "Klingon", "directors": ["Nobody Else"]},
        "creator": "Nobody Else",
    }

    def found(worker: Api, seed: str) -> set[str]:
        # All of the surface's candidates: before anything is learned they tie, and fewer would be drawn at random.
        body = worker.recommend(surface="similar", seed_item_id=seed, n=200)
        return {item["item_id"] for item in body["items"]}

    first.call("PUT", "/v1/items", [{"id": "model", **content}, {"id": "twin", **content}])
    assert "twin" in found(first, "model")
    eventually(lambda: all(_serves(worker, "twin") for worker in workers), what="every worker serves it")
    assert all("twin" in found(worker, "model") for worker in workers)


def test_a_repeated_event_id_gets_the_first_response_from_any_worker(workers: list[Api]) -> None:
    event_id = f"mine-{uuid.uuid4()}"
    request = {"event_id": event_id, "n": 5, "user_id": "ml-1", "context": {"device": "tv"}}
    bodies = [worker.recommend(**request) for worker in (*workers, *workers)]
    assert bodies[0]["event_id"] == event_id
    assert all(body == bodies[0] for body in bodies)
    for other in ({"n": 6}, {"context": {"device": "phone"}}, {"user_id": "ml-2"}):
        for worker in workers:
            answer = worker.call("POST", "/v1/recommend", {"surface": "home", **request, **other})
            assert (answer.status, answer.body["path"]) == (409, "$.event_id")


def test_a_decision_explains_itself_once_it_is_in_the_journal(api: Api) -> None:
    body = api.recommend(n=3, event_id=f"why-{uuid.uuid4()}")
    answer = api.call("GET", f"/v1/decisions/{body['event_id']}")
    assert answer.status == 200
    assert body["event_id"] in answer.raw.decode()


def test_a_child_is_shown_nothing_for_grown_ups(api: Api, known_items: list[dict[str, Any]]) -> None:
    age_of = {item["id"]: item.get("min_age") for item in known_items}
    adult_only = [item_id for item_id, age in age_of.items() if age is not None and age > 12]
    assert len(adult_only) > 20
    for user_id, born in (("child", "2020-06-01"), ("adult", "1980-06-01")):
        api.call("PUT", "/v1/users", {"user_id": user_id, "birth_date": born})
    by_surface = {"home": {}, "playlist": {}, "similar": {"seed_item_id": known_items[0]["id"]}}
    for surface, fields in by_surface.items():
        for _ in range(5):
            body = api.recommend(surface=surface, user_id="child", n=50, **fields)
            ages = [age_of.get(item["item_id"]) for item in body["items"]]
            assert ages
            assert all(age is None or age <= 6 for age in ages)
    assert api.recommend(user_id="child", candidates=adult_only[:20], n=5)["items"] == []
    assert len(api.recommend(user_id="adult", candidates=adult_only[:20], n=5)["items"]) == 5


def test_excluded_items_and_the_seed_are_never_shown(api: Api, known_items: list[dict[str, Any]]) -> None:
    every = [item["id"] for item in known_items]
    for _ in range(5):
        shown = {item["item_id"] for item in api.recommend(n=50, exclude=every[: len(every) // 2])["items"]}
        assert shown
        assert not shown & set(every[: len(every) // 2])
    assert api.recommend(candidates=every[:10], exclude=every[:9], n=5)["items"][0]["item_id"] == every[9]
    seed = every[0]
    body = api.recommend(surface="similar", seed_item_id=seed, n=20)
    assert seed not in {item["item_id"] for item in body["items"]}
    # `similar` keeps what was consumed out as well.
    api.call("POST", "/v1/events", {"type": "click", "user_id": "fan", "item_id": body["items"][0]["item_id"]})
    again = api.recommend(surface="similar", seed_item_id=seed, n=20, user_id="fan")
    assert body["items"][0]["item_id"] not in {item["item_id"] for item in again["items"]}


def test_an_event_is_in_the_users_state_when_it_is_acknowledged(workers: list[Api]) -> None:
    first, *others = workers
    user_id = f"u-{uuid.uuid4()}"
    body = first.recommend(user_id=user_id, n=3, event_id=f"seen-{uuid.uuid4()}")
    answer = first.call("POST", "/v1/events", {"type": "click", "event_id": body["event_id"], "slot": 1})
    assert answer.body["accepted"] == 1
    for worker in (first, *others):
        state = worker.call("GET", f"/v1/users/{user_id}").body
        assert state["consumed"] == [body["items"][1]["item_id"]]
    assert first.call("DELETE", f"/v1/users/{user_id}").status == 204
    assert first.call("GET", f"/v1/users/{user_id}").body["recent"] == []


def test_an_erasure_is_journaled_when_it_is_acknowledged(stack: Stack, api: Api) -> None:
    with redis.Redis(unix_socket_path=str(socket_path(stack.data_dir))) as client:
        since_ms = time.time_ns() // 1_000_000
        assert api.call("DELETE", "/v1/users/nobody").status == 204
        entries = client.xrange("hone:{0}:journal", min=str(since_ms))
    erasures = [e for _, fields in entries if isinstance(e := journal_decoder.decode(fields[b"e"]), Erasure)]
    assert len(erasures) == 1
    assert erasures[0].user_key
    assert "nobody" not in repr(entries)


def test_exploration_changes_live_on_every_worker_and_the_model_stays(stack: Stack, workers: list[Api]) -> None:
    key = "surfaces.because_you_watched.exploration"
    versions = {worker.recommend(n=1)["model_version"] for worker in workers}

    def hone(*arguments: str) -> str:
        command = [sys.executable, "-m", "service", "config", *arguments]
        done = subprocess.run(command, env=dict(stack.environment), capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else f"{done.returncode} {done.stderr}"

    def serves(rate: float) -> bool:
        answers = [worker.recommend(surface="because_you_watched", n=5) for worker in workers]
        return all(answer["explore_rate"] == rate for answer in answers)

    assert serves(0.1)
    assert hone("set", f"{key}.rate", "0.35", "--reason", "trial") == f"{key}.rate: 0.1 -> 0.35\n"
    eventually(lambda: serves(0.35), what="every worker explores at the new rate")
    shown = workers[0].call("GET", "/v1/surfaces").body["because_you_watched"]["exploration"]
    assert shown["rate"] == 0.35
    assert [o["value"] for o in json.loads(hone("live", "--json"))] == [0.35]
    assert hone("set", f"{key}.rate", "1.35").startswith("2 hone: ")
    hone("unset", key)
    eventually(lambda: serves(0.1), what="every worker explores at the declared rate")
    assert [(o["value"], o["reason"]) for o in json.loads(hone("log", "--json"))] == [(0.35, "trial"), (None, "")]
    assert min(worker.recommend(n=1)["model_version"] for worker in workers) >= min(versions)


def test_propensities_and_slots_are_well_formed(api: Api) -> None:
    body = api.recommend(user_id="ml-3", n=20, context={"device": "phone", "tags": ["a", "b"], "ratio": 0.5})
    assert [item["slot"] for item in body["items"]] == list(range(20))
    assert len({item["item_id"] for item in body["items"]}) == 20
    assert all(0.0 < item["propensity"] <= 1.0 for item in body["items"])
    assert body["degraded"] == []


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics", "/v1/surfaces"])
def test_pages_answer(api: Api, path: str) -> None:
    answer = api.call("GET", path)
    assert answer.status == 200
    assert answer.raw
