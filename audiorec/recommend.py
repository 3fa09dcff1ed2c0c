"""Recommendations from a released version: a user vector computed now, the nearest audiobooks, a reason each.

What the demo and the terminal use. Reasons rest on evidence only: a title of the user's own history with which the
recommended one shares listeners (edges of fewer than five users are never shown) or lies close in HGNN space;
where there is no such title, popularity says so.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from audiorec import index as nearest
from audiorec.champion import Bundle, read_pointer
from audiorec.errors import BadData, BadSettings
from audiorec.features import UserFeatures
from audiorec.judging import load_towers
from audiorec.pseudonyms import Pseudonyms
from audiorec.settings import Settings
from audiorec.store import Store

MIN_EDGE_USERS = 5
"""Co-listening that rests on fewer people is never shown (ops: privacy)."""
_CLOSE = 0.5
"""Least cosine in HGNN space at which two titles are called alike."""
_NEW_DAYS = 90
"""Days after its publication in which a title is called new."""


@dataclass(frozen=True)
class Recommendation:
    """One recommended audiobook with its score and the reason for it."""

    audiobook_id: str
    title: str
    author: str | None
    score: float
    reason: str


@dataclass(frozen=True)
class Evidence:
    """A title of the user's history."""

    item_type: str
    idx: int
    title: str
    signal: str


_DID = {
    "stream": "listened to",
    "follow": "follow",
    "preview": "previewed",
    "intent_to_pay": "looked at buying",
}


