"""Runs of every kind over the real stack: which date each takes, and what the same date again costs.

The longer runs (a backfill, a run beside it, a killed training) are started together, because most of a run
is waiting for processes to start; each test then looks at its own.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from ui_services import FIRST_DAY, KILLED_EPOCHS, PATIENCE_SECONDS, Services

from audiorec import launcher
from audiorec.chain import CHAIN
from audiorec.stack.client import Run
from audiorec.stack.layout import DAG_ID

pytestmark = [pytest.mark.long, pytest.mark.services, pytest.mark.timeout(PATIENCE_SECONDS + 300)]

ONE_DAY = timedelta(days=1)
SECOND_DAY, THIRD_DAY = FIRST_DAY + ONE_DAY, FIRST_DAY + 2 * ONE_DAY
BEFORE_ALL_DATA = date(2020, 1, 1)
KILL_AFTER_EPOCHS = 5


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def manifest_bytes(services: Services, run_id: str) -> dict[str, bytes]:
    """Every task's manifest as it lies in the store."""
    return {task: Path(services.result(run_id, task)["manifest"]).read_bytes() for task in CHAIN}


@dataclass(frozen=True)
class Again:
    """A run of a date that is there already, and what was there before it."""

    run_id: str
    manifests: dict[str, bytes]
    versions: set[str]


@dataclass(frozen=True)
class Runs:
    """What was started together."""

    by_day: dict[date, str]
    beside: str
    """The run by hand, without a date, of the backfill's third day."""
    empty: str
    killed: str
    tries: list[str]
    """The killed training's log, by try."""
    states: set[str | None]
    """States that the killed training was seen in."""


@pytest.fixture(scope="module")
def again(first_run: str, services: Services) -> Again:
    """The first run's date again, with nothing else going on."""
    before, versions = manifest_bytes(services, first_run), set(services.versions())
    params = {"as_of": FIRST_DAY.isoformat(), "profile": "smoke"}
    run = services.wait(services.client.trigger(DAG_ID, params).run_id)
    return Again(run.run_id, before, versions)


def test_the_same_date_again_makes_nothing(first_run: str, again: Again, services: Services):
    assert services.client.run(DAG_ID, again.run_id).state == "success"
    assert again.run_id != first_run
    states = {task: services.result(again.run_id, task)["state"] for task in CHAIN}
    assert set(states.values()) == {"up_to_date"}, states
    for task in CHAIN:
        assert "up to date, nothing to do" in services.log(again.run_id, task)
    assert manifest_bytes(services, again.run_id) == again.manifests
    assert set(services.versions()) == again.versions
    assert services.result(again.run_id, "receipt")["worked"] == []


def test_the_scheduled_run_is_about_the_day_of_its_interval_and_waits_for_it(
    first_run: str, services: Services
):
    """Airflow makes it when the DAG is unpaused; the tables end long before yesterday, unless clocks go wrong."""
    (run,) = [run for run in services.client.runs(DAG_ID) if run.run_type == "scheduled"]
    assert run.logical_date is not None
    assert services.result(run.run_id, "resolve_as_of") == run.logical_date.date().isoformat()
    assert midnight(run.logical_date.date()) == run.logical_date
    states = services.states(run.run_id)
    assert states["await_sources"] in ("up_for_reschedule", "scheduled", "queued", "running")
    assert states["extract"] is None


