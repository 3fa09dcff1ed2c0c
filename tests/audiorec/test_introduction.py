"""Titles that nobody has streamed yet: how far they are lifted, and that nothing else moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from audiorec.catalogue import day_number
from audiorec.cuts import cuts
from audiorec.introduction import PLACES, introduced, introduction_lift
from audiorec.judging import ArtistVectors, load_towers, make_builder
from audiorec.towers import load_vectors


def shown(scores: np.ndarray, unheard: np.ndarray, lift: float) -> np.ndarray:
    """How many of each user's first ten places titles without a listener have, lifted."""
    order = np.argsort(-(scores + np.float32(lift) * unheard), axis=1, kind="stable")[:, :PLACES]
    return unheard[order].sum(axis=1)


def test_the_lift_worked_by_hand():
    """One user. Streamed titles score 20, 19, ..., 11; of ten nobody streamed the best score 5 and 3.

    The first of these enters the ten by beating 11, so by 6; then the second by beating 12, so by 9.
    """
    items = np.array([[float(score)] for score in (*range(20, 10, -1), 5, 3, *[-100] * 8)], np.float32)
    unheard = np.arange(20) >= 10
    everything = np.ones(20, bool)

    def lift(share: float, available: np.ndarray = everything) -> float:
        user = np.ones((1, 1), np.float32)
        return introduction_lift(user, items, unheard, available, sp.csr_matrix((1, 20)), share)

    assert lift(0.1) == pytest.approx(6, abs=1e-3) and lift(0.1) > 6
    assert lift(0.2) == pytest.approx(9, abs=1e-3)
    assert lift(0.0) == 0
    # Who is not out yet is not introduced; without ten streamed titles a list is short of titles anyway.
    assert lift(0.1, everything & (np.arange(20) != 10)) == pytest.approx(8, abs=1e-3)
    assert lift(0.1, everything & ~unheard) == 0 == lift(0.1, everything & (np.arange(20) != 0))


def test_a_single_new_title_is_not_pressed_on_everybody():
    """100 users, one title without a stream: it comes into a fifth of the lists, however large the share asked for."""
    draw = np.random.default_rng(1)
    users, items = (
        draw.normal(size=(100, 4)).astype(np.float32),
        draw.normal(size=(30, 4)).astype(np.float32),
    )
    unheard = np.arange(30) == 7
    items[unheard] *= 0.1  # nobody's favourite
    for share in (0.05, 0.5):
        lift = introduction_lift(users, items, unheard, np.ones(30, bool), sp.csr_matrix((100, 30)), share)
        assert lift > 0
        assert shown(users @ items.T, unheard, lift).mean() == pytest.approx(0.2, abs=0.011)


def test_what_a_user_streamed_holds_no_place():
    """Eleven streamed titles, of which the user knows the best: the ten others hold the places, the last with 10."""
    items = np.array([[float(score)] for score in (*range(20, 9, -1), *[5] * 10)], np.float32)
    known = sp.csr_matrix(([1.0], ([0], [0])), shape=(1, 21))
    unheard = np.arange(21) > 10
    lift = introduction_lift(np.ones((1, 1), np.float32), items, unheard, np.ones(21, bool), known, 0.1)
    assert lift == pytest.approx(5, abs=1e-3)


@given(st.integers(0, 2**31), st.sampled_from([0.05, 0.1, 0.3]))
def test_the_least_lift_that_fills_the_share(seed: int, share: float):
    draw = np.random.default_rng(seed)
    users, items = (
        draw.normal(size=(30, 4)).astype(np.float32),
        draw.normal(size=(60, 4)).astype(np.float32),
    )
    unheard = draw.permutation(60) < draw.integers(10, 40)
    lift = introduction_lift(users, items, unheard, np.ones(60, bool), sp.csr_matrix((30, 60)), share)
    scores = users @ items.T
    assert shown(scores, unheard, lift).mean() / PLACES >= share - 1e-9
    if lift:
        assert shown(scores, unheard, lift - 1e-3).mean() / PLACES <= share + 1 / 60


def test_on_a_trained_model_new_titles_get_their_share_and_no_other_order_moves(tiny_chain: Any):
    """Ten titles of the tiny catalogue as if nobody had streamed them: the bias moves by the lift, theirs alone."""
    settings, store = tiny_chain.settings, tiny_chain.store
    laid = cuts(tiny_chain.as_of, settings.time)
    extract = tiny_chain.extract()
    towers = load_towers(store, tiny_chain.manifest("train_two_tower"))
    assert towers.introduction_share == 0.1, "the default, kept with the version"
    artists = ArtistVectors.load(store, tiny_chain.manifest("embed_music"))
    builder = make_builder(extract, towers, artists, laid.first_day, laid.split)
    vectors = load_vectors(
        store, tiny_chain.manifest("embed_text"), tiny_chain.manifest("train_hgnn"), laid.judge.name
    )
    day = day_number(laid.split)
    items = builder.items(day, vectors, towers.spec)
    firsts = extract.first_streams
    streamed = np.zeros(len(items.popularity), bool)
    streamed[firsts.loc[firsts["day"] < day, "audiobook_idx"]] = True
    assert np.array_equal(items.unheard, ~streamed)

    items.popularity[:10] = items.popularity[:10].min(axis=0)
    items.popularity[:10, -1] = 0
    plain = towers.item_vectors(items)
    raised, lift, _ = introduced(towers, builder, vectors, day, items)
    assert lift > 0
    moved = raised - plain
    assert np.allclose(moved[items.unheard, towers.bias_column], lift, atol=1e-5)
    moved[items.unheard, towers.bias_column] = 0
    assert not moved.any()
    users = np.flatnonzero(extract.first_seen_day < day)
    days = np.full(len(users), day)
    scores = towers.user_vectors(builder.users(users, days, vectors, towers.spec)) @ raised.T
    scores[:, ~items.available] = -np.inf
    scores[builder.streamed_before(users, days).toarray() > 0] = -np.inf
    share = shown(scores, items.unheard, 0).mean() / PLACES
    assert 0.1 <= share < 0.12
