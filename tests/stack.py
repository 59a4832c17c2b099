"""Real stacks for tests: a store of its own, or the whole of `hone serve`, in a folder that is removed afterwards."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from service.adapters.embedded_store import EmbeddedStore, die_with_parent, socket_path
from service.private_stack import environment_without_hone

PREPARED = Path(__file__).resolve().parents[1] / "var"
_PARTS = ("demo", "embeddings", "index")
_READY_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 45.0


@contextmanager
def short_folder() -> Iterator[Path]:
    """Yield a folder whose name leaves room for a unix socket path, and remove it."""
    folder = Path(tempfile.mkdtemp(prefix="hone-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start_store(folder: Path) -> tuple[str, Callable[[], None]]:
    """Start an embedded store on a folder; return its URL and the function that ends it."""
    store = EmbeddedStore(folder)
    try:
        store.start()
    except BaseException:
        store.stop()
        raise
    return f"unix://{socket_path(folder)}", store.stop


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(fact: Callable[[], bool], *, timeout_s: float = 30.0, what: str = "") -> None:
    """Wait until a fact holds; fail with its name when it does not within a generous deadline."""
    deadline_s = time.monotonic() + timeout_s
    while not fact():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"did not happen within {timeout_s} s: {what or fact}")
        time.sleep(0.02)


async def until(fact: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    """Let other tasks run until a fact holds; `TimeoutError` when it does not within a generous deadline."""
    async with asyncio.timeout(timeout_s):
        while not fact():  # noqa: ASYNC110 - what tests wait for has no event to await
            await asyncio.sleep(0.001)


@dataclass(slots=True)
class Stack:
    """A running `hone serve`.

    Attributes:
        url: Of the API.
        data_dir: Its data folder; what it logged is beside it in `serve.log`.
        n_workers: API workers it runs.
        environment: What it was started with.
    """

    url: str
    data_dir: Path
    n_workers: int
    environment: Mapping[str, str]
    _serve: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        """Return the file that all processes log to."""
        return self.data_dir / "serve.log"

    def start(self) -> None:
        """Start the supervisor and return when every worker is ready."""
        with self.log_path.open("ab") as log:
            self._serve = subprocess.Popen(
                [sys.executable, "-m", "service", "serve"],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        self.wait_ready()

    def processes(self) -> dict[str, int]:
        """Return the pids that run now by name: `serve`, `store`, `api-0`, ..., `learner`, `archiver`."""
        if self._serve is None or self._serve.poll() is not None:
            return {}
        found = {"serve": self._serve.pid}
        for pid in _children(self._serve.pid):
            name = _name_of(pid)
            if name is not None:
                found[name] = pid
        return found

    def kill(self, name: str) -> int:
        """Kill a process at once (SIGKILL) and return the pid it had."""
        pid = self.processes()[name]
        os.kill(pid, signal.SIGKILL)
        if self._serve is not None and pid == self._serve.pid:
            self._serve.wait()
        return pid

    def wait_restarted(self, name: str, *, old_pid: int) -> int:
        """Wait until a killed process runs again and return its new pid."""
        eventually(lambda: self.processes().get(name, old_pid) != old_pid, what=f"{name} starts again")
        return self.processes()[name]

    def wait_ready(self) -> None:
        """Wait until every worker answers /readyz, the processes that run now and no earlier ones."""
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        missing: set[str] = set()
        while time.monotonic() < deadline_s:
            if self._serve is None or self._serve.poll() is not None:
                raise AssertionError(f"hone serve ended; it logged:\n{self.log_tail()}")
            running = self.processes()
            names = [f"api-{index}" for index in range(self.n_workers)]
            wanted = {f"{index}:{running.get(name)}" for index, name in enumerate(names)}
            missing = wanted - self.ready_workers()
            if not missing and {"learner", "archiver"} <= running.keys():
                return
            time.sleep(0.05)
        raise AssertionError(f"workers {sorted(missing)} were not ready in time; they logged:\n{self.log_tail()}")

    def ready_workers(self, *, n_asked: int = 12) -> set[str]:
        """Return the workers (`index:pid`) that say they are ready; each new connection reaches one of them."""
        ready = set()
        for _ in range(n_asked):
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/readyz", timeout=5.0) as response:
                ready.add(str(response.headers["X-Hone-Worker"]))
        return ready

    def log_tail(self, n_lines: int = 40) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-n_lines:])

    def stop(self) -> None:
        """End everything in order; what does not end in time is killed. Doing it again changes nothing."""
        if self._serve is None:
            return
        children = list(self.processes().values())
        self._serve.terminate()
        try:
            self._serve.wait(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            for pid in children:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._serve.wait()
            raise AssertionError(f"hone serve did not end; it logged:\n{self.log_tail()}") from None
        finally:
            self._serve = None


def start_stack(folder: Path, *, env: Mapping[str, str] | None = None, n_items: int | None = None) -> Stack:
    """Start a stack on the prepared demo data.

    Args:
        folder: A folder of its own with a short name, see `short_folder`.
        env: `HONE_...` keys on top of the defaults.
        n_items: How many of the demo's items to import; all when None.
    """
    copy_prepared(folder, n_items=n_items)
    port = free_port()
    environment = {**environment_without_hone(), "HONE_DATA_DIR": str(folder), "HONE_PORT": str(port), **(env or {})}
    url, stop_store = (environment["HONE_REDIS_URL"], None) if "HONE_REDIS_URL" in environment else start_store(folder)
    try:
        importing = {**environment, "HONE_REDIS_URL": url}
        for what in ("items", "users"):
            subprocess.run(
                [sys.executable, "-m", "service", what, "import"], env=importing, check=True, capture_output=True
            )
    finally:
        if stop_store is not None:
            stop_store()
    stack = Stack(
        url=f"http://127.0.0.1:{environment['HONE_PORT']}",
        data_dir=folder,
        n_workers=int(environment.get("HONE_HTTP__WORKERS", "2")),
        environment=environment,
    )
    try:
        stack.start()
    except BaseException:
        with suppress(AssertionError):
            stack.stop()
        raise
    return stack


def copy_prepared(folder: Path, *, n_items: int | None = None) -> None:
    """Copy the prepared demo data, embeddings and index into a data folder."""
    missing = [part for part in _PARTS if not (PREPARED / part).is_dir()]
    if missing:
        raise AssertionError(f"{PREPARED} has no {', '.join(missing)}: run `make data` first (`make test` does)")
    for part in _PARTS:
        shutil.copytree(PREPARED / part, folder / part)
    if n_items is not None:
        path = folder / "demo" / "items.ndjson"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:n_items]))


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _name_of(pid: int) -> str | None:
    """Return the name of a child of the supervisor; None between fork and exec, and for one that has ended."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    if b"serve" in arguments:
        return None
    if b"--worker-index" in arguments:
        return f"api-{arguments[arguments.index(b'--worker-index') + 1].decode()}"
    names = {b"learn": "learner", b"archive": "archiver"}
    known = next((names[argument] for argument in arguments if argument in names), None)
    # Valkey writes its own title: program, address.
    return known or ("store" if b"valkey" in arguments[0] else None)
