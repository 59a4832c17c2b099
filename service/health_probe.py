"""Build the frozen probe set from the archive, and read it back for `bandit.health_probe`."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from bandit.dynamic import CategoryColumn, Column, encode_dynamic
from bandit.features import FeatureSchema
from bandit.health_probe import ProbeContext, ProbeSet
from bandit.policy import ActionFeatures
from bandit.vw_format import Encoded, encode
from retrieval.items import Item
from service.change_reader import read_stream
from service.decision_record import unpack_actions
from service.feature_records import item_record
from service.items_view import ITEMS_STREAM
from service.messages import Decision, HashedFeatures, ItemUpsert, ProbedContext, ProbeFile, item_change_decoder
from service.ports import ChangeLog

N_CONTEXTS = 1_000
# Of each context's candidates: enough for a slate and what it competes with.
_N_ACTIONS = 50
_BATCH = 1_000
_PERSON = b"hone probe"


def probe_path(data_path: Path) -> Path:
    """Return where the probe set is."""
    return data_path / "health" / "probe.msgpack"


def sample_decisions(decisions: Iterable[Decision], *, n: int = N_CONTEXTS) -> list[Decision]:
    """Return the `n` decisions whose ids hash lowest: the same for the same log, in whatever order it is read."""
    return heapq.nsmallest(n, decisions, key=lambda decision: _rank(decision.event_id))


async def fetch_items(log: ChangeLog, decisions: Iterable[Decision]) -> dict[str, Item]:
    """Return the candidates of decisions that are in the catalogue now, by id."""
    wanted = {item_id for decision in decisions for item_id in decision.candidates.ids}
    items: dict[str, Item] = {}
    async for entry in read_stream(log, ITEMS_STREAM):
        change = item_change_decoder.decode(entry.payload)
        if isinstance(change, ItemUpsert):
            if change.item.id in wanted:
                items[change.item.id] = change.item
        else:
            items.pop(change.item_id, None)
    return items


def build_probe(
    decisions: Iterable[Decision], items: Mapping[str, Item], *, schema: FeatureSchema, genre: str
) -> ProbeFile:
    """Return the probe set of sampled decisions.

    Args:
        decisions: as logged.
        items: of the catalogue now; candidates that are gone, or that a caller described, are left out.
        schema: feature schema; decisions of another one are left out, their features are not known.
        genre: name of the item feature whose values are genres.

    Raises:
        ValueError: no decision can be used.
    """
    contexts = [
        context
        for decision in decisions
        if decision.versions.schema == schema.version
        and (context := _build_context(decision, items, schema, genre)) is not None
    ]
    if not contexts:
        raise ValueError("no decision of the archive has candidates of the present catalogue and feature schema")
    return ProbeFile(schema_version=schema.version, contexts=contexts)


def read_probe(path: Path) -> ProbeSet:
    """Return the probe set of a file.

    Raises:
        OSError: there is none.
        ValueError: it is damaged.
    """
    try:
        stored = msgspec.msgpack.decode(path.read_bytes(), type=ProbeFile)
        return ProbeSet(stored.schema_version, [_probe_context(context) for context in stored.contexts])
    except (msgspec.MsgspecError, ValueError) as error:
        raise ValueError(f"the probe set {path} is damaged: {error}") from error


def _build_context(
    decision: Decision, items: Mapping[str, Item], schema: FeatureSchema, genre: str
) -> ProbedContext | None:
    actions = unpack_actions(decision.candidates)
    known = [position for position, item_id in enumerate(actions.ids) if item_id in items]
    # A sample that no model had a hand in.
    chosen = sorted(known, key=lambda position: _rank(f"{decision.event_id}/{actions.ids[position]}"))[:_N_ACTIONS]
    if not chosen:
        return None
    rows = np.array(sorted(chosen), dtype=np.int64)
    named = [schema.named("item", item_record(items[actions.ids[row]])) for row in rows.tolist()]
    sources = np.frombuffer(decision.candidates.sources, dtype=np.uint8)[rows]
    dynamic: dict[str, Column] = {
        **{name: actions.columns[name][rows] for name in schema.sources("dynamic") if name in actions.columns},
        "source": CategoryColumn(codes=sources, names=decision.candidates.source_names),
    }
    features = {
        "item": ActionFeatures.stack([encode("item", of_item) for of_item in named]),
        "dynamic": encode_dynamic(schema, dynamic, len(rows)),
    }
    shared = {name: encode(name, of_shared) for name, of_shared in decision.features.items()}
    prefix = f"{genre}="
    return ProbedContext(
        event_id=decision.event_id,
        shared={name: _pack(encoded.indices, encoded.values) for name, encoded in shared.items()},
        actions={name: _pack(table.indices, table.values) for name, table in features.items()},
        genres=[[n.removeprefix(prefix) for n in of_item if n.startswith(prefix)] for of_item in named],
    )


def _probe_context(stored: ProbedContext) -> ProbeContext:
    n = len(stored.genres)
    shared = {name: Encoded((), *_unpack(packed)) for name, packed in stored.shared.items()}
    actions = {}
    for name, packed in stored.actions.items():
        indices, values = _unpack(packed)
        actions[name] = ActionFeatures(indices=indices.reshape(n, -1), values=values.reshape(n, -1))
    return ProbeContext(shared=shared, actions=actions, genres=stored.genres)


def _pack(indices: npt.NDArray[np.uint32], values: npt.NDArray[np.float32]) -> HashedFeatures:
    return HashedFeatures(indices=indices.astype("<u4").tobytes(), values=values.astype("<f4").tobytes())


def _unpack(packed: HashedFeatures) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
    indices = np.frombuffer(packed.indices, dtype="<u4").astype(np.uint32, copy=False)
    return indices, np.frombuffer(packed.values, dtype="<f4").astype(np.float32, copy=False)


def _rank(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8, person=_PERSON).digest(), "little")
