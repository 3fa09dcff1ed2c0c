"""Writes the sample source tables: parquet in the layout of the project's source tables.

The folder appears whole or not at all: files are written into a hidden sibling, `generated.json` last, and
one rename puts it in place. A lock beside it keeps two generators of one folder apart.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date, timedelta
from pathlib import Path

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from audiorec.errors import BadData, Busy, Unavailable
from audiorec.simulator.config import SimulatorConfig
from audiorec.simulator.dirt import (
    SPELLINGS,
    UNKNOWN_IDS,
    Row,
    WrittenEvents,
    soil_catalogue,
    soil_events,
)
from audiorec.simulator.frozen import code_hash, config_hash, simulator_hash
from audiorec.simulator.listening import listen
from audiorec.simulator.truth import TruthWriter, is_truth, truth_hash, truth_of
from audiorec.simulator.vocabulary import TOPICS
from audiorec.simulator.world import (
    LONG_AGO,
    MUSIC_AND_PODCASTS,
    MUSIC_ONLY,
    NO_EVENTS,
    People,
    World,
    stream_of,
)

MARKER = "generated.json"
CHUNK_TITLES = 50_000
"""Titles written at a time."""
LOCK_SECONDS = 600.0
"""How long a generator waits for another one of the same folder."""

_TEXT = pa.string()
SCHEMAS: dict[str, pa.Schema] = {
    "users": pa.schema([("user_id", _TEXT), ("country", _TEXT), ("birth_year", pa.int32())]),
    "tracks": pa.schema([("track_id", _TEXT), ("title", _TEXT), ("artist_id", _TEXT), ("genre", _TEXT)]),
    "podcasts": pa.schema(
        [
            ("podcast_id", _TEXT),
            ("title", _TEXT),
            ("description", _TEXT),
            ("publisher", _TEXT),
            ("category", _TEXT),
            ("language", _TEXT),
            ("published_on", pa.date32()),
        ]
    ),
    "audiobooks": pa.schema(
        [
            ("audiobook_id", _TEXT),
            ("title", _TEXT),
            ("description", _TEXT),
            ("author", _TEXT),
            ("genre", _TEXT),
            ("language", _TEXT),
            ("published_on", pa.date32()),
        ]
    ),
    **{
        f"{kind}_events": pa.schema(
            [
                ("user_id", _TEXT),
                (f"{item}_id", _TEXT),
                ("event", _TEXT),
                ("occurred_at", pa.timestamp("us")),
                ("seconds_played", pa.int32()),
            ]
        )
        for kind, item in (("music", "track"), ("podcast", "podcast"), ("audiobook", "audiobook"))
    },
}
"""Schema of every table, in the column order of source_tables.md; `occurred_at` is UTC without a zone."""

EVENT_TABLES = ("music_events", "podcast_events", "audiobook_events")


class GeneratedSummary(BaseModel):
    """What was written; all of it but `reused` and `seconds` is determined by the settings."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    config_hash: str
    """sha256 of the settings (canonical JSON)."""
    code_hash: str
    """sha256 of the generator's own source files."""
    first_day: date
    """First UTC day with events."""
    last_day: date
    """Last UTC day with events."""
    rows: dict[str, int]
    """Rows written, a table."""
    clean_rows: dict[str, int]
    """Rows that are neither rejected nor repeated: what a reader of the tables should be left with."""
    dirt: dict[str, dict[str, int]]
    """Rows a table and kind of dirt (names of `DirtRates`)."""
    users_without_events: int
    """Users in the segment that never does anything."""
    users_of_music_only: int
    """Users who stream nothing but music (a few leave weak signals on audiobooks)."""
    users_of_music_and_podcasts: int
    """Users who stream music and podcasts, and no audiobook."""
    audiobook_listeners: int
    """Users with an audiobook stream."""
    starters_last_14_days: int
    """Users who streamed some audiobook title for the first time in the last 14 days."""
    first_ever_last_14_days: int
    """Those among them who had streamed no audiobook before."""
    bytes: int
    """Size of the tables' files."""
    reused: bool = False
    """True: the folder was there already, from equal settings and code."""
    seconds: float = 0.0
    """Wall time of this call."""


