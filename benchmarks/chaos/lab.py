"""What the experiments share: source tables, stores, tasks as processes, a reference that nothing disturbed.

A task is started as people start it (`Place.start`: `python -m tasks.NAME`). Where an experiment needs hundreds of
them, `Place.fork` runs the same command line in a process forked from one that has imported the libraries already.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx

from audiorec.chain import CHAIN
from audiorec.errors import Corrupt
from audiorec.fingerprint import digest
from audiorec.settings import Settings, as_toml, load_settings
from audiorec.stack.control import components
from audiorec.stack.servers import free_ports
from audiorec.store import Manifest, Store

AS_OF = date(2026, 11, 20)
"""Three days before the tables end, so that every run meets rows that lie after its date."""
DAY = timedelta(days=1)
TINY: dict[str, Any] = tomllib.loads((Path(__file__).parent / "tiny.toml").read_text(encoding="utf-8"))
BESIDE = {"extract": ("interactions",), "embed_text": ("text_vectors",), "validate": ("data_docs",)}
"""Datasets that a task writes beside its own."""
NO_MLFLOW = "http://127.0.0.1:9"
BEFORE_PROMOTE = tuple(name for name in CHAIN if name != "promote")

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    # Equal bytes are promised for equal threads only, and a second one gains nothing on tables this small.
    os.environ.setdefault(_variable, "1")

ROOT = Path(__file__).parents[2]
PRODUCT = ("audiorec", "dags", "expectations", "models", "serving", "sql", "tasks")

_FORKS = multiprocessing.get_context("forkserver")


def product_digest() -> str:
    """Of every file of the product that can change what a task does, and of the tiny chain's settings."""
    files = [Path(__file__).parent / "tiny.toml"]
    for package in PRODUCT:
        files += [path for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".sql", ".toml")]
    return digest(
        {str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    )


def tiny_tables(folder: Path) -> Path:
    """Write the simulator's preset `tiny` with more listeners, dirt included: 2026-10-10 to 2026-11-23; 3 s."""
    from audiorec.simulator import preset, write_source_tables

    config = preset("tiny", n_users=700, audiobook_starts=14.0, adopted_at_start=0.8, music_plays=0.4)
    write_source_tables(config, folder)
    return folder


@dataclass(frozen=True)
class Ended:
    """How a task's process ended, and what it said."""

    code: int
    seconds: float
    output: str
    result: dict[str, Any] | None

    @property
    def uncaught(self) -> bool:
        """An error that nobody expected: a traceback, or an exit code that means one."""
        return self.code == 1 or "Traceback (most recent call last)" in self.output


@dataclass(frozen=True)
class Place:
    """Settings with a store of their own."""

    folder: Path
    settings: Settings

    @property
    def file(self) -> Path:
        return self.folder / "settings.toml"

    @property
    def store(self) -> Store:
        return Store(self.settings.store.uri, self.settings.store.scratch)

    @property
    def store_folder(self) -> Path:
        return Path(self.settings.store.uri)

    def environment(self) -> dict[str, str]:
        """Ours, without any setting of the project but the file."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AUDIOREC_")}
        return kept | {"AUDIOREC_SETTINGS": str(self.file)}

    def command(self, task: str, as_of: date, *more: str) -> list[str]:
        return [sys.executable, "-m", CHAIN[task].module, *self.arguments(as_of, *more)]

    def arguments(self, as_of: date, *more: str) -> list[str]:
        return ["--as-of", as_of.isoformat(), "--settings", str(self.file), *more]

    def start(self, task: str, as_of: date, *more: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a task as people do; what it prints goes to a file."""
        with (log or self.folder / f"{task}.log").open("wb") as output:
            return subprocess.Popen(
                self.command(task, as_of, *more),
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def task(self, task: str, as_of: date, *more: str) -> Ended:
        """Run a task to its end as a process of its own."""
        began = time.monotonic()
        code = self.start(task, as_of, *more).wait()
        return _ended(code, time.monotonic() - began, self.folder / f"{task}.log")

    def fork(
        self,
        tasks: str,
        as_of: date,
        *more: str,
        around: Callable[..., Any] | None = None,
        given: tuple[Any, ...] = (),
        variables: Mapping[str, str] | None = None,
    ) -> Ended:
        """The same in a process forked from one that has imported the libraries.

        Args:
            tasks: one, or several with blanks between, each only if the one before ended well.
            around: a function of a module, called with `given` in the new process before the task; it may patch what it likes.
            variables: of the environment.
        """
        began = time.monotonic()
        process = self.begin(tasks, as_of, *more, around=around, given=given, variables=variables)
        process.join()
        assert process.exitcode is not None
        return _ended(process.exitcode, time.monotonic() - began, self.folder / f"{tasks.split()[0]}.log")

    def begin(
        self,
        tasks: str,
        as_of: date,
        *more: str,
        around: Callable[..., Any] | None = None,
        given: tuple[Any, ...] = (),
        variables: Mapping[str, str] | None = None,
    ) -> BaseProcess:
        """Start what `fork` runs to its end."""
        log = self.folder / f"{tasks.split()[0]}.log"
        environment = {**self.environment(), **(variables or {})}
        _FORKS.set_forkserver_preload(["benchmarks.chaos.warm"])
        process = _FORKS.Process(
            target=_run_here, args=(tasks, self.arguments(as_of, *more), environment, str(log), around, given)
        )
        process.start()
        return process

    def need(self, tasks: str, as_of: date, *more: str) -> Ended:
        """Run a task that must succeed."""
        ended = self.fork(tasks, as_of, *more)
        if ended.code:
            raise RuntimeError(f"{tasks} of {as_of} ended with {ended.code}:\n{ended.output}")
        return ended

    def manifests(self, *datasets: str) -> dict[str, bytes]:
        """Bytes of every manifest, by its path in the store."""
        root = self.store_folder
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.glob("*/*/*/manifest.json"))
            if not datasets or path.relative_to(root).parts[0] in datasets
        }

    def unreadable(self, *datasets: str) -> list[str]:
        """What a reader could find and could not read: manifests, and files that they name."""
        return [problem for path in self.manifests(*datasets) for problem in self._unreadable(path)]

    def _unreadable(self, path: str) -> Iterator[str]:
        store = self.store
        dataset, key, fingerprint, _ = path.split("/")
        try:
            manifest = store.find(dataset, key, fingerprint)
            assert manifest is not None
            for name in manifest.files:
                store.open(manifest, name)
        except Corrupt as error:
            yield str(error)

    def strays(self) -> list[str]:
        """Files of the store's versions that no manifest names, and what lies in the tasks' working folders."""
        known, root = set(), self.store_folder
        for data in self.manifests().items():
            folder = Path(data[0]).parent
            plain = json.loads(data[1])
            known |= {folder / "manifest.json", folder / "run.json"}
            known |= {folder / file["path"] for file in plain["files"].values()}
        found = [
            path.relative_to(root)
            for path in root.glob("*/*/*/**/*")
            if path.is_file() and path.relative_to(root).parts[0] != "data_docs"
        ]
        work = Path(self.settings.store.scratch) / "work"
        return sorted(
            [str(path) for path in found if path not in known]
            + [f"scratch/work/{path.name}" for path in (work.iterdir() if work.exists() else ())]
        )

    def manifest(self, task: str, as_of: date) -> Manifest:
        """The only version of a task's result of a date."""
        [found] = self.store.versions(task, as_of.isoformat())
        return found

    def drop(self, *tasks: str) -> None:
        """Take tasks' results away, as if they had never run."""
        for task in tasks:
            for dataset in (task, *BESIDE.get(task, ())):
                shutil.rmtree(self.store_folder / dataset, ignore_errors=True)


