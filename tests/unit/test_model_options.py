"""What the commands about models refuse before they touch anything, and that they name the option."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.cli.output import unix_ms
from service.cli.retrain import _configurations
from service.errors import InvalidRequest


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["promote", "a", "--stage", "all"], "--stage"),
        (["promote", "a", "--watch-s", "-1"], "--watch-s"),
        (["promote", "a", "--every-s", "0"], "--every-s"),
        (["retrain", "--model", "films", "--weights", "mtr"], "--weights"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(arguments: list[str], option: str) -> None:
    done = CliRunner().invoke(app, arguments, env={"NO_COLOR": "1", "TERM": "dumb"})
    assert done.exit_code == 2
    assert option in done.output


def test_a_time_that_is_none_is_refused_by_name() -> None:
    assert unix_ms("--from", "1970-01-01T00:00:01") == 1_000
    with pytest.raises(ValueError, match="--from must be an ISO time"):
        unix_ms("--from", "yesterday")


def test_a_file_of_configurations_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text('[{"learning_rate": 0.1, "interactions": [], "clip": 0.5}]')
    with pytest.raises(InvalidRequest, match=r"--configurations .*some.json: clip must be in"):
        _configurations(path)
