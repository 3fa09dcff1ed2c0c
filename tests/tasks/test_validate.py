"""Validate on small tables: what is stored, what stops, what only compares days of its own window."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
from small_source import AS_OF, clean_tables, settings_for, write_flat

from audiorec.errors import ExitCode
from audiorec.runner import main, run_task
from audiorec.settings import Settings
from audiorec.store import Store

pytestmark = pytest.mark.long

ON_DAY = f"CAST(occurred_at AS DATE) = DATE '{AS_OF}'"


def report_of(settings: Settings, result: dict) -> dict:
    store = Store(settings.store.uri, settings.store.scratch)
    return json.loads(store.open(store.read_uri(result["manifest"]), "validation.json").read_text())


def validated(connection, work: Path, as_of=AS_OF, **groups) -> tuple[Settings, dict]:
    settings = settings_for(write_flat(connection, work / "source"), work, **groups)
    run_task("extract", settings, as_of)
    return settings, run_task("validate", settings, as_of)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the Data Docs out where a test does not look at them."""
    from expectations.check import evaluate

    monkeypatch.setattr("tasks.validate.evaluate_with_docs", lambda suites, *_: [evaluate(s) for s in suites])


def test_the_report_is_determined_and_the_docs_lie_beside_it(tmp_path: Path):
    settings, one = validated(clean_tables(), tmp_path)
    again = run_task("validate", settings, AS_OF)
    forced = run_task("validate", settings, AS_OF, force=True)
    assert (again["state"], forced["state"]) == ("up_to_date", "done")
    store = Store(settings.store.uri, settings.store.scratch)
    assert len({store.read_uri(r["manifest"]).to_bytes() for r in (one, again, forced)}) == 1
    index = Path(again["links"]["Data Docs"])
    assert index.parent == tmp_path / "store" / "data_docs" / AS_OF.isoformat() / one["fingerprint"]
    pages = {page.name for page in index.parent.rglob("*.html")}
    assert {"index.html", "audiorec-audiobook_events.html", "audiorec-users_rows.html"} <= pages
    text = index.read_text()
    for words in ("passed", "validation.max_reject_share", "then nobody knows which row of an id is right"):
        assert words in text, "the first page has the verdict and the reason of each threshold"
    for page in index.parent.rglob("*.html"):
        fetched = re.findall(r"(?:src|url\(|<link|<script)[^>]*", page.read_text())
        assert not fetched, f"{page.name} would fetch {fetched[:2]}"
    for address in re.findall(r"href='([^']+)'", text):
        assert (index.parent / address).is_file(), f"a link to {address} leads nowhere"
    assert not list(index.parent.parent.glob(".*")), "the site was built elsewhere and moved"


def test_a_critical_verdict_is_stored_and_stops_every_time(tmp_path: Path, quick, capsys, monkeypatch):
    connection = clean_tables()
    for table in ("music_events", "podcast_events", "audiobook_events"):
        connection.execute(f"DELETE FROM {table} WHERE {ON_DAY}")
    source = write_flat(connection, tmp_path / "source")
    toml = tmp_path / "settings.toml"
    toml.write_text(
        f'[source]\nuri = "{source}"\n[store]\nuri = "{tmp_path}/store"\nscratch = "{tmp_path}/scratch"\n'
        "[time]\nwindow_days = 20\nholdout_days = 5\ntarget_days = 5\n"
    )
    arguments = ["--as-of", AS_OF.isoformat(), "--settings", str(toml)]
    main("extract", arguments)
    for _ in range(2):
        with pytest.raises(SystemExit) as stopped:
            main("validate", arguments)
        assert stopped.value.code == ExitCode.BAD_DATA
        assert "DQ-EMPTY-DAY interactions.occurred_at" in capsys.readouterr().err


def test_other_runs_change_no_verdict(tmp_path: Path, quick):
    """The run of a day is the same whether the days around it ran before or never."""
    earlier = AS_OF - timedelta(days=3)
    settings, alone = validated(clean_tables(), tmp_path / "alone", earlier)
    other, _ = validated(clean_tables(), tmp_path / "after", AS_OF)
    run_task("extract", other, earlier)
    after = run_task("validate", other, earlier)
    assert report_of(settings, alone) == report_of(other, after)


def weekly_closed(connection) -> None:
    """No rows on Sundays: 2026-01-18, -25, 02-01, 02-08 (and 01-12.. begins on a Monday)."""
    for table in ("music_events", "podcast_events", "audiobook_events"):
        connection.execute(f"DELETE FROM {table} WHERE DAYOFWEEK(occurred_at) = 0")


def without_day(connection, day: str, tables=("music_events", "podcast_events", "audiobook_events")) -> None:
    for table in tables:
        connection.execute(f"DELETE FROM {table} WHERE CAST(occurred_at AS DATE) = DATE '{day}'")


def codes(settings: Settings, result: dict) -> tuple[list[str], list[str]]:
    report = report_of(settings, result)
    return (
        [" ".join(line.split()[:2]).rstrip(":") for line in report["critical"]],
        [" ".join(line.split()[:2]).rstrip(":") for line in report["warnings"]],
    )


SHORT = {"drift_days": 8}
"""The window has 25 days: 8 compared ones leave more than two weeks of history before them."""


def test_a_closed_weekday_is_no_gap(tmp_path: Path, quick):
    connection = clean_tables()
    weekly_closed(connection)
    settings, result = validated(connection, tmp_path, validation=SHORT)
    assert codes(settings, result) == ([], [])


