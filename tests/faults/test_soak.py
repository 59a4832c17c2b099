"""A whole stack under constant load: memory, files and streams stop growing, and the spool is empty in the end.

`make soak` runs it for `SOAK_S` seconds (1,800). The first half warms up; what is claimed is claimed of the second.
The figures are saved before they are judged.
"""

from __future__ import annotations

import os
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import redis

from service.adapters.embedded_store import socket_path
from service.item_statistics import ITEM_STATS_STREAM
from service.spool import read_entries
from simulators.benchmarks.report import save_result
from tests.faults.load import Load, Steady
from tests.stack import Stack, short_folder, start_stack

SOAK_S = int(os.environ.get("SOAK_S", "1800"))
_SAMPLE_S = 5.0
# Windows, snapshots and the time that entries are kept all pass many times in a warm-up of five minutes, and the counts
# of a small catalogue come to their bounds: how large they are at the bounds of a large one is no matter of time.
_N_ITEMS = 300
SETTINGS = {
    "HONE_HTTP__WORKERS": "2",
    "HONE_ARCHIVE__JOURNAL_KEEP_S": "30",
    "HONE_LOG_LEVEL": "warning",
    **{
        f"HONE_SURFACES__{surface}__REWARD__{key}": value
        for surface in ("HOME", "SIMILAR", "BECAUSE_YOU_WATCHED", "PLAYLIST")
        for key, value in (("NEGATIVE_WINDOW_S", "10"), ("WINDOW_S", "30"))
    },
}
# Chosen before any run was looked at. A process may grow, by the line fitted to the second half, by so much an hour.
MAX_GROWTH_MIB_H = 24.0
# Claims of decisions live an hour by contract: the store may grow by so much a decision, and by no more.
MAX_STORE_BYTES_A_DECISION = 2_048
# The longest that a stream may be in the second half, as a multiple of the longest in the first.
MAX_STREAM_RATIO = 1.25
# Item statistics drop what is old every 600 entries, which a short soak does not see happen twice.
MAX_ITEM_STATS = 602
MAX_MORE_FILES = 8


@pytest.fixture
def soaked() -> Iterator[Stack]:
    with short_folder() as folder:
        stack = start_stack(folder, env=SETTINGS, n_items=_N_ITEMS)
        try:
            yield stack
        finally:
            stack.stop()


