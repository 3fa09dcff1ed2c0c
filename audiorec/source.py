"""The source tables (`docs/source_tables.md`): a folder of parquet, a .duckdb file or a file of SQL views.

All three become seven views with the contract's columns. What the contract promises is checked here, once,
with a message that names the table and the column; what rows hold is left to extract.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import duckdb

from audiorec import duck
from audiorec.errors import BadData, BadSettings
from audiorec.settings import Settings

_ID = "VARCHAR"
_INTEGER_TYPES = (
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
)
_NUMBER_TYPES = (*_INTEGER_TYPES, "FLOAT", "DOUBLE", "DECIMAL", "VARCHAR")
_ACCEPTED = {
    "VARCHAR": ("VARCHAR", *_INTEGER_TYPES, "UUID", "ENUM"),
    "INTEGER": _NUMBER_TYPES,
    "TIMESTAMP": (
        "TIMESTAMP",
        "TIMESTAMP WITH TIME ZONE",
        "TIMESTAMP_S",
        "TIMESTAMP_MS",
        "TIMESTAMP_NS",
        "DATE",
        "VARCHAR",
    ),
    "DATE": ("DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "VARCHAR"),
}


@dataclass(frozen=True)
class Table:
    """A source table: its columns with the type they are read as; an empty-able column may be missing."""

    name: str
    columns: dict[str, str]
    optional: frozenset[str] = field(default_factory=frozenset)


def _events(name: str, item: str) -> Table:
    return Table(
        name,
        {
            "user_id": _ID,
            item: _ID,
            "event": "VARCHAR",
            "occurred_at": "TIMESTAMP",
            "seconds_played": "INTEGER",
        },
    )


TABLES = (
    Table("users", {"user_id": _ID, "country": "VARCHAR", "birth_year": "INTEGER"}),
    Table("tracks", {"track_id": _ID, "title": "VARCHAR", "artist_id": _ID, "genre": "VARCHAR"}),
    Table(
        "podcasts",
        {
            "podcast_id": _ID,
            "title": "VARCHAR",
            "description": "VARCHAR",
            "publisher": "VARCHAR",
            "category": "VARCHAR",
            "language": "VARCHAR",
            "published_on": "DATE",
        },
    ),
    Table(
        "audiobooks",
        {
            "audiobook_id": _ID,
            "title": "VARCHAR",
            "description": "VARCHAR",
            "author": "VARCHAR",
            "genre": "VARCHAR",
            "language": "VARCHAR",
            "published_on": "DATE",
        },
    ),
    _events("music_events", "track_id"),
    _events("podcast_events", "podcast_id"),
    _events("audiobook_events", "audiobook_id"),
)
EVENT_TABLES = {"music": "music_events", "podcast": "podcast_events", "audiobook": "audiobook_events"}


@dataclass(frozen=True)
class SourceTables:
    """An open source: a connection with one view a table, and which tables carry a history."""

    connection: duckdb.DuckDBPyConnection
    uri: str
    versioned: frozenset[str]
    foldered: frozenset[str]


def open_source(
    settings: Settings, *, threads: int = 2, also_allow: tuple[str | Path, ...] = ()
) -> SourceTables:
    """Open the source tables read-only and check them against the contract.

    Event views have the contract's columns and `arrived_on` (the date of the folder a row came in, NULL
    where the layout has none). Views of users and catalogue have `valid_from` (NULL where there is none).

    Raises:
        BadSettings: the place does not exist or is of no known kind.
        BadData: a table or column is missing, unreadable or of a type that cannot be read as it should.
    """
    uri = settings.source.uri
    path = Path(uri)
    if not path.exists():
        raise BadSettings(
            f"source.uri is {uri!r}, which does not exist; give a folder of parquet, a .duckdb file or a .sql file of views"
        )
    connection = duck.connect(settings, threads=threads)
    scratch = Path(settings.store.scratch)
    if path.is_dir():
        raw, foldered = _parquet_views(connection, path)
        duck.lock_down(connection, [path, scratch, *also_allow])
    elif path.suffix == ".duckdb":
        literal = str(path.resolve()).replace("'", "''")
        try:
            connection.execute(f"ATTACH '{literal}' AS source_file (READ_ONLY)")
        except duckdb.Error as error:
            raise BadData(f"source.uri {uri} cannot be opened as a DuckDB file: {_short(error)}") from None
        found = {
            row[0]
            for row in connection.execute(
                "SELECT table_name FROM information_schema.tables WHERE table_catalog = 'source_file' AND table_schema = 'main'"
            ).fetchall()
        }
        raw = {t.name: f"source_file.main.{t.name}" for t in TABLES if t.name in found}
        foldered = frozenset()
        duck.lock_down(connection, [scratch, *also_allow])
    elif path.suffix == ".sql":
        # The operator's own file may attach Postgres or read S3, so external access stays open here.
        try:
            connection.execute(path.read_text(encoding="utf-8"))
        except duckdb.Error as error:
            raise BadSettings(f"source.uri {uri}: the views could not be made: {_short(error)}") from None
        # The file may have said USE; its views are looked for, and ours are made, in the database in memory.
        connection.execute("USE memory.main")
        made = connection.execute(
            "SELECT table_name, table_catalog FROM information_schema.tables "
            "WHERE table_catalog IN ('memory', 'temp') AND table_schema = 'main'"
        ).fetchall()
        catalog = dict(made)
        # Named in full: a view source.users over a bare "users" would bind to itself.
        raw = {t.name: f'{catalog[t.name]}.main."{t.name}"' for t in TABLES if t.name in catalog}
        foldered = frozenset()
        connection.execute("SET lock_configuration = true")
    else:
        raise BadSettings(
            f"source.uri is {uri!r}; expected a folder of parquet, a file ending in .duckdb or a file of views ending in .sql"
        )
    if settings.source.target == "podcast":
        raw, foldered = _roles_swapped(raw, foldered)
    missing = [table.name for table in TABLES if table.name not in raw]
    if missing:
        raise BadData(
            f"source {uri} lacks the table(s) {', '.join(missing)}; expected {', '.join(t.name for t in TABLES)}. "
            "Provide them; a table that you have no data for may be empty, with the contract's columns"
        )
    connection.execute("CREATE SCHEMA source")
    versioned = frozenset(t.name for t in TABLES if _make_view(connection, t, raw[t.name], uri))
    return SourceTables(connection, uri, versioned, foldered)


_SWAPPED = {
    "audiobooks": ("podcasts", {"podcast_id": "audiobook_id", "publisher": "author", "category": "genre"}),
    "podcasts": ("audiobooks", {"audiobook_id": "podcast_id", "author": "publisher", "genre": "category"}),
    "audiobook_events": ("podcast_events", {"podcast_id": "audiobook_id"}),
    "podcast_events": ("audiobook_events", {"audiobook_id": "podcast_id"}),
}
"""Table: the one that takes its place when podcasts are the target, and its columns' names there."""


