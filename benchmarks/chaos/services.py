"""The real services for experiments: a stack over a place, a local sink for alerts, and relays that can be cut."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from audiorec import stack
from audiorec.registry import CHAMPION, Registry
from audiorec.settings import load_settings
from audiorec.stack.client import AirflowClient, Run, TaskInstance
from audiorec.stack.layout import DAG_ID, STACK_VARIABLE, Layout
from audiorec.stack.servers import free_ports
from audiorec.stack.supervisor import read_state
from benchmarks.chaos.lab import Lab, Place, wait_for
from benchmarks.services import on_free_ports, served

AS_IN_THE_FILE = {"profile": "standard"}
"""The profile that changes nothing: the place's file holds what `smoke` sets, and smaller models still."""
BEFORE_ALL_DATA = date(2020, 1, 1)
RUN_SECONDS = 900.0
"""A date takes about a minute; this is for a machine that does other things as well."""


class Sink:
    """A local address for alerts; `down` makes it refuse them."""

    def __init__(self) -> None:
        self.arrived: list[tuple[float, dict[str, Any]]] = []
        """Clock time (s since the epoch) and content of every alert that was taken."""
        self.down = False
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not sink.down:
                    sink.arrived.append((time.time(), json.loads(body)))
                self.send_response(503 if sink.down else 204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}/alerts"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def first(
        self, code: str, data_date: date | None = None, since: float = 0.0
    ) -> tuple[float, dict[str, Any]] | None:
        """The first firing alert of a code since a clock time (s), and of a data date if one is named."""
        for moment, alert in self.arrived:
            of_it = data_date is None or alert.get("data_date") == data_date.isoformat()
            if of_it and moment >= since and alert["code"] == code and alert["status"] == "firing":
                return moment, alert
        return None

    def twice(self) -> list[str]:
        """Keys that were told again before they were over."""
        open_now: set[str] = set()
        found = []
        for _, alert in self.arrived:
            key = alert["dedup_key"]
            if alert["code"] == "RECOVERED":  # a date's run ended well; old data stay old
                day = alert.get("data_date")
                open_now = {one for one in open_now if one.split(":", 1)[1] != day or one == f"STALE:{day}"}
            elif alert["status"] == "recovered":
                open_now.discard(key)
            elif key in open_now:
                found.append(key)
            else:
                open_now.add(key)
        return found


class Relay:
    """Forwards connections to a port of this machine until it is cut; then it refuses them and drops those it has."""

    def __init__(self, target: int) -> None:
        [self.port] = free_ports(1)
        self._target = target
        self._open: set[socket.socket] = set()
        self._server: socketserver.ThreadingTCPServer | None = None
        self.join()

    def join(self) -> None:
        """Listen, again."""
        relay = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    relay._forward(self.request)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 64

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def cut(self) -> None:
        """Refuse new connections and drop the open ones."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _forward(self, near: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self._target)) as far:
            self._open |= {near, far}
            try:
                back = threading.Thread(target=_pump, args=(far, near), daemon=True)
                back.start()
                _pump(near, far)
                back.join()
            finally:
                self._open -= {near, far}


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@dataclass
class Services:
    """Airflow, MLflow and the service over a place, and what experiments ask them."""

    place: Place
    client: AirflowClient

    def trigger(self, as_of: date, **params: Any) -> str:
        """Start a run of a date; returns its id."""
        run = self.client.trigger(DAG_ID, {"as_of": as_of.isoformat(), **AS_IN_THE_FILE, **params})
        return run.run_id

    def state(self, run_id: str, task: str) -> TaskInstance:
        return next(one for one in self.client.task_instances(DAG_ID, run_id) if one.task_id == task)

    def wait(self, run_id: str, seconds: float = RUN_SECONDS) -> Run:
        """Until a run has ended."""
        wait_for(lambda: self.client.run(DAG_ID, run_id).finished, seconds, f"the end of {run_id}")
        return self.client.run(DAG_ID, run_id)

    def wait_task(self, run_id: str, task: str, *states: str, seconds: float = RUN_SECONDS) -> TaskInstance:
        """Until a task has one of these states."""
        wait_for(lambda: self.state(run_id, task).state in states, seconds, f"{task} of {run_id} in {states}")
        return self.state(run_id, task)

    def versions(self) -> dict[date, int]:
        """How many versions are registered, by date of their data."""
        found: dict[date, int] = {}
        for version in Registry(self.place.settings).versions():
            found[version.as_of] = found.get(version.as_of, 0) + 1
        return found

    def champion(self) -> str | None:
        alias = Registry(self.place.settings).alias(CHAMPION)
        return None if alias is None else alias.number

    def children(self, task: str, as_of: date) -> list[psutil.Process]:
        """Processes of a task of a date that these services started; another checkout's are not ours to disturb."""
        stack_id = (read_state(Layout.of(self.place.settings).state) or {}).get("stack_id")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if (
                    f"tasks.{task}" in words
                    and as_of.isoformat() in words
                    and process.environ().get(STACK_VARIABLE) == stack_id
                ):
                    found.append(process)
        return found

    def processes(self) -> dict[str, int]:
        """Process numbers of the services, by name."""
        return dict(stack.status(self.place.settings).processes)

    def process(self, name: str) -> psutil.Process:
        """A service's own process."""
        return psutil.Process(self.processes()[name])


def served_place(lab: Lab, name: str, **groups: dict[str, Any]) -> Place:
    """A fresh place whose services listen on free ports; `groups` of settings over the tiny ones."""
    ours = on_free_ports(lab.work / name / "home")
    return lab.place(
        name, **{group: {**ours.get(group, {}), **groups.get(group, {})} for group in (*ours, *groups)}
    )


@contextlib.contextmanager
def running(place: Place) -> Iterator[Services]:
    """The services of a place whose settings say where they listen."""
    settings = load_settings(place.file)
    with served(settings, place.file) as client:
        client.unpause(DAG_ID)
        yield Services(Place(place.folder, settings), client)


def manifests_of(place: Place, days: list[date]) -> dict[str, bytes]:
    """Every manifest of some dates in a store that is a folder."""
    wanted = {day.isoformat() for day in days}
    return {path: data for path, data in place.manifests().items() if Path(path).parts[1] in wanted}