@pytest.fixture(scope="module")
def together(services: Services, again: Again) -> Runs:
    """Start everything else, kill the training once it has left a checkpoint, wait until all have ended."""
    client = services.client
    params = {"as_of": FIRST_DAY.isoformat(), "profile": "standard", "promote": "never"}
    killed = client.trigger(DAG_ID, params).run_id
    killer = threading.Thread(target=kill_training, args=(services, FIRST_DAY), daemon=True)
    killer.start()
    params = {"as_of": BEFORE_ALL_DATA.isoformat(), "profile": "smoke"}
    empty = client.trigger(DAG_ID, params).run_id
    backfill = client.create_backfill(
        DAG_ID, FIRST_DAY, THIRD_DAY, params={"profile": "smoke"}, max_active_runs=2
    )
    by_day: dict[date, str] = {}
    beside = None
    tries: list[str] = []
    seen: set[str | None] = set()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        assert time.monotonic() < deadline, f"after {PATIENCE_SECONDS} s not all runs have ended"
        if not tries:
            training = next(ti for ti in client.task_instances(DAG_ID, killed) if ti.task_id == "train_hgnn")
            seen.add(training.state)
            if training.state in ("success", "failed", "upstream_failed"):
                tries = [services.log(killed, "train_hgnn", 1 + done) for done in range(training.try_number)]
                # Nobody needs the rest of that run.
                client.set_task_state(DAG_ID, killed, "train_two_tower", "failed")
        for run in client.runs(DAG_ID):
            if run.run_type == "backfill" and run.logical_date:
                by_day[run.logical_date.date()] = run.run_id
        third = by_day.get(THIRD_DAY)
        if beside is None and third and services.states(third).get("resolve_as_of") == "success":
            # Any hour of the day after means the third day.
            hour = midnight(THIRD_DAY + ONE_DAY) + timedelta(hours=10)
            params = {"profile": "smoke", "promote": "never"}
            beside = client.trigger(DAG_ID, params, logical_date=hour).run_id
        by_hand = [client.run(DAG_ID, run).finished for run in (empty, killed, beside) if run]
        if tries and beside and all(by_hand) and client.backfill_finished(backfill):
            break
        time.sleep(1)
    return Runs(by_day, beside, empty, killed, tries, seen)


def kill_training(services: Services, as_of: date) -> None:
    """SIGKILL the slow training's own process once it has left a checkpoint, five epochs on."""
    scratch = Path(services.settings.store.scratch)
    progress = scratch / "progress" / as_of.isoformat() / "train_hgnn.json"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.05)
        try:
            if json.loads(progress.read_text(encoding="utf-8"))["done"] < KILL_AFTER_EPOCHS:
                continue
        except (OSError, ValueError):
            continue
        if not list((scratch / "checkpoints").glob("hgnn-*.safetensors")):
            continue
        # Not the scheduler's children: on a starved machine its supervisor may have started another one since.
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if {"tasks.train_hgnn", "standard", as_of.isoformat()} <= set(process.cmdline()):
                    process.kill()
                    return


def finished(services: Services, run_id: str) -> Run:
    run = services.client.run(DAG_ID, run_id)
    assert run.state == "success", services.states(run_id)
    return run


def test_a_backfill_of_three_days_is_about_its_own_days(first_run: str, together: Runs, services: Services):
    assert sorted(together.by_day) == [FIRST_DAY, SECOND_DAY, THIRD_DAY]
    for day, run_id in together.by_day.items():
        finished(services, run_id)
        assert services.result(run_id, "resolve_as_of") == day.isoformat()
        states = services.states(run_id)
        assert states.pop("await_sources") == "skipped"
        assert set(states.values()) == {"success"}
    # The first of them was there already.
    assert services.result(together.by_day[FIRST_DAY], "receipt")["worked"] == []


def test_a_further_day_extracts_one_day(first_run: str, together: Runs, services: Services):
    def days(run_id: str) -> dict[str, str]:
        inputs = services.manifest(run_id, "extract").inputs
        return {name: fingerprint for name, fingerprint in inputs.items() if name.startswith("interactions/")}

    before = days(first_run)
    for day in (SECOND_DAY, THIRD_DAY):
        run_id = together.by_day[day]
        now = days(run_id)
        assert set(now) - set(before) == {f"interactions/{day}"}
        # The window moves on by one day, and the days that both have are the same partitions.
        assert len(set(before) - set(now)) == 1
        assert {name: now[name] for name in set(now) & set(before)} == {
            name: before[name] for name in set(now) & set(before)
        }
        notes = services.run_record(run_id, "extract")["notes"]
        assert f"1 day partition(s) written, {len(now) - 1} already there" in notes
        assert len(services.store.versions("interactions", day.isoformat())) == 1
        before = now


def test_a_backfill_registers_and_moves_no_alias(first_run: str, together: Runs, services: Services):
    versions = {version.as_of: version for version in services.versions().values()}
    assert set(versions) == {FIRST_DAY, SECOND_DAY, THIRD_DAY}
    assert len(services.versions()) == 3
    assert services.champion().number == versions[FIRST_DAY].number
    assert versions[FIRST_DAY].promoted
    for day in (SECOND_DAY, THIRD_DAY):
        assert not versions[day].promoted
    assert "backfill" in services.result(together.by_day[SECOND_DAY], "promote")["verdict"]


