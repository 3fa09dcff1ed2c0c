"""Suite of the table tracks, as extract hands it on: keys, and the artists that embed_music factorises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from expectations.catalogue import empty_column, key_checks, measure, notices
from expectations.check import Check, RowCheck, RowKind, Suite
from sql import read_sql

if TYPE_CHECKING:
    import duckdb

ROWS = "SELECT track_id FROM tracks ORDER BY HASH(track_id) LIMIT $most"
ARTISTLESS = 0.5
"""Half of the tracks without an artist: a user's music vector then misses half of the listening."""


def suite(
    connection: duckdb.DuckDBPyConnection,
    as_of: str,
    rejects: Mapping[str, int],
    validation: Mapping[str, Any],
    most_rows: int,
) -> Suite:
    """Measure the view `tracks` and build its suite; arguments as in `expectations.audiobooks`."""
    metrics = measure(connection, read_sql("quality_tracks"))
    size = Check(
        "DQ-CATALOGUE",
        "rows",
        "track_id",
        "warning",
        f"{metrics['rows']:,} track(s)",
        "at least one",
        "load tracks, if there is music; users then have no music vector",
        "music is what is known of most new audiobook listeners",
        minimum=1,
    )
    if not metrics["rows"]:
        return Suite("tracks", metrics, [size], notices=notices(rejects, "tracks"))
    checks = [
        size,
        *key_checks("tracks", metrics, rejects, validation),
        empty_column(
            "tracks",
            "artist_id",
            metrics,
            ARTISTLESS,
            "artists are what is factorised; a track without one gives no vector",
            "load artist_id, or set music.unit to track",
        ),
    ]
    sample = connection.execute(ROWS, {"most": most_rows}).df()
    promises: tuple[tuple[RowKind, str], ...] = (("not_null", "an id"), ("unique", "each id once"))
    row_checks = [
        RowCheck(
            "DQ-CONTRACT",
            "track_id",
            kind,
            "critical",
            expected,
            "a fault of extract: report it",
            "extract keeps one row an id",
        )
        for kind, expected in promises
    ]
    return Suite("tracks", metrics, checks, sample, row_checks, notices(rejects, "tracks"))
