"""The process that starts the services, restarts one that dies and stops them all.

Run as `python -m audiorec.stack.supervisor PLAN` in a session of its own. The plan says what to run; the
state file says what runs. It ends on SIGTERM or SIGINT, and then none of its children is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from audiorec.stack.layout import write_private
from audiorec.stack.processes import Identity, end, sweep

PR_SET_CHILD_SUBREAPER = 36
TICK_SECONDS = 0.5
PATIENCE_SECONDS = 5.0
"""How long services may take to end when asked; the scheduler would wait for its running tasks."""

BACKOFF_SECONDS = (1, 2, 5, 10, 30)
STEADY_SECONDS = 60.0
"""A service that lived this long is forgiven its earlier deaths."""

MAX_LOG_BYTES = 20_000_000
KEEP_LOG_BYTES = 2_000_000
DAG_PROCESSOR_LOG_DAYS = 7


@dataclass
class Service:
    """One service and its life so far."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    identity: Identity | None = None
    deaths: int = 0
    next_start: float = 0.0
    started_at: float = 0.0
    last_exit: int | None = None


@dataclass
class State:
    """What the state file holds."""

    stack_id: str
    supervisor: dict[str, Any]
    configuration: str
    phase: str
    error: str | None = None
    services: dict[str, dict[str, Any]] = field(default_factory=dict)


class Supervisor:
    """Runs the services of a plan."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self.home = Path(plan["home"])
        self.state_file = Path(plan["state"])
        self.logs = Path(plan["logs"])
        self.environment: dict[str, str] = plan["environment"]
        self.prepare: list[list[str]] = plan["prepare"]
        self.services = [Service(name, command) for name, command in plan["services"].items()]
        me = Identity.of(os.getpid())
        assert me is not None
        self.state = State(plan["stack_id"], asdict(me), plan["configuration"], "preparing")
        self.patience: float = plan.get("patience_seconds", PATIENCE_SECONDS)
        self.stopping = False

    def run(self) -> int:
        """Prepare, start, watch until asked to stop; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # Orphans of our services become our children, so that none is lost to sight.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        code = 0
        try:
            self._write()
            self._prepare()
            self.state.phase = "running"
            housekeeping = 0.0
            while not self.stopping:
                self._tend()
                if time.monotonic() > housekeeping:
                    housekeeping = time.monotonic() + 10
                    self._bound_logs()
                self._reap_orphans()
                time.sleep(TICK_SECONDS)
        except Exception as error:
            if not self.stopping:
                self.state.error = str(error)
                code = 1
                print(f"supervisor: {error}", flush=True)
        finally:
            self._stop_all()
        return code

    def _ask_to_stop(self, *_: object) -> None:
        self.stopping = True

    def _prepare(self) -> None:
        """Commands that must succeed before the services start (databases), side by side."""
        running = []
        for command in self.prepare:
            name = f"prepare-{command[2]}"
            running.append((name, command, self._popen(name, command)))
        for name, command, process in running:
            while (code := process.poll()) is None and not self.stopping:
                time.sleep(0.1)
            if code:
                tail = _tail(self.logs / f"{name}.log")
                raise RuntimeError(f"`{' '.join(command[1:])}` failed with exit code {code}:\n{tail}")

    def _popen(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        # Append mode, so that cutting the file short from outside works.
        with (self.logs / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )

    def _tend(self) -> None:
        """Start what is not running and is due."""
        changed = False
        now = time.monotonic()
        for service in self.services:
            if service.process is not None and (code := service.process.poll()) is not None:
                lived = now - service.started_at
                service.deaths = 1 if lived > STEADY_SECONDS else service.deaths + 1
                pause = BACKOFF_SECONDS[min(service.deaths, len(BACKOFF_SECONDS)) - 1]
                service.next_start = now + pause
                service.last_exit = code
                print(f"{service.name} ended with {code} after {lived:.0f} s; again in {pause} s", flush=True)
                self._end_session(service)
                service.process, service.identity = None, None
                changed = True
            if service.process is None and now >= service.next_start and not self.stopping:
                service.process = self._popen(service.name, service.command)
                service.identity = Identity.of(service.process.pid)
                service.started_at = now
                print(f"{service.name} started, process {service.process.pid}", flush=True)
                changed = True
        if changed or self.state.phase == "preparing":
            self._write()

    def _end_session(self, service: Service) -> None:
        """Workers of a service that died: they hold its port or its database."""
        if service.identity is None:
            return
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getsid(process.pid) == service.identity.pid:
                    process.kill()

    def _write(self) -> None:
        self.state.services = {
            service.name: {
                "identity": asdict(service.identity) if service.identity else None,
                "deaths": service.deaths,
                "last_exit": service.last_exit,
            }
            for service in self.services
        }
        write_private(self.state_file, json.dumps(asdict(self.state), indent=1))

    def _reap_orphans(self) -> None:
        """Collect dead processes that were handed to us; the services themselves are Popen's to collect."""
        ours = {service.process.pid for service in self.services if service.process}
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process().children():
                with contextlib.suppress(psutil.Error, OSError):
                    if process.pid not in ours and process.status() == psutil.STATUS_ZOMBIE:
                        os.waitpid(process.pid, os.WNOHANG)

    def _bound_logs(self) -> None:
        """Keep the end of a log that has grown large, and a week of the dag-processor's own."""
        for log in self.logs.glob("*.log"):
            if log.stat().st_size > MAX_LOG_BYTES:
                with log.open("rb") as file:
                    file.seek(-KEEP_LOG_BYTES, os.SEEK_END)
                    kept = file.read()
                log.with_suffix(".log.1").write_bytes(kept)
                os.truncate(log, 0)
        oldest = time.time() - DAG_PROCESSOR_LOG_DAYS * 86_400
        for day in (self.home / "airflow" / "logs" / "dag_processor").glob("*-*-*"):
            if day.is_dir() and not day.is_symlink() and day.stat().st_mtime < oldest:
                shutil.rmtree(day, ignore_errors=True)

    def _stop_all(self) -> None:
        """End every service and everything below it, then the state file."""
        self.state.phase = "stopping"
        with contextlib.suppress(OSError):
            self._write()
        with contextlib.suppress(psutil.Error):
            family = psutil.Process().children(recursive=True)
            known = [service.identity for service in self.services if service.identity]
            leaders = [process for identity in known if (process := identity.process())]
            killed = end(leaders, self.patience)
            for process in killed:
                print(f"process {process.pid} did not end when asked and was killed", flush=True)
            for process in family:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        sweep(self.state.stack_id, [service.identity for service in self.services if service.identity])
        self._reap_orphans()
        if self.state.error:
            self.state.phase = "failed"
            self._write()
        else:
            self.state_file.unlink(missing_ok=True)


def launch(path: Path, plan: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """Start a supervisor of a plan in a session of its own; the plan, which holds secrets, is kept at `path`."""
    write_private(path, json.dumps(plan))
    with (Path(plan["logs"]) / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "audiorec.stack.supervisor", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=plan["environment"],
            start_new_session=True,
        )


def read_state(path: Path) -> dict[str, Any] | None:
    """What the state file of a supervisor says; None if there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return None


def supervisor_of(state: Mapping[str, Any]) -> psutil.Process | None:
    """The supervisor that wrote a state, if it lives."""
    return Identity(**state["supervisor"]).process()


def _tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"


def main() -> int:
    plan_file = Path(sys.argv[1])
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    return Supervisor(plan).run()


if __name__ == "__main__":
    sys.exit(main())
