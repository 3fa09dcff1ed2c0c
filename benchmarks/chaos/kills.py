"""Experiments 1 to 4: kills at random moments, faults at every step of a commit, two at once, twice."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from audiorec.chain import CHAIN
from audiorec.registry import Registry
from audiorec.retention import collect, sweep
from audiorec.store import Store
from benchmarks.chaos.lab import AS_OF, BESIDE, Ended, Lab, Place
from benchmarks.chaos.report import Experiment, Row

KILLED = (
    "extract",
    "validate",
    "embed_text",
    "embed_music",
    "build_graph",
    "train_hgnn",
    "train_two_tower",
    "evaluate",
    "refresh",
    "build_index",
    "promote",
)

START_SECONDS = 6.0
"""Less than what Python takes to import a task on a slow machine: a kill by then is one."""


def result_of(place: Place, task: str) -> dict[str, Any]:
    """What a task left of AS_OF and beside it, to be compared with an undisturbed run.

    Not the cache of text vectors: how they are cut into segments tells how often it was asked. Of `promote` the files alone: its fingerprint holds the registered model's name, which every place has its own of.
    """
    found = place.manifests(task, *(name for name in BESIDE.get(task, ()) if name != "text_vectors"))
    ours = {
        path: data for path, data in found.items() if AS_OF.isoformat() in path or path.split("/")[0] != task
    }
    if task == "promote":
        return {"files": [json.loads(data)["files"] for data in ours.values()]}
    return ours


# --- 1: kill -9 ------------------------------------------------------------------------------------------


def kill_nine(lab: Lab, seed: int, short: bool) -> list[Row]:
    """SIGKILL at random moments of each task; then the task again, then the garbage collection."""
    chance = random.Random(seed)
    tasks = ("build_index",) if short else KILLED
    kills_each = 2 if short else 5
    died, killed, partial, equal, reruns, orphans = 0, 0, [], 0, 0, []
    notes: list[str] = []
    for task in tasks:
        groups = lab.registry("kills_clean") if task == "promote" else {}
        place = lab.copy("kills_clean", task, **groups)
        works = _timed(place, task)
        clean, moments = result_of(place, task), Counter[str]()
        for number in range(kills_each):
            # One in five by its command line and at any moment from its start; the others once they work, where
            # something can be torn. A machine that was slow a moment ago may be fast now: one that ended is tried again.
            command = number % 5 == 4
            for attempt in range(4):
                groups = lab.registry(f"kills_{number}_{attempt}") if task == "promote" else {}
                place = lab.copy("kills", task, **groups)
                moment = _kill(place, task, command, chance.uniform(0, START_SECONDS if command else works))
                if moment != "had ended":
                    break
            killed += 1
            moments[moment] += 1
            died += moment != "had ended"
            partial += [f"{task}: {problem}" for problem in place.unreadable(task, *BESIDE.get(task, ()))]
            ended = place.fork(task, AS_OF)
            reruns += 1
            same = ended.code == 0 and result_of(place, task) == clean
            equal += same
            if not same:
                notes.append(f"{task} after a kill {moment}: {ended.code} {ended.output[-300:]}")
            orphans += [f"{task}: {left}" for left in _left_after_gc(lab, place, short)]
        notes.append(f"{task} " + ", ".join(f"{count} {moment}" for moment, count in sorted(moments.items())))
    return [
        Row(
            f"at least 50 kills over {len(tasks)} tasks, at random moments",
            f"{died} ended by the kill, of {killed}",
            died >= (1 if short else 50),
            "; ".join(notes),
        ),
        Row("0 readable partial results", f"{len(partial)}", not partial, "; ".join(partial)),
        Row(
            "the result of the next run equals an undisturbed one's",
            f"{equal} of {reruns}",
            equal == reruns,
        ),
        Row(
            "0 orphans after `audiorec gc`, two days later",
            f"{len(orphans)}",
            not orphans,
            "; ".join(orphans[:20]),
        ),
    ]


def _works(place: Place) -> bool:
    """Whether the task has begun to work: it has a folder to work in."""
    work = Path(place.settings.store.scratch) / "work"
    return work.exists() and any(work.iterdir())


class _Started:
    """A task's process, by its command line or forked from a warm one."""

    def __init__(self, place: Place, task: str, command: bool) -> None:
        self._command = place.start(task, AS_OF) if command else None
        self._fork = None if command else place.begin(task, AS_OF)

    @property
    def pid(self) -> int:
        found = self._command.pid if self._command else self._fork and self._fork.pid
        assert found
        return found

    def poll(self) -> int | None:
        if self._command:
            return self._command.poll()
        assert self._fork
        return self._fork.exitcode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.005)
        return code


