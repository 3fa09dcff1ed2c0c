"""Cells: single finished computations that experiments are made of, each a chain of tasks under its own settings.

A cell is one hold-out judged under one variation of the settings and one seed. Its tasks are those of the daily
chain, run by the same commands, and their results lie in the same store, named by fingerprint. So a cell that is
there is not computed again, whoever made it, and a page can say whether what it shows is still current.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import date
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from audiorec.chain import TASKS
from audiorec.cuts import cuts
from audiorec.errors import AudiorecError, BadData, BadSettings, Busy, Corrupt, Unavailable
from audiorec.launcher import child_environment, end_children
from audiorec.runner import Resolver
from audiorec.settings import Settings, as_toml, load_settings
from audiorec.store import Manifest, Store


class NotPossible(BadData):
    """A cell that makes no sense on this source: it is left out of its page and named there."""


Overrides = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Experiment:
    """What all cells of a page share: the tables, the date, the lengths, the settings file."""

    source: str
    as_of: date
    settings_file: Path | None
    profile: str | None
    overrides: Overrides = field(default_factory=dict)
    recipe: str | None = None
    """`default` or `paper`; None leaves it to the settings."""

    def settings(self, cell: Cell) -> Settings:
        """Settings of one cell: the experiment's, the cell's over them."""
        merged: dict[str, Any] = {"source": {"uri": self.source}}
        for layer in (self.overrides, cell.overrides):
            for group, values in layer.items():
                merged.setdefault(group, {}).update(values)
        if recipe := cell.recipe or self.recipe:
            merged["recipe"] = recipe
        return load_settings(self.settings_file, self.profile, **merged)


@dataclass(frozen=True)
class Cell:
    """One variation and seed, made by `task`: `evaluate` or `rivals` judge models, `analysis` has none."""

    name: str
    seed: int
    task: str = "evaluate"
    overrides: Overrides = field(default_factory=dict)
    recipe: str | None = None
    """A recipe of its own, whatever the experiment's is."""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.task}, seed {self.seed}"


def seeded(
    name: str,
    seed: int,
    task: str = "evaluate",
    overrides: Overrides | None = None,
    recipe: str | None = None,
) -> Cell:
    """A cell whose seed goes to every task that draws."""
    merged: dict[str, dict[str, Any]] = {group: dict(values) for group, values in (overrides or {}).items()}
    for group in ("hgnn", "two_tower", "rivals", "analysis"):
        merged.setdefault(group, {})["seed"] = seed
    return Cell(name, seed, task, merged, recipe)


@dataclass(frozen=True)
class Result:
    """A finished cell: its manifest, what it cost and what bounded it."""

    cell: Cell
    manifest: Manifest
    store: Store
    cost: Mapping[str, Mapping[str, float]]
    """Seconds and peak MiB by task."""
    lacks: tuple[str, ...] = ()
    """What the source has none of, in words."""

    def open(self, name: str) -> Path:
        """A verified local path of one file of the cell."""
        return self.store.open(self.manifest, name)

    @functools.cached_property
    def ranks(self) -> pd.DataFrame:
        """user_id, segment, panel, model, rank, and a `SLICE_rank` a slice of the protocol."""
        return pd.read_parquet(self.open("ranks.parquet"))

    @functools.cached_property
    def coverage(self) -> pd.DataFrame:
        """panel, segment, model, coverage."""
        if "coverage.csv" in self.manifest.files:
            return pd.read_csv(self.open("coverage.csv"))
        metrics = pd.read_csv(self.open("metrics.csv"))
        rows = metrics[metrics["metric"].str.startswith("coverage")]
        return rows[["panel", "segment", "model", "value"]].rename(columns={"value": "coverage"})


