"""A store and the processes of the service on it, each started, armed and killed by itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import redis

from service.adapters.embedded_store import EmbeddedStore, die_with_parent, socket_path
from service.config import Config, load_config
from service.private_stack import environment_without_hone
from tests.faults.load import Load
from tests.faults.tape import Tape
from tests.faults.verdict import Verdict
from tests.stack import eventually, free_port, short_folder

START_S = 90.0
# Everything is due soon: windows close, checkpoints are written, files are flushed and the journal is trimmed while a
# test runs.
SETTINGS = {
    "HONE_MODELS__FILMS__BITS": "16",
    "HONE_MODELS__FILMS__CHECKPOINT_S": "0.3",
    "HONE_ARCHIVE__FLUSH_S": "0.3",
    "HONE_ARCHIVE__JOURNAL_KEEP_S": "6",
    "HONE_STORE__LEASE_S": "0.5",
    "HONE_STORE__TIMEOUT_S": "0.5",
    **{
        f"HONE_SURFACES__{surface}__REWARD__{key}": value
        for surface in ("HOME", "SIMILAR", "BECAUSE_YOU_WATCHED", "PLAYLIST")
        for key, value in (("NEGATIVE_WINDOW_S", "1.5"), ("WINDOW_S", "4"))
    },
}
COMMANDS = {"api": ["api"], "learner": ["learn"], "archiver": ["archive"], "standby": ["learn"]}
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["service.cli"])


def _run(arguments: list[str], environment: Mapping[str, str], log_path: str) -> None:
    """Be `hone <arguments>` in a process of its own."""
    die_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["hone", *arguments]
    from service.cli import main

    main()


class Spawned:
    """A process under a program that preloads a library, with the methods of one that is forked."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], log_path: Path) -> None:
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                arguments, env=dict(environment), stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        self.pid = self._process.pid
        self.kill, self.terminate = self._process.kill, self._process.terminate

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def is_alive(self) -> bool:
        return self.exitcode is None

    def join(self, timeout_s: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)


