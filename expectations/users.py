"""Suite of the table users, as extract hands it on: keys, country, year of birth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from expectations.catalogue import EMPTY_COLUMN, empty_column, key_checks, measure, notices, share
from expectations.check import Check, RowCheck, Suite
from sql import read_sql

if TYPE_CHECKING:
    import duckdb

ROWS = "SELECT user_id, country, birth_year FROM users ORDER BY HASH(user_id) LIMIT $most"
IMPLAUSIBLE = 0.05
"""Some people type 1900; more than one of twenty is a default value or another meaning of the column."""


def suite(
    connection: duckdb.DuckDBPyConnection,
    as_of: str,
    rejects: Mapping[str, int],
    validation: Mapping[str, Any],
    most_rows: int,
) -> Suite:
    """Measure the view `users` and build its suite; arguments as in `expectations.audiobooks`."""
    metrics = measure(connection, read_sql("quality_users"))
    size = Check(
        "DQ-USERS",
        "rows",
        "user_id",
        "warning",
        f"{metrics['rows']:,} user(s)",
        "at least one",
        "load users; every user then counts as of unknown country and age",
        "country and age are all that is known of a new user",
        minimum=1,
    )
    if not metrics["rows"]:
        return Suite("users", metrics, [size], notices=notices(rejects, "users"))
    implausible = rejects.get("implausible_birth_year", 0)
    metrics["implausible_birth_year_share"] = share(implausible, metrics["rows"])
    checks = [
        size,
        *key_checks("users", metrics, rejects, validation),
        Check(
            "DQ-USERS",
            "implausible_birth_year_share",
            "birth_year",
            "warning",
            f"{implausible:,} of {metrics['rows']:,} users younger than 5 or older than 120; their year "
            "was set to NULL",
            f"at most {100 * IMPLAUSIBLE:g}%",
            "send NULL for an unknown year",
            "some people type 1900, not one of twenty",
            maximum=IMPLAUSIBLE,
        ),
        empty_column(
            "users",
            "country",
            metrics,
            EMPTY_COLUMN,
            "country is a feature of the user",
            "load country; the run goes on without it",
            "DQ-USERS",
        ),
        empty_column(
            "users",
            "birth_year",
            metrics,
            EMPTY_COLUMN,
            "age is a feature of the user",
            "load birth_year; the run goes on without it",
            "DQ-USERS",
        ),
    ]
    year = int(as_of[:4])
    row_checks = [
        RowCheck(
            "DQ-CONTRACT",
            "user_id",
            "not_null",
            "critical",
            "an id",
            "a fault of extract: report it",
            "extract sets rows without an id aside",
        ),
        RowCheck(
            "DQ-CONTRACT",
            "user_id",
            "unique",
            "critical",
            "each id once",
            "a fault of extract: report it",
            "extract keeps one row an id",
        ),
        RowCheck(
            "DQ-CONTRACT",
            "birth_year",
            "between",
            "critical",
            f"{year - 120} to {year - 5}",
            "a fault of extract: report it",
            "extract sets other years to NULL",
            {"min_value": year - 120, "max_value": year - 5},
        ),
        RowCheck(
            "DQ-USERS",
            "country",
            "matches",
            "warning",
            "a code of two letters such as SE",
            "write ISO 3166 codes",
            "names and codes mixed make two countries of one",
            {"regex": "^[A-Z]{2}$"},
            0.95,
        ),
    ]
    sample = connection.execute(ROWS, {"most": most_rows}).df()
    return Suite("users", metrics, checks, sample, row_checks, notices(rejects, "users"))
