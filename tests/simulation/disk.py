"""A disk that forgets, when the power goes, what was not synced: content and names, whole, in part or not at all."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.simulation.process import Killed, current

Names = dict[str, int]


class Disk:
    """A real folder, and what of it is surely on disk.

    A file's content is there once it was synced; a name is there, or gone, once its folder was synced.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        # By inode: synced content of files, synced names of folders.
        self._content: dict[int, bytes] = {}
        self._names: dict[int, Names] = {}

    def sync(self, descriptor: int) -> None:
        """Take note that a file or a folder was synced."""
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._names[status.st_ino] = _listing(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        else:
            self._content[status.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def lose_power(self, rng: random.Random) -> None:
        """Keep what was synced, and of the rest what the seed says."""
        files: dict[int, bytes] = {}
        folders: dict[int, Names] = {}
        _read_tree(self.root, files, folders)
        root = self.root.stat().st_ino
        survivors = dict(self._surviving(rng, root, Path(), files, folders))
        for path in sorted(self.root.rglob("*"), reverse=True):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
        self._content.clear()
        self._names.clear()
        for path, content in survivors.items():
            if content is None:
                (self.root / path).mkdir()
            else:
                (self.root / path).write_bytes(content)
        for folder in (self.root, *self.root.rglob("*")):
            if folder.is_dir():
                self._names[folder.stat().st_ino] = _listing(folder)
            else:
                self._content[folder.stat().st_ino] = folder.read_bytes()

    def _surviving(
        self, rng: random.Random, folder: int, at: Path, files: dict[int, bytes], folders: dict[int, Names]
    ) -> Iterator[tuple[Path, bytes | None]]:
        synced, now = self._names.get(folder, {}), folders.get(folder, {})
        names = rng.choice([synced, now, {**now, **synced}])
        for name, inode in sorted(names.items()):
            if inode in folders or inode in self._names:
                yield at / name, None
                yield from self._surviving(rng, inode, at / name, files, folders)
            else:
                yield at / name, _surviving_content(rng, self._content.get(inode, b""), files.get(inode))


def _surviving_content(rng: random.Random, synced: bytes, now: bytes | None) -> bytes:
    if now is None or now == synced:
        return synced
    if not now.startswith(synced):
        return rng.choice([synced, now])
    tail = now[len(synced) :]
    kept = rng.randrange(len(tail) + 1)
    # A file's new length may be on disk before what it says is there.
    return synced + rng.choice([b"", tail, tail[:kept], tail[:kept] + bytes(len(tail) - kept), bytes(len(tail))])


def _listing(folder: Path) -> Names:
    with os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries}


def _read_tree(folder: Path, files: dict[int, bytes], folders: dict[int, Names]) -> None:
    folders[folder.stat().st_ino] = listing = _listing(folder)
    for name, inode in listing.items():
        path = folder / name
        if path.is_dir():
            _read_tree(path, files, folders)
        else:
            files[inode] = path.read_bytes()


@contextmanager
def simulated_calls(disks: dict[str, Disk], rng: random.Random) -> Iterator[None]:
    """Let processes die at their system calls, before each and in the middle of a write; record what they sync."""
    real: dict[str, Callable[..., Any]] = {
        name: getattr(os, name) for name in ("write", "fsync", "ftruncate", "replace", "unlink", "urandom")
    }

    def write(descriptor: int, content: bytes) -> int:
        process = current.get()
        if process is not None and process.is_last_effect():
            real["write"](descriptor, content[: rng.randrange(len(content) + 1)])
            process.kill()
            raise Killed(process.name)
        return int(real["write"](descriptor, content))

    def fsync(descriptor: int) -> None:
        process = current.get()
        if process is None:
            real["fsync"](descriptor)
            return
        process.reach()
        disks[process.machine].sync(descriptor)
        process.reach()

    def mortal(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if (process := current.get()) is not None:
                process.reach()
            return real[name](*arguments)

        return call

    os.write, os.fsync, os.urandom = write, fsync, rng.randbytes  # type: ignore[assignment]
    for name in ("ftruncate", "replace", "unlink"):
        setattr(os, name, mortal(name))
    try:
        yield
    finally:
        for name, call in real.items():
            setattr(os, name, call)
