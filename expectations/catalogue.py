"""What the suites of audiobooks, podcasts, tracks and users share: keys, empty columns, rows set aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expectations.check import Check, RowCheck
from expectations.reasons import KEY_COLUMNS, column_of, reason_of

if TYPE_CHECKING:
    import duckdb

Metrics = dict[str, float | int | None]

NOTICED_SHARE = 0.01
"""One row of a hundred with a broken key is no accident."""
EMPTY_COLUMN = 0.9
"""A column nine tenths empty is not being filled; partly filled columns are the nature of catalogues."""


def measure(connection: duckdb.DuckDBPyConnection, query: str) -> Metrics:
    """The one row of figures that a `sql/quality_TABLE.sql` gives."""
    cursor = connection.execute(query)
    names = [column[0] for column in cursor.description or ()]
    return dict(zip(names, cursor.fetchall()[0], strict=True))


def share(part: float | int | None, whole: float | int | None) -> float:
    """part / whole, 0 of an empty table."""
    return float(part or 0) / float(whole) if whole else 0.0


def key_checks(
    table: str, metrics: Metrics, rejects: Mapping[str, int], validation: Mapping[str, Any]
) -> list[Check]:
    """Ids unique in what extract wrote; rows set aside for their id few enough.

    Args:
        table: users, tracks, podcasts or audiobooks.
        metrics: figures with `rows` and `repeated_ids`; the shares are added.
        rejects: rows set aside, by reason.
    """
    key = KEY_COLUMNS[table]
    checks = [
        Check(
            "DQ-CONTRACT",
            "repeated_ids",
            key,
            "critical",
            f"{metrics['repeated_ids']:,} repeated id(s)",
            "each id once",
            "a fault of extract: report it with the manifest, and run extract with --force",
            "extract promises it; a repeated id would shift every row number",
            maximum=0,
        )
    ]
    keys = {reason: rows for reason, rows in rejects.items() if reason in ("null_id", "duplicate_id")}
    total = sum(keys.values()) + int(metrics["rows"] or 0)
    metrics["broken_key_share"] = share(sum(keys.values()), total)
    worst = max(keys, key=lambda reason: keys[reason]) if keys else "duplicate_id"
    shown = ", ".join(f"{reason}: {rows:,}" for reason, rows in sorted(keys.items()))
    for severity, limit, why in (
        ("critical", validation["max_reject_share"], "then nobody knows which row of an id is right"),
        ("warning", NOTICED_SHARE, "one row of a hundred is no accident"),
    ):
        setting = " (validation.max_reject_share)" if severity == "critical" else ""
        checks.append(
            Check(
                "DQ-KEYS",
                "broken_key_share",
                key,
                "critical" if severity == "critical" else "warning",
                f"{sum(keys.values()):,} of {total:,} rows without a key of their own ({shown})",
                f"at most {100 * limit:.1f}%{setting}",
                reason_of(worst).remedy + "; then run extract again",
                why,
                maximum=limit,
            )
        )
    return checks


def empty_column(
    table: str,
    column: str,
    metrics: Metrics,
    limit: float,
    why: str,
    remedy: str,
    code: str = "DQ-CATALOGUE",
    setting: str = "",
) -> Check:
    """A warning if more than `limit` of the rows lack `column`; needs the figure `without_COLUMN`."""
    metrics[f"share_without_{column}"] = share(metrics[f"without_{column}"], metrics["rows"])
    return Check(
        code,
        f"share_without_{column}",
        column,
        "warning",
        f"{metrics[f'without_{column}']:,} of {metrics['rows']:,} rows without {column}",
        f"at most {100 * limit:.0f}%{f' ({setting})' if setting else ''}",
        remedy,
        why,
        maximum=limit,
    )


def text_checks(table: str, kind: str, metrics: Metrics, validation: Mapping[str, Any]) -> list[Check]:
    """A catalogue without text is a warning: it has a path of its own, without text vectors' help.

    `kind` is the column of the title's class: genre or category.
    """
    limit, setting = validation["max_null_text_share"], "validation.max_null_text_share"
    rows, with_text = metrics["rows"], int(metrics["rows"] or 0) - int(metrics["without_text"] or 0)
    metrics["share_without_text"] = share(metrics["without_text"], rows)
    metrics["own_wording_share"] = share(metrics["wordings"], with_text) if with_text else None
    weaker = "cold titles are then placed by genre, language and age alone"
    checks = [
        Check(
            "DQ-TEXT",
            "share_without_text",
            "title",
            "warning",
            f"{metrics['without_text']:,} of {rows:,} rows with neither title nor description",
            f"at most {100 * limit:.0f}% ({setting})",
            "load titles and descriptions; the run goes on without them",
            weaker,
            maximum=limit,
        ),
        empty_column(
            table,
            "description",
            metrics,
            limit,
            weaker,
            "load descriptions; the run goes on with titles alone",
            "DQ-TEXT",
            setting,
        ),
        empty_column(
            table,
            kind,
            metrics,
            EMPTY_COLUMN,
            f"{kind} is a feature of the title",
            f"load {kind}; the run goes on without it",
        ),
        empty_column(
            table,
            "language",
            metrics,
            EMPTY_COLUMN,
            "language is a feature of the title",
            "load language; the run goes on without it",
        ),
        empty_column(
            table,
            "published_on",
            metrics,
            EMPTY_COLUMN,
            "an undated title counts as published before every split, and has no age",
            "load published_on; the run goes on without it",
        ),
    ]
    if with_text:
        checks.insert(
            2,
            Check(
                "DQ-TEXT",
                "own_wording_share",
                "title",
                "warning",
                f"{metrics['wordings']:,} different wordings (digits left out) in {with_text:,} titles "
                "with text",
                "at least 50% of the titles worded differently",
                "are these titles numbers or codes? Load real titles; the run goes on, text vectors "
                "will say little",
                "titles such as 'Item 17' and 'Item 18' have one meaning; real catalogues word over 97% "
                "differently",
                minimum=0.5,
            ),
        )
    return checks


def title_rows(key: str, as_of: str) -> list[RowCheck]:
    """Checks on single titles, on a sample of key, title, language and published_on (its year)."""
    year = int(as_of[:4])
    return [
        RowCheck(
            "DQ-CONTRACT",
            key,
            "not_null",
            "critical",
            "an id",
            "a fault of extract: report it",
            "extract sets rows without an id aside",
        ),
        RowCheck(
            "DQ-CONTRACT",
            key,
            "unique",
            "critical",
            "each id once",
            "a fault of extract: report it",
            "extract keeps one row an id",
        ),
        RowCheck(
            "DQ-TEXT",
            "title",
            "length",
            "warning",
            "1 to 500 characters",
            "look for descriptions in the title column",
            "the text model reads about 500 characters",
            {"min_value": 1, "max_value": 500},
            0.99,
        ),
        RowCheck(
            "DQ-TEXT",
            "title",
            "lacks",
            "warning",
            "no control characters",
            "clean the export's encoding",
            "they come from broken encodings",
            {"regex": "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\ufffd]"},
            0.99,
        ),
        RowCheck(
            "DQ-CATALOGUE",
            "language",
            "matches",
            "warning",
            "a language tag such as en or pt-br",
            "write ISO 639 codes",
            "names of languages and codes mixed make two languages of one",
            {"regex": "^[a-z]{2,3}(?:[-_][a-z0-9]{2,8})*$"},
            0.95,
        ),
        RowCheck(
            "DQ-CATALOGUE",
            "published_on",
            "between",
            "warning",
            f"a year of 1450 to {year}",
            "look for swapped day and year, or a placeholder date",
            "before printing nothing was published",
            {"min_value": 1450, "max_value": year},
            0.99,
        ),
    ]


def by_reason(rejects: Sequence[tuple[str, str, int]], table: str) -> dict[str, int]:
    """Rows set aside of one table, by reason, from (table, reason, rows)."""
    return {reason: rows for name, reason, rows in rejects if name == table}


def notices(rejects: Mapping[str, int], table: str) -> list[str]:
    """What was quarantined of a table, in words."""
    return [
        f"{table}.{column_of(reason, table)}: {rows:,} row(s) set aside as {reason}. Remedy: "
        f"{reason_of(reason).remedy}"
        for reason, rows in sorted(rejects.items())
    ]
