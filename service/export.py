"""Exports of the archive: every slot with what became of it, in the order in which it was learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import orjson

from bandit.joining import Position
from bandit.slot import SlotPmf
from service.adapters.archive_files import SCHEMAS, n_erased, read_rows, reading
from service.config import Config
from service.decision_record import dynamic_record, unpack_actions, walk_of
from service.dsjson import Explored, action_context, evaluation_line, explored_line, training_line
from service.feature_records import item_record
from service.item_history import ItemHistory
from service.joins import PLACED
from service.journal_reader import entry_id_of, entry_order
from service.learned import LearnedDecision, learned_decision
from service.messages import Decision, Outcome, journal_decoder

Format = Literal["dsjson-training", "dsjson-evaluation", "explored"]

# Propensities replay to the bit where they were drawn, and this closely elsewhere.
_TOLERANCE = 1e-12
# Past its window by this much a decision gets no outcome any more, such as one of before outcomes were archived.
_KEEP_MS = 86_400_000
_OUTCOME = [name for name in SCHEMAS["outcomes"].names if name not in ("journal_id", "ordinal")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which slots.

    Attributes:
        surface: Of the decision; empty for all.
        model: That learns it; empty for all.
        from_ms: Journal time of the first decision.
        to_ms: Journal time before which decisions end.
    """

    surface: str = ""
    model: str = ""
    from_ms: int = 0
    to_ms: int = 2**62


@dataclass(slots=True)
class ExportReport:
    """What was exported, and what is missing and why.

    Attributes:
        n_lines: Slots exported.
        left_out: Slots that are not, by reason: `late` reward; `open`, their window had not ended; `no_decision` in
            the archive; `propensity` that does not replay, and `other_schema` of features, for exports that draw
            again.
        n_undescribed: Actions that evaluation exported without item features: the items are not known.
        n_erased: Decisions of the whole archive that were erased with their users.
    """

    n_lines: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    n_undescribed: int = 0
    n_erased: int = 0


@dataclass(slots=True)
class JoinedDecision:
    """A decision and what is known of its slots so far.

    Attributes:
        learned: What learning reads of it.
        record: The whole, encoded.
        n_open: Slots whose outcome has not come.
        outcomes: The others', in the order they were learned.
    """

    learned: LearnedDecision
    record: bytes
    n_open: int
    outcomes: list[Outcome] = field(default_factory=list)


def read_joined(
    config: Config, folder: Path, selection: Selection, report: ExportReport, *, whole: bool = False
) -> Iterator[JoinedDecision]:
    """Yield a decision once for every slot learned, in the learner's order; the slot's outcome is the last so far.

    Holds only what a learner would: decisions with open slots.

    Args:
        config: has the windows.
        folder: of the archive.
        selection: which slots.
        report: counts what is left out.
        whole: yield a decision once, when its last slot was learned.
    """
    longest_s = max((surface.reward.window_s for surface in config.surfaces.values()), default=0.0)
    keep_ms = int(longest_s * 1000) + _KEEP_MS
    with reading(folder):
        yield from _Join(folder, selection, report, keep_ms=keep_ms, whole=whole).run()


class _Join:
    """Merges decisions and outcomes, both in journal order."""

    def __init__(self, folder: Path, selection: Selection, report: ExportReport, *, keep_ms: int, whole: bool) -> None:
        self._folder = folder
        self._keep_ms = keep_ms
        self._whole = whole
        self._selection = selection
        self._report = report
        self._open: dict[tuple[str, str], JoinedDecision] = {}
        columns = ["event_id", "surface", "model", "record"]
        self._decisions = read_rows(folder, "decisions", columns, from_ms=selection.from_ms, to_ms=selection.to_ms)
        self._next = next(self._decisions, None)

    def run(self) -> Iterator[JoinedDecision]:
        """Yield what `read_joined` does."""
        for position, row in read_rows(self._folder, "outcomes", _OUTCOME, from_ms=self._selection.from_ms):
            outcome = Outcome(**{name: row[name] for name in _OUTCOME})
            if not self._is_selected(outcome.surface, outcome.model) or not self._is_in_time(outcome):
                continue
            if outcome.kind == "late":
                self._report.left_out["late"] += 1
                continue
            self._take_decisions(position)
            key = (outcome.event_id, outcome.decision_journal_id)
            joined = self._open.get(key)
            if joined is None:
                self._report.left_out["no_decision"] += 1
                continue
            joined.outcomes.append(outcome)
            joined.n_open -= 1
            if not joined.n_open:
                del self._open[key]
            if not (self._whole and joined.n_open):
                yield joined
        self._take_decisions((2**62, 0, 0))
        for joined in self._open.values():
            self._leave_out(joined)

    def _take_decisions(self, position: Position) -> None:
        """Read decisions up to the one that an outcome of this position may be of."""
        while self._next is not None and self._next[0] <= position:
            decided, row = self._next
            self._next = next(self._decisions, None)
            if not self._is_selected(row["surface"], row["model"]):
                continue
            learned = learned_decision(row["record"])
            n_open = sum(slot.reason not in PLACED for slot in learned.slots)
            if n_open:
                self._open[row["event_id"], entry_id_of(decided)] = JoinedDecision(learned, row["record"], n_open)
            self._let_go(decided[0] - self._keep_ms)

    def _let_go(self, before_ms: int) -> None:
        while self._open:
            key, oldest = next(iter(self._open.items()))
            if entry_order(key[1])[0] >= before_ms:
                break
            self._leave_out(oldest)
            del self._open[key]

    def _leave_out(self, joined: JoinedDecision) -> None:
        self._report.left_out["open"] += joined.n_open + (len(joined.outcomes) if self._whole else 0)

    def _is_selected(self, surface: str, model: str) -> bool:
        return self._selection.surface in ("", surface) and self._selection.model in ("", model)

    def _is_in_time(self, outcome: Outcome) -> bool:
        return self._selection.from_ms <= entry_order(outcome.decision_journal_id)[0] < self._selection.to_ms


