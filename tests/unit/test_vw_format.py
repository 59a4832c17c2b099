"""Features as VW hashes them; its own parser and index function are the oracle."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vowpal_wabbit_next import CBLabel, Example, TextFormatParser, Workspace

from bandit.vw_format import (
    NAMESPACE_LETTERS,
    Encoded,
    ExamplePool,
    encode,
    feature_index,
    predict_costs,
    predict_then_learn_cost,
    vw_arguments,
)

PROPERTY = settings(deadline=None, derandomize=True, max_examples=120)
BITS = 22
MASK = (1 << BITS) - 1

namespaces = st.sampled_from(sorted(NAMESPACE_LETTERS))
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# What VW's text format can hold in a name.
plain_text = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="|:"), min_size=1, max_size=9
)


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace([*vw_arguments((), learning_rate=0.1, bits=BITS)])


def _groups(example: Example) -> dict[str, list[tuple[int, float]]]:
    return {
        chr(group): list(zip(example[group].indices, example[group].values, strict=True))
        for group in example.feat_group_indices
    }


@PROPERTY
@given(namespace=namespaces, name=any_text | st.sampled_from(["7", "0012", " 7 ", "x=\t", "\x01", "x=José", "x=日本"]))
def test_an_index_is_the_one_that_vw_gives(workspace: Workspace, namespace: str, name: str) -> None:
    letter = NAMESPACE_LETTERS[namespace]
    if "\x00" not in name:
        assert feature_index(namespace, name) & MASK == workspace.get_index_for_scalar_feature(
            name, namespace_name=letter
        )


@PROPERTY
@given(
    namespace=namespaces,
    features=st.dictionaries(plain_text, st.sampled_from([0.0, 1.0, -2.5, 0.125]), min_size=1, max_size=5),
)
def test_encoded_features_are_those_of_vws_text_parser(
    workspace: Workspace, namespace: str, features: dict[str, float]
) -> None:
    letter = NAMESPACE_LETTERS[namespace]
    line = f"0:1:0.5 |{letter} " + " ".join(f"{name}:{value}" for name, value in features.items())
    parsed = _groups(TextFormatParser(workspace).parse_line(line)).get(letter, [])
    encoded = encode(namespace, features)
    assert (encoded.indices & np.uint32(MASK)).tolist() == [index for index, _ in parsed]
    # VW's own reading of decimals is off by up to a unit in the last place.
    assert encoded.values.tolist() == pytest.approx([value for _, value in parsed], rel=1e-6)


@PROPERTY
@given(features=st.dictionaries(any_text, st.floats(-1e30, 1e30) | st.sampled_from([0.0, -0.0, 1e-50]), max_size=6))
def test_values_that_are_zero_in_float32_are_dropped_and_the_others_kept_in_order(
    features: dict[str, float],
) -> None:
    encoded = encode("user", features)
    assert list(encoded.names) == [name for name, value in features.items() if np.float32(value) != 0.0]
    assert encoded.values.tolist() == [float(np.float32(features[name])) for name in encoded.names]
    assert encoded.indices.tolist() == [feature_index("user", name) for name in encoded.names]
    assert (encoded.indices.dtype, encoded.values.dtype) == (np.uint32, np.float32)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, 2.0**128 - 2.0**103])
def test_a_value_that_is_not_finite_in_float32_is_refused_by_name(value: float) -> None:
    with pytest.raises(ValueError, match="'bad' must be finite"):
        encode("user", {"good": 1.0, "bad": value})


def test_the_largest_value_that_is_finite_in_float32_is_kept() -> None:
    values = [math.nextafter(sign * (2.0**128 - 2.0**103), 0.0) for sign in (1.0, -1.0)]
    largest = float(np.finfo(np.float32).max)
    assert encode("user", {"good": values[0], "bad": values[1]}).values.tolist() == [largest, -largest]


def test_namespaces_differ_in_their_first_letter() -> None:
    assert len({letter[0] for letter in NAMESPACE_LETTERS.values()}) == len(NAMESPACE_LETTERS)
    assert len({feature_index(namespace, "x") for namespace in NAMESPACE_LETTERS}) == len(NAMESPACE_LETTERS)


@PROPERTY
@given(value=any_text | st.sampled_from(["tv |A i7", "tv\n0:0:1 |I x", "|C", "a:3", "shared |U u"]))
def test_no_value_opens_a_namespace_or_adds_a_feature(value: str) -> None:
    pool = ExamplePool()
    shared = pool.fill_shared({"context": encode("context", {f"device={value}": 1.0})})
    action = pool.fill_action(0, {"item": encode("item", {f"title={value}": 1.0})}, label=CBLabel())
    assert _groups(shared) == {"C": [(feature_index("context", f"device={value}"), 1.0)]}
    assert _groups(action) == {"I": [(feature_index("item", f"title={value}"), 1.0)]}


def _encoded(namespace: str, n: int, seed: int) -> Encoded:
    rng = np.random.default_rng(seed)
    return encode(namespace, {f"f{k}": float(rng.normal()) for k in range(n)})


@PROPERTY
@given(
    requests=st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from(["context", "user", "position"]), st.integers(0, 3)),
            st.lists(st.dictionaries(st.sampled_from(["item", "dynamic"]), st.integers(0, 3)), min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_reused_example_holds_only_the_newest_features(
    requests: list[tuple[dict[str, int], list[dict[str, int]]]],
) -> None:
    pool = ExamplePool()
    for turn, (shared, actions) in enumerate(requests):
        filled = [
            pool.fill_shared({name: _encoded(name, n, turn) for name, n in shared.items()}),
            *(
                pool.fill_action(
                    at, {name: _encoded(name, n, turn + at) for name, n in action.items()}, label=CBLabel()
                )
                for at, action in enumerate(actions)
            ),
        ]
        for at, (example, sizes) in enumerate(zip(filled, [shared, *actions], strict=True)):
            seed = turn if at == 0 else turn + at - 1
            expected = {
                NAMESPACE_LETTERS[name]: list(
                    zip(_encoded(name, n, seed).indices.tolist(), _encoded(name, n, seed).values.tolist(), strict=True)
                )
                for name, n in sizes.items()
                if n
            }
            assert _groups(example) == expected


def test_an_export_with_the_same_names_trains_to_the_same_weights() -> None:
    arguments = vw_arguments((("user", "item"),), learning_rate=0.3, bits=18)
    ours, theirs = Workspace(arguments), Workspace(arguments)
    pool, parser = ExamplePool(), TextFormatParser(theirs)
    for turn in range(5):
        user, item = {"a": 1.0, f"turn={turn}": 0.5}, {"x": 2.0, "zero": 0.0}
        shared = pool.fill_shared({"user": encode("user", user)})
        action = pool.fill_action(0, {"item": encode("item", item)}, label=CBLabel(label=(-1.0, 0.25)))
        predict_then_learn_cost(ours, [shared, action])
        lines = [f"shared |U a:1 turn={turn}:0.5", "0:-1:0.25 |I x:2 zero:0"]
        theirs.learn_one([parser.parse_line(line) for line in lines])
    assert np.count_nonzero(ours.weights()[:, 0, 0]) > 10
    assert (ours.weights()[:, 0, :3] == theirs.weights()[:, 0, :3]).all()


def test_features_that_an_example_holds_already_are_learned_like_features_written_anew() -> None:
    rng = np.random.default_rng(5)
    shared = [
        {"context": encode("context", {f"c{n % 2}": 1.0}), "user": encode("user", {f"u{n}": 0.5 + n, "any": 1.0})}
        for n in range(3)
    ]
    actions = [{"item": encode("item", {f"i{n}": 1.0, "all": 0.25})} for n in range(3)]
    actions += [{**action, "dynamic": encode("dynamic", {"seen": 2.0})} for action in actions]
    arguments = vw_arguments((("user", "item"), ("context", "dynamic")), learning_rate=0.5, bits=18)
    kept, anew = (Workspace(arguments), ExamplePool()), (Workspace(arguments), ExamplePool())
    for who, what, reward in zip(rng.integers(3, size=200), rng.integers(6, size=200), rng.random(200), strict=True):
        label = CBLabel(label=(-float(reward), 0.5))
        costs = [
            predict_then_learn_cost(workspace, [pool.fill_shared(of), pool.fill_action(0, action, label=label)])
            for (workspace, pool), of, action in (
                (kept, shared[who], actions[what]),
                (anew, copy.deepcopy(shared[who]), copy.deepcopy(actions[what])),
            )
        ]
        assert costs[0] == costs[1]
    assert np.count_nonzero(kept[0].weights()[:, 0, 0]) > 10
    assert (kept[0].weights()[:, 0, :3] == anew[0].weights()[:, 0, :3]).all()


def test_costs_are_those_that_vw_predicts_through_its_front_door() -> None:
    workspace = Workspace(vw_arguments((("user", "item"),), learning_rate=0.5, bits=18))
    pool = ExamplePool()
    label = CBLabel(label=(-1.0, 0.5))
    shared = pool.fill_shared({"user": encode("user", {"a": 1.0})})
    assert (
        predict_then_learn_cost(
            workspace, [shared, pool.fill_action(0, {"item": encode("item", {"x": 1.0})}, label=label)]
        )
        == 0.0
    )
    actions = [
        pool.fill_action(at, {"item": encode("item", {name: 1.0})}, label=CBLabel()) for at, name in enumerate("zyx")
    ]
    costs = predict_costs(workspace, [shared, *actions])
    assert costs == workspace.predict_one([shared, *actions])
    assert costs[0][0] == 2
    assert costs[0][1] < costs[1][1] <= 0.0


def test_arguments_name_each_interaction_by_letters_and_turn_decay_off() -> None:
    arguments = vw_arguments((("user", "item"), ("context", "dynamic")), learning_rate=0.01, bits=22)
    assert " ".join(arguments) == "--cb_adf --cb_type mtr --power_t 0 -l 0.01 -b 22 -q UI -q CD --quiet"
