"""`python -m benchmarks.chaos`: run the experiments that are not done yet, and write docs/results/chaos.md and .csv."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
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


def run(chosen: list[Experiment], lab: Lab, short: bool) -> list[Finished]:
    """Run experiments, or take what is kept of them; one that breaks off is not kept."""
    done = []
    for experiment in chosen:
        kept = lab.work / "results" / f"{experiment.name}{'-short' if short else ''}.json"
        fingerprint = experiment.fingerprint(short)
        finished = Finished.read(kept)
        if finished is None or finished.fingerprint != fingerprint:
            began, code = time.monotonic(), commit()
            print(f"{experiment.name}: {experiment.purpose}", flush=True)
            try:
                rows = experiment.run(lab, experiment.seed, short)
            except Exception:  # the others shall run all the same
                trouble = traceback.format_exc()
                rows = [Row(NOT_ENDED, trouble.strip().splitlines()[-1], False, trouble)]
            finished = Finished(
                experiment.name,
                experiment.number,
                experiment.purpose,
                experiment.seed,
                fingerprint,
                round(time.monotonic() - began, 1),
                code,
                rows,
            )
            if rows[0].criterion != NOT_ENDED:
                finished.keep(kept)
        else:
            print(f"{experiment.name}: kept from an earlier run", flush=True)
        for row in finished.rows:
            print(f"  {'held    ' if row.passed else 'NOT HELD'} {row.criterion}: {row.figure}", flush=True)
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
    given = parser.parse_args(arguments)
    chosen = [names[name] for name in given.only] if given.only else list(EXPERIMENTS)
    # Asked to stop, it unmounts and ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lab = Lab(given.work, given.short)
    try:
        done = run(chosen, lab, given.short)
    finally:
        lab.close()
    ours = {one.name for one in done}
    for experiment in EXPERIMENTS:
        if experiment.name not in ours:
            kept = Finished.read(
                lab.work / "results" / f"{experiment.name}{'-short' if given.short else ''}.json"
            )
            if kept is not None:
                kept.stale = kept.fingerprint != experiment.fingerprint(given.short)
                done.append(kept)
    there = {one.name for one in done}
    command = "python -m benchmarks.chaos" + (" --short" if given.short else "")
    write(given.out, done, [one for one in EXPERIMENTS if one.name not in there], command)
    return 0 if all(one.passed for one in done) else 1


if __name__ == "__main__":
    sys.exit(main())
