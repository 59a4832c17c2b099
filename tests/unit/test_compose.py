"""The compose file and the image: what can be known of them without a container engine."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
# First words of real `hone` commands.
HONE_COMMANDS = {"serve", "api", "learn", "archive", "data", "items", "users"}
LONG_RUNNING = {"api": "api", "learner": "learn", "archiver": "archive"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return compose["services"]


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile in order, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def final_stage(instructions: list[tuple[str, str]]) -> list[tuple[str, str]]:
    last = max(position for position, (name, _) in enumerate(instructions) if name == "FROM")
    return instructions[last:]


def hone_commands(service: dict[str, Any]) -> list[list[str]]:
    """Arguments of `hone` that a service runs, one list a run."""
    if "entrypoint" not in service:
        return [service["command"]]
    assert service["entrypoint"] == ["sh", "-ec"], "a script must stop at its first failing line"
    (script,) = service["command"]
    runs = [shlex.split(line) for line in script.splitlines() if line.strip()]
    assert all(run[0] == "hone" for run in runs)
    return [run[1:] for run in runs]


def ours(services: dict[str, Any]) -> dict[str, Any]:
    return {name: service for name, service in services.items() if name != "redis"}


def test_services_are_the_store_the_preparation_and_one_per_process(services):
    assert set(services) == {"redis", "prepare", "api", "learner", "archiver"}


def test_every_command_starts_with_a_hone_command(services):
    for name, service in ours(services).items():
        for arguments in hone_commands(service):
            assert arguments[0] in HONE_COMMANDS, f"{name} runs hone {arguments}"
            assert all(isinstance(argument, str) for argument in arguments)


@pytest.mark.parametrize(("service", "command"), LONG_RUNNING.items())
def test_each_process_runs_its_own_command_and_is_restarted(services, service, command):
    assert services[service]["command"][0] == command
    assert services[service]["restart"] == "unless-stopped"


def test_preparation_fetches_prepares_then_imports_and_runs_once(services):
    runs = [arguments[:2] for arguments in hone_commands(services["prepare"])]
    assert runs == [["data", "fetch"], ["data", "prepare"], ["items", "import"], ["users", "import"]]
    assert services["prepare"]["restart"] == "no"


def test_store_syncs_every_write_in_a_format_that_any_server_reads_and_evicts_nothing(services):
    command = services["redis"]["command"]
    assert all(isinstance(word, str) for word in command), "an unquoted yes or no is a boolean in YAML"
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options == {
        "--appendonly": "yes",
        "--appendfsync": "always",
        "--aof-use-rdb-preamble": "no",
        "--maxmemory-policy": "noeviction",
    }
    assert services["redis"]["restart"] == "unless-stopped"


def test_every_process_uses_the_same_store_and_the_same_data_folder(services):
    for service in ours(services).values():
        assert service["environment"] == {"HONE_REDIS_URL": "redis://redis:6379/0", "HONE_DATA_DIR": "/data"}
        assert service["volumes"] == ["data:/data"]


def test_volumes_that_are_declared_are_those_that_are_used(compose, services):
    mounted = [volume.split(":")[0] for service in services.values() for volume in service["volumes"]]
    assert set(mounted) == set(compose["volumes"])
    assert services["redis"]["volumes"] == ["store:/data"]


def test_processes_start_after_a_healthy_store_and_a_finished_preparation(services):
    assert services["prepare"]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    for name in LONG_RUNNING:
        assert services[name]["depends_on"] == {
            "redis": {"condition": "service_healthy"},
            "prepare": {"condition": "service_completed_successfully"},
        }


def test_only_what_listens_has_a_health_check(services):
    assert services["redis"]["healthcheck"]["test"] == ["CMD-SHELL", "valkey-cli ping | grep -q PONG"]
    assert "healthcheck" not in services["api"], "it inherits the image's"
    for name in ("prepare", "learner", "archiver"):
        assert services[name]["healthcheck"] == {"disable": True}


def test_only_the_api_is_published_and_only_on_this_machine(services):
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:${HONE_PORT:-8080}:8080"]}
    assert services["api"]["command"][1:] == ["--host", "0.0.0.0", "--port", "8080"]


def test_processes_have_no_extra_rights(services):
    for service in ours(services).values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_image_does_not_run_as_root(instructions):
    users = [value for name, value in final_stage(instructions) if name == "USER"]
    assert users, "the final stage names no user"
    assert all(int(part) > 0 for part in users[-1].split(":"))


def test_image_installs_dependencies_by_hash_and_leaves_the_compiler_behind(instructions):
    runs = [value for name, value in instructions if name == "RUN"]
    assert any("--require-hashes -r requirements.lock" in run for run in runs)
    assert not any("g++" in value for _, value in final_stage(instructions))


def test_image_runs_hone_and_checks_its_health_on_the_port_it_exposes(instructions):
    stage = dict(final_stage(instructions))
    assert json.loads(stage["ENTRYPOINT"]) == ["hone"]
    assert stage["EXPOSE"] == "8080"
    assert "HONE_DATA_DIR=/data" in stage["ENV"].split()
    program, flag, code = json.loads(stage["HEALTHCHECK"].partition("CMD ")[2])
    assert (program, flag) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert "/healthz" in code
    assert "'8080'" in code


def test_what_the_image_copies_reaches_the_build(instructions):
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in patterns
    kept = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    copied = {
        source
        for name, value in instructions
        if name == "COPY" and not value.startswith("--from=")
        for source in value.split()[:-1]
    }
    assert copied == kept


def test_every_package_is_in_the_image(instructions):
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    copied = {value.split()[0] for name, value in instructions if name == "COPY"}
    assert packages <= copied
