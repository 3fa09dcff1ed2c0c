"""Experiment 18: what on-call people are told, when, and whether the links open. Failures are provoked, not told of."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psutil

from audiorec.chain import CHAIN
from audiorec.stack.client import TaskInstance
from audiorec.stack.layout import DAG_ID
from benchmarks.chaos.damage import small_disk
from benchmarks.chaos.lab import AS_OF, DAY, Lab, wait_for
from benchmarks.chaos.report import Experiment, Row
from benchmarks.chaos.services import (
    BEFORE_ALL_DATA,
    RUN_SECONDS,
    Services,
    Sink,
    running,
    served_place,
)

BEFORE_THE_DAG = datetime(1999, 1, 2, tzinfo=UTC)
"""Airflow makes a run before the DAG's start date a success without tasks."""
TINY_MEMORY_MB = 64
TRIES = 3
"""Of a task, by the DAG's defaults."""


SOONER = 30.0
"""Seconds that an alert may be sent before Airflow has noted the end of the try that it is about."""


@dataclass
class Told:
    """One row of the on-call table: what was provoked, and the alert as it arrived."""

    failure: str
    code: str
    within: float
    began: float
    """Clock time (s) of the failure itself: of the last try's end where a task is tried again."""
    data_date: date | None = None
    alert: dict[str, Any] | None = None
    seconds: float = float("nan")
    links: dict[str, int] = field(default_factory=dict)

    def collect(self, sink: Sink, patience: float) -> None:
        """Wait for the alert. The same code may have been told of an earlier failure, and may be of a later one."""
        if self.alert is not None:
            return

        def arrived() -> tuple[float, dict[str, Any]] | None:
            return sink.first(self.code, self.data_date, self.began - SOONER)

        with contextlib.suppress(TimeoutError):
            wait_for(lambda: arrived() is not None, patience, self.code)
        if found := arrived():
            moment, self.alert = found
            self.seconds = max(0.0, moment - self.began)

    def open_links(self, services: Services) -> None:
        """Ask every link of the alert, logged in as a browser is."""
        client = services.client
        for name, address in (self.alert or {}).get("links", {}).items():
            self.links[name] = client.page_status(address)

    def row(self) -> Row:
        if self.alert is None:
            return Row(f"{self.failure}: {self.code} within {self.within:.0f} s", "nothing arrived", False)
        bad = {name: status for name, status in self.links.items() if status != 200}
        said = [word for word in ("summary", "user_effect", "severity", "text") if not self.alert.get(word)]
        return Row(
            f"{self.failure}: {self.code} within {self.within:.0f} s, its links open",
            f"{self.seconds:.0f} s, {len(self.links)} links" + (f", not opened: {bad}" if bad else ""),
            self.seconds <= self.within and not bad and bool(self.links) and not said,
            str(self.alert["summary"]),
        )


class Strikes:
    """Sends a signal to every try of a task of a date, until told to end."""

    def __init__(self, services: Services, task: str, as_of: date, number: signal.Signals) -> None:
        self.last = 0.0
        self._end = threading.Event()
        self._services, self._task, self._as_of, self._number = services, task, as_of, number
        self._thread = threading.Thread(target=self._strike, daemon=True)
        self._thread.start()

    def _strike(self) -> None:
        struck: set[int] = set()
        while not self._end.wait(0.1):
            for process in self._services.children(self._task, self._as_of):
                if process.pid not in struck:
                    struck.add(process.pid)
                    with contextlib.suppress(psutil.Error):
                        process.send_signal(self._number)
                        self.last = time.time()

    def end(self) -> None:
        self._end.set()
        self._thread.join()


def alerts(lab: Lab, seed: int, short: bool) -> list[Row]:
    """Two stacks: one in which tasks fail at once, one that releases and is then disturbed."""
    found, twice = _of_tasks(lab, short)
    if not short:
        more, again = _of_services(lab)
        found, twice = found + more, twice + again
    return [
        *(one.row() for one in found),
        Row("0 alerts told twice", str(len(twice)), not twice, ", ".join(twice)),
    ]


