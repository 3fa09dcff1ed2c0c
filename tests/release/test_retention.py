"""What may go and what must stay: worked by hand, and for any web of results, ages and aliases."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient

from audiorec.champion import describe, write_pointer
from audiorec.errors import Busy, Corrupt, Unavailable
from audiorec.registry import CHAMPION, Registry
from audiorec.retention import Name, collect, sweep
from audiorec.settings import load_settings
from audiorec.store import MANIFEST, Manifest, Store

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DAYS = 90.0


def aged(path: Path, days: float) -> None:
    moment = (NOW - timedelta(days=days)).timestamp()
    for entry in [path, *path.rglob("*")]:
        os.utime(entry, (moment, moment))


def make(
    store: Store, name: Name, inputs: Iterable[Name] = (), age_days: float = 100, **more: Any
) -> Manifest:
    """A result of one file, `age_days` old; inputs of the same key go by task, those of days by their day."""
    dataset, key, fingerprint = name
    named = {d if d != "interactions" else f"{d}/{k}": f for d, k, f in inputs}
    with store.working_folder() as folder:
        (folder / "rows.bin").write_text(f"{name}")
        manifest = store.commit(
            dataset=dataset,
            key=key,
            fingerprint=fingerprint,
            outputs={"rows.bin": folder / "rows.bin"},
            inputs={"source/events": "5eed", **named},
            settings=more.get("settings", {}),
            code="",
            facts={},
        )
    aged(Path(store.folder(*name)), age_days)
    return manifest


def whole(store: Store, name: Name) -> None:
    """A result and all it was made of verify, to the last file."""
    manifest = store.find(*name)
    assert manifest is not None, name
    for file in manifest.files:
        store.open(manifest, file)
    for task, fingerprint in manifest.inputs.items():
        dataset, _, day = task.partition("/")
        if dataset != "source":
            whole(store, (dataset, day or manifest.key, fingerprint))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), tmp_path / "scratch")


def paths(store: Store, found: Any) -> list[str]:
    return [item.path.removeprefix(f"{store.root}/") for item in found.items]


def test_what_an_alias_or_a_newer_result_needs_stays(store: Store):
    """Old are: a released extract with its day, an extract of which a new one shares a day, and one that nobody needs."""
    day = {d: ("interactions", f"2026-07-0{d}", "d0") for d in (1, 2, 3)}
    for name in day.values():
        make(store, name)
    released, shared, lost = (("extract", f"2026-07-0{d}", f"e{d}") for d in (1, 2, 3))
    make(store, released, [day[1]])
    make(store, shared, [day[2]], age_days=1)
    make(store, lost, [day[2], day[3]])
    dry = sweep(store, [released], [], DAYS, NOW, apply=False)
    assert paths(store, dry) == ["extract/2026-07-03/e3", "interactions/2026-07-03/d0"]
    assert dry.items[0].bytes == sum(f.stat().st_size for f in Path(dry.items[0].path).iterdir())
    assert dry.by_kind()["extract", "not needed and older than 90 days"] == (1, dry.items[0].bytes)
    assert store.find(*lost) is not None  # a dry run removes nothing
    done = sweep(store, [released], [], DAYS, NOW, apply=True)
    assert (done.items, done.kept_versions) == (dry.items, 4)
    for name in (released, shared):
        whole(store, name)
    assert store.find(*lost) is None
    assert store.keys("extract") == ["2026-07-01", "2026-07-02"]
    assert sweep(store, [released], [], DAYS, NOW, apply=True).items == ()


def test_a_result_that_was_found_up_to_date_is_new(store: Store):
    name = ("extract", "2026-07-01", "e1")
    manifest = make(store, name)
    store.mark_used(manifest)
    assert sweep(store, [], [], DAYS, datetime.now(UTC), apply=False).items == ()


def test_leftovers_of_killed_writers_go_and_work_in_progress_stays(store: Store):
    kept = ("extract", "2026-11-01", "e1")
    make(store, kept, age_days=2)
    half, fresh = (Path(store.folder("extract", "2026-11-02", fp)) for fp in ("half", "fresh"))
    for folder, days in ((half, 2.0), (fresh, 0.5)):
        folder.mkdir(parents=True)
        (folder / "users.0a.parquet").write_bytes(b"x" * 10)
        aged(folder, days)
    stray, new = (Path(store.folder(*kept)) / name for name in ("users.ff.parquet", ".0f3a"))
    for path, days in ((stray, 2.0), (new, 0.1)):
        path.write_bytes(b"y" * 7)
        aged(path, days)
    work, checkpoint, running = (
        store.scratch / p for p in ("work/tmpa", "checkpoints/aa.safetensors", "work/tmpb")
    )
    for path, days in ((work, 2.0), (checkpoint, 91.0), (running, 0.2)):
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if path.parent.name == "work" else path.write_text("z")
        aged(path, days)
    found = sweep(store, [], [], DAYS, NOW, apply=True)
    assert {(item.kind, item.path, item.bytes) for item in found.items} == {
        ("orphan", str(half), 10),
        ("stray file", str(stray), 7),
        ("scratch", str(work), 0),
        ("scratch", str(checkpoint), 1),
    }
    assert [p.exists() for p in (half, stray, work, checkpoint)] == [False] * 4
    assert [p.exists() for p in (fresh, new, running)] == [True] * 3
    whole(store, kept)


def test_data_docs_go_with_their_verdict_and_records_are_no_datasets(store: Store):
    store.add_record("history-m", "000001.json", b"{}")
    aged(Path(store.root) / "history-m", 900)
    for day, age in ((1, 100), (2, 1)):
        make(store, ("validate", f"2026-07-0{day}", "v"), age_days=age)
        page = Path(store.folder("data_docs", f"2026-07-0{day}", "v")) / "static" / "index.html"
        page.parent.mkdir(parents=True)
        page.write_text("<html>")
        aged(page.parents[1], 100)
    found = sweep(store, [], [], DAYS, NOW, apply=True)
    assert paths(store, found) == ["data_docs/2026-07-01/v", "validate/2026-07-01/v"]
    assert store.record_names("history-m") == ["000001.json"]


def test_data_docs_that_were_being_built_go_when_their_task_was_killed(store: Store):
    make(store, ("validate", "2026-11-01", "v"), age_days=2)
    pages = Path(store.folder("data_docs", "2026-11-01", "v"))
    killed, building = (pages.with_name(f".v-{name}") for name in ("0a", "0b"))
    for folder, days in ((pages, 2.0), (killed, 2.0), (building, 0.5)):
        page = folder / "static" / "index.html"
        page.parent.mkdir(parents=True)
        page.write_text("<html>")
        aged(folder, days)
    found = sweep(store, [], [], DAYS, NOW, apply=True)
    assert [(item.kind, item.dataset, item.path, item.bytes) for item in found.items] == [
        ("orphan", "data_docs", str(killed), 6)
    ]
    assert [folder.exists() for folder in (pages, killed, building)] == [True, False, True]
    assert store.fingerprints("data_docs", "2026-11-01") == ["v"]


def test_text_vectors_stay_while_a_kept_result_would_ask_for_them(store: Store):
    from audiorec.fingerprint import code_fingerprint, digest
    from audiorec.settings import Text
    from audiorec.text import model_key

    text = Text()
    key = digest([model_key(text), code_fingerprint("audiorec.text")])
    make(store, ("embed_text", "2026-11-01", "t"), age_days=1, settings={"text": text.model_dump()})
    make(store, ("text_vectors", key, "s1"))
    make(store, ("text_vectors", "0therm0del", "s1"))
    assert paths(store, sweep(store, [], [], DAYS, NOW, apply=True)) == ["text_vectors/0therm0del/s1"]


def test_nothing_goes_if_a_release_is_not_whole(store: Store):
    released, needed = ("extract", "2026-07-01", "e1"), ("interactions", "2026-07-01", "d1")
    make(store, released, [needed])  # the day was never there
    make(store, ("extract", "2026-07-02", "e2"))
    with pytest.raises(
        Corrupt, match=r"interactions/2026-07-01/d1 is needed by a release .*nothing was removed"
    ):
        sweep(store, [released], [], DAYS, NOW, apply=True)
    assert store.keys("extract") == ["2026-07-01", "2026-07-02"]
    # Of a release of another model, which may lie in another store, stays what is there.
    sweep(store, [], [released, ("extract", "2026-07-09", "e9")], DAYS, NOW, apply=True)
    assert store.keys("extract") == ["2026-07-01"]


@st.composite
def webs(draw: st.DrawFn) -> tuple[list[tuple[Name, list[Name], float]], list[Name]]:
    """Results of three dates in layers, each made of some of the layer before; ages; and which are released."""
    made: list[tuple[Name, list[Name], float]] = []
    ages = st.sampled_from([0.0, 1.0, 89.0, 91.0, 400.0])
    days = [("interactions", f"2026-07-{d:02}", f"d{n}") for d in range(1, 5) for n in range(2)]
    made += [(name, [], draw(ages)) for name in days]
    for day in range(1, 4):
        key = f"2026-07-{day:02}"
        below: list[Name] = []
        for layer in ("extract", "build_graph", "train_hgnn"):
            names = [(layer, key, f"f{n}") for n in range(draw(st.integers(0, 2)))]
            for name in names:
                # By task and by day there is one input each, as in the real chain.
                source = {n[:2]: n for n in draw(st.permutations(days if layer == "extract" else below))}
                inputs = (
                    draw(st.lists(st.sampled_from(sorted(source.values())), unique=True)) if source else []
                )
                made.append((name, inputs, draw(ages)))
            below = names or below
    released = draw(st.lists(st.sampled_from([name for name, _, _ in made]), max_size=3, unique=True))
    return made, released


@settings(max_examples=40, deadline=None)
@given(webs())
def test_after_a_removal_all_that_is_needed_verifies_and_nothing_else_is_left(web: Any):
    made, released = web
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/store", f"{folder}/scratch")
        for name, inputs, age in made:
            make(store, name, inputs, age)
        inputs_of = {name: inputs for name, inputs, _ in made}
        needed = {*released, *(name for name, _, age in made if age < DAYS)}
        pending = list(needed)
        while pending:
            new = set(inputs_of[pending.pop()]) - needed
            needed |= new
            pending += new
        sweep(store, released, [], DAYS, NOW, apply=True)
        for name in needed:
            whole(store, name)
        left = {(d, k, f) for d in store.datasets() for k in store.keys(d) for f in store.fingerprints(d, k)}
        assert left == needed


def test_tasks_and_a_removal_keep_each_other_out(store: Store):
    refused = pytest.raises(Busy, match="tasks have been working")
    with store.in_use(), store.in_use(), refused, store.alone(0.3):  # tasks do not
        pass
    order: list[str] = []

    def task() -> None:
        with Store(store.root, store.scratch).in_use():
            order.append("task")

    with store.alone(1):
        thread = threading.Thread(target=task)
        thread.start()
        thread.join(0.3)
        order.append("removal")
    thread.join(5)
    assert order == ["removal", "task"]


# --- roots, on a real MLflow -----------------------------------------------------------------------------


def test_every_models_alias_pointer_and_recent_promotion_counts(
    mlflow_uri: str, mlflow_client: MlflowClient, tmp_path: Path, tiny: Any
):
    """Two models over one store. Of `gc-a`: version 1 is the champion, 2 promoted and recent, 3 promoted and old, 4
    only registered, 5 rejected. Of `gc-b`: version 1 is only pointed to. All lie long in the store."""
    groups: dict[str, Any] = {
        "mlflow": {"uri": mlflow_uri, "experiment": "gc"},
        "store": {"uri": str(tmp_path / "store"), "scratch": str(tmp_path / "scratch")},
    }
    ours, other = (load_settings(release={"model_name": name}, **groups) for name in ("gc-a", "gc-b"))
    store = Store(ours.store.uri, ours.store.scratch)
    days = {1: (3, 1), 2: (11, 1), 3: (4, 1), 4: (11, 2), 5: (11, 3), 6: (5, 1)}
    releases = {}
    for number, (month, day) in days.items():
        key = f"2026-{month:02}-{day:02}"
        releases[number] = describe(
            date.fromisoformat(key), {"refresh": make(store, ("refresh", key, f"f{number}"))}
        )
    registry = Registry(ours)
    for number in range(1, 6):
        tags = {"release": json.dumps(releases[number])} | ({"promoted": "true"} if number != 4 else {})
        version = registry.register(date.fromisoformat(releases[number]["as_of"]), f"f{number}", tags, {}, [])
        if number == 5:
            registry.reject(version, "ann", "bad", NOW)
    registry.point(CHAMPION, registry.get("1"))
    Registry(other).register(date(2026, 5, 1), "f6", {"release": json.dumps(releases[6])}, {}, [])
    mlflow_client.create_registered_model("somebody_elses")
    write_pointer(store, "gc-b", "1", releases[6])
    for settings_of in (ours, other):  # whichever model asks
        found = collect(settings_of, apply=False, now=NOW)
        assert paths(store, found) == [
            f"refresh/2026-{m:02}-{d:02}/f{n}" for n, (m, d) in ((3, days[3]), (4, days[4]), (5, days[5]))
        ]
    collect(ours, apply=True, now=NOW)
    assert [len(store.versions("refresh", releases[n]["as_of"])) for n in days] == [1, 1, 0, 0, 0, 1]

    # Without MLflow nobody knows what is needed.
    away = load_settings(**{**groups, "mlflow": {"uri": tiny.no_mlflow, "timeout_seconds": 0.5}})
    with pytest.raises(Unavailable):
        collect(away, apply=True, now=NOW)
    assert (Path(store.root) / "refresh/2026-03-01/f1" / MANIFEST).exists()
