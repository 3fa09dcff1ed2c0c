"""The REST client against a scripted server, and what the live table shows."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from audiorec.stack import client as client_module
from audiorec.stack import watch as watch_module
from audiorec.stack.client import AirflowClient, AirflowError, Backfill, Run, TaskInstance
from audiorec.stack.watch import Row, read_progress, table, watch

Answer = Callable[[httpx.Request], httpx.Response]


def served(answer: Answer) -> tuple[AirflowClient, list[httpx.Request]]:
    """A client whose server logs it in and otherwise does as told."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/auth/token":
            return httpx.Response(201, json={"access_token": f"token-{len(seen)}"})
        seen.append(request)
        return answer(request)

    return AirflowClient("http://a", "admin", "pw", transport=httpx.MockTransport(handle)), seen


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "RETRY_SECONDS", 1.0)


RUN = {
    "dag_run_id": "r1",
    "state": "queued",
    "run_type": "manual",
    "logical_date": None,
    "start_date": "2026-11-24T10:00:00Z",
    "end_date": None,
    "conf": {"as_of": "2026-11-23"},
}


def test_reading_is_tried_again_while_the_server_is_down():
    answers = iter([httpx.Response(503), httpx.Response(502), httpx.Response(200, json=RUN)])
    client, seen = served(lambda _: next(answers))
    assert client.run("d", "r1").run_id == "r1"
    assert len(seen) == 3


def test_what_may_be_said_twice_is_said_again_to_a_server_too_busy_to_answer():
    seen: list[str] = []

    def busy(request: httpx.Request) -> httpx.Response:
        seen.append(request.method)
        if len(seen) == 1:
            raise httpx.ReadTimeout("timed out", request=request)
        return httpx.Response(200, json={})

    client, _ = served(busy)
    client.unpause("d")
    assert seen == ["PATCH", "PATCH"]


def test_making_something_is_not_tried_again_when_it_may_have_arrived():
    client, seen = served(lambda _: httpx.Response(502))
    with pytest.raises(AirflowError) as caught:
        client.trigger("d", {})
    assert caught.value.status_code == 502
    assert len(seen) == 1


def test_a_server_that_is_not_there_is_said_with_its_address():
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    client, _ = served(refuse)
    with pytest.raises(AirflowError, match="http://a does not answer"):
        client.run("d", "r1")


def test_a_token_that_has_expired_is_renewed_once():
    answers = iter([httpx.Response(401), httpx.Response(200, json=RUN)])
    client, seen = served(lambda _: next(answers))
    client.run("d", "r1")
    first, second = (request.headers["Authorization"] for request in seen)
    assert first != second


def test_an_error_says_what_the_server_said():
    client, _ = served(lambda _: httpx.Response(400, json={"detail": "Invalid input for param profile"}))
    with pytest.raises(AirflowError, match=r"400 to POST .*Invalid input for param profile"):
        client.trigger("d", {"profile": "huge"})


def test_trigger_leaves_out_params_that_are_none():
    client, seen = served(lambda _: httpx.Response(200, json=RUN))
    client.trigger("d", {"as_of": "2026-11-23", "profile": None, "force": False})
    assert json.loads(seen[0].content) == {
        "logical_date": None,
        "conf": {"as_of": "2026-11-23", "force": False},
    }


@pytest.mark.parametrize("paused", [True, False])
def test_a_run_made_while_paused_takes_the_place_of_yesterdays(paused: bool):
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"is_paused": paused})
        return httpx.Response(200, json=RUN)

    client, seen = served(answer)
    client.start_run("d", date(2013, 8, 17), {"profile": "smoke"})
    posted = json.loads(seen[1].content)
    assert posted["conf"] == {"profile": "smoke", "as_of": "2013-08-17"}
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if paused:
        yesterday = (midnight - timedelta(days=1)).isoformat()
        assert posted["logical_date"] == posted["data_interval_start"] == yesterday
        assert posted["data_interval_end"] == midnight.isoformat()
        assert json.loads(seen[2].content) == {"is_paused": False}  # only after the run is there
    else:
        assert posted["logical_date"] is None
        assert len(seen) == 2


def test_the_days_of_a_backfill_are_asked_and_nothing_is_made():
    days = [{"logical_date": f"2026-11-{d}T00:00:00Z", "partition_key": None} for d in (21, 20)]
    client, seen = served(lambda _: httpx.Response(200, json={"backfills": days, "total_entries": 2}))
    found = client.backfill_days("d", date(2026, 11, 20), date(2026, 11, 22), reprocess="failed")
    assert found == [date(2026, 11, 20), date(2026, 11, 21)]
    [asked] = seen
    assert asked.url.path == "/api/v2/backfills/dry_run"
    assert json.loads(asked.content)["reprocess_behavior"] == "failed"


