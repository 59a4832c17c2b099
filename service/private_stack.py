"""A whole service of one's own on the demo data, for examinations and benchmarks: its own store, folder and port."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import msgspec

from service.config import Config
from service.errors import StoreUnavailable

_START_TIMEOUT_S = 120.0


def require_demo(config: Config) -> Path:
    """Return the summary of the demo data.

    Raises:
        OSError: the demo data or its index is missing.
    """
    summary = config.data_path / "demo" / "summary.json"
    if not summary.exists() or not (config.data_path / "index" / "current").exists():
        raise OSError(f"no prepared data under {config.data_path}: run `hone data fetch` and `hone data prepare` first")
    return summary


@contextmanager
def private_stack(config: Config, config_path: Path | None, say: Callable[[str], None]) -> Iterator[tuple[Config, str]]:
    """Import the demo data, run `hone serve` on it, and yield its configuration and URL; nothing is left behind.

    Raises:
        StoreUnavailable: the stack does not come up.
        OSError: the demo data is missing.
    """
    require_demo(config)
    folder = Path(tempfile.mkdtemp(prefix="hone-private-"))
    try:
        private = msgspec.structs.replace(
            config,
            data_dir=str(folder),
            store=msgspec.structs.replace(config.store, url=""),
            http=msgspec.structs.replace(config.http, host="127.0.0.1", port=_free_port()),
        )
        for name in ("demo", "index"):
            (folder / name).symlink_to((config.data_path / name).resolve())
        with _serving(private, config_path, say) as url:
            yield private, url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _serving(config: Config, config_path: Path | None, say: Callable[[str], None]) -> Iterator[str]:
    """Import the demo data and run `hone serve` on it."""
    environment = {
        **environment_without_hone(),
        "HONE_DATA_DIR": config.data_dir,
        "HONE_HTTP__HOST": config.http.host,
        "HONE_HTTP__PORT": str(config.http.port),
        "HONE_HTTP__WORKERS": str(config.http.workers),
        "HONE_LOG_LEVEL": "warning",
    }
    hone = [sys.executable, "-m", "service", *(["--config", str(config_path)] if config_path else [])]
    for what in ("items", "users"):
        say(f"importing {what}")
        subprocess.run([*hone, what, "import"], env=environment, check=True, stdout=subprocess.DEVNULL)
    say("starting a private stack")
    log = (config.data_path / "serve.log").open("wb")
    process = subprocess.Popen([*hone, "serve"], env=environment, stdout=log, stderr=log)
    try:
        url = f"http://{config.http.host}:{config.http.port}"
        _wait_until_ready(url, process, config.data_path / "serve.log")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    async def ready() -> bool:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/readyz") as response:
            return response.status == 200

    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise StoreUnavailable(f"the private stack ended: {log.read_text(errors='replace')[-2000:]}")
        try:
            if asyncio.run(ready()):
                return
        except aiohttp.ClientError:
            pass
        time.sleep(0.1)
    raise StoreUnavailable(f"the private stack was not ready within {_START_TIMEOUT_S:.0f} s")


def environment_without_hone() -> dict[str, str]:
    """Return the environment without Hone's keys, which a private stack must not inherit."""
    return {key: value for key, value in os.environ.items() if not key.startswith("HONE_")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
