"""What a VW explorer costs a worker: the stall of loading one, and the pmfs of a slate."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from bandit.explorer import Explorer, ExplorerSpec, parse_explorer_arguments
from bandit.policy import ActionFeatures
from bandit.vw_format import Encoded

_ARGUMENTS = ("--bag 5", "--cover 3", "--rnd 3", "--regcb", "--squarecb", "--first 1000")
_BITS = (18, 20)
_N_OUTCOMES = 1_500
_N_CANDIDATES, _SHORTLIST, _N_SLOTS = 300, 20, 10
_ROUNDS = 15


def bench_explorers() -> dict[str, Any]:
    """Measure every explorer on shortlists of 20, with 10 context and 15 item features that interact."""
    return {f"{options} -b {bits}": _measure(options, bits) for options in _ARGUMENTS for bits in _BITS}


def _measure(options: str, bits: int) -> dict[str, float]:
    rng = np.random.default_rng(9)
    spec = ExplorerSpec(
        arguments=parse_explorer_arguments(f"--cb_explore_adf {options}"),
        bits=bits,
        learning_rate=0.02,
        interactions=(("context", "item"),),
        schema_version="bench",
    )
    explorer = Explorer(spec)
    books = rng.integers(0, 2**32, (15, 2_000), dtype=np.uint32)
    started = time.perf_counter()
    for _ in range(_N_OUTCOMES):
        actions = [{"item": _features(books[np.arange(15), rng.integers(0, 2_000, 15)])} for _ in range(_SHORTLIST)]
        shared = {"context": _features(books[:10, 0] + rng.integers(0, 20, 10).astype(np.uint32))}
        reward = float(rng.random() < 0.2)
        explorer.learn(shared, actions, chosen=int(rng.integers(_SHORTLIST)), reward=reward, propensity=0.05)
    learn_us = (time.perf_counter() - started) / _N_OUTCOMES * 1e6
    model_bytes = explorer.serialize()
    loads_ms, slates_ms = [], []
    indices = books[np.arange(15), rng.integers(0, 2_000, (_N_CANDIDATES, 15))]
    features = {"item": ActionFeatures(indices=indices, values=np.ones(indices.shape, dtype=np.float32))}
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        loaded = Explorer(spec, model_bytes)
        loads_ms.append((time.perf_counter() - started) * 1e3)
        started = time.perf_counter()
        request = loaded.ask(shared, features)
        for slot in range(_N_SLOTS):
            request.pmf(np.arange(slot, slot + _SHORTLIST))
        slates_ms.append((time.perf_counter() - started) * 1e3)
    return {
        "model_mb": round(len(model_bytes) / 1e6, 2),
        "learn_us": round(learn_us),
        "load_stall_ms_p50": round(float(np.median(loads_ms)), 1),
        "load_stall_ms_max": round(max(loads_ms), 1),
        "slate_pmfs_ms_p50": round(float(np.median(slates_ms)), 2),
    }


def _features(indices: np.ndarray[Any, np.dtype[np.uint32]]) -> Encoded:
    return Encoded(names=(), indices=indices, values=np.ones(len(indices), dtype=np.float32))
