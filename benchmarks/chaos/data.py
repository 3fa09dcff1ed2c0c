"""Experiments 6 to 9: events that come late, twice, shuffled or skewed; leaks; schemas that drift; poisoned tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from audiorec.cuts import cuts
from audiorec.errors import ExitCode
from audiorec.source import EVENT_TABLES, TABLES
from benchmarks.chaos.lab import AS_OF, DAY, Lab, Place
from benchmarks.chaos.report import Experiment, Row

EVENTS = tuple(EVENT_TABLES.values())
FOLDER = "arrived_on"
"""The folder that a row lies in, while tables are in DuckDB."""


class Tables:
    """The lab's source tables in DuckDB, to be changed by SQL and written again."""

    def __init__(self, source: Path) -> None:
        self.connection = duckdb.connect()
        self.connection.execute("SET TimeZone = 'UTC'; SET threads = 1")
        for table in TABLES:
            if table.name in EVENTS:
                place = f"read_parquet('{source / table.name}/*/*.parquet', hive_partitioning = true, hive_types = {{'date': DATE}})"
                query = f"SELECT * RENAME (date AS {FOLDER}) FROM {place}"
            else:
                query = f"SELECT * FROM read_parquet('{source / table.name}.parquet')"
            self.connection.execute(f"CREATE TABLE {table.name} AS {query}")

    def copy(self) -> Tables:
        """Another one with the same rows, to be changed alone."""
        other = Tables.__new__(Tables)
        other.connection = duckdb.connect()
        other.connection.execute("SET TimeZone = 'UTC'; SET threads = 1")
        for table in TABLES:
            rows = self.connection.table(table.name).to_arrow_table()
            other.connection.register("rows_of_ours", rows)
            other.connection.execute(f"CREATE TABLE {table.name} AS SELECT * FROM rows_of_ours")
            other.connection.unregister("rows_of_ours")
        return other

    def run(self, statements: str) -> Tables:
        self.connection.execute(statements)
        return self

    def count(self, query: str) -> int:
        return int(self.connection.execute(query).fetchall()[0][0])

    def write(self, folder: Path, order: str = "") -> Path:
        """Events in a folder a day, the rest flat."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for table in TABLES:
            if table.name in EVENTS:
                self.connection.execute(
                    f"COPY (SELECT * RENAME ({FOLDER} AS date) FROM {table.name} {order}) TO '{folder / table.name}' "
                    "(FORMAT parquet, PARTITION_BY (date))"
                )
            else:
                self.write_one(table.name, folder, order)
        return folder

    def write_flat(self, folder: Path) -> Path:
        """One file a table."""
        folder.mkdir(parents=True, exist_ok=True)
        for table in TABLES:
            self.write_one(table.name, folder)
        return folder

    def write_one(self, name: str, folder: Path, order: str = "") -> None:
        without = f"EXCLUDE ({FOLDER})" if name in EVENTS else ""
        self.connection.execute(
            f"COPY (SELECT * {without} FROM {name} {order}) TO '{folder / name}.parquet' (FORMAT parquet)"
        )


def days(place: Place) -> dict[str, list[tuple[str, str]]]:
    """Fingerprint and hash of the counted events of each day partition."""
    found: dict[str, list[tuple[str, str]]] = {}
    for day in place.store.keys("interactions"):
        for manifest in place.store.versions("interactions", day):
            sha = manifest.files["interactions.parquet"].sha256
            found.setdefault(day, []).append((manifest.fingerprint, sha))
    return found


def hashes(place: Place, task: str, as_of: date = AS_OF) -> dict[str, str]:
    """sha256 of a result's files, by name."""
    return {name: file.sha256 for name, file in place.manifest(task, as_of).files.items()}


# --- 6: late, duplicate, shuffled, skewed ----------------------------------------------------------------


