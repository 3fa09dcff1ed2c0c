"""The leak test (design 4): a target's features know nothing of the target's day or later.

For 200 targets: every source row on or after the target's day is deleted, extract and all that features are
made of is rebuilt from what is left, and the feature rows must come out byte for byte as they were. Targets of
one day share one rebuilding. Each planted leak must turn the comparison red.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from audiorec import features as features_module
from audiorec import music, towers
from audiorec.catalogue import DAY_ZERO, Extract
from audiorec.colistening import cut_relations
from audiorec.cuts import cuts
from audiorec.embeddings import embed_cut, load_cut_graph, load_model, load_text
from audiorec.features import FeatureBuilder, FeatureSpec, Vectors
from audiorec.towers import Targets, feature_config, find_targets
from models.edges import EDGE_TYPES, Csr

if TYPE_CHECKING:
    from conftest import Chain

pytestmark = pytest.mark.long

TARGETS = 200


@dataclass(frozen=True)
class World:
    """What features are made of: an extract, artist vectors and the train cut's HGNN embeddings."""

    extract: Extract
    artist_vectors: np.ndarray
    artist_known: np.ndarray
    vectors: Vectors
    builders: dict[bool, FeatureBuilder] = field(default_factory=dict)

    def builder(self, use_hgnn: bool, first_day: date) -> FeatureBuilder:
        """One builder a variant, as it reads its events only once."""
        if use_hgnn not in self.builders:
            self.builders[use_hgnn] = self._new_builder(use_hgnn, first_day)
        return self.builders[use_hgnn]

    def _new_builder(self, use_hgnn: bool, first_day: date) -> FeatureBuilder:
        settings = self.extract.settings
        config = feature_config(settings.two_tower, settings.time, self.artist_vectors.shape[1], use_hgnn)
        return FeatureBuilder(self.extract, config, self.artist_vectors, self.artist_known, first_day)

    def rows_of(self, user_ids: pd.Series) -> np.ndarray:
        """user_idx of user ids; row numbers may differ from one extract to another."""
        return pd.Index(self.extract.users["user_id"]).get_indexer(user_ids)


def world_of(chain: Chain, vectors: Vectors | None = None) -> World:
    """From the results of a chain; with an HGNN that was trained on another chain if its vectors are given."""
    if vectors is None:
        text = load_text(chain.store, chain.manifest("embed_text"))
        model = load_model(chain.store, chain.manifest("train_hgnn"))
        graph = load_cut_graph(chain.store, chain.manifest("build_graph"), "train")
        hgnn = embed_cut(model, text, graph)
        stored = np.load(chain.open("train_hgnn", "train.audiobook.npy"))
        assert hgnn["audiobook"].tobytes() == stored.tobytes(), (
            "what the towers learn with is made by these weights"
        )
        vectors = Vectors(
            np.array(text["audiobook"]), np.array(text["podcast"]), hgnn["audiobook"], hgnn["podcast"]
        )
    known = pd.read_parquet(chain.open("embed_music", "artists.parquet"))["known"].to_numpy(bool)
    return World(chain.extract(), np.load(chain.open("embed_music", "artist_vectors.npy")), known, vectors)


def without_rows_from(source: Path, first: date, target: Path) -> int:
    """Copy source tables without the events of day `first` and later, wherever they lie; how many went."""
    removed = 0
    border = datetime.combine(first, datetime.min.time())
    for path in sorted(source.rglob("*.parquet")):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not path.relative_to(source).parts[0].endswith("_events"):
            shutil.copy(path, place)
            continue
        table = pq.read_table(path, partitioning=None)
        kept = table.filter(pc.fill_null(pc.less(table["occurred_at"], border), True))
        removed += len(table) - len(kept)
        # A folder without rows stays: the day has come, nothing happened.
        pq.write_table(kept, place)
    return removed


@dataclass(frozen=True)
class Rebuilt:
    """One target day: its targets, the world with all rows, and the one without those of the day and later."""

    day: int
    targets: Targets
    user_ids: pd.Series
    whole: World
    truncated: World
    truncated_chain: Chain
    removed: int


