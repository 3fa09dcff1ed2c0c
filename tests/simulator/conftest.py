"""Generated tables, made once a session: `tiny` as shipped (hive, dirty) and `town`, clean and larger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest

from audiorec.simulator import DirtRates, GeneratedSummary, SimulatorConfig, preset, write_source_tables


@dataclass(frozen=True)
class Generated:
    """A generated folder with what was asked for and what the generator says of it."""

    config: SimulatorConfig
    folder: Path
    summary: GeneratedSummary

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A database with one view a table; event tables have `folder` (DATE, hive layout only) as well."""
        con = duckdb.connect()
        for table in self.summary.rows:
            if table.endswith("_events") and self.config.layout == "hive":
                source = f"read_parquet('{self.folder}/{table}/*/*.parquet', hive_partitioning = true)"
                con.execute(
                    f'CREATE VIEW {table} AS SELECT * EXCLUDE ("date"), "date"::DATE AS folder FROM {source}'
                )
            else:
                con.execute(
                    f"CREATE VIEW {table} AS SELECT * FROM read_parquet('{self.folder}/{table}.parquet')"
                )
        return con


@pytest.fixture(scope="session")
def generate() -> Callable[[SimulatorConfig, Path], Generated]:
    """Generates a folder of its own for a test that needs other settings."""
    return lambda config, folder: Generated(config, folder, write_source_tables(config, folder))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Generated:
    config = preset("tiny")
    folder = tmp_path_factory.mktemp("generated") / "tiny"
    return Generated(config, folder, write_source_tables(config, folder))


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Generated:
    """1,500 users without dirt, flat files: statistics of what the generator means to plant."""
    config = preset(
        "sample", n_users=1_500, n_audiobooks=300, n_podcasts=400, layout="flat", dirt=DirtRates.none()
    )
    folder = tmp_path_factory.mktemp("generated") / "town"
    return Generated(config, folder, write_source_tables(config, folder))
