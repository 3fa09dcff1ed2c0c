"""Section 3 of the paper on any source: its arithmetic by hand, and its page."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from audiorec.experiments import analysis
from audiorec.experiments.analysis import (
    Findings,
    co_occurrence,
    distinct,
    likeness,
    lorenz,
    pairs_within,
    through_a_podcast,
)
from audiorec.experiments.analysis_page import over_seeds
from audiorec.settings import Analysis

SETTINGS = Analysis(bootstrap=50)


def test_lorenz_by_hand():
    # 6 + 3 + 1 + 0 of 10: the first quarter has 0.6, the first half 0.9, three quarters all; half of the first 0.3.
    x, y = lorenz(np.array([1.0, 6.0, 0.0, 3.0]))
    assert (x[0], x[-1]) == (0.0, 1.0)
    at = dict(zip(x.round(3), y, strict=True))
    assert [at[share] for share in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(
        [0, 0.3, 0.6, 0.9, 1, 1]
    )


def test_co_occurrence_by_hand():
    # One user with 2 of kind 0 and 1 of kind 1: beside each of the two there is one of each kind, beside the single one
    # there are two of kind 0. A second user with a lone signal says nothing. Nobody has kind 2.
    found = co_occurrence(np.array([[2, 1, 0], [0, 1, 0]]))
    assert found[0].tolist() == [1 / 2, 1 / 2, 0]
    assert found[1].tolist() == [1, 0, 0]
    assert np.isnan(found[2]).all()
    # A user of weight two is the same user twice.
    twice = np.array([[2, 1, 0], [2, 1, 0], [1, 1, 1]])
    once = co_occurrence(np.array([[2, 1, 0], [1, 1, 1]]), np.array([2, 1]))
    assert co_occurrence(twice) == pytest.approx(once)


@given(arrays.arrays(np.int64, st.tuples(st.integers(1, 8), st.just(4)), elements=st.integers(0, 5)))
def test_rows_of_a_co_occurrence_sum_to_one(counts: np.ndarray):
    found = co_occurrence(counts)
    given_ = (counts * (counts.sum(axis=1, keepdims=True) > 1)).sum(axis=0) > 0
    assert found[given_].sum(axis=1) == pytest.approx(1)
    assert (found[given_] >= 0).all() and np.isnan(found[~given_]).all()


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 8))), st.integers(0, 99))
def test_pairs_within_are_different_columns_of_one_row(table: np.ndarray, seed: int):
    pairs = pairs_within(np.random.default_rng(seed), sp.csr_matrix(table.astype(float)), 40)
    together = table.T.astype(int) @ table.astype(int)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert all(together[a, b] for a, b in pairs)
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    assert len(pairs) > 0 or (table.sum(axis=1) < 2).all()


def test_titles_joined_only_through_a_podcast_have_no_listener_in_common():
    # The podcast joins titles 0, 1 and 2; user 0 streamed 0 and 1, user 1 streamed 2.
    by_podcast = sp.csr_matrix(np.array([[1, 1, 1, 0], [0, 0, 0, 1]]))
    listened = sp.csr_matrix(np.array([[1.0, 1, 0, 0], [0, 0, 1, 1]]))
    found = through_a_podcast(np.random.default_rng(0), by_podcast, listened, 50)
    assert sorted(map(tuple, found)) == [(0, 2), (1, 2)]


def test_distinct_pairs():
    assert distinct(np.array([[2, 1], [1, 2], [3, 3], [0, 1]])).tolist() == [[0, 1], [1, 2]]


def test_likeness_by_hand():
    # Ends 0 and 1 are the same, 2 stands at right angles to both: cosines of joined pairs 1, 0; of random pairs 0, 0.
    vectors = np.array([[1.0, 0], [1, 0], [0, 1]])
    joined, random = np.array([[0, 1], [0, 2]]), np.array([[0, 2], [1, 2]])
    like, own, others = likeness(joined, random, vectors, 20, np.random.default_rng(0))
    assert own.tolist() == [1, 0] and others.tolist() == [0, 0]
    assert (like.joined, like.random) == (0.5, 0.0)
    # Variances 1/2 and 0, pooled sqrt(1/4); of four comparisons two are won and two are tied: (2 + 2/2) / 4.
    assert like.effect == pytest.approx(0.5 / 0.5)
    assert like.superiority == pytest.approx(3 / 4)


def test_likeness_finds_planted_communities_and_no_more():
    rng = np.random.default_rng(1)
    centre = np.repeat(np.eye(2, 8), 60, axis=0)
    vectors = centre + rng.normal(scale=0.4, size=centre.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    random = distinct(rng.integers(0, 120, (2_000, 2)))
    inside = random[(random[:, 0] < 60) == (random[:, 1] < 60)]
    planted, _, _ = likeness(inside, random, vectors, 100, rng)
    low, high = planted.intervals["effect"]
    assert 0 < low < planted.effect < high and planted.superiority > 0.6
    none, _, _ = likeness(distinct(rng.integers(0, 120, (2_000, 2))), random, vectors, 100, rng)
    low, high = none.intervals["effect"]
    assert low < 0 < high and none.superiority == pytest.approx(0.5, abs=0.05)
    # Pairs that share ends are no independent witnesses: intervals are wider than those of 1,900 free pairs.
    assert planted.intervals["joined"][1] - planted.intervals["joined"][0] > 2 * 1.96 * 0.3 / np.sqrt(
        len(inside)
    )


def test_a_figure_of_fewer_than_five_users_is_withheld_and_named():
    found = Findings(SETTINGS)
    found.add(("part", "few", "all", "share"), 0.5, (0.4, 0.6), 4)
    found.add(("part", "enough", "all", "share"), 0.5, (0.4, 0.6), 5)
    # Twenty users of whom two have it: the two would be the figure. Of whom none has it: that is a fact of twenty.
    found.add(("part", "two of twenty", "all", "share"), 0.1, (0.0, 0.2), 20, behind=2)
    found.add(("part", "none of twenty", "all", "share"), 0.0, (0.0, 0.0), 20, behind=0)
    found.curve("part", "few", np.zeros(2), np.zeros(2), 4)
    assert found.curves == []
    assert found.figures.set_index("model")["value"].isna().to_dict() == {
        "few": True,
        "enough": False,
        "two of twenty": True,
        "none of twenty": False,
    }
    assert list(found.missing) == ["part: few, all", "part: two of twenty, all"]
    assert all(why.startswith("withheld") for why in found.missing.values())


def test_over_seeds_by_hand():
    key = {"panel": "p", "model": "m", "segment": "s", "metric": "x"}
    each = [
        pd.DataFrame([{**key, "value": v, "low": v - 1, "high": v + 2, "users": u}])
        for v, u in ((1.0, 9), (3.0, 7))
    ]
    [row] = over_seeds(each).itertuples()
    assert (row.value, row.low, row.high, row.users, row.seed) == (2.0, 1.0, 4.0, 7, "mean")
    assert row.spread == pytest.approx(np.sqrt(2))


def test_odds_are_those_of_the_simulator_s_calibration(tmp_path: Path, tiny: Any):
    """On clean tables whose streams all count, the chain's extract gives the very figures of the source tables."""
    from audiorec.catalogue import Extract
    from audiorec.cuts import cuts
    from audiorec.runner import run_task
    from audiorec.simulator import sized, write_source_tables
    from audiorec.simulator.calibration import Tables, odds_after_signals
    from audiorec.store import Store
    from audiorec.taskio import Inputs

    as_of = date(2026, 11, 30)
    quick = {"n_tracks": 20, "n_artists": 20, "music_plays": 0.01, "artists_per_user": 1.0}
    write_source_tables(sized("paper", 800, 60, seed=3, last_day=as_of, **quick), tmp_path / "paper")
    settings = tiny.settings(
        tmp_path / "paper", tmp_path, time={"window_days": "all"}, extract={"min_stream_seconds": 0}
    )
    run_task("extract", settings, as_of)
    store = Store(settings.store.uri, settings.store.scratch)
    [manifest] = store.versions("extract", as_of.isoformat())
    extract = Extract(Inputs(as_of, store, {"extract": manifest}), settings)
    found = Findings(SETTINGS)
    history = analysis.History.of(extract, cuts(as_of, settings.time).release)
    analysis.odds(found, history)
    analysis.podcasts_before(found, history)
    rows = found.figures.set_index(["model", "metric"])
    for signal, odds in odds_after_signals(Tables(tmp_path / "paper")).items():
        row = rows.loc[(signal, "change in odds")]
        assert (row["value"], row["low"], row["high"]) == pytest.approx((odds.change, odds.low, odds.high))
        assert rows.loc[(signal, "days with the signal"), "value"] == odds.with_signal