def assert_equal_inputs_of_the_hgnn(whole: Chain, truncated: Chain) -> None:
    """It is trained on the train cut's graph and on texts: where these are equal, so are its vectors.

    `test_an_hgnn_trained_without_those_rows_is_the_same_to_the_bit` trains one to see.
    """
    cut = cuts(whole.as_of, whole.settings.time).train
    for relation, edges in cut_relations(truncated.extract(), cut, whole.settings.graph).items():
        for part in ("indptr", "indices", "users"):
            stored = np.load(whole.open("build_graph", f"train.{relation}.{part}.npy"))
            assert getattr(edges, part).tobytes() == stored.tobytes()
    for name in ("audiobooks.parquet", "podcasts.parquet"):
        assert truncated.open("extract", name).read_bytes() == whole.open("extract", name).read_bytes()


@pytest.fixture(scope="module")
def rebuilt(tiny_chain: Chain, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Rebuilt]:
    work = tmp_path_factory.mktemp("leaks")
    whole = world_of(tiny_chain)
    settings = tiny_chain.settings
    every = find_targets(whole.extract, cuts(tiny_chain.as_of, settings.time), settings.time, 10**6, 1)
    chosen = np.random.default_rng(1).choice(len(every), TARGETS, replace=False)
    targets = every.take(np.sort(chosen))
    # The text cache, and the day partitions that have no deleted row, need not be made again.
    shutil.copytree(settings.store.uri, work / "store")
    found = []
    for day in np.unique(targets.day):
        own = targets.take(np.flatnonzero(targets.day == day))
        source = work / f"source{day}"
        removed = without_rows_from(Path(settings.source.uri), DAY_ZERO + timedelta(days=int(day)), source)
        chain = tiny.run(tiny.settings(source, work), tasks=("extract", "embed_music"))
        assert_equal_inputs_of_the_hgnn(tiny_chain, chain)
        truncated = world_of(chain, whole.vectors)
        ids = whole.extract.users["user_id"].iloc[own.user_idx]
        found.append(Rebuilt(int(day), own, ids, whole, truncated, chain, removed))
    return found


def rows(
    world: World, case: Rebuilt, use_hgnn: bool, first_day: date, spec: FeatureSpec | None
) -> dict[str, bytes]:
    """The feature rows of the case's targets, and of the catalogue on their day, as bytes."""
    builder = world.builder(use_hgnn, first_day)
    users = builder.users(world.rows_of(case.user_ids), case.targets.day, world.vectors, spec)
    items = builder.items(case.day, world.vectors, spec)
    closed = builder.streamed_before(world.rows_of(case.user_ids), case.targets.day)
    return {
        "country": users.country_idx.tobytes(),
        "users": users.dense.tobytes(),
        "language": items.language_idx.tobytes(),
        "genre": items.genre_idx.tobytes(),
        "items": items.dense.tobytes(),
        "popularity": items.popularity.tobytes(),
        "available": items.available.tobytes(),
        "never again": closed.toarray().tobytes(),
        # Where titles stand in the spaces of the affinities; only a spec knows these.
        **{f"space {name}": places.tobytes() for name, places in items.spaces.items()},
    }


def differences(cases: list[Rebuilt], first_day: date, spec: FeatureSpec | None = None) -> set[str]:
    """Parts of the feature rows that deleting the target's day and later changed."""
    found = set()
    for case in cases:
        for use_hgnn in (True, False) if spec is None else (spec.config.use_hgnn,):
            whole = rows(case.whole, case, use_hgnn, first_day, spec)
            truncated = rows(case.truncated, case, use_hgnn, first_day, spec)
            found |= {name for name in whole if whole[name] != truncated[name]}
    return found


@pytest.fixture
def first_day(tiny_chain: Chain) -> date:
    return cuts(tiny_chain.as_of, tiny_chain.settings.time).first_day


@pytest.fixture(scope="module")
def spec(tiny_chain: Chain) -> FeatureSpec:
    """The trained model's."""
    return towers.Towers.load(
        tiny_chain.open("train_two_tower", "2T-HGNN.safetensors"),
        tiny_chain.open("train_two_tower", "2T-HGNN.json"),
    ).spec


