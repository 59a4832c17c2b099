"""The decision record: built from a drawn slate, read back as actions for an audit and as the response it stood for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np

from bandit.columns import Columns, Float64Array, Int64Array
from bandit.exploration import VwExplorer
from bandit.explorer import action_features
from bandit.features import FeatureSchema
from bandit.policy import ActionFeatures
from bandit.slate import ActionSet, ExplorerPmf, SlateWalk
from bandit.slot import SlotDraw
from bandit.vw_format import Encoded
from service.feature_records import FindItem, item_record
from service.messages import CandidateList, Decision, HashedFeatures, Shortlisted, SlotRecord
from service.ranking import Ranked
from service.wire import RecommendedItem, RecommendResponse


def pack_actions(
    actions: ActionSet, *, sources: np.ndarray[Any, np.dtype[np.uint8]], source_names: Sequence[str]
) -> CandidateList:
    """Pack the ordered candidate list, little-endian."""
    return CandidateList(
        ids=list(actions.ids),
        scores=actions.scores.astype("<f4").tobytes(),
        sources=sources.tobytes(),
        source_names=list(source_names),
        columns={name: _pack(column) for name, column in actions.columns.items()},
    )


def unpack_actions(candidates: CandidateList) -> ActionSet:
    """Return the actions exactly as they were drawn from.

    Raises:
        ValueError: a packed array does not fit the ids.
    """
    columns: Columns = {
        name: np.frombuffer(packed, dtype=np.dtype(dtype)) for name, (dtype, packed) in candidates.columns.items()
    }
    scores = np.frombuffer(candidates.scores, dtype="<f4").astype(np.float32, copy=False)
    return ActionSet(ids=candidates.ids, scores=scores, columns=columns)


def walk_of(decision: Decision, *, explorer: ExplorerPmf | None = None) -> SlateWalk:
    """Return the walk that a decision was drawn on, before its first slot.

    Args:
        decision: the record.
        explorer: asked by a `VwExplorer` policy in place of what the record says of it.
    """
    return SlateWalk(
        actions=unpack_actions(decision.candidates),
        exploration=decision.exploration,
        rules=decision.rules,
        now_ms=decision.decided_at_unix_ms,
        n_slots=decision.n_requested,
        discovery_positions=decision.discovery_positions,
        explorer=(explorer or _logged_explorer(decision)) if isinstance(decision.exploration, VwExplorer) else None,
    )


def _logged_explorer(decision: Decision) -> ExplorerPmf:
    """Return what the explorer said of each slot's shortlist, as logged: no explorer is asked again."""

    def pmf(slot: int, shortlist: Int64Array) -> Float64Array:
        record = decision.slots[slot]
        logged = np.frombuffer(record.shortlist, dtype="<u4")
        if not np.array_equal(logged, shortlist):
            raise ValueError(f"slot {slot}: the logged shortlist is not the one that follows from scores and rules")
        return np.frombuffer(record.explorer_pmf, dtype="<f8").astype(np.float64, copy=False)

    return pmf


def inputs_digest(decision: Decision) -> str:
    """Return 32 hexadecimal digits of what the slate was drawn from.

    That is candidates, policy, rules, time, discovery positions, and what a VW explorer said.
    """
    inputs = (
        decision.candidates,
        decision.exploration,
        decision.rules,
        decision.decided_at_unix_ms,
        decision.discovery_positions,
        decision.n_requested,
        *((slot.shortlist, slot.explorer_pmf) for slot in decision.slots if slot.explorer_pmf),
    )
    return blake2b(msgspec.msgpack.encode(inputs, order="deterministic"), digest_size=16).hexdigest()


def seal(decision: Decision) -> Decision:
    """Return the decision with the digest of what it was drawn from."""
    return msgspec.structs.replace(decision, inputs_digest=inputs_digest(decision))


def build_slot(draw: SlotDraw, ranked: Ranked, schema: FeatureSchema, find_item: FindItem) -> SlotRecord:
    """Build the record of one slot, with the item's features by name as they were served."""
    item_id = ranked.actions.ids[draw.action]
    item: Any = ranked.described.get(item_id) or find_item(item_id)
    source = ranked.source_names[int(ranked.sources[draw.action])]
    dynamic = dynamic_record(ranked.actions.columns, draw.action, source=source)
    features = {"item": schema.named("item", item_record(item)), "dynamic": schema.named("dynamic", dynamic)}
    return record_slot(draw, ranked.actions, features=features)


