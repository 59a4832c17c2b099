"""Files that are on disk when a call returns: content synced, names synced, replaced whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

from service.failpoints import reach


def make_folder(folder: Path, *, under: Path) -> None:
    """Make a folder and have its name, and those of its parents below `under`, on disk.

    Names that are there already are synced too: whoever made them may have died before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for parent in folder.parents:
        sync_folder(parent)
        if parent == under:
            return


def write_whole(path: Path, content: bytes) -> None:
    """Write or replace a file; a crash leaves the old content or the new."""
    partial = path.with_suffix(".partial")
    write_synced(partial, content)
    put_in_place(partial, path)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and have its content on disk; its name is not, before its folder is synced."""
    with path.open("wb") as file:
        reach("files.write")
        file.write(content)
        sync_file(file)


def put_in_place(partial: Path, target: Path) -> None:
    """Rename a written file, replacing what has its name, for good."""
    reach("files.rename")
    partial.replace(target)
    sync_folder(target.parent)


def sync_file(file: IO[Any]) -> None:
    """Have a file's content on disk."""
    file.flush()
    reach("files.sync")
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have a folder's names on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        reach("files.sync_folder")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
