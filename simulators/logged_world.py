"""A world small enough to know the truth: segments of users, a few items, and logs of any policy as real decisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bandit.exploration import Epsilon, Policy
from bandit.features import Feature, FeatureSchema
from bandit.joining import Joined
from bandit.policy import ActionFeatures, WeightTable
from bandit.slate import ActionSet, SlateWalk, draw_slate
from bandit.slot import SlotDraw, SlotPmf, build_pmf, draw_slot, view_slot
from bandit.vw_format import encode
from retrieval.items import Item
from service.config import Config, ModelConfig, SurfaceConfig
from service.decision_record import pack_actions, record_slot
from service.item_history import ItemHistory
from service.messages import CandidateList, Decision, ItemUpsert, Versions
from service.training_rows import Outcome

Float64Array = npt.NDArray[np.float64]

MODEL = "m"
SURFACE = "home"
_START_MS = 1_795_000_000_000
_STEP_MS = 1_000


@dataclass(frozen=True, slots=True)
class LoggedWorld:
    """Who comes, what may be shown, and what it earns.

    Attributes:
        rewards: float64 [segments, items], probability of reward 1.
        scores: float64 [segments, items], the live model's scores.
        exploration: The policy on top of them.
        n_slots: Slots of a slate; the reward falls with the slot by `examination`.
        examination: Probability that a slot is looked at, by slot.
        genres: Genre of each item; given, models see it in place of the item.
    """

    rewards: Float64Array
    scores: Float64Array
    exploration: Epsilon
    n_slots: int = 1
    examination: Sequence[float] = (1.0,)
    genres: Sequence[str] = ()

    @property
    def schema(self) -> FeatureSchema:
        """Return the features that models see."""
        seen = "genre" if self.genres else "id"
        return FeatureSchema(
            features=[
                Feature(name="segment", namespace="context", source="segment"),
                Feature(name="slot", namespace="position", source="slot"),
                Feature(name=seen, namespace="item", source=seen),
            ],
            interactions=[("context", "item")],
        )

    @property
    def config(self) -> Config:
        """Return the configuration of the world."""
        return Config(
            features=self.schema,
            models={MODEL: ModelConfig(bits=12, learning_rate=0.05)},
            surfaces={SURFACE: SurfaceConfig(model=MODEL, exploration=self.exploration)},
        )

    @property
    def item_ids(self) -> list[str]:
        """Return the items, in UTF-8 order."""
        return [f"i{n:03d}" for n in range(self.rewards.shape[1])]

    def items(self) -> ItemHistory:
        """Return the items' history: all there from the beginning."""
        history = ItemHistory()
        for number, item_id in enumerate(self.item_ids):
            item = Item(id=item_id, attributes={"genre": self.genres[number]} if self.genres else {})
            history.add("0-1", ItemUpsert(item=item))
        return history

    def log(self, n_decisions: int, *, seed: int) -> list[Outcome]:
        """Return the outcomes of a log of the live policy, decision by decision."""
        return list(self._outcomes(n_decisions, np.random.default_rng(seed)))

    def pmf(self, scores: Float64Array, policy: Policy | None = None) -> Float64Array:
        """Return float64 [segments, items]: the first slot's pmf of a policy on scores."""
        policy = policy or self.exploration
        allowed = np.ones(scores.shape[1], dtype=np.bool_)
        rows = []
        for of_segment in scores:
            view = view_slot(of_segment, allowed, shortlist=policy.shortlist_size)
            rows.append(build_pmf(view, policy.mixture(view)))
        return np.array(rows)

    def value(self, scores: Float64Array, policy: Policy | None = None) -> float:
        """Return the true expected reward of one slot of a policy on scores."""
        return float((self.pmf(scores, policy) * self.rewards).sum(axis=1).mean())

    def scores_of(self, table: WeightTable) -> Float64Array:
        """Return float64 [segments, items], a model's scores."""
        n_items = self.rewards.shape[1]
        items = {"item": ActionFeatures.stack([encode("item", self.item_features(n)) for n in range(n_items)])}
        rows = []
        for segment in range(len(self.rewards)):
            shared = {namespace: encode(namespace, named) for namespace, named in _shared(segment).items()}
            rows.append(table.score(shared, items).astype(np.float64))
        return np.array(rows)

    def item_features(self, number: int) -> dict[str, float]:
        """Return what models see of an item."""
        return {f"genre={self.genres[number]}" if self.genres else f"id={self.item_ids[number]}": 1.0}

    def _outcomes(self, n_decisions: int, rng: np.random.Generator) -> Iterator[Outcome]:
        shown = [_Shown.of(self, segment) for segment in range(len(self.rewards))]
        versions = Versions(
            model=1,
            index="",
            catalogue="0-1",
            config="",
            schema=self.schema.version,
            item_stats="",
            salt=1,
            numerics="",
        )
        for number in range(n_decisions):
            segment = int(rng.integers(len(self.rewards)))
            decision = self._decide(number, segment, shown[segment], versions, rng)
            for slot, record in enumerate(decision.slots):
                chance = self.rewards[segment, record.action] * self.examination[slot]
                yield Joined(
                    payload=decision,
                    event_id=decision.event_id,
                    slot=slot,
                    reward=float(rng.random() < chance),
                    kind="reward",
                    at_ms=decision.decided_at_unix_ms,
                    delay_ms=0,
                )

    def _decide(
        self, number: int, segment: int, shown: _Shown, versions: Versions, rng: np.random.Generator
    ) -> Decision:
        draws = shown.draw(self, rng.random(self.n_slots))
        return Decision(
            event_id=f"e{number}",
            decided_at_unix_ms=_START_MS + number * _STEP_MS,
            surface=SURFACE,
            model=MODEL,
            user_id=None,
            user_key=f"u{rng.integers(10_000)}",
            digest="",
            context={"segment": f"s{segment}"},
            seed_item_id=None,
            recent_ids=[],
            features=_shared(segment),
            versions=versions,
            exploration=self.exploration,
            rules=[],
            discovery_positions=[],
            discovery_probability=1.0,
            candidates=shown.candidates,
            slots=[
                record_slot(d, shown.actions, features={"item": self.item_features(d.action), "dynamic": {}})
                for d in draws
            ],
            n_requested=self.n_slots,
            degraded=[],
            latency_ms={},
        )