def events(lab: Lab, seed: int, short: bool) -> list[Row]:
    """What the same events make when they come otherwise."""
    tables = Tables(lab.source)
    tables.run(f"SELECT SETSEED({(seed % 100) / 100})")
    clean = lab.place("events_clean", tables.write(lab.work / "tables" / "clean"))
    clean.need("extract", AS_OF)
    known = days(clean)
    files = hashes(clean, "extract")
    rows = [_shuffled(lab, tables, clean)]
    if short:
        return rows
    rows += [
        _duplicates(lab, tables, known, files),
        *_late(lab, tables, clean),
        *_skewed(lab, tables, known),
        _future(lab, tables, clean),
        *[_calendar(lab, tables, known, *case) for case in CALENDARS],
    ]
    return rows


def _shuffled(lab: Lab, tables: Tables, clean: Place) -> Row:
    place = lab.place("events", tables.copy().write(lab.work / "tables" / "shuffled", "ORDER BY RANDOM()"))
    place.need("extract", AS_OF)
    same = place.manifests() == clean.manifests()
    return Row("rows shuffled: every manifest equal", "equal" if same else "not equal", same)


def _duplicates(
    lab: Lab, tables: Tables, known: dict[str, list[tuple[str, str]]], files: dict[str, str]
) -> Row:
    changed = tables.copy()
    for name in EVENTS:
        changed.run(f"INSERT INTO {name} SELECT * FROM {name} USING SAMPLE 2 PERCENT (bernoulli, 6)")
    added = sum(
        changed.count(f"SELECT COUNT(*) FROM {name}") - tables.count(f"SELECT COUNT(*) FROM {name}")
        for name in EVENTS
    )
    place = lab.place("events", changed.write(lab.work / "tables" / "twice"))
    place.need("extract", AS_OF)
    got = days(place)
    equal = sum([sha for _, sha in got[day]] == [sha for _, sha in known[day]] for day in known)
    found = hashes(place, "extract")
    same = [
        name
        for name in files
        if "rejects" not in name and name != "days.parquet" and found[name] == files[name]
    ]
    expected = [name for name in files if "rejects" not in name and name != "days.parquet"]
    return Row(
        f"{added} rows sent twice: the counted events of every day, the catalogue and first streams equal",
        f"{equal} of {len(known)} days, {len(same)} of {len(expected)} tables",
        equal == len(known) and len(same) == len(expected),
        "" if len(same) == len(expected) else f"different: {sorted(set(expected) - set(same))}",
    )


def _late(lab: Lab, tables: Tables, clean: Place) -> list[Row]:
    """Some rows of a few days come two days later, in later folders; a run before and one after."""
    late = tables.copy()
    chosen = [AS_OF - 3 * DAY, AS_OF - 9 * DAY, AS_OF - 15 * DAY]
    touched = ", ".join(f"DATE '{day}'" for day in chosen)
    held = lab.work / "tables" / "late"
    is_late = f"CAST(occurred_at AS DATE) IN ({touched}) AND HOUR(occurred_at) % 3 = 0"
    before = tables.copy()
    number = 0
    for name in EVENTS:
        number += before.count(f"SELECT COUNT(*) FROM {name} WHERE {is_late}")
        before.run(f"DELETE FROM {name} WHERE {is_late}")
        late.run(
            f"UPDATE {name} SET {FOLDER} = {FOLDER} + 2 WHERE {is_late} AND {FOLDER} = CAST(occurred_at AS DATE)"
        )
    place = lab.place("events", before.write(held))
    place.need("extract", AS_OF)
    first = days(place)
    late.write(held)
    place.need("extract", AS_OF)
    second = days(place)
    rebuilt = {day for day in second if len(second[day]) > len(first.get(day, []))}
    expected = {day.isoformat() for day in chosen}
    # The folder of a row counts only for what it decides, so what came late in time is what came in time.
    wanted = hashes(clean, "extract")
    newest = max(place.store.versions("extract", AS_OF.isoformat()), key=lambda one: place.store.used_at(one))
    equal = {name: file.sha256 for name, file in newest.files.items()} == wanted
    return [
        Row(
            f"{number} rows of 3 days come 2 days late: the extract equals the clean one",
            "equal" if equal else "not equal",
            equal,
        ),
        Row(
            "only the touched days are built again",
            f"{len(rebuilt)} of {len(second)} days",
            rebuilt == expected,
            "" if rebuilt == expected else f"built again: {sorted(rebuilt)}",
        ),
    ]


