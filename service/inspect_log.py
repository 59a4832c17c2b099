"""Read a live store's journal and streams whole, to audit it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from service.adapters.redis_store import RedisChangeLog, RedisJournal, RedisUserStates, connect
from service.audit import audit_decision
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


async def audit_journal(config: Config, url: str) -> Findings:
    """Audit every decision of the journal."""
    findings = Findings()
    here = numerics_fingerprint()
    async for entry in read_journal(config, url):
        if isinstance(entry, Decision):
            tolerance = 0.0 if entry.versions.numerics == here else 1e-12
            findings.add(audit_decision(entry, tolerance=tolerance))
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
        after = "0-0"
        log = RedisChangeLog(client)
        while changes := await log.read({ITEMS_STREAM: after}, count=_BATCH, block_ms=0):
            for change in changes:
                checker.add_item_change(change.entry_id, item_change_decoder.decode(change.payload))
            after = changes[-1].entry_id
    finally:
        await client.aclose()
    for entry in decisions:
        checker.add(entry)
    return Findings(checked=checker.n_checked, mismatches=len(checker.mismatches), examples=checker.mismatches[:_SHOWN])
