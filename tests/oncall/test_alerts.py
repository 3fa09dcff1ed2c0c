"""What an alert says, where it goes, and that one failure is one alert."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audiorec import launcher
from audiorec.errors import BadSettings
from audiorec.oncall import callbacks, sinks
from audiorec.oncall.alerts import Alert, redact
from audiorec.oncall.receipt import NoReceipt, receipt, receipt_table
from audiorec.settings import Settings, load_settings

DAY = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    made = load_settings(
        services={"home": str(tmp_path)},
        mlflow={"uri": "http://127.0.0.1:9"},  # the discard port: nothing answers
        alerts={"runbook_base": "https://wiki/runbooks"},
    )
    monkeypatch.setattr(callbacks, "load_settings", lambda: made)
    return made


@pytest.fixture
def webhook() -> Iterator[SimpleNamespace]:
    """A server that keeps what is posted to it; `status` is what it answers."""
    kept = SimpleNamespace(bodies=[], status=200, address="")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            kept.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(kept.status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    kept.address = f"http://127.0.0.1:{server.server_port}/hook"
    yield kept
    server.shutdown()
    server.server_close()


def context(
    run_type: str = "scheduled",
    run_id: str = "run-1",
    clear_number: int = 0,
    task: str = "extract",
    **more: Any,
) -> dict[str, Any]:
    dag_run = SimpleNamespace(
        run_type=run_type,
        run_id=run_id,
        logical_date=DAY,
        data_interval_start=DAY,
        data_interval_end=DAY + timedelta(days=1),
        run_after=DAY + timedelta(days=1),
        clear_number=clear_number,
    )
    ti = SimpleNamespace(
        task_id=task, try_number=2, log_url=f"http://ui/dags/d/runs/{run_id}/tasks/{task}?try=2"
    )
    base = {
        "dag": SimpleNamespace(dag_id="d"),
        "dag_run": dag_run,
        "run_id": run_id,
        "ti": ti,
        "params": {"as_of": None},
    }
    return {**base, **more}


def killed() -> launcher.TaskFailed:
    outcome = launcher.Outcome(-9, None, 12.0, 512, 1000, ("epoch 3", "token=abc123"))
    failure = launcher.explain("extract", date(2026, 11, 23), outcome, launcher.READINESS, "docs/runbooks")
    assert failure is not None
    return failure


def records(settings: Settings) -> list[dict[str, Any]]:
    return sinks.recorded(settings)


def test_a_failed_task_tells_all_that_the_contract_asks_for(settings: Settings):
    callbacks.task_failed(context(exception=killed()))
    (sent,) = records(settings)
    assert sent["code"] == "TASK-KILLED"
    assert sent["severity"] == "page"
    assert sent["data_date"] == "2026-11-23"
    assert sent["dedup_key"] == "TASK-KILLED:2026-11-23"
    assert (sent["dag_id"], sent["task_id"], sent["run_id"], sent["run_type"]) == (
        "d",
        "extract",
        "run-1",
        "scheduled",
    )
    assert (sent["try_number"], sent["signal_name"], sent["peak_mb"], sent["limit_mb"]) == (
        2,
        "SIGKILL",
        512,
        2000,
    )
    assert sent["last_lines"] == ["epoch 3", "token=***"]
    assert "released version goes on serving" in sent["user_effect"]
    assert sent["links"] == {
        "Log": "http://ui/dags/d/runs/run-1/tasks/extract?try=2",
        "Run": "http://ui/dags/d/runs/run-1",
        "MLflow": "http://127.0.0.1:9",
        "Runbook": "https://wiki/runbooks/TASK-KILLED.md",
    }
    assert "What to do:" in sent["text"]


def test_the_runs_alert_is_silent_if_the_task_has_spoken(settings: Settings):
    callbacks.task_failed(context(exception=killed()))
    callbacks.run_failed(context(reason="task_failure"))
    assert [sent["code"] for sent in records(settings)] == ["TASK-KILLED"]


def test_the_runs_alert_speaks_if_no_task_has(settings: Settings):
    """Airflow's own process was killed: no task callback was called."""
    callbacks.run_failed(context(reason="task_failure"))
    (sent,) = records(settings)
    assert sent["code"] == "RUN-FAILED"
    assert "the last one was extract" in sent["summary"]


def test_a_run_that_is_cleared_and_fails_again_is_a_new_failure(settings: Settings):
    callbacks.task_failed(context(exception=killed()))
    callbacks.run_failed(context(clear_number=1))
    assert [sent["code"] for sent in records(settings)] == ["TASK-KILLED", "RUN-FAILED"]


def test_a_bare_run_context_is_enough(settings: Settings):
    """What the dag-processor hands over when it knows no task."""
    callbacks.run_failed({"dag": SimpleNamespace(dag_id="d"), "run_id": "run-9", "reason": "timed_out"})
    (sent,) = records(settings)
    assert (sent["code"], sent["run_id"], sent["dedup_key"]) == ("RUN-FAILED", "run-9", "RUN-FAILED:run-9")


