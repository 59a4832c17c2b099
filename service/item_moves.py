"""Move vectors of new items to what live counts say of them, item by item. No I/O.

What may be due is noted when counts arrive, and done in steps: a vector costs an index milliseconds. Moved are items
that the training has not met, and young ones that it has hardly met, whenever so many more users like them that it
matters. What few people like after a long time is not new: the training knows that, and its vector stays.

A vector is a function of the bundle, the item and its counts; it does not depend on which items were moved before.
"""

from __future__ import annotations

from collections.abc import Iterable

from retrieval.catalogue import Catalogue
from retrieval.item_fold_in import ItemFoldIn
from retrieval.item_to_item import ItemToItem
from service.item_vectors import ItemVectors

FEW_TRAINED = 50
"""An item that was trained on so many interactions stays where the training put it."""
NEW_FOR_MS = 28 * 86_400_000
"""So long after it became available, an item that was trained on few is new, and not one that few people like."""
GROWTH = 1.5
"""An item is moved again when so many times as many users like it as when it was moved last."""
_LEAST_USERS = 0.5
# A look costs microseconds.
_LOOKS_PER_STEP = 256


class ItemMoves:
    """What is to be moved in the indexes of one bundle.

    Args:
        catalogue: Of the worker; only looked up.
        vectors: Where the items are.
        table: Live counts.
    """

    def __init__(self, catalogue: Catalogue, vectors: ItemVectors | None, table: ItemToItem) -> None:
        self._catalogue = catalogue
        self._vectors = vectors
        self._table = table
        self._fold_in: ItemFoldIn | None = None
        if vectors is not None and vectors.bundle.embeddings.tastes is not None:
            self._fold_in = ItemFoldIn(vectors.bundle.embeddings)
        # Whatever was noted first is looked at first.
        self._noted: dict[str, None] = {}
        self._n_users_at_move: dict[str, float] = {}
        self.as_of_ms = 0

    def __len__(self) -> int:
        """Return how many items are to be looked at."""
        return len(self._noted)

    def note(self, item_ids: Iterable[str], *, as_of_ms: int) -> None:
        """Note that the live counts of items have changed, as of a journal time."""
        self.as_of_ms = max(self.as_of_ms, as_of_ms)
        if self._fold_in is not None:
            self._noted.update(dict.fromkeys(item_ids))

    def note_put(self, item_id: str) -> None:
        """Note that an item was put: its content may be another, and counts may have come before it."""
        self._n_users_at_move.pop(item_id, None)
        self.note([item_id], as_of_ms=self.as_of_ms)

    def forget(self, item_id: str) -> None:
        """Forget an item that left the catalogue."""
        self._n_users_at_move.pop(item_id, None)
        self._noted.pop(item_id, None)

    def step(self) -> bool:
        """Look at what is noted until one item was moved, at a few hundred items at most; return whether one was."""
        for _ in range(min(len(self._noted), _LOOKS_PER_STEP)):
            item_id = next(iter(self._noted))
            del self._noted[item_id]
            label = self._label_if_due(item_id)
            if label is not None and self._move(item_id, label):
                return True
        return False

    def _label_if_due(self, item_id: str) -> int | None:
        assert self._vectors is not None
        label = self._vectors.label(item_id)
        if label is None or not self._vectors.has_row(label):
            return None
        n_trained = self._vectors.n_trained(label)
        if n_trained and (n_trained >= FEW_TRAINED or not self._is_young(item_id)):
            return None
        # Live counts take the place of what the training knows of it when most of that is in them.
        least = max(_LEAST_USERS, n_trained / 2, GROWTH * self._n_users_at_move.get(item_id, 0.0))
        return label if self._table.live_users(item_id, self.as_of_ms) >= least else None

    def _is_young(self, item_id: str) -> bool:
        row = self._catalogue.row(item_id)
        return row is not None and int(self._catalogue.available_at_unix_ms[row]) > self.as_of_ms - NEW_FOR_MS

    def _move(self, item_id: str, label: int) -> bool:
        item, live = self._catalogue.item(item_id), self._table.live_of(item_id, self.as_of_ms)
        assert self._vectors is not None
        assert self._fold_in is not None
        if item is None or live is None:
            return False
        embeddings = self._vectors.bundle.embeddings
        # Only trained vectors: those of other new items would make a vector depend on what was moved before.
        trained = embeddings.n_interactions[live.partners] > 0
        taste = self._fold_in.taste(embeddings.item_vectors[live.partners[trained]], live.shares[trained])
        content = embeddings.cold_item_vector(item)
        self._vectors.move(label, self._fold_in.vector(content, taste, n_users=live.n_users))
        self._n_users_at_move[item_id] = live.n_users
        return True
