"""`audiorec experiment`: run what is missing of a table, write its page, or say whether the page is current."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from audiorec.errors import BadSettings
from audiorec.experiments import analysis_page, pages, scarcity
from audiorec.experiments.cells import Experiment, Runner, checked
from audiorec.experiments.pages import Page
from audiorec.experiments.tables import TABLES, Table


@dataclass(frozen=True)
class Wanted:
    """One page that somebody asked for."""

    name: str
    table: Table
    experiment: Experiment
    seeds: tuple[int, ...]
    out: Path
    command: str

    @property
    def page(self) -> Path:
        return self.out / f"{self.name}.md"


def describe(
    name: str,
    source: str,
    as_of: date,
    holdout_days: int | None,
    window_days: str | None,
    seeds: int | None,
    out: Path | None,
    profile: str | None,
    settings_file: Path | None,
) -> Wanted:
    """What the options of the command line mean.

    Raises:
        BadSettings: unknown table, or a window that is neither a number nor `all`.
    """
    checked(name, TABLES)
    overrides: dict[str, dict[str, Any]] = {}
    if holdout_days is not None:
        overrides.setdefault("time", {})["holdout_days"] = holdout_days
    if window_days is not None:
        if window_days != "all" and not window_days.isdigit():
            raise BadSettings(f"--window-days is {window_days!r}; expected a number of days, or all")
        overrides.setdefault("time", {})["window_days"] = "all" if window_days == "all" else int(window_days)
    where = source if "://" in source else str(Path(source).resolve())
    parts = [f"audiorec experiment {name} --source ... --as-of {as_of}"]
    for option, value in (
        ("--holdout-days", holdout_days),
        ("--window-days", window_days),
        ("--settings", settings_file),
        ("--profile", profile),
        ("--seeds", seeds),
    ):
        if value is not None:
            parts.append(f"{option} {value}")
    count = seeds or TABLES[name].seeds
    return Wanted(
        name,
        TABLES[name],
        Experiment(where, as_of, settings_file, profile, overrides),
        tuple(range(1, count + 1)),
        out or Path("docs/results") / Path(source).stem,
        " ".join(parts),
    )


def run_experiment(wanted: Wanted, say: Callable[[str], None] = print) -> Path:
    """Compute the cells that are missing and write the page."""
    started = time.monotonic()
    runner = Runner(wanted.experiment, say)
    cells = wanted.table.cells(wanted.seeds)
    results = []
    for number, cell in enumerate(cells, 1):
        results.append(runner.run(cell))
        say(f"{number} of {len(cells)} cells after {time.monotonic() - started:.0f} s: {cell.label}")
    page = Page(wanted.experiment, wanted.name, wanted.table, wanted.out, wanted.command)
    write = {"scarcity": scarcity.write, "analysis": analysis_page.write}.get(wanted.name, pages.write)
    return write(page, results)


def check_page(wanted: Wanted) -> list[str]:
    """What is stale about a page: cells whose fingerprint is another now, or that it lacks. Empty if it is current."""
    record = wanted.out / f"{wanted.name}.cells.json"
    if not record.exists():
        return [f"{record} does not exist: the page was never made; run the command without --check"]
    stored: dict[str, str] = json.loads(record.read_text())["cells"]
    runner = Runner(wanted.experiment)
    found = []
    for cell in wanted.table.cells(wanted.seeds):
        if cell.label not in stored:
            found.append(f"{cell.label}: not on the page")
        elif not runner.is_current(cell, stored[cell.label]):
            found.append(f"{cell.label}: made with other inputs, settings or code")
    return found
