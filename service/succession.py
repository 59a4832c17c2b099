"""Make a retriever on another bundle ready while the present one serves, so that it misses no change. No I/O.

What serves belongs to the event loop, what is made ready to a thread. They share the catalogue, of which the thread
only looks up rows. Changes that come meanwhile are noted, and made good in their order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from retrieval.bundle import Bundle
from service.retriever import Retriever

Change = Callable[[Retriever], None]

# The thread lets requests have the interpreter after so long, and for so long: after no time it takes it back at once.
_TURN_S = 0.001
_REST_S = 0.000_2
# The event loop makes so many changes good at once, when it takes over.
_LAST_CHANGES = 64


class Succession:
    """What is known when it begins, on the event loop, and the changes since.

    Args:
        present: The retriever that serves.
    """

    def __init__(self, present: Retriever) -> None:
        self._catalogue = present.catalogue
        self._items = list(present.catalogue.items)
        self._live = present.item_to_item.live()
        self._as_of_ms = present.moves.as_of_ms
        self._changes: deque[Change] = deque()

    def note(self, change: Change) -> None:
        """Keep a change for the successor."""
        self._changes.append(change)

    def build(self, bundle: Bundle) -> Retriever:
        """Return a retriever that is behind by few changes; for a thread, which it lets rest again and again."""
        successor = Retriever(self._catalogue, bundle)
        turns = _Turns()
        for row, item in enumerate(self._items):
            if item is not None:
                successor.put(row, item)
                turns.rest_if_due()
        live, table = self._live, successor.item_to_item
        for place, (partners, counts) in live.counts.items():
            table.put_live(
                live.item_ids[place],
                n_users=float(live.n_users[place]),
                at_ms=int(live.at_ms[place]),
                half_life_ms=live.half_life_ms,
                partners=[live.item_ids[partner] for partner in partners.tolist()],
                counts=counts,
            )
            turns.rest_if_due()
        successor.moves.note([live.item_ids[place] for place in live.counts], as_of_ms=self._as_of_ms)
        while len(self._changes) > _LAST_CHANGES:
            self._changes.popleft()(successor)
            turns.rest_if_due()
        # Changes may go on coming; their items, the event loop moves.
        for _ in range(len(successor.moves)):
            successor.moves.step()
            turns.rest_if_due()
        return successor

    def catch_up(self, successor: Retriever) -> None:
        """Make the last changes good, on the event loop."""
        while self._changes:
            self._changes.popleft()(successor)


class _Turns:
    """When a thread is to let others have the interpreter, which it would else keep for five milliseconds."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter()

    def rest_if_due(self) -> None:
        if time.perf_counter() - self._began_s > _TURN_S:
            time.sleep(_REST_S)
            self._began_s = time.perf_counter()
