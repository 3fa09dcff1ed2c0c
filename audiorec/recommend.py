"""Recommendations from a released version: a user vector computed now, the best audiobooks, a reason each.

The one implementation behind the HTTP service, the terminal and the demo. Answering has three steps, so that the
service can search for many requests at once: `prepare` makes a request's query, a search finds rows, `finish` names
and explains them. A `Recommender` never changes, so any number of threads may ask it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from audiorec import index as nearest
from audiorec.affinities import unit_rows
from audiorec.champion import Bundle, read_pointer
from audiorec.errors import AudiorecError, BadData, BadSettings, ExitCode
from audiorec.judging import load_towers
from audiorec.new_titles import NewTitle, NewTitles, TextEncoder
from audiorec.profiles import KINDS, ItemType, Places, Profile, Profiles, Signal, Touched
from audiorec.pseudonyms import Pseudonyms
from audiorec.reasons import MIN_EDGE_USERS, Reason, Reasons, Titles
from audiorec.release_files import MODEL, ReleaseFiles
from audiorec.search import ExactSearch, Found, GraphSearch, Query, Search, inner_products
from audiorec.settings import Settings, Text
from audiorec.store import Store
from audiorec.user_tower import UserTower

__all__ = ["Answer", "Asked", "NewTitle", "Recommendation", "Recommender", "Touch", "UnknownTitle"]


class UnknownTitle(AudiorecError):
    """A title, a language or the like that the release does not know."""

    exit_code = ExitCode.BAD_SETTINGS


@dataclass(frozen=True)
class Touch:
    """A title that a user touched, by its id."""

    item_type: ItemType
    item_id: str
    signal: Signal = "stream"


@dataclass(frozen=True)
class Asked:
    """What a request says; all of it may be missing.

    Args:
        history: titles touched since the release was built, the newest first.
        artists: plays by artist id (track id where `music.unit` is track).
        without: titles of the history (type, id) to be taken as never touched.
        exclude: audiobooks not to be shown.
        new_titles: audiobooks that the release does not hold, ranked among the others by their text.
        reasons: whether each title gets one.
    """

    user_id: str | None = None
    history: Sequence[Touch] = ()
    artists: dict[str, float] = field(default_factory=dict)
    without: Sequence[tuple[str, str]] = ()
    country: str | None = None
    age: float | None = None
    k: int = 10
    language: str | None = None
    exclude: Sequence[str] = ()
    new_titles: Sequence[NewTitle] = ()
    reasons: bool = True


@dataclass(frozen=True)
class Recommendation:
    """One recommended audiobook with its score and the reason for it."""

    audiobook_id: str
    title: str
    author: str | None
    score: float
    reason: str
    detail: Reason | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Prepared:
    """A request on its way: who asks, with which vector, and what is to be found."""

    asked: Asked
    profile: Profile
    query: Query
    known: bool
    basis: tuple[str, ...]
    ignored: dict[str, list[str]]


@dataclass(frozen=True)
class Answer:
    """Recommendations, best first, and what they rest on.

    `known`: the release knows the user. `basis`: what of the user was used, of "audiobooks", "podcasts", "music",
    "age", "country"; `popular`: nothing but perhaps a country was known, so these are the popular titles there.
    `ignored`: ids of the request that the release does not know, by field.
    """

    titles: list[Recommendation]
    known: bool
    basis: tuple[str, ...]
    popular: bool
    ignored: dict[str, list[str]]


@dataclass(frozen=True)
class Similar:
    """A title near another: cosine in HGNN space, and people who streamed both (0: too few to be said)."""

    item_id: str
    title: str
    similarity: float
    users: int


class Recommender:
    """A released version, loaded for answering.

    Args:
        store: where its files are; every one is checked against its hash when it is loaded.
        bundle: its manifests.
        version: its number in the registry.
        encoder: a text encoder to share with another version of the same text model.
        pseudonyms: how its users are named.
    """

    def __init__(
        self,
        store: Store,
        bundle: Bundle,
        version: str,
        encoder: TextEncoder | None = None,
        pseudonyms: Pseudonyms = Pseudonyms(None),
    ) -> None:
        self.version, self.as_of = version, bundle.as_of
        files = ReleaseFiles(store, bundle)
        self.towers = load_towers(store, files.manifest("train_two_tower"), MODEL)
        self._user_tower = UserTower(self.towers)
        tables = {kind: files.table("extract", f"{kind}s.parquet") for kind in KINDS}
        self.books, self.podcasts = tables["audiobook"], tables["podcast"]
        self._ids: dict[str, list[str]] = {k: table[f"{k}_id"].tolist() for k, table in tables.items()}
        self._idx = {kind: {key: row for row, key in enumerate(ids)} for kind, ids in self._ids.items()}
        self.item_vectors = files.array("refresh", "item_vectors.npy")
        self.available = np.array(files.array("refresh", "available.npy"))
        self.search: Search = self._load_search(files)
        self.places = Places(files, self.towers)
        self.profiles = Profiles(files, self.towers, self.places, pseudonyms)
        self.reasons = Reasons(
            files, self.towers, self.places, self.profiles, self.item_vectors, self.books, self.podcasts
        )
        settings = Text(**files.manifest("embed_text").settings["text"])
        self.encoder = encoder if encoder and encoder.settings == settings else TextEncoder(settings)
        self._new_titles = NewTitles(files, self.towers, self.places, self.encoder)
        self._hgnn = {kind: files.array("refresh", f"{kind}_hgnn.npy") for kind in KINDS}
        self._similar = {
            "audiobook": ExactSearch(self._hgnn["audiobook"], self.available),
            "podcast": ExactSearch(self._hgnn["podcast"], np.ones(len(self.podcasts), bool)),
        }
        self._language = self.books["language"].to_numpy(object)
        self._authors = [_text(one) for one in self.books["author"].tolist()]
        self._recent = files.table("refresh", "popularity.parquet")
        self._by_country = files.table("refresh", "popularity_by_country.parquet")
        self._countries = frozenset(self._by_country["country"])
        self._popular_orders: dict[str | None, tuple[np.ndarray, np.ndarray]] = {}

    def _load_search(self, files: ReleaseFiles) -> Search:
        if files.manifest("build_index").facts["kind"] == "IndexFlatIP":
            likely = files.array("refresh", "sample_user_vectors.npy")
            return ExactSearch(self.item_vectors, self.available, queries=likely)
        found = nearest.read(files.open("build_index", "audiobooks.faiss"))
        return GraphSearch(found, self.item_vectors, self.available)

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
        return cls(store, Bundle.load(store, release), version, pseudonyms=Pseudonyms.of(settings))

    # --- answering

    def answer(self, asked: Asked) -> Answer:
        """The best titles for one request. Raises UnknownTitle for a language that no title has."""
        prepared = self.prepare(asked)
        return self.finish(prepared, self.find([prepared])[0])

    def prepare(self, asked: Asked) -> Prepared:
        """Who asks and what is to be found. Raises UnknownTitle for a language that no title has."""
        row = None if asked.user_id is None else self.profiles.row(asked.user_id)
        profile = self.profiles.stranger() if row is None else self.profiles.of_user(row)
        profile = self.profiles.with_demographics(profile, asked.country, asked.age)
        profile, no_artists = self.profiles.with_artists(profile, asked.artists)
        ignored = {"history": [], "artists": no_artists}
        touched = []
        for one in asked.history:
            idx = self._idx[one.item_type].get(one.item_id)
            if idx is None:
                ignored["history"].append(one.item_id)
            else:
                touched.append(Touched(one.item_type, idx, one.signal))
        profile = self.profiles.with_titles(profile, touched)
        if asked.without:
            taken = [(kind, self._idx[kind][key]) for kind, key in asked.without if key in self._idx[kind]]
            profile = self.profiles.without_titles(profile, taken)
        allowed = None if asked.language is None else self._in_language(asked.language)
        left_out = [self._idx["audiobook"][key] for key in asked.exclude if key in self._idx["audiobook"]]
        query = Query(
            self.vector(profile),
            asked.k,
            np.union1d(profile.streamed, np.array(left_out, np.int64)),
            allowed,
        )
        return Prepared(
            asked,
            profile,
            query,
            row is not None,
            self._basis(profile),
            {name: ids for name, ids in ignored.items() if ids},
        )

    def find(self, prepared: Sequence[Prepared]) -> list[Found]:
        """The rows for many requests at once; an answer does not depend on what it was asked beside."""
        found: list[Found | None] = [None] * len(prepared)
        scanned = []
        for number, one in enumerate(prepared):
            if _only_popular(one.basis):
                found[number] = self._popular(one.query, one.profile.country)
            else:
                scanned.append(number)
        for number, rows in zip(
            scanned, self.search.search([prepared[i].query for i in scanned]), strict=True
        ):
            found[number] = rows
        return [one for one in found if one is not None]

    def finish(self, prepared: Prepared, found: Found) -> Answer:
        """Name and explain what was found, new titles among it."""
        asked, popular = prepared.asked, _only_popular(prepared.basis)
        scores = found.scores
        fresh: list[NewTitle] = []
        if not popular and asked.new_titles:
            fresh = [
                one
                for one in asked.new_titles
                if one.audiobook_id not in asked.exclude
                and one.audiobook_id not in self._idx["audiobook"]
                and asked.language in (None, one.language)
            ]
        added = self._new_titles.place(fresh) if fresh else None
        if added:
            scores = np.concatenate([scores, inner_products(added.vectors, prepared.query.vector)])
        order = np.argsort(-scores, kind="stable")[: asked.k]
        ids, titles, authors = self._ids["audiobook"], self.reasons.titles["audiobook"], self._authors
        names = [(ids[row], titles[row], authors[row]) for row in found.rows.tolist()]
        names += [(one.audiobook_id, one.title, one.author) for one in fresh]
        reasons: list[Reason | None] = [None] * len(order)
        texts = [""] * len(order)
        if popular:
            texts = [
                self.reasons.popular_reason(row, prepared.profile.country)
                for row in found.rows[order].tolist()
            ]
        elif asked.reasons:
            chosen = self._titles(found.rows)
            chosen = (chosen.and_then(added) if added else chosen).taken(order)
            reasons = [*self.reasons.explain(prepared.profile, prepared.query.vector, chosen)]
            texts = [one.text if one else "" for one in reasons]
        recommended = [
            Recommendation(key, title, author, float(scores[place]), said, reason)
            for (key, title, author), place, said, reason in zip(
                (names[place] for place in order.tolist()), order.tolist(), texts, reasons, strict=True
            )
        ]
        return Answer(recommended, prepared.known, prepared.basis, popular, prepared.ignored)

    def read_texts(self, new: Sequence[NewTitle]) -> None:
        """Encode the texts of new titles, so that `finish` finds them; loads the text model the first time."""
        self._new_titles.read(new)

    def vector(self, profile: Profile) -> np.ndarray:
        """The user tower's vector [D], computed now."""
        return self._user_tower.vector(profile.features)

    def score(self, profile: Profile, rows: np.ndarray) -> np.ndarray:
        """Scores of some audiobooks for a user, [K], in float64."""
        return inner_products(np.asarray(self.item_vectors[rows]), self.vector(profile))

    def _titles(self, rows: np.ndarray) -> Titles:
        places = self.places.of("audiobook", rows)
        return Titles(
            rows,
            np.asarray(self.item_vectors[rows]),
            np.asarray(self._hgnn["audiobook"][rows]),
            unit_rows(places[:, self.places.columns("text")]),
        )

    def _basis(self, profile: Profile) -> tuple[str, ...]:
        kinds = {one.item_type for one in profile.history}
        there = {
            "audiobooks": "audiobook" in kinds,
            "podcasts": "podcast" in kinds,
            "music": self.profiles.has_music(profile),
            "age": profile.has_age,
            "country": profile.country is not None,
        }
        return tuple(name for name, is_there in there.items() if is_there)

    def _in_language(self, language: str) -> np.ndarray:
        allowed = np.asarray(self._language == language)
        if not allowed.any():
            known = sorted({one for one in self._language if isinstance(one, str)})
            raise UnknownTitle(f"no audiobook is in language {language!r}; known: {', '.join(known)}")
        return allowed

    # --- popularity alone

    def _popular(self, query: Query, country: str | None) -> Found:
        """Titles by new listeners in the country, then by plays everywhere; figures of fewer than five people count 0.

        The score is the number of new listeners in the country plus a fraction below 1 that orders the rest.
        """
        order, scores = self._popular_order(country)
        keep = ~np.isin(order, query.barred)
        if query.allowed is not None:
            keep &= query.allowed[order]
        rows = order[keep][: query.k]
        return Found(rows, scores[rows])

    def _popular_order(self, country: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Available rows, the most popular first, and a score of every row; kept by country."""
        key = country if country in self._countries else None
        if key not in self._popular_orders:
            self._popular_orders[key] = self._make_popular_order(key)
        return self._popular_orders[key]

    def _make_popular_order(self, country: str | None) -> tuple[np.ndarray, np.ndarray]:
        plays = self._recent["streams_30_days"].to_numpy(np.float64)
        plays = np.where(self._recent["listeners"].to_numpy() >= MIN_EDGE_USERS, plays, 0.0)
        scores = plays / (plays.max(initial=0.0) + 1.0)
        own = self._by_country[
            (self._by_country["country"] == country) & (self._by_country["listeners"] >= MIN_EDGE_USERS)
        ]
        scores[own["audiobook_idx"].to_numpy(np.int64)] += own["listeners"].to_numpy(np.float64)
        order = np.argsort(-scores, kind="stable")
        return order[self.available[order]], scores

    # --- similar titles

    def similar(self, kind: ItemType, item_id: str, k: int = 10) -> list[Similar]:
        """The titles of the same type that are nearest in HGNN space. Raises UnknownTitle."""
        row = self._idx[kind].get(item_id)
        if row is None:
            raise UnknownTitle(f"there is no {kind} {item_id!r} in the release of {self.as_of}")
        return self._near(kind, np.asarray(self._hgnn[kind][row]), k, row)

    def similar_to_text(self, title: NewTitle, k: int = 10) -> list[Similar]:
        """The audiobooks nearest to one that the release does not hold, by its text alone."""
        return self._near("audiobook", self._new_titles.place([title]).hgnn[0], k, -1)

    def _near(self, kind: ItemType, vector: np.ndarray, k: int, row: int) -> list[Similar]:
        barred = np.array([row] if row >= 0 else [], np.int64)
        found = self._similar[kind].search([Query(vector, k, barred)])[0]
        users = self.reasons.edges[kind, kind].users_between(np.array([row]), found.rows)[0]
        return [
            Similar(self.item_id(kind, int(one)), self.title(kind, int(one)), float(score), int(people))
            for one, score, people in zip(found.rows, found.scores, users, strict=True)
        ]

    def listened(self, idx: int) -> tuple[int, int] | None:
        """(plays in the last 30 days, listeners in the window) of an audiobook; None where these are too few to be said."""
        listeners = int(self._recent["listeners"].iloc[idx])
        if listeners < MIN_EDGE_USERS:
            return None
        return int(self._recent["streams_30_days"].iloc[idx]), listeners

    # --- names

    def title(self, kind: str, idx: int) -> str:
        """A title's name, its id where it has none."""
        return self.reasons.titles[kind][idx]

    def idx(self, kind: str, item_id: str) -> int:
        """The row of a title. Raises KeyError."""
        return self._idx[kind][item_id]

    def item_id(self, kind: str, idx: int) -> str:
        """The id that a title has outside."""
        return self._ids[kind][idx]

    # --- for the terminal

    def row(self, user_id: str) -> int:
        """Row of a user. Raises BadSettings if this version does not know the user."""
        row = self.profiles.row(user_id)
        if row is None:
            raise BadSettings(
                f"user {user_id!r} is not among the {len(self.profiles.users)} users known on {self.as_of}"
            )
        return row

    def recommend(self, user_id: str, k: int = 10) -> list[Recommendation]:
        """The k best titles that a known user never streamed, best first. Raises BadSettings for a stranger."""
        self.row(user_id)
        return self.answer(Asked(user_id=user_id, k=k)).titles

    def example_users(self) -> dict[str, str | None]:
        """A user of each kind: warm, one who ever touched music and podcasts only, one who never did anything.

        Warm and seen are over all history, as in the protocol: a user whose last event lies before the window is no
        user without any. The first two have something in the window, for reasons to name.
        """
        users = self.profiles.users
        titles, podcasts, music = self.profiles.activity()
        warm = users["warm"].to_numpy(bool)
        described = (users["country"].notna() & users["birth_year"].notna()).to_numpy()
        nothing = np.flatnonzero(described & ~users["seen"].to_numpy(bool))

        def busiest(chosen: np.ndarray) -> str | None:
            rows = np.flatnonzero(chosen & (titles > 0))
            return str(users["user_id"].iloc[rows[np.argmax(titles[rows])]]) if len(rows) else None

        return {
            "a warm user": busiest(warm),
            "a user who knows only music and podcasts": busiest((podcasts > 0) & music & ~warm),
            "a user with nothing but a country and an age": str(users["user_id"].iloc[nothing[0]])
            if len(nothing)
            else None,
        }

    def about(self, user_id: str) -> str:
        """A line on what is known of a user."""
        row = self.row(user_id)
        user = self.profiles.users.iloc[row]
        touched = {(one.item_type, one.idx) for one in self.profiles.of_user(row).history}
        born = user["birth_year"]
        age = f"{self.as_of.year - int(born)} years" if pd.notna(born) else "age unknown"
        number = {kind: sum(one == kind for one, _ in touched) for kind in KINDS}
        return f"{_text(user['country']) or 'country unknown'}, {age}, {number['audiobook']} audiobook(s), {number['podcast']} podcast(s) lately"


def _only_popular(basis: Sequence[str]) -> bool:
    """Whether nothing is known that a person could be told apart by."""
    return not set(basis) - {"country"}


def _text(value: object) -> str | None:
    """A table's text, None where it is missing (pandas says NaN)."""
    return value if isinstance(value, str) else None
