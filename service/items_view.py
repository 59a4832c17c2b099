"""What one worker knows of the items: catalogue, hashed features and retrieval, changed together by one stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bandit.features import FeatureSchema
from bandit.policy import ActionFeatures
from bandit.vw_format import Float32Array, UInt32Array, encode
from retrieval.catalogue import Catalogue
from retrieval.rankings import ItemArrays, RankingConfig, Rankings, build_rankings
from service.feature_records import item_record
from service.item_pairs import FollowedPairs
from service.item_statistics import ItemStatistics
from service.messages import ItemChange, ItemUpsert
from service.retriever import Retriever
from service.rule_columns import AttributeColumns

ITEMS_STREAM = "hone:items"


class ItemFeatureTable:
    """Hashed item features by catalogue row, padded: 8 bytes a feature."""

    def __init__(self, schema: FeatureSchema) -> None:
        self._schema = schema
        self.indices: UInt32Array = np.zeros((1024, 8), dtype=np.uint32)
        self.values: Float32Array = np.zeros((1024, 8), dtype=np.float32)

    def put(self, row: int, named: Mapping[str, float]) -> None:
        """Replace the features of a row."""
        encoded = encode("item", named)
        width = len(encoded.indices)
        while row >= len(self.indices) or width > self.indices.shape[1]:
            rows = len(self.indices) * (2 if row >= len(self.indices) else 1)
            columns = max(self.indices.shape[1], width)
            self.indices = _grown(self.indices, rows, columns)
            self.values = _grown(self.values, rows, columns)
        self.indices[row, :width] = encoded.indices
        self.values[row] = 0.0
        self.values[row, :width] = encoded.values

    def take(self, rows: npt.NDArray[np.int32]) -> ActionFeatures:
        """Return the features of rows."""
        return ActionFeatures(indices=self.indices[rows], values=self.values[rows])


class ItemsView:
    """Applies item changes in stream order; `position` is the last one applied."""

    def __init__(self, schema: FeatureSchema, retriever: Retriever, columns: AttributeColumns) -> None:
        self.schema = schema
        self.columns = columns
        self.retriever = retriever
        self.catalogue: Catalogue = retriever.catalogue
        self.features = ItemFeatureTable(schema)
        self.statistics = ItemStatistics(half_life_ms=schema.half_life_s * 1000)
        self.pairs = FollowedPairs(retriever.item_to_item)
        self.position = "0-0"

    @property
    def ranked_state(self) -> tuple[str, str]:
        """Return what rankings depend on: positions of items and statistics."""
        return self.position, self.statistics.position

    def build_rankings(self, now_ms: int) -> Rankings:
        """Rank the catalogue as of now; it only reads, so a thread may do it while changes are applied."""
        rows = np.arange(len(self.catalogue.item_ids), dtype=np.int32)
        counts = self.statistics.columns(rows, now_ms)
        arrays = ItemArrays(
            is_listed=self.catalogue.listed[: len(rows)],
            available_at_unix_ms=self.catalogue.available_at_unix_ms[: len(rows)],
            n_interactions=self.retriever.n_interactions(len(rows)),
            impressions=counts["impressions_now"].astype(np.float64),
            clicks=counts["popularity_now"].astype(np.float64),
        )
        return build_rankings(arrays, now_ms=now_ms, config=RankingConfig())

    def apply(self, position: str, change: ItemChange) -> None:
        """Apply one change.

        Raises:
            ValueError: an attribute is not of the kind that a feature declares; nothing was changed.
        """
        self.position = position
        if isinstance(change, ItemUpsert):
            named = self.schema.named("item", item_record(change.item))
            row = self.catalogue.upsert(change.item)
            self.features.put(row, named)
            self.columns.put(row, change.item)
            self.retriever.put(row, change.item)
            self.statistics.bind(row, change.item.id)
        else:
            deleted = self.catalogue.delete(change.item_id)
            if deleted is not None:
                self.retriever.remove(deleted, change.item_id)
                self.statistics.release(deleted, change.item_id)


def _grown(array: npt.NDArray[Any], rows: int, columns: int) -> npt.NDArray[Any]:
    grown = np.zeros((rows, columns), dtype=array.dtype)
    grown[: array.shape[0], : array.shape[1]] = array
    return grown
