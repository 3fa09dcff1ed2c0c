"""Refresh: the judged weights on everything known at `as_of`, and evidence that equals the source's rows."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pandas as pd
import pytest

from audiorec.catalogue import DAY_ZERO, day_number, load_extract
from audiorec.cuts import cuts
from audiorec.embeddings import embed_cut, load_cut_graph, load_model, load_text
from audiorec.features import FeatureBuilder, Vectors
from audiorec.judging import ArtistVectors, load_towers

if TYPE_CHECKING:
    from released import Releases


class Refreshed:
    """One date's refresh beside what it was made of."""

    def __init__(self, releases: Releases, number: int) -> None:
        self.settings, self.as_of = releases.settings(), releases.dates[number]
        self.inputs = releases.inputs(self.as_of)
        self.extract = load_extract(self.settings, self.inputs)
        self.cuts = cuts(self.as_of, self.settings.time)
        self.tomorrow = self.as_of + timedelta(days=1)
        store = self.inputs.store
        text = load_text(store, self.inputs["embed_text"])
        graph = load_cut_graph(store, self.inputs["build_graph"], "release")
        self.hgnn = embed_cut(load_model(store, self.inputs["train_hgnn"]), text, graph)
        self.vectors = Vectors(
            text["audiobook"],
            text["podcast"],
            self.hgnn["audiobook"],
            self.hgnn["podcast"],
            day_number(self.tomorrow),
        )
        self.towers = load_towers(store, self.inputs["train_two_tower"])
        self.artists = ArtistVectors.load(store, self.inputs["embed_music"])

    def builder(self) -> FeatureBuilder:
        return FeatureBuilder(
            self.extract,
            self.towers.spec.config,
            *self.artists.aligned(self.extract.artists),
            self.cuts.first_day,
        ).with_artists_folded_in(self.tomorrow)

    def array(self, name: str) -> np.ndarray:
        return np.load(self.inputs.open("refresh", f"{name}.npy"))

    def described(self) -> dict[str, Any]:
        return dict(json.loads(self.inputs.open("refresh", "release.json").read_text()))

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.inputs.open("refresh", f"{name}.parquet"))

    def events(self, item_type: str, days: int) -> pd.DataFrame:
        """Counted events of the last days of the extract, straight from its partitions."""
        paths = [str(p) for p in self.inputs.interactions(self.as_of - timedelta(days=days - 1), self.as_of)]
        assert len(paths) == days
        found = duckdb.execute(
            "SELECT *, CAST(occurred_at AS DATE) AS day FROM read_parquet($paths) WHERE item_type = $kind",
            {"paths": paths, "kind": item_type},
        ).df()
        assert found["day"].max() <= pd.Timestamp(self.as_of)
        return found


@pytest.fixture(scope="module", params=[0, 1], ids=["first date", "next date"])
def refreshed(releases: Releases, request: pytest.FixtureRequest) -> Refreshed:
    return Refreshed(releases, request.param)


def test_audiobook_vectors_are_those_of_the_day_after(refreshed: Refreshed):
    day = day_number(refreshed.tomorrow)
    items = refreshed.builder().items(day, refreshed.vectors, refreshed.towers.spec)
    # Titles that nobody streamed are lifted, all alike, by what the release says, and nothing else is.
    stored, lift = refreshed.array("item_vectors"), refreshed.described()["introduction_lift"]
    expected = refreshed.towers.item_vectors(items)
    streamed = refreshed.table("streamed")["audiobook_idx"].unique()
    unheard = np.setdiff1d(np.arange(len(expected)), streamed)
    assert len(unheard) and lift > 0
    expected[unheard, refreshed.towers.bias_column] += np.float32(lift)
    np.testing.assert_array_equal(stored, expected)
    np.testing.assert_array_equal(refreshed.array("available"), items.available)
    for kind in ("audiobook", "podcast"):
        np.testing.assert_array_equal(refreshed.array(f"{kind}_hgnn"), refreshed.hgnn[kind])
    # The day counts: features of the split, which judged these weights, give other vectors.
    earlier = refreshed.builder().items(
        day_number(refreshed.cuts.split), refreshed.vectors, refreshed.towers.spec
    )
    assert not np.array_equal(refreshed.array("item_vectors"), refreshed.towers.item_vectors(earlier))


