"""Experiments 10, 11, 12 and 21: full disks, flipped bits, too little memory, formats of another version."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from audiorec import launcher
from audiorec.errors import Corrupt, ExitCode
from audiorec.settings import as_toml, load_settings
from audiorec.stack.servers import free_ports
from audiorec.store import Store
from benchmarks.chaos.lab import AS_OF, BEFORE_PROMOTE, BESIDE, DAY, Lab, Place, answers, wait_for
from benchmarks.chaos.report import Experiment, Row

KEY = "a-key-of-the-experiments-0123456789"


# --- 11: bit rot -----------------------------------------------------------------------------------------


def bit_rot(lab: Lab, seed: int, short: bool) -> list[Row]:
    """Flip one bit of a stored file, open it as a reader does, put the bit back."""
    flips = 60 if short else 1_000
    chance = random.Random(seed)
    place = lab.copy("bit_rot")
    store = place.store
    groups: dict[str, list[Path]] = {"manifests": [], "parquet": [], "weights": [], "index": [], "arrays": []}
    kinds = {".parquet": "parquet", ".safetensors": "weights", ".faiss": "index", ".npy": "arrays"}
    for path in sorted(place.manifests()):
        groups["manifests"].append(place.store_folder / path)
    for path in sorted(place.store_folder.glob("*/*/*/**/*")):
        if (
            path.suffix in kinds
            and path.is_file()
            and path.relative_to(place.store_folder).parts[0] != "data_docs"
        ):
            groups[kinds[path.suffix]].append(path)
    found: dict[str, list[bool]] = {name: [] for name in groups}
    for number in range(flips):
        name = list(groups)[number % len(groups)]
        path = chance.choice(groups[name])
        whole = path.read_bytes()
        if not whole:
            continue
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        _put(path, bytes(damaged))
        found[name].append(_detected(store, place, path))
        _put(path, whole)
    tried, seen = sum(map(len, found.values())), sum(map(sum, found.values()))
    by_kind = ", ".join(f"{name} {sum(hits)} of {len(hits)}" for name, hits in found.items())
    rows = [
        Row(
            f"{flips:,} flipped bits over manifests, Parquet, weights, index and arrays: all detected before use",
            f"{seen:,} of {tried:,}",
            seen == tried and tried >= flips * 0.99,
            by_kind,
        )
    ]
    return [*rows, _readers_refuse(lab, chance, short)]


def _put(path: Path, data: bytes) -> None:
    """Other bytes at a name; the file itself is shared with the reference and stays."""
    temporary = path.with_name(".flipped")
    temporary.write_bytes(data)
    temporary.replace(path)


def _detected(store: Store, place: Place, path: Path) -> bool:
    dataset, key, fingerprint, *_ = path.relative_to(place.store_folder).parts
    try:
        manifest = store.find(dataset, key, fingerprint)
        if manifest is None:
            return False
        folder = Path(store.folder(dataset, key, fingerprint))
        for name, stored in manifest.files.items():
            if path.name == "manifest.json" or folder / stored.path == path:
                store.open(manifest, name)
    except Corrupt:
        return True
    return False


READS = (
    ("validate", "extract", "rejects.parquet"),
    ("build_graph", "interactions", "interactions.parquet"),
    ("train_hgnn", "embed_text", "audiobook_text.npy"),
    ("train_two_tower", "train_hgnn", "train.audiobook.npy"),
    ("evaluate", "train_two_tower", "2T-HGNN.safetensors"),
    ("refresh", "train_hgnn", "hgnn.safetensors"),
    ("build_index", "refresh", "item_vectors.npy"),
)
"""A task, and a file that it reads: dataset and name."""


def _readers_refuse(lab: Lab, chance: random.Random, short: bool) -> Row:
    """Each reading task meets a flipped bit in one of its inputs."""
    said = []
    reads = READS[-2:] if short else READS
    for task, dataset, name in reads:
        place = lab.copy("bit_rot_read", task)
        manifests = [
            manifest
            for key in place.store.keys(dataset)
            if key <= AS_OF.isoformat()
            for manifest in place.store.versions(dataset, key)
        ]
        # Of the date itself; of day partitions, one inside the train cut's window.
        manifest = manifests[-1] if dataset != "interactions" else manifests[-20]
        path = place.store.open(manifest, name)
        damaged = bytearray(path.read_bytes())
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        _put(path, bytes(damaged))
        ended = place.fork(task, AS_OF)
        refused = ended.code == ExitCode.CORRUPT and not place.store.versions(task, AS_OF.isoformat())
        said.append(f"{task} {'refused' if refused else f'ended with {ended.code}: {ended.output[-300:]}'}")
    held = sum(one.endswith(" refused") for one in said)
    return Row(
        "a task that reads a flipped bit ends as CORRUPT and commits nothing",
        f"{held} of {len(reads)}",
        held == len(reads),
        ", ".join(said),
    )


# --- 21: upgrade -----------------------------------------------------------------------------------------


def upgrade(lab: Lab, seed: int, short: bool) -> list[Row]:
    """Manifests of a format that this version does not know, and a result of another code."""
    place = lab.copy("upgrade")
    refused, others = [], []
    for task in BEFORE_PROMOTE:
        for path in sorted((place.store_folder / task / AS_OF.isoformat()).glob("*/manifest.json")):
            plain = json.loads(path.read_bytes())
            _put(path, json.dumps({**plain, "format": 2, "from_the_future": True}).encode())
            try:
                place.store.find(task, AS_OF.isoformat(), plain["fingerprint"])
                others.append(task)
            except Corrupt as error:
                named = "manifest format 2, this version reads 1" in str(error) and str(path) in str(error)
                (refused if named else others).append(task)
    ended = place.fork("build_index", AS_OF)
    by_task = ended.code == ExitCode.CORRUPT and "manifest format 2" in ended.output
    older = lab.copy("upgrade_old")
    read = 0
    for task in BEFORE_PROMOTE:
        # The same result as an earlier code would have written it: another fingerprint of the code.
        manifest = older.manifest(task, AS_OF)
        outputs = {}
        with older.store.working_folder() as folder:
            for name in manifest.files:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(older.store.open(manifest, name), target)
                outputs[name] = target
            again = older.store.commit(
                dataset=task,
                key=manifest.key,
                fingerprint="0123456789abcdef",
                outputs=outputs,
                inputs=manifest.inputs,
                settings=manifest.settings,
                code="fedcba9876543210",
                facts=manifest.facts,
            )
        read += all(older.store.open(again, name).exists() for name in again.files)
    return [
        Row(
            "a manifest of an unknown version is refused by name, with the path and both versions",
            f"{len(refused)} of {len(BEFORE_PROMOTE)} datasets",
            len(refused) == len(BEFORE_PROMOTE),
            f"not so: {', '.join(others)}" if others else "",
        ),
        Row(
            "a task that meets one ends as CORRUPT and says which",
            f"exit code {ended.code}",
            by_task,
            "" if by_task else ended.output[-500:],
        ),
        Row(
            "results of another code load",
            f"{read} of {len(BEFORE_PROMOTE)} datasets",
            read == len(BEFORE_PROMOTE),
        ),
    ]


# --- 12: memory ------------------------------------------------------------------------------------------


def memory(lab: Lab, seed: int, short: bool) -> list[Row]:
    """Each task with a limit of half of what it held undisturbed, by the launcher that Airflow uses."""
    tasks = ("build_index",) if short else BEFORE_PROMOTE
    clean, longest, said = 0, 0.0, []
    for task in tasks:
        place = lab.copy("memory", task)
        peak = _peak_mb(place, task)
        place.drop(task)
        limits = place.settings.resources[task].model_copy(update={"memory_mb": max(peak // 2, 1)})
        resources = {**place.settings.resources, task: limits}
        settings = place.settings.model_copy(update={"resources": resources})
        began = time.monotonic()
        code = "it ended well"
        with _variables(place):
            try:
                launcher.run_task(task, AS_OF, settings, settings_file=place.file, emit=lambda _: None)
            except launcher.TaskFailed as failure:
                code = failure.code
                named = (
                    f"limit of {limits.memory_mb} MiB" in str(failure) and "runbook" in str(failure).lower()
                )
                clean += code == "TASK-OOM" and named and not failure.retryable
        took = time.monotonic() - began
        longest = max(longest, took)
        said.append(f"{task} {peak} MiB, at {limits.memory_mb}: {code} after {took:.0f} s")
    return [
        Row(
            "a task at half of its memory ends as TASK-OOM, with its limit and its runbook, and is not tried again",
            f"{clean} of {len(tasks)}",
            clean == len(tasks),
            "; ".join(said),
        ),
        Row("none hangs for more than 30 s", f"{longest:.0f} s at most", longest <= 30),
    ]


def _peak_mb(place: Place, task: str) -> int:
    """What the task's tree held at most, undisturbed, as the launcher counts it."""
    outcome = launcher.supervise(
        place.command(task, AS_OF),
        environment=place.environment(),
        memory_mb=16_000,
        timeout_seconds=600,
        emit=lambda _: None,
    )
    if outcome.returncode:
        raise RuntimeError(f"{task} ended with {outcome.returncode}: {outcome.tail}")
    return outcome.peak_mb


