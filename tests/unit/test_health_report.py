"""A worker answers with the published verdict, and a watch that is gone is an alarm."""

from __future__ import annotations

from prometheus_client import generate_latest

from service.adapters.memory_store import MemoryHealthBoard
from service.adapters.memory_streams import MemoryStore
from service.errors import StoreUnavailable
from service.health import VERDICT_TTL_MS
from service.health_report import HealthDesk
from service.messages import HealthAlarm, HealthVerdict, encode
from service.metrics import Metrics

_AT = 1_700_000_000_000


class _Served:
    def __init__(self, version: int) -> None:
        self.version = version


class _Desk:
    def __init__(self, *, served: int = 7) -> None:
        self.now_ms = _AT
        self.board = MemoryHealthBoard(MemoryStore(lambda: self.now_ms))
        self.metrics = Metrics()
        self.desk = HealthDesk(
            board=self.board,
            served={"films": _Served(served)},
            n_items=lambda: 200,
            metrics=self.metrics,
            clock=lambda: self.now_ms,
        )

    async def publish(self, *alarms: HealthAlarm) -> None:
        verdict = HealthVerdict(
            at_unix_ms=_AT,
            journal_ms=_AT,
            alarms=list(alarms),
            values={"items_shown": 50.0},
            model_versions={"films": 7, "unknown": 9},
        )
        await self.board.publish(encode(verdict), ttl_ms=VERDICT_TTL_MS)

    def shown(self) -> str:
        return generate_latest(self.metrics.registry).decode()


def _alarm(name: str, level: str) -> HealthAlarm:
    return HealthAlarm(name=name, level=level, since_unix_ms=_AT, value=0.1, limit=0.5, reason="r")


async def test_a_healthy_loop_is_ok_with_what_was_measured() -> None:
    desk = _Desk()
    await desk.publish()
    report = await desk.desk.report()
    assert (report.status, report.alarms) == ("ok", [])
    assert report.values == {"items_shown": 50.0, "catalogue_coverage": 0.25}
    assert 'hone_health_value{name="catalogue_coverage"} 0.25' in desk.shown()
    assert "hone_health_status 0.0" in desk.shown()


async def test_the_worst_level_is_the_status() -> None:
    desk = _Desk()
    await desk.publish(_alarm("item_variety", "warning"))
    assert (await desk.desk.report()).status == "warning"
    await desk.publish(_alarm("item_variety", "warning"), _alarm("genre_collapse", "alarm"))
    assert (await desk.desk.report()).status == "alarm"
    assert 'hone_health_alarm{name="genre_collapse"} 2.0' in desk.shown()


async def test_what_is_well_again_leaves_the_metrics() -> None:
    desk = _Desk()
    await desk.publish(_alarm("genre_collapse", "alarm"))
    await desk.desk.report()
    await desk.publish()
    await desk.desk.report()
    assert "genre_collapse" not in desk.shown()


async def test_a_watch_that_publishes_no_more_is_an_alarm() -> None:
    desk = _Desk()
    assert [alarm.name for alarm in (await desk.desk.report()).alarms] == ["no_watch"]
    await desk.publish()
    desk.now_ms += VERDICT_TTL_MS
    report = await desk.desk.report()
    assert (report.status, report.alarms[0].name) == ("alarm", "no_watch")
    assert "hone_health_status 2.0" in desk.shown()


async def test_a_store_that_does_not_answer_is_an_alarm_and_no_error() -> None:
    desk = _Desk()

    async def fetch() -> bytes | None:
        raise StoreUnavailable("gone")

    desk.board.fetch = fetch  # type: ignore[method-assign]
    report = await desk.desk.report()
    assert report.status == "alarm"
    assert "the store does not answer: gone" in report.alarms[0].reason


async def test_a_worker_that_serves_an_old_version_says_so() -> None:
    desk = _Desk(served=6)
    await desk.publish()
    (alarm,) = (await desk.desk.report()).alarms
    assert (alarm.name, alarm.level, alarm.value, alarm.limit) == ("follower_lag:films", "warning", 6.0, 7.0)
