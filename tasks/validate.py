"""Validate: what extract wrote, judged by one Great Expectations suite a table, before any model is touched.

DuckDB counts, Great Expectations judges the counts and a bounded sample of rows. A critical failure is the
result too: it is stored, and the runner ends with exit code 65 now and on every rerun of the same data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb

from audiorec import duck
from audiorec.settings import Settings
from audiorec.store import Manifest
from audiorec.taskio import Inputs, Output
from expectations import audiobooks, interactions, podcasts, tracks, users
from expectations.catalogue import by_reason
from expectations.check import Failure, Suite, SuiteResult, evaluate
from expectations.docs import INDEX, evaluate_with_docs
from expectations.reasons import column_of, reason_of

SAMPLE_ROWS = 50_000
"""Rows of the sample that single rows are checked on, a table."""
DATA_DOCS = "data_docs"
SHOWN_DAYS = 14


def run(settings: Settings, inputs: Inputs, out: Output) -> Manifest:
    """Write `validation.json` (every check with its value and reason) and the run's Data Docs."""
    validation = settings.slice(("validation",))["validation"]
    suites, found = _suites(settings, inputs, validation)
    quarantined = [_quarantined(r) for r in found.rejects]

    def report_of(results: Sequence[SuiteResult]) -> dict[str, Any]:
        critical, warnings = _failures(results)
        return {
            "as_of": inputs.as_of.isoformat(),
            "verdict": _verdict(critical, warnings),
            "critical": [failure.line() for failure in critical],
            "warnings": [failure.line() for failure in warnings],
            "quarantined": quarantined,
            "rows_by_day": _rows_by_day(found),
            "suites": {result.name: result.json for result in results},
        }

    if out.store.is_local:
        folder = Path(out.store.folder(DATA_DOCS, out.key, out.fingerprint))
        results = evaluate_with_docs(suites, folder, report_of)
        out.links["Data Docs"] = str(folder / INDEX)
    else:
        results = [evaluate(suite) for suite in suites]
    report = report_of(results)
    critical, warnings = _failures(results)
    out.path("validation.json").write_text(
        json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
    )
    _print(results, found, quarantined)
    for failure in (*critical, *warnings):
        out.note(f"{failure.severity}: {failure.line()}")
    if "Data Docs" in out.links:
        print(f"Data Docs: {out.links['Data Docs']}")
    message = None
    if critical:
        lines = "\n".join(f"  {one.line()}" for one in critical)
        found_in = f"in the source tables as of {inputs.as_of}; no model was touched"
        message = f"{len(critical)} critical fault(s) {found_in}.\n{lines}"
    return out.commit(
        counts={
            "expectations": sum(result.expectations for result in results),
            "critical": len(critical),
            "warnings": len(warnings),
            "quarantined_rows": sum(row["rows"] for row in quarantined),
        },
        verdict=report["verdict"],
        failure=message,
        codes=sorted({one.code for one in critical}),
    )


def _suites(
    settings: Settings, inputs: Inputs, validation: dict[str, Any]
) -> tuple[list[Suite], interactions.Profile]:
    """Count everything in one connection that may read the store and nothing else."""
    extract = inputs["extract"]
    as_of = inputs.as_of
    first_day = date.fromisoformat(extract.facts["first_day"])
    connection = duck.connect(settings, threads=settings.resources["validate"].threads)
    scratch = Path(settings.store.scratch)
    duck.lock_down(connection, [scratch, inputs.store.root] if inputs.store.is_local else [scratch])
    try:
        for name in (
            "audiobooks",
            "podcasts",
            "tracks",
            "users",
            "days",
            "first_streamed",
            "first_signal",
        ):
            _view(connection, name, [inputs.open("extract", f"{name}.parquet")])
        rejects = inputs.open("extract", "rejects.parquet")
        _view(connection, "run_rejects", [rejects])
        first_compared = max(first_day, as_of - timedelta(days=validation["drift_days"]))
        compared = {
            day: m for day, m in sorted(inputs.interaction_days.items()) if first_compared <= day <= as_of
        }
        rejects_by_day = {
            day: inputs.store.open(m, "rejects.parquet") for day, m in inputs.interaction_days.items()
        }
        events = [inputs.store.open(manifest, "interactions.parquet") for manifest in compared.values()]
        _view(connection, "compared_interactions", events, _NO_INTERACTIONS)
        _view(connection, "compared_rejects", [rejects_by_day[day] for day in compared], _NO_REJECTS)
        _view(
            connection, "window_rejects", [rejects_by_day[day] for day in sorted(rejects_by_day)], _NO_REJECTS
        )

        found = interactions.profile(connection, as_of, first_day, validation["drift_days"])
        last_day = max(compared, default=as_of)
        samples = {kind: _sample(connection, kind, last_day) for kind in interactions.EVENTS}
        suites = interactions.suites(found, validation, extract.settings["extract"], samples)
        by_table = connection.execute(
            "SELECT source_table, reason, SUM(rows)::BIGINT FROM run_rejects GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        for table, module in (
            ("audiobooks", audiobooks),
            ("podcasts", podcasts),
            ("tracks", tracks),
            ("users", users),
        ):
            suites.append(
                module.suite(
                    connection, as_of.isoformat(), by_reason(by_table, table), validation, SAMPLE_ROWS
                )
            )
    finally:
        connection.close()
    return suites, found


