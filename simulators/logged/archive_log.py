"""Our own Parquet archive: decisions joined with their outcomes, and what a target policy would have done with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from bandit.support import Float64Array
from service.adapters.archive_files import n_erased
from service.config import Config
from service.decision_record import unpack_actions
from service.export import ExportReport, Selection, read_joined
from service.joins import PLACED
from service.messages import Decision, journal_decoder
from simulators.counterfactual import Counterfactual, TargetPolicy, build_counterfactual
from simulators.logged.archive_survey import Survey, survey
from simulators.logged.batches import LoggedBatch, clusters_of_users, values_to_go
from simulators.logged.embeddings import alike_in_decision, embedding_weight, note_of, refuse_slates
from simulators.logged.import_report import ImportReport, LogRefused
from simulators.marginals import Marginals

DECISIONS_AT_ONCE = 512
# Propensities replay to the bit where they were drawn, and this closely elsewhere.
_TOLERANCE = 1e-12


@dataclass(slots=True)
class ArchiveLog:
    """An archive, a part of it, and the target policy.

    Attributes:
        config: Has the windows of outcomes.
        folder: Of the archive.
        selection: Which decisions.
        target: What is done otherwise than in the log.
        position_weights: float64 [S], what a reward at each slot is worth to the model of values.
        embedding: A logged column of the candidates, for MIPS of single actions; empty for none.
        unsupported: Why the log cannot carry the target policy whatever its size; known when it has been read.
    """

    config: Config
    folder: Path
    selection: Selection
    target: TargetPolicy
    position_weights: Float64Array = field(default_factory=lambda: np.ones(0))
    embedding: str = ""
    unsupported: str = ""
    _survey: Survey | None = field(default=None, init=False, repr=False)

    def count_slots(self) -> int:
        """Return the most slots that a selected decision of the archive has.

        Raises:
            LogRefused: the archive cannot be read.
        """
        return self._look().n_slots

    def count_filtered(self, report: ImportReport) -> None:
        """Count the decisions that are outside of the selected time.

        Raises:
            LogRefused: the archive cannot be read.
        """
        n = self._look().n_filtered
        report.n_read += n
        report.n_filtered += n

    def batches(self, report: ImportReport, *, n_slots: int) -> Iterator[LoggedBatch]:
        """Yield decisions all of whose drawn slots have an outcome, counting what is left out.

        Raises:
            LogRefused: a file cannot be read, or is of a later version.
        """
        self.count_filtered(report)
        yield from report.watch(self._batches(report, n_slots))
        n = self._erased()
        if n:
            report.note(f"the archive is missing {n} decisions that were erased with their users")

    def decisions(self, report: ImportReport) -> Iterator[tuple[Decision, dict[int, float]]]:
        """Yield decisions whose propensities replay, with the rewards of their drawn slots."""
        left_out = ExportReport()
        try:
            for joined in read_joined(self.config, self.folder, self.selection, left_out, whole=True):
                report.n_read += 1
                rewards = {outcome.slot: outcome.reward for outcome in joined.outcomes}
                decision = self.checked(joined.record, joined.learned.event_id, report)
                if decision is None:
                    continue
                if np.isfinite(list(rewards.values())).all():
                    yield decision, rewards
                else:
                    report.reject("reward: not finite", [decision.event_id])
        except (pa.ArrowInvalid, msgspec.DecodeError, OSError, ValueError) as error:
            raise LogRefused(f"{self.folder}: {error}") from error
        reasons = {
            "late": "came after their window",
            "open": "had no outcome yet",
            "no_decision": "lack their decision",
        }
        for reason, count in left_out.left_out.items():
            report.note(f"{count:,} slots {reasons.get(reason, reason)}")

    def counterfactual(self, decision: Decision, report: ImportReport) -> Counterfactual | None:
        """Return what the target policy would have done, None (counted) when propensities do not replay.

        Raises:
            LogRefused: the target policy cannot be applied to the log.
        """
        try:
            if not _replays(decision):
                report.reject("propensity: does not follow from the record", [decision.event_id])
                return None
            found = build_counterfactual(decision, self.target)
        except ValueError as error:
            raise LogRefused(str(error)) from error
        self.unsupported = self.unsupported or found.unsupported
        drawn = [slot.n_feasible for slot in decision.slots if slot.reason not in PLACED]
        floor = min((decision.exploration.uniform_floor / n for n in drawn), default=1.0)
        report.floor = floor if report.floor is None else min(report.floor, floor)
        return found

    def checked(self, record: bytes, event_id: str, report: ImportReport) -> Decision | None:
        """Return a decision from its record, None (counted) when it cannot be used."""
        try:
            decision = journal_decoder.decode(record)
        except msgspec.DecodeError as error:
            report.reject(f"record: {error}", [event_id])
            return None
        if not isinstance(decision, Decision) or decision.v != 1:
            report.reject("v: schema version of the decision must be 1", [event_id])
            return None
        for slot in decision.slots:
            p = slot.propensity
            if not 0.0 < p <= 1.0:
                what = "0" if p == 0.0 else "above 1" if p > 1.0 else "below 0" if p < 0.0 else "NaN"
                report.reject(f"propensity: {what}", [event_id])
                return None
            if not 0 <= slot.action < len(decision.candidates.ids):
                report.reject("action: outside the set", [event_id])
                return None
        return decision

    def _batches(self, report: ImportReport, n_slots: int) -> Iterator[LoggedBatch]:
        weights = np.ones(n_slots)
        weights[: len(self.position_weights)] = self.position_weights
        held: list[WeighedDecision] = []
        marginals = Marginals()
        if self.embedding:
            refuse_slates(self.embedding, n_slots)
            report.note(note_of(self.embedding))
        for decision, rewards in self.decisions(report):
            found = self.counterfactual(decision, report)
            if found is None:
                continue
            alike = self._embedding_weight(decision, found, report) if self.embedding else 1.0
            if alike is None:
                continue
            marginal = _marginal_weights(decision, self.target, marginals)
            weighed = weigh(decision, found, rewards, position_weights=weights, marginals=marginal)
            held.append(replace(weighed, embedding=alike) if self.embedding else weighed)
            if len(held) == DECISIONS_AT_ONCE:
                yield stack(held, n_slots)
                held = []
        if held:
            yield stack(held, n_slots)

    def _embedding_weight(self, decision: Decision, found: Counterfactual, report: ImportReport) -> float | None:
        """Return the weight of MIPS, None (counted) where the decision does not have the column."""
        if not decision.slots:
            return 1.0
        is_alike = alike_in_decision(decision, column=self.embedding)
        if is_alike is None:
            report.reject(f"embedding: no column {self.embedding} was logged", [decision.event_id])
            return None
        logged = build_counterfactual(decision, TargetPolicy())
        return embedding_weight(found.pmfs[0], logged.pmfs[0], is_alike=is_alike)

    def _look(self) -> Survey:
        if self._survey is None:
            self._survey = survey(self.folder, self.selection)
        return self._survey

    def _erased(self) -> int:
        return n_erased(self.folder, "decisions")


@dataclass(frozen=True, slots=True)
class WeighedDecision:
    """One decision as estimators need it, by its own slots; `marginals` is None where they are not known.

    `embedding` is the weight of MIPS, None where it is not asked for.
    """

    found: Counterfactual
    rewards: Float64Array
    n_feasible: list[int]
    model_logged: Float64Array
    model_target: Float64Array
    marginals: Float64Array | None
    user: str
    embedding: float | None = None


def _replays(decision: Decision) -> bool:
    """Return whether logged propensities are those that the logged policy has on the record."""
    found = build_counterfactual(decision, TargetPolicy())
    return bool((np.abs(found.target - found.logged) <= _TOLERANCE).all())


def weigh(
    decision: Decision,
    found: Counterfactual,
    rewards: dict[int, float],
    *,
    position_weights: Float64Array,
    marginals: Float64Array | None = None,
) -> WeighedDecision:
    """Return a decision as estimators need it.

    Args:
        decision: the record.
        found: what the target policy would have done.
        rewards: by slot; slots that were placed have none.
        position_weights: float64 [S or more], what a reward at each slot is worth to the model of values.
        marginals: float64 [S], marginal weights of the logged items; None when they are not known.
    """
    n_slots = len(decision.slots)
    logged, expected = _values_to_go(decision, found, position_weights[:n_slots])
    return WeighedDecision(
        found=found,
        rewards=np.array([rewards.get(slot, 0.0) for slot in range(n_slots)]),
        n_feasible=[slot.n_feasible for slot in decision.slots],
        model_logged=logged,
        model_target=expected,
        marginals=marginals,
        user=decision.user_key or decision.event_id,
    )


def _values_to_go(
    decision: Decision, found: Counterfactual, position_weights: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Return what `values_to_go` does, of the model that served, before the rewards."""
    scores = unpack_actions(decision.candidates).scores.astype(np.float64)
    logged = np.array([scores[slot.action] for slot in decision.slots])
    return values_to_go(logged, np.array([pmf @ scores for pmf in found.pmfs]), position_weights)


