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
from audiorec.embeddings import TrainedHGNN, embed_cut
from audiorec.errors import BadData
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
    earliest_as_good,
    feature_config,
    find_targets,
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
    vectors = load_vectors(
        chain.store,
        chain.manifest("embed_text"),
        chain.manifest("train_hgnn"),
        "train",
        day_number(all_cuts.blocks[0].first_day),
    )
    targets = find_targets(extract, all_cuts, settings.time, 10**6, 1)
    return builder, [vectors], targets


@pytest.fixture(scope="module")
def trainer(tiny_chain: Chain) -> Trainer:
    builder, vectors, targets = parts_of(tiny_chain)
    return Trainer("2T-HGNN", builder, vectors, targets, tiny_chain.settings.two_tower)


def quiet(line: dict[str, Any]) -> None:
    pass


@pytest.fixture(scope="module")
def popular(trainer: Trainer) -> Trainer:
    """The same without affinities: its base is popularity alone."""
    return replace_settings(trainer, affinities=False)


def untrained(trainer: Trainer) -> Towers:
    return Towers(trainer.name, TwoTower(trainer._config()), trainer.spec, trainer.prior, trainer.affinity)


def test_without_affinities_the_untrained_model_is_the_prior_s_ranking(popular: Trainer):
    towers, targets = untrained(popular), popular.targets
    assert towers.affinity is None
    for day in np.unique(targets.day)[:3]:
        items = popular.items(int(day), 0)
        vectors = towers.item_vectors(items)
        assert vectors.shape[1] == towers.model.dim == popular.settings.layers[-1] + 1
        scores = towers.user_vectors(popular.users(np.arange(20))) @ vectors.T
        prior = (items.popularity @ popular.prior).astype(np.float32)
        assert np.allclose(scores, prior[None, :], atol=1e-5)
        assert len(np.unique(np.round(prior, 4))) > 20, "the prior tells titles apart"


