"""Vectors of the items of one worker and where they are: labels of the indexes, rows of the catalogue. No I/O.

Labels up to the number of trained items are theirs for good. Later ones are of items that were put since; the label of
one that is deleted is given to the next, so that arrays and indexes follow the largest number of items at one time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from retrieval.bundle import Bundle
from retrieval.content_space import ContentSearch
from retrieval.items import Item

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

NOWHERE = -1
# A trained label that was taken out of the indexes; one that was never mapped to a row is still in them.
_TAKEN_OUT = -2
_FIRST_CAPACITY = 1_024
# The place among own vectors of a label whose vector is as trained.
_AS_TRAINED = 0


class ItemVectors:
    """Where each item of the catalogue is in the indexes of one bundle, which it keeps up to date.

    Attributes:
        bundle: What was trained.
        content: Items by what they are like; None without a content space.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.content: ContentSearch | None = None
        if bundle.content is not None and bundle.embeddings.content is not None:
            self.content = ContentSearch(bundle.embeddings.content, bundle.content)
        trained = bundle.embeddings.item_ids
        self.trained_label = {item_id: label for label, item_id in enumerate(trained)}
        self._n_trained = len(trained)
        # Vectors that the bundle does not have, by place; most labels have none, and cost a page of zeros at most.
        self._own: Float32Array = np.zeros((64, bundle.embeddings.dimension), dtype=np.float32)
        self._own_place: Int32Array = np.zeros(max(self._n_trained, _FIRST_CAPACITY), dtype=np.int32)
        self._n_places = 1
        self._free_places: list[int] = []
        self._moved: set[int] = set()
        self._added_label: dict[str, int] = {}
        self._free_labels: list[int] = []
        self._row_of_label = np.full(max(self._n_trained, _FIRST_CAPACITY), NOWHERE, dtype=np.int32)
        self._label_of_row = np.full(_FIRST_CAPACITY, NOWHERE, dtype=np.int32)

    def put(self, row: int, item: Item) -> int:
        """Make an item findable at its row and return how many interactions it was trained on."""
        label = self.trained_label.get(item.id)
        if label is None:
            label = self._add(item)
        elif self._row_of_label[label] == _TAKEN_OUT:
            self._index(label, self.bundle.embeddings.item_vectors[label])
        self._row_of_label = _reaching(self._row_of_label, label)
        self._label_of_row = _reaching(self._label_of_row, row)
        self._row_of_label[label] = row
        self._label_of_row[row] = label
        if self.content is not None:
            self.content.put(label, item)
        return self.n_trained(label)

    def move(self, label: int, vector: Float32Array) -> None:
        """Give an item another vector float32 [d] than the bundle or its content did; it stays until it is removed."""
        self._set_own(label, vector)
        self._moved.add(label)
        self._index(label, vector)

    def remove(self, row: int, item_id: str) -> None:
        """Take a deleted item out of every index."""
        label = int(self._label_of_row[row]) if row < len(self._label_of_row) else NOWHERE
        if label < 0:
            return
        self._label_of_row[row] = NOWHERE
        for index in (self.bundle.als, self.bundle.similar):
            index.remove(np.array([label], dtype=np.int64))
        if self.content is not None:
            self.content.remove(label)
        self._moved.discard(label)
        if place := int(self._own_place[label]):
            self._own_place[label] = _AS_TRAINED
            self._free_places.append(place)
        if label < self._n_trained:
            self._row_of_label[label] = _TAKEN_OUT
        else:
            self._row_of_label[label] = NOWHERE
            del self._added_label[item_id]
            self._free_labels.append(label)

    def label(self, item_id: str) -> int | None:
        """Return the label of an item, None when it has no vector."""
        label = self.trained_label.get(item_id)
        return self._added_label.get(item_id) if label is None else label

    def n_trained(self, label: int) -> int:
        """Return how many interactions the item of a label was trained on."""
        return int(self.bundle.embeddings.n_interactions[label]) if label < self._n_trained else 0

    def has_row(self, label: int) -> bool:
        """Return whether the item of a label is in the catalogue."""
        return label < len(self._row_of_label) and int(self._row_of_label[label]) >= 0

    def rows(self, labels: Int64Array) -> Int32Array:
        """Return the row int32 [n] of each label, negative for what is not in the catalogue."""
        rows: Int32Array = self._row_of_label[labels]
        return rows

    def labels(self, rows: Int32Array) -> Int64Array:
        """Return the label int64 [n] of each row, negative for none."""
        labels: Int64Array = self._label_of_row[rows].astype(np.int64)
        return labels

    def vectors(self, labels: Int64Array) -> Float32Array:
        """Return float32 [n, d], of labels that are none negative."""
        places = self._own_place[labels]
        is_own = places != _AS_TRAINED
        if not is_own.any():
            trained: Float32Array = self.bundle.embeddings.item_vectors[labels]
            return trained
        vectors: Float32Array = self.bundle.embeddings.item_vectors[np.where(is_own, 0, labels)]
        vectors[is_own] = self._own[places[is_own]]
        return vectors

    def _add(self, item: Item) -> int:
        label = self._added_label.get(item.id)
        if label is None:
            label = self._free_labels.pop() if self._free_labels else self._n_trained + len(self._added_label)
            self._added_label[item.id] = label
        if label not in self._moved:
            vector = self.bundle.embeddings.cold_item_vector(item)
            self._set_own(label, vector)
            self._index(label, vector)
        return label

    def _set_own(self, label: int, vector: Float32Array) -> None:
        self._own_place = _reaching(self._own_place, label, fill=_AS_TRAINED)
        place = int(self._own_place[label])
        if place == _AS_TRAINED:
            place = self._free_places.pop() if self._free_places else self._n_places
            self._n_places = max(self._n_places, place + 1)
            self._own_place[label] = place
        if place == len(self._own):
            self._own = np.concatenate([self._own, np.zeros_like(self._own)])
        self._own[place] = vector

    def _index(self, label: int, vector: Float32Array) -> None:
        for index in (self.bundle.als, self.bundle.similar):
            index.add(np.array([label], dtype=np.int64), np.asarray(vector, dtype=np.float32)[None, :])


def _reaching(array: Int32Array, place: int, *, fill: int = NOWHERE) -> Int32Array:
    """Return the array, grown until it has the place."""
    while place >= len(array):
        array = np.concatenate([array, np.full_like(array, fill)])
    return array
