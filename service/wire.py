"""HTTP bodies of API v1. Unknown fields are refused; every bound names its field."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from retrieval.items import Attribute
from service.messages import HealthAlarm

Identifier = Annotated[str, Meta(min_length=1, max_length=256)]
Slot = Annotated[int, Meta(ge=0, le=1000)]


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of request bodies."""


class InlineAction(Body, frozen=True, kw_only=True):
    """A candidate that the caller describes itself.

    Attributes:
        id: Its id.
        attributes: What item features read.
        creator: What diversity rules count.
    """

    id: Identifier
    attributes: dict[str, Attribute] = {}
    creator: str | None = None


class RecommendRequest(Body, frozen=True, kw_only=True):
    """`POST /v1/recommend`.

    Attributes:
        surface: A declared surface.
        user_id: None for anonymous.
        context: Flat names and values: text, numbers, booleans, lists of text.
        n: Slots wanted.
        seed_item_id: Item that similar items are sought for.
        candidates: Ids or described actions to rank instead of retrieving.
        exclude: Item ids never to show.
        event_id: The caller's own id; a repeated one gets the first response.
    """

    surface: Identifier
    user_id: Identifier | None = None
    context: dict[str, Any] = {}
    n: Annotated[int, Meta(ge=1, le=1000)] = 10
    seed_item_id: Identifier | None = None
    candidates: Annotated[list[Identifier | InlineAction], Meta(max_length=10_000)] | None = None
    exclude: Annotated[list[Identifier], Meta(max_length=10_000)] = []
    event_id: Identifier | None = None


class RecommendedItem(msgspec.Struct, frozen=True, kw_only=True):
    """One slot of a response.

    Attributes:
        slot: From 0.
        item_id: What to show.
        propensity: Conditional probability given the slots before.
        score: Expected reward before boosts.
        boost: What rules added.
        source: Candidate source.
        reason: greedy, explore, discovery, sponsored or pinned.
    """

    slot: int
    item_id: str
    propensity: float
    score: float
    boost: float
    source: str
    reason: str


class RecommendResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `POST /v1/recommend`."""

    event_id: str
    surface: str
    model_version: int
    explore_rate: float
    degraded: list[str]
    items: list[RecommendedItem]


class EventBody(Body, frozen=True, kw_only=True):
    """One event of `POST /v1/events`.

    Attributes:
        id: The caller's id of the event; a repetition counts once.
        type: `click`, `view`, ...; what it is worth is declared per surface.
        event_id: The decision; without it the event is attributed by user and item.
        user_id: Who.
        item_id: What.
        slot: Where.
        value: Magnitude.
        ts: The caller's clock; kept, never used as time.
    """

    type: Identifier
    id: Identifier | None = None
    event_id: Identifier | None = None
    user_id: Identifier | None = None
    item_id: Identifier | None = None
    slot: Slot | None = None
    value: float = 1.0
    ts: datetime | None = None


class RewardBody(Body, frozen=True, kw_only=True):
    """`POST /v1/reward`: a number for one slot of one decision."""

    event_id: Identifier
    reward: float
    slot: Slot | None = None
    item_id: Identifier | None = None
    id: Identifier | None = None


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """Why one entry of a batch was not taken; `index` counts from 0."""

    index: int
    detail: str
    path: str


class AcceptedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to a batch.

    Attributes:
        accepted: Entries durably taken.
        duplicate: Entries that repeat another of the same batch.
        rejected: The others, with the reason; of a streamed body the first thousand.
        n_rejected: How many a streamed body had in all.
    """

    accepted: int
    duplicate: int = 0
    rejected: list[Rejection] = []
    n_rejected: int | msgspec.UnsetType = msgspec.UNSET


class UserBody(Body, frozen=True, kw_only=True):
    """One user of `PUT /v1/users`."""

    user_id: Identifier
    birth_date: date | None = None
    country: Annotated[str, Meta(min_length=2, max_length=2)] | None = None
    attributes: dict[str, Attribute] = {}


class HealthReport(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `GET /v1/health`.

    Attributes:
        status: The worst level among the alarms.
        alarms: What is not as it should be, with the reason.
        values: What was measured, by name.
        at_unix_ms: When the health watch looked.
    """

    status: Literal["ok", "warning", "alarm"]
    alarms: list[HealthAlarm]
    values: dict[str, float]
    at_unix_ms: int


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`application/problem+json` (RFC 9457) with the path to the bad field."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    path: str | None = None
