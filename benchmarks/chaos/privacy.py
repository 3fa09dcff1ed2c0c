"""Experiment 20: a hundred users are forgotten, while the service runs; then builds, a backfill and a rollback."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from audiorec.forget import forget, holdings
from audiorec.pseudonyms import Pseudonyms, forgotten
from audiorec.registry import CHAMPION, Registry
from audiorec.release import ReleaseControl
from audiorec.retention import collect
from benchmarks.chaos.damage import KEY, service
from benchmarks.chaos.lab import AS_OF, BEFORE_PROMOTE, DAY, Lab, Place
from benchmarks.chaos.report import Experiment, Row

ASKED_AGAIN_SECONDS = 60.0
"""Within which a service that runs must have seen a tombstone."""


def forget_users(lab: Lab, seed: int, short: bool) -> list[Row]:
    """Forget users, then look for them in all that is served or made afterwards."""
    number = 5 if short else 100
    chance = random.Random(seed)
    place = lab.copy("forget", **lab.registry("forget"))
    for as_of in (AS_OF - DAY, AS_OF):
        place.need("promote", as_of)
    events = duckdb.connect().execute(
        f"SELECT DISTINCT user_id FROM read_parquet('{lab.source}/audiobook_events/*/*.parquet') WHERE user_id IS NOT NULL"
    )
    users = sorted(str(row[0]) for row in events.fetchall())
    pseudonyms = Pseudonyms.of(place.settings)
    before = set(place.manifests())
    with service(place) as address:
        stranger = _titles(address, None)
        asked = chance.sample(users, min(len(users), 2 * number))
        known = [user for user in asked if _titles(address, user) != stranger]
        chosen = sorted(chance.sample(known, number))
        held_before = _held(place, frozenset(pseudonyms.name(user) for user in chosen))
        then = datetime.now(UTC)
        checked = [forget(place.settings, user, then).checked for user in chosen]
        names = frozenset(pseudonyms.name(user) for user in chosen)
        seen_after = _served_as_strangers(address, chosen, stranger)
        # A later day, the same day again, and a backfill of the day before.
        for as_of, run_type in ((AS_OF + DAY, "scheduled"), (AS_OF, "manual"), (AS_OF - DAY, "backfill")):
            if not short or as_of == AS_OF + DAY:
                place.need(" ".join((*BEFORE_PROMOTE, "promote")), as_of, "--run-type", run_type)
        fresh = set(place.manifests()) - before
        traces = _traces(place, fresh, names | set(chosen))
        champion = Registry(place.settings).alias(CHAMPION)
        later = _titles_of(address, chosen)
        back = ReleaseControl(place.settings).rollback(why="an experiment", who="chaos", hold_days=0)
        time.sleep(12)  # the service follows the alias
        stranger_back = _titles(address, None)
        rolled = sum(_titles(address, user) == stranger_back for user in chosen)
    same = sum(later[user] == later[None] for user in chosen)
    tombstones = len(forgotten(place.store) & names)
    rows = [
        Row(
            f"{number} users forgotten: a tombstone and a receipt each",
            f"{tombstones} of {number}; {max(checked)} versions looked through each time",
            tombstones == number,
            f"{held_before} versions held them",
        ),
        Row(
            f"the service that runs answers them as strangers within {ASKED_AGAIN_SECONDS:.0f} s",
            f"after {seen_after:.1f} s" if seen_after is not None else "never",
            seen_after is not None and seen_after <= ASKED_AGAIN_SECONDS,
        ),
        Row(
            "no trace in what is built later: the next day, the same day again, a backfill of the day before",
            f"{len(traces)} in {len(fresh)} versions",
            not traces and len(fresh) > (5 if short else 20),
            "; ".join(traces[:10]),
        ),
        Row(
            "no trace in what is served later",
            f"{same} of {number} strangers to version {champion.number if champion else '?'}",
            same == number,
        ),
        Row(
            "nor after a rollback to a version that was made with them",
            f"{rolled} of {number} strangers to version {back.after.version}",
            rolled == number,
        ),
    ]
    return rows if short else [*rows, _purged(place, names, then)]


def _purged(place: Place, names: frozenset[str], then: datetime) -> Row:
    """After privacy.purge_days, what still holds them is kept by an alias alone."""
    later = then + timedelta(days=place.settings.privacy.purge_days, hours=1)
    collect(place.settings, apply=True, now=later)
    left = holdings(place.store, names)
    champion = Registry(place.settings).alias(CHAMPION)
    serving = str(champion.as_of) if champion else ""
    beyond = [one for one in left if one.dataset != "interactions" and one.key != serving]
    return Row(
        f"{place.settings.privacy.purge_days} days later a collection leaves only what the champion needs",
        f"{len(left)} versions, {len(beyond)} of them not the champion's",
        not beyond,
        "a champion that holds them is kept until the next one: it serves everybody else",
    )


def _titles(address: str, user: str | None) -> tuple[str, ...]:
    body = {"k": 10, **({"user_id": user} if user else {})}
    answer = httpx.post(
        f"{address}/v1/recommendations", json=body, headers={"X-API-Key": KEY}, timeout=60.0, trust_env=False
    )
    answer.raise_for_status()
    return tuple(one["id"] for one in answer.json()["recommendations"])


def _titles_of(address: str, users: list[str]) -> dict[str | None, tuple[str, ...]]:
    time.sleep(12)  # the service follows the alias
    return {user: _titles(address, user) for user in (None, *users)}


def _served_as_strangers(address: str, users: list[str], stranger: tuple[str, ...]) -> float | None:
    """Seconds until all of them are answered as nobody known; None if it takes too long."""
    began = time.monotonic()
    while time.monotonic() - began < 3 * ASKED_AGAIN_SECONDS:
        if _titles(address, users[-1]) == stranger:
            seconds = time.monotonic() - began
            return seconds if all(_titles(address, user) == stranger for user in users) else None
        time.sleep(0.2)
    return None


def _held(place: Place, names: frozenset[str]) -> int:
    return len(holdings(place.store, names))


def _traces(place: Place, manifests: set[str], names: frozenset[str] | set[str]) -> list[str]:
    """Files of some versions in which any of the names is: in any column of text, or in the bytes."""
    wanted, found = pa.array(sorted(names)), []
    for path in sorted(manifests):
        folder = (place.store_folder / path).parent
        for file in folder.rglob("*"):
            if file.is_file() and _holds(file, wanted, names):
                found.append(str(file.relative_to(place.store_folder)))
    return found


def _holds(file: Path, wanted: pa.Array, names: frozenset[str] | set[str]) -> bool:
    if file.suffix == ".parquet":
        table = pq.read_table(file, partitioning=None)
        return any(
            pc.any(pc.is_in(column.cast(pa.string()), value_set=wanted)).as_py()
            for column, kind in zip(table.columns, table.schema.types, strict=True)
            if pa.types.is_string(kind) or pa.types.is_large_string(kind)
        )
    data = file.read_bytes()
    # Ids of the source are short and could be part of anything; what is stored are pseudonyms of 32 digits.
    return any(name.encode() in data for name in names if len(name) >= 16)


EXPERIMENTS = (Experiment("forget", 20, "A hundred users forgotten", 20, forget_users),)
