"""The worker's append-only spool: what must outlive the process before it is in the journal.

One path carries the ordinary case and an outage of the store: append here, ship in batches from a background task,
start the file over once everything in it is shipped. Files of dead workers are drained by the next one that starts.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from service.durable_files import make_folder, sync_folder
from service.errors import StoreUnavailable
from service.failpoints import reach
from service.metrics import Metrics
from service.ports import Claim, Journal, Shipment

_HEADER = struct.Struct("<II")
_MAX_BATCH = 256
_RETRY_S = 0.2

_log = structlog.get_logger("hone.spool")


class SpoolEntry(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One spooled journal entry.

    Attributes:
        payload: The encoded journal entry.
        event_id: Of a decision; empty for an event, which is appended without a claim.
        summary: Encoded summary of a decision.
        ttl_ms: Of a decision's claim.
        partition: Where an event goes.
        origin: Name of the file that it was first written to; empty before that.
        number: Its number in that file, from 1: the journal takes each number once, however late it comes again.
    """

    payload: bytes
    event_id: str = ""
    summary: bytes = b""
    ttl_ms: int = 0
    partition: int = 0
    origin: str = ""
    number: int = 0


# Told of decisions that are in the journal now, for the first time.
OnShipped = Callable[[Sequence[SpoolEntry]], Awaitable[None]]

_decoder = msgspec.msgpack.Decoder(SpoolEntry)
_encoder = msgspec.msgpack.Encoder()


def read_entries(path: Path) -> Iterator[SpoolEntry]:
    """Yield the whole entries of a spool file; a torn last entry was never acknowledged and ends the file."""
    blob = path.read_bytes()
    offset = 0
    while offset + _HEADER.size <= len(blob):
        size, checksum = _HEADER.unpack_from(blob, offset)
        body = blob[offset + _HEADER.size : offset + _HEADER.size + size]
        # No entry is empty: zeros are what a file system leaves of a length without content.
        if not size or len(body) < size or zlib.crc32(body) != checksum:
            return
        yield _decoder.decode(body)
        offset += _HEADER.size + size


@dataclass(slots=True)
class _Waiting:
    entry: SpoolEntry
    done: asyncio.Future[Claim | None] | None


