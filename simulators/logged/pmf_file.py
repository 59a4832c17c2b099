"""A target policy that looks at no context, from a file: the probability of every action, at every position too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from bandit.support import Float64Array
from simulators.logged.import_report import LogRefused

_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class ContextFreePmf:
    """Probabilities of actions.

    Attributes:
        probabilities: By action, and by position where it has positions (else under an empty one).
        has_positions: Whether it has.
    """

    probabilities: dict[tuple[str, str], float]
    has_positions: bool

    @classmethod
    def read(cls, path: Path) -> ContextFreePmf:
        """Read a CSV file with the columns action, probability and, if wanted, position.

        Raises:
            LogRefused: it cannot be read, a probability is none, or those of a position do not sum to 1.
        """
        try:
            text = {name: pa.string() for name in ("action", "position")}
            options = pyarrow.csv.ConvertOptions(column_types={**text, "probability": pa.float64()})
            table = pyarrow.csv.read_csv(path, convert_options=options)
            rows = table.to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise LogRefused(f"{path}: {error}") from error
        missing = {"action", "probability"} - set(table.column_names)
        if missing:
            raise LogRefused(f"{path}: must have the column {' and '.join(sorted(missing))}")
        found: dict[tuple[str, str], float] = {}
        totals: dict[str, float] = {}
        for number, row in enumerate(rows, start=2):
            key = row["action"], row.get("position") or ""
            mass = row["probability"]
            if mass is None or not 0.0 <= mass <= 1.0:
                raise LogRefused(f"{path}: probability must be in [0, 1], got {mass} (row {number})")
            if key in found:
                raise LogRefused(f"{path}: action {key[0]!r} must stand once at a position (row {number})")
            found[key] = mass
            totals[key[1]] = totals.get(key[1], 0.0) + mass
        for position, total in totals.items():
            if not abs(total - 1.0) <= _TOLERANCE:
                where = f" of position {position}" if position else ""
                raise LogRefused(f"{path}: probabilities{where} must sum to 1, got {total:.9g}")
        return cls(found, "position" in table.column_names)

    @property
    def largest(self) -> float:
        """Return the largest probability of any action."""
        return max(self.probabilities.values(), default=0.0)

    def of(self, actions: pa.Array, positions: pa.Array | None) -> Float64Array:
        """Return float64 [n], the probability of each row's action at its position; NaN where it has none.

        Args:
            actions: text [n].
            positions: text [n], None without positions.
        """
        action = actions.dictionary_encode()
        place = None if positions is None else positions.dictionary_encode()
        places = [""] if place is None else place.dictionary.to_pylist()
        table = np.array(
            [[self.probabilities.get((a, p), np.nan) for p in places] for a in action.dictionary.to_pylist()]
        ).reshape(-1, len(places))
        # The last row and column are for what is missing.
        table = np.pad(table, ((0, 1), (0, 1)), constant_values=np.nan)
        rows = action.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        columns = 0 if place is None else place.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        found: Float64Array = table[rows, columns]
        return found
