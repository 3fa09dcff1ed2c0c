"""The command line, through typer's runner: help, exit codes and what people read."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from audiorec.chain import CHAIN
from audiorec.champion import describe, write_pointer
from audiorec.cli import app
from audiorec.store import Store

if TYPE_CHECKING:
    from released import Releases

MODEL_NAME = "audiobook_recommender"

COMMANDS = {
    command.name or command.callback.__name__ for command in app.registered_commands if command.callback
}


pytestmark = pytest.mark.usefixtures("elsewhere")


def call(*arguments: Any, width: int = 200) -> Result:
    return CliRunner(env={"COLUMNS": str(width), "NO_COLOR": "1", "TERM": "dumb"}).invoke(
        app, [str(argument) for argument in arguments]
    )


@pytest.fixture
def placed(releases: Releases, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The environment of a set-up with two dates in its store, and no services."""
    settings = releases.copy(tmp_path)
    variables = tiny.environment(settings) | {
        "AUDIOREC_SERVICES__HOME": str(tmp_path / "home"),
        "AUDIOREC_PROFILE": "smoke",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return settings


def promote(settings: Any, releases: Releases, version: str = "7") -> None:
    as_of = releases.dates[0]
    store = Store(settings.store.uri, settings.store.scratch)
    write_pointer(store, MODEL_NAME, version, describe(as_of, dict(releases.inputs(as_of, settings))))


# --- help ------------------------------------------------------------------------------------------------


def test_help_names_every_command():
    found = call("--help")
    assert found.exit_code == 0
    named = set(re.findall(r"^│ (\w+) ", found.output, re.M))
    assert named == COMMANDS
    assert named >= {"demo", "run", "task", "status", "generate", "recommend", "doctor", "up", "down"}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of(command: str):
    found = call(command, "--help")
    assert found.exit_code == 0
    assert f"Usage: audiorec {command}" in found.output.replace("root ", "audiorec ")
    # A sentence on what it is for, not only options.
    body = found.output.split("\n", 3)[3]
    assert re.search(r"\w+ \w+ \w+.*[.;]", body)


def test_no_command_shows_the_help():
    assert "Usage" in call().output


# --- wrong settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["status"], ["recommend", "u0001"], ["down"], ["up"], ["run", "--as-of", "2026-11-20"]]
)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist; check --settings"),
        ("[stor]\nuri = 'x'", "stor: Extra inputs are not permitted"),
        ("[release]\nmin_ratio = 'much'", "release.min_ratio"),
        ("[release", "is not valid TOML"),
    ],
)  # fmt: skip
def test_a_wrong_settings_file(command: list[str], text: str | None, said: str, tmp_path: Path):
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_text(text)
    found = call(*command, "--settings", path)
    assert found.exit_code == 78
    assert "BadSettings: " in found.stderr
    assert said in found.stderr
    assert str(path) in found.stderr
    assert "Traceback" not in found.output


def test_a_wrong_profile(tmp_path: Path):
    found = call("run", "--as-of", "2026-11-20", "--profile", "huge")
    assert found.exit_code == 78
    assert "profile is 'huge', expected one of" in found.stderr


# --- task ------------------------------------------------------------------------------------------------


def test_task_with_an_unknown_name():
    found = call("task", "extrakt", "--as-of", "2026-11-20")
    assert found.exit_code == 78
    assert "unknown task 'extrakt'; expected one of extract, validate," in found.stderr
    assert all(name in found.stderr for name in CHAIN)


def test_task_runs_one_task(placed: Any, releases: Releases):
    found = call("task", "build_index", "--as-of", releases.dates[0])
    assert found.exit_code == 0, found.output
    result = json.loads(found.output.splitlines()[-1].removeprefix("RESULT "))
    assert (result["task"], result["state"]) == ("build_index", "up_to_date")


def test_task_hands_on_exit_codes(placed: Any, releases: Releases):
    assert call("task", "build_index", "--as-of", "2026-11-10").exit_code == 78
    assert call("task", "extract", "--as-of", "yesterday").exit_code == 2


# --- generate --------------------------------------------------------------------------------------------