class Spool:
    """Spool file of one worker and the task that ships it.

    Args:
        folder: where spool files are.
        journal: where they go.
        metrics: counts what is shipped, dropped and behind.
        on_shipped: told of decisions once they are in the journal; what it does may be lost in a crash.
    """

    def __init__(
        self, folder: Path, journal: Journal, metrics: Metrics, *, on_shipped: OnShipped | None = None
    ) -> None:
        make_folder(folder, under=folder.parent)
        self._folder = folder
        self._journal = journal
        self._metrics = metrics
        self._on_shipped = on_shipped
        self._queue: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._file = -1
        self._path = folder
        self._written = 0
        self._n_numbered = 0
        # What is on disk of the file is not known: it is written no more, and kept until all that it holds is shipped.
        self._is_spoilt = False
        self._spoilt: list[tuple[int, Path]] = []
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def start(self) -> asyncio.Task[None]:
        """Open a fresh file, take over files of dead workers, start shipping, and return the task that ships."""
        self._open()
        for path in sorted(self._folder.glob("*.spool")):
            if path != self._path:
                self._adopt(path)
        self._task = asyncio.create_task(self._ship_forever(), name="spool")
        return self._task

    async def close(self, timeout_s: float = 5.0) -> None:
        """Ship what is left, for as long as `timeout_s`; the rest stays on disk for the next start."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            done, _ = await asyncio.wait({self._task}, timeout=timeout_s)
            if not done:
                self._task.cancel()
                await asyncio.wait({self._task})
        if not self._queue:
            reach("spool.close")
            # Before the lock goes, so that nobody adopts it meanwhile.
            self._drop_spoilt()
            self._path.unlink()
        for file, _ in self._spoilt:
            os.close(file)
        os.close(self._file)

    def append(self, entry: SpoolEntry) -> None:
        """Write an entry and queue it for shipping.

        Raises:
            OSError: it could not be written; nothing was queued.
        """
        self._push(_Waiting(self._write(entry), None))

    def append_synced(self, entries: Sequence[SpoolEntry]) -> None:
        """Write entries with one fsync and queue them for shipping.

        Raises:
            OSError: not all could be written; none was queued.
        """
        self._open_another_if_spoilt()
        began = self._written
        try:
            written = [self._write(entry) for entry in entries]
            self._sync()
        except OSError:
            self._take_back(began)
            raise
        for entry in written:
            self._push(_Waiting(entry, None))

    def append_and_ship(self, entry: SpoolEntry) -> asyncio.Future[Claim | None]:
        """Write an entry and return a future of its claim; the future waits as long as the store is away.

        Raises:
            OSError: it could not be written; nothing was queued.
        """
        entry = self._write(entry)
        done: asyncio.Future[Claim | None] = asyncio.get_running_loop().create_future()
        self._push(_Waiting(entry, done))
        return done

    @property
    def n_waiting(self) -> int:
        """Return how many entries are not shipped yet."""
        return len(self._queue)

    def _push(self, waiting: _Waiting) -> None:
        self._queue.append(waiting)
        self._metrics.spool_waiting.set(len(self._queue))
        self._wake.set()

    def _write(self, entry: SpoolEntry) -> SpoolEntry:
        """Write an entry and return it as written: numbered, unless another file has numbered it."""
        self._open_another_if_spoilt()
        if not entry.origin:
            self._n_numbered += 1
            entry = msgspec.structs.replace(entry, origin=self._path.stem, number=self._n_numbered)
        body = _encoder.encode(entry)
        record = _HEADER.pack(len(body), zlib.crc32(body)) + body
        try:
            reach("spool.append")
            written = os.write(self._file, record)
            if written != len(record):
                raise OSError(f"spool took {written} of {len(record)} bytes")
            reach("spool.appended")
        except OSError:
            self._take_back(self._written)
            raise
        self._written += written
        return entry

    def _sync(self) -> None:
        try:
            reach("spool.sync")
            os.fsync(self._file)
        except OSError:
            # The kernel may have dropped what it could not write, earlier entries too, and the next sync would say
            # nothing of it.
            self._is_spoilt = True
            raise
        reach("spool.synced")

    def _take_back(self, size: int) -> None:
        """Have nothing of a failed record in the file: torn, it would hide all that follow it."""
        try:
            os.ftruncate(self._file, size)
        except OSError:
            self._is_spoilt = True
        self._written = size

    def _open_another_if_spoilt(self) -> None:
        if self._is_spoilt:
            spoilt = self._file, self._path
            self._open()
            self._spoilt.append(spoilt)

    def _open(self) -> None:
        while True:
            reach("spool.open")
            # The journal knows the name for long: it must never be another file's.
            path = self._folder / f"{os.getpid()}-{os.urandom(16).hex()}.spool"
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
            # The lock tells a file in use from one that a dead worker left.
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink:
                break
            # A worker that starts at the same time took the file for a dead one's before it was locked.
            os.close(file)
        try:
            # What is synced in it is worth nothing under a name that is gone.
            sync_folder(self._folder)
        except OSError:
            os.close(file)
            raise
        self._file, self._path = file, path
        self._written, self._n_numbered, self._is_spoilt = 0, 0, False

    def _adopt(self, path: Path) -> None:
        """Copy the entries of a dead worker's file into ours and remove it."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return  # another worker has adopted it
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return  # its worker lives
            if not os.fstat(file.fileno()).st_nlink:
                return  # another worker has adopted it since it was opened
            reach("spool.adopt")
            entries = [
                # Files of earlier versions have no numbers, and never gave their name to the journal.
                entry if entry.origin else msgspec.structs.replace(entry, origin=path.stem, number=number)
                for number, entry in enumerate(read_entries(path), 1)
            ]
            for entry in entries:
                self._write(entry)
            reach("spool.adopt_sync")
            os.fsync(self._file)
            for entry in entries:
                self._push(_Waiting(entry, None))
            reach("spool.adopt_remove")
            path.unlink()
            self._metrics.spool_adopted.inc(len(entries))
            _log.info("spool.adopted", n_entries=len(entries), file=path.name)

    async def _ship_forever(self) -> None:
        while True:
            if not self._queue:
                self._empty()
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            batch = [self._queue[i] for i in range(min(_MAX_BATCH, len(self._queue)))]
            try:
                claims = await self._ship([waiting.entry for waiting in batch])
            except StoreUnavailable as error:
                self._metrics.spool_retries.inc()
                _log.warning("spool.retry", error=str(error), n_waiting=len(self._queue))
                await asyncio.sleep(_RETRY_S)
                continue
            reach("spool.shipped")
            for waiting, claim in zip(batch, claims, strict=True):
                self._queue.popleft()
                if waiting.done is not None and not waiting.done.done():
                    waiting.done.set_result(claim)
            self._metrics.spool_waiting.set(len(self._queue))
            reach("spool.claimed")
            new = [w.entry for w, claim in zip(batch, claims, strict=True) if claim is not None and claim.is_new]
            if new and self._on_shipped is not None:
                await self._on_shipped(new)

    async def _ship(self, entries: list[SpoolEntry]) -> list[Claim | None]:
        reach("spool.ship")
        return await self._journal.ship(
            [
                Shipment(
                    event_id=entry.event_id,
                    summary=entry.summary,
                    entry=entry.payload,
                    ttl_ms=entry.ttl_ms,
                    partition=entry.partition,
                    origin=entry.origin,
                    number=entry.number,
                )
                for entry in entries
            ]
        )

    def _empty(self) -> None:
        """Everything is shipped: start the file over, so that a crash re-ships next to nothing."""
        try:
            self._drop_spoilt()
            if self._written:
                reach("spool.empty")
                os.ftruncate(self._file, 0)
        except OSError as error:
            # What is shipped stays in the file, and is known for that when it is shipped again.
            self._metrics.spool_retries.inc()
            _log.warning("spool.not_emptied", error=str(error))
            return
        self._written = 0

    def _drop_spoilt(self) -> None:
        while self._spoilt:
            file, path = self._spoilt[-1]
            path.unlink(missing_ok=True)
            os.close(file)
            self._spoilt.pop()
