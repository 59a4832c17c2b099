"""Replay an archive: decisions and outcomes in the order of the journal, a policy that may learn between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bandit.columns import Float64Array, Int64Array
from bandit.explorer import Explorer, action_features
from bandit.learner import Learner
from bandit.policy import ActionFeatures, WeightTable
from bandit.slate import ExplorerPmf
from service.adapters.archive_files import read_rows, reading
from service.export import ExportReport, read_joined
from service.joins import PLACED
from service.journal_reader import entry_id_of
from service.messages import Decision
from service.retrain_scoring import CandidateFeatures
from service.retrain_training import encode_all
from simulators.counterfactual import Counterfactual, TargetPolicy
from simulators.logged.archive_log import DECISIONS_AT_ONCE, ArchiveLog, WeighedDecision, stack, weigh
from simulators.logged.import_report import ImportReport, LogRefused
from simulators.replay import ReplayedBatch

# Outcomes learned between two publications of the weights, some seconds of a busy surface.
PUBLISH_EVERY = 100
# A decision that is this much older than the newest one gets no outcome any more.
_KEEP_MS = 2 * 86_400_000


class NoItemFeatures(ValueError):
    """The history of items cannot describe the candidates of a decision as they were; the message says why."""


@dataclass(slots=True)
class ReplayedPolicy:
    """The policy that is replayed, with the state that it learns.

    Attributes:
        target: Exploration and rules; its scores and explorer are filled in from what follows.
        features: Of candidates; only looked at to score.
        learner: Learns rewards as it goes, None when the policy does not learn.
        table: The weights that score, None to keep the logged scores.
        explorer: Explores and learns, None without one.
        learns: Whether outcomes are learned, or only predicted.
        publish_every: After how many outcomes `table` follows `learner`.
    """

    target: TargetPolicy
    features: CandidateFeatures | None = None
    learner: Learner | None = None
    table: WeightTable | None = None
    explorer: Explorer | None = None
    learns: bool = False
    publish_every: int = PUBLISH_EVERY
    _n_untold: int = field(default=0, init=False)
    _seen: dict[str, _SeenShortlists] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Score and explore with the state of now, whenever a decision comes."""
        if (self.table is not None or self.explorer is not None) and self.features is None:
            raise ValueError("a policy that scores or explores itself needs the features of candidates")
        if self.learner is not None and self.table is not None:
            _publish(self.learner, self.table, everything=True)
        self.target = replace(
            self.target,
            score=None if self.table is None else self._score,
            explorer=None if self.explorer is None else self._ask,
        )

    def forget(self, decision: Decision) -> None:
        """Drop what is held of a decision until it is learned."""
        self._seen.pop(decision.event_id, None)

    def learn(self, decision: Decision, slot_index: int, reward: float) -> float | None:
        """Learn one outcome if the policy learns; return the squared error of the learner before, None without one."""
        if not self.learns:
            return None
        slot = decision.slots[slot_index]
        assert self.features is not None
        # The position is learned where the item stood; scoring uses the reference.
        shared = encode_all(
            {**decision.features, "position": self.features.schema.named("position", {"slot": slot_index})}
        )
        seen = self._seen.get(decision.event_id)
        if self.explorer is not None and seen is not None:
            seen.learn(self.explorer, slot_index, slot.action, reward=reward, propensity=slot.propensity)
        if self.learner is None:
            return None
        before = self.learner.loss_sum
        self.learner.learn(shared, encode_all(slot.features), reward=reward, propensity=slot.propensity)
        self._n_untold += 1
        if self.table is not None and self._n_untold >= self.publish_every:
            self._n_untold = 0
            _publish(self.learner, self.table, everything=False)
        return self.learner.loss_sum - before

    def _candidates(self, decision: Decision) -> dict[str, ActionFeatures]:
        assert self.features is not None
        found = self.features.actions(decision)
        if found is None:
            raise NoItemFeatures("item: not in the history of items, so that no model can score it")
        if self.features.find_other(decision):
            raise NoItemFeatures("item: served with other features than the history of items gives it")
        return found

    def _score(self, decision: Decision) -> npt.NDArray[np.float32]:
        assert self.table is not None
        assert self.features is not None
        return self.table.score(self.features.shared(decision), self._candidates(decision))

    def _ask(self, decision: Decision) -> ExplorerPmf:
        assert self.explorer is not None
        assert self.features is not None
        shared, candidates = self.features.shared(decision), self._candidates(decision)
        request = self.explorer.ask(shared, candidates)
        seen = self._seen[decision.event_id] = _SeenShortlists(shared=dict(shared), candidates=candidates)

        def pmf(slot: int, shortlist: Int64Array) -> Float64Array:
            seen.by_slot[slot] = shortlist.tolist()
            return request.pmf(shortlist)

        return pmf


@dataclass(slots=True)
class _SeenShortlists:
    """What an explorer was asked of one decision."""

    shared: dict[str, object]
    candidates: dict[str, ActionFeatures]
    by_slot: dict[int, list[int]] = field(default_factory=dict)

    def learn(self, explorer: Explorer, slot: int, action: int, *, reward: float, propensity: float) -> None:
        shortlist = self.by_slot.get(slot)
        if shortlist is None:
            return
        actions = shortlist if action in shortlist else [*shortlist, action]
        explorer.learn(
            self.shared,  # type: ignore[arg-type] # encoded features, as they were asked with
            [action_features(self.candidates, one) for one in actions],
            chosen=actions.index(action),
            reward=reward,
            propensity=propensity,
        )


