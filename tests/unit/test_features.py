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
        ({"kind": "counter"}, 0, {"f=0": 1.0}),
        ({"kind": "counter"}, 3.9, {"f=2": 1.0}),
        ({"kind": "counter", "limit": 3}, 1e9, {"f=3": 1.0}),
        ({"kind": "counter", "edges": [10.0]}, 12, {"f=1": 1.0}),
        ({"kind": "recency", "first_edge": 60.0, "factor": 4.0}, 59.9, {"f=0": 1.0}),
        ({"kind": "recency", "first_edge": 60.0, "factor": 4.0}, 240.0, {"f=2": 1.0}),
        ({"default": "none"}, "tv", {"f=tv": 1.0}),
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
        ({"half_life_s": 0.0}, "half_life_s must be positive"),
        ({"session_gap_s": math.inf}, "session_gap_s must be positive"),
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
        {"kind": "counter"},
        {"kind": "counter", "factor": 3.0},
        {"kind": "counter", "first_edge": 3.0},
        {"kind": "recency"},
        {"kind": "recency", "window_s": 60.0},
        {"kind": "ratio", "per": "n", "prior": (1.0, 2.0)},
        {"kind": "ratio", "per": "n", "prior": (1.0, 3.0)},
        {"kind": "ratio", "per": "m", "prior": (1.0, 2.0)},
        {"default": "x"},
        {"ttl_s": 60.0},
    ]
    schemas = [FeatureSchema(features=[_feature(**change)]) for change in changes]
    schemas.append(FeatureSchema(features=[_feature()], interactions=[("user", "item")]))
    schemas.append(FeatureSchema(features=[_feature(), _feature(name="g")]))
    schemas.append(FeatureSchema(features=[_feature()], half_life_s=1.0))
    schemas.append(FeatureSchema(features=[_feature()], impressions_window_s=1.0))
    schemas.append(FeatureSchema(features=[_feature()], session_gap_s=1.0))
    schemas.append(FeatureSchema(features=[_feature()], baseline=False))
    schemas.append(FeatureSchema(features=[_feature(name="g"), _feature()]))
    assert len({schema.version for schema in schemas}) == len(schemas)
    assert FeatureSchema(features=[_feature()]).version == schemas[0].version


def test_the_version_of_what_was_declared_before_there_was_a_choice_of_baseline_stays() -> None:
    assert FeatureSchema().version == FeatureSchema(baseline=True).version == "5c7cee51010c"


@pytest.mark.parametrize(
    "declared",
    [
        {"kind": "ratio"},
        {"kind": "ratio", "per": "n"},
        {"kind": "ratio", "per": "n", "prior": (2.0, 1.0)},
        {"per": "n"},
        {"prior": (1.0, 2.0)},
        {"kind": "counter", "factor": 1.0},
        {"kind": "recency", "first_edge": 0.0},
        {"kind": "numeric", "window_s": 1.0},
        {"kind": "recency", "window_s": 0.0},
        {"ttl_s": -1.0},
        {"kind": "multi", "default": "x"},
        {"kind": "numeric", "default": "x"},
        {"kind": "counter", "default": math.inf, "edges": []},
    ],
)
def test_attributes_that_do_not_fit_the_kind_are_refused_by_name(declared: dict[str, Any]) -> None:
    if declared.get("default") == math.inf:
        assert _feature(**declared).encode(math.inf) == {"f=8": 1.0}
        return
    with pytest.raises(ValueError, match="feature 'f'"):
        _feature(**declared)


def test_a_ratio_starts_at_its_prior_and_needs_both_counts() -> None:
    ratio = _feature(kind="ratio", per="n", prior=(1.0, 20.0), scale=10.0)
    schema = FeatureSchema(features=[ratio])
    assert schema.named("context", {"s": 0.0, "n": 0.0}) == {"f": 0.5}
    assert schema.named("context", {"s": 9.0, "n": 30.0}) == {"f": 2.0}
    assert schema.named("context", {"s": 9.0}) == schema.named("context", {"n": 9.0}) == {}
    assert schema.sources("context") == {"s", "n"}


def test_what_lies_beyond_the_window_is_missing_and_what_is_missing_takes_the_default() -> None:
    schema = FeatureSchema(
        features=[
            _feature(name="plain", kind="recency", window_s=100.0, limit=3),
            _feature(name="filled", kind="recency", window_s=100.0, limit=3, default=1e6),
            _feature(name="device", source="device", default="none"),
        ]
    )
    assert schema.named("context", {"s": 100.0}) == {"plain=3": 1.0, "filled=3": 1.0, "device=none": 1.0}
    assert schema.named("context", {"s": 100.5, "device": "tv"}) == {"filled=3": 1.0, "device=tv": 1.0}


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
            Feature(name="filled", namespace="dynamic", source="source", default="none"),
            Feature(name="count", namespace="dynamic", source="raw", kind="counter", first_edge=0.1, limit=5),
            Feature(name="ago", namespace="dynamic", source="bucketed", kind="recency", window_s=2.5, default=7.5),
            Feature(name="never", namespace="dynamic", source="raw", kind="recency", window_s=0.1, edges=[0.0, 0.1]),
            Feature(name="zero", namespace="dynamic", source="odd_edge", kind="numeric", default=0.0),
            Feature(
                name="rate",
                namespace="dynamic",
                source="raw",
                kind="ratio",
                per="bucketed",
                prior=(1.0, 1e7),
                default=0.25,
            ),
            Feature(
                name="step",
                namespace="dynamic",
                source="raw",
                kind="ratio",
                per="odd_edge",
                prior=(1.0, 1e7),
                edges=[-0.01, 1e-7, 0.01],
            ),
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
