"""`hone bench simulators`: its parts, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from simulators.benchmarks.evaluation import bench_evaluation


def bench_simulators(show: Callable[[str], None], *, n_rows: int, pipeline: Path | None) -> dict[str, Any]:
    """Run every part and return its figures under its name."""
    parts: list[Callable[[], dict[str, Any]]] = [
        lambda: bench_evaluation(show, n_rows=n_rows, pipeline=pipeline),
    ]
    figures: dict[str, Any] = {}
    for part in parts:
        figures |= part()
    return figures
