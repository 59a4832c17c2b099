"""`hone config`: check the file, change what may change live, look at what was changed."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from service.adapters.embedded_store import running_store
from service.adapters.redis_store import RedisChangeLog, RedisJournal, connect
from service.bootstrap import wall_clock_ms
from service.cli.output import json_text
from service.cli.settings import settings_of
from service.config import Config
from service.config_writer import ConfigWriter
from service.messages import ConfigChange, ConfigOverride

_TIMEOUT_S = 5.0

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Key = Annotated[str, typer.Argument(help="For example surfaces.home.exploration.rate.")]
Reason = Annotated[str, typer.Option(help="Why, for the audit log.")]
T = TypeVar("T")

config_app = typer.Typer(no_args_is_help=True, help="The configuration.")


@config_app.command("check", epilog="Example: hone --config hone.toml config check")
def check(context: typer.Context) -> None:
    """Check the declared configuration and print it as JSON."""
    config = settings_of(context).load()
    safe = msgspec.structs.replace(
        config, salt="(set)" if config.salt else "", artefact_key="(set)" if config.artefact_key else ""
    )
    print(json_text(safe))


@config_app.command("set", epilog="Example: hone config set surfaces.home.exploration.rate 0.05 --reason 'less noise'")
def set_key(
    context: typer.Context,
    key: Key,
    value: Annotated[str, typer.Argument(help="JSON; what is not JSON is text.")],
    reason: Reason = "",
) -> None:
    """Change a key of a surface live: every worker follows within a second, no model is reset."""
    _put(context, key, _parsed(value), reason)


@config_app.command("unset", epilog="Example: hone config unset surfaces.home.exploration")
def unset_key(context: typer.Context, key: Key, reason: Reason = "") -> None:
    """Take back what was set live under a key: the declared value counts again."""
    _put(context, key, None, reason)


@config_app.command("live", epilog="Example: hone config live --json")
def live(context: typer.Context, as_json: AsJson = False) -> None:
    """List what is set live, over which declared value, by whom and when."""
    config = settings_of(context).load()

    async def fetch(writer: ConfigWriter) -> tuple[ConfigOverride, ...]:
        return (await writer.effective()).overrides

    _show(on_config_writer(config, fetch), as_json=as_json)


@config_app.command("log", epilog="Example: hone config log --json")
def log(context: typer.Context, as_json: AsJson = False) -> None:
    """List every live change, oldest first."""
    _show(on_config_writer(settings_of(context).load(), lambda writer: writer.history()), as_json=as_json)


def _put(context: typer.Context, key: str, value: Any, reason: str) -> None:  # noqa: ANN401 - any key's
    async def put(writer: ConfigWriter) -> ConfigChange:
        return await writer.put(key, value, author=getpass.getuser(), reason=reason)

    change = on_config_writer(settings_of(context).load(), put)
    print(f"{key}: {_compact(change.old)} -> {_compact(change.new)}")


def on_config_writer(config: Config, call: Callable[[ConfigWriter], Awaitable[T]]) -> T:
    """Run a call on the writer of the live configuration, in the configured store or the embedded one."""

    async def run(url: str) -> T:
        client = connect(url, timeout_s=_TIMEOUT_S)
        try:
            journal = RedisJournal(client, n_partitions=config.store.partitions)
            return await call(ConfigWriter(config, log=RedisChangeLog(client), journal=journal, clock=wall_clock_ms))
        finally:
            await client.aclose()

    with running_store(config) as url:
        return asyncio.run(run(url))


def _parsed(text: str) -> Any:  # noqa: ANN401 - whatever the JSON holds
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _show(overrides: tuple[ConfigOverride, ...] | list[ConfigOverride], *, as_json: bool) -> None:
    if as_json:
        print(json_text(overrides))
        return
    table = Table("at (unix ms)", "key", "value", "by", "reason")
    for o in overrides:
        value = "(declared)" if o.value is None else _compact(o.value)
        table.add_row(str(o.at_unix_ms), o.key, value, o.author, o.reason)
    Console().print(table)


def _compact(value: object) -> str:
    return msgspec.json.encode(value).decode()
