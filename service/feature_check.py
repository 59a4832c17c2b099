"""Compare three paths of every feature, value by value: what was served, what the archive says, what training reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from bandit.joining import Position
from service.config import Config
from service.decision_record import dynamic_record, unpack_actions
from service.feature_records import (
    context_record,
    item_record,
    profile_digest,
    seconds_since,
    state_showings,
    user_record,
)
from service.feedback import interaction_of
from service.impressions import newest_impressions
from service.item_history import ItemHistory
from service.item_statistics import STATISTICS_COLUMNS, parse_as_of
from service.learned import LearnedDecision, learned_decision, named_features
from service.messages import Decision, Impression, Interaction, UserProfile, encode
from service.offline_features import OfflineStore, Statistics
from service.ports import UserState
from service.sessions import Showings

_RELATIVE = 1e-6
# Sums of rewards of both signs may cancel: what is left is noise.
_ABSOLUTE = 1e-9
_BATCH = 2_000
_SHOWN = 20
_MS_PER_DAY = 86_400_000.0
# What the feature store holds of a candidate; the other columns come from retrieval and are taken from the log.
STORED_COLUMNS = frozenset({"n_seen", "last_shown_s", "age_days"}) | STATISTICS_COLUMNS
_FROM_PROFILE = ("country", "age")

Named = Mapping[str, float]
Column = npt.NDArray[Any]


@dataclass(slots=True)
class CheckReport:
    """What was compared and what differs.

    Attributes:
        n_decisions: Decisions checked.
        n_values: Values compared, between any two paths.
        n_mismatches: Values that differ.
        by_feature: Mismatches by path and feature.
        n_profiles_changed: Decisions whose user's profile is another one by now; what reads it is not compared.
        examples: The first mismatches, in words.
    """

    n_decisions: int = 0
    n_values: int = 0
    n_mismatches: int = 0
    by_feature: Counter[str] = field(default_factory=Counter)
    n_profiles_changed: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, what: str, n_values: int, differing: Sequence[str]) -> None:
        """Count one comparison."""
        self.n_values += n_values
        self.n_mismatches += len(differing)
        if differing:
            self.by_feature[what] += len(differing)
            self.examples += [f"{what}: {text}" for text in differing[: _SHOWN - len(self.examples)]]


class FeatureChecker:
    """Checks archived decisions.

    Args:
        config: what the decisions were made with.
        store: the archive's features.
        items: item changes, by position.
        profiles: profiles as they are now, by user key; they are not archived.
        salt: tells whether a profile is still the one that was read.
    """

    def __init__(
        self,
        config: Config,
        *,
        store: OfflineStore,
        items: ItemHistory,
        profiles: Mapping[str, UserProfile],
        salt: bytes,
    ) -> None:
        self._config = config
        self._schema = config.features
        self._store = store
        self._items = items
        self._profiles = profiles
        self._salt = salt
        self._columns = sorted(self._schema.sources("dynamic") & STORED_COLUMNS)
        self.report = CheckReport()

    def check(self, decisions: Iterable[Decision]) -> CheckReport:
        """Check decisions, in batches, and return the report so far."""
        remaining = iter(decisions)
        while batch := list(islice(remaining, _BATCH)):
            interactions = self._interactions(batch)
            impressions = self._store.impressions(sorted({i for d in batch for i in d.impression_ids}))
            statistics = self._statistics(batch)
            first = 0
            for decision, recent in zip(batch, interactions, strict=True):
                last = first + len(decision.candidates.ids)
                shown = [i for event_id in decision.impression_ids for i in impressions.get(event_id, ())]
                state = self._state(decision, recent, shown)
                self._check(decision, state, {name: column[first:last] for name, column in statistics.items()})
                first = last
        return self.report

    def _interactions(self, batch: Sequence[Decision]) -> list[list[Interaction]]:
        """Return the recent interactions of every decision as the archive has them."""
        reads = [read for d in batch for read in zip(d.recent_ids, d.recent_at_unix_ms, strict=True)]
        found = iter(self._store.interactions([i for i, _ in reads], [at_ms for _, at_ms in reads]))
        return [
            [
                interaction_of(event, item_id=event.item_id, config=self._config)
                for _ in decision.recent_ids
                for event in next(found)[:1]
                if event.item_id is not None
            ]
            for decision in batch
        ]

    def _statistics(self, batch: Sequence[Decision]) -> dict[str, Column]:
        """Return the statistics of every candidate of every decision, end to end."""
        if STATISTICS_COLUMNS.isdisjoint(self._columns):
            return {}
        item_ids: list[str] = []
        as_of: list[Position | None] = []
        now_ms: list[int] = []
        for decision in batch:
            n = len(decision.candidates.ids)
            item_ids += decision.candidates.ids
            as_of += [parse_as_of(decision.versions.item_stats_as_of)] * n
            now_ms += [decision.decided_at_unix_ms] * n
        found: Statistics = self._store.statistics(item_ids, as_of, now_ms)
        columns = {
            "impressions_now": found.impressions,
            "popularity_now": found.clicks,
            "rewards_now": found.rewards,
        }
        return {name: column.astype(np.float32) for name, column in columns.items() if name in self._columns}

    def _state(
        self, decision: Decision, recent: Sequence[Interaction], shown: Sequence[Impression]
    ) -> tuple[UserState, bool]:
        """Return what was known of the user, and whether the profile is the one that was read."""
        profile = UserProfile()
        if decision.user_key and "features" not in decision.degraded:
            profile = self._profiles.get(decision.user_key, UserProfile())
        is_same = not decision.profile_digest or decision.profile_digest == profile_digest(profile, salt=self._salt)
        impressions = newest_impressions(shown, limit=self._config.store.impressions_limit)
        return UserState(profile=profile, recent=recent, consumed=frozenset(), impressions=impressions), is_same

    def _check(self, decision: Decision, known: tuple[UserState, bool], statistics: Mapping[str, Column]) -> None:
        state, has_profile = known
        self.report.n_decisions += 1
        self.report.n_profiles_changed += not has_profile
        position, now_ms = decision.versions.catalogue, decision.decided_at_unix_ms
        learned = learned_decision(encode(decision))

        def find(item_id: str) -> Any:  # noqa: ANN401 - an item or None
            return self._items.item(item_id, position)

        seed = find(decision.seed_item_id) if decision.seed_item_id else None
        context = context_record(decision.context, surface=decision.surface, seed=seed, now_ms=now_ms)
        self._compare_shared(decision, learned, "context", self._schema.named("context", context), skip=())
        shown = state_showings(state, schema=self._schema, now_ms=now_ms)
        user = user_record(state, shown, find, schema=self._schema, now_ms=now_ms)
        skip = () if has_profile else (*_FROM_PROFILE, *state.profile.attributes)
        self._compare_shared(decision, learned, "user", self._schema.named("user", user), skip=skip)
        columns = self._columns_of(decision, shown, find) | dict(statistics)
        served = unpack_actions(decision.candidates).columns
        for name in self._columns:
            self._compare_column(decision, name, served[name], columns[name])
        self._check_slots(decision, learned, {**served, **columns}, find)

    def _columns_of(self, decision: Decision, shown: Showings, find: Any) -> dict[str, Column]:  # noqa: ANN401
        now_ms, ids = decision.decided_at_unix_ms, decision.candidates.ids
        columns: dict[str, Column] = {}
        if "n_seen" in self._columns:
            columns["n_seen"] = np.array([shown.n_seen.get(item_id, 0) for item_id in ids], dtype=np.int32)
        if "last_shown_s" in self._columns:
            last = [shown.last_shown_at_ms.get(item_id) for item_id in ids]
            ago = [np.nan if at_ms is None else seconds_since(at_ms, now_ms) for at_ms in last]
            columns["last_shown_s"] = np.array(ago, dtype=np.float32)
        if "age_days" in self._columns:
            items = [find(item_id) for item_id in ids]
            available = [None if item is None else item.available_at_unix_ms for item in items]
            ages = [np.nan if not at_ms else max(now_ms - at_ms, 0) / _MS_PER_DAY for at_ms in available]
            columns["age_days"] = np.array(ages, dtype=np.float32)
        return columns

    def _check_slots(
        self,
        decision: Decision,
        learned: LearnedDecision,
        columns: dict[str, Column],
        find: Any,  # noqa: ANN401
    ) -> None:
        candidates = decision.candidates
        for slot, training in zip(decision.slots, learned.slots, strict=True):
            source = candidates.source_names[candidates.sources[slot.action]]
            dynamic = self._schema.named("dynamic", dynamic_record(columns, slot.action, source=source))
            self._compare(decision, "dynamic", slot.features["dynamic"], dynamic)
            self._compare(decision, "training dynamic", named_features(training.features["dynamic"]), dynamic)
            item = find(slot.item_id)
            if item is not None:
                named = self._schema.named("item", item_record(item))
                self._compare(decision, "item", slot.features["item"], named)
                self._compare(decision, "training item", named_features(training.features["item"]), named)

    def _compare_shared(
        self, decision: Decision, learned: LearnedDecision, namespace: str, offline: Named, *, skip: Sequence[str]
    ) -> None:
        skipped = tuple(f.name for f in self._schema.features if f.namespace == namespace and f.source in skip)

        def kept(named: Named) -> Named:
            return {name: value for name, value in named.items() if name.partition("=")[0] not in skipped}

        self._compare(decision, namespace, kept(decision.features[namespace]), kept(offline))
        self._compare(
            decision, f"training {namespace}", kept(named_features(learned.features[namespace])), kept(offline)
        )

    def _compare(self, decision: Decision, what: str, served: Named, offline: Named) -> None:
        names = served.keys() | offline.keys()
        differing = [
            f"{decision.event_id} {name}: {served.get(name)} and offline {offline.get(name)}"
            for name in sorted(names)
            if name not in served or name not in offline or not _agree(served[name], offline[name])
        ]
        self.report.add(what, len(names), differing)

    def _compare_column(self, decision: Decision, name: str, served: Column, offline: Column) -> None:
        a, b = served.astype(np.float64), offline.astype(np.float64)
        if np.issubdtype(served.dtype, np.integer):
            same = a == b
        else:
            same = (np.abs(a - b) <= _RELATIVE * np.maximum(np.abs(a), np.abs(b)) + _ABSOLUTE) | (
                np.isnan(a) & np.isnan(b)
            )
        differing = [
            f"{decision.event_id} {decision.candidates.ids[row]}: {a[row]} and offline {b[row]}"
            for row in np.flatnonzero(~same).tolist()
        ]
        self.report.add(f"candidates {name}", len(a), differing)


def _agree(served: float, offline: float) -> bool:
    return abs(served - offline) <= _RELATIVE * max(abs(served), abs(offline)) + _ABSOLUTE
