"""The configuration: `hone.toml`, overridden key by key from the environment. Unknown keys are errors."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bandit.exploration import Epsilon, Exploration, VwExplorer
from bandit.explorer import ExplorerSpec, parse_explorer_arguments
from bandit.features import FeatureSchema
from bandit.health import HealthConfig
from bandit.policy import ModelSpec
from bandit.rewards import RewardPolicy
from bandit.rules import Rule
from retrieval.indexes import IndexConfig

Count = Annotated[int, Meta(ge=1)]
# NaN is neither above nor below, so it is refused too.
Seconds = Annotated[float, Meta(gt=0, le=1e9)]

DEFAULT_PATH = Path(__file__).with_name("hone.toml")

# Short names for the keys that operators set most.
ENVIRONMENT_ALIASES = {
    "HONE_REDIS_URL": "HONE_STORE__URL",
    "HONE_PORT": "HONE_HTTP__PORT",
    "HONE_HOST": "HONE_HTTP__HOST",
}
# What features read of a user that expires with the recent interactions, and with the impressions.
RECENT_SOURCES = ("recent_genres", "n_recent", "last_action", "session_length", "since_last_s")
IMPRESSION_SOURCES = ("n_seen", "last_shown_s", "session_position", "session_s", "n_shown")
# Read by other parts: where the file and the download cache are, what tests make fail.
ENVIRONMENT_IGNORED = {"HONE_CONFIG", "HONE_CACHE_DIR", "HONE_FAILPOINT"}


class ConfigError(Exception):
    """The configuration cannot be used; the message names the key and where it came from."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: immutable, unknown keys refused."""


