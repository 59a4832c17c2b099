"""Every stored type, version 1: journal entries, streams, state, snapshot, checkpoint.

Stored values are msgpack of these structs. A field is only ever added, with a default; anything else is a new version
with its own golden file under `tests/golden`. Wire types (HTTP bodies) are in `service.wire`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from bandit.exploration import Exploration
from bandit.health_intervals import Interval
from bandit.rules import Rule
from retrieval.items import Item


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What every stored message has.

    Attributes:
        v: Schema version of the message.
    """

    v: int = 1


# --- journal -------------------------------------------------------------------------------------------------------


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    """The one tuple of versions that a request used.

    Attributes:
        model: Published model version.
        index: Version of the embeddings and indexes.
        catalogue: Position in `hone:items`.
        config: Digest of the effective surface configuration.
        schema: Version of the feature schema.
        item_stats: Position in `hone:itemstats`.
        salt: Version of the randomness salt.
        numerics: Fingerprint of numpy, BLAS and SIMD level; propensities are bit-equal within one.
        explorer: Published version of the VW explorer, 0 without one.
        item_stats_as_of: Journal position (`ms-partition-sequence`) up to which those statistics count; empty for none.
        item_pairs: Position in `hone:itempairs`; empty in decisions from before there was one.
    """

    model: int
    index: str
    catalogue: str
    config: str
    schema: str
    item_stats: str
    salt: int
    numerics: str
    explorer: int = 0
    item_stats_as_of: str = ""
    item_pairs: str = ""


class CandidateList(msgspec.Struct, frozen=True, kw_only=True):
    """The whole ordered candidate list, packed little-endian; n is the number of ids.

    Attributes:
        ids: In UTF-8 byte order.
        scores: float32 [n].
        sources: uint8 [n], positions in `source_names`.
        source_names: Names of the sources.
        columns: What rules read, by name: numpy dtype string and bytes.
    """

    ids: list[str]
    scores: bytes
    sources: bytes
    source_names: list[str]
    columns: dict[str, tuple[str, bytes]]


class SlotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One placed item.

    Attributes:
        item_id: What was shown.
        action: Its position in the candidate list.
        propensity: Conditional probability of it in this slot given the slots before; float64.
        uniform: The number that was drawn.
        cumulative_before: Cumulative probability of the feasible actions before it.
        n_feasible: How many actions the slot could hold.
        greedy_action: First of the best actions, in id order.
        n_greedy: How many actions tied for best.
        explore_propensity: Probability that the slot was not given to a best action.
        is_discovery: Whether the discovery pool filled it.
        branch: Part of the mixture the uniform fell into; a diagnostic.
        reason: greedy, explore, discovery, sponsored or pinned.
        boost: Boost in the score.
        gave_way: Rules relaxed for this slot.
        features: The item's features as served, by namespace and name.
        shortlist: uint32 [m], positions in the candidate list that a VW explorer chose from; empty without one.
        explorer_pmf: float64 [m], what it said of them.
    """

    item_id: str
    action: int
    propensity: float
    uniform: float
    cumulative_before: float
    n_feasible: int
    greedy_action: int
    n_greedy: int
    explore_propensity: float
    is_discovery: bool
    branch: str
    reason: str
    boost: float
    gave_way: list[str]
    features: dict[str, dict[str, float]]
    shortlist: bytes = b""
    explorer_pmf: bytes = b""


class HashedFeatures(msgspec.Struct, frozen=True, kw_only=True):
    """Features of k actions in one namespace as VW hashes them, padded to the longest with value 0.

    Attributes:
        indices: uint32 [k, width], before the table mask.
        values: float32 [k, width].
    """

    indices: bytes
    values: bytes


class Shortlisted(msgspec.Struct, frozen=True, kw_only=True):
    """Every action that stood on a slot's shortlist or was drawn, as a VW explorer saw it and learns it.

    Attributes:
        actions: uint32 [k], ascending positions in the candidate list.
        features: By namespace.
    """

    actions: bytes
    features: dict[str, HashedFeatures]


class Decision(Stored, frozen=True, kw_only=True, tag_field="type", tag="decision"):
    """Everything about one answered recommendation; an audit needs nothing else.

    Attributes:
        event_id: Names the decision.
        decided_at_unix_ms: Worker's clock when the request was accepted.
        surface: Surface name.
        model: Model name.
        user_id: None for anonymous; left out of the archive.
        user_key: Keyed BLAKE2b of the user id, hexadecimal; empty for anonymous.
        digest: BLAKE2b of the request, to tell a retry from a clash of event ids.
        context: Context as sent.
        seed_item_id: Seed as sent.
        recent_ids: Client ids of the recent interactions that user features were made of, oldest first.
        features: Shared features as served, by namespace and name.
        versions: What it was decided with.
        exploration: Policy parameters.
        rules: Rules in declared order.
        discovery_positions: Slots reserved for discovery.
        discovery_probability: Probability of exactly these positions.
        candidates: The candidate list.
        slots: What was placed, in order.
        n_requested: Slots asked for.
        degraded: Parts that were left out.
        latency_ms: Time by stage.
        recent_at_unix_ms: Accept times of the interactions of `recent_ids`, in the same order.
        impression_ids: Event ids of the earlier decisions whose impressions were read, oldest first.
        profile_digest: Keyed BLAKE2b of the profile that was read; empty for anonymous.
        inputs_digest: BLAKE2b of everything the slate was drawn from, so that no change of it goes unseen.
        shortlisted: What a VW explorer learns from, None without one.
    """

    event_id: str
    decided_at_unix_ms: int
    surface: str
    model: str
    user_id: str | None
    user_key: str
    digest: str
    context: dict[str, Any]
    seed_item_id: str | None
    recent_ids: list[str]
    features: dict[str, dict[str, float]]
    versions: Versions
    exploration: Exploration
    rules: list[Rule]
    discovery_positions: list[int]
    discovery_probability: float
    candidates: CandidateList
    slots: list[SlotRecord]
    n_requested: int
    degraded: list[str]
    latency_ms: dict[str, float]
    inputs_digest: str = ""
    shortlisted: Shortlisted | None = None
    recent_at_unix_ms: list[int] = []
    impression_ids: list[str] = []
    profile_digest: str = ""


class Event(Stored, frozen=True, kw_only=True, gc=False, tag_field="type", tag="event"):
    """Something that happened, as accepted.

    Attributes:
        accepted_at_unix_ms: Worker's clock at acceptance; the journal position orders events.
        client_id: The caller's id of the event, for deduplication; made from the body when absent.
        event_type: `click`, `view`, ... or `reward` for the plain form.
        event_id: The decision it belongs to; None is resolved by user and item.
        user_id: Left out of the archive.
        user_key: Keyed BLAKE2b of the user id; empty when unknown.
        item_id: The item; None when the slot says it.
        slot: The slot; None when the item says it.
        value: Magnitude of the event.
        client_unix_ms: The caller's clock, kept and never used as time.
    """

    accepted_at_unix_ms: int
    client_id: str
    event_type: str
    event_id: str | None
    user_id: str | None
    user_key: str
    item_id: str | None
    slot: int | None
    value: float
    client_unix_ms: int | None


class Heartbeat(Stored, frozen=True, kw_only=True, tag_field="type", tag="heartbeat"):
    """Moves journal time while nothing else happens, so that windows close."""

    at_unix_ms: int


class ConfigChange(Stored, frozen=True, kw_only=True, tag_field="type", tag="config"):
    """A change of live configuration, for the audit and for replay."""

    at_unix_ms: int
    key: str
    old: Any
    new: Any
    author: str
    reason: str


class Promotion(Stored, frozen=True, kw_only=True, tag_field="type", tag="promotion"):
    """A model goes on from an artefact, from this entry's place in the journal on.

    Attributes:
        at_unix_ms: When it was asked for.
        model: The model.
        artefact: Id of what it goes on from.
        checksum: SHA-256 of the stored artefact, hexadecimal.
        stage: canary, full or rollback.
        author: Who asked.
        reason: Why, with the figures of the gates.
    """

    at_unix_ms: int
    model: str
    artefact: str
    checksum: str
    stage: str
    author: str
    reason: str


class Erasure(Stored, frozen=True, kw_only=True, tag_field="type", tag="erasure"):
    """A user asked to be forgotten: what was decided for them or reported of them up to now leaves the archive.

    Attributes:
        user_key: Keyed BLAKE2b of the user id, hexadecimal.
        at_unix_ms: Worker's clock when the request was accepted.
    """

    user_key: str
    at_unix_ms: int


JournalEntry = Decision | Event | Heartbeat | ConfigChange | Erasure | Promotion

# --- streams that every worker follows -----------------------------------------------------------------------------


class ItemUpsert(Stored, frozen=True, kw_only=True, tag_field="type", tag="upsert"):
    """An item was put; the whole item, so that applying it twice changes nothing."""

    item: Item


class ItemDelete(Stored, frozen=True, kw_only=True, tag_field="type", tag="delete"):
    """An item was deleted."""

    item_id: str


ItemChange = ItemUpsert | ItemDelete


class ItemStats(Stored, frozen=True, kw_only=True):
    """Decayed counts of some items; one writer.

    Attributes:
        at_unix_ms: Journal time of the writer.
        item_ids: The items, n of them.
        n_impressions: float64 [n] (float32 in the oldest entries), each as of its item's `counted_at`.
        n_rewards: float64 [n] sums of rewards.
        n_clicks: float64 [n] slots with a positive reward.
        counted_at: int64 [n] unix milliseconds that the counts are decayed to; empty means `at_unix_ms` for all.
        epoch: Fencing epoch of the writer; entries of an earlier epoch than one seen are passed over.
        as_of: Last journal position counted, `ms-partition-sequence`.
        is_whole: Whether every other item counts as never shown.
    """

    at_unix_ms: int
    item_ids: list[str]
    n_impressions: bytes
    n_rewards: bytes
    n_clicks: bytes = b""
    counted_at: bytes = b""
    epoch: int = 0
    as_of: str = ""
    is_whole: bool = False


class ItemPairs(Stored, frozen=True, kw_only=True):
    """Decayed counts of users that like two items, of some items; one writer.

    Attributes:
        epoch: Fencing epoch of the writer; entries of an earlier epoch than one seen are passed over.
        as_of: Last journal position counted, `ms-partition-sequence`.
        is_whole: Whether every other item counts as liked by nobody.
        half_life_ms: Time in which a count halves.
        ids: The n items, then partners that are none of them.
        n_users: float64 [n], users of each item as of its `counted_at`.
        counted_at: int64 [n] unix milliseconds.
        n_partners: int32 [n], partners written of each item.
        partners: int32 [m] positions in `ids`, item by item.
        counts: float64 [m], users of both, as of the item's `counted_at`.
    """

    epoch: int
    as_of: str
    is_whole: bool
    half_life_ms: float
    ids: list[str]
    n_users: bytes
    counted_at: bytes
    n_partners: bytes
    partners: bytes
    counts: bytes


class ItemPairsState(Stored, frozen=True, kw_only=True):
    """All that counting pairs needs to go on: a part of a checkpoint.

    Attributes:
        pairs: Every item with every partner that is counted.
        user_keys: Users remembered, k of them; who was silent longest first.
        n_liked: int32 [k], items remembered of each.
        liked: Their items, user by user.
        liked_at: int64 [len(liked)] unix milliseconds.
    """

    pairs: ItemPairs
    user_keys: list[str]
    n_liked: bytes
    liked: list[str]
    liked_at: bytes


class WeightDelta(Stored, frozen=True, kw_only=True):
    """Changed weights of one model.

    Attributes:
        epoch: Fencing epoch of the learner that wrote it.
        base_version: Version it applies to; a gap makes the reader load the snapshot.
        version: Version after it.
        indices: uint32 [m] table positions.
        values: float32 [m] new values (not differences, so applying twice changes nothing).
    """

    epoch: int
    base_version: int
    version: int
    indices: bytes
    values: bytes


class ConfigOverride(Stored, frozen=True, kw_only=True):
    """A live override of one configuration key; None removes it."""

    key: str
    value: Any
    author: str
    at_unix_ms: int
    reason: str = ""


# --- state ----------------------------------------------------------------------------------------------------------


class DecisionSummary(Stored, frozen=True, kw_only=True, gc=False):
    """What is kept under an event id for as long as it can be asked for.

    Attributes:
        digest: BLAKE2b of the request, to tell a retry from a clash of event ids.
        surface: Surface name.
        user_id: None for anonymous.
        item_ids: The slate.
        decided_at_unix_ms: When; 0 in the oldest claims.
    """

    digest: str
    surface: str
    user_id: str | None
    item_ids: list[str]
    decided_at_unix_ms: int = 0


class UserProfile(Stored, frozen=True, kw_only=True):
    """Attributes of a user.

    Attributes:
        birth_date: ISO date; the age gate reads it.
        country: ISO 3166 code; the region gate reads it.
        attributes: Anything else that features read.
    """

    birth_date: str | None = None
    country: str | None = None
    attributes: dict[str, str | float | bool | list[str]] = {}


class Interaction(Stored, frozen=True, kw_only=True, gc=False):
    """One recent event of a user about an item.

    Attributes:
        item_id: The item.
        event_type: What happened.
        reward: What it was worth; None for an event that is no reward.
        at_unix_ms: Accept time.
        client_id: For deduplication: the same event writes the same member.
    """

    item_id: str
    event_type: str
    reward: float | None
    at_unix_ms: int
    client_id: str


class Impression(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One item shown to a user.

    Attributes:
        item_id: The item.
        event_id: The decision that showed it.
        shown_at_unix_ms: When it was decided.
    """

    item_id: str
    event_id: str
    shown_at_unix_ms: int


