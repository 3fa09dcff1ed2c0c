"""What the tables say of their users before any model is trained: section 3 of the paper on any source.

Events of the window up to `as_of`, the text vectors of `embed_text`, the graph of `build_graph`. Nothing here looks at
a hold-out, because nothing is fitted. Every figure carries the number of users behind it; one that rests on too few of
them is withheld and named, and so is a part that the source has no data for.
`python -m audiorec.experiments.analysis --as-of ...` runs it alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from audiorec.catalogue import DAY_ZERO, SIGNALS, Extract, day_number
from audiorec.cuts import Cut, cuts
from audiorec.errors import BadData
from audiorec.settings import Analysis, Settings
from audiorec.simulator.calibration import FOLLOWING_DAYS, Heard, Tables, odds_after_signals, top_share
from audiorec.store import Manifest
from audiorec.taskio import Inputs, Output
from audiorec.text import RANDOM
from models.metrics import bootstrap_interval

COLUMNS = ("panel", "model", "segment", "metric", "value", "low", "high", "users")
"""Of `figures.csv`: the long form of all experiments, less what the page adds."""
CONTENT = ("audiobook", "podcast", "music")
_CURVE_POINTS = 201
_BINS = 50
_DAY_US = 86_400_000_000


@dataclass
class Findings:
    """Figures, curves for the plots, and what could not be said, by part."""

    settings: Analysis
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    curves: list[pd.DataFrame] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def add(
        self,
        key: tuple[str, str, str, str],
        value: float,
        interval: tuple[float, float],
        users: int,
        behind: int | None = None,
    ) -> None:
        """A figure of (panel, model, segment, metric) of `users` users; withheld if fewer than the settings ask for.

        Args:
            behind: users who make the figure what it is, where they are fewer than those it is a share of.
        """
        least = users if behind is None else behind
        if least < self.settings.min_users and not (behind == 0 and users >= self.settings.min_users):
            panel, model, segment, _ = key
            self.missing[f"{panel}: {model}, {segment}"] = (
                f"withheld, {least} user(s) behind it; analysis.min_users is {self.settings.min_users}"
            )
            value, interval = np.nan, (np.nan, np.nan)
        self.rows.append((*key, value, *interval, users))

    def curve(self, panel: str, series: str, x: np.ndarray, y: np.ndarray, users: int) -> None:
        """A line of a plot, unless too few users are behind it."""
        if users >= self.settings.min_users:
            self.curves.append(pd.DataFrame({"panel": panel, "series": series, "x": x, "y": y}))

    @property
    def figures(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=list(COLUMNS))


@dataclass(frozen=True)
class History:
    """Counted events of one window by content type, as `Extract.events` gives them, and what they are of."""

    extract: Extract
    cut: Cut
    events: Mapping[str, pd.DataFrame]

    @classmethod
    def of(cls, extract: Extract, cut: Cut) -> History:
        """Raises BadData if no audiobook was streamed in the window: every part is about those."""
        events = {kind: extract.events(kind, cut.first_day, cut.last_day) for kind in CONTENT}
        found = cls(extract, cut, events)
        if not len(found.streams("audiobook")):
            raise BadData(
                f"no audiobook was streamed from {cut.first_day} to {cut.last_day}, so there is nothing to analyse; "
                "check --as-of and --window-days against the dates in audiobook_events"
            )
        return found

    def streams(self, kind: str) -> pd.DataFrame:
        """Streams of a content type."""
        events = self.events[kind]
        return events[events["signal"] == SIGNALS.index("stream")]

    def size(self, kind: str) -> int:
        """Titles in the catalogue, of audiobooks or podcasts."""
        return len(self.extract.audiobooks if kind == "audiobook" else self.extract.podcasts)

    @property
    def users(self) -> int:
        return len(self.extract.users)

    def matrix(self, kind: str, weights: np.ndarray | None = None) -> sp.csr_matrix:
        """[users, titles] of streams: 0/1, or the sum of `weights` of the streams."""
        streams = self.streams(kind)
        values = np.ones(len(streams)) if weights is None else weights
        matrix = sp.coo_matrix(
            (values, (streams["user_idx"], streams["item_idx"])), shape=(self.users, self.size(kind))
        ).tocsr()
        if weights is None:
            matrix.data[:] = 1.0
        return matrix


def interval_of(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95% of the draws that gave a number."""
    good = draws[np.isfinite(draws)]
    if len(good) < 2:
        return np.nan, np.nan
    low, high = np.quantile(good, [0.025, 0.975])
    return float(low), float(high)


