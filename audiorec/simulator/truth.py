"""The truth behind the tables of a simulation: what no recommender may see, for the oracle alone.

It lies in a folder beside the tables, never inside: the chain opens the tables' folder and nothing else, and its
database connection is closed to every other place.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audiorec.errors import BadData
from audiorec.simulator.listening import EVENTS, STREAM, Events, Lookers
from audiorec.simulator.world import K, People, T, World

TRUTH_MARKER = "truth.json"
_TEXT = pa.string()
_SCHEMAS = {
    "users": pa.schema(
        [
            ("user_id", _TEXT),
            ("language", pa.int32()),
            ("country", pa.int32()),
            ("taste", pa.list_(pa.float32(), K)),
            ("tone", pa.list_(pa.float32(), T)),
            ("starts_a_day", pa.float64()),
            ("adopted_day", pa.int32()),
            ("curiosity", pa.float64()),
            ("looks_since", pa.int32()),
        ]
    ),
    "signals": pa.schema(
        [("user_id", _TEXT), ("audiobook_id", _TEXT), ("event", pa.int8()), ("at_us", pa.int64())]
    ),
}
FILES = ("users.parquet", "audiobooks.parquet", "signals.parquet")


def truth_of(tables: Path | str) -> Path:
    """The folder of the truth behind the tables in a folder."""
    folder = Path(tables).expanduser().resolve()
    return folder.with_name(f"{folder.name}.truth")


class TruthWriter:
    """Writes tastes and rates of users, factors of audiobooks and the signals given, a chunk of users at a time.

    Days count from the first day of the period. `language` and `country` are numbers that titles share.
    """

    def __init__(self, world: World, folder: Path) -> None:
        folder.mkdir()
        self.world = world
        self.folder = folder
        self.titles = pa.array(world.audiobooks.ids, _TEXT)
        self.writers = {
            name: pq.ParquetWriter(folder / f"{name}.parquet", schema, compression="zstd")
            for name, schema in _SCHEMAS.items()
        }

    def add(self, people: People, user_ids: list[str], look: Lookers, events: Events) -> None:
        """Write one chunk of users; `events` are their clean audiobook events."""
        config = self.world.config
        since = people.listens_audiobooks
        rate = np.where(since, people.activity["audiobook"] * config.audiobook_starts / 30, 0.0)
        columns = {
            "user_id": pa.array(user_ids, _TEXT),
            "language": people.language,
            "country": people.country,
            "taste": _vectors(people.taste["audiobook"]),
            "tone": _vectors(people.tone),
            "starts_a_day": rate,
            "adopted_day": np.where(since, people.adopted_day, config.days),
            "curiosity": look.curiosity,
            "looks_since": look.since,
        }
        self._write("users", columns)
        weak = events.event != STREAM
        columns = {
            "user_id": pa.array(user_ids, _TEXT).take(pa.array(events.user[weak] - people.first)),
            "audiobook_id": self.titles.take(pa.array(events.item[weak])),
            "event": events.event[weak],
            "at_us": events.at_us[weak],
        }
        self._write("signals", columns)

    def _write(self, name: str, columns: dict[str, object]) -> None:
        schema = _SCHEMAS[name]
        self.writers[name].write_table(
            pa.table(
                [
                    column
                    if isinstance(column, pa.Array)
                    else pa.array(column).cast(schema.field(field).type)
                    for field, column in columns.items()
                ],
                schema=schema,
            )
        )

    def close(self, simulator_hash: str) -> None:
        """Finish the files; the marker with the settings and the simulator's hash comes last."""
        for writer in self.writers.values():
            writer.close()
        shelf = self.world.audiobooks
        titles = pa.table(
            {
                "audiobook_id": self.titles,
                "topics": _vectors(shelf.topics),
                "tone": pa.array(shelf.tone),
                "language": pa.array(shelf.language),
                "home": pa.array(shelf.home),
                "published_day": pa.array(shelf.published_day),
                "log_popularity": pa.array(shelf.log_popularity),
                "drift": _vectors(shelf.drift.T),
            }
        )
        pq.write_table(titles, self.folder / "audiobooks.parquet", compression="zstd")
        record = {
            "simulator_hash": simulator_hash,
            "config": self.world.config.model_dump(mode="json"),
            "events": list(EVENTS),
            "files": {name: _sha256(self.folder / name) for name in FILES},
        }
        (self.folder / TRUTH_MARKER).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _vectors(matrix: np.ndarray) -> pa.Array:
    """Rows of a matrix as lists of one length."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).ravel()), matrix.shape[1])


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_truth(folder: Path) -> bool:
    """Whether a folder holds files of a truth and no others."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {*FILES, TRUTH_MARKER}


def truth_hash(folder: Path) -> str | None:
    """The simulator's hash that a complete folder of truth carries; None if there is none or it is damaged.

    Raises: BadData if something lies there that no simulator wrote.
    """
    if not folder.exists():
        return None
    if not is_truth(folder):
        raise BadData(
            f"generate: {folder} is where the truth behind the tables goes, but what is there was not written by"
            " this generator, so it is left alone; give another folder, or move this one away"
        )
    try:
        record = json.loads((folder / TRUTH_MARKER).read_text(encoding="utf-8"))
        whole = all(_sha256(folder / name) == record["files"][name] for name in FILES)
        return str(record["simulator_hash"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
