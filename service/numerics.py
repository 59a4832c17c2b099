"""What fixes the last bits of floating-point results on this machine, and short ids."""

from __future__ import annotations

import os
import platform
from functools import cache
from hashlib import blake2b

import numpy as np
import threadpoolctl

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@cache
def numerics_fingerprint() -> str:
    """Return numpy's version, and a digest of SIMD level, BLAS kernel and C library.

    Equal fingerprints give bit-equal propensities.
    """
    found = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", [])
    blas = [
        f"{lib['internal_api']}-{lib['version']}-{lib.get('architecture')}" for lib in threadpoolctl.threadpool_info()
    ]
    # The softmax takes `exp` from the C library.
    library = "-".join(platform.libc_ver())
    digest = blake2b("\n".join([*found, *sorted(blas), library]).encode(), digest_size=6).hexdigest()
    return f"numpy-{np.__version__}-{digest}"


def build_event_id(now_ms: int) -> str:
    """Return a ULID: 48 bits of time and 80 random ones, 26 characters that sort by time."""
    number = (now_ms << 80) | int.from_bytes(os.urandom(10), "big")
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def keyed_digest(value: str, *, salt: bytes) -> str:
    """Return 32 hexadecimal digits that name a value without revealing it."""
    return blake2b(value.encode(), key=salt[:64], digest_size=16).hexdigest()