_NO_INTERACTIONS = (
    "SELECT ''::VARCHAR AS item_type, ''::VARCHAR AS user_id, ''::VARCHAR AS item_id, ''::VARCHAR AS event, "
    "NULL::TIMESTAMP AS occurred_at, 0 AS listened_seconds WHERE false"
)
_NO_REJECTS = (
    "SELECT ''::VARCHAR AS source_table, ''::VARCHAR AS reason, ''::VARCHAR AS user_id, ''::VARCHAR AS "
    "item_id, "
    "''::VARCHAR AS event, 0::BIGINT AS rows, NULL::TIMESTAMP AS first_at, NULL::TIMESTAMP AS last_at, "
    "0 AS least_seconds, 0 AS most_seconds WHERE false"
)


def _view(connection: duckdb.DuckDBPyConnection, name: str, paths: Sequence[Path], empty: str = "") -> None:
    if not paths:
        connection.execute(f"CREATE TEMP VIEW {name} AS {empty}")
        return
    listed = ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)
    connection.execute(f"CREATE TEMP VIEW {name} AS SELECT * FROM read_parquet([{listed}])")  # noqa: S608 - files of the store


def _sample(connection: duckdb.DuckDBPyConnection, kind: str, day: date) -> Any:
    """Events of one table and day, at most SAMPLE_ROWS, the same ones each time; None if there are none."""
    frame = connection.execute(
        """
        SELECT item_type, user_id, item_id, event, occurred_at, listened_seconds
        FROM compared_interactions
        WHERE item_type = $kind AND CAST(occurred_at AS DATE) = $day
        ORDER BY HASH(user_id, item_id, occurred_at) LIMIT $most
        """,
        {"kind": kind, "day": day, "most": SAMPLE_ROWS},
    ).df()
    return frame if len(frame) else None


def _quarantined(r: interactions.Rejects) -> dict[str, Any]:
    return {
        "table": r.table,
        "column": column_of(r.reason, r.table),
        "reason": r.reason,
        "kind": reason_of(r.reason).kind,
        "rows": r.rows,
        "rows_of_day": r.rows_of_day,
        "users": r.users,
        "titles": r.titles,
        "remedy": reason_of(r.reason).remedy,
    }


def _rows_by_day(found: interactions.Profile) -> dict[str, dict[str, int]]:
    """Rows that count of the last days, by table."""
    days = [found.as_of - timedelta(days=number) for number in range(SHOWN_DAYS - 1, -1, -1)]
    return {
        day.isoformat(): {f"{kind}_events": by_day.get(day, 0) for kind, by_day in found.window.items()}
        for day in days
        if day >= found.first_day
    }


def _failures(results: Sequence[SuiteResult]) -> tuple[list[Failure], list[Failure]]:
    return (
        [failure for result in results for failure in result.critical],
        [failure for result in results for failure in result.warnings],
    )


def _verdict(critical: Sequence[Failure], warnings: Sequence[Failure]) -> str:
    if critical:
        first = critical[0]
        where = f"{first.table}.{first.column}" if first.column else first.table
        more = f" and {len(critical) - 1} more" if len(critical) > 1 else ""
        return f"critical: {first.code} {where}{more}"
    return f"passed with {len(warnings)} warning(s)" if warnings else "passed"


def _print(
    results: Sequence[SuiteResult],
    found: interactions.Profile,
    quarantined: Sequence[dict[str, Any]],
) -> None:
    """The log: rows by day, what was set aside, and the verdict on each table."""
    tables = [f"{kind}_events" for kind in found.window]
    print(f"{'rows that count':<16}" + "".join(f"{table:>18}" for table in tables))
    for day, rows in _rows_by_day(found).items():
        print(f"{day:<16}" + "".join(f"{rows[table]:>18,}" for table in tables))
    if quarantined:
        print(f"\n{'set aside':<42}{'column':<18}{'rows':>12}{'of the day':>12}  remedy")
        for row in quarantined:
            name = f"{row['table']}: {row['reason']}"
            print(
                f"{name:<42}{row['column']:<18}{row['rows']:>12,}{row['rows_of_day']:>12,}  {row['remedy']}"
            )
    print(f"\n{'suite':<18}{'checks':>8}{'critical':>10}{'warnings':>10}")
    for result in results:
        print(
            f"{result.name:<18}{result.expectations:>8}{len(result.critical):>10}{len(result.warnings):>10}"
        )


if __name__ == "__main__":
    from audiorec.runner import main

    main("validate")