def dynamic_record(columns: Columns, action: int, *, source: str) -> dict[str, Any]:
    """Return what dynamic features of one candidate read: its source and its columns, None where they say nothing."""
    record: dict[str, Any] = {}
    for name, column in columns.items():
        value = column.item(action)
        # NaN alone differs from itself.
        record[name] = value if value == value else None
    record["source"] = source
    return record


def record_slot(draw: SlotDraw, actions: ActionSet, *, features: dict[str, dict[str, float]]) -> SlotRecord:
    """Build the record of one slot."""
    here = draw.here
    explored = here.explorer_pmf
    return SlotRecord(
        item_id=actions.ids[draw.action],
        action=draw.action,
        propensity=draw.propensity,
        uniform=draw.uniform,
        cumulative_before=draw.cumulative_before,
        n_feasible=draw.n_allowed,
        greedy_action=draw.best,
        n_greedy=draw.n_best,
        explore_propensity=here.explore_propensity,
        is_discovery=here.is_discovery,
        branch=draw.branch,
        reason=draw.reason,
        boost=draw.boost,
        gave_way=list(here.gave_way),
        features=features,
        shortlist=b"" if explored is None else here.view.top.astype("<u4").tobytes(),
        explorer_pmf=b"" if explored is None else explored.astype("<f8").tobytes(),
    )


def pack_shortlisted(slots: Sequence[SlotRecord], features: Mapping[str, ActionFeatures]) -> Shortlisted:
    """Pack the features of every action that an explorer chose from, and of what was drawn past it."""
    seen = [np.frombuffer(slot.shortlist, dtype="<u4") for slot in slots if slot.shortlist]
    drawn = np.array([slot.action for slot in slots if slot.shortlist], dtype="<u4")
    actions = np.unique(np.concatenate([*seen, drawn]))
    packed = {
        name: HashedFeatures(
            indices=table.indices[actions].astype("<u4", copy=False).tobytes(),
            values=table.values[actions].astype("<f4", copy=False).tobytes(),
        )
        for name, table in features.items()
    }
    return Shortlisted(actions=actions.astype("<u4").tobytes(), features=packed)


def unpack_shortlisted(shortlisted: Shortlisted) -> dict[int, dict[str, Encoded]]:
    """Return the features by position in the candidate list; names are unknown and empty.

    Raises:
        ValueError: a packed array does not fit the actions.
    """
    actions = np.frombuffer(shortlisted.actions, dtype="<u4").tolist()
    tables = {}
    for name, packed in shortlisted.features.items():
        values = np.frombuffer(packed.values, dtype="<f4")
        shape = (len(actions), len(values) // max(1, len(actions)))
        indices = np.frombuffer(packed.indices, dtype="<u4")
        tables[name] = ActionFeatures(indices=indices.reshape(shape), values=values.reshape(shape))
    return {action: action_features(tables, row) for row, action in enumerate(actions)}


def response_of(decision: Decision, *, degraded: str | None = None) -> RecommendResponse:
    """Return the response that a decision stands for; `degraded` names a part that failed after the draw."""
    candidates = decision.candidates
    scores = np.frombuffer(candidates.scores, dtype="<f4")
    return RecommendResponse(
        event_id=decision.event_id,
        surface=decision.surface,
        model_version=decision.versions.model,
        explore_rate=explore_rate_of(decision),
        degraded=[*decision.degraded, *([degraded] if degraded else [])],
        items=[
            RecommendedItem(
                slot=slot,
                item_id=record.item_id,
                propensity=record.propensity,
                score=float(scores[record.action]),
                boost=record.boost,
                source=candidates.source_names[candidates.sources[record.action]],
                reason=record.reason,
            )
            for slot, record in enumerate(decision.slots)
        ],
    )


def explore_rate_of(decision: Decision) -> float:
    """Return the declared exploration rate, or the slate's mean probability of not showing a best action."""
    declared = decision.exploration.explore_rate
    if declared is not None:
        return declared
    explored = [slot.explore_propensity for slot in decision.slots]
    return sum(explored) / len(explored) if explored else 0.0


def _pack(column: np.ndarray[Any, Any]) -> tuple[str, bytes]:
    little = column.astype(column.dtype.newbyteorder("<"), copy=False)
    return little.dtype.str, little.tobytes()
