"""Failpoints: declared, placed, armed from outside only, and nothing when not armed."""

from __future__ import annotations

import ast
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service import failpoints
from service.config import load_config
from service.failpoints import FILE_POINTS, POINTS, arm_from_environment, armed, parse, reach

SERVICE = Path(failpoints.__file__).parent


def calls_of(name: str) -> list[tuple[Path, ast.Call]]:
    return [
        (path, node)
        for path in sorted(SERVICE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


def test_every_declared_point_is_placed_and_every_placed_point_is_declared():
    placed = [ast.literal_eval(call.args[0]) for _, call in calls_of("reach")]
    assert set(placed) == POINTS
    assert len(POINTS) >= 40


def test_only_the_start_of_a_process_arms():
    armings = {
        path.relative_to(SERVICE) for name in ("arm", "armed", "arm_from_environment") for path, _ in calls_of(name)
    }
    assert armings == {Path("failpoints.py"), Path("cli/__init__.py")}


def test_a_point_does_nothing_when_not_armed():
    reach("spool.append")


def test_an_armed_handler_hears_every_point_and_an_undeclared_one_is_refused():
    heard = []
    with armed(heard.append):
        reach("spool.append")
        reach("spool.sync")
        with pytest.raises(ValueError, match=r"'spool\.nowhere' is not declared"):
            reach("spool.nowhere")
    reach("spool.append")
    assert heard == ["spool.append", "spool.sync"]


@pytest.mark.parametrize(("action", "number"), [("eio", errno.EIO), ("enospc", errno.ENOSPC)])
def test_an_error_comes_once_at_the_nth_time(action, number):
    with armed(parse(f"spool.append:{action}:2")):
        reach("spool.append")
        reach("spool.sync")
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is compared below
            reach("spool.append")
        reach("spool.append")
    assert caught.value.errno == number


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "point:action"),
        ("spool.append", "point:action"),
        ("spool.nowhere:kill", "undeclared point 'spool.nowhere'"),
        ("spool.append:explode", "got 'explode'"),
        ("spool.append:kill:0", "nth from 1, got '0'"),
        ("spool.append:kill:x", "nth from 1, got 'x'"),
        ("learner.join:eio", "writes no file"),
    ],
)
def test_a_malformed_text_is_refused(text, reason):
    with pytest.raises(ValueError, match="HONE_FAILPOINT") as caught:
        arm_from_environment({"HONE_FAILPOINT": text})
    assert reason in str(caught.value)


def test_no_variable_arms_nothing():
    arm_from_environment({})
    assert failpoints._handler is None


def test_the_configuration_leaves_the_variable_alone():
    assert load_config(environment={"HONE_FAILPOINT": "spool.append:kill"}) == load_config(environment={})


def run(text: str, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HONE_FAILPOINT": text}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_a_command_with_a_malformed_variable_ends_with_a_line_that_says_so():
    ended = run(
        "learner.joyn:kill", "import sys; sys.argv = ['hone', 'config', 'check']; from service.cli import main; main()"
    )
    assert ended.returncode == 1
    assert "hone: HONE_FAILPOINT must be point:action" in ended.stderr
    assert "learner.joyn" in ended.stderr


def test_a_process_dies_at_its_point():
    ended = run(
        "spool.append:kill",
        "import os; from service.failpoints import *; arm_from_environment(os.environ);"
        "reach('spool.sync'); print('alive', flush=True); reach('spool.append'); print('too late', flush=True)",
    )
    assert ended.returncode == -signal.SIGKILL
    assert "alive" in ended.stdout
    assert "too late" not in ended.stdout


def test_points_of_the_file_system_are_points():
    assert FILE_POINTS < POINTS
