"""The columns that business rules read, for the candidates of one request; only those that its rules name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from bandit.columns import NO_CODE, OTHER_TAG, Columns
from retrieval.items import Item
from service.config import Campaign, Config
from service.item_statistics import STATISTICS_COLUMNS
from service.wire import InlineAction

Int32Array = npt.NDArray[np.int32]
Kind = Literal["category", "tags"]

# What was shown to the user.
SHOWING_COLUMNS = frozenset({"n_seen", "last_shown_s"})
# Columns that are not attributes of the item; see `service.ranking` for the first group.
BUILT_IN = frozenset(
    {"creator", "available_at_unix_ms", "discovery", "affinity", "popularity"}
    | {"age_days", "sponsored", "pinned_slot", "campaign_boost"}
    | SHOWING_COLUMNS
    | STATISTICS_COLUMNS
)
_N_OWN_TAGS = 63


def attribute_kinds(config: Config) -> dict[str, Kind]:
    """Return the attributes that rules read: tags where a feature declares several values, else categories."""
    several = {f.source for f in config.features.features if f.namespace == "item" and f.kind == "multi"}
    named = {column for surface in config.surfaces.values() for column in columns_of(surface.rules)}
    return {name: "tags" if name in several else "category" for name in sorted(named - BUILT_IN)}


def columns_of(rules: Sequence[Any]) -> set[str]:
    """Return the names of the columns that rules read."""
    return {rule.column for rule in rules}


class AttributeColumns:
    """Categories and tags of item attributes by catalogue row, with one code book an attribute."""

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self._kinds = kinds
        self._codes: dict[str, dict[str, int]] = {name: {} for name in kinds}
        self._columns: dict[str, npt.NDArray[Any]] = {
            name: np.zeros(1024, dtype=np.uint64 if kind == "tags" else np.int32) for name, kind in kinds.items()
        }

    def put(self, row: int, item: Item) -> None:
        """Replace the values of a row."""
        for name, column in self._columns.items():
            while row >= len(column):
                column = self._columns[name] = np.concatenate([column, np.zeros_like(column)])
            column[row] = self._encode(name, item.attributes.get(name))

    def take(self, rows: Int32Array, names: Collection[str]) -> Columns:
        """Return the columns of rows."""
        return {name: column.take(rows) for name, column in self._columns.items() if name in names}

    def encode(self, items: Sequence[Item | InlineAction], names: Collection[str]) -> Columns:
        """Return the columns of items that may not be in the catalogue."""
        return {
            name: np.array([self._encode(name, i.attributes.get(name)) for i in items], dtype=column.dtype)
            for name, column in self._columns.items()
            if name in names
        }

    def _encode(self, name: str, value: object) -> int | np.uint64:
        codes = self._codes[name]
        if self._kinds[name] == "category":
            return NO_CODE if value is None else codes.setdefault(str(value), len(codes))
        tags = np.uint64(0)
        for entry in value if isinstance(value, list) else [] if value is None else [value]:
            code = codes.setdefault(str(entry), len(codes))
            tags |= np.uint64(1 << code) if code < _N_OWN_TAGS else OTHER_TAG
        return tags


class RequestColumns(msgspec.Struct, frozen=True):
    """What columns need of the request rather than of the items.

    Attributes:
        campaigns: Those that run now, with the rows of their items.
        n_seen: Showings to this user lately, by row.
        last_shown_s: How long ago the last of them was, in seconds, by row.
    """

    campaigns: Sequence[tuple[Campaign, int]]
    n_seen: Mapping[int, int] = msgspec.field(default_factory=dict)
    last_shown_s: Mapping[int, float] = msgspec.field(default_factory=dict)

    def build(self, rows: Int32Array, names: Collection[str]) -> Columns:
        """Return `n_seen`, `last_shown_s`, `sponsored`, `pinned_slot` and `campaign_boost` where asked for."""
        columns: Columns = {}
        if "n_seen" in names:
            columns["n_seen"] = _lookup(rows, self.n_seen, 0, np.int32)
        if "last_shown_s" in names:
            columns["last_shown_s"] = _lookup(rows, self.last_shown_s, np.nan, np.float32)
        if "sponsored" in names:
            sponsors = [row for campaign, row in self.campaigns if campaign.kind == "sponsor"]
            columns["sponsored"] = _place(rows, {row: order for order, row in enumerate(sponsors)}, -1, np.int32)
        if "pinned_slot" in names:
            slots = {row: c.slot for c, row in self.campaigns if c.kind == "pin"}
            columns["pinned_slot"] = _place(rows, slots, -1, np.int32)
        if "campaign_boost" in names:
            boosts: dict[int, float] = {}
            for campaign, row in self.campaigns:
                if campaign.kind == "boost":
                    boosts[row] = boosts.get(row, 0.0) + campaign.boost
            columns["campaign_boost"] = _place(rows, boosts, 0.0, np.float64)
        return columns


def _lookup(rows: Int32Array, values: Mapping[int, float], empty: float, dtype: Any) -> npt.NDArray[Any]:  # noqa: ANN401
    """Return the value of every row, `empty` where there is none."""
    if not values:
        return np.full(len(rows), empty, dtype=dtype)
    known = np.fromiter(sorted(values), dtype=np.int32, count=len(values))
    found = np.fromiter((values[row] for row in known.tolist()), dtype=dtype, count=len(values))
    place = np.minimum(np.searchsorted(known, rows), len(known) - 1)
    return np.where(known[place] == rows, found[place], np.array(empty, dtype=dtype))


def _place(rows: Int32Array, values: Mapping[int, Any], empty: float, dtype: Any) -> npt.NDArray[Any]:  # noqa: ANN401
    column = np.full(len(rows), empty, dtype=dtype)
    for row, value in values.items():
        column[rows == row] = value
    return column
