"""A user's session, derived from what the store keeps anyway: recent interactions and impressions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from service.messages import Impression, Interaction


class Session(msgspec.Struct, frozen=True):
    """What a user did lately, without a break.

    Attributes:
        started_at_unix_ms: When it began; None when there is none.
        n_interactions: Its interactions, among the recent ones.
        n_slates: Its slates, among the impressions kept.
        last_action: Type of its newest interaction; None without one.
    """

    started_at_unix_ms: int | None = None
    n_interactions: int = 0
    n_slates: int = 0
    last_action: str | None = None


class Showings(msgspec.Struct, frozen=True):
    """What was shown to a user within the window.

    Attributes:
        n_seen: How often, by item.
        last_shown_at_ms: When last, by item.
    """

    n_seen: Mapping[str, int] = msgspec.field(default_factory=dict)
    last_shown_at_ms: Mapping[str, int] = msgspec.field(default_factory=dict)


def distinct_interactions(interactions: Iterable[Interaction]) -> list[Interaction]:
    """Return the interactions in order, an event that was accepted again only where it stands first."""
    seen: set[tuple[str, str, str]] = set()
    distinct = []
    for interaction in interactions:
        key = (interaction.event_type, interaction.client_id, interaction.item_id)
        if key not in seen:
            seen.add(key)
            distinct.append(interaction)
    return distinct


def current_session(
    recent: Sequence[Interaction], impressions: Sequence[Impression], *, now_ms: int, gap_ms: float
) -> Session:
    """Return the session that `now_ms` continues: the newest stretch without a silence longer than the gap."""
    slates = {shown.event_id: shown.shown_at_unix_ms for shown in impressions}
    moments = sorted([*(i.at_unix_ms for i in recent), *slates.values()], reverse=True)
    started = None
    later = now_ms
    for moment in moments:
        # Another worker's clock may be ahead: that is no silence.
        if later - moment > gap_ms:
            break
        started = later = min(moment, later)
    if started is None:
        return Session()
    inside = [i for i in recent if i.at_unix_ms >= started]
    return Session(
        started_at_unix_ms=started,
        n_interactions=len(inside),
        n_slates=sum(at >= started for at in slates.values()),
        last_action=inside[-1].event_type if inside else None,
    )


def showings(impressions: Iterable[Impression], *, now_ms: int, window_ms: float) -> Showings:
    """Count the impressions that lie within the window before `now_ms`."""
    n_seen: dict[str, int] = {}
    last: dict[str, int] = {}
    for shown in impressions:
        if now_ms - shown.shown_at_unix_ms <= window_ms:
            n_seen[shown.item_id] = n_seen.get(shown.item_id, 0) + 1
            last[shown.item_id] = max(shown.shown_at_unix_ms, last.get(shown.item_id, shown.shown_at_unix_ms))
    return Showings(n_seen=n_seen, last_shown_at_ms=last)
