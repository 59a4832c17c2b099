"""`hone bench embeddings`: `hone embeddings train` on many users and items, killed once and started again.

Items and users have one of 200 tastes. A user draws most items among those of its taste and the others among all,
popular ones more often: the weight of the r-th item is 1 / (r + 100). One interaction of every item is of a user drawn
from all.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.training_checkpoint import TrainingCheckpoint

_N_TASTES, _N_CREATORS, _OWN_TASTE, _FLATTENING = 200, 20_000, 0.8, 100.0
_POLL_S = 0.1
_CHUNK = 1_000_000

Tell = Callable[[str], None]


def bench_embeddings(n_users: int, n_items: int, n_interactions: int, n_rounds: int, tell: Tell) -> dict[str, Any]:
    """Train, kill -9 after the first round, train again, and say what that took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tell("drawing interactions")
        _write_world(folder / "demo", n_users, n_items, n_interactions)
        target = folder / "embeddings" / "embeddings.npz"
        command = [sys.executable, "-m", "service", "embeddings", "train", "--json", "--positive-from", "1"]
        command += ["--iterations", str(n_rounds), "--data-dir", str(folder)]
        tell("training until the first round is kept")
        killed = _Run(command, target)
        killed.wait(n_rounds_until=1)
        tell("training to the end")
        resumed = _Run(command, target)
        report = orjson.loads(resumed.wait())
        size = target.stat().st_size
    return {
        "n_users": report["n_users"],
        "n_items": report["n_items"],
        "n_positives": report["n_positives"],
        "n_factors": report["dimension"],
        "n_rounds": n_rounds,
        "n_rounds_resumed": report["n_rounds_resumed"],
        "killed_after_s": round(killed.spent_s, 1),
        "resumed_took_s": round(resumed.spent_s, 1),
        "round_s": [
            round(later - earlier, 1) for earlier, later in zip(resumed.kept_s, resumed.kept_s[1:], strict=False)
        ],
        "until_first_round_s": round(resumed.kept_s[0], 1),
        "after_rounds_s": round(resumed.spent_s - resumed.kept_s[-1], 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2),
        "checkpoint_mb": round(resumed.checkpoint_bytes / 1e6, 1),
        "embeddings_mb": round(size / 1e6, 1),
    }


class _Run:
    """One run of the command, seen from outside.

    Attributes:
        kept_s: When each of its rounds was on disk, from its start.
        spent_s: How long it ran.
        checkpoint_bytes: Largest checkpoint seen.
    """

    def __init__(self, command: list[str], target: Path) -> None:
        self._checkpoint = TrainingCheckpoint.beside(target, fingerprint="").path
        self._seen = self._stamp()
        self._started = time.perf_counter()
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.kept_s: list[float] = []
        self.spent_s = 0.0
        self.checkpoint_bytes = 0

    def wait(self, *, n_rounds_until: int | None = None) -> bytes:
        """Wait for its end and return what it printed, or kill it after so many rounds."""
        try:
            while self._process.poll() is None and len(self.kept_s) != n_rounds_until:
                time.sleep(_POLL_S)
                stamp = self._stamp()
                if stamp not in (None, self._seen):
                    self._seen = stamp
                    self.kept_s.append(time.perf_counter() - self._started)
        finally:
            self._process.kill()
            printed, _ = self._process.communicate()
            self.spent_s = time.perf_counter() - self._started
        if n_rounds_until is None and self._process.returncode:
            raise RuntimeError(f"the training ended with {self._process.returncode}")
        return printed

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._checkpoint.stat()
        except FileNotFoundError:
            return None
        self.checkpoint_bytes = found.st_size
        return found.st_ino, found.st_mtime_ns


def _write_world(folder: Path, n_users: int, n_items: int, n_interactions: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(30)
    taste_of = rng.integers(0, _N_TASTES, n_items)
    with (folder / "items.ndjson").open("wb") as file:
        creators, years = rng.integers(0, _N_CREATORS, n_items), rng.integers(1950, 2027, n_items)
        for item, (taste, creator, year) in enumerate(
            zip(taste_of.tolist(), creators.tolist(), years.tolist(), strict=True)
        ):
            attributes = {"genres": [f"g{taste % 20}", f"h{taste}"], "year": float(year)}
            file.write(orjson.dumps({"id": f"i{item}", "creator": f"c{creator}", "attributes": attributes}) + b"\n")
    users = np.concatenate([np.arange(n_users), rng.integers(0, n_users, max(n_interactions - n_users, 0))])
    items = _draw_items(users % _N_TASTES, taste_of, rng)
    items[rng.permutation(len(items))[:n_items]] = rng.permutation(n_items)
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("value", pa.float32())])
    with pq.ParquetWriter(folder / "interactions.parquet", schema) as writer:
        for start in range(0, len(users), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            ids = [_ids("u", users[chunk]), _ids("i", items[chunk])]
            values = pa.array(rng.integers(1, 4, len(users[chunk])).astype(np.float32))
            writer.write_table(pa.table([*ids, values], schema=schema))


def _draw_items(tastes: NDArray[np.int64], taste_of: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw an item for each interaction of a user of a taste."""
    weights = 1.0 / (rng.permutation(len(taste_of)) + _FLATTENING)
    cumulated = np.cumsum(weights)
    drawn: NDArray[np.int64] = np.searchsorted(cumulated, rng.random(len(tastes)) * cumulated[-1])
    is_own = rng.random(len(tastes)) < _OWN_TASTE
    for taste in range(_N_TASTES):
        members, wanting = np.flatnonzero(taste_of == taste), np.flatnonzero(is_own & (tastes == taste))
        if len(members):
            cumulated = np.cumsum(weights[members])
            drawn[wanting] = members[np.searchsorted(cumulated, rng.random(len(wanting)) * cumulated[-1])]
    return drawn


def _ids(letter: str, numbers: NDArray[np.int64]) -> pa.Array:
    digits = pa.array(numbers).cast(pa.string())
    return pc.binary_join_element_wise(letter, digits, "")
