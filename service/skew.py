"""Recompute logged features from the journal and the items stream, as of the positions that the decision logged."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

from retrieval.items import Item
from service.config import Config
from service.feature_records import context_record, item_record, user_record
from service.feedback import interaction_of
from service.messages import Decision, Event, Interaction, ItemChange, ItemUpsert, JournalEntry, UserProfile

_TOLERANCE = 1e-6

Named = Mapping[str, float]


class SkewChecker:
    """Compares served features with recomputed ones. Feed it items, then the journal in order.

    Args:
        config: what the decisions were made with.
        profiles: user attributes by user id; they are not in the journal.
    """

    def __init__(self, config: Config, profiles: Mapping[str, UserProfile]) -> None:
        self._config = config
        self._schema = config.features
        self._profiles = profiles
        self._positions: dict[str, list[tuple[int, int]]] = {}
        self._versions: dict[str, list[Item | None]] = {}
        self._slates: dict[str, list[str]] = {}
        self._events: dict[str, Event] = {}
        self.n_checked = 0
        self.mismatches: list[str] = []

    def add_item_change(self, entry_id: str, change: ItemChange) -> None:
        """Remember an item as of a position."""
        item_id = change.item.id if isinstance(change, ItemUpsert) else change.item_id
        self._positions.setdefault(item_id, []).append(_order(entry_id))
        self._versions.setdefault(item_id, []).append(change.item if isinstance(change, ItemUpsert) else None)

    def add(self, entry: JournalEntry) -> None:
        """Take the next journal entry; a decision is checked."""
        if isinstance(entry, Decision):
            self._slates[entry.event_id] = [slot.item_id for slot in entry.slots]
            self._check(entry)
        elif isinstance(entry, Event):
            self._events[entry.client_id] = entry

    def _interaction(self, client_id: str) -> Interaction | None:
        """Return a served interaction as the journal has it; an event may stand before its decision there."""
        event = self._events.get(client_id)
        if event is None:
            return None
        slate = self._slates.get(event.event_id or "", [])
        from_slot = slate[event.slot] if event.slot is not None and event.slot < len(slate) else None
        item_id = event.item_id or from_slot
        return None if item_id is None else interaction_of(event, item_id=item_id, config=self._config)

    def _check(self, decision: Decision) -> None:
        self.n_checked += 1

        def find(item_id: str) -> Item | None:
            return self._item(item_id, decision.versions.catalogue)

        seed = find(decision.seed_item_id) if decision.seed_item_id else None
        at_ms = decision.decided_at_unix_ms
        context = context_record(decision.context, surface=decision.surface, seed=seed, now_ms=at_ms)
        self._compare(decision, "context", decision.features["context"], self._schema.named("context", context))
        recent = [found for i in decision.recent_ids if (found := self._interaction(i)) is not None]
        liked = [i.item_id for i in recent if (i.reward or 0.0) > 0.0]
        # A state that could not be read is a logged input: nothing was known of the user.
        known = decision.user_id is not None and "features" not in decision.degraded
        profile = self._profiles.get(decision.user_id or "", UserProfile()) if known else UserProfile()
        user = user_record(profile, liked, len(recent), find, at_ms)
        self._compare(decision, "user", decision.features["user"], self._schema.named("user", user))
        for slot in decision.slots:
            item = find(slot.item_id)
            if item is not None:
                named = self._schema.named("item", item_record(item))
                self._compare(decision, f"item {slot.item_id}", slot.features["item"], named)

    def _compare(self, decision: Decision, what: str, served: Named, recomputed: Named) -> None:
        names_differ = served.keys() != recomputed.keys()
        if names_differ or any(abs(served[n] - recomputed[n]) > _TOLERANCE * max(1.0, abs(served[n])) for n in served):
            self.mismatches.append(f"{decision.event_id} {what}: served {dict(served)}, recomputed {dict(recomputed)}")

    def _item(self, item_id: str, position: str) -> Item | None:
        """Return an item as of a position of the items stream."""
        index = bisect_right(self._positions.get(item_id, []), _order(position))
        return self._versions[item_id][index - 1] if index else None


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, sequence = entry_id.partition("-")
    return int(ms), int(sequence)
