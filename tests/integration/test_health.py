"""The health of the loop on a real stack: answered, shown as metrics, printed; and the probe set, frozen."""

from __future__ import annotations

import json
import subprocess
import sys

from service.health_probe import probe_path, read_probe
from tests.integration.api import Api
from tests.stack import Stack, eventually


def test_the_health_of_the_loop_is_answered_shown_as_metrics_and_printed(stack: Stack, api: Api) -> None:
    def watched() -> bool:
        return "no_watch" not in [alarm["name"] for alarm in api.call("GET", "/v1/health").body["alarms"]]

    api.recommend()
    eventually(watched, timeout_s=60.0, what="a verdict of the health watch")
    health = api.call("GET", "/v1/health")
    assert health.status == 200
    assert health.body["status"] in ("ok", "warning")
    assert health.body["values"]["learner_lag:films"] < 60.0
    assert b'hone_health_value{name="learner_lag:films"}' in api.call("GET", "/metrics").raw

    command = [sys.executable, "-m", "service", "health"]
    printed = subprocess.run([*command, "--json"], env=stack.environment, capture_output=True, timeout=60, check=False)
    assert printed.returncode == 0, printed.stderr
    assert json.loads(printed.stdout)["values"].keys() >= {"learner_lag:films", "archiver_lag", "reward_silence_s"}


def test_the_probe_set_is_frozen_from_the_archive(stack: Stack, api: Api) -> None:
    api.recommend()

    decisions = stack.data_dir / "archive" / "decisions"
    eventually(lambda: any(decisions.rglob("*.parquet")), timeout_s=60.0, what="an archived decision")
    command = [sys.executable, "-m", "service", "health", "probe"]
    done = subprocess.run(command, env=stack.environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert read_probe(probe_path(stack.data_dir)).contexts