class Exporter:
    """Turns joined slots into lines of one format.

    Args:
        config: has the feature schema and the windows.
        folder: of the archive.
        items: item changes, by position; only evaluation looks at items that were not drawn.
    """

    def __init__(self, config: Config, folder: Path, *, items: ItemHistory | None = None) -> None:
        self._config = config
        self._schema = config.features
        self._folder = folder
        self._items = items or ItemHistory()
        self.report = ExportReport()

    def write(self, path: Path, kind: Format, selection: Selection) -> ExportReport:
        """Write a file, complete or not at all.

        Raises:
            OSError: it cannot be written.
            ValueError: the archive cannot be read.
        """
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            for line in self.lines(kind, selection):
                file.write(line)
        partial.replace(path)
        self.report.n_erased = n_erased(self._folder, "decisions")
        return self.report

    def lines(self, kind: Format, selection: Selection) -> Iterator[bytes]:
        """Yield the lines: training in the order learned, the others by decision, as their last slot is learned."""
        build = {"dsjson-training": self._training, "dsjson-evaluation": self._evaluation, "explored": self._explored}
        for joined in read_joined(self._config, self._folder, selection, self.report, whole=kind != "dsjson-training"):
            for line in build[kind](joined):
                self.report.n_lines += 1
                yield line

    def _training(self, joined: JoinedDecision) -> Iterator[bytes]:
        yield training_line(joined.learned, joined.outcomes[-1], schema=self._schema)

    def _explored(self, joined: JoinedDecision) -> Iterator[bytes]:
        explored = [outcome for outcome in joined.outcomes if outcome.is_explored]
        if not explored:
            return
        decision = _decode(joined.record)
        slots = self._replay(decision)
        for outcome in explored if slots else ():
            action = decision.slots[outcome.slot].action
            probabilities = Explored.of(slots[outcome.slot], action=action, branch=outcome.branch)
            yield explored_line(joined.learned, outcome, probabilities, schema=self._schema)

    def _evaluation(self, joined: JoinedDecision) -> Iterator[bytes]:
        decision = _decode(joined.record)
        if decision.versions.schema != self._schema.version:
            self.report.left_out["other_schema"] += len(joined.outcomes)
            return
        slots = self._replay(decision)
        actions = self._describe(decision) if slots else []
        for outcome in joined.outcomes if slots else ():
            here = slots[outcome.slot]
            allowed: list[int] = np.flatnonzero(here.view.allowed).tolist()
            yield evaluation_line(
                joined.learned,
                outcome,
                schema=self._schema,
                actions={decision.candidates.ids[action]: actions[action] for action in allowed},
                pmf=here.pmf[allowed].tolist(),
            )

    def _replay(self, decision: Decision) -> list[SlotPmf]:
        """Return the pmf of every slot, drawn on again from the record alone; none if one is not as logged."""
        walk = walk_of(decision)
        slots = []
        for record in decision.slots:
            here = walk.pmf()
            if here is None or not abs(float(here.pmf[record.action]) - record.propensity) <= _TOLERANCE:
                self.report.left_out["propensity"] += sum(slot.reason not in PLACED for slot in decision.slots)
                return []
            slots.append(here)
            walk.place(record.action)
        return slots

    def _describe(self, decision: Decision) -> list[orjson.Fragment]:
        """Return the features of every candidate, encoded: as logged where it was drawn, else as of the same items."""
        candidates, schema = decision.candidates, self._schema
        columns = unpack_actions(candidates).columns
        drawn = {record.action: record.features for record in decision.slots}
        described = []
        for action, item_id in enumerate(candidates.ids):
            features = drawn.get(action)
            if features is None:
                item = self._items.item(item_id, decision.versions.catalogue)
                if item is None:
                    self.report.n_undescribed += 1
                source = candidates.source_names[candidates.sources[action]]
                features = {
                    "item": schema.named("item", item_record(item)) if item is not None else {},
                    "dynamic": schema.named("dynamic", dynamic_record(columns, action, source=source)),
                }
            described.append(orjson.Fragment(orjson.dumps(action_context(features), option=orjson.OPT_SERIALIZE_NUMPY)))
        return described


def _decode(record: bytes) -> Decision:
    decision = journal_decoder.decode(record)
    assert isinstance(decision, Decision)
    return decision
