"""Start, stop and look at the services."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from filelock import FileLock, Timeout

from audiorec.settings import SETTINGS_VARIABLE, WHERE, Settings, load_settings
from audiorec.stack.client import AirflowClient, AirflowError
from audiorec.stack.layout import (
    DAG_ID,
    STACK_VARIABLE,
    Layout,
    StackError,
    absolute,
    airflow_address,
    environment,
    login,
    mlflow_address,
    serves_mlflow,
    serving_address,
    write_private,
)
from audiorec.stack.preflight import preflight
from audiorec.stack.processes import Identity, end, sweep
from audiorec.stack.supervisor import launch, read_state, supervisor_of

START_SECONDS = 120.0
STOP_SECONDS = 30.0
LOCK_SECONDS = 150.0
UP = ("preparing", "running")
MODEL_VARIABLE = "AUDIOREC_RELEASE__MODEL_NAME"
"""Set by the demo, whose champion must never be compared with one of somebody's own tables."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Status:
    """What runs and how it is."""

    running: bool
    """The supervisor lives."""
    healthy: bool
    """Every service answers."""
    airflow: str
    mlflow: str
    serving: str
    services: dict[str, str] = field(default_factory=dict)
    """`healthy`, or what is wrong, by service."""
    processes: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    seconds: float | None = None
    """How long `start` took; None if everything was up already."""


def started_with(settings: Settings) -> tuple[Path | None, dict[str, dict[str, Any]]]:
    """Settings file, and groups of settings beside it, that services running in this home were told; nothing if none run."""
    layout = Layout.of(settings)
    state = read_state(layout.state)
    if state is None or supervisor_of(state) is None:
        return None, {}
    told = json.loads(layout.plan.read_text(encoding="utf-8"))["environment"]
    groups = {group: json.loads(told[f"AUDIOREC_{group.upper()}"]) for group in WHERE}
    if MODEL_VARIABLE in told:
        groups["release"] = {"model_name": told[MODEL_VARIABLE]}
    file = told.get(SETTINGS_VARIABLE)
    return Path(file) if file else None, groups


@dataclass(frozen=True)
class LastStart:
    """What the services of a home were last started with, whether they run or not."""

    settings_file: Path | None
    variables: Mapping[str, str]
    """AUDIOREC_ variables of the shell that started them, without the settings file's."""
    source: str | None
    """Source tables that the command named beside file and variables; None if it named none."""


