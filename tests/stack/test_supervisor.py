"""The supervisor with small programs in the place of Airflow and MLflow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from audiorec.stack import processes, supervisor
from audiorec.stack.layout import STACK_VARIABLE

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
PARENT = """
import subprocess, sys, time
# A worker in a session of its own, as an Airflow task has: no signal to the parent's group reaches it.
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
time.sleep(600)
"""


class Rig:
    """A supervisor with a plan of our own, and what it says about itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack_id = uuid.uuid4().hex
        self.state_file = folder / "state.json"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, services: dict[str, str], prepare: list[str] | None = None) -> None:
        plan = {
            "stack_id": self.stack_id,
            "configuration": "test",
            "home": str(self.folder),
            "state": str(self.state_file),
            "logs": str(self.folder),
            "environment": {**os.environ, STACK_VARIABLE: self.stack_id},
            "patience_seconds": 1.0,
            "prepare": [[sys.executable, "-c", code] for code in prepare or []],
            "services": {name: [sys.executable, "-c", code] for name, code in services.items()},
        }
        plan_file = self.folder / "plan.json"
        plan_file.write_text(json.dumps(plan))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "audiorec.stack.supervisor", str(plan_file)],
            env={**os.environ, STACK_VARIABLE: self.stack_id},
            stdout=(self.folder / "supervisor.out").open("wb"),
            start_new_session=True,
        )

    @property
    def state(self) -> dict[str, Any]:
        try:
            return json.loads(self.state_file.read_text())
        except FileNotFoundError:
            return {"phase": "gone", "services": {}}

    def pid(self, service: str) -> int | None:
        identity = self.state["services"].get(service, {}).get("identity")
        return identity["pid"] if identity else None

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=30)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    if rig.process is not None and rig.process.poll() is None:
        rig.process.kill()
        rig.process.wait()
    processes.sweep(rig.stack_id)


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def test_stopping_leaves_nothing_not_even_what_hides_in_a_session_of_its_own(rig: Rig):
    rig.start({"parent": PARENT, "sleeper": SLEEPER})
    wait_for(lambda: len(processes.members(rig.stack_id)) >= 4)  # supervisor, two services, one worker
    assert rig.stop() == 0
    assert processes.members(rig.stack_id) == []
    assert not rig.state_file.exists()


def test_a_service_that_does_not_want_to_end_is_killed(rig: Rig):
    rig.start({"stubborn": STUBBORN})
    wait_for(lambda: rig.pid("stubborn"))
    time.sleep(0.5)  # until it has its handler
    began = time.monotonic()
    assert rig.stop() == 0
    assert 1.0 <= time.monotonic() - began < 10
    assert processes.members(rig.stack_id) == []
    assert "did not end when asked" in (rig.folder / "supervisor.out").read_text()


def test_a_service_that_dies_is_started_again_with_its_workers_gone(rig: Rig):
    rig.start({"parent": PARENT, "sleeper": SLEEPER})
    first = wait_for(lambda: rig.pid("sleeper"))
    wait_for(lambda: len(processes.members(rig.stack_id)) >= 4)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: rig.pid("sleeper") not in (None, first))
    assert rig.state["services"]["sleeper"]["deaths"] == 1
    assert rig.state["services"]["sleeper"]["last_exit"] == -9
    assert rig.state["services"]["parent"]["deaths"] == 0


def test_a_service_that_keeps_dying_is_started_less_and_less_often(rig: Rig):
    rig.start({"broken": "raise SystemExit(3)"})
    wait_for(lambda: rig.state["services"].get("broken", {}).get("deaths", 0) >= 2)
    time.sleep(1.0)  # pauses are 1 s, 2 s, 5 s: no third start can be due within this
    assert rig.state["services"]["broken"]["deaths"] == 2
    assert rig.state["services"]["broken"]["last_exit"] == 3


def test_a_preparation_that_fails_says_why_and_starts_nothing(rig: Rig):
    rig.start({"sleeper": SLEEPER}, prepare=["print('disk is full'); raise SystemExit(1)"])
    assert rig.process is not None
    assert rig.process.wait(timeout=20) == 1
    assert rig.state["phase"] == "failed"
    assert "disk is full" in rig.state["error"]
    assert rig.pid("sleeper") is None
    assert processes.members(rig.stack_id) == []


def test_what_a_killed_supervisor_leaves_can_be_found_and_ended(rig: Rig):
    rig.start({"parent": PARENT})
    wait_for(lambda: len(processes.members(rig.stack_id)) >= 3)
    assert rig.process is not None
    rig.process.kill()
    rig.process.wait()
    assert len(processes.members(rig.stack_id)) >= 2
    assert processes.sweep(rig.stack_id) >= 2
    assert processes.members(rig.stack_id) == []


def test_a_process_that_overwrites_its_environment_is_found_by_its_session():
    """As setproctitle does; here it has none of our variables to begin with."""
    env = {name: value for name, value in os.environ.items() if name != STACK_VARIABLE}
    worker = subprocess.Popen([sys.executable, "-c", PARENT], env=env, start_new_session=True)
    leader = processes.Identity.of(worker.pid)
    assert leader is not None
    try:
        assert processes.members("mine") == []
        assert worker.pid in [process.pid for process in processes.members("mine", [leader])]
        reused = processes.Identity(leader.pid, leader.started - 100)
        assert processes.members("mine", [reused]) == []
    finally:
        for process in psutil.Process(worker.pid).children(recursive=True):
            process.kill()
        worker.kill()
        worker.wait()


def test_others_processes_are_not_ours():
    stranger = subprocess.Popen(
        [sys.executable, "-c", SLEEPER],
        env={**os.environ, STACK_VARIABLE: "another"},
        stdout=subprocess.DEVNULL,
    )
    try:
        assert processes.sweep("mine", seconds=0.2) == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_an_id_that_was_given_again_is_another_process():
    me = psutil.Process()
    assert processes.Identity(me.pid, me.create_time()).process() is not None
    assert processes.Identity(me.pid, me.create_time() - 100).process() is None


def test_logs_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "MAX_LOG_BYTES", 1_000)
    monkeypatch.setattr(supervisor, "KEEP_LOG_BYTES", 100)
    log = tmp_path / "scheduler.log"
    plan = {
        "stack_id": "x",
        "configuration": "",
        "home": str(tmp_path),
        "state": str(tmp_path / "s"),
        "logs": str(tmp_path),
        "environment": {},
        "prepare": [],
        "services": {},
    }
    with log.open("ab", buffering=0) as writer:  # as the services hold it
        writer.write(b"a" * 2_000 + b"end")
        supervisor.Supervisor(plan)._bound_logs()
        assert log.stat().st_size == 0
        writer.write(b"more")
    assert log.read_bytes() == b"more"
    assert (tmp_path / "scheduler.log.1").read_bytes() == b"a" * 97 + b"end"
