"""Callers of the API under load, who keep a ledger of what was acknowledged; a fifth of their events come twice."""

from __future__ import annotations

import http.client
import json
import random
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

DUPLICATE_SHARE = 0.2
# Users come in groups and go before they have consumed the catalogue: an empty slate teaches nothing.
_GROUP, _GROUP_STEPS, _N_USERS = 9, 90, 900
_TYPES = ("click", "like", "skip", "purchase", "unheard_of")


@dataclass
class Load:
    """One caller: asks for slates, reports events later, out of order, some twice; sends again what was not taken.

    Attributes:
        url: Of the API.
        seed: Of what it does.
        decisions: Ids of the decisions that were answered as logged.
        events: Client ids of the events that were acknowledged.
        n_refused: Calls that were not answered with success.
    """

    url: str
    seed: int = 1
    decisions: set[str] = field(default_factory=set)
    events: set[str] = field(default_factory=set)
    n_refused: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._waiting: list[dict[str, Any]] = []
        self._n = 0

    def call(self, path: str, body: Any, *, method: str = "POST") -> Any:
        """Return the answer, None when the call was not answered with success."""
        request = urllib.request.Request(self.url + path, data=json.dumps(body).encode(), method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return json.loads(response.read() or b"{}")
        except (OSError, urllib.error.HTTPError, http.client.HTTPException):
            self.n_refused += 1
            return None

    def recommend(self) -> Any:
        """Ask for a slate; every fourth time under an id of the caller's."""
        self._n += 1
        user = (self._n // _GROUP_STEPS * _GROUP + self._rng.randrange(_GROUP)) % _N_USERS
        body = {"surface": "home", "n": 4, "user_id": f"u{user}", "context": {"device": "tv"}}
        if self._n % 4 == 0:
            body["event_id"] = f"own-{self.seed}-{self._n}"
        slate = self.call("/v1/recommend", body)
        if slate is not None and not {"log", "claim"} & set(slate["degraded"]):
            self.decisions.add(slate["event_id"])
        return slate

    def report(self, events: list[dict[str, Any]]) -> bool:
        """Send events and return whether they were acknowledged."""
        answer = self.call("/v1/events", events)
        if answer is None:
            return False
        assert not answer["rejected"], answer
        self.events |= {event["id"] for event in events}
        return True

    def step(self) -> None:
        """Ask once, let something happen with the slate, and report some of what waits."""
        slate = self.recommend()
        if slate is not None:
            for item in slate["items"]:
                if self._rng.random() < 0.5:
                    self._happen(slate, item)
        self._rng.shuffle(self._waiting)
        sent, self._waiting = self._waiting[:3], self._waiting[3:]
        if sent and not self.report(sent):
            self._waiting += sent

    def settle(self) -> None:
        """Report what waits; everything must be taken now."""
        for start in range(0, len(self._waiting), 50):
            assert self.report(self._waiting[start : start + 50])
        self._waiting = []

    def _happen(self, slate: Any, item: Any) -> None:
        self._n += 1
        event = {
            "type": self._rng.choice(_TYPES),
            "id": f"c-{self.seed}-{self._n}",
            "event_id": slate["event_id"],
            "slot": item["slot"],
        }
        if self._rng.random() < 0.1:
            # Attributed by user and item, of which nobody was shown this.
            event = {"type": event["type"], "id": event["id"], "user_id": "nobody", "item_id": item["item_id"]}
        self._waiting.append(event)
        if self._rng.random() < DUPLICATE_SHARE:
            self._waiting.append(event)


class Steady:
    """A load in a thread of its own, until it is stopped."""

    def __init__(self, load: Load, *, pause_s: float = 0.02) -> None:
        self.load = load
        self._pause_s = pause_s
        self._is_over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._is_over.wait(self._pause_s):
                self.load.step()
        except BaseException as error:
            self._error = error

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
