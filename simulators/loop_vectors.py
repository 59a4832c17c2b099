"""Vectors of a simulated service: trained from what people clicked, written and exchanged as a running service does it.

What is under-explored, and so what a discovery slot may hold, goes by how many interactions the vectors were trained
on. The training reads clicks only: of a time before the run, when random slates were shown, and of the run so far. What
users truly like it never sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
from scipy import sparse

from retrieval.bundle import write_bundle
from retrieval.embeddings import train
from service.due import is_due
from service.index_swap import IndexSwap
from service.items_view import ItemsView
from service.metrics import Metrics
from service.wire import EventBody
from simulators.loop_config import Training
from simulators.worlds.feedback_effects import Fatigue, PopularityFeedback
from simulators.worlds.randomness import derive_generator
from simulators.worlds.world import World, WorldSpec

# One user, one item; to click again says nothing more.
Click = tuple[str, str]


class LoopVectors:
    """Trains the vectors that one simulated service serves.

    Args:
        training: how and how often.
        before: clicks of the time before the run.
        folder: of the bundles.
        items: what serves.
        clock: unix milliseconds.
        again: whether to train again in the run; a service that is frozen keeps its first vectors.
    """

    def __init__(
        self,
        training: Training,
        *,
        before: Iterable[Click],
        folder: Path,
        items: ItemsView,
        metrics: Metrics,
        clock: Callable[[], int],
        again: bool,
    ) -> None:
        self._training = training
        self._clicks = set(before)
        self._folder = folder
        self._items = items
        self._clock = clock
        self._again = again
        self._swap = IndexSwap(folder, hmac_key=None, items=items, metrics=metrics, clock=clock)
        self._n_trained = 0
        self._trained_at_ms = clock()

    def note(self, events: Iterable[EventBody]) -> None:
        """Keep what was clicked for the next training."""
        self._clicks.update(
            (event.user_id, event.item_id)
            for event in events
            if event.type == "click" and event.user_id is not None and event.item_id is not None
        )

    async def train_if_due(self) -> None:
        """Train when the time has come."""
        every_ms = 1000.0 * self._training.every_s
        if self._again and is_due(self._clock(), since_ms=self._trained_at_ms, every_ms=every_ms):
            await self.train()

    async def train(self) -> None:
        """Train on all clicks so far and serve it; without a click on the catalogue there is nothing to train on."""
        self._trained_at_ms = self._clock()
        items = [item for item in self._items.catalogue.items if item is not None]
        ids = {item.id for item in items}
        if not any(item_id in ids for _, item_id in self._clicks):
            return
        users, columns = (sorted(set(side)) for side in zip(*self._clicks, strict=True))
        row_of, column_of = ({name: place for place, name in enumerate(names)} for names in (users, columns))
        places = np.array(sorted((row_of[user], column_of[item]) for user, item in self._clicks))
        positives = sparse.csr_matrix((np.ones(len(places)), places.T), shape=(len(users), len(columns)))
        embeddings = train(positives, item_ids=columns, user_ids=users, items=items, config=self._training.als)
        self._n_trained += 1
        write_bundle(self._folder, embeddings, version=f"t{self._n_trained:05d}", hmac_key=None, keep=1)
        await self._swap.look()


@lru_cache(maxsize=32)
def clicks_before(world: WorldSpec, *, seed: int, showings: int) -> frozenset[Click]:
    """Return what was clicked before a run, when every item of the start was shown so often, on slates drawn at random.

    The people are those of the run, in visits that the run does not know; no policy of the run has a part in it, so
    that every policy on one world begins alike.

    Args:
        world: Whose people and items.
        seed: Of the run; the world's own goes before.
        showings: Mean showings of an item.
    """
    of_people = seed if world.seed is None else world.seed
    # To have seen something then changes nothing now.
    calm = replace(world, seed=of_people, fatigue=Fatigue(), popularity=PopularityFeedback())
    past = World(calm, -1 - of_people)
    slates = derive_generator(of_people, "slates before")
    n_live, n_slots = world.churn.n_live, world.n_slots
    ids = [past.item(number, start_ms=0).id for number in range(n_live)]
    clicks: set[Click] = set()
    visits = past.visits()
    for _ in range(-(-showings * n_live // n_slots)):
        visit = msgspec.structs.replace(next(visits), elapsed_ms=0)
        numbers = slates.permutation(n_live)[:n_slots].tolist()
        response = past.respond(visit, numbers, past.attraction(visit))
        clicks.update(
            (f"u{visit.user}", ids[numbers[reaction.slot]])
            for reaction in response.reactions
            if reaction.event_type == "click"
        )
    return frozenset(clicks)