def spread_about(value: float, draws: np.ndarray) -> tuple[float, float]:
    """95% about a share by the draws' standard deviation.

    For concentrations, whose percentiles lie beside the figure: a redraw leaves out who and what is rare, and so always
    looks more concentrated than what it was drawn from.
    """
    error = 1.96 * float(np.std(draws, ddof=1)) if len(draws) > 1 else np.nan
    return max(0.0, value - error), min(1.0, value + error)


def redrawn(rng: np.random.Generator, n: int) -> np.ndarray:
    """How often each of n comes up in n draws with replacement."""
    return np.bincount(rng.integers(0, n, n), minlength=n)


# -- concentration ----------------------------------------------------------------------------------


def concentration(found: Findings, history: History) -> None:
    """Share of the hours that the most active users make and that the most streamed titles get; Lorenz curves."""
    seconds = {kind: history.streams(kind)["seconds"].to_numpy(np.float64) for kind in CONTENT[:2]}
    # A source must give a length for every stream; where all are the same it has none to give.
    timed = len(np.unique(np.concatenate(list(seconds.values())))) > 1
    if not timed:
        found.missing["durations"] = "every stream has the same length, so streams are counted, not hours"
    unit = "hours" if timed else "streams"
    amounts = {kind: history.matrix(kind, seconds[kind] / 3600 if timed else None) for kind in CONTENT[:2]}
    if not timed:
        amounts = {kind: history.matrix(kind, np.ones(len(seconds[kind]))) for kind in CONTENT[:2]}
    by_user = {
        "audiobooks": np.asarray(amounts["audiobook"].sum(axis=1)).ravel(),
        "podcasts": np.asarray(amounts["podcast"].sum(axis=1)).ravel(),
    }
    by_user = {"audiobooks and podcasts": by_user["audiobooks"] + by_user["podcasts"], **by_user}
    rng = np.random.default_rng(found.settings.seed)
    for what, total in by_user.items():
        active = total[total > 0]
        if what == "podcasts" and not len(active):
            continue
        draws = np.array(
            [
                top_share(np.repeat(active, redrawn(rng, len(active))), 0.25)
                for _ in range(found.settings.bootstrap)
            ]
        )
        key = ("concentration", "users", what, f"{unit} of the top 25%")
        value = top_share(active, 0.25)
        found.add(key, value, spread_about(value, draws), len(active))
        found.curve("concentration: users", what, *lorenz(active), len(active))
    for kind in CONTENT[:2]:
        matrix = amounts[kind]
        listening = np.flatnonzero(matrix.getnnz(axis=1))
        if not len(listening):
            continue
        matrix = matrix[listening]
        total = np.asarray(matrix.sum(axis=0)).ravel()
        groups = {"catalogue": np.ones(len(total), bool), "streamed": total > 0}
        draws = np.empty((found.settings.bootstrap, len(groups)))
        for draw in draws:
            again = matrix.T @ redrawn(rng, len(listening))
            draw[:] = [top_share(again[among], 0.2) for among in groups.values()]
        for number, (which, among) in enumerate(groups.items()):
            key = ("concentration", f"{kind}s", which, f"{unit} of the top 20%")
            value = top_share(total[among], 0.2)
            found.add(key, value, spread_about(value, draws[:, number]), len(listening))
        found.curve("concentration: titles", f"streamed {kind}s", *lorenz(total[total > 0]), len(listening))


