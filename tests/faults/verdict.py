"""What must hold after any fault, read from outside: the ledger, the journal's tape, the checkpoint, the files."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from bandit.learner import Learner
from service.adapters.archive_files import files_of, reading
from service.adapters.parquet_archive import archived_position
from service.bootstrap import load_salt
from service.config import Config
from service.errors import StoreUnavailable
from service.journal_reader import START, entry_order
from service.messages import Checkpoint, Decision, Event
from service.numerics import keyed_digest
from tests.faults.load import Load
from tests.faults.tape import Tape, Undisturbed, load_artefacts, load_checkpoint, weights_of
from tests.stack import eventually

SETTLE_S = 60.0
SHIP_S = 10.0
# Every event that the learner has applied is in exactly one of these, or waits for its decision.
_FATES = (
    "event_unattributed",
    "event_not_a_reward",
    "event_not_in_slate",
    "event_not_learnable",
    "event_duplicate",
    "event_unknown_decision",
    "reward_late",
    "reward_joined",
)


class Verdict:
    """Judges one site again and again as its journal grows."""

    def __init__(self, config: Config, url: str, tape: Tape) -> None:
        self._config = config
        self._url = url
        self._tape = tape
        self._undisturbed = Undisturbed(config, tape)
        self._ignored = set[str]()

    def ignore_user(self, user_id: str) -> None:
        """Leave out what is archived of a user who is erased."""
        self._ignored.add(keyed_digest(user_id, salt=load_salt(self._config)))

    @property
    def archive(self) -> Path:
        return self._config.data_path / "archive"

    def wait_settled(self) -> None:
        """Wait until the last decision or event of the tape is checkpointed and archived, and the tape is still."""
        eventually(self._is_settled, timeout_s=SETTLE_S, what="everything is checkpointed and archived")

    def assert_sound(self, *loads: Load) -> None:
        """Compare what was acknowledged, journalled, archived and learned, once everything is at rest."""
        # What waits in a spool is shipped a moment later; what never comes is lost, and named below.
        with suppress(AssertionError):
            eventually(lambda: self._has_come(loads), timeout_s=SHIP_S)
        self.wait_settled()
        self._tape.assert_complete()
        self.assert_archived(*loads)
        self.assert_learned()

    def assert_archived(self, *loads: Load) -> None:
        entries = self._tape.decoded()
        # Archiving goes on: only what the state file covers is compared.
        position = self.archived()
        since_ms = _since_ms()
        covered = [
            (i, e) for i, e in entries if since_ms <= entry_order(i)[0] and entry_order(i) <= entry_order(position)
        ]
        covered = [(i, e) for i, e in covered if getattr(e, "user_key", None) not in self._ignored]
        decisions = Counter((i, e.event_id) for i, e in covered if isinstance(e, Decision))
        events = Counter((i, e.client_id) for i, e in covered if isinstance(e, Event))
        assert self._rows("decisions", "journal_id, event_id", position) == decisions, "archived = journalled"
        assert self._rows("events", "journal_id, client_id", position) == events, "archived = journalled"
        by_id = Counter(event_id for _, event_id in decisions)
        assert max(by_id.values(), default=1) == 1, "a decision is journalled once"
        for load in loads:
            assert load.decisions <= by_id.keys(), f"lost decisions: {load.decisions - by_id.keys()}"
            archived = {client_id for _, client_id in events}
            assert load.events <= archived, f"lost events: {load.events - archived}"
        self._undisturbed.join_all(position)
        names = "journal_id, ordinal, event_id, slot, item_id, reward, kind, user_key"
        outcomes = {key: n for key, n in self._undisturbed.outcomes.items() if key[-1] not in self._ignored}
        assert self._rows("outcomes", names, position) == outcomes, "each outcome is archived once"

    def assert_learned(self) -> None:
        """Compare the checkpoint, bit for bit, with what an undisturbed learner makes of the same entries."""
        checkpoint = self.checkpoint()
        self._undisturbed.learn_up_to(checkpoint.positions["0"], asyncio.run(load_artefacts(self._url)))
        learner = self._undisturbed.loop._learner
        assert dict(self._undisturbed.loop.counters) == checkpoint.counters
        assert learner.n_learned == checkpoint.n_learned
        disturbed = Learner(self._config.model_spec("films"), checkpoint.workspace)
        np.testing.assert_array_equal(weights_of(disturbed), weights_of(learner))
        assert np.count_nonzero(weights_of(learner)) > 0
        last = entry_order(checkpoint.positions["0"])
        n_events = sum(isinstance(e, Event) and entry_order(i) <= last for i, e in self._tape.decoded())
        n_waiting = len((checkpoint.waiting or {}).get("0", []))
        fates = {fate: checkpoint.counters.get(fate, 0) for fate in _FATES}
        assert sum(fates.values()) + n_waiting == n_events, f"an event has no fate, or two: {fates}, {n_waiting} wait"

    def checkpoint(self) -> Checkpoint:
        checkpoint = asyncio.run(load_checkpoint(self._url))
        assert checkpoint is not None, "there is no checkpoint"
        return checkpoint

    def _has_come(self, loads: Sequence[Load]) -> bool:
        entries = [entry for _, entry in self._tape.decoded()]
        decisions = {entry.event_id for entry in entries if isinstance(entry, Decision)}
        events = {entry.client_id for entry in entries if isinstance(entry, Event)}
        return all(load.decisions <= decisions and load.events <= events for load in loads)

    def _is_settled(self) -> bool:
        newest = max(
            (entry_order(i) for i, e in self._tape.decoded() if isinstance(e, Decision | Event)), default=(0, 0)
        )
        try:
            checkpoint = asyncio.run(load_checkpoint(self._url))
        except StoreUnavailable:
            # It reads its files; until then events are acknowledged from the spool.
            return False
        learned = START if checkpoint is None else checkpoint.positions.get("0", START)
        return entry_order(learned) >= newest and entry_order(self.archived()) >= newest

    def archived(self) -> str:
        return archived_position(self.archive, 0)

    def _rows(self, kind: str, columns: str, position: str) -> Counter[tuple[Any, ...]]:
        with reading(self.archive):
            files = [str(file.path) for file in files_of(self.archive, kind)]
            if not files:
                return Counter()
            rows = duckdb.read_parquet(files).filter(self._wanted()).select(columns).fetchall()
        since_ms = _since_ms()
        return Counter(
            r for r in rows if since_ms <= entry_order(r[0])[0] and entry_order(r[0]) <= entry_order(position)
        )

    def _wanted(self) -> str:
        return " and ".join([f"user_key <> '{key}'" for key in self._ignored]) or "true"


def _since_ms() -> int:
    """Return the journal time from which rows are compared: what is older than a day may have expired."""
    return time.time_ns() // 1_000_000 - 86_400_000
