"""A whole `hone serve` with who calls it and who judges it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from service.adapters.embedded_store import socket_path
from service.config import load_config
from tests.faults.load import Load
from tests.faults.site import SETTINGS
from tests.faults.tape import Tape
from tests.faults.verdict import Verdict
from tests.stack import Stack, eventually, short_folder, start_stack


@dataclass
class Supervised:
    """A stack under test."""

    stack: Stack
    load: Load
    tape: Tape
    verdict: Verdict

    def kill(self, name: str) -> None:
        """Kill a process at once; after the supervisor, wait for the end of its children and start it again."""
        eventually(lambda: name in self.stack.processes(), timeout_s=90.0, what=f"{name} runs")
        running = self.stack.processes()
        with suppress(KeyError, ProcessLookupError):
            self.stack.kill(name)
        if name == "serve":
            self.restart(running)

    def restart(self, earlier: Mapping[str, int], *, failpoint: str | None = None) -> None:
        """Start `hone serve` once nothing of its dead predecessor is left."""
        eventually(
            lambda: not any(_is_running(pid) for pid in earlier.values()), timeout_s=60.0, what="the children end too"
        )
        environment = {k: v for k, v in self.stack.environment.items() if k != "HONE_FAILPOINT"}
        self.stack.environment = {**environment, **({"HONE_FAILPOINT": failpoint} if failpoint else {})}
        self.stack.start()

    def assert_sound(self) -> None:
        """Let everything come to rest and judge it."""
        self.stack.wait_ready()
        for _ in range(3):
            self.load.step()
        self.load.settle()
        self.verdict.assert_sound(self.load)


@contextmanager
def supervised() -> Iterator[Supervised]:
    """Yield a stack on a part of the demo data."""
    with short_folder() as folder:
        stack = start_stack(folder, env=SETTINGS, n_items=300)
        url = f"unix://{socket_path(folder)}"
        tape = Tape(url)
        config = load_config(environment={"HONE_DATA_DIR": str(folder), **SETTINGS})
        try:
            yield Supervised(stack, Load(stack.url), tape, Verdict(config, url, tape))
        finally:
            for pid in stack.processes().values():
                # What a test stopped could not end.
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            tape.stop()
            stack.stop()


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