@dataclass
class Site:
    """A store, the processes on it, who calls them, and who judges them.

    Attributes:
        folder: Data folder.
        port: Of the API.
        settings: `HONE_...` keys.
        running: By name; what one logged is in a file of its name.
        n_fired: How often each failpoint had fired before the present case.
        new_store: Makes the store.
    """

    folder: Path
    settings: Mapping[str, str]
    port: int = field(default_factory=free_port)
    running: dict[str, ForkServerProcess | Spawned] = field(default_factory=dict)
    n_fired: dict[str, int] = field(default_factory=dict)
    new_store: Callable[[Path], EmbeddedStore] = EmbeddedStore

    def __post_init__(self) -> None:
        self._n_led = 0
        self.store = self.new_store(self.folder)
        self.store.start()
        self.url = f"unix://{socket_path(self.folder)}"
        self.load = Load(f"http://127.0.0.1:{self.port}")
        self.tape = Tape(self.url)
        self.verdict = Verdict(self.config, self.url, self.tape)

    @property
    def config(self) -> Config:
        return load_config(environment={"HONE_DATA_DIR": str(self.folder), **self.settings})

    @property
    def environment(self) -> dict[str, str]:
        return {
            **environment_without_hone(),
            "HONE_DATA_DIR": str(self.folder),
            "HONE_PORT": str(self.port),
            **self.settings,
        }

    @property
    def client(self) -> Any:
        return redis.Redis.from_url(self.url, socket_timeout=10.0)

    def start(self, name: str, *, failpoint: str | None = None, under: Sequence[str] = ()) -> None:
        """Start a process, armed or not, without waiting for it; `under` is a program that runs it."""
        environment = {**self.environment, **({"HONE_FAILPOINT": failpoint} if failpoint else {})}
        if name == "learner":
            self._n_led = self.log_of(name).count("learn.started")
        if under:
            arguments = [*under, sys.executable, "-m", "service", *COMMANDS[name]]
            self.running[name] = Spawned(arguments, environment, self.log_path(name))
            return
        process = _forks.Process(target=_run, args=(COMMANDS[name], environment, str(self.log_path(name))), name=name)
        process.start()
        self.running[name] = process

    def run(self, *arguments: str, failpoint: str | None = None) -> int:
        """Run a command to its end and return its exit code."""
        environment = {**self.environment, **({"HONE_FAILPOINT": failpoint} if failpoint else {})}
        process = _forks.Process(target=_run, args=(list(arguments), environment, str(self.log_path("command"))))
        process.start()
        process.join(START_S)
        assert process.exitcode is not None, f"{arguments} did not end"
        return process.exitcode

    def wait_ready(self, name: str) -> None:
        """Wait until a process that was started does its work."""
        eventually(lambda: self._is_ready(name), timeout_s=START_S, what=f"{name} is ready")

    def log_path(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def log_of(self, name: str) -> str:
        path = self.log_path(name)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def is_alive(self, name: str) -> bool:
        return name in self.running and self.running[name].is_alive()

    def kill(self, name: str) -> None:
        """Kill a process at once."""
        self.running[name].kill()
        self.wait_ended(name)

    def end(self, name: str) -> None:
        """End a process in order."""
        self.running[name].terminate()
        assert self.wait_ended(name) == 0, self.log_of(name)[-2000:]

    def wait_ended(self, name: str, *, timeout_s: float = 45.0) -> int:
        """Wait until a process has ended and return its exit code."""
        process = self.running[name]
        process.join(timeout_s)
        assert process.exitcode is not None, f"{name} did not end; it logged:\n{self.log_of(name)[-2000:]}"
        del self.running[name]
        return process.exitcode

    def drive(self, n_steps: int) -> None:
        for _ in range(n_steps):
            self.load.step()

    def restart_store(self) -> None:
        """Kill the store at once and start it on its files."""
        assert self.store.process is not None
        self.store.process.kill()
        self.store.process.wait()
        self.store.start()

    @contextmanager
    def full_store(self) -> Iterator[None]:
        """Have the store refuse every write for a while, for lack of memory."""
        client = self.client
        client.config_set("maxmemory", "1")
        try:
            yield
        finally:
            client.config_set("maxmemory", "0")
            client.close()

    def heal(self) -> None:
        """Have a process of each kind that does its work, and everything that was taken on its way."""
        for name in ("learner", "archiver", "api"):
            self._revive(name)
        for name in ("learner", "archiver", "api"):
            eventually(lambda name=name: self._revive(name) and self._is_ready(name), timeout_s=START_S, what=name)
        self.load.settle()

    def _revive(self, name: str) -> bool:
        """Return whether a process lives, and start it again when it does not."""
        if self.is_alive(name):
            return True
        self.running.pop(name, None)
        self.start(name)
        return False

    def close(self) -> None:
        for process in self.running.values():
            with suppress(ProcessLookupError, OSError):
                os.kill(process.pid or 0, signal.SIGCONT)
            process.kill()
        for process in self.running.values():
            process.join(30)
        self.tape.stop()
        self.store.stop()

    def _is_ready(self, name: str) -> bool:
        if name == "api":
            return self._is_api_ready()
        if name == "learner":
            return self.log_of(name).count("learn.started") > self._n_led
        return True

    def ask(self, command: str, *arguments: str) -> Any:
        """Return what the store answers, None when it does not."""
        client = self.client
        try:
            return client.execute_command(command, *arguments)
        except redis.RedisError:
            return None
        finally:
            client.close()

    def _is_api_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.load.url}/readyz", timeout=5.0) as response:
                return response.status == 200
        except OSError:
            return False


@contextmanager
def open_site(
    *,
    folder: Path | None = None,
    new_store: Callable[[Path], EmbeddedStore] = EmbeddedStore,
) -> Iterator[Site]:
    """Yield a site with a small catalogue, every process of which runs.

    Args:
        folder: data folder; a fresh one when None.
        new_store: makes the store.
    """
    with nullcontext(folder) if folder is not None else short_folder() as data_folder:
        site = Site(data_folder, SETTINGS, new_store=new_store)
        try:
            site.heal()
            items = [
                {"id": f"i{n}", "title": f"Film {n}", "creator": f"c{n % 7}", "attributes": {"genres": [f"g{n % 5}"]}}
                for n in range(60)
            ]
            assert site.load.call("/v1/items", items, method="PUT") is not None
            yield site
        finally:
            site.close()
