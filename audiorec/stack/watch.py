"""A live table of a run: state, time and progress of every task; plain lines where there is no terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from audiorec.stack.client import AirflowClient, AirflowError, Run, TaskInstance

POLL_SECONDS = 1.0
COLOURS = {
    "success": "green",
    "failed": "red",
    "upstream_failed": "red",
    "running": "yellow",
    "up_for_retry": "magenta",
    "up_for_reschedule": "cyan",
    "skipped": "bright_black",
}
WORDS = {
    None: "",
    "success": "done",
    "failed": "failed",
    "upstream_failed": "not reached",
    "up_for_retry": "will be tried again",
    "up_for_reschedule": "waiting",
}
LINES_EVERY_SECONDS = 30.0


@dataclass(frozen=True)
class Row:
    """One task as it is shown."""

    task: str
    state: str | None
    seconds: float | None
    about: str


def watch(
    client: AirflowClient,
    dag_id: str,
    run_id: str,
    *,
    progress_folder: Path | None = None,
    console: Console | None = None,
    timeout_seconds: float | None = None,
) -> Run:
    """Show a run until it ends; returns it as it ended.

    Args:
        progress_folder: `SCRATCH/progress/AS_OF`, where running tasks say how far they are.
        timeout_seconds: raise TimeoutError after this long; the run goes on.

    Raises:
        AirflowError: Airflow does not answer for longer than the client's patience.
    """
    console = console or Console()
    order = client.tasks(dag_id)
    results: dict[str, Any] = {}
    began = time.monotonic()

    def look() -> tuple[Run, list[Row]]:
        if timeout_seconds is not None and time.monotonic() - began > timeout_seconds:
            raise TimeoutError(f"run {run_id} has not ended after {timeout_seconds:.0f} s; it goes on")
        run = client.run(dag_id, run_id)
        instances = {ti.task_id: ti for ti in client.task_instances(dag_id, run_id)}
        for task, ti in instances.items():
            if ti.state == "success" and task not in results:
                try:
                    results[task] = client.xcom(dag_id, run_id, task)
                except AirflowError:
                    results[task] = None  # what is shown beside a task is not worth a failure
        return run, [_row(task, instances.get(task), results.get(task), progress_folder) for task in order]

    if console.is_terminal:
        return _live(console, run_id, look)
    return _lines(console, look)


def _live(console: Console, run_id: str, look: Any) -> Run:
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        while True:
            run, rows = look()
            live.update(table(run, rows))
            if run.finished:
                return run
            time.sleep(POLL_SECONDS)


def _lines(console: Console, look: Any) -> Run:
    shown: dict[str, str | None] = {}
    spoke: dict[str, float] = {}
    while True:
        run, rows = look()
        for row in rows:
            now = time.monotonic()
            changed = row.state != shown.get(row.task) and row.state not in (None, "scheduled", "queued")
            quiet = now - spoke.get(row.task, now) > LINES_EVERY_SECONDS
            if changed or (quiet and row.about and row.state == "running"):
                line = f"{row.task:<16} {_word(row.state):<20} {_clock(row.seconds):>7}  {row.about}"
                console.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)
                spoke[row.task] = now
            spoke.setdefault(row.task, now)
            shown[row.task] = row.state
        if run.finished:
            return run
        time.sleep(POLL_SECONDS)


def table(run: Run, rows: list[Row]) -> Table:
    """The run as a rich table."""
    drawn = Table(title=f"{run.run_id}: {run.state}", title_justify="left")
    drawn.add_column("task", no_wrap=True)
    drawn.add_column("state", no_wrap=True)
    drawn.add_column("time", justify="right", no_wrap=True)
    drawn.add_column("")
    for row in rows:
        colour = COLOURS.get(row.state or "", "white")
        drawn.add_row(row.task, f"[{colour}]{_word(row.state)}[/]", _clock(row.seconds), escape(row.about))
    return drawn


def read_progress(file: Path) -> str:
    """What a running task says about itself, or nothing."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        done, total = raw["done"], raw.get("total")
        unit, note = raw.get("unit") or "", raw.get("note") or ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    if isinstance(total, int | float) and total > 0 and isinstance(done, int | float):
        filled = max(0, min(20, round(20 * done / total)))
        counted = f"{'█' * filled}{'░' * (20 - filled)} {done:,}/{total:,} {unit}"
    else:
        counted = f"{done} {unit}"
    return f"{counted}  {note}".strip()


def _row(task: str, ti: TaskInstance | None, result: Any, progress_folder: Path | None) -> Row:
    if ti is None:
        return Row(task, None, None, "")
    about = ""
    if ti.state == "running" and progress_folder is not None:
        about = read_progress(progress_folder / f"{task}.json")
    elif ti.state == "success":
        about = _told(result)
    if ti.try_number > 1:
        about = f"try {ti.try_number}  {about}".rstrip()
    worked = ti.state not in ("upstream_failed", "skipped")
    return Row(task, ti.state, ti.seconds if worked else None, about)


def _told(result: Any) -> str:
    """What a finished task is worth showing for: its verdict, or up to three counts."""
    if isinstance(result, str):
        return result
    if not isinstance(result, Mapping):
        return ""
    parts = ["up to date"] if result.get("state") == "up_to_date" else []
    if result.get("verdict"):
        parts.append(str(result["verdict"]))
    elif not parts:
        counts = result.get("counts") or {}
        numbers = {name: value for name, value in counts.items() if isinstance(value, int | float)}
        parts += [f"{name} {value:,}" for name, value in list(numbers.items())[:3]]
    return ", ".join(parts)


def _word(state: str | None) -> str:
    return WORDS.get(state, state or "")


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes else f"{seconds:.1f} s"
