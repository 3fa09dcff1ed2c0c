"""What exists before anybody listens: items with topics, tone and popularity, and users with tastes.

Shapes: K topics, T tones, L languages, n items or users. Days are whole numbers, 0 = the first day of the
period, negative before it. The latent quantities live here only; the tables never hold them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from audiorec.simulator.config import SimulatorConfig
from audiorec.simulator.text import Texts, compose
from audiorec.simulator.vocabulary import COUNTRIES, TONES, TOPICS

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

K = len(TOPICS)
T = len(TONES)
DOMAINS = ("audiobook", "podcast", "music")
LONG_AGO = -36_500
"""Publication day (a century back) of what has no date of its own."""

# Segments of users: what they ever touch as streams.
NO_EVENTS, MUSIC_ONLY, MUSIC_AND_PODCASTS, AUDIOBOOKS = range(4)


def stream_of(seed: int, *key: int) -> np.random.Generator:
    """An own random stream for each purpose, so that a change in one leaves the others as they are."""
    return np.random.default_rng(np.random.SeedSequence([seed, *key]))


def _normalised(values: NDArray[np.float64]) -> Floats:
    """Rows that sum to one (an all-zero row, possible with tiny Dirichlet parameters, becomes even)."""
    sums = values.sum(axis=1, keepdims=True)
    even = np.full_like(values, 1.0 / values.shape[1])
    return np.divide(values, sums, out=even, where=sums > 0).astype(np.float32)


def block_starts(language: Ints, n: int) -> Ints:
    """[n + 1] where each of `n` languages begins in a sorted column."""
    return np.searchsorted(language, np.arange(n + 1))


@dataclass(frozen=True)
class Shelf:
    """The items of one domain, in blocks of one language each.

    Shapes: `topics` [n, K] rows sum to 1; `main`, `tone`, `language`, `home`, `published_day` [n];
    `log_popularity` [n] (-inf: never chosen); `drift` [weeks, n]; `block_start` [L + 1] where languages
    begin. `language` and `home` index the configuration's languages and the world's countries; music has
    no language, so artists are one block (0).
    """

    kind: str
    ids: list[str]
    topics: Floats
    main: Ints
    tone: Ints
    language: Ints
    home: Ints
    published_day: Ints
    log_popularity: NDArray[np.float64]
    drift: NDArray[np.float64]
    block_start: Ints
    novelty_boost: float
    novelty_days: float

    @cached_property
    def unit_topics(self) -> Floats:
        """[n, K] topics scaled to length 1, for cosines."""
        scaled: Floats = self.topics / np.linalg.norm(self.topics, axis=1, keepdims=True)
        return scaled

    def weights(self, day: int) -> NDArray[np.float64]:
        """[n] popularity of each item on a day: base times drift times novelty; 0 if not yet published."""
        age = day - self.published_day
        novelty = 1.0 + self.novelty_boost * np.exp(-np.maximum(age, 0) / self.novelty_days)
        week = int(np.clip(day // 7, 0, len(self.drift) - 1))
        weights: NDArray[np.float64] = np.where(
            age >= 0, np.exp(self.log_popularity + self.drift[week]) * novelty, 0.0
        )
        return weights


@dataclass(frozen=True)
class People:
    """One chunk of users.

    Shapes: `country`, `language`, `birth_year`, `segment`, `joined_day`, `adopted_day` [n]; `has_podcasts`
    [n] bool; `taste` of a domain [n, K], rows sum to 1; `tone` [n, T]; `activity` of a domain [n],
    median 1; `stamina` [n], None if all have the same. `first` is the global row number of the first user; `birth_year` 0 stands for unknown.
    """

    first: int
    country: Ints
    known_country: NDArray[np.bool_]
    language: Ints
    birth_year: Ints
    segment: Ints
    has_podcasts: NDArray[np.bool_]
    joined_day: Ints
    adopted_day: Ints
    common_taste: Floats
    taste: dict[str, Floats]
    tone: Floats
    stamina: NDArray[np.float64] | None
    activity: dict[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.segment)

    @property
    def listens_audiobooks(self) -> NDArray[np.bool_]:
        """Who starts audiobooks of their own accord (a signal may lead others to one)."""
        listens: NDArray[np.bool_] = self.segment == AUDIOBOOKS
        return listens


class World:
    """All items, and users chunk by chunk, of a configuration."""

    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config
        self.languages = list(config.languages)
        spoken = {code: row for code, row in COUNTRIES.items() if row[0] in config.languages}
        self.countries = list(spoken)
        shares = np.array([share for _, share in spoken.values()])
        self.country_share = shares / shares.sum()
        self.country_language = np.array([self.languages.index(language) for language, _ in spoken.values()])
        rng = stream_of(config.seed, 1)
        # Which topics a domain, a country and an age group lean to (log scale).
        self.topic_base = {domain: rng.normal(0.0, 0.5, K) for domain in DOMAINS}
        self.country_tilt = rng.normal(0.0, 0.5, (len(self.countries), K))
        self.age_tilt = rng.normal(0.0, 0.5, (4, K))
        self.audiobooks = self._shelf("audiobook", config.n_audiobooks, 2)
        self.podcasts = self._shelf("podcast", config.n_podcasts, 3)
        self.artists = self._shelf("artist", config.n_artists, 4)
        track_rng = stream_of(config.seed, 5)
        # Every artist has one track; the others fall to artists at random with a long tail.
        share = track_rng.pareto(1.5, config.n_artists) + 0.2
        extra = track_rng.choice(config.n_artists, config.n_tracks - config.n_artists, p=share / share.sum())
        self.track_artist: Ints = np.sort(np.concatenate([np.arange(config.n_artists), extra]))
        self.track_start: Ints = np.searchsorted(self.track_artist, np.arange(config.n_artists + 1))
        self.track_ids = _ids("t", track_rng.permutation(config.n_tracks))

    def _shelf(self, kind: str, n: int, key: int) -> Shelf:
        config = self.config
        rng = stream_of(config.seed, key)
        domain = "music" if kind == "artist" else kind
        if kind == "artist":
            language = np.zeros(n, np.int64)
            home = rng.choice(len(self.countries), n, p=self.country_share)
            block_start = np.array([0, n])
        else:
            by_language = np.zeros(len(self.languages))
            np.add.at(by_language, self.country_language, self.country_share)
            if "en" in self.languages:  # More is written in English than its share of the listeners.
                by_language = 0.7 * by_language
                by_language[self.languages.index("en")] += 0.3
            language = np.sort(rng.choice(len(self.languages), n, p=by_language / by_language.sum()))
            block_start = block_starts(language, len(self.languages))
            # The home of an item is a country of its language.
            same = self.country_language[None, :] == np.arange(len(self.languages))[:, None]
            cumulative = np.cumsum(same * self.country_share, axis=1)
            draw = rng.random(n) * cumulative[language, -1]
            home = (draw[:, None] >= cumulative[language]).sum(axis=1)
        base = np.exp(self.topic_base[domain])
        main = rng.choice(K, n, p=base / base.sum())
        side = _normalised(rng.standard_gamma(config.item_concentration / K, (n, K)))
        weight = rng.uniform(0.5, 0.9, (n, 1))
        topics = ((1 - weight) * side + weight * np.eye(K)[main]).astype(np.float32)
        # A little of everything keeps every topic drawable in every language.
        topics = _normalised(topics.astype(np.float64) + 1e-4)
        log_popularity = rng.normal(0.0, config.popularity_sigma, n)
        published = np.full(n, LONG_AGO, np.int64)
        if kind != "artist":
            share = config.published_in_period if kind == "audiobook" else config.podcasts_published_in_period
            # Back catalogue over some fifteen years; what is new is spread evenly over the period.
            published = -1 - rng.exponential(1_200, n).astype(np.int64).clip(0, 15_000)
            new = rng.permutation(n) < round(share * n)
            published[new] = rng.integers(0, config.days, int(new.sum()))
        if kind == "audiobook" and config.unstreamed_new_share > 0:
            untouched = rng.choice(n, max(1, round(config.unstreamed_new_share * n)), replace=False)
            published[untouched] = config.days - 1 - rng.integers(0, 10, len(untouched))
            log_popularity[untouched] = -np.inf
        weeks = config.days // 7 + 1
        drift = np.empty((weeks, n))
        # AR(1) with coefficient 0.9 from its stationary spread: popularity wanders, but not away.
        drift[0] = rng.normal(0.0, config.drift_sigma / np.sqrt(1 - 0.81), n)
        for week in range(1, weeks):
            drift[week] = 0.9 * drift[week - 1] + rng.normal(0.0, config.drift_sigma, n)
        return Shelf(
            kind=kind,
            ids=_ids({"audiobook": "a", "podcast": "p", "artist": "r"}[kind], rng.permutation(n)),
            topics=topics,
            main=main,
            tone=rng.integers(0, T, n),
            language=language,
            home=home,
            published_day=published,
            log_popularity=log_popularity,
            drift=drift,
            block_start=block_start,
            novelty_boost=0.0 if kind == "artist" else config.novelty_boost,
            novelty_days=config.novelty_days,
        )

    def texts(self, shelf: Shelf) -> Texts:
        """Title, description and author or publisher of each item of a shelf."""
        (whole,) = self.texts_by(shelf, len(shelf.ids))
        return whole

    def texts_by(self, shelf: Shelf, size: int) -> Iterator[Texts]:
        """The same, `size` items at a time."""
        rng = stream_of(self.config.seed, 6, DOMAINS.index(shelf.kind))
        seen: dict[tuple[str, str], int] = {}
        for start in range(0, len(shelf.ids), size):
            rows = slice(start, start + size)
            second = shelf.topics[rows].copy()
            second[np.arange(len(second)), shelf.main[rows]] = -1
            languages = [self.languages[i] for i in shelf.language[rows].tolist()]
            yield compose(
                rng, shelf.kind, languages, shelf.main[rows], second.argmax(axis=1), shelf.tone[rows], seen
            )

    def track_titles(self) -> list[str]:
        """Title of each track, in the language of its artist's home and on the artist's topic."""
        artist = self.track_artist
        topic = self.artists.main[artist]
        language = self.country_language[self.artists.home[artist]]
        rng = stream_of(self.config.seed, 6, 3)
        names = [self.languages[i] for i in language.tolist()]
        return compose(rng, "track", names, topic, topic, self.artists.tone[artist]).title

    @property
    def n_chunks(self) -> int:
        """How many chunks of users there are."""
        return -(-self.config.n_users // self.config.chunk_users)

    def people(self, chunk: int) -> People:
        """The users of one chunk."""
        config = self.config
        first = chunk * config.chunk_users
        n = min(config.chunk_users, config.n_users - first)
        rng = stream_of(config.seed, 10, chunk)
        country = rng.choice(len(self.countries), n, p=self.country_share)
        age = np.clip(16 + rng.gamma(2.6, 9.0, n), 16, 90).astype(np.int64)
        group = np.digitize(age, [26, 38, 52])
        alpha = np.exp(self.country_tilt[country] + self.age_tilt[group])
        alpha *= config.taste_concentration / alpha.sum(axis=1, keepdims=True)
        common = _normalised(rng.standard_gamma(alpha))
        shared = {
            "audiobook": config.audiobook_taste_shared,
            "podcast": config.podcast_taste_shared,
            "music": config.music_taste_shared,
        }
        taste, activity = {}, {}
        log_activity = rng.normal(0.0, config.activity_sigma, n)
        for domain in DOMAINS:
            base = np.exp(self.topic_base[domain])
            own = _normalised(rng.standard_gamma(config.taste_concentration * base / base.sum(), (n, K)))
            mixed = shared[domain] * common + (1 - shared[domain]) * own
            taste[domain] = _normalised(mixed.astype(np.float64))
            activity[domain] = np.exp(log_activity + rng.normal(0.0, config.domain_sigma, n))
            if config.activity_limit is not None:
                activity[domain] = np.minimum(activity[domain], config.activity_limit)
        draw = rng.random(n)
        segment = np.full(n, MUSIC_AND_PODCASTS)
        segment[draw < config.no_events_share + config.music_only_share] = MUSIC_ONLY
        segment[draw < config.no_events_share] = NO_EVENTS
        segment[draw >= 1 - config.audiobook_share] = AUDIOBOOKS
        joined = np.where(rng.random(n) < config.joined_in_period, rng.integers(0, config.days, n), LONG_AGO)
        # The square root makes the density of adoptions grow in proportion to the day.
        adopted = (config.days * np.sqrt(rng.random(n))).astype(np.int64).clip(0, config.days - 1)
        adopted[rng.random(n) < config.adopted_at_start] = 0
        without = (segment == AUDIOBOOKS) & (rng.random(n) < config.audiobook_without_podcasts)
        birth_year = config.last_day.year - age
        birth_year[rng.random(n) < config.null_birth_years] = 0
        return People(
            first=first,
            country=country,
            known_country=rng.random(n) >= config.null_countries,
            language=self.country_language[country],
            birth_year=birth_year,
            segment=segment,
            has_podcasts=(segment >= MUSIC_AND_PODCASTS) & ~without,
            joined_day=joined,
            adopted_day=np.maximum(adopted, joined),
            common_taste=common,
            taste=taste,
            tone=rng.normal(0.0, 1.0, (n, T)).astype(np.float32),
            stamina=self._stamina(chunk, n),
            activity=activity,
        )

    def _stamina(self, chunk: int, n: int) -> NDArray[np.float64] | None:
        sigma = self.config.stamina_sigma
        if sigma == 0:
            return None
        drawn: NDArray[np.float64] = stream_of(self.config.seed, 24, chunk).lognormal(
            -(sigma**2) / 2, sigma, n
        )
        return drawn

    def user_ids(self, people: People) -> list[str]:
        """Ids of the users of a chunk, by row."""
        width = max(4, len(str(self.config.n_users)))
        return [f"u{i:0{width}d}" for i in range(people.first, people.first + len(people))]

    def day_number(self, day: date) -> int:
        """A date as a day of the period."""
        return (day - self.config.first_day).days


def _ids(letter: str, numbers: Ints) -> list[str]:
    width = max(3, len(str(len(numbers))))
    return [f"{letter}{number:0{width}d}" for number in numbers.tolist()]
