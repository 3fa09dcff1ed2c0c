"""The watchdog: a process outside Airflow that tells what Airflow itself cannot (`audiorec watch`).

Callbacks need a scheduler, a dag-processor and a task process that live long enough to call them. So every minute this
looks from outside: do Airflow and the recommendation service answer, is anything running that is dead, did a green run leave its receipt, how old
are the data that are served, is the day there. It judges by the *data date*, never by when something last ran: a
backfill of last year makes nothing fresh.

An alert is sent once for each code and data date, however often it is seen, also across restarts: what is open is read
from the record of alerts. When it is over, a recovery is sent. What the sink did not take is sent with the next look.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
import psutil

from audiorec import launcher
from audiorec.champion import read_pointer
from audiorec.dates import end_of
from audiorec.errors import AudiorecError
from audiorec.history import History
from audiorec.oncall import callbacks, sinks
from audiorec.oncall.alerts import NO_EFFECT, USER_EFFECT, Alert, Severity
from audiorec.oncall.pages import with_runbooks
from audiorec.settings import Settings, load_settings
from audiorec.stack.client import AirflowClient, AirflowError, Run, TaskInstance
from audiorec.stack.layout import DAG_ID, StackError, airflow_address, login, serving_address
from audiorec.store import Store

log = logging.getLogger("audiorec.oncall")

BY = "watchdog"
"""Stands for the DAG in its alerts. It says *recovered* of those that it fired itself, and of no others."""

AWAY_SECONDS = 45.0
"""A server that is restarted does not answer for some 20 s, and a scheduler has no heartbeat before its first."""
LATE_SECONDS = 15.0
"""A heartbeat that Airflow has had and calls unhealthy is half a minute late already."""
LOOK_AGAIN_SECONDS = 10.0
"""Pause before the next look while something is wrong and not yet sure: an alert must be out within 120 s."""
DEAD_SECONDS = 60.0
SERVICE_KEY = "SERVICE-DOWN:service"
LIMIT_MARGIN = timedelta(minutes=10)
"""Past a task's own time limit, the launcher's and Airflow's have had their chance."""
LOOK_BACK = timedelta(hours=24)
SPEAKS_FIRST = timedelta(seconds=60)
"""Airflow's own callbacks have so long to tell of a failed run, which know more of it."""
SOURCE_EVERY = timedelta(minutes=15)
"""The look at the source tables starts a process of its own and reads them, so it is rarer."""

SHOWN_DAYS = 10
"""Failed days of a backfill that its alert names; the others are counted."""

FORGET_AFTER = timedelta(days=14)
"""A day that is later than this is not asked for any more; its alert stays open."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong now."""

    code: str
    about: str
    """What tells it from another of its code: the data date, or the run."""
    summary: str
    advice: str
    severity: Severity = "page"
    data_date: str | None = None
    run_id: str = ""
    run_type: str = ""
    task_id: str | None = None
    sure: bool = True
    """Seen for long enough to be told. What is not sure is not told, and is not over either."""

    @property
    def key(self) -> str:
        return f"{self.code}:{self.about}"


@dataclass
class _Seen:
    """Since when something has been wrong, look by look."""

    since: dict[str, datetime] = field(default_factory=dict)

    def lasting(self, now: datetime, wrong: set[str], seconds: float) -> set[str]:
        """Those that have been wrong at every look for at least so long."""
        self.since = {key: self.since.get(key, now) for key in wrong}
        return {key for key, began in self.since.items() if (now - began).total_seconds() >= seconds}


