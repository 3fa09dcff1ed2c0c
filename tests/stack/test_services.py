"""The real thing: Airflow and MLflow on free ports, in a home of their own."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import httpx
import psutil
import pytest

from audiorec import stack
from audiorec.settings import Settings, load_settings
from audiorec.stack import control, processes, supervisor
from audiorec.stack.client import AirflowClient
from audiorec.stack.layout import DAG_ID, Layout, StackError
from audiorec.stack.servers import free_ports
from audiorec.stack.watch import watch

pytestmark = [pytest.mark.long, pytest.mark.services]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("home")
    airflow_port, mlflow_port, serving_port = free_ports(3)
    return load_settings(
        source={"uri": str(home / "no-such-folder")},
        store={"uri": str(home / "store"), "scratch": str(home / "scratch")},
        services={
            "home": str(home),
            "airflow_port": airflow_port,
            "mlflow_port": mlflow_port,
            "serving_port": serving_port,
        },
    )


@pytest.fixture(scope="module")
def running(settings: Settings) -> Iterator[stack.Status]:
    yield stack.start(settings, say=lambda _: None)
    stack.stop(settings, say=lambda _: None)


def members(settings: Settings) -> list[psutil.Process]:
    state = supervisor.read_state(Layout.of(settings).state)
    assert state is not None
    return processes.members(state["stack_id"], control._leaders(state))


def test_everything_is_up(running: stack.Status):
    assert running.healthy
    assert set(running.services) == {
        "mlflow",
        "api-server",
        "scheduler",
        "dag-processor",
        "triggerer",
        "serving",
    }
    assert set(running.processes) == {"supervisor", *running.services}
    assert running.seconds is not None


def test_every_listener_is_on_loopback(running: stack.Status, settings: Settings):
    ours = {process.pid for process in members(settings)}
    listening = [
        connection.laddr
        for connection in psutil.net_connections(kind="inet")
        if connection.pid in ours and connection.status == psutil.CONN_LISTEN
    ]
    ports = {address.port for address in listening}
    assert {settings.services.airflow_port, settings.services.mlflow_port} <= ports
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_the_password_is_private_and_opens_the_door(running: stack.Status, settings: Settings):
    passwords = Layout.of(settings).passwords
    assert stat.S_IMODE(passwords.stat().st_mode) == 0o600  # Airflow opens it, too
    account = stack.login(settings)
    logs = "".join(log.read_text(errors="replace") for log in Layout.of(settings).logs.glob("*.log"))
    assert account.password not in logs
    with AirflowClient(running.airflow, account.user, account.password) as client:
        assert client.dag(DAG_ID)["is_paused"] is True
        assert client.import_errors() == {}
    with (
        AirflowClient(running.airflow, account.user, "wrong") as client,
        pytest.raises(Exception, match="refuses the login of admin"),
    ):
        client.dag(DAG_ID)


def test_pages_of_the_plugin_are_behind_the_login(running: stack.Status, settings: Settings):
    """Airflow leaves the routes of plugins open (3.3.2), so each is tried."""
    docs = Path(settings.store.uri) / "data_docs" / "2026-11-23" / "index.html"
    docs.parent.mkdir(parents=True)
    docs.write_text("<h1>Data quality</h1>")
    addresses = [
        f"{running.airflow}/recommender/data-docs/2026-11-23/index.html",
        f"{running.airflow}/recommender/runbooks/TASK-KILLED",
    ]
    for address in addresses:
        assert httpx.get(address).status_code == 401
        sent_on = httpx.get(address, headers={"Accept": "text/html"})
        assert sent_on.status_code == 302
        assert sent_on.headers["Location"] == f"{running.airflow}/auth/login/?next={address}"
    account = stack.login(settings)
    body = {"username": account.user, "password": account.password}
    token = httpx.post(f"{running.airflow}/auth/token", json=body).json()["access_token"]
    for credentials in ({"headers": {"Authorization": f"Bearer {token}"}}, {"cookies": {"_token": token}}):
        with httpx.Client(**credentials) as browser:
            answers = [browser.get(address) for address in addresses]
            assert [answer.status_code for answer in answers] == [200, 200]
            assert "Data quality" in answers[0].text
            assert "connect-src 'none'" in answers[0].headers["Content-Security-Policy"]
            for wrong in ("data-docs/%2e%2e/%2e%2e/run/secrets.json", "data-docs/no.html", "runbooks/x"):
                assert browser.get(f"{running.airflow}/recommender/{wrong}").status_code == 404


def test_starting_again_does_nothing(running: stack.Status, settings: Settings):
    again = stack.start(settings, say=lambda _: None)
    assert again.seconds is None
    assert again.processes == running.processes


def test_how_they_were_started_is_written_down(running: stack.Status, settings: Settings):
    last = control.last_start(settings)
    assert last is not None
    assert (last.settings_file, last.source) == (None, settings.source.uri)


def test_a_run_that_cannot_work_ends_at_once_and_says_why(running: stack.Status, settings: Settings):
    """The whole way: trigger, first task, source that is not there, no retry, alert, red run."""
    account = stack.login(settings)
    with AirflowClient(running.airflow, account.user, account.password) as client:
        run = client.start_run(DAG_ID, date(2026, 11, 20))
        run = watch(client, DAG_ID, run.run_id, timeout_seconds=90)
        states = {ti.task_id: ti.state for ti in client.task_instances(DAG_ID, run.run_id)}
        log = client.log(DAG_ID, run.run_id, "await_sources")
        assert client.xcom(DAG_ID, run.run_id, "resolve_as_of") == "2026-11-20"
        # Nobody's scheduled run came along when the DAG was unpaused.
        assert [other.run_id for other in client.runs(DAG_ID)] == [run.run_id]
        client.pause(DAG_ID)
    assert run.state == "failed"
    assert (states["resolve_as_of"], states["await_sources"], states["extract"]) == (
        "success",
        "failed",
        "upstream_failed",
    )
    assert "[BAD-SETTINGS]" in log
    assert "no-such-folder" in log
    alerts = Layout.of(settings).logs / "alerts.jsonl"
    assert len(alerts.read_text().splitlines()) == 1


def test_a_service_that_is_killed_comes_back(running: stack.Status, settings: Settings):
    before = stack.status(settings).processes["triggerer"]
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        now = stack.status(settings)
        if now.processes.get("triggerer", before) != before:
            break
        time.sleep(0.3)
    assert now.processes["triggerer"] != before


def test_stopping_leaves_nothing(running: stack.Status, settings: Settings):
    """Last, since it ends what the others use."""
    port = settings.services.airflow_port
    ours = members(settings)
    assert len(ours) >= len(running.processes)
    with pytest.raises(
        StackError, match=rf"port {port} .* is taken by process \d+ .*AUDIOREC_SERVICES__AIRFLOW_PORT"
    ):
        other_home = {**settings.services.model_dump(), "home": f"{settings.services.home}/other"}
        stack.start(settings.model_copy(update={"services": settings.services.model_copy(update=other_home)}))
    assert stack.stop(settings, say=lambda _: None) is True
    assert [process for process in ours if process.is_running()] == []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    assert stack.stop(settings, say=lambda _: None) is False
    assert stack.status(settings).running is False
