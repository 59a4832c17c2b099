"""When users come: everyone by a clock of their own, and with random numbers of their own for what they will do."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from simulators.worlds.randomness import derive_generator

# For each slot: is it looked at, is it clicked, is it skipped aloud, and how long until it is reported.
_PER_SLOT = 4


@dataclass(frozen=True, slots=True)
class Crowd:
    """Who comes how often.

    Attributes:
        n_users: People.
        gap_s: Mean time between two visits of a user, in seconds; visits are a Poisson process.
    """

    n_users: int = 2_000
    gap_s: float = 100.0

    def __post_init__(self) -> None:
        """Refuse an empty crowd and visits without end in no time.

        Raises:
            ValueError: one of them is.
        """
        if self.n_users < 1 or not 0.0 < self.gap_s < float("inf"):
            raise ValueError(f"a crowd needs n_users >= 1 and a finite gap_s > 0, got {self.n_users} and {self.gap_s}")


class Visit(msgspec.Struct, frozen=True, gc=False):
    """One request that is about to be made.

    Attributes:
        user: Number of the user.
        number: Of the user's visits, from 0.
        elapsed_ms: When, since the start.
        uniforms: [4, n_slots] of what the user will do, whatever is shown.
    """

    user: int
    number: int
    elapsed_ms: int
    uniforms: Sequence[Sequence[float]]


def visits(crowd: Crowd, *, seed: int, n_slots: int) -> Iterator[Visit]:
    """Yield visits in order of time, without end.

    A user's visits, times and uniforms alike, are the same in a crowd of any size.
    """
    generators = [derive_generator(seed, "visits", user) for user in range(crowd.n_users)]
    due = [(float(rng.exponential(crowd.gap_s)) * 1000.0, user, 0) for user, rng in enumerate(generators)]
    heapq.heapify(due)
    while True:
        at_ms, user, number = due[0]
        rng = generators[user]
        yield Visit(user, number, int(at_ms), rng.random((_PER_SLOT, n_slots)).tolist())
        heapq.heapreplace(due, (at_ms + float(rng.exponential(crowd.gap_s)) * 1000.0, user, number + 1))
