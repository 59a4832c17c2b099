"""Change the live configuration: checked, entered in the journal for the audit, then given to every worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from service.change_reader import read_stream
from service.config import Config, ConfigError
from service.failpoints import reach
from service.live_config import CONFIG_STREAM, LiveConfig, value_at
from service.messages import ConfigChange, ConfigOverride, encode
from service.ports import ChangeLog, Journal

_decoder = msgspec.msgpack.Decoder(ConfigOverride)


class ConfigWriter:
    """Reads and extends the configuration stream."""

    def __init__(self, declared: Config, *, log: ChangeLog, journal: Journal, clock: Callable[[], int]) -> None:
        self._declared = declared
        self._log = log
        self._journal = journal
        self._clock = clock

    async def history(self) -> list[ConfigOverride]:
        """Return every override that was ever set or removed, oldest first."""
        return [_decoder.decode(entry.payload) async for entry in read_stream(self._log, CONFIG_STREAM)]

    async def effective(self) -> LiveConfig:
        """Return what workers have now; an override that the declared configuration no longer takes is left out."""
        live = LiveConfig(self._declared)
        for override in await self.history():
            try:
                live.apply(override)
            except ConfigError:
                continue
        return live

    async def put(self, key: str, value: Any, *, author: str, reason: str) -> ConfigChange:  # noqa: ANN401 - any key's
        """Set a key, or take its override away with None, and return the entry for the audit.

        Every worker follows within a second.

        Raises:
            ConfigError: the key is not live or the value cannot be used; nothing changed.
        """
        live = await self.effective()
        before = live.current.config
        override = ConfigOverride(key=key, value=value, author=author, at_unix_ms=self._clock(), reason=reason)
        live.apply(override)
        change = ConfigChange(
            at_unix_ms=override.at_unix_ms,
            key=key,
            old=_value(before, key),
            new=_value(live.current.config, key),
            author=author,
            reason=reason,
        )
        reach("config.journal")
        # The journal first: a change that no worker saw is better on record than one that nobody finds.
        await self._journal.append(0, [encode(change)])
        reach("config.publish")
        await self._log.append(CONFIG_STREAM, [encode(override)])
        return change


def _value(config: Config, key: str) -> Any:  # noqa: ANN401 - any key's
    """Return the value of a key; one that has a default and was never written is None."""
    try:
        return value_at(config, key)
    except ConfigError:
        return None
