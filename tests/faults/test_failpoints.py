"""Every failpoint of the loop on real processes: kill -9 there, and I/O errors where a file is written.

After each: what was acknowledged is archived, every event has one fate, and the model is, bit for bit, that of a
learner to which nothing ever happened. A few points run always, all of them in the long form.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pytest

from bandit.learner import Learner
from bandit.vw_format import encode as encode_features
from service.adapters.archive_files import SCHEMAS, file_name, hour_of, reading, tables_of, write_rows
from service.failpoints import FILE_POINTS, POINTS
from service.messages import Promotion, encode
from service.model_registry import Manifest, build_artefact
from tests.faults.site import Site
from tests.faults.small_index import publish
from tests.faults.tape import JOURNAL, MODEL
from tests.stack import eventually

LEAVER = "leaver"
# Two days ago: older than the rows that are compared.
_OLD_MS = time.time_ns() // 1_000_000 - 48 * 3_600_000
OLD_IDS = (f"{_OLD_MS}-0", f"{_OLD_MS}-1")
OLD_FOLDER = f"events/{hour_of(_OLD_MS)}"
# Of the points that always run, one a kind of process and border.
SHORT = {
    ("kill", "recommend.spooled"),
    ("kill", "feedback.journaled"),
    ("kill", "spool.shipped"),
    ("kill", "learner.published"),
    ("kill", "learner.checkpointed"),
    ("kill", "archive.placed"),
    ("kill", "archive.stored"),
    ("enospc", "spool.append"),
    ("eio", "spool.sync"),
    ("enospc", "archive.rows"),
    ("eio", "files.rename"),
}


@dataclass(frozen=True)
class Case:
    """One point, what happens there, in which process, and what makes it come to the point."""

    point: str
    action: str
    process: str
    reach: Callable[[Site, Case], None]
    nth: int = 1

    @property
    def failpoint(self) -> str:
        return f"{self.point}:{self.action}:{self.nth}"

    def has_fired(self, site: Site) -> bool:
        return site.log_of(self.process).count(f'"failpoint":"{self.failpoint}"') > self._n_before(site)

    def _n_before(self, site: Site) -> int:
        return site.n_fired.get(self.failpoint, 0)


def restart_armed(site: Site, case: Case) -> None:
    if site.is_alive(case.process):
        site.kill(case.process)
    else:
        site.running.pop(case.process, None)
    site.start(case.process, failpoint=case.failpoint)


def is_over(site: Site, case: Case) -> bool:
    return case.has_fired(site) or not site.is_alive(case.process)


def under_load(site: Site, case: Case) -> None:
    """Restart the process armed and call until it comes to the point."""
    restart_armed(site, case)
    deadline_s = time.monotonic() + 45.0
    while not is_over(site, case) and time.monotonic() < deadline_s:
        site.load.step()
        time.sleep(0.01)


def while_the_store_is_full(site: Site, case: Case) -> None:
    """Have events go to the spool."""
    restart_armed(site, case)
    site.wait_ready(case.process)
    with site.full_store():
        for _ in range(100):
            if is_over(site, case):
                break
            site.load.step()


def with_a_leftover(site: Site, case: Case) -> None:
    """Leave a spool behind that a dead worker could not ship."""
    site.heal()
    with site.full_store():
        site.drive(5)
        site.kill("api")
    restart_armed(site, case)
    eventually(lambda: is_over(site, case), what=f"{case.failpoint} at the start")


def at_the_end(site: Site, case: Case) -> None:
    """Tell the process to end."""
    restart_armed(site, case)
    site.wait_ready(case.process)
    site.drive(2)
    site.running[case.process].terminate()
    eventually(lambda: is_over(site, case), what=f"{case.failpoint} at the end")


def while_idle(site: Site, case: Case) -> None:
    """Let the journal stand still while decisions are open."""
    restart_armed(site, case)
    site.drive(3)
    eventually(lambda: is_over(site, case), what=f"{case.failpoint} while nothing comes")


def at_a_promotion(site: Site, case: Case) -> None:
    promote(site, seed=case.point)
    restart_armed(site, case)
    eventually(lambda: is_over(site, case), what=f"{case.failpoint} at a promotion")


def at_a_new_index(site: Site, case: Case) -> None:
    restart_armed(site, case)
    site.wait_ready(case.process)
    publish(site.folder / "index", [f"i{n}" for n in range(60)], version=f"{case.point}-{case.action}", kind="exact")
    eventually(lambda: is_over(site, case), what=f"{case.failpoint} at a new index")


def at_an_erasure(site: Site, case: Case) -> None:
    """Have rows of a user in the archive, then ask for their erasure."""
    site.heal()
    show_leaver(site)
    site.verdict.wait_settled()
    restart_armed(site, case)
    if case.process == "api":
        site.wait_ready("api")
    site.load.call(f"/v1/users/{LEAVER}", None, method="DELETE")
    eventually(lambda: is_over(site, case), what=f"{case.failpoint} at an erasure")


def by_upkeep(site: Site, case: Case) -> None:
    """Start the archiver on an archive with an old hour in several files: to be merged, or expired."""
    site.drive(3)
    site.load.settle()
    site.verdict.wait_settled()
    if site.is_alive(case.process):
        site.kill(case.process)
    site.running.pop(case.process, None)
    write_old_hour(site)
    settings = site.settings
    site.settings = {**settings, "HONE_ARCHIVE__KEEP_DAYS": "1"} if "drop" in case.point else settings
    try:
        site.start(case.process, failpoint=case.failpoint)
        eventually(lambda: is_over(site, case), what=f"{case.failpoint} in the archive's upkeep")
        if case.action == "kill":
            assert site.wait_ended(case.process) == -signal.SIGKILL
            site.start(case.process)
        # Again by the process that saw the error, or by the next one.
        wanted = [] if "drop" in case.point else sorted(OLD_IDS)
        eventually(lambda: old_rows(site) == wanted, what="the upkeep was done in the end")
        site.kill(case.process)
    finally:
        site.settings = settings
        shutil.rmtree(site.verdict.archive / OLD_FOLDER, ignore_errors=True)


def write_old_hour(site: Site) -> None:
    """Have two files in an hour of before the journal."""
    hour = site.verdict.archive / OLD_FOLDER
    hour.mkdir(parents=True)
    for journal_id in OLD_IDS:
        row = {name: None for name in SCHEMAS["events"].names} | {
            "journal_id": journal_id,
            "client_id": journal_id,
            "accepted_at_unix_ms": int(journal_id.partition("-")[0]),
        }
        target = hour / file_name(0, journal_id, journal_id)
        write_rows(target, "events", [pa.Table.from_pylist([row], schema=SCHEMAS["events"])]).replace(target)


def old_rows(site: Site) -> list[str] | None:
    """Return the ids of the old hour's rows, None while it has several files."""
    with reading(site.verdict.archive):
        hour = site.verdict.archive / OLD_FOLDER
        files = list(hour.glob("*.parquet"))
        if len(files) > 1:
            return None
        return [
            i
            for file in files
            for table in tables_of(file, "events", ["journal_id"])
            for i in table["journal_id"].to_pylist()
        ]