def lorenz(amounts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of all that the first share x has, the largest first: x and y, both from 0 to 1."""
    ordered = np.sort(amounts)[::-1]
    y = np.concatenate([[0.0], np.cumsum(ordered) / ordered.sum()])
    x = np.linspace(0, 1, _CURVE_POINTS)
    return x, np.interp(x, np.linspace(0, 1, len(y)), y)


# -- podcasts before audiobooks ---------------------------------------------------------------------


def podcasts_before(found: Findings, history: History) -> None:
    """Share of those who streamed their first audiobook in the window that had met podcasts on an earlier day.

    Over all history for streams; follows and previews of podcasts count from the window's first day on.
    """
    extract, cut = history.extract, history.cut
    podcasts = history.events["podcast"]
    if not len(podcasts) and not len(extract.first_podcast_streams):
        found.missing["podcasts before audiobooks"] = "the source has no podcast events"
        return
    never = np.iinfo(np.int64).max
    first = {kind: np.full(history.users, never) for kind in ("audiobook", "podcast")}
    streamed = extract.first_streams
    np.minimum.at(first["audiobook"], streamed["user_idx"].to_numpy(), streamed["day"].to_numpy())
    for table in (extract.first_podcast_streams, podcasts):
        np.minimum.at(first["podcast"], table["user_idx"].to_numpy(), table["day"].to_numpy())
    new = (first["audiobook"] >= day_number(cut.first_day)) & (first["audiobook"] <= day_number(cut.last_day))
    when, podcast = first["audiobook"][new], first["podcast"][new]
    groups = {"on an earlier day": podcast < when, "on the same day or earlier": podcast <= when}
    for segment, met in groups.items():
        key = ("podcasts before audiobooks", "first audiobook listeners", segment, "share of users")
        _share(found, key, met)
    # What the figure would be if audiobooks had nothing to do with podcasts.
    active = np.zeros(history.users, bool)
    for events in history.events.values():
        active[events["user_idx"].to_numpy()] = True
    met = first["podcast"][active] < never
    _share(found, ("podcasts before audiobooks", "all active users", "ever", "share of users"), met)


def _share(found: Findings, key: tuple[str, str, str, str], yes: np.ndarray) -> None:
    """A share of users with its interval."""
    if not len(yes):
        found.add(key, np.nan, (np.nan, np.nan), 0)
        return
    interval = bootstrap_interval(
        yes.astype(np.float64), draws=found.settings.bootstrap, seed=found.settings.seed
    )
    found.add(key, interval.mean, (interval.low, interval.high), interval.users, int(yes.sum()))


# -- similarity -------------------------------------------------------------------------------------


def pairs_within(rng: np.random.Generator, groups: sp.csr_matrix, n: int) -> np.ndarray:
    """[m, 2] different pairs, the lower first, of different columns of one random row each; m <= n.

    A row is drawn among those with two columns or more, then two of its columns.
    """
    able = np.flatnonzero(np.diff(groups.indptr) > 1)
    if not len(able):
        return np.zeros((0, 2), np.int64)
    chosen = rng.choice(able, n)
    start, size = groups.indptr[chosen], np.diff(groups.indptr)[chosen]
    one = rng.integers(0, size)
    other = (one + rng.integers(1, size)) % size
    return distinct(np.stack([groups.indices[start + one], groups.indices[start + other]], axis=1))


def distinct(pairs: np.ndarray) -> np.ndarray:
    """Each unordered pair of different ends once, the lower end first."""
    ordered = np.sort(pairs, axis=1)
    return np.unique(ordered[ordered[:, 0] != ordered[:, 1]], axis=0).astype(np.int64)


def through_a_podcast(
    rng: np.random.Generator, by_podcast: sp.csr_matrix, listened: sp.csr_matrix, n: int
) -> np.ndarray:
    """Pairs of audiobooks that are neighbours of one podcast and have no listener in common.

    Shapes: by_podcast [podcasts, audiobooks], listened 0/1 [users, audiobooks]; [m, 2], m <= n.
    """
    pairs = pairs_within(rng, by_podcast, 4 * n)
    if not len(pairs):
        return pairs
    by_title = listened.T.tocsr()
    together = np.asarray(by_title[pairs[:, 0]].multiply(by_title[pairs[:, 1]]).sum(axis=1)).ravel()
    return rng.permutation(pairs[together == 0])[:n]


@dataclass(frozen=True)
class Likeness:
    """Mean similarity of joined and of random pairs; the effect in standard deviations, and as a chance.

    `effect` is Cohen's d, `superiority` the chance that a joined pair is more alike than a random one (ties half).
    Intervals draw the pairs' ends anew (Owen 2007, the pigeonhole bootstrap): pairs that share an end are no
    independent witnesses, and drawing pairs would say that they are.
    """

    joined: float
    random: float
    effect: float
    superiority: float
    intervals: Mapping[str, tuple[float, float]]


def likeness(
    joined: np.ndarray, random: np.ndarray, vectors: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[Likeness, np.ndarray, np.ndarray]:
    """Compare pairs by the cosine of their ends' vectors (unit length); also the cosines of both.

    Shapes: joined [m, 2], random [r, 2], rows of `vectors` [n, D]; m, r > 1.
    """
    cosines = [
        np.einsum("ij,ij->i", vectors[pairs[:, 0]], vectors[pairs[:, 1]]) for pairs in (joined, random)
    ]
    order = np.unique(np.concatenate(cosines).round(6), return_inverse=True)[1]
    places = np.split(order, [len(joined)])
    ends, where = np.unique(np.concatenate([joined, random]), return_inverse=True)
    where = where.reshape(-1, 2)
    names = ("joined", "random", "effect", "superiority")

    def figures(weights: np.ndarray, others: np.ndarray) -> tuple[float, float, float, float]:
        means, variances = [], []
        for values, weight in zip(cosines, (weights, others), strict=True):
            total = weight.sum()
            if total < 2:
                return np.nan, np.nan, np.nan, np.nan
            mean = (weight * values).sum() / total
            means.append(mean)
            variances.append((weight * (values - mean) ** 2).sum() / (total - 1))
        pooled = np.sqrt(sum(variances) / 2)
        beside = np.bincount(places[1], others, minlength=int(order.max()) + 1)
        below = np.cumsum(beside) - beside / 2
        superiority = (weights * below[places[0]]).sum() / (weights.sum() * others.sum())
        effect = (means[0] - means[1]) / pooled if pooled > 0 else np.nan
        return means[0], means[1], effect, superiority

    point = figures(np.ones(len(joined)), np.ones(len(random)))
    table = np.empty((draws, len(names)))
    for draw in range(draws):
        count = redrawn(rng, len(ends))
        weights = (count[where[:, 0]] * count[where[:, 1]]).astype(np.float64)
        table[draw] = figures(*np.split(weights, [len(joined)]))
    intervals = {name: interval_of(table[:, number]) for number, name in enumerate(names)}
    return Likeness(*point, intervals), cosines[0], cosines[1]


def similarity(
    found: Findings,
    history: History,
    text: Mapping[str, np.ndarray],
    by_podcast: sp.csr_matrix,
    edges: sp.csr_matrix,
) -> None:
    """Users who share a title, co-listened titles, titles joined through a podcast alone; each against random pairs.

    Users are compared by the mean text vector of the podcasts that they streamed, titles by their own. Pairs of titles
    are of one language, or language would make much of the difference.

    Args:
        text: unit text vectors by content type, zero where a title has no text.
        by_podcast: [podcasts, audiobooks], the graph's edges between them.
        edges: [audiobooks, audiobooks], the graph's edges.
    """
    rng = np.random.default_rng(found.settings.seed)
    n = found.settings.pairs
    listened = history.matrix("audiobook")
    worded = np.linalg.norm(text["audiobook"], axis=1) > 0
    streamed = np.asarray(listened.sum(axis=0)).ravel() > 0
    if not (worded & streamed).any():
        found.missing["similarity of titles"] = "no streamed audiobook has a title or description"
    else:
        language = pd.factorize(history.extract.audiobooks["language"])[0]

        def comparable(pairs: np.ndarray) -> np.ndarray:
            """Both have text, in one language (both of none known counts as one)."""
            left, right = pairs[:, 0], pairs[:, 1]
            keep = worded[left] & worded[right] & (language[left] == language[right])
            kept: np.ndarray = rng.permutation(pairs[keep])[:n]
            return kept

        titles = np.flatnonzero(worded & streamed)
        random = comparable(distinct(rng.choice(titles, (4 * n, 2))))
        joined = {
            "co-listened titles": comparable(pairs_within(rng, listened, 4 * n)),
            "titles with an edge": comparable(distinct(np.stack(edges.nonzero(), axis=1))),
        }
        if by_podcast.nnz:
            joined["titles joined only through a podcast"] = comparable(
                through_a_podcast(rng, by_podcast, listened, 2 * n)
            )
        else:
            found.missing["similarity: titles joined only through a podcast"] = (
                "the graph has no edge between an audiobook and a podcast"
            )
        for name, pairs in joined.items():
            users = listened[:, np.unique(pairs)].getnnz(axis=1) if len(pairs) else np.zeros(0)
            _compare(found, name, pairs, random, text["audiobook"], int((users > 0).sum()), rng)

    podcasts = history.matrix("podcast")
    profile = podcasts @ text["podcast"] if len(text["podcast"]) else np.zeros((history.users, 1))
    length = np.linalg.norm(profile, axis=1, keepdims=True)
    profile = profile / np.maximum(length, 1e-12)
    able = (length.ravel() > 1e-9) & (listened.getnnz(axis=1) > 0)
    if not able.any():
        found.missing["similarity: users who share a title"] = (
            "no audiobook listener streamed a podcast with a title or description"
        )
        return
    people = np.flatnonzero(able)
    sharing = pairs_within(rng, sp.csr_matrix(listened[people].T), n)
    random = distinct(rng.choice(len(people), (2 * n, 2)))
    random = rng.permutation(random)[:n]
    users = len(np.unique(sharing))
    _compare(found, "users who share a title", sharing, random, profile[people], users, rng)


def _compare(
    found: Findings,
    name: str,
    joined: np.ndarray,
    random: np.ndarray,
    vectors: np.ndarray,
    users: int,
    rng: np.random.Generator,
) -> None:
    if min(len(joined), len(random)) < 2:
        found.missing[f"similarity: {name}"] = f"{len(joined)} such pair(s), {len(random)} at random"
        return
    like, own, others = likeness(joined, random, np.asarray(vectors), found.settings.bootstrap, rng)
    for segment, metric, value in (
        ("joined", "cosine", like.joined),
        ("random", "cosine", like.random),
        ("joined against random", "Cohen's d", like.effect),
        ("joined against random", "chance of being more alike", like.superiority),
    ):
        part = {"Cohen's d": "effect", "chance of being more alike": "superiority"}.get(metric, segment)
        found.add(("similarity", name, segment, metric), value, like.intervals[part], users)
    found.add(("similarity", name, "joined", "pairs"), len(joined), (np.nan, np.nan), users)
    low = np.floor(min(own.min(), others.min()) * 20) / 20
    edges = np.linspace(low, max(1.0, own.max(), others.max()), _BINS + 1)
    middle = (edges[:-1] + edges[1:]) / 2
    for series, values in (("joined", own), ("random", others)):
        share = np.histogram(values, edges)[0] / len(values)
        found.curve(f"similarity: {name}", series, middle, share, users)


# -- odds -------------------------------------------------------------------------------------------


class _WindowTables(Tables):
    """The audiobook events of some listeners in the form that the simulator's calibration measures."""

    def __init__(self, events: pd.DataFrame, titles: int, cut: Cut, first_day: int) -> None:
        self.titles = np.arange(titles).astype(str)
        self.first_day = first_day
        self.days = day_number(cut.last_day) - first_day + 1
        self.audiobooks = Heard(
            events["user_idx"].to_numpy(np.int64),
            events["item_idx"].to_numpy(np.int64),
            np.array(SIGNALS)[events["signal"].to_numpy(np.int64)],
            events["day"].to_numpy(np.int64) * _DAY_US,
            events["seconds"].to_numpy(np.int64),
        )


def odds(found: Findings, history: History) -> None:
    """Change in the odds of a first stream in the days after each weak signal (`odds_after_signals` says how)."""
    events = history.events["audiobook"]
    # What went before the window is not in it: without days there is nothing to say of their streams.
    tables = _WindowTables(events, history.size("audiobook"), history.cut, int(events["day"].min()))
    if tables.days <= FOLLOWING_DAYS:
        found.missing["odds after a signal"] = (
            f"the window holds {tables.days} day(s) of events; {FOLLOWING_DAYS} must follow a signal"
        )
        return
    listeners = np.unique(history.streams("audiobook")["user_idx"].to_numpy())
    most = max(1, found.settings.odds_rows // tables.days)
    if len(listeners) > most:
        found.missing["odds after a signal: part of the listeners"] = (
            f"{most:,} of {len(listeners):,}, drawn at random: analysis.odds_rows is {found.settings.odds_rows:,}"
        )
        drawn = np.random.default_rng(found.settings.seed).choice(listeners, most, replace=False)
        events = events[np.isin(events["user_idx"], drawn)]
        tables = _WindowTables(events, history.size("audiobook"), history.cut, tables.first_day)
        listeners = drawn
    given = {
        signal: events[(events["signal"] == number) & np.isin(events["user_idx"], listeners)][
            "user_idx"
        ].nunique()
        for number, signal in enumerate(SIGNALS)
    }
    if not any(given[signal] for signal in SIGNALS[1:]):
        found.missing["odds after a signal"] = "the source has streams of audiobooks and no weak signals"
        return
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        changes = odds_after_signals(tables)
    for signal, change in changes.items():
        if not given[signal]:
            found.missing[f"odds after a signal: {signal}"] = "no listener gave it"
            continue
        if not np.isfinite(change.change):
            found.missing[f"odds after a signal: {signal}"] = (
                f"the regression has no answer: the days after the signals of {given[signal]} listener(s) are all alike"
            )
        key = ("odds after a signal", signal, f"first stream within {FOLLOWING_DAYS} days", "change in odds")
        found.add(key, change.change, (change.low, change.high), given[signal])
        found.add((*key[:3], "days with the signal"), change.with_signal, (np.nan, np.nan), given[signal])


# -- co-occurrence ----------------------------------------------------------------------------------


def co_occurrence(counts: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """What else a user has, given one of a kind: [K, K], rows are the kind given and sum to 1.

    Row r is the mean over all of kind r of the shares that the kinds have among the same user's *other* ones. A user
    with nothing else says nothing. NaN for a kind that nobody has together with another.
    Shapes: counts integer [users, K]; weights [users], how often each user counts.
    """
    counts = np.asarray(counts, np.float64)
    total = counts.sum(axis=1)
    inside = total > 1
    counts, total = counts[inside], total[inside]
    given = counts if weights is None else counts * np.asarray(weights, np.float64)[inside, None]
    share = given / (total - 1)[:, None]
    joint = share.T @ counts
    joint[np.diag_indices(len(joint))] -= share.sum(axis=0)
    joint = joint.clip(min=0.0)  # what rounding leaves of nothing
    mass = given.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(mass[:, None] > 0, joint / mass[:, None], np.nan))


def co_occurrences(found: Findings, history: History) -> None:
    """The paper's figure 4 (kinds of signal), and the same of genres; content types by users."""
    events = history.events["audiobook"]
    once = events.drop_duplicates(["user_idx", "item_idx", "signal"])
    if once["signal"].nunique() < 2:
        found.missing["co-occurrence of signals"] = "the source has streams of audiobooks and no weak signals"
    else:
        _matrix(found, "co-occurrence of signals", once["user_idx"], once["signal"], SIGNALS, history.users)

    genre = history.extract.audiobooks["genre"].astype(object)
    streamed = history.streams("audiobook").drop_duplicates(["user_idx", "item_idx"])
    named = genre.iloc[streamed["item_idx"]].to_numpy(object)
    known = pd.notna(named)
    listeners = pd.Series(streamed["user_idx"].to_numpy()[known]).groupby(named[known]).nunique()
    # One that too few listen to would only show as withheld.
    listeners = listeners[listeners >= found.settings.min_users].sort_values(ascending=False, kind="stable")
    if len(listeners) < 2:
        found.missing["co-occurrence of genres"] = "fewer than two genres of audiobooks have enough listeners"
    else:
        names = [str(name) for name in listeners.index[: found.settings.genres]]
        place = pd.Index(listeners.index[: found.settings.genres]).get_indexer(pd.Index(named[known]))
        if (place < 0).any():
            place, names = np.where(place < 0, len(names), place), [*names, "others"]
        users = streamed["user_idx"][known]
        _matrix(found, "co-occurrence of genres", users, pd.Series(place), tuple(names), history.users)

    streaming = {kind: np.zeros(history.users, bool) for kind in CONTENT}
    for kind, flags in streaming.items():
        flags[history.streams(kind)["user_idx"].to_numpy()] = True
        if not flags.any():
            found.missing[f"content types: {kind}"] = f"nobody streamed {kind} in the window"
    there = [kind for kind in CONTENT if streaming[kind].any()]
    for row in there:
        for column in there:
            if row != column:
                key = ("content types", row, column, "share of users")
                _share(found, key, streaming[column][streaming[row]])


def _matrix(
    found: Findings, panel: str, user: pd.Series, kind: pd.Series, names: tuple[str, ...], users: int
) -> None:
    """Add a co-occurrence matrix with intervals over users."""
    counts = np.zeros((users, len(names)), np.int64)
    np.add.at(counts, (user.to_numpy(), kind.to_numpy()), 1)
    counts = counts[counts.sum(axis=1) > 1]
    value = co_occurrence(counts)
    rng = np.random.default_rng(found.settings.seed)
    draws = (
        np.stack([co_occurrence(counts, redrawn(rng, len(counts))) for _ in range(found.settings.bootstrap)])
        if len(counts)
        else np.zeros((0, *value.shape))
    )
    has = counts > 0
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            # Another of the same kind takes two.
            both = int(((counts[:, i] > 1) if i == j else has[:, i] & has[:, j]).sum())
            if has[:, i].any():
                key = (panel, row, column, "share of the user's others")
                found.add(key, value[i, j], interval_of(draws[:, i, j]), int(has[:, i].sum()), both)


# -- the task ---------------------------------------------------------------------------------------


def run(settings: Settings, inputs: Inputs, out: Output) -> Manifest:
    """Write `figures.csv`, `curves.parquet` (panel, series, x, y) and `missing.json` (part: why)."""
    extract = Extract(inputs, settings)
    cut = cuts(inputs.as_of, settings.time).release
    history = History.of(extract, cut)
    found = Findings(settings.analysis)
    concentration(found, history)
    podcasts_before(found, history)
    text = {
        kind: np.load(inputs.open("embed_text", f"{kind}_text.npy"), allow_pickle=False)
        for kind in CONTENT[:2]
    }
    if settings.text.model == RANDOM:
        found.missing["similarity"] = f"text.model is {RANDOM!r}, whose vectors say nothing of a text"
    else:
        graph = {
            name: _relation(inputs, cut.name, name, shape)
            for name, shape in (
                ("podcast_audiobook", (history.size("podcast"), history.size("audiobook"))),
                ("audiobook_audiobook", (history.size("audiobook"),) * 2),
            )
        }
        similarity(found, history, text, graph["podcast_audiobook"], graph["audiobook_audiobook"])
    odds(found, history)
    co_occurrences(found, history)
    found.figures.to_csv(out.path("figures.csv"), index=False)
    empty = pd.DataFrame({"panel": [], "series": [], "x": [], "y": []})
    curves = pd.concat(found.curves, ignore_index=True) if found.curves else empty
    curves.to_parquet(out.path("curves.parquet"), index=False)
    out.path("missing.json").write_text(json.dumps(found.missing, indent=1, sort_keys=True) + "\n")
    for part, why in sorted(found.missing.items()):
        out.note(f"{part}: {why}")
    first = min(int(events["day"].min()) for events in history.events.values() if len(events))
    return out.commit(
        counts={"figures": len(found.rows), "missing": len(found.missing)},
        first_day=(DAY_ZERO + timedelta(days=first)).isoformat(),
        last_day=cut.last_day.isoformat(),
    )


def _relation(inputs: Inputs, cut: str, name: str, shape: tuple[int, int]) -> sp.csr_matrix:
    """0/1 edges of one direction of the graph."""
    indptr, indices = (
        np.load(inputs.open("build_graph", f"{cut}.{name}.{part}.npy"), allow_pickle=False)
        for part in ("indptr", "indices")
    )
    return sp.csr_matrix((np.ones(len(indices), np.int8), indices, indptr), shape=shape)


if __name__ == "__main__":
    from audiorec.runner import main

    main("analysis")
