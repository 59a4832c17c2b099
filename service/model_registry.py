"""Artefacts: trained models that may be promoted. Written once, never changed, verified before anything loads them.

An artefact is kept as files (`models/<model>/<id>/manifest.json`, `model.vw` in the data folder) and in the store,
where every learner finds it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from bandit.learner import Learner
from bandit.policy import ModelSpec
from retrieval.manifest import BundleError, seal, unseal
from service.config import Config
from service.durable_files import sync_folder, write_synced
from service.errors import NotFound
from service.messages import Artefact, encode
from service.ports import ModelStore

_log = structlog.get_logger("hone.models")

_SCHEMA = 1
_MANIFEST, _WORKSPACE = "manifest.json", "model.vw"


class ArtefactError(ValueError):
    """An artefact is damaged, wrongly signed, or does not fit the configuration."""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One off-policy figure.

    Attributes:
        value: The estimate; None when nothing supports one.
        low: Lower end of its interval; None where it has none.
        high: Upper end.
        refusal: Why it must not be used; empty when it may be.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    refusal: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an artefact is and where it came from.

    Attributes:
        artefact: Its id.
        model: The model it was trained for.
        kind: `retrained`, `warm` (from interactions without propensities) or `predecessor` (saved at a promotion).
        parent: Artefact that the model went on from when this one was made; empty for none.
        arguments: VW command line.
        bits: log2 of the table size.
        schema_version: Of the features it was trained on.
        created_at: ISO 8601 in UTC.
        warm: Whether its rows had no propensities; its scores then say nothing about a logging policy.
        weighting: Of the training rows.
        clip: Largest importance weight.
        passes: How often the rows were learned.
        from_ms: First decision time that may have been trained on.
        to_ms: End of those times; evidence for a promotion is later than this.
        n_rows: Outcomes of one pass.
        n_searched: Configurations that were compared on the same evidence.
        scores: Off-policy figures on the later window, by name.
        workspace_sha256: Of the serialised workspace.
    """

    artefact: str
    model: str
    kind: str
    parent: str
    arguments: list[str]
    bits: int
    schema_version: str
    created_at: str
    workspace_sha256: str
    warm: bool = False
    weighting: str = ""
    clip: float = 0.0
    passes: int = 0
    from_ms: int = 0
    to_ms: int = 0
    n_rows: int = 0
    n_searched: int = 1
    scores: dict[str, Score] = {}
    schema: int = _SCHEMA

    @property
    def created_at_ms(self) -> int:
        """Return when it was made, in unix milliseconds; the manifest knows whole seconds."""
        return int(datetime.fromisoformat(self.created_at).timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class OpenedArtefact:
    """A verified artefact.

    Attributes:
        manifest: What it is.
        workspace: The serialised VW workspace.
        checksum: SHA-256 of the stored bytes, which a promotion names.
    """

    manifest: Manifest
    workspace: bytes
    checksum: str


def artefact_id(workspace: bytes, *, at_ms: int) -> str:
    """Return an id that sorts by time and names the content: `20261123T001500-1a2b3c4d`."""
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return f"{at:%Y%m%dT%H%M%S}-{hashlib.sha256(workspace).hexdigest()[:8]}"


def utc_text(at_ms: int) -> str:
    """Return ISO 8601 in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")


def build_artefact(manifest: Manifest, workspace: bytes, *, hmac_key: bytes | None) -> bytes:
    """Return the stored form, with checksum and, given a key, signature."""
    return encode(Artefact(manifest=seal(msgspec.to_builtins(manifest), hmac_key), workspace=workspace))


def open_artefact(stored: bytes, *, hmac_key: bytes | None) -> OpenedArtefact:
    """Verify an artefact and return it; VW has not seen a byte of it yet.

    Raises:
        ArtefactError: it is damaged, of another schema, or not signed with the key.
    """
    try:
        artefact = msgspec.msgpack.decode(stored, type=Artefact)
        manifest = msgspec.convert(unseal(artefact.manifest, hmac_key, what="artefact"), Manifest)
    except (msgspec.MsgspecError, BundleError) as error:
        raise ArtefactError(f"artefact cannot be used: {error}") from error
    found = hashlib.sha256(artefact.workspace).hexdigest()
    if found != manifest.workspace_sha256 or manifest.schema != _SCHEMA:
        raise ArtefactError(
            f"artefact {manifest.artefact} must be of schema {_SCHEMA} with workspace {manifest.workspace_sha256}, "
            f"got schema {manifest.schema} with workspace {found}"
        )
    return OpenedArtefact(manifest, artefact.workspace, hashlib.sha256(stored).hexdigest())


def misfit(manifest: Manifest, spec: ModelSpec) -> str:
    """Return why a model of this shape cannot go on from an artefact, empty when it can.

    The learning rate and its decay may differ: online learning goes on at the configured ones.
    """
    wanted = {"bits": spec.bits, "schema_version": spec.schema_version, "arguments": _shape(spec.arguments())}
    found = {"bits": manifest.bits, "schema_version": manifest.schema_version, "arguments": _shape(manifest.arguments)}
    return "; ".join(
        f"{name} must be {wanted[name]}, got {found[name]}" for name in wanted if wanted[name] != found[name]
    )


def load_learner(opened: OpenedArtefact, spec: ModelSpec) -> Learner:
    """Return a learner that goes on from an artefact.

    Raises:
        ArtefactError: it does not fit the model.
    """
    reason = misfit(opened.manifest, spec)
    try:
        if not reason:
            return Learner(spec, opened.workspace)
    except ValueError as error:
        reason = str(error)
    raise ArtefactError(f"artefact {opened.manifest.artefact}: {reason}")


class ModelRegistry:
    """The artefacts of one installation.

    Args:
        config: where files are, and the key that signs.
        models: the store.
    """

    def __init__(self, config: Config, models: ModelStore) -> None:
        self._root = config.data_path / "models"
        self._key = config.artefact_key.encode() or None
        self._models = models

    async def add(self, manifest: Manifest, workspace: bytes) -> OpenedArtefact:
        """Write an artefact to its folder and publish it to the store."""
        stored = build_artefact(manifest, workspace, hmac_key=self._key)
        _write(self._root / manifest.model / manifest.artefact, msgspec.msgpack.decode(stored, type=Artefact))
        await self._models.put_artefact(manifest.model, manifest.artefact, stored)
        return open_artefact(stored, hmac_key=self._key)

    async def open(self, model: str, artefact: str) -> OpenedArtefact:
        """Return an artefact of the store.

        Raises:
            NotFound: there is none of that id.
            ArtefactError: it cannot be used.
        """
        stored = await self._models.load_artefact(model, artefact)
        if stored is None:
            known = ", ".join(await self._models.artefact_ids(model)) or "none"
            raise NotFound(f"model {model!r} has no artefact {artefact!r}, known are {known}")
        return open_artefact(stored, hmac_key=self._key)

    async def manifests(self, model: str) -> list[Manifest]:
        """Return the manifests of a model's artefacts, oldest first; one that cannot be used is logged and left out."""
        found = []
        for artefact in await self._models.artefact_ids(model):
            try:
                found.append((await self.open(model, artefact)).manifest)
            except ArtefactError as error:
                _log.warning("models.artefact_unusable", model=model, artefact=artefact, error=str(error))
        return sorted(found, key=lambda manifest: (manifest.created_at, manifest.artefact))


def _shape(arguments: list[str]) -> list[str]:
    """Return the arguments without the learning rate and its decay."""
    rates = [place for place, word in enumerate(arguments) if word in ("-l", "--power_t")]
    return [word for place, word in enumerate(arguments) if place not in rates and place - 1 not in rates]


def _write(folder: Path, artefact: Artefact) -> None:
    """Write both files and rename the folder into place: a crash leaves all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".new-{folder.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    files: Mapping[str, bytes] = {_MANIFEST: artefact.manifest, _WORKSPACE: artefact.workspace}
    for name, content in files.items():
        write_synced(fresh / name, content)
    if folder.exists():
        shutil.rmtree(fresh)
        return
    sync_folder(fresh)
    fresh.rename(folder)
    sync_folder(folder.parent)