@pytest.mark.parametrize(
    ("run_type", "severity"), [("scheduled", "page"), ("manual", "ticket"), ("backfill", "ticket")]
)
def test_only_the_daily_run_wakes_anybody(settings: Settings, run_type: str, severity: str):
    callbacks.task_failed(context(run_type, exception=killed()))
    assert records(settings)[0]["severity"] == severity


@pytest.mark.parametrize("watched", [True, False])
def test_a_day_of_a_backfill_is_told_only_where_nobody_tells_of_the_whole(
    settings: Settings, monkeypatch, watched: bool
):
    alerts = settings.alerts.model_copy(update={"watch": watched})
    made = settings.model_copy(update={"alerts": alerts})
    monkeypatch.setattr(callbacks, "load_settings", lambda: made)
    callbacks.task_failed(context("backfill", exception=killed()))
    callbacks.run_failed(context("backfill", run_id="run-2", reason="task_failure"))
    assert len(records(settings)) == (0 if watched else 2)
    callbacks.task_failed(context("scheduled", run_id="run-3", exception=killed()))
    assert len(records(settings)) == (1 if watched else 3)


def test_a_task_that_airflow_lost_is_told_once(settings: Settings):
    """The dag-processor calls back without an exception, and once more when the executor reports the same."""
    callbacks.task_failed(context())
    callbacks.task_failed(context())
    (sent,) = records(settings)
    assert (sent["code"], sent["data_date"]) == ("RUN-DEAD", "2026-11-23")
    assert "None" not in sent["text"]
    assert sent["links"]["Runbook"].endswith("RUN-DEAD.md")
    sinks.send(Alert("RUN-DEAD", "x", status="recovered", data_date="2026-11-23"), settings)
    callbacks.task_failed(context())
    assert [one["status"] for one in records(settings)] == ["firing", "recovered", "firing"]


def test_a_missing_receipt_after_a_failed_task_is_only_its_echo(settings: Settings):
    callbacks.task_failed(context(exception=killed()))
    callbacks.task_failed(context(task="receipt", exception=NoReceipt("no", ("extract",))))
    assert [sent["code"] for sent in records(settings)] == ["TASK-KILLED"]


def test_a_missing_receipt_alone_is_an_alert(settings: Settings):
    callbacks.task_failed(
        context(task="receipt", exception=NoReceipt("no manifest came from evaluate", ("evaluate",)))
    )
    (sent,) = records(settings)
    assert sent["code"] == "NO-RECEIPT"
    assert "evaluate" in sent["summary"]


def test_unforeseen_errors_have_a_code_too(settings: Settings):
    callbacks.task_failed(context(exception=ZeroDivisionError("x")))
    callbacks.task_failed(context(run_id="run-2", exception=BadSettings("two dates")))
    assert [sent["code"] for sent in records(settings)] == ["TASK-ERROR", "BAD-SETTINGS"]


def test_data_docs_of_a_failed_validation_are_linked(settings: Settings):
    failure = killed()
    failure.result = launcher.TaskResult(
        "validate", "2026-11-23", "done", "m", "f", links={"Data Docs": "http://docs"}
    )
    callbacks.task_failed(context(exception=failure))
    assert records(settings)[0]["links"]["Data Docs"] == "http://docs"


def test_late_data_is_told_once_whoever_sees_it(settings: Settings):
    sinks.send(
        Alert("DATA-LATE", "seen by the watchdog", dag_id="watchdog", data_date="2026-11-23"), settings
    )
    callbacks.data_late(context(task="await_sources"), DAY.date(), 15, "music_events")
    assert [sent["summary"] for sent in records(settings)] == ["seen by the watchdog"]


def test_old_data_stay_old_though_their_run_ends_well_again(settings: Settings):
    for code in ("STALE", "TASK-KILLED"):
        sinks.send(Alert(code, "x", data_date="2026-11-23"), settings)
    callbacks.run_succeeded(context())
    assert records(settings)[-1]["summary"].endswith("over: TASK-KILLED:2026-11-23")
    assert list(sinks.open_alerts(settings)) == ["STALE:2026-11-23"]
    callbacks.run_succeeded(context())
    assert len(records(settings)) == 3


def test_late_data_is_told_once_a_run(settings: Settings):
    for waited in (15, 20, 25):
        callbacks.data_late(context(task="await_sources"), DAY.date(), waited, "music_events")
    (sent,) = records(settings)
    assert (sent["code"], sent["severity"]) == ("DATA-LATE", "page")
    assert "after 15 min" in sent["summary"]


def test_recovery_is_told_once_and_only_after_an_alert(settings: Settings):
    callbacks.run_succeeded(context())
    assert records(settings) == []
    callbacks.task_failed(context(exception=killed()))
    callbacks.run_succeeded(context(clear_number=1))
    callbacks.run_succeeded(context(clear_number=1))
    fired, recovered = records(settings)
    assert recovered["status"] == "recovered"
    assert fired["dedup_key"] in recovered["summary"]


