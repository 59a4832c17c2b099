"""`hone serve`: the store, the API workers, the learner and the archiver as children; a dead one is started again."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from service.adapters.embedded_store import EmbeddedStore, die_with_parent, is_answering, store_url
from service.bootstrap import load_salt
from service.config import Config
from service.errors import StoreUnavailable
from service.failpoints import reach

_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 10.0
# A child that lived so long has its back-off forgotten.
_HEALTHY_S = 30.0
_POLL_S = 0.05
_STOP_TIMEOUT_S = 20.0

_log = structlog.get_logger("hone.serve")


@dataclass(slots=True)
class _Child:
    name: str
    arguments: list[str]
    process: subprocess.Popen[bytes] | None = None
    started_at_s: float = 0.0
    backoff_s: float = _FIRST_BACKOFF_S
    restart_at_s: float = 0.0


@dataclass(slots=True)
class Supervisor:
    """Runs the whole stack of one machine. Use it from the main thread.

    Args:
        config: with `http.port` 0, a free port is chosen before the workers start.
        config_path: passed on to the children.
        on_ready: called once with the URL when every worker answers.
    """

    config: Config
    config_path: Path | None
    on_ready: Callable[[str], None]
    _children: list[_Child] = field(default_factory=list)
    _store: EmbeddedStore | None = None
    _stopping: bool = False

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, then drain and end every child.

        Raises:
            StoreUnavailable: the store does not come up, or the configured one does not answer.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        load_salt(self.config)
        self._start_store()
        with _reserved_port(self.config) as port:
            self._declare_children(port)
            try:
                self._watch(f"http://{self.config.http.host}:{port}")
            finally:
                self._stop_children()
                if self._store is not None:
                    self._store.stop()

    def _start_store(self) -> None:
        if self.config.store.url:
            if not is_answering(self.config.store.url):
                raise StoreUnavailable(f"no store answers at {self.config.store.url}")
            return
        self._store = EmbeddedStore(self.config.data_path)
        self._store.start()
        _log.info("serve.store", url=store_url(self.config))

    def _declare_children(self, port: int) -> None:
        common = [sys.executable, "-m", "service"]
        if self.config_path is not None:
            common += ["--config", str(self.config_path)]
        for index in range(self.config.http.workers):
            arguments = [*common, "api", "--port", str(port), "--worker-index", str(index)]
            self._children.append(_Child(f"api-{index}", arguments))
        self._children.append(_Child("learner", [*common, "learn"]))
        self._children.append(_Child("archiver", [*common, "archive"]))

    def _watch(self, url: str) -> None:
        announced = False
        while not self._stopping:
            self._watch_store()
            for child in self._children:
                self._watch_child(child)
            if not announced and _is_ready(url):
                announced = True
                self.on_ready(url)
            time.sleep(_POLL_S)

    def _watch_store(self) -> None:
        store = self._store
        if store is None or store.process is None or store.process.poll() is None:
            return
        _log.error("serve.store_died", returncode=store.process.returncode)
        reach("supervise.restart_store")
        try:
            store.start()
        except StoreUnavailable as error:
            _log.error("serve.store_down", error=str(error))
            time.sleep(_FIRST_BACKOFF_S)

    def _watch_child(self, child: _Child) -> None:
        now_s = time.monotonic()
        if child.process is None:
            if now_s >= child.restart_at_s:
                reach("supervise.start")
                # A parent-death signal follows the thread that forks: this is the main one.
                child.process = subprocess.Popen(child.arguments, preexec_fn=die_with_parent)
                child.started_at_s = now_s
                _log.info("serve.started", child=child.name, pid=child.process.pid)
            return
        returncode = child.process.poll()
        if returncode is None:
            return
        if now_s - child.started_at_s > _HEALTHY_S:
            child.backoff_s = _FIRST_BACKOFF_S
        _log.error("serve.child_died", child=child.name, returncode=returncode, restart_in_s=child.backoff_s)
        child.process = None
        reach("supervise.restart")
        child.restart_at_s = now_s + child.backoff_s
        child.backoff_s = min(child.backoff_s * 2, _MAX_BACKOFF_S)

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _stop_children(self) -> None:
        """End the API first, so that the learner and the archiver see its last entries."""
        for prefix in ("api", "learner", "archiver"):
            group = [c.process for c in self._children if c.name.startswith(prefix) and c.process is not None]
            for process in group:
                process.terminate()
            deadline_s = time.monotonic() + _STOP_TIMEOUT_S
            for process in group:
                try:
                    process.wait(timeout=max(0.1, deadline_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    _log.error("serve.killed", pid=process.pid)
                    process.kill()
                    process.wait()


class _reserved_port:
    """Hold the port open without listening, so that workers can share it and nobody else takes it."""

    def __init__(self, config: Config) -> None:
        self._address = (config.http.host, config.http.port)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    def __enter__(self) -> int:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            self._socket.bind(self._address)
        except OSError as error:
            self._socket.close()
            raise OSError(f"cannot listen on {self._address[0]}:{self._address[1]}: {error.strerror}") from error
        port: int = self._socket.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=1.0) as response:  # noqa: S310 - our own URL
            return bool(response.status == 200)
    except OSError:
        return False
