"""What the store no longer needs, and its removal (`audiorec gc`).

Kept is what can be reached from: the aliases of every registered model and every pointer at the store's root; versions
that were promoted and are of a data date within the retention; everything that was made, or found up to date, within
the retention. Reached means through the inputs that manifests name, to the last one. All else goes: results, day
partitions and Data Docs that nothing kept is made of, folders that a killed writer left without a manifest, files that
no manifest names, and scratch that nobody works on.

Users who were forgotten `privacy.purge_days` ago or longer: what still holds one, and what was made of that, is kept by
an alias alone. Registered versions that need it are rejected, so that nobody goes back to them.

A manifest goes before its files, so a removal that is killed leaves orphans, which the next one takes, and never a
manifest without its files. Tasks and a removal keep each other out on one machine (`Store.in_use`). Where several
machines share a store, apply it while no run is active.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from audiorec.champion import pointer_models, read_pointer
from audiorec.errors import Corrupt
from audiorec.pseudonyms import FORGOTTEN, forgotten
from audiorec.settings import Settings, Text
from audiorec.store import MANIFEST, RUN, Manifest, Store
from audiorec.taskio import INTERACTIONS

if TYPE_CHECKING:
    from audiorec.registry import KeptRelease

Kind = Literal["version", "orphan", "stray file", "scratch"]
Name = tuple[str, str, str]
"""(dataset, key, fingerprint) of a version."""

ORPHAN_HOURS = 24.0
"""An unfinished folder younger than this may be somebody's work in progress: no task may run half as long."""
UNFINISHED = "left unfinished by a killed writer"
TEXT_VECTORS = "text_vectors"
DATA_DOCS = "data_docs"
NO_DATASETS = ("code", "history-", FORGOTTEN)
"""Folders of the store's root that hold records, not versions; by their beginning."""


