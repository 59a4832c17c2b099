"""Eligibility: who may be shown what, decided once for the whole candidate set at the start of a request."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import numpy as np
import numpy.typing as npt

from retrieval import _native
from retrieval.catalogue import UNKNOWN_AGE, Catalogue

Int32Array = npt.NDArray[np.int32]


class Viewer(msgspec.Struct, frozen=True, gc=False):
    """What eligibility reads of a viewer.

    Attributes:
        age: Years; None switches the age gate off.
        unknown_item_min_age: Age that an item without rating needs.
        country: ISO 3166 code, None when unknown.
        hidden_rows: Rows never to show (excluded by the caller, consumed, the seed itself).
    """

    age: int | None
    unknown_item_min_age: int
    country: str | None
    hidden_rows: Collection[int]


def eligible_mask(catalogue: Catalogue, rows: Int32Array, viewer: Viewer, *, now_ms: int) -> npt.NDArray[np.bool_]:
    """Return bool [n]: which of `rows` this viewer may be shown at `now_ms`."""
    return _native.eligible(
        rows,
        listed=catalogue.listed,
        available_ms=catalogue.available_at_unix_ms,
        expires_ms=catalogue.expires_at_unix_ms,
        allowed=catalogue.allowed_in(viewer.country),
        min_age=catalogue.min_age,
        now_ms=now_ms,
        age=viewer.age,
        unknown_age=UNKNOWN_AGE,
        unknown_needs=viewer.unknown_item_min_age,
        hidden=np.fromiter(viewer.hidden_rows, dtype=np.int32, count=len(viewer.hidden_rows)),
    )
