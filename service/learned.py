"""What learning reads of a decision: everything but its candidates."""

from __future__ import annotations

import msgspec


class LearnedSlot(msgspec.Struct, frozen=True):
    """What learning reads of a slot record; the fields mean what they mean there."""

    item_id: str
    propensity: float
    reason: str
    features: dict[str, dict[str, float]]


class LearnedDecision(msgspec.Struct, frozen=True, tag_field="type", tag="decision"):
    """What learning reads of a decision; skipping the candidate list makes decoding several times faster."""

    event_id: str
    decided_at_unix_ms: int
    surface: str
    model: str
    user_id: str | None
    user_key: str
    features: dict[str, dict[str, float]]
    slots: list[LearnedSlot]
    degraded: list[str]


_decoder = msgspec.msgpack.Decoder(LearnedDecision)


def learned_decision(payload: bytes) -> LearnedDecision:
    """Return what learning reads of an encoded decision."""
    return _decoder.decode(payload)
