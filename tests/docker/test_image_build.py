"""What `make image` decides before it builds and runs anything: pip's settings, addresses, what an image may hold."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = (ROOT / "docker" / "compose.yaml").read_text()
PORTS = {
    name: 20000 + number
    for number, name in enumerate(
        (
            "postgres",
            "redis",
            "s3",
            "mlflow",
            "api-server",
            "serve",
            "metrics",
            "worker log",
            "triggerer log",
        )
    )
}


@pytest.fixture(scope="module")
def image() -> ModuleType:
    spec = importlib.util.spec_from_file_location("image_build", ROOT / "docker" / "image.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pip_finds_in_the_build_what_it_finds_here(image: ModuleType, tmp_path: Path):
    index = tmp_path / "index" / "simple"
    index.mkdir(parents=True)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    listed = (
        f"global.find-links='{tmp_path}/elsewhere'\nglobal.extra-index-url='{index.as_uri()} https://example.org/simple'\n"
        f":env:.find-links='{wheels}'\n:env:.default-timeout='180'\n"
    )
    settings = image.pip_settings(listed)
    assert settings == {
        "find-links": str(wheels),
        "extra-index-url": f"{index.as_uri()} https://example.org/simple",
        "default-timeout": "180",
    }
    assert image.local_files(settings) == [index.parent, wheels]


def test_every_part_keeps_to_loopback_and_has_a_check(image: ModuleType):
    parts = image.compose_on_loopback(COMPOSE, PORTS, image.values_for("word"))
    assert len(parts) == 11
    fixed = re.compile(r"0\.0\.0\.0|(?<![\w.])(?:postgres|redis|s3|mlflow|serve|api-server):\d|\$\{")
    for name, part in parts.items():
        told = yaml.safe_dump(
            {key: part[key] for key in ("command", "environment", "healthcheck") if key in part}
        )
        assert not fixed.search(told), (name, fixed.search(told))
        assert name in image.HELPERS | {"watch"} or part["healthcheck"]["test"], name


def test_an_address_that_is_not_followed_is_said(image: ModuleType):
    with pytest.raises(image.Failed, match=r"docker/image\.py has to follow"):
        image.compose_on_loopback(COMPOSE.replace("http://s3:9000", "http://objects:9000"), PORTS, {})


@pytest.mark.parametrize(
    ("test", "command"),
    [
        (["CMD", "redis-cli", "ping"], ["redis-cli", "ping"]),
        (["CMD-SHELL", "echo $$(id -u)"], ["/bin/sh", "-c", "echo $(id -u)"]),
    ],
)
def test_health_checks_are_read_as_compose_reads_them(image: ModuleType, test: list[str], command: list[str]):
    assert image.words(test) == command


def test_what_an_image_must_not_hold_is_found(image: ModuleType, tmp_path: Path):
    for folder in ("opt/audiorec/bin", "opt/app", "etc", "root", "home", "var/lib/audiorec", "usr/bin"):
        (tmp_path / folder).mkdir(parents=True)
    found_in = partial(image.contents_problems, tmp_path, owner=os.getuid())
    assert found_in() == []
    (tmp_path / "usr/bin/gcc").write_text("")
    (tmp_path / "opt/app/docker.key").write_text("secret")
    (tmp_path / "etc/pip.conf").write_text("[global]")
    (tmp_path / "etc/netrc").write_text("")
    (tmp_path / "opt/wheels").mkdir()
    problems = found_in()
    assert len(problems) == 4
    for found in ("usr/bin/gcc", "opt/app/docker.key", "etc/pip.conf", "opt/wheels"):
        assert any(problem.endswith(found) for problem in problems), found


def test_the_executor_of_the_cluster_can_be_loaded():
    """Airflow says only that it could not be loaded, and only when a scheduler starts."""
    module = importlib.import_module("airflow.providers.celery.executors.celery_executor")
    executor = re.search(r"AIRFLOW__CORE__EXECUTOR: (\w+)", COMPOSE)
    assert executor is not None and hasattr(module, executor[1])
