"""`python -m benchmarks.chaos`: run the experiments that are not done yet, and write docs/results/chaos.md and .csv."""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from audiorec.experiments.publish import commit
from benchmarks.chaos import damage, data, gate, kills, oncall, privacy, workflow
from benchmarks.chaos.lab import ROOT, Lab
from benchmarks.chaos.report import Experiment, Finished, Row, write

EXPERIMENTS: tuple[Experiment, ...] = (
    *gate.EXPERIMENTS,
    *damage.EXPERIMENTS,
    *data.EXPERIMENTS,
    *kills.EXPERIMENTS,
    *privacy.EXPERIMENTS,
    *workflow.EXPERIMENTS,
    *oncall.EXPERIMENTS,
)

NOT_ENDED = "the experiment runs to its end"

LANES: tuple[tuple[str, ...], ...] = (("outages", "alerts"), ("backfill", "worker", "scheduler"))
"""Experiments with an Airflow of their own, which waits more than it works. All others are a third lane.

No more than two at once: alerts have to arrive in time on two cores."""


def in_lanes(chosen: Sequence[Experiment]) -> list[list[Experiment]]:
    """The chosen experiments by what may run side by side; within a lane one after another."""
    named = [[one for one in chosen if one.name in lane] for lane in LANES]
    others = [one for one in chosen if not any(one.name in lane for lane in LANES)]
    return [lane for lane in [*named, others] if lane]


def side_by_side(lanes: Sequence[Sequence[Experiment]], work: Path, short: bool) -> None:
    """Run each lane in a process and a folder of its own; what they find is kept in one place."""
    children = []
    try:
        for number, lane in enumerate(lanes):
            command = [sys.executable, "-m", "benchmarks.chaos", "--work", str(work), "--lane", str(number)]
            command += ["--only", *(one.name for one in lane), *(["--short"] if short else [])]
            children.append(subprocess.Popen(command, cwd=ROOT))
        for child in children:
            child.wait()
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(60)


def collect(chosen: Sequence[Experiment], results: Path, short: bool) -> list[Finished]:
    """What the lanes have kept; an experiment of which nothing is there has broken off."""
    broken = [Row(NOT_ENDED, "it broke off; what its lane printed says why", False)]
    return [current(one, results, short) or one.finished(broken, 0.0, commit(), short) for one in chosen]


def kept_at(results: Path, experiment: Experiment, short: bool) -> Path:
    """Where an experiment's rows are kept."""
    return results / f"{experiment.name}{'-short' if short else ''}.json"


def current(experiment: Experiment, results: Path, short: bool) -> Finished | None:
    """What is kept of an experiment, None if that is nothing or of other code."""
    kept = Finished.read(kept_at(results, experiment, short))
    return kept if kept is not None and kept.fingerprint == experiment.fingerprint(short) else None


def run(chosen: Sequence[Experiment], lab: Lab, results: Path, short: bool) -> list[Finished]:
    """Run experiments, or take what is kept of them; one that breaks off is not kept."""
    done = []
    for experiment in chosen:
        finished = current(experiment, results, short)
        if finished is None:
            began, code = time.monotonic(), commit()
            print(f"{experiment.name}: {experiment.purpose}", flush=True)
            try:
                rows = experiment.run(lab, experiment.seed, short)
            except Exception:  # the others shall run all the same
                trouble = traceback.format_exc()
                rows = [Row(NOT_ENDED, trouble.strip().splitlines()[-1], False, trouble)]
            finished = experiment.finished(rows, round(time.monotonic() - began, 1), code, short)
            if rows[0].criterion != NOT_ENDED:
                finished.keep(kept_at(results, experiment, short))
        else:
            print(f"{experiment.name}: kept from an earlier run", flush=True)
        for row in finished.rows:
            verdict = "held    " if row.passed else "NOT HELD"
            print(f"  {verdict} {experiment.name}: {row.criterion}: {row.figure}", flush=True)
            if row.note and not row.passed:
                print(f"           {row.note}", flush=True)
        done.append(finished)
    return done


def main(arguments: list[str] | None = None) -> int:
    """Command line; exit code 1 if a criterion was not held."""
    names = {experiment.name: experiment for experiment in EXPERIMENTS}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(names), help="these, and what is kept of others")
    parser.add_argument("--short", action="store_true", help="each in seconds, with few repetitions")
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".audiorec" / "chaos", help="stores and kept results"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--lane", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    chosen = [names[name] for name in given.only] if given.only else list(EXPERIMENTS)
    results = given.work / "results"
    # Asked to stop, it unmounts and ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lanes = in_lanes(chosen)
    if len(lanes) > 1:
        side_by_side(lanes, given.work.resolve(), given.short)
        done = collect(chosen, results, given.short)
    else:
        lab = Lab(given.work if given.lane is None else given.work / f"lane-{given.lane}", given.short)
        try:
            done = run(chosen, lab, results, given.short)
        finally:
            lab.close()
    if given.lane is None:
        write_page(done, results, given.out, given.short)
    return 0 if all(one.passed for one in done) else 1


def write_page(done: list[Finished], results: Path, out: Path, short: bool) -> None:
    """The page of what was run now, and of what is kept of all others."""
    ours = {one.name for one in done}
    for experiment in EXPERIMENTS:
        if experiment.name not in ours:
            kept = Finished.read(kept_at(results, experiment, short))
            if kept is not None:
                kept.stale = kept.fingerprint != experiment.fingerprint(short)
                done.append(kept)
    there = {one.name for one in done}
    command = "python -m benchmarks.chaos" + (" --short" if short else "")
    write(out, done, [one for one in EXPERIMENTS if one.name not in there], command)


if __name__ == "__main__":
    sys.exit(main())
