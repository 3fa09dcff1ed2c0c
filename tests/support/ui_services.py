"""What the tests of this folder know of the services that they share."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from audiorec import stack
from audiorec.settings import Settings, as_toml, load_settings
from audiorec.stack.client import AirflowClient, Run
from audiorec.stack.layout import DAG_ID, Login, airflow_address
from audiorec.stack.watch import watch
from audiorec.store import Manifest, Store
from benchmarks.services import served

FIRST_DAY = date(2026, 11, 18)
"""The date of the first run: five days before the tables end, so that later ones can follow."""

PATIENCE_SECONDS = 1_500
"""A date takes about a minute; this is for a machine that does other things as well."""

KILLED_EPOCHS = 30
"""Epochs of the profile `standard` here: long enough for a checkpoint and a kill; `smoke` has four."""


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IN_CI = os.environ.get("CI", "").lower() == "true"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 120_000

BROWSER_MARKS = [
    pytest.mark.browser,
    pytest.mark.services,
    pytest.mark.timeout(PATIENCE_SECONDS + 300),
    pytest.mark.usefixtures("chromium"),  # first, so that nothing is started without one
    # In CI the fixture fails instead.
    pytest.mark.skipif(
        CHROMIUM is None and not IN_CI, reason="no Chromium on the PATH (Debian: apt-get install chromium)"
    ),
]
"""Of every module of tests that look at pages."""


@dataclass
class Services:
    """The running services, and what tests ask them."""

    settings: Settings
    settings_file: Path
    airflow: str
    account: Login
    client: AirflowClient
    first_day: date
    """Date of the run that most tests look at."""
    runs: dict[str, str] = field(default_factory=dict)
    """Ids of the runs that several tests look at, by the name that the tests give them."""

    @property
    def store(self) -> Store:
        return Store(self.settings.store.uri, self.settings.store.scratch)

    def wait(self, run_id: str, seconds: float = PATIENCE_SECONDS) -> Run:
        return watch(self.client, DAG_ID, run_id, timeout_seconds=seconds)

    def states(self, run_id: str) -> dict[str, str | None]:
        return {ti.task_id: ti.state for ti in self.client.task_instances(DAG_ID, run_id)}

    def result(self, run_id: str, task: str) -> Any:
        return self.client.xcom(DAG_ID, run_id, task)

    def log(self, run_id: str, task: str, try_number: int = 1) -> str:
        return self.client.log(DAG_ID, run_id, task, try_number)

    def manifest(self, run_id: str, task: str) -> Manifest:
        return self.store.read_uri(self.result(run_id, task)["manifest"])

    def run_record(self, run_id: str, task: str) -> dict[str, Any]:
        """The unhashed `run.json` beside a task's manifest: what was said when it was made."""
        manifest = Path(self.result(run_id, task)["manifest"])
        return dict(json.loads((manifest.parent / "run.json").read_text(encoding="utf-8")))

    def versions(self) -> dict[str, Any]:
        """All registered versions by number, as the registry tells them."""
        from audiorec.registry import Registry

        return {version.number: version for version in Registry(self.settings).versions()}

    def champion(self) -> Any:
        from audiorec.registry import CHAMPION, Registry

        return Registry(self.settings).alias(CHAMPION)


@contextmanager
def running(wanted: Settings, home: Path, first_day: date) -> Iterator[Services]:
    """The services of some settings, up and logged in to; they are ended when it is left."""
    file = home / "settings.toml"
    file.write_text(as_toml(wanted), encoding="utf-8")
    settings = load_settings(file)
    with served(settings, file) as client:
        yield Services(settings, file, airflow_address(settings), stack.login(settings), client, first_day)
