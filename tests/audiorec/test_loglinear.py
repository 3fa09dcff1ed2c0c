"""The base of every score: a conditional logit that finds what was planted, whole or from a sample of titles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from audiorec.loglinear import Day, draw_candidates, fit_loglinear

NO_CHANNEL = 0


def day_of(
    popularity: np.ndarray,
    target: list[int] | np.ndarray,
    affinity: np.ndarray | None = None,
    closed: np.ndarray | None = None,
    log_odds: np.ndarray | None = None,
) -> Day:
    target = np.asarray(target, np.int64)
    shape = (len(target), len(popularity))
    return Day(
        np.asarray(popularity, np.float32),
        np.zeros((*shape, NO_CHANNEL), np.float32) if affinity is None else affinity.astype(np.float32),
        np.zeros(shape, bool) if closed is None else closed,
        target,
        np.zeros(len(popularity), np.float32) if log_odds is None else log_odds,
    )


# --- by hand --------------------------------------------------------------------------------------------


def test_two_titles_have_the_log_of_their_odds():
    """30 streams of the one, 10 of the other: the weight of what only the first has is log 3."""
    day = day_of([[1.0], [0.0]], [0] * 30 + [1] * 10)
    weights, channels = fit_loglinear([day], np.zeros(1), NO_CHANNEL, ridge=1e-6)
    assert weights == pytest.approx([np.log(3)], abs=1e-3)
    assert channels.shape == (0,)


def test_an_affinity_that_says_which_of_two_has_the_log_of_its_odds():
    """No popularity tells the titles apart. An affinity of 2 lies on the one of two that is streamed 4 times in 5."""
    on_the_first = np.arange(20) % 2 == 0
    affinity = np.where(on_the_first[:, None], [[2.0, 0.0]], [[0.0, 2.0]])[:, :, None]
    obeys = np.arange(20) < 16
    target = np.where(obeys == on_the_first, 0, 1)
    day = day_of(np.zeros((2, 1)), target, affinity)
    _, channels = fit_loglinear([day], np.zeros(1), 1, ridge=1e-6)
    assert channels == pytest.approx([np.log(4) / 2], abs=1e-3)


def test_what_is_closed_does_not_compete_but_the_target_does():
    """A third title, liked best of all, is closed to everybody but the one who streamed it (as barred afterwards)."""
    closed = np.zeros((41, 3), bool)
    closed[:, 2] = True
    day = day_of([[1.0], [0.0], [0.0]], [0] * 30 + [1] * 10 + [2], closed=closed)
    weights, _ = fit_loglinear([day], np.zeros(1), NO_CHANNEL, ridge=1e-6)
    # 10 w - ... : 40 choices among two titles, and one among three that title 2 won.
    tried = np.linspace(0, 2, 20_001)
    likelihood = 30 * tried - 40 * np.log(np.exp(tried) + 1) - np.log(np.exp(tried) + 2)
    assert weights == pytest.approx([tried[likelihood.argmax()]], abs=1e-3)


def test_a_candidate_that_stands_for_others_counts_as_often():
    """Title 1 stands for three of its like: of four equal titles the first was streamed in 1 case of 2, so odds 3."""
    day = day_of([[1.0], [0.0]], [0] * 8, log_odds=np.log([1.0, 3.0]).astype(np.float32))
    other = day_of([[1.0], [0.0], [0.0], [0.0]], [0] * 8)
    some, _ = fit_loglinear([day], np.zeros(1), NO_CHANNEL)
    every, _ = fit_loglinear([other], np.zeros(1), NO_CHANNEL)
    assert some == pytest.approx(every, abs=1e-5)
    # Not the target itself: its own score is what it is.
    third = day_of([[1.0], [0.0]], [0] * 8, log_odds=np.log([5.0, 3.0]).astype(np.float32))
    assert fit_loglinear([third], np.zeros(1), NO_CHANNEL)[0] == pytest.approx(every, abs=1e-5)


# --- planted weights ------------------------------------------------------------------------------------

PLANTED = np.array([1.0, -0.5, 0.3]), np.array([1.5, -0.8, 0.0])


def planted_days(
    seed: int, days: int = 30, titles: int = 120, targets: int = 100, closed_share: float = 0.1
) -> list[Day]:
    """Streams drawn by the logit that is to be found; a tenth of the titles is closed to each user."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(days):
        popularity = generator.normal(size=(titles, 3)).astype(np.float32)
        affinity = generator.normal(size=(targets, titles, 3)).astype(np.float32)
        affinity[:, :, 1] *= 0.2  # channels of different spread
        closed = generator.random((targets, titles)) < closed_share
        scores = popularity @ PLANTED[0] + affinity @ PLANTED[1]
        noise = generator.gumbel(size=scores.shape)
        target = np.where(closed, -np.inf, scores + noise).argmax(axis=1)
        found.append(Day(popularity, affinity, closed, target, np.zeros(titles, np.float32)))
    return found


