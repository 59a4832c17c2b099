"""The decision record: built from a drawn slate, read back as actions for an audit and as the response it stood for."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np

from bandit.columns import Columns
from bandit.features import FeatureSchema
from bandit.slate import ActionSet, SlateWalk, SlotDraw
from service.feature_records import FindItem, item_record
from service.messages import CandidateList, Decision, SlotRecord
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


def walk_of(decision: Decision) -> SlateWalk:
    """Return the walk that a decision was drawn on, before its first slot."""
    return SlateWalk(
        actions=unpack_actions(decision.candidates),
        exploration=decision.exploration,
        rules=decision.rules,
        now_ms=decision.decided_at_unix_ms,
        n_slots=decision.n_requested,
        discovery_positions=decision.discovery_positions,
    )


def inputs_digest(decision: Decision) -> str:
    """Return 32 hexadecimal digits of what the slate was drawn from: candidates, policy, rules, time, positions."""
    inputs = (
        decision.candidates,
        decision.exploration,
        decision.rules,
        decision.decided_at_unix_ms,
        decision.discovery_positions,
        decision.n_requested,
    )
    return blake2b(msgspec.msgpack.encode(inputs, order="deterministic"), digest_size=16).hexdigest()


def seal(decision: Decision) -> Decision:
    """Return the decision with the digest of what it was drawn from."""
    return msgspec.structs.replace(decision, inputs_digest=inputs_digest(decision))


def build_slot(draw: SlotDraw, ranked: Ranked, schema: FeatureSchema, find_item: FindItem) -> SlotRecord:
    """Build the record of one slot, with the item's features by name as they were served."""
    item_id = ranked.actions.ids[draw.action]
    item: Any = ranked.described.get(item_id) or find_item(item_id)
    affinity = float(ranked.affinity[draw.action])
    source = ranked.source_names[int(ranked.sources[draw.action])]
    dynamic = {"affinity": None if np.isnan(affinity) else affinity, "source": source}
    features = {"item": schema.named("item", item_record(item)), "dynamic": schema.named("dynamic", dynamic)}
    return record_slot(draw, ranked.actions, features=features)


def record_slot(draw: SlotDraw, actions: ActionSet, *, features: dict[str, dict[str, float]]) -> SlotRecord:
    """Build the record of one slot."""
    view = draw.here.view
    return SlotRecord(
        item_id=actions.ids[draw.action],
        action=draw.action,
        propensity=draw.propensity,
        uniform=draw.uniform,
        cumulative_before=draw.cumulative_before,
        n_feasible=view.n_allowed,
        greedy_action=int(view.greedy[0]),
        n_greedy=len(view.greedy),
        explore_propensity=draw.here.explore_propensity,
        is_discovery=draw.here.is_discovery,
        branch=draw.branch,
        reason=draw.reason,
        boost=float(draw.here.boosts[draw.action]),
        gave_way=list(draw.here.gave_way),
        features=features,
    )


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
