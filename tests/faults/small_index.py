"""Bundles for the small catalogue of a site, and programs that die at a chosen moment of making or using one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.bundle import write_bundle
from retrieval.content_space import build_content_space
from retrieval.embeddings import Embeddings
from retrieval.index import HnswIndex
from retrieval.indexes import IndexConfig, IndexKind
from retrieval.items import Item
from retrieval.lists import QuantisedConfig

DIMENSION = 8
# What the interpreter tells of when a process changes files.
_FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "fcntl.flock")


def build_embeddings(item_ids: Sequence[str], *, seed: int) -> Embeddings:
    """Draw vectors."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(len(item_ids), DIMENSION)).astype(np.float32)
    wide = vectors.astype(np.float64)
    return Embeddings(
        item_ids=list(item_ids),
        item_vectors=vectors,
        n_interactions=np.arange(len(item_ids), dtype=np.int32),
        user_ids=["u1"],
        user_vectors=rng.normal(size=(1, DIMENSION)).astype(np.float32),
        gram=wide.T @ wide,
        content_map=rng.normal(size=(32, DIMENSION)).astype(np.float32),
        alpha0=0.25,
        regularization=0.5,
        content=build_content_space([Item(id=i, attributes={"genres": [f"g{len(i)}"]}) for i in item_ids], dimension=8),
    )


def publish(root: Path, item_ids: Sequence[str], *, version: str, kind: IndexKind, seed: int = 1) -> None:
    """Write a bundle and make it current."""
    config = IndexConfig(kind=kind, quantised=QuantisedConfig(n_threads=1, k=10))
    write_bundle(root, build_embeddings(item_ids, seed=seed), version=version, hmac_key=None, config=config, keep=2)


def publish_and_die(root: Path, item_ids: Sequence[str], *, version: str, kind: IndexKind, nth: int) -> int:
    """Do the same in a process of its own that dies at the nth thing it does to a file under `root`.

    Returns:
        The exit code of the process: 0 when it came to the end first, -SIGKILL when it died.
    """
    pid = os.fork()
    if pid == 0:
        n_left = nth

        def hear(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal n_left
            if event not in _FILE_EVENTS or not str(arguments[0]).startswith(str(root)):
                return
            n_left -= 1
            if not n_left:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hear)
        try:
            publish(root, item_ids, version=version, kind=kind, seed=nth)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _die(_index: HnswIndex) -> None:
    sys.stderr.write("dies in a compaction\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    # `python -m tests.faults.small_index <interpreter> -m service <command>`: be the service, and die in a compaction.
    HnswIndex._compact = _die  # type: ignore[method-assign]
    sys.argv = ["hone", *sys.argv[4:]]
    from service.cli import main

    main()
