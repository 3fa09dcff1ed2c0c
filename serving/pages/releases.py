"""The versions that pages ask: loaded when first needed, kept by number and content, at most three of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from audiorec.champion import Bundle, read_pointer
from audiorec.errors import BadSettings
from audiorec.fingerprint import digest
from audiorec.pseudonyms import Pseudonyms
from audiorec.recommend import Asked, Recommender
from audiorec.registry import Registry, Version
from audiorec.settings import Settings
from audiorec.store import Store
from serving.following import hasty

KEPT = 3
"""Champion, candidate and one more; each holds its item vectors in memory."""
SAMPLE = 400
"""Users whose first ten are looked at where a page speaks of many."""
FIRST = 10


@dataclass
class Loaded:
    """A version with its manifests, and the first ten titles of the users that were asked about so far."""

    bundle: Bundle
    recommender: Recommender
    _tens: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def version(self) -> str:
        return self.recommender.version

    def sample(self, others: Loaded | None = None) -> list[str]:
        """Up to `SAMPLE` users who ever did something, evenly over the table; known to another version too, if given."""
        users = self.recommender.profiles.users
        ids = users.loc[users["seen"].to_numpy(bool), "user_id"]
        if others is not None:
            ids = ids[ids.isin(others.recommender.profiles.users["user_id"])]
        places = np.unique(np.linspace(0, max(len(ids) - 1, 0), min(len(ids), SAMPLE)).astype(int))
        return [str(one) for one in ids.to_numpy(object)[places]]

    def first_tens(self, users: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The ids of the first ten audiobooks of each user, as the service would answer now, without reasons."""
        with self._lock:
            missing = [one for one in users if one not in self._tens]
            prepared = [
                self.recommender.prepare(Asked(user_id=one, k=FIRST, reasons=False)) for one in missing
            ]
            for one, found in zip(missing, self.recommender.find(prepared), strict=True):
                self._tens[one] = tuple(
                    self.recommender.item_id("audiobook", row) for row in found.rows.tolist()
                )
            return {one: self._tens[one] for one in users}


class Releases:
    """Finds versions and loads them; a version is loaded once, whoever asks first, and never twice at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.store = Store(settings.store.uri, settings.store.scratch)
        self._loaded: OrderedDict[tuple[str, str], Loaded] = OrderedDict()
        self._lock = threading.Lock()

    def versions(self) -> list[Version]:
        """All registered versions, the latest date first. Raises Unavailable while MLflow is away."""
        return Registry(hasty(self._settings)).versions()

    def pointed(self) -> tuple[str, dict[str, Any]] | None:
        """(number, release) of the champion as the store knows it, without asking MLflow."""
        return read_pointer(self.store, self._settings.release.model_name)

    def get(self, number: str | None = None) -> Loaded:
        """A version by its number, by default the champion that the store points to.

        Raises:
            BadSettings: there is no such version, or nothing was ever promoted.
            Unavailable: another version than the champion is wanted, and MLflow is away.
            BadData, Corrupt: its files cannot be used.
        """
        pointed = self.pointed()
        if pointed is not None and number in (None, pointed[0]):
            return self._load(*pointed)
        if number is None:
            raise BadSettings(
                "no version was promoted into this store yet; once a run of the DAG has ended well, there is something to see"
            )
        for version in self.versions():
            if version.number == number:
                return self._load(number, version.release)
        raise BadSettings(f"there is no version {number}; the page Release lists those there are")

    def _load(self, number: str, release: dict[str, Any]) -> Loaded:
        key = number, digest(release)
        with self._lock:
            if key not in self._loaded:
                bundle = Bundle.load(self.store, release)
                like = next((one.recommender.encoder for one in self._loaded.values()), None)
                recommender = Recommender(self.store, bundle, number, like, Pseudonyms.read(self._settings))
                self._loaded[key] = Loaded(bundle, recommender)
            self._loaded.move_to_end(key)
            while len(self._loaded) > KEPT:
                self._loaded.popitem(last=False)
            return self._loaded[key]
