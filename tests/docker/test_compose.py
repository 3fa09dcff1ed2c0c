"""The image and the compose file, as far as they can be checked without an engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
COMPOSE = (DOCKER / "compose.yaml").read_text()
OURS = {"bucket", "migrated", "mlflow", "api-server", "scheduler", "dag-processor", "triggerer", "worker"} | {
    "watch",
    "serve",
    "metrics",
}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE)["services"]


def test_compose_itself_accepts_the_file(tmp_path: Path):
    command = shutil.which("docker-compose")
    if command is None:
        message = "docker-compose is not there (Debian: apt-get install docker-compose)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    example = (DOCKER / "env.example").read_text()
    filled = tmp_path / "env"
    filled.write_text(re.sub(r"^([A-Z_0-9]+)=$", r"\1=/tmp", example, flags=re.MULTILINE))
    found = subprocess.run(
        [command, "--env-file", str(filled), "-f", str(DOCKER / "compose.yaml"), "config"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert set(yaml.safe_load(found.stdout)["services"]) == OURS | {
        "postgres",
        "redis",
        "s3",
        "statsd-exporter",
        "prometheus",
    }


def test_every_variable_is_in_the_example_and_none_has_a_value_there():
    asked = set(re.findall(r"\$\{(\w+)", COMPOSE))
    lines = [
        line for line in (DOCKER / "env.example").read_text().splitlines() if "=" in line and line[0] != "#"
    ]
    given = dict(line.split("=", 1) for line in lines)
    assert asked == set(given) - {"COMPOSE_PROJECT_NAME"}
    assert not any(value for name, value in given.items() if name != "COMPOSE_PROJECT_NAME"), "no secret here"


def test_nothing_listens_beyond_this_machine_and_nothing_of_ours_is_root(services: dict[str, Any]):
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), (name, port)
        assert ":latest" not in service["image"] and (
            ":" in service["image"] or service["image"] == "audiorec"
        )
        if name in OURS:
            assert (
                service["user"] == "10001:10001" and service["read_only"] and service["cap_drop"] == ["ALL"]
            )


def test_files_that_are_mounted_exist(services: dict[str, Any]):
    for service in services.values():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                assert (DOCKER / volume.split(":")[0]).is_file(), volume


def test_the_image_is_built_from_a_base_that_can_be_given_and_ends_without_root():
    text = (DOCKER / "Dockerfile").read_text()
    assert text.count("FROM ${BASE}") == 2 and re.search(r"^ARG BASE=python:3\.11-\S+$", text, re.MULTILINE)
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE)[-1] == "10001:10001"
    copied = {line.split()[1] for line in text.splitlines() if re.match(r"COPY [a-z]+ ", line)}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert copied <= {line[1:] for line in ignored if line.startswith("!")}
    for folder in copied:
        assert (ROOT / folder).is_dir()
