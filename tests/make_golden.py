"""Golden files of stored messages: what version 1 looks like on disk, for ever.

`python -m tests.make_golden` writes the files that are missing and never overwrites one: stored entries of an old
version must stay readable, so a golden file that no longer fits means a new version, not a new file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np

from bandit.exploration import Epsilon
from bandit.health_intervals import Interval
from bandit.health_statistics import Moments
from bandit.rules import Discovery, Freshness, MaxPer, Prior
from retrieval.items import Item
from service.adapters.parquet_archive import ParquetArchive
from service.messages import (
    Artefact,
    CandidateList,
    Checkpoint,
    ConfigChange,
    ConfigOverride,
    Decision,
    DecisionSummary,
    Erasure,
    Event,
    HashedFeatures,
    HealthAlarm,
    HealthState,
    HealthVerdict,
    Heartbeat,
    Interaction,
    ItemDelete,
    ItemPairs,
    ItemPairsState,
    ItemStats,
    ItemUpsert,
    LearnerProgress,
    ModelSnapshot,
    Outcome,
    ProbedContext,
    ProbeFile,
    Promotion,
    SlotRecord,
    Stored,
    UserProfile,
    Versions,
    WeightDelta,
    encode,
)
from service.ports import ArchiveBatch, OpenJoins, OutcomeRow

FOLDER = Path(__file__).with_name("golden")
_AT = 1_795_382_944_962


def _floats(*values: float) -> bytes:
    return np.array(values, dtype="<f4").tobytes()


def _doubles(*values: float) -> bytes:
    return np.array(values, dtype="<f8").tobytes()


def _positions(*values: int) -> bytes:
    return np.array(values, dtype="<u4").tobytes()


ITEM_PAIRS = ItemPairs(
    epoch=3,
    as_of="1795382944890-0-3",
    is_whole=True,
    half_life_ms=604_800_000.0,
    ids=["m1", "m2", "m3"],
    n_users=_doubles(2.5, 1.0),
    counted_at=np.array([_AT, _AT - 1], dtype="<i8").tobytes(),
    n_partners=np.array([2, 1], dtype="<i4").tobytes(),
    partners=np.array([1, 2, 0], dtype="<i4").tobytes(),
    counts=_doubles(1.0, 0.5, 1.0),
)

DECISION = Decision(
    event_id="01KAT5N2M2",
    decided_at_unix_ms=_AT,
    surface="home",
    model="films",
    user_id="ml-7",
    user_key="5f3c",
    digest="ab12",
    context={"device": "tv", "hour": 21, "ratio": 0.5, "new": True, "tags": ["a", "ü"], "none": None},
    seed_item_id="m9",
    recent_ids=["c-75", "c-76"],
    features={"context": {"device=tv": 1.0}, "user": {"taste=Drama": 0.75}, "position": {"slot=0": 1.0}},
    versions=Versions(
        model=1834,
        index="e3577cd28388ffea",
        catalogue="1795382942923-7",
        config="0a1b2c3d4e5f",
        schema="5f4e3d2c1b0a",
        item_stats="0-0",
        salt=1,
        numerics="numpy-2.4.6-abcdef012345",
    ),
    exploration=Epsilon(rate=0.1, uniform_share=0.25, shortlist=50, temperature=0.5),
    rules=[
        MaxPer(column="creator", limit=2, window=10),
        Freshness(boost=0.02, half_life_days=30.0),
        Prior(weight=0.1),
        Discovery(share=0.2),
    ],
    discovery_positions=[1],
    discovery_probability=0.5,
    candidates=CandidateList(
        ids=["m1", "m2", "m3"],
        scores=_floats(0.25, -0.5, 0.0),
        sources=bytes([0, 1, 0]),
        source_names=["als", "popular"],
        columns={"creator": ("<i4", np.array([0, 1, -1], dtype="<i4").tobytes())},
    ),
    slots=[
        SlotRecord(
            item_id="m1",
            action=0,
            propensity=0.9416666666666667,
            uniform=0.1234567890123456,
            cumulative_before=0.0,
            n_feasible=3,
            greedy_action=0,
            n_greedy=1,
            explore_propensity=0.05833333333333333,
            is_discovery=False,
            branch="greedy",
            reason="greedy",
            boost=0.02,
            gave_way=["max_per:creator"],
            features={"item": {"genre=Drama": 1.0}, "dynamic": {"source=als": 1.0}},
        )
    ],
    n_requested=2,
    degraded=["features"],
    latency_ms={"state": 0.25, "score": 1.5},
)

VALUES: dict[str, Stored] = {
    "decision": DECISION,
    "decision_reads": msgspec.structs.replace(
        DECISION,
        versions=msgspec.structs.replace(
            DECISION.versions, item_stats="1795382944901-0", item_stats_as_of="1795382944890-0-3"
        ),
        recent_at_unix_ms=[_AT - 9_000, _AT - 4_000],
        impression_ids=["01KAT5N1AA", "01KAT5N1ZZ"],
        profile_digest="9a8b7c6d",
        inputs_digest="0011223344556677",
    ),
    "event": Event(
        accepted_at_unix_ms=_AT,
        client_id="c-77",
        event_type="play_seconds",
        event_id="01KAT5N2M2",
        user_id="ml-7",
        user_key="5f3c",
        item_id="m1",
        slot=0,
        value=312.5,
        client_unix_ms=_AT - 40,
    ),
    "heartbeat": Heartbeat(at_unix_ms=_AT),
    "config_change": ConfigChange(
        at_unix_ms=_AT, key="surfaces.home.exploration.rate", old=0.1, new=0.2, author="ops", reason="launch"
    ),
    "erasure": Erasure(user_key="5f3c", at_unix_ms=_AT),
    "promotion": Promotion(
        at_unix_ms=_AT,
        model="films",
        artefact="20261122T101500-a1",
        checksum="9f2c",
        stage="full",
        author="ops",
        reason="",
    ),
    "artefact": Artefact(manifest=b'{"id":"20261122T101500-a1"}', workspace=b"\x00\x01vw"),
    "item_upsert": ItemUpsert(
        item=Item(
            id="tt1675434",
            title="The Intouchables",
            attributes={"genres": ["Comedy", "Drama"], "year": 2011.0, "language": "French", "colour": True},
            creator="Olivier Nakache",
            min_age=17,
            regions=["DE", "FR"],
            available_at_unix_ms=1_293_840_000_000,
            expires_at_unix_ms=1_893_456_000_000,
            listed=False,
        )
    ),
    "item_delete": ItemDelete(item_id="tt1675434"),
    "item_stats": ItemStats(
        at_unix_ms=_AT, item_ids=["m1", "m2"], n_impressions=_floats(12.5, 3.0), n_rewards=_floats(1.25, 0.0)
    ),
    "item_stats_whole": ItemStats(
        at_unix_ms=_AT,
        item_ids=["m1", "m2"],
        n_impressions=_doubles(12.5, 3.0),
        n_rewards=_doubles(1.25, -0.5),
        n_clicks=_doubles(2.0, 0.0),
        counted_at=np.array([_AT, _AT - 1], dtype="<i8").tobytes(),
        epoch=3,
        as_of="1795382944890-0-3",
        is_whole=True,
    ),
    "item_pairs": ITEM_PAIRS,
    "item_pairs_state": ItemPairsState(
        pairs=ITEM_PAIRS,
        user_keys=["5f3c", "77aa"],
        n_liked=np.array([2, 1], dtype="<i4").tobytes(),
        liked=["m1", "m2", "m1"],
        liked_at=np.array([_AT, _AT - 1, _AT - 2], dtype="<i8").tobytes(),
    ),
    "checkpoint_pairs": Checkpoint(
        epoch=3,
        model_version=1834,
        schema_version="5f4e3d2c1b0a",
        positions={"0": "1795382944962-3"},
        oldest_open={"0": ""},
        workspace=b"",
        n_learned=0,
        loss_sum=0.0,
        counters={},
        item_stats=b"\x81",
        item_pairs=b"\x82",
    ),
    "weight_delta": WeightDelta(
        epoch=3,
        base_version=1833,
        version=1834,
        indices=_positions(7, 1_048_575),
        values=_floats(0.125, -2.0),
    ),
    "config_override": ConfigOverride(key="surfaces.home.exploration.rate", value=0.2, author="ops", at_unix_ms=_AT),
    "decision_summary": DecisionSummary(digest="ab12", surface="home", user_id="ml-7", item_ids=["m1"]),
    "decision_summary_at": DecisionSummary(
        digest="ab12", surface="home", user_id="ml-7", item_ids=["m1"], decided_at_unix_ms=_AT
    ),
    "user_profile": UserProfile(
        birth_date="1974-01-01", country="US", attributes={"occupation": "writer", "langs": ["de", "en"], "age": 52.0}
    ),
    "interaction": Interaction(item_id="m1", event_type="click", reward=1.0, at_unix_ms=_AT, client_id="c-77"),
    "model_snapshot": ModelSnapshot(
        epoch=3,
        version=1834,
        stream_id="1795382942966-0",
        schema_version="5f4e3d2c1b0a",
        bits=20,
        arguments=["--cb_adf", "--quiet"],
        indices=_positions(7),
        values=_floats(0.125),
    ),
    "checkpoint": Checkpoint(
        epoch=3,
        model_version=1834,
        schema_version="5f4e3d2c1b0a",
        positions={"0": "1795382944962-3"},
        oldest_open={"0": "1795382942923-7"},
        workspace=b"\x00vw\xff",
        n_learned=60,
        loss_sum=12.75,
        counters={"decision": 12, "slot_reward": 5},
    ),
    "checkpoint_counting": Checkpoint(
        epoch=3,
        model_version=1834,
        schema_version="5f4e3d2c1b0a",
        positions={"0": "1795382944962-3"},
        oldest_open={"0": ""},
        workspace=b"",
        n_learned=0,
        loss_sum=0.0,
        counters={},
        waiting={"0": ["1795382944961-0"]},
        item_stats=b"\x81",
    ),
    "checkpoint_adopted": Checkpoint(
        epoch=3,
        model_version=1835,
        schema_version="5f4e3d2c1b0a",
        positions={"0": "1795382944962-4"},
        oldest_open={"0": ""},
        workspace=b"",
        n_learned=0,
        loss_sum=0.0,
        counters={"promotion_refused": 1},
        artefact="20261123T001500-1a2b3c4d",
        weight_norm=12.5,
    ),
    "learner_progress": LearnerProgress(positions={"0": "1795382944962-3"}, weight_norm=12.5),
    "learner_progress_open": LearnerProgress(
        positions={"0": "1795382944962-3"}, weight_norm=12.5, oldest_open={"0": "1795382940000-1"}
    ),
    "health_verdict": HealthVerdict(
        at_unix_ms=_AT,
        journal_ms=_AT - 20,
        alarms=[
            HealthAlarm(
                name="genre_collapse",
                level="alarm",
                since_unix_ms=_AT - 60_000,
                value=0.25,
                limit=0.5,
                reason="greedy slots collapse on few genres",
            )
        ],
        values={"genre_entropy": 0.25},
        model_versions={"films": 7},
    ),
    "health_state": HealthState(
        resume_ms=_AT,
        intervals=[
            Interval(
                from_ms=_AT - 60_000,
                until_ms=_AT,
                n_decisions=2,
                n_rewards=1,
                last_reward_ms=_AT - 500,
                greedy=Moments(2.0, 1.0, 1.0),
                explore=Moments(2.0, -0.5, 0.25),
                control=Moments(1.0, 0.0, 0.0),
                sessions=Moments(1.0, 4.0, 16.0),
                feedback={"skip": 1},
                genres={"Drama": 1.5, "Crime": 0.5},
                items={"m1": 2},
                n_item_slots=2,
                variety=Moments(1.0, 40.0, 1_600.0),
                bins={"device": {"tv": 2}},
                weight_norms={"films": 1.5},
            )
        ],
        unfinished=None,
        since_unix_ms={"genre_collapse": _AT - 60_000},
    ),
    "probe_file": ProbeFile(
        schema_version="0123456789ab",
        contexts=[
            ProbedContext(
                event_id="01KAT5N2M2",
                shared={"context": HashedFeatures(indices=_positions(5), values=_floats(1.0))},
                actions={"item": HashedFeatures(indices=_positions(7, 8), values=_floats(1.0, 0.5))},
                genres=[["Drama"], ["Crime", "Drama"]],
            )
        ],
    ),
    "outcome": Outcome(
        event_id="01KAT5N2M2", slot=0, item_id="m1", reward=0.3125, kind="reward", at_unix_ms=_AT, delay_ms=2_020
    ),
    "outcome_drawn": Outcome(
        event_id="01KAT5N2M2",
        slot=0,
        item_id="m1",
        reward=0.3125,
        kind="reward",
        at_unix_ms=_AT,
        delay_ms=2_020,
        surface="home",
        model="films",
        decision_journal_id="1795382942942-0",
        decided_at_unix_ms=_AT - 2_030,
        user_key="5f3c",
        propensity=0.0125,
        branch="uniform",
        is_explored=True,
    ),
}


# One archive with a row of every kind. Its files are kept as they were first written, for ever.
ARCHIVE = FOLDER / "archive"
_OUTCOME = VALUES["outcome_drawn"]
assert isinstance(_OUTCOME, Outcome)
ARCHIVED = ArchiveBatch(
    positions={0: f"{_AT}-2"},
    entries={0: [(f"{_AT}-0", DECISION), (f"{_AT}-1", VALUES["event"]), (f"{_AT}-2", VALUES["config_change"])]},  # type: ignore[list-item]
    outcomes=[OutcomeRow(partition=0, journal_id=f"{_AT}-2", ordinal=0, outcome=_OUTCOME)],
    joins=OpenJoins(oldest_open={0: f"{_AT}-0"}, waiting={"films": [(0, f"{_AT}-1")]}),
)


def stored_path(name: str) -> Path:
    """Return the file with the stored bytes of a message."""
    value = VALUES[name]
    return FOLDER / f"{name}.v{value.v}.msgpack"


def readable(value: Stored) -> bytes:
    """Return the JSON that people read beside the stored bytes; packed arrays are base64."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def main() -> int:
    """Write what is missing."""
    FOLDER.mkdir(exist_ok=True)
    for name, value in VALUES.items():
        path = stored_path(name)
        for target, content in ((path, encode(value)), (path.with_suffix(".json"), readable(value))):
            if not target.exists():
                target.write_bytes(content)
                sys.stdout.write(f"wrote {target.name}\n")
    if not (archive := FOLDER / ARCHIVE.name).exists():
        ParquetArchive(archive).write(ARCHIVED)
        sys.stdout.write(f"wrote {archive.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
