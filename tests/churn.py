"""Put and delete items without end through what a worker applies changes with, and say what that left behind.

Run as `python -m tests.churn KIND N_PAIRS`: a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.bundle import load_bundle
from retrieval.catalogue import Catalogue
from retrieval.index import HnswIndex
from retrieval.indexes import IndexKind
from retrieval.items import Item
from retrieval.quantised import QuantisedIndex
from service.config import load_config
from service.items_view import ItemsView
from service.messages import ItemDelete, ItemUpsert
from service.retriever import Retriever
from service.rule_columns import AttributeColumns, attribute_kinds
from tests.faults.small_index import publish

N_TRAINED = 400
# So many items that came later are there at one time.
N_LATER = 400
N_MARKS = 8


def item(number: int) -> Item:
    """Return an item that came later; every one has a creator of its own."""
    genres = [f"genre {number % 7}", f"genre {number % 5}"]
    return Item(id=f"later {number}", creator=f"creator {number}", attributes={"genres": genres, "year": 1990.0})


def build_view(kind: IndexKind) -> ItemsView:
    """Return the view of a worker on a small bundle, its items put."""
    config = load_config(environment={})
    trained = [f"trained {number}" for number in range(N_TRAINED)]
    with tempfile.TemporaryDirectory() as folder:
        publish(Path(folder), trained, version="v1", kind=kind)
        bundle = load_bundle(Path(folder))
    view = ItemsView(config.features, Retriever(Catalogue(), bundle), AttributeColumns(attribute_kinds(config)))
    for item_id in trained:
        view.apply("1-0", ItemUpsert(item=Item(id=item_id)))
    return view


def churn(view: ItemsView, n_pairs: int) -> Iterator[int]:
    """Put an item and delete the oldest later one, and now and then delete and put back a trained one."""
    for number in range(n_pairs):
        view.apply("1-0", ItemUpsert(item=item(number)))
        if number >= N_LATER:
            view.apply("1-0", ItemDelete(item_id=f"later {number - N_LATER}"))
        if number % 10 == 0:
            trained = f"trained {number % N_TRAINED}"
            view.apply("1-0", ItemDelete(item_id=trained))
            view.apply("1-0", ItemUpsert(item=Item(id=trained)))
        yield number


def sizes(view: ItemsView) -> dict[str, int]:
    """Return how long everything is that has a place for each item."""
    vectors = view.retriever._vectors
    assert vectors is not None
    found = {
        "catalogue rows": len(view.catalogue.item_ids),
        "catalogue columns": len(view.catalogue.listed),
        "creators": len(view.catalogue._n_of_creator),
        "features": len(view.features.indices),
        "rows of statistics": len(view.statistics._row),
        "labels": len(vectors._row_of_label),
        "own vectors": len(vectors._own),
        "places of own vectors": len(vectors._own_place),
        "noted to move": len(view.retriever.moves),
        "ids of added": len(vectors._added_label),
        "content vectors": 0 if vectors.content is None else len(vectors.content._moved),
    }
    for name, index in (("als", vectors.bundle.als), ("similar", vectors.bundle.similar)):
        found[f"{name}: live"] = len(index)
        if isinstance(index, HnswIndex):
            found[f"{name}: nodes"] = index._graph.get_max_elements()
            found[f"{name}: numbers"] = len(index._label_of)
            found[f"{name}: places of labels"] = len(index._number_of)
        elif isinstance(index, QuantisedIndex):
            found[f"{name}: places of labels"] = len(index._list_of)
            found[f"{name}: aside"] = len(index._aside._labels)
    return found


def resident_bytes() -> int:
    """Return the memory of this process that is in RAM, without what it shares and garbage."""
    gc.collect()
    _, resident, shared = (int(pages) for pages in Path("/proc/self/statm").read_text().split()[:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def measure(kind: IndexKind, n_pairs: int) -> dict[str, Any]:
    """Churn and return sizes and memory, at marks that are equally far apart."""
    view = build_view(kind)
    marks: list[dict[str, Any]] = []
    for number in churn(view, n_pairs):
        if (number + 1) % (n_pairs // N_MARKS) == 0:
            marks.append({"sizes": sizes(view), "resident_bytes": resident_bytes()})
    searched = 0
    vectors = view.retriever._vectors
    assert vectors is not None
    for label in vectors._added_label.values():
        labels, _ = vectors.bundle.similar.search(vectors.vectors(np.array([label]))[0], 10)
        searched += label in labels
    return {"kind": kind, "n_pairs": n_pairs, "marks": marks, "n_found": searched, "n_later": N_LATER}


if __name__ == "__main__":
    json.dump(measure(sys.argv[1], int(sys.argv[2])), sys.stdout)  # type: ignore[arg-type]