def write_source_tables(config: SimulatorConfig, folder: Path | str) -> GeneratedSummary:
    """Generate the source tables of `config` in `folder`.

    A folder that this function wrote from equal settings and code is reused after its files' hashes were
    checked; one that it wrote from others is replaced; any other folder that is not empty, or one in which
    something was changed or added since, is left alone. Settings with `leading` signals get a second folder,
    FOLDER.truth, for the oracle.

    Raises: BadData if the folder is not ours or was changed; Busy if another process has written to it for
    ten minutes; Unavailable if the disk is full or not writable.
    """
    begun = time.monotonic()
    folder = Path(folder).expanduser().resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.parent / f".{folder.name}.lock", timeout=LOCK_SECONDS):
            old = folder.parent / f".{folder.name}.old"
            if old.exists() and not folder.exists():
                old.rename(folder)  # Killed between the two renames of a replacement.
            found = _existing(folder)
            known_truth = truth_hash(truth_of(folder)) if config.leading else None
            if (
                found is not None
                and found.config_hash == config_hash(config)
                and found.code_hash == code_hash()
                and known_truth == (simulator_hash(config) if config.leading else None)
            ):
                return found.model_copy(update={"reused": True, "seconds": time.monotonic() - begun})
            summary = _generate(config, folder)
    except filelock.Timeout:
        raise Busy(
            f"generate: another process has been writing {folder} for {LOCK_SECONDS:.0f} s;"
            " wait for it, or give another folder"
        ) from None
    except OSError as error:
        raise Unavailable(
            f"generate: cannot write {folder}: {error.strerror or error}; check the free space and the"
            " permissions, or give another folder"
        ) from error
    return summary.model_copy(update={"seconds": time.monotonic() - begun})