class HttpConfig(Section, frozen=True, kw_only=True):
    """The API.

    Attributes:
        host: Address to listen on.
        port: Port; 0 picks a free one.
        workers: API worker processes started by `hone serve`.
        max_body_bytes: Largest request body.
        max_ndjson_bytes: Largest streamed body of items or users.
        header_timeout_s: A connection that sent no complete request for so long is closed.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8080
    workers: Count = 2
    max_body_bytes: Count = 4_194_304
    max_ndjson_bytes: Count = 268_435_456
    header_timeout_s: Seconds = 30.0


class StoreConfig(Section, frozen=True, kw_only=True):
    """The store.

    Attributes:
        url: Redis or Valkey URL; empty starts the embedded Valkey under the data folder.
        partitions: Journal partitions.
        timeout_s: Longest wait for one store call in a request.
        user_state_ttl_s: Recent interactions and sessions expire after this, in seconds.
        consumed_ttl_s: Consumed items are remembered for this long, in seconds.
        recent_limit: Recent interactions kept a user.
        consumed_limit: Consumed items kept a user.
        impressions_ttl_s: Impressions are remembered for this long after the last one, in seconds.
        impressions_limit: Impressions kept a user.
        lease_s: A learner that was silent for so long is replaced by a standby, in seconds; longer than writing a
            checkpoint takes.
    """

    url: str = ""
    partitions: Count = 1
    timeout_s: Seconds = 0.25
    user_state_ttl_s: Count = 86_400
    consumed_ttl_s: Count = 2_592_000
    recent_limit: Count = 10
    consumed_limit: Count = 500
    impressions_ttl_s: Count = 86_400
    impressions_limit: Count = 200
    lease_s: Annotated[float, Meta(ge=0.5, le=3600)] = 2.0


class ModelConfig(Section, frozen=True, kw_only=True):
    """One bandit model.

    Attributes:
        bits: log2 of the number of weights; 0 takes 20, or 18 for an explorer.
        learning_rate: VW's `-l`.
        power_t: VW's `--power_t`. At 0 the learning rate stays as it is. Above, each feature's own rate falls with what
            it has learned: a new item learns fast while an old one is steady. Take a larger `learning_rate` then.
        checkpoint_s: Time between learner checkpoints, in seconds.
        arguments: Makes the model a VW explorer, for example `--cb_explore_adf --bag 5`; empty is the linear model that
            ranks. Every worker loads an explorer whole, and requests wait for it: keep its table small.
        publish_s: An explorer that has learned is published whole at most so often, in seconds.
    """

    bits: int = 0
    learning_rate: Annotated[float, Meta(gt=0, le=10)] = 0.02
    power_t: Annotated[float, Meta(ge=0, le=0.5)] = 0.0
    checkpoint_s: Seconds = 10.0
    arguments: str = ""
    publish_s: Seconds = 5.0

    def __post_init__(self) -> None:
        """Refuse table sizes that VW or this machine cannot hold, and arguments that are not an explorer's.

        Raises:
            ValueError: bits or arguments cannot be used.
        """
        if self.arguments:
            parse_explorer_arguments(self.arguments)
        if self.bits == 0:
            msgspec.structs.force_setattr(self, "bits", 18 if self.arguments else 20)
        if not 10 <= self.bits <= 28:
            raise ValueError(f"model bits must be in [10, 28], got {self.bits}")


class ArchiveConfig(Section, frozen=True, kw_only=True):
    """The archive.

    Attributes:
        flush_s: Longest time that an entry waits to be archived, in seconds.
        flush_entries: Entries that are archived at once, at the most.
        journal_keep_s: Entries stay in the journal for this long, in seconds, even when learned and archived.
        keep_days: Archived decisions, events and outcomes go after so many days, an hour at a time; 0 keeps them.
    """

    flush_s: Seconds = 10.0
    flush_entries: Count = 5_000
    journal_keep_s: Seconds = 900.0
    keep_days: Annotated[int, msgspec.Meta(ge=0)] = 0


class IndexSection(Section, frozen=True, kw_only=True):
    """The index that candidates are found in.

    Attributes:
        kind: What `hone index build` makes: `exact` (for small catalogues), `quantised` (lists of 8-bit codes, a fifth
            of a graph's memory, shared by the workers), `graph` (exact scores), or `auto`, which takes the first up to
            20,000 items and the second from there. Workers serve what the bundle holds.
    """

    kind: Literal["auto", "graph", "quantised", "exact"] = "auto"

    def build_config(self) -> IndexConfig:
        """Return how indexes are built."""
        return IndexConfig(kind=self.kind)


class MetricsConfig(Section, frozen=True, kw_only=True):
    """Where the processes that serve no requests answer `/metrics`; an API worker answers on its own port.

    Attributes:
        host: Address to listen on.
        learner_port: Of the learner; 0 for none. A standby on the same machine needs another one.
        archiver_port: Of the archiver; 0 for none.
    """

    host: str = "127.0.0.1"
    learner_port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    archiver_port: Annotated[int, Meta(ge=0, le=65_535)] = 0


class SourceConfig(Section, frozen=True, kw_only=True):
    """One candidate source of a surface.

    Attributes:
        name: als (user vector), similar (vectors near the seed item or the last positive interaction), also_liked (what
            users of the seed item or of the newest liked items also liked), content (what is like them by attributes),
            popular, trending (clicks of now), fresh (newest listed), under_explored (drawn; young and rarely shown
            items more often) or random (a keyed sample; keeps every item reachable).
        quota: Candidates it contributes at most before room is shared out.
    """

    name: Literal["als", "similar", "also_liked", "content", "popular", "trending", "fresh", "under_explored", "random"]
    quota: Count


class AgeGate(Section, frozen=True, kw_only=True):
    """Hide what a viewer is too young for.

    Attributes:
        unknown_item_min_age: Age that an item without rating needs.
        unknown_user_age: Age that a viewer without birth date is taken to have.
    """

    unknown_item_min_age: int = 18
    unknown_user_age: int = 18


class Fatigue(Section, frozen=True, kw_only=True):
    """Drop what a user was shown again and again and never took up.

    Attributes:
        max_shown: An item that was shown so often within the window is dropped.
        window_s: How far back showings count, in seconds.
    """

    max_shown: Count
    window_s: Seconds = 86_400.0


class Campaign(Section, frozen=True, kw_only=True):
    """What an editor or sponsor wants for one item, between two dates.

    Attributes:
        item_id: The item; it is made a candidate while the campaign runs, if the viewer may be shown it.
        kind: `pin` puts it at `slot`, `sponsor` gives it the surface's sponsored slots, `boost` adds to its score.
        slot: Where a pinned item stands, from 0.
        boost: What a boosted item's score gains where the surface has a prior rule on `campaign_boost`.
        starts_at: From when on, with time zone; None from always.
        ends_at: Until when, with time zone; None for ever.
    """

    item_id: str
    kind: Literal["pin", "sponsor", "boost"]
    slot: int = 0
    boost: float = 0.0
    starts_at: datetime | None = None
    ends_at: datetime | None = None

    def __post_init__(self) -> None:
        """Refuse dates without a zone and values that no slate can have.

        Raises:
            ValueError: one of them is.
        """
        if any(at is not None and at.tzinfo is None for at in (self.starts_at, self.ends_at)):
            raise ValueError(f"campaign of {self.item_id!r} needs dates with a time zone")
        if self.slot < 0 or not math.isfinite(self.boost):
            raise ValueError(f"campaign of {self.item_id!r} needs slot >= 0 and a finite boost")

    def runs_at(self, now_ms: int) -> bool:
        """Return whether it runs at a time, in unix milliseconds."""
        started = self.starts_at is None or self.starts_at.timestamp() * 1000 <= now_ms
        return started and (self.ends_at is None or now_ms < self.ends_at.timestamp() * 1000)


class Canary(Section, frozen=True, kw_only=True):
    """Another model that scores for a share of a surface's users, to be compared with the surface's own.

    Attributes:
        model: A declared model that ranks.
        share: Of the users (of the requests, for anonymous ones), in (0, 0.5].
        artefact: What the model is tried for; which users get it is drawn anew for each.
        unit_s: A user counts once, with the mean reward of so long after the first decision, in seconds.
        confidence: Of the bounds that end it when it is worse and promote it when it is better.
    """

    model: str
    share: Annotated[float, Meta(gt=0, le=0.5)] = 0.1
    artefact: str = ""
    unit_s: Seconds = 3600.0
    confidence: Annotated[float, Meta(ge=0.5, lt=1)] = 0.98


class SurfaceConfig(Section, frozen=True, kw_only=True):
    """One place where recommendations are shown.

    Attributes:
        model: Name of its model under `[models]`.
        sources: Candidate sources, the earlier wins a duplicate.
        n_candidates: Candidates after blending.
        max_n: Largest slate a caller may ask for.
        seen: What happens to consumed items: `drop` or `keep`.
        fatigue: Drops what was shown too often without a positive event; missing switches it off.
        age_gate: Missing switches it off.
        exploration: Policy parameters.
        rules: In order of importance; the last gives way first.
        campaigns: Pinned, sponsored and boosted items with their dates.
        reward: How events become reward.
        deadline_ms: Every request is answered inside it.
        canary: Another model on trial; None for none.
    """

    model: str = "default"
    sources: list[SourceConfig] = []
    n_candidates: Annotated[int, Meta(ge=1, le=10_000)] = 300
    max_n: Annotated[int, Meta(ge=1, le=1000)] = 100
    seen: Literal["drop", "keep"] = "drop"
    fatigue: Fatigue | None = None
    age_gate: AgeGate | None = None
    exploration: Exploration = msgspec.field(default_factory=Epsilon)
    rules: list[Rule] = []
    campaigns: list[Campaign] = []
    reward: RewardPolicy = msgspec.field(default_factory=RewardPolicy)
    deadline_ms: Count = 1_000
    canary: Canary | None = None


class Config(Section, frozen=True, kw_only=True):
    """The whole configuration.

    Attributes:
        data_dir: Folder of everything that Hone writes.
        salt: Secret of the randomness and of user keys; the default is made at first start and kept in the data folder.
        artefact_key: Signs the manifests of bundles; with a key an unsigned or wrongly signed bundle is refused.
        log_level: debug, info, warning or error.
        http: The API.
        store: The store.
        archive: The archive.
        health: The health watch.
        metrics: Metrics of learner and archiver.
        index: The index that candidates are found in.
        features: The feature schema, shared by all models.
        models: Bandit models by name.
        surfaces: Surfaces by name.
    """

    data_dir: str = "var"
    salt: str = ""
    artefact_key: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    http: HttpConfig = msgspec.field(default_factory=HttpConfig)
    store: StoreConfig = msgspec.field(default_factory=StoreConfig)
    archive: ArchiveConfig = msgspec.field(default_factory=ArchiveConfig)
    health: HealthConfig = msgspec.field(default_factory=HealthConfig)
    metrics: MetricsConfig = msgspec.field(default_factory=MetricsConfig)
    index: IndexSection = msgspec.field(default_factory=IndexSection)
    features: FeatureSchema = msgspec.field(default_factory=FeatureSchema)
    models: dict[str, ModelConfig] = {}
    surfaces: dict[str, SurfaceConfig] = {}

    def __post_init__(self) -> None:
        """Check what spans sections.

        Raises:
            ValueError: a surface names a model that is not declared, or a feature needs what the store forgets.
        """
        for name, surface in self.surfaces.items():
            if surface.model not in self.models:
                raise ValueError(f"surface {name!r} names model {surface.model!r}, declared are {sorted(self.models)}")
            if self.models[surface.model].arguments:
                raise ValueError(
                    f"surface {name!r} names model {surface.model!r}, which is an explorer and cannot rank"
                )
            canary = surface.canary
            if canary and (canary.model not in self.ranking_models or canary.model == surface.model):
                others = sorted(set(self.ranking_models) - {surface.model})
                raise ValueError(f"surface {name!r} tries model {canary.model!r}, other models that rank are {others}")
            explorer = explorer_of(surface)
            if explorer and (explorer not in self.models or not self.models[explorer].arguments):
                explorers = sorted(name for name, model in self.models.items() if model.arguments)
                raise ValueError(
                    f"surface {name!r} names explorer {explorer!r}, declared with arguments are {explorers}"
                )
        self._check_retention()
        self._check_health()

    def _check_health(self) -> None:
        """Refuse a health watch on features that are not declared, or whose values are not a few names."""
        watched: list[tuple[str, tuple[str, ...]]] = [(name, ("context", "user")) for name in self.health.drift]
        if self.health.genre:
            watched.append((self.health.genre, ("item",)))
        for name, namespaces in watched:
            found = [f for f in self.features.features if f.name == name and f.namespace in namespaces]
            if not found:
                raise ValueError(f"health watches {name!r}, which is no feature of {' or '.join(namespaces)}")
            if found[0].kind == "weighted" or (found[0].kind == "numeric" and not found[0].edges):
                raise ValueError(f"health watches {name!r}, which has neither categories nor buckets")

    def _check_retention(self) -> None:
        """Refuse features that need what a user did for longer than the store keeps it."""
        kept_s = {name: self.store.user_state_ttl_s for name in RECENT_SOURCES}
        kept_s |= {name: self.store.impressions_ttl_s for name in IMPRESSION_SOURCES}
        for feature in self.features.features:
            needed_s = max(feature.ttl_s or 0.0, feature.window_s or 0.0)
            if feature.namespace in ("user", "dynamic") and needed_s > kept_s.get(feature.source, needed_s):
                raise ValueError(
                    f"feature {feature.name!r} needs {feature.source!r} for {needed_s:g} s, "
                    f"the store keeps it for {kept_s[feature.source]:g} s"
                )
        for name, surface in self.surfaces.items():
            if surface.fatigue and surface.fatigue.window_s > self.store.impressions_ttl_s:
                raise ValueError(
                    f"surface {name!r}: fatigue.window_s is {surface.fatigue.window_s:g} s, "
                    f"store.impressions_ttl_s keeps impressions for {self.store.impressions_ttl_s} s"
                )
        if self.features.impressions_window_s > self.store.impressions_ttl_s:
            raise ValueError(
                f"features.impressions_window_s is {self.features.impressions_window_s:g} s, "
                f"store.impressions_ttl_s keeps them for {self.store.impressions_ttl_s} s"
            )
        if self.features.session_gap_s > min(self.store.impressions_ttl_s, self.store.user_state_ttl_s):
            raise ValueError("features.session_gap_s must not exceed store.user_state_ttl_s and impressions_ttl_s")

    @property
    def ranking_models(self) -> list[str]:
        """Return the names of the models that rank, sorted; the others are explorers."""
        return sorted(name for name, model in self.models.items() if not model.arguments)

    @property
    def data_path(self) -> Path:
        """Return the data folder."""
        return Path(self.data_dir)

    @property
    def version(self) -> str:
        """12 hexadecimal digits of what decides a slate: features, models and surfaces."""
        canonical = msgspec.json.encode((self.features, self.models, self.surfaces), order="deterministic")
        return blake2b(canonical, digest_size=6).hexdigest()

    def model_spec(self, name: str) -> ModelSpec:
        """Return the scoring and learning shape of a model."""
        model = self.models[name]
        return ModelSpec(
            bits=model.bits,
            learning_rate=model.learning_rate,
            interactions=tuple(self.features.interactions),
            schema_version=self.features.version,
            baseline=self.features.baseline,
            power_t=model.power_t,
        )

    def explorer_spec(self, name: str, *, arguments: str | None = None) -> ExplorerSpec:
        """Return the shape of a VW explorer, or of one with other arguments on the settings of any model.

        Raises:
            ValueError: the arguments cannot be those of an explorer.
        """
        model = self.models[name]
        return ExplorerSpec(
            arguments=parse_explorer_arguments(model.arguments if arguments is None else arguments),
            bits=model.bits,
            learning_rate=model.learning_rate,
            interactions=tuple(self.features.interactions),
            schema_version=self.features.version,
            baseline=self.features.baseline,
            power_t=model.power_t,
        )


def explorer_of(surface: SurfaceConfig) -> str:
    """Return the name of the VW explorer that a surface explores with, empty without one."""
    return surface.exploration.model if isinstance(surface.exploration, VwExplorer) else ""


def load_config(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Config:
    """Read the file (the shipped demo configuration when None) and lay the environment over it.

    `HONE_HTTP__PORT=9000` sets `http.port`, `HONE_SURFACES__HOME__EXPLORATION__RATE=0.2` sets a surface's rate.

    Raises:
        ConfigError: the file is missing or malformed, or a key is unknown or out of range.
    """
    source = path or DEFAULT_PATH
    try:
        tree = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not TOML: {error}") from error
    overridden = []
    for name, text in sorted((environment or {}).items()):
        if name.startswith("HONE_") and name not in ENVIRONMENT_IGNORED:
            full = ENVIRONMENT_ALIASES.get(name, name)
            _override(tree, full.removeprefix("HONE_").lower().split("__"), text)
            overridden.append(name)
    try:
        if overridden:
            # The environment knows only text; that is no reason to take text for a number in the file.
            msgspec.convert(tomllib.loads(source.read_text(encoding="utf-8")), Config)
        return msgspec.convert(tree, Config, strict=not overridden)
    except msgspec.ValidationError as error:
        origin = f"{source}" + (f" with {', '.join(overridden)}" if overridden else "")
        raise ConfigError(f"{origin}: {error}") from error


def _override(tree: dict[str, Any], keys: list[str], text: str) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"HONE_{'__'.join(keys).upper()}: {key!r} is not a section")
    tree[keys[-1]] = text
