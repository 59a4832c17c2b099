"""Explanations on a real stack: terms sum to the logged score, also after learning has moved on."""

from __future__ import annotations

import subprocess
import sys
import uuid
from typing import Any

from tests.integration.api import Api
from tests.stack import Stack, eventually


def _decide(api: Api, surface: str, user: int, **fields: Any) -> dict[str, Any]:
    """Recommend with an event id of the caller's, so that the decision is in the journal when it is answered."""
    event_id = f"why-{uuid.uuid4()}"
    return api.recommend(surface=surface, event_id=event_id, user_id=f"ml-{user}", context={"device": "tv"}, **fields)


def _explain(api: Api, decision: dict[str, Any]) -> dict[str, Any]:
    answer = api.call("GET", f"/v1/decisions/{decision['event_id']}")
    assert answer.status == 200, answer.raw
    return answer.body


def _version(api: Api) -> int:
    return api.call("GET", "/readyz").body["models"]["films"]


def _teach(api: Api, *, rounds: int) -> None:
    """Click, and wait until the worker serves what was learned from it."""
    for turn in range(rounds):
        before = _version(api)
        body = _decide(api, "home", turn + 1, n=10)
        events = [{"type": "click", "event_id": body["event_id"], "slot": slot} for slot in range(5)]
        assert api.call("POST", "/v1/events", events).body["accepted"] == 5
        eventually(lambda was=before: _version(api) > was, what="the clicks are served")


def _check_exact(decision: dict[str, Any], explained: dict[str, Any]) -> None:
    assert explained["weights"]["version"] == explained["weights"]["decision_version"] == decision["model_version"]
    assert len(explained["slots"]) == len(decision["items"])
    for slot, item in zip(explained["slots"], decision["items"], strict=True):
        assert slot["score"] == item["score"]
        assert abs(slot["score_sum"] - item["score"]) <= 1e-6
        assert abs(sum(term["contribution"] for term in slot["score_terms"]) - item["score"]) <= 1e-6
        assert abs(sum(part["boost"] for part in slot["boosts"]) - item["boost"]) <= 1e-12
        named = {**explained["features"], **slot["features"]}
        served = {f"{namespace}:{name}" for namespace, features in named.items() for name in features}
        single = {term["features"][0] for term in slot["score_terms"] if len(term["features"]) == 1}
        assert single == served


def test_terms_sum_to_the_score_before_and_after_learning_and_restarts_move_the_version_on(
    stack: Stack, api: Api
) -> None:
    _teach(api, rounds=3)
    seed = _decide(api, "home", 1, n=1)["items"][0]["item_id"]
    fields = {"home": {}, "playlist": {}, "similar": {"seed_item_id": seed}}
    decisions = [_decide(api, surface, user, n=10, **fields[surface]) for surface in fields for user in (1, 2, 3)]
    assert any(item["score"] != 0.0 for decision in decisions for item in decision["items"])
    for decision in decisions:
        _check_exact(decision, _explain(api, decision))
    _teach(api, rounds=3)
    later = _decide(api, "home", 1, n=10)
    assert later["model_version"] > decisions[0]["model_version"]
    for decision in (*decisions, later):
        _check_exact(decision, _explain(api, decision))
    # A learner that starts publishes a snapshot; the one before it is kept, and with it the version of the decisions.
    _restart_learner(stack, api)
    for decision in (*decisions, later):
        _check_exact(decision, _explain(api, decision))
    # After another start it is not, and the explanation says so.
    _restart_learner(stack, api)
    _teach(api, rounds=1)
    explained = _explain(api, later)
    weights = explained["weights"]
    assert weights["decision_version"] == later["model_version"] < weights["version"] < _version(api)
    assert "is no longer kept" in weights["in_words"]
    assert all(slot["score_sum"] is not None for slot in explained["slots"])
    newest = _decide(api, "home", 1, n=10)
    _check_exact(newest, _explain(api, newest))
    _check_command(stack, newest)


def _restart_learner(stack: Stack, api: Api) -> None:
    before = _version(api)
    pid = stack.kill("learner")
    stack.wait_restarted("learner", old_pid=pid)
    eventually(lambda: _version(api) > before, what="the worker serves the new learner's snapshot")


def _check_command(stack: Stack, decision: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "service", "explain", decision["event_id"]]
    said = subprocess.run(command, env=dict(stack.environment), check=True, capture_output=True, text=True).stdout
    for item in decision["items"]:
        assert f"{item['item_id']} was drawn with probability {item['propensity']:.6f}" in said
        assert f"Score {item['score']:+.4f} = " in said
    assert "which the decision was made with" in said
    assert "Runner-up: " in said
    assert "prior:affinity" in said
