"""Each SQL file on a few rows, input and expected output written out."""

from __future__ import annotations

import re
from datetime import date, datetime
from pathlib import Path

import duckdb
import pytest

import sql
from audiorec.digests import bind
from sql import read_sql

DAY = date(2026, 2, 10)
NINE = datetime(2026, 2, 10, 9, 0, 0)
EVENT_COLUMNS = "item_type VARCHAR, user_id VARCHAR, item_id VARCHAR, event VARCHAR, occurred_at TIMESTAMP"
REJECT_COLUMNS = (
    "source_table VARCHAR, reason VARCHAR, user_id VARCHAR, item_id VARCHAR, event VARCHAR, rows BIGINT, "
    "first_at TIMESTAMP, last_at TIMESTAMP, least_seconds INTEGER, most_seconds INTEGER"
)


@pytest.fixture
def db() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def fill(db: duckdb.DuckDBPyConnection, name: str, columns: str, rows: list[tuple]) -> None:
    db.execute(f"CREATE TABLE {name} ({columns})")
    if rows:
        db.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(rows[0]))})", rows)


def ask(db: duckdb.DuckDBPyConnection, name: str, **values: object) -> list[tuple]:
    query = read_sql(name)
    return db.execute(query, bind(query, values)).fetchall()


def at(hour: int, minute: int = 0, second: int = 0, day: int = 10) -> datetime:
    return datetime(2026, 2, day, hour, minute, second)