def _skewed(lab: Lab, tables: Tables, known: dict[str, list[tuple[str, str]]]) -> list[Row]:
    """Clocks up to 48 h fast or slow: the folder says when a row arrived."""
    changed = tables.copy()
    fast = "HASH(user_id, occurred_at, 'fast') % 20 = 0"
    slow = "HASH(user_id, occurred_at, 'slow') % 20 = 0"
    in_time = f"{FOLDER} = CAST(occurred_at AS DATE) AND CAST(occurred_at AS DATE) BETWEEN DATE '{AS_OF - 10 * DAY}' AND DATE '{AS_OF - 5 * DAY}'"
    ahead = 0
    for name in EVENTS:
        ahead += changed.count(f"SELECT COUNT(*) FROM {name} WHERE {fast} AND {in_time}")
        changed.run(
            f"""
            UPDATE {name} SET occurred_at = occurred_at + INTERVAL 48 HOUR WHERE {fast} AND {in_time};
            UPDATE {name} SET occurred_at = occurred_at - INTERVAL 48 HOUR WHERE {slow} AND {in_time} AND NOT {fast};
            """
        )
    place = lab.place("events", changed.write(lab.work / "tables" / "skewed"))
    place.need("extract", AS_OF)
    manifest = place.manifest("extract", AS_OF)
    aside = sum(
        number
        for reason, number in manifest.facts["rejects"].items()
        if reason.endswith("arrived_before_it_happened")
    )
    untouched = [
        day for day in known if not (AS_OF - 12 * DAY).isoformat() <= day <= (AS_OF - 3 * DAY).isoformat()
    ]
    got = days(place)
    equal = sum(got[day] == known[day] for day in untouched)
    return [
        Row(
            f"clocks 48 h fast, {ahead} rows dated after the day they arrived: all set aside",
            f"{aside} of {ahead}",
            aside >= ahead,
            "more are set aside where the tables' own dirt is of that kind" if aside > ahead else "",
        ),
        Row(
            "clocks 48 h slow or fast: days that no row came from or went to are as they were",
            f"{equal} of {len(untouched)} days",
            equal == len(untouched),
        ),
    ]


def _future(lab: Lab, tables: Tables, clean: Place) -> Row:
    changed = tables.copy()
    for name in EVENTS:
        changed.run(
            f"""
            INSERT INTO {name} SELECT * REPLACE (occurred_at + INTERVAL 200 DAY AS occurred_at) FROM {name}
            WHERE occurred_at BETWEEN DATE '{AS_OF - 40 * DAY}' AND DATE '{AS_OF}' AND HASH(user_id, occurred_at) % 50 = 0
            """
        )
    place = lab.place("events", changed.write(lab.work / "tables" / "future"))
    place.need("extract", AS_OF)
    same = place.manifests() == clean.manifests()
    return Row(
        "rows of the future: none counts, every manifest equal", "equal" if same else "not equal", same
    )


CALENDARS = (
    ("a leap day", date(2028, 2, 29), "UTC", False),
    (
        "the end of summer time, on a machine of Berlin, times with a zone",
        date(2027, 10, 31),
        "Europe/Berlin",
        True,
    ),
    ("its beginning, in New York", date(2027, 3, 14), "America/New_York", True),
)
"""What, the day that shall be AS_OF - 5 days, the machine's zone, whether times carry a zone."""