class ModelSnapshot(Stored, frozen=True, kw_only=True):
    """A whole published model.

    Attributes:
        epoch: Fencing epoch of the writer.
        version: Model version.
        stream_id: Position in the weight stream that the snapshot includes.
        schema_version: Feature schema it was trained on.
        bits: log2 of the table size.
        arguments: VW command line.
        indices: uint32 [m] positions of weights that are not zero.
        values: float32 [m].
        workspace: A VW explorer as a whole; empty for a model that is published as weights.
        workspace_digest: BLAKE2b of it, hexadecimal.
        artefact: Id of the artefact that the model goes on from; empty when it began from nothing.
    """

    epoch: int
    version: int
    stream_id: str
    schema_version: str
    bits: int
    arguments: list[str]
    indices: bytes
    values: bytes
    workspace: bytes = b""
    workspace_digest: str = ""
    artefact: str = ""


class Artefact(Stored, frozen=True, kw_only=True):
    """A trained model that may be promoted; it never changes.

    Attributes:
        manifest: JSON with checksum and, given a key, a signature.
        workspace: Serialised VW workspace.
    """

    manifest: bytes
    workspace: bytes


class Checkpoint(Stored, frozen=True, kw_only=True):
    """All that a learner needs to go on as if it had never stopped.

    Attributes:
        epoch: Fencing epoch of the writer.
        model_version: Last version published.
        schema_version: Feature schema of the workspace.
        positions: Last journal id applied, by partition.
        oldest_open: Journal id from which joins are rebuilt, by partition.
        workspace: Serialised VW workspace.
        n_learned: Outcomes learned.
        loss_sum: Sum of progressive squared losses.
        counters: Outcomes and events by reason.
        item_stats: Encoded `ItemStats` of every item as of `positions`; empty when this learner counts none.
        waiting: Journal ids of events that wait for their decision, by partition; None in older checkpoints.
        artefact: Id of the artefact that the model goes on from; empty when it began from nothing.
        weight_norm: Euclidean norm of the weights; 0 for an explorer, and in older checkpoints.
        item_pairs: Encoded `ItemPairsState` as of `positions`; empty when this learner counts none.
    """

    epoch: int
    model_version: int
    schema_version: str
    positions: dict[str, str]
    oldest_open: dict[str, str]
    workspace: bytes
    n_learned: int
    loss_sum: float
    counters: dict[str, int]
    waiting: dict[str, list[str]] | None = None
    item_stats: bytes = b""
    artefact: str = ""
    weight_norm: float = 0.0
    item_pairs: bytes = b""


