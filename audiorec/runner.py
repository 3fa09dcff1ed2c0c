"""Run one task for one date: find its inputs, skip what is done, hold the lease, commit the result.

This is what `python -m tasks.NAME` and `audiorec task NAME` do, and all that they do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

from audiorec.chain import TASKS
from audiorec.errors import AudiorecError, BadData, BadSettings, ExitCode, is_disk_full
from audiorec.fingerprint import code_fingerprint, code_parts, fingerprint
from audiorec.settings import PROFILES, PROMOTE_WORDS, Settings, load_settings
from audiorec.store import Manifest, Store
from audiorec.taskio import Inputs, Output

RESULT_VARIABLE = "AUDIOREC_RESULT"
CRITICAL = "critical"


class Resolver:
    """The fingerprints and manifests of one date's tasks under one settings.

    Args:
        extract: fingerprint of the extract to build on; by default the one that the source tables have now.
            A DAG run hands its own on, so that all of its tasks see the same snapshot.
    """

    def __init__(self, settings: Settings, as_of: date, extract: str | None = None) -> None:
        self.settings, self.as_of = settings, as_of
        self.store = Store(settings.store.uri, settings.store.scratch)
        self._fingerprints: dict[str, str] = {}
        self._source: dict[str, str] | None = None
        if extract:
            self._fingerprints["extract"] = extract

    @property
    def key(self) -> str:
        return self.as_of.isoformat()

    def inputs(self, task: str) -> dict[str, str]:
        """Input fingerprints of a task by name; extract's is the digest of the source tables."""
        if task == "extract":
            if self._source is None:
                from audiorec.digests import source_digests

                self._source = source_digests(self.settings, self.as_of)
            return self._source
        return {name: self.fingerprint(name) for name in TASKS[task].inputs}

    def code(self, task: str) -> str:
        return code_fingerprint(TASKS[task].module)

    def fingerprint(self, task: str) -> str:
        """The fingerprint that the task's result has, whether it exists or not."""
        if task not in self._fingerprints:
            self._fingerprints[task] = fingerprint(
                self.inputs(task), self.settings.slice(TASKS[task].settings), self.code(task)
            )
        return self._fingerprints[task]

    def manifest(self, task: str) -> Manifest | None:
        return self.store.find(task, self.key, self.fingerprint(task))

    def need(self, task: str) -> Manifest:
        """The task's manifest; raises BadSettings with the command that makes it."""
        manifest = self.manifest(task)
        if manifest is None:
            stale = len(self.store.versions(task, self.key))
            state = (
                f"{stale} version(s) of it exist, but with other inputs, settings or code"
                if stale
                else "it never ran"
            )
            raise BadSettings(
                f"{task} has no result for {self.key} with fingerprint {self.fingerprint(task)}: {state}. "
                f"Run `python -m {TASKS[task].module} --as-of {self.key}` first, with the same settings"
            )
        return manifest


