"""Digests of the source tables, which stand for them in fingerprints: contents, never files or times."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

import duckdb

from audiorec.errors import BadData
from audiorec.fingerprint import digest
from audiorec.pseudonyms import hide_users
from audiorec.settings import Settings
from audiorec.source import TABLES, SourceTables, open_source
from sql import read_sql

UNDATED = "undated"


def bind(query: str, values: dict[str, Any]) -> dict[str, Any]:
    """The named parameters that a query uses; DuckDB refuses any others."""
    used = set(re.findall(r"\$([a-z_]+)", re.sub(r"--[^\n]*", "", query)))
    return {name: values[name] for name in used}


def visible_queries() -> dict[str, str]:
    """The query of each table without events, by table name."""
    return {
        "audiobooks": read_sql("visible_audiobooks"),
        "podcasts": read_sql("visible_podcasts"),
        "tracks": read_sql("visible_tracks"),
        "users": read_sql("visible_users"),
    }


def day_digests(source: SourceTables, as_of: date, late_days: int) -> dict[str, str]:
    """Digest of each day with source events up to `as_of`, by ISO day; `undated`: of no believable day."""
    query = read_sql("source_days")
    values = bind(query, {"as_of": as_of, "late_days": late_days})
    rows = source.connection.execute(query, values).fetchall()
    return {day.isoformat() if day else UNDATED: digest([count, str(hashes)]) for day, count, hashes in rows}


def table_digests(connection: duckdb.DuckDBPyConnection, as_of: date) -> dict[str, str]:
    """Digest of what is visible on `as_of` of each table without events."""
    found = {}
    for name, query in visible_queries().items():
        count, hashes = connection.execute(
            f"SELECT COUNT(*), SUM(HASH(visible)::HUGEINT) FROM ({query}) AS visible",  # noqa: S608 - our own SQL
            {"as_of": as_of},
        ).fetchall()[0]
        found[name] = digest([count, str(hashes)])
    return found


def source_digests(settings: Settings, as_of: date) -> dict[str, str]:
    """All that extract reads, as input names and digests: one for the events of all days, one a table.

    Raises:
        BadData: a table's rows cannot be read, though its head could (a damaged page, a lost file).
    """
    source = open_source(settings)
    try:
        hide_users(source, settings)
        days = day_digests(source, as_of, settings.extract.late_days)
        tables = table_digests(source.connection, as_of)
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        raise BadData(
            f"source table {_unreadable(source)} in {source.uri} cannot be read to its end: "
            f"{str(error).splitlines()[0]}. Replace the damaged file and run again"
        ) from None
    return {"source/events": digest(days), **{f"source/{name}": value for name, value in tables.items()}}


def _unreadable(source: SourceTables) -> str:
    """Names of the tables that cannot be read to their end."""
    found = []
    for table in TABLES:
        try:
            query = f"SELECT SUM(HASH(rows)::HUGEINT) FROM source.{table.name} AS rows"  # noqa: S608 - from TABLES
            source.connection.execute(query).fetchall()
        except duckdb.Error:
            found.append(table.name)
    return ", ".join(found) or "of unknown name"
