"""Extract on small source tables: what counts, what is set aside, what a day costs, what never leaks."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from small_source import (
    AS_OF,
    EVENT_TABLES,
    clean_tables,
    empty_tables,
    settings_for,
    write_duckdb,
    write_flat,
    write_hive,
    write_views,
)

from audiorec.errors import BadData
from audiorec.runner import run_task
from audiorec.settings import Settings
from audiorec.store import Manifest, Store
from audiorec.taskio import INTERACTIONS

ONE_DAY = timedelta(days=1)


def manifest_of(settings: Settings, result: dict) -> Manifest:
    return Store(settings.store.uri, settings.store.scratch).read_uri(result["manifest"])


def table(settings: Settings, result: dict, name: str) -> list[tuple]:
    """Rows of one output of extract."""
    store = Store(settings.store.uri, settings.store.scratch)
    path = store.open(manifest_of(settings, result), f"{name}.parquet")
    return duckdb.sql(f"FROM '{path}'").fetchall()


def partitions(settings: Settings, result: dict) -> dict[str, Manifest]:
    store = Store(settings.store.uri, settings.store.scratch)
    found = {}
    for name, fingerprint in manifest_of(settings, result).inputs.items():
        dataset, _, day = name.partition("/")
        if dataset == INTERACTIONS:
            manifest = store.find(dataset, day, fingerprint)
            assert manifest is not None
            found[day] = manifest
    return found


def day_rows(settings: Settings, result: dict, day: str, file: str = "interactions") -> list[tuple]:
    store = Store(settings.store.uri, settings.store.scratch)
    path = store.open(partitions(settings, result)[day], f"{file}.parquet")
    return duckdb.sql(f"FROM '{path}'").fetchall()


def extract(
    connection: duckdb.DuckDBPyConnection, work: Path, as_of: date = AS_OF, **groups
) -> tuple[Settings, dict]:
    settings = settings_for(write_flat(connection, work / "source"), work, **groups)
    return settings, run_task("extract", settings, as_of)


def with_titles() -> duckdb.DuckDBPyConnection:
    """Two users and two titles of each kind, no events."""
    connection = empty_tables()
    connection.execute("INSERT INTO users VALUES ('u1', 'SE', 1980), ('u2', NULL, NULL)")
    connection.execute("INSERT INTO tracks VALUES ('t1', 'One', 'a1', 'pop'), ('t2', 'Two', NULL, NULL)")
    connection.execute("INSERT INTO podcasts (podcast_id, title) VALUES ('p1', 'One'), ('p2', 'Two')")
    connection.execute("INSERT INTO audiobooks (audiobook_id, title) VALUES ('b1', 'One'), ('b2', 'Two')")
    return connection


# --- typing ----------------------------------------------------------------------------------------------


def test_a_row_belongs_to_the_utc_day_of_its_time_whatever_zone_it_was_written_in(tmp_path: Path):
    """01:30 on the 10th in Stockholm (UTC+1) is 00:30 UTC of the 10th; 00:30 is 23:30 of the 9th."""
    connection = with_titles()
    connection.execute("SET TimeZone = 'Europe/Stockholm'")
    connection.execute("DROP TABLE audiobook_events")
    connection.execute(
        """
        CREATE TABLE audiobook_events AS
        SELECT 'u1' AS user_id, 'b1' AS audiobook_id, 'stream' AS event,
            stamp AS occurred_at, 60 AS seconds_played
        FROM (VALUES (TIMESTAMPTZ '2026-02-10 01:30:00+01'),
            (TIMESTAMPTZ '2026-02-10 00:30:00+01')) AS t (stamp)
        """
    )
    settings, result = extract(connection, tmp_path)
    stamps = {
        day: [str(row[4]) for row in day_rows(settings, result, day)] for day in partitions(settings, result)
    }
    assert stamps == {"2026-02-09": ["2026-02-09 23:30:00"], "2026-02-10": ["2026-02-10 00:30:00"]}


def test_ids_and_events_are_trimmed_and_numbers_read_from_text(tmp_path: Path):
    connection = with_titles()
    connection.execute("ALTER TABLE audiobook_events ALTER seconds_played TYPE VARCHAR")
    connection.execute(
        """
        INSERT INTO audiobook_events VALUES
            (' u1 ', 'b1', ' Stream', TIMESTAMP '2026-02-10 10:00:00.75', '61'),
            ('u1', 'b2', 'FOLLOW', TIMESTAMP '2026-02-10 10:00:01', NULL),
            ('u1', 'b2', 'stream', TIMESTAMP '2026-02-10 10:00:02', 'long')
        """
    )
    settings, result = extract(connection, tmp_path)
    rows = [(r[1], r[2], r[3], str(r[4]), r[5]) for r in day_rows(settings, result, "2026-02-10")]
    assert rows == [
        ("u1", "b1", "stream", "2026-02-10 10:00:00", 61),
        ("u1", "b2", "follow", "2026-02-10 10:00:01", 0),
    ]
    assert [(r[0], r[1], r[5]) for r in day_rows(settings, result, "2026-02-10", "rejects")] == [
        ("audiobook_events", "unreadable_seconds", 1)
    ]


def test_each_fault_has_its_reason_and_nothing_else_counts(tmp_path: Path):
    connection = with_titles()
    connection.execute(
        """
        INSERT INTO audiobook_events VALUES
            ('u1', 'b1', 'stream', TIMESTAMP '2026-02-10 09:00:00', 30),   -- counts: just long enough
            ('u1', 'b1', 'stream', TIMESTAMP '2026-02-10 09:01:00', 29),
            ('u1', 'b1', 'stream', TIMESTAMP '2026-02-10 09:02:00', -1),
            ('u1', 'b1', 'stream', TIMESTAMP '2026-02-10 09:03:00', 86401),
            ('u1', 'b1', 'stream', TIMESTAMP '2026-02-10 09:04:00', NULL),
            (NULL, 'b1', 'stream', TIMESTAMP '2026-02-10 09:05:00', 60),
            ('', 'b1', 'stream', TIMESTAMP '2026-02-10 09:06:00', 60),
            ('u1', NULL, 'stream', TIMESTAMP '2026-02-10 09:07:00', 60),
            ('u1', 'b1', NULL, TIMESTAMP '2026-02-10 09:08:00', 60),
            ('u1', 'b1', 'purchase', TIMESTAMP '2026-02-10 09:09:00', 60),
            ('u1', 'b1', 'stream', TIMESTAMP '1999-12-31 23:59:59', 60),
            ('u1', 'b1', 'stream', NULL, 60),
            ('u9', 'b1', 'stream', TIMESTAMP '2026-02-10 09:10:00', 60),   -- counts: unknown users do
            ('u1', 'b9', 'stream', TIMESTAMP '2026-02-10 09:11:00', 60);   -- kept, told as unknown
        INSERT INTO music_events VALUES ('u1', 't1', 'follow', TIMESTAMP '2026-02-10 09:00:00', 60);
        INSERT INTO podcast_events VALUES ('u1', 'p1', 'intent_to_pay', TIMESTAMP '2026-02-10 09:00:00', 60);
        """
    )
    settings, result = extract(connection, tmp_path)
    assert manifest_of(settings, result).facts["rejects"] == {
        "audiobook_events: absurd_seconds": 1,
        "audiobook_events: before_2000": 1,
        "audiobook_events: negative_seconds": 1,
        "audiobook_events: null_event": 1,
        "audiobook_events: null_item_id": 1,
        "audiobook_events: null_seconds": 1,
        "audiobook_events: null_time": 1,
        "audiobook_events: null_user_id": 2,
        "audiobook_events: too_short": 1,
        "audiobook_events: unknown_event": 1,
        "audiobook_events: unknown_item_id": 1,
        "audiobook_events: unknown_user_id": 1,
        "music_events: unknown_event": 1,
        "podcast_events: unknown_event": 1,
    }
    assert result["counts"]["interactions"] == 3


def test_the_same_event_twice_counts_once_with_its_longest_play(tmp_path: Path):
    connection = with_titles()
    connection.execute(
        """
        INSERT INTO audiobook_events VALUES
            ('u1', 'b1', 'stream', TIMESTAMP '2026-02-10 09:00:00.1', 60),
            ('u1', 'b1', 'stream', TIMESTAMP '2026-02-10 09:00:00.9', 90),   -- same second
            ('u1', 'b1', 'follow', TIMESTAMP '2026-02-10 09:00:00', 0),      -- another event
            ('u1', 'b1', 'stream', TIMESTAMP '2026-02-10 09:00:01', 60)      -- another second
        """
    )
    settings, result = extract(connection, tmp_path)
    assert [(r[3], r[5]) for r in day_rows(settings, result, "2026-02-10")] == [
        ("follow", 0),
        ("stream", 90),
        ("stream", 60),
    ]
    assert manifest_of(settings, result).facts["rejects"] == {"audiobook_events: duplicate": 1}


def test_a_user_counts_for_the_earliest_events_up_to_the_daily_cap(tmp_path: Path):
    """Cap 3 a user, day and table: of five streams the first three stay; other users and tables are whole."""
    connection = with_titles()
    connection.execute(
        """
        INSERT INTO audiobook_events
        SELECT 'u1', 'b1', 'stream', TIMESTAMP '2026-02-10 09:00:00' + INTERVAL 1 MINUTE * i, 60
        FROM RANGE(5) t(i);
        INSERT INTO audiobook_events VALUES ('u2', 'b1', 'stream', TIMESTAMP '2026-02-10 23:00:00', 60);
        INSERT INTO audiobook_events VALUES ('u1', 'b1', 'stream', TIMESTAMP '2026-02-09 23:00:00', 60);
        INSERT INTO podcast_events VALUES ('u1', 'p1', 'stream', TIMESTAMP '2026-02-10 23:00:00', 60);
        """
    )
    settings, result = extract(connection, tmp_path, extract={"max_events_per_user_day": 3})
    assert [
        str(r[4])[11:]
        for r in day_rows(settings, result, "2026-02-10")
        if r[1] == "u1" and r[0] == "audiobook"
    ] == [
        "09:00:00",
        "09:01:00",
        "09:02:00",
    ]
    assert result["counts"]["interactions"] == 6
    assert manifest_of(settings, result).facts["rejects"] == {"audiobook_events: over_daily_cap": 2}


def test_first_dates_are_over_all_history_and_count_only_what_counts(tmp_path: Path):
    """The window begins 2026-01-12; b1 was first streamed in 2020, b2 only previewed."""
    connection = with_titles()
    connection.execute(
        """
        INSERT INTO audiobook_events VALUES
            ('u1', 'b1', 'stream', TIMESTAMP '2020-03-01 09:00:00', 60),
            ('u1', 'b1', 'stream', TIMESTAMP '2026-02-10 09:00:00', 60),
            ('u1', 'b2', 'preview', TIMESTAMP '2019-05-05 09:00:00', 5),
            ('u1', 'b2', 'stream', TIMESTAMP '2026-02-09 09:00:00', 60),
            ('u2', 'b1', 'stream', TIMESTAMP '2018-01-01 09:00:00', 10);
        INSERT INTO podcast_events VALUES ('u2', 'p1', 'stream', TIMESTAMP '2017-01-01 09:00:00', 60);
        """
    )
    settings, result = extract(connection, tmp_path)
    assert table(settings, result, "first_streamed") == [
        ("audiobook", "u1", "b1", date(2020, 3, 1)),
        ("audiobook", "u1", "b2", date(2026, 2, 9)),
        ("podcast", "u2", "p1", date(2017, 1, 1)),
    ]
    assert table(settings, result, "first_signal") == [("u1", date(2019, 5, 5))]
    assert sorted(partitions(settings, result)) == ["2026-02-09", "2026-02-10"]


# --- layouts ---------------------------------------------------------------------------------------------


def test_every_layout_gives_the_same_bytes(tmp_path: Path):
    connection = clean_tables()
    flat = write_flat(connection, tmp_path / "flat")
    sources = [
        flat,
        write_hive(connection, tmp_path / "hive"),
        write_duckdb(connection, tmp_path / "tables.duckdb"),
        write_views(flat, tmp_path / "views.sql"),
    ]
    manifests = []
    for number, source in enumerate(sources):
        settings = settings_for(source, tmp_path / str(number))
        manifests.append(manifest_of(settings, run_task("extract", settings, AS_OF)).to_bytes())
    assert manifests == [manifests[0]] * 4


def test_a_late_row_is_read_from_its_folder_and_one_that_is_too_late_is_set_aside(tmp_path: Path):
    """late_days is 3: of events of the 5th, folders 5 to 8 count, 9 does not, nor does one of the 4th."""
    connection = with_titles()
    connection.execute("ALTER TABLE audiobook_events ADD COLUMN arrived_on DATE")
    connection.execute(
        """
        INSERT INTO audiobook_events
        SELECT 'u1', 'b1', 'stream', TIMESTAMP '2026-02-05 12:00:00' + INTERVAL 1 HOUR * (day - 4), 60,
            MAKE_DATE(2026, 2, day)
        FROM (VALUES (4), (5), (8), (9)) AS t (day)
        """
    )
    settings = settings_for(write_hive(connection, tmp_path / "source"), tmp_path)
    result = run_task("extract", settings, AS_OF)
    assert [str(r[4])[11:13] for r in day_rows(settings, result, "2026-02-05")] == ["13", "16"]
    assert manifest_of(settings, result).facts["rejects"] == {
        "audiobook_events: arrived_before_it_happened": 1,
        "audiobook_events: too_late": 1,
    }


# --- what a change costs, what never leaks ---------------------------------------------------------------


def test_the_second_day_extracts_one_new_partition(tmp_path: Path):
    settings, first = extract(clean_tables(), tmp_path, AS_OF - ONE_DAY)
    second = run_task("extract", settings, AS_OF)
    assert second["notes"][-1] == "1 day partition(s) written, 29 already there"
    before, after = partitions(settings, first), partitions(settings, second)
    assert set(after) - set(before) == {"2026-02-10"}
    for day in set(before) & set(after):
        assert before[day].fingerprint == after[day].fingerprint


def test_a_late_row_rebuilds_only_its_day(tmp_path: Path):
    connection = clean_tables()
    settings, first = extract(connection, tmp_path)
    connection.execute(
        "INSERT INTO music_events VALUES ('u1', 't1', 'stream', TIMESTAMP '2026-02-03 23:59:59', 77)"
    )
    write_flat(connection, tmp_path / "source")
    second = run_task("extract", settings, AS_OF)
    assert second["notes"][-1].startswith("1 day partition(s) written")
    before, after = partitions(settings, first), partitions(settings, second)
    assert [day for day in after if after[day].fingerprint != before[day].fingerprint] == ["2026-02-03"]


def test_the_order_and_files_of_the_rows_change_nothing(tmp_path: Path):
    connection = clean_tables()
    settings, first = extract(connection, tmp_path)
    for name in EVENT_TABLES:
        connection.execute(
            f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM {name} ORDER BY HASH(user_id, occurred_at)"
        )
    write_flat(connection, tmp_path / "source")
    again = run_task("extract", settings, AS_OF)
    assert (again["state"], again["fingerprint"]) == ("up_to_date", first["fingerprint"])


def test_two_runs_from_nothing_write_equal_bytes(tmp_path: Path):
    manifests = []
    for name in ("one", "two"):
        settings, result = extract(clean_tables(), tmp_path / name)
        manifests.append(
            [manifest_of(settings, result).to_bytes()]
            + [m.to_bytes() for _, m in sorted(partitions(settings, result).items())]
        )
    assert manifests[0] == manifests[1]


def test_a_days_bytes_do_not_depend_on_the_days_written_with_it(tmp_path: Path):
    """Nor on NULLs in these: from statistics DuckDB would tell that a column has none, and write it in another way."""
    connection = clean_tables()
    for name in EVENT_TABLES:
        connection.execute(
            f"INSERT INTO {name} SELECT NULL, NULL, event, occurred_at, NULL FROM {name} "
            "WHERE CAST(occurred_at AS DATE) = DATE '2026-02-03' LIMIT 5"
        )
    settings, result = extract(connection, tmp_path / "together")
    together = {day: manifest.to_bytes() for day, manifest in partitions(settings, result).items()}
    alone, _ = extract(connection, tmp_path / "alone", AS_OF - ONE_DAY)
    second = run_task("extract", alone, AS_OF)
    assert second["notes"][-1].startswith("1 day partition(s) written")
    assert {day: manifest.to_bytes() for day, manifest in partitions(alone, second).items()} == together


LATER = {
    "events of later days": """
        INSERT INTO music_events VALUES ('u1', 't1', 'stream', TIMESTAMP '2026-02-11 00:00:00', 60);
        INSERT INTO podcast_events VALUES ('u1', 'p1', 'stream', TIMESTAMP '2026-02-12 10:00:00', 60);
        INSERT INTO audiobook_events VALUES ('u1', 'b1', 'stream', TIMESTAMP '2031-01-01 10:00:00', 60)
    """,
    "titles published later": """
        INSERT INTO audiobooks (audiobook_id, title, published_on) VALUES ('b99', 'Later', DATE '2026-02-11');
        INSERT INTO podcasts (podcast_id, title, published_on) VALUES ('p99', 'Later', DATE '2026-02-11')
    """,
    "titles and users of later that lack everything": """
        INSERT INTO audiobooks (audiobook_id, published_on) VALUES ('b99', DATE '2026-02-11');
        INSERT INTO podcasts (podcast_id, published_on) VALUES ('p99', DATE '2026-02-11');
        INSERT INTO users (user_id, valid_from) VALUES ('u99', TIMESTAMP '2026-02-11');
        INSERT INTO tracks (track_id, valid_from) VALUES ('t99', TIMESTAMP '2026-02-11')
    """,
    "rows valid from later": """
        INSERT INTO audiobooks SELECT * REPLACE ('Renamed' AS title, TIMESTAMP '2026-02-11' AS valid_from)
            FROM audiobooks WHERE audiobook_id = 'b1';
        INSERT INTO users VALUES ('u99', 'SE', 1990, TIMESTAMP '2026-02-11 00:00:00');
        INSERT INTO tracks VALUES ('t1', 'Renamed', 'a9', 'rock', TIMESTAMP '2026-03-01')
    """,
}


@pytest.mark.parametrize("later", LATER)
def test_rows_after_as_of_change_no_byte(later: str, tmp_path: Path):
    connection = clean_tables()
    for name in ("users", "tracks", "podcasts", "audiobooks"):
        connection.execute(
            f"ALTER TABLE {name} ADD COLUMN valid_from TIMESTAMP DEFAULT TIMESTAMP '2025-01-01'"
        )
    settings, before = extract(connection, tmp_path / "without")
    connection.execute(LATER[later])
    with_later, after = extract(connection, tmp_path / "with")
    assert manifest_of(settings, before).to_bytes() == manifest_of(with_later, after).to_bytes()
    store = Store(with_later.store.uri, with_later.store.scratch)
    assert store.keys(INTERACTIONS)[-1] == AS_OF.isoformat()


def test_a_backfill_sees_the_catalogue_as_it_was(tmp_path: Path):
    """b1 was renamed on the 5th: the run of the 4th has the old title, the run of the 5th the new one."""
    connection = with_titles()
    connection.execute("ALTER TABLE audiobooks ADD COLUMN valid_from TIMESTAMP")
    connection.execute("UPDATE audiobooks SET valid_from = TIMESTAMP '2026-01-01'")
    connection.execute(
        "INSERT INTO audiobooks (audiobook_id, title, valid_from) VALUES ('b1', 'New', TIMESTAMP "
        "'2026-02-05 06:00:00')"
    )
    titles = {}
    for day in (4, 5):
        settings, result = extract(connection, tmp_path, date(2026, 2, day))
        titles[day] = [row[:2] for row in table(settings, result, "audiobooks")]
        assert "audiobooks: duplicate_id" not in manifest_of(settings, result).facts["rejects"]
    assert titles == {4: [("b1", "One"), ("b2", "Two")], 5: [("b1", "New"), ("b2", "Two")]}


# --- nothing is dropped silently -------------------------------------------------------------------------

_messy_row = st.tuples(
    st.sampled_from(["u1", "u2", "", None, " u1"]),
    st.sampled_from(["b1", "b2", "b9", None]),
    st.sampled_from(["stream", "FOLLOW", "preview", "intent_to_pay", "purchase", None]),
    st.sampled_from(
        [
            "2026-02-10 09:00:00",
            "2026-02-10 09:00:00.5",
            "2026-02-09 23:59:59",
            "1998-01-01 00:00:00",
            "soon",
            None,
        ]
    ),
    st.sampled_from([None, -3, 0, 29, 30, 400, 90_000]),
)


@hypothesis_settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rows=st.lists(_messy_row, min_size=1, max_size=25), cap=st.integers(1, 4))
def test_input_rows_are_counted_rows_and_rejects(
    tmp_path_factory: pytest.TempPathFactory, rows: list, cap: int
):
    work = tmp_path_factory.mktemp("messy")
    connection = with_titles()
    connection.execute("ALTER TABLE audiobook_events ALTER occurred_at TYPE VARCHAR")
    connection.executemany("INSERT INTO audiobook_events VALUES (?, ?, ?, ?, ?)", rows)
    settings, result = extract(connection, work, extract={"max_events_per_user_day": cap})
    rejects = manifest_of(settings, result).facts["rejects"]
    events = {
        k: v for k, v in rejects.items() if k.startswith("audiobook_events") and "unknown_item" not in k
    }
    aside = sum(v for k, v in events.items() if "unknown_user" not in k)
    assert result["counts"]["interactions"] + aside == len(rows)


# --- the database may read nothing else ------------------------------------------------------------------


def test_the_source_connection_reads_no_other_folder(tmp_path: Path):
    from audiorec.source import open_source

    elsewhere = write_flat(empty_tables(), tmp_path / "elsewhere")
    source = open_source(settings_for(write_flat(clean_tables(), tmp_path / "source"), tmp_path / "work"))
    assert source.connection.execute("SELECT COUNT(*) FROM source.users").fetchall() == [(60,)]
    with pytest.raises(duckdb.PermissionException):
        source.connection.execute(f"FROM read_parquet('{elsewhere}/users.parquet')")
    with pytest.raises(duckdb.Error):
        source.connection.execute("SET enable_external_access = true")


def test_a_source_without_any_event_is_extracted_as_empty(tmp_path: Path):
    settings, result = extract(with_titles(), tmp_path)
    assert (result["counts"]["interactions"], result["counts"]["day_partitions"]) == (0, 0)
    assert {row[3] for row in table(settings, result, "days")} == {0}


def test_a_damaged_day_folder_name_is_named(tmp_path: Path):
    source = write_hive(clean_tables(), tmp_path / "source")
    (source / "music_events" / "date=2026-02-10").rename(source / "music_events" / "date=10.2.2026")
    with pytest.raises(BadData, match=r"music_events.*date=10\.2\.2026.*date=YYYY-MM-DD"):
        run_task("extract", settings_for(source, tmp_path / "work"), AS_OF)
