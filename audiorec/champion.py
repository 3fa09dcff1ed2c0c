"""A released version on disk: its manifests, and the pointer that names the champion when MLflow is away."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import date
from typing import Any

from audiorec.errors import Corrupt
from audiorec.store import Manifest, Store


def pointer_name(model: str) -> str:
    """The file that names a registered model's champion; models of different tables share a store, not a champion."""
    return f"champion-{model}.json"


def pointer_models(store: Store) -> list[str]:
    """The registered models that have a pointer in a store."""
    found = [
        name for name in store.record_names("") if name.startswith("champion-") and name.endswith(".json")
    ]
    return [name.removeprefix("champion-").removesuffix(".json") for name in found]


def describe(as_of: date, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """What `release.json` says: the manifests that make a version, each with the hash of its bytes."""
    return {
        "as_of": as_of.isoformat(),
        "manifests": {
            task: {
                "dataset": manifest.dataset,
                "key": manifest.key,
                "fingerprint": manifest.fingerprint,
                "sha256": hashlib.sha256(manifest.to_bytes()).hexdigest(),
            }
            for task, manifest in sorted(manifests.items())
        },
    }


@dataclass(frozen=True)
class Bundle:
    """The manifests of one version, each checked against the hash that its release names."""

    as_of: date
    manifests: dict[str, Manifest]

    @classmethod
    def load(cls, store: Store, release: dict[str, Any]) -> Bundle:
        """From the content of `release.json`.

        Raises:
            Corrupt: a manifest is missing or has other bytes.
        """
        manifests = {}
        for task, named in release["manifests"].items():
            manifest = store.find(named["dataset"], named["key"], named["fingerprint"])
            where = f"{named['dataset']}/{named['key']}/{named['fingerprint']}"
            if manifest is None:
                raise Corrupt(
                    f"the release of {release['as_of']} needs {where}, which the store {store.root} lacks"
                )
            if hashlib.sha256(manifest.to_bytes()).hexdigest() != named["sha256"]:
                raise Corrupt(
                    f"the manifest of {where} is not the one that the release of {release['as_of']} was made of"
                )
            manifests[task] = manifest
        return cls(date.fromisoformat(release["as_of"]), manifests)


def write_pointer(store: Store, model: str, version: str, release: dict[str, Any]) -> None:
    """Remember the champion beside its files, so that serving can start without MLflow."""
    data = (json.dumps({"version": version, "release": release}, sort_keys=True, indent=1) + "\n").encode()
    store.write_pointer(pointer_name(model), data)


def read_pointer(store: Store, model: str) -> tuple[str, dict[str, Any]] | None:
    """(version, release) of the last champion of a registered model, or None."""
    data = store.read_pointer(pointer_name(model))
    if data is None:
        return None
    try:
        plain = json.loads(data)
        release = plain["release"]
        date.fromisoformat(release["as_of"])
        for named in release["manifests"].values():
            _ = [str(named[field]) for field in ("dataset", "key", "fingerprint", "sha256")]
        return str(plain["version"]), dict(release)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Corrupt(
            f"{store.root}/{pointer_name(model)} is unreadable; run promote again for the champion's date, which writes it anew"
        ) from None
