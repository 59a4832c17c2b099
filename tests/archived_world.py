"""Logs of a known world as an archive on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bandit.joining import Joined
from service.adapters.parquet_archive import ParquetArchive
from service.messages import Decision, Outcome
from service.ports import ArchiveBatch, OpenJoins, OutcomeRow


def write_archive(folder: Path, log: Sequence[Joined[Decision]]) -> None:
    """Archive decisions, each with what became of its slots at once."""
    entries = {}
    rows = []
    for joined in log:
        entry_id = f"{joined.payload.decided_at_unix_ms}-0"
        entries[entry_id] = joined.payload
        rows.append(outcome_row(joined, entry_id=entry_id))
    batch = ArchiveBatch(
        positions={0: list(entries)[-1]}, entries={0: list(entries.items())}, outcomes=rows, joins=OpenJoins()
    )
    ParquetArchive(folder).write(batch)


def outcome_row(joined: Joined[Decision], *, entry_id: str) -> OutcomeRow:
    """Return what became of a slot, as it is archived with its decision."""
    decision, slot = joined.payload, joined.payload.slots[joined.slot]
    outcome = Outcome(
        event_id=joined.event_id,
        slot=joined.slot,
        item_id=slot.item_id,
        reward=joined.reward,
        kind=joined.kind,
        at_unix_ms=joined.at_ms,
        delay_ms=0,
        surface=decision.surface,
        model=decision.model,
        decision_journal_id=entry_id,
        decided_at_unix_ms=decision.decided_at_unix_ms,
        user_key=decision.user_key,
        propensity=slot.propensity,
        branch=slot.branch,
        is_explored=slot.branch != "greedy",
    )
    return OutcomeRow(partition=0, journal_id=entry_id, ordinal=joined.slot, outcome=outcome)
