"""Suite of the table podcasts, as extract hands it on: size, keys, text, features, dates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from expectations.catalogue import key_checks, measure, notices, text_checks, title_rows
from expectations.check import Check, Suite
from sql import read_sql

if TYPE_CHECKING:
    import duckdb

ROWS = """
    SELECT podcast_id, title, language, YEAR(published_on) AS published_on
    FROM podcasts ORDER BY HASH(podcast_id) LIMIT $most
"""


def suite(
    connection: duckdb.DuckDBPyConnection,
    as_of: str,
    rejects: Mapping[str, int],
    validation: Mapping[str, Any],
    most_rows: int,
) -> Suite:
    """Measure the view `podcasts` and build its suite.

    Args:
        rejects: rows of the table set aside by extract, by reason.
        most_rows: rows of the sample that single rows are checked on.
    """
    metrics = measure(connection, read_sql("quality_podcasts"))
    size = Check(
        "DQ-CATALOGUE",
        "rows",
        "podcast_id",
        "warning",
        f"{metrics['rows']:,} title(s)",
        "at least one",
        "load podcasts, if there are any; the graph then has audiobooks alone",
        "podcasts are the bridge to users who know no audiobook",
        minimum=1,
    )
    if not metrics["rows"]:
        return Suite("podcasts", metrics, [size], notices=notices(rejects, "podcasts"))
    checks = [
        size,
        *key_checks("podcasts", metrics, rejects, validation),
        *text_checks("podcasts", "category", metrics, validation),
    ]
    sample = connection.execute(ROWS, {"most": most_rows}).df()
    return Suite(
        "podcasts", metrics, checks, sample, title_rows("podcast_id", as_of), notices(rejects, "podcasts")
    )
