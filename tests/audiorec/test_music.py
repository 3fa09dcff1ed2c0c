"""Music vectors: what the factorisation finds, and who gets a vector by fold-in."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from audiorec.music import fit_artists, fold_in_artists, plays_matrix, user_vectors


def random_plays(seed: int, users: int = 40, artists: int = 15, share: float = 0.2) -> sp.csr_matrix:
    generator = np.random.default_rng(seed)
    counts = generator.poisson(2, (users, artists)) * (generator.random((users, artists)) < share)
    plays = sp.csr_matrix(counts.astype(np.float32))
    plays.data = np.log1p(plays.data)
    return plays


def two_tastes(users: int = 60, artists: int = 20) -> sp.csr_matrix:
    """Even users play the first half of the artists, odd ones the other."""
    generator = np.random.default_rng(2)
    counts = np.zeros((users, artists), np.float32)
    for user in range(users):
        own = generator.choice(artists // 2, 5, replace=False) + (user % 2) * artists // 2
        counts[user, own] = generator.integers(1, 9, 5)
    plays = sp.csr_matrix(counts)
    plays.data = np.log1p(plays.data)
    return plays


def test_plays_are_log_of_one_more_than_the_streams():
    events = pd.DataFrame({"user_idx": [0, 0, 0, 2], "item_idx": [1, 1, 0, 1]})
    expected = [[np.log(2), np.log(3)], [0, 0], [0, np.log(2)]]
    assert plays_matrix(events, 3, 2).toarray() == pytest.approx(np.array(expected))


def test_artists_of_one_taste_point_one_way():
    vectors, known = fit_artists(two_tastes(), 4, 2)
    assert known.all()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    same = np.equal.outer(np.arange(20) < 10, np.arange(20) < 10)
    assert cosine[same & ~np.eye(20, dtype=bool)].mean() > 0.5
    assert abs(cosine[~same].mean()) < 0.1


def test_users_of_one_taste_are_alike_and_those_without_music_are_flagged():
    plays = sp.vstack([two_tastes(), sp.csr_matrix((1, 20), dtype=np.float32)]).tocsr()
    users, present = user_vectors(plays, *fit_artists(plays, 4, 2))
    assert list(present) == [True] * 60 + [False]
    assert not users[60].any()
    assert np.linalg.norm(users[:60], axis=1) == pytest.approx(np.ones(60), abs=1e-5)
    cosine = users[:60] @ users[:60].T
    same = np.equal.outer(np.arange(60) % 2, np.arange(60) % 2)
    assert cosine[same].mean() > 0.7 and abs(cosine[~same].mean()) < 0.1


def test_a_user_s_vector_by_hand():
    """Two artists at right angles, played log 2 and log 4 = 2 log 2: the mean points to (1, 2) / sqrt 5."""
    plays = sp.csr_matrix(np.array([[np.log(2), np.log(4), 5.0]]))
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]], np.float32)
    users, present = user_vectors(plays, vectors, np.array([True, True, False]))
    assert users[0] == pytest.approx([1 / np.sqrt(5), 2 / np.sqrt(5)])
    assert present[0]


def test_artists_with_few_listeners_get_no_vector():
    """Listeners: 1, 2, 3, 3 of four artists; with at least 2 the first has none."""
    plays = sp.csr_matrix(np.array([[1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]], np.float32))
    vectors, known = fit_artists(plays, 8, 2)
    assert list(known) == [False, True, True, True]
    assert not vectors[0].any()
    # Rank: 3 known artists less one; the other columns are zero.
    assert vectors[1:, :2].any() and not vectors[:, 2:].any()


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 5), (5, 1)])
def test_too_little_music_gives_zeros_and_no_error(shape: tuple[int, int]):
    plays = sp.csr_matrix(np.ones(shape, np.float32))
    vectors, known = fit_artists(plays, 4, 1)
    assert vectors.shape == (shape[1], 4) and not vectors.any() and not known.any()
    users, present = user_vectors(plays, vectors, known)
    assert users.shape == (shape[0], 4) and not present.any()
    assert not fold_in_artists(plays, vectors, known)[1].any()


@given(seed=st.integers(0, 10**6), dimensions=st.integers(2, 12))
@hypothesis_settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_the_same_plays_give_the_same_bytes_and_users_without_any_change_nothing(seed: int, dimensions: int):
    plays = random_plays(seed)
    one, known = fit_artists(plays, dimensions, 2)
    assert fit_artists(plays, dimensions, 2)[0].tobytes() == one.tobytes()
    # Users who are known from later days only: rows without plays, anywhere among the others.
    spread = sp.csr_matrix((90, plays.shape[1]), dtype=plays.dtype).tolil()
    rows = np.sort(np.random.default_rng(seed).choice(90, plays.shape[0], replace=False))
    spread[rows] = plays
    more, still_known = fit_artists(spread.tocsr(), dimensions, 2)
    assert more.tobytes() == one.tobytes()
    assert list(still_known) == list(known)
    assert np.isfinite(one).all() and not one[~known].any()


@given(seed=st.integers(0, 10**6))
@hypothesis_settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_folding_in_keeps_known_vectors_and_gives_new_ones_their_listeners(seed: int):
    plays = random_plays(seed, artists=18)
    before, after = plays[:, :12], plays
    vectors, known = fit_artists(before, 5, 2)
    wider = np.concatenate([vectors, np.zeros((6, 5), np.float32)])
    wider_known = np.concatenate([known, np.zeros(6, bool)])
    extended, now_known = fold_in_artists(after, wider, wider_known)
    assert extended[wider_known].tobytes() == wider[wider_known].tobytes(), "known vectors stay as they are"
    assert (now_known >= wider_known).all()
    users, present = user_vectors(after, wider, wider_known)
    length = np.median(np.linalg.norm(vectors[known], axis=1))
    for artist in np.flatnonzero(~wider_known):
        listeners = after[:, [artist]].toarray().ravel() * present
        assert now_known[artist] == (listeners > 0).any()
        if now_known[artist]:
            mean = listeners @ users
            assert extended[artist] == pytest.approx(mean / np.linalg.norm(mean) * length, abs=1e-4)
        else:
            assert not extended[artist].any()
    # Users who play none of the new artists keep their vector.
    only_old = after[:, ~wider_known].getnnz(axis=1) == 0
    now_users, _ = user_vectors(after, extended, now_known)
    assert now_users[only_old] == pytest.approx(users[only_old], abs=1e-6)


@given(seed=st.integers(0, 10**6), factor=st.floats(0.1, 10))
@hypothesis_settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_a_user_s_vector_is_of_unit_length_whatever_the_plays(seed: int, factor: float):
    plays = random_plays(seed)
    vectors, known = fit_artists(plays, 6, 2)
    users, present = user_vectors(plays, vectors, known)
    assert np.linalg.norm(users[present], axis=1) == pytest.approx(np.ones(present.sum()), abs=1e-4)
    scaled, still = user_vectors((plays * factor).tocsr(), vectors, known)
    assert list(still) == list(present)
    assert scaled == pytest.approx(users, abs=1e-4)
    # One user's vector does not depend on who else is there.
    alone = np.concatenate([user_vectors(plays[[row]], vectors, known)[0] for row in range(plays.shape[0])])
    assert alone.tobytes() == users.tobytes()
