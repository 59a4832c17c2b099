"""The embedded store: one owner a folder, durable plain files, gone with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from service.adapters.embedded_store import EmbeddedStore, is_answering, running_store, socket_path
from service.config import Config, StoreConfig
from service.errors import StoreUnavailable
from tests.stack import eventually, short_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture
def store(folder: Path) -> Iterator[EmbeddedStore]:
    made = EmbeddedStore(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _url(folder: Path) -> str:
    return f"unix://{socket_path(folder)}"


def _client(folder: Path) -> redis.Redis:
    return redis.Redis.from_url(_url(folder), decode_responses=True)


def test_it_answers_once_started_and_not_once_stopped(folder: Path, store: EmbeddedStore) -> None:
    assert is_answering(_url(folder))
    store.stop()
    assert not is_answering(_url(folder))
    assert store.process is None


def test_what_was_acknowledged_outlives_a_killed_server(folder: Path, store: EmbeddedStore) -> None:
    with _client(folder) as client:
        assert client.config_get("appendfsync") == {"appendfsync": "always"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        ids = [client.xadd("journal", {"e": str(n)}) for n in range(100)]
    assert store.process is not None
    store.process.kill()
    store.process.wait()
    store.start()
    with _client(folder) as client:
        assert [entry_id for entry_id, _ in client.xrange("journal")] == ids


def test_its_files_are_plain_commands_that_any_server_reads(folder: Path, store: EmbeddedStore) -> None:
    with _client(folder) as client:
        client.set("greeting", "hello")
        client.bgrewriteaof()
        eventually(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0, what="the rewrite ends")
        client.set("later", "too")
    store.stop()
    files = {path.name: path.read_bytes() for path in (folder / "store" / "appendonlydir").iterdir()}
    assert any(name.endswith(".base.aof") for name in files), "a rewritten base is a plain AOF, not an RDB"
    assert not any(content.startswith((b"REDIS", b"VALKEY")) for content in files.values())
    assert any(b"greeting\r\n$5\r\nhello" in content for content in files.values())


def test_it_listens_on_its_socket_only(store: EmbeddedStore, folder: Path) -> None:
    with _client(folder) as client:
        assert client.config_get("port") == {"port": "0"}
    assert socket_path(folder).stat().st_mode & 0o077 == 0


def test_a_second_store_on_the_same_folder_is_refused_and_the_first_lives_on(
    folder: Path, store: EmbeddedStore
) -> None:
    second = EmbeddedStore(folder)
    with pytest.raises(StoreUnavailable, match="another store is running"):
        second.start()
    second.stop()
    assert is_answering(_url(folder))
    store.stop()
    third = EmbeddedStore(folder)
    try:
        third.start()
    finally:
        third.stop()


def test_an_orphaned_server_still_holds_its_folder(folder: Path, store: EmbeddedStore) -> None:
    # The process that started it has let go of the lock; the server has not.
    assert store._lock is not None
    store._lock.close()
    store._lock = None
    second = EmbeddedStore(folder)
    with pytest.raises(StoreUnavailable, match="another store is running"):
        second.start()


def test_a_restart_by_its_owner_keeps_the_lock(folder: Path, store: EmbeddedStore) -> None:
    assert store.process is not None
    first_pid = store.process.pid
    os.kill(first_pid, signal.SIGKILL)
    store.process.wait()
    with pytest.raises(StoreUnavailable, match="another store is running"):
        EmbeddedStore(folder).start()
    store.start()
    assert store.process.pid != first_pid
    assert is_answering(_url(folder))


def test_a_long_folder_name_gets_a_short_socket(folder: Path) -> None:
    deep = folder / ("d" * 60) / ("e" * 60) / "data"
    deep.mkdir(parents=True)
    path = socket_path(deep)
    assert len(os.fsencode(path)) <= 100
    assert path != socket_path(deep.parent), "each folder has a socket of its own"
    store = EmbeddedStore(deep)
    try:
        store.start()
        assert is_answering(_url(deep))
        assert path.parent.stat().st_mode & 0o077 == 0
        assert (deep / "store" / "appendonlydir").is_dir()
    finally:
        store.stop()
        with suppress(OSError):
            path.unlink(missing_ok=True)
            path.parent.rmdir()


def test_a_short_folder_name_keeps_the_socket_inside(folder: Path) -> None:
    assert socket_path(folder) == folder.resolve() / "store" / "valkey.sock"


def test_a_server_that_cannot_start_says_where_its_log_is(folder: Path) -> None:
    (folder / "store" / "appendonlydir").mkdir(parents=True)
    (folder / "store" / "appendonlydir" / "appendonly.aof.manifest").write_text("not a manifest\n")
    store = EmbeddedStore(folder)
    try:
        with pytest.raises(StoreUnavailable, match=r"ended with 1; see .*valkey\.log"):
            store.start()
        assert "AOF manifest" in (folder / "store" / "valkey.log").read_text()
    finally:
        store.stop()


PARENT = """
    import sys, time
    from pathlib import Path
    from service.adapters.embedded_store import EmbeddedStore
    store = EmbeddedStore(Path(sys.argv[1]))
    store.start()
    print(store.process.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
def test_it_ends_when_its_parent_is_killed(folder: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        with parent.stdout:
            pid = int(parent.stdout.readline())
        assert is_answering(_url(folder))
        parent.kill()
        parent.wait()
        eventually(lambda: not _is_running(pid), what="the server ends")
        assert not is_answering(_url(folder))
    finally:
        parent.kill()
        parent.wait()


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_command_uses_the_running_store_or_starts_one_for_itself(folder: Path, store: EmbeddedStore) -> None:
    config = Config(data_dir=str(folder))
    with running_store(config) as url, redis.Redis.from_url(url) as client:
        client.set("a", "1")
    assert is_answering(_url(folder)), "a store that runs already is left running"
    store.stop()
    with running_store(config) as url, redis.Redis.from_url(url) as client:
        assert client.get("a") == b"1"
    assert not is_answering(_url(folder)), "a store that was started for the command ends with it"


def test_a_configured_store_that_does_not_answer_is_named(folder: Path) -> None:
    config = Config(data_dir=str(folder), store=StoreConfig(url="unix:///nonexistent/hone.sock"))
    with (
        pytest.raises(StoreUnavailable, match=r"no store answers at unix:///nonexistent/hone\.sock"),
        running_store(config),
    ):
        pass
    assert not (folder / "store").exists()
