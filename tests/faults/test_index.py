"""Kill -9 while an index is written, exchanged or compacted: the next start serves a whole one and every item."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retrieval.bundle import current_version, load_bundle
from service.adapters.embedded_store import die_with_parent
from tests.faults.site import Site, open_site
from tests.faults.small_index import publish
from tests.stack import eventually

FIRST_ITEMS = [f"i{n}" for n in range(60)]
_BUILD_AND_DIE = """
import sys
from pathlib import Path
from retrieval.bundle import current_version, load_bundle
from tests.faults.small_index import publish, publish_and_die
root, kind = Path(sys.argv[1]), sys.argv[2]
ids = [f"i{n}" for n in range(40)]
publish(root, ids, version="v0", kind=kind)
n_died = 0
for nth in range(1, 1000):
    before = current_version(root)
    ended = publish_and_die(root, ids, version=f"v{nth}", kind=kind, nth=nth)
    assert ended in (0, -9), ended
    # Whatever there is, it is whole, and it is the old one or the new one.
    version = current_version(root)
    assert version in (before, f"v{nth}"), version
    bundle = load_bundle(root)
    assert bundle.embeddings.item_ids == ids and len(bundle.als) == len(bundle.similar) == len(ids)
    if ended == 0:
        break
    n_died += 1
assert version == f"v{nth}"
# The build that came to its end took away what the others left.
assert not list(root.glob(".*-v*")) and len([p for p in root.iterdir() if p.is_dir()]) == 2, list(root.iterdir())
print(n_died)
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A site of this module's own, since others have no index."""
    with open_site() as opened:
        yield opened


@pytest.mark.parametrize("kind", ["exact", pytest.param("graph", marks=pytest.mark.long), "quantised"])
def test_killed_at_anything_it_does_to_a_file_a_build_leaves_the_old_bundle_or_the_new_one(
    tmp_path: Path, kind: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BUILD_AND_DIE, str(tmp_path / "index"), kind],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=die_with_parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 25


def call(site: Site, path: str, body: Any = None, *, method: str = "GET") -> Any:
    request = urllib.request.Request(
        site.load.url + path, data=None if body is None else json.dumps(body).encode(), method=method
    )
    with urllib.request.urlopen(request, timeout=30.0) as response:
        return json.loads(response.read() or b"null")


def served_index(site: Site) -> str:
    return str(call(site, "/readyz")["index"])


def findable(site: Site, item_ids: list[str]) -> set[str]:
    """Return which of the items are there, having asked for a slate of them."""
    present = {item["id"] for item in call(site, "/v1/items?ids=" + ",".join(item_ids))}
    asked = {"surface": "home", "n": min(len(present), 20), "candidates": item_ids}
    slate = call(site, "/v1/recommend", asked, method="POST")
    assert {item["item_id"] for item in slate["items"]} <= present
    assert len(slate["items"]) == asked["n"]
    return present


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("index.load", marks=pytest.mark.long),
        "index.built",
        pytest.param("index.served", marks=pytest.mark.long),
    ],
)
def test_killed_at_an_exchange_of_the_index_the_next_start_serves_the_new_one_and_every_acknowledged_item(
    site: Site, point: str
) -> None:
    root = site.folder / "index"
    publish(root, FIRST_ITEMS, version="before", kind="exact")
    site.heal()
    eventually(lambda: served_index(site) == "before", what="the first index is served")
    site.kill("api")
    site.start("api", failpoint=f"{point}:kill")
    site.wait_ready("api")
    acknowledged = []
    publish(root, FIRST_ITEMS, version=f"after-{point}", kind="quantised", seed=2)
    n = 0
    while site.is_alive("api"):
        n += 1
        item_id = f"{point}-{n}"
        if site.load.call("/v1/items", {"id": item_id}, method="PUT") is not None:
            acknowledged.append(item_id)
        assert n < 20_000
    assert site.wait_ended("api") == -signal.SIGKILL
    assert acknowledged
    site.heal()
    assert served_index(site) == f"after-{point}" == current_version(root)
    assert findable(site, acknowledged[-200:]) == set(acknowledged[-200:])
    site.load.settle()


def test_killed_in_a_compaction_the_next_start_serves_a_whole_index_and_every_acknowledged_change(site: Site) -> None:
    root = site.folder / "index"
    publish(root, FIRST_ITEMS, version="graph", kind="graph")
    site.heal()
    eventually(lambda: served_index(site) == "graph", what="the graph is served")
    site.kill("api")
    site.start("api", under=(sys.executable, "-m", "tests.faults.small_index"))
    site.wait_ready("api")
    gone, kept = FIRST_ITEMS[:45], FIRST_ITEMS[45:]
    for item_id in gone:
        assert site.load.call(f"/v1/items/{item_id}", None, method="DELETE") is not None
    # Most of the graph is deleted now: the next new item has it compacted.
    site.load.call("/v1/items", {"id": "the last straw"}, method="PUT")
    assert site.wait_ended("api") == -signal.SIGKILL
    assert "dies in a compaction" in site.log_of("api")
    site.heal()
    assert served_index(site) == "graph"
    assert len(load_bundle(root).als) == len(FIRST_ITEMS)
    assert findable(site, [*gone, *kept]) == set(kept)
    assert call(site, "/v1/items?ids=the%20last%20straw") != []
    found = call(site, "/v1/recommend", {"surface": "similar", "n": 5, "seed_item_id": kept[0]}, method="POST")
    assert found["items"]
    assert not {item["item_id"] for item in found["items"]} & set(gone)
