"""The chain as a whole: a second run does nothing, and every other way to the same result gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from audiorec.errors import Corrupt
from audiorec.runner import run_task
from audiorec.store import MANIFEST, Store
from audiorec.taskio import INTERACTIONS

if TYPE_CHECKING:
    from conftest import Chain

pytestmark = pytest.mark.long


def files_of(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Every file below a folder: when it was changed, which inode it is, and its bytes' hash.

    A manifest's time says when its result was last of use (`Store.mark_used`), so it is left out.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stat = path.stat()
            found[str(path.relative_to(folder))] = (
                0 if path.name == "manifest.json" else stat.st_mtime_ns,
                stat.st_ino,
                hashlib.sha256(path.read_bytes()).hexdigest(),
            )
    return found


def manifests_of(store: Path) -> dict[str, bytes]:
    """All manifests of a store but those of the text cache (how texts are split into segments is history)."""
    found = {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob(MANIFEST))}
    return {name: data for name, data in found.items() if not name.startswith("text_vectors/")}


def store_of(chain: Chain) -> Path:
    return Path(chain.settings.store.uri)


def copied(chain: Chain, work: Path, tiny: Any) -> Any:
    """Settings over a copy of the chain's store."""
    shutil.copytree(store_of(chain), work / "store")
    return tiny.settings(Path(chain.settings.source.uri), work)


# --- the same again -------------------------------------------------------------------------------------


def test_the_chain_again_is_up_to_date_and_changes_no_file(tiny_chain: Chain, tiny: Any):
    before = files_of(store_of(tiny_chain))
    again = tiny.run(tiny_chain.settings)
    assert {task: result["state"] for task, result in again.results.items()} == dict.fromkeys(
        tiny.tasks, "up_to_date"
    )
    assert files_of(store_of(tiny_chain)) == before
    for task, result in again.results.items():
        for field in ("manifest", "fingerprint", "counts", "links"):
            assert result[field] == tiny_chain.results[task][field], (task, field)


def test_a_fresh_store_gets_byte_equal_manifests(tiny_chain: Chain, tiny: Any, tmp_path: Path):
    """Every file's hash is in its manifest, so equal manifests are equal results."""
    fresh = tiny.run(tiny.settings(Path(tiny_chain.settings.source.uri), tmp_path))
    assert {result["state"] for result in fresh.results.values()} == {"done"}
    expected, found = manifests_of(store_of(tiny_chain)), manifests_of(tmp_path / "store")
    assert sorted(found) == sorted(expected)
    different = [name for name in expected if found[name] != expected[name]]
    assert different == []
    assert {name.split("/")[0] for name in expected} == {*tiny.tasks, INTERACTIONS}


def test_force_does_it_again_with_the_same_bytes(tiny_chain: Chain, tiny: Any, tmp_path: Path):
    settings = copied(tiny_chain, tmp_path, tiny)
    before = manifests_of(tmp_path / "store")
    # validate's determinism is in test_validate.py; its Data Docs take a third of the chain.
    tasks = tuple(task for task in tiny.tasks if task != "validate")
    forced = tiny.run(settings, tasks=tasks, force=True)
    assert {result["state"] for result in forced.results.values()} == {"done"}
    assert manifests_of(tmp_path / "store") == before


def test_two_processes_at_once_give_one_result(tiny_chain: Chain, tiny: Any, tmp_path: Path):
    """Both start from nothing; the one that comes second waits for the lease and then finds it done."""
    results = []
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AUDIOREC_")} | tiny.environment(
        tiny.settings(Path(tiny_chain.settings.source.uri), tmp_path)
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tasks.extract", "--as-of", str(tiny_chain.as_of), "--profile", "smoke"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        results.append(json.loads(output.splitlines()[-1].removeprefix("RESULT ")))
    assert sorted(result["state"] for result in results) == ["done", "up_to_date"]
    assert results[0]["manifest"] == results[1]["manifest"]
    expected = {
        name: data
        for name, data in manifests_of(store_of(tiny_chain)).items()
        if name.split("/")[0] in ("extract", INTERACTIONS)
    }
    assert manifests_of(tmp_path / "store") == expected, "and it is what one process alone makes"


