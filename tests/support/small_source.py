"""Small source tables for tests: made in DuckDB, changed by SQL, written in every layout."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import duckdb

from audiorec.settings import Settings, load_settings

_EVENT = "user_id VARCHAR, {} VARCHAR, event VARCHAR, occurred_at TIMESTAMP, seconds_played INTEGER"
_TEXT = "title VARCHAR, description VARCHAR"
COLUMNS = {
    "users": "user_id VARCHAR, country VARCHAR, birth_year INTEGER",
    "tracks": "track_id VARCHAR, title VARCHAR, artist_id VARCHAR, genre VARCHAR",
    "podcasts": f"podcast_id VARCHAR, {_TEXT}, publisher VARCHAR, category VARCHAR, "
    "language VARCHAR, published_on DATE",
    "audiobooks": f"audiobook_id VARCHAR, {_TEXT}, author VARCHAR, genre VARCHAR, "
    "language VARCHAR, published_on DATE",
    "music_events": _EVENT.format("track_id"),
    "podcast_events": _EVENT.format("podcast_id"),
    "audiobook_events": _EVENT.format("audiobook_id"),
}
EVENT_TABLES = ("music_events", "podcast_events", "audiobook_events")

AS_OF = date(2026, 2, 10)
FIRST_DAY = date(2026, 1, 12)
"""30 days of data: 2026-01-12 to 2026-02-10."""

WORDS = "['amber', 'birch', 'cedar', 'delta', 'ember', 'fjord', 'grove', 'heath', 'islet', 'juniper']"


def empty_tables() -> duckdb.DuckDBPyConnection:
    """The seven tables without rows."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET threads = 2")
    for name, columns in COLUMNS.items():
        connection.execute(f"CREATE TABLE {name} ({columns})")
    return connection


def clean_tables() -> duckdb.DuckDBPyConnection:
    """Tables without a fault, of which nothing warns: 60 users and 40 titles of each kind.

    On each of 30 days 60 music, 40 podcast and 40 audiobook events of different users, titles and times.
    """
    connection = empty_tables()
    connection.execute(
        f"""
        INSERT INTO users
            SELECT 'u' || i, ['SE', 'DE', 'US'][i % 3 + 1], 1960 + i % 40 FROM RANGE(60) t(i);
        INSERT INTO tracks SELECT 't' || i, {WORDS}[i % 10 + 1] || ' song', 'a' || i % 8, 'pop'
            FROM RANGE(40) t(i);
        INSERT INTO podcasts
            SELECT 'p' || i, {WORDS}[i % 10 + 1] || ' ' || {WORDS}[i // 10 + 1] || ' talk',
                'about ' || {WORDS}[i % 10 + 1], 'house', 'arts', 'en', DATE '2025-01-01' FROM RANGE(40) t(i);
        INSERT INTO audiobooks
            SELECT 'b' || i, {WORDS}[i % 10 + 1] || ' ' || {WORDS}[i // 10 + 1] || ' saga',
                'of ' || {WORDS}[i % 10 + 1], 'writer', 'FIC', 'en', DATE '2025-06-01' FROM RANGE(40) t(i);
        """
    )
    for table, key, letter, rows, events in (
        ("music_events", "track_id", "t", 60, "['stream']"),
        ("podcast_events", "podcast_id", "p", 40, "['stream', 'stream', 'follow', 'preview']"),
        ("audiobook_events", "audiobook_id", "b", 40, "['stream', 'follow', 'preview', 'intent_to_pay']"),
    ):
        connection.execute(
            f"""
            INSERT INTO {table} (user_id, {key}, event, occurred_at, seconds_played)
            SELECT 'u' || (i * 7 + d) % 60, '{letter}' || (i * 3 + d * 11) % 40,
                {events}[i % LEN({events}) + 1],
                DATE '{FIRST_DAY}' + INTERVAL 1 DAY * d + INTERVAL 600 SECOND * i, 300 + i
            FROM RANGE(30) days(d), RANGE({rows}) numbers(i)
            """
        )
    return connection


def write_flat(connection: duckdb.DuckDBPyConnection, folder: Path, tables: Iterable[str] = COLUMNS) -> Path:
    """One `NAME.parquet` a table."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in tables:
        connection.execute(f"COPY {name} TO '{folder}/{name}.parquet' (FORMAT parquet)")
    return folder


def write_hive(
    connection: duckdb.DuckDBPyConnection, folder: Path, late: dict[str, int] | None = None
) -> Path:
    """Events in `NAME/date=…/`, the rest flat. A column `arrived_on`, if there is one, is the folder."""
    write_flat(connection, folder, [name for name in COLUMNS if name not in EVENT_TABLES])
    for name in EVENT_TABLES:
        columns = {row[0] for row in connection.execute(f"DESCRIBE {name}").fetchall()}
        folder_day = "arrived_on" if "arrived_on" in columns else "CAST(occurred_at AS DATE)"
        shutil.rmtree(folder / name, ignore_errors=True)
        if not connection.execute(f"SELECT COUNT(*) FROM {name}").fetchall()[0][0]:
            write_flat(connection, folder, [name])  # a table without a row has no day to lie under
            continue
        days = connection.execute(f"SELECT DISTINCT {folder_day} FROM {name} ORDER BY 1").fetchall()
        exclude = "EXCLUDE (arrived_on)" if "arrived_on" in columns else ""
        for (day,) in days:
            target = folder / name / f"date={day}"
            target.mkdir(parents=True)
            connection.execute(
                f"COPY (SELECT * {exclude} FROM {name} WHERE {folder_day} = DATE '{day}') "
                f"TO '{target}/part-0.parquet' (FORMAT parquet)"
            )
    return folder


def write_duckdb(connection: duckdb.DuckDBPyConnection, path: Path) -> Path:
    """One .duckdb file with the seven tables."""
    path.unlink(missing_ok=True)
    connection.execute(f"ATTACH '{path}' AS written")
    for name in COLUMNS:
        connection.execute(f"CREATE TABLE written.{name} AS FROM {name}")
    connection.execute("DETACH written")
    return path


def write_views(flat: Path, path: Path) -> Path:
    """A .sql file of views over a flat folder."""
    path.write_text(
        "".join(
            f"CREATE VIEW {name} AS SELECT * FROM read_parquet('{flat}/{name}.parquet');\n"
            for name in COLUMNS
        )
    )
    return path


def settings_for(uri: Path, work: Path, **groups: Any) -> Settings:
    """Settings over a source, with a store of its own and cuts that fit 30 days."""
    return load_settings(
        source={"uri": str(uri), **groups.pop("source", {})},
        store={"uri": str(work / "store"), "scratch": str(work / "scratch")},
        # Ids stay readable in what tests compare; test_pseudonyms.py is about those that are not.
        privacy={"user_ids": "as_given", "key_file": str(work / "key"), **groups.pop("privacy", {})},
        time={"window_days": 20, "holdout_days": 5, "target_days": 5, **groups.pop("time", {})},
        **groups,
    )
