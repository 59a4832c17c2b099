"""Logs in CSV with any column names, read in blocks: single actions, one a row.

What a row says of the target policy is a column of its own, or follows from a context-free pmf, or from the number of
actions for the uniform policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from bandit.support import Float64Array
from simulators.logged.batches import Int64Array, LoggedBatch, clusters_of_rows, clusters_of_users
from simulators.logged.csv_blocks import CsvBlocks
from simulators.logged.csv_check import BoolArray, RowCheck, nulls_of
from simulators.logged.import_report import ImportReport, LogRefused
from simulators.logged.pmf_file import ContextFreePmf
from simulators.logged.time_window import ALL_TIME, TimeWindow

TimeUnit = Literal["s", "ms", "us", "ns"]
# Logs are written with fewer digits than floors are computed with.
_FLOOR_ROUNDING = 1e-6
_US_OF: dict[TimeUnit, float] = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """Which column holds what; a name that is empty is not looked for.

    Attributes:
        reward: Better is up.
        propensity: Of the logged action.
        target_propensity: Of the logged action under the target policy.
        action: The logged action.
        position: Where it stood, for a pmf by position.
        n_actions: How many actions could be chosen.
        user: Whose rows are alike.
        time: Unix time in any unit, or ISO 8601; it must not fall.
        model_logged: A reward model's word on the logged action.
        model_target: Its mean under the target policy.
    """

    reward: str = "reward"
    propensity: str = "propensity"
    target_propensity: str = ""
    action: str = ""
    position: str = ""
    n_actions: str = ""
    user: str = ""
    time: str = ""
    model_logged: str = ""
    model_target: str = ""

    @classmethod
    def parse(cls, text: str) -> ColumnMap:
        """Read `reward=click,propensity=p`.

        Raises:
            ValueError: a pair is none, or names something that no column can be mapped to.

        >>> ColumnMap.parse("reward=click,user=visitor").user
        'visitor'
        """
        known = [field.name for field in fields(cls)]
        found: dict[str, str] = {}
        for pair in filter(None, text.split(",")):
            name, equals, column = pair.partition("=")
            if not equals or not column or name not in known:
                raise ValueError(f"a mapping must be NAME=COLUMN with NAME one of {', '.join(known)}, got {pair!r}")
            found[name] = column
        return cls(**found)

    def checked(self, header: list[str], path: Path) -> ColumnMap:
        """Return the map with columns that have the very name of what they hold.

        Raises:
            LogRefused: a mapped column is not in the file.
        """
        found = {}
        for field in fields(self):
            column = getattr(self, field.name)
            if not column and field.name in header:
                found[field.name] = field.name
            elif column and column not in header:
                raise LogRefused(f"{path}: {field.name} must be a column, got {column!r}; columns: {', '.join(header)}")
        return replace(self, **found)

    def columns(self) -> list[str]:
        """Return the columns to read."""
        return list(dict.fromkeys(column for field in fields(self) if (column := getattr(self, field.name))))

    def numbers(self) -> list[str]:
        """Return those of them that hold numbers."""
        named = (self.reward, self.propensity, self.target_propensity, self.n_actions)
        return [column for column in (*named, self.model_logged, self.model_target) if column]


@dataclass(frozen=True, slots=True)
class CsvLog:
    """A CSV file and what is asked of it.

    Attributes:
        path: Of the file; `.gz` is unpacked on the way.
        columns: Which column holds what.
        target: A pmf of the target policy; None reads the column `target_propensity`.
        is_uniform: Whether the target policy is uniform over the number of actions, in place of the two.
        n_actions: How many actions there are, numbered from 0; 0 when it is not known, or a column says it.
        any_order: Whether rows may be out of the order of time; estimates do not depend on it.
        floor: The lowest propensity that the logging policy could give what it drew; 0 when it is not known.
        window: Which rows, by their time.
        time_unit: Of times that are numbers; only a window needs it.
    """

    path: Path
    columns: ColumnMap
    target: ContextFreePmf | None = None
    is_uniform: bool = False
    n_actions: int = 0
    any_order: bool = False
    floor: float = 0.0
    window: TimeWindow = ALL_TIME
    time_unit: TimeUnit | None = None

    def count_slots(self) -> int:
        """Return 1: a row is a single action."""
        return 1

    @property
    def unsupported(self) -> str:
        """Return nothing: what a CSV file cannot carry shows in its weights."""
        return ""

    def batches(self, report: ImportReport, *, n_slots: int) -> Iterator[LoggedBatch]:
        """Yield the accepted rows, a block at a time, counting what is rejected.

        Raises:
            LogRefused: the file cannot be read, lacks a column, or its time falls.
        """
        assert n_slots == 1
        yield from report.watch(_Reader(self, report).run())


class _Reader:
    """Reads one file once."""

    def __init__(self, log: CsvLog, report: ImportReport) -> None:
        self._log = log
        self._report = report
        self._map = log.columns
        self._last_time: tuple[float, int] | None = None

    def run(self) -> Iterator[LoggedBatch]:
        blocks = CsvBlocks(self._log.path, self._report)
        self._map = self._log.columns.checked(blocks.header(), self._log.path)
        self._check_target()
        for block, rows in blocks.read(self._map.columns(), numbers=self._map.numbers()):
            yield self._accept(block, rows)

    def _check_target(self) -> None:
        has = self._map
        needs = {"uniform": "n_actions", "pmf": "action", "column": "target_propensity"}
        kind = "uniform" if self._log.is_uniform else "column" if self._log.target is None else "pmf"
        if not (getattr(has, needs[kind]) or (kind == "uniform" and self._log.n_actions)):
            raise LogRefused(f"{self._log.path}: the target policy needs a column for {needs[kind]}; map one")
        if self._log.target is not None and self._log.target.has_positions and not has.position:
            raise LogRefused(f"{self._log.path}: the target policy needs a column for position; map one")
        if self._log.window and not has.time:
            raise LogRefused(f"{self._log.path}: a time to start or end at needs a column for time; map one")

    def _accept(self, block: pa.RecordBatch, rows: Int64Array) -> LoggedBatch:
        """Return the rows that can be used, rejecting the others under the first reason that fits."""
        has = self._map
        check = RowCheck(self._report, rows)
        self._check_time(block, check)
        rewards = check.number("reward", block[has.reward])
        check.refuse("reward: not finite", ~np.isfinite(rewards))
        propensities = check.number("propensity", block[has.propensity])
        check.refuse("propensity: NaN", np.isnan(propensities))
        check.refuse("propensity: 0", propensities == 0.0)
        check.refuse("propensity: below 0", propensities < 0.0)
        check.refuse("propensity: above 1", propensities > 1.0)
        self._check_floor(propensities, check)
        n_feasible = self._n_feasible(block, check)
        targets = self._targets(block, check, n_feasible)
        check.refuse("target_propensity: must be in [0, 1]", ~((targets >= 0.0) & (targets <= 1.0)))
        models = {name: self._model(name, block, check) for name in ("model_logged", "model_target")}
        kept = check.kept
        return LoggedBatch.of_actions(
            rewards=rewards[kept],
            propensities=propensities[kept],
            targets=targets[kept],
            clusters=self._clusters(block, rows)[kept],
            n_feasible=n_feasible[kept],
            model_logged=None if models["model_logged"] is None else models["model_logged"][kept],
            model_target=None if models["model_target"] is None else models["model_target"][kept],
            max_weights=self._max_weights(n_feasible[kept]),
            are_independent=not has.user,
        )

    def _check_floor(self, propensities: Float64Array, check: RowCheck) -> None:
        """Refuse a log that shows that the floor it was said to have is wrong."""
        floor = self._log.floor
        if not floor:
            return
        self._report.floor = floor
        below = check.kept & (propensities < floor * (1.0 - _FLOOR_ROUNDING))
        if below.any():
            row, got = int(check.rows[below][0]), float(propensities[below][0])
            raise LogRefused(
                f"{self._log.path}: propensity must be at least the floor {floor:g}, got {got:g} (row {row})"
            )

    def _max_weights(self, n_feasible: Int64Array) -> Float64Array | None:
        """Return float64 [n]: the largest probability that the target gives an action, over the floor."""
        if not self._log.floor:
            return None
        largest = 1.0 if self._log.target is None else self._log.target.largest
        targets = 1.0 / np.maximum(n_feasible, 1) if self._log.is_uniform else np.full(len(n_feasible), largest)
        max_weights: Float64Array = targets / (self._log.floor * (1.0 - _FLOOR_ROUNDING))
        return max_weights

    def _model(self, name: str, block: pa.RecordBatch, check: RowCheck) -> Float64Array | None:
        column = getattr(self._map, name)
        if not column:
            return None
        values = check.number(name, block[column])
        check.refuse(f"{name}: not finite", ~np.isfinite(values))
        return values

    def _n_feasible(self, block: pa.RecordBatch, check: RowCheck) -> Int64Array:
        has, n = self._map, len(block)
        counts = np.full(n, self._log.n_actions, dtype=np.float64)
        if has.n_actions:
            counts = check.number("n_actions", block[has.n_actions])
            check.refuse("n_actions: must be a whole number above 0", ~((counts >= 1.0) & (counts % 1.0 == 0.0)))
        if has.action and (has.n_actions or self._log.n_actions):
            actions = check.number("action", block[has.action])
            inside = (actions >= 0.0) & (actions < counts) & (actions % 1.0 == 0.0)
            check.refuse("action: outside the set", ~inside)
        return np.where(check.kept, counts, 0.0).astype(np.int64)

    def _targets(self, block: pa.RecordBatch, check: RowCheck, n_feasible: Int64Array) -> Float64Array:
        has = self._map
        if self._log.is_uniform:
            return 1.0 / np.maximum(n_feasible, 1)
        if self._log.target is None:
            return check.number("target_propensity", block[has.target_propensity])
        check.refuse("action: missing", nulls_of(block[has.action]))
        positions = block[has.position] if self._log.target.has_positions else None
        found = self._log.target.of(block[has.action], positions)
        check.refuse("action: outside the set of the pmf", np.isnan(found))
        return found

    def _clusters(self, block: pa.RecordBatch, rows: Int64Array) -> Int64Array:
        by_row = clusters_of_rows(int(rows[0]), len(rows)) if len(rows) else rows
        if not self._map.user:
            return by_row
        users = block[self._map.user].dictionary_encode()
        groups = clusters_of_users(users.dictionary.to_pylist())
        codes = users.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return np.where(codes >= 0, groups[codes] if len(groups) else 0, by_row)

    def _check_time(self, block: pa.RecordBatch, check: RowCheck) -> None:
        if not self._map.time:
            return
        times, are_numbers = check.time(block[self._map.time])
        if not self._log.any_order:
            self._check_order(times, check)
        if self._log.window:
            self._filter(times, are_numbers, check)

    def _check_order(self, times: Float64Array, check: RowCheck) -> None:
        known, rows = times[check.kept], check.rows[check.kept]
        if not len(known):
            return
        if self._last_time is not None:
            known, rows = np.append(self._last_time[0], known), np.append(self._last_time[1], rows)
        falls = np.flatnonzero(np.diff(known) < 0.0)
        if len(falls):
            row = int(rows[falls[0] + 1])
            raise LogRefused(
                f"{self._log.path}: time must not fall, got an earlier one in row {row} than in row "
                f"{int(rows[falls[0]])}; sort the file, or say that any order will do"
            )
        self._last_time = float(known[-1]), int(rows[-1])

    def _filter(self, times: Float64Array, are_numbers: BoolArray, check: RowCheck) -> None:
        unit, window = self._log.time_unit, self._log.window
        if unit is None and (are_numbers & check.kept).any():
            row = int(check.rows[are_numbers & check.kept][0])
            raise LogRefused(f"{self._log.path}: time is a number in row {row}: say in which unit (--time-unit)")
        us = times if unit is None else np.where(are_numbers, times * _US_OF[unit], times)
        check.leave_out(~((us >= window.from_us) & (us < window.to_us)))
