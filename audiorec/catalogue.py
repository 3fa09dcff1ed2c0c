"""What extract left, as arrays with dense row numbers: `audiobook_idx`, `podcast_idx`, `artist_idx`, `user_idx`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import date

import numpy as np
import pandas as pd
import pyarrow as pa

from audiorec import duck
from audiorec.cuts import cuts
from audiorec.settings import Settings
from audiorec.taskio import Inputs

SIGNALS = ("stream", "follow", "preview", "intent_to_pay")
DAY_ZERO = date(2000, 1, 1)


def day_number(day: date) -> int:
    """Days since 2000-01-01, the unit of every day column in an array."""
    return (day - DAY_ZERO).days


@dataclass(frozen=True)
class Extract:
    """Catalogue, users and dated facts of one extract, loaded once a task."""

    inputs: Inputs
    settings: Settings
    thinned: bool = False
    """Pairs of `settings.scarcity` are left out of audiobook events and first streams (experiments only)."""

    @functools.cached_property
    def whole(self) -> Extract:
        """The same with all pairs: who is judged, on what, and what is never recommended again."""
        return Extract(self.inputs, self.settings) if self.thinned else self

    @functools.cached_property
    def _dropped(self) -> np.ndarray:
        """Sorted keys (user, title) of the pairs streamed before the split that scarcity leaves out."""
        firsts = self.whole.first_streams
        split = day_number(cuts(self.as_of, self.settings.time).split)
        users, titles = (
            self.users["user_id"].to_numpy(object),
            self.audiobooks["audiobook_id"].to_numpy(object),
        )
        chance = pair_chance(
            users[firsts["user_idx"]], titles[firsts["audiobook_idx"]], self.settings.scarcity.seed
        )
        gone = firsts[(firsts["day"] < split) & (chance >= self.settings.scarcity.share)]
        return np.sort(self._pair_key(gone["user_idx"], gone["audiobook_idx"]))

    def _pair_key(self, user_idx: pd.Series, audiobook_idx: pd.Series) -> np.ndarray:
        return user_idx.to_numpy(np.int64) * len(self.audiobooks) + audiobook_idx.to_numpy(np.int64)

    def _thin(self, rows: pd.DataFrame, column: str) -> pd.DataFrame:
        """Rows of audiobooks less those of dropped pairs."""
        if not self.thinned:
            return rows
        gone = np.isin(self._pair_key(rows["user_idx"], rows[column]), self._dropped)
        return rows[~gone].reset_index(drop=True)

    @property
    def as_of(self) -> date:
        return self.inputs.as_of

    def _table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.inputs.open("extract", f"{name}.parquet"))

    @functools.cached_property
    def audiobooks(self) -> pd.DataFrame:
        """Row number = audiobook_idx."""
        return self._table("audiobooks")

    @functools.cached_property
    def podcasts(self) -> pd.DataFrame:
        """Row number = podcast_idx."""
        return self._table("podcasts")

    @functools.cached_property
    def users(self) -> pd.DataFrame:
        """All users of the users table or with any counted event, sorted by id; row number = user_idx."""
        seen = self._table("first_seen")
        return self._table("users").merge(seen, on="user_id", how="outer", sort=True).reset_index(drop=True)

    @functools.cached_property
    def first_seen_day(self) -> np.ndarray:
        """[users] day number of the first counted event of any kind; a huge number where there is none."""
        return _days(self.users["first_seen_on"])

    @functools.cached_property
    def first_signal_day(self) -> np.ndarray:
        """[users] day number of the first audiobook signal (from then on warm); huge where there is none."""
        merged = self.users[["user_id"]].merge(
            self._table("first_signal"), on="user_id", how="left", sort=False
        )
        return _days(merged["first_signal_on"])

    @functools.cached_property
    def first_streams(self) -> pd.DataFrame:
        """user_idx, audiobook_idx, day: first streams of audiobooks in the catalogue, over all history up to as_of."""
        return self._thin(self._first_streams("audiobook", self.audiobooks["audiobook_id"]), "audiobook_idx")

    @functools.cached_property
    def first_podcast_streams(self) -> pd.DataFrame:
        """user_idx, podcast_idx, day: the same for podcasts."""
        return self._first_streams("podcast", self.podcasts["podcast_id"])

    def _first_streams(self, kind: str, ids: pd.Series) -> pd.DataFrame:
        table = self._table("first_streamed")
        table = table[table["item_type"] == kind]
        item, user = (
            pd.Index(ids).get_indexer(table["item_id"]),
            pd.Index(self.users["user_id"]).get_indexer(table["user_id"]),
        )
        frame = pd.DataFrame(
            {"user_idx": user, f"{kind}_idx": item, "day": _days(table["first_streamed_on"])}
        )
        return frame[frame[f"{kind}_idx"] >= 0].reset_index(drop=True)

    @functools.cached_property
    def published_day(self) -> np.ndarray:
        """[audiobooks] day number of publication; a hugely negative number where undated."""
        days = _days(self.audiobooks["published_on"])
        return np.where(days > 10**8, -(10**9), days)

    def events(
        self, item_type: str, first_day: date, last_day: date, artist_of_track: bool = False
    ) -> pd.DataFrame:
        """user_idx, item_idx, signal (index into SIGNALS), day, seconds of the counted events of a window.

        Titles that the catalogue lacks are left out (extract counted them as unknown_item_id). With
        `artist_of_track` the item of music is the artist, `item_idx` a row of `artists`.
        """
        paths = [str(path) for path in self.inputs.interactions(first_day, last_day)]
        empty = pd.DataFrame(
            {name: np.zeros(0, np.int64) for name in ("user_idx", "item_idx", "signal", "day", "seconds")}
        )
        if not paths:
            return empty
        connection = duck.connect(self.settings)
        items = self._items(item_type, artist_of_track)
        connection.register("items", pa.Table.from_pandas(items, preserve_index=False))
        connection.register(
            "users",
            pa.Table.from_pandas(
                self.users[["user_id"]].assign(user_idx=np.arange(len(self.users))), preserve_index=False
            ),
        )
        connection.register(
            "signals", pa.table({"event": list(SIGNALS), "signal": list(range(len(SIGNALS)))})
        )
        found = connection.execute(
            """
            SELECT
                user_idx, item_idx, signal::BIGINT AS signal,
                CAST(occurred_at AS DATE) - DATE '2000-01-01' AS day,
                listened_seconds::BIGINT AS seconds,
            FROM read_parquet($paths)
            JOIN items USING (item_id) JOIN users USING (user_id) JOIN signals USING (event)
            WHERE item_type = $item_type
            ORDER BY user_idx, occurred_at, item_idx, signal
            """,
            {"paths": paths, "item_type": item_type},
        ).df()
        return self._thin(found, "item_idx") if item_type == "audiobook" else found

    @functools.cached_property
    def artists(self) -> pd.Series:
        """Artist ids (or track ids where music.unit is track), sorted; row number = artist_idx."""
        tracks = self._table("tracks")
        column = "artist_id" if self.settings.music.unit == "artist" else "track_id"
        return pd.Series(np.sort(tracks[column].dropna().unique()), name="artist_id")

    def _items(self, item_type: str, artist_of_track: bool) -> pd.DataFrame:
        if item_type != "music":
            ids = self.audiobooks["audiobook_id"] if item_type == "audiobook" else self.podcasts["podcast_id"]
            return pd.DataFrame({"item_id": ids, "item_idx": np.arange(len(ids))})
        tracks = self._table("tracks")
        if not artist_of_track:
            return pd.DataFrame({"item_id": tracks["track_id"], "item_idx": np.arange(len(tracks))})
        column = "artist_id" if self.settings.music.unit == "artist" else "track_id"
        index = pd.Index(self.artists).get_indexer(tracks[column])
        known = index >= 0
        return pd.DataFrame({"item_id": tracks["track_id"][known], "item_idx": index[known]})


def _days(values: pd.Series) -> np.ndarray:
    """Day numbers of dates; 10**9 where there is none."""
    stamps = pd.to_datetime(values)
    days = (stamps - pd.Timestamp(DAY_ZERO)).dt.days
    return days.fillna(10**9).to_numpy(np.int64)


def pair_chance(users: np.ndarray, titles: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) for each pair of ids, by a hash of both and the seed."""
    hashed = pd.util.hash_array(users.astype(object), categorize=True)
    mixed = hashed * np.uint64(0x9E3779B97F4A7C15) ^ pd.util.hash_array(
        titles.astype(object), categorize=True
    )
    # splitmix64's last steps: the bits of both ids and of the seed reach all others.
    mixed = mixed + np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53


def load_extract(settings: Settings, inputs: Inputs) -> Extract:
    """The extract among a task's inputs, thinned where the settings say so."""
    return Extract(inputs, settings, settings.scarcity.share < 1.0)