def _of_tasks(lab: Lab, short: bool) -> tuple[list[Told], list[str]]:
    """Failures of tasks' own processes, none of which gets as far as a model."""
    with contextlib.closing(Sink()) as sink:
        place = served_place(
            lab,
            "alerts-tasks",
            alerts={"webhook_url": sink.uri, "watch": True},
            resources={
                **{task: {"threads": 1} for task in CHAIN},
                "extract": {"threads": 1, "timeout_minutes": 0.5},
                "validate": {"threads": 1, "memory_mb": TINY_MEMORY_MB},
            },
        )
        with running(place) as services:
            killed, crashed, hung, poor = (AS_OF - number * DAY for number in range(4))
            strikes = {}
            runs = {}
            if not short:
                for day, number in ((crashed, signal.SIGSEGV), (hung, signal.SIGSTOP)):
                    strikes[day] = Strikes(services, "extract", day, number)
                    runs[day] = services.trigger(day)
            strikes[killed] = Strikes(services, "extract", killed, signal.SIGKILL)
            runs[killed] = services.trigger(killed)
            runs[poor] = services.trigger(poor)
            told = []
            services.wait(runs[poor])
            ended = services.state(runs[poor], "validate").end
            told.append(Told("a task over its memory limit", "TASK-OOM", 60, _clock(ended), poor))
            for day, failure, code, within in (
                (killed, "kill -9 of a task, every try", "TASK-KILLED", 60),
                (crashed, "a segfault, every try", "TASK-CRASH", 60),
                (hung, "a task that hangs, every try", "TIMEOUT", 30 + 30),
            ):
                if day not in runs:
                    continue
                services.wait(runs[day])
                strikes[day].end()
                # A hang is told after the task's own limit of half a minute.
                told.append(Told(failure, code, within, strikes[day].last, day))
            for one in told:
                one.collect(sink, 120)
                one.open_links(services)
        return told, sink.twice()


def _of_services(lab: Lab) -> tuple[list[Told], list[str]]:
    """Failures around the tasks: after a release, one thing after the other."""
    disk = lab.work / "alerts-disk"
    with contextlib.closing(Sink()) as sink, small_disk(disk, megabytes=200):
        place = served_place(
            lab,
            "alerts-services",
            alerts={"webhook_url": sink.uri, "watch": True},
            store={"uri": str(disk / "store"), "scratch": str(disk / "scratch")},
            release={"model_name": "alerts"},
        )
        with running(place) as services:
            began = time.time()
            run = services.wait(services.trigger(AS_OF))
            if run.state != "success":
                raise RuntimeError(f"the first run ended as {run.state}")
            released = time.time()
            yesterday = datetime.now(UTC).date() - DAY
            told = [
                Told("the day's tables do not come", "DATA-LATE", 15 * 60, began, yesterday),
                Told("a champion of old data", "STALE", 5 * 60, released, AS_OF),
            ]
            bad = services.wait(services.trigger(BEFORE_ALL_DATA))
            told.append(
                Told(
                    "data that validate refuses",
                    "DQ-CRITICAL",
                    60,
                    _clock(services.state(bad.run_id, "validate").end),
                    BEFORE_ALL_DATA,
                )
            )
            for provoke in (_green_without_tasks, _failed_by_hand, _supervisor_killed, _disk_full, _bit_rot):
                told.append(provoke(services, disk))
                told[-1].collect(sink, 600)
            told += [_mlflow_down(services, sink), _scheduler_down(services, sink)]
            for one in told:
                one.collect(sink, 60)
                one.open_links(services)
        return told, sink.twice()


def _green_without_tasks(services: Services, disk: Path) -> Told:
    run = services.client.trigger(DAG_ID, {}, logical_date=BEFORE_THE_DAG)
    services.wait(run.run_id)
    return Told("a green run in which no task ran", "NO-RECEIPT", 5 * 60, time.time())


def _failed_by_hand(services: Services, disk: Path) -> Told:
    day = AS_OF - DAY
    run_id = services.trigger(day)
    wait_for(lambda: bool(services.children("extract", day)), 300, "extract")
    began = time.time()
    services.client.set_run_state(DAG_ID, run_id, "failed")
    return Told("a run marked as failed by hand", "RUN-FAILED", 5 * 60, began, day)


