"""The DAG's operators, one call at a time, with the launcher replaced."""

from __future__ import annotations

import copy
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from audiorec import launcher
from audiorec.oncall import callbacks

UI = "http://127.0.0.1:8080"
DAY = datetime(2026, 11, 23, tzinfo=UTC)


def context(run_type: str = "scheduled", waited: timedelta | None = None, **params: Any) -> dict[str, Any]:
    first = datetime.now(UTC) - waited if waited else None
    ti = SimpleNamespace(
        log_url=f"{UI}/dags/audiobook_recommender/runs/r/tasks/t?try_number=1",
        get_first_reschedule_date=lambda _: first,
        xcom_pull=lambda task_ids: {"fingerprint": "fp-extract"},
    )
    dag_run = SimpleNamespace(
        run_type=run_type,
        logical_date=DAY,
        data_interval_start=DAY,
        data_interval_end=DAY + timedelta(days=1),
        run_after=DAY + timedelta(days=1),
    )
    defaults = {"as_of": None, "profile": None, "force": False, "promote": None}
    events: Any = defaultdict(lambda: SimpleNamespace(extra={}))
    return {"ti": ti, "dag_run": dag_run, "params": {**defaults, **params}, "outlet_events": events}


@pytest.fixture
def task(dag):
    """A task of the DAG by name, with its date filled in as the template would."""

    def get(name: str) -> Any:
        found = copy.copy(dag.get_task(name))
        found.as_of = "2026-11-23"
        return found

    return get


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The tables are not there; collects the minutes that alerts name."""
    told: list[float] = []
    monkeypatch.setattr(launcher, "source_ready", lambda *_: False)
    monkeypatch.setattr(callbacks, "data_late", lambda _c, _d, minutes, _t: told.append(minutes))
    return told


@pytest.mark.parametrize(
    ("minutes", "alerts", "ends"),
    [(0, 0, False), (14, 0, False), (16, 1, False), (300, 1, False), (361, 1, True)],
)
def test_the_daily_run_waits_then_alerts_then_goes_on(task, late, minutes: int, alerts: int, ends: bool):
    answer = task("await_sources").poke(context(waited=timedelta(minutes=minutes)))
    assert len(late) == alerts
    assert bool(answer) is ends
    if ends:
        assert answer.xcom_value == {"as_of": "2026-11-23", "ready": False}


@pytest.mark.parametrize(("minutes", "alerts"), [(179, 0), (181, 1)])
def test_how_long_it_waits_before_it_alerts_is_a_setting(
    task, late, monkeypatch: pytest.MonkeyPatch, minutes: int, alerts: int
):
    monkeypatch.setenv("AUDIOREC_ALERTS__LATE_MINUTES", "180")
    task("await_sources").poke(context(waited=timedelta(minutes=minutes)))
    assert len(late) == alerts


def test_tables_that_are_there_end_the_wait(task, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launcher, "source_ready", lambda *_: True)
    answer = task("await_sources").poke(context())
    assert answer.xcom_value == {"as_of": "2026-11-23", "ready": True}


def test_a_run_by_hand_goes_on_at_once_and_pages_nobody(task, late):
    assert task("await_sources").poke(context("manual", waited=timedelta(hours=9)))
    assert late == []


def test_a_backfill_does_not_look(task, monkeypatch: pytest.MonkeyPatch):
    from airflow.sdk.exceptions import AirflowSkipException

    monkeypatch.setattr(launcher, "source_ready", lambda *_: pytest.fail("it looked"))
    with pytest.raises(AirflowSkipException):
        task("await_sources").poke(context("backfill"))


def test_what_was_released_is_told_with_its_verdict(task, monkeypatch: pytest.MonkeyPatch):
    result = launcher.TaskResult(
        "promote",
        "2026-11-23",
        "done",
        "m/promote",
        "fp",
        {"version": 7},
        "promoted: fresh",
        {"MLflow version": "http://m/7"},
    )
    monkeypatch.setattr(launcher, "run_task", lambda *_, **__: result)
    given = context()
    promote = task("promote")
    returned = promote.execute(given)
    (event,) = given["outlet_events"].values()
    assert event.extra == {
        "as_of": "2026-11-23",
        "verdict": "promoted: fresh",
        "fingerprint": "fp",
        "version": 7,
        "manifest": "m/promote",
    }
    assert returned["verdict"] == "promoted: fresh"
    links = {link.name: link.get_link(promote, ti_key=None) for link in promote.operator_extra_links}
    assert links == {"MLflow version": "http://m/7", "Runbook": ""}


def test_a_failed_validation_links_its_data_docs_and_runbook(task, monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, Any] = {}

    def fail(name: str, as_of: Any, settings: Any, **_: Any) -> None:
        outcome = launcher.Outcome(65, None, 1.0, 10, 1000, ("users: 3 null ids",))
        base = settings.alerts.runbook_base
        failure = launcher.explain(name, as_of, outcome, launcher.READINESS, base)
        assert failure is not None
        docs = f"{launcher.Path(settings.store.uri).absolute()}/data_docs/2026-11-23/ab/index.html"
        failure.result = launcher.TaskResult(name, str(as_of), "done", "m", "f", links={"Data Docs": docs})
        seen["failure"] = failure
        raise failure

    monkeypatch.setattr(launcher, "run_task", fail)
    validate = task("validate")
    with pytest.raises(launcher.FinalFailure, match="DQ-CRITICAL"):
        validate.execute(context())
    links = {link.name: link.get_link(validate, ti_key=None) for link in validate.operator_extra_links}
    assert links == {
        "Data Docs": f"{UI}/recommender/data-docs/2026-11-23/ab/index.html",
        "Runbook": f"{UI}/recommender/runbooks/DQ-CRITICAL.md",
    }
    assert f"Runbook: {UI}/recommender/runbooks/DQ-CRITICAL.md" in str(seen["failure"])


def test_all_tasks_build_on_the_extract_of_their_run(task, monkeypatch: pytest.MonkeyPatch):
    calls: list[dict[str, Any]] = []

    def run(name: str, as_of: Any, settings: Any, **options: Any) -> launcher.TaskResult:
        calls.append({"profile of settings": settings.profile, **options})
        return launcher.TaskResult(name, str(as_of), "done", "m", "f")

    monkeypatch.setattr(launcher, "run_task", run)
    task("extract").execute(context())
    task("embed_text").execute(context("backfill", profile="smoke", force=True))
    assert [call["extract"] for call in calls] == [None, "fp-extract"]
    assert calls[1]["profile of settings"] == calls[1]["profile"] == "smoke"
    assert (calls[1]["force"], calls[1]["run_type"]) == (True, "backfill")


def test_contradicting_dates_stop_the_run_at_once(task):
    from audiorec.errors import BadSettings

    with pytest.raises(BadSettings, match="Param as_of"):
        task("resolve_as_of").execute(context("backfill", as_of="2026-11-20"))
    assert task("resolve_as_of").execute(context("backfill")) == "2026-11-23"