@dataclass(frozen=True)
class Item:
    """One thing that is not needed: where it lies, how large it is, why it may go."""

    kind: Kind
    dataset: str
    path: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class Collected:
    """What may go, or went, and how much stays."""

    items: tuple[Item, ...]
    kept_versions: int
    kept_bytes: int
    applied: bool

    def by_kind(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(number, bytes) by dataset and reason."""
        number: Counter[tuple[str, str]] = Counter()
        size: Counter[tuple[str, str]] = Counter()
        for item in self.items:
            number[item.dataset, item.reason] += 1
            size[item.dataset, item.reason] += item.bytes
        return {key: (number[key], size[key]) for key in number}

    def line(self) -> str:
        """A sentence that sums it up."""
        total = sum(item.bytes for item in self.items)
        done = "removed" if self.applied else "could go"
        return (
            f"{len(self.items):,} thing(s) of {total / 1e6:,.1f} MB {done}; "
            f"{self.kept_versions:,} version(s) of {self.kept_bytes / 1e6:,.1f} MB stay"
        )


@dataclass(frozen=True)
class _Folder:
    """A version's folder as listed: its files with sizes, and when the newest of them was written."""

    files: Mapping[str, int]
    modified: datetime

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


def collect(settings: Settings, *, apply: bool, now: datetime | None = None) -> Collected:
    """Say what the store no longer needs, and with `apply` remove it.

    Raises:
        Unavailable: MLflow does not answer; without its aliases nothing can be said to be unneeded.
        Corrupt: a manifest that must be kept, or that it needs, is missing or damaged. Nothing is removed then.
        Busy: tasks are running; `apply` waits for them for ten minutes.
    """
    store = Store(settings.store.uri, settings.store.scratch)
    moment = now or datetime.now(UTC)
    if not apply:
        return _collect(settings, store, moment, apply=False)
    with store.alone(wait_seconds=600):
        return _collect(settings, store, moment, apply=True)


def _collect(settings: Settings, store: Store, now: datetime, *, apply: bool) -> Collected:
    spoiled = made_of_forgotten(store, timedelta(days=settings.privacy.purge_days), now)
    needed: list[Name] = []
    wanted: list[Name] = []
    for kept in roots(settings, store, now):
        names = [
            (named["dataset"], named["key"], named["fingerprint"])
            for named in kept.release.get("manifests", {}).values()
        ]
        if kept.aliased or not spoiled.intersection(names):
            # One MLflow may serve several stores: of another model's release this one need not have anything.
            (wanted if kept.model != settings.release.model_name and not kept.pointed else needed).extend(
                names
            )
        elif apply:
            # First, so that nobody can go back to it while its files go.
            _reject(settings, kept)
    return sweep(store, needed, wanted, settings.store.retention_days, now, apply=apply, spoiled=spoiled)


def _reject(settings: Settings, kept: KeptRelease) -> None:
    from audiorec.registry import named
    from audiorec.release import ReleaseControl

    why = "it holds a user who is forgotten, and was collected"
    ReleaseControl(named(settings, kept.model)).reject(kept.number, why=why, who="audiorec gc")


def made_of_forgotten(store: Store, grace: timedelta, now: datetime) -> frozenset[Name]:
    """Versions that hold a user forgotten longer than `grace` ago, and all that was made of them."""
    from audiorec.forget import holdings, tombstone_since

    overdue = frozenset(name for name in forgotten(store) if tombstone_since(store, name) + grace <= now)
    pending = [(held.dataset, held.key, held.fingerprint) for held in holdings(store, overdue)]
    if not pending:
        return frozenset()
    made: dict[Name, list[Name]] = {}
    for name in _names(store):
        manifest = store.find(*name) if name[0] not in (TEXT_VECTORS, DATA_DOCS) else None
        for source in _inputs(manifest) if manifest else ():
            made.setdefault(source, []).append(name)
    found: set[Name] = set()
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += made.get(name, [])
    return frozenset(found)


def roots(settings: Settings, store: Store, now: datetime) -> list[KeptRelease]:
    """All releases that must stay, whoever registered them (models of different tables share a store), and pointed ones."""
    from audiorec.registry import KeptRelease, releases_to_keep

    oldest = now.date() - timedelta(days=settings.store.retention_days)
    releases = releases_to_keep(settings, oldest)
    for model in pointer_models(store):
        pointed = read_pointer(store, model)
        if pointed is not None:
            releases.append(KeptRelease(model, pointed[0], True, pointed[1], pointed=True))
    return releases


def sweep(
    store: Store,
    needed: Iterable[Name],
    wanted: Iterable[Name],
    days: float,
    now: datetime,
    *,
    apply: bool,
    spoiled: frozenset[Name] = frozenset(),
) -> Collected:
    """What cannot be reached from `needed` and `wanted` and is older than `days`, or `spoiled`; removed if `apply`.

    Args:
        needed: what must be there, with all it was made of.
        wanted: what stays if it is there.

    Raises:
        Corrupt: something needed is missing or damaged.
    """
    young = now - timedelta(days=days)
    unfinished = now - timedelta(hours=ORPHAN_HOURS)
    folders = {name: _listed(store, store.folder(*name)) for name in _names(store)}
    manifests: dict[Name, Manifest] = {}

    def manifest_of(name: Name) -> Manifest | None:
        if name not in manifests:
            found = store.find(*name) if name in folders else None
            if found is None:
                return None
            manifests[name] = found
        return manifests[name]

    # --- mark
    release = set(needed)
    pending = [*release, *wanted]
    pending += [
        name
        for name, folder in folders.items()
        if name[0] not in (TEXT_VECTORS, DATA_DOCS)
        and name not in spoiled
        and MANIFEST in folder.files
        and store.modified(f"{store.folder(*name)}/{MANIFEST}") >= young
    ]
    keep: set[Name] = set()
    while pending:
        name = pending.pop()
        if name in keep:
            continue
        manifest = manifest_of(name)
        if manifest is None:
            # A young result may be of a run whose inputs were removed by hand; a release must be whole.
            if name in release:
                raise Corrupt(
                    f"{'/'.join(name)} is needed by a release that must be kept, but the store {store.root} lacks it; "
                    "nothing was removed. Reject that version (`audiorec reject`) or build the date again"
                )
            continue
        keep.add(name)
        inputs = list(_inputs(manifest))
        if name in release:
            release.update(inputs)
        pending += inputs
    texts = _text_keys(manifests[name] for name in keep if name[0] == "embed_text")

    # --- what is left over
    items: list[Item] = []
    kept_bytes = 0
    for name, folder in sorted(folders.items()):
        dataset, key, _ = name
        path = store.folder(*name)
        stays = name in keep
        if dataset == TEXT_VECTORS:
            stays = key in texts or folder.modified >= young
        elif dataset == DATA_DOCS:
            of = ("validate", *name[1:])
            stays = of in keep or (folder.modified >= young and of not in spoiled)
        if stays:
            kept_bytes += folder.bytes
            items += _strays(store, name, folder, unfinished)
        elif MANIFEST in folder.files or dataset == DATA_DOCS:
            reason = f"not needed and older than {days:g} days"
            if name in spoiled:
                reason = "holds a forgotten user, or was made of what does"
            items.append(Item("version", dataset, path, folder.bytes, reason))
        elif folder.modified < unfinished:
            items.append(Item("orphan", dataset, path, folder.bytes, UNFINISHED))
    items += _half_made(store, unfinished)
    items += _scratch(store, young, unfinished)
    if apply:
        for item in items:
            _remove(store, item)
    return Collected(tuple(items), len(keep), kept_bytes, apply)


def _keys(store: Store) -> Iterator[tuple[str, str]]:
    for dataset in store.datasets():
        if not dataset.startswith(NO_DATASETS):
            for key in store.keys(dataset):
                yield dataset, key


def _names(store: Store) -> Iterator[Name]:
    for dataset, key in _keys(store):
        for fingerprint in store.fingerprints(dataset, key):
            yield dataset, key, fingerprint


def _inputs(manifest: Manifest) -> Iterator[Name]:
    """The versions that a manifest was made of; digests of source tables are none."""
    for name, fingerprint in manifest.inputs.items():
        dataset, _, day = name.partition("/")
        if dataset == INTERACTIONS and day:
            yield dataset, day, fingerprint
        elif not day:
            yield dataset, manifest.key, fingerprint


def _text_keys(embedded: Iterable[Manifest]) -> set[str]:
    """Keys of the text cache that the kept results would ask for again, under the code of now."""
    from audiorec.fingerprint import code_fingerprint, digest
    from audiorec.text import model_key

    code = code_fingerprint("audiorec.text")
    keys = set()
    for manifest in embedded:
        # Settings of a code that knew other ones cannot be asked for again.
        with contextlib.suppress(ValidationError):
            keys.add(digest([model_key(Text(**manifest.settings["text"])), code]))
    return keys


def _listed(store: Store, folder: str) -> _Folder:
    found = store.fs.find(folder, detail=True)
    files = {path.removeprefix(f"{folder}/"): int(info.get("size") or 0) for path, info in found.items()}
    times = [_written(store, path, info) for path, info in found.items()]
    return _Folder(files, max(times or [store.modified(folder)]))


def _written(store: Store, path: str, info: Mapping[str, Any]) -> datetime:
    """When a file was written, from its listing where that says it: asking for each costs a request on object storage."""
    if isinstance(info.get("mtime"), float):
        return datetime.fromtimestamp(info["mtime"], UTC)
    stamp = info.get("LastModified")
    return stamp if isinstance(stamp, datetime) and stamp.tzinfo else store.modified(path)


def _strays(store: Store, name: Name, folder: _Folder, unfinished: datetime) -> list[Item]:
    """Files of a kept folder that its manifest does not name: of a second writer, or of one before a --force."""
    if name[0] == DATA_DOCS or MANIFEST not in folder.files:
        return []
    manifest = store.find(*name)
    assert manifest is not None
    known = {MANIFEST, RUN, *(stored.path for stored in manifest.files.values())}
    return [
        Item("stray file", name[0], path, size, "named by no manifest")
        for file, size in folder.files.items()
        if file not in known and store.modified(path := f"{store.folder(*name)}/{file}") < unfinished
    ]


def _half_made(store: Store, unfinished: datetime) -> Iterator[Item]:
    """Data Docs that were being built when their task was killed."""
    for dataset, key in _keys(store):
        for path in store.half_made(dataset, key):
            folder = _listed(store, path)
            if folder.modified < unfinished:
                yield Item("orphan", dataset, path, folder.bytes, UNFINISHED)


def _scratch(store: Store, young: datetime, unfinished: datetime) -> Iterator[Item]:
    """Working folders of killed tasks, old checkpoints, and copies of remote files that nobody read for long."""
    for part, limit, reason in (
        ("work", unfinished, "left by a killed task"),
        ("checkpoints", young, "of a training that was never finished"),
        ("cache", young, "a copy that was not read for long"),
    ):
        folder = store.scratch / part
        for path in sorted(folder.glob("*/*" if part == "cache" else "*")):
            size, newest = _measured(path)
            if datetime.fromtimestamp(newest, UTC) < limit:
                yield Item("scratch", f"scratch/{part}", str(path), size, reason)


def _measured(path: Path) -> tuple[int, float]:
    """Bytes and the newest time below a local path."""
    found = [path, *path.rglob("*")] if path.is_dir() else [path]
    stats = [entry.lstat() for entry in found]
    return sum(s.st_size for s, e in zip(stats, found, strict=True) if not e.is_dir()), max(
        s.st_mtime for s in stats
    )


def _remove(store: Store, item: Item) -> None:
    if item.kind == "scratch":
        path = Path(item.path)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    elif item.kind == "stray file":
        store.fs.rm_file(item.path)
    else:
        store.remove(item.path)