def test_a_run_by_hand_without_a_date_is_about_the_day_before_its_logical_date(
    together: Runs, services: Services
):
    run = finished(services, together.beside)
    assert run.run_type == "manual"
    assert run.logical_date == midnight(THIRD_DAY) + timedelta(hours=34)
    assert "as_of" not in run.conf
    assert services.result(run.run_id, "resolve_as_of") == THIRD_DAY.isoformat()


def test_two_runs_of_one_date_at_once_end_in_one_result(together: Runs, services: Services):
    one, other = together.by_day[THIRD_DAY], together.beside
    overlap = [services.client.run(DAG_ID, run) for run in (one, other)]
    assert all(run.start and run.end for run in overlap)
    assert max(run.start for run in overlap) < min(run.end for run in overlap)  # type: ignore[type-var]
    for task in CHAIN:
        assert services.result(one, task)["manifest"] == services.result(other, task)["manifest"]
        assert len(services.store.versions(task, THIRD_DAY.isoformat())) == 1, task
        if task != "promote":  # it runs each time, to look at the champion
            worked = [services.result(run, task)["state"] for run in (one, other)]
            assert sorted(worked) == ["done", "up_to_date"], (task, worked)
    assert sum(version.as_of == THIRD_DAY for version in services.versions().values()) == 1


def test_a_day_before_all_data_says_so_and_what_to_do(together: Runs, services: Services):
    run = services.client.run(DAG_ID, together.empty)
    states = services.states(run.run_id)
    assert run.state == "failed"
    assert (states["extract"], states["validate"], states["embed_text"]) == (
        "success",
        "failed",
        "upstream_failed",
    )
    log = services.log(run.run_id, "validate")
    assert "[DQ-CRITICAL] validate of 2020-01-01 found data that no model may be trained on." in log
    assert "DQ-EMPTY audiobook_events.occurred_at: found no row that counts" in log
    assert "Remedy: load the table" in log
    assert "It is not tried again." in log
    assert re.search(r"What to do: open the Data Docs", log)
    links = services.client.links(DAG_ID, run.run_id, "validate")
    assert links["Runbook"] == f"{services.airflow}/recommender/runbooks/DQ-CRITICAL.md"
    assert links["Data Docs"].startswith(f"{services.airflow}/recommender/data-docs/2020-01-01/")
    assert re.search(rf"Data Docs +{re.escape(links['Data Docs'])}\n", log)  # to be clicked in the log, too
    # Airflow's log does not wrap: the remedies would lie beyond the window's edge.
    quoted = [line for line in log.splitlines() if line.startswith("  | ") and "/" not in line]
    assert quoted
    assert max(map(len, quoted)) <= launcher.SHOWN_WIDTH
    receipt = services.log(run.run_id, "receipt")
    assert "no manifest from validate (failed)\n" in receipt


def test_a_killed_training_fails_in_words_and_its_retry_goes_on(together: Runs, services: Services):
    assert "up_for_retry" in together.states
    assert len(together.tries) == 2, together.tries
    first, second = together.tries
    assert f"[TASK-KILLED] train_hgnn of {FIRST_DAY} was killed from outside by SIGKILL." in first
    assert "Airflow tries it again if tries are left." in first
    assert "The retry goes on from the last checkpoint" in " ".join(first.split())
    resumed = re.search(r"resumed from a checkpoint after (\d+) epoch\(s\)", second)
    assert resumed, second
    assert 0 < int(resumed[1]) < KILLED_EPOCHS
    assert services.states(together.killed)["train_hgnn"] == "success"


def test_its_result_is_as_if_undisturbed(together: Runs, services: Services):
    from audiorec.runner import run_task
    from audiorec.settings import load_settings

    manifest = Path(services.result(together.killed, "train_hgnn")["manifest"])
    disturbed = manifest.read_bytes()
    settings = load_settings(services.settings_file, "standard")
    undisturbed = run_task("train_hgnn", settings, FIRST_DAY, force=True)
    assert Path(undisturbed["manifest"]) == manifest
    assert undisturbed["counts"]["epochs"] == KILLED_EPOCHS
    assert manifest.read_bytes() == disturbed