class Recommender:
    """A released version, loaded for answering.

    Args:
        store: where its files are; every one is checked against its hash when it is loaded.
        bundle: its manifests.
        version: its number in the registry.
        pseudonyms: how users are named in it.
    """

    def __init__(
        self, store: Store, bundle: Bundle, version: str, pseudonyms: Pseudonyms = Pseudonyms(None)
    ) -> None:
        self.version, self.as_of = version, bundle.as_of
        self._pseudonyms = pseudonyms
        self._store, self._manifests = store, bundle.manifests
        self._towers = load_towers(store, bundle.manifests["train_two_tower"])
        self._index = nearest.read(self._open("build_index", "audiobooks.faiss"))
        self._books = pd.read_parquet(self._open("extract", "audiobooks.parquet"))
        self._podcasts = pd.read_parquet(self._open("extract", "podcasts.parquet"))
        self._users = pd.read_parquet(self._open("refresh", "users.parquet"))
        self._row = pd.Index(self._users["user_id"])
        self._features = self._array("refresh", "user_features.npy")
        self._available = self._array("refresh", "available.npy")
        self._popularity = pd.read_parquet(self._open("refresh", "popularity.parquet"))
        self._by_country = pd.read_parquet(self._open("refresh", "popularity_by_country.parquet"))
        self._streamed = pd.read_parquet(self._open("refresh", "streamed.parquet")).set_index("user_idx")[
            "audiobook_idx"
        ]
        self._history = pd.read_parquet(self._open("refresh", "history.parquet")).set_index("user_idx")
        self._hgnn = {kind: self._array("refresh", f"{kind}_hgnn.npy") for kind in ("audiobook", "podcast")}

    @classmethod
    def champion(cls, settings: Settings) -> Recommender:
        """The champion that the store last pointed to.

        Raises:
            BadData: nothing was ever promoted into this store.
        """
        store = Store(settings.store.uri, settings.store.scratch)
        pointed = read_pointer(store, settings.release.model_name)
        if pointed is None:
            raise BadData(
                f"no version was promoted into {store.root} yet; run the chain (`audiorec run`) first"
            )
        version, release = pointed
        return cls(store, Bundle.load(store, release), version, Pseudonyms.of(settings))

    def _open(self, task: str, name: str) -> Any:
        return self._store.open(self._manifests[task], name)

    def _array(self, task: str, name: str) -> np.ndarray:
        return np.load(self._open(task, name), mmap_mode="r", allow_pickle=False)

    def row(self, user_id: str) -> int:
        """Row of a user, by the source's id or by pseudonym.

        Raises:
            BadSettings: this version does not know the user.
        """
        found = self._row.get_indexer([self._pseudonyms.name(user_id), user_id])
        row = int(found.max())
        if row < 0:
            raise BadSettings(
                f"user {user_id!r} is not among the {len(self._row)} users known on {self.as_of}"
            )
        return row

    def recommend(self, user_id: str, k: int = 10) -> list[Recommendation]:
        """The k best titles that the user never streamed, best first."""
        row = self.row(user_id)
        vector = self._towers.user_vectors(
            UserFeatures(
                self._users["country_idx"].to_numpy(np.int64)[[row]], np.array(self._features[[row]])
            )
        )
        barred = set(self._of(self._streamed, row))
        wanted = min(len(self._books), k + len(barred) + int((~self._available).sum()))
        scores, found = self._index.search(np.ascontiguousarray(vector, np.float32), wanted)
        chosen = [
            (int(i), float(s))
            for i, s in zip(found[0], scores[0], strict=True)
            if i >= 0 and i not in barred and self._available[i]
        ]
        evidence = self.evidence(row)
        country = _text(self._users["country"].iloc[row])
        return [
            Recommendation(
                self._books["audiobook_id"].iloc[idx],
                self._title("audiobook", idx),
                _text(self._books["author"].iloc[idx]),
                score,
                self.reason(idx, evidence, country),
            )
            for idx, score in chosen[:k]
        ]

    def _title(self, kind: str, idx: int) -> str:
        """A title's name, its id where it has none."""
        row = (self._books if kind == "audiobook" else self._podcasts).iloc[idx]
        return _text(row["title"]) or str(row[f"{kind}_id"])

    @staticmethod
    def _of(series: pd.Series, row: int) -> list[int]:
        if row not in series.index:
            return []
        return [int(value) for value in np.atleast_1d(series.loc[row])]

    def evidence(self, row: int) -> list[Evidence]:
        """The user's latest titles, newest first."""
        if row not in self._history.index:
            return []
        rows = self._history.loc[[row]].sort_values("day", ascending=False, kind="stable")
        return [
            Evidence(kind, int(idx), self._title(kind, int(idx)), signal)
            for kind, idx, signal in zip(rows["item_type"], rows["item_idx"], rows["signal"], strict=True)
        ]

    @functools.lru_cache(maxsize=4)  # noqa: B019 - one recommender lives as long as its version serves
    def _edges(self, other: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        name = f"release.audiobook_{other}"
        return (
            self._array("build_graph", f"{name}.indptr.npy"),
            self._array("build_graph", f"{name}.indices.npy"),
            self._array("build_graph", f"{name}.users.npy"),
        )

    def shared_listeners(self, idx: int, evidence: Evidence) -> int:
        """People who streamed both titles; 0 where they are too few to be shown."""
        indptr, indices, users = self._edges(evidence.item_type)
        neighbours = indices[indptr[idx] : indptr[idx + 1]]
        place = int(np.searchsorted(neighbours, evidence.idx))
        if place < len(neighbours) and neighbours[place] == evidence.idx:
            number = int(users[indptr[idx] + place])
            return number if number >= MIN_EDGE_USERS else 0
        return 0

    def reason(self, idx: int, evidence: list[Evidence], country: str | None) -> str:
        """Why this title, in a sentence."""
        if evidence:
            shared = [(self.shared_listeners(idx, one), one) for one in evidence]
            number, best = max(shared, key=lambda pair: pair[0])
            if number:
                return f"You {_DID[best.signal]} “{best.title}” ({best.item_type}); {number} people listened to both."
            cosines = [
                float(self._hgnn["audiobook"][idx] @ self._hgnn[one.item_type][one.idx]) for one in evidence
            ]
            closest = int(np.argmax(cosines))
            if cosines[closest] >= _CLOSE:
                near = evidence[closest]
                return f"You {_DID[near.signal]} “{near.title}” ({near.item_type}); it attracts the same listeners."
        if country:
            local = self._by_country[self._by_country["country"] == country]
            place = np.flatnonzero(local["audiobook_idx"].to_numpy() == idx)
            if len(place) and place[0] < 50 and int(local["listeners"].iloc[place[0]]) >= MIN_EDGE_USERS:
                return f"Popular in {country}: number {place[0] + 1} of the last 30 days there."
        recent = int(self._popularity["streams_30_days"].iloc[idx])
        # A handful of plays is not popularity, and may be one person's.
        if recent >= MIN_EDGE_USERS and int(self._popularity["listeners"].iloc[idx]) >= MIN_EDGE_USERS:
            return f"Popular now: {recent} plays in the last 30 days."
        published = self._books["published_on"].iloc[idx]
        if pd.notna(published) and (self.as_of - pd.Timestamp(published).date()).days <= _NEW_DAYS:
            return f"New: published on {pd.Timestamp(published).date()}."
        return "From the catalogue: little is known of this title yet."

    def example_users(self) -> dict[str, str | None]:
        """A user of each kind: warm, one who ever touched music and podcasts only, one who never did anything.

        Warm and seen are over all history, as in the protocol: a user whose last event lies before the window is no
        user without any. The first two have something in the window, for reasons to name.
        """
        warm = set(self._users.index[self._users["warm"]])
        podcast = set(self._history.index[self._history["item_type"] == "podcast"])
        # The music flag is a scaled column; its raw value is 1 where a music vector exists.
        spec, width = self._towers.spec, self._towers.spec.config.music_dimensions
        flag = (
            np.asarray(self._features[:, 2 + width]) / spec.user_scale[2 + width] + spec.user_mean[2 + width]
            > 0.5
        )
        has_music = set(np.flatnonzero(flag))
        described = self._users["country"].notna() & self._users["birth_year"].notna()
        nothing = self._users.index[described & ~self._users["seen"]]
        counts = self._history.groupby(level=0).size()

        def busiest(rows: set[Any]) -> str | None:
            kept = counts[counts.index.isin(rows)].sort_values(ascending=False, kind="stable")
            return self._users["user_id"].iloc[int(kept.index[0])] if len(kept) else None

        return {
            "a warm user": busiest(warm),
            "a user who knows only music and podcasts": busiest((podcast & has_music) - warm),
            "a user with nothing but a country and an age": self._users["user_id"].iloc[nothing[0]]
            if len(nothing)
            else None,
        }

    def about(self, user_id: str) -> str:
        """A line on what is known of a user."""
        row = self.row(user_id)
        user = self._users.iloc[row]
        touched = self.evidence(row)
        born = user["birth_year"]
        age = f"{self.as_of.year - int(born)} years" if pd.notna(born) else "age unknown"
        number = {kind: sum(one.item_type == kind for one in touched) for kind in ("audiobook", "podcast")}
        return f"{_text(user['country']) or 'country unknown'}, {age}, {number['audiobook']} audiobook(s), {number['podcast']} podcast(s) lately"


def _text(value: object) -> str | None:
    """A table's text, None where it is missing (pandas says NaN)."""
    return value if isinstance(value, str) else None
