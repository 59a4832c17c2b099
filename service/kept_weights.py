"""The weights of a published version, as far as the store still keeps what they were made of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from bandit.policy import ModelSpec, WeightTable
from service.messages import ModelSnapshot, WeightDelta
from service.ports import ChangeLog, ModelStore

# A delta may hold hundreds of kilobytes.
_BATCH = 50

_delta_decoder = msgspec.msgpack.Decoder(WeightDelta)
_snapshot_decoder = msgspec.msgpack.Decoder(ModelSnapshot)


@dataclass(frozen=True, slots=True)
class NoWeights:
    """Why the weights of a model cannot be read."""

    reason: str


async def fetch_table(
    models: ModelStore, log: ChangeLog, *, model: str, spec: ModelSpec, version: int
) -> WeightTable | NoWeights:
    """Return the table as it was at a version: the newest snapshot up to it, and the deltas from there to it.

    The table's `version` is another one when the store no longer keeps what the wanted one was made of: that of the
    oldest snapshot when it is past the wanted one, the last before a gap when deltas are missing. Messages are decoded
    and applied in a thread.
    """
    table = WeightTable(spec)
    if version == 0:
        # What workers serve before the first snapshot.
        return table
    snapshot = None
    # The present one first: if the learner publishes in between, the other read brings what was present before.
    for load in (models.load_snapshot, models.load_earlier_snapshot):
        stored = await load(model)
        if stored is None:
            break
        snapshot = await asyncio.to_thread(_snapshot_decoder.decode, stored)
        if snapshot.version <= version:
            break
    if snapshot is None:
        return NoWeights(f"the store has no snapshot of model {model!r}")
    if (snapshot.bits, snapshot.schema_version) != (spec.bits, spec.schema_version):
        return NoWeights(
            f"model {model!r} is kept with {snapshot.bits} bits of feature schema {snapshot.schema_version}, "
            f"the configuration declares {spec.bits} bits of {spec.schema_version}"
        )
    await asyncio.to_thread(_apply, table, snapshot)
    stream, after = models.weights_stream(model), snapshot.stream_id
    while table.version < version:
        entries = await log.read({stream: after}, count=_BATCH, block_ms=0)
        if not entries or not await asyncio.to_thread(_advance, table, [e.payload for e in entries], to=version):
            break
        after = entries[-1].entry_id
    return table


def _advance(table: WeightTable, payloads: Sequence[bytes], *, to: int) -> bool:
    """Apply deltas in their order, none past a version; False when one is past it or begins past the table's."""
    for payload in payloads:
        delta = _delta_decoder.decode(payload)
        if delta.version > to or delta.base_version > table.version:
            return False
        _apply(table, delta)
    return True


def _apply(table: WeightTable, message: ModelSnapshot | WeightDelta) -> None:
    indices = np.frombuffer(message.indices, dtype="<u4")
    values = np.frombuffer(message.values, dtype="<f4")
    table.apply(indices, values, version=max(table.version, message.version))
