"""Clients that ask for slates without pause while a test does something else, and note every answer."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

# A connection stays with one worker: after so many requests a client takes another.
_REQUESTS_A_CONNECTION = 25


@dataclass(frozen=True)
class Slate:
    """One answer; times are of `time.monotonic`."""

    started_s: float
    ended_s: float
    status: int
    worker: str
    item_ids: tuple[str, ...]


@dataclass
class Clients:
    """Threads that call one API."""

    url: str
    surfaces: Sequence[str] = ("home", "similar", "because_you_watched")
    seeds: Sequence[str] = ()
    n: int = 10
    slates: list[Slate] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()

    @contextmanager
    def calling(self, n_clients: int = 4) -> Iterator[Clients]:
        """Call until the block ends."""
        threads = [threading.Thread(target=self._call, args=(number,), daemon=True) for number in range(n_clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(60.0)

    def wait(self, n_more: int, *, timeout_s: float = 60.0) -> None:
        """Wait until so many more slates have come."""
        wanted, deadline_s = len(self.slates) + n_more, time.monotonic() + timeout_s
        while len(self.slates) < wanted:
            assert time.monotonic() < deadline_s, (
                f"{len(self.slates)} of {wanted} slates came, errors {self.errors[:3]}"
            )
            time.sleep(0.01)

    def latency_ms(self, percentile: float, *, since_s: float = 0.0, until_s: float = float("inf")) -> float:
        """Return a percentile of the slates that were asked for in a span of time."""
        spans = [s.ended_s - s.started_s for s in list(self.slates) if since_s <= s.started_s < until_s]
        return float(np.percentile(spans, percentile)) * 1e3 if spans else float("nan")

    def _call(self, number: int) -> None:
        rng = np.random.default_rng([number, 7])
        while not self._stop.is_set():
            connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
            try:
                for _ in range(_REQUESTS_A_CONNECTION):
                    if not self._stop.is_set():
                        self._ask(connection, rng)
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(repr(error))
            finally:
                connection.close()

    def _ask(self, connection: http.client.HTTPConnection, rng: np.random.Generator) -> None:
        body = {"surface": str(rng.choice(self.surfaces)), "n": self.n, "user_id": f"load-{rng.integers(200)}"}
        if body["surface"] != "home" and self.seeds:
            body["seed_item_id"] = str(rng.choice(self.seeds))
        started_s = time.monotonic()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/recommend", body=json.dumps(body), headers=headers)
        with connection.getresponse() as response:
            raw = response.read()
            ended_s = time.monotonic()
            answer = json.loads(raw)
            if response.status != 200 or answer["degraded"]:
                self.errors.append(raw.decode())
            item_ids = tuple(item["item_id"] for item in answer.get("items", ()))
            worker = str(response.headers["X-Hone-Worker"])
            self.slates.append(Slate(started_s, ended_s, response.status, worker, item_ids))
