"""What tests of several rooms share: small sample tables, and one run of the chain over them.

`tiny_source` and `tiny_chain` are made once a session (about 15 s on 2 cores, most of it imports and text
vectors). Tests may read them in any way but must write nothing into them; a test that changes tables or a
store makes its own with `tiny_settings`.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from xdist.scheduler.loadscope import LoadScopeScheduling

# A second thread gains nothing on tables this small, and equal bytes are promised for equal threads only.
torch.set_num_threads(1)
# ranx' first call would compile for a minute; as plain Python it says the same of short lists. Before numba is imported.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
_SCREENSHOTS = os.environ.get("SCREENSHOTS")
# Settings of whoever runs the tests must not reach them.
for _name in [name for name in os.environ if name.startswith("AUDIOREC_")]:
    del os.environ[_name]

TINY_AS_OF = date(2026, 11, 20)
"""Three days before the tables end, so that every run meets rows that lie after its date."""

TINY_TASKS = (
    "extract",
    "validate",
    "embed_text",
    "embed_music",
    "build_graph",
    "train_hgnn",
    "train_two_tower",
    "evaluate",
)
"""The tasks that need no service, in the order of the chain."""

NO_MLFLOW = "http://127.0.0.1:9"
"""Nothing listens on the discard port: MLflow is away, and the trainings have to do without it."""


def merged(*layers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Groups of settings, later ones over earlier ones, field by field."""
    found: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for group, fields in layer.items():
            found[group] = {**found.get(group, {}), **fields}
    return found


TINY_GROUPS: dict[str, dict[str, Any]] = {
    **tomllib.loads((Path(__file__).parents[1] / "benchmarks" / "chaos" / "tiny.toml").read_text()),
    "mlflow": {"uri": NO_MLFLOW},
    "resources": {name: {"threads": 1} for name in (*TINY_TASKS, "refresh", "build_index", "promote")},
}


def tiny_settings(source: Path, work: Path, **groups: dict[str, Any]) -> Any:
    """Settings of the tiny chain over `source`, with a store under `work`; `groups` over `TINY_GROUPS`."""
    from audiorec.settings import load_settings

    places = {
        "source": {"uri": str(source)},
        "store": {"uri": str(work / "store"), "scratch": str(work / "scratch")},
        # One key for all: stores that are compared, or copied, name their users alike.
        "privacy": {"key_file": str(Path(__file__).parent / "support" / "user-ids.key")},
    }
    return load_settings(profile="smoke", **merged(TINY_GROUPS, places, groups))


LONGEST_FIRST = (
    "tests/ui/",
    "tests/ui_real/",
    "tests/experiments/",
    "tests/stack/",
    "tests/release/",
    "tests/tasks/",
)
"""Folders whose files come first: a long file that is begun last keeps one worker busy while the others wait."""


class ByFile(LoadScopeScheduling):
    """A worker takes a file at a time; tests/ui is one piece, because its files look at the same running Airflow."""

    def _split_scope(self, nodeid: str) -> str:
        return LONGEST_FIRST[0] if nodeid.startswith(LONGEST_FIRST[0]) else nodeid.split("::", 1)[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """The workers' scheduler, in place of `--dist loadfile`."""
    config.option.loadscopereorder = (
        False  # It would begin with the files of most tests, which are quick ones.
    )
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the long folders to the front; within them, and after them, the order stays."""

    def place(item: pytest.Item) -> int:
        return next(
            (number for number, folder in enumerate(LONGEST_FIRST) if item.nodeid.startswith(folder)),
            len(LONGEST_FIRST),
        )

    items.sort(key=place)


@dataclass(frozen=True)
class Chain:
    """One run of the chain: its settings, and each task's result as the launcher reads it."""

    settings: Any
    as_of: date
    results: dict[str, dict[str, Any]]

    @property
    def store(self) -> Any:
        from audiorec.store import Store

        return Store(self.settings.store.uri, self.settings.store.scratch)

    def manifest(self, task: str) -> Any:
        return self.store.read_uri(self.results[task]["manifest"])

    def open(self, task: str, name: str) -> Path:
        return self.store.open(self.manifest(task), name)

    def inputs(self, *tasks: str) -> Any:
        """The results of some tasks as a task's inputs."""
        from audiorec.taskio import Inputs

        return Inputs(self.as_of, self.store, {task: self.manifest(task) for task in tasks})

    def extract(self) -> Any:
        from audiorec.catalogue import load_extract

        return load_extract(self.settings, self.inputs("extract"))


def run_chain(
    settings: Any, as_of: date = TINY_AS_OF, tasks: tuple[str, ...] = TINY_TASKS, **options: Any
) -> Chain:
    """Run tasks one after the other in this process; a critical verdict is an error."""
    from audiorec.runner import run_task

    results = {}
    for task in tasks:
        results[task] = run_task(task, settings, as_of, **options)
        assert not results[task]["failure"], results[task]["failure"]
    return Chain(settings, as_of, results)


def tiny_environment(settings: Any) -> dict[str, str]:
    """The same settings as environment variables, for a task that runs as a process of its own."""
    import json

    found = {"AUDIOREC_SOURCE__URI": settings.source.uri}
    places = {"store": settings.store.model_dump(), "privacy": settings.privacy.model_dump()}
    for group, fields in merged(TINY_GROUPS, places).items():
        for field, value in fields.items():
            text = value if isinstance(value, str) else json.dumps(value)
            found[f"AUDIOREC_{group}__{field}".upper()] = text
    return found


class Tiny:
    """The helpers above, by fixture: tests cannot import a conftest."""

    tasks = TINY_TASKS
    as_of = TINY_AS_OF
    no_mlflow = NO_MLFLOW
    settings = staticmethod(tiny_settings)
    run = staticmethod(run_chain)
    environment = staticmethod(tiny_environment)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands look for services, and for what they were last started with, in ./.audiorec: not in that of a demo here."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def tiny() -> type[Tiny]:
    return Tiny


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulator's preset `tiny` with more listeners, dirt included: 2026-10-10 to 2026-11-23, hive folders."""
    from audiorec.simulator import preset, write_source_tables

    folder = tmp_path_factory.mktemp("tiny") / "source"
    config = preset("tiny", n_users=700, audiobook_starts=14.0, adopted_at_start=0.8, music_plays=0.4)
    write_source_tables(config, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_chain(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The tasks of `TINY_TASKS`, run once."""
    return run_chain(tiny_settings(tiny_source, tmp_path_factory.mktemp("tiny_chain")))


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders where screenshots go: one of pytest's own, and the one that the variable SCREENSHOTS names."""
    folders = [tmp_path_factory.mktemp("screenshots"), *([Path(_SCREENSHOTS)] if _SCREENSHOTS else [])]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return folders
