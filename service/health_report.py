"""What a worker answers when asked for health: the published verdict, and what only the worker itself can see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from service.errors import StoreUnavailable
from service.health import VERDICT_TTL_MS
from service.messages import HealthAlarm, HealthVerdict
from service.metrics import Metrics
from service.ports import HealthBoard
from service.wire import HealthReport

_LEVELS = {"warning": 1, "alarm": 2}


class Versioned(Protocol):
    """A model that a worker serves."""

    @property
    def version(self) -> int:
        """Return the published version that is served."""


class HealthDesk:
    """Answers for one worker.

    Args:
        served: models by name.
        n_items: size of the catalogue.
        clock: unix milliseconds.
    """

    def __init__(
        self,
        *,
        board: HealthBoard,
        served: Mapping[str, Versioned],
        n_items: Callable[[], int],
        metrics: Metrics,
        clock: Callable[[], int],
    ) -> None:
        self._board = board
        self._served = served
        self._n_items = n_items
        self._metrics = metrics
        self._clock = clock

    async def report(self) -> HealthReport:
        """Return the report and show it as metrics; it never fails, since not knowing is an alarm."""
        now_ms = self._clock()
        verdict = await fetch_verdict(self._board, now_ms=now_ms)
        values, alarms = dict(verdict.values), list(verdict.alarms)
        if self._n_items() and "items_shown" in values:
            values["catalogue_coverage"] = values["items_shown"] / self._n_items()
        for name, published in verdict.model_versions.items():
            served = self._served[name].version if name in self._served else published
            if served < published:
                reason = f"this worker serves version {served} of {name}, {published} was published a while ago"
                alarm = HealthAlarm(
                    name=f"follower_lag:{name}",
                    level="warning",
                    since_unix_ms=now_ms,
                    value=float(served),
                    limit=float(published),
                    reason=reason,
                )
                alarms.append(alarm)
        report = HealthReport(status=status_of(alarms), alarms=alarms, values=values, at_unix_ms=verdict.at_unix_ms)
        self._show(report)
        return report

    def _show(self, report: HealthReport) -> None:
        self._metrics.health_status.set(_LEVELS.get(report.status, 0))
        self._metrics.health_value.clear()
        for name, value in report.values.items():
            self._metrics.health_value.labels(name).set(value)
        self._metrics.health_alarm.clear()
        for alarm in report.alarms:
            self._metrics.health_alarm.labels(alarm.name).set(_LEVELS[alarm.level])


async def fetch_verdict(board: HealthBoard, *, now_ms: int) -> HealthVerdict:
    """Return the published verdict; without one, a verdict that says so: nobody watches."""
    reason = f"no verdict was published for {VERDICT_TTL_MS // 1000} s: the health watch is down or cannot write"
    try:
        stored = await board.fetch()
        if stored is not None:
            return msgspec.msgpack.decode(stored, type=HealthVerdict)
    except StoreUnavailable as error:
        reason = f"the store does not answer: {error}"
    alarm = HealthAlarm(
        name="no_watch", level="alarm", since_unix_ms=now_ms, value=0.0, limit=VERDICT_TTL_MS / 1000, reason=reason
    )
    return HealthVerdict(at_unix_ms=now_ms, journal_ms=0, alarms=[alarm], values={}, model_versions={})


def status_of(alarms: Sequence[HealthAlarm]) -> Literal["ok", "warning", "alarm"]:
    """Return the worst level there is."""
    if any(alarm.level == "alarm" for alarm in alarms):
        return "alarm"
    return "warning" if alarms else "ok"
