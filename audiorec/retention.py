"""What the store no longer needs, and its removal (`audiorec gc`).

Kept is what can be reached from: the aliases of every registered model and every pointer at the store's root; versions
that were promoted and are of a data date within the retention; everything that was made, or found up to date, within
the retention. Reached means through the inputs that manifests name, to the last one. All else goes: results, day
partitions and Data Docs that nothing kept is made of, folders that a killed writer left without a manifest, files that
no manifest names, and scratch that nobody works on.

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
from typing import Any, Literal

from pydantic import ValidationError

from audiorec.champion import pointer_models, read_pointer
from audiorec.errors import Corrupt
from audiorec.settings import Settings, Text
from audiorec.store import MANIFEST, RUN, Manifest, Store
from audiorec.taskio import INTERACTIONS

Kind = Literal["version", "orphan", "stray file", "scratch"]
Name = tuple[str, str, str]
"""(dataset, key, fingerprint) of a version."""

ORPHAN_HOURS = 24.0
"""An unfinished folder younger than this may be somebody's work in progress: no task may run half as long."""
TEXT_VECTORS = "text_vectors"
DATA_DOCS = "data_docs"
NO_DATASETS = ("code", "history-")
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
    moment, days = now or datetime.now(UTC), settings.store.retention_days
    if not apply:
        return sweep(store, *roots(settings, store, moment), days, moment, apply=False)
    with store.alone(wait_seconds=600):
        return sweep(store, *roots(settings, store, moment), days, moment, apply=True)


def roots(settings: Settings, store: Store, now: datetime) -> tuple[list[Name], list[Name]]:
    """Manifests of all releases that must stay: of our own model and the store's pointers; and of other models.

    Models of different tables share a store, but one MLflow may also serve several stores: of another model's
    release the store need not have anything, and what it has stays.
    """
    from audiorec.registry import releases_to_keep

    kept = releases_to_keep(settings, now.date() - timedelta(days=settings.store.retention_days))
    own = kept.pop(settings.release.model_name, [])
    for model in pointer_models(store):
        pointed = read_pointer(store, model)
        if pointed is not None:
            own.append(pointed[1])
    return _named(own), _named(release for releases in kept.values() for release in releases)


def _named(releases: Iterable[Mapping[str, Any]]) -> list[Name]:
    return [
        (named["dataset"], named["key"], named["fingerprint"])
        for release in releases
        for named in release["manifests"].values()
    ]


def sweep(
    store: Store,
    needed: Iterable[Name],
    wanted: Iterable[Name],
    days: float,
    now: datetime,
    *,
    apply: bool,
) -> Collected:
    """What cannot be reached from `needed` and `wanted` and is older than `days`; removed if `apply`.

    Args:
        needed: what must be there, with all it was made of.
        wanted: what stays if it is there.

    Raises:
        Corrupt: something needed is missing or damaged.
    """
    young = now - timedelta(days=days)
    unfinished = now - timedelta(hours=ORPHAN_HOURS)
    folders = {name: _listed(store, name) for name in _names(store)}
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
            stays = ("validate", *name[1:]) in keep or folder.modified >= young
        if stays:
            kept_bytes += folder.bytes
            items += _strays(store, name, folder, unfinished)
        elif MANIFEST in folder.files or dataset == DATA_DOCS:
            items.append(
                Item("version", dataset, path, folder.bytes, f"not needed and older than {days:g} days")
            )
        elif folder.modified < unfinished:
            items.append(Item("orphan", dataset, path, folder.bytes, "left unfinished by a killed writer"))
    items += _scratch(store, young, unfinished)
    if apply:
        for item in items:
            _remove(store, item)
    return Collected(tuple(items), len(keep), kept_bytes, apply)


def _names(store: Store) -> Iterator[Name]:
    for dataset in store.datasets():
        if not dataset.startswith(NO_DATASETS):
            for key in store.keys(dataset):
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


def _listed(store: Store, name: Name) -> _Folder:
    found = store.fs.find(store.folder(*name), detail=True)
    prefix = store.folder(*name) + "/"
    files = {path.removeprefix(prefix): int(info.get("size") or 0) for path, info in found.items()}
    times = [_written(store, path, info) for path, info in found.items()]
    times = times or [store.modified(store.folder(*name))]
    return _Folder(files, max(times))


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
