"""The files of a version that answering needs: opened by hash, and kept apart so that they outlive the store."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from audiorec.champion import Bundle, describe
from audiorec.errors import BadData, Corrupt
from audiorec.store import MANIFEST, Manifest, Store

MODEL = "2T-HGNN"

_RELATIONS = ("audiobook_audiobook", "audiobook_podcast", "podcast_audiobook", "podcast_podcast")
FILES: Mapping[str, tuple[str, ...]] = {
    "extract": ("audiobooks.parquet", "podcasts.parquet"),
    "embed_text": ("audiobook_text.npy", "podcast_text.npy"),
    "build_graph": tuple(
        f"release.{relation}.{part}.npy" for relation in _RELATIONS for part in ("indptr", "indices", "users")
    ),
    "train_hgnn": ("hgnn.safetensors", "hgnn.json"),
    "train_two_tower": (f"{MODEL}.safetensors", f"{MODEL}.json"),
    "refresh": (
        "item_vectors.npy",
        "available.npy",
        "sample_user_vectors.npy",
        "audiobook_hgnn.npy",
        "podcast_hgnn.npy",
        "users.parquet",
        "user_features.npy",
        "music_length.npy",
        "artists.parquet",
        "artist_vectors.npy",
        "streamed.parquet",
        "history.parquet",
        "popularity.parquet",
        "popularity_by_country.parquet",
        "release.json",
    ),
    "build_index": ("audiobooks.faiss",),
}
"""What a running service may read of a version; nothing else of it has to exist."""


class ReleaseFiles:
    """The files of one version; every one is checked against its hash when it is opened.

    Args:
        store: where they are.
        bundle: the version's manifests.

    Raises:
        BadData: the version was written before releases had what is needed now.
    """

    def __init__(self, store: Store, bundle: Bundle) -> None:
        self.store, self.bundle = store, bundle
        for task, names in FILES.items():
            lacking = [name for name in names if name not in bundle.manifests[task].files]
            if lacking:
                raise BadData(
                    f"the release of {bundle.as_of} has no {', '.join(lacking)} from {task}: it was written by an older "
                    f"version of this code; run {bundle.as_of} again (`audiorec run --as-of {bundle.as_of}`)"
                )

    def manifest(self, task: str) -> Manifest:
        return self.bundle.manifests[task]

    def open(self, task: str, name: str) -> Path:
        """A local path whose bytes were checked now."""
        return self.store.open(self.manifest(task), name)

    def array(self, task: str, name: str) -> np.ndarray:
        """A memory-mapped array; as a plain one, because numpy's class for mapped ones costs at every access."""
        return np.asarray(np.load(self.open(task, name), mmap_mode="r", allow_pickle=False))

    def table(self, task: str, name: str, columns: list[str] | None = None) -> pd.DataFrame:
        return pd.read_parquet(self.open(task, name), columns=columns)

    def json(self, task: str, name: str) -> dict[str, Any]:
        return dict(json.loads(self.open(task, name).read_text(encoding="utf-8")))


def keep(store: Store, bundle: Bundle, folder: Path) -> Store:
    """Put what answering needs of a version into a store of its own, and return that store.

    Hard links where the file system allows them, copies elsewhere. Manifests come last, as in any store: a kill in
    between leaves a version that is not there.
    """
    kept = Store(str(folder), store.scratch)
    for manifest in bundle.manifests.values():
        target = Path(kept.folder(manifest.dataset, manifest.key, manifest.fingerprint))
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES.get(_task_of(bundle, manifest), ()):
            source, wanted = store.open(manifest, name), target / manifest.files[name].path
            if not wanted.exists():
                _link(source, wanted)
        temporary = target / f".{uuid.uuid4().hex}"
        temporary.write_bytes(manifest.to_bytes())
        temporary.replace(target / MANIFEST)
    return kept


def _task_of(bundle: Bundle, manifest: Manifest) -> str:
    return next(task for task, one in bundle.manifests.items() if one is manifest)


def _link(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{uuid.uuid4().hex}")
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def forget_others(folder: Path, keeping: Bundle) -> None:
    """Delete all versions of a folder made by `keep` but one."""
    wanted = {(one.dataset, one.key, one.fingerprint) for one in keeping.manifests.values()}
    for path in folder.glob("*/*/*"):
        if path.is_dir() and tuple(path.parts[-3:]) not in wanted:
            shutil.rmtree(path, ignore_errors=True)


def write_last_good(folder: Path, version: str, bundle: Bundle) -> None:
    """Remember which kept version answered last."""
    described = {"version": version, "release": describe(bundle.as_of, bundle.manifests)}
    temporary = folder / f".{uuid.uuid4().hex}"
    temporary.write_text(json.dumps(described, sort_keys=True, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / "last-good.json")


def read_last_good(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """(version, release) of the version that answered last, None if there is none.

    Raises:
        Corrupt: the file cannot be read.
    """
    path = folder / "last-good.json"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return str(plain["version"]), dict(plain["release"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path} cannot be read ({error}); delete it, the champion is loaded anew") from None