def _roles_swapped(raw: dict[str, str], foldered: frozenset[str]) -> tuple[dict[str, str], frozenset[str]]:
    """The same tables with podcasts where audiobooks were and the other way round."""
    swapped = {name: place for name, place in raw.items() if name not in _SWAPPED}
    for name, (other, columns) in _SWAPPED.items():
        if other in raw:
            renamed = ", ".join(f"{old} AS {new}" for old, new in columns.items())
            swapped[name] = f"(SELECT * RENAME ({renamed}) FROM {raw[other]})"
    partner = {name: other for name, (other, _) in _SWAPPED.items()}
    return swapped, frozenset(partner.get(name, name) for name in foldered)


def _short(error: Exception) -> str:
    return str(error).splitlines()[0]


def _parquet_views(
    connection: duckdb.DuckDBPyConnection, folder: Path
) -> tuple[dict[str, str], frozenset[str]]:
    """A FROM clause for each table of a parquet folder, and which of them lie in date=… folders."""
    raw = {}
    foldered = set()
    for table in TABLES:
        file, directory = folder / f"{table.name}.parquet", folder / table.name
        if file.is_file():
            pattern, hive = file, "false"
        elif directory.is_dir() and any(directory.glob("date=*/*.parquet")):
            pattern, hive = directory / "date=*" / "*.parquet", "true"
            foldered.add(table.name)
            _check_date_folders(table.name, directory)
        elif directory.is_dir() and any(directory.glob("*.parquet")):
            pattern, hive = directory / "*.parquet", "false"
        else:
            continue
        literal = str(pattern.resolve()).replace("'", "''")
        kind = ", hive_types = {'date': DATE}" if hive == "true" else ""
        raw[table.name] = f"read_parquet('{literal}', hive_partitioning = {hive}{kind}, union_by_name = true)"
    return raw, frozenset(foldered)


