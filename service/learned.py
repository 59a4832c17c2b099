"""What learning reads of a decision: everything but its candidates, features hashed as they are learned."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import msgspec

from bandit.vw_format import Encoded
from bandit.vw_format import encode as encode_features


class LearnedSlot(msgspec.Struct, frozen=True, gc=False):
    """What learning reads of a slot record; the fields mean what they mean there, features are still encoded."""

    item_id: str
    propensity: float
    reason: str
    features: dict[str, msgspec.Raw]


class LearnedDecision(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="decision"):
    """What learning reads of a decision; skipping the candidate list makes decoding several times faster."""

    event_id: str
    decided_at_unix_ms: int
    surface: str
    model: str
    user_id: str | None
    user_key: str
    features: dict[str, msgspec.Raw]
    slots: list[LearnedSlot]
    degraded: list[str]


# Very many are held at a time, so nothing in one is a list: tuples of plain values cost no garbage collection.
class Learnable(msgspec.Struct, frozen=True, gc=False):
    """What is held of a decision until it is learned; nothing of it keeps the entry's bytes alive.

    Attributes:
        user_id: None for anonymous.
        item_ids: The slate.
        propensities: One a slot.
        shared: Shared features as served, by namespace.
        actions: Features of each slot's item as served, by namespace.
    """

    user_id: str | None
    item_ids: tuple[str, ...]
    propensities: tuple[float, ...]
    shared: dict[str, Encoded]
    actions: tuple[dict[str, Encoded], ...]

    @classmethod
    def of(cls, decision: LearnedDecision) -> Learnable:
        """Return what is held of a decision.

        Raises:
            ValueError: its features are not what features are.
        """
        return cls(
            user_id=decision.user_id,
            item_ids=tuple([slot.item_id for slot in decision.slots]),
            propensities=tuple([slot.propensity for slot in decision.slots]),
            shared=_hashed_namespaces(decision.features),
            actions=tuple([_hashed_namespaces(slot.features) for slot in decision.slots]),
        )


_decoder = msgspec.msgpack.Decoder(LearnedDecision)
_features_decoder = msgspec.msgpack.Decoder(dict[str, float])


def learned_decision(payload: bytes) -> LearnedDecision:
    """Return what learning reads of an encoded decision."""
    return _decoder.decode(payload)


def named_features(packed: msgspec.Raw | bytes) -> dict[str, float]:
    """Return the features of one namespace by name."""
    return _features_decoder.decode(packed)


def _hashed_namespaces(packed: Mapping[str, msgspec.Raw]) -> dict[str, Encoded]:
    return {namespace: _hashed(namespace, bytes(features)) for namespace, features in packed.items()}


@lru_cache(maxsize=32_768)
def _hashed(namespace: str, packed: bytes) -> Encoded:
    """Return one namespace's features hashed. The same items, contexts and users come again and again."""
    encoded = encode_features(namespace, named_features(packed))
    return Encoded(names=(), indices=encoded.indices, values=encoded.values)
