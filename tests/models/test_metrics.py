"""Ranking metrics: hand-worked cases, a perfect and a random ranker, and what may never happen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.metrics import (
    bootstrap_interval,
    coverage_at_k,
    first_hit_ranks,
    hit_rate_at_k,
    paired_bootstrap_interval,
    popularity_tiers,
    reciprocal_rank,
    top_k,
)


def lists_of(*relevant):
    """indptr and indices of each user's relevant items."""
    return np.cumsum([0, *map(len, relevant)]), np.array(
        [i for items in relevant for i in items], dtype=np.int64
    )


# -- top k ---------------------------------------------------------------------------------------------


def test_top_k_by_hand():
    scores = np.array([[1.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    assert top_k(scores, None, 3).tolist() == [[1, 3, 2], [0, 1, 2]]
    exclude = np.array([[False, True, False, False], [True, True, True, False]])
    assert top_k(scores, exclude, 3).tolist() == [[3, 2, 0], [3, -1, -1]]
    assert top_k(scores, None, 5).tolist() == [[1, 3, 2, 0, -1], [0, 1, 2, 3, -1]]


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.integers(-3, 3)),
    st.integers(1, 12),
    st.data(),
)
def test_top_k_equals_a_full_stable_sort(scores, k, data):
    exclude = data.draw(arrays.arrays(np.bool_, scores.shape))
    for found, values, barred in zip(top_k(scores, exclude, k), scores, exclude, strict=True):
        order = sorted((i for i in range(len(values)) if not barred[i]), key=lambda i: (-values[i], i))
        assert found.tolist() == (order + [-1] * k)[:k]


def test_top_k_leaves_the_scores_alone_and_refuses_nan():
    scores = np.array([[1.0, 2.0]])
    top_k(scores, np.array([[False, True]]), 1)
    assert scores.tolist() == [[1.0, 2.0]]
    with pytest.raises(ValueError, match="NaN"):
        top_k(np.array([[1.0, np.nan]]), None, 1)
    with pytest.raises(ValueError, match="k is 0"):
        top_k(scores, None, 0)


# -- ranks ---------------------------------------------------------------------------------------------


def test_ranks_by_hand():
    recommended = np.array([[5, 2, 7], [1, 0, 3], [4, -1, -1], [0, 1, 2]])
    ranks = first_hit_ranks(recommended, *lists_of([7, 2], [9], [4], []))
    assert ranks.tolist() == [2, 0, 1, 0]
    assert hit_rate_at_k(ranks, 1).tolist() == [0, 0, 1, 0]
    assert hit_rate_at_k(ranks, 2).mean() == 2 / 4
    assert reciprocal_rank(ranks).mean() == (1 / 2 + 0 + 1 + 0) / 4
    assert reciprocal_rank(ranks, within=1).mean() == (0 + 0 + 1 + 0) / 4


def test_a_gap_in_the_list_is_never_a_hit():
    # The numbering of users side by side must not let -1 of one user meet the last item of the one before.
    assert first_hit_ranks(np.array([[0], [-1]]), *lists_of([3], [3])).tolist() == [0, 0]
    assert first_hit_ranks(np.array([[3], [-1]]), *lists_of([0], [0])).tolist() == [0, 0]


@given(st.data(), st.integers(1, 6), st.integers(2, 12))
def test_ranks_equal_a_plain_search(data, users, items):
    recommended = np.array([data.draw(st.permutations(range(items))) for _ in range(users)])
    relevant = [data.draw(st.lists(st.integers(0, items - 1), unique=True)) for _ in range(users)]
    ranks = first_hit_ranks(recommended, *lists_of(*relevant))
    for rank, ours, theirs in zip(ranks, recommended, relevant, strict=True):
        assert rank == next((place + 1 for place, item in enumerate(ours) if item in theirs), 0)
    hits = [hit_rate_at_k(ranks, k).mean() for k in range(1, items + 1)]
    assert hits == sorted(hits), "the hit rate fell as k grew"
    assert hits[-1] == np.mean([bool(r) for r in relevant])
    assert (reciprocal_rank(ranks, 1) <= hit_rate_at_k(ranks, 1)).all()
    assert (reciprocal_rank(ranks) >= hit_rate_at_k(ranks, 10) / 10).all()


def test_a_perfect_ranker_scores_one():
    scores = np.eye(6)
    ranks = first_hit_ranks(top_k(scores, None, 3), *lists_of(*[[u] for u in range(6)]))
    assert hit_rate_at_k(ranks).mean() == reciprocal_rank(ranks).mean() == 1


def test_a_random_ranker_scores_what_chance_gives():
    # 50 items, 1 relevant: P(hit in 10) = 1/5; E[1/rank] = (1 + 1/2 + ... + 1/50)/50.
    users, items = 20_000, 50
    scores = np.random.default_rng(0).random((users, items), dtype=np.float32)
    ranks = first_hit_ranks(top_k(scores, None, items), np.arange(users + 1), np.zeros(users, dtype=np.int64))
    # five standard errors of a share of 1/5: 5 * sqrt(0.16/20000) = 0.0141
    assert hit_rate_at_k(ranks).mean() == pytest.approx(1 / 5, abs=0.0141)
    assert reciprocal_rank(ranks).mean() == pytest.approx((1 / np.arange(1, 51)).sum() / 50, abs=0.0075)


def test_a_wrong_number_of_users_is_named():
    with pytest.raises(ValueError, match=r"3 entries; expected 2, users \+ 1"):
        first_hit_ranks(np.array([[1]]), *lists_of([1], [2]))


def test_coverage_by_hand():
    recommended = np.array([[0, 1, -1], [1, 2, 5]])
    assert coverage_at_k(recommended, 10) == 4 / 10
    assert coverage_at_k(recommended, 10, k=1) == 2 / 10


# -- intervals -----------------------------------------------------------------------------------------


def test_interval_is_as_wide_as_theory_says():
    # A share of 0.2 over 10,000 users: standard error sqrt(0.2 * 0.8/10,000) = 0.004
    values = np.repeat([1.0, 0.0], [2_000, 8_000])
    interval = bootstrap_interval(values, draws=5_000)
    assert interval.mean == 0.2 and interval.users == 10_000
    assert interval.low == pytest.approx(0.2 - 1.96 * 0.004, abs=0.0005)
    assert interval.high == pytest.approx(0.2 + 1.96 * 0.004, abs=0.0005)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    covered = 0
    for repeat in range(300):
        interval = bootstrap_interval(rng.random(200) < 0.3, level=0.9, draws=400, seed=repeat)
        covered += interval.low <= 0.3 <= interval.high
    # nine of ten, within five standard errors sqrt(0.09/300) = 0.0173
    assert covered / 300 == pytest.approx(0.9, abs=0.0866)


def test_pairing_removes_what_both_have_in_common():
    rng = np.random.default_rng(1)
    theirs = rng.random(500) * 10
    interval = paired_bootstrap_interval(theirs + 0.1, theirs)
    assert interval.low == pytest.approx(0.1) and interval.high == pytest.approx(0.1)
    equal = paired_bootstrap_interval(theirs, theirs)
    assert (equal.mean, equal.low, equal.high) == (0, 0, 0)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_interval_holds_the_mean_s_range_and_ignores_the_order_of_users(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    one, other = bootstrap_interval(np.array(values), seed=5), bootstrap_interval(np.array(shuffled), seed=5)
    assert (one.low, one.high) == (other.low, other.high)
    assert min(values) <= one.low <= one.high <= max(values) + 1e-12


def test_memory_chunks_do_not_skip_draws():
    # 3,000 distinct values: 1,333 draws a chunk, two chunks
    interval = bootstrap_interval(np.arange(3_000) / 3_000, draws=2_000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * (1 / 12 / 3_000) ** 0.5, rel=0.1)


def test_no_users_give_no_number_and_unequal_ones_an_error():
    assert np.isnan(bootstrap_interval(np.array([])).mean)
    with pytest.raises(ValueError, match="expected the same users"):
        paired_bootstrap_interval(np.zeros(2), np.zeros(3))


# -- tiers ---------------------------------------------------------------------------------------------


def test_tiers_by_hand():
    # 20 streams, 4 a tier. In order: 8 (streams 0-7) starts tier 1; the 4 of index 3 (8-11) in tier 3;
    # 3 (12-14) in tier 4; 2 (15-16) still in tier 4; 2 (17-18) and 1 (19) in tier 5; unstreamed in 5.
    assert popularity_tiers(np.array([0, 8, 2, 4, 3, 2, 1])).tolist() == [5, 1, 4, 3, 4, 5, 5]


def test_equal_titles_fill_the_tiers_in_order_of_index():
    assert popularity_tiers(np.ones(10, dtype=int)).tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


@given(st.lists(st.integers(0, 50), max_size=30))
def test_tiers_never_put_a_title_above_a_more_popular_one(streams):
    tiers = popularity_tiers(np.array(streams, dtype=np.int64))
    assert set(tiers.tolist()) <= {1, 2, 3, 4, 5}
    for i, j in zip(*np.triu_indices(len(streams), 1), strict=True):
        if streams[i] > streams[j]:
            assert tiers[i] <= tiers[j]
        if streams[i] == 0:
            assert tiers[i] == 5
    if sum(streams):
        assert tiers.min() == 1