def _ended(code: int, seconds: float, log: Path) -> Ended:
    output = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    results = [line for line in output.splitlines() if line.startswith("RESULT ")]
    result = json.loads(results[-1].removeprefix("RESULT ")) if results and code == 0 else None
    return Ended(code, seconds, output, result)


def _run_here(
    tasks: str,
    arguments: list[str],
    environment: dict[str, str],
    log: str,
    around: Callable[..., Any] | None,
    given: tuple[Any, ...],
) -> None:
    """In the forked process: become the task, or one after the other."""
    from audiorec.runner import main

    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    if around is not None:
        around(*given)
    for task in tasks.split():
        main(task, arguments)


class Lab:
    """The experiments' folder: `source`, `reference`, and a folder an experiment.

    Args:
        short: the reference has one date only.
    """

    def __init__(self, work: Path, short: bool = False) -> None:
        self.work = work.resolve()
        self._dates = (AS_OF,) if short else (AS_OF, AS_OF + DAY, AS_OF - DAY)
        self.work.mkdir(parents=True, exist_ok=True)
        # Not a secret here: the same pseudonyms in every run make the same bytes.
        key = self.work / "user-ids.key"
        key.write_text("0c" * 32 + "\n", encoding="ascii")
        key.chmod(0o600)
        self._mlflow: tuple[subprocess.Popen[bytes], str] | None = None
        self._reference: Place | None = None

    def close(self) -> None:
        """End what was started."""
        if self._mlflow is not None:
            process, _ = self._mlflow
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
            self._mlflow = None

    @property
    def source(self) -> Path:
        """The tables, made once."""
        folder = self.work / "source"
        if not folder.exists():
            temporary = self.work / "source.part"
            shutil.rmtree(temporary, ignore_errors=True)
            tiny_tables(temporary).rename(folder)
        return folder

    @property
    def mlflow(self) -> str:
        """Address of an MLflow server, started by the command that `audiorec up` uses."""
        if self._mlflow is None:
            home = self.work / "mlflow"
            shutil.rmtree(home, ignore_errors=True)
            (home / "mlflow").mkdir(parents=True)
            [port] = free_ports(1)
            uri = f"http://127.0.0.1:{port}"
            settings = load_settings(services={"home": str(home), "mlflow_port": port}, mlflow={"uri": uri})
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
            self._mlflow = (process, uri)
            wait_for(lambda: answers(f"{uri}/health"), 180, "MLflow")
        return self._mlflow[1]

    def place(self, name: str, source: Path | None = None, **groups: dict[str, Any]) -> Place:
        """A fresh folder with an empty store; `groups` of settings over the tiny ones."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        places = {
            "source": {"uri": str(source or self.source)},
            "store": {"uri": str(folder / "store"), "scratch": str(folder / "scratch")},
            # One key for all: stores that are compared, or copied, name their users alike.
            "privacy": {"key_file": str(self.work / "user-ids.key")},
            "mlflow": {"uri": NO_MLFLOW},
            "resources": {task: {"threads": 1} for task in CHAIN},
        }
        wanted: dict[str, dict[str, Any]] = {}
        for layer in (TINY, places, groups):
            for group, fields in layer.items():
                wanted[group] = {**wanted.get(group, {}), **fields}
        settings = load_settings(profile="smoke", **wanted)
        (folder / "settings.toml").write_text(as_toml(settings), encoding="utf-8")
        return Place(folder, load_settings(folder / "settings.toml"))

    @property
    def reference(self) -> Place:
        """Three dates of the chain up to `build_index`, undisturbed: the day before AS_OF, AS_OF and the day after."""
        if self._reference is None:
            done = self.work / "reference.done"
            product = f"{product_digest()} {len(self._dates)}"
            file = self.work / "reference" / "settings.toml"
            if file.exists() and done.exists() and done.read_text(encoding="ascii") == product:
                self._reference = Place(file.parent, load_settings(file))
                return self._reference
            place = self.place("reference")
            for as_of in self._dates:
                place.need(" ".join(BEFORE_PROMOTE), as_of)
            done.write_text(product, encoding="ascii")
            self._reference = place
        return self._reference

    def copy(self, name: str, *without: str, **groups: dict[str, Any]) -> Place:
        """A copy of the reference less some tasks' results: hard links, as a stored file is never written again."""
        reference = self.reference
        place = self.place(name, **groups)
        shutil.copytree(reference.store_folder, place.store_folder, copy_function=os.link)
        place.drop(*without)
        return place

    def registry(self, model: str) -> dict[str, dict[str, Any]]:
        """Groups of settings for a place that promotes: MLflow, and a registered model of its own."""
        return {"mlflow": {"uri": self.mlflow}, "release": {"model_name": model}}


def answers(uri: str) -> bool:
    """Whether an address answers 200."""
    try:
        return httpx.get(uri, timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something is so; an error if it is not in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not come about within {seconds:.0f} s")
        time.sleep(0.05)
