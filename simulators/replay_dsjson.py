"""Replay a DSJSON log of single actions through VW, any arguments or saved model, learning as it goes if asked.

A model that explores gives its own pmf; one that gives costs gets the pmf of a policy of ours on top of its scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from vowpal_wabbit_next import DSJsonFormatParser, PredictionType, Workspace

from bandit.exploration import Policy, VwExplorer
from bandit.slot import build_pmf, view_slot
from bandit.support import Float64Array
from simulators.logged.batches import LoggedBatch, clusters_of_rows
from simulators.logged.dsjson_log import LoggedChoice, read_lines
from simulators.logged.import_report import ImportReport, LogRefused
from simulators.logged.time_window import TimeWindow
from simulators.replay import ReplayedBatch

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class _Replayed:
    """One line: what was logged, what the policy would have done, and the reward that it predicted, if any."""

    choice: LoggedChoice
    target: float
    predicted: float | None


class DsjsonReplay:
    """One pass over a file.

    Args:
        path: of the file.
        arguments: of VW, such as `--cb_adf --cb_type mtr -q UA` or `--cb_explore_adf --bag 5`.
        model: serialised model to go on from, None for an empty one.
        exploration: on top of a model that gives costs.
        learns: whether every line is learned, after it was predicted.
        any_order: whether lines may be out of the order of time.
        window: which lines, by their time.
        advance: told the bytes of every line, for a progress bar.

    Raises:
        LogRefused: VW refuses the arguments or the model, or the model is none of single actions.
    """

    def __init__(
        self,
        path: Path,
        *,
        arguments: Sequence[str],
        model: bytes | None,
        exploration: Policy,
        learns: bool,
        any_order: bool,
        window: TimeWindow,
        advance: Callable[[int], None],
    ) -> None:
        self._path = path
        self._exploration = exploration
        self._learns = learns
        self._any_order = any_order
        self._window = window
        self._advance = advance
        try:
            self._workspace: Workspace[Any] = Workspace(list(arguments), model_data=model)
        except RuntimeError as error:
            raise LogRefused(f"VW refuses {' '.join(arguments)!r}: {error}") from error
        kind = self._workspace.prediction_type
        if kind not in (PredictionType.ActionProbs, PredictionType.ActionScores):
            raise LogRefused(f"VW's arguments must be of --cb_adf or --cb_explore_adf, got a model of {kind.name}")
        # The binding makes a new object at every look: `is` never holds.
        self._explores = kind == PredictionType.ActionProbs
        if not self._explores and isinstance(exploration, VwExplorer):
            raise LogRefused("a VW explorer is replayed by its own arguments: --cb_explore_adf ...")
        self._parser = DSJsonFormatParser(self._workspace)

    def batches(self, report: ImportReport) -> Iterator[ReplayedBatch]:
        """Yield the lines under the replayed policy.

        Raises:
            LogRefused: the file cannot be read, or its time falls.
        """
        held: list[_Replayed] = []
        first = 0
        for row, line in read_lines(self._path, report, any_order=self._any_order, window=self._window):
            self._advance(len(line.raw))
            if len(line.slots) > 1 or b'"_outcomes"' in line.raw:
                report.reject("_outcomes: only single actions are replayed", [row])
                continue
            held.append(self._replay(line.raw, line.slots[0]))
            if len(held) == _ROWS_AT_ONCE:
                yield _batch(held, first)
                first, held = first + len(held), []
        if held:
            yield _batch(held, first)

    def _replay(self, raw: bytes, choice: LoggedChoice) -> _Replayed:
        examples = self._parser.parse_json(raw.decode())
        pairs = cast("list[tuple[int, float]]", self._workspace.predict_one(examples))
        predicted: Float64Array = np.zeros(len(pairs))
        for action, value in pairs:
            predicted[action] = value
        if self._learns:
            self._workspace.learn_one(self._parser.parse_json(raw.decode()))
        shown = choice.actions[0]
        if self._explores:
            # VW's pmf is float32.
            return _Replayed(choice, float(predicted[shown] / predicted.sum()), None)
        scores = 0.0 - predicted
        view = view_slot(scores, np.ones(len(scores), dtype=np.bool_), shortlist=self._exploration.shortlist_size)
        pmf = build_pmf(view, self._exploration.mixture(view))
        return _Replayed(choice, float(pmf[shown]), float(scores[shown]))


def _batch(held: Sequence[_Replayed], first: int) -> ReplayedBatch:
    rewards = np.array([one.choice.reward for one in held])
    predicted = np.array([np.nan if one.predicted is None else one.predicted for one in held])
    errors = (rewards - predicted) ** 2
    return ReplayedBatch(
        LoggedBatch.of_actions(
            rewards=rewards,
            propensities=np.array([float(one.choice.pmf[0]) for one in held]),
            targets=np.array([one.target for one in held]),
            clusters=clusters_of_rows(first, len(held)),
            n_feasible=np.array([len(one.choice.pmf) for one in held]),
        ),
        errors[np.isfinite(errors)],
    )
