"""Extract: from the source tables to typed, deduplicated interactions, the catalogue and user attributes.

One partition an event day (a new date costs one new day), shared by all runs whose source rows of that day,
settings and code are the same. Rows that do not count are kept in `rejects.parquet` with their reason and
number; nothing is dropped silently. Over all history, with dates: who first streamed what, who first gave a
signal. A reader compares those with its own cut (`< split`), never with `as_of`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import duckdb

from audiorec.cuts import cuts
from audiorec.digests import UNDATED, bind, day_digests, visible_queries
from audiorec.fingerprint import fingerprint
from audiorec.progress import Progress
from audiorec.pseudonyms import hide_users
from audiorec.settings import Settings
from audiorec.source import SourceTables, open_source
from audiorec.store import Manifest, Store
from audiorec.taskio import INTERACTIONS, Inputs, Output
from sql import read_sql

_CHUNK_ROWS = 20_000_000
"""Source rows typed and judged at a time: bounds memory when a long history is read for the first time."""


def run(settings: Settings, inputs: Inputs, out: Output) -> Manifest:
    """Write what is missing of the day partitions, then the catalogue, users, first streams and rejects."""
    threads = settings.resources["extract"].threads
    source = open_source(
        settings, threads=threads, also_allow=(out.store.root,) if out.store.is_local else ()
    )
    hide_users(source, settings)
    as_of, first_day = inputs.as_of, cuts(inputs.as_of, settings.time).first_day
    digests = day_digests(source, as_of, settings.extract.late_days)
    _note_what_is_passed_over(source, as_of, out)

    partitions, written = _write_days(source, settings, out, digests, first_day)
    out.inputs = {**out.inputs, **{f"{INTERACTIONS}/{m.key}": m.fingerprint for m in partitions}}

    values: dict[str, Any] = {
        "as_of": as_of,
        "first_day": first_day,
        "last_day": as_of,
        "min_stream_seconds": settings.extract.min_stream_seconds,
        "max_seconds": settings.extract.max_seconds,
        "late_days": settings.extract.late_days,
        "day": None,
    }
    connection = source.connection
    counts = _write_catalogue(connection, values, out)
    typed = read_sql("typed_events")
    history = {**values, "first_day": date(2000, 1, 1), "undated": False}
    for name, query in (
        ("first_streamed", read_sql("first_streamed")),
        ("first_signal", read_sql("first_signal")),
        ("first_seen", read_sql("first_seen")),
    ):
        over_history = f"WITH judged_events AS ({typed}) {query}"
        counts[name] = _copy(connection, over_history, history, out.path(f"{name}.parquet"))

    _view_of(connection, "window_interactions", out.store, partitions, "interactions.parquet")
    _view_of(connection, "window_rejects", out.store, partitions, "rejects.parquet")
    first_with_events = max(first_day, min((date.fromisoformat(m.key) for m in partitions), default=as_of))
    counts["days"] = _copy(
        connection, read_sql("days"), {**values, "first_day": first_with_events}, out.path("days.parquet")
    )
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE judged_events AS {typed}", bind(typed, {**values, "undated": True})
    )
    rejects = f"({read_sql('rejects')}) UNION ALL ({read_sql('unknown_ids')}) UNION ALL (SELECT * FROM catalogue_rejects) ORDER BY ALL"
    counts["rejects"] = _copy(connection, rejects, values, out.path("rejects.parquet"))
    connection.execute("DROP TABLE judged_events")
    by_day = """
        SELECT day, source_table, reason, SUM(rows)::BIGINT AS rows FROM window_rejects
        GROUP BY ALL ORDER BY day, source_table, reason
    """
    _copy(connection, by_day, values, out.path("day_rejects.parquet"))
    rows, users = connection.execute(
        "SELECT COUNT(*), COUNT(DISTINCT user_id) FROM window_interactions"
    ).fetchall()[0]
    reasons = connection.execute(
        f"""
        SELECT source_table || ': ' || reason, SUM(rows)::BIGINT FROM (
            SELECT source_table, reason, rows FROM window_rejects
            UNION ALL SELECT source_table, reason, rows FROM read_parquet('{out.path("rejects.parquet")}')
        ) GROUP BY ALL ORDER BY ALL
        """
    ).fetchall()
    for reason, number in reasons:
        print(f"set aside: {reason}: {number} row(s)")
    unversioned = sorted({"users", "tracks", "podcasts", "audiobooks"} - source.versioned)
    if unversioned:
        out.note(f"{', '.join(unversioned)} carry no valid_from: a backfill sees them as they are today")
    out.note(f"{written} day partition(s) written, {len(partitions) - written} already there")
    return out.commit(
        counts={**counts, "interactions": rows, "active_users": users, "day_partitions": len(partitions)},
        rejects=dict(reasons),
        first_day=first_with_events.isoformat(),
        unversioned_tables=unversioned,
    )


def _note_what_is_passed_over(source: SourceTables, as_of: date, out: Output) -> None:
    """Rows after as_of belong to later runs and must change no byte of this one: they are only mentioned."""
    for table in ("music_events", "podcast_events", "audiobook_events"):
        rows, last = source.connection.execute(
            f"SELECT COUNT(*), MAX(occurred_at) FROM source.{table} WHERE occurred_at >= $as_of + INTERVAL 1 DAY",
            {"as_of": as_of},
        ).fetchall()[0]
        if rows:
            out.note(
                f"{table}.occurred_at: {rows} row(s) lie after as_of {as_of} (the last at {last}) and play no part in this run. "
                "If that is in the future, mend the source's clock: such rows count from the day they name"
            )


def _chunks(days: list[str], rows: dict[str, int]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for day in days:
        if chunk and size + rows[day] > _CHUNK_ROWS:
            yield chunk
            chunk, size = [], 0
        chunk.append(day)
        size += rows[day]
    if chunk:
        yield chunk


def _write_days(
    source: SourceTables, settings: Settings, out: Output, digests: dict[str, str], first_day: date
) -> tuple[list[Manifest], int]:
    """All day partitions of the window, the missing ones written now; and how many were."""
    slice_ = settings.slice(("extract",))
    wanted = {
        day: fingerprint({"source/day": value}, slice_, out.code)
        for day, value in digests.items()
        if day != UNDATED and date.fromisoformat(day) >= first_day
    }
    # With --force all of them again, which mends a damaged one.
    found = {
        day: None if out.replace else out.store.find(INTERACTIONS, day, fp) for day, fp in wanted.items()
    }
    missing = sorted(day for day, manifest in found.items() if manifest is None)
    if not missing:
        return [found[day] for day in sorted(found)], 0  # type: ignore[misc]
    connection = source.connection
    per_day = dict.fromkeys(missing, 0) | {
        day.isoformat(): rows
        for day, rows, _ in connection.execute(
            read_sql("source_days"),
            {"as_of": date.fromisoformat(missing[-1]), "late_days": settings.extract.late_days},
        ).fetchall()
        if day and day.isoformat() in wanted
    }
    progress = Progress(len(missing), "days")
    for chunk in _chunks(missing, per_day):
        _judge(connection, settings, date.fromisoformat(chunk[0]), date.fromisoformat(chunk[-1]))
        for day in chunk:
            interactions, rejects = out.folder / "interactions.parquet", out.folder / "day_rejects.parquet"
            values = {"day": date.fromisoformat(day)}
            rows = _copy(connection, read_sql("interactions"), values, interactions)
            set_aside = _copy(connection, read_sql("rejects"), values, rejects)
            found[day] = out.store.commit(
                dataset=INTERACTIONS,
                key=day,
                fingerprint=wanted[day],
                outputs={"interactions.parquet": interactions, "rejects.parquet": rejects},
                inputs={"source/day": digests[day]},
                settings=slice_,
                code=out.code,
                facts={"counts": {"interactions": rows, "rejects": set_aside}},
                run=out.run,
                replace=out.replace,
            )
            progress.advance(note=day)
    return [found[day] for day in sorted(found)], len(missing)  # type: ignore[misc]


def _judge(
    connection: duckdb.DuckDBPyConnection, settings: Settings, first_day: date, last_day: date
) -> None:
    typed, judged = read_sql("typed_events"), read_sql("judged_events")
    values = {
        "first_day": first_day,
        "last_day": last_day,
        "undated": False,
        "min_stream_seconds": settings.extract.min_stream_seconds,
        "max_seconds": settings.extract.max_seconds,
        "late_days": settings.extract.late_days,
        "max_events_per_user_day": settings.extract.max_events_per_user_day,
    }
    connection.execute(f"CREATE OR REPLACE TEMP TABLE typed_events AS {typed}", bind(typed, values))
    connection.execute(f"CREATE OR REPLACE TEMP TABLE judged_events AS {judged}", bind(judged, values))
    connection.execute("DROP TABLE typed_events")


def _write_catalogue(
    connection: duckdb.DuckDBPyConnection, values: dict[str, Any], out: Output
) -> dict[str, int]:
    """The four tables without events, each id once; what is set aside goes to `catalogue_rejects`."""
    counts = {}
    rejects = []
    for name, query in visible_queries().items():
        connection.execute(f"CREATE TEMP TABLE visible_{name} AS {query}", bind(query, values))
        key = "user_id" if name == "users" else f"{name.removesuffix('s')}_id"
        connection.execute(
            f"CREATE TEMP VIEW {name} AS SELECT * EXCLUDE (reason) FROM visible_{name} "
            "WHERE reason IS NULL OR reason = 'implausible_birth_year'"
        )
        counts[name] = _copy(
            connection, f"SELECT * FROM {name} ORDER BY {key}", values, out.path(f"{name}.parquet")
        )
        user, item = (key, "NULL") if name == "users" else ("NULL", key)
        rejects.append(
            f"SELECT '{name}' AS source_table, reason, {user}::VARCHAR AS user_id, {item}::VARCHAR AS item_id, "
            "NULL::VARCHAR AS event, COUNT(*) AS rows, NULL::TIMESTAMP AS first_at, NULL::TIMESTAMP AS last_at, "
            "NULL::INTEGER AS least_seconds, NULL::INTEGER AS most_seconds "
            f"FROM visible_{name} WHERE reason IS NOT NULL AND reason != 'superseded' GROUP BY ALL"
        )
    connection.execute("CREATE TEMP VIEW catalogue_rejects AS " + " UNION ALL ".join(rejects))
    return counts


def _view_of(
    connection: duckdb.DuckDBPyConnection, name: str, store: Store, partitions: list[Manifest], file: str
) -> None:
    """A view over one file of all day partitions, with the partition's day; empty if there are none."""
    paths = [store.open(manifest, file) for manifest in partitions]
    if not paths:
        connection.execute(
            f"CREATE TEMP VIEW {name} AS SELECT NULL::DATE AS day, * FROM "
            "(SELECT ''::VARCHAR AS item_type, ''::VARCHAR AS user_id, ''::VARCHAR AS item_id, ''::VARCHAR AS event, "
            "NULL::TIMESTAMP AS occurred_at, 0 AS listened_seconds, ''::VARCHAR AS source_table, ''::VARCHAR AS reason, "
            "0::BIGINT AS rows) WHERE false"
        )
        return
    listed = ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)
    # From the rows, not from the path: of a remote store the file is a copy in the cache, named by its bytes.
    time = "occurred_at" if file == "interactions.parquet" else "first_at"
    connection.execute(
        f"CREATE TEMP VIEW {name} AS SELECT CAST({time} AS DATE) AS day, * FROM read_parquet([{listed}])"
    )


def _copy(connection: duckdb.DuckDBPyConnection, query: str, values: dict[str, Any], target: Path) -> int:
    """Write a query's rows as parquet, in its order; returns how many."""
    literal = str(target).replace("'", "''")
    copied = connection.execute(
        f"COPY ({query}) TO '{literal}' (FORMAT parquet, COMPRESSION zstd)", bind(query, values)
    ).fetchone()
    assert copied is not None
    return int(copied[0])


if __name__ == "__main__":
    from audiorec.runner import main

    main("extract")