def _check_date_folders(table: str, directory: Path) -> None:
    wrong = [p.name for p in directory.glob("date=*") if not re.fullmatch(r"date=\d{4}-\d{2}-\d{2}", p.name)]
    if wrong:
        raise BadData(
            f"source table {table}: folder(s) {wrong[:3]} are not named date=YYYY-MM-DD; rename them"
        )


def _make_view(connection: duckdb.DuckDBPyConnection, table: Table, raw: str, uri: str) -> bool:
    """Create `source.NAME` with checked columns; whether it carries `valid_from`."""
    try:
        described = connection.execute(f"DESCRIBE SELECT * FROM {raw}").fetchall()
    except duckdb.Error as error:
        raise BadData(
            f"source table {table.name} in {uri} cannot be read: {_short(error)}. Replace the damaged file and run again"
        ) from None
    found = {name.lower(): (name, kind.split("(")[0]) for name, kind, *_ in described}
    lacking = [column for column in table.columns if column not in found]
    if lacking:
        raise BadData(
            f"source table {table.name} in {uri} lacks column(s) {', '.join(lacking)}; "
            f"found {', '.join(sorted(found))}; expected {', '.join(table.columns)}. Add them, or map them in a .sql file of views"
        )
    selected = []
    for column, kind in table.columns.items():
        name, actual = found[column]
        if actual not in _ACCEPTED[kind] and actual != '"NULL"':
            raise BadData(
                f"source table {table.name}, column {column}: found type {actual}, expected {kind} "
                f"(or {', '.join(k for k in _ACCEPTED[kind] if k != kind)}). Convert it, or map it in a .sql file of views"
            )
        cast = f'TRY_CAST("{name}" AS {kind})'
        if actual == "TIMESTAMP WITH TIME ZONE":
            cast = f"\"{name}\" AT TIME ZONE 'UTC'"
        selected.append(f"{cast} AS {column}")
        if column == "occurred_at" or kind == "INTEGER":
            selected.append(f'TRY_CAST("{name}" AS VARCHAR) AS {column}_text')
    is_events = table.name in EVENT_TABLES.values()
    history = "arrived_on" if is_events else "valid_from"
    has_history = "date" in found if is_events else "valid_from" in found
    if is_events:
        selected.append(
            'CAST("date" AS DATE) AS arrived_on'
            if "hive_partitioning = true" in raw
            else "NULL::DATE AS arrived_on"
        )
    else:
        selected.append(
            f"TRY_CAST({history} AS TIMESTAMP) AS valid_from"
            if has_history
            else "NULL::TIMESTAMP AS valid_from"
        )
    connection.execute(f"CREATE VIEW source.{table.name} AS SELECT {', '.join(selected)} FROM {raw}")
    return has_history


def ready(settings: Settings, as_of: date) -> list[str]:
    """Event tables without a single row on `as_of`: the day has not arrived yet if any is named.

    A table without a row in the week before is not waited for: it is empty, or of a kind that comes rarely.
    """
    source = open_source(settings)
    waiting = []
    for name in EVENT_TABLES.values():
        found = source.connection.execute(
            f"SELECT 1 FROM source.{name} WHERE occurred_at >= $day AND occurred_at < $day + INTERVAL 1 DAY LIMIT 1",
            {"day": as_of},
        ).fetchone()
        usual = source.connection.execute(
            f"SELECT 1 FROM source.{name} WHERE occurred_at >= $day - INTERVAL 7 DAY AND occurred_at < $day LIMIT 1",
            {"day": as_of},
        ).fetchone()
        if found is None and usual is not None:
            waiting.append(name)
    return waiting


def main() -> None:
    """`python -m audiorec.source --ready --as-of D`: exit 0 when the day's rows are there, 75 when not yet."""
    import argparse
    import sys

    from audiorec.errors import AudiorecError, ExitCode
    from audiorec.settings import load_settings

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--as-of", type=date.fromisoformat, required=True)
    parser.add_argument("--settings", type=Path, default=None)
    parser.add_argument("--ready", action="store_true", required=True)
    arguments = parser.parse_args()
    try:
        settings = load_settings(arguments.settings)
        waiting = ready(settings, arguments.as_of)
    except AudiorecError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    if waiting:
        print(f"{arguments.as_of}: no rows yet in {', '.join(waiting)} of {settings.source.uri}")
        sys.exit(ExitCode.BUSY)
    print(f"{arguments.as_of}: all event tables have rows")


if __name__ == "__main__":
    main()
