"""Candidate columns: what rules read, one array a name, and how categories and tags are coded in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
TagArray = npt.NDArray[np.uint64]
# Categories are int32 codes (equal codes, equal values), tags are uint64 bit sets, flags are bool, the rest numbers.
Columns = dict[str, npt.NDArray[Any]]

# The code of "no value" in a category column; it counts towards no limit.
NO_CODE = -1
# The tag of every value beyond the first 63; it says nothing about likeness and counts towards no limit.
OTHER_TAG = np.uint64(1 << 63)


def is_tags(column: npt.NDArray[Any]) -> bool:
    """Return whether a column holds tags rather than categories."""
    return column.dtype == np.uint64
