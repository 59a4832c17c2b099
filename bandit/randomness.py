"""Keyed randomness: every coin is a function of (salt, purpose, surface, event id), so decisions replay bit for bit."""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

import numpy as np

Purpose = Literal["slot", "discovery", "variant", "sample", "candidates", "world"]


def build_generator(*, salt: bytes, purpose: Purpose, surface: str, event_id: str) -> np.random.Generator:
    """Build the Philox generator of one purpose of one decision.

    The parts are length-prefixed before hashing, so no two different tuples share a key.
    """
    digest = blake2b(digest_size=16)
    for part in (salt, purpose.encode(), surface.encode(), event_id.encode()):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest(), "little")))