def pss_mib(pid: int) -> float:
    """Return the proportional share of the anonymous memory of a process.

    How large its share of mapped files is depends on who else runs the same libraries.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) / 1024


def growth_an_hour(times_s: list[float], values: list[float]) -> float:
    """Return the slope of the line fitted to the second half."""
    half = len(times_s) // 2
    slope = np.polynomial.Polynomial.fit(times_s[half:], values[half:], 1).convert().coef[1]
    return float(slope * 3600)


def halves(values: list[float]) -> tuple[float, float]:
    """Return the largest value of each half."""
    return max(values[: len(values) // 2]), max(values[len(values) // 2 :])


def sample(stack: Stack, client: Any, series: dict[str, list[float]]) -> None:
    for name, pid in stack.processes().items():
        series[f"pss_mib {name}"].append(pss_mib(pid))
        series[f"files {name}"].append(len(list(Path(f"/proc/{pid}/fd").iterdir())))
    for key in client.scan_iter(match="hone:*", count=1_000, _type="stream"):
        series[f"entries {key.decode()}"].append(client.xlen(key))
        series[f"stream_mib {key.decode()}"].append(client.memory_usage(key, samples=50) / 2**20)
    series["store_bytes"].append(client.info("memory")["used_memory"])


def judge(series: dict[str, list[float]], times_s: list[float], *, decisions_an_hour: float) -> list[str]:
    """Return what is not as it should be."""
    wrong = []
    for name, values in series.items():
        kind, _, what = name.partition(" ")
        first, second = halves(values)
        if kind == "pss_mib" and what != "store" and growth_an_hour(times_s, values) > MAX_GROWTH_MIB_H:
            wrong.append(f"{what} grows by {growth_an_hour(times_s, values):.1f} MiB an hour")
        if what == ITEM_STATS_STREAM:
            if kind == "entries" and second > MAX_ITEM_STATS:
                wrong.append(f"{name} was {second:.0f} at the most")
        elif kind in ("entries", "stream_mib") and second > max(first * MAX_STREAM_RATIO, 1.0):
            wrong.append(f"{name} was {first:.4g} at the most, then {second:.4g}")
        if kind == "files" and second > first + MAX_MORE_FILES:
            wrong.append(f"{what} had {first:.0f} files open, then {second:.0f}")
    growth = growth_an_hour(times_s, series["store_bytes"])
    if growth > decisions_an_hour * MAX_STORE_BYTES_A_DECISION:
        wrong.append(f"the store grows by {growth / decisions_an_hour:.0f} bytes a decision")
    return wrong


@pytest.mark.soak
@pytest.mark.timeout(SOAK_S + 600)
def test_nothing_grows_under_constant_load(soaked: Stack) -> None:
    client = redis.Redis.from_url(f"unix://{socket_path(soaked.data_dir)}")
    first = soaked.processes()
    series: dict[str, list[float]] = defaultdict(list)
    times_s: list[float] = []
    loads = [Steady(Load(soaked.url, seed=seed), pause_s=0.1) for seed in range(2)]
    began_s = time.monotonic()
    while time.monotonic() - began_s < SOAK_S:
        time.sleep(_SAMPLE_S)
        times_s.append(time.monotonic() - began_s)
        sample(soaked, client, series)
    for steady in loads:
        steady.stop()
    n_decisions = sum(len(steady.load.decisions) for steady in loads)
    last = soaked.processes()
    with urllib.request.urlopen(f"{soaked.url}/readyz", timeout=10) as response:
        n_waiting = orjson.loads(response.read())["spool_waiting"]
    client.close()
    soaked.stop()
    left = sum(1 for path in (soaked.data_dir / "spool").glob("*.spool") for _ in read_entries(path))
    wrong = judge(series, times_s, decisions_an_hour=n_decisions / times_s[-1] * 3600)
    save_result(
        "soak",
        {
            "command": "make soak",
            "seconds": round(times_s[-1]),
            "n_decisions": n_decisions,
            "n_events": sum(len(steady.load.events) for steady in loads),
            "n_refused": sum(steady.load.n_refused for steady in loads),
            "bounds": {
                "growth_mib_an_hour": MAX_GROWTH_MIB_H,
                "store_bytes_a_decision": MAX_STORE_BYTES_A_DECISION,
                "stream_ratio": MAX_STREAM_RATIO,
                "more_files": MAX_MORE_FILES,
            },
            "growth_mib_an_hour": {
                name.partition(" ")[2]: round(growth_an_hour(times_s, values), 2)
                for name, values in series.items()
                if name.startswith("pss_mib")
            },
            "store_bytes_a_decision": round(
                growth_an_hour(times_s, series["store_bytes"]) / (n_decisions / times_s[-1] * 3600)
            ),
            "most_in_halves": {
                name: [round(value, 3) for value in halves(values)] for name, values in sorted(series.items())
            },
            "spool_left": left,
            "wrong": wrong,
        },
    )
    assert last == first, "a process ended and was started again"
    assert all(steady.load.n_refused == 0 for steady in loads)
    assert (n_waiting, left) == (0, 0), "the spool is not empty"
    assert not wrong


def test_the_judge_sees_what_grows() -> None:
    times_s = [5.0 * n for n in range(120)]
    flat = {
        "pss_mib learner": [200.0 + n % 3 for n in range(120)],
        "files learner": [20.0] * 120,
        "entries hone:{0}:journal": [1_000.0 + n % 50 for n in range(120)],
        "store_bytes": [1e7 + 1_000.0 * n for n in range(120)],
    }
    assert judge(flat, times_s, decisions_an_hour=36_000) == []
    growing = {
        "pss_mib learner": [200.0 + 0.05 * n for n in range(120)],
        "files learner": [20.0 + n for n in range(120)],
        "entries hone:{0}:journal": [1_000.0 + 10 * n for n in range(120)],
        "store_bytes": [1e7 + 200_000.0 * n for n in range(120)],
    }
    assert len(judge(growing, times_s, decisions_an_hour=36_000)) == 4