@dataclass(slots=True)
class _Pending:
    """A decision that waits for outcomes."""

    decision: Decision
    found: Counterfactual
    n_open: int
    rewards: dict[int, float] = field(default_factory=dict)


class ArchiveReplay:
    """One pass over an archive.

    Args:
        log: the archive and which part of it; its target policy is replaced by the replayed one.
        policy: what is replayed.
        report: counts what is read.
        advance: told how many decisions were passed, for a progress bar.
    """

    def __init__(
        self, log: ArchiveLog, policy: ReplayedPolicy, report: ImportReport, *, advance: Callable[[int], None]
    ) -> None:
        self.log = replace(log, target=policy.target)
        self._policy = policy
        self._report = report
        self._advance = advance
        self._pending: dict[tuple[str, str], _Pending] = {}

    def batches(self, *, n_slots: int, position_weights: Float64Array) -> Iterator[ReplayedBatch]:
        """Yield decisions once all their drawn slots have an outcome.

        Raises:
            LogRefused: the archive cannot be read, or the policy cannot be applied to it.
        """
        self.log.count_filtered(self._report)
        held: list[WeighedDecision] = []
        errors: list[float] = []
        try:
            for pending in self._run(errors):
                held.append(weigh(pending.decision, pending.found, pending.rewards, position_weights=position_weights))
                if len(held) == DECISIONS_AT_ONCE:
                    yield ReplayedBatch(stack(held, n_slots), np.array(errors))
                    held, errors[:] = [], []
        except (pa.ArrowInvalid, msgspec.DecodeError, OSError, ValueError) as error:
            raise LogRefused(f"{self.log.folder}: {error}") from error
        if held:
            yield ReplayedBatch(stack(held, n_slots), np.array(errors))
        if self._pending:
            self._report.note(f"{len(self._pending):,} decisions had slots without an outcome")

    def _run(self, errors: list[float]) -> Iterator[_Pending]:
        """Yield complete decisions; squared errors are added as rewards come."""
        log = self.log
        with reading(log.folder):
            rows = read_rows(
                log.folder,
                "decisions",
                ["event_id", "surface", "model", "record"],
                from_ms=log.selection.from_ms,
                to_ms=log.selection.to_ms,
            )
            following = next(rows, None)
            for joined in read_joined(log.config, log.folder, log.selection, ExportReport()):
                outcome = joined.outcomes[-1]
                # What was decided before this outcome was known was decided without it.
                while following is not None and following[0][0] <= outcome.at_unix_ms:
                    position, row = following
                    if log.selection.surface in ("", row["surface"]) and log.selection.model in ("", row["model"]):
                        self._decide(row["event_id"], entry_id_of(position), row["record"])
                    following = next(rows, None)
                    self._let_go(position[0] - _KEEP_MS)
                complete = self._observe(
                    outcome.event_id, outcome.decision_journal_id, outcome.slot, outcome.reward, errors
                )
                if complete is not None:
                    yield complete

    def _decide(self, event_id: str, journal_id: str, record: bytes) -> None:
        self._report.n_read += 1
        self._advance(1)
        decision = self.log.checked(record, event_id, self._report)
        if decision is None:
            return
        try:
            found = self.log.counterfactual(decision, self._report)
        except LogRefused as error:
            if isinstance(error.__cause__, NoItemFeatures):
                self._report.reject(str(error.__cause__), [event_id])
                return
            raise
        n_open = sum(slot.reason not in PLACED for slot in decision.slots)
        if found is None or not n_open:
            self._policy.forget(decision)
            return
        self._pending[event_id, journal_id] = _Pending(decision, found, n_open)

    def _observe(
        self, event_id: str, journal_id: str, slot: int, reward: float, errors: list[float]
    ) -> _Pending | None:
        """Take in an outcome; return its decision when it was the last."""
        pending = self._pending.get((event_id, journal_id))
        if pending is None:
            return None
        if not np.isfinite(reward):
            self._report.reject("reward: not finite", [event_id])
            del self._pending[event_id, journal_id]
            return None
        error = self._policy.learn(pending.decision, slot, reward)
        errors.append((reward - float(pending.found.scores[slot])) ** 2 if error is None else error)
        pending.rewards[slot] = reward
        pending.n_open -= 1
        if pending.n_open:
            return None
        self._policy.forget(pending.decision)
        return self._pending.pop((event_id, journal_id))

    def _let_go(self, before_ms: int) -> None:
        while self._pending:
            key, oldest = next(iter(self._pending.items()))
            if oldest.decision.decided_at_unix_ms >= before_ms:
                return
            self._policy.forget(oldest.decision)
            del self._pending[key]


def _publish(learner: Learner, table: WeightTable, *, everything: bool) -> None:
    """Let a table score as its learner does."""
    change = learner.all_weights() if everything else learner.change()
    table.apply(change.indices, change.values, version=table.version + 1)
    learner.forget_change()
