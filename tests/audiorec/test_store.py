"""The store: what is visible is complete and as it was written, whoever writes and whatever is killed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from audiorec.errors import BadSettings, Busy, Corrupt
from audiorec.store import MANIFEST, Manifest, Store

FORK = multiprocessing.get_context("fork")
"""A process of its own in a few milliseconds, which SIGKILL ends as it ends any."""


def make_store(folder: Path) -> Store:
    return Store(str(folder / "store"), folder / "scratch")


def commit(
    store: Store,
    fingerprint: str = "f1",
    text: str = "hello",
    during: contextlib.AbstractContextManager[Any] = contextlib.nullcontext(),
    **options: Any,
) -> Manifest:
    """One version of two files: a text and a table of three rows."""
    with store.working_folder() as folder:
        note, table = folder / "note.txt", folder / "table.parquet"
        note.write_text(text)
        pd.DataFrame({"user_id": ["a", "b", "c"], "day": [1, 2, 3]}).to_parquet(table, index=False)
        given = {"facts": {"counts": {"rows": 3}}, "run": {"seconds": time.time()}} | options
        with during:
            return store.commit(
                dataset="things",
                key="2026-11-23",
                fingerprint=fingerprint,
                outputs={"note.txt": note, "sub/table.parquet": table},
                inputs={"source": "abc"},
                settings={"time": {"window_days": 90}},
                code="c0de",
                **given,
            )


def find(store: Store, fingerprint: str = "f1") -> Manifest | None:
    return store.find("things", "2026-11-23", fingerprint)


def folder_of(store: Store, fingerprint: str = "f1") -> Path:
    return Path(store.folder("things", "2026-11-23", fingerprint))


def is_complete(store: Store, manifest: Manifest) -> bool:
    """Every file opens, which checks its hash."""
    return all(store.open(manifest, name).exists() for name in manifest.files)


# --- writing and reading --------------------------------------------------------------------------------


def test_a_version_is_found_with_its_files_sizes_rows_and_columns(tmp_path: Path):
    store = make_store(tmp_path)
    assert find(store) is None
    committed = commit(store)
    found = find(store)
    assert found == committed
    note, table = found.files["note.txt"], found.files["sub/table.parquet"]
    # "hello" is 5 bytes; its sha256 is known to everybody.
    assert (note.bytes, note.rows) == (5, None)
    assert note.sha256 == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert (table.rows, table.columns) == (3, {"user_id": "large_string", "day": "int64"})
    assert store.open(found, "note.txt").read_text() == "hello"
    assert store.read_uri(store.uri(found)) == found
    assert store.keys("things") == ["2026-11-23"]
    assert store.versions("things", "2026-11-23") == [found]


def test_what_a_run_took_is_beside_the_manifest_and_not_in_it(tmp_path: Path):
    one, other = make_store(tmp_path / "one"), make_store(tmp_path / "other")
    commit(one, run={"seconds": 1})
    commit(other, run={"seconds": 2})
    runs = [json.loads((folder_of(store) / "run.json").read_text())["seconds"] for store in (one, other)]
    assert runs == [1, 2]
    assert (folder_of(one) / MANIFEST).read_bytes() == (folder_of(other) / MANIFEST).read_bytes()


def test_a_file_and_a_version_that_are_not_there_are_named(tmp_path: Path):
    store = make_store(tmp_path)
    manifest = commit(store)
    with pytest.raises(Corrupt, match=r"has no file 'x\.npy'; it has \['note\.txt', 'sub/table\.parquet'\]"):
        store.open(manifest, "x.npy")
    with pytest.raises(Corrupt, match="does not exist; run the task that writes it again"):
        store.read_uri(str(folder_of(store, "f9") / MANIFEST))
    store.open(manifest, "note.txt").unlink()
    with pytest.raises(Corrupt, match="is missing, though its manifest names it"):
        store.open(manifest, "note.txt")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", ".hidden", "a b", "a\nb", "ü/../x", "a\0"])
def test_a_name_that_is_no_folder_is_refused(name: str, tmp_path: Path):
    store = make_store(tmp_path)
    for names in ((name, "k", "f"), ("d", name, "f"), ("d", "k", name)):
        with pytest.raises(BadSettings, match="cannot name a folder of the store"):
            store.find(*names)


def test_the_first_writer_of_a_version_stays_unless_it_is_replaced(tmp_path: Path):
    store = make_store(tmp_path)
    first = commit(store, text="first")
    second = commit(store, text="second")
    assert second == first
    assert store.open(second, "note.txt").read_text() == "first"
    third = commit(store, text="third", replace=True)
    assert find(store) == third
    assert store.open(third, "note.txt").read_text() == "third"


def test_a_manifest_of_another_format_is_refused_by_name(tmp_path: Path):
    store = make_store(tmp_path)
    commit(store)
    path = folder_of(store) / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(Corrupt, match="has manifest format 2, this version reads 1; upgrade audiorec"):
        find(store)


def test_a_moved_version_is_refused(tmp_path: Path):
    store = make_store(tmp_path)
    commit(store)
    shutil.copytree(folder_of(store), folder_of(store, "f2"))
    with pytest.raises(Corrupt, match="says it is things/2026-11-23/f1; it was moved or altered"):
        find(store, "f2")


# --- damage ---------------------------------------------------------------------------------------------


@given(
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    which=st.sampled_from(["file", "table", "manifest"]),
)
@hypothesis_settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_flipped_bit_is_detected(place: float, bit: int, which: str, tmp_path: Path):
    store = make_store(tmp_path)
    manifest = find(store) or commit(store)
    name = {"file": "note.txt", "table": "sub/table.parquet"}.get(which)
    path = store.open(manifest, name) if name else folder_of(store) / MANIFEST
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[int(place * len(whole))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        with pytest.raises(Corrupt):
            found = find(store)
            assert found is not None
            store.open(found, name or "note.txt")
    finally:
        path.write_bytes(whole)
    assert is_complete(store, find(store))


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_truncated_file_or_manifest_is_detected(kept: int, tmp_path: Path):
    store = make_store(tmp_path)
    manifest = commit(store)
    for path in (store.open(manifest, "sub/table.parquet"), folder_of(store) / MANIFEST):
        path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(Corrupt, match=r"has sha256 .* its manifest promises"):
        store.open(manifest, "sub/table.parquet")
    with pytest.raises(Corrupt, match=r"not a readable manifest|has other bytes than were written"):
        find(store)


def test_committing_again_mends_a_damaged_file(tmp_path: Path):
    store = make_store(tmp_path)
    manifest = commit(store)
    store.open(manifest, "note.txt").write_text("damaged")
    commit(store, replace=True)
    assert store.open(find(store), "note.txt").read_text() == "hello"


# --- kills ----------------------------------------------------------------------------------------------

CUTTING_POINTS = (
    (os, "link"),
    (os, "replace"),
    (os, "fsync"),
    (os, "unlink"),
    (os, "open"),
    (shutil, "move"),
)
"""What a commit asks of the operating system; before and after each of them it is cut short."""


@contextlib.contextmanager
def at_points(before: Callable[[int], None] | None = None, after: Callable[[int], None] | None = None):
    """Call `before(n)` and `after(n)` around the n-th use of any cutting point."""
    number = 0

    def around(original: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal number
            number += 1
            own = number
            if before:
                before(own)
            try:
                return original(*args, **kwargs)
            finally:
                if after:
                    after(own)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in CUTTING_POINTS:
            patch.setattr(module, name, around(getattr(module, name)))
        yield


def number_of_points(folder: Path) -> int:
    seen: list[int] = []
    commit(make_store(folder), during=at_points(after=seen.append))
    assert len(seen) >= 10, "a commit of two files, run.json and a manifest has more steps than that"
    return len(seen)


def test_a_kill_at_any_point_of_a_commit_leaves_nothing_readable_or_all_of_it(tmp_path: Path):
    whole = make_store(tmp_path / "whole")
    commit(whole)
    expected = (folder_of(whole) / MANIFEST).read_bytes()
    visible = []
    for point in range(1, number_of_points(tmp_path / "count") + 1):
        for moment in ("before", "after"):
            store = make_store(tmp_path / f"{moment}{point}")

            def kill(number: int, wanted: int = point) -> None:
                if number == wanted:
                    os.kill(os.getpid(), signal.SIGKILL)

            process = FORK.Process(
                target=lambda store=store, moment=moment, kill=kill: commit(
                    store, during=at_points(**{moment: kill})
                )
            )
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            found = find(store)
            visible.append(found is not None)
            if found is not None:
                assert is_complete(store, found)
            again = commit(store)
            assert is_complete(store, again)
            assert (folder_of(store) / MANIFEST).read_bytes() == expected
    assert visible == sorted(visible), "once it is visible it stays so"
    assert visible[0] is False and visible[-1] is True, "some kills came before the manifest and some after"


def test_an_error_at_any_point_leaves_nothing_readable_or_all_of_it(tmp_path: Path):
    for point in range(1, number_of_points(tmp_path / "count") + 1):
        store = make_store(tmp_path / f"p{point}")

        def fail(number: int, wanted: int = point) -> None:
            if number == wanted:
                raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space left"):
            commit(store, during=at_points(before=fail))
        found = find(store)
        assert found is None or is_complete(store, found)
        assert is_complete(store, commit(store))
        assert not list((store.scratch / "work").iterdir()), "the working folder is removed"


def test_a_kill_at_random_moments_leaves_whole_versions_only(tmp_path: Path):
    """Twenty processes, each writing one version after the other until SIGKILL takes it."""
    store = make_store(tmp_path)
    chance = random.Random(1)

    def body() -> None:
        for number in range(10_000):
            commit(store, f"f{number}", text=f"text {number}")

    written = 0
    for _ in range(20):
        process = FORK.Process(target=body)
        process.start()
        time.sleep(chance.uniform(0.02, 0.25))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for version in store.versions("things", "2026-11-23"):
            assert is_complete(store, version)
            assert store.open(version, "note.txt").read_text() == f"text {version.fingerprint[1:]}"
            written = max(written, int(version.fingerprint[1:]))
    assert written >= 3, "no process lived long enough to write anything: the test tests nothing"


# --- several writers ------------------------------------------------------------------------------------


def test_two_writers_at_once_make_one_manifest(tmp_path: Path):
    store = make_store(tmp_path)
    for number in range(20):
        start, answers = FORK.Event(), FORK.Queue()

        def body(name: str, number: int = number, start: Any = start, answers: Any = answers) -> None:
            start.wait()
            manifest = commit(store, f"f{number}", text=name, facts={"by": name})
            answers.put((manifest.facts["by"], store.open(manifest, "note.txt").read_text()))

        processes = [FORK.Process(target=body, args=(name,)) for name in ("one", "other")]
        for process in processes:
            process.start()
        start.set()
        given = {answers.get(timeout=30) for _ in processes}
        for process in processes:
            process.join()
        (both,) = given
        assert both[0] == both[1], "a writer's manifest names its own bytes, never the other's"
        assert find(store, f"f{number}").facts == {"by": both[0]}


def test_a_lease_excludes_others_and_ends_with_its_process(tmp_path: Path):
    store = make_store(tmp_path)
    held = FORK.Event()

    def body() -> None:
        with store.lease("things", "k", "f"):
            held.set()
            time.sleep(60)

    process = FORK.Process(target=body)
    process.start()
    assert held.wait(20)
    with store.lease("things", "k", "another-one-is-free") as waited:
        assert not waited
    with (
        pytest.raises(Busy, match=r"things k f was still being made by another process after 0 s"),
        store.lease("things", "k", "f", wait_seconds=0.3),
    ):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with store.lease("things", "k", "f", wait_seconds=5) as waited:
        assert not waited


def test_a_lease_says_whether_it_had_to_wait(tmp_path: Path):
    store = make_store(tmp_path)
    held = FORK.Event()

    def body() -> None:
        with store.lease("things", "k", "f"):
            held.set()
            time.sleep(0.5)

    process = FORK.Process(target=body)
    process.start()
    assert held.wait(20)
    with store.lease("things", "k", "f", wait_seconds=20) as waited:
        assert waited
    process.join()


# --- a store that is no folder --------------------------------------------------------------------------


@pytest.fixture
def memory_store(tmp_path: Path):
    """fsspec's file system in memory: the code that s3:// takes, not the one of a local folder."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield Store("memory://bucket/store", tmp_path / "scratch")
    filesystem.store.clear()


