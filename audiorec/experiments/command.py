"""`audiorec experiment`: run what is missing of a table, write its page, or say whether the page is current."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from audiorec import tracking
from audiorec.errors import BadData, BadSettings
from audiorec.experiments import analysis_page, pages, scarcity
from audiorec.experiments.cells import Cell, Experiment, NotPossible, Runner, checked
from audiorec.experiments.oracle import has_truth
from audiorec.experiments.pages import Page
from audiorec.experiments.tables import TABLES, Table
from audiorec.fingerprint import digest
from audiorec.settings import load_settings
from audiorec.stack.layout import mlflow_address


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
    def cells(self) -> list[Cell]:
        rivals = load_settings(self.experiment.settings_file, self.experiment.profile).rivals.models
        return self.table.all_cells(self.seeds, has_truth(self.experiment.source), rivals)

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
    recipe: str | None = None,
) -> Wanted:
    """What the options of the command line mean.

    Raises:
        BadSettings: unknown table or recipe, or a window that is neither a number nor `all`.
    """
    checked(name, TABLES)
    chosen: dict[str, Any] = {"recipe": recipe} if recipe else {}
    # Our own MLflow may listen elsewhere than the settings say; the trainings' curves go there, too.
    address = mlflow_address(load_settings(settings_file, profile, **chosen))
    overrides: dict[str, dict[str, Any]] = {"mlflow": {"uri": address}}
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
        ("--config", recipe),
        ("--seeds", seeds),
    ):
        if value is not None:
            parts.append(f"{option} {value}")
    count = seeds or TABLES[name].seeds
    return Wanted(
        name,
        TABLES[name],
        Experiment(where, as_of, settings_file, profile, overrides, recipe),
        tuple(range(1, count + 1)),
        out or Path("docs/results") / Path(source).stem,
        " ".join(parts),
    )


def run_experiment(wanted: Wanted, say: Callable[[str], None] = print, jobs: int | None = None) -> Path:
    """Compute the cells that are missing, `jobs` tasks at a time (None: as there is room), and write the page."""
    results, left_out = Runner(wanted.experiment, say, jobs).run(wanted.cells)
    if not results:
        raise BadData(
            f"{wanted.name} cannot be made of {wanted.experiment.source}: {next(iter(left_out.values()))}"
        )
    page = Page(wanted.experiment, wanted.name, wanted.table, wanted.out, wanted.command, left_out)
    write = {"scarcity": scarcity.write, "analysis": analysis_page.write}.get(wanted.name, pages.write)
    written = write(page, results)
    say(_to_mlflow(wanted, written, [result.manifest.fingerprint for result in results]))
    return written


def page_files(page: Path) -> list[Path]:
    """The page and what belongs to it: its CSV, plots and cells."""
    name = page.stem
    return sorted(
        path
        for path in page.parent.iterdir()
        if path.name.split(".")[0] == name or (path.suffix == ".png" and path.stem.startswith(f"{name}_"))
    )


def _to_mlflow(wanted: Wanted, page: Path, cells: Sequence[str]) -> str:
    """Page, CSV and plots in the MLflow run of these cells: the same page again goes into the same run."""
    settings = wanted.experiment.settings(wanted.cells[0])
    tags = {
        "audiorec.experiment": wanted.name,
        "audiorec.source": wanted.out.name,
        "audiorec.cells": digest(list(cells)),
    }
    about = {"audiorec.as_of": wanted.experiment.as_of.isoformat(), "audiorec.command": wanted.command}
    return tracking.log_files(settings, f"{wanted.name} {wanted.out.name}", tags, about, page_files(page))


def check_page(wanted: Wanted) -> list[str]:
    """What is stale about a page: cells whose fingerprint is another now, or that it lacks. Empty if it is current."""
    record = wanted.out / f"{wanted.name}.cells.json"
    if not record.exists():
        return [f"{record} does not exist: the page was never made; run the command without --check"]
    stored: dict[str, str] = json.loads(record.read_text())["cells"]
    runner = Runner(wanted.experiment)
    found = []
    for cell in wanted.cells:
        try:
            current = runner.is_current(cell, stored.get(cell.label, ""))
        except NotPossible:
            continue  # The page does without it and says so.
        if cell.label not in stored:
            found.append(f"{cell.label}: not on the page")
        elif not current:
            found.append(f"{cell.label}: made with other inputs, settings or code")
    return found
