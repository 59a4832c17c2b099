"""Eligibility: who may be shown what, decided once for the whole candidate set at the start of a request."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retrieval.catalogue import UNKNOWN_AGE, Catalogue

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Viewer:
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
    mask: npt.NDArray[np.bool_] = catalogue.listed[rows] & (catalogue.expires_at_unix_ms[rows] > now_ms)
    mask &= catalogue.available_at_unix_ms[rows] <= now_ms
    mask &= catalogue.allowed_in(viewer.country)[rows]
    if viewer.age is not None:
        needed = catalogue.min_age[rows]
        mask &= np.where(needed == UNKNOWN_AGE, viewer.unknown_item_min_age, needed) <= viewer.age
    if viewer.hidden_rows:
        mask &= ~np.isin(rows, np.fromiter(viewer.hidden_rows, dtype=np.int32))
    return mask
