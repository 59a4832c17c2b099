"""What is measured of a closed loop as it goes on, and the curve that comes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from service.wire import RecommendedItem
from simulators.worlds.visits import Visit
from simulators.worlds.world import Response, World

Float64Array = npt.NDArray[np.float64]

# An item that appeared is found when it was clicked so often.
FOUND_CLICKS = 3
# With fewer clicks in the run, nobody knows yet how good an item is.
PROVEN_CLICKS = 5
_EXPLORED = frozenset({"explore", "discovery"})


@dataclass(frozen=True, slots=True, eq=False)
class LoopRun:
    """The curve of one run: one entry a checkpoint, each about the decisions since the one before. NaN is for nothing.

    Attributes:
        n_decisions: int64, decisions so far.
        value: Exact expected reward of a slot, given what was shown: no luck of clicks in it.
        reward: Clicks of a slot, as they fell.
        optimal: Exact expected reward of a slot of the best slate.
        regret: Sum so far of what the best slates would have earned more, in expected rewards of slates.
        skip_rate: Skips of a slot.
        coverage: Share of the items that were there that were shown at all.
        discovery_hit_rate: Clicks on what exploration or discovery put into a slot, of a slot.
        explored_share: Share of the slots that exploration or discovery filled.
        discovery_share: Share of the slots that were reserved for discovery and filled from its pool.
        unproven_share: Share of the slots with an item that had fewer than five clicks in the run before.
        new_good_share: Share of the slots with a hit that appeared since the start.
        new_good_optimal: The same share of the best slates.
        days_to_find: Median simulated days from a new hit's appearance to its third click, of those found so far.
        found_share: Share of the new hits that appeared so far and were there for a tenth of the run, that were found.
        entropy: Of the genres shown, in [0, 1].
        seconds: Wall-clock time of the run, start and end apart.
        n_events: Events reported.
    """

    n_decisions: npt.NDArray[np.int64]
    value: Float64Array
    reward: Float64Array
    optimal: Float64Array
    regret: Float64Array
    skip_rate: Float64Array
    coverage: Float64Array
    discovery_hit_rate: Float64Array
    explored_share: Float64Array
    discovery_share: Float64Array
    unproven_share: Float64Array
    new_good_share: Float64Array
    new_good_optimal: Float64Array
    days_to_find: Float64Array
    found_share: Float64Array
    entropy: Float64Array
    seconds: float
    n_events: int

    @property
    def decisions_per_s(self) -> float:
        """Return the speed of the run."""
        return float(self.n_decisions[-1] / self.seconds)

    def mean(self, name: str, *, after: int = 0) -> float:
        """Return the mean of a curve over the decisions after a number of them.

        Raises:
            ValueError: the run has no checkpoint after that.
        """
        curve: Float64Array = getattr(self, name)
        since = np.concatenate([[0], self.n_decisions[:-1]])
        late = (since >= after) & ~np.isnan(curve)
        if not late.any():
            raise ValueError(f"{name} has no value after {after} of {self.n_decisions[-1]} decisions")
        return float(np.average(curve[late], weights=(self.n_decisions - since)[late]))

    def figures(self) -> dict[str, Any]:
        """Return everything as JSON values, NaN as None."""
        found: dict[str, Any] = {}
        for column in fields(self):
            value = getattr(self, column.name)
            if isinstance(value, np.ndarray):
                value = [None if math.isnan(number) else number for number in value.tolist()]
            found[column.name] = value
        return {**found, "decisions_per_s": self.decisions_per_s}


@dataclass(slots=True)
class _Interval:
    n: int = 0
    value: float = 0.0
    optimal: float = 0.0
    n_clicked: int = 0
    n_skipped: int = 0
    n_slots: int = 0
    n_explored: int = 0
    n_discovery: int = 0
    n_unproven: int = 0
    n_explored_clicked: int = 0
    n_new_good: int = 0
    n_new_good_optimal: int = 0
    # How often each item was shown.
    shown: dict[int, int] = field(default_factory=dict)


class CurveRecorder:
    """Counts decisions and closes an interval at each checkpoint.

    Args:
        world: What the run goes on in.
        every: Decisions between checkpoints.
    """

    def __init__(self, world: World, *, every: int) -> None:
        self._world = world
        self._every = every
        self._n_live = world.spec.churn.n_live
        self._rows: list[list[float]] = []
        self._n = 0
        self._regret = 0.0
        # The oldest item at the last checkpoint.
        self._oldest = 0
        self._now = _Interval()
        self._n_clicks: dict[int, int] = {}
        self._found_ms: dict[int, int] = {}
        self.n_events = 0

    def add(
        self,
        visit: Visit,
        numbers: Sequence[int],
        shown: Sequence[RecommendedItem],
        response: Response,
        *,
        best: Sequence[int],
        optimal: float,
    ) -> None:
        """Count one decision.

        Args:
            visit: Who and when.
            numbers: Items shown.
            shown: The slots of the answer.
            response: What came of it.
            best: Items of the best slate.
            optimal: What that would have been worth.
        """
        now = self._now
        now.n += 1
        now.n_slots += len(numbers)
        value = float(response.expected.sum())
        now.value += value
        now.optimal += optimal
        self._regret += optimal - value
        now.n_clicked += response.n_clicked
        now.n_skipped += response.n_skipped
        clicked = {reaction.slot for reaction in response.reactions if reaction.event_type == "click"}
        is_hit = self._world.tastes.is_hit
        for slot, (number, item) in enumerate(zip(numbers, shown, strict=True)):
            now.shown[number] = now.shown.get(number, 0) + 1
            now.n_unproven += self._n_clicks.get(number, 0) < PROVEN_CLICKS
            if item.reason in _EXPLORED:
                now.n_explored += 1
                now.n_explored_clicked += slot in clicked
                now.n_discovery += item.reason == "discovery"
            if slot in clicked:
                self._count_click(number, visit.elapsed_ms)
            if number >= self._n_live and is_hit(number):
                now.n_new_good += 1
        for number in best:
            now.n_new_good_optimal += number >= self._n_live and is_hit(number)
        self._n += 1
        self.n_events += len(response.reactions)
        if self._n % self._every == 0:
            self._close(visit.elapsed_ms)

    def run(self, *, seconds: float, elapsed_ms: int) -> LoopRun:
        """Return the curve; decisions since the last checkpoint make one more."""
        if self._now.n:
            self._close(elapsed_ms)
        columns = np.array(self._rows, dtype=np.float64).T
        names = [column.name for column in fields(LoopRun)][:-2]
        curves: dict[str, Any] = dict(zip(names, columns, strict=True))
        curves["n_decisions"] = curves["n_decisions"].astype(np.int64)
        return LoopRun(**curves, seconds=seconds, n_events=self.n_events)

    def _count_click(self, number: int, elapsed_ms: int) -> None:
        self._n_clicks[number] = self._n_clicks.get(number, 0) + 1
        if self._n_clicks[number] == FOUND_CLICKS and number >= self._n_live and self._world.tastes.is_hit(number):
            self._found_ms[number] = elapsed_ms

    def _close(self, elapsed_ms: int) -> None:
        now, slots = self._now, max(1, self._now.n_slots)
        churn = self._world.spec.churn
        live = self._world.live(elapsed_ms)
        newest, n_there = live.stop, live.stop - self._oldest
        self._oldest = live.start
        # What has just appeared had no time to be found.
        old_enough = [
            number
            for number in range(self._n_live, newest)
            if self._world.tastes.is_hit(number) and churn.born_ms(number) <= 0.9 * elapsed_ms
        ]
        took_ms = [found_ms - churn.born_ms(number) for number, found_ms in self._found_ms.items()]
        groups = np.zeros(self._world.tastes.n_groups)
        for number, n_shown in now.shown.items():
            groups[self._world.tastes.group(number)] += n_shown
        share = groups[groups > 0.0] / groups.sum()
        self._rows.append(
            [
                self._n,
                now.value / slots,
                now.n_clicked / slots,
                now.optimal / slots,
                self._regret,
                now.n_skipped / slots,
                len(now.shown) / n_there,
                now.n_explored_clicked / now.n_explored if now.n_explored else np.nan,
                now.n_explored / slots,
                now.n_discovery / slots,
                now.n_unproven / slots,
                now.n_new_good / slots,
                now.n_new_good_optimal / slots,
                float(np.median(took_ms)) / 86_400_000.0 if took_ms else np.nan,
                sum(number in self._found_ms for number in old_enough) / len(old_enough) if old_enough else np.nan,
                float(-(share * np.log(share)).sum() / np.log(max(2, len(groups)))),
            ]
        )
        self._now = _Interval()
