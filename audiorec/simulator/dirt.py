"""What is wrong with the tables, on purpose and counted.

Rows that a reader must reject are added to the clean ones, on a microsecond of their own, so that they
collide with nothing and each has one fault; what a reader can mend (spelling, late rows) is done to clean
rows in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from audiorec.simulator.config import DirtRates, SimulatorConfig
from audiorec.simulator.listening import DAY_SECONDS, EVENTS, STREAM, Events
from audiorec.simulator.world import Ints

UNKNOWN_IDS = 25
"""Different ids of users and items that no table knows."""
NULL = -1
UNKNOWN = -2
"""User and item rows: NULL has no id; UNKNOWN, UNKNOWN - 1, ... are ids outside the tables."""

SPELLINGS: tuple[str, ...] = (
    *EVENTS,
    *(name.capitalize() for name in EVENTS),
    *(name.upper() for name in EVENTS),
)
"""Spellings of the events; index e, e + 4 and e + 8 mean event e."""

_DAY_US = DAY_SECONDS * 1_000_000

Row = dict[str, list[object]]
"""Columns of a catalogue table by name, all of one length."""


@dataclass(frozen=True)
class WrittenEvents:
    """Rows as they are written, all [n]; `spelling` indexes SPELLINGS, `folder` is the day of the folder."""

    user: Ints
    item: Ints
    spelling: Ints
    at_us: Ints
    seconds: Ints
    folder: Ints

    def __len__(self) -> int:
        return len(self.user)


def _count(rate: float, n: int) -> int:
    """Rows for a rate: rounded up, so that every kind with a rate shows even in small tables."""
    return int(np.ceil(rate * n - 1e-9)) if n else 0


def soil_events(
    rng: np.random.Generator, config: SimulatorConfig, clean: Events
) -> tuple[WrittenEvents, dict[str, int]]:
    """Clean events of one table with dirt, and how many rows have each kind of it (kinds of DirtRates)."""
    rates, n, days = config.dirt, len(clean), config.days
    hive = config.layout == "hive"
    spelling = clean.event.copy()
    day = clean.day
    folder = day.copy()
    counts: dict[str, int] = {}

    hit = rng.choice(n, _count(rates.mixed_case_events, n), replace=False) if n else np.zeros(0, np.int64)
    spelling[hit] += len(EVENTS) * rng.integers(1, 3, len(hit))
    counts["mixed_case_events"] = len(hit)

    # A row never comes in after the last day, so the newest ones cannot be late.
    able = np.flatnonzero(day <= days - 1 - config.late_days)
    wanted = _count(rates.late_rows, n) if hive and config.late_days else 0
    hit = rng.choice(able, min(wanted, len(able)), replace=False)
    folder[hit] += rng.integers(1, config.late_days + 1, len(hit))
    counts["late_rows"] = len(hit)

    columns = np.stack([clean.user, clean.item, spelling, clean.at_us, clean.seconds, folder])
    added = [columns]
    hit = rng.choice(n, _count(rates.duplicate_rows, n), replace=False) if n else np.zeros(0, np.int64)
    added.append(columns[:, hit])
    counts["duplicate_rows"] = len(hit)

    streams = np.flatnonzero(clean.event == STREAM)
    everything = np.arange(n)

    def add(kind: str, rate: float, base: Ints, change: Callable[[Ints], None]) -> None:
        size = _count(rate, n) if len(base) else 0
        row = rng.choice(base, size) if size else np.zeros(0, np.int64)
        # Clean rows have whole seconds, so a random microsecond over 0 is nobody else's.
        moment = rng.integers(0, DAY_SECONDS, size) * 1_000_000 + rng.integers(1, 1_000_000, size)
        copy = np.stack(
            [
                clean.user[row],
                clean.item[row],
                clean.event[row],
                day[row] * _DAY_US + moment,
                clean.seconds[row],
                day[row],
            ]
        )
        change(copy)
        added.append(copy)
        counts[kind] = size

    def set_seconds(low: int, high: int) -> Callable[[Ints], None]:
        def change(copy: Ints) -> None:
            copy[4] = rng.integers(low, high, copy.shape[1])

        return change

    def unknown(column: int) -> Callable[[Ints], None]:
        def change(copy: Ints) -> None:
            copy[column] = UNKNOWN - rng.integers(0, UNKNOWN_IDS, copy.shape[1])

        return change

    def null(column: int) -> Callable[[Ints], None]:
        def change(copy: Ints) -> None:
            copy[column] = NULL

        return change

    first_day = np.datetime64(config.first_day, "D")
    epoch = int((np.datetime64("1970-01-01") - first_day).astype(int))
    year_2000 = int((np.datetime64("2000-01-01") - first_day).astype(int))

    def move(low: int, high: int) -> Callable[[Ints], None]:
        def change(copy: Ints) -> None:
            copy[3] = copy[3] % _DAY_US + rng.integers(low, high, copy.shape[1]) * _DAY_US

        return change

    def too_late(copy: Ints) -> None:
        most = np.minimum(6, days - 1 - config.late_days - copy[5])
        copy[5] += config.late_days + rng.integers(1, most + 1)

    add("short_streams", rates.short_streams, streams, set_seconds(1, 30))
    add("negative_seconds", rates.negative_seconds, streams, set_seconds(-3_600, 0))
    add("absurd_seconds", rates.absurd_seconds, streams, set_seconds(200_000, 10_000_001))
    add("unknown_items", rates.unknown_items, everything, unknown(1))
    add("unknown_users", rates.unknown_users, everything, unknown(0))
    add("null_users", rates.null_users, everything, null(0))
    add("null_items", rates.null_items, everything, null(1))
    add("before_2000", rates.before_2000, everything, move(epoch + 1, year_2000 - 1))
    add("after_last_day", rates.after_last_day, everything, move(days, days + 400))
    early = np.flatnonzero(day <= days - 2 - config.late_days) if hive else np.zeros(0, np.int64)
    add("too_late_rows", rates.too_late_rows, early, too_late)

    rows = np.concatenate(added, axis=1)
    user, item, spelling, at_us, seconds, folder = rows[:, np.lexsort(rows[[4, 2, 1, 0, 3, 5]])]
    return WrittenEvents(user, item, spelling, at_us, seconds, folder), counts


def soil_catalogue(
    rng: np.random.Generator, rates: DirtRates, table: str, columns: Row, last_year: int
) -> tuple[Row, dict[str, int]]:
    """A catalogue or user table with dirt, ordered by id, and how many rows have each kind of it.

    `columns`: the id first; `last_year`: birth years after it are out of range.
    """
    key = next(iter(columns))
    n = len(columns[key])
    columns = {name: list(values) for name, values in columns.items()}
    counts: dict[str, int] = {}

    def spoil(kind: str, rate: float, column: str, change: Callable[[object], object]) -> None:
        able = [i for i, value in enumerate(columns[column]) if value is not None]
        rows = rng.choice(len(able), min(_count(rate, n), len(able)), replace=False).tolist()
        for row in rows:
            columns[column][able[row]] = change(columns[column][able[row]])
        counts[kind] = len(rows)

    def nothing(_: object) -> object:
        return None

    if table == "users":
        spoil("lower_case_countries", rates.lower_case_countries, "country", lambda v: str(v).lower())
        wrong = [1790, 1850, 1889, last_year + 1, last_year + 40]
        spoil(
            "bad_birth_years",
            rates.bad_birth_years,
            "birth_year",
            lambda _: wrong[int(rng.integers(0, len(wrong)))],
        )
    else:
        spoil("null_titles", rates.null_titles, "title", nothing)
        spoil("null_genres", rates.null_genres, "category" if table == "podcasts" else "genre", nothing)
        if table != "tracks":
            spoil("null_descriptions", rates.null_descriptions, "description", nothing)
            spoil("null_published_on", rates.null_published_on, "published_on", nothing)
            spoil(
                "mixed_case_languages",
                rates.mixed_case_languages,
                "language",
                lambda v: str(v).upper() if rng.random() < 0.5 else str(v).capitalize(),
            )
    order = np.argsort(np.array(columns[key], dtype=str), kind="stable").tolist()
    again = rng.choice(n, _count(rates.duplicate_ids, n), replace=False).tolist()
    counts["duplicate_ids"] = len(again)
    repeated = {position: order[position] for position in again}
    result: Row = {name: [] for name in columns}
    for position, row in enumerate(order):
        for name, values in columns.items():
            result[name].append(values[row])
        if position in repeated:
            for name, values in columns.items():
                value = values[row]
                result[name].append(f"{value or 'Untitled'} (2)" if name == "title" else value)
    return result, counts
