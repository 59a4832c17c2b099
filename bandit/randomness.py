"""Keyed randomness: every coin is a function of (salt, purpose, surface, event id), so decisions replay bit for bit."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from bandit._native import philox_uniforms
from bandit.columns import Float64Array

Purpose = Literal["slot", "discovery", "variant", "sample", "candidates", "world"]


def draw_uniforms(n: int, *, salt: bytes, purpose: Purpose, surface: str, event_id: str) -> Float64Array:
    """Draw float64 [n] in [0, 1): the first that the generator of this purpose of this decision draws."""
    return philox_uniforms(_key(salt, purpose, surface, event_id), n)


def build_generator(*, salt: bytes, purpose: Purpose, surface: str, event_id: str) -> np.random.Generator:
    """Build the Philox generator of one purpose of one decision."""
    key = _key(salt, purpose, surface, event_id)
    return np.random.Generator(np.random.Philox(seed=_Key(key)))  # type: ignore[arg-type] # its stub knows SeedSequence only


def _key(salt: bytes, *texts: str) -> bytes:
    """Return 16 bytes; the parts are length-prefixed before hashing, so no two different tuples share a key."""
    parts = (salt, *[text.encode() for text in texts])
    return blake2b(b"".join([len(part).to_bytes(8, "little") + part for part in parts]), digest_size=16).digest()


class _Key(ISeedSequence):
    """Gives Philox its key; `Philox(key=...)` would first gather entropy from the system, which takes far longer."""

    def __init__(self, key: bytes) -> None:
        self._words = np.frombuffer(key, dtype="<u8").astype(np.uint64, copy=False)

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> np.ndarray[Any, Any]:  # noqa: ANN401
        """Return the key; Philox asks for these two words and no others."""
        if (n_words, dtype) != (2, np.uint64):
            raise ValueError(f"Philox must ask for 2 words of 64 bits, got {n_words} of {dtype}")
        return self._words