def _calendar(
    lab: Lab,
    tables: Tables,
    known: dict[str, list[tuple[str, str]]],
    what: str,
    day: date,
    zone: str,
    zoned: bool,
) -> Row:
    """The same events, moved by whole days so that a special day lies among them: as many count on each day."""
    moved = day - (AS_OF - 5 * DAY)
    changed = tables.copy()
    for name in EVENTS:
        to_zone = f"ALTER TABLE {name} ALTER occurred_at TYPE TIMESTAMPTZ;" if zoned else ""
        changed.run(
            f"""
            UPDATE {name} SET occurred_at = occurred_at + INTERVAL {moved.days} DAY, {FOLDER} = {FOLDER} + {moved.days};
            {to_zone}
            """
        )
    # Titles keep their dates of publication: nothing here asks whether one is out yet.
    place = lab.place("events", changed.write(lab.work / "tables" / "moved"))
    ended = place.fork("extract", AS_OF + moved, variables={"TZ": zone})
    if ended.code:
        return Row(
            f"{what} among the days: as many events count on each day",
            f"exit code {ended.code}",
            False,
            ended.output[-500:],
        )
    equal = 0
    for one in known:
        shifted = (date.fromisoformat(one) + moved).isoformat()
        found = place.store.versions("interactions", shifted)
        path = next(
            (lab.work / "events_clean" / "store" / "interactions" / one).glob("*/interactions.*.parquet")
        )
        equal += (
            len(found) == 1
            and found[0].files["interactions.parquet"].rows == pq.ParquetFile(path).metadata.num_rows
        )
    return Row(
        f"{what} among the days: as many events count on each day",
        f"{equal} of {len(known)} days",
        equal == len(known),
    )


# --- 7: leaks --------------------------------------------------------------------------------------------

CHAIN_TO_EVALUATE = "extract embed_text embed_music build_graph train_hgnn train_two_tower evaluate"


def leaks(lab: Lab, seed: int, short: bool) -> list[Row]:
    """Canaries: rows that a result must not know are changed beyond recognition."""
    tables = Tables(lab.source)
    after = f"occurred_at >= DATE '{AS_OF + DAY}'"
    changed = tables.copy()
    for name in EVENTS:
        # Everybody streams the same title again and again, and half of what really happened is gone.
        item = next(
            column
            for column in ("track_id", "podcast_id", "audiobook_id")
            if column in _columns(changed, name)
        )
        changed.run(
            f"""
            DELETE FROM {name} WHERE {after} AND HASH(user_id) % 2 = 0;
            UPDATE {name} SET {item} = (SELECT MIN({item}) FROM {name}) WHERE {after};
            INSERT INTO {name} SELECT * REPLACE (occurred_at + INTERVAL 1 HOUR AS occurred_at) FROM {name} WHERE {after};
            """
        )
    place = lab.place("leaks", changed.write(lab.work / "tables" / "leaks"))
    tasks = "extract embed_music build_graph" if short else CHAIN_TO_EVALUATE
    place.need(tasks, AS_OF)
    ours = {
        path: data
        for path, data in lab.reference.manifests().items()
        if path.split("/")[0] in tasks.split() and path.split("/")[1] == AS_OF.isoformat()
    }
    equal = sum(place.manifests().get(path) == data for path, data in ours.items())
    rows = [
        Row(
            "rows after as_of changed: tables, graph, weights and metrics equal to the byte, fingerprints too",
            f"{equal} of {len(ours)} tasks",
            equal == len(ours) == len(tasks.split()),
        )
    ]
    return rows if short else [*rows, _hold_out(lab, tables)]


def _columns(tables: Tables, name: str) -> list[str]:
    return [row[0] for row in tables.connection.execute(f"DESCRIBE {name}").fetchall()]