def test_generate_writes_tables_and_finds_them_again(tmp_path: Path):
    arguments = (
        "generate",
        tmp_path / "tables",
        "--preset",
        "tiny",
        "--last-day",
        "2026-11-20",
        "--seed",
        "3",
    )
    written = call(*arguments)
    assert written.exit_code == 0, written.output
    assert "Written: " in written.output
    for table in (
        "users",
        "audiobooks",
        "podcasts",
        "tracks",
        "music_events",
        "podcast_events",
        "audiobook_events",
    ):
        [number] = re.findall(rf"│ {table} +│ +([\d,]+) │", written.output)
        files = sorted((tmp_path / "tables").rglob(f"{table}*/**/*.parquet")) or [
            tmp_path / "tables" / f"{table}.parquet"
        ]
        assert sum(pq.ParquetFile(file).metadata.num_rows for file in files) == int(number.replace(",", ""))
    assert "There already: " in call(*arguments).output


def test_generate_with_an_unknown_preset(tmp_path: Path):
    found = call("generate", tmp_path / "tables", "--preset", "huge")
    assert found.exit_code == 78
    assert "preset 'huge' is unknown; expected one of" in found.stderr
    assert not (tmp_path / "tables").exists()


# --- status ----------------------------------------------------------------------------------------------


def rows_of(output: str) -> dict[str, list[str]]:
    """Cells of the table of results by date, wrapped lines joined."""
    found: dict[str, list[str]] = {}
    key = ""
    for line in output.splitlines():
        if line.startswith("│"):
            first, *cells = [cell.strip() for cell in line.strip("│").split("│")]
            key = first or key
            before = found.get(key, [""] * len(cells))
            found[key] = [f"{old} {new}".strip() for old, new in zip(before, cells, strict=True)]
    return found


@pytest.mark.parametrize("width", [80, 200])
def test_status_says_what_is_done_stale_and_missing(
    width: int, placed: Any, releases: Releases, monkeypatch: pytest.MonkeyPatch
):
    """Readable on a terminal of 80 columns, too."""
    found = call("status", width=width)
    assert found.exit_code == 0, found.output
    assert "services: down (`audiorec up` starts them)" in found.output
    assert "champion of audiobook_recommender: none yet" in found.output
    everything = ", ".join(name for name in CHAIN if name not in ("validate", "promote"))
    # The fixture ran `validate` for the first date only, and promoted nothing.
    rows = rows_of(found.output)
    assert rows == {
        "2026-11-20": [everything.replace("extract, ", "extract, validate, "), "", "promote"],
        "2026-11-21": [everything, "", "validate, promote"],
    }
    promote(placed, releases)
    assert "champion of audiobook_recommender: version 7, data up to 2026-11-20 (" in call("status").output

    monkeypatch.setenv("AUDIOREC_INDEX__EF_SEARCH", "200")
    rows = rows_of(call("status", "--as-of", "2026-11-21", width=width).output)
    assert list(rows) == ["2026-11-21"]
    assert rows["2026-11-21"][1:] == ["build_index", "validate, promote"]


def test_status_by_dates_says_why(placed: Any, releases: Releases, monkeypatch: pytest.MonkeyPatch):
    """A setting, what follows from it, a table of the source, an alert without recovery and one with."""
    alerts = Path(os.environ["AUDIOREC_SERVICES__HOME"]) / "logs" / "alerts.jsonl"
    alerts.parent.mkdir(parents=True)
    told = [
        {"code": "TASK-OOM", "task_id": "promote", "data_date": "2026-11-20", "status": "firing"},
        {"code": "TASK-ERROR", "task_id": "promote", "data_date": "2026-11-21", "status": "firing"},
        {"code": "RECOVERED", "data_date": "2026-11-21", "status": "recovered"},
    ]
    alerts.write_text("".join(json.dumps(line) + "\n" for line in told))
    monkeypatch.setenv("AUDIOREC_INDEX__EF_SEARCH", "200")
    monkeypatch.setenv("AUDIOREC_TEXT__MAX_TOKENS", "11")
    found = call("status", "--dates", "2026-11-20", "2026-11-22")
    assert found.exit_code == 0, found.output
    lines = [
        [c.strip() for c in line.strip("│").split("│")]
        for line in found.output.splitlines()
        if line[:1] == "│"
    ]
    by_date: dict[str, list[list[str]]] = {}
    for day, *rest in lines:
        by_date.setdefault(day or list(by_date)[-1], []).append(rest)
    assert ["stale", "embed_text", "setting text.max_tokens 12 → 11"] in by_date["2026-11-20"]
    assert ["stale", "train_hgnn", "made anew before it: embed_text"] in by_date["2026-11-20"]
    whys = " ".join(why for _, _, why in by_date["2026-11-21"])  # a long one is wrapped
    assert "made anew before it: refresh; setting index.ef_search 128 → 200" in whys
    assert ["failed", "promote", "TASK-OOM"] in by_date["2026-11-20"]
    assert ["missing", "validate, promote", ""] in by_date["2026-11-21"]
    assert by_date["2026-11-22"] == [["missing", "all", ""]]
    assert call("status", "--dates", "2026-11-22", "2026-11-20").exit_code == 78


