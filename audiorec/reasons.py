"""Why a title was recommended: what its score is made of, and the titles of the user's own history behind it.

The score is an inner product of blocks: the popularity prior, one affinity a channel, and what the towers add
(`audiorec.towers`). So it is a sum of parts, which are given as they are. The evidence for a title is the title of the
history without which the affinities would be least: each is taken out of its mean and the affinities are computed
again. What is shown of the evidence is how the two titles hang together: people who streamed both, a path over a third
title, likeness in HGNN space, likeness of text. Edges on which fewer than five people stand are never used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from audiorec.affinities import COUNTRY, unit_rows
from audiorec.profiles import ItemType, Places, Profile, Profiles, Touched
from audiorec.release_files import ReleaseFiles
from audiorec.towers import Towers

MIN_EDGE_USERS = 5
"""Co-listening that rests on fewer people is never shown (ops: privacy)."""
_CLOSE = {"hgnn": 0.5, "text": 0.5}
"""Least cosine at which two titles are called alike. A choice."""
_NEW_DAYS = 90
"""Days after its publication in which a title is called new."""
_COUNTRY_PLACES = 50
"""Places of a country's list that are worth mentioning."""

Link = Literal["itself", "co_listened", "path", "hgnn", "text"]
PARTS = ("popularity", "country", "audiobooks", "podcasts", "music", "towers")
"""What a score is the sum of: the title's bias (the prior, and what titles that nobody has streamed are lifted by); lift in
the user's country; history of audiobooks and of podcasts; taste in music; and what the user tower and the audiobook tower add to these, age among it."""


@dataclass(frozen=True)
class Evidence:
    """A title of the user's history behind a recommendation.

    `itself`: the user showed interest in this very title. `users`: people who streamed both (`co_listened`), or the
    fewer of the two edges of a `path` over `via`.
    `similarity`: the cosine (`hgnn`, `text`). `drop`: what the affinities lose without this title.
    """

    item_type: ItemType
    idx: int
    signal: str
    link: Link
    drop: float
    users: int | None = None
    similarity: float | None = None
    via: int | None = None


@dataclass(frozen=True)
class Reason:
    """Why one title: a sentence, the evidence it rests on, the parts of the score and the causes, weightiest first.

    `causes` are of "history", "music", "popularity", "none".
    """

    text: str
    evidence: Evidence | None
    parts: dict[str, float]
    causes: tuple[str, ...]


@dataclass(frozen=True)
class Titles:
    """Audiobooks to be explained: rows of the catalogue (-1: not in it), vectors [K, D], HGNN [K, H], text [K, T]."""

    rows: np.ndarray
    vectors: np.ndarray
    hgnn: np.ndarray
    text: np.ndarray

    def and_then(self, more: Titles) -> Titles:
        """These and more titles."""
        return Titles(*(np.concatenate(both) for both in zip(self._parts(), more._parts(), strict=True)))

    def taken(self, order: np.ndarray) -> Titles:
        """Some of them, in an order."""
        return Titles(*(part[order] for part in self._parts()))

    def _parts(self) -> tuple[np.ndarray, ...]:
        return self.rows, self.vectors, self.hgnn, self.text


