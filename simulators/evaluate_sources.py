"""From what a command was told of a log to the log with its target policy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec
import numpy as np

from bandit.exploration import Epsilon, Exploration, Greedy
from bandit.support import Float64Array
from service.config import Config
from service.export import Selection
from simulators.counterfactual import TargetPolicy
from simulators.evaluate_log import LogSource
from simulators.logged.archive_log import ArchiveLog
from simulators.logged.csv_log import ColumnMap, CsvLog, TimeUnit
from simulators.logged.dsjson_log import DsjsonLog, DsjsonTarget
from simulators.logged.open_bandit import CSV_COLUMNS
from simulators.logged.pmf_file import ContextFreePmf
from simulators.logged.time_window import ALL_TIME, TimeWindow


class LogFormat(StrEnum):
    """Formats of logs."""

    ARCHIVE = "archive"
    DSJSON = "dsjson"
    CSV = "csv"
    OPEN_BANDIT = "open-bandit"


class PolicyName(StrEnum):
    """Target policies that a command can name."""

    COLUMN = "column"
    PMF = "pmf"
    UNIFORM = "uniform"
    GREEDY = "greedy"
    EPSILON = "epsilon"
    LOGGED = "logged"
    CONFIGURED = "configured"


_POLICIES = {
    LogFormat.ARCHIVE: (
        PolicyName.UNIFORM,
        PolicyName.GREEDY,
        PolicyName.EPSILON,
        PolicyName.LOGGED,
        PolicyName.CONFIGURED,
    ),
    LogFormat.DSJSON: (PolicyName.UNIFORM, PolicyName.GREEDY, PolicyName.EPSILON, PolicyName.COLUMN),
    LogFormat.CSV: (PolicyName.COLUMN, PolicyName.PMF, PolicyName.UNIFORM),
    LogFormat.OPEN_BANDIT: (PolicyName.PMF, PolicyName.UNIFORM),
}
_DSJSON_TARGETS: dict[PolicyName, DsjsonTarget] = {
    PolicyName.UNIFORM: "uniform",
    PolicyName.GREEDY: "greedy",
    PolicyName.EPSILON: "epsilon",
    PolicyName.COLUMN: "column",
}


class Unanswerable(ValueError):
    """What was asked does not go together; the message says what does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRequest:
    """What a command was told.

    Attributes:
        path: Of the file, or of the archive's folder.
        log_format: Of it.
        policy: The target policy.
        rate: Exploration rate of `epsilon`; None keeps the configured one.
        columns: Mapping of CSV columns, as text.
        n_actions: Number of actions in CSV; 0 when not known.
        target_pmf: File of `pmf`.
        surface: Of an archive's decisions; empty for all.
        any_order: Whether time may fall.
        floor: Lowest propensity that the logging policy of a CSV log could give; 0 when not known.
        window: Which part of the log, by time.
        time_unit: Of CSV times that are numbers; None when not said.
        embedding: What makes actions alike, for MIPS: a column of an archive, a path in an action of DSJSON.
        reward_model: VW's arguments of a model that learns a DSJSON log on the way, for model-based estimates.
        position_weights: float64 [any], for the first slots.
    """

    path: Path
    log_format: LogFormat
    policy: PolicyName
    rate: float | None = None
    columns: str = ""
    n_actions: int = 0
    target_pmf: Path | None = None
    surface: str = ""
    any_order: bool = False
    floor: float = 0.0
    window: TimeWindow = ALL_TIME
    time_unit: TimeUnit | None = None
    embedding: str = ""
    reward_model: str = ""
    position_weights: Float64Array


def parse_position_weights(text: str) -> Float64Array:
    """Read `1,0.7,0.5`.

    Raises:
        Unanswerable: one of them is not a finite number of at least 0.

    >>> parse_position_weights("1,0.5").tolist()
    [1.0, 0.5]
    """
    try:
        weights = np.array([float(weight) for weight in filter(None, text.split(","))])
    except ValueError:
        weights = np.array([np.nan])
    if not (np.isfinite(weights) & (weights >= 0.0)).all():
        raise Unanswerable(f"position weights must be numbers of at least 0 such as 1,0.7, got {text!r}")
    return weights


def parse_window(start: str, end: str) -> TimeWindow:
    """Read the options of a time window.

    Raises:
        Unanswerable: they are no dates, or nothing can be between them.
    """
    try:
        return TimeWindow.parse(start, end)
    except ValueError as error:
        raise Unanswerable(str(error)) from error