class LearnerProgress(Stored, frozen=True, kw_only=True):
    """What is asked of a checkpoint often, stored beside it by the same write; the fields mean what they mean there.

    Attributes:
        oldest_open: None in what was stored before it was a part of this.
    """

    positions: dict[str, str]
    weight_norm: float = 0.0
    oldest_open: dict[str, str] | None = None


class Outcome(Stored, frozen=True, kw_only=True):
    """What became of one slot; a row of the archive.

    Attributes:
        event_id: The decision.
        slot: The slot.
        item_id: What was shown there.
        reward: The reward.
        kind: reward (learned from an event), default (window closed without one) or late (counted, not learned).
        at_unix_ms: Journal time of the event or of the closing.
        delay_ms: Journal time since the decision.
        surface: Surface name.
        model: Name of the model that learns it.
        decision_journal_id: Where the decision is in its partition.
        decided_at_unix_ms: Worker's clock when the decision was made.
        user_key: Of the decision; empty for anonymous.
        propensity: Of the item in its slot, as logged.
        branch: Part of the mixture that drew it.
        is_explored: Whether that part was not the greedy one.
    """

    event_id: str
    slot: int
    item_id: str
    reward: float
    kind: str
    at_unix_ms: int
    delay_ms: int
    surface: str = ""
    model: str = ""
    decision_journal_id: str = ""
    decided_at_unix_ms: int = 0
    user_key: str = ""
    propensity: float = 0.0
    branch: str = ""
    is_explored: bool = False


