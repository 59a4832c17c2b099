"""What happened in one schedule, as plain values: what the checker reads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """Everything that somebody outside could see.

    Attributes:
        streams: Every entry that was ever appended, by stream, with its id.
        answers: (seconds, event id, items, degraded parts) of decisions.
        chosen: Event ids that callers chose.
        acknowledged: The bodies of events that were acknowledged.
        power_lost_s: When the machine of the API workers lost power.
        fenced: Epochs that were taken and writes that were done under one, in the order of the store.
        published: Names and payloads of what a learner wrote, in the order of the store.
        trims: (partition, before, checkpoints of that moment).
        archived: Rows by kind: partition and columns.
        archive_positions: Last archived journal id, by partition.
        checkpoint: The last one, decoded to plain values.
        weights: Of its workspace.
        unexpected: Exceptions that ended a process.
        n_fenced: Writes that were refused.
    """

    streams: dict[str, list[tuple[str, bytes]]] = field(default_factory=dict)
    answers: list[tuple[float, str, list[str], list[str]]] = field(default_factory=list)
    chosen: set[str] = field(default_factory=set)
    acknowledged: list[dict[str, Any]] = field(default_factory=list)
    power_lost_s: list[float] = field(default_factory=list)
    fenced: list[tuple[str, str, str, int]] = field(default_factory=list)
    published: list[tuple[str, bytes]] = field(default_factory=list)
    trims: list[tuple[int, str, dict[str, bytes]]] = field(default_factory=list)
    archived: dict[str, list[tuple[int, dict[str, Any]]]] = field(default_factory=dict)
    archive_positions: dict[int, str] = field(default_factory=dict)
    checkpoint: dict[str, Any] = field(default_factory=dict)
    weights: Any = None
    unexpected: list[str] = field(default_factory=list)
    n_fenced: int = 0

    def digest(self) -> str:
        """Return what two runs of one seed have in common, if they are the same."""
        seen = (self.streams, self.answers, self.acknowledged, self.power_lost_s, self.fenced, self.published)
        return hashlib.sha256(repr((*seen, self.trims, self.archived, self.unexpected)).encode()).hexdigest()
