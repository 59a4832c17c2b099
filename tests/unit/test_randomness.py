"""Keyed randomness: a function of its key and of nothing else."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit._native import philox_uniforms
from bandit.randomness import build_generator, draw_uniforms

PROPERTY = settings(deadline=None, derandomize=True, max_examples=200)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
keys = st.fixed_dictionaries(
    {
        "salt": st.binary(max_size=3),
        "purpose": st.sampled_from(["slot", "discovery"]),
        "surface": texts,
        "event_id": texts,
    }
)


@PROPERTY
@given(key=keys, other=keys)
def test_equal_keys_give_equal_numbers_and_different_keys_different_ones(
    key: dict[str, object], other: dict[str, object]
) -> None:
    first, again = build_generator(**key).random(4), build_generator(**key).random(4)
    assert first.tolist() == again.tolist()
    assert (build_generator(**other).random(4).tolist() == first.tolist()) == (key == other)


@PROPERTY
@given(left=texts, middle=texts, right=texts)
def test_moving_text_between_the_parts_changes_the_key(left: str, middle: str, right: str) -> None:
    one = build_generator(salt=b"s", purpose="slot", surface=left + middle, event_id=right).random()
    other = build_generator(salt=b"s", purpose="slot", surface=left, event_id=middle + right).random()
    assert (one == other) == (middle == "")


def test_every_part_counts() -> None:
    key = {"salt": b"s", "purpose": "slot", "surface": "home", "event_id": "e"}
    changes = [{}, {"salt": b"t"}, {"surface": "x"}, {"event_id": "f"}]
    changes += [{"purpose": purpose} for purpose in ("discovery", "variant", "sample", "candidates")]
    numbers = {build_generator(**{**key, **change}).random() for change in changes}
    assert len(numbers) == len(changes)


def test_the_key_is_the_digest_of_the_length_prefixed_parts() -> None:
    parts = [b"salt", b"slot", "häm".encode(), b"e1"]
    digest = blake2b(b"".join(len(part).to_bytes(8, "little") + part for part in parts), digest_size=16).digest()
    expected = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(3)
    drawn = build_generator(salt=b"salt", purpose="slot", surface="häm", event_id="e1").random(3)
    assert drawn.tolist() == expected.tolist()


def test_the_numbers_of_a_decision_never_change() -> None:
    # Logged decisions must replay after every upgrade; these were drawn by the first version.
    drawn = build_generator(salt=b"salt", purpose="slot", surface="home", event_id="01J").random(3)
    assert drawn.tolist() == [0.5121870927330225, 0.11288404206667224, 0.38012222238664206]


@PROPERTY
@given(key=keys, n=st.integers(0, 13))
def test_uniforms_are_the_first_that_the_generator_draws(key: dict[str, Any], n: int) -> None:
    assert draw_uniforms(n, **key).tolist() == build_generator(**key).random(n).tolist()


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes, got 15"):
        philox_uniforms(bytes(15), 1)