class Runner:
    """Runs the cells of one experiment, several tasks at a time; finished ones are only read."""

    def __init__(
        self, experiment: Experiment, say: Callable[[str], None] = print, jobs: int | None = None
    ) -> None:
        """`jobs`: tasks at a time; None: as many as the machine has room for."""
        self.experiment, self._say = experiment, say
        self._jobs = jobs or room_for_jobs()
        self._extract: dict[str, str] = {}

    def resolver(self, cell: Cell) -> Resolver:
        """Fingerprints of a cell's tasks. The source is read once for all cells that read it alike.

        Raises:
            NotPossible: the source lacks what the cell is about.
        """
        settings = self.experiment.settings(cell)
        alike = json.dumps(
            [settings.slice(TASKS["extract"].settings), settings.source.model_dump()], sort_keys=True
        )
        found = Resolver(settings, self.experiment.as_of, self._extract.get(alike))
        self._extract[alike] = found.fingerprint("extract")
        check_graph(found)
        return found

    def run(self, cells: Sequence[Cell]) -> tuple[list[Result], dict[str, str]]:
        """Compute what is missing of the cells. Returns the results, and why cells were left out, by their labels.

        A task that several cells share runs once; tasks that need nothing of each other run side by side.

        Raises:
            AudiorecError: a task failed; the message is the task's own, or the end of its log. Nothing more is begun, and
                what ran beside it is brought to its end first and kept.
        """
        with _sigterm_as_interrupt():
            ready, left_out = self._begin(cells)
            self._work_off(ready, len(cells))
        return [self._result(cell, resolver) for cell, resolver in ready], left_out

    def _work_off(self, ready: Sequence[tuple[Cell, Resolver]], of: int) -> None:
        """Run what is missing, the first cell first with all that it needs: what is cut short has finished cells."""
        started = time.monotonic()
        order: TopologicalSorter[Work] = TopologicalSorter()
        wanted_by: dict[Work, tuple[Cell, Resolver]] = {}
        for cell, resolver in ready:
            for work, inputs in missing(cell.task, resolver).items():
                order.add(work, *inputs)
                wanted_by.setdefault(work, (cell, resolver))
        place = {work: number for number, work in enumerate(wanted_by)}
        unfinished, left = list(ready), set(wanted_by)

        def tell() -> None:
            for cell, resolver in list(unfinished):
                if (cell.task, resolver.fingerprint(cell.task)) not in left:
                    unfinished.remove((cell, resolver))
                    done, seconds = of - len(unfinished), time.monotonic() - started
                    self._say(f"{done} of {of} cells after {seconds:.0f} s: {cell.label}, done")

        tell()
        order.prepare()
        waiting: list[Work] = []
        running: dict[Future[None], Work] = {}
        failed: list[AudiorecError] = []
        with ThreadPoolExecutor(self._jobs) as pool:
            try:
                while running or (order.is_active() and not failed):
                    waiting = sorted([*waiting, *order.get_ready()], key=lambda work: place[work])
                    while waiting and len(running) < self._jobs and not failed:
                        work, at_once = waiting.pop(0), min(self._jobs, len(running) + len(waiting) + 1)
                        running[pool.submit(self._run_task, work[0], *wanted_by[work], at_once)] = work
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        work = running.pop(future)
                        try:
                            future.result()
                        except AudiorecError as error:
                            failed.append(error)
                            beside = f"; waiting for {len(running)} beside it" if running else ""
                            self._say(f"failed: {wanted_by[work][0].label}: {error}{beside}")
                        else:
                            left.discard(work)
                            order.done(work)
                    tell()
            except KeyboardInterrupt:
                # Again and again: one of them may not have begun when we looked first.
                while wait(running, timeout=0.2).not_done:
                    end_children()
                raise
        if failed:
            raise failed[0]

    def _begin(self, cells: Sequence[Cell]) -> tuple[list[tuple[Cell, Resolver]], dict[str, str]]:
        """Extract what the cells are made from, and see which of them make sense on it before hours of work."""
        ready = []
        left_out = {}
        for cell in cells:
            try:
                resolver = self.resolver(cell)
                if resolver.manifest("extract") is None:
                    self._run_task("extract", cell, resolver, at_once=1)
                check_graph(resolver)
                check_days(resolver, judged=cell.task != "analysis")
            except NotPossible as error:
                left_out[cell.label] = str(error)
                self._say(f"left out: {cell.label}: {error}")
                continue
            ready.append((cell, resolver))
        return ready, left_out

    def _result(self, cell: Cell, resolver: Resolver) -> Result:
        cost, lacks = self._cost(resolver, cell), source_lacks(resolver)
        return Result(cell, resolver.need(cell.task), resolver.store, cost, lacks)

    def is_current(self, cell: Cell, fingerprint: str) -> bool:
        """Whether a cell with this fingerprint is what the code and settings of now would give."""
        return self.resolver(cell).fingerprint(cell.task) == fingerprint

    def _run_task(self, task: str, cell: Cell, resolver: Resolver, at_once: int) -> None:
        """In a process of its own, as Airflow does: its memory is its own, a crash ends no experiment.

        at_once: how many tasks share the cores.
        """
        self._say(f"{cell.label}: {task}")
        settings = sharing_cores(resolver.settings, task, at_once)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "settings.toml"
            path.write_text(as_toml(settings), encoding="utf-8")
            environment = child_environment(settings.resources[task])
            ended = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    TASKS[task].module,
                    "--as-of",
                    resolver.key,
                    "--settings",
                    str(path),
                    "--extract",
                    resolver.fingerprint("extract"),
                ],
                env={k: v for k, v in environment.items() if not _is_setting(k)},
                capture_output=True,
                text=True,
                check=False,
            )
        if ended.returncode:
            raise failure(task, ended.returncode, ended.stdout, ended.stderr)

    def _cost(self, resolver: Resolver, cell: Cell) -> dict[str, dict[str, float]]:
        found = {}
        for task in needed(cell.task):
            manifest = resolver.manifest(task)
            if manifest is None:
                continue
            run = resolver.store.run_record(manifest)
            found[task] = {"seconds": run.get("seconds", 0.0), "peak_mb": run.get("peak_mb", 0.0)}
        return found


