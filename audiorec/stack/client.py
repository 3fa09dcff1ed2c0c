"""A small typed client of Airflow's REST API: what the command line needs, and no more."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from types import TracebackType
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential

from audiorec.dates import RunFacts, resolve_as_of
from audiorec.errors import BadSettings

FINISHED = frozenset({"success", "failed"})
RETRIED_STATUS = frozenset({429, 500, 502, 503, 504})
PAGE = 100
"""Runs asked for at once, the most that the API gives."""
RETRY_SECONDS = 40.0
LOCKED_SECONDS = 60.0
"""How long a backfill is tried while SQLite is locked by Airflow's other processes."""


class AirflowError(RuntimeError):
    """The API refused or did not answer; `status_code` is None if it did not."""

    def __init__(self, message: str, status_code: int | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code


@dataclass(frozen=True)
class Run:
    """A DAG run."""

    run_id: str
    state: str
    run_type: str
    logical_date: datetime | None
    start: datetime | None
    end: datetime | None
    conf: dict[str, Any]
    data_interval: tuple[datetime | None, datetime | None] = (None, None)
    run_after: datetime | None = None

    @property
    def finished(self) -> bool:
        return self.state in FINISHED

    @property
    def data_date(self) -> date | None:
        """The date that the run is about, as its first task resolves it; None if its facts contradict each other."""
        facts = RunFacts(self.run_type, self.logical_date, *self.data_interval, self.run_after)
        try:
            return resolve_as_of(self.conf, facts)
        except BadSettings:
            return None


@dataclass(frozen=True)
class TaskInstance:
    """A task of a run; `state` is None before it is scheduled."""

    task_id: str
    state: str | None
    try_number: int
    start: datetime | None
    end: datetime | None
    pid: int | None = None
    hostname: str | None = None

    @property
    def seconds(self) -> float | None:
        """How long it ran, or has been running."""
        if self.start is None:
            return None
        return ((self.end or datetime.now(UTC)) - self.start).total_seconds()


@dataclass(frozen=True)
class Backfill:
    """Airflow's runs of a range of logical dates, both ends included; `completed` is None while it goes on."""

    id: int
    first: datetime
    last: datetime
    completed: datetime | None


class AirflowClient:
    """Talks to one Airflow.

    Reading is retried for 20 s while the server is unreachable or overloaded; a request that makes something
    is retried only if it cannot have arrived, so that nothing is triggered twice.
    """

    def __init__(
        self, address: str, user: str, password: str, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.address = address.rstrip("/")
        self._user, self._password = user, password
        # trust_env off: a proxy of the environment must not be asked for our own machine.
        self._http = httpx.Client(base_url=self.address, timeout=15.0, trust_env=False, transport=transport)
        self._token: str | None = None

    def __enter__(self) -> AirflowClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- what can be asked -----------------------------------------------------------------------------

    def health(self) -> dict[str, str]:
        """Status by component; needs no login."""
        report = self._send("GET", "/api/v2/monitor/health", authenticated=False).json()
        return {name: (part or {}).get("status") or "unknown" for name, part in report.items()}

    def dag(self, dag_id: str) -> dict[str, Any]:
        return dict(self._get(f"/dags/{dag_id}"))

    def import_errors(self) -> dict[str, str]:
        """Stack trace by file."""
        errors = self._get("/importErrors")["import_errors"]
        return {error["filename"]: error["stack_trace"] for error in errors}

    def wait_for_dag(self, dag_id: str, seconds: float) -> None:
        """Until the dag-processor has read the DAG.

        Raises:
            AirflowError: its file cannot be imported (with the reason), or it did not come in time.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.dag(dag_id)
                return
            except AirflowError as error:
                if error.status_code != 404:
                    raise
            for file, trace in self.import_errors().items():
                raise AirflowError(f"Airflow cannot import {file}:\n{trace}")
            if time.monotonic() > deadline:
                raise AirflowError(f"Airflow has not read the DAG {dag_id} within {seconds:.0f} s")
            time.sleep(0.5)

    def pause(self, dag_id: str, paused: bool = True) -> None:
        """Pause or unpause a DAG. A run of a paused DAG stays queued, without an error."""
        self._send("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": paused})

    def unpause(self, dag_id: str) -> None:
        self.pause(dag_id, False)

    def trigger(
        self,
        dag_id: str,
        params: Mapping[str, Any],
        *,
        run_id: str | None = None,
        logical_date: datetime | None = None,
        data_interval: tuple[datetime, datetime] | None = None,
        note: str | None = None,
    ) -> Run:
        """Make a run by hand. Params that are None are left at their default.

        Raises:
            AirflowError: 400 names the Param that is out of range; 409, such a run exists.
        """
        body: dict[str, Any] = {
            "logical_date": logical_date.isoformat() if logical_date else None,
            "conf": {name: value for name, value in params.items() if value is not None},
        }
        if data_interval:
            body["data_interval_start"], body["data_interval_end"] = (
                end.isoformat() for end in data_interval
            )
        if run_id:
            body["dag_run_id"] = run_id
        if note:
            body["note"] = note
        return _run(self._send("POST", f"/api/v2/dags/{dag_id}/dagRuns", json=body).json())

    def start_run(self, dag_id: str, as_of: date, params: Mapping[str, Any] | None = None) -> Run:
        """Trigger a run of one date, unpausing the DAG if need be.

        Unpausing a DAG makes Airflow start its scheduled run of yesterday at once. Nobody asked for that one,
        so a run made while the DAG is paused takes its place (logical date and interval), and the schedule
        goes on from there. Without the interval the scheduler would stay at that date for ever (3.3.2).
        """
        conf = {**(params or {}), "as_of": as_of.isoformat()}
        now = datetime.now(UTC)
        run_id = f"manual__{as_of}__{now:%Y-%m-%dT%H.%M.%S.%f}"
        if not self.dag(dag_id)["is_paused"]:
            return self.trigger(dag_id, conf, run_id=run_id)
        yesterday = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
        try:
            run = self.trigger(
                dag_id,
                conf,
                run_id=run_id,
                logical_date=yesterday,
                data_interval=(yesterday, yesterday + timedelta(days=1)),
            )
        except AirflowError as error:
            if error.status_code != 409:
                raise
            run = self.trigger(dag_id, conf, run_id=run_id)  # that date has a run, so nothing will start
        self.unpause(dag_id)
        return run

    def run(self, dag_id: str, run_id: str) -> Run:
        return _run(self._get(f"/dags/{dag_id}/dagRuns/{run_id}"))

    def runs(self, dag_id: str, limit: int = 100) -> list[Run]:
        """The newest runs first."""
        answer = self._get(f"/dags/{dag_id}/dagRuns", {"limit": limit, "order_by": "-run_after"})
        return [_run(raw) for raw in answer["dag_runs"]]

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        answer = self._get(f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", {"limit": 100})
        return [
            TaskInstance(
                raw["task_id"],
                raw["state"],
                raw["try_number"],
                _moment(raw["start_date"]),
                _moment(raw["end_date"]),
                raw.get("pid"),
                raw.get("hostname"),
            )
            for raw in answer["task_instances"]
        ]

    def tasks(self, dag_id: str) -> list[str]:
        """The DAG's tasks, in the order in which they run."""
        tasks = self._get(f"/dags/{dag_id}/tasks")["tasks"]
        raw = {task["task_id"]: task["downstream_task_ids"] for task in tasks}
        waiting = {task: sum(task in below for below in raw.values()) for task in raw}
        order: list[str] = []
        while len(order) < len(raw):
            task = next(task for task in raw if task not in order and waiting[task] == 0)
            order.append(task)
            for below in raw[task]:
                waiting[below] -= 1
        return order

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """What a task handed on, or None."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        try:
            return self._get(path, {"deserialize": "false", "stringify": "false"})["value"]
        except AirflowError as error:
            if error.status_code == 404:
                return None
            raise

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1) -> str:
        """A task's log as plain lines."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        content = self._get(path, {"full_content": "true"})["content"]
        if isinstance(content, str):
            return content
        return "\n".join(_log_line(line) for line in content)

    def links(self, dag_id: str, run_id: str, task_id: str) -> dict[str, str]:
        """The buttons on a task's page that have an address."""
        answer = self._get(f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/links")["extra_links"]
        return {name: address for name, address in answer.items() if address}

    def clear(
        self, dag_id: str, run_id: str, task_ids: list[str] | None = None, downstream: bool = True
    ) -> int:
        """Run tasks again (all if none are named); returns how many were cleared."""
        body: dict[str, Any] = {
            "dag_run_id": run_id,
            "dry_run": False,
            "only_failed": False,
            "include_downstream": downstream,
            "reset_dag_runs": True,
        }
        if task_ids:
            body["task_ids"] = task_ids
        answer = self._send("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", json=body).json()
        return int(answer["total_entries"])

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Mark a task by hand, as the UI does; failing a running one ends its processes."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        self._send("PATCH", path, json={"new_state": state})

    def set_run_state(self, dag_id: str, run_id: str, state: str) -> None:
        """Mark a run by hand, as the UI does."""
        self._send("PATCH", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}", json={"state": state})

    def create_backfill(
        self,
        dag_id: str,
        first_day: date,
        last_day: date,
        *,
        params: Mapping[str, Any] | None = None,
        max_active_runs: int = 2,
        reprocess: str = "none",
        backwards: bool = False,
    ) -> int:
        """Make the runs of first_day..last_day, both included; returns the backfill's id.

        Args:
            reprocess: none, failed or completed: what to do with days that have a run.

        On SQLite Airflow refuses with 503 while another process writes, and may leave an active backfill without runs
        behind, which would be in the way of the next try. So such a one is cancelled, and tried again.

        Raises:
            AirflowError: 409, another backfill of the DAG is active; 503, the database stayed locked.
        """
        body = {
            "dag_id": dag_id,
            "from_date": f"{first_day}T00:00:00Z",
            "to_date": f"{last_day}T00:00:00Z",
            "run_backwards": backwards,
            "dag_run_conf": dict(params or {}),
            "reprocess_behavior": reprocess,
            "max_active_runs": max_active_runs,
        }
        before = self._active_backfills(dag_id)

        def locked(error: BaseException) -> bool:
            return isinstance(error, AirflowError) and error.status_code == 503 and "locked" in str(error)

        for attempt in Retrying(
            retry=retry_if_exception(locked),
            stop=stop_after_delay(LOCKED_SECONDS),
            wait=wait_exponential(0.5, max=4),
            reraise=True,
        ):
            with attempt:
                # Whose creation was cut short: an active one that was not there, and has made no run.
                for number in self._active_backfills(dag_id) - before:
                    self._send("PUT", f"/api/v2/backfills/{number}/cancel")
                return int(self._send("POST", "/api/v2/backfills", json=body).json()["id"])
        raise AssertionError("unreachable")

    def backfill_days(
        self, dag_id: str, first_day: date, last_day: date, *, reprocess: str = "none"
    ) -> list[date]:
        """The days for which a backfill would make runs, or run again; nothing is made."""
        body = {
            "dag_id": dag_id,
            "from_date": f"{first_day}T00:00:00Z",
            "to_date": f"{last_day}T00:00:00Z",
            "reprocess_behavior": reprocess,
        }
        answer = self._send("POST", "/api/v2/backfills/dry_run", json=body).json()
        moments = (_moment(entry["logical_date"]) for entry in answer["backfills"])
        return sorted(moment.date() for moment in moments if moment is not None)

    def backfills(self, dag_id: str, limit: int = 20) -> list[Backfill]:
        """The newest first."""
        found = self._get("/backfills", {"dag_id": dag_id, "limit": limit, "order_by": "-id"})["backfills"]
        return [
            Backfill(
                int(one["id"]),
                datetime.fromisoformat(one["from_date"]),
                datetime.fromisoformat(one["to_date"]),
                _moment(one["completed_at"]),
            )
            for one in found
        ]

    def backfill_runs(self, dag_id: str, backfill: Backfill) -> list[Run]:
        """Runs of a backfill's days, the earliest day first; a later backfill of the same days has them as well."""
        filters = {
            "run_type": "backfill",
            "logical_date_gte": backfill.first.isoformat(),
            "logical_date_lte": backfill.last.isoformat(),
            "order_by": "logical_date",
            "limit": PAGE,
        }
        found: list[Run] = []
        while True:
            page = self._get(f"/dags/{dag_id}/dagRuns", {**filters, "offset": len(found)})["dag_runs"]
            found += map(_run, page)
            if len(page) < PAGE:
                return found

    def _active_backfills(self, dag_id: str) -> set[int]:
        return {one.id for one in self.backfills(dag_id, limit=100) if one.completed is None}

    def backfill_finished(self, backfill_id: int) -> bool:
        return self._get(f"/backfills/{backfill_id}")["completed_at"] is not None

    def asset_events(self, name: str, limit: int = 20) -> list[dict[str, Any]]:
        """The newest events of an asset first."""
        params = {"name_pattern": name, "limit": limit, "order_by": "-timestamp"}
        events = self._get("/assets/events", params)["asset_events"]
        return [event for event in events if event.get("name") in (name, None)]

    # --- how -------------------------------------------------------------------------------------------

    def page_status(self, address: str) -> int:
        """What an address answers, redirects followed; 0 if nothing does. Only Airflow is told who asks."""
        headers = self._headers(authenticated=address.startswith(f"{self.address}/"))
        try:
            answer = httpx.get(address, headers=headers, follow_redirects=True, timeout=15.0, trust_env=False)
        except httpx.HTTPError:
            return 0
        return answer.status_code

    def _get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        return self._send("GET", f"/api/v2{path}", params=params).json()

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        authenticated: bool = True,
    ) -> httpx.Response:
        repeatable = method != "POST"  # which may have arrived, and would make a second one

        def worth_it(error: BaseException) -> bool:
            if isinstance(error, httpx.ConnectError):
                return True
            if isinstance(error, AirflowError):
                return repeatable and error.status_code in RETRIED_STATUS
            return repeatable and isinstance(error, httpx.TransportError)

        try:
            for attempt in Retrying(
                retry=retry_if_exception(worth_it),
                stop=stop_after_delay(RETRY_SECONDS),
                wait=wait_exponential(0.3, max=3),
                reraise=True,
            ):
                with attempt:
                    return self._once(method, path, params, json, authenticated)
        except httpx.TransportError as error:
            raise AirflowError(f"Airflow at {self.address} does not answer: {error!r}") from error
        raise AssertionError("unreachable")

    def _once(
        self, method: str, path: str, params: Mapping[str, Any] | None, json: Any, authenticated: bool
    ) -> httpx.Response:
        def ask() -> httpx.Response:
            headers = self._headers(authenticated)
            return self._http.request(method, path, params=params, json=json, headers=headers)

        answer = ask()
        if answer.status_code == 401 and authenticated:  # the token is a day old
            self._token = None
            answer = ask()
        if answer.is_error:
            raise AirflowError(
                f"Airflow answers {answer.status_code} to {method} {path}: {_detail(answer)}",
                answer.status_code,
            )
        return answer

    def _headers(self, authenticated: bool) -> dict[str, str]:
        if not authenticated:
            return {}
        if self._token is None:
            body = {"username": self._user, "password": self._password}
            answer = self._http.post("/auth/token", json=body)
            if answer.is_error:
                raise AirflowError(
                    f"Airflow at {self.address} refuses the login of {self._user} ({answer.status_code}): "
                    f"{_detail(answer)}",
                    answer.status_code,
                )
            self._token = answer.json()["access_token"]
        return {"Authorization": f"Bearer {self._token}"}


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("detail", answer.text))[:600]
    except (ValueError, AttributeError):
        return answer.text[:600]


def _log_line(line: Any) -> str:
    if not isinstance(line, dict):
        return str(line)
    errors = line.get("error_detail") or []
    return "\n".join([str(line.get("event", "")), *(f"{e['exc_type']}: {e['exc_value']}" for e in errors)])


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _run(raw: Mapping[str, Any]) -> Run:
    return Run(
        raw["dag_run_id"],
        raw["state"],
        raw["run_type"],
        _moment(raw["logical_date"]),
        _moment(raw["start_date"]),
        _moment(raw["end_date"]),
        dict(raw.get("conf") or {}),
        (_moment(raw.get("data_interval_start")), _moment(raw.get("data_interval_end"))),
        _moment(raw.get("run_after")),
    )
