"""Score a model off-policy on logged decisions: what the production policy would do with its scores, slot by slot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bandit.dynamic import CategoryColumn, Column, encode_dynamic
from bandit.exploration import VwExplorer
from bandit.features import FeatureSchema
from bandit.policy import ActionFeatures, WeightTable
from bandit.slate import ActionSet, SlateWalk
from bandit.vw_format import Encoded
from retrieval.items import Item
from service.decision_record import unpack_actions
from service.feature_records import item_record
from service.item_history import ItemHistory
from service.items_view import ItemFeatureTable
from service.joins import PLACED
from service.messages import Decision
from service.retrain_training import encode_all
from service.training_rows import JoinedDecision

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoredSlots:
    """The drawn slots of logged decisions under a target policy; m slots of d decisions, in the order of the log.

    Attributes:
        decision: int64 [m], which decision a slot belongs to, from 0.
        logged: float64 [m], logged propensities of what was shown.
        target: float64 [m], the target policy's propensities of it, given the logged slots before.
        reward: float64 [m].
        predicted: float64 [m], the model's score of what was shown.
        expected: float64 [m], the mean score under the target policy.
        is_uniform: bool [m], whether the uniform part of the logging policy drew it.
        n_feasible: int64 [m], how many actions the slot could hold.
        clusters: by decision, the user's key, or the event id of an anonymous user.
        n_skipped: decisions whose candidates cannot be scored again (described by the caller, or drawn by an explorer).
    """

    decision: npt.NDArray[np.int64]
    logged: Float64Array
    target: Float64Array
    reward: Float64Array
    predicted: Float64Array
    expected: Float64Array
    is_uniform: npt.NDArray[np.bool_]
    n_feasible: npt.NDArray[np.int64]
    clusters: list[str]
    n_skipped: int

    @property
    def weight(self) -> Float64Array:
        """Return float64 [m], the one-slot importance weights."""
        return self.target / self.logged


class CandidateFeatures:
    """Features of whole candidate lists as they were served, from the log and the items of that time.

    Args:
        schema: declares the features.
        items: item changes, by position.
    """

    def __init__(self, schema: FeatureSchema, items: ItemHistory) -> None:
        self.schema = schema
        self._items = items
        self._table = ItemFeatureTable(schema)
        # An item object is one version of an item, kept alive by the history.
        self._rows: dict[int, int] = {}
        self._named: dict[int, dict[str, float]] = {}

    def shared(self, decision: Decision) -> dict[str, Encoded]:
        """Return what the decision was scored with: the position is the reference."""
        return encode_all(decision.features)

    def actions(self, decision: Decision) -> dict[str, ActionFeatures] | None:
        """Return the features of every candidate, None when an item is not in the history."""
        candidates = decision.candidates
        rows = np.empty(len(candidates.ids), dtype=np.int32)
        for place, item_id in enumerate(candidates.ids):
            item = self._items.item(item_id, decision.versions.catalogue)
            if item is None:
                return None
            rows[place] = self._row(item)
        codes = np.frombuffer(candidates.sources, dtype=np.uint8)
        columns: dict[str, Column] = {"source": CategoryColumn(codes=codes, names=candidates.source_names)}
        for name in self.schema.sources("dynamic") & candidates.columns.keys():
            dtype, packed = candidates.columns[name]
            columns[name] = np.frombuffer(packed, dtype=np.dtype(dtype))
        return {"item": self._table.take(rows), "dynamic": encode_dynamic(self.schema, columns, len(rows))}

    def find_other(self, decision: Decision) -> str:
        """Return a shown item that was served with other features than the history gives it, empty when there is none.

        Features of another schema are not compared.
        """
        if decision.versions.schema != self.schema.version:
            return ""
        for slot in decision.slots:
            item = self._items.item(slot.item_id, decision.versions.catalogue)
            served = slot.features.get("item")
            if item is not None and served is not None and self._features_of(item) != served:
                return slot.item_id
        return ""

    def _row(self, item: Item) -> int:
        row = self._rows.get(id(item))
        if row is None:
            row = self._rows[id(item)] = len(self._rows)
            self._table.put(row, self._features_of(item))
        return row

    def _features_of(self, item: Item) -> dict[str, float]:
        found = self._named.get(id(item))
        if found is None:
            found = self._named[id(item)] = self.schema.named("item", item_record(item))
        return found


def score_decisions(
    decisions: Iterable[JoinedDecision], *, table: WeightTable, features: CandidateFeatures
) -> ScoredSlots:
    """Walk logged slates with a model's scores in place of the logged ones; everything else stays as it was."""
    rows: list[tuple[float, ...]] = []
    clusters: list[str] = []
    n_skipped = 0
    for joined in decisions:
        decision = joined.decision
        actions = None if isinstance(decision.exploration, VwExplorer) else features.actions(decision)
        if actions is None:
            n_skipped += 1
        elif joined.rewards:
            scores = table.score(features.shared(decision), actions)
            rows += [(len(clusters), *slot) for slot in _walk(joined, scores)]
            clusters.append(decision.user_key or decision.event_id)
    decision_, logged, target, reward, predicted, expected, is_uniform, n_feasible = (
        np.array(rows, dtype=np.float64).reshape(len(rows), 8).T
    )
    return ScoredSlots(
        decision=decision_.astype(np.int64),
        logged=logged,
        target=target,
        reward=reward,
        predicted=predicted,
        expected=expected,
        is_uniform=is_uniform.astype(np.bool_),
        n_feasible=n_feasible.astype(np.int64),
        clusters=clusters,
        n_skipped=n_skipped,
    )


def _walk(joined: JoinedDecision, scores: npt.NDArray[np.float32]) -> Iterator[tuple[float, ...]]:
    """Yield the row of every drawn slot: what `ScoredSlots` holds, from `logged` to `n_feasible`."""
    decision = joined.decision
    logged = unpack_actions(decision.candidates)
    walk = SlateWalk(
        actions=ActionSet(ids=logged.ids, scores=scores, columns=logged.columns),
        exploration=decision.exploration,
        rules=decision.rules,
        now_ms=decision.decided_at_unix_ms,
        n_slots=decision.n_requested,
        discovery_positions=decision.discovery_positions,
    )
    for slot, record in enumerate(decision.slots):
        if record.reason not in PLACED:
            here = walk.pmf()
            # What a slot may hold follows from rules and slots before, which are as logged: never empty here.
            assert here is not None
            yield (
                record.propensity,
                float(here.pmf[record.action]),
                joined.rewards[slot],
                float(scores[record.action]),
                float(here.pmf @ scores),
                record.branch == "uniform",
                record.n_feasible,
            )
        walk.place(record.action)
