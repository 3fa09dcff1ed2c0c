"""The contract of the source tables: layouts, types, and the words of what is refused."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import duckdb
import pytest
from small_source import (
    AS_OF,
    COLUMNS,
    clean_tables,
    settings_for,
    write_duckdb,
    write_flat,
    write_hive,
    write_views,
)

from audiorec.digests import source_digests
from audiorec.errors import BadData, BadSettings
from audiorec.source import open_source, ready


def opened(uri: Path, tmp_path: Path):
    return open_source(settings_for(uri, tmp_path / "work"))


def count(source, table: str) -> int:
    return source.connection.execute(f"SELECT COUNT(*) FROM source.{table}").fetchall()[0][0]


def test_every_layout_shows_the_same_rows(tmp_path: Path):
    connection = clean_tables()
    flat = write_flat(connection, tmp_path / "flat")
    several = tmp_path / "several"
    write_flat(connection, several, [name for name in COLUMNS if name != "music_events"])
    (several / "music_events").mkdir()
    for part in (0, 1):
        connection.execute(
            f"COPY (SELECT * FROM music_events WHERE MINUTE(occurred_at) % 20 = {10 * part}) "
            f"TO '{several}/music_events/part-{part}.parquet' (FORMAT parquet)"
        )
    layouts = [
        flat,
        several,
        write_hive(connection, tmp_path / "hive"),
        write_duckdb(connection, tmp_path / "tables.duckdb"),
        write_views(flat, tmp_path / "views.sql"),
    ]
    digests = [source_digests(settings_for(layout, tmp_path / "work"), AS_OF) for layout in layouts]
    assert digests == [digests[0]] * len(layouts)
    assert [count(opened(layout, tmp_path), "music_events") for layout in layouts] == [1_800] * len(layouts)


def test_only_hive_folders_say_when_a_row_arrived(tmp_path: Path):
    connection = clean_tables()
    for layout, expected in (
        (write_flat(connection, tmp_path / "flat"), [(None,)]),
        (write_hive(connection, tmp_path / "hive"), [(date(2026, 1, 12),)]),
    ):
        found = (
            opened(layout, tmp_path)
            .connection.execute("SELECT MIN(arrived_on) FROM source.podcast_events")
            .fetchall()
        )
        assert found == expected


def test_views_may_rename_and_attach_another_database(tmp_path: Path):
    """What somebody with other names writes: ATTACH, USE, one view a table."""
    connection = clean_tables()
    connection.execute("ALTER TABLE users RENAME COLUMN country TO land")
    database = write_duckdb(connection, tmp_path / "theirs.duckdb")
    views = tmp_path / "views.sql"
    views.write_text(
        f"ATTACH '{database}' AS theirs (READ_ONLY);\n"
        + "CREATE VIEW users AS SELECT user_id, land AS country, birth_year FROM theirs.users;\n"
        + "".join(
            f"CREATE VIEW {name} AS SELECT * FROM theirs.{name};\n" for name in COLUMNS if name != "users"
        )
        + "USE theirs;\n"
    )
    source = opened(views, tmp_path)
    assert source.connection.execute("SELECT DISTINCT country FROM source.users ORDER BY 1").fetchall() == [
        ("DE",),
        ("SE",),
        ("US",),
    ]


def test_a_duckdb_file_is_left_as_it_was(tmp_path: Path):
    database = write_duckdb(clean_tables(), tmp_path / "tables.duckdb")
    before = database.read_bytes()
    source = opened(database, tmp_path)
    with pytest.raises(duckdb.Error):
        source.connection.execute("DELETE FROM source_file.main.users")
    source.connection.close()
    assert database.read_bytes() == before


def test_extra_columns_and_other_cases_of_names_are_fine(tmp_path: Path):
    connection = clean_tables()
    connection.execute("ALTER TABLE users ADD COLUMN shoe_size INTEGER")
    connection.execute('ALTER TABLE users RENAME COLUMN country TO "Country"')
    assert count(opened(write_flat(connection, tmp_path / "source"), tmp_path), "users") == 60


@pytest.mark.parametrize("kind", ["BIGINT", "UUID"])
def test_ids_may_be_numbers_or_uuids(kind: str, tmp_path: Path):
    connection = clean_tables()
    value = "0" if kind == "BIGINT" else "'00000000-0000-0000-0000-000000000000'"
    connection.execute(f"ALTER TABLE users ALTER user_id TYPE {kind} USING {value}::{kind}")
    source = opened(write_flat(connection, tmp_path / "source"), tmp_path)
    assert source.connection.execute("SELECT TYPEOF(user_id) FROM source.users LIMIT 1").fetchall() == [
        ("VARCHAR",)
    ]


@pytest.mark.parametrize("table", COLUMNS)
def test_each_missing_table_is_named(table: str, tmp_path: Path):
    folder = write_flat(clean_tables(), tmp_path / "source")
    (folder / f"{table}.parquet").unlink()
    with pytest.raises(BadData, match=rf"lacks the table\(s\) {table};"):
        opened(folder, tmp_path)


@pytest.mark.parametrize(
    ("table", "column"), [(t, c.split()[0]) for t, columns in COLUMNS.items() for c in columns.split(", ")]
)
def test_each_missing_or_retyped_column_is_named(table: str, column: str, tmp_path: Path):
    connection = clean_tables()
    connection.execute(f"ALTER TABLE {table} ALTER {column} TYPE BOOLEAN USING true")
    folder = write_flat(connection, tmp_path / "source")
    with pytest.raises(BadData, match=rf"{table}, column {column}: found type BOOLEAN, expected"):
        opened(folder, tmp_path)
    connection.execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO something_else")
    write_flat(connection, folder, [table])
    with pytest.raises(BadData, match=rf"{table} in .* lacks column\(s\) {column}; found .*something_else"):
        opened(folder, tmp_path)


def test_a_file_damaged_behind_its_head_is_named(tmp_path: Path):
    """The footer, which tells columns and types, is whole: only reading the rows shows the damage."""
    folder = write_flat(clean_tables(), tmp_path / "source")
    target = folder / "podcast_events.parquet"
    data = bytearray(target.read_bytes())
    data[4:600] = bytes(596)
    target.write_bytes(data)
    settings = settings_for(folder, tmp_path / "work")
    open_source(settings)
    with pytest.raises(
        BadData, match=r"podcast_events .* cannot be read to its end.*Replace the damaged file"
    ):
        source_digests(settings, AS_OF)


def test_a_place_of_no_known_kind_is_a_wrong_setting(tmp_path: Path):
    with pytest.raises(BadSettings, match=r"source\.uri is .*nowhere.*does not exist"):
        opened(tmp_path / "nowhere", tmp_path)
    text = tmp_path / "tables.txt"
    text.write_text("")
    with pytest.raises(BadSettings, match=r"expected a folder of parquet, a file ending in \.duckdb"):
        opened(text, tmp_path)
    views = tmp_path / "views.sql"
    views.write_text("CREATE VIEW users AS SELECT broken")
    with pytest.raises(BadSettings, match=r"views\.sql: the views could not be made"):
        opened(views, tmp_path)


def test_ready_names_the_tables_whose_day_has_not_come(tmp_path: Path):
    connection = clean_tables()
    connection.execute(f"DELETE FROM podcast_events WHERE CAST(occurred_at AS DATE) = DATE '{AS_OF}'")
    settings = settings_for(write_flat(connection, tmp_path / "source"), tmp_path / "work")
    assert ready(settings, AS_OF) == ["podcast_events"]
    assert ready(settings, date(2026, 2, 9)) == []


@pytest.mark.parametrize("layout", ["flat", "hive", "duckdb", "views"])
def test_podcasts_as_the_target_swap_the_two_roles(layout: str, tmp_path: Path):
    connection = clean_tables()
    uri = {
        "flat": lambda: write_flat(connection, tmp_path / "flat"),
        "hive": lambda: write_hive(connection, tmp_path / "hive"),
        "duckdb": lambda: write_duckdb(connection, tmp_path / "tables.duckdb"),
        "views": lambda: write_views(write_flat(connection, tmp_path / "flat"), tmp_path / "views.sql"),
    }[layout]()

    def settings(target: str):
        return settings_for(uri, tmp_path / "work", source={"target": target})

    plain, swapped = open_source(settings("audiobook")), open_source(settings("podcast"))
    for one, other, renamed in (
        ("audiobooks", "podcasts", "podcast_id AS audiobook_id, publisher AS author, category AS genre"),
        ("podcasts", "audiobooks", "audiobook_id AS podcast_id, author AS publisher, genre AS category"),
        ("audiobook_events", "podcast_events", "podcast_id AS audiobook_id"),
        ("podcast_events", "audiobook_events", "audiobook_id AS podcast_id"),
    ):
        expected = plain.connection.execute(f"SELECT * RENAME ({renamed}) FROM source.{other} ORDER BY ALL")
        found = swapped.connection.execute(f"SELECT * FROM source.{one} ORDER BY ALL")
        names = [column[0] for column in found.description]
        assert sorted(names) == sorted(column[0] for column in expected.description)
        place = [[column[0] for column in expected.description].index(name) for name in names]
        assert sorted(map(str, found.fetchall())) == sorted(
            str(tuple(row[i] for i in place)) for row in expected.fetchall()
        )
    assert ("audiobook_events" in swapped.foldered) == (layout == "hive")
    digests = [source_digests(settings(target), AS_OF) for target in ("audiobook", "podcast")]
    assert digests[0] != digests[1]
