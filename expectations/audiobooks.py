"""Suite of the table audiobooks, as extract hands it on: size, keys, text, features, dates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from expectations.catalogue import key_checks, measure, notices, text_checks, title_rows
from expectations.check import Check, Suite
from sql import read_sql

if TYPE_CHECKING:
    import duckdb

ROWS = """
    SELECT audiobook_id, title, language, YEAR(published_on) AS published_on
    FROM audiobooks ORDER BY HASH(audiobook_id) LIMIT $most
"""


def suite(
    connection: duckdb.DuckDBPyConnection,
    as_of: str,
    rejects: Mapping[str, int],
    validation: Mapping[str, Any],
    most_rows: int,
) -> Suite:
    """Measure the view `audiobooks` and build its suite.

    Args:
        rejects: rows of the table set aside by extract, by reason.
        most_rows: rows of the sample that single rows are checked on.
    """
    metrics = measure(connection, read_sql("quality_audiobooks"))
    size = Check(
        "DQ-CATALOGUE",
        "rows",
        "audiobook_id",
        "critical",
        f"{metrics['rows']:,} title(s)",
        f"at least {validation['min_audiobooks']} (validation.min_audiobooks)",
        "load the catalogue; a released one has thousands of titles",
        "a recommender of ten needs more than ten titles",
        minimum=validation["min_audiobooks"],
    )
    if not metrics["rows"]:
        return Suite("audiobooks", metrics, [size], notices=notices(rejects, "audiobooks"))
    checks = [
        size,
        *key_checks("audiobooks", metrics, rejects, validation),
        *text_checks("audiobooks", "genre", metrics, validation),
    ]
    sample = connection.execute(ROWS, {"most": most_rows}).df()
    return Suite(
        "audiobooks",
        metrics,
        checks,
        sample,
        title_rows("audiobook_id", as_of),
        notices(rejects, "audiobooks"),
    )
