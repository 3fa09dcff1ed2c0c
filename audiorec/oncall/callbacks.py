"""What Airflow calls when a task or a run ends. They read Airflow's context; they import nothing of Airflow.

Both levels are needed (measured on 3.3.2): the task's callback runs in the task's process and knows the
exception; when that process is killed at the last try, the dag-processor calls it, without an exception and perhaps
twice. The run's callback runs in the dag-processor and knows only that something failed, so it is silent if a task's
has spoken. Neither is called when a run is marked as failed by hand: the watchdog tells of it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import httpx

from audiorec.dates import RunFacts, resolve_as_of
from audiorec.errors import BadSettings
from audiorec.launcher import TaskFailed, runbook_link
from audiorec.oncall import sinks
from audiorec.oncall.alerts import NO_EFFECT, USER_EFFECT, Alert, Severity
from audiorec.oncall.pages import browsable, ui_address, with_runbooks
from audiorec.oncall.receipt import NoReceipt
from audiorec.settings import Settings, load_settings, settings_of_environment

log = logging.getLogger("audiorec.oncall")

Context = Mapping[str, Any]

LOST = "RUN-DEAD"
"""Of a task that Airflow lost: the watchdog's code for the same thing seen from outside."""


def task_failed(context: Context) -> None:
    """`on_failure_callback` of every task: a task has failed for good."""
    settings = settings_or_defaults()
    alert = failure_alert(context, settings)
    if _told_at_its_end(alert.run_type, settings):
        return
    if alert.code == NoReceipt.code and sinks.firing_for_run(alert.run_id, alert.clear_number, settings):
        log.info("no alert for the missing receipt: the failed task has sent its own")
        return
    if alert.code == LOST:  # Airflow may find it lost in two ways, and the watchdog too
        _send_once(alert, settings)
    else:
        sinks.send(alert, settings)


def run_failed(context: Context) -> None:
    """`on_failure_callback` of the DAG, the safety net: a run has failed."""
    settings = settings_or_defaults()
    facts = _run_facts(context)
    if _told_at_its_end(facts["run_type"], settings):
        return
    if sinks.firing_for_run(facts["run_id"], facts["clear_number"], settings):
        log.info("no alert for the failed run %s: its failed task has sent one", facts["run_id"])
        return
    ti = context.get("ti")
    task_id = getattr(ti, "task_id", None)
    reason = str(context.get("reason") or "unknown")
    alert = Alert(
        code="RUN-FAILED",
        summary=f"the run failed ({reason}) and no task said why"
        + (f"; the last one was {task_id}" if task_id else ""),
        task_id=task_id,
        try_number=getattr(ti, "try_number", None),
        advice="open the run: a red task without a message was killed or marked by hand. Clear it",
        links=_links(context, settings, "RUN-FAILED"),
        champion=champion(settings),
        severity=_severity(facts["run_type"]),
        **facts,
    )
    sinks.send(alert, settings)


def _told_at_its_end(run_type: str, settings: Settings) -> bool:
    """A backfill's failures are one alert of the watchdog, when it has ended (BACKFILL-FAILED); without one, each is told."""
    if run_type != "backfill" or not settings.alerts.watch:
        return False
    log.info("no alert for one day of a backfill: the watchdog tells of all its failures at its end")
    return True


def run_succeeded(context: Context) -> None:
    """`on_success_callback` of the DAG: if the date had an alert, say that it is over."""
    settings = settings_or_defaults()
    facts = _run_facts(context)
    if not facts["data_date"]:
        return
    answered = sinks.open_for_date(facts["data_date"], settings)
    if not answered:
        return
    alert = Alert(
        code="RECOVERED",
        status="recovered",
        severity="info",
        summary=f"the run of {facts['data_date']} ended well; over: {', '.join(answered)}",
        user_effect=USER_EFFECT["RECOVERED"],
        links=_links(context, settings, None),
        champion=champion(settings),
        **facts,
    )
    sinks.send(alert, settings)


def data_late(context: Context, as_of: date, waited_minutes: float, detail: str) -> None:
    """The day's tables are not there although they should be; sent once, by whoever sees it first."""
    settings = settings_or_defaults()
    facts = {**_run_facts(context), "data_date": as_of.isoformat()}
    alert = Alert(
        code="DATA-LATE",
        severity="page" if facts["run_type"] == "scheduled" else "ticket",
        summary=f"the source tables have no complete day {as_of} after {waited_minutes:.0f} min of waiting",
        task_id="await_sources",
        user_effect=USER_EFFECT["DATA-LATE"],
        error=detail,
        advice="ask the owner of the tables; the run goes on by itself when they arrive",
        links=_links(context, settings, "DATA-LATE"),
        champion=champion(settings),
        **facts,
    )
    _send_once(alert, settings)


