"""One Airflow home with a migrated database for all tests of the DAG, made before anything imports
Airflow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DAG_ID = "audiobook_recommender"


@pytest.fixture(scope="session")
def airflow_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a fresh Airflow: nothing of the developer's own settings gets in."""
    home = tmp_path_factory.mktemp("airflow")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "AUDIOREC_"))}
    env |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AUDIOREC_SERVICES__HOME": str(home / "services"),
        "AUDIOREC_STORE__SCRATCH": str(home / "scratch"),
    }
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"], env=env, check=True, capture_output=True
    )
    return env


@pytest.fixture(scope="session")
def bag(airflow_environment: dict[str, str]):
    """The DagBag; its class moved during 3.x, so it is imported here and nowhere else.

    Airflow reads its environment when it is imported. Afterwards the variables go again: tests of other folders run
    in the same process.
    """
    before = dict(os.environ)
    os.environ.update(airflow_environment)
    try:
        from airflow.dag_processing.dagbag import DagBag

        return DagBag(ROOT / "dags")
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def dag(bag):
    return bag.dags[DAG_ID]
