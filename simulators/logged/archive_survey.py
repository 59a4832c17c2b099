"""A first look at an archive: how long its slates are, and how many decisions are outside of what is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from service.adapters.archive_files import files_of, reading, tables_of
from service.export import Selection
from simulators.logged.import_report import LogRefused


@dataclass(frozen=True, slots=True)
class Survey:
    """What a first look found.

    Attributes:
        n_slots: Most slots of a selected decision, at least 1.
        n_filtered: Decisions of the surface and model that are outside of the time.
    """

    n_slots: int
    n_filtered: int


def survey(folder: Path, selection: Selection) -> Survey:
    """Look at every decision of an archive.

    Raises:
        LogRefused: it cannot be read.
    """
    n_slots, n_filtered = 1, 0
    try:
        with reading(folder):
            for file in files_of(folder, "decisions"):
                for table in tables_of(file.path, "decisions", ["journal_id", "surface", "model", "item_ids"]):
                    asked = _equal(table["surface"], selection.surface) & _equal(table["model"], selection.model)
                    decided_ms = pc.list_element(pc.split_pattern(table["journal_id"], "-"), 0).cast(pa.int64())
                    at = decided_ms.to_numpy()
                    inside = (selection.from_ms <= at) & (at < selection.to_ms)
                    n_filtered += int(np.count_nonzero(asked & ~inside))
                    lengths = pc.fill_null(pc.list_value_length(table["item_ids"]), 0).to_numpy()
                    n_slots = max(n_slots, int(lengths[asked & inside].max(initial=0)))
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise LogRefused(f"{folder}: {error}") from error
    return Survey(n_slots, n_filtered)


def _equal(column: pa.ChunkedArray, wanted: str) -> npt.NDArray[np.bool_]:
    """Return bool [n]; all when nothing is wanted."""
    if not wanted:
        return np.ones(len(column), dtype=np.bool_)
    equal: npt.NDArray[np.bool_] = pc.fill_null(pc.equal(column, wanted), False).to_numpy()
    return equal