class Watchdog:
    """Looks, and tells.

    Args:
        now: the clock.
        client: talks to Airflow; None where nobody has a login for it (its health is asked all the same).
        ready: whether the source tables have a day.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        client: AirflowClient | None = None,
        ready: Callable[[date], bool] | None = None,
        host: str | None = None,
    ) -> None:
        self._settings = settings
        self._airflow = airflow_address(settings)
        self._now = now
        self._client = client
        self._ready = ready or (lambda day: launcher.source_ready(day, settings, emit=log.info))
        self._host = host or socket.gethostname()
        self._store = Store(settings.store.uri, settings.store.scratch)
        # Kept: each new one reads all certificates. Our own machine is never asked through a proxy.
        self._near = httpx.Client(timeout=5.0, trust_env=False)
        self._far = httpx.Client(timeout=5.0)
        self._serving = settings.alerts.serving_url or serving_address(settings)
        self._down, self._dead, self._unready = _Seen(), _Seen(), _Seen()
        self._was_well = False
        """Whether Airflow was well at any look: before, it may be starting as this watchdog is."""
        self._was_ready = SERVICE_KEY in sinks.open_alerts(settings)
        """Whether the service was ready at any look, or an alert says that it is not: before, there may be none."""
        self._silent = False
        """Whether Airflow's API did not answer at this look."""
        self._backfills_known: set[str] = set()
        """Backfills that were looked at, by what tells their findings apart."""
        self._receipts: set[str] = set()
        """Dates of which a green run with a receipt was seen at the last look."""
        self._asked: dict[date, tuple[datetime | None, bool]] = {}
        """When the source tables were asked for a day, and whether it was missing."""

    def look(self) -> list[Finding]:
        """One look: send what is new and what is over, post what is spooled, tell the dead man's switch.

        A check that cannot be made says nothing, neither *wrong* nor *over*: of a scheduler that does not answer
        nobody knows its runs.
        """
        now = self._now()
        findings: list[Finding] = []
        answered: set[str] = set()
        for codes, check in (
            (("AF-DOWN",), self._airflow_down),
            (("SERVICE-DOWN",), self._service_down),
            (("RUN-DEAD", "NO-RECEIPT", "RUN-FAILED"), self._runs),
            (("BACKFILL-FAILED",), self._backfills),
            (("STALE",), self._stale),
            (("DATA-LATE",), self._data_late),
        ):
            if self._silent and check in (self._runs, self._backfills):
                continue  # they would wait for an answer each, and what is known must be told
            try:
                findings += check(now)
                answered.update(codes)
            except (AirflowError, AudiorecError, launcher.TaskFailed, OSError) as error:
                log.warning(
                    "watchdog: %s could not be looked at: %s", ", ".join(codes), str(error).splitlines()[0]
                )
        self._tell(findings, answered)
        sinks.flush(self._settings)
        if self._settings.alerts.deadman_url:
            try:
                self._far.get(self._settings.alerts.deadman_url).raise_for_status()
            except httpx.HTTPError as error:
                log.warning("watchdog: the dead man's switch was not told: %s", type(error).__name__)
        return findings

    # --- what is looked at

    def _airflow_down(self, now: datetime) -> Iterator[Finding]:
        unwell = {}
        try:
            answer = self._near.get(f"{self._airflow}/api/v2/monitor/health")
            answer.raise_for_status()
            report: Mapping[str, Any] = answer.json()
            for part in ("metadatabase", "scheduler", "dag_processor"):
                word = (report.get(part) or {}).get("status")
                if word != "healthy":
                    unwell[part] = word or "no heartbeat"
        except (httpx.HTTPError, ValueError) as error:
            unwell["api-server"] = f"does not answer ({type(error).__name__})"
        # One key for Airflow as a whole: what is unwell changes while it goes down and comes back.
        self._silent = "api-server" in unwell
        late = self._was_well and not self._silent
        self._was_well = self._was_well or not unwell
        patience = LATE_SECONDS if late else AWAY_SECONDS
        lasting = self._down.lasting(now, {"airflow"} if unwell else set(), patience)
        if unwell:
            said = ", ".join(f"{part} {word}" for part, word in unwell.items())
            yield Finding(
                "AF-DOWN",
                "airflow",
                f"Airflow at {self._airflow} is not well: {said}",
                "`audiorec status`, then `audiorec up`; the runbook says where the logs are",
                sure=bool(lasting),
            )

    def _service_down(self, now: datetime) -> Iterator[Finding]:
        """A service that was ready and is not: the one failure of which users feel something at once."""
        why = ""
        try:
            answer = self._near.get(f"{self._serving}/readyz")
            if answer.status_code != 200:
                why = f"is not ready (HTTP {answer.status_code})"
        except httpx.HTTPError as error:
            why = f"does not answer ({type(error).__name__})"
        self._was_ready = self._was_ready or not why
        wrong = bool(why) and self._was_ready
        lasting = self._unready.lasting(now, {SERVICE_KEY} if wrong else set(), DEAD_SECONDS)
        if wrong:
            yield Finding(
                "SERVICE-DOWN",
                "service",
                f"the recommendation service at {self._serving} {why}",
                "`audiorec status`, then its log; the runbook says where it is",
                sure=bool(lasting),
            )

    def _runs(self, now: datetime) -> list[Finding]:
        if self._client is None:
            return []
        green: list[Run] = []
        red: list[Run] = []
        suspects: dict[str, Finding] = {}
        for run in self._client.runs(DAG_ID, limit=50):
            if run.state == "running":
                for task in self._client.task_instances(DAG_ID, run.run_id):
                    why = self._dead_task(task, now)
                    if why:
                        suspects[f"{run.run_id}/{task.task_id}/{task.try_number}"] = _about(
                            run,
                            "RUN-DEAD",
                            f"{task.task_id} is running by Airflow's word, but {why}",
                            "Clear the task; what is done is found in the store",
                            task.task_id,
                        )
            elif run.end is not None and now - run.end < LOOK_BACK:
                if run.state == "success":
                    green.append(run)
                elif run.state == "failed" and now - run.end >= SPEAKS_FIRST:
                    red.append(run)
        lasting = self._dead.lasting(now, set(suspects), DEAD_SECONDS)
        receipts = {run.run_id: self._client.xcom(DAG_ID, run.run_id, "receipt") or {} for run in green}
        self._receipts = {str(receipt["as_of"]) for receipt in receipts.values() if receipt.get("as_of")}
        without = [
            _about(
                run,
                "NO-RECEIPT",
                "the run is green, but its receipt is missing: tasks never ran or were marked by hand",
                "Clear the run, or trigger its date again",
                "receipt",
            )
            for run in green
            if not receipts[run.run_id].get("as_of")
        ]
        return [
            *(replace(found, sure=key in lasting) for key, found in suspects.items()),
            # Another run of the date has done it.
            *(found for found in without if found.data_date not in self._receipts),
            *self._untold(red),
        ]

    def _untold(self, red: list[Run]) -> Iterator[Finding]:
        """Failed runs of which nobody has told: Airflow calls no callback when a run is marked as failed by hand.

        Those of a backfill are told at its end.
        """
        told = {past.get("run_id") for past in sinks.firing(self._settings) if past.get("dag_id") != BY}
        for run in red:
            if run.run_id not in told and run.run_type != "backfill":
                yield _about(
                    run,
                    "RUN-FAILED",
                    "the run failed and no task said why: most likely it was marked as failed by hand",
                    "the audit log says who marked it; Clear the run, or trigger its date again",
                )

    def _backfills(self, now: datetime) -> Iterator[Finding]:
        """A backfill that has ended with failed days: one finding, however many days."""
        if self._client is None:
            return
        told: set[str] = set()
        self._backfills_known = set()
        for one in self._client.backfills(DAG_ID):
            if one.completed is None or now - one.completed >= FORGET_AFTER:
                continue
            about = f"backfill {one.id}"
            self._backfills_known.add(about)
            # The newest come first: a day belongs to the last backfill that had it.
            ours = [run for run in self._client.backfill_runs(DAG_ID, one) if run.run_id not in told]
            told.update(run.run_id for run in ours)
            failed = [run for run in ours if run.state == "failed"]
            if not failed:
                continue
            lines = []
            for run in failed[:SHOWN_DAYS]:
                red = [
                    ti.task_id
                    for ti in self._client.task_instances(DAG_ID, run.run_id)
                    if ti.state == "failed"
                ]
                lines.append(
                    f"{run.data_date} ({', '.join(task for task in red if task != 'receipt') or 'by hand'})"
                )
            more = f" and {len(failed) - SHOWN_DAYS} more" if len(failed) > SHOWN_DAYS else ""
            yield Finding(
                "BACKFILL-FAILED",
                about,
                f"{about} of {one.first.date()} to {one.last.date()} has ended: {len(failed)} of {len(ours)} days "
                f"failed: {', '.join(lines)}{more}",
                "mend what the first red task's log names, then the same backfill again with *reprocess: failed*",
                severity="ticket",
                run_type="backfill",
            )

    def _dead_task(self, task: TaskInstance, now: datetime) -> str | None:
        if task.state != "running" or task.start is None:
            return None
        limits = self._settings.resources.get(task.task_id)
        limit = timedelta(minutes=limits.timeout_minutes) + LIMIT_MARGIN if limits else None
        if limit is not None and now - task.start > limit:
            return f"it is {(now - task.start) - limit} past its time limit"
        if task.hostname == self._host and task.pid and not _alive(task.pid, task.start):
            return f"its process {task.pid} is gone from {task.hostname}"
        return None

    def _stale(self, now: datetime) -> Iterator[Finding]:
        pointed = read_pointer(self._store, self._settings.release.model_name)
        if pointed is None:
            return  # nothing was ever released: nothing can have grown old
        version, as_of = pointed[0], date.fromisoformat(pointed[1]["as_of"])
        hours = (now - end_of(as_of)).total_seconds() / 3600
        if hours <= self._settings.alerts.stale_hours:
            return
        held = self._held(now)
        yield Finding(
            "STALE",
            as_of.isoformat(),
            f"champion version {version} rests on data of {as_of}, {hours:.0f} h old "
            f"(alerts.stale_hours is {self._settings.alerts.stale_hours:g})"
            + (f"; it is held, {held}" if held else ""),
            "end the hold (`audiorec hold --clear`) when the reason is gone"
            if held
            else "`audiorec status --dates` shows where the newest date stopped; mend that, or Trigger the latest date",
            # Somebody has decided that it stays: to be known, not to be woken for.
            severity="ticket" if held else "page",
            data_date=as_of.isoformat(),
        )

    def _held(self, now: datetime) -> str | None:
        """Who holds the champion until when, by the history in the store: MLflow may be what is down."""
        for recorded in History(self._store, self._settings.release.model_name).newest_first():
            entry = recorded.entry
            if entry.action == "release_hold":
                return None
            if entry.until is not None:
                if entry.until and datetime.fromisoformat(entry.until) <= now:
                    return None
                return f"by {entry.who} until {entry.until or 'it is taken back'}: {entry.why}"
        return None

    def _data_late(self, now: datetime) -> Iterator[Finding]:
        """The day that is due, until its extract is there, and days that were told and have not come since."""
        due = (now - timedelta(minutes=self._settings.alerts.late_minutes)).date() - timedelta(days=1)
        days = set() if self._store.versions("extract", due.isoformat()) else {due}
        for past in sinks.open_alerts(self._settings).values():
            if past.get("dag_id") == BY and past["code"] == "DATA-LATE":
                days.add(date.fromisoformat(past["data_date"]))
        for day in sorted(days):
            asked, late = self._asked.get(day, (None, True))
            if (asked is None or now - asked >= SOURCE_EVERY) and due - day < FORGET_AFTER:
                late = not self._ready(day)
                self._asked[day] = (now, late)
            if late:
                yield Finding(
                    "DATA-LATE",
                    day.isoformat(),
                    f"the source tables have no complete day {day}, due at {end_of(day):%Y-%m-%d %H:%M} UTC "
                    f"plus {self._settings.alerts.late_minutes:g} min",
                    "ask the owner of the tables; the run goes on by itself when they arrive",
                    data_date=day.isoformat(),
                )
        self._asked = {day: answer for day, answer in self._asked.items() if day in days}

    # --- how it is told

    def _tell(self, findings: list[Finding], answered: set[str]) -> None:
        open_now = sinks.open_alerts(self._settings)
        # Of one key the sure one counts.
        wrong = {finding.key: finding for finding in sorted(findings, key=lambda finding: finding.sure)}
        for key, finding in wrong.items():
            # Airflow's own callbacks may have told the same: one thing is one alert, whoever saw it first.
            if finding.sure and key not in open_now:
                sinks.send(self._alert(finding), self._settings)
        for key, past in open_now.items():
            over = past.get("dag_id") == BY and past["code"] in answered and key not in wrong
            if past["code"] in ("NO-RECEIPT", "RUN-FAILED"):
                # A run is looked at for a day only; that it is out of sight does not mend it.
                over = over and past.get("data_date") in self._receipts
            if past["code"] == "BACKFILL-FAILED":
                over = over and past.get("about") in self._backfills_known  # the same, after two weeks
            if over:
                sinks.send(self._recovery(past), self._settings)

    def _alert(self, finding: Finding) -> Alert:
        base = with_runbooks(self._settings, self._airflow).alerts.runbook_base
        links = {"Airflow": self._airflow, "Runbook": launcher.runbook_link(base, finding.code)}
        if finding.code == "BACKFILL-FAILED":
            links["Backfills"] = f"{self._airflow}/dags/{DAG_ID}/backfills"
        if finding.run_id:
            links["Run"] = f"{self._airflow}/dags/{DAG_ID}/runs/{finding.run_id}"
        return Alert(
            code=finding.code,
            summary=finding.summary,
            severity=finding.severity,
            dag_id=BY,
            task_id=finding.task_id,
            run_id=finding.run_id,
            about=finding.about,
            run_type=finding.run_type,
            data_date=finding.data_date,
            user_effect=USER_EFFECT.get(finding.code, NO_EFFECT),
            advice=finding.advice,
            champion=callbacks.champion(self._settings),
            links=links,
        )

    def _recovery(self, past: Mapping[str, Any]) -> Alert:
        return Alert(
            code=str(past["code"]),
            status="recovered",
            severity="info",
            summary=f"over: {past.get('summary', '')}",
            dag_id=BY,
            run_id=str(past.get("run_id", "")),
            about=str(past.get("about", "")),
            data_date=past.get("data_date"),
            user_effect=USER_EFFECT["RECOVERED"],
            champion=callbacks.champion(self._settings),
        )


