"""Measures on source tables what section 3 of the paper reports, with numpy alone.

    python -m audiorec.simulator.calibration FOLDER

It reads the tables, never the truth. Works on clean tables such as those of the preset `paper`; hours are of podcasts
and audiobooks, as in the paper, which leaves music out.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SIGNALS = ("follow", "preview", "intent_to_pay")
FOLLOWING_DAYS = 7
_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Heard:
    """One event table: user and item rows, event names, microseconds, seconds; and how many of each there are."""

    user: Ints
    item: Ints
    event: NDArray[np.str_]
    at: Ints
    seconds: Ints

    def where(self, mask: NDArray[np.bool_]) -> Heard:
        """The rows of a mask."""
        return Heard(self.user[mask], self.item[mask], self.event[mask], self.at[mask], self.seconds[mask])

    @property
    def streams(self) -> Heard:
        """Streams only."""
        return self.where(self.event == "stream")


@dataclass(frozen=True)
class Odds:
    """Change in the odds of a first stream in the days after a signal, +1.18 for +118%, with a 95% interval."""

    change: float
    low: float
    high: float
    with_signal: int


@dataclass(frozen=True)
class Likeness:
    """Mean similarity of joined and of random pairs, and the difference in standard deviations (Cohen's d)."""

    joined: float
    random: float
    effect: float
    pairs: int


@dataclass(frozen=True)
class Calibration:
    """What the paper reports of its data, measured."""

    hours_of_top_quarter_of_users: float
    hours_of_top_fifth_of_audiobooks: float
    hours_of_top_fifth_of_streamed: float
    """The same among the titles with any stream."""
    podcasts_before: float
    odds: dict[str, Odds]
    users_sharing_a_title: Likeness
    co_listened_titles: Likeness
    titles_joined_by_podcast_only: Likeness
    audiobook_share_of_streams: float
    titles_a_listener: float
    filled: float
    """Share of (listener, audiobook) pairs with a stream."""
    rank_correlation_of_popularity: float
    """Spearman, first against last four weeks, titles streamed in both."""
    titles_new_in_period: float


class Tables:
    """The tables of a folder, ids as row numbers."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.users = self._ids("users", "user_id")
        self.titles = self._ids("audiobooks", "audiobook_id")
        self.shows = self._ids("podcasts", "podcast_id")
        self.audiobooks = self._events("audiobook_events", "audiobook_id", self.titles)
        self.podcasts = self._events("podcast_events", "podcast_id", self.shows)
        both = np.concatenate([self.audiobooks.at, self.podcasts.at])
        self.first_day = int(both.min() // _DAY_US)
        self.days = int(both.max() // _DAY_US) - self.first_day + 1

    def _ids(self, table: str, column: str) -> NDArray[np.str_]:
        return np.unique(self.column(table, column).astype(str))

    def column(self, table: str, column: str) -> NDArray[np.object_]:
        """One column as it is written."""
        path = self.folder / f"{table}.parquet"
        where = path if path.is_file() else self.folder / table
        values: NDArray[np.object_] = pq.read_table(where, columns=[column])[column].to_numpy()
        return values

    def _events(self, table: str, item: str, ids: NDArray[np.str_]) -> Heard:
        return Heard(
            np.searchsorted(self.users, self.column(table, "user_id").astype(str)),
            np.searchsorted(ids, self.column(table, item).astype(str)),
            self.column(table, "event").astype(str),
            self.column(table, "occurred_at").astype("datetime64[us]").astype(np.int64),
            self.column(table, "seconds_played").astype(np.int64),
        )

    def day(self, at: Ints) -> Ints:
        """Days since the first day with an event."""
        days: Ints = at // _DAY_US - self.first_day
        return days


def top_share(amounts: Floats, share: float) -> float:
    """What the top `share` of all have of the whole."""
    ordered = np.sort(amounts)[::-1]
    return float(ordered[: max(1, round(share * len(ordered)))].sum() / ordered.sum())


def logistic(x: Floats, y: Floats, cluster: Ints) -> tuple[float, float]:
    """Logistic regression of `y` on a constant and `x`: coefficient of x and its standard error.

    Newton's method; the error is robust to what rows of one cluster have in common. NaN where it does not converge,
    as for an `x` or a `y` that never varies.
    """
    design = np.stack([np.ones_like(x), x], axis=1)
    beta = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-(design @ beta)))
        hessian = design.T @ (design * (p * (1 - p))[:, None])
        if np.linalg.cond(hessian) > 1e12:
            return float("nan"), float("nan")
        step = np.linalg.solve(hessian, design.T @ (y - p))
        beta += step
        if np.abs(step).max() < 1e-10:
            break
    else:
        return float("nan"), float("nan")
    gradient = np.zeros((int(cluster.max()) + 1, 2))
    np.add.at(gradient, cluster, design * (y - p)[:, None])
    bread = np.linalg.inv(hessian)
    return float(beta[1]), float(np.sqrt((bread @ gradient.T @ gradient @ bread)[1, 1]))


def odds_after_signals(tables: Tables) -> dict[str, Odds]:
    """Does a signal change the odds that a listener begins another audiobook in the days after it?

    A row a listener and day, from the day of the listener's first stream on, while `FOLLOWING_DAYS` more are there.
    x: the listener gave the signal on that day, on any title. y: on one of the following days a title was streamed for
    the first time by this listener. One regression a signal; errors by listener, whose days are alike.
    """
    audiobooks, days = tables.audiobooks, tables.days
    streams = audiobooks.streams
    key = streams.user * len(tables.titles) + streams.item
    order = np.lexsort((streams.at, key))
    first = order[np.concatenate([[True], np.diff(key[order]) != 0])]
    listeners, row = np.unique(streams.user[first], return_inverse=True)
    begun = np.zeros((len(listeners), days + 1))
    np.add.at(begun, (row, tables.day(streams.at[first]) + 1), 1)
    total = begun.cumsum(axis=1)
    known = days - FOLLOWING_DAYS
    later = total[:, FOLLOWING_DAYS + 1 :] - total[:, 1 : known + 1] > 0
    # total[:, d + 1] counts the titles begun up to day d, that day included.
    at_risk = total[:, 1 : known + 1][:, : later.shape[1]] > 0
    user, day = np.nonzero(at_risk)
    y = later[user, day].astype(np.float64)
    found = {}
    for signal in SIGNALS:
        given = audiobooks.where((audiobooks.event == signal) & np.isin(audiobooks.user, listeners))
        gave = np.zeros((len(listeners), days))
        gave[np.searchsorted(listeners, given.user), tables.day(given.at)] = 1
        x = gave[user, day]
        beta, error = logistic(x, y, user)
        low, middle, high = np.exp(beta + np.array([-1.96, 0, 1.96]) * error) - 1
        found[signal] = Odds(float(middle), float(low), float(high), int(x.sum()))
    return found


def _like(pairs: Ints, strangers: Ints, similarity: Callable[[int, int], float]) -> Likeness:
    joined, random = (np.array([similarity(a, b) for a, b in two.tolist()]) for two in (pairs, strangers))
    pooled = np.sqrt((joined.var(ddof=1) + random.var(ddof=1)) / 2)
    return Likeness(
        float(joined.mean()),
        float(random.mean()),
        float((joined.mean() - random.mean()) / pooled),
        len(pairs),
    )


def _groups(key: Ints, value: Ints, n: int) -> list[Ints]:
    """Different values of each key 0..n-1."""
    pairs = np.unique(np.stack([key, value], axis=1), axis=0)
    return np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, n)))


def _pairs_within(rng: np.random.Generator, groups: list[Ints], n: int) -> Ints:
    """[n, 2] pairs of different members of a random group of two or more."""
    able = [group for group in groups if len(group) > 1]
    chosen = rng.integers(0, len(able), n)
    return np.array([rng.choice(able[group], 2, replace=False) for group in chosen.tolist()])


def likenesses(tables: Tables, pairs: int = 5_000, seed: int = 0) -> tuple[Likeness, Likeness, Likeness]:
    """Users who share a title, co-listened titles, titles joined only through a podcast; each against random pairs.

    Users are compared by the categories of the podcasts they stream (cosine), titles by the words of title and
    description (cosine, rare words weigh more), both against random pairs of users who stream audiobooks and podcasts
    or of streamed titles. Titles of a pair are of one language always, so that language makes no difference.
    """
    rng = np.random.default_rng(seed)
    audiobooks, podcasts = tables.audiobooks.streams, tables.podcasts.streams
    n = len(tables.titles)
    categories = np.unique(tables.column("podcasts", "category").astype(str), return_inverse=True)[1]
    place = np.searchsorted(tables.shows, tables.column("podcasts", "podcast_id").astype(str))
    category = np.zeros(len(tables.shows), np.int64)
    category[place] = categories
    taken = np.unique(np.stack([podcasts.user, podcasts.item], axis=1), axis=0)
    profile = np.zeros((len(tables.users), int(category.max()) + 1))
    np.add.at(profile, (taken[:, 0], category[taken[:, 1]]), 1)
    norm = np.linalg.norm(profile, axis=1)
    profile /= np.maximum(norm, 1)[:, None]
    both = norm[audiobooks.user] > 0
    by_title = _groups(audiobooks.item[both], audiobooks.user[both], n)
    people = np.unique(audiobooks.user[both])
    sharing = _pairs_within(rng, by_title, pairs)
    strangers = rng.choice(people, (pairs, 2))
    users = _like(
        sharing, strangers[strangers[:, 0] != strangers[:, 1]], lambda a, b: profile[a] @ profile[b]
    )

    words = _words(tables)
    language = np.empty(n, object)
    language[np.searchsorted(tables.titles, tables.column("audiobooks", "audiobook_id").astype(str))] = (
        tables.column("audiobooks", "language")
    )
    heard = np.unique(audiobooks.item)

    def of_one_language(two: Ints) -> Ints:
        same = (two[:, 0] != two[:, 1]) & (language[two[:, 0]] == language[two[:, 1]])
        return two[same][:pairs]

    random = of_one_language(rng.choice(heard, (20 * pairs, 2)))

    def alike(a: int, b: int) -> float:
        left, right = words[a], words[b]
        return sum(weight * right[word] for word, weight in left.items() if word in right)

    by_user = _groups(audiobooks.user, audiobooks.item, len(tables.users))
    listeners = _groups(audiobooks.item, audiobooks.user, n)
    together = _like(of_one_language(_pairs_within(rng, by_user, 2 * pairs)), random, alike)
    # From a random podcast to two of its listeners, to a title of each; not if the titles have a listener in common.
    reads = np.isin(podcasts.user, audiobooks.user)
    shows = _groups(podcasts.item[reads], podcasts.user[reads], len(tables.shows))
    walks = _pairs_within(rng, shows, 20 * pairs)
    through = np.array([[rng.choice(by_user[a]), rng.choice(by_user[b])] for a, b in walks.tolist()])
    through = of_one_language(through)
    apart = [not np.intersect1d(listeners[a], listeners[b]).size for a, b in through.tolist()]
    joined = _like(through[np.array(apart)], random, alike)
    return users, together, joined


def _words(tables: Tables) -> list[dict[str, float]]:
    """Weights of the words of each title's text, length 1."""
    texts = [""] * len(tables.titles)
    columns = (tables.column("audiobooks", name) for name in ("audiobook_id", "title", "description"))
    for name, title, description in zip(*columns, strict=True):
        texts[int(np.searchsorted(tables.titles, name))] = f"{title} {description}".lower()
    bags = [set(re.findall(r"\w+", text)) for text in texts]
    often = Counter(word for bag in bags for word in bag)
    found = []
    for bag in bags:
        weights = {word: float(np.log(len(bags) / often[word])) for word in sorted(bag)}
        length = np.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
        found.append({word: weight / length for word, weight in weights.items()})
    return found


def measure(folder: Path | str) -> Calibration:
    """All figures of the tables in a folder."""
    tables = Tables(folder)
    audiobooks, podcasts = tables.audiobooks.streams, tables.podcasts.streams
    by_user, by_title = np.zeros(len(tables.users)), np.zeros(len(tables.titles))
    for streams in (audiobooks, podcasts):
        np.add.at(by_user, streams.user, streams.seconds)
    np.add.at(by_title, audiobooks.item, audiobooks.seconds)
    never = np.iinfo(np.int64).max
    first_audiobook, first_podcast = np.full(len(tables.users), never), np.full(len(tables.users), never)
    np.minimum.at(first_audiobook, audiobooks.user, audiobooks.at)
    # Any interaction counts as having engaged with podcasts.
    np.minimum.at(first_podcast, tables.podcasts.user, tables.podcasts.at)
    listeners = first_audiobook < never
    pairs = len(np.unique(audiobooks.user * len(tables.titles) + audiobooks.item))
    day = tables.day(audiobooks.at)
    early, late = (
        np.bincount(audiobooks.item[mask], minlength=len(tables.titles))
        for mask in (day < 28, day >= tables.days - 28)
    )
    there = (early > 0) & (late > 0)
    ranks = [np.argsort(np.argsort(counts[there], kind="stable")) for counts in (early, late)]
    published = tables.column("audiobooks", "published_on").astype("datetime64[D]").astype(np.int64)
    users, together, joined = likenesses(tables)
    return Calibration(
        hours_of_top_quarter_of_users=top_share(by_user[by_user > 0], 0.25),
        hours_of_top_fifth_of_audiobooks=top_share(by_title, 0.2),
        hours_of_top_fifth_of_streamed=top_share(by_title[by_title > 0], 0.2),
        podcasts_before=float((first_podcast < first_audiobook)[listeners].mean()),
        odds=odds_after_signals(tables),
        users_sharing_a_title=users,
        co_listened_titles=together,
        titles_joined_by_podcast_only=joined,
        audiobook_share_of_streams=len(audiobooks.at) / (len(audiobooks.at) + len(podcasts.at)),
        titles_a_listener=pairs / int(listeners.sum()),
        filled=pairs / int(listeners.sum()) / len(tables.titles),
        rank_correlation_of_popularity=float(np.corrcoef(ranks[0], ranks[1])[0, 1]),
        titles_new_in_period=float((published >= tables.first_day).mean()),
    )


def as_table(found: Calibration) -> str:
    """Markdown: the paper's figure beside the measured one."""
    rows = [
        ("hours of the top 25% of users", "75%", f"{found.hours_of_top_quarter_of_users:.1%}"),
        ("hours of the top 20% of audiobooks", "over 80%", f"{found.hours_of_top_fifth_of_audiobooks:.1%}"),
        ("hours of the top 20% of streamed audiobooks", "-", f"{found.hours_of_top_fifth_of_streamed:.1%}"),
        ("first audiobook listeners with podcasts before", "over 70%", f"{found.podcasts_before:.1%}"),
    ]
    paper = {"follow": "+118%", "preview": "+18%", "intent_to_pay": "+13%"}
    for signal, odds in found.odds.items():
        measured = f"{odds.change:+.0%} ({odds.low:+.0%} to {odds.high:+.0%}; {odds.with_signal:,} days)"
        rows.append((f"odds of a first stream after {signal}", paper[signal], measured))
    for name, like in (
        ("users who share a title", found.users_sharing_a_title),
        ("co-listened titles", found.co_listened_titles),
        ("titles joined only through a podcast", found.titles_joined_by_podcast_only),
    ):
        measured = f"{like.joined:.3f} against {like.random:.3f}, d = {like.effect:.2f}"
        rows.append((f"similarity of {name}", "above random", measured))
    rows += [
        ("audiobooks among streams", "few", f"{found.audiobook_share_of_streams:.1%}"),
        ("audiobooks a listener", "few", f"{found.titles_a_listener:.1f}"),
        ("listener-audiobook pairs streamed", "sparse", f"{found.filled:.2%}"),
        ("popularity, first and last 4 weeks (Spearman)", "-", f"{found.rank_correlation_of_popularity:.2f}"),
        ("audiobooks published in the period", "-", f"{found.titles_new_in_period:.0%}"),
    ]
    lines = ["| figure | paper | measured |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


if __name__ == "__main__":
    print(as_table(measure(sys.argv[1])))