# --- conventions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(Path(sql.__file__).parent.glob("*.sql")), ids=lambda path: path.stem)
def test_every_file_says_its_grain_and_never_asks_the_clock(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("-- Grain: one "), "the first line says what a row is"
    assert "-- Inputs: " in text
    code = re.sub(r"--[^\n]*", "", text).lower()
    assert not re.search(r"\b(now|current_date|current_timestamp|today|random|uuid)\b", code)
    for name in set(re.findall(r"\$([a-z_]+)", code)):
        assert f"${name}" in text.split("\n\n")[0].split("WITH")[0], (
            f"${name} is not among the parameters of the header"
        )


# --- events ----------------------------------------------------------------------------------------------


def judged(db: duckdb.DuckDBPyConnection, rows: list[tuple]) -> None:
    fill(db, "judged_events", f"{EVENT_COLUMNS}, listened_seconds INTEGER, reason VARCHAR", rows)


def test_judged_events_keep_the_longest_copy_and_the_earliest_up_to_the_cap(db):
    """Cap 2. Of two copies at 9:00 the longer stays; 9:00 and 9:01 count, 9:02 is over. Rejects stay."""
    fill(
        db,
        "typed_events",
        f"{EVENT_COLUMNS}, listened_seconds INTEGER, reason VARCHAR",
        [
            ("music", "u1", "t1", "stream", at(9), 40, None),
            ("music", "u1", "t1", "stream", at(9), 50, None),
            ("music", "u1", "t2", "stream", at(9, 1), 60, None),
            ("music", "u1", "t3", "stream", at(9, 2), 60, None),
            ("music", "u1", "t3", "stream", at(8), 5, "too_short"),
            ("music", "u2", "t3", "stream", at(9, 3), 60, None),
        ],
    )
    found = [(r[1], r[4].minute, r[5], r[6]) for r in ask(db, "judged_events", max_events_per_user_day=2)]
    assert sorted(found, key=str) == sorted(
        [
            ("u1", 0, 40, "duplicate"),
            ("u1", 0, 50, None),
            ("u1", 1, 60, None),
            ("u1", 2, 60, "over_daily_cap"),
            ("u1", 0, 5, "too_short"),
            ("u2", 3, 60, None),
        ],
        key=str,
    )


def test_interactions_are_the_days_counted_events_in_a_total_order(db):
    judged(
        db,
        [
            ("podcast", "u2", "p1", "follow", at(9), None, None),
            ("music", "u2", "t1", "stream", at(10), 60, None),
            ("music", "u1", "t1", "stream", at(11), 60, None),
            ("music", "u1", "t1", "stream", at(11, day=9), 60, None),
            ("music", "u1", "t1", "stream", at(12), 5, "too_short"),
        ],
    )
    assert ask(db, "interactions", day=DAY) == [
        ("music", "u1", "t1", "stream", at(11), 60),
        ("music", "u2", "t1", "stream", at(10), 60),
        ("podcast", "u2", "p1", "follow", at(9), 0),
    ]


def test_rejects_are_grouped_with_their_span(db):
    judged(
        db,
        [
            ("music", "u1", "t1", "stream", at(9), 5, "too_short"),
            ("music", "u1", "t1", "stream", at(11), 7, "too_short"),
            ("music", None, "t1", "stream", at(11), 70, "null_user_id"),
            ("music", "u1", "t1", "stream", at(11), 70, None),
            ("music", "u1", "t1", "stream", at(11, day=9), 3, "too_short"),
        ],
    )
    assert ask(db, "rejects", day=DAY) == [
        ("music_events", "null_user_id", None, "t1", "stream", 1, at(11), at(11), 70, 70),
        ("music_events", "too_short", "u1", "t1", "stream", 2, at(9), at(11), 5, 7),
    ]


def test_first_dates(db):
    judged(
        db,
        [
            ("audiobook", "u1", "b1", "stream", at(9, day=8), 60, None),
            ("audiobook", "u1", "b1", "stream", at(9), 60, None),
            ("audiobook", "u1", "b1", "preview", at(9, day=5), 60, None),
            ("audiobook", "u1", "b1", "stream", at(9, day=2), 6, "too_short"),
            ("music", "u1", "t1", "stream", at(9, day=3), 60, None),
            ("podcast", "u2", "p1", "stream", at(9, day=4), 60, None),
        ],
    )
    assert ask(db, "first_streamed") == [
        ("audiobook", "u1", "b1", date(2026, 2, 8)),
        ("podcast", "u2", "p1", date(2026, 2, 4)),
    ]
    assert ask(db, "first_signal") == [("u1", date(2026, 2, 5))]
    assert ask(db, "first_seen") == [("u1", date(2026, 2, 3)), ("u2", date(2026, 2, 4))]


def test_days_are_filled_with_zeros(db):
    fill(
        db,
        "window_interactions",
        f"{EVENT_COLUMNS}, listened_seconds INTEGER",
        [
            ("music", "u1", "t1", "stream", at(9), 60),
            ("music", "u1", "t2", "stream", at(10), 40),
            ("music", "u2", "t1", "stream", at(10), 50),
        ],
    )
    found = ask(db, "days", first_day=date(2026, 2, 9), last_day=DAY)
    assert len(found) == 2 * 8
    assert [row for row in found if row[3]] == [(DAY, "music", "stream", 3, 2, 2, 150.0)]


# --- catalogue -------------------------------------------------------------------------------------------


def test_visible_titles_take_the_newest_version_and_leave_later_ones_out(db):
    db.execute("CREATE SCHEMA source")
    columns = (
        "audiobook_id VARCHAR, title VARCHAR, description VARCHAR, author VARCHAR, genre VARCHAR, "
        "language VARCHAR, "
        "published_on DATE, valid_from TIMESTAMP"
    )
    fill(
        db,
        "source.audiobooks",
        columns,
        [
            (" b1 ", "Old", None, None, None, "EN", None, datetime(2026, 1, 1)),
            ("b1", "New", None, None, None, " en", None, datetime(2026, 2, 10, 23, 59)),
            ("b1", "Later", None, None, None, "en", None, datetime(2026, 2, 11)),
            ("b2", "A", None, None, None, None, DAY, None),
            ("b2", "B", None, None, None, None, DAY, None),
            ("b3", "Unpublished", None, None, None, None, date(2026, 2, 11), None),
            (" ", "Nameless", None, None, None, None, None, None),
        ],
    )
    found = [(r[0], r[1], r[5], r[7]) for r in ask(db, "visible_audiobooks", as_of=DAY)]
    assert found == [
        ("b1", "New", "en", None),
        ("b1", "Old", "en", "superseded"),
        ("b2", "A", None, None),
        ("b2", "B", None, "duplicate_id"),
        (None, "Nameless", None, "null_id"),
    ]


def test_an_implausible_birth_year_is_unknown_and_the_user_stays(db):
    """In 2026 a user may be born 1906 (120 years) to 2021 (5 years)."""
    db.execute("CREATE SCHEMA source")
    fill(
        db,
        "source.users",
        "user_id VARCHAR, country VARCHAR, birth_year INTEGER, valid_from TIMESTAMP",
        [
            ("u1", " se", 1905, None),
            ("u2", "", 1906, None),
            ("u3", None, 2021, None),
            ("u4", None, 2022, None),
        ],
    )
    assert ask(db, "visible_users", as_of=DAY) == [
        ("u1", "SE", None, "implausible_birth_year"),
        ("u2", None, 1906, None),
        ("u3", None, 2021, None),
        ("u4", None, None, "implausible_birth_year"),
    ]


def catalogue(db: duckdb.DuckDBPyConnection) -> None:
    fill(db, "audiobooks", "audiobook_id VARCHAR", [("b1",)])
    fill(db, "podcasts", "podcast_id VARCHAR", [("p1",)])
    fill(db, "tracks", "track_id VARCHAR", [("t1",)])
    fill(db, "users", "user_id VARCHAR", [("u1",), ("u2",)])


def test_unknown_ids_are_told_once_an_id_and_event(db):
    catalogue(db)
    fill(
        db,
        "window_interactions",
        f"{EVENT_COLUMNS}, listened_seconds INTEGER",
        [
            ("music", "u1", "t1", "stream", at(9), 60),
            ("music", "u1", "t9", "stream", at(9), 60),
            ("music", "u1", "t9", "stream", at(10), 90),
            ("audiobook", "u9", "p1", "follow", at(9), 0),  # p1 is a podcast, not an audiobook
        ],
    )
    assert ask(db, "unknown_ids") == [
        ("audiobook_events", "unknown_item_id", None, "p1", "follow", 1, at(9), at(9), 0, 0),
        ("audiobook_events", "unknown_user_id", "u9", None, "follow", 1, at(9), at(9), 0, 0),
        ("music_events", "unknown_item_id", None, "t9", "stream", 2, at(9), at(10), 60, 90),
    ]


# --- figures that validate judges ------------------------------------------------------------------------


def reject(reason: str, user: str | None, rows: int, day: int = 10, table: str = "music_events") -> tuple:
    return (table, reason, user, "t1", "stream", rows, at(9, day=day), at(9, day=day), 0, 0)


def test_quality_event_days_leave_a_capped_user_out_of_volume_and_faults(db):
    """u1: 2 count, 1 short. u2 is a bot: 1 counts, 7 over the cap, 5 duplicates. One row has no user.

    ordinary: u1 2 + 1, u2 only what counts 1, the one without a user 1 = 5. faults: 1. Quarantined: 12.
    """
    catalogue(db)
    fill(
        db,
        "compared_interactions",
        f"{EVENT_COLUMNS}, listened_seconds INTEGER",
        [
            ("music", "u1", "t1", "stream", at(9), 60),
            ("music", "u1", "t9", "stream", at(10), 60),
            ("music", "u2", "t1", "stream", at(9), 60),
        ],
    )
    rejects = [
        reject("too_short", "u1", 1),
        reject("over_daily_cap", "u2", 7),
        reject("duplicate", "u2", 5),
        reject("null_user_id", None, 1),
    ]
    fill(db, "compared_rejects", REJECT_COLUMNS, rejects)
    cursor = db.execute(read_sql("quality_event_days"))
    names = [column[0] for column in cursor.description]
    (row,) = cursor.fetchall()
    assert dict(zip(names, row, strict=True)) == {
        "day": DAY,
        "item_type": "music",
        "counted": 3,
        "ordinary": 5,
        "faults": 1,
        "too_short": 1,
        "nulls": 1,
        "source_rows": 17,
        "quarantined": 12,
        "capped_users": 1,
        "users": 2,
        "largest_user_rows": 13,
        "unknown_items": 1,
        "unknown_users": 0,
    }


def test_quality_rejects_tell_the_day_and_the_capped_users_apart(db):
    rejects = [
        reject("duplicate", "u1", 3),
        reject("duplicate", "u2", 4),
        reject("over_daily_cap", "u2", 9),
        reject("duplicate", "u2", 5, day=9),  # not capped on that day
    ]
    fill(db, "window_rejects", REJECT_COLUMNS, rejects)
    fill(
        db, "run_rejects", REJECT_COLUMNS, [("users", "null_id", None, None, None, 2, None, None, None, None)]
    )
    assert ask(db, "quality_rejects", as_of=DAY) == [
        ("music_events", "duplicate", 12, 7, 4, 2, 1),
        ("music_events", "over_daily_cap", 9, 9, 9, 1, 1),
        ("users", "null_id", 2, 0, 0, 0, 0),
    ]


def test_quality_history_counts_repeats_and_dates_after_as_of(db):
    fill(
        db,
        "first_streamed",
        "item_type VARCHAR, user_id VARCHAR, item_id VARCHAR, first_streamed_on DATE",
        [("music", "u1", "x", DAY), ("podcast", "u1", "x", DAY), ("podcast", "u1", "x", date(2026, 2, 11))],
    )
    fill(db, "first_signal", "user_id VARCHAR, first_signal_on DATE", [("u1", DAY), ("u2", DAY)])
    assert ask(db, "quality_history", as_of=DAY) == [(1, 1, 0, 0)]


@pytest.mark.parametrize(("table", "kind"), [("audiobooks", "genre"), ("podcasts", "category")])
def test_quality_of_titles_counts_empty_columns_and_wordings(db, table: str, kind: str):
    """Wordings without digits: 'item' (twice), 'the sea of sand', and one title with no text at all."""
    key = f"{table.removesuffix('s')}_id"
    columns = (
        f"{key} VARCHAR, title VARCHAR, description VARCHAR, {kind} VARCHAR, language VARCHAR, "
        "published_on DATE"
    )
    rows = [
        ("1", "Item 1", None, "x", "en", DAY),
        ("2", "ITEM 22", None, None, "en", None),
        ("3", "The Sea", "of sand", None, None, None),
        ("3", None, None, "x", "en", None),
    ]
    fill(db, table, columns, rows)
    # rows, repeated_ids, without title, description, text; wordings; without kind, language, published_on
    assert ask(db, f"quality_{table}") == [(4, 1, 1, 3, 1, 2, 2, 1, 3)]


def test_quality_of_tracks_and_users(db):
    fill(db, "tracks", "track_id VARCHAR, artist_id VARCHAR", [("t1", "a1"), ("t2", None), ("t2", "a1")])
    assert ask(db, "quality_tracks") == [(3, 1, 1, 1)]
    fill(
        db,
        "users",
        "user_id VARCHAR, country VARCHAR, birth_year INTEGER",
        [("u1", "SE", None), ("u2", None, 1990)],
    )
    assert ask(db, "quality_users") == [(2, 0, 1, 1)]


def test_source_days_ignore_order_and_see_every_change(db):
    db.execute("CREATE SCHEMA source")
    columns = (
        "user_id VARCHAR, {} VARCHAR, event VARCHAR, occurred_at TIMESTAMP, occurred_at_text VARCHAR, "
        "seconds_played INTEGER, seconds_played_text VARCHAR, arrived_on DATE"
    )
    rows = [
        ("u1", "t1", "stream", at(9), "x", 60, "60", DAY),
        ("u2", "t1", "stream", at(9), "x", 60, "60", DAY),
        ("u1", "t1", "stream", datetime(1999, 1, 1), "x", 60, "60", DAY),
        ("u1", "t1", "stream", at(9, day=11), "x", 60, "60", date(2026, 2, 11)),
    ]
    for table, key in (
        ("music_events", "track_id"),
        ("podcast_events", "podcast_id"),
        ("audiobook_events", "audiobook_id"),
    ):
        fill(db, f"source.{table}", columns.format(key), rows if table == "music_events" else [])
    first = ask(db, "source_days", as_of=DAY, late_days=3)
    assert [(row[0], row[1]) for row in first] == [(None, 1), (DAY, 2)]
    db.execute(
        "CREATE OR REPLACE TABLE source.music_events AS FROM source.music_events ORDER BY user_id DESC"
    )
    assert ask(db, "source_days", as_of=DAY, late_days=3) == first
    db.execute(
        "UPDATE source.music_events SET arrived_on = DATE '2026-02-12' WHERE occurred_at = TIMESTAMP "
        f"'{NINE}'"
    )
    assert ask(db, "source_days", as_of=DAY, late_days=3) == first, "in time is in time, whatever the folder"
    db.execute(
        f"UPDATE source.music_events SET seconds_played_text = '61' WHERE occurred_at = TIMESTAMP '{NINE}'"
    )
    assert ask(db, "source_days", as_of=DAY, late_days=3) != first
