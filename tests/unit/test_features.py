"""Features: what each kind names, what is refused, and columns that agree with records one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.dynamic import CategoryColumn, Column, encode_dynamic
from bandit.features import Feature, FeatureSchema, attribute_shares

PROPERTY = settings(deadline=None, derandomize=True, max_examples=200)
EDGES = [-1.0, 0.0, 0.1, 2.5]


def _feature(**changes: Any) -> Feature:
    return Feature(**{"name": "f", "namespace": "context", "source": "s", **changes})


@pytest.mark.parametrize(
    ("declared", "value", "named"),
    [
        ({}, "tv", {"f=tv": 1.0}),
        ({}, True, {"f=True": 1.0}),
        ({}, "tv |A i7", {"f=tv |A i7": 1.0}),
        ({}, None, {}),
        ({"kind": "multi"}, ["a", "b", "a"], {"f=a": 1.0, "f=b": 1.0}),
        ({"kind": "multi", "limit": 1}, ["a", "b"], {"f=a": 1.0}),
        ({"kind": "weighted"}, {"a": 0.5, "b": 2}, {"f=a": 0.5, "f=b": 2.0}),
        ({"kind": "weighted", "limit": 1}, {"a": 0.5, "b": 2}, {"f=a": 0.5}),
        ({"kind": "numeric", "scale": 0.1}, 5, {"f": 0.5}),
        ({"kind": "numeric", "edges": EDGES}, -1.5, {"f=0": 1.0}),
        ({"kind": "numeric", "edges": EDGES}, -1.0, {"f=1": 1.0}),
        ({"kind": "numeric", "edges": EDGES}, 2.5, {"f=4": 1.0}),
        ({"kind": "numeric", "edges": EDGES}, 10**400, {"f=4": 1.0}),
    ],
)
def test_each_kind_names_its_values(declared: dict[str, Any], value: object, named: dict[str, float]) -> None:
    assert _feature(**declared).encode(value) == named


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ({}, ["a"]),
        ({"kind": "multi"}, "a"),
        ({"kind": "weighted"}, ["a"]),
        ({"kind": "weighted"}, {"a": "much"}),
        ({"kind": "weighted"}, {"a": None}),
        ({"kind": "numeric"}, "1"),
        ({"kind": "numeric"}, True),
        ({"kind": "numeric"}, math.nan),
        ({"kind": "numeric"}, math.inf),
        ({"kind": "numeric"}, 1e39),
        ({"kind": "numeric"}, 10**400),
        ({"kind": "numeric", "scale": 1e30}, 1e30),
    ],
)
def test_a_value_of_another_kind_or_beyond_float32_is_refused_by_name(declared: dict[str, Any], value: object) -> None:
    with pytest.raises(ValueError, match="feature 'f'"):
        _feature(**declared).encode(value)


def test_a_schema_names_one_namespace_of_a_record() -> None:
    schema = FeatureSchema(
        features=[
            _feature(name="device", source="device"),
            _feature(name="hour", source="hour", kind="numeric"),
            _feature(name="device", source="device", namespace="user"),
        ]
    )
    assert schema.named("context", {"device": "tv", "hour": 3, "more": 1}) == {"device=tv": 1.0, "hour": 3.0}
    assert schema.named("user", {"device": "tv"}) == {"device=tv": 1.0}
    assert schema.named("item", {"device": "tv"}) == {}
    assert schema.encode("context", {"device": "tv", "hour": 0}).names == ("device=tv",)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"features": [_feature(), _feature(source="other")]}, "declared twice"),
        ({"features": [_feature(kind="numeric", edges=[1.0, 0.0])]}, "ascending"),
        ({"interactions": [("item", "user")]}, "an interaction joins"),
        ({"interactions": [("position", "item")]}, "an interaction joins"),
        ({"interactions": [("user", "item"), ("context", "item"), ("user", "item")]}, "must not repeat"),
    ],
)
def test_a_schema_that_no_model_could_follow_is_refused(declared: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureSchema(**declared)


def test_the_version_changes_with_every_declaration_and_with_nothing_else() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"name": "g"},
        {"namespace": "user"},
        {"source": "t"},
        {"kind": "multi"},
        {"kind": "numeric", "edges": [1.0]},
        {"scale": 2.0},
        {"limit": 3},
    ]
    schemas = [FeatureSchema(features=[_feature(**change)]) for change in changes]
    schemas.append(FeatureSchema(features=[_feature()], interactions=[("user", "item")]))
    schemas.append(FeatureSchema(features=[_feature(), _feature(name="g")]))
    schemas.append(FeatureSchema(features=[_feature(name="g"), _feature()]))
    assert len({schema.version for schema in schemas}) == len(schemas)
    assert FeatureSchema(features=[_feature()]).version == schemas[0].version


# --- whole columns ---------------------------------------------------------------------------------------------------

near_edges = [float(np.nextafter(np.float32(e), np.float32(d), dtype=np.float32)) for e in EDGES for d in (-9, 9)]
numbers = st.sampled_from([*EDGES, *near_edges, 0.7, 0.0, -0.0, math.nan, 1e-42]) | st.floats(
    -1e6, 1e6, width=32, allow_nan=False
)
names = st.sampled_from(["als", "similar", "tv |A i7", "7", " x ", "é", ""])


@PROPERTY
@given(
    values=st.lists(st.tuples(numbers, numbers, numbers, names), max_size=8),
    scale=st.sampled_from([1.0, 0.1, -3.0, 1e-30]),
    given_columns=st.sets(st.sampled_from(["raw", "bucketed", "odd_edge", "source"])),
)
def test_columns_encode_as_records_one_by_one(
    values: list[tuple[float, float, float, str]], scale: float, given_columns: set[str]
) -> None:
    schema = FeatureSchema(
        features=[
            Feature(name="raw", namespace="dynamic", source="raw", kind="numeric", scale=scale),
            Feature(name="bucketed", namespace="dynamic", source="bucketed", kind="numeric", edges=EDGES),
            Feature(name="elsewhere", namespace="item", source="raw", kind="numeric"),
            # In float32 0.1 lies above and 0.7 below what they are in float64.
            Feature(name="odd", namespace="dynamic", source="odd_edge", kind="numeric", edges=[0.1, 0.7]),
            Feature(name="source", namespace="dynamic", source="source"),
            Feature(name="again", namespace="dynamic", source="source"),
        ]
    )
    vocabulary = sorted({row[3] for row in values})
    columns: dict[str, Column] = {
        name: np.array([row[place] for row in values], dtype=np.float32)
        for place, name in enumerate(("raw", "bucketed", "odd_edge"))
    }
    codes = np.array([vocabulary.index(row[3]) for row in values], dtype=np.uint8)
    columns["source"] = CategoryColumn(codes=codes, names=vocabulary)
    columns = {name: column for name, column in columns.items() if name in given_columns}
    encoded = encode_dynamic(schema, columns, len(values))
    assert encoded.indices.dtype == np.uint32
    assert encoded.values.dtype == np.float32
    assert len(encoded.indices) == len(encoded.values) == len(values)
    for row, (*row_numbers, name) in enumerate(values):
        record: dict[str, Any] = {"source": name} if "source" in given_columns else {}
        for source, number in zip(("raw", "bucketed", "odd_edge"), row_numbers, strict=True):
            if source in given_columns:
                record[source] = None if math.isnan(number) else float(np.float32(number))
        one = schema.encode("dynamic", record)
        kept = encoded.values[row] != 0.0
        assert encoded.indices[row, kept].tolist() == one.indices.tolist()
        assert encoded.values[row, kept].tolist() == one.values.tolist()


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("numeric", CategoryColumn(codes=np.array([0]), names=["a"])),
        ("categorical", np.array([1.0], dtype=np.float32)),
    ],
)
def test_a_column_of_another_kind_is_refused_by_name(kind: str, column: Column) -> None:
    schema = FeatureSchema(features=[_feature(kind=kind, namespace="dynamic")])
    with pytest.raises(ValueError, match="feature 'f'"):
        encode_dynamic(schema, {"s": column}, 1)


# --- attribute shares ------------------------------------------------------------------------------------------------


@PROPERTY
@given(
    values=st.lists(
        st.none() | st.sampled_from("abc") | st.lists(st.sampled_from("abcde"), max_size=3, unique=True), max_size=8
    ),
    limit=st.integers(1, 6),
)
def test_shares_are_fractions_of_votes_largest_first(values: list[object], limit: int) -> None:
    items = [{} if value is None else {"genres": value} for value in values]
    everything = attribute_shares(items, "genres", limit=100)
    assert sum(everything.values()) == pytest.approx(1.0 if everything else 0.0)
    voters = [value if isinstance(value, list) else [value] for value in values if value]
    for name, share in everything.items():
        votes = sum(1.0 / len(of_voter) for of_voter in voters if name in of_voter)
        assert share == pytest.approx(votes / len(voters))
    ranked = sorted(everything.items(), key=lambda pair: (-pair[1], pair[0]))
    assert list(attribute_shares(items, "genres", limit=limit).items()) == ranked[:limit]
