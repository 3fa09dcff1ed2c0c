"""HGNN-w-users on planted groups: who streams with whom is found, for users of podcasts alone as well."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from models import user_graph

USERS, AUDIOBOOKS, PODCASTS, COLD = 300, 40, 60, 40


@pytest.fixture(scope="module")
def planted() -> tuple[dict[str, sp.csr_matrix], dict[str, np.ndarray], np.ndarray]:
    """Two groups of users that stream titles of their own parity; the first users no audiobook; texts say nothing."""
    generator = np.random.default_rng(0)
    group = np.arange(USERS) % 2

    def streams(titles: int) -> sp.csr_matrix:
        own = (np.arange(titles) % 2)[None, :] == group[:, None]
        drawn = generator.random((USERS, titles)) < np.where(own, 0.15, 0.01)
        if titles == AUDIOBOOKS:
            drawn[:COLD] = False
        return sp.csr_matrix(drawn.astype(np.float32))

    matrices = {"audiobook": streams(AUDIOBOOKS), "podcast": streams(PODCASTS)}
    text = {
        kind: generator.normal(size=(matrix.shape[1], 16)).astype(np.float32)
        for kind, matrix in matrices.items()
    }
    return matrices, text, group


def own_share(scorer: user_graph.Scorer, users: np.ndarray, group: np.ndarray) -> float:
    """Share of the ten best titles that are of the user's group; a half by chance."""
    best = np.argsort(-scorer(users), axis=1)[:, :10]
    return float((best % 2 == group[users, None]).mean())


def test_users_of_podcasts_alone_get_the_audiobooks_of_their_group(planted):
    streams, text, group = planted
    cold, warm = np.arange(COLD), np.arange(COLD, USERS)
    scorer = user_graph.train(streams, text, lambda s: own_share(s, warm, group), dim=16, steps=60, seed=1)
    assert scorer(cold).shape == (COLD, AUDIOBOOKS)
    assert own_share(scorer, cold, group) > 0.9


def test_a_seed_decides_and_another_decides_otherwise(planted):
    streams, text, group = planted
    warm = np.arange(COLD, USERS)

    def scores(seed: int) -> np.ndarray:
        found = user_graph.train(
            streams, text, lambda s: own_share(s, warm, group), dim=8, steps=5, seed=seed
        )
        return found(warm)

    assert np.array_equal(scores(1), scores(1)) and not np.array_equal(scores(1), scores(2))


def test_a_source_without_podcasts_is_no_trouble(planted):
    streams, text, group = planted
    warm = np.arange(COLD, USERS)
    scorer = user_graph.train(
        {"audiobook": streams["audiobook"], "podcast": sp.csr_matrix((USERS, 0), dtype=np.float32)},
        {"audiobook": text["audiobook"], "podcast": np.zeros((0, 16), np.float32)},
        lambda s: own_share(s, warm, group),
        dim=16,
        steps=60,
        seed=1,
    )
    assert own_share(scorer, warm, group) > 0.8