def promote(site: Site, *, seed: str) -> None:
    """Store an artefact of a learner of other data and enter its promotion."""
    spec = site.config.model_spec(MODEL)
    learner = Learner(spec)
    for n in range(20):
        shared = {"context": encode_features("context", {f"device={seed}{n % 3}": 1.0})}
        learner.learn(shared, {"item": encode_features("item", {f"id=i{n % 5}": 1.0})}, reward=1.0, propensity=0.5)
    workspace = learner.serialize()
    manifest = Manifest(
        artefact=seed,
        model=MODEL,
        kind="retrained",
        parent="",
        arguments=spec.arguments(),
        bits=spec.bits,
        schema_version=site.config.features.version,
        created_at="2026-11-23T00:00:00+00:00",
        workspace_sha256=hashlib.sha256(workspace).hexdigest(),
    )
    stored = build_artefact(manifest, workspace, hmac_key=None)
    promotion = Promotion(
        at_unix_ms=time.time_ns() // 1_000_000,
        model=MODEL,
        artefact=seed,
        checksum=hashlib.sha256(stored).hexdigest(),
        stage="full",
        author="test",
        reason="",
    )
    client = site.client
    client.set(f"hone:artefact:{{{MODEL}}}:{seed}", stored)
    client.sadd(f"hone:artefacts:{{{MODEL}}}", seed)
    client.xadd(JOURNAL, {"e": encode(promotion)})
    client.close()


def show_leaver(site: Site) -> None:
    for _ in range(3):
        slate = site.load.call("/v1/recommend", {"surface": "home", "n": 2, "user_id": LEAVER, "context": {}})
        event = {"type": "click", "event_id": slate["event_id"], "slot": 0, "user_id": LEAVER}
        assert site.load.call("/v1/events", [event]) is not None


