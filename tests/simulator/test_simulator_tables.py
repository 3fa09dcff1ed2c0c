"""Files, schema, dirt and what happens to a folder that is there already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audiorec.errors import BadData, Busy, Unavailable
from audiorec.simulator import EVENT_TABLES, preset, tables, write_source_tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Generated

    from audiorec.simulator import SimulatorConfig

# Written out from source_tables.md, not taken from the code under test.
EXPECTED = {
    "users": [("user_id", "string"), ("country", "string"), ("birth_year", "int32")],
    "tracks": [("track_id", "string"), ("title", "string"), ("artist_id", "string"), ("genre", "string")],
    "podcasts": [
        ("podcast_id", "string"),
        ("title", "string"),
        ("description", "string"),
        ("publisher", "string"),
        ("category", "string"),
        ("language", "string"),
        ("published_on", "date32[day]"),
    ],
    "audiobooks": [
        ("audiobook_id", "string"),
        ("title", "string"),
        ("description", "string"),
        ("author", "string"),
        ("genre", "string"),
        ("language", "string"),
        ("published_on", "date32[day]"),
    ],
    "music_events": [
        ("user_id", "string"),
        ("track_id", "string"),
        ("event", "string"),
        ("occurred_at", "timestamp[us]"),
        ("seconds_played", "int32"),
    ],
    "podcast_events": [
        ("user_id", "string"),
        ("podcast_id", "string"),
        ("event", "string"),
        ("occurred_at", "timestamp[us]"),
        ("seconds_played", "int32"),
    ],
    "audiobook_events": [
        ("user_id", "string"),
        ("audiobook_id", "string"),
        ("event", "string"),
        ("occurred_at", "timestamp[us]"),
        ("seconds_played", "int32"),
    ],
}
ITEMS = {
    "music_events": ("tracks", "track_id"),
    "podcast_events": ("podcasts", "podcast_id"),
    "audiobook_events": ("audiobooks", "audiobook_id"),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def columns(schema: pa.Schema) -> list[tuple[str, str]]:
    return [(field.name, str(field.type)) for field in schema]


def rows(con: duckdb.DuckDBPyConnection, sql: str) -> int:
    found = con.execute(sql).fetchone()
    assert found is not None
    return int(found[0])


def test_schema_of_both_layouts(tiny: Generated, town: Generated) -> None:
    for table, expected in EXPECTED.items():
        flat = town.folder / f"{table}.parquet"
        assert columns(pq.read_schema(flat)) == expected
        parts = [flat] if table not in EVENT_TABLES else sorted((tiny.folder / table).glob("*/*.parquet"))
        assert len(parts) == (45 if table in EVENT_TABLES else 1)
        for part in parts:
            assert columns(pq.read_schema(part)) == expected, part
    assert {p.name for p in town.folder.iterdir()} == {f"{t}.parquet" for t in EXPECTED} | {"generated.json"}


def test_hive_has_a_folder_for_every_day(tiny: Generated) -> None:
    # 45 days to 2026-11-23 begin on 2026-10-10 (22 days of October and 23 of November).
    for table in EVENT_TABLES:
        names = sorted(p.name for p in (tiny.folder / table).iterdir())
        assert len(names) == 45
        assert (names[0], names[-1]) == ("date=2026-10-10", "date=2026-11-23")


def test_same_settings_same_bytes(tiny: Generated, tmp_path: Path) -> None:
    again = tmp_path / "again"
    write_source_tables(tiny.config, again)
    assert contents(again) == contents(tiny.folder)


def test_same_bytes_in_another_process(tiny: Generated, tmp_path: Path) -> None:
    """String hashing differs between processes; nothing may depend on the order of a set."""
    code = (
        "import sys; from audiorec.simulator import preset, write_source_tables;"
        "write_source_tables(preset('tiny'), sys.argv[1])"
    )
    folder = tmp_path / "other"
    subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        timeout=120,
    )
    assert contents(folder) == contents(tiny.folder)


def test_another_seed_gives_other_rows(tiny: Generated, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_source_tables(preset("tiny", seed=8), other)
    assert contents(other)["audiobooks.parquet"] != contents(tiny.folder)["audiobooks.parquet"]
    assert contents(other)["users.parquet"] != contents(tiny.folder)["users.parquet"]


def test_dirt_counts_match_a_reader_of_the_tables(tiny: Generated) -> None:
    """Each kind found again by its definition, in SQL of its own; what is left is exactly the clean rows."""
    con = tiny.connect()
    last, late = tiny.config.last_day, tiny.config.late_days
    for table, (catalogue, item) in ITEMS.items():
        con.execute(
            f"""CREATE OR REPLACE TEMP TABLE judged AS
            WITH once AS (SELECT DISTINCT * FROM {table})
            SELECT *, CASE
                WHEN user_id IS NULL THEN 'null_users'
                WHEN {item} IS NULL THEN 'null_items'
                WHEN user_id NOT IN (SELECT user_id FROM users) THEN 'unknown_users'
                WHEN {item} NOT IN (SELECT {item} FROM {catalogue}) THEN 'unknown_items'
                WHEN occurred_at < TIMESTAMP '2000-01-01' THEN 'before_2000'
                WHEN occurred_at::DATE > DATE '{last}' THEN 'after_last_day'
                WHEN seconds_played < 0 THEN 'negative_seconds'
                WHEN seconds_played > 86400 THEN 'absurd_seconds'
                WHEN lower(event) = 'stream' AND seconds_played < 30 THEN 'short_streams'
                WHEN folder > occurred_at::DATE + {late} THEN 'too_late_rows'
                ELSE 'clean' END AS kind
            FROM once"""
        )
        found = dict(con.execute("SELECT kind, count(*) FROM judged GROUP BY 1").fetchall())
        clean = found.pop("clean")
        good = "FROM judged WHERE kind = 'clean' AND"
        found["duplicate_rows"] = tiny.summary.rows[table] - rows(con, "SELECT count(*) FROM judged")
        found["mixed_case_events"] = rows(con, f"SELECT count(*) {good} event <> lower(event)")
        found["late_rows"] = rows(con, f"SELECT count(*) {good} folder > occurred_at::DATE")
        assert found == tiny.summary.dirt[table], table
        assert all(count > 0 for count in found.values()), table
        assert clean == tiny.summary.clean_rows[table]
        assert rows(con, f"SELECT count(*) FROM {table}") == tiny.summary.rows[table]
        assert rows(con, f"SELECT count(*) {good} folder < occurred_at::DATE") == 0
        # A key that two clean rows share would let a reader drop one of them as a duplicate.
        key = f"user_id, {item}, lower(event), occurred_at"
        assert rows(con, f"SELECT count(*) FROM (SELECT DISTINCT {key} {good} true)") == clean


def test_catalogue_dirt_counts_match(tiny: Generated) -> None:
    con = tiny.connect()
    for table, key in (
        ("users", "user_id"),
        ("tracks", "track_id"),
        ("podcasts", "podcast_id"),
        ("audiobooks", "audiobook_id"),
    ):
        dirt = tiny.summary.dirt[table]
        total, different = con.execute(f"SELECT count(*), count(DISTINCT {key}) FROM {table}").fetchone() or (
            0,
            0,
        )
        assert (total, different) == (tiny.summary.rows[table], tiny.summary.clean_rows[table])
        assert dirt["duplicate_ids"] == total - different > 0
        # Without the repeated rows (of a catalogue: their titles end in ' (2)').
        if table == "users":
            con.execute("CREATE OR REPLACE TEMP TABLE once AS SELECT DISTINCT * FROM users")
            assert (
                rows(con, "SELECT count(*) FROM once WHERE country <> upper(country)")
                == dirt["lower_case_countries"]
            )
            bad = "birth_year < 1890 OR birth_year > 2026"
            assert rows(con, f"SELECT count(*) FROM once WHERE {bad}") == dirt["bad_birth_years"]
            continue
        con.execute(
            f"""CREATE OR REPLACE TEMP TABLE once AS SELECT * FROM {table}
            WHERE title IS NULL OR NOT suffix(title, ' (2)')"""
        )
        assert rows(con, "SELECT count(*) FROM once") == different
        nulls = {"null_titles": "title", "null_genres": "category" if table == "podcasts" else "genre"}
        if table != "tracks":
            nulls |= {"null_descriptions": "description", "null_published_on": "published_on"}
            mixed = rows(con, "SELECT count(*) FROM once WHERE language <> lower(language)")
            assert mixed == dirt["mixed_case_languages"] > 0
        for kind, column in nulls.items():
            assert rows(con, f"SELECT count(*) FROM once WHERE {column} IS NULL") == dirt[kind] > 0


def test_without_dirt_all_keys_are_known(town: Generated) -> None:
    con = town.connect()
    assert not any(count for kinds in town.summary.dirt.values() for count in kinds.values())
    for table, (catalogue, item) in ITEMS.items():
        orphans = (
            f"{item} NOT IN (SELECT {item} FROM {catalogue}) OR user_id NOT IN (SELECT user_id FROM users)"
        )
        assert rows(con, f"SELECT count(*) FROM {table} WHERE {orphans}") == 0
        assert rows(con, f"SELECT count(*) FROM {table}") == town.summary.clean_rows[table] > 0
        outside = (
            f"occurred_at::DATE NOT BETWEEN DATE '{town.config.first_day}' AND DATE '{town.config.last_day}'"
        )
        assert rows(con, f"SELECT count(*) FROM {table} WHERE {outside}") == 0


def test_small_chunks_bound_memory_and_keep_every_user(
    tmp_path: Path, generate: Callable[[SimulatorConfig, Path], Generated]
) -> None:
    config = preset("tiny", chunk_users=40)  # 150 users: 40 + 40 + 40 + 30
    made = generate(config, tmp_path / "chunks")
    parts = sorted(p.name for p in (made.folder / "music_events" / "date=2026-11-23").iterdir())
    assert parts == [f"part-{i:04d}.parquet" for i in range(4)]
    con = made.connect()
    assert rows(con, "SELECT count(DISTINCT user_id) FROM users") == 150
    assert rows(con, "SELECT count(*) FROM music_events") == made.summary.rows["music_events"]
    # Users of the last chunk listen too, under ids of their own.
    assert rows(con, "SELECT count(*) FROM music_events WHERE user_id >= 'u0120' AND user_id LIKE 'u%'") > 0


def test_equal_settings_are_reused(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    first = write_source_tables(preset("tiny"), folder)
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    second = write_source_tables(preset("tiny"), folder)
    assert (first.reused, second.reused) == (False, True)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == stamps
    assert second.model_dump(exclude={"reused", "seconds"}) == first.model_dump(exclude={"reused", "seconds"})


def test_other_settings_replace_our_own_folder(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    write_source_tables(preset("tiny"), folder)
    assert not write_source_tables(preset("tiny", layout="flat"), folder).reused
    assert not (folder / "music_events").exists()
    assert (folder / "music_events.parquet").is_file()
    assert json.loads((folder / "generated.json").read_text())["config"]["layout"] == "flat"


def test_a_lost_file_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    write_source_tables(preset("tiny"), folder)
    before = contents(folder)
    (folder / "users.parquet").unlink()
    assert not write_source_tables(preset("tiny"), folder).reused
    assert contents(folder) == before


def test_an_older_generators_folder_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tables"
    write_source_tables(preset("tiny"), folder)
    monkeypatch.setattr(tables, "code_hash", lambda: "other code")
    assert not write_source_tables(preset("tiny"), folder).reused


@pytest.mark.parametrize("spoil", ["foreign", "added", "changed", "marker", "file"])
def test_what_is_not_ours_is_left_alone(tmp_path: Path, spoil: str) -> None:
    folder = tmp_path / "tables"
    if spoil == "file":
        folder.write_text("a file")
    elif spoil == "foreign":
        folder.mkdir()
        (folder / "users.parquet").write_bytes(b"somebody's own users")
    else:
        write_source_tables(preset("tiny"), folder)
        if spoil == "added":
            (folder / "notes.txt").write_text("mine")
        elif spoil == "changed":
            (folder / "users.parquet").write_bytes(b"edited by hand")
        else:
            (folder / "generated.json").write_text("{}")
    before = folder.read_text() if spoil == "file" else contents(folder)
    for config in (preset("tiny"), preset("tiny", seed=9)):
        with pytest.raises(BadData, match="give another folder") as error:
            write_source_tables(config, folder)
        assert str(folder) in str(error.value)
    assert (folder.read_text() if spoil == "file" else contents(folder)) == before


def test_killed_midway_leaves_the_old_folder_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tables"
    write_source_tables(preset("tiny"), folder)
    before = contents(folder)

    def killed(data: pa.Table, path: Path) -> None:
        path.write_bytes(b"half a fi")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tables, "_write_parquet", killed)
        with pytest.raises(KeyboardInterrupt):
            write_source_tables(preset("tiny", seed=9), folder)
        assert contents(folder) == before
        with pytest.raises(KeyboardInterrupt):
            write_source_tables(preset("tiny"), tmp_path / "new")
        assert not (tmp_path / "new").exists()
    # What a kill -9 leaves beside the folder does not disturb the next run, and goes.
    (tmp_path / ".new.partial" / "x").mkdir(parents=True)
    write_source_tables(preset("tiny"), tmp_path / "new")
    assert contents(tmp_path / "new") == before
    assert not (tmp_path / ".new.partial").exists()


def test_the_old_folder_survives_a_failed_or_killed_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tables"
    write_source_tables(preset("tiny"), folder)
    before = contents(folder)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(Unavailable, match="No space left on device; check the free space"):
            write_source_tables(preset("tiny", seed=9), folder)
    assert contents(folder) == before
    folder.rename(tmp_path / ".tables.old")  # as a kill -9 between the two renames leaves it
    assert write_source_tables(preset("tiny"), folder).reused
    assert contents(folder) == before


def test_a_folder_being_written_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    monkeypatch.setattr(tables, "LOCK_SECONDS", 0.1)
    with (
        filelock.FileLock(tmp_path / ".tables.lock"),
        pytest.raises(Busy, match="another process has been writing"),
    ):
        write_source_tables(preset("tiny"), tmp_path / "tables")