@pytest.fixture(scope="module")
def planted() -> list[Day]:
    return planted_days(3)


def test_planted_weights_of_popularity_and_affinities_are_found(planted: list[Day]):
    weights, channels = fit_loglinear(planted, np.zeros(3), 3)
    # 3,000 targets: the standard error of a weight is about 1/sqrt(3,000 * variance of its column): 0.02, and 0.1.
    assert weights == pytest.approx(PLANTED[0], abs=0.08)
    assert channels[[0, 2]] == pytest.approx(PLANTED[1][[0, 2]], abs=0.08)
    assert channels[1] == pytest.approx(PLANTED[1][1], abs=0.3)


def test_the_start_is_no_more_than_where_the_ridge_pulls(planted: list[Day]):
    weights, channels = fit_loglinear(planted, np.zeros(3), 3, ridge=1e-3)
    other, same = fit_loglinear(planted, np.array([0.5, 0.5, 0.0]), 3, ridge=1e-3)
    assert other == pytest.approx(weights, abs=2e-3)
    assert same == pytest.approx(channels, abs=5e-3)


def test_a_strong_ridge_keeps_the_start_and_no_affinity(planted: list[Day]):
    start = np.array([0.2, 0.3, 0.5])
    weights, channels = fit_loglinear(planted, start, 3, ridge=1e9)
    assert weights == pytest.approx(start, abs=1e-4)
    assert channels == pytest.approx(np.zeros(3), abs=1e-4)
    # The more it pulls, the less is left of the affinities.
    lengths = [np.linalg.norm(fit_loglinear(planted, start, 3, ridge)[1]) for ridge in (1, 1e3, 1e5)]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > 2 * lengths[2]


def test_without_targets_it_is_the_start():
    start = np.array([0.2, 0.8])
    nobody = Day(
        np.zeros((4, 2), np.float32),
        np.zeros((0, 4, 3), np.float32),
        np.zeros((0, 4), bool),
        np.zeros(0, np.int64),
        np.zeros(4, np.float32),
    )
    for days in ([], [nobody], [nobody, nobody]):
        weights, channels = fit_loglinear(days, start, 3)
        assert weights.tolist() == start.tolist()
        assert channels.tolist() == [0, 0, 0]


def test_a_day_without_targets_changes_nothing(planted: list[Day]):
    some = planted[:5]
    empty = Day(
        some[0].popularity, some[0].affinity[:0], some[0].closed[:0], some[0].target[:0], some[0].log_odds
    )
    for found, expected in zip(
        fit_loglinear([some[0], empty, *some[1:]], np.zeros(3), 3),
        fit_loglinear(some, np.zeros(3), 3),
        strict=True,
    ):
        assert found.tolist() == expected.tolist()


def test_a_channel_in_other_units_has_a_weight_in_these_units(planted: list[Day]):
    """The ridge pulls after division by the spread, so it does not depend on the units either."""
    some = planted[:5]
    changed = [
        Day(one.popularity, one.affinity * np.float32([4, 1, 0]), one.closed, one.target, one.log_odds)
        for one in some
    ]
    silent = [
        Day(one.popularity, one.affinity * np.float32([1, 1, 0]), one.closed, one.target, one.log_odds)
        for one in some
    ]
    weights, channels = fit_loglinear(silent, np.zeros(3), 3, ridge=50)
    other, scaled = fit_loglinear(changed, np.zeros(3), 3, ridge=50)
    assert other == pytest.approx(weights, abs=1e-3)
    assert scaled * [4, 1, 1] == pytest.approx(channels, abs=1e-3)
    assert channels[2] == scaled[2] == 0, "a channel in which nobody has a place"


