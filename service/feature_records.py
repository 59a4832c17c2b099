"""The records that features are encoded from: one function each for context, user and item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import msgspec

from bandit.features import FeatureSchema, attribute_shares
from retrieval.items import Item
from service.config import Fatigue
from service.errors import InvalidRequest
from service.messages import UserProfile
from service.numerics import keyed_digest
from service.ports import UserState
from service.sessions import Showings, current_session, showings
from service.wire import InlineAction

FindItem = Callable[[str], Item | None]

_MAX_CONTEXT_KEYS = 64
_MAX_CONTEXT_TEXT = 256
_MAX_CONTEXT_LIST = 64
# Larger integers are not exact as JSON numbers of most clients, nor as features.
_MAX_CONTEXT_NUMBER = 2.0**53
_TASTE_LIMIT = 8
_SESSION = frozenset({"session_length", "session_position", "session_s", "last_action"})


def check_context(context: Mapping[str, Any]) -> None:
    """Refuse a context that is not flat, small and finite.

    Raises:
        InvalidRequest: names the key.
    """
    if len(context) > _MAX_CONTEXT_KEYS:
        raise InvalidRequest(
            f"context must have at most {_MAX_CONTEXT_KEYS} keys, got {len(context)}", path="$.context"
        )
    for key, value in context.items():
        path = f"$.context.{key[:64]}"
        if len(key) > _MAX_CONTEXT_TEXT:
            raise InvalidRequest(f"a context key must have at most {_MAX_CONTEXT_TEXT} characters", path=path)
        if isinstance(value, str) and len(value) > _MAX_CONTEXT_TEXT:
            raise InvalidRequest(f"must have at most {_MAX_CONTEXT_TEXT} characters, got {len(value)}", path=path)
        if isinstance(value, int | float) and not abs(value) <= _MAX_CONTEXT_NUMBER:
            raise InvalidRequest(f"must be within +-{_MAX_CONTEXT_NUMBER:g}, got {value}", path=path)
        if isinstance(value, list):
            texts = all(isinstance(entry, str) and len(entry) <= _MAX_CONTEXT_TEXT for entry in value)
            if not texts or len(value) > _MAX_CONTEXT_LIST:
                raise InvalidRequest(f"a list must hold at most {_MAX_CONTEXT_LIST} short texts", path=path)
        elif value is not None and not isinstance(value, str | int | float):
            raise InvalidRequest(f"must be text, a number, a boolean or a list, got {type(value).__name__}", path=path)


def context_record(context: Mapping[str, Any], *, surface: str, seed: Item | None, now_ms: int) -> dict[str, Any]:
    """Return what context features read: the caller's context, the surface, the hour (UTC) and the seed's genres."""
    hour = (now_ms // 3_600_000) % 24
    record: dict[str, Any] = {"hour": hour, **context, "surface": surface}
    if seed is not None:
        record["seed_genres"] = seed.attributes.get("genres")
    return record


def user_record(
    state: UserState, shown: Showings, find_item: FindItem, *, schema: FeatureSchema, now_ms: int
) -> dict[str, Any]:
    """Return what the declared user features read: profile, taste, session, times since; None where nothing is."""
    read = schema.sources("user")
    record: dict[str, Any] = {**state.profile.attributes, "country": state.profile.country}
    # The others take longer to find out.
    if "age" in read:
        record["age"] = viewer_age(state.profile, now_ms)
    if "n_recent" in read:
        record["n_recent"] = len(state.recent)
    if "recent_genres" in read:
        items = [item.attributes for item in map(find_item, liked_items(state)) if item is not None]
        record["recent_genres"] = attribute_shares(items, "genres", limit=_TASTE_LIMIT)
    if not read.isdisjoint(_SESSION):
        record |= _session_record(state, gap_ms=schema.session_gap_s * 1000, now_ms=now_ms)
    if "since_last_s" in read:
        record["since_last_s"] = seconds_since(state.recent[-1].at_unix_ms, now_ms) if state.recent else None
    if "n_shown" in read:
        record["n_shown"] = sum(shown.n_seen.values())
    return record


def _session_record(state: UserState, *, gap_ms: float, now_ms: int) -> dict[str, Any]:
    session = current_session(state.recent, state.impressions, now_ms=now_ms, gap_ms=gap_ms)
    started_at_ms = session.started_at_unix_ms
    return {
        "session_length": session.n_interactions,
        "session_position": session.n_slates,
        "session_s": None if started_at_ms is None else seconds_since(started_at_ms, now_ms),
        "last_action": session.last_action,
    }


def state_showings(state: UserState, *, schema: FeatureSchema, now_ms: int) -> Showings:
    """Return what was shown to the user within the declared window."""
    return showings(state.impressions, now_ms=now_ms, window_ms=schema.impressions_window_s * 1000)


def tired_of(state: UserState, fatigue: Fatigue, *, now_ms: int) -> set[str]:
    """Return the items that were shown too often within the window, but for those with a positive event remembered."""
    n_seen = showings(state.impressions, now_ms=now_ms, window_ms=fatigue.window_s * 1000).n_seen
    often = {item_id for item_id, n in n_seen.items() if n >= fatigue.max_shown}
    return often - state.consumed - set(liked_items(state))


def seconds_since(at_ms: int, now_ms: int) -> float:
    """Return how long ago something was; 0 for what another worker's clock puts ahead."""
    return max(now_ms - at_ms, 0) / 1000


def profile_digest(profile: UserProfile, *, salt: bytes) -> str:
    """Return what tells two profiles apart without saying what is in them."""
    return keyed_digest(msgspec.json.encode(profile, order="deterministic").decode(), salt=salt)


def liked_items(state: UserState) -> list[str]:
    """Return the items of recent positive interactions, newest last."""
    return [i.item_id for i in state.recent if (i.reward or 0.0) > 0.0]


def item_record(item: Item | InlineAction) -> dict[str, Any]:
    """Return what item features read: the attributes, and the item's own fields beside them."""
    return {**item.attributes, "id": item.id, "creator": item.creator}


def viewer_age(profile: UserProfile, now_ms: int) -> int | None:
    """Return completed years at `now_ms` (UTC), None without a birth date."""
    if profile.birth_date is None:
        return None
    born = date.fromisoformat(profile.birth_date)
    today = datetime.fromtimestamp(now_ms / 1000, UTC).date()
    return today.year - born.year - ((today.month, today.day) < (born.month, born.day))
