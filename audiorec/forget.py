"""Forgetting a user: at once in what is served, in every later build of any date, and in time in what is stored.

A tombstone is a record of the store named by the user's pseudonym. Extract leaves the user's rows out from then on
(`audiorec.pseudonyms`), and digests of the source are taken after that, so each date that still holds the user is
stale by its fingerprint: no backfill and no rerun brings anyone back. The service asks `Forgotten` with each request,
so a rollback to an older version does not, either. What was stored before is listed by `holdings`, for the receipt
and for the collection (`audiorec gc`). Trained weights hold no ids and no vector of a user; what a user's plays did to
them goes with the next training, and the receipt says so.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow.parquet as pq

from audiorec.errors import BadSettings
from audiorec.pseudonyms import FORGOTTEN, Pseudonyms, forgotten
from audiorec.settings import Settings
from audiorec.store import Manifest, Store, can_name

RECEIPTS = "forgotten_receipts"
_USER = "user_id"


@dataclass(frozen=True)
class Holding:
    """A stored version that holds rows of forgotten users, and in which of its files."""

    dataset: str
    key: str
    fingerprint: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Receipt:
    """What forgetting one user found: what was looked at, what held the user then, and until when that is collected."""

    pseudonym: str
    since: datetime
    checked: int
    holdings: tuple[Holding, ...]
    collected_until: datetime

    def to_json(self) -> dict[str, Any]:
        """Plain, for the record that stays in the store."""
        plain = asdict(self) | {
            "since": self.since.isoformat(),
            "collected_until": self.collected_until.isoformat(),
        }
        plain["weights"] = (
            "trained weights hold no id and no vector of a user; those trained before are replaced by the next training"
        )
        return plain


def forget(settings: Settings, user_id: str, now: datetime | None = None) -> Receipt:
    """Put up the tombstone, then look through the whole store and leave a receipt. Doing it twice changes no date.

    Raises:
        BadSettings: the id is empty, or (where ids are stored as given) cannot name a file.
    """
    store = Store(settings.store.uri, settings.store.scratch)
    name = Pseudonyms.of(settings).name(user_id)
    if not user_id.strip() or not can_name(name):
        raise BadSettings(
            f"the id to forget is {user_id!r}; expected an id of the users table"
            + (
                ""
                if settings.privacy.user_ids == "pseudonyms"
                else ', of letters, digits, "-", "_" and "." where privacy.user_ids = "as_given"'
            )
        )
    moment = now or datetime.now(UTC)
    # The tombstone first: from here on nothing new is made or served of the user, whatever happens next.
    store.add_record(FORGOTTEN, f"{name}.json", (json.dumps({"since": moment.isoformat()}) + "\n").encode())
    since = tombstone_since(store, name)
    looked = [_holding(store, manifest, files, frozenset({name})) for manifest, files in _with_users(store)]
    held = tuple(holding for holding, users in looked if users)
    receipt = Receipt(name, since, len(looked), held, since + timedelta(days=settings.privacy.purge_days))
    store.add_record(
        RECEIPTS,
        f"{name}.{moment:%Y%m%dT%H%M%S%f}.json",
        (json.dumps(receipt.to_json(), indent=1) + "\n").encode(),
    )
    return receipt


def tombstone_since(store: Store, pseudonym: str) -> datetime:
    """When a user was first asked to be forgotten."""
    return datetime.fromisoformat(json.loads(store.read_record(FORGOTTEN, f"{pseudonym}.json"))["since"])


def holdings(store: Store, names: frozenset[str] | None = None) -> list[Holding]:
    """Stored versions that hold rows of forgotten users (of some, if `names` says which)."""
    return [holding for holding, _ in _held(store, forgotten(store) if names is None else names)]


def holdings_by_user(store: Store) -> dict[str, list[Holding]]:
    """The same by forgotten user, those whom nothing holds among them; each file is read once for all."""
    found: dict[str, list[Holding]] = {name: [] for name in sorted(forgotten(store))}
    for holding, users in _held(store, frozenset(found)):
        for name in users:
            found[name].append(holding)
    return found


def _held(store: Store, names: frozenset[str]) -> Iterator[tuple[Holding, frozenset[str]]]:
    """Versions that hold any of some users, and whom."""
    if not names:
        return
    for manifest, files in _with_users(store):
        holding, users = _holding(store, manifest, files, names)
        if users:
            yield holding, users


def _with_users(store: Store) -> Iterator[tuple[Manifest, list[str]]]:
    """Every version with rows of users, and the files that have them."""
    for dataset in store.datasets():
        for key in store.keys(dataset):
            for manifest in store.versions(dataset, key):
                files = [name for name, file in manifest.files.items() if _USER in (file.columns or {})]
                if files:
                    yield manifest, files


def _holding(
    store: Store, manifest: Manifest, files: list[str], names: frozenset[str]
) -> tuple[Holding, frozenset[str]]:
    """Which of a version's files hold any of some users, and whom of them; nobody if none does."""
    filters = [(_USER, "in", sorted(names))]
    by_file = {
        name: frozenset(
            pq.read_table(store.open(manifest, name), columns=[_USER], filters=filters)[_USER].to_pylist()
        )
        for name in files
    }
    held = tuple(name for name, users in by_file.items() if users)
    holding = Holding(manifest.dataset, manifest.key, manifest.fingerprint, held)
    return holding, frozenset().union(*by_file.values())


class Forgotten:
    """Whether a user is forgotten, as a service asks it; the list is read again every few seconds.

    A list that cannot be read any more counts as it was read last; one that was never read, or a key that is missing, as
    a list of everybody.
    """

    def __init__(
        self, settings: Settings, seconds: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._store = Store(settings.store.uri, settings.store.scratch)
        self._seconds, self._clock = seconds, clock
        self._pseudonyms: Pseudonyms | None = None
        self._names: frozenset[str] | None = None
        self._looked = -1e9

    def __call__(self, user_id: str) -> bool:
        if self._clock() - self._looked >= self._seconds:
            self._looked = self._clock()
            # A key that is not there yet (no release is, either), or what a remote store's client raises while it is away.
            with contextlib.suppress(Exception):
                self._pseudonyms = self._pseudonyms or Pseudonyms.read(self._settings)
                self._names = forgotten(self._store)
        if self._names is None or self._pseudonyms is None:
            return True
        # By the source's id or by pseudonym: a page or a client may use either.
        return self._pseudonyms.name(user_id) in self._names or user_id in self._names
