"""Real system calls fail once in real processes, and a real disk is full: nothing is acknowledged that is not kept.

The failpoints fail the same sites by name in `test_failpoints.py`. Here it is the C library's call that fails, so that
a site without a failpoint would be found too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EIO, ENOSPC
from pathlib import Path

import pytest

from service.adapters.embedded_store import EmbeddedStore
from tests.faults.load import Steady
from tests.faults.site import Site, open_site
from tests.faults.test_store_faults import assert_sound
from tests.stack import eventually, short_folder

pytestmark = pytest.mark.long

needs_fiu = pytest.mark.skipif(
    shutil.which("fiu-run") is None or shutil.which("fiu-ctrl") is None,
    reason="needs fiu-run and fiu-ctrl (Debian: apt-get install fiu-utils)",
)
# The calls with which files are made durable, and the errors that a disk has for them.
CALLS = [
    ("posix/io/sync/fsync", EIO),
    ("posix/io/sync/fsync", ENOSPC),
    ("posix/io/dir/rename", EIO),
    ("posix/io/dir/rename", ENOSPC),
    ("posix/io/rw/write", ENOSPC),
    ("posix/io/rw/write", EIO),
    ("posix/io/dir/unlink", EIO),
]


def fail_once(prefix: Path, pid: int, call: str, number: int) -> None:
    command = f"enable name={call},onetime,failinfo={number}"
    subprocess.run(["fiu-ctrl", "-f", str(prefix), "-c", command, str(pid)], check=True, timeout=30)


@needs_fiu
@pytest.mark.parametrize(("call", "number"), CALLS)
def test_an_archiver_whose_call_fails_once_archives_everything_once(site: Site, call: str, number: int) -> None:
    site.heal()
    site.kill("archiver")
    prefix = site.folder / "fiu"
    site.start("archiver", under=("fiu-run", "-x", "-f", str(prefix)))
    pid = site.running["archiver"].pid
    eventually(lambda: Path(f"{prefix}-{pid}.in").exists(), what="the library is loaded")
    site.drive(5)
    site.verdict.wait_settled()
    for _ in range(3):
        fail_once(prefix, pid or 0, call, number)
        site.drive(5)
        time.sleep(0.5)
    if site.is_alive("archiver"):
        site.load.settle()
        site.verdict.assert_sound(site.load)
        site.running["archiver"].terminate()
        site.wait_ended("archiver")
    assert_sound(site)


@needs_fiu
@pytest.mark.parametrize(("call", "number"), CALLS[:2])
def test_an_api_worker_whose_sync_fails_once_acknowledges_nothing_then(site: Site, call: str, number: int) -> None:
    site.heal()
    site.kill("api")
    prefix = site.folder / "fiu"
    site.start("api", under=("fiu-run", "-x", "-f", str(prefix)))
    site.wait_ready("api")
    event = {"type": "click", "user_id": "nobody", "item_id": "i1"}
    with site.full_store():
        assert site.load.report([{**event, "id": f"before-{call}-{number}"}])
        fail_once(prefix, site.running["api"].pid or 0, call, number)
        assert not site.load.report([{**event, "id": f"refused-{call}-{number}"}]), "acknowledged, and not on disk"
        assert site.load.report([{**event, "id": f"after-{call}-{number}"}])
        site.kill("api")
    assert_sound(site)


class FailingStore(EmbeddedStore):
    """The embedded store with a library before it that can make its calls fail."""

    def _command(self) -> list[str]:
        return ["fiu-run", "-x", "-f", str(self._folder / "fiu"), *super()._command()]


@needs_fiu
@pytest.mark.parametrize("number", [EIO, ENOSPC])
def test_a_store_whose_sync_fails_acknowledges_nothing_then(number: int) -> None:
    with open_site(new_store=FailingStore) as site:
        for call in ("posix/io/sync/fdatasync", "posix/io/sync/fsync", "posix/io/rw/write"):
            steady = Steady(site.load)
            time.sleep(0.5)
            process = site.store.process
            assert process is not None
            fail_once(site.folder / "store" / "fiu", process.pid, call, number)
            # A server that cannot sync must end, before it answers: it does not know what it has.
            deadline_s = time.monotonic() + 3.0
            while process.poll() is None and time.monotonic() < deadline_s:
                time.sleep(0.05)
            if process.poll() is not None:
                site.store.start()
            steady.stop()
        site.restart_store()
        assert_sound(site)


@contextmanager
def small_disk(folder: Path, *, mebibytes: int) -> Iterator[None]:
    """Mount a file system of its own on a folder; skip where that is not allowed."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip(
            "needs the right to mount a tmpfs; archive.rows and files.write fail with ENOSPC by failpoint anyway"
        )
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_an_archive_on_a_full_disk_waits_and_the_journal_is_not_trimmed_past_it() -> None:
    with short_folder() as folder, small_disk(folder / "archive", mebibytes=4), open_site(folder=folder) as site:
        site.drive(20)
        site.verdict.wait_settled()
        fill(site.verdict.archive / "ballast")
        archived = site.verdict.archived()
        # Longer than entries are kept once they are archived.
        steady = Steady(site.load)
        time.sleep(float(site.settings["HONE_ARCHIVE__JOURNAL_KEEP_S"]) + 3.0)
        steady.stop()
        assert "No space left" in site.log_of("archiver")
        assert site.verdict.archived() == archived, "the state goes no further than the rows"
        first = site.ask("XRANGE", "hone:{0}:journal", "-", "+", "COUNT", "1")[0][0].decode()
        beyond = [entry_id for entry_id, _ in site.tape.entries if _order(entry_id) > _order(archived)]
        assert len(beyond) > 100
        assert _order(first) <= _order(beyond[0]), "trimmed past the archive"
        assert site.is_alive("archiver")
        (site.verdict.archive / "ballast").unlink()
        assert_sound(site)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb") as ballast, suppress(OSError):
        while True:
            os.write(ballast.fileno(), bytes(4096))


def _order(entry_id: str) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split("-")))
