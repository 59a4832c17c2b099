"""Read a live store's journal and streams whole, to audit it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.adapters.archive_files import read_rows, reading
from service.adapters.redis_store import RedisChangeLog, RedisJournal, RedisUserStates, connect
from service.audit import audit_decision
from service.audit_statistics import AuditStatistics
from service.change_reader import read_stream
from service.config import Config
from service.items_view import ITEMS_STREAM
from service.journal_reader import JournalReader
from service.messages import Decision, JournalEntry, UserProfile, item_change_decoder, journal_decoder
from service.numerics import numerics_fingerprint
from service.skew import SkewChecker

_BATCH = 1_000
_TIMEOUT_S = 30.0
_SHOWN = 20


@dataclass(slots=True)
class Findings:
    """What was checked and what does not hold.

    Attributes:
        checked: Decisions.
        mismatches: How many numbers or features differ.
        examples: The first of them.
    """

    checked: int = 0
    mismatches: int = 0
    examples: list[Any] = field(default_factory=list)

    def add(self, found: list[Any]) -> None:
        """Count what one decision brought."""
        self.checked += 1
        self.mismatches += len(found)
        self.examples += found[: _SHOWN - len(self.examples)]


@dataclass(slots=True)
class AuditFindings(Findings):
    """Exact mismatches, and the statistical tests.

    Attributes:
        statistics: Tests of what recomputation cannot see.
        erased: Decisions that are missing because they were erased with their users.
    """

    statistics: AuditStatistics = field(default_factory=lambda: AuditStatistics(seed=0))
    erased: int = 0

    @property
    def is_clean(self) -> bool:
        """Return whether nothing differs and no test rejects."""
        return self.mismatches == 0 and not self.statistics.alarms

    def audit(self, decisions: Iterable[Decision]) -> None:
        """Audit decisions, one after the other."""
        here = numerics_fingerprint()
        for decision in decisions:
            tolerance = 0.0 if decision.versions.numerics == here else 1e-12
            self.add(audit_decision(decision, tolerance=tolerance))
            self.statistics.add(decision)

    def summary(self) -> dict[str, Any]:
        """Return the figures."""
        return {
            "checked": self.checked,
            "mismatches": self.mismatches,
            "erased": self.erased,
            "examples": self.examples,
            "statistics": self.statistics.summary(),
            "clean": self.is_clean,
        }


def read_archive(folder: Path) -> Iterator[Decision]:
    """Yield the archived decisions in the order of the journal, a few at a time."""
    with reading(folder):
        for _, row in read_rows(folder, "decisions", ["record"]):
            decision = journal_decoder.decode(row["record"])
            assert isinstance(decision, Decision)
            yield decision


async def read_journal(config: Config, url: str) -> AsyncIterator[JournalEntry]:
    """Yield every entry of the journal in merged order."""
    client = connect(url, timeout_s=_TIMEOUT_S)
    try:
        reader = JournalReader(RedisJournal(client, n_partitions=config.store.partitions), {})
        while entries := await reader.read(count=_BATCH, block_ms=0):
            for _, payload in entries:
                yield journal_decoder.decode(payload)
    finally:
        await client.aclose()


async def audit_journal(config: Config, url: str) -> AuditFindings:
    """Audit every decision of the journal."""
    findings = AuditFindings()
    async for entry in read_journal(config, url):
        if isinstance(entry, Decision):
            findings.audit([entry])
    return findings


async def check_skew(config: Config, url: str) -> Findings:
    """Recompute the features of every decision of the journal."""
    client = connect(url, timeout_s=_TIMEOUT_S)
    try:
        decisions = [entry async for entry in read_journal(config, url)]
        users = RedisUserStates(client, config.store)
        ids = {entry.user_id for entry in decisions if isinstance(entry, Decision) and entry.user_id}
        profiles: dict[str, UserProfile] = {user_id: (await users.fetch(user_id)).profile for user_id in sorted(ids)}
        checker = SkewChecker(config, profiles)
        async for change in read_stream(RedisChangeLog(client), ITEMS_STREAM):
            checker.add_item_change(change.entry_id, item_change_decoder.decode(change.payload))
    finally:
        await client.aclose()
    for entry in decisions:
        checker.add(entry)
    return Findings(checked=checker.n_checked, mismatches=len(checker.mismatches), examples=checker.mismatches[:_SHOWN])
