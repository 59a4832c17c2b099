"""Which rows of a block of CSV are kept, what their numbers and times are, and why others are not."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bandit.support import Float64Array
from simulators.logged.batches import Int64Array
from simulators.logged.import_report import ImportReport

BoolArray = npt.NDArray[np.bool_]


class RowCheck:
    """Which rows of a block are kept; a row is rejected once, under its first reason."""

    def __init__(self, report: ImportReport, rows: Int64Array) -> None:
        self.rows = rows
        self.kept: BoolArray = np.ones(len(rows), dtype=np.bool_)
        self._report = report

    def refuse(self, reason: str, wrong: BoolArray) -> None:
        """Reject rows, bool [n]."""
        wrong = wrong & self.kept
        if wrong.any():
            self._report.reject(reason, self.rows[wrong].tolist())
            self.kept &= ~wrong

    def leave_out(self, outside: BoolArray) -> None:
        """Filter rows, bool [n]; they are not rejected."""
        outside = outside & self.kept
        self._report.n_filtered += int(np.count_nonzero(outside))
        self.kept &= ~outside

    def number(self, name: str, column: pa.Array) -> Float64Array:
        """Return float64 [n]; rows without a number are rejected, and hold 1."""
        self.refuse(f"{name}: missing", nulls_of(column))
        try:
            values: Float64Array = column.cast(pa.float64()).fill_null(1.0).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            parsed = [_number(text) for text in column.to_pylist()]
            self.refuse(f"{name}: not a number", np.array([value is None for value in parsed]))
            values = np.array([1.0 if value is None else value for value in parsed])
        return values

    def time(self, column: pa.Array) -> tuple[Float64Array, BoolArray]:
        """Return float64 [n], and bool [n]: whether it is a number of any unit, or microseconds of an ISO time.

        Rows without a time are rejected.
        """
        self.refuse("time: missing", nulls_of(column))
        for kind in (pa.float64(), pa.timestamp("us"), pa.timestamp("us", tz="UTC")):
            try:
                cast = column.cast(kind)
            except pa.ArrowInvalid:
                continue
            is_number = kind == pa.float64()
            times = cast if is_number else cast.cast(pa.int64())
            known: Float64Array = times.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64)
            return known, np.full(len(known), is_number)
        texts = column.to_pylist()
        parsed = [_unix_us(text) for text in texts]
        self.refuse("time: not a time", np.array([value is None for value in parsed]))
        are_numbers = np.array([_number(text) is not None for text in texts])
        return np.array([0.0 if value is None else value for value in parsed]), are_numbers


def nulls_of(column: pa.Array) -> BoolArray:
    """Return bool [n]: which rows hold nothing."""
    nulls: BoolArray = column.is_null().to_numpy(zero_copy_only=False)
    return nulls


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _unix_us(text: str | None) -> float | None:
    number = _number(text)
    if text is None or number is not None:
        return number
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1e6