def test_a_new_gap_stops_and_a_known_gap_does_not(tmp_path: Path, quick):
    connection = clean_tables()
    without_day(connection, "2026-02-06")
    settings, result = validated(connection, tmp_path / "new", validation=SHORT)
    assert codes(settings, result) == (["DQ-GAPS interactions.occurred_at"], [])
    assert "1 empty day(s) (2026-02-06)" in result["failure"]
    known = {**SHORT, "known_gaps": ["2026-02-06"]}
    settings, result = validated(connection, tmp_path / "known", validation=known)
    assert codes(settings, result) == ([], [])


def test_a_gap_of_one_table_names_the_table(tmp_path: Path, quick):
    connection = clean_tables()
    without_day(connection, "2026-02-06", ("podcast_events",))
    settings, result = validated(connection, tmp_path, validation=SHORT)
    assert codes(settings, result) == (["DQ-GAPS podcast_events.occurred_at"], [])


def test_a_gap_of_a_source_that_has_had_gaps_warns(tmp_path: Path, quick):
    connection = clean_tables()
    without_day(connection, "2026-01-20")
    without_day(connection, "2026-02-06")
    settings, result = validated(connection, tmp_path, validation=SHORT)
    assert codes(settings, result) == ([], ["DQ-GAPS interactions.occurred_at"])


WARNING_CASES = {
    "half a day": (
        f"DELETE FROM audiobook_events WHERE {ON_DAY} AND HOUR(occurred_at) >= 2",  # 12 of 40 rows stay
        "DQ-VOLUME audiobook_events.occurred_at",
        "12 rows on 2026-02-10, 0.30 times the usual 40",
    ),
    "minutes for seconds": (
        "INSERT INTO music_events SELECT 'u' || i % 60, 't1', 'stream', "
        f"DATE '{AS_OF}' + INTERVAL 1 SECOND * (11 * i + 5), 31 FROM RANGE(200) t(i)",
        "DQ-SECONDS music_events.seconds_played",
        None,
    ),
    "a new kind of dirt": (
        f"UPDATE podcast_events SET event = 'like' WHERE {ON_DAY} AND HOUR(occurred_at) = 1",
        "DQ-REJECTS podcast_events.event",
        "6 on 2026-02-10) set aside as unknown_event",
    ),
    "titles that are numbers": (
        "UPDATE audiobooks SET title = 'Item ' || audiobook_id, description = NULL",
        "DQ-TEXT audiobooks.title",
        "1 different wordings (digits left out) in 40 titles",
    ),
    "no text at all": (
        "UPDATE audiobooks SET title = NULL, description = NULL",
        "DQ-TEXT audiobooks.title",
        "40 of 40 rows with neither title nor description",
    ),
    "no podcasts": (
        "DELETE FROM podcasts; DELETE FROM podcast_events",
        "DQ-CATALOGUE podcasts.podcast_id",
        "0 title(s)",
    ),
    "no users": ("DELETE FROM users", "DQ-USERS users.user_id", "0 user(s)"),
    "names for countries": (
        "UPDATE users SET country = 'Sweden' WHERE country = 'SE'",
        "DQ-USERS users.country",
        "20 of 60 sampled rows",
    ),
}


@pytest.mark.parametrize("case", WARNING_CASES)
def test_what_is_odd_warns_and_goes_on(case: str, tmp_path: Path, quick):
    sql, code, words = WARNING_CASES[case]
    connection = clean_tables()
    connection.execute(sql)
    if case == "minutes for seconds":
        # 3,000 s are usual; all 260 of this day are written as 31.
        connection.execute("UPDATE music_events SET seconds_played = 3000 WHERE seconds_played > 31")
        connection.execute(f"UPDATE music_events SET seconds_played = 31 WHERE {ON_DAY}")
        words = "a mean of 31 s a stream on 2026-02-10 (260 streams), usually 3,000 s"
    settings, result = validated(connection, tmp_path)
    critical, warnings = codes(settings, result)
    assert critical == []
    assert code in warnings
    assert words in " ".join(report_of(settings, result)["warnings"])


def test_an_event_that_vanished_and_a_shifted_mix_warn(tmp_path: Path, quick):
    """240 audiobook rows a day, a quarter of each event; on the last day every follow became a preview."""
    connection = clean_tables()
    connection.execute(
        """
        INSERT INTO audiobook_events
        SELECT 'u' || (i + copy * 9) % 60, audiobook_id, event, occurred_at + INTERVAL 1 SECOND * copy,
            seconds_played
        FROM
            (SELECT *, ROW_NUMBER() OVER (ORDER BY occurred_at) AS i FROM audiobook_events),
            RANGE(1, 6) t(copy)
        """
    )
    connection.execute(f"UPDATE audiobook_events SET event = 'preview' WHERE event = 'follow' AND {ON_DAY}")
    settings, result = validated(connection, tmp_path)
    report = report_of(settings, result)
    text = " ".join(report["warnings"])
    assert "DQ-EVENT-MIX audiobook_events.event" in text
    assert "follow 0.0% (usually 25.0%), preview 50.0% (usually 25.0%)" in text
    metrics = report["suites"]["audiobook_events"]["metrics"]
    # Total variation: (|0 - 1/4| + |1/2 - 1/4|) / 2 = 1/4.
    assert (metrics["event_mix_distance"], metrics["vanished_events"]) == (0.25, 1.0)


def test_no_audiobook_events_stop(tmp_path: Path, quick):
    connection = clean_tables()
    connection.execute("DELETE FROM audiobook_events")
    settings, result = validated(connection, tmp_path)
    critical, _ = codes(settings, result)
    assert critical == ["DQ-EMPTY audiobook_events.occurred_at"]


def test_few_titles_stop_at_the_setting(tmp_path: Path, quick):
    settings, result = validated(clean_tables(), tmp_path, validation={"min_audiobooks": 41})
    assert codes(settings, result)[0] == ["DQ-CATALOGUE audiobooks.audiobook_id"]
    assert "40 title(s); expected at least 41" in result["failure"]
