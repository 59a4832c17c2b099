"""Who likes what: clusters of users with tastes in genres that drift and have seasons, and items good and less good."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bandit.features import Feature
from retrieval.items import Item
from simulators.worlds.randomness import derive_generator

Float64Array = npt.NDArray[np.float64]

_MS_PER_DAY = 86_400_000.0
_BLOCK = 256


class Tastes(Protocol):
    """What a world is asked about users and items, which have numbers from 0."""

    @property
    def n_groups(self) -> int:
        """Return how many groups (genres) items are in."""

    @property
    def n_items(self) -> int | None:
        """Return how many items there can ever be; None for any number."""

    def group(self, number: int) -> int:
        """Return the first group of an item."""

    def is_hit(self, number: int) -> bool:
        """Return whether an item is one of those worth finding."""

    def item(self, number: int, *, available_at_unix_ms: int) -> Item:
        """Return an item as its owner puts it."""

    def context(self, user: int) -> dict[str, Any]:
        """Return what a service is told of a user with a request."""

    def log_odds(self, user: int, *, first: int, n: int, elapsed_ms: int) -> Float64Array:
        """Return float64 [n]: log odds that a user who looks at items `first` to `first + n` clicks."""


class TasteSpec(Protocol):
    """What tastes are built from."""

    def features(self) -> list[Feature]:
        """Return what a model is shown of context and items, ids apart."""

    def build(self, seed: int) -> Tastes:
        """Return the tastes of a seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTasteSpec:
    """Synthetic tastes; every scale is a standard deviation in log odds.

    log odds(user, item, t) = base + quality_i + affinity_ci + taste_cg(t) + own_ug + season_g sin(2 pi (t + phase_g))

    with c the cluster of the user and g the genre of the item. Items of a seed are the same whatever there is of users,
    and the other way round.

    Attributes:
        n_clusters: Clusters of users.
        n_genres: Genres of items.
        base: Log odds of an item like any other.
        taste: How much clusters differ in what genres they like.
        own: How much users of a cluster do.
        affinity: How much clusters differ in single items.
        quality: How much items differ for everybody.
        hit_share: Share of items that are hits: better for everybody by `hit`.
        hit: In log odds.
        season: Of every genre's daily rise and fall.
        drift_period_s: Tastes of clusters turn into others and come back in so long, in seconds; infinite for never.
        segment_noise: Probability that a request names another cluster than the user's.
    """

    n_clusters: int = 6
    n_genres: int = 8
    base: float = -2.2
    taste: float = 1.0
    own: float = 0.3
    affinity: float = 0.5
    quality: float = 0.5
    hit_share: float = 0.1
    hit: float = 1.5
    season: float = 0.0
    drift_period_s: float = math.inf
    segment_noise: float = 0.1

    def features(self) -> list[Feature]:
        """Return segment and genre, and the hour where there are seasons."""
        hour = Feature(
            name="daypart", namespace="context", source="hour", kind="numeric", edges=[4.0, 8.0, 12.0, 16.0, 20.0]
        )
        return [
            Feature(name="segment", namespace="context", source="segment"),
            *([hour] if self.season else []),
            Feature(name="genre", namespace="item", source="genres", kind="multi", limit=4),
        ]

    def build(self, seed: int) -> ClusterTastes:
        """Return the tastes of a seed."""
        return ClusterTastes(self, seed)


@dataclass(frozen=True, slots=True)
class _Person:
    cluster: int
    segment: int
    own: Float64Array