@dataclass(frozen=True, slots=True)
class _Shown:
    """What does not differ between the decisions of a segment.

    Attributes:
        actions: The candidates with the live model's scores.
        candidates: The same as logged.
        first: The first slot's pmf.
    """

    actions: ActionSet
    candidates: CandidateList
    first: SlotPmf

    @classmethod
    def of(cls, world: LoggedWorld, segment: int) -> _Shown:
        """Build it."""
        actions = ActionSet(ids=world.item_ids, scores=world.scores[segment].astype(np.float32), columns={})
        sources = np.zeros(len(actions.ids), dtype=np.uint8)
        first = _walk(world, actions).pmf()
        assert first is not None
        return cls(actions, pack_actions(actions, sources=sources, source_names=["all"]), first)

    def draw(self, world: LoggedWorld, uniforms: Float64Array) -> list[SlotDraw]:
        """Fill a slate."""
        first = draw_slot(self.first, 0, float(uniforms[0]))
        if world.n_slots == 1:
            return [first]
        return draw_slate(_walk(world, self.actions), uniforms)


def _walk(world: LoggedWorld, actions: ActionSet) -> SlateWalk:
    return SlateWalk(
        actions=actions,
        exploration=world.exploration,
        rules=[],
        now_ms=_START_MS,
        n_slots=world.n_slots,
        discovery_positions=(),
    )


def null_world(*, seed: int, n_segments: int = 4, n_items: int = 5) -> LoggedWorld:
    """Return a world where every item earns the same, so that no model is better than another."""
    rng = np.random.default_rng(seed)
    shape = (n_segments, n_items)
    return LoggedWorld(np.full(shape, 0.5), rng.random(shape), Epsilon(rate=0.3, uniform_share=1.0))


def better_world(*, seed: int, gain: float = 0.2, n_segments: int = 4, n_items: int = 5) -> LoggedWorld:
    """Return a world where the best model earns `gain` more than the live one under the same exploration.

    The live model shows every segment what is best overall; each segment has an item of its own that is better.
    """
    rng = np.random.default_rng(seed)
    rewards = np.full((n_segments, n_items), 0.4)
    popular, *own = rng.permutation(n_items)[: n_segments + 1].tolist()
    rewards[:, popular] = 0.5
    scores = np.zeros((n_segments, n_items))
    scores[:, popular] = 1.0
    exploration = Epsilon(rate=0.3, uniform_share=1.0)

    def world(best: float) -> LoggedWorld:
        for segment, item in enumerate(own):
            rewards[segment, item] = best
        return LoggedWorld(rewards.copy(), scores, exploration)

    low, high = 0.5, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        tried = world(middle)
        low, high = (middle, high) if tried.value(tried.rewards) < (1 + gain) * tried.value(scores) else (low, middle)
    return world(high)


def biased_world(
    *, seed: int, n_segments: int = 4, n_genres: int = 6, n_slots: int = 3, sees_items: bool = False
) -> LoggedWorld:
    """Return a world where the log repeats popularity and the model cannot know every item.

    Each genre has a hit that the live policy shows nearly always, and four others; a hit says nothing about the others.
    Models see genres, unless `sees_items`. A genre is worth the mean of its items; the log shows its hit.
    """
    rng = np.random.default_rng(seed)
    n_items = 5 * n_genres
    is_hit = np.arange(n_items) % 5 == 0
    of_genre = np.repeat(rng.beta(2.0, 4.0, size=(n_segments, n_genres)), 5, axis=1)
    rewards = np.where(is_hit, rng.beta(2.0, 4.0, size=(n_segments, n_items)), of_genre)
    popularity = np.where(is_hit, rng.uniform(0.9, 1.0, n_items), rng.uniform(0.0, 0.1, n_items))
    return LoggedWorld(
        rewards,
        np.tile(popularity, (n_segments, 1)),
        Epsilon(rate=0.5, uniform_share=0.3, shortlist=n_items, temperature=0.3),
        n_slots=n_slots,
        examination=tuple(0.85**slot for slot in range(n_slots)),
        genres=() if sees_items else tuple(f"g{n // 5}" for n in range(n_items)),
    )


def _shared(segment: int) -> dict[str, dict[str, float]]:
    return {"context": {f"segment=s{segment}": 1.0}, "user": {}, "position": {"slot=0": 1.0}}
