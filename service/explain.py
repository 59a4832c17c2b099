"""Why each slot: sources, features, boosts, rules that gave way, and the arithmetic of the propensity."""

from __future__ import annotations

from typing import Any

import numpy as np

from bandit.exploration import VwExplorer
from bandit.slate import SlotPmf
from service.decision_record import walk_of
from service.messages import Decision, SlotRecord, journal_decoder
from service.ports import Journal

_PART_IN_WORDS = {
    "greedy": "for being best",
    "shortlist": "from the shortlist",
    "uniform": "from the uniform share",
    "sponsored": "for being sponsored",
    "pinned": "for being pinned",
}


async def find_decision(journal: Journal, event_id: str) -> Decision | None:
    """Return a decision that is still in the journal, None otherwise."""
    (claim,) = await journal.claims([event_id])
    stored = None if claim is None else await journal.entry(journal.partition_of(event_id), claim.journal_id)
    if stored is None:
        return None
    found = journal_decoder.decode(stored)
    assert isinstance(found, Decision)
    return found


def explain(decision: Decision) -> dict[str, Any]:
    """Return the explanation of a decision as plain values, recomputed from its record alone."""
    walk = walk_of(decision)
    slots = []
    for index, record in enumerate(decision.slots):
        here = walk.pmf()
        assert here is not None
        slots.append(_explain_slot(decision, record, index, here))
        walk.place(record.action)
    exploration = decision.exploration
    return {
        "event_id": decision.event_id,
        "surface": decision.surface,
        "decided_at_unix_ms": decision.decided_at_unix_ms,
        "versions": decision.versions,
        "exploration": exploration,
        "rules": decision.rules,
        "discovery_positions": decision.discovery_positions,
        "degraded": decision.degraded,
        "n_candidates": len(decision.candidates.ids),
        "features": decision.features,
        "slots": slots,
        "slate_propensity": float(np.prod([slot.propensity for slot in decision.slots])),
        "latency_ms": decision.latency_ms,
    }


def _explain_slot(decision: Decision, record: SlotRecord, index: int, here: SlotPmf) -> dict[str, Any]:
    candidates = decision.candidates
    parts = here.parts(record.action) if not here.placed_by else {here.placed_by: 1.0}
    explored = here.view.explorer_pmf is not None
    words = _PART_IN_WORDS | ({"shortlist": "from the explorer"} if explored else {})
    because = ", ".join(f"{mass:.6f} {words[part]}" for part, mass in parts.items())
    scores = np.frombuffer(candidates.scores, dtype="<f4")
    return {
        "slot": index,
        "item_id": record.item_id,
        "source": candidates.source_names[candidates.sources[record.action]],
        "reason": record.reason,
        "score": float(scores[record.action]),
        "boost": record.boost,
        "boosted_score": float(here.view.scores[record.action]),
        "greedy_item_id": candidates.ids[record.greedy_action],
        "propensity": record.propensity,
        "n_feasible": record.n_feasible,
        "n_greedy": record.n_greedy,
        "arithmetic": parts,
        "in_words": (
            f"{record.item_id} was drawn with probability {record.propensity:.6f} "
            f"from {record.n_feasible} feasible items: {because}."
        ),
        "explorer": _explain_explorer(decision, record, here),
        "uniform_drawn": record.uniform,
        "cumulative_before": record.cumulative_before,
        "rules_that_gave_way": record.gave_way,
        "features": record.features,
    }


def _explain_explorer(decision: Decision, record: SlotRecord, here: SlotPmf) -> dict[str, Any] | None:
    """Return what a VW explorer said of the slot's shortlist, None without one."""
    pmf, exploration = here.view.explorer_pmf, decision.exploration
    if pmf is None or not isinstance(exploration, VwExplorer):
        return None
    ids = [decision.candidates.ids[action] for action in here.view.top.tolist()]
    said = dict(zip(ids, pmf.tolist(), strict=True))
    share = said.get(record.item_id)
    of_it = "was not on its shortlist" if share is None else f"got {share:.6f} of it"
    return {
        "model": exploration.model,
        "version": decision.versions.explorer,
        "shortlist_pmf": said,
        "in_words": (
            f"{exploration.model} divided {1.0 - exploration.uniform_share:.6f} of the probability among the "
            f"{len(said)} best items; {record.item_id} {of_it}."
        ),
    }
