"""The one definition of every feature: declared once, encoded by the same function when serving and when learning."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal

import msgspec
import numpy as np

from bandit.vw_format import NAMESPACE_LETTERS, Encoded, encode

Namespace = Literal["context", "user", "position", "item", "dynamic"]
Record = Mapping[str, Any]

NUMBER_KINDS = frozenset({"numeric", "counter", "ratio", "recency"})
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# Float32 holds larger ones; the product of two, times a weight, it may not.
_NUMBER_MAX = 2.0**53


Kind = Literal["categorical", "multi", "weighted", "numeric", "counter", "ratio", "recency"]


class UnfitValue(ValueError):
    """A value that a feature cannot be made of.

    Args:
        message: Names the feature.
        source: Key of the record that held the value.
    """

    def __init__(self, message: str, *, source: str) -> None:
        super().__init__(message)
        self.source = source


class Feature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """One feature, or one family of features for a multi-valued source.

    Attributes:
        name: Prefix of the feature's names, unique in its namespace; changing it changes the schema version.
        namespace: Where it lives; interactions are declared between namespaces.
        source: Key of the record that the namespace is encoded from, for example `device` or `genres`.
        kind: `categorical` (one value), `multi` (a list, each value a feature), `weighted` (a mapping from value to
            weight), `numeric`, `counter` (a decayed count in buckets that double), `ratio` (two decayed counts and a
            prior) or `recency` (seconds since something, in buckets that grow by a factor).
        edges: Ascending bucket edges; empty keeps the number itself, times `scale`, except that a counter's and a
            recency's buckets then follow from `factor` and `limit`.
        scale: Factor of an unbucketed number.
        limit: Most values taken from a list or mapping; most edges of a counter or recency.
        per: Of a ratio: the key of its denominator.
        prior: Of a ratio: successes and trials that every item starts with, the Beta prior (a, a + b).
        factor: Of a counter or recency: each edge is so many times the one before.
        first_edge: Of a counter or recency: the lowest edge, in counts or seconds.
        window_s: Of a recency: what lies back longer is missing, in seconds.
        ttl_s: How long the online store must keep what the feature reads, in seconds; the configuration is refused
            when it keeps it for less.
        default: What a missing value counts as; None leaves the feature out.
    """

    name: str
    namespace: Namespace
    source: str
    kind: Kind = "categorical"
    edges: list[float] = []
    scale: float = 1.0
    limit: int = 8
    per: str = ""
    prior: tuple[float, float] = (0.0, 0.0)
    factor: float = 2.0
    first_edge: float = 1.0
    window_s: float | None = None
    ttl_s: float | None = None
    default: str | float | bool | None = None

    def __post_init__(self) -> None:
        """Check that the attributes fit the kind.

        Raises:
            ValueError: one of them does not; the message names the feature.
        """
        if (self.kind == "ratio") != bool(self.per) or (self.kind == "ratio") != (self.prior != (0.0, 0.0)):
            raise ValueError(f"feature {self.name!r}: `per` and `prior` belong to a ratio and a ratio needs both")
        if self.kind == "ratio" and not 0.0 < self.prior[0] <= self.prior[1] <= _FLOAT32_MAX:
            raise ValueError(f"feature {self.name!r} needs a prior of 0 < successes <= trials, got {self.prior}")
        if self.kind in ("counter", "recency") and not (1.0 < self.factor <= 1e6 and 0.0 < self.first_edge <= 1e12):
            raise ValueError(f"feature {self.name!r} needs factor in (1, 1e6] and first_edge in (0, 1e12]")
        if self.window_s is not None and (self.kind != "recency" or not self.window_s > 0.0):
            raise ValueError(f"feature {self.name!r}: window_s belongs to a recency and is positive")
        if self.ttl_s is not None and not self.ttl_s > 0.0:
            raise ValueError(f"feature {self.name!r} needs a positive ttl_s, got {self.ttl_s}")
        if self.kind in ("multi", "weighted") and self.default is not None:
            raise ValueError(f"feature {self.name!r} is {self.kind} and cannot have a default")
        self.encode(self.default)

    @cached_property
    def bucket_edges(self) -> list[float]:
        """Return the ascending edges of the buckets; empty for an unbucketed number."""
        if self.edges or self.kind not in ("counter", "recency"):
            return self.edges
        return [self.first_edge * self.factor**power for power in range(self.limit)]

    def value_in(self, record: Record) -> Any:  # noqa: ANN401 - records hold what callers sent
        """Return the feature's value in a record, its default where there is none."""
        value = record.get(self.source)
        if self.kind == "ratio":
            trials = record.get(self.per)
            if value is not None and trials is not None:
                value = (self._number(value) + self.prior[0]) / (self._number(trials) + self.prior[1])
            else:
                value = None
        elif self.window_s is not None and isinstance(value, int | float) and value > self.window_s:
            value = None
        return self.default if value is None else value

    def encode(self, value: Any) -> dict[str, float]:  # noqa: ANN401 - records hold what callers sent
        """Return the named features of one value; a missing value has none.

        Raises:
            UnfitValue: the value is not of the declared kind.
        """
        if value is None:
            return {}
        if self.kind == "categorical" and isinstance(value, str | int | float | bool):
            return {f"{self.name}={value}": 1.0}
        if self.kind == "multi" and isinstance(value, list | tuple):
            return {f"{self.name}={entry}": 1.0 for entry in value[: self.limit]}
        if self.kind == "weighted" and isinstance(value, Mapping):
            return {f"{self.name}={key}": self._number(weight) for key, weight in list(value.items())[: self.limit]}
        if self.kind in NUMBER_KINDS and isinstance(value, int | float) and not isinstance(value, bool):
            edges = self.bucket_edges
            if edges:
                return {f"{self.name}={bisect.bisect_right(edges, value)}": 1.0}
            return {self.name: self._number(self._number(value) * self.scale)}
        message = f"feature {self.name!r} must be {self.kind}, got {type(value).__name__}"
        raise UnfitValue(message, source=self.source)

    def _number(self, value: Any) -> float:  # noqa: ANN401 - records hold what callers sent
        if isinstance(value, int | float) and abs(value) <= _NUMBER_MAX:
            return float(value)
        message = f"feature {self.name!r} must have numbers within +-{_NUMBER_MAX:g}, got {value!r:.40}"
        raise UnfitValue(message, source=self.source)


