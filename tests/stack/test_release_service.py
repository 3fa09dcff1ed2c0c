"""The rollback's form, the watchdog and a backfill's dry run on the real thing: Airflow and MLflow on free ports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from audiorec import stack
from audiorec.champion import describe, read_pointer
from audiorec.history import History
from audiorec.oncall.watchdog import Watchdog
from audiorec.registry import CHAMPION, Registry
from audiorec.release import ReleaseControl
from audiorec.settings import Settings, load_settings
from audiorec.stack.client import AirflowClient, AirflowError
from audiorec.stack.layout import DAG_ID
from audiorec.stack.servers import free_ports
from audiorec.stack.watch import watch
from audiorec.store import Store

pytestmark = [pytest.mark.long, pytest.mark.services]
ROLLBACK = "audiobook_rollback"


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
        mlflow={"uri": f"http://127.0.0.1:{mlflow_port}"},
        alerts={"watch": True, "watch_seconds": 2.0, "deadman_url": f"http://127.0.0.1:{mlflow_port}/health"},
    )


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[AirflowClient]:
    running = stack.start(settings, say=lambda _: None)
    try:
        account = stack.login(settings)
        with AirflowClient(running.airflow, account.user, account.password) as client:
            yield client
    finally:
        stack.stop(settings, say=lambda _: None)


def release(settings: Settings, day: int) -> None:
    """A small release of a day becomes the champion, as `promote` makes it."""
    store, as_of = Store(settings.store.uri, settings.store.scratch), date(2026, 11, day)
    with store.working_folder() as folder:
        (folder / "vectors.bin").write_text(f"vectors of {day}")
        manifest = store.commit(
            dataset="refresh",
            key=str(as_of),
            fingerprint=f"feed{day}",
            outputs={"vectors.bin": folder / "vectors.bin"},
            inputs={},
            settings={},
            code="",
            facts={},
        )
    control = ReleaseControl(settings)
    with control.exclusive():
        tags = {"release": json.dumps(describe(as_of, {"refresh": manifest})), "hit_rate": "0.4"}
        version = control.registry.register(as_of, f"feed{day}", tags, {}, [])
        control.move(CHAMPION, version, "promote", "the schedule", "scheduled run", "promoted: fine")
        control.registry.record_verdict(version, "promoted: fine", "fresh", "scheduled", True)


def test_a_rollback_by_the_form_is_served_within_a_minute(settings: Settings, client: AirflowClient):
    for day in (18, 19, 20):
        release(settings, day)
    client.wait_for_dag(ROLLBACK, 120)
    assert client.dag(ROLLBACK)["is_paused"] is False
    with pytest.raises(AirflowError, match="reason") as refused:
        client.trigger(ROLLBACK, {})
    assert refused.value.status_code == 400
    began = datetime.now(UTC)
    run = client.trigger(ROLLBACK, {"reason": "empty shelves", "hold_days": 2})
    ended = watch(client, ROLLBACK, run.run_id, timeout_seconds=240)
    assert ended.state == "success", client.log(ROLLBACK, run.run_id, "rollback")
    pointed = read_pointer(Store(settings.store.uri, settings.store.scratch), settings.release.model_name)
    champion = Registry(settings).alias(CHAMPION)
    assert champion is not None
    assert pointed is not None
    assert (champion.number, pointed[0]) == ("2", "2")
    assert ended.end is not None
    assert (ended.end - began).total_seconds() < 60
    history = History(Store(settings.store.uri, settings.store.scratch), settings.release.model_name)
    entry = next(history.newest_first()).entry
    assert (entry.action, entry.who, entry.why) == ("rollback", "admin (Airflow)", "empty shelves")
    assert "champion rolled back from version 3 (2026-11-20) to 2 (2026-11-19)" in client.log(
        ROLLBACK, run.run_id, "rollback"
    )
    assert client.asset_events("audiobook_release")[0]["extra"]["as_of"] == "2026-11-19"
    # Cleared, it answers and moves nothing.
    client.clear(ROLLBACK, run.run_id)
    assert watch(client, ROLLBACK, run.run_id, timeout_seconds=240).state == "success"
    again = Registry(settings).alias(CHAMPION)
    assert again is not None
    assert again.number == "2"


def test_a_backfills_days_are_asked_of_airflow(client: AirflowClient):
    found = client.backfill_days(DAG_ID, date(2026, 11, 20), date(2026, 11, 22), reprocess="completed")
    assert found == [date(2026, 11, 20), date(2026, 11, 21), date(2026, 11, 22)]


def test_the_watchdog_runs_beside_the_services_and_finds_them_well(settings: Settings, client: AirflowClient):
    state = stack.status(settings)
    assert state.services["watchdog"] == "healthy"
    assert state.healthy
    log = (Path(settings.services.home) / "logs" / "watchdog.log").read_text()
    assert "a look failed" not in log
    assert "runs are not looked at" not in log
    # The same look here, with nothing late: Airflow's real answers have the fields that it reads.
    dog = Watchdog(settings, client=client, ready=lambda _: True)
    assert [
        finding.code for finding in dog.look() if finding.code in ("AF-DOWN", "RUN-DEAD", "NO-RECEIPT")
    ] == []
