"""Group commits: one write at a time for everybody who waits, each told its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from service.group_commit import GroupCommit


class Log:
    """Takes groups; each write waits until it is let through."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.through = asyncio.Semaphore(0)
        self.fail: Exception | None = None

    async def commit(self, parts: Sequence[str]) -> list[Exception | None]:
        self.groups.append(list(parts))
        await self.through.acquire()
        if self.fail is not None:
            raise self.fail
        return [ValueError(part) if part.startswith("bad") else None for part in parts]


async def _begun(*calls: asyncio.Task[None]) -> None:
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(call.done() for call in calls)


async def test_parts_that_come_during_a_commit_are_committed_together_after_it() -> None:
    log = Log()
    commits = GroupCommit(log.commit)
    first = asyncio.create_task(commits.add("a"))
    await _begun(first)
    others = [asyncio.create_task(commits.add(part)) for part in "bcd"]
    await _begun(first, *others)
    assert log.groups == [["a"]]
    log.through.release()
    await first
    await _begun(*others)
    assert log.groups == [["a"], ["b", "c", "d"]]
    log.through.release()
    await asyncio.gather(*others)


async def test_what_is_wrong_with_one_part_is_told_to_its_caller_alone() -> None:
    log = Log()
    log.through.release()
    commits = GroupCommit(log.commit)
    outcomes = await asyncio.gather(*map(commits.add, ("a", "bad", "b")), return_exceptions=True)
    assert log.groups == [["a", "bad", "b"]]
    assert outcomes[0] is None
    assert outcomes[2] is None
    assert isinstance(outcomes[1], ValueError)


async def test_a_commit_that_fails_fails_everybody_in_it_and_nobody_after_it() -> None:
    log = Log()
    log.fail = OSError("disk full")
    log.through.release()
    commits = GroupCommit(log.commit)
    outcomes = await asyncio.gather(*map(commits.add, "ab"), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OSError, OSError]
    log.fail = None
    log.through.release()
    await commits.add("c")
    assert log.groups == [["a", "b"], ["c"]]


async def test_a_caller_that_is_cancelled_takes_no_other_part_with_it() -> None:
    log = Log()
    commits = GroupCommit(log.commit)
    gone, stays = asyncio.create_task(commits.add("gone")), asyncio.create_task(commits.add("stays"))
    await _begun(gone, stays)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    log.through.release()
    await stays
    assert log.groups == [["gone", "stays"]]


async def test_a_commit_that_is_cancelled_leaves_nobody_waiting_who_came_meanwhile() -> None:
    through = asyncio.Event()

    async def cancelled(parts: Sequence[str]) -> list[Exception | None]:
        await through.wait()
        raise asyncio.CancelledError

    commits = GroupCommit(cancelled)
    first = asyncio.create_task(commits.add("a"))
    await _begun(first)
    meanwhile = asyncio.create_task(commits.add("b"))
    await _begun(first, meanwhile)
    through.set()
    done, _ = await asyncio.wait({first, meanwhile}, timeout=5.0)
    assert done == {first, meanwhile}
    assert first.cancelled()
    assert meanwhile.cancelled()