def test_a_backfill_says_what_it_would_compute(placed: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AUDIOREC_INDEX__EF_SEARCH", "200")
    found = call("backfill", "2026-11-20", "2026-11-22", "--dry-run")
    assert found.exit_code == 0, found.output
    assert rows_of(found.output) == {
        "2026-11-20": ["9 of 11", "build_index, promote"],
        "2026-11-21": ["8 of 11", "validate, build_index, promote"],
        "2026-11-22": ["0 of 11", "all"],
    }
    assert "16 task(s) on 3 date(s) would be computed" in found.output
    down = call("backfill", "2026-11-20", "2026-11-20")
    assert down.exit_code == 1
    assert "Airflow is down; start it with `audiorec up`" in down.stderr
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    for days, said in (
        (("2026-11-21", "2026-11-20"), "the earlier day first"),
        ((tomorrow, tomorrow), "is not over yet"),
    ):
        refused = call("backfill", *days)
        assert refused.exit_code == 78
        assert said in refused.stderr
    assert call("backfill", "2026-11-20", "2026-11-20", "--promote", "fresh").exit_code == 2


def test_status_of_nothing():
    found = call("status")
    assert found.exit_code == 0, found.output
    assert "champion of audiobook_recommender: none yet" in found.output


# --- recommend -------------------------------------------------------------------------------------------


def test_recommend_shows_titles_with_reasons(placed: Any, releases: Releases):
    before = call("recommend", "u0001")
    assert before.exit_code == 65
    assert "no version was promoted into" in before.stderr
    promote(placed, releases)
    found = call("recommend", "u0001", "--k", 4)
    assert found.exit_code == 0, found.output
    assert re.search(r"u0001 \(.*lately\), version 7 of 2026-11-20", found.output)
    assert re.findall(r"^│? *(\d+) │", found.output, re.M)[-1] == "4"


def test_recommend_for_nobody(placed: Any, releases: Releases):
    promote(placed, releases)
    found = call("recommend", "nobody")
    assert found.exit_code == 78
    assert "user 'nobody' is not among the" in found.stderr
    assert call("recommend", "u0001", "--k", 0).exit_code == 2


# --- doctor ----------------------------------------------------------------------------------------------


def test_doctor_finds_nothing_wrong(placed: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("audiorec.stack.preflight.preflight", lambda _: None)
    found = call("doctor")
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    assert all(line.startswith("fine   ") for line in lines)
    assert any(line.startswith(f"fine   source tables: {placed.source.uri}") for line in lines)


def test_doctor_names_every_problem_and_exits_1(placed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import socket

    monkeypatch.setenv("AUDIOREC_SOURCE__URI", str(tmp_path / "nowhere"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("AUDIOREC_SERVICES__AIRFLOW_PORT", str(port))
        found = call("doctor")
    assert found.exit_code == 1
    wrong = found.output[found.output.index("wrong") :]
    assert found.output.count("wrong  ") == 2
    assert re.search(r"wrong  source tables: .*nowhere", wrong.replace("\n", " "))
    assert f"port {port} (127.0.0.1) is taken by" in wrong.replace("\n", " ")
    assert "Traceback" not in found.output


def test_doctor_on_wrong_settings(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text("[hgnn]\nfanouts = [3]\n")
    found = call("doctor", "--settings", path)
    assert found.exit_code == 1
    assert "wrong  settings: " in found.output
    assert "hgnn.fanouts has 1 entries, but hgnn.num_layers is 2" in found.output
