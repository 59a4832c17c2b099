"""From a running stack's own log to a promoted model, a canary and back, by the commands that an operator uses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.integration.api import Api
from tests.stack import Stack, eventually, short_folder, start_stack

ENVIRONMENT = {
    "HONE_HTTP__WORKERS": "1",
    "HONE_ARCHIVE__FLUSH_S": "0.5",
    "HONE_SURFACES__HOME__REWARD__NEGATIVE_WINDOW_S": "0.5",
    "HONE_MODELS__CHALLENGER__BITS": "20",
    "HONE_HEALTH__GENRE": "",
}
N_DECISIONS = 120


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with short_folder() as folder:
        running = start_stack(folder, env=ENVIRONMENT, n_items=300)
        try:
            yield running
        finally:
            running.stop()


def hone(stack: Stack, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "service", *arguments]
    done = subprocess.run(command, env=dict(stack.environment), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def hone_json(stack: Stack, *arguments: str, code: int = 0) -> Any:
    return json.loads(hone(stack, *arguments, "--json", code=code))


def live(stack: Stack, model: str) -> str:
    """Return what a model goes on from."""
    return next(m["artefact"] for m in hone_json(stack, "models") if m["model"] == model)


def decide(stack: Stack, n: int) -> list[str]:
    """Ask for slates and click on the first item of each; return which model answered.

    On a connection of its own: one that rests while a command runs is closed by the server.
    """
    with closing(Api(stack.url)) as api:
        return _decide(api, n)


def _decide(api: Api, n: int) -> list[str]:
    event_ids = []
    for number in range(n):
        answer = api.recommend(user_id=f"ml-{number % 40}", n=3)
        api.call("POST", "/v1/events", {"type": "click", "event_id": answer["event_id"], "slot": 0})
        event_ids.append(answer["event_id"])
    found: dict[str, str] = {}

    def are_journaled() -> bool:
        for event_id in event_ids[-20:]:
            body = api.call("GET", f"/v1/decisions/{event_id}").body
            if "weights" in body:
                found[event_id] = body["weights"]["model"]
        return len(found) == min(n, 20)

    eventually(are_journaled, what="decisions are in the journal")
    return list(found.values())


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_model_is_retrained_promoted_tried_and_taken_back(stack: Stack, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    decide(stack, N_DECISIONS)

    def retrained() -> Any:
        return hone_json(stack, "retrain", "--model", "films", "--search", "2", "--jobs", "1", "--report", str(report))

    made: dict[str, Any] = {}

    def is_archived() -> bool:
        nonlocal made
        made = retrained()
        return bool(made["configurations"][0]["figures"])

    eventually(is_archived, what="held-out decisions are archived with their outcomes")
    artefact = made["artefact"]["artefact"]
    assert made["artefact"]["n_rows"] > 100
    assert len(made["configurations"]) == 2
    assert artefact in report.read_text(encoding="utf-8")

    # So few decisions are no evidence: the gate refuses, and says what it saw.
    refused = hone_json(stack, "promote", artefact, "--stage", "full", code=1)
    gates = {gate["name"]: gate["passed"] for gate in refused["gates"]}
    assert gates == {"fit": True, "advantage": False, "entropy": True, "skew": True}
    assert live(stack, "films") == ""

    # A canary gathers evidence: its share of the users gets the other model, and the log says so.
    hone(stack, "promote", artefact, "--stage", "canary", "--share", "0.5", "--reason", "trial")
    eventually(lambda: live(stack, "challenger") == artefact, what="the challenger goes on from the artefact")
    eventually(lambda: len(set(decide(stack, 40))) == 2, what="both models answer")
    hone(stack, "audit")

    hone(stack, "promote", artefact, "--stage", "full", "--force")
    assert live(stack, "films") == artefact
    eventually(lambda: set(decide(stack, 20)) == {"films"}, what="the canary ended")

    back = hone(stack, "rollback", "films", "--reason", "complaints")
    assert live(stack, "films").startswith("before-")
    assert live(stack, "films") in back
    log = [(entry["type"], entry.get("stage")) for entry in hone_json(stack, "models", "--log")]
    assert log == [
        ("promotion", "canary"),
        ("config", None),
        ("promotion", "full"),
        ("config", None),
        ("promotion", "rollback"),
    ]
