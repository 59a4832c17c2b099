"""The shipped sample: a seeded world, a model learned in it, and a log of that model, made when first asked for.

No log is shipped as a file: this one is the same on every machine of the same numerics, and since the model is frozen
while it is logged, the true value of any other policy on the very same visits is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from shutil import rmtree

import msgspec

from bandit.exploration import VwExplorer
from service.config import Config
from service.durable_files import sync_folder
from service.messages import ModelSnapshot, encode
from service.training_rows import JoinedDecision
from simulators.closed_loop import learn_model, run_loop
from simulators.loop_config import MODEL, SURFACE, ServiceSettings, build_config
from simulators.tune.candidates import Candidate
from simulators.tune.log_values import SlotKey, archived, archived_skips
from simulators.worlds.named import QUICK_SETTINGS
from simulators.worlds.world import WorldSpec

# A change of what is simulated makes another sample; so does this number.
_VERSION = 2

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """What is logged.

    Attributes:
        world: Where; its seed is that of the log when it has none.
        logging: The policy that is logged.
        n_learned: Decisions that the model learned from.
        n_logged: Decisions of the log.
        seed: Of the log's visits; the model learned from others of the same users.
        settings: Of the service, apart from the policy.
    """

    world: WorldSpec
    logging: Candidate
    n_learned: int = 2_000
    n_logged: int = 3_000
    seed: int = 7
    settings: ServiceSettings = QUICK_SETTINGS

    @property
    def key(self) -> str:
        """Return 12 hexadecimal digits of all of it."""
        return blake2b(f"{_VERSION} {self!r}".encode(), digest_size=6).hexdigest()

    @property
    def fixed_world(self) -> WorldSpec:
        """Return the world with the same users and items in every run."""
        return self.world if self.world.seed is not None else replace(self.world, seed=self.seed)


@dataclass(frozen=True, slots=True)
class SampleLog:
    """A sample that is there.

    Attributes:
        sample: What it is.
        folder: Of its archive.
        model: The model that was served, frozen.
    """

    sample: Sample
    folder: Path
    model: ModelSnapshot

    @property
    def config(self) -> Config:
        """Return the configuration of the service that logged it."""
        logging = self.sample.logging
        return build_config(
            self.sample.fixed_world,
            exploration=logging.exploration,
            discovery_share=logging.discovery_share,
            settings=self.sample.settings,
        )


def make_sample(sample: Sample, folder: Path, *, progress: Progress | None = None) -> SampleLog:
    """Return the sample in a folder of its own under `folder`, simulated when it is not there yet.

    Raises:
        OSError: it cannot be written.
    """
    target = folder / f"sample-{sample.key}"
    model_path = target / "model.msgpack"
    if not model_path.is_file():
        partial = folder / f"sample-{sample.key}.partial"
        rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model = learn_model(
            sample.fixed_world,
            exploration=sample.logging.exploration,
            n_decisions=sample.n_learned,
            seed=sample.seed + 1,
            discovery_share=sample.logging.discovery_share,
            settings=sample.settings,
        )
        run_loop(
            sample.fixed_world,
            exploration=sample.logging.exploration,
            discovery_share=sample.logging.discovery_share,
            n_decisions=sample.n_logged,
            seed=sample.seed,
            settings=sample.settings,
            frozen=model,
            archive_folder=partial / "archive",
            on_progress=None if progress is None else lambda done: progress(done, sample.n_logged),
        )
        (partial / "model.msgpack").write_bytes(encode(model))
        rmtree(target, ignore_errors=True)
        partial.rename(target)
        sync_folder(folder)
    return SampleLog(sample, target / "archive", msgspec.msgpack.decode(model_path.read_bytes(), type=ModelSnapshot))


def sample_decisions(log: SampleLog) -> tuple[list[JoinedDecision], set[SlotKey]]:
    """Return the decisions with their outcomes, and the slots that were skipped."""
    decisions = list(archived(log.config, log.folder, surface=SURFACE, model=MODEL))
    return decisions, archived_skips(log.folder, decisions)


def true_values(
    log: SampleLog, candidates: Sequence[Candidate], *, pool: Executor, progress: Progress | None = None
) -> Mapping[Candidate, float]:
    """Return the exact mean reward of a slot under each candidate, with the logged model on the logged visits.

    An explorer of VW has none: it explores by what it learns meanwhile.
    """
    candidates = [one for one in candidates if not isinstance(one.exploration, VwExplorer)]
    waiting = {pool.submit(true_value, log, one): one for one in candidates}
    found = {}
    for future in as_completed(waiting):
        found[waiting[future]] = future.result()
        if progress is not None:
            progress(len(found), len(waiting))
    return {one: found[one] for one in candidates}


def true_value(log: SampleLog, candidate: Candidate) -> float:
    """Return the exact mean reward of a slot under one candidate; no luck of clicks is in it."""
    run = run_loop(
        log.sample.fixed_world,
        exploration=candidate.exploration,
        discovery_share=candidate.discovery_share,
        n_decisions=log.sample.n_logged,
        seed=log.sample.seed,
        settings=log.sample.settings,
        frozen=log.model,
    )
    return run.mean("value")
