"""What still holds a forgotten user goes when its time has come, unless an alias needs it; nobody can go back to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient

from audiorec.champion import describe, write_pointer
from audiorec.forget import forget
from audiorec.pseudonyms import Pseudonyms
from audiorec.registry import CHAMPION, Registry
from audiorec.retention import Name, collect, made_of_forgotten
from audiorec.settings import Settings, load_settings
from audiorec.store import Manifest, Store

pytestmark = pytest.mark.long

ASKED = datetime(2026, 11, 1, 12, tzinfo=UTC)
DUE = ASKED + timedelta(days=30)


def make(store: Store, name: Name, users: list[str] | None, inputs: dict[str, str]) -> Manifest:
    """A result with rows of users (None: without any)."""
    with store.working_folder() as folder:
        path = folder / "rows.parquet"
        table = {"user_id": users} if users is not None else {"audiobook_id": ["b1"]}
        pd.DataFrame(table).to_parquet(path)
        return store.commit(
            dataset=name[0],
            key=name[1],
            fingerprint=name[2],
            outputs={"rows.parquet": path},
            inputs=inputs,
            settings={},
            code="",
            facts={},
        )


def names(store: Store) -> set[str]:
    return {
        f"{dataset}/{key}"
        for dataset in store.datasets()
        for key in store.keys(dataset)
        for _ in store.fingerprints(dataset, key)
    }


@pytest.fixture
def place(mlflow_uri: str, mlflow_client: MlflowClient, tmp_path: Path) -> Iterator[Settings]:
    """Three dates, each an extract, weights made of it and a registered version; `gone` was there on the first two."""
    settings = load_settings(
        mlflow={"uri": mlflow_uri, "experiment": "forget"},
        store={"uri": str(tmp_path / "store"), "scratch": str(tmp_path / "scratch")},
        privacy={"key_file": str(tmp_path / "key")},
        release={"model_name": f"forget-{tmp_path.name}"},
    )
    name = Pseudonyms.of(settings).name
    store, registry = Store(settings.store.uri, settings.store.scratch), Registry(settings)
    for day in (1, 2, 3):
        key, users = f"2026-10-0{day}", [name("stays"), *([name("gone")] if day < 3 else [])]
        extract = make(store, ("extract", key, f"e{day}"), users, {"source/events": "5eed"})
        weights = make(store, ("train_hgnn", key, f"w{day}"), None, {"extract": f"e{day}"})
        release = json.dumps(describe(date.fromisoformat(key), {"extract": extract, "train_hgnn": weights}))
        registry.register(
            date.fromisoformat(key), f"f{day}", {"release": release, "promoted": "true"}, {}, []
        )
    registry.point(CHAMPION, registry.get("2"))
    forget(settings, "gone", ASKED)
    yield settings
    # Its releases lie in a store that ends here; no other collection may look for them.
    mlflow_client.delete_registered_model(settings.release.model_name)


def test_nothing_goes_before_its_time(place: Settings):
    store = Store(place.store.uri, place.store.scratch)
    before = names(store)
    assert made_of_forgotten(store, timedelta(days=30), DUE - timedelta(seconds=1)) == frozenset()
    collect(place, apply=True, now=DUE - timedelta(seconds=1))
    assert names(store) == before
    assert not any(version.rejected for version in Registry(place).versions())


def test_all_but_what_the_champion_needs_goes_and_its_version_is_rejected(place: Settings):
    store, registry = Store(place.store.uri, place.store.scratch), Registry(place)
    assert made_of_forgotten(store, timedelta(days=30), DUE) == {
        (dataset, f"2026-10-0{day}", f"{letter}{day}")
        for day in (1, 2)
        for dataset, letter in (("extract", "e"), ("train_hgnn", "w"))
    }
    dry = collect(place, apply=False, now=DUE)
    assert {item.reason for item in dry.items} == {"holds a forgotten user, or was made of what does"}
    assert sorted(Path(item.path).parent.name for item in dry.items) == ["2026-10-01", "2026-10-01"]
    assert not registry.get("1").rejected, "a dry run rejects nothing"

    collect(place, apply=True, now=DUE)
    assert {(v.number, v.rejected) for v in registry.versions()} == {("1", True), ("2", False), ("3", False)}
    kept: set[Any] = {n for n in names(store) if not n.startswith("forgotten")}
    assert {n for n in kept if n.startswith(("extract", "train"))} == {
        f"{dataset}/2026-10-0{day}" for dataset in ("extract", "train_hgnn") for day in (2, 3)
    }

    # A later version takes over; then the rest goes.
    third = registry.get("3")
    registry.point(CHAMPION, third)
    write_pointer(store, place.release.model_name, third.number, third.release)
    collect(place, apply=True, now=DUE)
    assert {n for n in names(store) if n.startswith(("extract", "train"))} == {
        "extract/2026-10-03",
        "train_hgnn/2026-10-03",
    }
    assert registry.get("2").rejected
