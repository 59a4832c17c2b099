"""Recompute logged propensities from decision records alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bandit.exploration import Float64Array
from service.decision_record import inputs_digest, walk_of
from service.messages import Decision, SlotRecord


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
    logged: float | str
    recomputed: float | str


def audit_decision(decision: Decision, *, tolerance: float = 0.0) -> list[Mismatch]:
    """Return every mismatch of a decision; none means that each propensity is exact.

    Args:
        decision: the record.
        tolerance: 0 on the numerics fingerprint that decided; 1e-12 elsewhere.
    """
    try:
        walk = walk_of(decision)
    except ValueError as error:
        return [Mismatch(decision.event_id, -1, "candidates", "unreadable", str(error))]
    found: list[Mismatch] = []
    digest = inputs_digest(decision)
    if digest != decision.inputs_digest:
        found.append(Mismatch(decision.event_id, -1, "inputs", decision.inputs_digest, digest))
    for slot, record in enumerate(decision.slots):
        here = walk.pmf()
        if here is None or not here.view.allowed[record.action]:
            return [*found, Mismatch(decision.event_id, slot, "feasibility", record.item_id, "not feasible")]
        cdf = np.cumsum(here.pmf)
        before = float(cdf[record.action - 1]) if record.action else 0.0
        numbers = {
            "propensity": (record.propensity, float(here.pmf[record.action])),
            "cumulative_before": (record.cumulative_before, before),
            "n_feasible": (record.n_feasible, here.view.n_allowed),
            "explore_propensity": (record.explore_propensity, here.explore_propensity),
            "boost": (record.boost, float(here.boosts[record.action])),
        }
        found += [
            Mismatch(decision.event_id, slot, what, logged, recomputed)
            for what, (logged, recomputed) in numbers.items()
            if not abs(logged - recomputed) <= tolerance
        ]
        found += _audit_draw(decision, record, slot, here.pmf)
        walk.place(record.action)
    return found


def _audit_draw(decision: Decision, record: SlotRecord, slot: int, pmf: Float64Array) -> list[Mismatch]:
    """Check that the item has the id that was shown and that the logged uniform falls on it."""
    found = []
    shown = decision.candidates.ids[record.action]
    if shown != record.item_id:
        found.append(Mismatch(decision.event_id, slot, "item_id", record.item_id, shown))
    is_last = record.action == int(np.flatnonzero(pmf)[-1])
    end = record.cumulative_before + record.propensity
    # Rounding moves the end of a stretch by a few units in the last place of 1.
    if record.uniform < record.cumulative_before or (record.uniform > end + 1e-12 and not is_last):
        found.append(
            Mismatch(decision.event_id, slot, "uniform", record.uniform, f"[{record.cumulative_before}, {end})")
        )
    return found