def test_the_webhook_gets_the_alert(settings: Settings, webhook: SimpleNamespace):
    with_hook = settings.model_copy(
        update={"alerts": settings.alerts.model_copy(update={"webhook_url": webhook.address})}
    )
    assert sinks.send(Alert("TIMEOUT", "slow", data_date="2026-11-23"), with_hook)
    (body,) = webhook.bodies
    assert body["dedup_key"] == "TIMEOUT:2026-11-23"
    assert body["text"].startswith("[page] [TIMEOUT] slow")
    assert records(settings)[0]["delivered"] is True


def test_a_webhook_that_is_down_costs_nothing_but_its_message(
    settings: Settings, webhook: SimpleNamespace, caplog: pytest.LogCaptureFixture
):
    webhook.status = 500
    with_hook = settings.model_copy(
        update={"alerts": settings.alerts.model_copy(update={"webhook_url": webhook.address})}
    )
    assert sinks.send(Alert("TIMEOUT", "slow"), with_hook) is False
    assert len(webhook.bodies) == sinks.WEBHOOK_TRIES
    assert records(settings)[0]["delivered"] is False
    assert webhook.address not in caplog.text  # in most chats the address is the password


def test_broken_settings_still_alert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken() -> Settings:
        raise BadSettings("hgnn.margin: not a number")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(callbacks, "load_settings", broken)
    monkeypatch.setenv("AUDIOREC_ALERTS", '{"watch_seconds": -1}')  # these are broken as well
    callbacks.task_failed(context(exception=BadSettings("hgnn.margin: not a number")))
    assert "[BAD-SETTINGS]" in caplog.text


def test_a_broken_settings_file_does_not_keep_an_alert_from_the_webhook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, webhook: SimpleNamespace
):
    """The services are told by variables where alerts go, so the file is not needed for it."""
    (tmp_path / "mine.toml").write_text("[hgnn]\nmargin = 'wide'\n", encoding="utf-8")
    monkeypatch.setenv("AUDIOREC_SETTINGS", str(tmp_path / "mine.toml"))
    monkeypatch.setenv("AUDIOREC_ALERTS", json.dumps({"webhook_url": webhook.address}))
    monkeypatch.setenv("AUDIOREC_SERVICES", json.dumps({"home": str(tmp_path / "home")}))
    monkeypatch.setenv("AUDIOREC_MLFLOW", json.dumps({"uri": "http://127.0.0.1:9"}))
    callbacks.task_failed(context(exception=BadSettings("hgnn.margin: not a number")))
    assert [sent["code"] for sent in webhook.bodies] == ["BAD-SETTINGS"]
    assert (tmp_path / "home" / "logs" / "alerts.jsonl").exists()


def test_an_unwritable_record_does_not_raise(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "logs").write_text("a file where a folder should be")
    assert sinks.send(Alert("TIMEOUT", "slow"), settings) is False
    assert "could not be recorded" in caplog.text


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("postgres://me:hunter2@db/x", "postgres://***@db/x"),
        ("password=hunter2, next", "password=***, next"),
        ("AWS_SECRET_ACCESS_KEY: abc", "AWS_SECRET_ACCESS_KEY: ***"),
        ("api_key = k1;x", "api_key = ***;x"),
        ("3 null user_id in music_events", "3 null user_id in music_events"),
    ],
)
def test_secrets_are_taken_out(text: str, safe: str):
    assert redact(text) == safe


def test_the_champion_is_named_with_the_age_of_its_data(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    answer = {"model_version": {"version": "7", "tags": [{"key": "as_of", "value": yesterday}]}}
    monkeypatch.setattr(
        callbacks.httpx,
        "get",
        lambda *_, **__: SimpleNamespace(raise_for_status=lambda: None, json=lambda: answer),
    )
    assert callbacks.champion(settings) == f"version 7, data of {yesterday} (1 d old)"


# --- receipt -------------------------------------------------------------------------------------------


def result(task: str, **more: Any) -> dict[str, Any]:
    return {
        "task": task,
        "as_of": "2026-11-23",
        "state": "done",
        "manifest": f"m/{task}",
        "seconds": 1.5,
        **more,
    }


def test_a_receipt_lists_every_task():
    results = {
        "extract": result("extract", fingerprint="ab"),
        "promote": result("promote", state="up_to_date", verdict="kept"),
    }
    summary = receipt(results, "2026-11-23")
    assert summary["seconds"] == 3.0
    assert summary["worked"] == ["extract"]
    assert "kept" in receipt_table(summary)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (
            {"extract": None, "promote": None},
            r"from extract \(failed\)\n  no manifest from promote \(not started\)",
        ),
        ({"extract": {"as_of": "2026-11-23", "manifest": None}}, r"no manifest from extract \(failed\)"),
        ({"extract": result("extract", as_of="2026-11-22")}, "extract is about 2026-11-22"),
    ],
)
def test_no_receipt(results: dict[str, Any], message: str):
    with pytest.raises(NoReceipt, match=message):
        receipt(results, "2026-11-23", {"extract": "failed", "promote": None})