Work = tuple[str, str]
"""A task and the fingerprint of what it makes."""

_MEMORY_A_JOB = 5 * 2**30
"""Bytes: what the rivals of a source of ten thousand items take, the most of all."""


def room_for_jobs() -> int:
    """How many tasks may run at a time here: one a core that we may use, as far as the free memory goes."""
    return max(1, min(_cores(), psutil.virtual_memory().available // _MEMORY_A_JOB))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def sharing_cores(settings: Settings, task: str, at_once: int) -> Settings:
    """The settings with no more threads than a task's share of the cores among `at_once`.

    Threads are no part of a fingerprint; another number may change the last digits (docs/tuning.md).
    """
    own = settings.resources[task]
    limits = own.model_copy(update={"threads": min(own.threads, max(1, _cores() // at_once))})
    return settings.model_copy(update={"resources": {**settings.resources, task: limits}})


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """What ends only us is to end our tasks, too: they would work on with nobody waiting."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def needed(task: str) -> list[str]:
    """A task and all that it is made from, in the order of the chain."""
    wanted, pending = set(), [task]
    while pending:
        name = pending.pop()
        wanted.add(name)
        pending += [below for below in TASKS[name].inputs if below not in wanted]
    return [name for name in TASKS if name in wanted]


def missing(task: str, resolver: Resolver) -> dict[Work, set[Work]]:
    """What must run before a task's result is there, each with what of it must run first."""
    found: dict[Work, set[Work]] = {}
    for name in reversed(needed(task)):
        work = (name, resolver.fingerprint(name))
        wanted = name == task or any(work in inputs for inputs in found.values())
        if wanted and resolver.manifest(name) is None:
            found[work] = {(below, resolver.fingerprint(below)) for below in TASKS[name].inputs}
    return {work: {one for one in inputs if one in found} for work, inputs in found.items()}


def check_graph(resolver: Resolver) -> None:
    """Whether the graph can have an edge, as far as extract has told by now.

    Raises:
        NotPossible: there are no podcasts, and every relation that the graph may have is about them.
    """
    extract, relations = resolver.manifest("extract"), resolver.settings.graph.relations
    if extract is None or extract.facts["counts"]["podcasts"]:
        return
    if all("podcast" in name for name in relations):
        raise NotPossible(
            f"the source has no podcasts, and the graph would be made of them ({', '.join(relations)})"
        )


def check_days(resolver: Resolver, *, judged: bool) -> None:
    """Whether the dates meet the data: before hours of work, not after.

    Args:
        judged: models are trained before the split and judged after it, so both need streams.

    Raises:
        BadData: no audiobook was streamed where it must have been, with the days that there are.
    """
    store, extract = resolver.store, resolver.need("extract")
    streamed = pd.read_parquet(store.open(extract, "first_streamed.parquet"))
    first = pd.to_datetime(streamed[streamed["item_type"] == "audiobook"]["first_streamed_on"])
    if first.empty:
        raise BadData(
            f"no audiobook was streamed up to {resolver.key}; check --as-of against occurred_at in audiobook_events, and "
            "extract.min_stream_seconds against seconds_played"
        )
    if not judged:
        return
    found = f"audiobooks of {resolver.settings.source.uri} are first streamed on {first.min():%Y-%m-%d} to {first.max():%Y-%m-%d}"
    split = cuts(resolver.as_of, resolver.settings.time).split
    if first.min().date() >= split:
        raise BadData(
            f"no audiobook was streamed before the split, {split}: {found}. Choose a later --as-of or fewer --holdout-days"
        )
    days = pd.read_parquet(store.open(extract, "days.parquet"))
    inside = (
        (days["item_type"] == "audiobook")
        & (days["event"] == "stream")
        & (pd.to_datetime(days["day"]).dt.date >= split)
    )
    if not days["rows"][inside].sum():
        raise BadData(
            f"no audiobook was streamed in the hold-out, {split} to {resolver.key}, so there is nobody to judge: {found}. "
            "Choose an earlier --as-of or more --holdout-days"
        )


def source_lacks(resolver: Resolver) -> tuple[str, ...]:
    """What the extract has none of: content types, weak signals, text. A page says so beside its figures."""
    store, extract = resolver.store, resolver.need("extract")
    days = pd.read_parquet(store.open(extract, "days.parquet"))
    rows = days.groupby(["item_type", "event"])["rows"].sum()
    lacks = []
    if not extract.facts["counts"]["podcasts"]:
        lacks.append("podcasts (the graph joins audiobooks alone)")
    elif not rows["podcast"].sum():
        lacks.append("podcast events in the window")
    if not rows["music"].sum():
        lacks.append("music events in the window (no music vector)")
    if not rows["audiobook"].drop("stream").sum():
        lacks.append("weak signals of audiobooks (follow, preview, intent to pay)")
    titles = pd.read_parquet(store.open(extract, "audiobooks.parquet"), columns=["title", "description"])
    if titles.isna().all(axis=None):
        lacks.append("text of audiobooks (their text vectors are zero)")
    return tuple(lacks)


_ERRORS = {cls.__name__: cls for cls in (BadData, BadSettings, Unavailable, Busy, Corrupt, AudiorecError)}
_LAST_LINES = 8


def failure(task: str, code: int, stdout: str, stderr: str) -> AudiorecError:
    """What a task's process died of, as the error that it was.

    An expected failure ends with `Kind: message` (`audiorec/runner.py`), which is all that anybody wants to read; of
    any other the end of the log is kept, and the exit code says what kind it was, where it says so.
    """
    lines = stderr.strip().splitlines()
    for number, line in enumerate(lines):
        kind, colon, message = line.partition(": ")
        if colon and kind in _ERRORS and _ERRORS[kind].exit_code == code:
            return _ERRORS[kind](f"{task}: " + "\n".join([message, *lines[number + 1 :]]))
    if code < 0:
        what = f"was ended by signal {-code} ({_signal_name(-code)})"
    else:
        what = f"ended with exit code {code}"
    tail = "\n".join([*stdout.strip().splitlines(), *lines][-_LAST_LINES:])
    error = next((cls for cls in _ERRORS.values() if cls.exit_code == code), AudiorecError)
    return error(f"{task} {what}; the end of its log:\n{tail}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _is_setting(variable: str) -> bool:
    """Whether an environment variable is one of ours: the cell's settings hold all of them already."""
    return variable.startswith("AUDIOREC_")


def checked(name: str, tables: Mapping[str, Any]) -> None:
    """Raises BadSettings with what there is if an experiment's name is unknown."""
    if name not in tables:
        raise BadSettings(f"experiment {name!r} is unknown; expected one of {', '.join(tables)}")