def build_source(request: LogRequest, config: Config) -> LogSource:
    """Return the log with its target policy.

    Raises:
        Unanswerable: the format has no such target policy, or something that it needs is missing.
        LogRefused: the file of the pmf cannot be used.
    """
    allowed = _POLICIES[request.log_format]
    if request.policy not in allowed:
        raise Unanswerable(
            f"the target policy from {request.log_format.value} must be {', '.join(p.value for p in allowed)}, "
            f"got {request.policy.value}"
        )
    if not 0.0 <= (request.rate or 0.0) <= 1.0:
        raise Unanswerable(f"the rate must be in [0, 1], got {request.rate}")
    if not 0.0 <= request.floor <= 1.0:
        raise Unanswerable(f"the floor must be in [0, 1], got {request.floor}")
    if request.floor and request.log_format not in (LogFormat.CSV, LogFormat.OPEN_BANDIT):
        raise Unanswerable(f"the floor of {request.log_format.value} follows from the log itself")
    _check_actions(request)
    if request.log_format is LogFormat.ARCHIVE:
        return ArchiveLog(
            config=config,
            folder=request.path,
            selection=Selection(surface=request.surface, from_ms=request.window.from_ms, to_ms=request.window.to_ms),
            target=_archive_target(request, config),
            position_weights=request.position_weights,
            embedding=request.embedding,
        )
    if request.log_format is LogFormat.DSJSON:
        rate = 0.1 if request.rate is None else request.rate
        return DsjsonLog(
            request.path,
            _DSJSON_TARGETS[request.policy],
            rate=rate,
            any_order=request.any_order,
            window=request.window,
            reward_model=request.reward_model.split(),
            embedding=request.embedding,
            position_weights=request.position_weights,
        )
    return _csv(request)


def _check_actions(request: LogRequest) -> None:
    """Refuse what needs more of every action than the log, or the target policy, says."""
    log_format = request.log_format
    if request.reward_model and log_format is not LogFormat.DSJSON:
        where = (
            "an archive has the scores that served" if log_format is LogFormat.ARCHIVE else "map a column to its word"
        )
        raise Unanswerable(f"a reward model learns from the actions of DSJSON, got {log_format.value}: {where}")
    if request.embedding and log_format not in (LogFormat.ARCHIVE, LogFormat.DSJSON):
        raise Unanswerable(
            f"mips needs the probability and the embedding of every action, which {log_format.value} does not have; "
            "archive and dsjson do"
        )
    if (request.embedding or request.reward_model) and request.policy is PolicyName.COLUMN:
        raise Unanswerable("a column says of the target policy what it does with the shown action alone")


def _csv(request: LogRequest) -> CsvLog:
    if request.policy is PolicyName.PMF and request.target_pmf is None:
        raise Unanswerable("the target policy pmf needs the file of its probabilities")
    try:
        columns = ColumnMap.parse(request.columns)
    except ValueError as error:
        raise Unanswerable(str(error)) from error
    if request.log_format is LogFormat.OPEN_BANDIT:
        columns = columns if request.columns else CSV_COLUMNS
    return CsvLog(
        request.path,
        columns,
        target=None if request.target_pmf is None else ContextFreePmf.read(request.target_pmf),
        is_uniform=request.policy is PolicyName.UNIFORM,
        n_actions=request.n_actions,
        any_order=request.any_order,
        floor=request.floor,
        window=request.window,
        time_unit=request.time_unit,
    )


def _archive_target(request: LogRequest, config: Config) -> TargetPolicy:
    if request.policy is PolicyName.LOGGED:
        return TargetPolicy()
    if request.policy is PolicyName.GREEDY:
        return TargetPolicy(exploration=Greedy())
    if request.policy is PolicyName.UNIFORM:
        return TargetPolicy(exploration=Epsilon(rate=1.0, uniform_share=1.0))
    surface = config.surfaces.get(request.surface)
    if request.policy is PolicyName.CONFIGURED:
        if surface is None:
            raise Unanswerable(f"the configured policy is that of a surface, one of {', '.join(config.surfaces)}")
        return TargetPolicy(exploration=surface.exploration, rules=surface.rules)
    configured: Exploration = Epsilon() if surface is None else surface.exploration
    epsilon = configured if isinstance(configured, Epsilon) else Epsilon()
    return TargetPolicy(
        exploration=epsilon if request.rate is None else msgspec.structs.replace(epsilon, rate=request.rate)
    )