@contextlib.contextmanager
def _variables(place: Place) -> Iterator[None]:
    """The launcher hands our environment on to its child."""
    kept = dict(os.environ)
    os.environ.clear()
    os.environ.update(place.environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


# --- 10: disk full ---------------------------------------------------------------------------------------


@dataclass
class Requests(threading.Thread):
    """Asks a service for recommendations until told to stop, and counts the answers by status."""

    address: str
    users: list[str]
    statuses: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        with httpx.Client(
            base_url=self.address, headers={"X-API-Key": KEY}, timeout=30.0, trust_env=False
        ) as client:
            number = 0
            while not self._over.wait(0.1):
                number += 1
                body = {"user_id": self.users[number % len(self.users)], "k": 10}
                try:
                    status = str(client.post("/v1/recommendations", json=body).status_code)
                except httpx.HTTPError as error:
                    status = type(error).__name__
                self.statuses[status] += 1

    def stop(self) -> Counter[str]:
        self._over.set()
        self.join(60)
        return self.statuses


@contextlib.contextmanager
def service(place: Place) -> Iterator[str]:
    """`python -m serving` over a place's store, ready; yields its address."""
    [port] = free_ports(1)
    settings = place.settings.model_copy(
        update={
            "services": place.settings.services.model_copy(
                update={"serving_port": port, "home": str(place.folder / "home")}
            )
        }
    )
    file = place.folder / "serving.toml"
    file.write_text(as_toml(settings), encoding="utf-8")
    load_settings(file)
    environment = place.environment() | {"AUDIOREC_SETTINGS": str(file), "AUDIOREC_API_KEYS": f"chaos:{KEY}"}
    with (place.folder / "serving.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: process.poll() is not None or answers(f"{address}/readyz"), 180, "the service")
        if process.poll() is not None:
            raise RuntimeError((place.folder / "serving.log").read_text(encoding="utf-8"))
        yield address
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own at a folder; needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "chaos", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


POINTS = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Shares of a writer's bytes after which the disk is full."""


def disk_full(lab: Lab, seed: int, short: bool) -> list[Row]:
    """Store and scratch on a disk that fills up under each writer, while the champion serves from it."""
    if os.geteuid() != 0:
        return [Row("disk full", "not tried: a disk of its own needs root", False)]
    tasks = ("build_index",) if short else BEFORE_PROMOTE
    points = POINTS[1::2] if short else POINTS
    place = lab.place("disk_full", **lab.registry("disk_full"))
    stops, coded, wrong, again, said = 0, 0, [], 0, []
    with small_disk(place.folder / "disk", 400):
        # The place itself stays on the large disk: settings and logs must be writable.
        place = _onto(place, place.folder / "disk")
        shutil.copytree(lab.reference.store_folder, place.store_folder)
        place.need("promote", AS_OF)
        users = _users(place)
        with service(place) as address:
            requests = Requests(address, users)
            requests.start()
            for task in tasks:
                as_of = AS_OF + DAY  # what serves is the day before
                # Not the cache of text vectors: how it is cut tells how often it was asked.
                compared = (task, *(name for name in BESIDE.get(task, ()) if name != "text_vectors"))
                clean = place.manifests(*compared)
                needed = _written(place, task, as_of)
                for share in points:
                    _drop_date(place, task, as_of)
                    filler = _fill(place.folder / "disk", int(needed * share))
                    ended = place.fork(task, as_of)
                    filler.unlink()
                    if ended.code == 0:
                        said.append(f"{task} at {share:.0%} had room")
                    else:
                        stops += 1
                        fine = ended.code == ExitCode.UNAVAILABLE and "full" in ended.output
                        coded += fine
                        if not fine:
                            said.append(f"{task} at {share:.0%}: {ended.code}, {ended.output[-200:]}")
                    wrong += place.unreadable(task, *BESIDE.get(task, ()))
                ended = place.fork(task, as_of)
                again += ended.code == 0 and place.manifests(*compared) == clean
            statuses = requests.stop()
    tried = len(tasks) * len(points)
    served = sum(statuses.values())
    return [
        Row(
            f"{len(points)} points a writer, {len(tasks)} writers: the task ends as UNAVAILABLE and says that the disk is full",
            f"{coded} of {stops} that were stopped, {tried} tried",
            coded == stops and stops >= 0.6 * tried,
            "; ".join(said),
        ),
        Row("nothing readable that is not whole", f"{len(wrong)}", not wrong, "; ".join(wrong)),
        Row(
            "with room again the result is the undisturbed one",
            f"{again} of {len(tasks)} writers",
            again == len(tasks),
        ),
        Row(
            "the champion serves meanwhile, from the same disk: 0 failed requests",
            f"{served - statuses['200']} of {served:,}",
            served == statuses["200"] and served > 0,
            "" if served == statuses["200"] else str(dict(statuses)),
        ),
    ]


def _onto(place: Place, disk: Path) -> Place:
    store = place.settings.store.model_copy(
        update={"uri": str(disk / "store"), "scratch": str(disk / "scratch")}
    )
    settings = place.settings.model_copy(update={"store": store})
    (place.folder / "settings.toml").write_text(as_toml(settings), encoding="utf-8")
    return Place(place.folder, load_settings(place.folder / "settings.toml"))


def _users(place: Place) -> list[str]:
    import pandas as pd

    path = place.store.open(place.manifest("extract", AS_OF), "users.parquet")
    return list(pd.read_parquet(path)["user_id"].astype(str)[:200])


def _drop_date(place: Place, task: str, as_of: object) -> None:
    """Take one date's result away, and of what lies beside it the date's own or (a cache) everything."""
    shutil.rmtree(place.store_folder / task / str(as_of), ignore_errors=True)
    for dataset in BESIDE.get(task, ()):
        folder = place.store_folder / dataset
        shutil.rmtree(folder if dataset == "text_vectors" else folder / str(as_of), ignore_errors=True)


def _written(place: Place, task: str, as_of: object) -> int:
    folders = [place.store_folder / task / str(as_of)]
    for dataset in BESIDE.get(task, ()):
        folder = place.store_folder / dataset
        folders.append(folder if dataset == "text_vectors" else folder / str(as_of))
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def _fill(disk: Path, room: int) -> Path:
    """Fill a disk up to some bytes."""
    filler = disk / "filler"
    free = shutil.disk_usage(disk).free
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - room, 1))
    return filler


EXPERIMENTS = (
    Experiment("bit_rot", 11, "Bit rot", 11, bit_rot),
    Experiment("upgrade", 21, "Upgrade", 21, upgrade),
    Experiment("memory", 12, "Memory at half", 12, memory),
    Experiment("disk_full", 10, "Disk full", 10, disk_full),
)
