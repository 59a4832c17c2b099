"""Items as they were at any position of the items stream."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from retrieval.items import Item
from service.journal_reader import entry_order
from service.messages import ItemChange, ItemUpsert


class ItemHistory:
    """Every version of every item; feed it the changes in stream order."""

    def __init__(self) -> None:
        self._positions: dict[str, list[tuple[int, int]]] = {}
        self._versions: dict[str, list[Item | None]] = {}

    @classmethod
    def unchanging(cls, items: Iterable[Item]) -> ItemHistory:
        """Return the history of items that were there from the beginning, as they are."""
        history = cls()
        for item in items:
            history.add("0-0", ItemUpsert(item=item))
        return history

    def add(self, entry_id: str, change: ItemChange) -> None:
        """Remember a change as of its position."""
        item_id = change.item.id if isinstance(change, ItemUpsert) else change.item_id
        self._positions.setdefault(item_id, []).append(entry_order(entry_id))
        self._versions.setdefault(item_id, []).append(change.item if isinstance(change, ItemUpsert) else None)

    def item(self, item_id: str, position: str) -> Item | None:
        """Return an item as of a position, None where there was none."""
        index = bisect_right(self._positions.get(item_id, []), entry_order(position))
        return self._versions[item_id][index - 1] if index else None

    @property
    def ids(self) -> list[str]:
        """Return the ids that were ever put, sorted."""
        return sorted(self._versions)

    def newest(self, item_id: str) -> Item | None:
        """Return an item as it is now, None when it was deleted."""
        return self._versions[item_id][-1]