def _timed(place: Place, task: str) -> float:
    """Seconds from when the task works to its end."""
    process, worked = _Started(place, task, command=False), None
    while process.poll() is None:
        if worked is None and _works(place):
            worked = time.monotonic()
        time.sleep(0.005)
    if process.wait():
        raise RuntimeError(
            f"{task} ended with {process.wait()}: {(place.folder / f'{task}.log').read_text()}"
        )
    return time.monotonic() - worked if worked else 0.5


def _kill(place: Place, task: str, command: bool, after: float) -> str:
    """Start a task and kill it `after` seconds of its start (`command`) or its work; says where that was."""
    process = _Started(place, task, command)
    if not command:
        while process.poll() is None and not _works(place):
            time.sleep(0.002)
    until = time.monotonic() + after
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    working = _works(place)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        return "had ended"
    if place.store.versions(task, AS_OF.isoformat()):
        return "after the commit"
    return "at work" if working else "before any work"


def _left_after_gc(lab: Lab, place: Place, short: bool) -> list[str]:
    """What no manifest names after a collection two days from now: by then nobody can be at work on it.

    In the short form without MLflow, which says what is released: here nothing is.
    """
    later = datetime.now(UTC) + timedelta(days=2)
    if short:
        sweep(place.store, [], [], place.settings.store.retention_days, later, apply=True)
        return place.strays()
    settings = place.settings.model_copy(
        update={"mlflow": place.settings.mlflow.model_copy(update={"uri": lab.mlflow})}
    )
    collect(settings, apply=True, now=later)
    return place.strays()


# --- 2: fault points -------------------------------------------------------------------------------------


