"""Randomness of a world: one generator for each user, item and purpose, whatever else is there."""

from __future__ import annotations

import numpy as np

from bandit.randomness import build_generator


def derive_generator(seed: int, purpose: str, number: int = 0) -> np.random.Generator:
    """Build the generator of one thing; what it draws does not depend on which others were built, or when.

    >>> derive_generator(1, "person", 7).random() == derive_generator(1, "person", 7).random()
    True
    >>> derive_generator(1, "person", 7).random() == derive_generator(1, "person", 8).random()
    False
    """
    return build_generator(
        salt=seed.to_bytes(8, "little", signed=True), purpose="world", surface=purpose, event_id=str(number)
    )