def test_a_store_that_is_no_folder_gets_the_same_manifests(tiny_chain: Chain, tiny: Any, tmp_path: Path):
    """fsspec's file system in memory stands for s3://: the same code, another address."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    tasks = ("extract", "embed_music", "build_graph")
    settings = tiny.settings(
        Path(tiny_chain.settings.source.uri), tmp_path, store={"uri": "memory://bucket/store"}
    )
    try:
        tiny.run(settings, tasks=tasks)
        found = {
            path.removeprefix("/bucket/store/"): filesystem.cat_file(path)
            for path in filesystem.find("/bucket/store")
            if path.endswith(MANIFEST)
        }
        assert {r["state"] for r in tiny.run(settings, tasks=tasks).results.values()} == {"up_to_date"}
    finally:
        filesystem.store.clear()
    expected = {
        name: data
        for name, data in manifests_of(store_of(tiny_chain)).items()
        if name.split("/")[0] in (*tasks, INTERACTIONS)
    }
    assert found == expected


# --- what lies after as_of ------------------------------------------------------------------------------


def test_rows_after_as_of_change_no_byte(tiny_chain: Chain, tiny: Any, tmp_path: Path):
    """All later rows doubled, moved by hours and given to other users: nothing of the run may notice."""
    source = tmp_path / "source"
    shutil.copytree(tiny_chain.settings.source.uri, source)
    end = pa.scalar(tiny_chain.as_of, pa.date32()).cast(pa.timestamp("us"))
    after_the_day = pa.scalar(end.as_py().replace(hour=23, minute=59, second=59, microsecond=999_999))
    touched = 0
    for path in source.rglob("*_events/**/*.parquet"):
        table = pq.read_table(path)
        later = pc.fill_null(pc.greater(table["occurred_at"], after_the_day), False)
        if not pc.any(later).as_py():
            continue
        rows = table.filter(later)
        touched += len(rows)
        users = rows["user_id"].combine_chunks()
        others = rows.set_column(
            rows.column_names.index("user_id"), "user_id", users.take(pa.array(range(len(users) - 1, -1, -1)))
        )
        pq.write_table(pa.concat_tables([table, others]), path)
    assert touched > 200, "the sample tables go on after as_of"
    settings = tiny.settings(source, tmp_path)
    tasks = ("extract", "embed_music", "build_graph")
    tiny.run(settings, tasks=tasks)
    expected = {
        name: data
        for name, data in manifests_of(store_of(tiny_chain)).items()
        if name.split("/")[0] in (*tasks, INTERACTIONS)
    }
    assert manifests_of(tmp_path / "store") == expected
    # So the trainings and the judgement, which read nothing but these, are up to date as well.
    moved = tiny.settings(source, tmp_path, store={"uri": str(store_of(tiny_chain))})
    before = files_of(store_of(tiny_chain))
    assert {r["state"] for r in tiny.run(moved).results.values()} == {"up_to_date"}
    assert files_of(store_of(tiny_chain)) == before


# --- what is damaged ------------------------------------------------------------------------------------


def test_a_damaged_input_stops_the_reader_and_force_mends_it(tiny_chain: Chain, tiny: Any, tmp_path: Path):
    settings = copied(tiny_chain, tmp_path, tiny)
    store = Store(settings.store.uri, settings.store.scratch)
    extract = store.read_uri(run_task("extract", settings, tiny_chain.as_of)["manifest"])
    (day, fingerprint) = next((n, f) for n, f in extract.inputs.items() if n.startswith(INTERACTIONS))
    partition = store.find(INTERACTIONS, day.split("/")[1], fingerprint)
    path = store.open(partition, "interactions.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(
        Corrupt,
        match="the file was altered or damaged; run the task that writes interactions again with --force",
    ):
        run_task("embed_music", settings, tiny_chain.as_of, force=True)
    run_task("extract", settings, tiny_chain.as_of, force=True)
    run_task("embed_music", settings, tiny_chain.as_of, force=True)
    assert manifests_of(tmp_path / "store") == manifests_of(store_of(tiny_chain))


def test_a_damaged_manifest_stops_the_task_and_force_mends_it(tiny_chain: Chain, tiny: Any, tmp_path: Path):
    settings = copied(tiny_chain, tmp_path, tiny)
    path = Path(run_task("embed_music", settings, tiny_chain.as_of)["manifest"])
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"known": ', b'"known": 1', 1))
    with pytest.raises(Corrupt, match="it was altered or damaged"):
        run_task("embed_music", settings, tiny_chain.as_of)
    run_task("embed_music", settings, tiny_chain.as_of, force=True)
    assert path.read_bytes() == whole


# --- the result -----------------------------------------------------------------------------------------


def test_a_result_says_what_the_launcher_reads(tiny_chain: Chain, tiny: Any):
    for task, result in tiny_chain.results.items():
        assert result["task"] == task
        assert (result["as_of"], result["state"], result["failure"]) == (str(tiny_chain.as_of), "done", None)
        assert Path(result["manifest"]).parts[-4:-1] == (task, str(tiny_chain.as_of), result["fingerprint"])
        assert result["counts"]
        assert result["seconds"] > 0
        assert result["peak_mb"] > 50
        json.dumps(result)


def test_a_manifest_holds_only_what_is_determined(tiny_chain: Chain, tiny: Any):
    """No host, time or place of this run; those are in run.json beside it."""
    import platform

    for name, data in manifests_of(store_of(tiny_chain)).items():
        text = data.decode()
        for word in (
            str(store_of(tiny_chain)),
            str(tiny_chain.settings.source.uri),
            platform.node(),
            "seconds_taken",
        ):
            assert word not in text, (name, word)
    run = json.loads((Path(tiny_chain.results["extract"]["manifest"]).parent / "run.json").read_text())
    assert run["host"] == platform.node()


def test_a_chain_without_mlflow_trains_all_the_same(tiny_chain: Chain, tiny: Any):
    assert tiny_chain.settings.mlflow.uri == tiny.no_mlflow
    curves = json.loads(tiny_chain.open("train_hgnn", "curves.json").read_text())
    assert [line["epoch"] for line in curves] == [0, 1]