def die_at(point: int, moment: str, count_file: str, error: bool) -> None:
    """Patch what a commit asks of the operating system: die (or fail) before or after the n-th use of any of it.

    Args:
        point: 0 to only count.
        count_file: gets the number of uses so far.
    """
    number = 0

    def around(original: Callable[..., Any], only: Callable[..., bool]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal number
            if not only(*arguments, **named):
                return original(*arguments, **named)
            number += 1
            own = number
            if own == point and moment == "before":
                _end(error)
            try:
                found = original(*arguments, **named)
            finally:  # also of a link that finds its name taken
                if point == 0:
                    Path(count_file).write_bytes(str(number).encode())
                if own == point and moment == "after":
                    _end(error)
            return found

        return call

    for module, name, only in (
        (os, "link", _in_store),
        (os, "replace", _in_store),
        (os, "rename", _in_store),
        (os, "fsync", _always),
        (os, "unlink", _in_store),
        (shutil, "move", _in_store),
        (Store, "_put", _always),
        (Store, "_write", _always),
    ):
        setattr(module, name, around(getattr(module, name), only))


def _always(*_: Any, **__: Any) -> bool:
    return True


def _in_store(*arguments: Any, **named: Any) -> bool:
    return any("/store/" in str(argument) for argument in (*arguments, *named.values()))


def _end(error: bool) -> None:
    if error:
        raise OSError(5, "Input/output error")
    os.kill(os.getpid(), signal.SIGKILL)


def fault_points(lab: Lab, seed: int, short: bool) -> list[Row]:
    """Die, or fail, before and after every step of a commit; a result over nothing, and one over another."""
    chance = random.Random(seed)
    most = 4 if short else 16
    tried, withstood, mixed, equal, shown = 0, 0, [], 0, Counter[str]()
    notes = []
    # `extract` commits a day partition after the other, `promote` moves the alias and the pointer: samples of theirs.
    for task in (
        ("build_index",) if short else ("build_index", "embed_music", "evaluate", "extract", "promote")
    ):
        groups = lab.registry("faults_clean") if task == "promote" else {}
        place = lab.copy("faults", task, **groups)
        counter = place.folder / "points"
        ended = place.fork(task, AS_OF, around=die_at, given=(0, "", str(counter), False))
        if ended.code:
            raise RuntimeError(ended.output)
        points = int(counter.read_text())
        clean = result_of(place, task)
        every = [
            (point, moment, error)
            for point in range(1, points + 1)
            for moment in ("before", "after")
            for error in (False, True)
        ]
        chosen = every if len(every) <= most else sorted(chance.sample(every, most))
        notes.append(f"{task} {len(chosen)} of {len(every)}")
        for number, (point, moment, error) in enumerate(chosen):
            groups = lab.registry(f"faults_{number}") if task == "promote" else {}
            place = lab.copy("faults", task, **groups)
            ended = place.fork(task, AS_OF, around=die_at, given=(point, moment, "", error))
            tried += 1
            where = f"{task} {moment} step {point}"
            problems = place.unreadable(task, *BESIDE.get(task, ()))
            found = place.store.versions(task, AS_OF.isoformat()) if not problems else []
            shown["new" if found else "nothing"] += 1
            mixed += [f"{where}: {problem}" for problem in problems]
            survived = ended.code == 0
            if survived and not (error and result_of(place, task) == clean):
                mixed.append(f"{where}: it ended well, and without an undisturbed run's result")
            withstood += survived
            if task == "promote":
                mixed += _mixed_release(place, where)
            again = place.fork(task, AS_OF)
            same = again.code == 0 and result_of(place, task) == clean
            equal += same
            if not same:
                mixed.append(f"{where}, then again: {again.code} {again.output[-300:]}")
    swaps, half = _swaps(lab, chance, short)
    return [
        Row(
            "a death or an error before or after any write, fsync, rename or link: nothing readable, or all of it",
            f"{len(mixed)} mixed of {tried}",
            not mixed,
            f"{'; '.join(notes)} points; afterwards visible: {dict(shown)}; "
            f"{withstood} errors withstood (a move that fails becomes a copy). {'; '.join(mixed[:10])}",
        ),
        Row("the next run's result equals an undisturbed one's", f"{equal} of {tried}", equal == tried),
        Row(
            "a result written over another (`--force`), cut short at any step: the old one or the new one",
            f"{len(half)} mixed of {swaps}",
            not half,
            "; ".join(half[:10]),
        ),
    ]


def _mixed_release(place: Place, where: str) -> list[str]:
    """The champion's pointer is of the alias, or of nothing, and every file of what it names opens."""
    from audiorec.champion import Bundle, read_pointer

    pointed = read_pointer(place.store, place.settings.release.model_name)
    if pointed is None:
        return []
    bundle = Bundle.load(place.store, pointed[1])
    for manifest in bundle.manifests.values():
        for name in manifest.files:
            place.store.open(manifest, name)
    versions = {version.number for version in Registry(place.settings).versions()}
    return (
        []
        if pointed[0] in versions
        else [f"{where}: the pointer names version {pointed[0]}, which is not registered"]
    )


def spoil_text(text: str) -> None:
    """Make `build_index` write other ids: stands for a result that a `--force` replaces."""
    import pandas as pd

    original = pd.read_parquet
    pd.read_parquet = lambda *given, **named: original(*given, **named).assign(audiobook_id=text)  # type: ignore[assignment]


def spoil_and_die(text: str, point: int, moment: str, count_file: str) -> None:
    spoil_text(text)
    die_at(point, moment, count_file, False)


def _swaps(lab: Lab, chance: random.Random, short: bool) -> tuple[int, list[str]]:
    task = "build_index"
    place = lab.copy("swaps")
    old = result_of(place, task)
    counter = place.folder / "points"
    ended = place.fork(task, AS_OF, "--force", around=spoil_and_die, given=("other", 0, "", str(counter)))
    if ended.code:
        raise RuntimeError(ended.output)
    new = result_of(place, task)
    assert new != old
    every = [(p, m) for p in range(1, int(counter.read_text()) + 1) for m in ("before", "after")]
    chosen = sorted(chance.sample(every, min(len(every), 4 if short else 24)))
    half = []
    for point, moment in chosen:
        place = lab.copy("swaps")
        place.fork(task, AS_OF, "--force", around=spoil_and_die, given=("other", point, moment, ""))
        found = result_of(place, task)
        if place.unreadable(task) or found not in (old, new):
            half.append(f"{moment} step {point}")
    return len(chosen), half


# --- 3: the same date in parallel ------------------------------------------------------------------------


def parallel(lab: Lab, seed: int, short: bool) -> list[Row]:
    """Two processes of one task and date at once: on one machine, and as on two, with scratch folders of their own."""
    chance = random.Random(seed)
    pairs = 2 if short else 20
    order = ("build_index", "train_hgnn", "extract", "embed_text", "promote")
    one_version, equal, said, registered = 0, 0, [], []
    clean: dict[str, Any] = {}
    for number in range(pairs):
        task = "build_index" if short else order[number % len(order)]
        apart = number % 2 == 1 and task != "promote"  # the registry's lock is of one machine
        groups = lab.registry(f"parallel_{number}") if task == "promote" else {}
        if task not in clean:
            place = lab.copy(
                "parallel", task, **({} if task != "promote" else lab.registry("parallel_clean"))
            )
            place.need(task, AS_OF)
            clean[task] = result_of(place, task)
        place = lab.copy("parallel", task, **groups)
        other = place
        if apart:
            scratch = place.settings.store.model_copy(update={"scratch": str(place.folder / "other")})
            other = _other(place, place.settings.model_copy(update={"store": scratch}))
        first = place.start(task, AS_OF)
        time.sleep(chance.uniform(0, 0.3))
        second = other.start(task, AS_OF, log=other.folder / "second.log")
        codes = (first.wait(), second.wait())
        dated = place.store.versions(task, AS_OF.isoformat())
        one_version += len(dated) == 1 and codes == (0, 0)
        same = result_of(place, task) == clean[task] and not place.unreadable(task, *BESIDE.get(task, ()))
        equal += same
        if codes != (0, 0) or not same:
            said.append(f"{task} {'apart' if apart else 'beside'}: {codes}, {len(dated)} version(s)")
        if task == "promote":
            registered.append(len(Registry(place.settings).versions()))
    rows = [
        Row(
            f"{pairs} pairs at once, half of them as on two machines: both end well, 1 committed version",
            f"{one_version} of {pairs}",
            one_version == pairs,
            "; ".join(said),
        ),
        Row("the result equals an undisturbed one's", f"{equal} of {pairs}", equal == pairs),
    ]
    if registered:
        rows.append(
            Row(
                "0 duplicate registry versions",
                f"{sum(registered) - len(registered)} in {len(registered)} pairs of promote",
                set(registered) == {1},
            )
        )
    return rows


def _other(place: Place, settings: Any) -> Place:
    from audiorec.settings import as_toml

    folder = place.folder / "second"
    folder.mkdir()
    (folder / "settings.toml").write_text(as_toml(settings), encoding="utf-8")
    return Place(folder, settings)


# --- 4: run twice ----------------------------------------------------------------------------------------


def twice(lab: Lab, seed: int, short: bool) -> list[Row]:
    """Every task again, as a process of its own; then the trainings from nothing."""
    tasks = ("extract", "build_index") if short else tuple(CHAIN)
    place = lab.copy("twice", **({} if short else lab.registry("twice")))
    if not short:
        place.need("promote", AS_OF)
    before = place.manifests()
    ends: dict[str, Ended] = {}
    within = 0.0
    for task in tasks:
        used = _children_seconds()
        ends[task] = place.task(task, AS_OF)
        within = max(within, _children_seconds() - used)
    idle = sum(end.result is not None and end.result["state"] == "up_to_date" for end in ends.values())
    slowest = max(end.seconds for end in ends.values())
    same = place.manifests() == before
    trainings = () if short else ("train_hgnn", "train_two_tower")
    bit_equal = 0
    for task in trainings:
        again = lab.copy("twice_anew", task)
        again.need(task, AS_OF)
        bit_equal += result_of(again, task) == result_of(lab.reference, task)
    rows = [
        Row(
            f"{len(tasks)} tasks a second time: no work",
            f"{idle} of {len(tasks)} up to date",
            idle == len(tasks),
        ),
        Row(
            "each within 10 s of a core, Python's start and imports included",
            f"{within:.1f} s at most",
            within <= 10,
            f"by the clock {slowest:.0f} s at most, on a machine whose {os.cpu_count()} cores had "
            f"{os.getloadavg()[1]:.0f} processes waiting",
        ),
        Row("equal hashes: no manifest changed, none added", "equal" if same else "not equal", same),
    ]
    if trainings:
        rows.append(
            Row(
                "trained anew on this CPU: equal to the bit",
                f"{bit_equal} of {len(trainings)} trainings",
                bit_equal == len(trainings),
            )
        )
    return rows


def _children_seconds() -> float:
    """Processor time of processes that we started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


EXPERIMENTS = (
    Experiment("twice", 4, "Run twice", 4, twice),
    Experiment("fault_points", 2, "Fault points of a commit", 2, fault_points),
    Experiment("parallel", 3, "The same date in parallel", 3, parallel),
    Experiment("kill", 1, "kill -9 at random moments", 1, kill_nine),
)