def _send_once(alert: Alert, settings: Settings) -> None:
    """Send an alert unless the same thing is told already and not over, whoever told it."""
    if alert.dedup_key in sinks.open_alerts(settings):
        log.info("no alert %s: it is told already", alert.dedup_key)
        return
    sinks.send(alert, settings)


def failure_alert(context: Context, settings: Settings) -> Alert:
    """What the task-level callback sends, from the exception and the run."""
    facts = _run_facts(context)
    ti = context["ti"]
    error = context.get("exception")
    common: dict[str, Any] = {
        "task_id": ti.task_id,
        "try_number": ti.try_number,
        "champion": champion(settings),
        "severity": _severity(facts["run_type"]),
    }
    if isinstance(error, TaskFailed):
        links = dict(error.result.links) if error.result else {}
        links = browsable(links, settings, ui_address(getattr(ti, "log_url", None)) or "")
        return Alert(
            code=error.code,
            summary=f"{error.task} {error.reason}",
            user_effect=USER_EFFECT.get(error.code, NO_EFFECT),
            error=type(error).__name__,
            signal_name=error.signal_name,
            peak_mb=error.peak_mb,
            limit_mb=error.limit_mb,
            last_lines=error.tail,
            advice=error.advice,
            links={**links, **_links(context, settings, error.code)},
            **common,
            **facts,
        )
    if error is None:  # called by the dag-processor: nothing of the task was left to say why
        return Alert(
            code=LOST,
            summary=f"Airflow lost {ti.task_id}: its process was gone without a word, at its last try too",
            user_effect=USER_EFFECT.get(LOST, NO_EFFECT),
            advice="Clear the task; if it is lost again, look for the kernel's out-of-memory killer (dmesg)",
            links=_links(context, settings, LOST),
            **common,
            **facts,
        )
    code = getattr(error, "code", None)
    if not isinstance(code, str):
        code = "BAD-SETTINGS" if isinstance(error, BadSettings) else "TASK-ERROR"
    return Alert(
        code=code,
        summary=f"{ti.task_id} failed: {error}",
        error=type(error).__name__,
        advice="the message says what to do" if code != "TASK-ERROR" else "open the log; see the runbook",
        links=_links(context, settings, code),
        **common,
        **facts,
    )


def settings_or_defaults() -> Settings:
    """The settings; if they are what is broken, what the environment alone says, or the defaults: an alert must go out."""
    try:
        return load_settings()
    except BadSettings as error:
        log.error("the settings cannot be read: %s", error)
    try:
        return settings_of_environment()
    except BadSettings as error:
        log.error("alerts go to the log only: %s", error)
        return Settings.model_construct()


def champion(settings: Settings) -> str | None:
    """What is being served and how old its data are, if MLflow answers within two seconds."""
    try:
        answer = httpx.get(
            f"{settings.mlflow.uri.rstrip('/')}/api/2.0/mlflow/registered-models/alias",
            params={"name": settings.release.model_name, "alias": "champion"},
            timeout=2.0,
        )
        answer.raise_for_status()
        version = answer.json()["model_version"]
        tags = {tag["key"]: tag["value"] for tag in version.get("tags", [])}
        about = f"version {version['version']}"
        if "as_of" in tags:
            age = (datetime.now(UTC).date() - date.fromisoformat(tags["as_of"])).days
            about += f", data of {tags['as_of']} ({age} d old)"
        return about
    except (httpx.HTTPError, KeyError, ValueError):
        return None


def _severity(run_type: str) -> Severity:
    """Only the daily run may wake somebody: who triggers by hand is watching, a backfill can wait."""
    return "page" if run_type == "scheduled" else "ticket"


def _run_facts(context: Context) -> dict[str, Any]:
    dag_run = context.get("dag_run")
    dag = context.get("dag")
    facts: dict[str, Any] = {
        "dag_id": getattr(dag, "dag_id", "") or "",
        "run_id": context.get("run_id") or getattr(dag_run, "run_id", ""),
        "run_type": "",
        "clear_number": 0,
        "data_date": None,
    }
    if dag_run is None:
        return facts
    run = RunFacts.from_dag_run(dag_run)
    facts["run_type"] = run.run_type
    facts["clear_number"] = getattr(dag_run, "clear_number", 0) or 0
    with contextlib.suppress(BadSettings):
        facts["data_date"] = resolve_as_of(context.get("params") or {}, run).isoformat()
    return facts


def _links(context: Context, settings: Settings, code: str | None) -> dict[str, str]:
    links = {}
    log_url = getattr(context.get("ti"), "log_url", None)
    if log_url:
        links["Log"] = log_url
        links["Run"] = log_url.split("/tasks/")[0]
    links["MLflow"] = settings.mlflow.uri
    if code:
        links["Runbook"] = runbook_link(
            with_runbooks(settings, ui_address(log_url)).alerts.runbook_base, code
        )
    return links