def test_user_features_are_those_of_the_day_after(refreshed: Refreshed):
    rows = np.arange(len(refreshed.extract.users))
    day = np.full(len(rows), day_number(refreshed.tomorrow))
    users = refreshed.builder().users(rows, day, refreshed.vectors, refreshed.towers.spec)
    np.testing.assert_array_equal(refreshed.array("user_features"), users.dense)
    table = refreshed.table("users")
    assert table["user_id"].tolist() == refreshed.extract.users["user_id"].tolist()
    np.testing.assert_array_equal(table["country_idx"], users.country_idx)
    # Over all history, not only the window: an event of any kind, a signal of an audiobook.
    for column, file in (("seen", "first_seen"), ("warm", "first_signal")):
        known = pd.read_parquet(refreshed.inputs.open("extract", f"{file}.parquet"))["user_id"]
        assert set(table.loc[table[column], "user_id"]) == set(known)
        assert 0 < table[column].sum() < len(table)
    yesterday = refreshed.builder().users(rows, day - 1, refreshed.vectors, refreshed.towers.spec)
    assert not np.array_equal(users.dense, yesterday.dense)  # as_of itself is seen


def test_the_sample_of_queries_are_users_with_a_history(refreshed: Refreshed):
    queries = refreshed.array("sample_user_vectors")
    active = np.flatnonzero(refreshed.extract.first_seen_day < day_number(refreshed.tomorrow))
    assert 0 < len(queries) == len(active) < len(refreshed.extract.users)
    from audiorec.features import UserFeatures

    country = refreshed.table("users")["country_idx"].to_numpy()[active]
    own = refreshed.towers.user_vectors(UserFeatures(country, refreshed.array("user_features")[active]))
    np.testing.assert_array_equal(queries, own)


def by_id(refreshed: Refreshed, table: pd.DataFrame, column: str = "audiobook_idx") -> set[tuple[str, str]]:
    users = refreshed.extract.users["user_id"].to_numpy()
    books = refreshed.extract.audiobooks["audiobook_id"].to_numpy()
    return set(zip(users[table["user_idx"]], books[table[column]], strict=True))


def test_everything_ever_streamed_is_recorded(refreshed: Refreshed):
    """Over all history, window or not, and never a title that somebody only followed."""
    first = pd.read_parquet(refreshed.inputs.open("extract", "first_streamed.parquet"))
    first = first[
        (first["item_type"] == "audiobook")
        & first["item_id"].isin(refreshed.extract.audiobooks["audiobook_id"])
    ]
    found = refreshed.table("streamed")
    assert by_id(refreshed, found) == set(zip(first["user_id"], first["item_id"], strict=True))
    assert len(found) == len(first) > 500
    window = refreshed.events("audiobook", refreshed.settings.time.window_days)
    catalogue = refreshed.extract.audiobooks["audiobook_id"]
    streams = window[(window["event"] == "stream") & window["item_id"].isin(catalogue)]
    recent = set(zip(streams["user_id"], streams["item_id"], strict=True))
    assert recent < by_id(refreshed, found)


def test_history_holds_the_latest_stream_and_weak_signal_of_each_title(refreshed: Refreshed):
    found = refreshed.table("history")
    for kind, titles in (
        ("audiobook", refreshed.extract.audiobooks),
        ("podcast", refreshed.extract.podcasts),
    ):
        events = refreshed.events(kind, refreshed.settings.time.window_days)
        events = events[events["item_id"].isin(titles[f"{kind}_id"])]
        latest = events.groupby(["user_id", "item_id", events["event"] != "stream"])["day"].max()
        own = found[found["item_type"] == kind]
        users = refreshed.extract.users["user_id"].to_numpy()[own["user_idx"]]
        items = titles[f"{kind}_id"].to_numpy()[own["item_idx"]]
        days = pd.to_datetime(DAY_ZERO) + pd.to_timedelta(own["day"].to_numpy(), unit="D")
        weak = own["signal"] != "stream"
        stored = {(u, i, w): d for u, i, w, d in zip(users, items, weak, days, strict=True)}
        assert len(own) == len(stored) == len(latest)
        assert stored == dict(latest.items())
        said = set(zip(users, items, days, own["signal"], strict=True))
        assert said <= set(
            zip(events["user_id"], events["item_id"], events["day"], events["event"], strict=True)
        )


