"""Features of users and audiobooks as they were known on a day (design 4), for training, judging and serving.

One code path serves all three: a *request* is a user and a day `t`, and sees events of the days before `t` inside
its window, never those of `t` or later. A target of training is a request on the target's day; judging is a
request on the split; serving is a request on the day after `as_of`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from audiorec import music
from audiorec.affinities import COUNTRY, Space, UserLayout, fit_space, unit_rows
from audiorec.catalogue import DAY_ZERO, SIGNALS, Extract, day_number

UNKNOWN = 0
"""Index of an unknown or missing category in every vocabulary."""

_CHUNK = 20_000
"""Requests whose histories are expanded at a time; bounds memory, changes nothing."""


@dataclass(frozen=True)
class FeatureConfig:
    """What features are made of; kept with a version, so that its own features can be rebuilt later."""

    window_days: int | Literal["all"] = 90
    popularity_windows: tuple[int, ...] = (7, 14, 30, 60)
    popularity_smoothing: float = 0.5
    weak_signals: bool = True
    music_dimensions: int = 64
    text_dimensions: int = 64
    use_hgnn: bool = True
    music: bool = True
    demographics: bool = True


@dataclass(frozen=True)
class Vectors:
    """Vectors of every title in catalogue order: text [N, T], and HGNN embeddings at one cut [N, D].

    `before` is the day number on which the cut ends (its first unseen day): what listeners say of a title, their
    taste in music and their countries, is counted up to there.
    """

    audiobook_text: np.ndarray
    podcast_text: np.ndarray
    audiobook_hgnn: np.ndarray | None = None
    podcast_hgnn: np.ndarray | None = None
    before: int | None = None

    def raw(self, space: str) -> tuple[np.ndarray, np.ndarray]:
        """Audiobooks' and podcasts' vectors of a space, as they were made."""
        if space == "text":
            return self.audiobook_text, self.podcast_text
        if self.audiobook_hgnn is None or self.podcast_hgnn is None:
            raise ValueError("these features need HGNN embeddings, but only text vectors were given")
        return self.audiobook_hgnn, self.podcast_hgnn


@dataclass(frozen=True)
class UserFeatures:
    """Features of R requests: country_idx [R] and dense [R, Fu]."""

    country_idx: np.ndarray
    dense: np.ndarray


@dataclass(frozen=True)
class ItemFeatures:
    """Features of all N audiobooks on one day: language_idx, genre_idx [N], dense [N, Fi], popularity [N, P].

    `spaces` are the titles' places [N, d] in each space of `audiorec.affinities`.
    """

    language_idx: np.ndarray
    genre_idx: np.ndarray
    dense: np.ndarray
    popularity: np.ndarray
    available: np.ndarray
    spaces: Mapping[str, np.ndarray]

    @property
    def unheard(self) -> np.ndarray:
        """bool [N]: nobody had streamed the title before the day."""
        return self.popularity[:, -1] == 0


@dataclass(frozen=True)
class FeatureSpec:
    """Vocabularies of the extract, spaces of the train cut and scalers of the training targets, kept with the version.

    `lift_countries` are the countries that the country space has a column for, indices into `countries` plus 1.
    """

    config: FeatureConfig
    countries: tuple[str, ...]
    lift_countries: tuple[int, ...]
    languages: tuple[str, ...]
    genres: tuple[str, ...]
    spaces: Mapping[str, Space] = field(repr=False)
    user_mean: np.ndarray = field(repr=False)
    user_scale: np.ndarray = field(repr=False)
    item_mean: np.ndarray = field(repr=False)
    item_scale: np.ndarray = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """All but the arrays, which `tensors` gives."""
        return {
            "config": asdict(self.config),
            **{name: list(getattr(self, name)) for name in _WORDS},
            "spaces": list(self.spaces),  # their order is that of the columns
        }

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays by name, for a safetensors file."""
        found = {f"spec.{name}": getattr(self, name) for name in _SCALERS}
        for name, space in self.spaces.items():
            found |= {f"space.{name}.centre.{kind}": centre for kind, centre in space.centre.items()}
            if space.axes is not None:
                found[f"space.{name}.axes"] = np.ascontiguousarray(space.axes)
        return found

    @classmethod
    def from_json(cls, plain: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> FeatureSpec:
        """What `to_json` and `tensors` gave."""
        config = dict(plain["config"])
        config["popularity_windows"] = tuple(config["popularity_windows"])
        spaces = {
            name: Space(
                {kind: tensors[f"space.{name}.centre.{kind}"] for kind in ("audiobook", "podcast")},
                tensors.get(f"space.{name}.axes"),
            )
            for name in plain["spaces"]
        }
        fields: dict[str, Any] = {name: tuple(plain[name]) for name in _WORDS}
        fields |= {name: np.asarray(tensors[f"spec.{name}"], np.float32) for name in _SCALERS}
        return cls(config=FeatureConfig(**config), spaces=spaces, **fields)

    @property
    def layout(self) -> UserLayout:
        """Where things stand in the dense user features."""
        return user_layout(self.config, self.spaces)

    def raw_users(self, dense: np.ndarray) -> np.ndarray:
        """Undo `scale_users`."""
        return (dense / self.user_scale + self.user_mean).astype(np.float32)

    def scale_users(self, dense: np.ndarray) -> np.ndarray:
        return ((dense - self.user_mean) * self.user_scale).astype(np.float32)

    def scale_items(self, dense: np.ndarray) -> np.ndarray:
        return ((dense - self.item_mean) * self.item_scale).astype(np.float32)


_WORDS = ("countries", "lift_countries", "languages", "genres")
_SCALERS = ("user_mean", "user_scale", "item_mean", "item_scale")
_LIFT_COUNTRIES = 16
"""Countries with the most users that get a lift of their own a title; each is a coordinate of every vector."""
_LIFT_PRIOR = 50.0
"""First streams of the whole market that are added to each country's before its lift is taken."""


def fit_spaces(config: FeatureConfig, vectors: Vectors) -> dict[str, Space]:
    """The spaces that histories are averaged in, fitted on the catalogue at the earliest train cut."""
    found = {"hgnn": fit_space(*vectors.raw("hgnn"), None)} if config.use_hgnn else {}
    return found | {"text": fit_space(*vectors.raw("text"), config.text_dimensions)}


def user_layout(config: FeatureConfig, spaces: Mapping[str, Space]) -> UserLayout:
    """Columns of the dense user features under a config."""
    widths = {
        name: len(space.centre["audiobook"]) if space.axes is None else space.axes.shape[1]
        for name, space in spaces.items()
    }
    return UserLayout(config.music_dimensions, widths, config.weak_signals)


def fit_scaler(dense: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and 1/standard deviation by column; a column that never varies is left as it is (scale 1)."""
    mean = dense.mean(axis=0, dtype=np.float64)
    deviation = dense.std(axis=0, dtype=np.float64)
    scale = np.where(deviation > 1e-6, 1.0 / np.maximum(deviation, 1e-6), 1.0)
    return mean.astype(np.float32), scale.astype(np.float32)


def vocabulary(values: pd.Series, least: int = 1) -> tuple[str, ...]:
    """Known values, sorted; index 0 is kept for unknown ones."""
    counts = values.dropna().value_counts()
    return tuple(sorted(counts[counts >= least].index))


def lookup(values: pd.Series, words: tuple[str, ...]) -> np.ndarray:
    """Index of each value in a vocabulary, 0 where it is unknown or missing."""
    return (pd.Index(list(words)).get_indexer(values) + 1).astype(np.int64)


class _History:
    """Events of all users, sorted by user and day, to cut out what one user did before one day."""

    def __init__(self, events: pd.DataFrame) -> None:
        ordered = events.sort_values(["user_idx", "day", "item_idx", "signal"], kind="stable")
        self.item = ordered["item_idx"].to_numpy(np.int64)
        self.signal = ordered["signal"].to_numpy(np.int64)
        self._key = ordered["user_idx"].to_numpy(np.int64) * 2**20 + ordered["day"].to_numpy(np.int64)

    def pairs(
        self, user_idx: np.ndarray, first: np.ndarray, before: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(request, event) for all events of request r's user on days first[r] <= day < before[r]."""
        start = np.searchsorted(self._key, user_idx * 2**20 + first)
        stop = np.searchsorted(self._key, user_idx * 2**20 + before)
        length = np.maximum(stop - start, 0)
        request = np.repeat(np.arange(len(user_idx)), length)
        offset = np.arange(len(request)) - np.repeat(np.cumsum(length) - length, length)
        return request, np.repeat(start, length) + offset

    def titles(
        self,
        user_idx: np.ndarray,
        first: np.ndarray,
        before: np.ndarray,
        signals: tuple[int, ...],
        width: int,
    ) -> sp.csr_matrix:
        """0/1 [R, width]: titles that each request's user touched by one of `signals`."""
        request, event = self.pairs(user_idx, first, before)
        keep = np.isin(self.signal[event], signals)
        counts = sp.coo_matrix(
            (np.ones(int(keep.sum()), np.float32), (request[keep], self.item[event[keep]])),
            shape=(len(user_idx), width),
        ).tocsr()
        counts.data[:] = 1.0
        return counts

    def counts(
        self, user_idx: np.ndarray, first: np.ndarray, before: np.ndarray, width: int
    ) -> sp.csr_matrix:
        """log(1 + events) [R, width]."""
        request, event = self.pairs(user_idx, first, before)
        counts = sp.coo_matrix(
            (np.ones(len(request), np.float64), (request, self.item[event])), shape=(len(user_idx), width)
        ).tocsr()
        counts.data = np.log1p(counts.data)
        return counts


class FeatureBuilder:
    """Builds features from one extract.

    Args:
        extract: catalogue, users and interactions.
        config: what features are made of.
        artist_vectors, artist_known: music vectors in the order of `extract.artists`.
        first_day: first day whose events are loaded (the window of the earliest request must not start before it).
    """

    def __init__(
        self,
        extract: Extract,
        config: FeatureConfig,
        artist_vectors: np.ndarray,
        artist_known: np.ndarray,
        first_day: date,
    ) -> None:
        self.extract, self.config = extract, config
        self.artist_vectors, self.artist_known = artist_vectors, artist_known
        self._first_day = first_day
        self._audiences: dict[int, np.ndarray] = {}
        """By day: one a target block, and costly."""

    @functools.cached_property
    def _audiobook_events(self) -> pd.DataFrame:
        return self.extract.events("audiobook", self._first_day, self.extract.as_of)

    @functools.cached_property
    def _audiobooks(self) -> _History:
        return _History(self._audiobook_events)

    @functools.cached_property
    def _podcasts(self) -> _History:
        return _History(self.extract.events("podcast", self._first_day, self.extract.as_of))

    @functools.cached_property
    def _music(self) -> _History:
        return _History(
            self.extract.events("music", self._first_day, self.extract.as_of, artist_of_track=True)
        )

    @functools.cached_property
    def _stream_days(self) -> tuple[np.ndarray, np.ndarray]:
        streams = self._audiobook_events[self._audiobook_events["signal"] == 0].sort_values(
            "day", kind="stable"
        )
        return streams["day"].to_numpy(np.int64), streams["item_idx"].to_numpy(np.int64)

    @functools.cached_property
    def _first_stream_days(self) -> tuple[np.ndarray, np.ndarray]:
        firsts = self.extract.first_streams.sort_values("day", kind="stable")
        return firsts["day"].to_numpy(np.int64), firsts["audiobook_idx"].to_numpy(np.int64)

    @functools.cached_property
    def _first_streams_by_user(self) -> tuple[np.ndarray, np.ndarray]:
        """(user and day as one sort key, audiobook_idx) of all first streams, by user and day."""
        firsts = self.extract.first_streams.sort_values(["user_idx", "day", "audiobook_idx"], kind="stable")
        key = firsts["user_idx"].to_numpy(np.int64) * 2**20 + firsts["day"].to_numpy(np.int64)
        return key, firsts["audiobook_idx"].to_numpy(np.int64)

    @functools.cached_property
    def _title_first_day(self) -> np.ndarray:
        first = np.full(len(self.extract.audiobooks), 10**9, np.int64)
        np.minimum.at(
            first,
            self.extract.first_streams["audiobook_idx"].to_numpy(),
            self.extract.first_streams["day"].to_numpy(),
        )
        return first

    def window_start(self, day: np.ndarray) -> np.ndarray:
        """First day number that a request on `day` may see."""
        if self.config.window_days == "all":
            return np.zeros_like(day)
        return np.maximum(day - self.config.window_days, 0)

    def with_artists_folded_in(self, before: date) -> FeatureBuilder:
        """The same, with artists that the factorisation did not know folded in from events before a day."""
        start = DAY_ZERO + timedelta(days=int(self.window_start(np.array(day_number(before)))))
        events = self.extract.events(
            "music", max(start, self._first_day), before - timedelta(days=1), artist_of_track=True
        )
        plays = music.plays_matrix(events, len(self.extract.users), len(self.extract.artists))
        vectors, known = music.fold_in_artists(plays, self.artist_vectors, self.artist_known)
        folded = FeatureBuilder(self.extract, self.config, vectors, known, self._first_day)
        # The loaded histories are the same; share them.
        for name in (
            "_audiobook_events",
            "_audiobooks",
            "_podcasts",
            "_music",
            "_stream_days",
            "_first_stream_days",
            "_first_streams_by_user",
            "_title_first_day",
        ):
            if name in self.__dict__:
                folded.__dict__[name] = self.__dict__[name]
        return folded

    # --- users

    def users(
        self,
        user_idx: np.ndarray,
        day: np.ndarray,
        vectors: Vectors,
        spec: FeatureSpec | None,
        spaces: Mapping[str, Space] | None = None,
    ) -> UserFeatures:
        """Features of requests (user_idx[r], day[r]); scaled and looked up by `spec`, raw (for fitting) without.

        Dense columns, see `UserLayout`: age and its absence; music vector and its presence; for audiobooks and
        podcasts, streamed and (apart) with a weak signal: the mean place in each space, and the log count. The
        spaces are the spec's, or those given where there is no spec yet.
        """
        spaces = spec.spaces if spec is not None else spaces or fit_spaces(self.config, vectors)
        layout = user_layout(self.config, spaces)
        places = {
            kind: np.concatenate(
                [space.place(kind, vectors.raw(name)[number]) for name, space in spaces.items()], axis=1
            )
            for number, kind in enumerate(("audiobook", "podcast"))
        }
        parts = [np.zeros((0, layout.width), np.float32)]
        for start in range(0, len(user_idx), _CHUNK):
            users, days = user_idx[start : start + _CHUNK], day[start : start + _CHUNK]
            first = self.window_start(days)
            columns = [self._age(users, days), self._music_vector(users, first, days)]
            for history in layout.histories:
                kind, _, weak = history.partition("_")
                signals = tuple(range(1, len(SIGNALS))) if weak else (0,)
                events = self._audiobooks if kind == "audiobook" else self._podcasts
                titles = events.titles(users, first, days, signals, len(places[kind]))
                columns.append(_mean_of(titles, places[kind]))
            parts.append(np.concatenate(columns, axis=1).astype(np.float32))
        dense = np.concatenate(parts)
        country = self.extract.users["country"].iloc[user_idx]
        if spec is None:
            return UserFeatures(np.zeros(len(user_idx), np.int64), dense)
        return UserFeatures(lookup(country, spec.countries), spec.scale_users(dense))

    def _age(self, users: np.ndarray, days: np.ndarray) -> np.ndarray:
        born = self.extract.users["birth_year"].to_numpy(np.float64, na_value=np.nan)[users]
        year = (np.datetime64(DAY_ZERO) + days.astype("timedelta64[D]")).astype("datetime64[Y]").astype(
            np.int64
        ) + 1970
        missing = np.isnan(born)
        if not self.config.demographics:
            missing = np.ones_like(missing)
        age = np.where(missing, 0.0, (year - np.nan_to_num(born) - 40.0) / 20.0)
        return np.stack([age, missing], axis=1)

    def _music_vector(self, users: np.ndarray, first: np.ndarray, days: np.ndarray) -> np.ndarray:
        if not self.config.music:
            return np.zeros((len(users), self.config.music_dimensions + 1), np.float32)
        plays = self._music.counts(users, first, days, len(self.artist_known))
        vectors, present = music.user_vectors(plays, self.artist_vectors, self.artist_known)
        return np.concatenate([vectors, present[:, None]], axis=1)

    # --- audiobooks

    def items(self, day: int, vectors: Vectors, spec: FeatureSpec | None) -> ItemFeatures:
        """Features of the whole catalogue as known before day number `day`.

        Dense columns: text vector, and HGNN embedding where it is used. `popularity`: log streams and log first
        streams, by window and over the whole window; log days since publication and since the first stream, each with
        a flag whether there was one. These go into the base alone: a tower that sees them learns what is in fashion
        today (docs/adr/0010).
        """
        columns = [vectors.audiobook_text]
        if self.config.use_hgnn:
            columns.append(vectors.raw("hgnn")[0])
        published = self.extract.published_day
        dated = published > -(10**8)
        since_published = np.where(dated, np.log1p(np.maximum(day - published, 0)), 0.0)
        streamed = self._title_first_day < day
        since_streamed = np.where(streamed, np.log1p(np.maximum(day - self._title_first_day, 0)), 0.0)
        ages = np.stack([since_published, dated, since_streamed, streamed], axis=1).astype(np.float32)
        popularity = np.concatenate([self.popularity(day), ages], axis=1)
        dense = np.concatenate(columns, axis=1).astype(np.float32)
        books = self.extract.audiobooks
        # A title streamed before its publication date is evidently out.
        available = ~dated | (published <= day) | streamed
        if spec is None:
            zeros = np.zeros(len(books), np.int64)
            return ItemFeatures(zeros, zeros, dense, popularity, available, {})
        before = day if vectors.before is None else min(day, vectors.before)
        places = {
            name: unit_rows(space.place("audiobook", vectors.raw(name)[0]))
            for name, space in spec.spaces.items()
        }
        return ItemFeatures(
            lookup(books["language"], spec.languages),
            lookup(books["genre"], spec.genres),
            spec.scale_items(dense),
            popularity,
            available,
            places
            | {
                "music": self._audience(before),
                COUNTRY: self._country_lift(
                    before, tuple(spec.countries[index - 1] for index in spec.lift_countries)
                ),
            },
        )

    def _audience(self, before: int) -> np.ndarray:
        if before not in self._audiences:
            self._audiences[before] = self._make_audience(before)
        return self._audiences[before]

    def _make_audience(self, before: int) -> np.ndarray:
        """Taste in music of each title's listeners before a day, [N, M]: unit length, zeros where nothing is known.

        The mean music vector of those who streamed it, less that of all who streamed anything.
        """
        firsts = self.extract.first_streams
        firsts = firsts[firsts["day"] < before]
        listeners, row = np.unique(firsts["user_idx"].to_numpy(np.int64), return_inverse=True)
        days = np.full(len(listeners), before, np.int64)
        vectors = self._music_vector(listeners, self.window_start(days), days)
        present = vectors[:, -1] > 0
        if not present.any():
            return np.zeros((len(self.extract.audiobooks), self.config.music_dimensions), np.float32)
        taste = np.where(present[:, None], vectors[:, :-1] - vectors[present, :-1].mean(axis=0), 0.0)
        streamed = sp.csr_matrix(
            (np.ones(len(firsts)), (firsts["audiobook_idx"], row)),
            shape=(len(self.extract.audiobooks), len(listeners)),
        )
        return unit_rows(np.asarray(streamed @ taste))

    def _country_lift(self, before: int, countries: tuple[str, ...]) -> np.ndarray:
        """log of a title's share of a country's first streams over its share everywhere, [N, countries]."""
        firsts = self.extract.first_streams
        firsts = firsts[firsts["day"] < before]
        titles = len(self.extract.audiobooks)
        column = pd.Index(list(countries)).get_indexer(
            self.extract.users["country"].to_numpy(object)[firsts["user_idx"].to_numpy(np.int64)]
        )
        known = column >= 0
        counts = np.zeros((titles, len(countries)))
        np.add.at(counts, (firsts["audiobook_idx"].to_numpy(np.int64)[known], column[known]), 1.0)
        total = np.bincount(firsts["audiobook_idx"], minlength=titles) + 0.5
        share = total / total.sum()
        own = (counts + _LIFT_PRIOR * share[:, None]) / (counts.sum(axis=0) + _LIFT_PRIOR)
        return np.log(own / share[:, None]).astype(np.float32)

    def popularity(self, day: int) -> np.ndarray:
        """log(count + smoothing) [N, 2 (windows + 1)]: streams, then first streams, before `day`, by window."""
        start = int(self.window_start(np.array(day)))
        windows = [*(max(day - w, start) for w in self.config.popularity_windows), start]
        counts = [
            self.counted(days, items, first, day)
            for days, items in (self._stream_days, self._first_stream_days)
            for first in windows
        ]
        return np.log(np.stack(counts, axis=1) + self.config.popularity_smoothing).astype(np.float32)

    def streams(self, first: int, before: int) -> np.ndarray:
        """Streams of each title on days first..before-1, [N]."""
        return self.counted(*self._stream_days, first, before)

    def listeners(self, first: int, before: int) -> np.ndarray:
        """Different users who streamed each title on days first..before-1, [N]."""
        events = self._audiobook_events
        chosen = events[(events["signal"] == 0) & (events["day"] >= first) & (events["day"] < before)]
        pairs = chosen[["user_idx", "item_idx"]].drop_duplicates()
        return np.bincount(pairs["item_idx"], minlength=len(self.extract.audiobooks)).astype(np.float64)

    def counted(self, days: np.ndarray, items: np.ndarray, first: int, before: int) -> np.ndarray:
        """Rows of (day, item) arrays sorted by day that fall on first..before-1, counted by item."""
        low, high = np.searchsorted(days, [first, before])
        return np.bincount(items[low:high], minlength=len(self.extract.audiobooks)).astype(np.float64)

    def streamed_before(self, user_idx: np.ndarray, day: np.ndarray) -> sp.csr_matrix:
        """0/1 [R, N]: titles that each request's user ever streamed before its day; never recommended again."""
        key, titles = self._first_streams_by_user
        start = np.searchsorted(key, user_idx * 2**20)
        stop = np.searchsorted(key, user_idx * 2**20 + day)
        length = stop - start
        request = np.repeat(np.arange(len(user_idx)), length)
        event = (
            np.repeat(start, length) + np.arange(len(request)) - np.repeat(np.cumsum(length) - length, length)
        )
        items = titles[event]
        return sp.csr_matrix(
            (np.ones(len(items), np.float32), (request, items)),
            shape=(len(user_idx), len(self.extract.audiobooks)),
        )


def _mean_of(titles: sp.csr_matrix, matrix: np.ndarray) -> np.ndarray:
    """Mean vector of the titles of each row [R, D] and, last, the log of their number; zeros where none."""
    number = titles.getnnz(axis=1).astype(np.float32)
    summed = np.asarray(titles @ matrix)
    return np.concatenate([summed / np.maximum(number, 1.0)[:, None], np.log1p(number)[:, None]], axis=1)


def fit_spec(
    builder: FeatureBuilder, users: UserFeatures, items: ItemFeatures, spaces: Mapping[str, Space]
) -> FeatureSpec:
    """Vocabularies of the extract and scalers of raw features (of the training targets and of one day's catalogue)."""
    books, countries = builder.extract.audiobooks, builder.extract.users["country"]
    words = vocabulary(countries, least=5) if builder.config.demographics else ()
    # By number of users, equal ones by name, so that the choice does not depend on an order of rows.
    numbers = countries.value_counts()
    common = sorted(words, key=lambda word: (-numbers[word], word))[:_LIFT_COUNTRIES]
    user_mean, user_scale = fit_scaler(users.dense)
    item_mean, item_scale = fit_scaler(items.dense)
    return FeatureSpec(
        builder.config,
        words,
        tuple(sorted(words.index(word) + 1 for word in common)),
        vocabulary(books["language"]),
        vocabulary(books["genre"]),
        spaces,
        user_mean,
        user_scale,
        item_mean,
        item_scale,
    )
