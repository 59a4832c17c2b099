"""Go on from a promoted artefact at its promotion's place in the journal, and keep what it replaced."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec
import structlog

from bandit.joining import Position
from bandit.learner import Learner
from service.config import Config
from service.failpoints import reach
from service.journal_reader import entry_id_of
from service.messages import Promotion
from service.model_registry import ArtefactError, Manifest, build_artefact, load_learner, open_artefact, utc_text
from service.ports import ModelStore

# Tags are stored as they are: what does not contain this is no promotion, and need not be decoded.
_TAG = b"promotion"

_decoder = msgspec.msgpack.Decoder(Promotion)
_log = structlog.get_logger("hone.learn")


class Adoptions:
    """The promotions of one model, as its learner meets them.

    Artefacts never change, and what is adopted follows from the entry and them: a learner that comes to the same entry
    again, after a crash, goes on from the same model.

    Attributes:
        artefact: Id of the artefact that the model goes on from; empty when it began from nothing.
    """

    def __init__(self, config: Config, model: str, models: ModelStore) -> None:
        self.artefact = ""
        self._key = config.artefact_key.encode() or None
        self._model = model
        self._models = models
        self._fetched: dict[str, bytes | None] = {}
        self._replaced: dict[str, bytes] = {}

    async def fetch(self, payloads: Iterable[bytes]) -> None:
        """Fetch the artefacts that entries name, before the first of them is applied."""
        self._fetched = {}
        for payload in payloads:
            if _TAG not in payload:
                continue
            try:
                promotion = _decoder.decode(payload)
            except msgspec.MsgspecError:
                continue
            if promotion.model == self._model:
                reach("learner.artefact")
                stored = await self._models.load_artefact(self._model, promotion.artefact)
                self._fetched[promotion.artefact] = stored

    def adopt(self, promotion: Promotion, position: Position, learner: Learner) -> Learner | None:
        """Return the learner that goes on from a fetched artefact, None (logged) when it cannot be used."""
        # Not taken out: a later entry of the same batch may name the same artefact.
        stored = self._fetched.get(promotion.artefact)
        try:
            if stored is None or hashlib.sha256(stored).hexdigest() != promotion.checksum:
                raise ArtefactError(f"artefact {promotion.artefact} is not there with checksum {promotion.checksum}")
            adopted = load_learner(open_artefact(stored, hmac_key=self._key), learner.spec)
        except ArtefactError as error:
            _log.error("learn.promotion_refused", model=self._model, position=position, error=str(error))
            return None
        name = predecessor_id(position)
        self._replaced[name] = self._describe(name, position, learner)
        adopted.n_learned, adopted.loss_sum = learner.n_learned, learner.loss_sum
        self.artefact = promotion.artefact
        _log.info("learn.promoted", model=self._model, artefact=promotion.artefact, replaced=name)
        return adopted

    async def store_replaced(self) -> None:
        """Store the models that were replaced, so that each can be gone back to.

        What replaced them is published by then: that the predecessor is there says that a promotion is served.
        """
        while self._replaced:
            name, stored = next(iter(self._replaced.items()))
            await self._models.put_artefact(self._model, name, stored)
            reach("learner.adopted")
            del self._replaced[name]

    def _describe(self, name: str, position: Position, learner: Learner) -> bytes:
        workspace = learner.serialize()
        manifest = Manifest(
            artefact=name,
            model=self._model,
            kind="predecessor",
            parent=self.artefact,
            arguments=learner.spec.arguments(),
            bits=learner.spec.bits,
            schema_version=learner.spec.schema_version,
            created_at=utc_text(position[0]),
            workspace_sha256=hashlib.sha256(workspace).hexdigest(),
            # It has learned of decisions up to here: evidence for or against it is later.
            to_ms=position[0] + 1,
            n_rows=learner.n_learned,
        )
        return build_artefact(manifest, workspace, hmac_key=self._key)


def predecessor_id(position: Position) -> str:
    """Return the id under which the model before a promotion is kept."""
    return f"before-{entry_id_of(position)}-p{position[1]}"
