"""What is known of a user when a request comes: the release's features, topped by what the request brings.

The features are those that `audiorec.features` makes, column by column (`UserLayout`); here they are changed one title
or artist at a time. A mean over n titles with one more is (n mean + place) / (n + 1), with one less the same
backwards; so a title that was just played counts at once, and "what if I had not read it" can be asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Literal

import numpy as np
import pandas as pd

from audiorec.catalogue import DAY_ZERO
from audiorec.features import UserFeatures
from audiorec.pseudonyms import Pseudonyms
from audiorec.release_files import ReleaseFiles
from audiorec.towers import Towers

ItemType = Literal["audiobook", "podcast"]
Signal = Literal["stream", "follow", "preview", "intent_to_pay"]
KINDS: tuple[ItemType, ...] = ("audiobook", "podcast")
_CHUNK = 65_536


@dataclass(frozen=True)
class Touched:
    """A title that a user touched, by row of its catalogue."""

    item_type: ItemType
    idx: int
    signal: str

    @property
    def history(self) -> str:
        """The mean that it enters (`audiorec.affinities.HISTORIES`)."""
        return self.item_type if self.signal == "stream" else f"{self.item_type}_weak"


@dataclass(frozen=True)
class Profile:
    """A user at the moment of a request.

    `dense` are the scaled features [F] as the user tower takes them; `music_length` times the unit music vector among
    them is the sum over artists that it was made of; `history` the titles behind the means, newest first (at most 50 of
    each mean come from the release); `streamed` the audiobooks ever streamed.
    """

    country: str | None
    country_idx: int
    dense: np.ndarray
    music_length: float
    has_age: bool
    history: tuple[Touched, ...]
    streamed: np.ndarray

    @property
    def features(self) -> UserFeatures:
        return UserFeatures(np.array([self.country_idx], np.int64), self.dense[None])


class Places:
    """Where titles of a type stand in the spaces that histories are averaged in: [N, sum of widths], spaces in order."""

    def __init__(self, files: ReleaseFiles, towers: Towers) -> None:
        self.widths = towers.spec.layout.spaces
        self._towers = towers
        self._by_kind: dict[str, np.ndarray] = {
            kind: self._place_all(
                kind,
                {
                    "text": files.array("embed_text", f"{kind}_text.npy"),
                    "hgnn": files.array("refresh", f"{kind}_hgnn.npy"),
                },
            )
            for kind in KINDS
        }

    def _place_all(self, kind: str, raw: Mapping[str, np.ndarray]) -> np.ndarray:
        titles = len(next(iter(raw.values())))
        found = np.zeros((titles, sum(self.widths.values())), np.float32)
        for start in range(0, titles, _CHUNK):
            some = slice(start, start + _CHUNK)
            found[some] = self.place(kind, {name: matrix[some] for name, matrix in raw.items()})
        return found

    def place(self, kind: str, raw: Mapping[str, np.ndarray]) -> np.ndarray:
        """Places of titles whose raw vectors [n, T] are given by space."""
        spaces = self._towers.spec.spaces
        return np.concatenate([space.place(kind, raw[name]) for name, space in spaces.items()], axis=1)

    def of(self, kind: str, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        return self._by_kind[kind][np.asarray(rows, np.int64)]

    def titles(self, kind: str) -> int:
        return len(self._by_kind[kind])

    def columns(self, space: str) -> slice:
        """Columns of one space."""
        start = 0
        for name, width in self.widths.items():
            if name == space:
                return slice(start, start + width)
            start += width
        raise KeyError(space)


class Profiles:
    """Profiles of a release's users and of strangers.

    Args:
        files: the release.
        towers: its two towers, which own the features' layout.
        places: where its titles stand.
        pseudonyms: how its users are named.
    """

    def __init__(
        self, files: ReleaseFiles, towers: Towers, places: Places, pseudonyms: Pseudonyms = Pseudonyms(None)
    ) -> None:
        self._pseudonyms = pseudonyms
        self._spec, self._layout, self._places = towers.spec, towers.spec.layout, places
        channels = self._layout.channels()
        self._music = channels[0].columns
        self._columns: dict[str, tuple[slice, int]] = {}
        for history in self._layout.histories:
            own = [c for c in channels if c.name.partition(".")[2] == history]
            self._columns[history] = slice(own[0].columns.start, own[-1].columns.stop), own[0].filled
        self._country_idx = {name: number + 1 for number, name in enumerate(towers.spec.countries)}
        self.users = files.table("refresh", "users.parquet")
        self._row = pd.Index(self.users["user_id"].to_numpy(object))
        self._country = self.users["country"].to_numpy(object)
        self._country_number = self.users["country_idx"].to_numpy(np.int64)
        self._described = self.users["birth_year"].notna().to_numpy()
        self._dense = files.array("refresh", "user_features.npy")
        self._music_length = files.array("refresh", "music_length.npy")
        self._streamed = _ByUser(files.table("refresh", "streamed.parquet"), len(self.users))
        history = files.table("refresh", "history.parquet").sort_values("day", ascending=False, kind="stable")
        self._history = _ByUser(history, len(self.users))
        artists = files.table("refresh", "artists.parquet")
        self._artist_vectors = files.array("refresh", "artist_vectors.npy")
        known = artists["known"].to_numpy(bool)
        self._artist = {artist: row for row, artist in enumerate(artists["artist_id"].tolist()) if known[row]}

    def row(self, user_id: str) -> int | None:
        """Row of a user of the release, by the source's id or by pseudonym; None for a stranger."""
        for name in (self._pseudonyms.name(user_id), user_id):
            with contextlib.suppress(KeyError):
                return int(self._row.get_loc(name))
        return None

    def of_user(self, row: int) -> Profile:
        """What the release knows of a user."""
        country = self._country[row]
        touched = self._history.rows(row)
        return Profile(
            country=country if isinstance(country, str) else None,
            country_idx=int(self._country_number[row]),
            dense=np.array(self._dense[row], np.float32),
            music_length=float(self._music_length[row]),
            has_age=self._spec.config.demographics and bool(self._described[row]),
            history=tuple(
                Touched(kind, idx, signal)
                for kind, idx, signal in zip(
                    touched["item_type"].tolist(),
                    touched["item_idx"].tolist(),
                    touched["signal"].tolist(),
                    strict=True,
                )
            ),
            streamed=self._streamed.rows(row)["audiobook_idx"].astype(np.int64),
        )

    def touched_on(self, row: int) -> list[date]:
        """The latest day of each title of `of_user(row).history`, in the same order."""
        return [DAY_ZERO + timedelta(days=int(day)) for day in self._history.rows(row)["day"]]

    def stranger(self) -> Profile:
        """Somebody of whom nothing is known: the features of a user without any event, age or country."""
        raw = np.zeros(self._layout.width, np.float64)
        raw[1] = 1.0  # age is missing
        return Profile(
            country=None,
            country_idx=0,
            dense=self._spec.scale_users(raw),
            music_length=0.0,
            has_age=False,
            history=(),
            streamed=np.zeros(0, np.int64),
        )

    def _raw(self, dense: np.ndarray) -> np.ndarray:
        return np.asarray(self._spec.raw_users(dense), np.float64)

    # --- what a request changes

    def with_demographics(self, profile: Profile, country: str | None, age: float | None) -> Profile:
        """Country and age as the request says them, where it does and the model uses them."""
        if country is not None:
            index = self._country_idx.get(country, 0)
            profile = replace(profile, country=country, country_idx=index)
        if age is not None and self._spec.config.demographics:
            raw = self._raw(profile.dense)
            raw[0], raw[1] = (age - 40.0) / 20.0, 0.0
            profile = replace(profile, dense=self._spec.scale_users(raw), has_age=True)
        return profile

    def with_artists(self, profile: Profile, plays: Mapping[str, float]) -> tuple[Profile, list[str]]:
        """Artists (or tracks, see `music.unit`) heard so many times; and those of which the release has no vector.

        Folded in as `audiorec.music.user_vectors` does. Plays of an artist that the user had heard before are counted
        as those of another artist: log(1 + a) + log(1 + b), a little more than log(1 + a + b).
        """
        known = {artist: count for artist, count in plays.items() if artist in self._artist}
        unknown = [artist for artist in plays if artist not in self._artist]
        if not known or not self._spec.config.music:
            return profile, unknown
        rows = [self._artist[artist] for artist in known]
        weights = np.log1p(np.array(list(known.values()), np.float64))
        raw, music = self._raw(profile.dense), self._music
        summed = raw[music] * profile.music_length + weights @ self._artist_vectors[rows].astype(np.float64)
        length = float(np.linalg.norm(summed))
        if length <= 1e-12:
            return profile, unknown
        raw[music] = summed / length
        raw[self._layout.music_flag] = 1.0
        return replace(profile, dense=self._spec.scale_users(raw), music_length=length), unknown

    def with_titles(self, profile: Profile, added: Sequence[Touched]) -> Profile:
        """Titles touched since, the newest first; a streamed audiobook is not recommended again."""
        if not added:
            return profile
        raw, history = self._raw(profile.dense), list(profile.history)
        there = {(one.history, one.idx) for one in history}
        fresh: list[Touched] = []
        for one in added:
            if (one.history, one.idx) not in there:
                there.add((one.history, one.idx))
                fresh.append(one)
                self._move(raw, one, +1)
        streamed = [one.idx for one in added if one.item_type == "audiobook" and one.signal == "stream"]
        return replace(
            profile,
            dense=self._spec.scale_users(raw) if fresh else profile.dense,
            history=(*fresh, *history),
            streamed=np.union1d(profile.streamed, np.array(streamed, np.int64)),
        )

    def without_titles(self, profile: Profile, taken: Sequence[tuple[str, int]]) -> Profile:
        """As if the user had never touched some titles (type, idx), in no way; `streamed` stays as it is."""
        names = set(taken)
        gone = [one for one in profile.history if (one.item_type, one.idx) in names]
        if not gone:
            return profile
        raw = self._raw(profile.dense)
        for one in gone:
            self._move(raw, one, -1)
        return replace(
            profile,
            dense=self._spec.scale_users(raw),
            history=tuple(one for one in profile.history if (one.item_type, one.idx) not in names),
        )

    def _move(self, raw: np.ndarray, one: Touched, step: int) -> None:
        """Add a title to its mean or take it out, in place; nothing where the model has no such mean."""
        if one.history not in self._layout.histories:
            return
        means, count = self.columns(one.history)
        n = round(float(np.expm1(raw[count])))
        now = n + step
        place = self._places.of(one.item_type, [one.idx])[0].astype(np.float64)
        raw[means] = (raw[means] * n + step * place) / now if now > 0 else 0.0
        raw[count] = np.log1p(max(now, 0))

    def columns(self, history: str) -> tuple[slice, int]:
        """Columns of a history's means in all spaces, and the one of its count."""
        return self._columns[history]

    def has_music(self, profile: Profile) -> bool:
        """Whether there is a music vector among the features."""
        flag = self._layout.music_flag
        return bool(profile.dense[flag] / self._spec.user_scale[flag] + self._spec.user_mean[flag] > 0.5)

    def activity(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of all users: titles of the history, podcasts among them [users], and whether there is a music vector."""
        kinds = self._history.column("item_type")
        owner = np.repeat(np.arange(len(self.users)), self._history.counts())
        podcasts = np.bincount(owner[kinds == "podcast"], minlength=len(self.users))
        flag = self._layout.music_flag
        music = self._dense[:, flag] / self._spec.user_scale[flag] + self._spec.user_mean[flag] > 0.5
        return self._history.counts(), podcasts, np.asarray(music)


class _ByUser:
    """Rows of a table by user, as arrays; the table's order is kept within a user."""

    def __init__(self, table: pd.DataFrame, users: int) -> None:
        owner = table["user_idx"].to_numpy(np.int64)
        order = np.argsort(owner, kind="stable")
        self._start = np.searchsorted(owner[order], np.arange(users + 1))
        self._columns = {
            str(name): table[name].to_numpy()[order] for name in table.columns if name != "user_idx"
        }

    def rows(self, user: int) -> dict[str, np.ndarray]:
        some = slice(self._start[user], self._start[user + 1])
        return {name: values[some] for name, values in self._columns.items()}

    def column(self, name: str) -> np.ndarray:
        """A column of all rows, by user."""
        return self._columns[name]

    def counts(self) -> np.ndarray:
        """Rows of each user."""
        return np.diff(self._start)
