"""The examples in the docs hold: the file of views over a folder of exports, and the worked dates."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import duckdb
import pytest

from audiorec.cuts import cuts
from audiorec.settings import Time, load_settings
from audiorec.source import TABLES, open_source

ROOT = Path(__file__).parents[2]
VIEWS = ROOT / "docs" / "examples" / "views.sql"


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `exports/` as the example describes it, one or two rows a file."""
    folder = tmp_path / "exports"
    (folder / "books").mkdir(parents=True)
    (folder / "accounts.csv").write_text("account_id,country_code,born_on\n007,de,1984-05-01\n008,,\n")
    connection = duckdb.connect()
    tables = {
        "songs.parquet": "SELECT 's1' AS song_id, 'A song' AS name, 'a1' AS artist, 'pop' AS genre",
        "books/part-0.parquet": (
            "SELECT '978' AS isbn, 'A book' AS title, 'About it' AS blurb, 'A. Uthor' AS author, "
            "'FIC000000' AS bisac, 'DE' AS lang, DATE '2026-01-02' AS released, "
            "TIMESTAMP '2026-01-01 00:00:00' AS changed_at"
        ),
        "shows.parquet": (
            "SELECT 'p1' AS show_id, 'A show' AS title, 'Talk' AS about, 'P' AS publisher, "
            "'news' AS category, 'de' AS lang"
        ),
        "plays.parquet": (
            "SELECT '007' AS account_id, 's1' AS song_id, TIMESTAMP '2026-07-01 12:00:00' AS played_at, "
            "183500 AS played_ms, 'song' AS kind "
            "UNION ALL SELECT '007', 's1', TIMESTAMP '2026-07-01 12:05:00', 9, 'jingle'"
        ),
        "show_actions.parquet": (
            "SELECT '007' AS account_id, 'p1' AS show_id, 'subscribe' AS action, "
            "TIMESTAMP '2026-01-15 00:30:00' AS happened_at, 0 AS seconds"
        ),
        "book_actions.parquet": (
            "SELECT '007' AS account_id, '978' AS isbn, 'open_checkout' AS action, "
            "TIMESTAMP '2026-07-01 01:30:00' AS happened_at, 0 AS seconds"
        ),
    }
    for name, query in tables.items():
        connection.execute(f"COPY ({query}) TO '{folder / name}' (FORMAT parquet)")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_views_open_as_source_tables(exports: Path):
    settings = load_settings(source={"uri": str(VIEWS)}, store={"scratch": str(exports / "scratch")})
    source = open_source(settings)
    assert source.versioned == {"audiobooks"}
    rows = {
        table.name: source.connection.execute(
            f"SELECT {', '.join(table.columns)} FROM source.{table.name} ORDER BY ALL"
        ).fetchall()
        for table in TABLES
    }
    assert rows["users"] == [("007", "de", 1984), ("008", None, None)]
    assert rows["audiobooks"] == [
        ("978", "A book", "About it", "A. Uthor", "FIC000000", "de", date(2026, 1, 2))
    ]
    # Berlin is two hours ahead of UTC in July, one in January; 183,500 ms are 183 whole seconds. The
    # view leaves out the jingle.
    assert rows["music_events"] == [("007", "s1", "stream", datetime(2026, 7, 1, 10), 183)]
    assert rows["podcast_events"] == [("007", "p1", "follow", datetime(2026, 1, 14, 23, 30), 0)]
    assert rows["audiobook_events"] == [("007", "978", "intent_to_pay", datetime(2026, 6, 30, 23, 30), 0)]


def test_the_worked_dates_of_the_architecture_page():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    found = cuts(date(2026, 11, 23), Time())
    train, judge, release = found.train, found.judge, found.release
    for first, last in (
        (judge.first_day, judge.last_day),
        (release.first_day, release.last_day),
        (found.blocks[0].first_day, found.blocks[0].last_day),
    ):
        assert f"{first:%m-%d}..{last:%m-%d}" in text
    assert f"split: 11-23 minus 14 days plus 1 = {found.split:%m-%d}" in text
    assert f"ends {train.last_day:%m-%d}, the day before the first target" in text
    assert f"begins 90 days earlier, {train.first_day:%m-%d}" in text
    assert f"needs the event days from {found.first_day:%m-%d} on" in text
    window = found.window(date(2026, 11, 2))
    assert f"a target of 11-03 sees events of {window.first_day:%m-%d}..{window.last_day:%m-%d}" in text
