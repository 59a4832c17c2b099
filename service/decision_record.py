"""The decision record: built from a drawn slate, read back as actions for an audit and as the response it stood for."""

from __future__ import annotations

from typing import Any

import numpy as np

from bandit.features import FeatureSchema
from bandit.rules import Columns
from bandit.slate import ActionSet, SlateWalk, SlotDraw
from service.feature_records import FindItem, item_record
from service.messages import CandidateList, Decision, SlotRecord
from service.ranking import Ranked
from service.wire import RecommendedItem, RecommendResponse


def pack_candidates(ranked: Ranked) -> CandidateList:
    """Pack the ordered candidate list, little-endian."""
    return CandidateList(
        ids=list(ranked.actions.ids),
        scores=ranked.actions.scores.astype("<f4").tobytes(),
        sources=ranked.sources.tobytes(),
        source_names=list(ranked.source_names),
        columns={name: _pack(column) for name, column in ranked.actions.columns.items()},
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
        discovery_positions=decision.discovery_positions,
    )


def build_slot(draw: SlotDraw, ranked: Ranked, schema: FeatureSchema, find_item: FindItem) -> SlotRecord:
    """Build the record of one slot, with the item's features by name."""
    item_id = ranked.actions.ids[draw.action]
    item: Any = ranked.described.get(item_id) or find_item(item_id)
    affinity = float(ranked.affinity[draw.action])
    source = ranked.source_names[int(ranked.sources[draw.action])]
    dynamic = {"affinity": None if np.isnan(affinity) else affinity, "source": source}
    return SlotRecord(
        item_id=item_id,
        action=draw.action,
        propensity=draw.propensity,
        uniform=draw.uniform,
        cumulative_before=draw.cumulative_before,
        n_feasible=draw.n_feasible,
        greedy_action=draw.greedy_action,
        n_greedy=draw.n_greedy,
        explore_propensity=draw.explore_propensity,
        is_discovery=draw.is_discovery,
        branch=draw.branch,
        reason="discovery" if draw.is_discovery else "greedy" if draw.is_greedy else "explore",
        boost=draw.boost,
        gave_way=list(draw.gave_way),
        features={"item": schema.named("item", item_record(item)), "dynamic": schema.named("dynamic", dynamic)},
    )


def response_of(decision: Decision, *, degraded: str | None = None) -> RecommendResponse:
    """Return the response that a decision stands for; `degraded` names a part that failed after the draw."""
    candidates = decision.candidates
    scores = np.frombuffer(candidates.scores, dtype="<f4")
    return RecommendResponse(
        event_id=decision.event_id,
        surface=decision.surface,
        model_version=decision.versions.model,
        explore_rate=decision.exploration.rate,
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


def _pack(column: np.ndarray[Any, Any]) -> tuple[str, bytes]:
    little = column.astype(column.dtype.newbyteorder("<"), copy=False)
    return little.dtype.str, little.tobytes()
