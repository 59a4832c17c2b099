"""Whatever runs beside a worker's requests and ends by a mistake is told in the log and counted, whichever it is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from service.bootstrap import Worker, build_worker
from service.config import Config, load_config
from tests.stack import short_folder, start_store

TASKS = ["spool", "follower", "rankings", "index"]
_WITHIN_S = 10.0


@pytest.fixture(scope="module")
def config() -> Iterator[Config]:
    """A configuration whose store runs."""
    with short_folder() as folder:
        _, stop = start_store(folder)
        yield load_config(environment={"HONE_DATA_DIR": str(folder)})
        stop()


async def broken(*_: object) -> None:
    raise TypeError("a mistake of ours")


async def ended(*_: object) -> None:
    """End as if there were nothing left to do."""


def n_stopped(worker: Worker, task: str) -> float:
    return worker.metrics.registry.get_sample_value("hone_tasks_stopped_total", {"task": task}) or 0.0


def stopped(logs: list[dict[str, object]]) -> list[dict[str, object]]:
    return [log for log in logs if log["event"] == "worker.task_stopped"]


def replace_task(worker: Worker, task: str, by: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something else run in place of one of the tasks."""
    parts = {"spool": (worker.spool, "_ship_forever"), "follower": (worker.follower, "run")}
    parts |= {"rankings": (Worker, "_rank"), "index": (worker.index_swap, "run")}  # type: ignore[dict-item]
    where, name = parts[task]
    monkeypatch.setattr(where, name, by)


async def until_not_following(worker: Worker) -> None:
    async with asyncio.timeout(_WITHIN_S):
        while worker.is_following:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    await asyncio.sleep(0)


@pytest.mark.parametrize("task", TASKS)
async def test_a_task_that_ends_by_a_mistake_is_named_with_its_traceback_and_counted(
    task: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = build_worker(config)
    replace_task(worker, task, broken, monkeypatch)
    with capture_logs() as logs:
        await worker.start()
        await until_not_following(worker)
        (told,) = stopped(logs)
        assert (told["task"], told["error"], told["log_level"]) == (task, "a mistake of ours", "error")
        assert isinstance(told["exc_info"], TypeError)
        assert told["exc_info"].__traceback__ is not None
        assert {name: n_stopped(worker, name) for name in TASKS} == {name: float(name == task) for name in TASKS}
        await worker.close()
    assert len(stopped(logs)) == 1


@pytest.mark.parametrize("task", ["spool", "rankings"])
async def test_a_task_that_just_ends_while_the_worker_runs_is_a_mistake_too(
    task: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = build_worker(config)
    replace_task(worker, task, ended, monkeypatch)
    with capture_logs() as logs:
        await worker.start()
        await until_not_following(worker)
        assert [(told["task"], told["error"]) for told in stopped(logs)] == [(task, "it just ended")]
        await worker.close()
    assert n_stopped(worker, task) == 1.0


async def test_a_worker_that_is_closed_tells_of_nothing(config: Config) -> None:
    """The control; before its start and after its end a worker does not follow."""
    worker = build_worker(config)
    assert not worker.is_following
    with capture_logs() as logs:
        await worker.start()
        assert worker.is_following
        await worker.close()
    assert not worker.is_following
    assert stopped(logs) == []
    assert [n_stopped(worker, name) for name in TASKS] == [0.0] * len(TASKS)