@pytest.mark.parametrize("days", [0, 99, 100, 250])
def test_all_days_of_a_long_backfill_are_seen(days: int):
    def answer(request: httpx.Request) -> httpx.Response:
        first, limit = int(request.url.params["offset"]), int(request.url.params["limit"])
        named = [RUN | {"dag_run_id": f"r{number}"} for number in range(days)]
        return httpx.Response(200, json={"dag_runs": named[first : first + limit]})

    client, _ = served(answer)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    found = client.backfill_runs("d", Backfill(3, moment, moment + timedelta(days=days), moment))
    assert [run.run_id for run in found] == [f"r{number}" for number in range(days)]


LOCKED = {
    "detail": "Database is locked. Backfill creation is not supported on SQLite under concurrent access."
}


def test_a_backfill_is_made_again_once_the_database_is_free():
    """The first try leaves an active backfill behind, which goes; one that was active before stays."""
    active = [3]
    cancelled: list[str] = []
    tries = iter([httpx.Response(503, json=LOCKED), httpx.Response(200, json={"id": 8})])

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            days = {"from_date": "2026-11-18T00:00:00Z", "to_date": "2026-11-20T00:00:00Z"}
            listed = [days | {"id": 1, "completed_at": "2026-11-24T10:00:00Z"}]
            listed += [days | {"id": number, "completed_at": None} for number in active]
            return httpx.Response(200, json={"backfills": listed})
        if request.method == "PUT":
            cancelled.append(request.url.path)
            active.remove(7)
            return httpx.Response(200, json={})
        response = next(tries)
        if response.status_code == 503:
            active.append(7)
        return response

    client, _ = served(answer)
    assert client.create_backfill("d", date(2026, 11, 18), date(2026, 11, 20)) == 8
    assert cancelled == ["/api/v2/backfills/7/cancel"]


def test_a_backfill_is_not_made_again_for_other_reasons(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_module, "LOCKED_SECONDS", 1.0)

    def refusing(status: int, detail: str) -> tuple[int, int]:
        def answer(request: httpx.Request) -> httpx.Response:
            if request.method == "GET":
                return httpx.Response(200, json={"backfills": []})
            return httpx.Response(status, json={"detail": detail})

        client, seen = served(answer)
        with pytest.raises(AirflowError) as caught:
            client.create_backfill("d", date(2026, 11, 18), date(2026, 11, 20))
        return caught.value.status_code or 0, sum(request.method == "POST" for request in seen)

    assert refusing(409, "There is already a running backfill for dag d") == (409, 1)
    assert refusing(503, "no healthy upstream") == (503, 1)
    status, posts = refusing(503, LOCKED["detail"])
    assert status == 503 and posts > 1, "it gives up after a while, and says why"


def test_a_dag_that_cannot_be_imported_is_said_with_its_trace():
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("importErrors"):
            error = {"filename": "dags/x.py", "stack_trace": "SyntaxError: line 3"}
            return httpx.Response(200, json={"import_errors": [error]})
        return httpx.Response(404)

    client, _ = served(answer)
    with pytest.raises(AirflowError, match=r"cannot import dags/x\.py:\nSyntaxError"):
        client.wait_for_dag("d", 5)


def test_tasks_come_in_the_order_in_which_they_run():
    raw = {"c": [], "a": ["b1", "b2"], "b2": ["c"], "b1": ["c"]}
    tasks = [{"task_id": name, "downstream_task_ids": below} for name, below in raw.items()]
    client, _ = served(lambda _: httpx.Response(200, json={"tasks": tasks}))
    order = client.tasks("d")
    assert order[0] == "a"
    assert order[-1] == "c"
    assert set(order) == set(raw)


def test_an_xcom_that_is_not_there_is_none():
    client, _ = served(lambda _: httpx.Response(404, json={"detail": "not found"}))
    assert client.xcom("d", "r1", "extract") is None


def test_log_lines_show_errors_with_their_message():
    lines = [
        {"event": "one"},
        {"event": "Task failed", "error_detail": [{"exc_type": "E", "exc_value": "why"}]},
    ]
    client, _ = served(lambda _: httpx.Response(200, json={"content": lines}))
    assert client.log("d", "r1", "extract") == "one\nTask failed\nE: why"


