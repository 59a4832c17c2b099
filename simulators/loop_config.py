"""The configuration of a service that a world can be put into."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from bandit.exploration import Exploration, VwExplorer
from bandit.features import Feature, FeatureSchema
from bandit.rewards import EventReward, RewardPolicy
from bandit.rules import Discovery, Rule
from retrieval.embeddings import AlsConfig
from service.config import ArchiveConfig, Config, ModelConfig, SourceConfig, StoreConfig, SurfaceConfig
from simulators.worlds.world import WorldSpec

SURFACE = "home"
MODEL = "simulated"
# Nobody may wait for real time: a machine that was busy would change what happens.
_NEVER_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a simulated service trains vectors of its items.

    Attributes:
        showings: Mean showings of an item before the run, whose clicks the first training reads; 0 begins without
            vectors.
        every_s: Trained again on all clicks so far after so long, in seconds; infinite for never.
        als: The training itself. A world is small, and so are its vectors.
    """

    showings: int = 60
    every_s: float = 60.0
    als: AlsConfig = field(default_factory=lambda: AlsConfig(factors=8, iterations=8, regularization=3.0, n_buckets=64))

    def __post_init__(self) -> None:
        """Refuse a past of less than nothing and a training without end.

        Raises:
            ValueError: one of them is.
        """
        if self.showings < 0 or not self.every_s > 0.0:
            raise ValueError(f"training needs showings >= 0 and every_s > 0, got {self.showings} and {self.every_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What of a service a simulation chooses, apart from policy and rules.

    Attributes:
        n_candidates: Candidates of a request; 0 takes the whole catalogue.
        learning_rate: Of the model.
        power_t: Of the model: how far a feature's rate falls with what it has learned.
        bits: Of the model's table.
        negative_window_s: How long a slot waits for a click, in seconds.
        window_s: Attribution window, in seconds.
        baseline: Whether the model has terms that are the same for every action of a request.
        explorer: VW's arguments of the explorer that a `VwExplorer` asks, such as `--cb_explore_adf --bag 5`.
        explorer_learning_rate: Of that explorer; VW's own default.
        training: Of item vectors; None for a service that has none, for which every item is under-explored.
    """

    n_candidates: int = 0
    learning_rate: float = 0.02
    power_t: float = 0.0
    bits: int = 18
    negative_window_s: float = 60.0
    window_s: float = 600.0
    baseline: bool = True
    explorer: str = ""
    explorer_learning_rate: float = 0.5
    training: Training | None = None


def build_config(
    world: WorldSpec,
    *,
    exploration: Exploration,
    rules: Sequence[Rule] = (),
    discovery_share: float = 0.0,
    settings: ServiceSettings | None = None,
    data_dir: str = "var",
) -> Config:
    """Return the configuration of a service with one surface for a world's users and items.

    Candidates are all items, or come from what the user's vector is near, what is popular, new and rarely shown, and at
    random.

    Raises:
        ValueError: the exploration asks an explorer, and the settings have no arguments of one that can be used.
    """
    settings = settings or ServiceSettings()
    # Here is no restart; but what the archiver may trim goes by the learners' checkpoints.
    model = ModelConfig(
        bits=settings.bits,
        learning_rate=settings.learning_rate,
        power_t=settings.power_t,
        checkpoint_s=settings.window_s,
    )
    models = {MODEL: model}
    if isinstance(exploration, VwExplorer):
        if not settings.explorer:
            raise ValueError(f"explorer {exploration.model!r} needs VW's arguments, such as --cb_explore_adf --bag 5")
        models[exploration.model] = msgspec.structs.replace(
            model, arguments=settings.explorer, learning_rate=settings.explorer_learning_rate
        )
    n_candidates = settings.n_candidates or world.churn.n_live
    history = [Feature(name="taste", namespace="user", source="recent_genres", kind="weighted", limit=4)]
    own = [
        Feature(name="slot", namespace="position", source="slot"),
        Feature(name="id", namespace="item", source="id"),
    ]
    discovery: list[Rule] = [Discovery(share=discovery_share)] if discovery_share else []
    return Config(
        data_dir=data_dir,
        features=FeatureSchema(
            features=[*world.tastes.features(), *(history if world.sees_history else []), *own],
            interactions=[("context", "item"), *([("user", "item")] if world.sees_history else [])],  # type: ignore[list-item]
            baseline=settings.baseline,
        ),
        models=models,
        store=StoreConfig(timeout_s=_NEVER_S, impressions_limit=4 * world.n_slots),
        archive=ArchiveConfig(flush_s=600.0, flush_entries=5_000, journal_keep_s=2.0 * settings.window_s),
        surfaces={
            SURFACE: SurfaceConfig(
                model=MODEL,
                sources=_sources(n_candidates, n_items=world.churn.n_live, has_vectors=settings.training is not None),
                n_candidates=n_candidates,
                seen="keep",
                exploration=exploration,
                rules=[*discovery, *rules],
                reward=RewardPolicy(
                    events={"click": EventReward(base=1.0), "skip": EventReward()},
                    negative_window_s=settings.negative_window_s,
                    window_s=settings.window_s,
                ),
            )
        },
    )


def _sources(n_candidates: int, *, n_items: int, has_vectors: bool) -> list[SourceConfig]:
    if n_candidates >= n_items:
        return [SourceConfig(name="random", quota=n_candidates)]
    ranked: list[Literal["als", "popular", "under_explored"]] = ["popular", "under_explored"]
    if has_vectors:
        ranked.insert(0, "als")
    each = max(1, n_candidates // (len(ranked) + 1))
    rest = max(1, n_candidates - each * len(ranked))
    return [*(SourceConfig(name=name, quota=each) for name in ranked), SourceConfig(name="random", quota=rest)]


def config_text(config: Config, *, data_dir: str) -> str:
    """Return `hone.toml` of a service as it was simulated, on a store and an archive like anybody's.

    Args:
        config: what was simulated.
        data_dir: where its log is.
    """
    usual = msgspec.structs.replace(config, data_dir=data_dir, store=StoreConfig(), archive=ArchiveConfig())
    sections = {name: getattr(usual, name) for name in ("data_dir", "features", "models", "surfaces")}
    return "".join(f"{name} = {_toml(msgspec.to_builtins(value))}\n" for name, value in sections.items())


def _toml(value: Any) -> str:  # noqa: ANN401 - what structs are made of
    """Return a value as TOML on one line; text, numbers and lists are written as in JSON."""
    if isinstance(value, dict):
        fields = (f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items() if inner is not None)
        return f"{{ {', '.join(fields)} }}"
    if isinstance(value, list):
        return f"[{', '.join(_toml(inner) for inner in value)}]"
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    return json.dumps(value)
