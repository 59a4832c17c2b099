"""Recompute logged propensities from decision records alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bandit.slot import draw_slot
from service.decision_record import inputs_digest, record_slot, walk_of
from service.messages import Decision


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A number of a record that does not follow from the rest of it.

    Attributes:
        event_id: The decision.
        slot: The slot, -1 for the decision as a whole.
        what: What differs.
        logged: As logged.
        recomputed: As recomputed.
    """

    event_id: str
    slot: int
    what: str
    logged: Any
    recomputed: Any


def audit_decision(decision: Decision, *, tolerance: float = 0.0) -> list[Mismatch]:
    """Draw every slot again from the record alone and return what comes out differently.

    None means that each propensity is exact, and that items, branches, boosts and rules are as logged.

    Args:
        decision: the record.
        tolerance: 0 on the numerics fingerprint that decided; 1e-12 elsewhere.
    """
    try:
        walk = walk_of(decision)
    except (ValueError, KeyError, TypeError) as error:
        return [Mismatch(decision.event_id, -1, "candidates", "unreadable", f"{type(error).__name__}: {error}")]
    found: list[Mismatch] = []
    digest = inputs_digest(decision)
    if digest != decision.inputs_digest:
        found.append(Mismatch(decision.event_id, -1, "inputs", decision.inputs_digest, digest))
    for slot, record in enumerate(decision.slots):
        try:
            here = walk.pmf()
        except ValueError as error:
            return [*found, Mismatch(decision.event_id, slot, "explorer_pmf", "unusable", str(error))]
        if here is None or not 0 <= record.action < len(here.pmf) or not here.view.allowed[record.action]:
            return [*found, Mismatch(decision.event_id, slot, "feasibility", record.item_id, "not feasible")]
        if not 0.0 <= record.uniform < 1.0:
            return [*found, Mismatch(decision.event_id, slot, "uniform", record.uniform, "in [0, 1)")]
        draw = draw_slot(here, slot, record.uniform)
        expected = record_slot(draw, walk.actions, features=record.features)
        found += [
            Mismatch(decision.event_id, slot, what, getattr(record, what), getattr(expected, what))
            for what in record.__struct_fields__
            if not _is_same(getattr(record, what), getattr(expected, what), tolerance)
        ]
        walk.place(record.action)
    if len(decision.slots) < decision.n_requested and walk.pmf() is not None:
        found.append(Mismatch(decision.event_id, -1, "n_slots", len(decision.slots), "more could be placed"))
    return found


def _is_same(logged: object, recomputed: object, tolerance: float) -> bool:
    """Return whether two values are equal, numbers within the tolerance; NaN equals nothing."""
    if isinstance(logged, float) and isinstance(recomputed, float):
        return abs(logged - recomputed) <= tolerance
    return logged == recomputed
