"""What an experiment found, how it is kept between runs, and the page and table that tell it."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from audiorec.experiments.publish import processor
from audiorec.fingerprint import digest
from benchmarks.chaos import lab
from benchmarks.chaos.lab import Lab, product_digest


@dataclass(frozen=True)
class Row:
    """One criterion with what was found of it; `note` says more than fits a table."""

    criterion: str
    figure: str
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class Experiment:
    """One of the experiments of the operations' list.

    Attributes:
        number: by which the list names it; 23 is our own, a cluster's worker.
        run: does it, `short` in seconds; returns its rows.
    """

    name: str
    number: int
    purpose: str
    seed: int
    run: Callable[[Lab, int, bool], list[Row]]

    def fingerprint(self, short: bool) -> str:
        """Of the product, of this experiment's module and the harness, and of its parameters."""
        own = Path(self.run.__code__.co_filename)
        code = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (own, Path(lab.__file__))]
        return digest([product_digest(), code, self.name, self.seed, short])

    def finished(self, rows: list[Row], seconds: float, commit: str, short: bool) -> Finished:
        """Its rows as they are kept: of the code of now, which was committed as `commit`."""
        return Finished(
            self.name, self.number, self.purpose, self.seed, self.fingerprint(short), seconds, commit, rows
        )


@dataclass
class Finished:
    """An experiment's rows, with what it took."""

    name: str
    number: int
    purpose: str
    seed: int
    fingerprint: str
    seconds: float
    commit: str
    rows: list[Row] = field(default_factory=list)
    stale: bool = False
    """Of a code that was changed since: shown as such, and done again by the next run that asks for it."""

    @classmethod
    def read(cls, path: Path) -> Finished | None:
        """What was kept of an earlier run, None if nothing was."""
        try:
            plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**plain, "rows": [Row(**row) for row in plain["rows"]]})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def keep(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)


def write(out: Path, finished: Iterable[Finished], missing: Iterable[Experiment], command: str) -> None:
    """Write chaos.md and chaos.csv; `missing` were never run to their end."""
    done = sorted(finished, key=lambda one: one.number)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "chaos.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["experiment", "criterion", "figure", "passed"])
        for one in done:
            for row in one.rows:
                table.writerow([one.name, row.criterion, row.figure, str(row.passed).lower()])
    (out / "chaos.md").write_text(_page(done, list(missing), command), encoding="utf-8")


def _page(done: list[Finished], missing: list[Experiment], command: str) -> str:
    held = sum(row.passed for one in done for row in one.rows)
    total = sum(len(one.rows) for one in done)
    lines = [
        "# Reliability experiments",
        "",
        f"{held} of {total} criteria held, in {len(done)} experiments. The chain is the real one, with small models over the "
        "simulator's tables `tiny`; each task is its own command in a process of its own.",
        "",
        "| | |",
        "|---|---|",
        f"| command | `{command}` |",
        f"| machine | {processor()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"Python {platform.python_version()}; other work ran beside it |",
        f"| time | {sum(one.seconds for one in done) / 60:.0f} min, summed over the experiments |",
        "",
    ]
    for one in done:
        lines += [
            f"## {one.number}. {one.purpose}",
            "",
            f"Seed {one.seed}, {one.seconds:,.0f} s, commit `{one.commit}`"
            + (", before the last change of the code or of the experiment." if one.stale else "."),
            "",
            "| criterion | found | |",
            "|---|---|---|",
            *(
                f"| {_cell(row.criterion)} | {_cell(row.figure)} | {'held' if row.passed else '**not held**'} |"
                for row in one.rows
            ),
            "",
        ]
        lines += [f"- {row.criterion}: {row.note}" for row in one.rows if row.note]
        lines += [""] if any(row.note for row in one.rows) else []
    if missing:
        lines += ["## Not run", ""]
        lines += [f"- {one.number}. {one.purpose}" for one in sorted(missing, key=lambda one: one.number)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
