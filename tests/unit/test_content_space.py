"""The content space: projected cosines, and music-like items beside their like."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.content import content_matrix, feature_weights
from retrieval.content_space import ContentSearch, ContentSpace, build_content_space
from retrieval.exact import ExactIndex
from retrieval.items import Item

N_TRACKS = 600


def _tracks() -> list[Item]:
    """Return three kinds of tracks that differ in their numbers alone."""
    rng = np.random.default_rng(11)
    kinds = {"ballad": (70.0, 0.2, -14.0), "house": (125.0, 0.8, -6.0), "ambient": (90.0, 0.05, -25.0)}
    tracks = []
    for n in range(N_TRACKS):
        kind = list(kinds)[n % 3]
        tempo, energy, loudness = kinds[kind]
        attributes = {
            "tempo": tempo * float(rng.uniform(0.97, 1.03)),
            "energy": float(np.clip(energy + rng.uniform(-0.04, 0.04), 0, 1)),
            "loudness": loudness * float(rng.uniform(0.95, 1.05)),
        }
        tracks.append(Item(id=f"{kind}-{n}", attributes=attributes))
    return tracks


def _search(items: list[Item]) -> tuple[ContentSpace, ContentSearch]:
    space = build_content_space(items)
    index = ExactIndex(space.dimension, metric="cosine")
    index.add(np.arange(len(items)), space.vectors)
    return space, ContentSearch(space, index)


def _same_kind(items: list[Item]) -> float:
    _, search = _search(items)
    same = [
        items[label].id.split("-")[0] == items[seed].id.split("-")[0]
        for seed in range(0, N_TRACKS, 20)
        for label in search.search([(seed, 1.0)], 11)[0].tolist()
        if label != seed
    ]
    return float(np.mean(same))


def test_neighbours_of_a_track_are_alike_in_tempo_energy_and_loudness() -> None:
    tracks = _tracks()
    assert _same_kind(tracks) >= 0.95
    # Control: with their numbers dealt out anew, a third is of the same kind by chance.
    dealt = np.random.default_rng(5).permutation(N_TRACKS)
    shuffled = [
        Item(id=track.id, attributes=tracks[at].attributes) for track, at in zip(tracks, dealt.tolist(), strict=True)
    ]
    assert _same_kind(shuffled) < 0.5


@pytest.mark.parametrize(
    ("name", "near", "far"),
    [
        ("energy", (0.8, 0.85), (0.2, 0.6)),
        ("tempo", (120.0, 126.0), (70.0, 140.0)),
        ("valence", (0.0, 0.05), (0.9, 0.1)),
    ],
)
def test_numbers_are_alike_when_they_are_near(name: str, near: tuple[float, float], far: tuple[float, float]) -> None:
    def cosine(left: float, right: float) -> float:
        pair = content_matrix([Item(id=f"i{n}", attributes={name: value}) for n, value in enumerate((left, right))])
        return float((pair[0] @ pair[1].T).toarray()[0, 0])

    assert cosine(*near) > 0.8
    assert cosine(*far) < 0.1


def test_prose_is_features_by_word_and_names_stay_whole() -> None:
    plot = "A heist in Paris goes wrong, and a thief falls in love"
    weights = feature_weights(Item(id="i", attributes={"plot": plot, "country": "United States"}))
    assert "plot:heist" in weights
    assert "country=United States" in weights
    assert sum(w**2 for name, w in weights.items() if name.startswith("plot")) == pytest.approx(1.0)


def test_projected_cosines_are_those_of_the_content_up_to_noise() -> None:
    rng = np.random.default_rng(2)
    names = [f"p{n}" for n in range(300)]
    items = [
        Item(id=f"i{n}", attributes={"cast": rng.choice(names, 4).tolist(), "genre": names[n % 9]}) for n in range(80)
    ]
    space, exact = build_content_space(items), content_matrix(items)
    difference = space.vectors @ space.vectors.T - (exact @ exact.T).toarray()
    # Of one pair the noise has a deviation of at most 1/sqrt(128) = 0.088.
    assert float(np.sqrt(np.mean(difference**2))) < 0.1
    assert np.abs(difference).max() < 0.45


def test_items_that_come_change_and_go_are_found_where_they_are_now() -> None:
    tracks = _tracks()
    space, search = _search(tracks)
    house = tracks[1]
    twin = Item(id="twin", attributes=house.attributes)
    search.put(N_TRACKS, twin)
    assert N_TRACKS in search.search([(1, 1.0)], 2)[0].tolist()
    assert search.search([(N_TRACKS, 1.0)], 1)[1][0] == pytest.approx(1.0, abs=1e-5)
    # An item of the space that became another one.
    changed = Item(id=tracks[0].id, attributes=house.attributes)
    search.put(0, changed)
    assert 0 in search.search([(1, 1.0)], 3)[0].tolist()
    np.testing.assert_allclose(space.vector(changed), space.vectors[1], atol=1e-6)
    for label in (0, N_TRACKS):
        search.remove(label)
        assert label not in search.search([(1, 1.0)], N_TRACKS)[0].tolist()
        assert len(search.search([(label, 1.0)], 5)[0]) == 0
    search.put(0, tracks[0])
    assert search.search([(0, 1.0)], 1)[0].tolist() == [0]


def test_several_seeds_meet_between_them_by_weight() -> None:
    tracks = _tracks()
    _, search = _search(tracks)
    near_ballad = search.search([(0, 1.0), (1, 0.2)], 5)[0]
    assert {tracks[label].id.split("-")[0] for label in near_ballad.tolist()} == {"ballad"}
