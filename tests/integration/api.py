"""The HTTP API as one caller sees it."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


class Api:
    """One connection, so one worker."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)

    def call(self, method: str, path: str, body: Any = None, *, content_type: str = "application/json") -> Answer:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if raw is not None else {}
        self._connection.request(method, path, body=raw, headers=headers)
        with self._connection.getresponse() as response:
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def recommend(self, **body: Any) -> Any:
        answer = self.call("POST", "/v1/recommend", {"surface": "home", **body})
        assert answer.status == 200, answer.raw
        return answer.body

    def close(self) -> None:
        self._connection.close()