def _marginal_weights(decision: Decision, target: TargetPolicy, marginals: Marginals) -> Float64Array | None:
    """Return float64 [S], the logged items' marginal weights, None where prefixes are too many to list."""
    logged = marginals.of(decision)
    wanted = None if logged is None else marginals.of(target.applied_to(decision))
    if logged is None or wanted is None:
        return None
    slots, actions = np.arange(len(decision.slots)), [slot.action for slot in decision.slots]
    weights: Float64Array = wanted[slots, actions] / logged[slots, actions]
    return weights


def stack(held: list[WeighedDecision], n_slots: int) -> LoggedBatch:
    """Return decisions as a batch with as many slots."""
    n = len(held)
    zeros, ones = np.zeros((n, n_slots)), np.ones((n, n_slots))
    rewards, model_logged, model_target = zeros.copy(), zeros.copy(), zeros.copy()
    propensities, targets, marginals = ones.copy(), ones.copy(), ones.copy()
    n_feasible = np.zeros((n, n_slots), dtype=np.int64)
    for row, one in enumerate(held):
        used = len(one.rewards)
        rewards[row, :used] = one.rewards
        propensities[row, :used] = one.found.logged
        targets[row, :used] = one.found.target
        n_feasible[row, :used] = one.n_feasible
        model_logged[row, :used] = one.model_logged
        model_target[row, :used] = one.model_target
        if one.marginals is not None:
            marginals[row, :used] = one.marginals
        if not one.found.ends_alike:
            # What the target policy would have gone on to place was never logged.
            targets[row, min(used, n_slots - 1)] = 0.0
    return LoggedBatch(
        rewards=rewards,
        propensities=propensities,
        targets=targets,
        clusters=clusters_of_users([one.user for one in held]),
        discovery_weights=np.array([one.found.discovery_weight for one in held]),
        n_feasible=n_feasible,
        model_logged=model_logged,
        model_target=model_target,
        marginal_weights=None if any(one.marginals is None for one in held) else marginals,
        embedding_weights=_embedding_weights(held),
    )


def _embedding_weights(held: list[WeighedDecision]) -> Float64Array | None:
    weights = [one.embedding for one in held if one.embedding is not None]
    return np.array(weights) if len(weights) == len(held) else None
