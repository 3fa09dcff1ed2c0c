"""The last check of a run: every task left a manifest of the right date.

A green run is no proof of work. Airflow 3.3 marks a run with no task instances a success, a skipped task
passes its state on, and a task may be marked a success by hand; each has happened. The receipt asks for what
a run is for.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

WIDTH = 95
"""Characters that Airflow's log shows beside the time, in a window of usual size."""


class NoReceipt(RuntimeError):
    """Tasks without a result; the message lists them."""

    code = "NO-RECEIPT"

    def __init__(self, message: str, missing: tuple[str, ...]) -> None:
        super().__init__(message)
        self.missing = missing


def receipt(
    results: Mapping[str, Mapping[str, Any] | None],
    as_of: str,
    states: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Check what every task of the chain handed on and sum it up.

    Args:
        results: by task, in chain order, what it returned; None where it returned nothing.
        states: by task, what Airflow says of it, to tell why a manifest is missing.

    Raises:
        NoReceipt: a task without a manifest, or with one of another date.
    """
    missing = [task for task, result in results.items() if not (result or {}).get("manifest")]
    foreign = {
        task: result.get("as_of")
        for task, result in results.items()
        if result and result.get("as_of") != as_of
    }
    if missing or foreign:
        parts = []
        for state, tasks in _by_state(missing, states or {}).items():
            parts.append(f"no manifest from {', '.join(tasks)} ({state})")
        parts += [f"{task} is about {other}" for task, other in foreign.items()]
        listed = (textwrap.fill(part, WIDTH, initial_indent="  ", subsequent_indent="    ") for part in parts)
        raise NoReceipt(
            "\n".join([f"the run of {as_of} has no receipt:", *listed])
            + "\nIf a task failed, mend that first. If all are green, a task was skipped or marked by hand:\n"
            "Clear it with downstream",
            tuple(missing),
        )
    rows = {
        task: {
            "state": result.get("state"),
            "seconds": result.get("seconds"),
            "peak_mb": result.get("peak_mb"),
            "fingerprint": result.get("fingerprint"),
            "verdict": result.get("verdict"),
        }
        for task, result in results.items()
        if result
    }
    return {
        "as_of": as_of,
        "seconds": round(sum(float(row["seconds"] or 0) for row in rows.values()), 1),
        "worked": [task for task, row in rows.items() if row["state"] != "up_to_date"],
        "tasks": rows,
    }


def _by_state(tasks: list[str], states: Mapping[str, str | None]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for task in tasks:
        grouped.setdefault(states.get(task) or "not started", []).append(task)
    return dict(sorted(grouped.items()))


def receipt_table(summary: Mapping[str, Any]) -> str:
    """The receipt as lines of the log."""
    tasks: Mapping[str, Mapping[str, Any]] = summary["tasks"]
    width = max(len(task) for task in tasks)
    lines = [f"receipt of {summary['as_of']}: {len(tasks)} manifests, {summary['seconds']} s of work"]
    for task, row in tasks.items():
        line = f"  {task:<{width}}  {row['state']:<10}  {float(row['seconds'] or 0):>8.1f} s"
        lines.append(f"{line}  {row['fingerprint']}" + (f"  {row['verdict']}" if row["verdict"] else ""))
    return "\n".join(lines)
