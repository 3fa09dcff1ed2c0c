"""Rivals: formulas by hand, planted communities that each must find, and a whole run on the tiny chain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from audiorec.experiments import rivals
from audiorec.experiments.rivals import Listening
from audiorec.runner import run_task
from audiorec.settings import Rivals
from audiorec.towers import Targets

if TYPE_CHECKING:
    from conftest import Chain

pytestmark = pytest.mark.long


def listening(rows: list[list[int]], audiobooks: int, podcasts: int = 0) -> Listening:
    return Listening(sp.csr_matrix(np.array(rows, np.float32)), audiobooks, podcasts)


def test_item_knn_by_hand():
    """Two audiobooks and a podcast. Users: {a, b}, {a, p}, {b, p}, {p}: degrees 2, 2, 3; a-b 1, a-p 1, b-p 1."""
    scorer = rivals.item_knn(listening([[1, 1, 0], [1, 0, 1], [0, 1, 1], [0, 0, 1]], 2, 1), shrinkage=1.0)
    a_b, p_a = 1 / (2 + 1), 1 / (np.sqrt(6) + 1)
    # User 0 streamed both: each is scored by the other, never by itself. User 3 knows the podcast only.
    assert scorer(np.array([0, 3])) == pytest.approx(np.array([[a_b, a_b], [p_a, p_a]]))
    assert scorer(np.array([1])) == pytest.approx(np.array([[p_a, a_b + p_a]]))


@pytest.mark.parametrize("users", [60, 4], ids=["more users than items", "fewer"])
def test_ease_is_the_ridge_regression_of_each_item_on_the_others(users: int):
    generator = np.random.default_rng(1)
    matrix = (generator.random((users, 5)) < 0.4).astype(np.float32)
    scorer = rivals.ease(Listening(sp.csr_matrix(matrix), 3, 2), ridge=2.0)
    expected = np.zeros((users, 3))
    for item in range(3):
        others = [j for j in range(5) if j != item]
        known = matrix[:, others].astype(np.float64)
        weights = np.linalg.solve(known.T @ known + 2.0 * np.eye(4), known.T @ matrix[:, item])
        expected[:, item] = known @ weights
    assert scorer(np.arange(users)) == pytest.approx(expected, abs=1e-4)


def test_ease_leaves_artists_out_where_the_inverse_would_not_fit(monkeypatch: pytest.MonkeyPatch):
    generator = np.random.default_rng(2)
    matrix = (generator.random((40, 6)) < 0.4).astype(np.float32)
    whole = Listening(sp.csr_matrix(matrix), 2, 2)
    without = rivals.ease(Listening(sp.csr_matrix(matrix[:, :4]), 2, 2), 1.0)(np.arange(40))
    monkeypatch.setattr(rivals, "_EASE_ITEMS", 5)
    assert rivals.ease(whole, 1.0)(np.arange(40)) == pytest.approx(without)


def test_nearest_to_the_mean_by_hand():
    streamed = sp.csr_matrix(np.array([[1, 1, 0], [0, 0, 0]], np.float32))
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    scores = rivals.nearest_to_mean(streamed, vectors)(np.array([0, 1]))
    assert scores == pytest.approx(np.array([[1, 1, 1.4], [0, 0, 0]]))


def test_lightgcn_propagates_by_the_matrix_as_pyg_does_edge_by_edge():
    from torch_geometric.nn.models import LightGCN

    matrix = sp.csr_matrix(np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]], np.float32))
    user, item = (torch.from_numpy(ends.astype(np.int64)) for ends in matrix.nonzero())
    edges = torch.stack([torch.cat([user, item + 3]), torch.cat([item + 3, user])])
    by_edge, by_matrix = LightGCN(7, 4, 2), LightGCN(7, 4, 2, normalize=False)
    by_matrix.load_state_dict(by_edge.state_dict())
    found = by_matrix.get_embedding(rivals._normalized(matrix))
    # The fourth title has no stream: nothing reaches it, and nothing is divided by zero.
    assert torch.allclose(found, by_edge.get_embedding(edges), atol=1e-6)


def test_a_negative_is_of_the_positive_s_own_type():
    world = listening([[1] * 9], audiobooks=2, podcasts=3)
    items = torch.arange(9).repeat(400)
    drawn = rivals._same_type(items, world, 9, torch.Generator().manual_seed(1))
    kinds = np.digitize(drawn.numpy(), [2, 5])
    assert (kinds == np.digitize(items.numpy(), [2, 5])).all()
    assert set(drawn.numpy()) == set(range(9))


@pytest.fixture(scope="module")
def communities() -> Listening:
    """120 users in two halves; each streamed 6 of the 15 audiobooks and 6 of the 15 podcasts of its half."""
    generator = np.random.default_rng(5)
    matrix = np.zeros((120, 60), np.float32)
    for user in range(120):
        half = (user % 2) * 15
        for first in (0, 30):
            matrix[user, first + half + generator.choice(15, 6, replace=False)] = 1
    return Listening(sp.csr_matrix(matrix), 30, 30)


MAKERS: dict[str, Any] = {
    "item-kNN": lambda one: rivals.item_knn(one, 1.0),
    "EASE": lambda one: rivals.ease(one, 5.0),
    "ALS": lambda one: rivals.als(one, 8, 0.1, 1),
    "BPR": lambda one: rivals.bpr(one, 8, 100, 1),
    "LightGCN": lambda one: rivals.light_gcn(
        one, Rivals(lightgcn_dim=8, lightgcn_epochs=60), lambda scorer: own_half(one, scorer)
    ),
    "LLM-KNN": lambda one: rivals.nearest_to_mean(
        one.matrix[:, :30], np.eye(2, dtype=np.float32)[np.arange(30) // 15]
    ),
}


def own_half(world: Listening, scorer: Any) -> float:
    """Share of each user's five best new titles that lie in the user's half; 0.5 by chance, about 0.38 of new ones."""
    users = np.arange(world.matrix.shape[0])
    scores = np.where(world.matrix[:, :30].toarray() > 0, -np.inf, scorer(users))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    return float(((best >= 15) == (users % 2 == 1)[:, None]).mean())


@pytest.mark.parametrize("name", MAKERS)
def test_planted_communities_are_found(communities: Listening, name: str):
    assert own_half(communities, MAKERS[name](communities)) > 0.9


@pytest.mark.parametrize("name", ["ALS", "BPR", "LightGCN"])
def test_the_same_seed_gives_the_same_scores(communities: Listening, name: str):
    users = np.arange(20)
    once, again = (MAKERS[name](communities)(users) for _ in range(2))
    assert once == pytest.approx(again, abs=1e-6)


@pytest.fixture(scope="module")
def popular_world() -> tuple[rivals.BoostedTrees, Targets]:
    """Users who take titles by their popularity and by nothing else; 40 titles, the last the most popular."""
    generator = np.random.default_rng(3)
    odds = np.arange(1, 41) ** 2.0
    taken = generator.choice(40, 1_500, p=odds / odds.sum())
    count = len(taken)
    targets = Targets(
        np.arange(count) % 50, taken, np.full(count, 9), np.zeros(count, int), np.zeros(count, bool)
    )
    builder: Any = SimpleNamespace(popularity=lambda day: np.log1p(odds)[:, None])
    vectors: Any = SimpleNamespace(audiobook_text=np.eye(40, dtype=np.float32))
    past = Listening(sp.csr_matrix((50, 40), dtype=np.float32), 40, 0)
    settings = Rivals(gbdt_trees=(20,), gbdt_negatives=30, gbdt_targets=1_500)
    return rivals.BoostedTrees(builder, {9: past}, vectors, settings, 1.0), targets


def test_the_chosen_title_lies_anywhere_in_its_group(popular_world: tuple[rivals.BoostedTrees, Targets]):
    """A ranker that ties all titles finds the first of a group, and must not look right for it."""
    trees, targets = popular_world
    _, labels = trees.examples(targets, [9])
    places = labels.reshape(-1, 31).argmax(axis=1)
    # The first of several where the title was drawn as another, too: somewhat before the middle.
    assert 11 < places.mean() < 16
    assert set(places) == set(range(31))


def test_boosted_trees_learn_that_popular_titles_are_taken(
    popular_world: tuple[rivals.BoostedTrees, Targets],
):
    trees, targets = popular_world
    [scores] = trees.fit(targets, [9]).score(np.array([0]), 9, 20)
    assert set(np.argsort(-scores, kind="stable")[:10]) <= set(range(25, 40))
    assert scores[:10].max() < scores[30:].min()


@pytest.fixture(scope="module")
def tiny_rivals(tiny_chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The rivals of the tiny chain, in a copy of its store."""
    work = tmp_path_factory.mktemp("rivals")
    shutil.copytree(tiny_chain.settings.store.uri, work / "store")
    settings = tiny_chain.settings.model_copy(
        update={
            "store": tiny_chain.settings.store.model_copy(
                update={"uri": str(work / "store"), "scratch": str(work / "scratch")}
            ),
            "rivals": Rivals(
                als_factors=8, bpr_factors=8, bpr_iterations=20, lightgcn_epochs=3, gbdt_trees=(10, 30)
            ),
        }
    )
    result = run_task("rivals", settings, tiny_chain.as_of)
    from audiorec.store import Store

    store = Store(settings.store.uri, settings.store.scratch)
    return store, store.read_uri(result["manifest"])


