"""The twelve broken inputs: each stops the run or is quarantined as designed, and says so in words.

Every case changes clean tables of 30 days by SQL (or by a damaged file), then runs the real extract and
validate. *stops* names the task that ends with "bad data"; the words are table, column, counts and remedy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_source import AS_OF, clean_tables, settings_for, write_flat

from audiorec.errors import BadData, ExitCode
from audiorec.runner import run_task

pytestmark = pytest.mark.long

DAY = f"DATE '{AS_OF}'"
ON_DAY = f"CAST(occurred_at AS DATE) = {DAY}"


@dataclass(frozen=True)
class Broken:
    """One broken input: SQL on clean tables or a damage to the files; what stops; what must be said."""

    name: str
    says: tuple[str, ...]
    stops: str | None
    sql: str = ""
    without: str = ""
    junk: str = ""
    codes: tuple[str, ...] = ()


CASES = [
    Broken(
        "missing table",
        stops="extract",
        without="podcasts",
        says=("lacks the table(s) podcasts", "Provide them"),
    ),
    Broken(
        "missing column",
        stops="extract",
        sql="ALTER TABLE audiobook_events DROP COLUMN seconds_played",
        says=("audiobook_events", "lacks column(s) seconds_played", "found audiobook_id, event", "Add them"),
    ),
    Broken(
        "wrong type",
        stops="extract",
        sql="ALTER TABLE podcast_events ALTER occurred_at TYPE DOUBLE USING EPOCH(occurred_at)",
        says=("podcast_events, column occurred_at", "found type DOUBLE, expected TIMESTAMP", "Convert it"),
    ),
    Broken(
        "empty day",
        stops="validate",
        sql=f"""
            DELETE FROM music_events WHERE {ON_DAY};
            DELETE FROM podcast_events WHERE {ON_DAY};
            DELETE FROM audiobook_events WHERE {ON_DAY}
        """,
        codes=("DQ-EMPTY-DAY",),
        says=(
            "interactions.occurred_at",
            "0 rows that count on 2026-02-10 in any event table",
            "the last before is of 2026-02-09, a usual day has 140",
            "load the day",
        ),
    ),
    Broken(
        "duplicate keys",
        stops="validate",
        # 40 audiobooks and 20 repeats: 20 of 60 = 33.3%, over 25%.
        sql="INSERT INTO audiobooks SELECT * REPLACE ('other ' || title AS title) FROM audiobooks LIMIT 20",
        codes=("DQ-KEYS",),
        says=(
            "audiobooks.audiobook_id",
            "20 of 60 rows",
            "duplicate_id: 20",
            "at most 25.0%",
            "one row an id",
        ),
    ),
    Broken(
        "unknown ids",
        stops="validate",
        # Titles b0..b39; those of b0..b9 renamed in the events only: a quarter of them, over 20%.
        sql="UPDATE audiobook_events SET audiobook_id = 'ghost' || audiobook_id WHERE "
        "LENGTH(audiobook_id) = 2",
        codes=("DQ-UNKNOWN-IDS",),
        says=(
            "audiobook_events.audiobook_id",
            "naming 10 id(s) that audiobooks.audiobook_id lacks",
            "at most 20.0% (validation.max_unknown_share)",
            "load audiobooks",
        ),
    ),
    Broken(
        "nulls in keys",
        stops="validate",
        sql=f"UPDATE music_events SET user_id = NULL WHERE {ON_DAY} AND MINUTE(occurred_at) < 30",
        codes=("DQ-REJECTS",),
        says=(
            "music_events.user_id",
            "30 of 60 rows on 2026-02-10 set aside as faults (null_user_id (user_id): 30)",
            "at most 25.0% (validation.max_reject_share)",
            "send the user's id",
        ),
    ),
    Broken(
        "future events",
        stops=None,
        sql="INSERT INTO audiobook_events SELECT user_id, audiobook_id, event, TIMESTAMP '2099-01-01', 300 "
        "FROM audiobook_events LIMIT 7",
        says=(
            "audiobook_events.occurred_at: 7 row(s) lie after as_of 2026-02-10",
            "play no part",
            "mend the source's clock",
        ),
    ),
    Broken(
        "negative seconds",
        stops=None,
        sql=f"UPDATE podcast_events SET seconds_played = -5 WHERE {ON_DAY} AND HOUR(occurred_at) = 3",
        codes=("DQ-REJECTS",),
        says=(
            "podcast_events.seconds_played",
            "6 of",
            "(6 on 2026-02-10) set aside as negative_seconds",
            "mend the player's clock",
        ),
    ),
    Broken(
        "absurd volume",
        stops="validate",
        # 40 rows a day are usual; 4,000 more, from 60 users at times of their own, none over the daily cap.
        sql=f"""
            INSERT INTO audiobook_events
            SELECT 'u' || i % 60, 'b' || i % 40, 'stream', {DAY} + INTERVAL 1 SECOND * (20 * i + 7), 300
            FROM RANGE(4000) t(i)
        """,
        codes=("DQ-VOLUME",),
        says=(
            "audiobook_events.occurred_at",
            "4,040 rows on 2026-02-10, 101.00 times the usual 40",
            "at most 50 times",
            "loaded more than once",
        ),
    ),
    Broken(
        "one bot with a million plays",
        stops=None,
        sql=f"""
            INSERT INTO music_events
            SELECT 'u1', 't' || i % 40, 'stream', {DAY} + INTERVAL 1 MILLISECOND * (i * 80), 300
            FROM RANGE(1000000) t(i)
        """,
        codes=("DQ-BOT",),
        says=(
            "music_events.user_id",
            "one user made 1,000,001 of 1,000,060 rows on 2026-02-10",
            "999,501 rows of 1 user(s) were quarantined",
            "at most 500 events each",
        ),
    ),
    Broken(
        "unreadable parquet",
        stops="extract",
        junk="users",
        says=("source table users", "cannot be read", "Replace the damaged file"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_broken_input_stops_or_is_quarantined_in_words(case: Broken, tmp_path: Path):
    connection = clean_tables()
    if case.sql:
        connection.execute(case.sql)
    source = write_flat(connection, tmp_path / "source")
    if case.without:
        (source / f"{case.without}.parquet").unlink()
    if case.junk:
        (source / f"{case.junk}.parquet").write_bytes(b"PAR1 this is not parquet at all PAR1")
    settings = settings_for(source, tmp_path)

    if case.stops == "extract":
        with pytest.raises(BadData) as caught:
            run_task("extract", settings, AS_OF)
        assert caught.value.exit_code == ExitCode.BAD_DATA
        _assert_said(case, str(caught.value))
        return

    extract = run_task("extract", settings, AS_OF)
    validate = run_task("validate", settings, AS_OF)
    said = "\n".join([*extract["notes"], *validate["notes"], validate["failure"] or ""])
    _assert_said(case, said)
    for code in case.codes:
        assert code in said
    assert bool(validate["failure"]) == (case.stops == "validate"), validate["verdict"]
    if case.stops:
        assert validate["verdict"].startswith(f"critical: {case.codes[0]}")
        _assert_said(case, validate["failure"])


def _assert_said(case: Broken, text: str) -> None:
    plain = re.sub(r"\s+", " ", text)
    for words in case.says:
        assert words in plain, f"{case.name}: {words!r} not in\n{text}"


def test_clean_tables_pass_without_a_warning(tmp_path: Path):
    """Guards the cases above: what they say comes from what they break."""
    settings = settings_for(write_flat(clean_tables(), tmp_path / "source"), tmp_path)
    run_task("extract", settings, AS_OF)
    result = run_task("validate", settings, AS_OF)
    assert (result["verdict"], result["failure"]) == ("passed", None)


def test_the_bot_counts_for_no_more_than_the_cap(tmp_path: Path):
    """A thousand plays of one user in one day: 500 count, the others are kept as rejects."""
    connection = clean_tables()
    connection.execute(
        f"INSERT INTO music_events SELECT 'bot', 't1', 'stream', {DAY} + INTERVAL 1 SECOND * i, 300 FROM "
        "RANGE(1000) t(i)"
    )
    settings = settings_for(write_flat(connection, tmp_path / "source"), tmp_path)
    before = run_task(
        "extract", settings_for(write_flat(clean_tables(), tmp_path / "clean"), tmp_path / "c"), AS_OF
    )
    result = run_task("extract", settings, AS_OF)
    assert result["counts"]["interactions"] == before["counts"]["interactions"] + 500