_REACHED: dict[tuple[str, Callable[[Site, Case], None]], tuple[str, ...]] = {
    ("api", under_load): (
        "spool.open",
        "spool.append",
        "spool.appended",
        "spool.ship",
        "spool.shipped",
        "spool.claimed",
        "spool.empty",
        "recommend.spool",
        "recommend.spooled",
        "recommend.claimed",
        "feedback.journal",
        "feedback.journaled",
        "feedback.users",
        "feedback.acknowledge",
        "follower.item",
        "follower.delta",
        "follower.snapshot",
        "follower.serve",
    ),
    ("api", while_the_store_is_full): ("feedback.spool", "spool.sync", "spool.synced"),
    ("api", with_a_leftover): ("spool.adopt", "spool.adopt_sync", "spool.adopt_remove"),
    ("api", at_the_end): ("spool.close",),
    ("api", at_a_new_index): ("index.load", "index.built", "index.served"),
    ("api", at_an_erasure): ("feedback.erase", "feedback.erased"),
    ("learner", under_load): (
        "journal.read",
        "journal.released",
        "learner.epoch",
        "learner.lease",
        "learner.restore",
        "learner.restored",
        "learner.join",
        "learner.learn",
        "learner.applied",
        "learner.publish",
        "learner.published",
        "learner.snapshot",
        "learner.snapshot_published",
        "learner.repair",
        "learner.checkpoint",
        "learner.checkpointed",
        "counting.publish",
        "counting.published",
        "counting.publish_pairs",
    ),
    ("learner", at_a_promotion): ("learner.artefact", "learner.adopt", "learner.adopted"),
    ("learner", while_idle): ("learner.heartbeat",),
    ("learner", at_the_end): ("learner.release",),
    ("archiver", under_load): (
        "archiver.rebuild",
        "archiver.write",
        "archiver.written",
        "archiver.trim",
        "archiver.trimmed",
        "archiver.upkeep",
        "archive.leftovers",
        "archive.note",
        "archive.rows",
        "archive.rows_sync",
        "archive.place",
        "archive.placed",
        "archive.state",
        "archive.stored",
        "files.write",
        "files.sync",
        "files.rename",
        "files.sync_folder",
    ),
    ("archiver", by_upkeep): (
        "archive.merge",
        "archive.merged",
        "archive.merge_remove",
        "archive.drop",
        "archive.dropped",
    ),
    ("archiver", at_an_erasure): ("archive.erase", "archive.erased"),
}
# Reached at the start too; the nth time is in the middle of the work.
_LATER = {
    "spool.append": 3,
    "spool.appended": 4,
    "spool.shipped": 5,
    "feedback.journaled": 3,
    "journal.released": 6,
    "learner.lease": 3,
    "learner.learn": 7,
    "learner.applied": 5,
    "learner.publish": 4,
    "learner.published": 4,
    "learner.repair": 9,
    "learner.checkpoint": 2,
    "learner.checkpointed": 2,
    "counting.publish": 2,
    "counting.published": 2,
    "counting.publish_pairs": 2,
    "archiver.written": 2,
    "archiver.trim": 2,
    "archive.placed": 2,
    "archive.stored": 2,
    "files.rename": 3,
}
# Named by other tests below: they belong to `hone serve` and `hone config set`.
_ELSEWHERE = {
    "supervise.start",
    "supervise.restart",
    "supervise.restart_store",
    "config.journal",
    "config.publish",
}
CASES = [
    Case(point, action, process, reach, _LATER.get(point, 1))
    for (process, reach), points in _REACHED.items()
    for point in points
    for action in ("kill", "eio", "enospc")
    if action == "kill" or point in FILE_POINTS
]


def _parameters() -> list[object]:
    return [
        pytest.param(
            case,
            id=f"{case.action}-{case.point}",
            marks=() if (case.action, case.point) in SHORT else pytest.mark.long,
        )
        for case in CASES
    ]


def test_every_declared_point_has_a_case() -> None:
    assert {case.point for case in CASES if case.action == "kill"} | _ELSEWHERE == POINTS
    assert {(case.action, case.point) for case in CASES} >= SHORT


@pytest.mark.parametrize("case", _parameters())
def test_nothing_is_lost_or_learned_twice_at(site: Site, case: Case) -> None:
    site.verdict.ignore_user(LEAVER)
    site.n_fired[case.failpoint] = site.log_of(case.process).count(f'"failpoint":"{case.failpoint}"')
    case.reach(site, case)
    assert case.has_fired(site), f"never reached; the process logged:\n{site.log_of(case.process)[-2000:]}"
    if case.process in site.running:
        # What fails at the start ends the process, a moment later.
        site.running[case.process].join(30 if case.action == "kill" else 0.5)
        assert (site.running[case.process].exitcode == -signal.SIGKILL) == (case.action == "kill")
    site.heal()
    site.drive(3)
    site.load.settle()
    site.verdict.assert_sound(site.load)


@pytest.mark.long
@pytest.mark.parametrize("point", sorted(p for p in _ELSEWHERE if p.startswith("config")))
def test_a_change_of_the_configuration_is_on_record_before_it_is_seen(site: Site, point: str) -> None:
    change = ("config", "set", "surfaces.home.exploration.rate", "0.2", "--reason", "test")
    assert site.run(*change, failpoint=f"{point}:kill") == -signal.SIGKILL
    n_live = site.client.xlen("hone:config")
    assert n_live == 0, "it died before the workers were told"
    assert site.run(*change) == 0
    assert site.client.xlen("hone:config") == 1
    assert site.run("config", "unset", "surfaces.home.exploration.rate") == 0
    site.client.delete("hone:config")
    site.heal()
    site.drive(3)
    site.load.settle()
    site.verdict.assert_sound(site.load)