class ClusterTastes:
    """Tastes of a `ClusterTasteSpec`; users and items are drawn when they are first asked for, each by itself."""

    def __init__(self, spec: ClusterTasteSpec, seed: int) -> None:
        self._spec = spec
        self._seed = seed
        rng = derive_generator(seed, "clusters")
        shape = (spec.n_clusters, spec.n_genres)
        # A taste turns from the first into the second and on; its size stays the same on average.
        self._taste = spec.taste * rng.standard_normal((2, *shape))
        self._phase = rng.random(spec.n_genres)
        self._people: dict[int, _Person] = {}
        self._genre = np.zeros(0, dtype=np.int64)
        self._is_hit = np.zeros(0, dtype=np.bool_)
        # float64 [n_clusters, items drawn so far]: what does not change with time.
        self._fixed: Float64Array = np.zeros((spec.n_clusters, 0))

    @property
    def n_groups(self) -> int:
        """Return the number of genres."""
        return self._spec.n_genres

    @property
    def n_items(self) -> None:
        """Return None: there are always more."""
        return None

    def group(self, number: int) -> int:
        """Return the genre."""
        self._reach(number + 1)
        return int(self._genre[number])

    def is_hit(self, number: int) -> bool:
        """Return whether it was drawn as a hit."""
        self._reach(number + 1)
        return bool(self._is_hit[number])

    def item(self, number: int, *, available_at_unix_ms: int) -> Item:
        """Return an item with its genre; nothing tells a hit but its clicks."""
        return Item(
            id=f"i{number:06d}",
            attributes={"genres": [f"g{self.group(number)}"]},
            available_at_unix_ms=available_at_unix_ms,
        )

    def context(self, user: int) -> dict[str, Any]:
        """Return the segment."""
        return {"segment": f"s{self._person(user).segment}"}

    def log_odds(self, user: int, *, first: int, n: int, elapsed_ms: int) -> Float64Array:
        """Add up the terms."""
        self._reach(first + n)
        person = self._person(user)
        of_genre = self._taste_of(person.cluster, elapsed_ms) + person.own
        if self._spec.season:
            days = elapsed_ms / _MS_PER_DAY
            of_genre = of_genre + self._spec.season * np.sin(2.0 * np.pi * (days + self._phase))
        window = slice(first, first + n)
        log_odds: Float64Array = self._fixed[person.cluster, window] + of_genre[self._genre[window]]
        return log_odds

    def _taste_of(self, cluster: int, elapsed_ms: int) -> Float64Array:
        if math.isinf(self._spec.drift_period_s):
            at_start: Float64Array = self._taste[0, cluster]
            return at_start
        angle = 2.0 * math.pi * elapsed_ms / (1000.0 * self._spec.drift_period_s)
        turned: Float64Array = math.cos(angle) * self._taste[0, cluster] + math.sin(angle) * self._taste[1, cluster]
        return turned

    def _person(self, user: int) -> _Person:
        if user not in self._people:
            spec = self._spec
            rng = derive_generator(self._seed, "person", user)
            cluster = int(rng.integers(spec.n_clusters))
            is_other = rng.random() < spec.segment_noise
            segment = int(rng.integers(spec.n_clusters)) if is_other else cluster
            self._people[user] = _Person(cluster, segment, spec.own * rng.standard_normal(spec.n_genres))
        return self._people[user]

    def _reach(self, n: int) -> None:
        """Draw items up to `n`, in blocks."""
        drawn = len(self._genre)
        if n <= drawn:
            return
        spec = self._spec
        n_new = -(-(n - drawn) // _BLOCK) * _BLOCK
        genre, is_hit = np.zeros(n_new, dtype=np.int64), np.zeros(n_new, dtype=np.bool_)
        fixed = np.zeros((spec.n_clusters, n_new))
        for place in range(n_new):
            rng = derive_generator(self._seed, "item", drawn + place)
            genre[place] = rng.integers(spec.n_genres)
            is_hit[place] = rng.random() < spec.hit_share
            normal = rng.standard_normal(1 + spec.n_clusters)
            fixed[:, place] = spec.base + spec.quality * normal[0] + spec.affinity * normal[1:]
            fixed[:, place] += spec.hit * is_hit[place]
        self._genre = np.concatenate([self._genre, genre])
        self._is_hit = np.concatenate([self._is_hit, is_hit])
        self._fixed = np.concatenate([self._fixed, fixed], axis=1)
