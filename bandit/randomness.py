"""Keyed randomness: every coin is a function of (salt, purpose, surface, event id), so decisions replay bit for bit."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from numpy.random.bit_generator import ISeedSequence

Purpose = Literal["slot", "discovery", "variant", "sample", "candidates", "world"]


def build_generator(*, salt: bytes, purpose: Purpose, surface: str, event_id: str) -> np.random.Generator:
    """Build the Philox generator of one purpose of one decision.

    The parts are length-prefixed before hashing, so no two different tuples share a key.
    """
    digest = blake2b(digest_size=16)
    for part in (salt, purpose.encode(), surface.encode(), event_id.encode()):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return np.random.Generator(np.random.Philox(seed=_Key(digest.digest())))  # type: ignore[arg-type] # its stub knows SeedSequence only


class _Key(ISeedSequence):
    """Gives Philox its key; `Philox(key=...)` would first gather entropy from the system, which takes far longer."""

    def __init__(self, key: bytes) -> None:
        self._words = np.frombuffer(key, dtype="<u8").astype(np.uint64, copy=False)

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> np.ndarray[Any, Any]:  # noqa: ANN401
        """Return the key; Philox asks for these two words and no others."""
        if (n_words, dtype) != (2, np.uint64):
            raise ValueError(f"Philox must ask for 2 words of 64 bits, got {n_words} of {dtype}")
        return self._words
