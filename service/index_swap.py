"""Serve the bundle that is current, whenever another one is: built elsewhere, verified and loaded beside what serves.

Nobody waits for it: a request has one retriever from its beginning to its end, and the exchange is one assignment. For
a while a worker holds both bundles. One that cannot be used is logged and counted, and the worker serves on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from retrieval.bundle import CURRENT, current_version, load_bundle
from retrieval.manifest import BundleError
from service.failpoints import reach
from service.items_view import ItemsView
from service.metrics import Metrics

_POLL_S = 0.5

_log = structlog.get_logger("hone.index")


class IndexSwap:
    """Follows the bundles of one data folder.

    Args:
        root: Folder of the bundles.
        hmac_key: Of their signatures; None checks none.
        items: What serves.
        clock: unix milliseconds.
    """

    def __init__(
        self, root: Path, *, hmac_key: bytes | None, items: ItemsView, metrics: Metrics, clock: Callable[[], int]
    ) -> None:
        self._root = root
        self._hmac_key = hmac_key
        self._items = items
        self._metrics = metrics
        self._clock = clock
        self._refused = ""

    async def run(self) -> None:
        """Follow for ever."""
        while True:
            await asyncio.sleep(_POLL_S)
            await self.look()

    async def look(self) -> bool:
        """Serve the current bundle if it is another one, and return whether it was exchanged."""
        version = await asyncio.to_thread(self._current)
        if version in ("", self._items.retriever.version, self._refused):
            return False
        started_s = time.perf_counter()
        reach("index.load")
        try:
            bundle = await asyncio.to_thread(load_bundle, self._root, version, hmac_key=self._hmac_key)
        except BundleError as error:
            # It is not tried again before another one is current.
            self._refused = version
            self._metrics.bundles_refused.inc()
            _log.error("index.refused", version=version, served=self._items.retriever.version, error=str(error))
            return False
        successor = None
        succession = self._items.begin_succession()
        try:
            successor = await asyncio.to_thread(succession.build, bundle)
            reach("index.built")
            successor.rankings = await asyncio.to_thread(self._items.build_rankings, self._clock(), successor)
        finally:
            self._items.end_succession(successor)
        reach("index.served")
        self._metrics.bundles_served.inc()
        _log.info("index.served", version=version, took_s=round(time.perf_counter() - started_s, 3))
        return True

    def _current(self) -> str:
        """Return the current version, empty when there is none."""
        if not (self._root / CURRENT).exists():
            return ""
        try:
            return current_version(self._root)
        except BundleError as error:
            _log.warning("index.unreadable", error=str(error))
            return ""
