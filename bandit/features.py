"""The one definition of every feature: declared once, encoded by the same function when serving and when learning."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal

import msgspec
import numpy as np

from bandit.vw_format import NAMESPACE_LETTERS, Encoded, encode

Namespace = Literal["context", "user", "position", "item", "dynamic"]
Record = Mapping[str, Any]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Feature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One feature, or one family of features for a multi-valued source.

    Attributes:
        name: Prefix of the feature's names, unique in its namespace; changing it changes the schema version.
        namespace: Where it lives; interactions are declared between namespaces.
        source: Key of the record that the namespace is encoded from, for example `device` or `genres`.
        kind: `categorical` (one value), `multi` (a list, each value a feature), `weighted` (a mapping from value to
            weight) or `numeric`.
        edges: Ascending bucket edges of a numeric feature; empty keeps the number itself, times `scale`.
        scale: Factor of an unbucketed number.
        limit: Most values taken from a list or mapping.
    """

    name: str
    namespace: Namespace
    source: str
    kind: Literal["categorical", "multi", "weighted", "numeric"] = "categorical"
    edges: list[float] = []
    scale: float = 1.0
    limit: int = 8

    def encode(self, value: Any) -> dict[str, float]:  # noqa: ANN401 - records hold what callers sent
        """Return the named features of one value; a missing value has none.

        Raises:
            ValueError: the value is not of the declared kind; the message names the feature.
        """
        if value is None:
            return {}
        if self.kind == "categorical" and isinstance(value, str | int | float | bool):
            return {f"{self.name}={value}": 1.0}
        if self.kind == "multi" and isinstance(value, list | tuple):
            return {f"{self.name}={entry}": 1.0 for entry in value[: self.limit]}
        if self.kind == "weighted" and isinstance(value, Mapping):
            return {f"{self.name}={key}": self._number(weight) for key, weight in list(value.items())[: self.limit]}
        if self.kind == "numeric" and isinstance(value, int | float) and not isinstance(value, bool):
            if self.edges:
                return {f"{self.name}={bisect.bisect_right(self.edges, value)}": 1.0}
            return {self.name: self._number(self._number(value) * self.scale)}
        raise ValueError(f"feature {self.name!r} must be {self.kind}, got {type(value).__name__}")

    def _number(self, value: Any) -> float:  # noqa: ANN401 - records hold what callers sent
        if isinstance(value, int | float) and abs(value) <= _FLOAT32_MAX:
            return float(value)
        raise ValueError(f"feature {self.name!r} must have numbers that float32 holds, got {value!r:.40}")


class FeatureSchema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every feature and every interaction of a model.

    Attributes:
        features: The declarations, in order; the order is part of the version.
        interactions: Pairs of namespaces whose features are multiplied (VW's `-q`).
    """

    features: list[Feature] = []
    interactions: list[tuple[Namespace, Namespace]] = []

    def __post_init__(self) -> None:
        """Check that names are unique and interactions join a shared namespace with an action's, once.

        Raises:
            ValueError: a name is declared twice, or an interaction is of another form or repeated.
        """
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

    @property
    def version(self) -> str:
        """12 hexadecimal digits that change with any declaration; a model serves one version only."""
        canonical = msgspec.json.encode(self, order="deterministic")
        return blake2b(canonical, digest_size=6).hexdigest()

    def named(self, namespace: Namespace, record: Record) -> dict[str, float]:
        """Return the named features of one namespace of one record.

        Raises:
            ValueError: a value is not of its declared kind.
        """
        named: dict[str, float] = {}
        for feature in self.features:
            if feature.namespace == namespace:
                named.update(feature.encode(record.get(feature.source)))
        return named

    def encode(self, namespace: Namespace, record: Record) -> Encoded:
        """Return the hashed features of one namespace of one record."""
        return encode(namespace, self.named(namespace, record))


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
