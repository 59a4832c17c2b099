"""Items come and go without end: nothing that a worker keeps of them grows, and what is there is found."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.churn import N_LATER, N_TRAINED

N_AT_ONCE = N_TRAINED + N_LATER + 1
# What an allocator may hold on to; a hundred bytes lost for each of a million items would be far more.
ALLOWED_GROWTH_BYTES = 12_000_000


def measured(kind: str, n_pairs: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.churn", kind, str(n_pairs)], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("kind", "n_pairs"),
    [
        ("exact", 20_000),
        ("quantised", 6_000),
        ("graph", 4_000),
        *(
            pytest.param(kind, 1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(7_200)])
            for kind in ("exact", "quantised", "graph")
        ),
    ],
)
def test_whatever_comes_and_goes_a_worker_grows_with_the_items_of_one_time_only(kind: str, n_pairs: int) -> None:
    found = measured(kind, n_pairs)
    marks = found["marks"]
    settled, last = marks[len(marks) // 2], marks[-1]
    grown = {name: (settled["sizes"][name], n) for name, n in last["sizes"].items() if n > settled["sizes"][name]}
    # Numbers of a graph are looked through when they are twice the nodes; the rest stands still.
    assert {name for name in grown if not name.endswith((": numbers", ": aside"))} == set()
    bound = 8 * N_AT_ONCE
    assert {name: n for name, n in last["sizes"].items() if n > bound} == {}
    assert last["resident_bytes"] - settled["resident_bytes"] < ALLOWED_GROWTH_BYTES
    assert found["n_found"] >= 0.98 * found["n_later"]


def test_a_label_that_is_never_given_again_would_be_noticed() -> None:
    script = (
        "import json, sys; import service.item_vectors as v; import tests.churn as c\n"
        "class Keep(list):\n    def append(self, label): pass\n"
        "view = c.build_view('exact'); view.retriever._vectors._free_labels = Keep()\n"
        "view.retriever._vectors._added_label = type('Ids', (dict,), {'__delitem__': lambda self, key: None})()\n"
        "[None for _ in c.churn(view, 4000)]; print(json.dumps(c.sizes(view)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    sizes = json.loads(done.stdout)
    assert sizes["ids of added"] == 4_000 > 4 * N_LATER