def cosine(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Of a vector with each of many; 0 where either has no length."""
    lengths = np.linalg.norm(one) * np.linalg.norm(many, axis=1)
    return np.where(lengths > 1e-9, many @ one / np.maximum(lengths, 1e-9), 0.0)


class ByHand:
    """The base of a trainer's scores, from the extract's events and the titles' vectors alone."""

    def __init__(self, trainer: Trainer, first_day: date) -> None:
        self.trainer, self.extract, self.builder = trainer, trainer.builder.extract, trainer.builder
        self.window = trainer.spec.config.window_days
        self.events = {
            kind: self.extract.events(kind, first_day, self.extract.as_of)
            for kind in ("audiobook", "podcast")
        }
        vectors = trainer.vectors[0]
        self.places = {}
        for kind in ("audiobook", "podcast"):
            for space in ("hgnn", "text"):
                raw = getattr(vectors, f"{kind}_{space}").astype(np.float64)
                blank = ~raw.any(axis=1)
                moved = raw - raw[~blank].mean(axis=0)
                moved[blank] = 0  # a title without a text is near to nothing
                self.places[space, kind] = moved
            self.places["text", kind] = self.places["text", kind] @ trainer.spec.spaces["text"].axes
        # What listeners say of a title ends before the block of targets.
        firsts = self.extract.first_streams
        self.firsts = firsts[firsts["day"] < vectors.before]
        taste = {int(one): self.music(int(one), vectors.before) for one in self.firsts["user_idx"].unique()}
        taste = {one: vector for one, vector in taste.items() if vector is not None}
        average = np.mean(list(taste.values()), axis=0)
        self.audience = np.zeros((len(self.extract.audiobooks), len(average)))
        for one, title in self.firsts[["user_idx", "audiobook_idx"]].itertuples(index=False):
            if one in taste:
                self.audience[title] += taste[one] - average

    def music(self, user: int, day: int) -> np.ndarray | None:
        vector = self.builder._music_vector(
            np.array([user]), np.array([max(day - self.window, 0)]), np.array([day])
        )[0].astype(np.float64)
        return vector[:-1] if vector[-1] else None

    def lift(self, country: object) -> np.ndarray:
        titles = len(self.extract.audiobooks)
        spec = self.trainer.spec
        if country not in [spec.countries[index - 1] for index in spec.lift_countries]:
            return np.zeros(titles)
        streams = np.bincount(self.firsts["audiobook_idx"], minlength=titles) + 0.5
        share = streams / streams.sum()
        here = (self.extract.users["country"].iloc[self.firsts["user_idx"]] == country).to_numpy()
        own = np.bincount(self.firsts.loc[here, "audiobook_idx"], minlength=titles)
        return np.log((own + 50 * share) / (own.sum() + 50) / share)

    def affinities(self, user: int, day: int) -> dict[str, np.ndarray]:
        """Each channel's cosine of a user on a day with every title; of the country, the titles' lift."""
        found = {}
        for kind, events in self.events.items():
            own = events[events["user_idx"] == user]
            own = own[(own["day"] >= day - self.window) & (own["day"] < day)]
            for history, chosen in ((kind, own["signal"] == 0), (f"{kind}_weak", own["signal"] > 0)):
                touched = own.loc[chosen, "item_idx"].unique()
                for space in ("hgnn", "text"):
                    titles = self.places[space, "audiobook"]
                    mean = self.places[space, kind][touched].sum(axis=0) / max(len(touched), 1)
                    found[f"{space}.{history}"] = cosine(mean, titles)
        music = self.music(user, day)
        found["music"] = np.zeros(len(self.audience)) if music is None else cosine(music, self.audience)
        return found | {"country": self.lift(self.extract.users["country"].iloc[user])}

    def scores(self, user: int, day: int, weights: dict[str, float] | None) -> np.ndarray:
        """Popularity, and the weighted sum of the affinities if there are weights."""
        scores = self.trainer.items(day, 0).popularity.astype(np.float64) @ self.trainer.prior
        if weights is None:
            return scores
        found = self.affinities(user, day)
        assert set(found) == set(weights)
        return scores + sum(weight * found[name] for name, weight in weights.items())


@pytest.fixture(scope="module")
def by_hand(trainer: Trainer, tiny_chain: Chain) -> ByHand:
    return ByHand(trainer, cuts(tiny_chain.as_of, tiny_chain.settings.time).first_day)


def test_with_affinities_the_untrained_model_is_popularity_and_the_weighted_cosines(
    trainer: Trainer, by_hand: ByHand
):
    towers, targets = untrained(trainer), trainer.targets
    assert trainer.affinity is not None
    # Two spaces by four histories, music, country; and all of them count.
    assert len(trainer.affinity) == 10 and all(abs(weight) > 1e-4 for weight in trainer.affinity.values())
    rows = np.arange(0, len(targets), max(1, len(targets) // 40))
    seen = dict.fromkeys(trainer.affinity, 0)
    for row in rows:
        user, day = int(targets.user_idx[row]), int(targets.day[row])
        vectors = towers.item_vectors(trainer.items(day, 0))
        scores = towers.user_vectors(trainer.users(np.array([row])))[0] @ vectors.T
        assert np.allclose(scores, by_hand.scores(user, day, trainer.affinity), atol=1e-4)
        for name, one in by_hand.affinities(user, day).items():
            seen[name] += bool(np.ptp(one) > 0.1)
    assert min(seen.values()) > 5, seen
    # The towers' size, the bias, HGNN, text, music and countries.
    countries = len(trainer.spec.lift_countries)
    assert vectors.shape[1] == trainer.settings.layers[-1] + 1 + 16 + 64 + 8 + countries
    assert 2 <= countries <= 16


def test_a_base_fitted_on_a_sample_of_the_titles_is_about_that_of_all(trainer: Trainer):
    """Candidates are the day's targets and 8 other titles; all 57 are where the limits allow it."""
    titles = len(trainer.builder.extract.audiobooks)
    sampled = replace_settings(trainer, full_softmax_limit=5, negatives=8)
    day = sampled._base_day(
        int(sampled.targets.day[0]),
        np.flatnonzero(sampled.targets.day == sampled.targets.day[0]),
        None,
        [],
        np.random.default_rng(1),
    )
    own = np.unique(sampled.targets.audiobook_idx[sampled.targets.day == sampled.targets.day[0]])
    assert len(day.popularity) == len(own) + 8 < titles
    assert np.exp(day.log_odds).sum() == pytest.approx(titles), "together they stand for the catalogue"
    # Windows overlap, so weights may change places; what they make of the catalogue does not.
    popularity = trainer.items(int(trainer.targets.day[-1]), 0).popularity
    mine, theirs = popularity @ sampled.prior, popularity @ trainer.prior
    assert np.corrcoef(mine, theirs)[0, 1] > 0.98
    assert np.std(mine) == pytest.approx(np.std(theirs), rel=0.2)
    for name, weight in trainer.affinity.items():
        assert sampled.affinity[name] == pytest.approx(weight, abs=0.3), name


@pytest.mark.parametrize("affinities", [False, True])
def test_epoch_0_is_what_the_base_alone_scores(
    trainer: Trainer, popular: Trainer, by_hand: ByHand, tiny_chain: Chain, affinities: bool
):
    """HR@10 and MRR of the validation targets, ranked here by the base with masks laid by hand."""
    one = trainer if affinities else popular
    hand = (
        by_hand if affinities else ByHand(popular, cuts(tiny_chain.as_of, tiny_chain.settings.time).first_day)
    )
    targets = one.targets.take(np.flatnonzero(one.targets.validation))
    firsts = one.builder.extract.first_streams
    ranks, likelihoods = [], []
    for user, title, day in zip(targets.user_idx, targets.audiobook_idx, targets.day, strict=True):
        items = one.items(int(day), 0)
        scores = hand.scores(int(user), int(day), one.affinity)
        # Streamed by this user up to the day itself, or not published by then; the target always competes.
        own = firsts[(firsts["user_idx"] == user) & (firsts["day"] <= day)]["audiobook_idx"]
        barred = ~items.available
        barred[own] = True
        barred[title] = False
        ranks.append(1 + int((scores[~barred] > scores[title] + 1e-6).sum()))
        likelihoods.append(scores[title] - np.log(np.exp(scores[~barred]).sum()))
    found, objective = one.validate(untrained(one))
    assert len(ranks) > 40
    assert found["hr_10"] == pytest.approx(np.mean(np.array(ranks) <= 10))
    assert found["mrr"] == pytest.approx(np.mean([1 / r if r <= 100 else 0 for r in ranks]))
    assert objective == pytest.approx(np.array(likelihoods), abs=1e-3), "one a target, in the targets' order"
    assert found["objective"] == found["log_likelihood"] == pytest.approx(objective.mean())


def test_affinities_are_fitted_to_help(trainer: Trainer, popular: Trainer):
    """On the training targets the larger base has the higher likelihood: one convex problem holds the other."""
    everything = np.ones(len(trainer.targets), bool)
    figures = []
    for one in (popular, trainer):
        judged = Trainer.__new__(Trainer)
        judged.__dict__ |= one.__dict__ | {"targets": replace(one.targets, validation=everything)}
        figures.append(judged.validate(untrained(one))[0]["log_likelihood"])
    assert figures[1] > figures[0] + 0.05


def test_streamed_and_unpublished_titles_do_not_compete(trainer: Trainer):
    """However high they score: a bias on them changes no rank and no likelihood."""

    class Biased(Towers):
        def item_vectors(self, items: Any) -> np.ndarray:
            vectors = super().item_vectors(items).copy()
            vectors[:, self.model.dim - 1] += np.where(items.available, 0, 1000)
            return vectors

    model = untrained(trainer)
    biased = Biased(model.name, model.model, model.spec, model.prior, model.affinity)
    days = np.unique(trainer.targets.day[trainer.targets.validation])
    assert all((~trainer.items(int(day), 0).available).any() for day in days)
    figures, objective = trainer.validate(model)
    biased_figures, biased_objective = trainer.validate(biased)
    assert biased_figures == figures and list(biased_objective) == list(objective)
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


def fit_recording(trainer: Trainer) -> tuple[Towers, list[dict[str, Any]], list[np.ndarray]]:
    """`fit`, and the objectives of every epoch."""
    objectives = []
    validate = trainer.validate

    def recorded(towers: Towers) -> tuple[dict[str, Any], np.ndarray]:
        figures, objective = validate(towers)
        objectives.append(objective)
        return figures, objective

    trainer.validate = recorded
    towers, history = trainer.fit(quiet)
    del trainer.validate
    return towers, history, objectives


def test_training_lowers_the_loss_and_keeps_the_earliest_epoch_as_good_as_the_best(trainer: Trainer):
    longer = {"epochs": 8, "patience": 8, "learning_rate": 0.01, "dropout": 0.0, "residual_share": 1.0}
    one = replace_settings(trainer, **longer)
    towers, history, objectives = fit_recording(one)
    assert [line["epoch"] for line in history] == list(range(9))
    assert history[-1]["loss"] < history[1]["loss"] - 0.05
    assert [line["objective"] for line in history] == pytest.approx([o.mean() for o in objectives])
    [kept] = [line for line in history if line["best"]]
    assert kept["epoch"] == earliest_as_good(objectives)
    figures, _ = one.validate(towers)
    assert figures == pytest.approx({k: kept[k] for k in ("log_likelihood", "hr_10", "mrr", "objective")})
    again, _ = replace_settings(trainer, **longer).fit(quiet)
    for name, value in towers.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), "the same seed gives the same weights"


def test_the_kept_epoch_by_hand():
    """Leads of the best epoch over the first: mean 0.9, deviation 2, so the standard error is 2/sqrt(T).

    Four targets: 0.9 <= 2/2, the first is as good. Nine, with the same mean and deviation: 0.9 > 2/3, it is not.
    """
    four = 0.9 + np.array([1, -1, 1, -1]) * np.sqrt(3)
    nine = 0.9 + np.array([1, -1] * 4 + [0]) * 2
    assert [lead.std(ddof=1) for lead in (four, nine)] == pytest.approx([2, 2])
    level = np.array([5.0, -3.0, 0.0, 2.0])
    base = np.arange(9.0)
    assert earliest_as_good([level, level + four]) == 0
    assert earliest_as_good([base, base + nine]) == 1
    # A lead is paired: the targets differ much more among themselves than the epochs do.
    assert base.std() / 3 > 0.8
    assert earliest_as_good([base, base + nine / 10]) == 1
    # An even lead has no spread: it is not chance, however small. Worse epochs in between are passed over.
    assert earliest_as_good([base, base - 1, base + 0.001]) == 2
    # Later epochs may be as good as the best as well; the earliest is kept, not the one before the best.
    assert earliest_as_good([base, base + nine, base + nine + 0.05 + 0.1 * (nine - 0.9), base]) == 1
    assert earliest_as_good([level, level + four, level - 9]) == 0
    # Of equals the first is the best; what cannot be told apart is the first.
    assert earliest_as_good([base, base, base]) == 0
    assert earliest_as_good([base[:1], base[:1] + 1]) == 0
    assert earliest_as_good([np.zeros(0), np.zeros(0)]) == 0


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_a_share_of_what_the_towers_add_is_kept_and_the_base_is_whole(trainer: Trainer, share: float):
    changes = {"epochs": 4, "patience": 4, "learning_rate": 0.01, "dropout": 0.0}
    whole, history = replace_settings(trainer, **changes, residual_share=1.0).fit(quiet)
    assert not history[0]["best"] and float(whole.model.scale.detach()) != 0, "something was learnt"
    part, same = replace_settings(trainer, **changes, residual_share=share).fit(quiet)
    assert same == history, "chosen by the figures of the whole"
    items, users = trainer.items(int(trainer.targets.day[0]), 0), trainer.users(np.arange(30))
    base = untrained(trainer)
    base.model.prior_weight = whole.model.prior_weight
    scores = {
        name: towers.user_vectors(users) @ towers.item_vectors(items).T
        for name, towers in (("whole", whole), ("part", part), ("base", base))
    }
    added = scores["whole"] - scores["base"]
    assert np.abs(added).max() > 0.05
    assert scores["part"] - scores["base"] == pytest.approx(share * added, abs=1e-4)
    assert part.affinity == whole.affinity and part.prior.tobytes() == whole.prior.tobytes()


def test_patience_ends_a_training_that_gains_nothing(trainer: Trainer):
    # A learning rate that ruins the model at once: epoch 0 stays the best.
    ruined = trainer.settings.model_copy(update={"epochs": 9, "patience": 2, "learning_rate": 30.0})
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
    assert loaded.affinity == towers.affinity
    loaded.save(tmp_path / "w2.safetensors", tmp_path / "r2.json")
    assert (tmp_path / "r2.json").read_bytes() == (tmp_path / "r.json").read_bytes()
    assert (tmp_path / "w2.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()


def test_weights_without_affinities_come_back_without(popular: Trainer, tmp_path: Path):
    untrained(popular).save(tmp_path / "w.safetensors", tmp_path / "r.json")
    loaded = Towers.load(tmp_path / "w.safetensors", tmp_path / "r.json")
    assert loaded.affinity is None and loaded.affinities is None
    assert loaded.item_vectors(popular.items(int(popular.targets.day[0]), 0)).shape[1] == loaded.model.dim


def test_weights_of_an_older_version_are_named(trainer: Trainer, tmp_path: Path):
    untrained(trainer).save(tmp_path / "w.safetensors", tmp_path / "2T-HGNN.json")
    record = json.loads((tmp_path / "2T-HGNN.json").read_text())
    del record["affinity"]
    (tmp_path / "2T-HGNN.json").write_text(json.dumps(record))
    with pytest.raises(BadData, match=r"2T-HGNN\.json was written by an older version"):
        Towers.load(tmp_path / "w.safetensors", tmp_path / "2T-HGNN.json")


def test_a_feature_spec_survives_json(trainer: Trainer):
    spec = trainer.spec
    back = FeatureSpec.from_json(json.loads(json.dumps(spec.to_json())), spec.tensors())
    assert back.config == spec.config
    words = ("countries", "lift_countries", "languages", "genres")
    assert [getattr(back, name) for name in words] == [getattr(spec, name) for name in words]
    for name in ("user_mean", "user_scale", "item_mean", "item_scale"):
        assert getattr(back, name).tobytes() == getattr(spec, name).tobytes()
    assert list(back.spaces) == list(spec.spaces) == ["hgnn", "text"], "their order is that of the columns"
    for name, space in spec.spaces.items():
        for kind in ("audiobook", "podcast"):
            assert back.spaces[name].centre[kind].tobytes() == space.centre[kind].tobytes()
    assert back.spaces["hgnn"].axes is None
    assert np.array_equal(back.spaces["text"].axes, spec.spaces["text"].axes)
    turned = replace(spec, spaces=dict(reversed(spec.spaces.items())))
    assert list(FeatureSpec.from_json(turned.to_json(), turned.tensors()).spaces) == ["text", "hgnn"]


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
    assert not one.prior.any() and one.affinity is None
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


@pytest.mark.parametrize("affinities", [True, False])
def test_a_planted_taste_is_learnt_and_beats_popularity(planted: Extract, affinities: bool):
    """By the base with its affinities, and by the towers alone."""
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
        hgnn = embed_cut(TrainedHGNN(model, 0), text, graph)
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
        affinities=affinities,
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