class FeatureSchema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Every feature and every interaction of a model.

    Attributes:
        features: The declarations, in order; the order is part of the version.
        interactions: Pairs of namespaces whose features are multiplied (VW's `-q`).
        half_life_s: Item statistics halve in this time, in seconds: every counter and ratio of items decays by it.
        impressions_window_s: Showings to a user count for this long, in seconds.
        session_gap_s: A session ends after this long without an interaction or a slate, in seconds.
    """

    features: list[Feature] = []
    interactions: list[tuple[Namespace, Namespace]] = []
    half_life_s: float = 604_800.0
    impressions_window_s: float = 86_400.0
    session_gap_s: float = 1_800.0

    def __post_init__(self) -> None:
        """Check that names are unique and interactions join a shared namespace with an action's, once.

        Raises:
            ValueError: a name is declared twice, a time is not positive, or an interaction is of another form or
                repeated.
        """
        for name in ("half_life_s", "impressions_window_s", "session_gap_s"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        seen: set[tuple[str, str]] = set()
        for feature in self.features:
            key = (feature.namespace, feature.name)
            if key in seen:
                raise ValueError(f"feature {feature.name!r} is declared twice in namespace {feature.namespace!r}")
            seen.add(key)
            if feature.edges != sorted(feature.edges):
                raise ValueError(f"feature {feature.name!r} needs ascending edges, got {feature.edges}")
        for first, second in self.interactions:
            if first not in ("context", "user") or second not in ("item", "dynamic"):
                raise ValueError(
                    f"an interaction joins context or user with item or dynamic, got {first!r} with {second!r}"
                )
        # VW would count a repeated pair once, and the table twice.
        if len(set(self.interactions)) < len(self.interactions):
            raise ValueError(f"interactions must not repeat, got {self.interactions}")

    @cached_property
    def version(self) -> str:
        """12 hexadecimal digits that change with any declaration; a model serves one version only."""
        canonical = msgspec.json.encode(self, order="deterministic")
        return blake2b(canonical, digest_size=6).hexdigest()

    def sources(self, namespace: Namespace) -> frozenset[str]:
        """Return the keys that the features of a namespace read."""
        return self._sources[namespace]

    def named(self, namespace: Namespace, record: Record) -> dict[str, float]:
        """Return the named features of one namespace of one record.

        Raises:
            UnfitValue: a value is not of its declared kind.
        """
        named: dict[str, float] = {}
        for feature in self.by_namespace[namespace]:
            value = feature.value_in(record)
            if value is not None:
                named.update(feature.encode(value))
        return named

    def encode(self, namespace: Namespace, record: Record) -> Encoded:
        """Return the hashed features of one namespace of one record."""
        return encode(namespace, self.named(namespace, record))

    # What follows from the declarations is worked out once, not with every request.
    @cached_property
    def by_namespace(self) -> dict[Namespace, list[Feature]]:
        """The features of every namespace, in order."""
        return {n: [f for f in self.features if f.namespace == n] for n in NAMESPACE_LETTERS}  # type: ignore[misc]

    @cached_property
    def _sources(self) -> dict[Namespace, frozenset[str]]:
        return {n: frozenset(k for f in of for k in (f.source, f.per) if k) for n, of in self.by_namespace.items()}


def attribute_shares(items: Sequence[Record], source: str, *, limit: int) -> dict[str, float]:
    """Return the largest shares of an attribute's values over items, largest first and then by name.

    An item with several values splits its one vote between them; items without the attribute do not count.

    >>> attribute_shares([{"genres": ["Drama", "Crime"]}, {"genres": ["Drama"]}], "genres", limit=8)
    {'Drama': 0.75, 'Crime': 0.25}
    """
    votes: Counter[str] = Counter()
    n_voters = 0
    for item in items:
        value = item.get(source)
        values = value if isinstance(value, list) else [] if value is None else [value]
        n_voters += bool(values)
        for entry in values:
            votes[str(entry)] += 1.0 / len(values)  # type: ignore[assignment]
    ranked = sorted(votes.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]
    return {value: count / n_voters for value, count in ranked}


assert set(NAMESPACE_LETTERS) == set(Namespace.__args__)  # type: ignore[attr-defined]
