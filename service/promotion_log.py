"""Every change of model, policy or exploration, in the order of the journal: from the archive, then from its rest."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow.parquet as pq

from bandit.joining import Position
from service.adapters.parquet_archive import archived_position
from service.journal_reader import JournalReader, position_of
from service.messages import ConfigChange, Promotion
from service.ports import Journal

_BATCH = 1_000
_TAGS = (b"promotion", b"config")

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
    for path in sorted((folder / "control").rglob("*.parquet")):
        partition = int(path.stem.split("-")[0][1:])
        table = pq.read_table(path, columns=["journal_id", "record"], partitioning=None)
        for journal_id, record in zip(table["journal_id"].to_pylist(), table["record"].to_pylist(), strict=True):
            found.append((position_of(partition, journal_id), _decoder.decode(record)))
    return found
