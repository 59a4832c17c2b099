"""DSJSON logs evaluated: what a target policy that follows from the logged pmf would have done with each line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from bandit.support import Float64Array
from simulators.logged.batches import LoggedBatch
from simulators.logged.dsjson_lines import LoggedChoice, LoggedLine, RejectedLine, count_slots, read_lines
from simulators.logged.dsjson_model import LineModel, slot_lines
from simulators.logged.dsjson_rows import SlotRow, batch_of, max_weight
from simulators.logged.embeddings import alike_in_line, embedding_weight, note_of, refuse_slates
from simulators.logged.import_report import ImportReport, LogRefused
from simulators.logged.time_window import ALL_TIME, TimeWindow

DsjsonTarget = Literal["uniform", "greedy", "epsilon", "column"]

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class DsjsonLog:
    """A DSJSON file and the target policy.

    Attributes:
        path: Of the file; `.gz` is unpacked on the way.
        target: `uniform` over the actions of a line; `greedy`, the most probable of them, ties shared; `epsilon`, that
            one but for `rate`, which is uniform; `column`, the field `target_propensity` of the line or slot.
        rate: Of `epsilon`.
        any_order: Whether lines may be out of the order of time.
        window: Which lines, by their time.
        reward_model: VW's arguments of a model that predicts the rewards of a line before it learns them, so that no
            row is valued by a model that knows it; none when empty. Needs a target that follows from the logged pmf.
        embedding: Where in an action its embedding is, for MIPS of single actions; empty for none. Needs such a target,
            too.
        position_weights: float64 [S], what a reward at each slot is worth to the model of values.
    """

    path: Path
    target: DsjsonTarget
    rate: float = 0.1
    any_order: bool = False
    window: TimeWindow = ALL_TIME
    reward_model: Sequence[str] = ()
    embedding: str = ""
    position_weights: Float64Array = field(default_factory=lambda: np.ones(0))

    def count_slots(self) -> int:
        """Return the most slots that a line has, by a pass over the file.

        Raises:
            LogRefused: the file cannot be read.
        """
        return count_slots(self.path)

    @property
    def unsupported(self) -> str:
        """Return nothing: what the format cannot carry shows in its weights."""
        return ""

    def batches(self, report: ImportReport, *, n_slots: int) -> Iterator[LoggedBatch]:
        """Yield the accepted lines, some at a time, counting what is rejected.

        Raises:
            LogRefused: the file cannot be read, or its time falls.
        """
        yield from report.watch(self._batches(report, n_slots))

    def _batches(self, report: ImportReport, n_slots: int) -> Iterator[LoggedBatch]:
        model = self._model()
        if self.embedding:
            refuse_slates(self.embedding, n_slots)
            report.note(note_of(self.embedding))
        weights = np.ones(n_slots)
        weights[: len(self.position_weights)] = self.position_weights
        held: list[list[SlotRow]] = []
        alike: list[float] = []
        # More than one model is a policy that changed, as one does that learns.
        model_ids: set[str] = set()
        first = 0

        def batch() -> LoggedBatch:
            return batch_of(
                held,
                n_slots=n_slots,
                first=first,
                position_weights=weights,
                are_independent=len(model_ids) == 1,
                embedding_weights=alike if self.embedding else None,
            )

        for row, line in read_lines(self.path, report, any_order=self.any_order, window=self.window):
            try:
                weight = self._embedding_weight(line) if self.embedding else 1.0
                held.append(self._rows(line, model))
            except RejectedLine as error:
                report.reject(str(error), [row])
                continue
            alike.append(weight)
            if len(model_ids) < 2:
                model_ids.add(line.model_id)
            if len(held) == _ROWS_AT_ONCE:
                yield batch()
                first, held, alike = first + len(held), [], []
        if held:
            yield batch()

    def _model(self) -> LineModel | None:
        if not self.reward_model:
            return None
        model = LineModel(self.reward_model)
        if model.explores:
            raise LogRefused(f"a reward model must give costs (--cb_adf), got {' '.join(self.reward_model)!r}")
        return model

    def _rows(self, line: LoggedLine, model: LineModel | None) -> list[SlotRow]:
        if self.target == "column":
            return [_row_of_column(choice) for choice in line.slots]
        pmfs = [self._target_pmf(choice) for choice in line.slots]
        if model is None:
            return [SlotRow.of(choice, pmf) for choice, pmf in zip(line.slots, pmfs, strict=True)]
        slots = slot_lines(line)
        scores = [model.predict(slot) for slot in slots]
        for slot in slots:
            model.learn(slot)
        return [
            SlotRow.of(choice, pmf, scores=of_slot)
            for choice, pmf, of_slot in zip(line.slots, pmfs, scores, strict=True)
        ]

    def _embedding_weight(self, line: LoggedLine) -> float:
        (choice,) = line.slots
        is_alike = alike_in_line(choice, line.multi, path=self.embedding)
        return embedding_weight(self._target_pmf(choice), choice.pmf, is_alike=is_alike)

    def _target_pmf(self, choice: LoggedChoice) -> Float64Array:
        """Return float64 [K], what the target policy makes of a logged pmf.

        Raises:
            RejectedLine: the logged pmf is not whole.
        """
        if not choice.is_whole:
            raise RejectedLine("p: must sum to 1 for a target policy that follows from it")
        pmf = choice.pmf
        if self.target == "uniform":
            return np.full(len(pmf), 1.0 / len(pmf))
        best = pmf == pmf.max()
        rate = self.rate if self.target == "epsilon" else 0.0
        mixed: Float64Array = best * ((1.0 - rate) / np.count_nonzero(best)) + rate / len(pmf)
        return mixed


def _row_of_column(choice: LoggedChoice) -> SlotRow:
    target = choice.target_propensity
    if target is None:
        raise RejectedLine("target_propensity: missing")
    if not 0.0 <= target <= 1.0:
        raise RejectedLine("target_propensity: must be in [0, 1]")
    # What the target policy gives the other actions is not known: at most 1.
    largest = max_weight(np.ones(len(choice.pmf)), choice)
    return SlotRow(choice.reward, choice.propensity, target, len(choice.pmf), largest)
