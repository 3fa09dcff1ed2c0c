"""A real stack over MovieTweetings, with the settings that its figures in docs/results were made with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parents[1] / "ui"))

from ui_fixtures import browser, chromium, first_run, page, shoot
from ui_services import Services, running

from audiorec.settings import load_settings
from benchmarks.services import on_free_ports

__all__ = ["browser", "chromium", "first_run", "page", "shoot"]

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "movietweetings"
LAST_DAY = date(2013, 9, 1)


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    if not DATA.exists():
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"CI=true, but the shared real data are not at {DATA}")
        pytest.skip(f"the shared real data are not at {DATA}")
    home = tmp_path_factory.mktemp("ui_real")
    wanted = load_settings(
        ROOT / "benchmarks" / "sources" / "movietweetings.toml",
        "smoke",
        source={"uri": str(DATA)},
        store={"uri": str(home / "store"), "scratch": str(home / "scratch")},
        **on_free_ports(home),
    )
    with running(wanted, home, LAST_DAY) as found:
        yield found
