"""The lock holds everything that `pyproject.toml` asks for, with all extras, and nothing else."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# pip and venv bring these themselves; `pip freeze` does not list them.
NOT_FROZEN = {"pip", "setuptools"}
# Asked for by jsonschema's extra `format-nongpl`, which cyclonedx-bom wants for a validation that `make audit` leaves
# out. jsonschema imports it if it is there, and it compiles a grammar for two to five seconds: in every process of Airflow
# and in every task that runs Great Expectations.
LEFT_OUT = {"rfc3987-syntax"}


def locked() -> dict[str, str]:
    """Version by canonical name. An AssertionError names a line that is not an exact version."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([\w.-]+)==([\w.+!]+)", line)
        assert match, f"constraints.txt: {line!r} is not NAME==VERSION"
        name = canonicalize_name(match[1])
        assert name not in found, f"constraints.txt: {name} is there twice"
        found[name] = match[2]
    return found


def asked_by_project() -> list[Requirement]:
    texts: list[str] = [*PROJECT["dependencies"], *(text for texts in EXTRAS.values() for text in texts)]
    return [Requirement(text) for text in texts]


def not_met(asked: Iterable[Requirement], lock: dict[str, str]) -> list[str]:
    """What is asked for and is not in the lock, or is there with a version that does not do."""
    problems = []
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        if name not in lock:
            problems.append(f"{requirement} is not in constraints.txt")
        elif not requirement.specifier.contains(lock[name], prereleases=True):
            problems.append(f"{requirement} is asked for, constraints.txt has {name}=={lock[name]}")
    return problems


def test_what_the_project_asks_for_is_locked():
    assert not_met(asked_by_project(), locked()) == []


@pytest.mark.parametrize("text", ["a-package-that-nobody-locked>=1", "duckdb>=99"])
def test_a_new_or_raised_dependency_is_missed_in_the_lock(text: str):
    (problem,) = not_met([Requirement(text)], locked())
    assert text in problem and "constraints.txt" in problem


def test_what_would_slow_every_process_down_is_not_there():
    assert not LEFT_OUT & set(locked())
    for name in LEFT_OUT:
        assert find_spec(name.replace("-", "_")) is None, f"pip uninstall {name}: see LEFT_OUT"


def test_setup_installs_the_lock_and_checks_it():
    makefile = (ROOT / "Makefile").read_text()
    steps = ("--no-deps --no-compile --requirement constraints.txt", "--no-deps --editable .", "pip check")
    found = [makefile.find(step) for step in steps]
    assert -1 not in found and found == sorted(found)


def test_what_is_installed_asks_for_the_lock_and_nothing_else():
    """Setup does not resolve, so what a locked package needs must be in the lock as well."""
    lock = locked()
    waiting = [(r, "pyproject.toml") for r in asked_by_project()]
    reached: set[str] = set()
    seen: set[tuple[str, str]] = set()
    problems: list[str] = []
    while waiting:
        requirement, by = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in NOT_FROZEN | LEFT_OUT:
            continue
        # A torch with CUDA asks for parts that another build of the same version does without.
        if by == "torch" and name not in lock:
            continue
        problems += [f"{by}: {problem}" for problem in not_met([requirement], lock)]
        if name not in lock:
            continue
        reached.add(name)
        try:
            found = version(name)
        except PackageNotFoundError:
            pytest.fail(f"{name} is in the lock and not installed; run `make setup`")
        # Builds of one version differ behind the plus: 2.13.0+cpu.
        if found.split("+")[0] != lock[name]:
            problems.append(f"{name} is installed as {found}, locked as {lock[name]}; run `make setup`")
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in requires(name) or []:
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append((needed, name))
    assert problems == []
    assert set(lock) - reached == set(), "in constraints.txt, and nothing asks for it"
