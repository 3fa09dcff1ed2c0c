"""The towers in use: targets and their days, the prior, masks, files, and a planted taste that has to be learnt."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_source import empty_tables, settings_for, write_flat

from audiorec.catalogue import Extract, day_number, load_extract
from audiorec.colistening import cut_relations
from audiorec.cuts import cuts
from audiorec.embeddings import embed_cut
from audiorec.experiments.protocol import judge, make_hold_out, popularity_ranker
from audiorec.features import FeatureBuilder, FeatureSpec, Vectors
from audiorec.judging import ArtistVectors, load_towers, make_builder, towers_ranker
from audiorec.runner import run_task
from audiorec.settings import Evaluation, Time, TwoTowerSettings
from audiorec.store import Store
from audiorec.taskio import Inputs
from audiorec.towers import (
    Targets,
    Towers,
    Trainer,
    feature_config,
    find_targets,
    fit_prior,
    load_vectors,
    starting_prior,
)
from models.edges import EDGE_TYPES, Csr
from models.hgnn import HeteroGraphSAGE
from models.metrics import hit_rate_at_k, paired_bootstrap_interval
from models.training import HGNNTrainer, TrainingConfig
from models.two_tower import TwoTower

if TYPE_CHECKING:
    from conftest import Chain

AS_OF = date(2026, 1, 20)
SMALL_TIME = {
    "window_days": 20,
    "holdout_days": 3,
    "target_days": 6,
    "validation_days": 2,
    "validation_targets": 5,
}
"""Hold-out 01-18..01-20, targets 01-12..01-17."""


def extract_of(con: Any, work: Path, as_of: date, **groups: Any) -> Extract:
    settings = settings_for(write_flat(con, work / "source"), work, **groups)
    store = Store(settings.store.uri, settings.store.scratch)
    manifest = store.read_uri(run_task("extract", settings, as_of)["manifest"])
    return load_extract(settings, Inputs(as_of, store, {"extract": manifest}))


# --- targets --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Extract:
    """First streams a day: 4 on 01-12, 3 on 01-13, 2 on 01-14, 1 on 01-15, 1 on 01-16, none on 01-17."""
    con = empty_tables()
    con.execute("INSERT INTO audiobooks (audiobook_id) SELECT 'b' || i FROM RANGE(9) t(i)")
    con.execute("INSERT INTO podcasts (podcast_id) VALUES ('b0')")
    con.execute("INSERT INTO tracks (track_id) VALUES ('t')")
    con.execute("INSERT INTO users SELECT 'u' || i, 'SE', 1980 FROM RANGE(9) t(i)")
    rows = [(f"u{n}", f"b{n}", "2026-01-12") for n in range(4)]
    rows += [(f"u{n}", "b5", "2026-01-13") for n in range(3)]
    rows += [("u4", "b1", "2026-01-14"), ("u4", "b0", "2026-01-14")]
    rows += [("u5", "b1", "2026-01-15"), ("u6", "b1", "2026-01-16")]
    # No targets: before the first target day, on the split, a title streamed before, one of no catalogue.
    rows += [("u7", "b7", "2026-01-11"), ("u7", "b8", "2026-01-18"), ("u7", "b7", "2026-01-15")]
    rows += [("u7", "b99", "2026-01-15")]
    for user, title, day in rows:
        con.execute(f"INSERT INTO audiobook_events VALUES ('{user}', '{title}', 'stream', '{day}', 60)")
    con.execute("INSERT INTO audiobook_events VALUES ('u8', 'b8', 'preview', '2026-01-15', 60)")
    con.execute("INSERT INTO podcast_events VALUES ('u8', 'b0', 'stream', '2026-01-15', 60)")
    return extract_of(con, tmp_path_factory.mktemp("targets"), AS_OF, time=SMALL_TIME)


def targets_of(extract: Extract, limit: int = 1_000, **changes: Any) -> Targets:
    time = Time(**SMALL_TIME | changes)
    return find_targets(extract, cuts(AS_OF, time), time, limit, seed=1)


def named(extract: Extract, targets: Targets) -> list[tuple[str, str, int, bool]]:
    """(user, title, day of January 2026, validation)."""
    first = day_number(date(2025, 12, 31))
    return [
        (extract.users["user_id"][u], extract.audiobooks["audiobook_id"][b], int(d) - first, bool(v))
        for u, b, d, v in zip(
            targets.user_idx, targets.audiobook_idx, targets.day, targets.validation, strict=True
        )
    ]


def test_targets_and_validation_days_by_hand(streams: Extract):
    """11 targets; validation wants min(5, ceil(0.2 * 11)) = 3 of them. The last 2 days hold 1, the last 3
    hold 2, the last 4 (01-14..01-17) hold 4, which is enough."""
    expected = [(f"u{n}", f"b{n}", 12, False) for n in range(4)]
    expected += [(f"u{n}", "b5", 13, False) for n in range(3)]
    expected += [
        ("u4", "b0", 14, True),
        ("u4", "b1", 14, True),
        ("u5", "b1", 15, True),
        ("u6", "b1", 16, True),
    ]
    assert named(streams, targets_of(streams)) == expected


def test_validation_is_not_lengthened_where_its_days_hold_enough(streams: Extract):
    # min(1, 3) = 1 target: the last two days hold it.
    validation = [row for row in named(streams, targets_of(streams, validation_targets=1)) if row[3]]
    assert [day for _, _, day, _ in validation] == [16]


def test_validation_leaves_a_day_to_train_on(streams: Extract):
    # 0.99 of 11 is never had without the first day, which stays.
    found = named(streams, targets_of(streams, validation_targets=300, validation_share=0.99))
    assert {day for _, _, day, validation in found if not validation} == {12}


def test_earlier_blocks_add_targets_that_only_train(streams: Extract):
    found = targets_of(streams, target_blocks=2)
    # Block 0 is 01-06..01-11 and holds u7's b7; block 1 is what was there before.
    assert list(found.block) == [0] + [1] * 11
    assert named(streams, found)[0] == ("u7", "b7", 11, False)


def test_a_limit_on_targets_samples_the_training_only(streams: Extract):
    every, some = targets_of(streams), targets_of(streams, limit=3)
    assert (~some.validation).sum() == 3 and some.validation.sum() == every.validation.sum()
    assert set(named(streams, some)) < set(named(streams, every))
    assert named(streams, some) == named(streams, targets_of(streams, limit=3))
    assert named(streams, some) == sorted(named(streams, some), key=lambda row: row[2])


# --- the prior ------------------------------------------------------------------------------------------


def test_the_prior_s_fit_recovers_planted_weights():
    """60 days of 40 titles with fresh features, 200 streams a day drawn by a logit of weights 1, -0.5, 0.3."""
    generator = np.random.default_rng(3)
    planted = np.array([1.0, -0.5, 0.3])
    days = []
    for _ in range(60):
        features = generator.normal(size=(40, 3))
        available = generator.random(40) < 0.9
        odds = np.where(available, np.exp(features @ planted), 0)
        days.append((features, available, generator.choice(40, 200, p=odds / odds.sum())))
    fitted = fit_prior(days, start=np.zeros(3))
    # The standard error of a weight is about 1/sqrt(12,000 * variance of a feature) < 0.01.
    assert fitted == pytest.approx(planted, abs=0.05)


def test_the_prior_without_targets_or_with_a_strong_pull_is_where_it_starts():
    start = np.array([0.2, 0.3, 0.5])
    features = np.random.default_rng(1).normal(size=(10, 3))
    assert fit_prior([], start) == pytest.approx(start)
    nobody = (features, np.ones(10, bool), np.zeros(0, np.int64))
    assert fit_prior([nobody], start) == pytest.approx(start)
    some = (features, np.ones(10, bool), np.array([1, 2, 3]))
    assert fit_prior([some], start, ridge=1e9) == pytest.approx(start, abs=1e-4)


def test_the_prior_starts_from_all_windows_alike():
    """3 windows and the whole one, for streams and for first streams: 8 columns of 1/8; ages count 0."""
    config = feature_config(TwoTowerSettings(popularity_windows=(3, 7, 14)), Time(), 4, use_hgnn=False)
    assert list(starting_prior(config, 12)) == [1 / 8] * 8 + [0] * 4


# --- training on generated tables -----------------------------------------------------------------------


def parts_of(
    chain: Chain, use_hgnn: bool = True, **two_tower: Any
) -> tuple[FeatureBuilder, list[Vectors], Targets]:
    settings = chain.settings
    extract = chain.extract()
    all_cuts = cuts(chain.as_of, settings.time)
    artists = ArtistVectors.load(chain.store, chain.manifest("embed_music"))
    config = feature_config(settings.two_tower, settings.time, artists.vectors.shape[1], use_hgnn)
    builder = FeatureBuilder(extract, config, artists.vectors, artists.known, all_cuts.first_day)
    vectors = load_vectors(chain.store, chain.manifest("embed_text"), chain.manifest("train_hgnn"), "train")
    targets = find_targets(extract, all_cuts, settings.time, 10**6, 1)
    return builder, [vectors], targets


@pytest.fixture(scope="module")
def trainer(tiny_chain: Chain) -> Trainer:
    builder, vectors, targets = parts_of(tiny_chain)
    return Trainer("2T-HGNN", builder, vectors, targets, tiny_chain.settings.two_tower)


def quiet(line: dict[str, Any]) -> None:
    pass


def untrained(trainer: Trainer) -> Towers:
    return Towers(trainer.name, TwoTower(trainer._config()), trainer.spec, trainer.prior)


def test_the_untrained_model_is_the_prior_s_ranking(trainer: Trainer):
    towers, targets = untrained(trainer), trainer.targets
    for day in np.unique(targets.day)[:3]:
        items = trainer.items(int(day), 0)
        scores = towers.user_vectors(trainer.users(np.arange(20))) @ towers.item_vectors(items).T
        prior = (items.popularity @ trainer.prior).astype(np.float32)
        assert np.allclose(scores, prior[None, :], atol=1e-5)
        assert len(np.unique(np.round(prior, 4))) > 20, "the prior tells titles apart"


def test_epoch_0_is_what_a_popularity_ranker_scores(trainer: Trainer):
    """HR@10 and MRR of the validation targets, ranked here by the prior with masks laid by hand."""
    targets = trainer.targets.take(np.flatnonzero(trainer.targets.validation))
    firsts = trainer.builder.extract.first_streams
    ranks = []
    for user, title, day in zip(targets.user_idx, targets.audiobook_idx, targets.day, strict=True):
        items = trainer.items(int(day), 0)
        scores = (items.popularity @ trainer.prior).astype(np.float32)
        # Streamed by this user up to the day itself, or not published by then; the target always competes.
        own = firsts[(firsts["user_idx"] == user) & (firsts["day"] <= day)]["audiobook_idx"]
        barred = ~items.available
        barred[own] = True
        barred[title] = False
        ranks.append(1 + int((scores[~barred] > scores[title]).sum()))
    found = trainer.validate(untrained(trainer))
    assert len(ranks) > 40
    assert found["hr_10"] == pytest.approx(np.mean(np.array(ranks) <= 10))
    assert found["mrr"] == pytest.approx(np.mean([1 / r if r <= 100 else 0 for r in ranks]))


def test_streamed_and_unpublished_titles_do_not_compete(trainer: Trainer):
    """However high they score: a bias on them changes no rank and no likelihood."""

    class Biased(Towers):
        def item_vectors(self, items: Any) -> np.ndarray:
            vectors = super().item_vectors(items).copy()
            vectors[:, -1] += np.where(items.available, 0, 1000)
            return vectors

    model = untrained(trainer)
    biased = Biased(model.name, model.model, model.spec, model.prior)
    days = np.unique(trainer.targets.day[trainer.targets.validation])
    assert all((~trainer.items(int(day), 0).available).any() for day in days)
    assert trainer.validate(biased) == trainer.validate(model)
    rows = np.flatnonzero(trainer.targets.validation)
    batch = trainer.targets.take(rows[trainer.targets.day[rows] == trainer.targets.day[rows[0]]])
    items = trainer.items(int(batch.day[0]), 0)
    closed = trainer._closed(batch, items)
    before = trainer.builder.streamed_before(batch.user_idx, batch.day).toarray() > 0
    assert (closed >= before).all() and (closed >= ~items.available[None, :]).all()
    assert before.sum() > 50
    assert closed[np.arange(len(batch)), batch.audiobook_idx].all(), (
        "their own title: the loss lets it compete"
    )


def test_training_lowers_the_loss_and_keeps_the_best_epoch(trainer: Trainer):
    longer = trainer.settings.model_copy(
        update={"epochs": 8, "patience": 8, "learning_rate": 0.01, "dropout": 0.0}
    )
    one = Trainer("2T-HGNN", trainer.builder, trainer.vectors, trainer.targets, longer)
    towers, history = one.fit(quiet)
    assert [line["epoch"] for line in history] == list(range(9))
    assert history[-1]["loss"] < history[1]["loss"] - 0.05
    best = max(history, key=lambda line: line["objective"])
    assert [line["epoch"] for line in history if line["best"]] == [best["epoch"]]
    assert one.validate(towers) == pytest.approx(
        {k: best[k] for k in ("log_likelihood", "hr_10", "mrr", "objective")}
    )
    again, _ = Trainer("2T-HGNN", trainer.builder, trainer.vectors, trainer.targets, longer).fit(quiet)
    for name, value in towers.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), "the same seed gives the same weights"


def test_patience_ends_a_training_that_gains_nothing(trainer: Trainer):
    # A learning rate that ruins the model at once: epoch 0 stays the best.
    ruined = trainer.settings.model_copy(update={"epochs": 9, "patience": 2, "learning_rate": 3.0})
    towers, history = Trainer("2T-HGNN", trainer.builder, trainer.vectors, trainer.targets, ruined).fit(quiet)
    assert history[0]["best"] and len(history) == 3
    for name, value in untrained(trainer).model.state_dict().items():
        assert torch.equal(value, towers.model.state_dict()[name])


def test_weights_and_record_give_the_same_vectors_back(trainer: Trainer, tmp_path: Path):
    towers, _ = trainer.fit(quiet)
    with torch.no_grad():
        towers.model.scale.fill_(0.3)  # so that more than the bias counts
    towers.save(tmp_path / "w.safetensors", tmp_path / "r.json")
    loaded = Towers.load(tmp_path / "w.safetensors", tmp_path / "r.json")
    vectors, builder = trainer.vectors[0], trainer.builder
    for spec_from, model in ((towers, towers), (loaded, loaded)):
        users = builder.users(trainer.targets.user_idx, trainer.targets.day, vectors, spec_from.spec)
        items = builder.items(int(trainer.targets.day[-1]), vectors, spec_from.spec)
        found = (model.user_vectors(users).tobytes(), model.item_vectors(items).tobytes())
        if spec_from is towers:
            expected = found
    assert found == expected
    assert loaded.name == "2T-HGNN" and loaded.spec.config == towers.spec.config
    loaded.save(tmp_path / "w2.safetensors", tmp_path / "r2.json")
    assert (tmp_path / "r2.json").read_bytes() == (tmp_path / "r.json").read_bytes()
    assert (tmp_path / "w2.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()


def test_a_feature_spec_survives_json(trainer: Trainer):
    spec = trainer.spec
    back = FeatureSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert back.config == spec.config
    assert (back.countries, back.languages, back.genres) == (spec.countries, spec.languages, spec.genres)
    for name in ("user_mean", "user_scale", "item_mean", "item_scale"):
        assert getattr(back, name).tobytes() == getattr(spec, name).tobytes()


def test_features_are_scaled_to_mean_0_and_deviation_1_on_the_training_targets(trainer: Trainer):
    rows = np.flatnonzero(~trainer.targets.validation)
    dense = trainer.users(rows).dense
    varies = dense.std(axis=0) > 1e-3
    assert varies.sum() > 30
    assert np.abs(dense[:, varies].mean(axis=0)).max() < 1e-2
    assert dense[:, varies].std(axis=0) == pytest.approx(np.ones(varies.sum()), abs=1e-2)


def test_users_of_targets_are_the_same_kept_or_made_anew(trainer: Trainer):
    rows = np.random.default_rng(1).permutation(len(trainer.targets))[:30]
    kept = trainer.users(rows)
    anew = trainer._user_features(trainer.targets.take(rows), trainer.spec)
    assert kept.dense.tobytes() == anew.dense.tobytes()
    assert list(kept.country_idx) == list(anew.country_idx)


# --- the other losses -----------------------------------------------------------------------------------


def test_a_sampled_softmax_learns_as_well(trainer: Trainer):
    sampled = trainer.settings.model_copy(
        update={"full_softmax_limit": 10, "negatives": 20, "epochs": 6, "patience": 6, "learning_rate": 0.01}
    )
    one = Trainer("2T-HGNN", trainer.builder, trainer.vectors, trainer.targets, sampled)
    _, history = one.fit(quiet)
    assert all(np.isfinite(line["loss"]) for line in history[1:])
    assert history[-1]["loss"] < history[1]["loss"]


def test_candidates_hold_every_target_and_the_odds_of_being_drawn(trainer: Trainer):
    titles = len(trainer.builder.extract.audiobooks)
    one = replace_settings(trainer, full_softmax_limit=10, negatives=12)
    batch = one.targets.take(np.arange(8))
    generator = np.random.default_rng(1)
    drawn = np.zeros(titles)
    rounds = 2_000
    for _ in range(rounds):
        rows, log_q = one._candidates(batch, titles, generator)
        assert set(batch.audiobook_idx) <= set(rows) and len(set(rows)) == len(rows)
        assert (log_q <= 0).all() and np.isfinite(log_q).all()
        drawn[rows] += 1
    # A title that is no positive is drawn with 12 in `titles`, and its log q says so.
    never = np.bincount(one.targets.audiobook_idx, minlength=titles) == 0
    assert never.sum() > 5
    odds = 12 / titles
    assert drawn[never] / rounds == pytest.approx(odds, abs=5 * np.sqrt(odds * (1 - odds) / rounds))
    rows, log_q = one._candidates(batch, titles, generator)
    assert log_q[never[rows]] == pytest.approx(np.log(odds), abs=1e-6)
    # Over the whole catalogue nothing is to be undone.
    assert trainer._candidates(batch, titles, generator)[1] is None
    every = replace_settings(trainer, full_softmax_limit=10, negatives=10**6)._candidates(
        batch, titles, generator
    )
    assert len(every[0]) == titles and every[1] == pytest.approx(0, abs=1e-6)


def replace_settings(trainer: Trainer, **changes: Any) -> Trainer:
    return Trainer(
        trainer.name,
        trainer.builder,
        trainer.vectors,
        trainer.targets,
        trainer.settings.model_copy(update=changes),
    )


def test_the_paper_s_loss_trains_without_a_prior(trainer: Trainer):
    paper = TwoTowerSettings(
        **trainer.settings.model_dump()
        | {
            "loss": "inverse_propensity",
            "popularity_prior": False,
            "epochs": 6,
            "patience": 6,
            "learning_rate": 0.003,
        }
    )
    one = Trainer("2T-HGNN", trainer.builder, trainer.vectors, trainer.targets, paper)
    assert not one.prior.any()
    towers, history = one.fit(quiet)
    assert history[-1]["loss"] < history[1]["loss"] - 0.01
    assert all(line["objective"] == line["mrr"] for line in history), (
        "stopping goes by MRR: equation 5 is no likelihood"
    )
    items = towers.item_vectors(one.items(int(one.targets.day[-1]), 0))
    assert not items[:, -1].any(), "no bias"
    assert np.linalg.norm(items, axis=1) == pytest.approx(np.ones(len(items)), abs=1e-5)


def test_towers_without_hgnn_do_not_look_at_it(tiny_chain: Chain):
    builder, (vectors,), targets = parts_of(tiny_chain, use_hgnn=False)
    blind = replace(vectors, audiobook_hgnn=None, podcast_hgnn=None)
    for given in (vectors, blind):
        users = builder.users(targets.user_idx, targets.day, given, None)
        items = builder.items(int(targets.day[0]), given, None)
        found = (users.dense.tobytes(), items.dense.tobytes())
        if given is vectors:
            expected = found
    assert found == expected
    with_hgnn, _, _ = parts_of(tiny_chain)
    with pytest.raises(ValueError, match="need HGNN embeddings"):
        with_hgnn.users(targets.user_idx, targets.day, blind, None)


def test_a_stored_version_judges_as_evaluate_judged_it(tiny_chain: Chain):
    """From its files alone: weights, vocabularies, scalers and artist vectors."""
    all_cuts = cuts(tiny_chain.as_of, tiny_chain.settings.time)
    extract = tiny_chain.extract()
    hold_out = make_hold_out(extract, all_cuts, tiny_chain.settings.evaluation)
    towers = load_towers(tiny_chain.store, tiny_chain.manifest("train_two_tower"))
    artists = ArtistVectors.load(tiny_chain.store, tiny_chain.manifest("embed_music"))
    vectors = load_vectors(
        tiny_chain.store, tiny_chain.manifest("embed_text"), tiny_chain.manifest("train_hgnn"), "judge"
    )
    builder = make_builder(extract, towers, artists, all_cuts.first_day, all_cuts.split)
    judged = judge(hold_out, towers_ranker(towers, builder, vectors, hold_out))
    stored = pd.read_parquet(tiny_chain.open("evaluate", "ranks.parquet"))
    for panel in ("known", "full"):
        own = stored[(stored["model"] == "2T-HGNN") & (stored["panel"] == panel)]
        assert list(own["rank"]) == list(judged.ranks[panel])


# --- planted taste --------------------------------------------------------------------------------------

USERS, TITLES, DAYS = 300, 24, 40
PLANTED_AS_OF = date(2026, 3, 1)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Extract:
    """Two communities: even users listen to the first half of the podcasts and audiobooks, odd ones to the other.

    Within a half, titles are equally popular; nothing but listening tells the halves apart (no text, country
    or genre). Each user streams 5 podcasts of the half early and 4 audiobooks of it some time.
    """
    generator = np.random.default_rng(11)
    con = empty_tables()
    con.execute(
        f"INSERT INTO audiobooks (audiobook_id) SELECT 'b' || LPAD(i::VARCHAR, 3, '0') FROM RANGE({2 * TITLES}) t(i)"
    )
    con.execute(
        f"INSERT INTO podcasts (podcast_id) SELECT 'p' || LPAD(i::VARCHAR, 3, '0') FROM RANGE({2 * TITLES}) t(i)"
    )
    con.execute("INSERT INTO tracks (track_id) VALUES ('t')")
    con.execute(f"INSERT INTO users (user_id) SELECT 'u' || i FROM RANGE({USERS}) t(i)")
    rows = []
    for user in range(USERS):
        half = (user % 2) * TITLES
        for title in generator.choice(TITLES, 5, replace=False):
            rows.append(("podcast_events", f"u{user}", f"p{half + title:03}", int(generator.integers(0, 20))))
        for title in generator.choice(TITLES, 4, replace=False):
            rows.append(
                ("audiobook_events", f"u{user}", f"b{half + title:03}", int(generator.integers(0, DAYS)))
            )
    frame = pd.DataFrame(rows, columns=["kind", "user_id", "item_id", "ago"])
    frame["occurred_at"] = [
        pd.Timestamp(PLANTED_AS_OF) - timedelta(days=DAYS - 1 - ago) for ago in frame["ago"]
    ]
    for kind, own in frame.groupby("kind"):
        con.register("own", own)
        con.execute(f"INSERT INTO {kind} SELECT user_id, item_id, 'stream', occurred_at, 100 FROM own")
    time = {"window_days": 60, "holdout_days": 8, "target_days": 12, "validation_days": 3}
    return extract_of(con, tmp_path_factory.mktemp("planted"), PLANTED_AS_OF, time=time)


def test_a_planted_taste_is_learnt_and_beats_popularity(planted: Extract):
    settings = planted.settings
    all_cuts = cuts(PLANTED_AS_OF, settings.time)
    # Node features without meaning: what the HGNN knows of a title it has from the graph.
    generator = np.random.default_rng(1)
    text = {
        kind: generator.normal(size=(2 * TITLES, 16)).astype(np.float32) for kind in ("audiobook", "podcast")
    }
    graph_settings = settings.graph.model_copy(update={"top_k": 8})

    def graph_of(cut: Any) -> dict:
        relations = cut_relations(planted, cut, graph_settings)
        found = {kind: relations[f"{kind[0]}_{kind[2]}"] for kind in EDGE_TYPES}
        return {kind: Csr(edges.indptr, edges.indices) for kind, edges in found.items()}

    train_graph = graph_of(all_cuts.train)
    model = HeteroGraphSAGE(
        in_dim=16, hidden_dim=32, out_dim=16, num_layers=2, aggregator="mean", final_activation=False, seed=1
    )
    config = TrainingConfig(
        batch_size=256, learning_rate=0.01, max_epochs=12, margin=0.4, fanouts=(6, 4), seed=1
    )
    features = {kind: torch.from_numpy(matrix) for kind, matrix in text.items()}
    csr = {
        kind: Csr(torch.from_numpy(np.array(g.indptr)), torch.from_numpy(np.array(g.indices)).long())
        for kind, g in train_graph.items()
    }
    HGNNTrainer(model, features, csr, config, device="cpu").fit()
    model.eval()

    def vectors_of(graph: dict) -> Vectors:
        hgnn = embed_cut(model, text, graph)
        return Vectors(text["audiobook"], text["podcast"], hgnn["audiobook"], hgnn["podcast"])

    no_artists = np.zeros((0, 4), np.float32), np.zeros(0, bool)
    tower_settings = TwoTowerSettings(
        layers=(32, 16),
        epochs=25,
        patience=6,
        learning_rate=0.005,
        popularity_windows=(3, 7, 14),
        dropout=0.0,
        batch_size=32,
    )
    builder = FeatureBuilder(
        planted,
        feature_config(tower_settings, settings.time, 4, use_hgnn=True),
        *no_artists,
        all_cuts.first_day,
    )
    targets = find_targets(planted, all_cuts, settings.time, 10**6, 1)
    towers, history = Trainer("2T-HGNN", builder, [vectors_of(train_graph)], targets, tower_settings).fit(
        quiet
    )

    hold_out = make_hold_out(planted, all_cuts, Evaluation())
    judge_vectors = vectors_of(graph_of(all_cuts.judge))
    ours = judge(hold_out, towers_ranker(towers, builder, judge_vectors, hold_out)).ranks["known"]
    counts = {w: builder.streams(hold_out.split - w, hold_out.split) for w in (7, 14, 60)}
    theirs = [judge(hold_out, popularity_ranker(c)).ranks["known"] for c in counts.values()]
    # Ten of the 24 titles of the right half hold a given one with 10/24 or so; ten of all 48 with 10/48.
    our_rate, their_rates = hit_rate_at_k(ours).mean(), [hit_rate_at_k(ranks).mean() for ranks in theirs]
    assert len(hold_out.users) > 120
    best = theirs[int(np.argmax(their_rates))]
    gain = paired_bootstrap_interval(hit_rate_at_k(ours), hit_rate_at_k(best))
    assert gain.low > 0.05, (our_rate, their_rates, gain, [line["hr_10"] for line in history])
    # And what is shown lies in the user's own half.
    shown = judge(hold_out, towers_ranker(towers, builder, judge_vectors, hold_out)).shown["known"][:, :10]
    odd = planted.users["user_id"].iloc[hold_out.users].str[1:].astype(int).to_numpy() % 2
    assert ((shown >= TITLES) == odd[:, None].astype(bool)).mean() > 0.85
