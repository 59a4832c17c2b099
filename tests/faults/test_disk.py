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
from pathlib import Path

import pytest

from tests.faults.load import Steady
from tests.faults.site import Site, open_site
from tests.faults.test_store_faults import assert_sound
from tests.stack import short_folder

pytestmark = pytest.mark.long

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None or os.geteuid() != 0,
    reason="needs strace (Debian: apt-get install strace), and the right to trace another process",
)
# The calls with which files are made durable, and the errors that a disk has for them.
SYNC, RENAME, WRITE, REMOVE = "fsync,fdatasync", "?rename,?renameat,?renameat2", "write,pwrite64", "?unlink,?unlinkat"
CALLS = [(SYNC, "EIO"), (SYNC, "ENOSPC"), (RENAME, "EIO"), (RENAME, "ENOSPC"), (WRITE, "ENOSPC"), (REMOVE, "EIO")]


@contextmanager
def failing(pid: int, calls: str, error: str) -> Iterator[None]:
    """Have the next of some system calls in each thread of a process fail, while the context lasts."""
    command = ["strace", "-f", "-p", str(pid), "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}:when=1"]
    tracer = subprocess.Popen([*command, "-o", "/dev/null"], stderr=subprocess.PIPE)
    try:
        assert tracer.stderr is not None
        assert b"attached" in tracer.stderr.readline()
        yield
    finally:
        tracer.terminate()
        tracer.communicate(timeout=30)


@needs_strace
@pytest.mark.parametrize(("calls", "error"), CALLS)
def test_an_archiver_whose_call_fails_archives_everything_once(site: Site, calls: str, error: str) -> None:
    site.heal()
    with failing(site.running["archiver"].pid or 0, calls, error):
        for _ in range(4):
            site.drive(5)
            time.sleep(0.4)
    if calls in (SYNC, RENAME):
        assert site.is_alive("archiver"), "it waits, and tries again"
        assert "process.retry" in site.log_of("archiver")
    assert_sound(site)


@needs_strace
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_an_api_worker_whose_sync_fails_acknowledges_nothing_then(site: Site, error: str) -> None:
    site.heal()
    event = {"type": "click", "user_id": "nobody", "item_id": "i1"}
    with site.full_store():
        assert site.load.report([{**event, "id": f"before-{error}"}])
        with failing(site.running["api"].pid or 0, SYNC, error):
            assert not site.load.report([{**event, "id": f"refused-{error}"}]), "acknowledged, and not on disk"
            assert site.load.report([{**event, "id": f"after-{error}"}])
        site.kill("api")
    assert_sound(site)


@needs_strace
@pytest.mark.parametrize(("calls", "error"), [(SYNC, "EIO"), (SYNC, "ENOSPC"), (WRITE, "ENOSPC")])
def test_a_store_whose_call_fails_acknowledges_nothing_then(site: Site, calls: str, error: str) -> None:
    site.heal()
    process = site.store.process
    assert process is not None
    steady = Steady(site.load)
    with failing(process.pid, calls, error):
        # A server that cannot sync must end before it answers: it does not know what it has.
        deadline_s = time.monotonic() + 3.0
        while process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.05)
    if process.poll() is not None:
        site.store.start()
    steady.stop()
    assert (process.returncode is not None) == (calls == SYNC)
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