def _existing(folder: Path) -> GeneratedSummary | None:
    """The summary of a complete folder of ours; None if there is none or files of it are missing.

    Raises: BadData if anything is there that this generator did not write.
    """
    remedy = "give another folder, or move this one away"
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise BadData(f"generate: {folder} is a file, expected a folder; {remedy}")
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    if not present:
        return None
    marker = folder / MARKER
    if MARKER not in present:
        raise BadData(
            f"generate: {folder} holds {len(present)} files and no {MARKER}, so it was not written by this"
            f" generator and is left alone; {remedy}"
        )
    try:
        record = json.loads(marker.read_text(encoding="utf-8"))
        files: dict[str, dict[str, str]] = record["files"]
        summary = GeneratedSummary.model_validate(record["summary"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"generate: {marker} is not a record of this generator ({error}); {remedy}") from error
    foreign = sorted(present - set(files) - {MARKER})
    changed = sorted(name for name in present & set(files) if _sha256(folder / name) != files[name]["sha256"])
    if foreign or changed:
        raise BadData(
            f"generate: {folder} was written by this generator, but {len(changed)} files were"
            f" changed since and {len(foreign)} added (first: {(changed + foreign)[0]}), so it is left alone;"
            f" {remedy}"
        )
    return summary if set(files) <= present else None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _generate(config: SimulatorConfig, folder: Path) -> GeneratedSummary:
    # Under the lock nobody else is at work on these, so what lies there was left by a killed run.
    partial = folder.parent / f".{folder.name}.partial"
    old = folder.parent / f".{folder.name}.old"
    truth, partial_truth = truth_of(folder), folder.parent / f".{folder.name}.truth.partial"
    for left in (partial, old, partial_truth):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir()
    try:
        summary = _write(config, partial, partial_truth if config.leading else None)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        # A truth of other tables is told by its settings, should a kill come between.
        if is_truth(truth):
            shutil.rmtree(truth, ignore_errors=True)
        if config.leading:
            partial_truth.rename(truth)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (partial, old, partial_truth):
            shutil.rmtree(left, ignore_errors=True)
    return summary


def _write(config: SimulatorConfig, folder: Path, truth_folder: Path | None) -> GeneratedSummary:
    world = World(config)
    rows: Counter[str] = Counter()
    clean: Counter[str] = Counter()
    dirt: dict[str, Counter[str]] = {}
    people: Counter[int] = Counter()
    totals: Counter[str] = Counter()
    ids = {
        "music_events": world.track_ids,
        "podcast_events": world.podcasts.ids,
        "audiobook_events": world.audiobooks.ids,
    }
    writers = {table: _EventWriter(config, folder, table, ids[table]) for table in EVENT_TABLES}
    catalogue = _CatalogueWriter(config, folder)
    truth = TruthWriter(world, truth_folder) if truth_folder is not None else None
    for chunk in range(world.n_chunks):
        group = world.people(chunk)
        user_ids = world.user_ids(group)
        catalogue.add("users", 0, _users(world, group, user_ids))
        people.update(group.segment.tolist())
        heard = listen(world, group, chunk)
        if truth is not None and heard.lookers is not None:
            truth.add(group, user_ids, heard.lookers, heard.tables["audiobook_events"])
        totals["recent"] += heard.recent_starters
        totals["first_ever"] += heard.recent_first_ever
        totals["listeners"] += heard.audiobook_listeners
        for number, table in enumerate(EVENT_TABLES):
            written, counts = soil_events(
                stream_of(config.seed, 30, chunk, number), config, heard.tables[table]
            )
            writers[table].add(chunk, group.first, user_ids, written)
            clean[table] += len(heard.tables[table])
            rows[table] += len(written)
            dirt.setdefault(table, Counter()).update(counts)
    for writer in writers.values():
        writer.close()

    catalogue.add("tracks", 1, _tracks(world))
    for number, table in ((2, "podcasts"), (3, "audiobooks")):
        for columns in _titles(world, table):
            catalogue.add(table, number, columns)
    catalogue.close()
    rows.update(catalogue.rows)
    clean.update(catalogue.clean)
    dirt.update(catalogue.dirt)
    if truth is not None:
        truth.close(simulator_hash(config))

    files = {
        str(path.relative_to(folder)): {"sha256": _sha256(path)} for path in sorted(folder.rglob("*.parquet"))
    }
    summary = GeneratedSummary(
        config_hash=config_hash(config),
        code_hash=code_hash(),
        first_day=config.first_day,
        last_day=config.last_day,
        rows={table: rows[table] for table in SCHEMAS},
        clean_rows={table: clean[table] for table in SCHEMAS},
        dirt={table: dict(sorted(dirt[table].items())) for table in SCHEMAS},
        users_without_events=people[NO_EVENTS],
        users_of_music_only=people[MUSIC_ONLY],
        users_of_music_and_podcasts=people[MUSIC_AND_PODCASTS],
        audiobook_listeners=totals["listeners"],
        starters_last_14_days=totals["recent"],
        first_ever_last_14_days=totals["first_ever"],
        bytes=sum((folder / name).stat().st_size for name in files),
    )
    record = {
        "generator": "audiorec.simulator",
        "config": config.model_dump(mode="json"),
        "summary": summary.model_dump(mode="json", exclude={"reused", "seconds"}),
        "files": files,
    }
    (folder / MARKER).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


class _CatalogueWriter:
    """Writes users and catalogues, each a chunk at a time, and counts their rows and dirt."""

    def __init__(self, config: SimulatorConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.writers: dict[str, pq.ParquetWriter] = {}
        self.chunks: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()
        self.clean: Counter[str] = Counter()
        self.dirt: dict[str, Counter[str]] = {}

    def add(self, table: str, number: int, columns: Row) -> None:
        """Write one chunk of a table as a row group; `number` is the table's random stream."""
        chunk = self.chunks[table]
        # The first chunk has the table's own stream: a table of one chunk does not know of chunks.
        key = (31, number, chunk) if chunk else (31, number)
        dirty, counts = soil_catalogue(
            stream_of(self.config.seed, *key), self.config.dirt, table, columns, self.config.last_day.year
        )
        self.chunks[table] += 1
        self.rows[table] += len(next(iter(dirty.values())))
        self.clean[table] += len(next(iter(columns.values())))
        self.dirt.setdefault(table, Counter()).update(counts)
        schema = SCHEMAS[table]
        if table not in self.writers:
            self.writers[table] = pq.ParquetWriter(self.folder / f"{table}.parquet", schema, **_PARQUET)
        arrays = [pa.array(dirty[field.name], field.type) for field in schema]
        self.writers[table].write_table(pa.table(arrays, schema=schema))

    def close(self) -> None:
        """Finish the files."""
        for writer in self.writers.values():
            writer.close()


def _write_parquet(data: pa.Table, path: Path) -> None:
    pq.write_table(data, path, **_PARQUET)


# Fixed here rather than left to the library's defaults, so that an upgrade changes no byte by itself.
_PARQUET = {"version": "2.6", "compression": "zstd", "compression_level": 1, "data_page_version": "1.0"}


class _EventWriter:
    """Writes one event table chunk by chunk, in either layout."""

    def __init__(self, config: SimulatorConfig, folder: Path, table: str, item_ids: list[str]) -> None:
        self.config = config
        self.folder = folder / table
        self.schema = SCHEMAS[table]
        self.items = self._pool(item_ids, "ghost-item")
        self.item_count = len(item_ids)
        self.events = pa.array(SPELLINGS, _TEXT)
        self.midnight = int(np.datetime64(config.first_day, "us").astype(np.int64))
        self.flat: pq.ParquetWriter | None = None
        if config.layout == "flat":
            self.flat = pq.ParquetWriter(folder / f"{table}.parquet", self.schema, **_PARQUET)

    @staticmethod
    def _pool(ids: Iterable[str], ghost: str) -> pa.Array:
        """Ids, then one null, then the unknown ids."""
        return pa.array([*ids, None, *(f"{ghost}-{i:02d}" for i in range(UNKNOWN_IDS))], _TEXT)

    @staticmethod
    def _place(rows: np.ndarray, count: int) -> pa.Array:
        """Positions in the pool of NULL (-1) and UNKNOWN (-2, -3, ...) behind the `count` known ids."""
        return pa.array(np.where(rows >= 0, rows, count - 1 - rows))

    def add(self, chunk: int, first_user: int, user_ids: list[str], rows: WrittenEvents) -> None:
        """Write the rows of one chunk of users: a row group (flat) or a part in each folder (hive)."""
        users = self._pool(user_ids, "ghost-user")
        own = np.where(rows.user >= 0, rows.user - first_user, rows.user)
        data = pa.table(
            [
                users.take(self._place(own, len(user_ids))),
                self.items.take(self._place(rows.item, self.item_count)),
                self.events.take(pa.array(rows.spelling)),
                pa.array(rows.at_us + self.midnight).cast(pa.timestamp("us")),
                pa.array(rows.seconds.astype(np.int32)),
            ],
            schema=self.schema,
        )
        if self.flat is not None:
            self.flat.write_table(data)
            return
        # soil_events orders by folder first. Days without rows get an empty file: no folder means late.
        bounds = np.searchsorted(rows.folder, np.arange(self.config.days + 1))
        for day in range(self.config.days):
            place = self.folder / f"date={self.config.first_day + timedelta(days=day)}"
            place.mkdir(parents=True, exist_ok=True)
            part = data.slice(bounds[day], bounds[day + 1] - bounds[day])
            _write_parquet(part, place / f"part-{chunk:04d}.parquet")

    def close(self) -> None:
        """Finish the file of the flat layout."""
        if self.flat is not None:
            self.flat.close()


def _tracks(world: World) -> Row:
    artist = world.track_artist.tolist()
    return {
        "track_id": list(world.track_ids),
        "title": list(world.track_titles()),
        "artist_id": [world.artists.ids[i] for i in artist],
        "genre": [TOPICS[world.artists.main[i]].music for i in artist],
    }


def _users(world: World, group: People, user_ids: list[str]) -> Row:
    country = zip(group.country.tolist(), group.known_country.tolist(), strict=True)
    return {
        "user_id": list(user_ids),
        "country": [world.countries[row] if known else None for row, known in country],
        "birth_year": [year or None for year in group.birth_year.tolist()],
    }


def _titles(world: World, table: str) -> Iterator[Row]:
    """Catalogue columns of audiobooks or podcasts by chunk; a genre code is one of the main topic's three."""
    audiobooks = table == "audiobooks"
    shelf = world.audiobooks if audiobooks else world.podcasts
    main = shelf.main.tolist()
    if audiobooks:
        code = stream_of(world.config.seed, 7).integers(0, 3, len(main)).tolist()
        genre = [TOPICS[topic].bisac[i] for topic, i in zip(main, code, strict=True)]
    else:
        genre = [TOPICS[topic].category for topic in main]
    first = world.config.first_day
    for chunk, texts in enumerate(world.texts_by(shelf, CHUNK_TITLES)):
        rows = slice(chunk * CHUNK_TITLES, (chunk + 1) * CHUNK_TITLES)
        yield {
            "audiobook_id" if audiobooks else "podcast_id": list(shelf.ids[rows]),
            "title": list(texts.title),
            "description": list(texts.description),
            "author" if audiobooks else "publisher": list(texts.creator),
            "genre" if audiobooks else "category": list(genre[rows]),
            "language": [world.languages[i] for i in shelf.language[rows].tolist()],
            "published_on": [
                None if day == LONG_AGO else first + timedelta(days=day)
                for day in shelf.published_day[rows].tolist()
            ],
        }
