"""One real stack for the tests of this folder: Airflow and MLflow on free ports over the tiny tables.

A date costs about a minute of two cores, so the runs are made once and every test looks at them: the first
one by whoever comes first (the browser's form, or the API where there is no browser), the others beside each
other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from ui_fixtures import browser, chromium, first_run, page, shoot
from ui_services import FIRST_DAY, KILLED_EPOCHS, Services, running

from benchmarks.services import on_free_ports

__all__ = ["browser", "chromium", "first_run", "page", "shoot"]


@pytest.fixture(scope="session")
def services(tiny: Any, tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    home = tmp_path_factory.mktemp("ui")
    wanted = tiny.settings(
        tiny_source,
        home,
        store={"checkpoint_seconds": 0.2},
        hgnn={"max_epochs": KILLED_EPOCHS, "patience": KILLED_EPOCHS},
        **on_free_ports(home),
    )
    with running(wanted, home, FIRST_DAY) as found:
        yield found
