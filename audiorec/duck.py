"""DuckDB connections with bounded memory and threads, closed to everything but the folders they need."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import duckdb

from audiorec.settings import Settings


def connect(settings: Settings, *, threads: int = 2) -> duckdb.DuckDBPyConnection:
    """An in-memory database, UTC, with a memory limit and a spill folder in scratch.

    It can still read any file: call `lock_down` before the first statement that holds foreign text.
    """
    spill = Path(settings.store.scratch).resolve() / "duckdb"
    spill.mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect(
        config={
            "memory_limit": f"{settings.duckdb.memory_mb}MiB",
            "threads": threads,
            "temp_directory": str(spill),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            # From statistics DuckDB tells which columns hold no NULL, and writes those to parquet in another way: a file's
            # bytes would depend on rows that are not in it. Without, every column may hold NULL: equal rows, equal bytes.
            "disabled_optimizers": "statistics_propagation",
        }
    )
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")
    return connection


def lock_down(connection: duckdb.DuckDBPyConnection, folders: Iterable[str | Path]) -> None:
    """Allow files below `folders` only, and forbid changing that again.

    DuckDB reads any local file by default, so a view or a mistaken path could read what it must not.
    """
    allowed = [str(Path(folder).resolve()) for folder in folders]
    listed = ", ".join("'" + folder.replace("'", "''") + "'" for folder in allowed)
    connection.execute(f"SET allowed_directories = [{listed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