def test_every_rival_ranks_the_same_users_as_evaluate(tiny_rivals: tuple[Any, Any], tiny_chain: Chain):
    store, manifest = tiny_rivals
    ranks = pd.read_parquet(store.open(manifest, "ranks.parquet"))
    assert list(ranks["model"].unique()) == list(rivals.MODELS)
    ours = pd.read_parquet(tiny_chain.open("evaluate", "ranks.parquet"))
    ours = ours[ours["model"] == "2T-HGNN"]
    for name in rivals.MODELS:
        theirs = ranks[ranks["model"] == name]
        assert list(theirs["user_id"]) == list(ours["user_id"])
        assert list(theirs["segment"]) == list(ours["segment"])
        # Who counts in a panel is the hold-out's doing, not a model's.
        assert list(theirs["rank"] < 0) == list(ours["rank"] < 0)


def test_choices_are_recorded_and_lie_in_their_grids(tiny_rivals: tuple[Any, Any]):
    store, manifest = tiny_rivals
    chosen = json.loads(Path(store.open(manifest, "chosen.json")).read_text())
    defaults = Rivals()
    assert chosen["item-kNN"]["shrinkage"] in defaults.item_knn_shrinkage
    assert chosen["EASE"]["ridge"] in defaults.ease_ridge
    assert chosen["ALS"]["regularization"] in defaults.als_regularization
    assert chosen["item-kNN x recent popularity"]["window"] in (3, 7)
    assert chosen["boosted trees"]["trees"] in (10, 30)


def test_warm_baselines_say_nothing_of_cold_users(tiny_rivals: tuple[Any, Any]):
    """With every score 0, ties go to the lower row: all cold users get the same ranks' order of titles."""
    store, manifest = tiny_rivals
    coverage = pd.read_csv(store.open(manifest, "coverage.csv")).set_index(["model", "panel", "segment"])
    for name in ("LLM-KNN", "HGNN"):
        cold, warm = (coverage.loc[(name, "full", segment), "coverage"] for segment in ("cold", "warm"))
        assert cold <= warm
