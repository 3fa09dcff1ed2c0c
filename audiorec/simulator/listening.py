"""What users do: which titles they take up, when they listen, and the weak signals around it.

A choice has two steps, as in a shop. A shelf of `candidates` items is drawn in proportion to popularity on
that day x topic, the topic from the user's taste, the language from the user's languages. From it the user
takes the item with the greatest utility: topic match (cosine) + tone + own country + Gumbel noise, a
softmax over the shelf. Both steps are vectorised and cost the same per choice for any size of catalogue. No
choice looks at what other users did.

Weak signals on audiobooks are either planted around streams (`SignalRates`) or come first and lead to some of
the streams (`LeadingSignals`); only of the second kind does the oracle know what they are worth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audiorec.simulator.config import LeadingSignals, SimulatorConfig
from audiorec.simulator.world import (
    AUDIOBOOKS,
    LONG_AGO,
    MUSIC_AND_PODCASTS,
    MUSIC_ONLY,
    Floats,
    Ints,
    People,
    Shelf,
    World,
    stream_of,
)

EVENTS = ("stream", "follow", "preview", "intent_to_pay")
STREAM, FOLLOW, PREVIEW, INTENT = range(4)
DAY_SECONDS = 86_400
BURN_IN_DAYS = 60
"""Shows taken up this long before the period still send sessions into it."""
MOST_SESSIONS = 400
"""Sessions of one title by one user."""

_BLOCK = 20_000
# Monday first: podcasts on the way to work, music on Friday and Saturday, audiobooks at the week-end.
_WEEKDAY = {
    "audiobook": (0.90, 0.85, 0.85, 0.90, 1.05, 1.25, 1.20),
    "podcast": (1.15, 1.15, 1.10, 1.10, 1.00, 0.70, 0.80),
    "music": (0.90, 0.90, 0.95, 1.00, 1.15, 1.15, 0.95),
}
# How the taking up of titles grows from the first to the last day: audiobooks are new.
_GROWTH = {"audiobook": 0.35, "podcast": 0.05, "music": 0.0}
# Share of listening by UTC hour: low at night, a bump in the morning, the most in the evening.
_HOUR = np.array([2, 1, 1, 1, 2, 3, 5, 8, 8, 6, 5, 5, 6, 6, 5, 5, 6, 8, 9, 9, 9, 8, 6, 4], dtype=float)
_MAX_SESSION = {"audiobook": 6 * 3600, "podcast": 4 * 3600, "music": 600}
_MEDIAN_SESSION = {"audiobook": 1_900, "podcast": 1_300, "music": 190}


@dataclass(frozen=True)
class Events:
    """Rows of an event table, all [n]: global user row, item row, index of EVENTS, µs from day 0, seconds."""

    user: Ints
    item: Ints
    event: Ints
    at_us: Ints
    seconds: Ints

    def __len__(self) -> int:
        return len(self.user)

    @property
    def day(self) -> Ints:
        """Day of the period that each row belongs to."""
        days: Ints = self.at_us // (DAY_SECONDS * 1_000_000)
        return days


@dataclass(frozen=True)
class ChunkEvents:
    """Clean events of one chunk of users, by table name, and the users who took up an audiobook lately."""

    tables: dict[str, Events]
    recent_starters: int
    recent_first_ever: int
    audiobook_listeners: int
    lookers: Lookers | None
    """Who gives signals that lead to streams; None where signals are planted around streams."""


@dataclass(frozen=True)
class Lookers:
    """Who looks around among the audiobooks and gives signals: `curiosity` (0: never) and first day, all [n]."""

    curiosity: NDArray[np.float64]
    since: Ints


def choose(
    rng: np.random.Generator,
    config: SimulatorConfig,
    shelf: Shelf,
    taste: Floats,
    people: People,
    user: Ints,
    day: Ints,
    english: int | None,
) -> Ints:
    """One item for each request.

    Shapes: `taste` [users, K]; `user` (row in `people`) and `day` [r]; returns [r] rows of `shelf`, -1 where
    nothing was published yet.
    """
    n, k = shelf.topics.shape
    chosen = np.full(len(user), -1, np.int64)
    if not len(user):
        return chosen
    language = np.zeros(len(user), np.int64) if shelf.kind == "artist" else people.language[user]
    if english is not None and shelf.kind != "artist":
        language = np.where(rng.random(len(user)) < config.foreign_language_share, english, language)
    # Row u of the taste's cumulative sum lies in (u, u + 1], so one search finds topics for all users.
    cumulative = np.cumsum(taste, axis=1, dtype=np.float64)
    cumulative = (cumulative / cumulative[:, -1:] + np.arange(len(taste))[:, None]).ravel()
    unit_taste = taste / np.linalg.norm(taste, axis=1, keepdims=True)
    step = np.maximum(day, 0) // config.popularity_step_days
    order = np.argsort(step, kind="stable")
    cuts = np.flatnonzero(np.diff(step[order])) + 1
    for rows in np.split(order, cuts):
        weights = shelf.weights(int(step[rows[0]]) * config.popularity_step_days)
        flat = np.concatenate([[0.0], np.cumsum((shelf.topics.T * weights).ravel())])
        if flat[-1] <= 0:
            continue
        for block in np.split(rows, range(_BLOCK, len(rows), _BLOCK)):
            who = user[block][:, None]
            draw = who + rng.random((len(block), config.candidates))
            topic = np.searchsorted(cumulative, draw, side="right") - who * k
            topic = np.clip(topic, 0, k - 1)
            low = flat[topic * n + shelf.block_start[language[block]][:, None]]
            high = flat[topic * n + shelf.block_start[language[block] + 1][:, None]]
            # A language without anything published on the topic: any language will do.
            empty = high <= low
            low = np.where(empty, flat[topic * n], low)
            high = np.where(empty, flat[topic * n + n], high)
            # Search the cumulative weights without their leading 0, so that items of weight 0 are never hit.
            point = low + rng.random(low.shape) * (high - low)
            item = np.searchsorted(flat[1:], point, side="right") - topic * n
            item = np.clip(item, 0, n - 1)
            match = np.einsum("rck,rk->rc", shelf.unit_topics[item], unit_taste[user[block]])
            utility = config.affinity_weight * match
            utility += config.tone_weight * people.tone[who, shelf.tone[item]]
            utility += config.home_weight * (shelf.home[item] == people.country[who])
            utility += rng.gumbel(size=utility.shape)
            utility[weights[item] <= 0] = -np.inf  # Rounding at the edge of a block.
            best = utility.argmax(axis=1)
            rank = np.arange(len(block))
            valid = np.isfinite(utility[rank, best])
            chosen[block[valid]] = item[rank, best][valid]
    return chosen


class Calendar:
    """Draws days in proportion to the weekday and growth of a domain; also gives expected amounts."""

    def __init__(self, config: SimulatorConfig, domain: str) -> None:
        day = np.arange(-BURN_IN_DAYS, config.days)
        weekday = (config.first_day.weekday() + day) % 7
        growth = 1.0 + _GROWTH[domain] * (2 * day / config.days - 1)
        weight = np.array(_WEEKDAY[domain])[weekday] * np.maximum(growth, 0.1)
        self.cumulative = np.concatenate([[0.0], np.cumsum(weight)])

    def mass(self, first: Ints, last: Ints) -> NDArray[np.float64]:
        """Expected occasions at a rate of 1 a day on the days from `first` to before `last` [n]; 0 if none."""
        top = len(self.cumulative) - 1
        low, high = (np.clip(day + BURN_IN_DAYS, 0, top) for day in (first, last))
        found: NDArray[np.float64] = np.maximum(self.cumulative[high] - self.cumulative[low], 0.0)
        return found

    def draw(self, rng: np.random.Generator, rate: NDArray[np.float64], since: Ints) -> tuple[Ints, Ints]:
        """(user, day) of Poisson many occasions at `rate` a day [n] from day `since` [n] to the last."""
        start = self.cumulative[np.maximum(since, -BURN_IN_DAYS) + BURN_IN_DAYS]
        count = rng.poisson(rate * (self.cumulative[-1] - start))
        user = np.repeat(np.arange(len(rate)), count)
        point = start[user] + rng.random(len(user)) * (self.cumulative[-1] - start[user])
        day = np.searchsorted(self.cumulative, point, side="right") - 1 - BURN_IN_DAYS
        return user, np.minimum(day, len(self.cumulative) - 2 - BURN_IN_DAYS)


def _second_of_day(rng: np.random.Generator, n: int) -> Ints:
    hour = np.searchsorted(np.cumsum(_HOUR / _HOUR.sum()), rng.random(n)).clip(0, 23)
    return hour * 3600 + rng.integers(0, 3600, n)


def _seconds(rng: np.random.Generator, domain: str, n: int, sigma: float) -> Ints:
    """Played seconds of clean streams: log-normal, never under the 30 s from which a stream counts."""
    seconds = _MEDIAN_SESSION[domain] * np.exp(rng.normal(0.0, sigma, n))
    return seconds.astype(np.int64).clip(30, _MAX_SESSION[domain])


def _first_of_each(user: Ints, item: Ints, day: Ints, n_items: int) -> NDArray[np.intp]:
    """Rows that keep the earliest day of each (user, item), ordered by user, item."""
    order = np.lexsort((day, item, user))
    key = (user * n_items + item)[order]
    return order[np.concatenate([[True], key[1:] != key[:-1]])] if len(key) else order


def _sessions(
    rng: np.random.Generator, day: Ints, mean: float, gap_days: float, stamina: NDArray[np.float64] | None
) -> tuple[Ints, Ints]:
    """(start row, day) of the sessions of each start; the first lies on its day, others days apart."""
    means = mean if stamina is None else 1.0 + (mean - 1.0) * stamina
    count = rng.geometric(1.0 / means, len(day)).clip(1, MOST_SESSIONS)
    row = np.repeat(np.arange(len(day)), count)
    first = np.concatenate([[0], np.cumsum(count)[:-1]]) if len(day) else np.zeros(0, np.int64)
    gap = 1 + rng.exponential(gap_days - 1, len(row)).astype(np.int64)
    if len(row):
        gap[first] = 0
    total = np.cumsum(gap)
    return row, day[row] + total - total[first][row] if len(row) else np.zeros(0, np.int64)


def _of(values: NDArray[np.float64] | None, user: Ints) -> NDArray[np.float64] | None:
    return None if values is None else values[user]


class _Rows:
    """Collects event rows of one table; times in seconds since day 0, cut to the period."""

    def __init__(self, days: int) -> None:
        self.end = days * DAY_SECONDS
        self.parts: list[NDArray[np.int64]] = []

    def add(
        self, user: Ints, item: Ints, event: int, at: Ints, seconds: Ints | int, earliest: Ints | int = 0
    ) -> None:
        """Add rows, leaving out those before `earliest`, before day 0 or after the last day."""
        keep = (at >= np.maximum(earliest, 0)) & (at < self.end)
        columns = np.broadcast_arrays(user, item, event, at, seconds)
        self.parts.append(np.stack(columns)[:, keep].astype(np.int64))

    def events(self, first_user: int) -> Events:
        """All rows by time; of rows that agree in user, item, event and second one stays."""
        user, item, event, at, seconds = np.concatenate(self.parts, axis=1)
        order = np.lexsort((seconds, event, item, user, at))
        key = np.stack([at, user, item, event])[:, order]
        new = np.ones(len(order), bool)
        new[1:] = (key[:, 1:] != key[:, :-1]).any(axis=0)
        order = order[new]
        return Events(
            user[order] + first_user, item[order], event[order], at[order] * 1_000_000, seconds[order]
        )


def _signal_before(
    rng: np.random.Generator,
    config: SimulatorConfig,
    rows: _Rows,
    event: int,
    share: float,
    start: tuple[Ints, Ints, Ints],
    earliest: Ints,
) -> None:
    """Weak signals on the way to a first stream at `start` = (user, item, second)."""
    user, item, at = start
    hit = np.flatnonzero(rng.random(len(user)) < share)
    lead = 60 + (rng.exponential(config.signals.lead_days, len(hit)) * DAY_SECONDS).astype(np.int64)
    seconds = rng.integers(5, 31, len(hit)) if event == PREVIEW else 0
    rows.add(user[hit], item[hit], event, at[hit] - lead, seconds, earliest[hit])


def _follow_after(
    rng: np.random.Generator, rows: _Rows, share: float, user: Ints, item: Ints, at: Ints
) -> None:
    hit = np.flatnonzero(rng.random(len(user)) < share)
    rows.add(user[hit], item[hit], FOLLOW, at[hit] + rng.integers(60, 3 * DAY_SECONDS, len(hit)), 0)


def _signals_only(
    rng: np.random.Generator, rows: _Rows, event: int, wanted: tuple[Ints, Ints, Ints], streamed: Ints, n: int
) -> None:
    """Weak signals `wanted` = (user, item, day) on titles that the user never streams."""
    user, item, day = wanted
    keep = (item >= 0) & ~np.isin(user * n + item, streamed)
    user, item, day = user[keep], item[keep], day[keep]
    seconds = rng.integers(5, 31, len(user)) if event == PREVIEW else 0
    rows.add(user, item, event, day * DAY_SECONDS + _second_of_day(rng, len(user)), seconds)


def _spoken(
    rng: np.random.Generator, world: World, people: People, domain: str, since: Ints
) -> tuple[Events, Ints, Ints]:
    """Events of audiobooks or podcasts, and (user, day) of the first streams within the period.

    `since` [n]: first day of each user in the domain; beyond the last day = none.
    """
    config, signals = world.config, world.config.signals
    shelf = world.audiobooks if domain == "audiobook" else world.podcasts
    english = world.languages.index("en") if "en" in world.languages else None
    n = len(shelf.ids)
    per_month = config.audiobook_starts if domain == "audiobook" else config.podcast_starts
    active = since < config.days
    rate = np.where(active, people.activity[domain] * per_month / 30, 0.0)
    since = np.where(active, since, config.days - 1)

    def pick(user: Ints, day: Ints) -> Ints:
        return choose(rng, config, shelf, people.taste[domain], people, user, day, english)

    user, day = Calendar(config, domain).draw(rng, rate, since)
    item = pick(user, day)
    known = np.flatnonzero(item >= 0)
    first = known[_first_of_each(user[known], item[known], day[known], n)]
    user, day, item = user[first], day[first], item[first]
    streamed = user * n + item

    rows = _Rows(config.days)
    mean = config.audiobook_sessions if domain == "audiobook" else config.podcast_sessions
    gap = 2.0 if domain == "audiobook" else 6.0
    start, session_day = _sessions(rng, day, mean, gap, _of(people.stamina, user))
    at = session_day * DAY_SECONDS + _second_of_day(rng, len(start))
    rows.add(user[start], item[start], STREAM, at, _seconds(rng, domain, len(start), 0.7))
    is_first = np.concatenate([[True], start[1:] != start[:-1]]) if len(start) else np.zeros(0, bool)
    first_at = at[is_first]
    earliest = np.maximum(shelf.published_day[item], people.joined_day[user]) * DAY_SECONDS

    before: dict[int, float]
    only: dict[int, float]
    if domain == "audiobook":
        before = {
            FOLLOW: signals.audiobook_follow_before,
            PREVIEW: signals.audiobook_preview_before,
            INTENT: signals.audiobook_intent_before,
        }
        only = {
            FOLLOW: signals.audiobook_follow_only,
            PREVIEW: signals.audiobook_preview_only,
            INTENT: signals.audiobook_intent_only,
        }
        after = signals.audiobook_follow_after
    else:
        before = {FOLLOW: signals.podcast_follow_before, PREVIEW: signals.podcast_preview_before}
        only = {FOLLOW: signals.podcast_follow_only, PREVIEW: signals.podcast_preview_only}
        after = signals.podcast_follow_after
    for event, share in before.items():
        _signal_before(rng, config, rows, event, share, (user, item, first_at), earliest)
    _follow_after(rng, rows, after, user, item, first_at)
    calendar = Calendar(config, domain)
    for event, ratio in only.items():
        looker, look_day = calendar.draw(rng, rate * ratio, since)
        _signals_only(rng, rows, event, (looker, pick(looker, look_day), look_day), streamed, n)
    if domain == "audiobook":
        browser = np.isin(people.segment, (MUSIC_ONLY, MUSIC_AND_PODCASTS))
        browser &= rng.random(len(people)) < signals.browser_share
        looker = np.repeat(
            np.arange(len(people)), rng.poisson(np.where(browser, signals.browser_signals, 0.0))
        )
        from_day = np.maximum(people.joined_day[looker], 0)
        look_day = from_day + (rng.random(len(looker)) * (config.days - from_day)).astype(np.int64)
        item_looked = pick(looker, look_day)
        kind = rng.choice([FOLLOW, PREVIEW, INTENT], len(looker), p=[0.2, 0.5, 0.3])
        for event in (FOLLOW, PREVIEW, INTENT):
            rows_of = kind == event
            wanted = (looker[rows_of], item_looked[rows_of], look_day[rows_of])
            _signals_only(rng, rows, event, wanted, streamed, n)
    inside = day >= 0
    return rows.events(people.first), user[inside], day[inside]


def lookers(world: World, people: People, chunk: int, leading: LeadingSignals) -> Lookers:
    """Future listeners look around from some days before their first stream on, and a few others do too."""
    n, days = len(people), world.config.days
    rng = stream_of(world.config.seed, 23, chunk)
    sigma = leading.curiosity_sigma
    curiosity = np.exp(rng.normal(-(sigma**2) / 2, sigma, n))
    before = rng.exponential(leading.notice_days, n).astype(np.int64)
    browses = (people.segment == MUSIC_AND_PODCASTS) & (rng.random(n) < leading.browser_share)
    begins = (rng.random(n) * days).astype(np.int64)
    since = np.where(people.segment == AUDIOBOOKS, people.adopted_day - before, begins)
    since = np.maximum(since, np.maximum(people.joined_day, 0))
    looks = (people.segment == AUDIOBOOKS) | browses
    return Lookers(np.where(looks, curiosity, 0.0), np.minimum(since, days - 1))


def _led_audiobooks(
    rng: np.random.Generator,
    world: World,
    people: People,
    since: Ints,
    look: Lookers,
    leading: LeadingSignals,
) -> tuple[Events, Ints, Ints]:
    """As `_spoken` for audiobooks, but with signals that come first and lead to some of the streams."""
    config, shelf = world.config, world.audiobooks
    english = world.languages.index("en") if "en" in world.languages else None
    n = len(shelf.ids)
    calendar = Calendar(config, "audiobook")
    rates = {FOLLOW: leading.follows, PREVIEW: leading.previews, INTENT: leading.intents}
    leads = {FOLLOW: leading.follow_leads, PREVIEW: leading.preview_leads, INTENT: leading.intent_leads}

    active = since < config.days
    rate = np.where(active, people.activity["audiobook"] * config.audiobook_starts / 30, 0.0)
    user, day = calendar.draw(rng, rate, np.where(active, since, config.days - 1))
    parts = [(user, day, np.full(len(user), STREAM))]
    for kind, per_month in rates.items():
        user, day = calendar.draw(rng, look.curiosity * per_month / 30, look.since)
        parts.append((user, day, np.full(len(user), kind)))
    user, day, event = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    item = choose(rng, config, shelf, people.taste["audiobook"], people, user, day, english)
    known = item >= 0
    user, day, event, item = user[known], day[known], event[known], item[known]
    at = day * DAY_SECONDS + _second_of_day(rng, len(user))

    # A stream of one's own begins at once, one that a signal leads to some days later.
    lead = np.array([1.0, *(leads[e] for e in (FOLLOW, PREVIEW, INTENT))])[event]
    lag = np.where(event == STREAM, 0.0, 60 + rng.exponential(leading.lag_days, len(user)) * DAY_SECONDS)
    begins = (at + lag).astype(np.int64)
    starts = np.flatnonzero((rng.random(len(user)) < lead) & (begins < config.days * DAY_SECONDS))
    starts = starts[_first_of_each(user[starts], item[starts], begins[starts], n)]
    first_user, first_item, first_at = user[starts], item[starts], begins[starts]

    rows = _Rows(config.days)
    stamina = _of(people.stamina, first_user)
    row, session_day = _sessions(rng, first_at // DAY_SECONDS, config.audiobook_sessions, 2.0, stamina)
    session_at = session_day * DAY_SECONDS + _second_of_day(rng, len(row))
    is_first = np.ones(len(row), bool)
    is_first[1:] = row[1:] != row[:-1]
    session_at[is_first] = first_at
    rows.add(first_user[row], first_item[row], STREAM, session_at, _seconds(rng, "audiobook", len(row), 0.7))
    # Nobody gives a signal on the way to a title that they have begun.
    key = first_user * n + first_item
    place = np.searchsorted(key, user * n + item).clip(0, max(len(key) - 1, 0))
    begun = np.zeros(len(user), bool)
    if len(key):
        begun = (key[place] == user * n + item) & (first_at[place] <= at)
    for kind in rates:
        given = np.flatnonzero((event == kind) & ~begun)
        seconds = rng.integers(5, 31, len(given)) if kind == PREVIEW else 0
        rows.add(user[given], item[given], kind, at[given], seconds)
    _follow_after(rng, rows, leading.follow_after, first_user, first_item, first_at)
    return rows.events(people.first), first_user, first_at // DAY_SECONDS


def _music(rng: np.random.Generator, world: World, people: People) -> Events:
    """Plays: each user has artists, some found during the period, and returns to the early ones most."""
    config, shelf = world.config, world.artists
    n = len(shelf.ids)
    listens = people.segment >= MUSIC_ONLY
    size = config.artists_per_user * np.exp(rng.normal(0.0, 0.6, len(people)))
    count = np.where(listens, size.astype(np.int64).clip(1, 60), 0)
    user = np.repeat(np.arange(len(people)), count)
    begin = np.maximum(people.joined_day, 0)[user]
    found = np.maximum(2 * rng.random(len(user)) - 1, 0)  # Half at once, the others evenly over time.
    day = (begin + found * (config.days - begin)).astype(np.int64).clip(0, config.days - 1)
    artist = choose(rng, config, shelf, people.taste["music"], people, user, day, None)
    first = _first_of_each(user, artist, day, n)
    user, artist, day = user[first], artist[first], day[first]
    order = np.lexsort((rng.random(len(user)), day, user))
    user, artist, day = user[order], artist[order], day[order]
    key = user * config.days + day

    rate = np.where(listens, people.activity["music"] * config.music_plays, 0.0)
    player, play_day = Calendar(config, "music").draw(rng, rate, np.maximum(people.joined_day, 0))
    offset = np.searchsorted(user, player)
    available = np.searchsorted(key, player * config.days + play_day, side="right") - offset
    some = available > 0
    player, play_day, offset, available = player[some], play_day[some], offset[some], available[some]
    played = artist[offset + (available * rng.random(len(player)) ** 2).astype(np.int64)]
    tracks = world.track_start[played + 1] - world.track_start[played]
    track = world.track_start[played] + (tracks * rng.random(len(player)) ** 2).astype(np.int64)
    rows = _Rows(config.days)
    at = play_day * DAY_SECONDS + _second_of_day(rng, len(player))
    rows.add(player, track, STREAM, at, _seconds(rng, "music", len(player), 0.35))
    return rows.events(people.first)


def listen(world: World, people: People, chunk: int) -> ChunkEvents:
    """All clean events of a chunk of users."""
    config = world.config
    never = config.days
    since_podcasts = np.where(people.has_podcasts, np.maximum(people.joined_day, -BURN_IN_DAYS), never)
    since_audiobooks = np.where(people.segment == AUDIOBOOKS, people.adopted_day, never)
    music = _music(stream_of(config.seed, 20, chunk), world, people)
    podcasts, _, _ = _spoken(stream_of(config.seed, 21, chunk), world, people, "podcast", since_podcasts)
    rng = stream_of(config.seed, 22, chunk)
    look = None
    if config.leading is None:
        audiobooks, user, day = _spoken(rng, world, people, "audiobook", since_audiobooks)
    else:
        look = lookers(world, people, chunk, config.leading)
        audiobooks, user, day = _led_audiobooks(rng, world, people, since_audiobooks, look, config.leading)
    recent = day >= config.days - 14
    earliest = np.full(len(people), -LONG_AGO, np.int64)
    np.minimum.at(earliest, user, day)
    return ChunkEvents(
        tables={"music_events": music, "podcast_events": podcasts, "audiobook_events": audiobooks},
        recent_starters=len(np.unique(user[recent])),
        recent_first_ever=int(((earliest >= config.days - 14) & (earliest < config.days)).sum()),
        audiobook_listeners=len(np.unique(user)),
        lookers=look,
    )