def last_start(settings: Settings) -> LastStart | None:
    """What the services of this home were last started with; None if there is no record of it."""
    try:
        plan = json.loads(Layout.of(settings).plan.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if "variables" not in plan:
        return None  # started by an older version, which did not write it down
    file = plan["environment"].get(SETTINGS_VARIABLE)
    return LastStart(Path(file) if file else None, plan["variables"], plan["source"])


def start(
    settings: Settings,
    *,
    settings_file: Path | None = None,
    wait_seconds: float = START_SECONDS,
    say: Say = print,
) -> Status:
    """Bring the services up and wait until they answer; does nothing if they are up with the same settings.

    With other settings than they run with they are restarted, unless a run of the DAG is active: its tasks
    would change their source or their recipe in the middle.

    Args:
        settings_file: the TOML file that tasks read; its path goes into their environment.

    Raises:
        StackError: what is in the way, or what did not come up, with the end of its log.
    """
    layout = Layout.of(settings)
    layout.make()
    began = time.monotonic()
    with _lock(layout):
        env = environment(settings, uuid.uuid4().hex, settings_file=settings_file)
        configuration = _digest(env)
        state = read_state(layout.state)
        if state is not None and supervisor_of(state) is not None and state["phase"] in UP:
            if state["configuration"] == configuration:
                return _wait(settings, layout, wait_seconds)
            active = _active_runs(settings)
            if active:
                raise StackError(
                    f"the services run with other settings, and {', '.join(active)} is active. Wait for "
                    "it, or end everything with `make down`, then try again"
                )
            say("the settings have changed since the services were started; restarting them")
            _stop(layout, state)
        elif state is not None:
            sweep(state["stack_id"], _leaders(state))
            layout.state.unlink(missing_ok=True)
        preflight(settings)
        say("starting Airflow, MLflow and the recommendation service on this machine ...")
        _launch(settings, layout, env, configuration, settings_file)
        found = _wait(settings, layout, wait_seconds)
    seconds = round(time.monotonic() - began, 1)
    return Status(**{**vars(found), "seconds": seconds})


def stop(settings: Settings, *, say: Say = print) -> bool:
    """End the services that were started from this home, and nothing else; whether there were any.

    Raises:
        StackError: another command is starting or stopping them.
    """
    layout = Layout.of(settings)
    if not layout.run.exists():
        say("nothing was started here")
        return False
    with _lock(layout):
        state = read_state(layout.state)
        if state is None:
            say("nothing is running")
            return False
        _stop(layout, state)
    say("stopped")
    return True


def status(settings: Settings) -> Status:
    """How the services are, asked once."""
    layout = Layout.of(settings)
    state = read_state(layout.state)
    airflow, mlflow, serving = airflow_address(settings), mlflow_address(settings), serving_address(settings)
    if state is None or supervisor_of(state) is None:
        return Status(False, False, airflow, mlflow, serving, error=(state or {}).get("error"))
    services: dict[str, str] = {}
    if serves_mlflow(settings):
        services["mlflow"] = _health(f"{mlflow}/health")
    services["serving"] = _health(f"{serving}/livez")
    services |= _airflow_health(airflow)
    for name, known in state["services"].items():
        if known["identity"] is not None and (name == "watchdog" or name.startswith("worker-")):
            services[name] = "healthy"  # these have no port to ask
        if known["identity"] is None and services.get(name) != "healthy":
            services[name] = f"down (ended {known['deaths']} times, last exit code {known['last_exit']})"
    processes = {name: s["identity"]["pid"] for name, s in state["services"].items() if s["identity"]}
    return Status(
        running=True,
        healthy=bool(services) and set(services.values()) == {"healthy"},
        airflow=airflow,
        mlflow=mlflow,
        serving=serving,
        services=services,
        processes={"supervisor": state["supervisor"]["pid"], **processes},
        error=state["error"],
    )


def components(settings: Settings) -> dict[str, list[str]]:
    """The services' command lines."""
    host, layout = settings.services.host, Layout.of(settings)
    airflow = [sys.executable, "-m", "airflow"]
    found: dict[str, list[str]] = {}
    if serves_mlflow(settings):
        found["mlflow"] = [
            *(sys.executable, "-m", "mlflow", "server", "--host", host),
            *("--port", str(settings.services.mlflow_port)),
            *("--backend-store-uri", f"sqlite:///{layout.mlflow / 'mlflow.db'}"),
            *("--artifacts-destination", str(layout.mlflow / "artifacts")),
            # The command creates the tables before it starts a worker; several on a fresh file collide.
            *("--workers", "1"),
        ]
    port = str(settings.services.airflow_port)
    found["api-server"] = [*airflow, "api-server", "--host", host, "--port", port, "--workers", "1"]
    # --skip-serve-logs: the log servers bind all interfaces, whatever the configuration says.
    found["scheduler"] = [*airflow, "scheduler", "--skip-serve-logs"]
    found["dag-processor"] = [*airflow, "dag-processor"]
    found["triggerer"] = [*airflow, "triggerer", "--skip-serve-logs"]
    if settings.services.broker_url:
        for number in range(1, settings.services.workers + 1):
            found[f"worker-{number}"] = [
                *(*airflow, "celery", "worker", "--skip-serve-logs"),
                *("--celery-hostname", f"worker-{number}@%h", "--concurrency", "2"),
            ]
    if settings.alerts.watch:
        found["watchdog"] = [sys.executable, "-m", "audiorec.oncall.watchdog"]
    found["serving"] = [sys.executable, "-m", "serving"]
    return found


def _launch(
    settings: Settings,
    layout: Layout,
    env: Mapping[str, str],
    configuration: str,
    settings_file: Path | None,
) -> None:
    told = settings.source.uri
    plan = {
        "stack_id": env[STACK_VARIABLE],
        "configuration": configuration,
        "home": str(layout.home),
        "state": str(layout.state),
        "logs": str(layout.logs),
        "environment": dict(env),
        "source": None if told == load_settings(settings_file).source.uri else absolute(told),
        "variables": {
            name: value
            for name, value in os.environ.items()
            if name.startswith("AUDIOREC_") and name not in (SETTINGS_VARIABLE, STACK_VARIABLE)
        },
        "prepare": [[sys.executable, "-m", "airflow", "db", "migrate"]],
        "services": components(settings),
    }
    # For a person's shell: `set -a; . .audiorec/run/airflow.env; airflow dags list`.
    lines = [
        f"{k}={shlex.quote(v)}" for k, v in sorted(env.items()) if k.startswith(("AIRFLOW", "AUDIOREC_"))
    ]
    write_private(layout.run / "airflow.env", "\n".join(lines) + "\n")
    process = launch(layout.plan, plan)
    deadline = time.monotonic() + 10
    while read_state(layout.state) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise StackError(f"the supervisor did not start; see {layout.logs / 'supervisor.log'}")
        time.sleep(0.1)


def _wait(settings: Settings, layout: Layout, seconds: float) -> Status:
    """Until everything answers and the DAG can be triggered."""
    deadline = time.monotonic() + seconds
    found = status(settings)
    while time.monotonic() < deadline:
        found = status(settings)
        if not found.running:
            state = read_state(layout.state) or {}
            layout.state.unlink(missing_ok=True)
            raise StackError(
                f"the services did not start: {state.get('error') or 'their supervisor ended'}. "
                f"Logs are in {layout.logs}"
            )
        if found.healthy:
            break
        time.sleep(0.5)
    else:
        unwell = {name: how for name, how in found.services.items() if how != "healthy"}
        raise StackError(
            f"after {seconds:.0f} s not everything answers: {unwell or 'nothing has'}. Logs are in "
            f"{layout.logs}; `make down` ends what is running"
        )
    account = login(settings)
    with AirflowClient(found.airflow, account.user, account.password) as client:
        try:
            client.wait_for_dag(DAG_ID, max(5.0, deadline - time.monotonic()))
        except AirflowError as error:
            raise StackError(str(error)) from error
    return found


def _stop(layout: Layout, state: Mapping[str, Any]) -> None:
    supervisor = supervisor_of(state)
    if supervisor is not None:
        # It stops its services in its own time; it is killed only if it does not.
        end([supervisor], STOP_SECONDS)
    sweep(state["stack_id"], _leaders(state))
    layout.state.unlink(missing_ok=True)


def _leaders(state: Mapping[str, Any]) -> list[Identity]:
    known = (service["identity"] for service in state["services"].values())
    return [Identity(**identity) for identity in known if identity]


def _digest(env: Mapping[str, str]) -> str:
    """Of everything that tasks and services are told; the stack's id is new every time."""
    told = {
        name: value for name, value in env.items() if name.startswith(("AIRFLOW", "AUDIOREC_", "MLFLOW_"))
    }
    told["python"] = sys.executable
    named = env.get(SETTINGS_VARIABLE)
    if named and Path(named).exists():
        told["settings"] = Path(named).read_text(encoding="utf-8")
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _active_runs(settings: Settings) -> list[str]:
    account = login(settings)
    try:
        with AirflowClient(airflow_address(settings), account.user, account.password) as client:
            return [run.run_id for run in client.runs(DAG_ID) if run.state in ("running", "queued")]
    except AirflowError:
        return []


@contextlib.contextmanager
def _lock(layout: Layout) -> Iterator[None]:
    """One command at a time may start or stop the services of a home."""
    lock = FileLock(layout.run / "lock", timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise StackError(
            f"another command has been starting or stopping these services for {LOCK_SECONDS:.0f} s "
            f"(it holds {layout.run / 'lock'})"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _health(address: str) -> str:
    try:
        answer = httpx.get(address, timeout=3.0, trust_env=False)
    except httpx.HTTPError as error:
        return f"does not answer ({type(error).__name__})"
    return "healthy" if answer.status_code == 200 else f"answers {answer.status_code}"


def _airflow_health(address: str) -> dict[str, str]:
    names = ("api-server", "scheduler", "dag-processor", "triggerer")
    try:
        answer = httpx.get(f"{address}/api/v2/monitor/health", timeout=3.0, trust_env=False)
        answer.raise_for_status()
        report = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        return dict.fromkeys(names, f"does not answer ({type(error).__name__})")
    return {
        "api-server": _word(report.get("metadatabase")),
        "scheduler": _word(report.get("scheduler")),
        "dag-processor": _word(report.get("dag_processor")),
        "triggerer": _word(report.get("triggerer")),
    }


def _word(part: Any) -> str:
    found = (part or {}).get("status")
    return "healthy" if found == "healthy" else f"unhealthy ({found or 'no heartbeat yet'})"