class Edges:
    """The co-listening graph of one direction; edges of few people are as if they were not there."""

    def __init__(self, files: ReleaseFiles, relation: str) -> None:
        self._indptr, self._indices, self._users = (
            files.array("build_graph", f"release.{relation}.{part}.npy")
            for part in ("indptr", "indices", "users")
        )

    def neighbours(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours, rising, and the people behind each edge."""
        some = slice(int(self._indptr[row]), int(self._indptr[row + 1]))
        users = self._users[some]
        kept = users >= MIN_EDGE_USERS
        return self._indices[some][kept], users[kept]

    def users_between(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """People who streamed both, [rows, others]; 0 where there is no edge, or one of few people."""
        found = np.zeros((len(rows), len(others)), np.int64)
        inside = np.flatnonzero(rows >= 0)
        start, stop = self._indptr[rows[inside]], self._indptr[rows[inside] + 1]
        length = (stop - start).astype(np.int64)
        if not len(others) or not length.sum():
            return found
        # All edges of all rows in one go: their places are start, start + 1, ... of each row.
        row = np.repeat(inside, length)
        edge = np.arange(len(row)) + np.repeat(start - (np.cumsum(length) - length), length)
        neighbours, users = self._indices[edge], self._users[edge]
        order = np.argsort(others, kind="stable")
        place = np.minimum(np.searchsorted(others[order], neighbours), len(others) - 1)
        hit = (others[order[place]] == neighbours) & (users >= MIN_EDGE_USERS)
        found[row[hit], order[place[hit]]] = users[hit]
        return found


class Reasons:
    """Explains recommendations of one release.

    Args:
        files, towers, places, profiles: of the release.
        item_vectors: float32 [N, D].
        books, podcasts: the catalogues, row = idx.
    """

    def __init__(
        self,
        files: ReleaseFiles,
        towers: Towers,
        places: Places,
        profiles: Profiles,
        item_vectors: np.ndarray,
        books: pd.DataFrame,
        podcasts: pd.DataFrame,
    ) -> None:
        self._towers, self._places, self._profiles = towers, places, profiles
        self._affinities = towers.affinities
        self._columns = _space_columns(towers)
        self.titles = {
            kind: _names(table, kind) for kind, table in (("audiobook", books), ("podcast", podcasts))
        }
        """Names of titles by type, ids where there is none."""
        self._hgnn = {kind: files.array("refresh", f"{kind}_hgnn.npy") for kind in ("audiobook", "podcast")}
        self.edges = {
            (left, right): Edges(files, f"{left}_{right}")
            for left in ("audiobook", "podcast")
            for right in ("audiobook", "podcast")
        }
        self._mean_title = item_vectors.mean(axis=0, dtype=np.float64)
        self._as_of = files.bundle.as_of
        self._published = pd.to_datetime(books["published_on"])
        self._unheard = np.ones(len(books), bool)
        self._unheard[files.table("refresh", "streamed.parquet")["audiobook_idx"].to_numpy(np.int64)] = False
        popularity = files.table("refresh", "popularity.parquet")
        plays = popularity["streams_30_days"].to_numpy(np.int64)
        listeners = popularity["listeners"].to_numpy(np.int64)
        # A handful of plays is not popularity, and may be one person's.
        enough = (plays >= MIN_EDGE_USERS) & (listeners >= MIN_EDGE_USERS)
        self._recent = {row: int(plays[row]) for row in np.flatnonzero(enough).tolist()}
        self._country_place = _country_places(files.table("refresh", "popularity_by_country.parquet"))

    # --- parts of the score

    def _sides(self, profile: Profile, user_vector: np.ndarray) -> np.ndarray:
        """The user's vector, each part of the score in a column of its own: [D, parts]."""
        sides = np.zeros((len(user_vector), len(PARTS)))
        bias = self._towers.bias_column
        sides[:bias, PARTS.index("towers")] = user_vector[:bias]
        sides[bias, PARTS.index("popularity")] = user_vector[bias]
        if self._affinities is None:
            return sides
        raw = self._towers.spec.raw_users(profile.dense[None])
        country = np.array([profile.country_idx], np.int64)
        for channel, (space, place) in self._affinities.placed(raw, country).items():
            weight = self._affinities.weights.get(channel, 0.0)
            sides[self._columns[space], PARTS.index(_part_of(channel))] += weight * place[0]
        return sides

    def parts(self, profile: Profile, user_vector: np.ndarray, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """The parts of each title's score [K] by name; they sum to the score."""
        found = vectors.astype(np.float64) @ self._sides(profile, user_vector)
        return {name: found[:, number] for number, name in enumerate(PARTS)}

    def drops(self, profile: Profile, titles: Titles) -> tuple[list[Touched], np.ndarray]:
        """Distinct titles of the history, and what each title's affinities lose without them, [K, H].

        In a model without affinities (the paper's recipe) the HGNN's cosine stands in.
        """
        distinct = list({(one.item_type, one.idx): one for one in reversed(profile.history)}.values())[::-1]
        place = {(one.item_type, one.idx): number for number, one in enumerate(distinct)}
        found = np.zeros((len(titles.vectors), len(distinct)))
        if self._affinities is None:
            return distinct, self._cosines("hgnn", titles, distinct)
        raw = self._towers.spec.raw_users(profile.dense[None])[0].astype(np.float64)
        for history in self._affinities.layout.histories:
            own = [one for one in profile.history if one.history == history]
            if not own:
                continue
            means, count = self._profiles.columns(history)
            n = round(float(np.expm1(raw[count])))
            held = self._places.of(own[0].item_type, [one.idx for one in own]).astype(np.float64)
            without = (n * raw[means] - held) / (n - 1) if n > 1 else np.zeros_like(held)
            columns = [place[one.item_type, one.idx] for one in own]
            for space in self._affinities.layout.spaces:
                inside = self._places.columns(space)
                weight = self._affinities.weights.get(f"{space}.{history}", 0.0)
                lost = unit_rows(raw[means][inside][None]) - unit_rows(without[:, inside])
                theirs = titles.vectors[:, self._columns[space]].astype(np.float64)
                found[:, columns] += weight * (theirs @ lost.T)
        return distinct, found

    # --- links between titles

    def _cosines(self, space: str, titles: Titles, history: Sequence[Touched]) -> np.ndarray:
        """Cosines [K, H] of the titles with those of a history; 0 where either has no vector."""
        found = np.zeros((len(titles.rows), len(history)))
        theirs = titles.hgnn if space == "hgnn" else titles.text
        for kind in ("audiobook", "podcast"):
            columns = [number for number, one in enumerate(history) if one.item_type == kind]
            if columns:
                rows = [history[number].idx for number in columns]
                own = (
                    self._hgnn[kind][rows]
                    if space == "hgnn"
                    else unit_rows(self._places.of(kind, rows)[:, self._places.columns("text")])
                )
                found[:, columns] = theirs @ np.asarray(own, np.float32).T
        return found

    def _shared(self, titles: Titles, history: Sequence[Touched]) -> np.ndarray:
        """People who streamed both, [K, H]."""
        found = np.zeros((len(titles.rows), len(history)), np.int64)
        for kind in ("audiobook", "podcast"):
            columns = [number for number, one in enumerate(history) if one.item_type == kind]
            if columns:
                rows = np.array([history[number].idx for number in columns], np.int64)
                found[:, columns] = self.edges["audiobook", kind].users_between(titles.rows, rows)
        return found

    def _path(self, row: int, one: Touched) -> tuple[int, int] | None:
        """(via, users): the audiobook between a title of the history and another, by the stronger weaker edge."""
        if row < 0:
            return None
        left, left_users = self.edges[one.item_type, "audiobook"].neighbours(one.idx)
        right, right_users = self.edges["audiobook", "audiobook"].neighbours(row)
        via, at_left, at_right = np.intersect1d(left, right, assume_unique=True, return_indices=True)
        if not len(via):
            return None
        weaker = np.minimum(left_users[at_left], right_users[at_right])
        best = int(np.argmax(weaker))
        return int(via[best]), int(weaker[best])

    # --- reasons

    def explain(self, profile: Profile, user_vector: np.ndarray, titles: Titles) -> list[Reason]:
        """A reason for each title."""
        sides = self._sides(profile, user_vector)
        parts = titles.vectors.astype(np.float64) @ sides
        # The prior lifts all titles alike; what counts is by how much a title stands out from the average one.
        above = (parts - self._mean_title @ sides).tolist()
        evidence = self.evidence(profile, titles)
        found = []
        for row, own, stands_out, behind in zip(
            titles.rows.tolist(), np.round(parts, 6).tolist(), above, evidence, strict=True
        ):
            by_name = dict(zip(PARTS, stands_out, strict=True))
            weights = {
                "history": by_name["audiobooks"] + by_name["podcasts"],
                "music": by_name["music"],
                "popularity": by_name["popularity"] + by_name["country"],
            }
            if self._affinities is None and behind is not None:
                weights["history"] = (
                    np.inf
                )  # no part of the score says how much; what can be shown comes first
            popular = self._popular(row, profile.country)
            found.append(self._reason(row, behind, popular, weights, dict(zip(PARTS, own, strict=True))))
        return found

    def evidence(self, profile: Profile, titles: Titles) -> list[Evidence | None]:
        """For each title, that of the history whose absence would cost most, of those that can be shown to belong to it."""
        history, drops = self.drops(profile, titles)
        if not history:
            return [None] * len(titles.rows)
        shared = self._shared(titles, history)
        cosines = {space: self._cosines(space, titles, history) for space in _CLOSE}
        itself = titles.rows[:, None] == np.array(
            [one.idx if one.item_type == "audiobook" else -2 for one in history], np.int64
        )
        linked = np.logical_or.reduce(
            [itself, shared > 0, *(cosines[space] >= least for space, least in _CLOSE.items())]
        )
        shown = np.where(linked & (drops > 0), drops, 0.0)
        every = np.arange(len(titles.rows))
        best, dearest = shown.argmax(axis=1), drops.argmax(axis=1)
        # Plain lists: what follows looks at single numbers, a few for each title.
        ways = [
            one[every, best].tolist() for one in (shown, itself, shared, cosines["hgnn"], cosines["text"])
        ]
        found: list[Evidence | None] = []
        for number, (drop, same, users, near, alike) in enumerate(zip(*ways, strict=True)):
            one = history[best[number]]
            if drop <= 0:
                # Nothing joins them directly; the dearest title may still lead there over a third one.
                one, lost = history[dearest[number]], float(drops[number, dearest[number]])
                path = self._path(int(titles.rows[number]), one) if lost > 0 else None
                found.append(
                    None
                    if path is None
                    else Evidence(
                        one.item_type, one.idx, one.signal, "path", lost, users=path[1], via=path[0]
                    )
                )
            elif same:
                found.append(Evidence(one.item_type, one.idx, one.signal, "itself", drop))
            elif users:
                found.append(Evidence(one.item_type, one.idx, one.signal, "co_listened", drop, users=users))
            else:
                link: Link = "hgnn" if near >= _CLOSE["hgnn"] else "text"
                cosine = round(near if link == "hgnn" else alike, 3)
                found.append(Evidence(one.item_type, one.idx, one.signal, link, drop, similarity=cosine))
        return found

    def _reason(
        self,
        row: int,
        evidence: Evidence | None,
        popular: str | None,
        weights: dict[str, float],
        parts: dict[str, float],
    ) -> Reason:
        new = row < 0
        unheard = not new and bool(self._unheard[row])
        sayable = {
            "history": None if evidence is None else self.sentence(evidence, unheard=unheard, new=new),
            "music": None if unheard or new else "People with your taste in music listened to it.",
            "popularity": popular,
        }
        said = [
            name
            for name in sorted(weights, key=lambda name: -weights[name])
            if sayable[name] is not None and weights[name] > 0
        ]
        if not said:
            # Nothing lifts it above the average that could be shown: what is known of the title itself.
            text = popular or self._new(row) or _UNKNOWN
            return Reason(text, None, parts, ("popularity",) if popular else ("none",))
        # The weightiest cause, and the user's own evidence where something else outweighs it.
        chosen = said[:1] + [name for name in said[1:] if name == "history"]
        text = " ".join(str(sayable[name]) for name in chosen)
        return Reason(text, evidence if "history" in chosen else None, parts, tuple(chosen))

    def sentence(self, evidence: Evidence, *, unheard: bool = False, new: bool = False) -> str:
        """The evidence in words, for a title that had no listener by the release's date, or came after it."""
        title = self.titles[evidence.item_type][evidence.idx]
        what = f"You {_DID[evidence.signal]} “{title}” ({evidence.item_type})"
        if evidence.link == "itself":
            return f"You {_DID[evidence.signal]} it already."
        if evidence.link == "co_listened":
            return f"{what}; {evidence.users} people listened to both."
        if evidence.link == "path":
            assert evidence.via is not None
            return f"{what}; its listeners and this one's meet at “{self.titles['audiobook'][evidence.via]}”."
        if evidence.link == "hgnn" and (unheard or new):
            aside = "new since then" if new else f"which nobody had listened to by {self._as_of}"
            return f"{what}; this one, {aside}, should attract the same listeners."
        if evidence.link == "hgnn":
            return f"{what}; it attracts the same listeners."
        return f"{what}; their descriptions are alike."

    def _popular(self, row: int, country: str | None) -> str | None:
        """How popular a title is, in a sentence; None where it is not, or where too few people stand behind it."""
        if row < 0:
            return None
        place = self._country_place.get((country, row)) if country else None
        if place is not None:
            return f"Popular in {country}: number {place} of the last 30 days there."
        if row in self._recent:
            return f"Popular now: {self._recent[row]} plays in the last 30 days."
        return None

    def popular_reason(self, row: int, country: str | None) -> str:
        """The reason for a title that was chosen by popularity alone."""
        return self._popular(row, country) or self._new(row) or _UNKNOWN

    def _new(self, row: int) -> str | None:
        if row < 0:
            return "New: published after the release was built; placed by its text alone."
        published = self._published.iloc[row]
        if pd.notna(published) and (self._as_of - published.date()).days <= _NEW_DAYS:
            return f"New: published on {published.date()}."
        return f"Nobody had listened to it by {self._as_of}." if self._unheard[row] else None


_UNKNOWN = "From the catalogue: little is known of this title yet."
_DID = {
    "stream": "listened to",
    "follow": "follow",
    "preview": "previewed",
    "intent_to_pay": "looked at buying",
}


def _space_columns(towers: Towers) -> dict[str, slice]:
    """Columns of each space in a title's vector; none in a model without affinities."""
    found: dict[str, slice] = {}
    if towers.affinities is not None:
        widths = dict(towers.affinities.layout.spaces)
        widths |= {"music": towers.affinities.layout.music, COUNTRY: len(towers.affinities.countries)}
        start = towers.model.dim
        for name in towers.affinities.spaces:
            found[name] = slice(start, start + widths[name])
            start += widths[name]
    return found


def _part_of(channel: str) -> str:
    """The part of the score that a channel of the affinities belongs to."""
    if channel in ("music", COUNTRY):
        return channel
    return "audiobooks" if channel.partition(".")[2].startswith("audiobook") else "podcasts"


def _names(table: pd.DataFrame, kind: str) -> list[str]:
    """Titles, ids where there is none."""
    return [
        title if isinstance(title, str) and title else str(key)
        for title, key in zip(table["title"], table[f"{kind}_id"], strict=True)
    ]


def _country_places(table: pd.DataFrame) -> dict[tuple[str, int], int]:
    """Place of a title in its country's list by (country, row), of the first fifty with five listeners or more."""
    place = table.groupby("country", sort=False).cumcount() + 1
    kept = (place <= _COUNTRY_PLACES) & (table["listeners"] >= MIN_EDGE_USERS)
    return {
        (str(country), int(row)): int(number)
        for country, row, number in zip(
            table.loc[kept, "country"], table.loc[kept, "audiobook_idx"], place[kept], strict=True
        )
    }
