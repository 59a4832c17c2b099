"""A world: tastes, visits, churn, clicks, delays and what showing does, put together; and what the best slate is worth.

The best slate of a visit is known exactly. Every click model here rewards a slate of given items most in order of their
attraction, and gains when an item is replaced by a more attractive one, so the best slate is that of the most
attractive items that are there, in order, and its value is the exact expectation under the click model. It is the best
for this visit as it is: where showing changes what users like later (fatigue, popularity), a policy may give up some of
it for the future, and no policy is above it in the sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.special import expit

from retrieval.items import Item
from simulators.worlds.churn import Churn
from simulators.worlds.clicks import ClickModel, PositionBased
from simulators.worlds.delays import ClickDelay
from simulators.worlds.feedback_effects import ClickedMemory, Fatigue, PopularityFeedback, ShownMemory
from simulators.worlds.tastes import ClusterTasteSpec, Tastes, TasteSpec
from simulators.worlds.visits import Crowd, Visit, visits

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSpec:
    """What a world is made of; small, and the same in another process.

    Attributes:
        tastes: Who likes what.
        crowd: Who comes how often.
        churn: Which items there are.
        clicks: How a slate is looked at.
        delay: When clicks are reported.
        fatigue: Of seeing an item again.
        popularity: Of being clicked by others.
        skip_share: Probability that an item that was looked at and not clicked is skipped aloud.
        n_slots: Slots of a slate.
        sees_history: Whether the model is shown what genres a user liked lately.
        seed: Of users and items; None takes that of the run.
    """

    tastes: TasteSpec = field(default_factory=ClusterTasteSpec)
    crowd: Crowd = field(default_factory=Crowd)
    churn: Churn = field(default_factory=Churn)
    clicks: ClickModel = field(default_factory=PositionBased)
    delay: ClickDelay = field(default_factory=ClickDelay)
    fatigue: Fatigue = field(default_factory=Fatigue)
    popularity: PopularityFeedback = field(default_factory=PopularityFeedback)
    skip_share: float = 0.1
    n_slots: int = 5
    sees_history: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse slates that the catalogue cannot fill.

        Raises:
            ValueError: there are fewer items than slots, or a share is none.
        """
        if not 1 <= self.n_slots <= self.churn.n_live:
            raise ValueError(f"n_slots must be in [1, n_live = {self.churn.n_live}], got {self.n_slots}")
        if not 0.0 <= self.skip_share <= 1.0:
            raise ValueError(f"skip_share must be in [0, 1], got {self.skip_share}")

    def build(self, run_seed: int) -> World:
        """Return the world at its start; runs of one world with different seeds meet the same users and items."""
        return World(self, run_seed)


class Reaction(msgspec.Struct, frozen=True, gc=False):
    """What a user reports of one slot.

    Attributes:
        slot: Which one.
        event_type: `click` or `skip`.
        delay_ms: After the slate was shown.
    """

    slot: int
    event_type: str
    delay_ms: int


class Response(msgspec.Struct, frozen=True, gc=False):
    """What a slate does.

    Attributes:
        reactions: What is reported of it.
        expected: float64 [n_slots]: the exact probability of a click in each slot.
        n_clicked: Clicks that follow.
        n_skipped: Skips that follow.
    """

    reactions: Sequence[Reaction]
    expected: Float64Array
    n_clicked: int
    n_skipped: int


class World:
    """A world while a run goes on in it: it knows what was shown and clicked."""

    def __init__(self, spec: WorldSpec, run_seed: int) -> None:
        self.spec = spec
        self._run_seed = run_seed
        self.tastes: Tastes = spec.tastes.build(run_seed if spec.seed is None else spec.seed)
        most = self.tastes.n_items
        if most is not None and most < spec.churn.n_live:
            raise ValueError(f"n_live must be at most the {most} items of these tastes, got {spec.churn.n_live}")
        self._shown = ShownMemory(spec.fatigue)
        self._clicked = ClickedMemory(spec.popularity)

    def visits(self) -> Iterator[Visit]:
        """Yield who comes, in order of time, without end."""
        return visits(self.spec.crowd, seed=self._run_seed, n_slots=self.spec.n_slots)

    def live(self, elapsed_ms: int) -> range:
        """Return the numbers of the items that are there."""
        first = self.spec.churn.first_live(elapsed_ms)
        if self.tastes.n_items is not None:
            first = min(first, self.tastes.n_items - self.spec.churn.n_live)
        return range(first, first + self.spec.churn.n_live)

    def item(self, number: int, *, start_ms: int) -> Item:
        """Return an item as it is put; those of the start are a day old by then."""
        born_ms = self.spec.churn.born_ms(number)
        return self.tastes.item(number, available_at_unix_ms=start_ms + (born_ms or -86_400_000))

    def context(self, visit: Visit) -> dict[str, Any]:
        """Return what the service is told with the request."""
        return self.tastes.context(visit.user)

    def attraction(self, visit: Visit) -> Float64Array:
        """Return float64 [n_live]: probability that the visitor clicks each item that is there, if it is looked at."""
        live = self.live(visit.elapsed_ms)
        log_odds = self.tastes.log_odds(visit.user, first=live.start, n=len(live), elapsed_ms=visit.elapsed_ms)
        attraction: Float64Array = expit(log_odds + self._clicked.boost(live.start, len(live)))
        self._shown.tire(attraction, visit.user, first=live.start, now_ms=visit.elapsed_ms)
        return attraction

    def best(self, attraction: Float64Array) -> tuple[npt.NDArray[np.int64], float]:
        """Return the places of the best slate, in order, and its expected number of clicks."""
        n, falling = self.spec.n_slots, -attraction
        top = falling.argpartition(n - 1)[:n] if n < len(attraction) else np.arange(len(attraction))
        top = top[falling[top].argsort(kind="stable")]
        return top, float(self.expected(attraction[top].tolist()).sum())

    def expected(self, attraction: Sequence[float]) -> Float64Array:
        """Return float64 [n_slots]: the exact probability of a click in each slot of a slate."""
        seen = self.spec.clicks.examination(attraction)
        return np.array([looked * clicked for looked, clicked in zip(seen, attraction, strict=True)])

    def respond(self, visit: Visit, numbers: Sequence[int], attraction: Float64Array) -> Response:
        """Show a slate to a visitor.

        Args:
            visit: Who and when.
            numbers: The items shown.
            attraction: float64 [n_live] of this visit.
        """
        live = self.live(visit.elapsed_ms)
        # What has gone while it was on its way to the visitor is liked by nobody.
        shown = [attraction.item(number - live.start) if number in live else 0.0 for number in numbers]
        look, like, aloud, late = visit.uniforms
        n = len(shown)
        examined, clicked = self.spec.clicks.browse(shown, look[:n], like[:n])
        reactions = [
            Reaction(slot, "click" if clicked[slot] else "skip", self.spec.delay.delay_ms(late[slot]))
            for slot in range(n)
            if clicked[slot] or (examined[slot] and aloud[slot] < self.spec.skip_share)
        ]
        clicks = [number for number, is_clicked in zip(numbers, clicked, strict=True) if is_clicked]
        self._shown.add(visit.user, numbers, now_ms=visit.elapsed_ms)
        self._clicked.add(clicks, now_ms=visit.elapsed_ms)
        return Response(reactions, self.expected(shown), len(clicks), len(reactions) - len(clicks))
