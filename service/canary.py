"""A model on trial: what the users of a canary earned, and the watch that gives them back when that is worse."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from service.adapters.archive_files import read_rows, reading
from service.adapters.parquet_archive import archived_position
from service.config import Canary, Config
from service.config_writer import ConfigWriter
from service.due import is_due
from service.journal_reader import entry_order
from service.messages import ConfigOverride, ModelSnapshot
from service.ports import ModelStore
from service.promote_evidence import Bounds, RewardedSlot, canary_difference, shared_confidence
from service.retrain_figures import reward_range

# Workers follow a change within a second; before that, who gets which model is not drawn at the canary's share.
_FOLLOWED_MS = 5_000
_COLUMNS = ["event_id", "surface", "model", "user_key", "reward", "kind", "decided_at_unix_ms"]
_AUTHOR = "hone"

_snapshot_decoder = msgspec.msgpack.Decoder(ModelSnapshot)
_log = structlog.get_logger("hone.canary")


@dataclass(frozen=True, slots=True)
class RunningCanary:
    """A canary that was set live.

    Attributes:
        surface: Whose users it has.
        canary: As it is set.
        began_ms: Since when it is set like this.
    """

    surface: str
    canary: Canary
    began_ms: int


class Canaries:
    """The canaries of one installation.

    Args:
        config: what is declared.
        folder: of the archive.
        models: the store of models.
        writer: reads what is set live, and takes a canary away.
    """

    def __init__(self, config: Config, *, folder: Path, models: ModelStore, writer: ConfigWriter) -> None:
        self._config = config
        self._folder = folder
        self._models = models
        self._writer = writer

    async def running(self) -> list[RunningCanary]:
        """Return the canaries that were set live; one that the file declares has no beginning and is not judged."""
        history = await self._writer.history()
        surfaces = (await self._writer.effective()).current.config.surfaces
        found = []
        for name, surface in surfaces.items():
            began_ms = began_at(history, name)
            if surface.canary is not None and began_ms is not None:
                found.append(RunningCanary(name, surface.canary, began_ms))
        return found

    async def of(self, artefact: str) -> RunningCanary | None:
        """Return the canary that tries an artefact, None when none does."""
        return next((one for one in await self.running() if one.canary.artefact == artefact), None)

    async def difference(self, running: RunningCanary) -> Bounds:
        """Return mean reward under the canary minus that of the surface's own model, off the archive as it is now."""
        surface = self._config.surfaces[running.surface]
        partitions = range(self._config.store.partitions)
        archived_ms = min(entry_order(archived_position(self._folder, p))[0] for p in partitions)
        models = {surface.model, running.canary.model}
        from_ms = running.began_ms + _FOLLOWED_MS

        def compare() -> Bounds:
            return canary_difference(
                read_rewards(self._folder, running.surface, models, from_ms=from_ms),
                canary=running.canary,
                until_ms=archived_ms - int(surface.reward.negative_window_s * 1000),
                rewards_in=reward_range([surface]),
                confidence=shared_confidence(running.canary.confidence),
            )

        return await asyncio.to_thread(compare)

    async def end(self, running: RunningCanary, *, author: str, reason: str) -> bool:
        """Give all users back to the surface's own model; False when the canary is no longer the same."""
        if running not in await self.running():
            return False
        await self._writer.put(canary_key(running.surface), None, author=author, reason=reason)
        return True

    async def is_its_artefact_live(self, running: RunningCanary) -> bool:
        """Return whether the model on trial still goes on from the artefact that it is tried for, if from any."""
        if not running.canary.artefact:
            return True
        stored = await self._models.load_snapshot(running.canary.model)
        return stored is not None and _snapshot_decoder.decode(stored).artefact == running.canary.artefact


class CanaryWatch:
    """Ends canaries that are worse than what they would replace.

    Args:
        canaries: of the installation.
        clock: unix milliseconds.
        every_ms: how often it looks.
    """

    def __init__(self, canaries: Canaries, *, clock: Callable[[], int], every_ms: int = 60_000) -> None:
        self._canaries = canaries
        self._clock = clock
        self._every_ms = every_ms
        self._looked_at_ms = 0

    async def step(self) -> None:
        """Look, when it is time.

        Raises:
            StoreUnavailable: the next look is tried when it is time.
            OSError: the archive could not be read; as above.
        """
        now_ms = self._clock()
        if not is_due(now_ms, since_ms=self._looked_at_ms, every_ms=self._every_ms):
            return
        self._looked_at_ms = now_ms
        for running in await self._canaries.running():
            await self._judge(running)

    async def _judge(self, running: RunningCanary) -> None:
        if not await self._canaries.is_its_artefact_live(running):
            reason = f"{running.canary.model} no longer goes on from {running.canary.artefact}"
        else:
            bounds = await self._canaries.difference(running)
            _log.info("canary.looked", surface=running.surface, model=running.canary.model, difference=str(bounds))
            if not bounds.is_worse:
                return
            reason = f"canary is worse: {bounds}"
        if await self._canaries.end(running, author=_AUTHOR, reason=reason):
            _log.warning("canary.ended", surface=running.surface, model=running.canary.model, reason=reason)


def canary_key(surface: str) -> str:
    """Return the live key of a surface's canary."""
    return f"surfaces.{surface}.canary"


def began_at(history: list[ConfigOverride], surface: str) -> int | None:
    """Return when a surface's canary, or a part of it, was last set; None when what is left is the file's."""
    key, began_ms = canary_key(surface), None
    inside = f"{key}."
    laid_over: set[str] = set()
    for override in history:
        if override.key != key and not override.key.startswith(inside):
            continue
        laid_over = {k for k in laid_over if k != override.key and not k.startswith(f"{override.key}.")}
        if override.value is not None:
            laid_over.add(override.key)
        began_ms = override.at_unix_ms if laid_over else None
    return began_ms


def read_rewards(folder: Path, surface: str, models: Collection[str], *, from_ms: int) -> Iterator[RewardedSlot]:
    """Yield what the drawn slots of a surface earned under some models, decided from a time on."""
    with reading(folder):
        for _, row in read_rows(folder, "outcomes", _COLUMNS, from_ms=from_ms):
            if row["surface"] != surface or row["model"] not in models or row["kind"] == "late":
                continue
            if row["decided_at_unix_ms"] >= from_ms:
                who = row["user_key"] or row["event_id"]
                yield RewardedSlot(row["decided_at_unix_ms"], who, row["model"], row["reward"])
