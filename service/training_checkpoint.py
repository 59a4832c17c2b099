"""Where a training of embeddings stands, on disk: a killed one goes on from its last finished round."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
from scipy import sparse

from retrieval.embeddings import AlsConfig, Factors
from service.durable_files import put_in_place, sync_file


@dataclass(frozen=True, slots=True)
class TrainingCheckpoint:
    """The factors after the newest round, beside what will be written.

    Attributes:
        path: The file.
        fingerprint: Of what the rounds depend on; a file of another one is no start.
    """

    path: Path
    fingerprint: str

    @classmethod
    def beside(cls, out_path: Path, *, fingerprint: str) -> TrainingCheckpoint:
        """Return the checkpoint of a training that will write `out_path`."""
        return cls(out_path.with_name(f".{out_path.name}.training"), fingerprint)

    def read(self) -> Factors | None:
        """Return the factors to go on from; None when there are none, or they are damaged or of another training."""
        try:
            with self.path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                if str(file["fingerprint"]) != self.fingerprint:
                    return None
                return Factors(int(file["n_rounds"]), file["users"], file["columns"])
        except Exception:  # a damaged zip raises many types, and the training can always start anew
            return None

    def write(self, factors: Factors) -> None:
        """Replace the file; a crash leaves the round before or this one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                fingerprint=np.asarray(self.fingerprint),
                n_rounds=np.asarray(factors.n_rounds),
                users=factors.users,
                columns=factors.columns,
            )
            sync_file(file)
        put_in_place(partial, self.path)

    def remove(self) -> None:
        """Forget the training: what it was for is written."""
        self.path.unlink(missing_ok=True)


def fingerprint_of(
    interactions: sparse.csr_matrix, *, user_ids: Sequence[str], item_ids: Sequence[str], config: AlsConfig
) -> str:
    """Digest what a round of ALS depends on: interactions, sizes, penalties, the first factors and the library."""
    digest = hashlib.sha256()
    read = (config.factors, config.regularization, config.alpha, config.seed, version("implicit"), user_ids, item_ids)
    digest.update(msgspec.msgpack.encode(read))
    for array in (interactions.indptr, interactions.indices, interactions.data):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