# --- watch ---------------------------------------------------------------------------------------------


class Script:
    """A client that plays the frames of a run, one a look."""

    def __init__(self, frames: list[tuple[str, dict[str, str | None]]], results: dict[str, Any]) -> None:
        self.frames, self.results, self.at = frames, results, -1

    def tasks(self, _: str) -> list[str]:
        return list(self.frames[-1][1])

    def run(self, dag_id: str, run_id: str) -> Run:
        self.at = min(self.at + 1, len(self.frames) - 1)
        return Run(run_id, self.frames[self.at][0], "manual", None, None, None, {})

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        start = datetime(2026, 11, 24, 10, tzinfo=UTC)
        end = start + timedelta(seconds=75)
        return [TaskInstance(t, s, 1, start if s else None, end) for t, s in self.frames[self.at][1].items()]

    def xcom(self, dag_id: str, run_id: str, task_id: str) -> Any:
        return self.results.get(task_id)


FRAMES: list[tuple[str, dict[str, str | None]]] = [
    ("running", {"extract": "running", "train_hgnn": None}),
    ("running", {"extract": "success", "train_hgnn": "running"}),
    ("running", {"extract": "success", "train_hgnn": "running"}),
    ("failed", {"extract": "success", "train_hgnn": "failed"}),
]
RESULTS = {"extract": {"state": "done", "counts": {"interactions": 1234567, "days": 31}}}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "POLL_SECONDS", 0.0)


def test_without_a_terminal_each_change_is_a_line(quick: None):
    out = io.StringIO()
    run = watch(Script(FRAMES, RESULTS), "d", "r1", console=Console(file=out, width=200))  # type: ignore[arg-type]
    assert run.state == "failed"
    assert [line.split() for line in out.getvalue().splitlines()] == [
        ["extract", "running", "1:15"],
        ["extract", "done", "1:15", "interactions", "1,234,567,", "days", "31"],
        ["train_hgnn", "running", "1:15"],
        ["train_hgnn", "failed", "1:15"],
    ]


def test_without_a_terminal_progress_is_told_now_and_then(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watch_module, "LINES_EVERY_SECONDS", -1.0)
    (tmp_path / "train_hgnn.json").write_text(
        '{"done": 3, "total": 4, "unit": "epochs", "note": "loss 0.31"}'
    )
    out = io.StringIO()
    watch(Script(FRAMES, {}), "d", "r1", progress_folder=tmp_path, console=Console(file=out, width=200))  # type: ignore[arg-type]
    assert sum("3/4 epochs  loss 0.31" in line for line in out.getvalue().splitlines()) == 2


def test_on_a_terminal_it_is_a_table(quick: None):
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True)
    assert watch(Script(FRAMES, RESULTS), "d", "r1", console=console).state == "failed"  # type: ignore[arg-type]
    assert "interactions 1,234,567" in out.getvalue()


def test_patience_ends(quick: None):
    with pytest.raises(TimeoutError, match="r1 has not ended"):
        watch(Script(FRAMES[:1], {}), "d", "r1", timeout_seconds=-1)  # type: ignore[arg-type]


def test_a_verdict_is_shown_and_up_to_date_too():
    assert (
        watch_module._told({"state": "up_to_date", "verdict": "promoted: first version"})
        == "up to date, promoted: first version"
    )
    assert watch_module._told({"state": "up_to_date", "counts": {"rows": 3}}) == "up to date"
    assert watch_module._told("2026-11-23") == "2026-11-23"
    assert watch_module._told(None) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"done": 5, "total": 10, "unit": "days", "note": ""}', "██████████░░░░░░░░░░ 5/10 days"),
        ('{"done": 5, "total": null, "unit": "titles", "note": "x"}', "5 titles  x"),
        ('{"done": 5, "total": 0, "unit": "days"}', "5 days"),
        ("{half a fi", ""),
        ("[]", ""),
    ],
)
def test_progress_files(tmp_path: Path, text: str, shown: str):
    file = tmp_path / "p.json"
    file.write_text(text)
    assert read_progress(file) == shown


def test_no_progress_file_is_no_progress(tmp_path: Path):
    assert read_progress(tmp_path / "none.json") == ""


def test_brackets_in_a_note_are_no_markup():
    rows = [Row("train_hgnn", "running", 3.0, "loss [bold]")]
    out = io.StringIO()
    Console(file=out, width=120).print(table(Run("r", "running", "manual", None, None, None, {}), rows))
    assert "loss [bold]" in out.getvalue()