# --- health ---------------------------------------------------------------------------------------------------------


class HealthAlarm(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as it should be.

    Attributes:
        name: What; a part after a colon says of which feature, event type or model.
        level: warning or alarm.
        since_unix_ms: When it was first seen in one go.
        value: What was measured.
        limit: What it crossed.
        reason: In words.
    """

    name: str
    level: str
    since_unix_ms: int
    value: float
    limit: float
    reason: str


class HealthVerdict(Stored, frozen=True, kw_only=True):
    """What the health watch says, under a key that expires when nobody renews it.

    Attributes:
        at_unix_ms: Clock of the watch.
        journal_ms: Journal time up to which it has read.
        alarms: What is not as it should be.
        values: What it measured, by name.
        model_versions: Versions that were published a while ago, by model: whoever serves an older one lags.
    """

    at_unix_ms: int
    journal_ms: int
    alarms: list[HealthAlarm]
    values: dict[str, float]
    model_versions: dict[str, int]


class HealthState(Stored, frozen=True, kw_only=True):
    """What a health watch needs to go on; a file beside the archive.

    Attributes:
        resume_ms: Journal time from which it reads again.
        intervals: Closed intervals, oldest first.
        unfinished: The interval that lacks outcomes, None when there is none.
        since_unix_ms: Since when what is wrong is wrong, by name.
    """

    resume_ms: int
    intervals: list[Interval]
    unfinished: Interval | None
    since_unix_ms: dict[str, int]


class ProbedContext(msgspec.Struct, frozen=True, kw_only=True):
    """One context of a probe set.

    Attributes:
        event_id: The decision it was taken from.
        shared: Shared features by namespace, one row.
        actions: Features of k actions by namespace.
        genres: Genres of each action, k lists.
    """

    event_id: str
    shared: dict[str, HashedFeatures]
    actions: dict[str, HashedFeatures]
    genres: list[list[str]]


class ProbeFile(Stored, frozen=True, kw_only=True):
    """The frozen probe set; a file beside the archive.

    Attributes:
        schema_version: Feature schema that it is encoded by.
        contexts: In the order of their keyed digests.
    """

    schema_version: str
    contexts: list[ProbedContext]


_ENCODER = msgspec.msgpack.Encoder()
# Reads a checkpoint too: of its fields, these.
progress_decoder: msgspec.msgpack.Decoder[LearnerProgress] = msgspec.msgpack.Decoder(LearnerProgress)
summary_decoder: msgspec.msgpack.Decoder[DecisionSummary] = msgspec.msgpack.Decoder(DecisionSummary)
journal_decoder: msgspec.msgpack.Decoder[JournalEntry] = msgspec.msgpack.Decoder(JournalEntry)
item_stats_decoder: msgspec.msgpack.Decoder[ItemStats] = msgspec.msgpack.Decoder(ItemStats)
item_pairs_decoder: msgspec.msgpack.Decoder[ItemPairs] = msgspec.msgpack.Decoder(ItemPairs)
item_change_decoder: msgspec.msgpack.Decoder[ItemChange] = msgspec.msgpack.Decoder(ItemChange)


def encode(message: Stored) -> bytes:
    """Return the stored form of a message."""
    return _ENCODER.encode(message)
