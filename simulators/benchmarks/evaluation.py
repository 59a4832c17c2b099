"""Off-policy evaluation of a long log: rows a second and memory, beside the Open Bandit Pipeline on the same file."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv

N_ACTIONS = 10
_N_USERS = 100_000
_CHUNK = 250_000
_SEED = 23
# Run by the pipeline's own interpreter. It needs the target's pmf of every action in every row.
_PIPELINE = """
import json, resource, sys, time
import numpy as np
import pandas as pd
from obp.ope import InverseProbabilityWeighting, SelfNormalizedInverseProbabilityWeighting
path, pmf = sys.argv[1], np.array(json.loads(sys.argv[2]))
started = time.perf_counter()
log = pd.read_csv(path, usecols=["action", "reward", "propensity"])
read = time.perf_counter()
given = dict(
    reward=log["reward"].to_numpy(), action=log["action"].to_numpy(), pscore=log["propensity"].to_numpy(),
    position=np.zeros(len(log), dtype=int), action_dist=np.tile(pmf[:, None], (len(log), 1, 1)),
)
ips = InverseProbabilityWeighting().estimate_policy_value(**given)
snips = SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**given)
print(json.dumps({"ips": ips, "snips": snips, "read_s": read - started, "estimate_s": time.perf_counter() - read}))
"""


@dataclass(frozen=True, slots=True)
class _Ran:
    """A finished child: what it printed, how long it took by the clock and of the processor, and its memory."""

    answer: dict[str, Any]
    seconds: float
    cpu_s: float
    peak_rss_mb: float


def bench_evaluation(
    show: Callable[[str], None], *, n_rows: int = 10_000_000, pipeline: Path | None = None
) -> dict[str, Any]:
    """Write a log once, evaluate a tenth of it and all of it, and let the Open Bandit Pipeline do the same.

    Args:
        show: told what is being done.
        n_rows: of the long log.
        pipeline: an interpreter that has the pipeline; None leaves it out, and the figures say so.
    """
    with tempfile.TemporaryDirectory(prefix="hone-bench-") as folder:
        figures: dict[str, Any] = {"n_actions": N_ACTIONS, "n_users": _N_USERS}
        evaluated = {}
        for n in (n_rows // 10, n_rows):
            show(f"writing {n:,} rows")
            path = Path(folder) / f"{n}.csv"
            truth = write_log(path, n, seed=_SEED)
            show(f"evaluating {n:,} rows")
            evaluated[n] = ran = _evaluate(path)
            figures[f"rows_{n}"] = {
                "csv_mb": round(path.stat().st_size / 1e6, 1),
                "true_value": truth,
                "ips": ran.answer["estimates"]["ips"]["value"],
                "snips": ran.answer["estimates"]["snips"]["value"],
                "ips_interval": ran.answer["estimates"]["ips"]["interval"],
                "seconds": round(ran.seconds, 2),
                "cpu_s": round(ran.cpu_s, 2),
                "rows_per_s": round(n / ran.seconds),
                "peak_rss_mb": round(ran.peak_rss_mb, 1),
            }
            if pipeline is not None:
                show(f"Open Bandit Pipeline on {n:,} rows")
                figures[f"rows_{n}"]["open_bandit_pipeline"] = _pipeline(pipeline, path, n, ran.answer)
            path.unlink()
        small, large = evaluated[n_rows // 10], evaluated[n_rows]
        # Starting takes the same time at both lengths.
        figures["rows_per_s_without_start"] = round(0.9 * n_rows / (large.seconds - small.seconds))
        figures["rows_per_cpu_s_without_start"] = round(0.9 * n_rows / (large.cpu_s - small.cpu_s))
        figures["peak_rss_ratio"] = round(large.peak_rss_mb / small.peak_rss_mb, 3)
        if pipeline is None:
            figures["open_bandit_pipeline"] = "left out: give an interpreter that has it (tests/make_obp_golden.py)"
        return {"evaluation": figures}


def policies(*, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return float64 [N_ACTIONS] each: the logging pmf, the target pmf, and what an action earns."""
    rng = np.random.default_rng(seed)
    logging, target = rng.dirichlet(np.full(N_ACTIONS, 3.0), size=2)
    return logging, target, rng.uniform(0.01, 0.1, N_ACTIONS)


def write_log(path: Path, n_rows: int, *, seed: int) -> float:
    """Write a log of single actions chunk by chunk, and return the target policy's true value."""
    logging, target, rewards = policies(seed=seed)
    rng = np.random.default_rng([seed, n_rows])
    schema = pa.schema(
        [
            ("user", pa.int64()),
            ("action", pa.int64()),
            ("reward", pa.int64()),
            ("propensity", pa.float64()),
            ("target_propensity", pa.float64()),
        ]
    )
    with pyarrow.csv.CSVWriter(path, schema) as writer:
        for start in range(0, n_rows, _CHUNK):
            n = min(_CHUNK, n_rows - start)
            action = rng.choice(N_ACTIONS, p=logging, size=n)
            columns = [
                rng.integers(0, _N_USERS, n),
                action,
                (rng.random(n) < rewards[action]).astype(np.int64),
                logging[action],
                target[action],
            ]
            writer.write_batch(pa.record_batch(list(map(pa.array, columns)), schema=schema))
    return float(target @ rewards)


def _evaluate(path: Path) -> _Ran:
    command = [sys.executable, "-m", "service", "evaluate", "--log", str(path), "--format", "csv", "--policy", "column"]
    return _run([*command, "--n-actions", str(N_ACTIONS), "--json"])


def _pipeline(interpreter: Path, path: Path, n_rows: int, ours: dict[str, Any]) -> dict[str, Any]:
    target = policies(seed=_SEED)[1]
    ran = _run([str(interpreter), "-W", "ignore", "-c", _PIPELINE, str(path), orjson.dumps(target.tolist()).decode()])
    differences = [abs(ran.answer[name] - ours["estimates"][name]["value"]) for name in ("ips", "snips")]
    return {
        "ips": ran.answer["ips"],
        "snips": ran.answer["snips"],
        "largest_difference": max(differences),
        "seconds": round(ran.seconds, 2),
        "cpu_s": round(ran.cpu_s, 2),
        "read_s": round(ran.answer["read_s"], 2),
        "estimate_s": round(ran.answer["estimate_s"], 2),
        "rows_per_s": round(n_rows / ran.seconds),
        "peak_rss_mb": round(ran.peak_rss_mb, 1),
    }


def _run(command: Sequence[str]) -> _Ran:
    """Run a child that prints JSON.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if child.returncode != 0:
            raise RuntimeError(f"{command[0]} must end with 0, got {child.returncode}: {err.read().decode()[-2000:]}")
        return _Ran(orjson.loads(out.read()), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