def test_the_length_behind_a_music_vector(refreshed: Refreshed):
    """Times the unit vector among the features it is the sum over artists of log(1 + plays) times their vector."""
    plays = refreshed.extract.events(
        "music", refreshed.cuts.release.first_day, refreshed.as_of, artist_of_track=True
    )
    builder, spec = refreshed.builder(), refreshed.towers.spec
    unit = spec.raw_users(refreshed.array("user_features"))[:, 2 : 2 + spec.config.music_dimensions]
    length, checked = refreshed.array("music_length"), 0
    for user, own in plays.groupby("user_idx"):
        counts = own["item_idx"].value_counts()
        known = builder.artist_known[counts.index]
        summed = np.log1p(counts[known].to_numpy()) @ builder.artist_vectors[counts.index[known]]
        np.testing.assert_allclose(unit[user] * length[user], summed, atol=1e-3)
        checked += bool(known.any())
    assert checked > 100
    quiet = np.setdiff1d(np.arange(len(refreshed.extract.users)), plays["user_idx"])
    assert not length[quiet].any()


def test_the_country_lift_of_a_title_that_nobody_heard(refreshed: Refreshed):
    """What the catalogue's own unheard titles have in the space of countries, or the least of all."""
    described = refreshed.described()
    lift = np.array(described["unheard_country_lift"])
    own = refreshed.array("item_vectors")[:, -len(lift) :]
    assert len(lift) == len(refreshed.towers.spec.lift_countries) > 1
    assert (own.min(axis=0) >= lift - 1e-5).all()
    firsts = refreshed.extract.first_streams
    country = refreshed.extract.users["country"].to_numpy(object)[firsts["user_idx"]]
    for column, index in enumerate(refreshed.towers.spec.lift_countries):
        name = refreshed.towers.spec.countries[index - 1]
        heard = set(firsts.loc[country == name, "audiobook_idx"])
        unheard = sorted(set(range(len(own))) - heard)
        np.testing.assert_allclose(own[unheard, column], lift[column], atol=1e-5)


def test_popularity_counts_the_sources_streams(refreshed: Refreshed):
    table = refreshed.table("popularity").set_index("audiobook_id")
    assert table.index.tolist() == refreshed.extract.audiobooks["audiobook_id"].tolist()

    def counted(days: int) -> pd.DataFrame:
        events = refreshed.events("audiobook", days)
        return events[events["event"] == "stream"]

    # The window is 20 days long, so that "30 days" are those 20: no run sees more than its window.
    for column, days in (("streams_7_days", 7), ("streams_30_days", 20)):
        expected = counted(days).groupby("item_id").size().reindex(table.index, fill_value=0)
        np.testing.assert_array_equal(table[column], expected)
    listeners = counted(20).groupby("item_id")["user_id"].nunique().reindex(table.index, fill_value=0)
    np.testing.assert_array_equal(table["listeners"], listeners)
    assert table["streams_7_days"].sum() > 500


def test_popularity_by_country_counts_new_listeners(refreshed: Refreshed):
    found = refreshed.table("popularity_by_country")
    first = refreshed.extract.first_streams
    day = day_number(refreshed.tomorrow)
    expected: dict[tuple[str, int], int] = {}
    countries: list[Any] = refreshed.extract.users["country"].tolist()
    for user, title, on in first[["user_idx", "audiobook_idx", "day"]].itertuples(index=False):
        if day - 30 <= on < day and isinstance(countries[user], str):
            key = (countries[user], title)
            expected[key] = expected.get(key, 0) + 1
    rows = list(found.itertuples(index=False, name=None))
    assert {(country, title): number for country, title, number in rows} == expected
    assert rows == sorted(rows, key=lambda row: (row[0], -row[2], row[1]))


def test_counts_tell_what_there_is(refreshed: Refreshed):
    counts = refreshed.inputs["refresh"].facts["counts"]
    assert counts["audiobooks"] == len(refreshed.extract.audiobooks)
    assert counts["available"] == int(refreshed.array("available").sum()) <= counts["audiobooks"]
    assert counts["users"] == len(refreshed.extract.users)
    # The towers' vector, the bias, and the titles' places: HGNN, text, music, countries.
    settings, spec = refreshed.settings, refreshed.towers.spec
    spaces = (settings.hgnn.out_dim, settings.two_tower.text_dimensions, settings.music.dimensions)
    width = settings.two_tower.layers[-1] + 1 + sum(spaces) + len(spec.lift_countries)
    assert counts["dimensions"] == refreshed.array("item_vectors").shape[1] == width
    assert refreshed.array("sample_user_vectors").shape[1] == width
    assert counts["active_users"] == int((refreshed.extract.first_seen_day < 10**8).sum())