def _hold_out(lab: Lab, tables: Tables) -> Row:
    """Everything from the split on is deleted or turned into streams of one title: nothing learnt may know."""
    split = cuts(AS_OF, lab.reference.settings.time).split
    changed = tables.copy()
    changed.run(
        f"""
        DELETE FROM audiobook_events WHERE occurred_at >= DATE '{split}' AND HASH(user_id) % 3 = 0;
        UPDATE audiobook_events SET audiobook_id = (SELECT MIN(audiobook_id) FROM audiobook_events)
            WHERE occurred_at >= DATE '{split}';
        DELETE FROM podcast_events WHERE occurred_at >= DATE '{split}';
        DELETE FROM music_events WHERE occurred_at >= DATE '{split}' AND HASH(user_id) % 3 = 1;
        """
    )
    place = lab.place("leaks", changed.write(lab.work / "tables" / "leaks"))
    place.need(CHAIN_TO_EVALUATE.removesuffix(" evaluate"), AS_OF)
    compared, equal, different = 0, 0, []
    for task in ("embed_text", "embed_music", "build_graph", "train_hgnn", "train_two_tower"):
        theirs = hashes(place, task)
        for name, sha in hashes(lab.reference, task).items():
            if name.startswith("release."):
                continue  # the release cut is up to as_of
            compared += 1
            equal += theirs.get(name) == sha
            if theirs.get(name) != sha:
                different.append(f"{task} {name}")
    return Row(
        "events of the hold-out changed: artist vectors, graphs before the split, weights of both models equal to the byte",
        f"{equal} of {compared} files",
        equal == compared,
        ", ".join(different),
    )


# --- 8: schema drift -------------------------------------------------------------------------------------

WRONG_TYPE = {
    "VARCHAR": "[{column}::VARCHAR]",
    "INTEGER": "[TRY_CAST({column} AS INTEGER)]",
    "TIMESTAMP": "EPOCH({column}::TIMESTAMP)",
    "DATE": "1.5::DOUBLE",
}
"""An expression of a type that the contract cannot read, by the contract's type."""


def schema(lab: Lab, seed: int, short: bool) -> list[Row]:
    """Each column of each table dropped, renamed, given another type; a column more in each table."""
    tables = Tables(lab.source)
    flat = tables.write_flat(lab.work / "tables" / "schema")
    place = lab.place("schema", flat)
    place.need("extract", AS_OF)
    clean = place.manifests()
    stopped, tried, not_so = 0, 0, []
    for table in TABLES[:1] if short else TABLES:
        for column, kind in table.columns.items():
            wrong = WRONG_TYPE[kind].format(column=column)
            for change, select in (
                ("dropped", f"SELECT * EXCLUDE ({column})"),
                ("renamed", f"SELECT * RENAME ({column} AS {column}_v2)"),
                ("retyped", f"SELECT * REPLACE ({wrong} AS {column})"),
            ):
                if short and change != "dropped":
                    continue
                _write_changed(tables, flat, table.name, select)
                ended = place.fork("extract", AS_OF)
                named = column in ended.output and table.name in ended.output
                fine = ended.code == ExitCode.BAD_DATA and named and not ended.uncaught
                tried += 1
                stopped += fine and place.manifests() == clean
                if not fine:
                    not_so.append(f"{table.name}.{column} {change}: {ended.code} {ended.output[-200:]}")
        _write_changed(tables, flat, table.name, "SELECT *")
    rows = [
        Row(
            "a column dropped, renamed or of another type: stopped at extract, table and column named, nothing written",
            f"{stopped} of {tried}",
            stopped == tried,
            "; ".join(not_so[:10]),
        )
    ]
    if short:
        return rows
    same = 0
    for table in TABLES:
        _write_changed(tables, flat, table.name, "SELECT *, 42 AS brand_new")
        ended = place.fork("extract", AS_OF)
        same += ended.code == 0 and place.manifests() == clean
        _write_changed(tables, flat, table.name, "SELECT *")
    return [
        *rows,
        Row("a column more changes nothing", f"{same} of {len(TABLES)} tables", same == len(TABLES)),
    ]


