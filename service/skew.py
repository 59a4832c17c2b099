"""Recompute logged features from the journal and the items stream, as of the positions that the decision logged."""

from __future__ import annotations

from collections.abc import Mapping

from retrieval.items import Item
from service.config import Config
from service.feature_records import context_record, item_record, state_showings, user_record
from service.feedback import interaction_of
from service.impressions import impressions_of, newest_impressions
from service.item_history import ItemHistory
from service.messages import Decision, Event, Impression, Interaction, ItemChange, JournalEntry, UserProfile
from service.ports import UserState

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
        self._items = ItemHistory()
        self._shown: dict[str, list[Impression]] = {}
        self._events: dict[tuple[str, int], Event] = {}
        self.n_checked = 0
        self.mismatches: list[str] = []

    def add_item_change(self, entry_id: str, change: ItemChange) -> None:
        """Remember an item as of a position."""
        self._items.add(entry_id, change)

    def add(self, entry: JournalEntry) -> None:
        """Take the next journal entry; a decision is checked."""
        if isinstance(entry, Decision):
            item_ids = [slot.item_id for slot in entry.slots]
            self._shown[entry.event_id] = impressions_of(entry.event_id, item_ids, entry.decided_at_unix_ms)
            self._check(entry)
        elif isinstance(entry, Event):
            self._events[entry.client_id, entry.accepted_at_unix_ms] = entry

    def _interaction(self, client_id: str, at_ms: int) -> Interaction | None:
        """Return a served interaction as the journal has it; an event may stand before its decision there."""
        event = self._events.get((client_id, at_ms))
        if event is None:
            return None
        slate = self._shown.get(event.event_id or "", [])
        from_slot = slate[event.slot].item_id if event.slot is not None and event.slot < len(slate) else None
        item_id = event.item_id or from_slot
        return None if item_id is None else interaction_of(event, item_id=item_id, config=self._config)

    def _check(self, decision: Decision) -> None:
        self.n_checked += 1

        def find(item_id: str) -> Item | None:
            return self._items.item(item_id, decision.versions.catalogue)

        seed = find(decision.seed_item_id) if decision.seed_item_id else None
        at_ms = decision.decided_at_unix_ms
        context = context_record(decision.context, surface=decision.surface, seed=seed, now_ms=at_ms)
        self._compare(decision, "context", decision.features["context"], self._schema.named("context", context))
        read = zip(decision.recent_ids, decision.recent_at_unix_ms, strict=True)
        recent = [found for i, ms in read if (found := self._interaction(i, ms)) is not None]
        shown = [impression for event_id in decision.impression_ids for impression in self._shown.get(event_id, ())]
        # A state that could not be read is a logged input: nothing was known of the user.
        known = decision.user_id is not None and "features" not in decision.degraded
        profile = self._profiles.get(decision.user_id or "", UserProfile()) if known else UserProfile()
        impressions = newest_impressions(shown, limit=self._config.store.impressions_limit)
        state = UserState(profile=profile, recent=recent, consumed=frozenset(), impressions=impressions)
        user = user_record(
            state,
            state_showings(state, schema=self._schema, now_ms=at_ms),
            find,
            schema=self._schema,
            now_ms=at_ms,
        )
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
