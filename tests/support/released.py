"""Fixtures: an MLflow server like the stack's own, and two dates of the tiny chain, ready to be promoted."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from mlflow import MlflowClient

from audiorec.chain import CHAIN
from audiorec.champion import Bundle, describe
from audiorec.runner import Resolver, run_task
from audiorec.settings import load_settings
from audiorec.stack.control import components
from audiorec.store import Manifest, Store
from audiorec.taskio import Inputs

if TYPE_CHECKING:
    from conftest import Chain


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server, started by the command that `audiorec up` uses; 6 s."""
    home, port = tmp_path_factory.mktemp("mlflow"), free_port()
    uri = f"http://127.0.0.1:{port}"
    settings = load_settings(services={"home": str(home), "mlflow_port": port}, mlflow={"uri": uri})
    (home / "mlflow").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            components(settings)["mlflow"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 120
        while not _answers(uri):
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < until, "MLflow did not come up\n" + (home / "log").read_text()
            time.sleep(0.1)
        yield uri
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)


def _answers(uri: str) -> bool:
    try:
        return httpx.get(f"{uri}/health", timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def mlflow_client(mlflow_uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=mlflow_uri, registry_uri=mlflow_uri)


@dataclass(frozen=True)
class Releases:
    """A store with everything but `promote` done for two dates; tests work on copies of it."""

    chain: Chain
    work: Path
    settings_of: Callable[..., Any]
    extracts: dict[date, str] = field(default_factory=dict)
    """Fingerprint of each date's extract."""

    @property
    def dates(self) -> tuple[date, date]:
        return self.chain.as_of, self.chain.as_of + timedelta(days=1)

    def copy(self, work: Path, **groups: dict[str, Any]) -> Any:
        """Settings over a copy of the store: hard links, as a stored file is never written again."""
        shutil.copytree(self.work / "store", work / "store", copy_function=os.link)
        return self.settings(work, **groups)

    def settings(self, work: Path | None = None, **groups: dict[str, Any]) -> Any:
        """Settings over the store itself (to read it only), or over the one below `work`."""
        return self.settings_of(Path(self.chain.settings.source.uri), work or self.work, **groups)

    def inputs(self, as_of: date, settings: Any = None, **instead: Any) -> Inputs:
        """What promote reads for a date; `instead` puts other manifests in the place of some."""
        resolver = Resolver(settings or self.settings(), as_of)
        manifests = {
            task: instead[task] if task in instead else resolver.need(task)
            for task in CHAIN["promote"].inputs
        }
        return Inputs(as_of, resolver.store, manifests)

    def result(self, settings: Any, as_of: date, task: str) -> Manifest:
        """One task's result under other settings."""
        return Resolver(settings, as_of).need(task)

    def bundle(self, as_of: date) -> Bundle:
        inputs = self.inputs(as_of)
        return Bundle.load(inputs.store, describe(as_of, dict(inputs)))

    @property
    def store(self) -> Store:
        settings = self.settings()
        return Store(settings.store.uri, settings.store.scratch)


@pytest.fixture(scope="session")
def releases(tiny_chain: Chain, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Releases:
    """The tiny chain's date taken on to `build_index`, and the day after it; 10 s."""
    work = tmp_path_factory.mktemp("releases")
    shutil.copytree(tiny_chain.settings.store.uri, work / "store", copy_function=os.link)
    found = Releases(tiny_chain, work, tiny.settings)
    settings = found.settings()
    for as_of in found.dates:
        found.extracts[as_of] = Resolver(settings, as_of).fingerprint("extract")
        for task in CHAIN:
            # The verdict on the data is no input of a release; its Data Docs would take a third of the time.
            if task not in ("validate", "promote"):
                run_task(task, settings, as_of, extract=found.extracts[as_of] if task != "extract" else None)
    return found
