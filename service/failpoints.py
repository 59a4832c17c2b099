"""Named points in the loop where tests make a process die, stop or fail to write; nothing happens unless armed.

A point is armed from outside only: by a test in the same process, or by the environment when a process starts. No
request, file or store entry can arm one.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import structlog

# What fails here is a call to the file system: `eio` and `enospc` are real possibilities.
FilePoint = Literal[
    "files.write",
    "files.sync",
    "files.rename",
    "files.sync_folder",
    "spool.open",
    "spool.append",
    "spool.sync",
    "spool.empty",
    "spool.adopt",
    "spool.adopt_sync",
    "spool.adopt_remove",
    "spool.close",
    "archive.rows",
    "archive.rows_sync",
    "archive.leftovers",
    "archive.merge",
    "archive.merge_remove",
    "archive.drop",
]
# Between two effects, or before or after a call of the store: only an end or a pause makes a difference here.
StepPoint = Literal[
    "spool.appended",
    "spool.synced",
    "spool.ship",
    "spool.shipped",
    "spool.claimed",
    "recommend.spool",
    "recommend.spooled",
    "recommend.claimed",
    "feedback.journal",
    "feedback.journaled",
    "feedback.spool",
    "feedback.users",
    "feedback.acknowledge",
    "feedback.erase",
    "feedback.erased",
    "journal.read",
    "journal.released",
    "learner.epoch",
    "learner.lease",
    "learner.release",
    "learner.restore",
    "learner.restored",
    "learner.join",
    "learner.learn",
    "learner.applied",
    "learner.artefact",
    "learner.adopt",
    "learner.adopted",
    "learner.publish",
    "learner.published",
    "learner.snapshot",
    "learner.snapshot_published",
    "learner.repair",
    "learner.checkpoint",
    "learner.checkpointed",
    "learner.heartbeat",
    "counting.publish",
    "counting.published",
    "counting.publish_pairs",
    "archiver.rebuild",
    "archiver.write",
    "archiver.written",
    "archiver.trim",
    "archiver.trimmed",
    "archiver.upkeep",
    "archive.note",
    "archive.place",
    "archive.placed",
    "archive.state",
    "archive.stored",
    "archive.merged",
    "archive.dropped",
    "archive.erase",
    "archive.erased",
    "follower.item",
    "follower.delta",
    "follower.snapshot",
    "follower.serve",
    "index.load",
    "index.built",
    "index.served",
    "config.journal",
    "config.publish",
    "supervise.start",
    "supervise.restart",
    "supervise.restart_store",
]
Point = FilePoint | StepPoint

FILE_POINTS: frozenset[str] = frozenset(get_args(FilePoint))
POINTS: frozenset[str] = FILE_POINTS | frozenset(get_args(StepPoint))
VARIABLE = "HONE_FAILPOINT"
_FORM = f"{VARIABLE} must be point:action or point:action:nth"
_ERRORS = {"eio": errno.EIO, "enospc": errno.ENOSPC}
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

# Told the name of every point that is reached. The one state of this module: it belongs to the process, not to a part.
_handler: Callable[[str], None] | None = None

_log = structlog.get_logger("hone.failpoints")


def reach(point: Point) -> None:
    """Pass a point; whoever armed the process decides what happens here.

    Raises:
        OSError: as armed.
        ValueError: the process is armed and the point is not declared.
    """
    if _handler is not None:
        if point not in POINTS:
            raise ValueError(f"failpoint {point!r} is not declared in {__name__}")
        _handler(point)


def arm(handler: Callable[[str], None] | None) -> None:
    """Call a handler at every point from now on; None disarms."""
    global _handler
    _handler = handler


@contextmanager
def armed(handler: Callable[[str], None]) -> Iterator[None]:
    """Arm a handler for a while."""
    arm(handler)
    try:
        yield
    finally:
        arm(None)


def arm_from_environment(environment: Mapping[str, str]) -> None:
    """Arm what `HONE_FAILPOINT` says, `point:action[:nth]`: once, the nth time that the point is reached.

    Actions are `kill` (SIGKILL) and `stop` (SIGSTOP) of this process, and at points of the file system `eio` and
    `enospc`.

    Raises:
        ValueError: it does not say that.
    """
    text = environment.get(VARIABLE)
    if text is not None:
        arm(parse(text))
        # Logs are not configured yet.
        sys.stderr.write(f"hone: {VARIABLE} is set: this process will fail at {text}\n")


def parse(text: str) -> Callable[[str], None]:
    """Return the handler that a text stands for.

    Raises:
        ValueError: the text stands for none.
    """
    point, separator, rest = text.partition(":")
    action, _, nth_text = rest.partition(":")
    if not separator:
        raise ValueError(f"{_FORM}, got {text!r}")
    if point not in POINTS:
        raise ValueError(f"{_FORM}, got the undeclared point {point!r}")
    if action not in (*_SIGNALS, *_ERRORS):
        raise ValueError(f"{_FORM}, with an action of {', '.join((*_SIGNALS, *_ERRORS))}, got {action!r}")
    if action in _ERRORS and point not in FILE_POINTS:
        raise ValueError(f"{_FORM}; {point!r} writes no file, so {action} cannot happen there")
    if nth_text and (not nth_text.isdecimal() or int(nth_text) < 1):
        raise ValueError(f"{_FORM}, with nth from 1, got {nth_text!r}")
    n_left = int(nth_text or 1)

    def handle(reached: str) -> None:
        nonlocal n_left
        if reached != point:
            return
        n_left -= 1
        if n_left == 0:
            _log.warning("failpoint.fired", failpoint=text)
            _act(action)

    return handle


def _act(action: str) -> None:
    if action in _ERRORS:
        number = _ERRORS[action]
        raise OSError(number, os.strerror(number), VARIABLE)
    os.kill(os.getpid(), _SIGNALS[action])