def _write_changed(tables: Tables, folder: Path, name: str, select: str) -> None:
    without = f"(SELECT * EXCLUDE ({FOLDER}) FROM {name})" if name in EVENTS else name
    tables.connection.execute(f"COPY ({select} FROM {without}) TO '{folder / name}.parquet' (FORMAT parquet)")


# --- 9: poison -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Poison:
    """SQL over the clean tables, or a damage to a file; `then` names tasks after extract and validate that meet it."""

    name: str
    sql: str = ""
    junk: tuple[str, bytes] | None = None
    then: str = ""


ON_DAY = f"CAST(occurred_at AS DATE) = DATE '{AS_OF}'"
GRAPH = "embed_music build_graph"
ALL = "embed_text embed_music build_graph train_hgnn train_two_tower evaluate refresh build_index"


def _title(text: str) -> str:
    return f"UPDATE audiobooks SET title = {text}, description = {text}"


def _seconds(value: str) -> str:
    return f"""
        ALTER TABLE audiobook_events ALTER seconds_played TYPE DOUBLE;
        UPDATE audiobook_events SET seconds_played = {value} WHERE {ON_DAY};
    """


POISONS = (
    Poison("seconds are NaN", _seconds("'NaN'::DOUBLE")),
    Poison("seconds are infinite", _seconds("'Infinity'::DOUBLE")),
    Poison("seconds are minus infinite", _seconds("'-Infinity'::DOUBLE")),
    Poison("seconds are negative", _seconds("-5")),
    Poison("seconds are 1e300", _seconds("1e300")),
    Poison(
        "seconds are text",
        f"ALTER TABLE music_events ALTER seconds_played TYPE VARCHAR; UPDATE music_events SET seconds_played = 'a while' WHERE {ON_DAY}",
    ),
    Poison("all seconds are null", "UPDATE audiobook_events SET seconds_played = NULL", then=GRAPH),
    Poison("all seconds are zero", "UPDATE podcast_events SET seconds_played = 0", then=GRAPH),
    Poison("titles are empty", _title("''"), then="embed_text"),
    Poison("titles are null", _title("NULL"), then="embed_text"),
    Poison("titles are blanks", _title("'   '"), then="embed_text"),
    Poison(
        "a title of 1 MB",
        f"{_title('repeat($$long $$, 200000)')} WHERE audiobook_id = (SELECT MIN(audiobook_id) FROM audiobooks)",
        then="embed_text",
    ),
    Poison("titles from right to left", _title("'\u202eكتاب الليل\u202c'"), then="embed_text"),
    Poison("titles of emoji", _title("'👩‍👩‍👧‍👦 📚'"), then="embed_text"),
    Poison(
        "titles with control characters",
        _title("'a' || chr(1) || chr(27) || '[31mred' || chr(7)"),
        then="embed_text",
    ),
    Poison("titles with a null byte", _title("'a' || chr(0) || 'b'"), then="embed_text"),
    Poison("titles are markup", _title("'<script>alert(1)</script>{{ 7*7 }}'"), then="embed_text"),
    Poison("titles are SQL", _title("'x''; DROP TABLE users; --'"), then="embed_text"),
    Poison("all titles are the same", _title("'Same'"), then=ALL),
    Poison("titles in no normal form", _title("'e' || chr(769) || 'tude'"), then="embed_text"),
    Poison(
        "ids with quotes and blanks",
        "UPDATE audiobooks SET audiobook_id = audiobook_id || ''' \"'; UPDATE audiobook_events SET audiobook_id = audiobook_id || ''' \"'",
        then=ALL,
    ),
    Poison(
        "ids that are paths",
        "UPDATE audiobooks SET audiobook_id = '../../' || audiobook_id; UPDATE audiobook_events SET audiobook_id = '../../' || audiobook_id",
        then=ALL,
    ),
    Poison(
        "user ids that are paths",
        "UPDATE users SET user_id = '../' || user_id; UPDATE music_events SET user_id = '../' || user_id; UPDATE podcast_events SET user_id = '../' || user_id; UPDATE audiobook_events SET user_id = '../' || user_id",
        then=GRAPH,
    ),
    Poison(
        "ids of 10 kB",
        "UPDATE audiobooks SET audiobook_id = audiobook_id || repeat('x', 10000); UPDATE audiobook_events SET audiobook_id = audiobook_id || repeat('x', 10000)",
        then=GRAPH,
    ),
    Poison("ids are null", "UPDATE audiobooks SET audiobook_id = NULL"),
    Poison("ids are blank", "UPDATE audiobooks SET audiobook_id = ' '"),
    Poison(
        "two titles of one id",
        "INSERT INTO audiobooks SELECT * REPLACE ('another' AS title) FROM audiobooks LIMIT 5",
        then="embed_text",
    ),
    Poison("all titles of one id", "UPDATE audiobooks SET audiobook_id = 'one'"),
    Poison(
        "ids that differ in case",
        "INSERT INTO audiobooks SELECT * REPLACE (UPPER(audiobook_id) || LOWER(audiobook_id) AS audiobook_id) FROM audiobooks LIMIT 5",
        then="embed_text",
    ),
    Poison(
        "a podcast and an audiobook of one id",
        "INSERT INTO podcasts SELECT * REPLACE ((SELECT MIN(audiobook_id) FROM audiobooks) AS podcast_id) FROM podcasts LIMIT 1",
        then=GRAPH,
    ),
    Poison(
        "events name unknown titles",
        "UPDATE audiobook_events SET audiobook_id = 'ghost' || audiobook_id",
        then=GRAPH,
    ),
    Poison("events name unknown users", "UPDATE music_events SET user_id = 'ghost' || user_id", then=GRAPH),
    Poison("an unknown kind of event", f"UPDATE podcast_events SET event = 'teleport' WHERE {ON_DAY}"),
    Poison("an empty day", "; ".join(f"DELETE FROM {name} WHERE {ON_DAY}" for name in EVENTS), then=GRAPH),
    Poison("no events at all", "; ".join(f"DELETE FROM {name}" for name in EVENTS), then=GRAPH),
    Poison("no audiobook events", "DELETE FROM audiobook_events", then=ALL),
    Poison("no podcasts", "DELETE FROM podcasts; DELETE FROM podcast_events", then=ALL),
    Poison(
        "no audiobooks", "DELETE FROM audiobooks; DELETE FROM audiobook_events", then="embed_text build_graph"
    ),
    Poison(
        "one audiobook",
        "DELETE FROM audiobooks WHERE audiobook_id != (SELECT MIN(audiobook_id) FROM audiobooks)",
        then=ALL,
    ),
    Poison("no users", "DELETE FROM users", then=GRAPH),
    Poison("one user", "DELETE FROM users WHERE user_id != (SELECT MIN(user_id) FROM users)", then=GRAPH),
    Poison(
        "a bot with a million plays",
        f"INSERT INTO music_events SELECT u.user_id, t.track_id, 'stream', TIMESTAMP '{AS_OF} 00:00:00' + INTERVAL 80 MILLISECOND * i, 300, DATE '{AS_OF}' FROM (SELECT MIN(user_id) AS user_id FROM users) u, (SELECT MIN(track_id) AS track_id FROM tracks) t, RANGE(1000000) r(i)",
        then=GRAPH,
    ),
    Poison(
        "everybody streams one title",
        "UPDATE audiobook_events SET audiobook_id = (SELECT MIN(audiobook_id) FROM audiobooks)",
        then=ALL,
    ),
    Poison(
        "times of the year 9999",
        f"UPDATE music_events SET occurred_at = TIMESTAMP '9999-12-31 23:59:59' WHERE {ON_DAY}",
    ),
    Poison(
        "times of the year 1", f"UPDATE music_events SET occurred_at = TIMESTAMP '0001-01-01' WHERE {ON_DAY}"
    ),
    Poison(
        "times that are infinite",
        f"UPDATE music_events SET occurred_at = 'infinity'::TIMESTAMP WHERE {ON_DAY}",
    ),
    Poison("times that are null", f"UPDATE podcast_events SET occurred_at = NULL WHERE {ON_DAY}"),
    Poison(
        "times that are text nobody can read",
        "ALTER TABLE podcast_events ALTER occurred_at TYPE VARCHAR; UPDATE podcast_events SET occurred_at = 'yesterday'",
    ),
    Poison("published in the year 9999", "UPDATE audiobooks SET published_on = DATE '9999-12-31'", then=ALL),
    Poison(
        "published on an infinite date",
        "UPDATE audiobooks SET published_on = 'infinity'::DATE",
        then="embed_text build_graph train_hgnn",
    ),
    Poison("born in the future", "UPDATE users SET birth_year = 2999", then=GRAPH),
    Poison("countries are nonsense", "UPDATE users SET country = repeat('Z', 5000)", then=ALL),
    Poison("a file that is no parquet", junk=("users.parquet", b"PAR1 this is not parquet PAR1")),
    Poison("an empty file", junk=("tracks.parquet", b"")),
    Poison("a parquet file cut short", junk=("audiobook_events.parquet", b"half")),
)