@hypothesis_settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_the_order_of_days_targets_and_titles_changes_nothing(seed: int):
    days = planted_days(seed, days=4, titles=20, targets=15)
    generator = np.random.default_rng(seed)
    shuffled = []
    for number in generator.permutation(4):
        one = days[number]
        rows, columns = generator.permutation(15), generator.permutation(20)
        shuffled.append(
            Day(
                one.popularity[columns],
                np.ascontiguousarray(one.affinity[rows][:, columns]),
                np.ascontiguousarray(one.closed[rows][:, columns]),
                np.argsort(columns)[one.target[rows]],
                one.log_odds[columns],
            )
        )
    for found, expected in zip(
        fit_loglinear(shuffled, np.zeros(3), 3), fit_loglinear(days, np.zeros(3), 3), strict=True
    ):
        assert found == pytest.approx(expected, abs=5e-3)


# --- a sample of the titles -----------------------------------------------------------------------------


def test_a_sampled_catalogue_gives_about_the_weights_of_the_whole():
    """100 of 600 titles, and so many targets a day that a careless draw shows: popular titles are among the
    candidates more often than their turn, because they are somebody's target."""
    generator = np.random.default_rng(1)
    whole = planted_days(5, days=20, titles=600, targets=200)
    sampled, careless = [], []
    for one in whole:
        columns, log_odds = draw_candidates(600, one.target, 100, generator)
        assert len(columns) < 300
        sampled.append(
            Day(
                one.popularity[columns],
                one.affinity[:, columns],
                one.closed[:, columns],
                np.searchsorted(columns, one.target),
                log_odds,
            )
        )
        drawn = generator.choice(600, 100, replace=False)
        columns = np.union1d(drawn, one.target)
        careless.append(
            Day(
                one.popularity[columns],
                one.affinity[:, columns],
                one.closed[:, columns],
                np.searchsorted(columns, one.target),
                np.where(np.isin(columns, drawn), np.log(6), 0).astype(np.float32),
            )
        )
    weights, channels = fit_loglinear(whole, np.zeros(3), 3)
    some, some_channels = fit_loglinear(sampled, np.zeros(3), 3)
    assert some == pytest.approx(weights, abs=0.05)
    assert some_channels[[0, 2]] == pytest.approx(channels[[0, 2]], abs=0.1)
    assert some_channels[1] == pytest.approx(channels[1], abs=0.3)
    # The comparison can tell: targets that count on top of the draw take weight from popularity.
    assert fit_loglinear(careless, np.zeros(3), 3)[0][0] < weights[0] - 0.07


def test_candidates_by_hand():
    """4 of 10 titles are targets; 2 are drawn of the 6 others, and each stands for 3."""
    generator = np.random.default_rng(1)
    times = np.zeros(10)
    for _ in range(3_000):
        columns, log_odds = draw_candidates(10, np.array([7, 2, 7, 0, 5]), 2, generator)
        assert columns.tolist() == sorted(set(columns.tolist())) and len(columns) == 6
        assert {0, 2, 5, 7} <= set(columns.tolist())
        own = np.isin(columns, [0, 2, 5, 7])
        assert not log_odds[own].any() and log_odds[~own] == pytest.approx(np.log([3, 3]))
        times[columns] += np.exp(log_odds)
    # Over many draws every title counts once, target or not.
    assert times / 3_000 == pytest.approx(np.ones(10), abs=5 * np.sqrt(2 / 3_000))


def test_candidates_are_all_titles_where_as_many_are_wanted():
    for number in (3, 50):
        columns, log_odds = draw_candidates(5, np.array([1, 1, 4]), number, np.random.default_rng(1))
        assert columns.tolist() == [0, 1, 2, 3, 4] and not log_odds.any()
    columns, log_odds = draw_candidates(2, np.array([0, 1]), 4, np.random.default_rng(1))
    assert columns.tolist() == [0, 1] and not log_odds.any()
