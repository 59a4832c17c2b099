"""Every change of model, policy or exploration, in the order of the journal: from the archive, then from its rest."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bandit.joining import Position
from service.adapters.archive_files import read_rows, reading
from service.adapters.parquet_archive import archived_position
from service.journal_reader import JournalReader
from service.messages import ConfigChange, Promotion
from service.ports import Journal

_BATCH = 1_000
_TYPES = ("promotion", "config")
_TAGS = tuple(name.encode() for name in _TYPES)

Change = Promotion | ConfigChange
_decoder = msgspec.msgpack.Decoder(Change)


async def read_changes(folder: Path, journal: Journal) -> list[tuple[Position, Change]]:
    """Return every change with its place in the journal, oldest first.

    Args:
        folder: of the archive; what is not archived yet is read from the journal.
        journal: the journal.
    """
    found = dict(_archived(folder))
    after = {p: archived_position(folder, p) for p in range(journal.n_partitions)}
    reader = JournalReader(journal, after)
    while entries := await reader.read(count=_BATCH, block_ms=0):
        for position, payload in entries:
            if any(tag in payload for tag in _TAGS):
                try:
                    found[position] = _decoder.decode(payload)
                except msgspec.MsgspecError:
                    # Another kind of entry that has the word in it.
                    continue
    return sorted(found.items(), key=lambda change: change[0])


def promotions_of(changes: list[tuple[Position, Change]]) -> list[tuple[Position, Promotion]]:
    """Return the promotions among changes."""
    return [(position, change) for position, change in changes if isinstance(change, Promotion)]


def _archived(folder: Path) -> list[tuple[Position, Change]]:
    found = []
    with reading(folder):
        for position, row in read_rows(folder, "control", ["type", "record"]):
            if row["type"] in _TYPES:
                found.append((position, _decoder.decode(row["record"])))
    return found