def run_task(
    name: str,
    settings: Settings,
    as_of: date,
    *,
    force: bool = False,
    extract: str | None = None,
    options: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a task unless its result is there; returns the result as the launcher reads it.

    Raises:
        AudiorecError: an expected failure, see its exit code.
    """
    started = time.monotonic()
    resolver = Resolver(settings, as_of, extract)
    spec = TASKS[name]
    own = resolver.fingerprint(name)
    state, links, notes, verdict = "up_to_date", {}, [], None
    with resolver.store.in_use(), resolver.store.lease(name, resolver.key, own):
        # With force what is there is not even read: it may be what has to be mended.
        manifest = None if force else resolver.manifest(name)
        if manifest is None or name == "promote":
            manifests = {task: resolver.need(task) for task in spec.inputs}
            _set_threads(settings.resources[name].threads)
            _record_code(resolver.store, resolver.code(name), spec.module)
            with resolver.store.working_folder() as folder:
                out = Output(
                    dataset=name,
                    key=resolver.key,
                    fingerprint=own,
                    store=resolver.store,
                    folder=folder,
                    inputs=resolver.inputs(name),
                    settings=settings.slice(spec.settings),
                    code=resolver.code(name),
                    replace=force,
                    options=dict(options or {}),
                    run={
                        "host": platform.node(),
                        "python": platform.python_version(),
                        "profile": settings.profile,
                    },
                )
                manifest = import_module(spec.module).run(
                    settings, Inputs(as_of, resolver.store, manifests), out
                )
            state, links, notes = out.run.get("state", "done"), out.links, out.notes
            verdict = out.run.get("verdict")
        else:
            resolver.store.mark_used(manifest)
            links = dict(resolver.store.run_record(manifest).get("links", {}))
    facts = dict(manifest.facts)
    return {
        "task": name,
        "as_of": resolver.key,
        "state": state,
        "manifest": resolver.store.uri(manifest),
        "fingerprint": manifest.fingerprint,
        "counts": facts.get("counts", {}),
        "verdict": verdict or facts.get("verdict"),
        "failure": facts.get("failure"),
        "links": links,
        "notes": notes,
        "seconds": round(time.monotonic() - started, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


CODE = "code"


def _record_code(store: Store, code: str, module: str) -> None:
    """Keep what a code fingerprint is made of, once, so that a later code can say what changed."""
    store.add_record(
        CODE, f"{code}.json", (json.dumps(code_parts(module), sort_keys=True, indent=1) + "\n").encode()
    )


def read_code_record(store: Store, code: str) -> dict[str, dict[str, str]] | None:
    """Modules, SQL and libraries with their hashes behind a code fingerprint; None if it was never recorded."""
    try:
        return dict(json.loads(store.read_record(CODE, f"{code}.json")))
    except (FileNotFoundError, ValueError):
        return None


def _set_threads(threads: int) -> None:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, str(threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def parse_arguments(name: str, arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line that all tasks share."""
    parser = argparse.ArgumentParser(prog=f"python -m {TASKS[name].module}", description=TASKS[name].purpose)
    parser.add_argument(
        "--as-of", type=date.fromisoformat, required=True, help="last day of data, YYYY-MM-DD, UTC"
    )
    parser.add_argument("--settings", type=Path, default=None, help="TOML file (default: AUDIOREC_SETTINGS)")
    parser.add_argument("--profile", choices=sorted(PROFILES), default=None)
    parser.add_argument("--force", action="store_true", help="do it again even if the result is there")
    parser.add_argument(
        "--extract", default=None, help="fingerprint of the extract to build on (default: the source now)"
    )
    parser.add_argument("--promote", choices=PROMOTE_WORDS, default=None)
    parser.add_argument("--by", default="", help="who asked for it, for the history of releases")
    parser.add_argument("--run-type", choices=("manual", "scheduled", "backfill"), default="manual")
    return parser.parse_args(arguments)


def main(name: str, arguments: list[str] | None = None) -> None:
    """Command line of a task: run it, print and write its result, exit with a code that says what failed."""
    given = parse_arguments(name, arguments)
    try:
        settings = load_settings(given.settings, given.profile)
        result = run_task(
            name,
            settings,
            given.as_of,
            force=given.force,
            extract=given.extract,
            options={
                "promote": given.promote or settings.release.policy,
                "run_type": given.run_type,
                "by": given.by,
            },
        )
        target = os.environ.get(RESULT_VARIABLE)
        if target:
            Path(target).write_text(json.dumps(result))
        print("RESULT " + json.dumps(result), flush=True)
        if result["failure"]:
            raise BadData(result["failure"])
    except AudiorecError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except MemoryError:
        print(f"{name} ran out of memory; raise resources.{name}.memory_mb or cut the work", file=sys.stderr)
        sys.exit(ExitCode.MEMORY)
    except Exception as error:
        if not is_disk_full(error):
            raise
        print(
            f"{name}: the disk is full ({str(error).splitlines()[0]}); {_room(settings)}. Nothing of this result is visible. "
            "`audiorec gc` says what could go (`--apply` removes it); make room, then run it again",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(ExitCode.UNAVAILABLE)


def _room(settings: Settings) -> str:
    """How much is left where a task writes."""
    places = {
        "scratch": settings.store.scratch,
        "store": settings.store.uri,
        "temporary files": tempfile.gettempdir(),
    }
    there = {what: Path(place) for what, place in places.items() if Path(place).exists()}
    return ", ".join(
        f"{shutil.disk_usage(path).free / 2**20:,.0f} MiB free for {what} ({path})"
        for what, path in there.items()
    )
