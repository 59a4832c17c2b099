"""What reading a log found: rows read, rows rejected and why, and whether the propensities look like propensities."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bandit.support import Support
from simulators.logged.batches import LoggedBatch

_ROWS_SHOWN = 5


class LogRefused(Exception):
    """A log that cannot be read at all; the message names file, field and row."""


@dataclass(slots=True)
class ImportReport:
    """Counts of one log, as it is read.

    Attributes:
        n_read: Rows (of a file) or decisions (of an archive) seen, rejected and filtered ones included.
        n_filtered: Those outside of the time that was asked for.
        n_slots: Slots of what was accepted.
        rejected: By reason, `field: what is wrong`.
        first_rows: By reason, where it was first: rows of the file from 1, header included, or decision ids.
        notes: What a reader should know and is no rejection.
        lowest: Lowest logged propensity of an accepted slot, `inf` before any.
        highest: Highest one.
        floor: Lowest propensity that the logging policy allowed, known for some logs only.
        inverse: Of 1 / (p K) over slots that say how many actions K they could hold. Its mean is 1 when every one of
            them could be drawn and the propensities are right.
    """

    n_read: int = 0
    n_filtered: int = 0
    n_slots: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first_rows: dict[str, list[int | str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lowest: float = math.inf
    highest: float = 0.0
    floor: float | None = None
    inverse: Support | None = None

    def reject(self, reason: str, rows: Iterable[int | str]) -> None:
        """Count rows that are left out."""
        shown = self.first_rows.setdefault(reason, [])
        n = 0
        for row in rows:
            n += 1
            if len(shown) < _ROWS_SHOWN:
                shown.append(row)
        if n:
            self.rejected[reason] += n
        elif not shown:
            del self.first_rows[reason]

    def note(self, note: str) -> None:
        """Add a note once."""
        if note not in self.notes:
            self.notes.append(note)

    @property
    def n_rejected(self) -> int:
        """Return how many rows were left out."""
        return self.rejected.total()

    def watch(self, batches: Iterable[LoggedBatch]) -> Iterator[LoggedBatch]:
        """Yield batches on, taking in their propensities."""
        for batch in batches:
            if not len(batch):
                continue
            self.n_slots += batch.rewards.size
            self.lowest = min(self.lowest, float(batch.propensities.min()))
            self.highest = max(self.highest, float(batch.propensities.max()))
            known = batch.n_feasible > 0
            if known.any():
                inverse = Support.of(1.0 / (batch.propensities[known] * batch.n_feasible[known]))
                self.inverse = inverse if self.inverse is None else self.inverse + inverse
            yield batch

    def figures(self) -> dict[str, Any]:
        """Return the report as JSON-ready figures."""
        return {
            "rows_read": self.n_read,
            "rows_filtered": self.n_filtered,
            "rows_rejected": self.n_rejected,
            "slots": self.n_slots,
            "rejected": {
                reason: {"rows": count, "first": self.first_rows[reason]} for reason, count in self.rejected.items()
            },
            "notes": self.notes,
            "propensities": {
                "lowest": self.lowest if self.n_slots else None,
                "highest": self.highest if self.n_slots else None,
                "floor": self.floor,
                "mean_inverse_over_actions": None if self.inverse is None else self.inverse.mean_weight,
                "mean_inverse_over_actions_se": None
                if self.inverse is None or not np.isfinite(self.inverse.mean_weight_se)
                else self.inverse.mean_weight_se,
            },
        }

    def lines(self) -> list[str]:
        """Return the report in words."""
        filtered = f"  outside of the time asked for {self.n_filtered:,}" if self.n_filtered else ""
        said = [f"rows read {self.n_read:,}{filtered}  rejected {self.n_rejected:,}"]
        for reason, count in self.rejected.most_common():
            first = ", ".join(map(str, self.first_rows[reason]))
            said.append(f"  rejected {count:,}: {reason} (first: {first})")
        if self.n_slots:
            floor = "" if self.floor is None else f"  floor of the logging policy {self.floor:.3g}"
            said.append(f"propensities {self.lowest:.6g} to {self.highest:.6g}{floor}")
        if self.inverse is not None:
            said.append(
                f"mean of 1/p over the number of actions {self.inverse.mean_weight:.4f} +- "
                f"{self.inverse.mean_weight_se:.4f} (1 when every action can be drawn)"
            )
        return said + [f"note: {note}" for note in self.notes]