def poison(lab: Lab, seed: int, short: bool) -> list[Row]:
    """Each poison alone over clean tables: the chain ends well, or says what is wrong and ends by a code."""
    tables = Tables(lab.source)
    traced, outcomes, unreadable = [], {"went on": 0, "stopped by a code": 0}, []
    chosen: Iterable[Poison] = POISONS[::20] if short else POISONS
    for one in chosen:
        folder = lab.work / "tables" / "poison"
        shutil.rmtree(folder, ignore_errors=True)
        changed = tables.copy()
        if one.sql:
            changed.run(one.sql)
        changed.write_flat(folder)
        if one.junk:
            name, data = one.junk
            path = folder / name
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if data == b"half" else data)
        place = lab.place("poison_place", folder)
        # The tasks that meet it go on behind a verdict that stops a run: a person may have marked it green.
        first = place.fork("extract validate", AS_OF)
        last = (
            place.fork(one.then, AS_OF) if one.then and not short and place.store.keys("extract") else first
        )
        for ended in (first, last):
            if ended.uncaught or ended.code not in (ExitCode.OK, ExitCode.BAD_DATA, ExitCode.BAD_SETTINGS):
                traced.append(f"{one.name}: {ended.code} {_last_lines(ended.output)}")
                break
        outcomes["went on" if first.code == 0 else "stopped by a code"] += 1
        unreadable += [f"{one.name}: {problem}" for problem in place.unreadable()]
    total = sum(outcomes.values())
    return [
        Row(
            "at least 40 poisoned tables: 0 tracebacks that nobody caught",
            f"{len(traced)} of {total}",
            not traced and (short or total >= 40),
            f"{json.dumps(outcomes)}. {'; '.join(traced)}",
        ),
        Row(
            "nothing readable that is not whole", f"{len(unreadable)}", not unreadable, "; ".join(unreadable)
        ),
    ]


def _last_lines(output: str) -> str:
    lines = [
        line.strip() for line in output.strip().splitlines() if line.strip() and not line.startswith("RESULT")
    ]
    return " / ".join(lines[-4:])[-500:]


EXPERIMENTS = (
    Experiment("schema", 8, "Schema drift", 8, schema),
    Experiment("events", 6, "Late, duplicate, shuffled and skewed events", 6, events),
    Experiment("leaks", 7, "Leakage canaries", 7, leaks),
    Experiment("poison", 9, "Poisoned tables", 9, poison),
)
