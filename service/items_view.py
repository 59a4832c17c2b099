"""What one worker knows of the items: catalogue, hashed features and retrieval, changed together by one stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bandit.features import FeatureSchema
from bandit.policy import ActionFeatures
from bandit.vw_format import Float32Array, UInt32Array, encode
from retrieval.catalogue import Catalogue
from retrieval.items import Item
from retrieval.rankings import ItemArrays, RankingConfig, Rankings, build_rankings
from service.feature_records import item_record
from service.item_pairs import FollowedPairs, put_pairs
from service.item_statistics import ItemStatistics, parse_as_of
from service.messages import ItemChange, ItemPairs, ItemUpsert
from service.retriever import Retriever
from service.rule_columns import AttributeColumns
from service.succession import Change, Succession

ITEMS_STREAM = "hone:items"


class ItemFeatureTable:
    """Hashed item features by catalogue row, padded: 8 bytes a feature."""

    def __init__(self, schema: FeatureSchema) -> None:
        self._schema = schema
        self.indices: UInt32Array = np.zeros((1024, 8), dtype=np.uint32)
        self.values: Float32Array = np.zeros((1024, 8), dtype=np.float32)

    def put(self, row: int, named: dict[str, float]) -> None:
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
        # `take` is several times as fast as an index of rows.
        return ActionFeatures(indices=self.indices.take(rows, axis=0), values=self.values.take(rows, axis=0))


class ItemsView:
    """Applies item changes in stream order; `position` is the last one applied."""

    def __init__(self, schema: FeatureSchema, retriever: Retriever, columns: AttributeColumns) -> None:
        self.schema = schema
        self.columns = columns
        self.retriever = retriever
        self.catalogue: Catalogue = retriever.catalogue
        self.features = ItemFeatureTable(schema)
        self.statistics = ItemStatistics(half_life_ms=schema.half_life_s * 1000)
        self.pairs = FollowedPairs(self._put_pairs)
        self.position = "0-0"
        self._succession: Succession | None = None

    @property
    def ranked_state(self) -> tuple[str, str, str]:
        """Return what rankings depend on: positions of items and statistics, and the bundle."""
        return self.position, self.statistics.position, self.retriever.version

    @property
    def n_moves(self) -> int:
        """Return how many items `move_step` has to look at."""
        return len(self.retriever.moves)

    def begin_succession(self) -> Succession:
        """Return what a retriever on another bundle is made ready with, while this one serves; there is one at most."""
        self._succession = Succession(self.retriever)
        return self._succession

    def end_succession(self, successor: Retriever | None) -> None:
        """Serve a retriever that was made ready, or, given none, serve on."""
        succession, self._succession = self._succession, None
        if successor is not None and succession is not None:
            succession.catch_up(successor)
            self.retriever = successor

    def build_rankings(self, now_ms: int, retriever: Retriever | None = None) -> Rankings:
        """Rank the catalogue as of now; it only reads, so a thread may do it while changes are applied."""
        retriever = retriever or self.retriever
        rows = np.arange(len(self.catalogue.item_ids), dtype=np.int32)
        counts = self.statistics.columns(rows, now_ms)
        arrays = ItemArrays(
            is_listed=self.catalogue.listed[: len(rows)],
            available_at_unix_ms=self.catalogue.available_at_unix_ms[: len(rows)],
            n_interactions=retriever.n_interactions(len(rows)),
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
            self._put(change.item)
        else:
            self._delete(change.item_id)

    def _put(self, item: Item) -> None:
        named = self.schema.named("item", item_record(item))
        row = self.catalogue.upsert(item)
        self.features.put(row, named)
        self.columns.put(row, item)
        self._change(lambda retriever: retriever.put(row, item))
        self.statistics.bind(row, item.id)

    def _delete(self, item_id: str) -> None:
        row = self.catalogue.delete(item_id)
        if row is not None:
            self._change(lambda retriever: retriever.remove(row, item_id))
            self.statistics.release(row, item_id)

    def move_step(self) -> bool:
        """Move the vector of one item that live counts say more of, and return whether there was one.

        One that is made ready to serve moves its own.
        """
        return self.retriever.moves.step()

    def _put_pairs(self, pairs: ItemPairs) -> None:
        as_of = parse_as_of(pairs.as_of)

        def put(retriever: Retriever) -> None:
            put_pairs(retriever.item_to_item, pairs)
            retriever.moves.note(pairs.ids[: len(pairs.n_users) // 8], as_of_ms=as_of[0] if as_of else 0)

        self._change(put)

    def _change(self, change: Change) -> None:
        """Change the retriever that serves, and note it for the one that is made ready."""
        change(self.retriever)
        if self._succession is not None:
            self._succession.note(change)


def _grown(array: npt.NDArray[Any], rows: int, columns: int) -> npt.NDArray[Any]:
    grown = np.zeros((rows, columns), dtype=array.dtype)
    grown[: array.shape[0], : array.shape[1]] = array
    return grown
