"""Replay a DSJSON log through VW, any arguments or saved model, learning as it goes if asked.

A model that explores gives its own pmf; one that gives costs gets the pmf of a policy of ours on top of its scores. The
policy goes along the logged slate, slot by slot, over the actions that the logged slots above have left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bandit.exploration import Policy, VwExplorer
from bandit.slot import build_pmf, view_slot
from bandit.support import Float64Array
from simulators.logged.dsjson_lines import LoggedChoice, LoggedLine, RejectedLine, read_lines
from simulators.logged.dsjson_model import LineModel, SlotLine, slot_lines
from simulators.logged.dsjson_rows import SlotRow, batch_of
from simulators.logged.import_report import ImportReport, LogRefused
from simulators.logged.time_window import TimeWindow
from simulators.replay import ReplayedBatch

_ROWS_AT_ONCE = 1024


class DsjsonReplay:
    """One pass over a file.

    Args:
        path: of the file.
        model: what scores or explores.
        exploration: on top of a model that gives costs.
        learns: whether every line is learned, after all its slots were predicted.
        knows: whether the model knows anything of the log's rewards, so that its predictions are worth showing.
        any_order: whether lines may be out of the order of time.
        window: which lines, by their time.
        advance: told the bytes of every line, for a progress bar.

    Raises:
        LogRefused: a VW explorer cannot be asked through the exploration.
    """

    def __init__(
        self,
        path: Path,
        *,
        model: LineModel,
        exploration: Policy,
        learns: bool,
        knows: bool,
        any_order: bool,
        window: TimeWindow,
        advance: Callable[[int], None],
    ) -> None:
        if not model.explores and isinstance(exploration, VwExplorer):
            raise LogRefused("a VW explorer is replayed by its own arguments: --cb_explore_adf ...")
        self._path = path
        self._model = model
        self._exploration = exploration
        self._learns = learns
        self._knows = knows
        self._any_order = any_order
        self._window = window
        self._advance = advance

    def batches(self, report: ImportReport, *, n_slots: int, position_weights: Float64Array) -> Iterator[ReplayedBatch]:
        """Yield the lines under the replayed policy.

        Raises:
            LogRefused: the file cannot be read, or its time falls.
        """
        held: list[list[SlotRow]] = []
        errors: list[float] = []
        model_ids: set[str] = set()
        first = 0

        def batch() -> ReplayedBatch:
            rows = batch_of(
                held,
                n_slots=n_slots,
                first=first,
                position_weights=position_weights,
                are_independent=not self._learns and len(model_ids) == 1,
            )
            return ReplayedBatch(rows, np.array(errors))

        for row, line in read_lines(self._path, report, any_order=self._any_order, window=self._window):
            self._advance(len(line.raw))
            try:
                held.append(self._replay(line, errors))
            except RejectedLine as error:
                report.reject(str(error), [row])
                continue
            if len(model_ids) < 2:
                model_ids.add(line.model_id)
            if len(held) == _ROWS_AT_ONCE:
                yield batch()
                first, held, errors = first + len(held), [], []
        if held:
            yield batch()

    def _replay(self, line: LoggedLine, errors: list[float]) -> list[SlotRow]:
        slots = slot_lines(line)
        # What a slate earned is known after all of it was shown.
        rows = [self._decide(slot, choice, errors) for slot, choice in zip(slots, line.slots, strict=True)]
        for slot in slots if self._learns else ():
            self._model.learn(slot)
        return rows

    def _decide(self, slot: SlotLine, choice: LoggedChoice, errors: list[float]) -> SlotRow:
        predicted = self._model.predict(slot)
        if self._model.explores:
            return SlotRow.of(choice, predicted)
        errors.append((choice.reward - float(predicted[choice.shown])) ** 2)
        allowed = np.ones(len(predicted), dtype=np.bool_)
        view = view_slot(predicted, allowed, shortlist=self._exploration.shortlist_size)
        pmf = build_pmf(view, self._exploration.mixture(view))
        return SlotRow.of(choice, pmf, scores=predicted if self._knows else None)
