"""OpenAPI 3.1, made from the wire types themselves."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from retrieval.items import Item
from service.explanation import Explanation
from service.wire import (
    AcceptedResponse,
    EventBody,
    HealthReport,
    Problem,
    RecommendRequest,
    RecommendResponse,
    RewardBody,
    UserBody,
)

_TYPES = (
    AcceptedResponse,
    EventBody,
    Explanation,
    HealthReport,
    Item,
    Problem,
    RecommendRequest,
    RecommendResponse,
    RewardBody,
    UserBody,
)

# (method, path): summary, request type (a list means one or many), status, response type.
_OPERATIONS: dict[tuple[str, str], tuple[str, Any, int, Any]] = {
    ("post", "/v1/recommend"): ("Recommend a slate", RecommendRequest, 200, RecommendResponse),
    ("post", "/v1/events"): ("Report what happened", [EventBody], 202, AcceptedResponse),
    ("post", "/v1/reward"): ("Reward one slot with a number", RewardBody, 202, AcceptedResponse),
    ("get", "/v1/decisions/{event_id}"): ("Explain a decision", None, 200, Explanation),
    ("get", "/v1/surfaces"): ("The declared surfaces", None, 200, None),
    ("get", "/v1/health"): ("Collapse, blindness and drift: what is wrong, and why", None, 200, HealthReport),
    ("put", "/v1/items"): ("Put items (array or NDJSON)", [Item], 202, AcceptedResponse),
    ("get", "/v1/items"): ("Get items by `ids`", None, 200, [Item]),
    ("get", "/v1/items/{item_id}"): ("Get an item", None, 200, Item),
    ("patch", "/v1/items/{item_id}"): ("Change an item", None, 200, Item),
    ("delete", "/v1/items/{item_id}"): ("Delete an item", None, 204, None),
    ("put", "/v1/users"): ("Put user attributes (array or NDJSON)", [UserBody], 202, AcceptedResponse),
    ("get", "/v1/users/{user_id}"): ("Profile and recent interactions", None, 200, None),
    ("delete", "/v1/users/{user_id}"): ("Erase a user", None, 204, None),
    ("get", "/healthz"): ("The process answers", None, 200, None),
    ("get", "/readyz"): ("The worker has caught up", None, 200, None),
    ("get", "/metrics"): ("Prometheus metrics of the answering worker", None, 200, None),
}


@cache
def build_openapi() -> dict[str, Any]:
    """Build the document."""
    _, components = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for (method, path), (summary, body, status, answer) in _OPERATIONS.items():
        operation: dict[str, Any] = {
            "summary": summary,
            "operationId": method + path.translate(str.maketrans("/{}", "___")),
            "responses": {
                str(status): {"description": "OK", **_content(answer)},
                "default": {"description": "Problem", **_content(Problem, "application/problem+json")},
            },
        }
        names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        parameters = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
        if (method, path) == ("get", "/v1/items"):
            parameters.append({"name": "ids", "in": "query", "required": True, "schema": {"type": "string"}})
        if parameters:
            operation["parameters"] = parameters
        if body is not None:
            operation["requestBody"] = {"required": True, **_content(body)}
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Hone", "version": "1"},
        "paths": paths,
        "components": {"schemas": components},
    }


def _content(kind: Any, content_type: str = "application/json") -> dict[str, Any]:  # noqa: ANN401 - a type or [type]
    if kind is None:
        return {}
    one = kind[0] if isinstance(kind, list) else kind
    schema: dict[str, Any] = {"$ref": f"#/components/schemas/{one.__name__}"}
    if isinstance(kind, list):
        schema = {"oneOf": [schema, {"type": "array", "items": schema}]}
    return {"content": {content_type: {"schema": schema}}}