def _about(run: Run, code: str, summary: str, advice: str, task_id: str | None = None) -> Finding:
    day = run.data_date.isoformat() if run.data_date else None
    return Finding(
        code,
        day or run.run_id,
        summary,
        advice,
        severity="page" if run.run_type == "scheduled" else "ticket",
        data_date=day,
        run_id=run.run_id,
        run_type=run.run_type,
        task_id=task_id,
    )


def _alive(pid: int, started: datetime) -> bool:
    """Whether the process that Airflow names lives; a younger one of the same id is another."""
    try:
        process = psutil.Process(pid)
        young = process.create_time() > started.timestamp() + 60
        return process.status() != psutil.STATUS_ZOMBIE and not young
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def pause(settings: Settings, findings: Iterable[Finding]) -> float:
    """Seconds until the next look: `alerts.watch_seconds`, less while something is suspected."""
    suspected = any(not one.sure for one in findings)
    return min(settings.alerts.watch_seconds, LOOK_AGAIN_SECONDS if suspected else math.inf)


def watch(settings: Settings, *, once: bool = False) -> None:
    """Look again and again until asked to end (SIGTERM, SIGINT)."""
    asked_to_end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked_to_end.set())
    with contextlib.ExitStack() as stack:
        client = None
        try:
            account = login(settings)
            client = stack.enter_context(
                AirflowClient(airflow_address(settings), account.user, account.password)
            )
        except StackError as error:
            log.warning("watchdog: runs are not looked at: %s", error)
        watchdog = Watchdog(settings, client=client)
        while True:
            findings: list[Finding] = []
            try:
                findings = watchdog.look()
            except Exception:  # whatever it is, the next look must come
                log.exception("watchdog: a look failed")
            if once or asked_to_end.wait(pause(settings, findings)):
                return


def main() -> None:
    """`python -m audiorec.oncall.watchdog`: what the services' supervisor starts."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    watch(load_settings())


if __name__ == "__main__":
    main()