def _supervisor_killed(services: Services, disk: Path) -> Told:
    """Airflow's process of a task and all below it at once, at every try: nothing of the task is left to tell.

    Airflow misses its heartbeat after a minute and tries again by itself, so that a single death is no alert.
    """
    day = AS_OF - 2 * DAY
    run_id = services.trigger(day)
    strike = Strikes(services, "extract", day, signal.SIGSTOP)
    ended = 0.0
    for number in range(1, TRIES + 1):
        task = _running_try(services, run_id, "extract", number)
        wait_for(lambda: bool(services.children("extract", day)), 300, f"try {number} of extract")
        runner = psutil.Process(task.pid)
        supervisor = runner.parent()
        family = [*runner.children(recursive=True), runner, *([supervisor] if supervisor else [])]
        for process in reversed(family):
            with contextlib.suppress(psutil.Error):
                process.kill()
        ended = time.time()
    strike.end()
    return Told("kill -9 of a task and of Airflow's process above it, every try", "RUN-DEAD", 120, ended, day)


def _running_try(services: Services, run_id: str, task: str, number: int) -> TaskInstance:
    """A try of a task, once its process is known."""

    def found() -> bool:
        state = services.state(run_id, task)
        return state.state == "running" and state.try_number == number and psutil.pid_exists(state.pid or -1)

    wait_for(found, RUN_SECONDS, f"try {number} of {task}")
    return services.state(run_id, task)


def _disk_full(services: Services, disk: Path) -> Told:
    day = AS_OF - 3 * DAY
    ballast = disk / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 65_536)
            file.flush()
    run = services.wait(services.trigger(day))
    ballast.unlink()
    ended = services.state(run.run_id, "extract").end
    return Told("a full disk, every try", "UNAVAILABLE", 60, _clock(ended), day)


def _bit_rot(services: Services, disk: Path) -> Told:
    """A result of the released date, one bit of which turns; what reads it is run again."""
    store = services.place.store
    [manifest] = store.versions("refresh", AS_OF.isoformat())
    path = store.open(manifest, "item_vectors.npy")
    sound = path.read_bytes()
    rotten = bytearray(sound)
    rotten[len(rotten) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(rotten))
    shutil.rmtree(services.place.store_folder / "build_index" / AS_OF.isoformat())
    run = services.wait(services.trigger(AS_OF, promote="never"))
    path.write_bytes(sound)
    return Told(
        "a bit of a stored file turned",
        "CORRUPT",
        30,
        _clock(services.state(run.run_id, "build_index").end),
        AS_OF,
    )


def _mlflow_down(services: Services, sink: Sink) -> Told:
    """MLflow stopped while a version is registered; when it is back, the task is cleared as the alert advises."""
    day = AS_OF + DAY
    process = services.process("mlflow")
    family = [process, *process.children(recursive=True)]
    run_id = services.trigger(day)
    services.wait_task(run_id, "build_index", "success", "failed", "upstream_failed")
    began = time.time()
    for one in family:
        one.suspend()
    told = Told("MLflow away while a version is registered", "UNAVAILABLE", 10 * 60, began, day)
    told.collect(sink, 15 * 60)
    for one in family:
        one.resume()
    services.wait(run_id)
    services.client.clear(DAG_ID, run_id, ["promote"])
    services.wait(run_id)
    return told


def _scheduler_down(services: Services, sink: Sink) -> Told:
    """A scheduler that stands still: a dead one is restarted within seconds."""
    process = services.process("scheduler")
    began = time.time()
    process.suspend()
    told = Told("a scheduler that stands still", "AF-DOWN", 120, began)
    try:
        told.collect(sink, 300)
    finally:
        process.resume()
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: _recovered(sink, "AF-DOWN"), 300, "the recovery")
    return told


def _recovered(sink: Sink, code: str) -> bool:
    return any(alert["code"] == code and alert["status"] == "recovered" for _, alert in sink.arrived)


def _clock(moment: datetime | None) -> float:
    assert moment is not None
    return moment.timestamp()


EXPERIMENTS = (
    Experiment(
        "alerts", 18, "Alerts: every provoked failure is told in time, once, with links that open", 18, alerts
    ),
)
