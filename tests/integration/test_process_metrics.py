"""Learner and archiver answer `/metrics` on the ports that the configuration names."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.adapters.embedded_store import die_with_parent
from service.private_stack import environment_without_hone
from tests.stack import eventually, free_port, short_folder, start_store


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as made:
        _, stop_store = start_store(made)
        try:
            yield made
        finally:
            stop_store()


@contextmanager
def _process(folder: Path, command: str, key: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / f"{command}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", command],
            env={**environment_without_hone(), "HONE_DATA_DIR": str(folder), key: str(port)},
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def _metrics(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            return str(response.read().decode())
    except (urllib.error.URLError, OSError):
        return ""


def test_the_learner_shows_what_it_leads_and_lets_the_port_go(folder: Path) -> None:
    port = free_port()
    with _process(folder, "learn", "HONE_METRICS__LEARNER_PORT", port) as learner:
        eventually(lambda: 'hone_learner_leads{model="films"} 1.0' in _metrics(port), what="the learner leads")
    assert learner.returncode == 0
    assert _metrics(port) == ""


def test_the_archiver_shows_what_it_archived(folder: Path) -> None:
    port = free_port()
    with _process(folder, "archive", "HONE_METRICS__ARCHIVER_PORT", port):
        eventually(lambda: "hone_archived_total" in _metrics(port), what="the archiver answers")


def test_a_port_that_is_taken_is_an_error_that_names_the_key(folder: Path) -> None:
    port = free_port()
    with _process(folder, "archive", "HONE_METRICS__ARCHIVER_PORT", port):
        eventually(lambda: bool(_metrics(port)), what="the archiver answers")
        with _process(folder, "learn", "HONE_METRICS__LEARNER_PORT", port) as learner:
            learner.wait(timeout=60)
    assert learner.returncode != 0
    assert f"metrics.learner_port: cannot listen on 127.0.0.1:{port}" in (folder / "learn.log").read_text()
