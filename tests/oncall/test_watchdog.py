"""The watchdog on a fake clock: a store, Airflow's answers and the sink over real HTTP on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from audiorec.champion import write_pointer
from audiorec.history import Entry, History
from audiorec.oncall import sinks
from audiorec.oncall.alerts import Alert
from audiorec.oncall.watchdog import Watchdog, pause
from audiorec.settings import Settings, load_settings
from audiorec.stack.client import AirflowClient
from audiorec.store import Store

START = datetime(2026, 11, 24, 6, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HEALTHY = {
    part: {"status": "healthy"} for part in ("metadatabase", "scheduler", "dag_processor", "triggerer")
}


@dataclass
class World:
    """Airflow, a webhook and a dead man's switch on one local server, and what the watchdog's clock says."""

    settings: Settings
    port: int
    now: datetime = START
    health: dict[str, Any] | None = field(default_factory=lambda: dict(HEALTHY))
    runs: list[dict[str, Any]] = field(default_factory=list)
    tasks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    receipts: dict[str, Any] = field(default_factory=dict)
    backfills: list[dict[str, Any]] = field(default_factory=list)
    hook_status: int = 200
    ready: int = 200
    """What the recommendation service answers; 0: nothing."""
    told: list[dict[str, Any]] = field(default_factory=list)
    switch: int = 0
    days: set[date] = field(default_factory=set)
    asked: list[date] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    """What Airflow was asked for."""
    dog: Watchdog | None = None

    def start(self) -> None:
        """A new watchdog, as after a restart."""

        def ready(day: date) -> bool:
            self.asked.append(day)
            return day in self.days

        client = AirflowClient(f"http://127.0.0.1:{self.port}", "admin", "pw")
        self.dog = Watchdog(self.settings, now=lambda: self.now, client=client, ready=ready)

    def look(self, minutes: float = 1) -> list[str]:
        """Let time pass, look; what reached the webhook meanwhile."""
        if self.dog is None:
            self.start()
        assert self.dog is not None
        self.now += minutes * MINUTE
        before = len(self.told)
        self.dog.look()
        return [f"{told['dedup_key']} {told['status']}" for told in self.told[before:]]

    @property
    def store(self) -> Store:
        return Store(self.settings.store.uri, self.settings.store.scratch)

    def champion(self, as_of: str) -> None:
        release = {"as_of": as_of, "manifests": {}}
        write_pointer(self.store, self.settings.release.model_name, "7", release)

    def extracted(self, day: str) -> None:
        self.store.commit(
            dataset="extract",
            key=day,
            fingerprint="e",
            outputs={},
            inputs={},
            settings={},
            code="",
            facts={},
        )

    def run(
        self,
        run_id: str,
        state: str,
        end: datetime | None = None,
        day: str = "2026-11-23",
        run_type: str = "scheduled",
    ) -> None:
        start = datetime.fromisoformat(f"{day}T00:00:00+00:00")
        self.runs = [run for run in self.runs if run["dag_run_id"] != run_id]
        self.runs.append(
            {
                "dag_run_id": run_id,
                "state": state,
                "run_type": run_type,
                "logical_date": start.isoformat(),
                "data_interval_start": start.isoformat(),
                "data_interval_end": (start + timedelta(days=1)).isoformat(),
                "run_after": (start + timedelta(days=1)).isoformat(),
                "start_date": (start + timedelta(days=1)).isoformat(),
                "end_date": end.isoformat() if end else None,
                "conf": {},
            }
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    kept: list[World] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: Any = None) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            world, path = kept[0], self.path.split("?")[0]
            if path != "/readyz":
                world.paths.append(path)
            parts = path.split("/")
            if path == "/switch":
                world.switch += 1
                self.answer(200)
            elif path == "/readyz" and world.ready:
                self.answer(world.ready, {})
            elif path == "/readyz":
                self.close_connection = True
            elif path == "/api/v2/monitor/health":
                self.answer(200 if world.health else 500, world.health)
            elif path.endswith("/dagRuns"):
                self.answer(200, {"dag_runs": world.runs})
            elif path.endswith("/backfills"):
                self.answer(200, {"backfills": world.backfills})
            elif path.endswith("/taskInstances"):
                self.answer(200, {"task_instances": world.tasks.get(parts[6], [])})
            elif "/xcomEntries/" in path:
                found = world.receipts.get(parts[6])
                self.answer(200, {"value": found}) if found else self.answer(404, {"detail": "no"})
            else:
                self.answer(404, {"detail": "not found"})

        def do_POST(self) -> None:
            world = kept[0]
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/auth/token":
                self.answer(201, {"access_token": "t"})
            else:
                if world.hook_status == 200:
                    world.told.append(body)
                self.answer(world.hook_status)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    settings = load_settings(
        services={"home": str(tmp_path / "home"), "airflow_port": server.server_port},
        store={"uri": str(tmp_path / "store"), "scratch": str(tmp_path / "scratch")},
        mlflow={"uri": "http://127.0.0.1:9"},
        alerts={"webhook_url": f"{address}/hook", "deadman_url": f"{address}/switch", "serving_url": address},
    )
    kept.append(World(settings, server.server_port))
    kept[0].champion("2026-11-23")
    kept[0].extracted("2026-11-23")
    yield kept[0]
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiorec.stack.client.RETRY_SECONDS", 0.2)
    monkeypatch.setattr(sinks, "WEBHOOK_TRIES", 1)


def test_seven_quiet_days_tell_nobody(world: World):
    """A release a day, at four in the morning; a look every two hours; Airflow away for half a minute each day."""
    world.now = datetime(2026, 11, 24, tzinfo=UTC)
    for day in range(24, 31):
        data = f"2026-11-{day - 1}"
        world.days.add(date.fromisoformat(data))
        for hour in range(0, 24, 2):
            if hour == 2:
                world.extracted(data)
            if hour == 4:
                world.champion(data)
                world.run(f"r{day}", "success", world.now, data)
                world.receipts[f"r{day}"] = {"as_of": data}
            assert world.look(120) == []
        world.health = None
        assert world.look(0) == []
        world.health = dict(HEALTHY)
        assert world.look(0.5) == []
    assert world.switch == 7 * 14


def test_airflow_that_is_down_is_told_once_within_two_minutes_and_its_return_too(world: World):
    assert world.look() == []
    world.health = {**HEALTHY, "scheduler": {"status": "unhealthy"}}
    assert world.look() == []
    world.health = None  # another part of it: the same alert
    assert world.look() == ["AF-DOWN:airflow firing"]
    alert = world.told[-1]
    assert alert["severity"] == "page"
    assert "api-server does not answer" in alert["summary"]
    assert alert["links"]["Runbook"].endswith("/recommender/runbooks/AF-DOWN.md")
    assert "users" not in json.dumps(alert).lower() or "user_id" not in json.dumps(alert)
    assert world.look() == world.look() == []
    world.start()  # the watchdog itself was restarted
    assert world.look(0.1) == world.look() == world.look() == []
    world.health = dict(HEALTHY)
    assert world.look() == ["AF-DOWN:airflow recovered"]
    assert world.look() == []


@pytest.mark.parametrize("offset", range(0, 60, 15))
@pytest.mark.parametrize("part", ["scheduler", "api-server"])
def test_at_whatever_moment_between_two_looks_it_dies_it_is_told_within_two_minutes(
    world: World, part: str, offset: int
):
    """Airflow calls a scheduler unhealthy whose heartbeat, every five seconds, is thirty old; a server is silent at once."""
    died, noticed = world.now + timedelta(seconds=offset), 35 if part == "scheduler" else 0
    assert world.look(0) == []
    assert world.dog is not None
    wait = pause(world.settings, [])
    assert wait == 60
    while not world.told:
        world.now += timedelta(seconds=wait)
        if (world.now - died).total_seconds() >= noticed:
            world.health = {**HEALTHY, "scheduler": {"status": "unhealthy"}} if part == "scheduler" else None
        wait = pause(world.settings, world.dog.look())
    assert (world.now - died).total_seconds() <= 120
    assert [told["code"] for told in world.told] == ["AF-DOWN"]


def test_an_airflow_that_starts_beside_the_watchdog_has_its_time(world: World):
    world.health = {**HEALTHY, "scheduler": {"status": "unhealthy"}}
    assert [world.look(0.2) for _ in range(3)] == [[], [], []]  # no first heartbeat for 36 s
    world.health = dict(HEALTHY)
    assert world.look(0.2) == []
    world.health = {**HEALTHY, "scheduler": {"status": "unhealthy"}}
    assert [world.look(0.2) for _ in range(3)] == [[], [], ["AF-DOWN:airflow firing"]]


def test_an_airflow_that_does_not_answer_is_not_asked_for_its_runs(world: World):
    """Each question would wait for as long as a client is patient, and the alert with it."""
    assert world.look() == []
    assert any(path.endswith("/dagRuns") for path in world.paths)
    world.health, before = None, len(world.paths)
    assert [world.look(), world.look()] == [[], ["AF-DOWN:airflow firing"]]
    assert {path for path in world.paths[before:] if path != "/switch"} == {"/api/v2/monitor/health"}


def test_an_airflow_that_is_not_there_is_down(world: World):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    services = world.settings.services.model_copy(update={"airflow_port": free})
    world.settings = world.settings.model_copy(update={"services": services})
    assert [world.look(), world.look()] == [[], ["AF-DOWN:airflow firing"]]


def test_a_champion_of_old_data_is_told_by_the_datas_date(world: World):
    """Data of 11-23 end on 11-24 at 00:00; 36 h later is 11-25 at 12:00."""
    world.days.add(date(2026, 11, 24))
    world.now = datetime(2026, 11, 25, 11, 58, tzinfo=UTC)
    assert [world.look(), world.look(), world.look()] == [[], [], ["STALE:2026-11-23 firing"]]
    assert "champion version 7 rests on data of 2026-11-23, 36 h old" in world.told[-1]["summary"]
    world.extracted("2026-11-20")  # a backfill makes nothing fresh
    assert world.look(60) == []
    world.champion("2026-11-24")
    assert world.look() == ["STALE:2026-11-23 recovered"]


def test_a_held_champion_that_grows_old_wakes_nobody(world: World):
    world.days.add(date(2026, 11, 25))
    history = History(world.store, world.settings.release.model_name)
    end = "2026-11-27T12:00:00+00:00"
    held = Entry("rollback", START.isoformat(), "ann", "empty shelves", until=end)
    history.finish(history.begin(held), "done", START)
    world.now = datetime(2026, 11, 26, 12, tzinfo=UTC)
    assert world.look() == ["STALE:2026-11-23 firing"]
    assert world.told[-1]["severity"] == "ticket"
    assert f"it is held, by ann until {end}: empty shelves" in world.told[-1]["summary"]


def test_nothing_released_is_nothing_stale(world: World):
    Path(world.store.root, f"champion-{world.settings.release.model_name}.json").unlink()
    world.days.add(date(2027, 11, 23))
    world.now = datetime(2027, 11, 24, 12, tzinfo=UTC)
    assert world.look() == []


def test_a_day_that_does_not_come_is_told_until_it_is_there(world: World):
    """11-24 is due on 11-25 at 00:15; the tables are asked every quarter of an hour, not every minute."""
    world.now = datetime(2026, 11, 25, 0, 13, tzinfo=UTC)
    assert [world.look(), world.look()] == [[], ["DATA-LATE:2026-11-24 firing"]]
    for _ in range(20):
        assert world.look() == []
    assert world.asked == [date(2026, 11, 24)] * 2
    # The next day is late as well, before the first has come.
    world.champion("2026-11-25")
    world.now = datetime(2026, 11, 26, 0, 20, tzinfo=UTC)
    assert world.look() == ["DATA-LATE:2026-11-25 firing"]
    world.days.add(date(2026, 11, 24))
    assert world.look(16) == ["DATA-LATE:2026-11-24 recovered"]
    world.days.add(date(2026, 11, 25))
    assert world.look(16) == ["DATA-LATE:2026-11-25 recovered"]


def test_what_airflow_has_told_is_not_told_again(world: World):
    told = Alert("DATA-LATE", "await_sources waits", data_date="2026-11-24", dag_id="audiobook_recommender")
    sinks.send(told, world.settings)
    world.now = datetime(2026, 11, 25, 6, tzinfo=UTC)
    assert world.look() == []
    world.days.add(date(2026, 11, 24))
    assert world.look(16) == []  # nor is it the watchdog's to say that it is over


def task(
    pid: int, state: str = "running", start: datetime = START, name: str = "train_hgnn"
) -> dict[str, Any]:
    return {
        "task_id": name,
        "state": state,
        "try_number": 1,
        "start_date": start.isoformat(),
        "end_date": None,
        "pid": pid,
        "hostname": socket.gethostname(),
    }


def test_a_task_whose_process_is_gone_is_dead_after_a_minute(world: World):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    # Airflow's word is that it started now; the clock of the test is elsewhere.
    world.now = datetime.now(UTC)
    world.days.add((world.now - timedelta(minutes=15)).date() - timedelta(days=1))
    world.champion((world.now - timedelta(days=1)).date().isoformat())
    world.run("r1", "running")
    world.tasks["r1"] = [task(child.pid, start=world.now), task(0, state="success", name="extract")]
    assert [world.look(), world.look()] == [[], []]
    child.kill()
    child.wait()
    assert [world.look(), world.look()] == [[], ["RUN-DEAD:2026-11-23 firing"]]
    alert = world.told[-1]
    assert f"its process {child.pid} is gone" in alert["summary"]
    assert alert["task_id"] == "train_hgnn"
    assert alert["links"]["Run"].endswith("/dags/audiobook_recommender/runs/r1")
    world.tasks["r1"] = [task(os.getpid(), start=world.now)]  # Airflow has tried it again
    assert world.look() == ["RUN-DEAD:2026-11-23 recovered"]


def test_a_task_far_past_its_limit_is_dead_wherever_it_runs(world: World):
    limit = world.settings.resources["train_hgnn"].timeout_minutes
    world.run("r1", "running")
    world.tasks["r1"] = [{**task(1, start=START), "hostname": "elsewhere"}]
    assert world.look(limit + 9) == world.look(0.5) == []
    assert [world.look(1), world.look(1)] == [[], ["RUN-DEAD:2026-11-23 firing"]]


def test_a_run_that_failed_without_a_word_is_told_until_its_date_has_a_good_one(world: World):
    """Marked as failed by hand: Airflow calls no callback."""
    world.run("r1", "failed", START)
    world.run("b1", "failed", START, "2026-11-21", run_type="backfill")
    assert world.look(0.5) == []  # a callback may be on its way
    assert world.look(1) == ["RUN-FAILED:2026-11-23 firing"]
    assert (world.told[-1]["run_id"], world.told[-1]["severity"]) == ("r1", "page")
    assert world.told[-1]["links"]["Run"].endswith("/dags/audiobook_recommender/runs/r1")
    assert world.look() == []
    world.run("r1", "running")  # cleared
    assert world.look() == []
    world.run("r1", "success", world.now)
    world.receipts["r1"] = {"as_of": "2026-11-23"}
    assert world.look() == ["RUN-FAILED:2026-11-23 recovered"]


def test_a_failed_run_whose_task_has_told_why_is_not_told_again(world: World):
    sinks.send(
        Alert("DQ-CRITICAL", "x", dag_id="audiobook_recommender", run_id="r1", data_date="2026-11-23"),
        world.settings,
    )
    world.run("r1", "failed", START)
    assert [world.look(2), world.look()] == [[], []]


def test_a_green_run_without_a_receipt_is_told_until_its_date_has_one(world: World):
    world.receipts["good"] = {"as_of": "2026-11-22"}
    world.run("good", "success", START, "2026-11-22")
    world.run("empty", "success", START + MINUTE)
    assert world.look(2) == ["NO-RECEIPT:2026-11-23 firing"]
    assert world.told[-1]["run_id"] == "empty"
    world.champion("2026-11-24"), world.extracted("2026-11-24"), world.extracted("2026-11-25")
    assert world.look(60 * 25) == []  # out of sight, and not mended
    world.run("again", "success", world.now)
    world.receipts["again"] = {"as_of": "2026-11-23"}
    assert world.look() == ["NO-RECEIPT:2026-11-23 recovered"]


def test_a_backfill_s_failures_are_one_ticket_at_its_end(world: World):
    backfill = {"id": 3, "from_date": "2026-11-01T00:00:00Z", "to_date": "2026-11-21T00:00:00Z"}
    world.backfills = [{**backfill, "completed_at": None}]
    for day in range(1, 22):
        failed = day in (2, 5, 7, 11, 13)
        run_id = f"backfill-{day}"
        world.run(run_id, "failed" if failed else "success", world.now, f"2026-11-{day:02}", "backfill")
        world.receipts[run_id] = {"as_of": f"2026-11-{day:02}"}
        if failed:
            world.tasks[run_id] = [task(1, "failed", name=name) for name in ("validate", "receipt")]
    assert world.look() == []  # it goes on
    world.backfills = [{**backfill, "completed_at": world.now.isoformat()}]
    assert world.look() == ["BACKFILL-FAILED:backfill 3 firing"]
    (told,) = world.told
    assert told["severity"] == "ticket"
    assert (
        "backfill 3 of 2026-11-01 to 2026-11-21 has ended: 5 of 21 days failed: 2026-11-02 (validate)"
        in told["summary"]
    )
    assert told["links"]["Backfills"].endswith("/backfills")
    assert world.look() == []
    for day in (2, 5, 7, 11, 13):
        world.run(f"backfill-{day}", "success", world.now, f"2026-11-{day:02}", "backfill")
    assert world.look() == ["BACKFILL-FAILED:backfill 3 recovered"]


@pytest.mark.parametrize("answer", [0, 503])
def test_a_service_that_was_ready_and_is_not_is_told_within_two_minutes(world: World, answer: int):
    assert world.look() == []
    world.ready = answer
    assert [world.look(0.9), world.look(0.9)] == [[], []]
    assert world.look(0.2) == ["SERVICE-DOWN:service firing"]
    assert world.told[-1]["severity"] == "page"
    assert world.told[-1]["user_effect"].startswith("Nobody gets recommendations")
    world.start()  # the watchdog itself was restarted, and has never seen the service well
    assert [world.look(), world.look()] == [[], []]
    world.ready = 200
    assert world.look() == ["SERVICE-DOWN:service recovered"]


def test_a_service_that_was_never_ready_is_no_alarm(world: World):
    """Before the first release there is nothing to serve, and not every machine that watches has a service."""
    world.ready = 503
    assert [world.look() for _ in range(4)] == [[], [], [], []]


def test_a_service_that_restarts_is_no_alarm(world: World):
    assert world.look() == []
    world.ready = 0
    assert world.look(0.5) == []
    world.ready = 200
    assert [world.look(0.6), world.look()] == [[], []]


def test_that_a_backfill_is_out_of_sight_does_not_mend_it(world: World):
    days = {"id": 3, "from_date": "2026-11-01T00:00:00Z", "to_date": "2026-11-01T00:00:00Z"}
    world.backfills = [{**days, "completed_at": world.now.isoformat()}]
    world.run("backfill-1", "failed", world.now, "2026-11-01", "backfill")
    assert world.look() == ["BACKFILL-FAILED:backfill 3 firing"]
    later = world.now + timedelta(days=15)
    newest = f"{later - timedelta(days=1):%Y-%m-%d}"
    world.champion(newest), world.extracted(newest)
    assert world.look(15 * 24 * 60) == []


def test_alerts_wait_in_order_while_the_sink_is_down(world: World):
    world.hook_status = 503
    world.health = None
    assert [world.look(), world.look()] == [[], []]
    world.health = dict(HEALTHY)
    assert world.look() == []
    assert len(list(sinks.spool_folder(world.settings).glob("*.json"))) == 2
    assert [line["delivered"] for line in sinks.recorded(world.settings)] == [False, False]
    world.start()
    world.hook_status = 200
    assert world.look() == ["AF-DOWN:airflow firing", "AF-DOWN:airflow recovered"]
    assert list(sinks.spool_folder(world.settings).glob("*.json")) == []
    assert world.look() == []


def test_a_damaged_spooled_alert_stops_none_of_the_others(world: World):
    folder = sinks.spool_folder(world.settings)
    folder.mkdir(parents=True)
    (folder / "00000000000000000001-aa.json").write_text("{")
    assert sinks.send(Alert("TIMEOUT", "slow", data_date="2026-11-23"), world.settings)
    assert [told["dedup_key"] for told in world.told] == ["TIMEOUT:2026-11-23"]
    assert [path.suffix for path in folder.iterdir()] == [".unreadable"]


def test_a_check_that_cannot_be_made_says_neither_wrong_nor_over(world: World):
    world.run("empty", "success", START + MINUTE)
    assert world.look(2) == ["NO-RECEIPT:2026-11-23 firing"]
    pointer = Path(world.store.root, f"champion-{world.settings.release.model_name}.json")
    world.now = datetime(2026, 11, 25, 12, 5, tzinfo=UTC)
    world.days.add(date(2026, 11, 24))
    assert world.look() == ["STALE:2026-11-23 firing"]
    pointer.write_text("{")
    assert world.look() == []
    world.champion("2026-11-24")
    assert world.look() == ["STALE:2026-11-23 recovered"]


def test_the_services_run_it_if_the_settings_say_so(world: World):
    from audiorec.stack.control import components

    assert "watchdog" not in components(world.settings)
    watched = world.settings.model_copy(
        update={"alerts": world.settings.alerts.model_copy(update={"watch": True})}
    )
    assert components(watched)["watchdog"] == [sys.executable, "-m", "audiorec.oncall.watchdog"]


def test_as_a_process_it_looks_and_ends_when_asked(world: World):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AUDIOREC_")}
    for group in ("services", "store", "mlflow", "alerts"):
        plain = getattr(world.settings, group).model_dump()
        plain = {name: value for name, value in plain.items() if value is not None}
        environment[f"AUDIOREC_{group.upper()}"] = json.dumps(plain)
    world.champion("2020-01-01")
    with subprocess.Popen([sys.executable, "-m", "audiorec.oncall.watchdog"], env=environment) as process:
        for _ in range(600):
            if world.switch or process.poll() is not None:
                break
            threading.Event().wait(0.1)
        process.terminate()
        assert process.wait(20) == 0
    assert "STALE:2020-01-01" in [told["dedup_key"] for told in world.told]