def test_a_remote_store_gives_the_same_manifest_as_a_folder(memory_store: Store, tmp_path: Path):
    local = make_store(tmp_path)
    assert find(memory_store) is None
    assert memory_store.versions("things", "2026-11-23") == []
    remote = commit(memory_store)
    assert remote.to_bytes() == commit(local).to_bytes()
    assert find(memory_store) == remote
    assert memory_store.uri(remote).startswith("memory://")
    assert memory_store.read_uri(memory_store.uri(remote)) == remote
    assert memory_store.keys("things") == ["2026-11-23"]
    assert memory_store.versions("things", "2026-11-23") == [remote]
    assert memory_store.open(remote, "note.txt").read_text() == "hello"
    assert commit(memory_store, text="second") == remote, "the first writer stays"
    assert commit(memory_store, text="third", replace=True) == find(memory_store) != remote


def test_damage_of_a_remote_file_and_of_its_local_copy_is_detected(memory_store: Store):
    manifest = commit(memory_store)
    copy = memory_store.open(manifest, "note.txt")
    copy.write_text("damaged")
    assert memory_store.open(manifest, "note.txt").read_text() == "hello", "a damaged copy is fetched anew"
    remote = f"{memory_store.folder('things', '2026-11-23', 'f1')}/{manifest.files['note.txt'].path}"
    memory_store.fs.pipe_file(remote, b"jello")
    copy.unlink()
    with pytest.raises(Corrupt, match="the file was altered or damaged"):
        memory_store.open(manifest, "note.txt")
    memory_store.fs.rm(remote)
    with pytest.raises(Corrupt, match="is missing, though its manifest names it"):
        memory_store.open(manifest, "note.txt")
