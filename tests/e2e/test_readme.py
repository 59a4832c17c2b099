"""The README's commands do what it says: each is run on a fresh stack and its output compared with the printed one."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import Stack, short_folder, start_stack

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def fresh() -> Iterator[Stack]:
    """A stack of its own: the transcript begins with an empty model and an empty journal."""
    with short_folder() as folder:
        # A salt of its own would draw another slate each time, and now and then explore.
        running = start_stack(folder, env={"HONE_SALT": "readme"})
        try:
            yield running
        finally:
            running.stop()


def transcript() -> list[tuple[str, str]]:
    """Every command of the README with the output printed below it."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output.strip()))
    return found


def test_make_targets_of_the_readme_exist() -> None:
    targets = [shlex.split(command)[1] for command, _ in transcript() if command.startswith("make ")]
    assert targets == ["run", "test"]
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_the_transcript_holds(fresh: Stack) -> None:
    commands = [(command, printed) for command, printed in transcript() if not command.startswith("make ")]
    assert len(commands) >= 6
    environment = {**os.environ, "HONE_DATA_DIR": str(fresh.data_dir)}
    for command, printed in commands:
        real = command.replace("http://127.0.0.1:8080", fresh.url)
        ran = subprocess.run(shlex.split(real), cwd=ROOT, env=environment, check=True, capture_output=True, timeout=60)
        got = ran.stdout.decode().strip()
        if " ... " in printed:
            # A shortened output: every piece of it stands in the real one, in this order.
            position = 0
            for piece in filter(None, (piece.strip(" .") for piece in printed.split(" ... "))):
                found = without_numbers(got).find(without_numbers(piece), position)
                assert found >= 0, (command, piece, got)
                position = found
        elif printed.startswith(("{", "[")):
            assert shape(json.loads(got)) == shape(json.loads(printed)), command
        else:
            assert without_numbers(got) == without_numbers(printed), command


def without_numbers(text: str) -> str:
    """Blank what differs from run to run: numbers, and the ids of films."""
    return re.sub(r"tt\d+|\d+(\.\d+)?(e-?\d+)?", "#", text)


def shape(tree: object) -> object:
    """What stays the same from run to run: keys, types and lengths, and the text of messages."""
    if isinstance(tree, dict):
        return {key: shape(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [shape(value) for value in tree]
    return without_numbers(tree) if isinstance(tree, str) else type(tree).__name__
