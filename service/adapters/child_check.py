"""Load a model in a child process: what would crash the loader crashes the child."""

from __future__ import annotations

import asyncio
import sys
from typing import NamedTuple

import msgspec

from bandit.explorer import ExplorerSpec
from service.served_explorer import probe_explorer

_TIMEOUT_S = 30.0


class _Task(NamedTuple):
    spec: ExplorerSpec
    model_bytes: bytes


async def check_in_child(spec: ExplorerSpec, model_bytes: bytes) -> bool:
    """Return whether a process of its own could load an explorer and ask it."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service.adapters.child_check",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await child.communicate(msgspec.msgpack.encode(_Task(spec, model_bytes)))
    except TimeoutError:
        child.kill()
        await child.wait()
    return child.returncode == 0


if __name__ == "__main__":
    task = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Task)
    probe_explorer(task.spec, task.model_bytes)