def test_features_are_byte_equal_without_the_target_s_day_and_all_that_follows(
    rebuilt: list[Rebuilt], first_day: date, spec: FeatureSpec
):
    assert sum(len(case.targets) for case in rebuilt) == TARGETS
    assert len(rebuilt) >= 6, "targets of several days"
    assert all(case.removed > 500 for case in rebuilt)
    assert differences(rebuilt, first_day) == set()
    assert differences(rebuilt, first_day, spec) == set(), (
        "scaled and looked up as the trained model takes them"
    )


def test_the_compared_rows_say_something(rebuilt: list[Rebuilt], first_day: date, spec: FeatureSpec):
    """Zeros would be equal as well: users have histories, titles have popularity and places, and not all the same."""
    for case in rebuilt:
        builder = case.whole.builder(True, first_day)
        users = builder.users(case.targets.user_idx, case.targets.day, case.whole.vectors, None).dense
        assert (np.abs(users).sum(axis=1) > 0.5).mean() > 0.9
        assert len(np.unique(users, axis=0)) > 0.5 * len(users)
        assert len(np.unique(builder.popularity(case.day), axis=0)) > 10
        spaces = builder.items(case.day, case.whole.vectors, spec).spaces
        assert set(spaces) == {"hgnn", "text", "music", "country"}
        for places in spaces.values():
            assert len(np.unique(places, axis=0)) > 10


def test_what_listeners_say_of_a_title_ends_with_the_cut(
    rebuilt: list[Rebuilt], first_day: date, spec: FeatureSpec
):
    """Taste and countries of its listeners are counted up to the graph's cut, however late the day; not beyond the day."""
    block = min(case.day for case in rebuilt)
    late = max(rebuilt, key=lambda case: case.day)
    world, builder = late.whole, late.whole.builder(True, first_day)

    def spaces(day: int, before: int | None) -> dict[str, bytes]:
        items = builder.items(day, replace(world.vectors, before=before), spec)
        return {name: items.spaces[name].tobytes() for name in ("music", "country")}

    assert spaces(late.day, block) == spaces(block, block) == spaces(block, None) == spaces(block, late.day)
    assert not set(spaces(late.day, None).items()) & set(spaces(block, None).items())


def test_upstream_of_the_features_is_rebuilt_to_the_same_bytes(rebuilt: list[Rebuilt], tiny_chain: Chain):
    """Artist vectors and HGNN vectors end before the first target, so every target day leaves them alone."""
    for case in rebuilt:
        assert case.truncated.artist_vectors.tobytes() == case.whole.artist_vectors.tobytes()
        assert case.truncated.artist_known.tobytes() == case.whole.artist_known.tobytes()


def test_an_hgnn_trained_without_those_rows_is_the_same_to_the_bit(
    rebuilt: list[Rebuilt], tiny: Any, tiny_chain: Chain
):
    retrained = tiny.run(
        rebuilt[0].truncated_chain.settings, tasks=("embed_text", "build_graph", "train_hgnn")
    )
    assert retrained.results["train_hgnn"]["state"] == "done"

    def is_same(name: str) -> bool:
        found, expected = retrained.open("train_hgnn", name), tiny_chain.open("train_hgnn", name)
        return found.read_bytes() == expected.read_bytes()

    assert is_same("hgnn.safetensors") and is_same("train.audiobook.npy") and is_same("train.podcast.npy")
    assert not is_same("judge.audiobook.npy"), "the judge cut holds target days: deleting them shows there"


# --- planted leaks --------------------------------------------------------------------------------------


def leak_window(patch: pytest.MonkeyPatch) -> None:
    """A history that ends with the target's day instead of the day before."""
    original = features_module._History.pairs
    patch.setattr(
        features_module._History,
        "pairs",
        lambda self, user_idx, first, before: original(self, user_idx, first, before + 1),
    )


def leak_popularity(patch: pytest.MonkeyPatch) -> None:
    """Popularity counted up to the target's day."""
    original = FeatureBuilder.popularity
    patch.setattr(FeatureBuilder, "popularity", lambda self, day: original(self, day + 1))


