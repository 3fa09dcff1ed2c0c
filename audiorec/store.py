"""The store (design 5): immutable versions of datasets, each made visible by one manifest.

Layout: `{dataset}/{key}/{fingerprint}/` with files, `run.json` and `manifest.json`. A file's name carries
the first digits of its sha256, so two writers of one fingerprint can never mix their bytes; files are
written first, the manifest last and in one atomic, exclusive step. Readers follow manifests only, and
check a file's hash when they open it. A file that no manifest names is garbage and harmless.

Paths go through fsspec: `s3://…` and a local folder are the same code, except for the two operations that
a local file system can do better (rename, and a hard link that fails if the name exists).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import fsspec
from filelock import FileLock, Timeout
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, ValidationError

from audiorec.errors import BadSettings, Busy, Corrupt

FORMAT = 1
MANIFEST = "manifest.json"
RUN = "run.json"
_CHUNK = 1 << 22


def can_name(part: str) -> bool:
    """Whether a text may name a folder or a record of the store: letters, digits, "-", "_", "."; hidden never."""
    return bool(part) and not part.startswith(".") and all(c.isalnum() or c in "-_." for c in part)


class StoredFile(BaseModel):
    """One file of a version: where it is, what bytes it has and, for a table, its shape."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    bytes: int
    sha256: str
    rows: int | None = None
    columns: dict[str, str] | None = None


