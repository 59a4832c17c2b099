"""Look at a surface's live rate again and again, until stopped, with one journal of all looks.

What a look goes by is in the archive and in the log of live changes, so that a look after a restart is the look that
would have been. The journal says when the last one was, so that a restart neither looks sooner nor starts to count
anew, and what each look saw. Its lock keeps a second process from changing the same rate: each would spend what errors
are allowed for the same change.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, Self
from urllib.parse import quote

import msgspec

from bandit.exploration import Epsilon
from service.config import Config, ConfigError
from service.config_writer import ConfigWriter
from service.durable_files import make_folder, sync_file
from service.errors import HoneError
from service.inspect_features import archive_folder
from service.retrain_figures import reward_range
from simulators.tune.live import (
    REASON,
    RateChange,
    RateEvidence,
    Terms,
    began_at,
    choose_rate,
    n_changes,
    read_branches,
    settled_until,
    weigh,
)

_VERSION = 1


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """One look, a line of the journal.

    Attributes:
        at_unix_ms: When it began.
        surface: At which.
        word: What it said; `failed` when something was away, and the next look is as good.
        reason: Why.
        terms: Under which.
        rate: Of the decisions that it read; None when it failed.
        set_rate: What it set; None when nothing.
        n_decisions: So many it read.
        greedy: Bounds on the reward of a slot that is filled greedily.
        given_up: Bounds on what the rate gives up of it.
        confidence: With which these and those of every look before the next change hold.
        v: Version of the line.
    """

    at_unix_ms: int
    surface: str
    word: Literal["raise", "lower", "keep", "cannot tell", "failed"]
    reason: str
    terms: Terms
    rate: float | None = None
    set_rate: float | None = None
    n_decisions: int = 0
    greedy: tuple[float, float] | None = None
    given_up: tuple[float, float] | None = None
    confidence: float | None = None
    v: int = _VERSION


class LookJournal:
    """The looks at one surface, a JSON line each, on disk before the next wait; open in one process at a time.

    Args:
        path: of the file; made when missing.
        under: a folder above it that is there.

    Raises:
        ValueError: another process has it open, or its last line is no look of a known version.
    """

    def __init__(self, path: Path, *, under: Path) -> None:
        make_folder(path.parent, under=under)
        self._file = path.open("a+b")
        try:
            self._lock(path)
            self._file.seek(0)
            written = self._file.read()
            # A line that a crash cut short was never acted on again.
            whole = written.rfind(b"\n") + 1
            self._file.truncate(whole)
            self.last_at_ms = _time_of(written[:whole].splitlines()[-1], path) if whole else None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        """Return the journal."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; another process may have it."""
        self._file.close()

    def append(self, look: Look) -> None:
        """Write a look and have it on disk."""
        self._file.write(msgspec.json.encode(look) + b"\n")
        sync_file(self._file)
        self.last_at_ms = look.at_unix_ms

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process looks at this surface's rate: it holds {path}") from error


class StopSignal:
    """Waits for SIGINT or SIGTERM, from the main thread; what runs when one comes goes on to its end."""

    def __enter__(self) -> Self:
        """Take the signals."""
        # A handler may not wait for a lock that the code under it holds, as those of `threading` do; a pipe has none.
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def wait(self, seconds: float) -> bool:
        """Wait, and return at once, with True, when one of the signals has come."""
        return bool(select.select([self._read], [], [], seconds)[0])

    def _stop(self, number: int, frame: FrameType | None) -> None:
        os.write(self._write, b"!")


def journal_path(config: Config, surface: str) -> Path:
    """Return where the looks at a surface are."""
    return config.data_path / "tune" / f"live-{quote(surface, safe='')}.ndjson"


async def look(
    writer: ConfigWriter, config: Config, surface: str, terms: Terms, *, author: str
) -> tuple[RateEvidence, RateChange, float]:
    """Look once, set the rate when the log says so, and return what was seen, what was done, and the confidence.

    Raises:
        ValueError: the surface does not explore by epsilon, or at a rate that shows nothing.
        StoreUnavailable: the live configuration cannot be read or written.
    """
    history = await writer.history()
    now = (await writer.effective()).current.config.surfaces[surface]
    if not isinstance(now.exploration, Epsilon):
        raise ValueError(f"surface {surface!r} must explore by epsilon for its rate to be set, got {now.exploration}")
    rate, folder = now.exploration.rate, archive_folder(config)
    until_ms = settled_until(folder, n_partitions=config.store.partitions, surface=now)
    slots = read_branches(folder, surface, rate=rate, from_ms=began_at(history, surface), until_ms=until_ms)
    confidence = terms.of_change(n_changes(history, surface))
    found = weigh(slots, rate=rate, rewards_in=reward_range([now]), confidence=confidence)
    change = choose_rate(found, terms)
    if change.changes:
        key = f"surfaces.{surface}.exploration.rate"
        await writer.put(key, change.rate, author=author, reason=f"{REASON}: {change.reason}")
    return found, change, confidence


def seen(found: RateEvidence, change: RateChange, *, surface: str, terms: Terms, confidence: float, at_ms: int) -> Look:
    """Return a look that was taken."""
    return Look(
        at_unix_ms=at_ms,
        surface=surface,
        word=change.word,
        reason=change.reason,
        terms=terms,
        rate=found.rate,
        set_rate=change.rate if change.changes else None,
        n_decisions=found.n,
        greedy=(found.greedy.lower, found.greedy.upper),
        given_up=(found.given_up.lower, found.given_up.upper),
        confidence=confidence,
    )


def watch(
    take: Callable[[int], Look],
    journal: LookJournal,
    *,
    surface: str,
    terms: Terms,
    every_s: float,
    clock: Callable[[], int],
    wait: Callable[[float], bool],
    tell: Callable[[Look], None],
) -> None:
    """Look every so often until stopped; a look that was missed, or took too long, is taken once.

    Args:
        take: Looks once, as of unix milliseconds.
        journal: Of the looks so far; the first is due when the last one was so long ago.
        surface: Which one.
        terms: Under which.
        every_s: From one look's beginning to the next one's, in seconds.
        clock: Unix milliseconds.
        wait: Waits for so many seconds; True when it is time to stop.
        tell: Told of every look.

    Raises:
        OSError: the journal cannot be written; without it there is no watch.
    """
    every_ms = round(1000.0 * every_s)
    now_ms = clock()
    # A clock that was put back is no reason to wait for longer than from one look to the next.
    due_ms = now_ms if journal.last_at_ms is None else min(journal.last_at_ms, now_ms) + every_ms
    while not wait(max(0, due_ms - clock()) / 1000.0):
        at_ms = clock()
        try:
            taken = take(at_ms)
        except (HoneError, ConfigError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            taken = Look(at_unix_ms=at_ms, surface=surface, word="failed", reason=reason, terms=terms)
        journal.append(taken)
        tell(taken)
        due_ms = at_ms + every_ms


class _Line(msgspec.Struct):
    at_unix_ms: int
    v: int


def _time_of(line: bytes, path: Path) -> int:
    try:
        last = msgspec.json.decode(line, type=_Line)
    except msgspec.MsgspecError as error:
        raise ValueError(f"the last line of {path} is no look: {error}") from error
    if last.v > _VERSION:
        raise ValueError(f"the last line of {path} must be of version 1 to {_VERSION}, got {last.v}")
    return last.at_unix_ms