def leak_first_day(patch: pytest.MonkeyPatch) -> None:
    """A title's first stream known before it happened."""
    original = FeatureBuilder._title_first_day.func
    patch.setattr(FeatureBuilder, "_title_first_day", property(lambda self: original(self) - 1))


def leak_closed(patch: pytest.MonkeyPatch) -> None:
    """What a user streams on the target's day already barred."""
    original = FeatureBuilder.streamed_before
    patch.setattr(
        FeatureBuilder, "streamed_before", lambda self, user_idx, day: original(self, user_idx, day + 1)
    )


def leak_audience(patch: pytest.MonkeyPatch) -> None:
    """Taste of those who streamed a title on the target's day."""
    original = FeatureBuilder._audience
    patch.setattr(FeatureBuilder, "_audience", lambda self, before: original(self, before + 1))


def leak_country(patch: pytest.MonkeyPatch) -> None:
    """Their countries."""
    original = FeatureBuilder._country_lift
    patch.setattr(
        FeatureBuilder,
        "_country_lift",
        lambda self, before, countries: original(self, before + 1, countries),
    )


@pytest.mark.parametrize(
    ("leak", "shows_in"),
    [
        (leak_window, {"users", "space music"}),
        (leak_popularity, {"popularity"}),
        (leak_first_day, {"popularity"}),
        (leak_closed, {"never again"}),
        (leak_audience, {"space music"}),
        (leak_country, {"space country"}),
    ],
)
def test_a_planted_leak_turns_it_red(
    leak: Callable[[pytest.MonkeyPatch], None],
    shows_in: set[str],
    rebuilt: list[Rebuilt],
    first_day: date,
    spec: FeatureSpec,
    monkeypatch: pytest.MonkeyPatch,
):
    for case in rebuilt:
        for world in (case.whole, case.truncated):
            for builder in world.builders.values():
                monkeypatch.setattr(builder, "_audiences", {})  # none kept from before, none kept after
    leak(monkeypatch)
    assert differences(rebuilt, first_day, spec) == shows_in
    # Only a spec places titles.
    assert differences(rebuilt, first_day) == {name for name in shows_in if not name.startswith("space ")}


def test_artists_fitted_a_day_too_long_turn_it_red(
    rebuilt: list[Rebuilt], first_day: date, tiny_chain: Chain
):
    """Vectors fitted on the target days as well, on both sides by the same code."""
    block = cuts(tiny_chain.as_of, tiny_chain.settings.time).blocks[0]

    def leaked(world: World) -> World:
        events = world.extract.events("music", first_day, block.last_day, artist_of_track=True)
        plays = music.plays_matrix(events, len(world.extract.users), len(world.extract.artists))
        return replace(world, artist_vectors=music.fit_artists(plays, 8, 2)[0], builders={})

    cases = [
        replace(case, whole=leaked(case.whole), truncated=leaked(case.truncated)) for case in rebuilt[:2]
    ]
    assert "users" in differences(cases, first_day)


def test_a_graph_that_holds_the_target_days_turns_it_red(
    rebuilt: list[Rebuilt], first_day: date, tiny_chain: Chain
):
    """HGNN vectors of the judge cut, whose graph holds the targets, in place of the train cut's."""

    judge = cuts(tiny_chain.as_of, tiny_chain.settings.time).judge
    model = load_model(tiny_chain.store, tiny_chain.manifest("train_hgnn"))
    text = load_text(tiny_chain.store, tiny_chain.manifest("embed_text"))

    def leaked(world: World) -> World:
        relations = cut_relations(world.extract, judge, tiny_chain.settings.graph)
        edges = {edge_type: relations[f"{edge_type[0]}_{edge_type[2]}"] for edge_type in EDGE_TYPES}
        hgnn = embed_cut(
            model, text, {kind: Csr(found.indptr, found.indices) for kind, found in edges.items()}
        )
        vectors = replace(world.vectors, audiobook_hgnn=hgnn["audiobook"], podcast_hgnn=hgnn["podcast"])
        return replace(world, vectors=vectors, builders={})

    case = rebuilt[0]
    cases = [replace(case, whole=leaked(case.whole), truncated=leaked(case.truncated))]
    assert {"users", "items"} <= differences(cases, first_day)