class Manifest(BaseModel):
    """What one version of a dataset is made of; holds only what is determined by its fingerprint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    dataset: str
    key: str
    fingerprint: str
    files: dict[str, StoredFile]
    inputs: dict[str, str]
    settings: dict[str, Any]
    code: str
    facts: dict[str, Any]

    def to_bytes(self) -> bytes:
        """Canonical JSON, its own sha256 among it: equal manifests are equal bytes, and an altered one shows."""
        plain = self.model_dump(mode="json")
        return _canonical({**plain, "sha256": hashlib.sha256(_canonical(plain)).hexdigest()})


def _canonical(plain: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain, sort_keys=True, indent=1) + "\n").encode()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parquet_shape(path: Path) -> tuple[int | None, dict[str, str] | None]:
    """Rows and column types of a parquet file, (None, None) for any other file."""
    if path.suffix != ".parquet":
        return None, None
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    return file.metadata.num_rows, {field.name: str(field.type) for field in file.schema_arrow}


class Store:
    """Read and commit versions under one root."""

    def __init__(self, uri: str, scratch: str | Path) -> None:
        self.fs, root = fsspec.core.url_to_fs(uri)
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.root = str(Path(root).resolve()) if self.is_local else root.rstrip("/")
        self.scratch = Path(scratch).resolve()
        self.scratch.mkdir(parents=True, exist_ok=True)

    # --- names

    def folder(self, dataset: str, key: str, fingerprint: str) -> str:
        for part in (dataset, key, fingerprint):
            if not can_name(part):
                raise BadSettings(
                    f"{part!r} cannot name a folder of the store; use letters, digits, '-', '_', '.'"
                )
        return f"{self.root}/{dataset}/{key}/{fingerprint}"

    def uri(self, manifest: Manifest) -> str:
        """Where a manifest lies, as handed on between tasks."""
        path = f"{self.folder(manifest.dataset, manifest.key, manifest.fingerprint)}/{MANIFEST}"
        return path if self.is_local else self.fs.unstrip_protocol(path)

    # --- reading

    def find(self, dataset: str, key: str, fingerprint: str) -> Manifest | None:
        """The version with this fingerprint, or None. Raises Corrupt if its manifest cannot be read."""
        path = f"{self.folder(dataset, key, fingerprint)}/{MANIFEST}"
        try:
            data = self.fs.cat_file(path)
        except FileNotFoundError:
            return None
        return self._parse(path, data)

    def read_uri(self, uri: str) -> Manifest:
        """The manifest at a URI that `uri()` gave."""
        _, path = fsspec.core.url_to_fs(uri)
        try:
            return self._parse(path, self.fs.cat_file(path))
        except FileNotFoundError:
            raise Corrupt(f"{uri} does not exist; run the task that writes it again") from None

    def _parse(self, path: str, data: bytes) -> Manifest:
        try:
            raw = json.loads(data)
            if raw.get("format") != FORMAT:
                raise Corrupt(
                    f"{path} has manifest format {raw.get('format')!r}, this version reads {FORMAT}; "
                    "upgrade audiorec or rebuild with --force"
                )
            raw.pop("sha256", None)
            manifest = Manifest.model_validate(raw)
        except (ValueError, AttributeError, ValidationError) as error:
            raise Corrupt(
                f"{path} is not a readable manifest ({error}); delete its folder and run the task again"
            ) from None
        if manifest.to_bytes() != data:
            raise Corrupt(
                f"{path} has other bytes than were written (its own sha256 does not fit): it was altered or damaged; "
                "delete its folder and run the task again"
            )
        if not path.endswith(f"{manifest.dataset}/{manifest.key}/{manifest.fingerprint}/{MANIFEST}"):
            raise Corrupt(
                f"{path} says it is {manifest.dataset}/{manifest.key}/{manifest.fingerprint}; it was moved or altered"
            )
        return manifest

    def datasets(self) -> list[str]:
        """Sorted names of the folders at the root: datasets, and the folders of records beside them."""
        try:
            listed = self.fs.ls(self.root, detail=True)
        except FileNotFoundError:
            return []
        names = [
            entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in listed if entry["type"] == "directory"
        ]
        return sorted(name for name in names if not name.startswith("."))

    def modified(self, path: str) -> datetime:
        """When a file or folder was last written, UTC."""
        found: datetime = self.fs.modified(path)
        return found if found.tzinfo else found.replace(tzinfo=UTC)

    def keys(self, dataset: str) -> list[str]:
        """Sorted keys (dates, days, …) that a dataset has folders for."""
        return self._children(f"{self.root}/{dataset}")

    def versions(self, dataset: str, key: str) -> list[Manifest]:
        """All complete versions under one key, sorted by fingerprint."""
        found = (self.find(dataset, key, fp) for fp in self.fingerprints(dataset, key))
        return [manifest for manifest in found if manifest]

    def fingerprints(self, dataset: str, key: str) -> list[str]:
        """Sorted fingerprints under one key, of complete versions and of such as a killed writer left."""
        return [name for name in self._children(f"{self.root}/{dataset}/{key}") if not name.startswith(".")]

    def half_made(self, dataset: str, key: str) -> list[str]:
        """Paths of hidden folders under one key: a writer fills them before it gives them their name."""
        folder = f"{self.root}/{dataset}/{key}"
        return [f"{folder}/{name}" for name in self._children(folder) if name.startswith(".")]

    def _children(self, folder: str) -> list[str]:
        try:
            listed = self.fs.ls(folder, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        # Asked for a file, fsspec lists the file itself: it has no children.
        return sorted(
            name.rstrip("/").rsplit("/", 1)[-1] for name in listed if name.rstrip("/") != folder.rstrip("/")
        )

    def used_at(self, manifest: Manifest) -> datetime:
        """When a version was committed, or last found to be up to date (`mark_used`)."""
        return self.modified(
            f"{self.folder(manifest.dataset, manifest.key, manifest.fingerprint)}/{MANIFEST}"
        )

    def run_record(self, manifest: Manifest) -> dict[str, Any]:
        """`run.json` beside a manifest: seconds, memory, links, notes. Empty if it is gone or damaged; no hash covers it."""
        path = f"{self.folder(manifest.dataset, manifest.key, manifest.fingerprint)}/{RUN}"
        try:
            return dict(json.loads(self.fs.cat_file(path)))
        except (FileNotFoundError, ValueError):
            return {}

    def open(self, manifest: Manifest, name: str) -> Path:
        """A local path of one file, its hash checked now.

        Raises:
            Corrupt: the file is missing or has other bytes than its manifest promises.
        """
        try:
            stored = manifest.files[name]
        except KeyError:
            raise Corrupt(
                f"{self.uri(manifest)} has no file {name!r}; it has {sorted(manifest.files)}"
            ) from None
        remote = f"{self.folder(manifest.dataset, manifest.key, manifest.fingerprint)}/{stored.path}"
        local = Path(remote) if self.is_local else self._fetched(remote, stored, name)
        if not local.exists():
            raise Corrupt(
                f"{remote} is missing, though its manifest names it; "
                f"run the task that writes {manifest.dataset} again with --force"
            )
        found = sha256_of(local)
        if found != stored.sha256:
            raise Corrupt(
                f"{remote} has sha256 {found[:12]}…, its manifest promises {stored.sha256[:12]}…: the file was altered "
                f"or damaged; run the task that writes {manifest.dataset} again with --force"
            )
        return local

    def _fetched(self, remote: str, stored: StoredFile, name: str) -> Path:
        """A local copy of a remote file; a damaged copy is fetched anew, a missing file leaves none."""
        local = self.scratch / "cache" / stored.sha256[:2] / f"{stored.sha256}-{name.replace('/', '_')}"
        if local.exists() and sha256_of(local) == stored.sha256:
            return local
        local.parent.mkdir(parents=True, exist_ok=True)
        temporary = local.with_name(f".{uuid.uuid4().hex}")
        try:
            self.fs.get_file(remote, str(temporary))
            temporary.replace(local)
        except FileNotFoundError:
            local.unlink(missing_ok=True)
        finally:
            temporary.unlink(missing_ok=True)
        return local

    # --- writing

    @contextlib.contextmanager
    def working_folder(self) -> Iterator[Path]:
        """A fresh scratch folder for a task's output, removed afterwards."""
        parent = self.scratch / "work"
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def lease(
        self, dataset: str, key: str, fingerprint: str, wait_seconds: float = 6 * 3600
    ) -> Iterator[bool]:
        """Hold the exclusive right to make one version on this machine; ends with the process.

        Yields whether we had to wait, i.e. whether somebody else may have made it meanwhile.

        Raises:
            Busy: not had within `wait_seconds`.
        """
        folder = self.scratch / "leases"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{dataset}-{key}-{fingerprint}.lock")
        waited = False
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waited = True
            print(
                f"{dataset} {key} {fingerprint} is being made by another process; waiting for it", flush=True
            )
            try:
                lock.acquire(timeout=wait_seconds)
            except Timeout:
                raise Busy(
                    f"{dataset} {key} {fingerprint} was still being made by another process after {wait_seconds:.0f} s; "
                    "see `audiorec status`, then run it again"
                ) from None
        try:
            yield waited
        finally:
            lock.release()

    def commit(
        self,
        *,
        dataset: str,
        key: str,
        fingerprint: str,
        outputs: Mapping[str, Path],
        inputs: Mapping[str, str],
        settings: Mapping[str, Any],
        code: str,
        facts: Mapping[str, Any],
        run: Mapping[str, Any] | None = None,
        replace: bool = False,
    ) -> Manifest:
        """Make a version visible: files first, manifest last.

        If another writer was first, its version stays and is returned (unless `replace`).
        """
        folder = self.folder(dataset, key, fingerprint)
        self.fs.makedirs(folder, exist_ok=True)
        files = {name: self._put(folder, name, path) for name, path in sorted(outputs.items())}
        manifest = Manifest(
            dataset=dataset,
            key=key,
            fingerprint=fingerprint,
            files=files,
            inputs=dict(sorted(inputs.items())),
            settings=dict(settings),
            code=code,
            facts=dict(facts),
        )
        if run is not None:
            self._write(
                f"{folder}/{RUN}",
                (json.dumps(run, indent=1, sort_keys=True, default=str) + "\n").encode(),
                True,
            )
        if not self._write(f"{folder}/{MANIFEST}", manifest.to_bytes(), replace):
            winner = self.find(dataset, key, fingerprint)
            assert winner is not None, "a manifest that could not be created exclusively must exist"
            return winner
        return manifest

    def write_pointer(self, name: str, data: bytes) -> None:
        """Replace a small file at the root that points to versions; the only thing here that ever changes."""
        self.fs.makedirs(self.root, exist_ok=True)
        self._write(f"{self.root}/{name}", data, replace=True)

    def read_pointer(self, name: str) -> bytes | None:
        """The bytes of a pointer, None if there is none."""
        try:
            return bytes(self.fs.cat_file(f"{self.root}/{name}"))
        except FileNotFoundError:
            return None

    # --- keeping and removing

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Work on the store, beside others who do; a removal (`alone`) on this machine waits meanwhile."""
        with self._use_lock().open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    @contextlib.contextmanager
    def alone(self, wait_seconds: float) -> Iterator[None]:
        """Work on the store while no task of this machine does; tasks that start meanwhile wait.

        Raises:
            Busy: tasks were running all the time.
        """
        until = time.monotonic() + wait_seconds
        with self._use_lock().open("wb") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise Busy(
                            f"tasks have been working on {self.root} for {wait_seconds:.0f} s; try again when no run is active"
                        ) from None
                    time.sleep(0.2)
            yield

    def _use_lock(self) -> Path:
        folder = self.scratch / "leases"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / "store.lock"

    def mark_used(self, manifest: Manifest) -> None:
        """Remember that a result was found up to date, by its manifest's time, so that it counts as new.

        An object store has no such thing; there a result's age counts from when it was made.
        """
        if self.is_local:
            with contextlib.suppress(OSError):
                os.utime(self.uri(manifest))

    def remove(self, folder: str) -> None:
        """Remove a version: its manifest first, so that nobody finds it while its files go."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(f"{folder}/{MANIFEST}")
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(folder, recursive=True)
        if self.is_local:
            with contextlib.suppress(OSError):  # others lie beside it
                Path(folder).parent.rmdir()

    # --- records: small files beside the datasets, each made once and never replaced

    def add_record(self, folder: str, name: str, data: bytes) -> bool:
        """Make a file below the root in one step; False if there is one of that name, which stays."""
        self.fs.makedirs(f"{self.root}/{folder}", exist_ok=True)
        return self._write(f"{self.root}/{folder}/{name}", data, replace=False)

    def record_names(self, folder: str) -> list[str]:
        """Sorted names of a folder's records."""
        listed = self._children(f"{self.root}/{folder}".rstrip("/"))
        return [name for name in listed if not name.startswith(".")]

    def read_record(self, folder: str, name: str) -> bytes:
        """A record's bytes; FileNotFoundError if there is none."""
        return bytes(self.fs.cat_file(f"{self.root}/{folder}/{name}"))

    def _put(self, folder: str, name: str, path: Path) -> StoredFile:
        sha = sha256_of(path)
        rows, columns = parquet_shape(path)
        stem, dot, suffix = name.partition(".")
        stored = f"{stem}.{sha[:12]}{dot}{suffix}"
        target = f"{folder}/{stored}"
        size = path.stat().st_size
        if self.is_local:
            final = Path(target)
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary = final.with_name(f".{uuid.uuid4().hex}")
            shutil.move(
                path, temporary
            )  # from another file system it is a copy, which is not on the disk yet
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(final)
        else:
            self.fs.put_file(str(path), target)
        return StoredFile(path=stored, bytes=size, sha256=sha, rows=rows, columns=columns)

    def _write(self, target: str, data: bytes, replace: bool) -> bool:
        """Write a small file in one step; False if it exists and may not be replaced."""
        if not self.is_local:
            try:
                self.fs.pipe_file(target, data, mode="overwrite" if replace else "create")
            except FileExistsError:
                return False
            return True
        final = Path(target)
        temporary = final.with_name(f".{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(final)
            else:
                try:
                    os.link(temporary, final)
                except FileExistsError:
                    return False
            _fsync_folder(final.parent)
        finally:
            temporary.unlink(missing_ok=True)
        return True


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
