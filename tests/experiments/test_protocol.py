"""The evaluation protocol (design 8): a hold-out by hand, and what no ranker may be able to break."""

from __future__ import annotations

from datetime import date
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from small_source import empty_tables, settings_for, write_flat

from audiorec.catalogue import load_extract
from audiorec.cuts import cuts
from audiorec.experiments import protocol
from audiorec.experiments.protocol import (
    HoldOut,
    best_window,
    judge,
    make_hold_out,
    popularity_ranker,
    summarise,
)
from audiorec.experiments.report import metrics_table, plot_metrics
from audiorec.runner import run_task
from audiorec.settings import Evaluation
from audiorec.store import Store
from audiorec.taskio import Inputs
from tasks.evaluate import REFERENCE, WHOLE_WINDOW

if TYPE_CHECKING:
    from conftest import Chain

AS_OF = date(2026, 1, 20)
"""Hold-out of 5 days: the split is 2026-01-16. Window of 10 days: the judge cut is 2026-01-06..2026-01-15."""

TITLES = [f"b{number}" for number in range(1, 9)]
"""Row number of b1 is 0, of b8 it is 7."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    """An extract of eight titles and their users, each there for one rule; see `test_the_hold_out_by_hand`."""
    work = tmp_path_factory.mktemp("protocol")
    con = empty_tables()
    con.execute("INSERT INTO tracks (track_id) VALUES ('t1')")
    con.execute("INSERT INTO podcasts (podcast_id) VALUES ('p1')")
    published = {
        "b3": "NULL",
        "b4": "DATE '2026-01-16'",
        "b5": "DATE '2026-01-17'",
        "b6": "DATE '2026-01-18'",
    }
    for title in TITLES:
        day = published.get(title, "DATE '2025-01-01'")
        con.execute(
            f"INSERT INTO audiobooks (audiobook_id, title, published_on) VALUES ('{title}', 'T', {day})"
        )
    # Streams of the window: b1 5, b2 3, b3 1, b6 1; ten together. u1 is one of those of b1.
    streams = [("u1", "b1", "2026-01-06")]
    streams += [(f"x{n}", "b1", "2026-01-10") for n in range(4)]
    streams += [(f"x{n}", "b2", "2026-01-15") for n in range(3)]
    streams += [("x0", "b3", "2026-01-12"), ("x1", "b6", "2026-01-10")]
    streams += [("x2", "b8", "2025-12-01")]  # before the window, but known
    # Before the split, without streaming an audiobook.
    con.execute("INSERT INTO audiobook_events VALUES ('u2', 'b1', 'follow', '2025-11-01 12:00', NULL)")
    con.execute("INSERT INTO music_events VALUES ('u3', 't1', 'stream', '2025-10-01 12:00', 100)")
    con.execute("INSERT INTO podcast_events VALUES ('u4', 'p1', 'preview', '2026-01-15 23:59:59', NULL)")
    # The hold-out, 2026-01-16..2026-01-20.
    streams += [("u1", "b1", "2026-01-17"), ("u1", "b2", "2026-01-16")]  # b1 is no first stream
    streams += [("u2", "b4", "2026-01-20"), ("u3", "b6", "2026-01-18"), ("u4", "b8", "2026-01-19")]
    streams += [("u4", "b7", "2026-01-19"), ("u5", "b1", "2026-01-16"), ("u6", "b5", "2026-01-18")]
    streams += [("x3", "b2", "2026-01-21")]  # after as_of
    for user, title, day in streams:
        con.execute(
            f"INSERT INTO audiobook_events VALUES ('{user}', '{title}', 'stream', '{day} 00:00:00', 100)"
        )
    # Too short to count: x3 has nothing in the hold-out.
    con.execute("INSERT INTO audiobook_events VALUES ('x3', 'b3', 'stream', '2026-01-17 10:00', 29)")
    settings = settings_for(
        write_flat(con, work / "source"), work, time={"window_days": 10, "holdout_days": 5, "target_days": 5}
    )
    result = run_task("extract", settings, AS_OF)
    store = Store(settings.store.uri, settings.store.scratch)
    extract = load_extract(settings, Inputs(AS_OF, store, {"extract": store.read_uri(result["manifest"])}))
    return extract, cuts(AS_OF, settings.time)


@pytest.fixture(scope="module")
def hold_out(small) -> HoldOut:
    extract, all_cuts = small
    return make_hold_out(extract, all_cuts, Evaluation())


def titles(mask: np.ndarray) -> set[str]:
    return {TITLES[i] for i in np.flatnonzero(mask)}


def in_order_of_id(rows: np.ndarray) -> np.ndarray:
    """Scores that rank b1 before b2 before b3 and so on."""
    return np.tile(-np.arange(len(TITLES), dtype=float), (len(rows), 1))


def test_the_hold_out_by_hand(small, hold_out: HoldOut):
    extract, _ = small
    ids = extract.users["user_id"].to_numpy()
    # Known: streamed by anybody before the split, b8 long before the window, b6 before its publication.
    assert titles(hold_out.candidates["known"]) == {"b1", "b2", "b3", "b6", "b8"}
    # Full: published by the split (b4 on the very day) or undated (b3), and what was streamed; so not b5.
    assert titles(hold_out.candidates["full"]) == {"b1", "b2", "b3", "b4", "b6", "b7", "b8"}
    # u6's only title is in no panel; x0..x3 have no first stream in the hold-out.
    assert list(ids[hold_out.users]) == ["u1", "u2", "u3", "u4", "u5"]
    assert list(hold_out.segment) == ["warm", "warm", "cold", "cold", "none"]
    relevant = [titles(row > 0) for row in hold_out.relevant.toarray()]
    assert relevant == [{"b2"}, {"b4"}, {"b6"}, {"b7", "b8"}, {"b1"}]
    known = [titles(row > 0) for row in hold_out.panel_relevant("known").toarray()]
    assert known == [{"b2"}, set(), {"b6"}, {"b8"}, {"b1"}]
    assert [titles(row > 0) for row in hold_out.streamed.toarray()] == [{"b1"}, set(), set(), set(), set()]
    # Tiers by streams of the window, 10 together: b1 has 0 before it (0/2 + 1 = 1), b2 has 5 (5/2 + 1 = 3),
    # b3 8 (8/2 + 1 = 5), b6 9 (5); the unstreamed are in tier 5.
    assert list(hold_out.tier) == [1, 3, 5, 5, 5, 5, 5, 5]
    tail = [titles(row > 0) for row in hold_out.panel_relevant("full", "tail").toarray()]
    assert tail == [{"b2"}, {"b4"}, {"b6"}, {"b7", "b8"}, set()]
    # New: published by the split and never streamed before it.
    assert titles(hold_out.candidates["new"]) == {"b4", "b7"}
    new = [titles(row > 0) for row in hold_out.panel_relevant("full", "unstreamed").toarray()]
    assert new == [set(), {"b4"}, set(), {"b7"}, set()]


def test_ranks_by_hand(hold_out: HoldOut):
    judgement = judge(hold_out, in_order_of_id, depth=5)
    # Known list of everybody but u1: b1 b2 b3 b6 b8; of u1, who streamed b1: b2 b3 b6 b8.
    assert list(judgement.shown["known"][0]) == [1, 2, 5, 7, -1]
    assert list(judgement.shown["known"][2]) == [0, 1, 2, 5, 7]
    # Full, in the first five: b1 b2 b3 b4 b6; of u1: b2 b3 b4 b6 b7.
    assert list(judgement.shown["full"][0]) == [1, 2, 3, 5, 6]
    assert list(judgement.shown["full"][1]) == [0, 1, 2, 3, 5]
    # u2 has no title in the known panel: -1. u4's b7 is sixth in the full panel, beyond the depth: 0.
    assert list(judgement.ranks["known"]) == [1, -1, 4, 5, 1]
    assert list(judgement.ranks["full"]) == [1, 4, 5, 0, 1]
    # Tail: u5's only title is b1, of tier 1, so u5 is left out; the lists are the same.
    assert list(judgement.sliced["tail"]["known"]) == [1, -1, 4, 5, -1]
    assert list(judgement.sliced["tail"]["full"]) == [1, 4, 5, 0, -1]
    assert list(judgement.sliced["tier_1"]["full"]) == [-1, -1, -1, -1, 1]
    assert list(judgement.sliced["tier_3"]["full"]) == [1, -1, -1, -1, -1]
    # New titles: b4 is fourth and b7 beyond the depth among all, first and second among themselves.
    assert list(judgement.sliced["unstreamed"]["full"]) == [-1, 4, -1, 0, -1]
    assert list(judgement.ranks["new"]) == [-1, 1, -1, 2, -1]


def test_figures_by_hand(hold_out: HoldOut):
    settings = Evaluation(hit_k=4, depth=5, bootstrap=50, min_segment_users=2)
    judgements = {
        "by id": judge(hold_out, in_order_of_id, 5),
        "b8 first": judge(hold_out, lambda rows: -in_order_of_id(rows), 5),
    }
    table = summarise(hold_out, judgements, settings, "b8 first").set_index(
        ["panel", "model", "segment", "metric"]
    )

    def value(panel: str, segment: str, metric: str, model: str = "by id") -> tuple[float, int]:
        row = table.loc[(panel, model, segment, metric)]
        return pytest.approx(float(row["value"])), int(row["users"])

    # Known: u1 1, u3 4, u4 5 (u2 left out), u5 1 apart. Within 4: u1 and u3.
    assert value("known", "all", "HR@4") == (2 / 3, 3)
    assert value("known", "warm", "HR@4") == (1.0, 1)
    assert value("known", "cold", "HR@4") == (1 / 2, 2)
    assert value("known", "none", "HR@4") == (1.0, 1)
    assert value("known", "all", "MRR") == ((1 + 1 / 4 + 1 / 5) / 3, 3)
    # Full: u1 1, u2 4, u3 5, u4 not within 5.
    assert value("full", "all", "HR@4") == (2 / 4, 4)
    assert value("full", "all", "MRR") == ((1 + 1 / 4 + 1 / 5 + 0) / 4, 4)
    assert value("full", "all", "tail HR@4") == (2 / 4, 4)
    # u5, the only user without history, has no tail title.
    assert int(table.loc[("full", "by id", "none", "tail HR@4")]["users"]) == 0
    assert np.isnan(table.loc[("full", "by id", "none", "tail HR@4")]["value"])
    # Coverage of the first five: known b1 b2 b3 b6 b8 of 5; full b1 b2 b3 b4 b6 and b7 (by u1) of 7.
    assert value("known", "all", "coverage@5") == (5 / 5, 3)
    assert value("full", "all", "coverage@5") == (6 / 7, 4)
    # The other ranker: b8 b7 b6 b4 b3 in full. u1's b2 is sixth, u2's b4 fourth, u3's b6 third, u4's b8 first.
    assert value("full", "all", "HR@4", "b8 first") == (3 / 4, 4)
    assert table.loc[("full", "by id", "all", "HR@4")]["difference"] == pytest.approx(2 / 4 - 3 / 4)
    assert table.loc[("full", "b8 first", "all", "HR@4")]["difference"] == 0
    # A segment of one user is shown and not judged.
    assert not table.loc[("known", "by id", "warm", "HR@4")]["judged"]
    assert table.loc[("known", "by id", "cold", "HR@4")]["judged"]


def test_a_limit_on_users_draws_the_same_sample_each_time(small):
    extract, all_cuts = small
    some = make_hold_out(extract, all_cuts, Evaluation(max_users=3, seed=4))
    again = make_hold_out(extract, all_cuts, Evaluation(max_users=3, seed=4))
    every = make_hold_out(extract, all_cuts, Evaluation())
    assert len(some.users) == 3 and list(some.users) == list(again.users) == sorted(some.users)
    place = np.flatnonzero(np.isin(every.users, some.users))
    assert (some.relevant != every.relevant[place]).nnz == 0
    assert list(some.segment) == list(every.segment[place])


def test_the_best_window_is_the_shorter_one_of_equals():
    assert best_window({7: 0.2, 14: 0.3, 30: 0.3}, (7, 14, 30)) == 14
    assert best_window({7: 0.0, 14: 0.0}, (14, 7)) == 7


def test_the_report_names_users_and_marks_small_segments(hold_out: HoldOut, tmp_path: Path):
    settings = Evaluation(hit_k=4, depth=5, bootstrap=20, min_segment_users=2)
    judgements = {"by id": judge(hold_out, in_order_of_id, 5)}
    table = summarise(hold_out, judgements, settings, "by id")
    text = metrics_table(table, hold_out, "2026-01-20", 7, settings)
    assert "Panel known: 5 titles; 3 users (1 warm, 2 cold); 1 more without any history." in text
    assert "| by id | 0.667 [" in text
    assert "| 1.000* | 0.500 | 1.000* |" in text
    assert "recent popularity counts 7 days" in text
    plot_metrics(table, settings, tmp_path / "one.png")
    plot_metrics(table, settings, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


# --- on a hold-out of generated tables ------------------------------------------------------------------


@pytest.fixture(scope="module")
def larger(tiny_chain: Chain) -> HoldOut:
    return make_hold_out(tiny_chain.extract(), cuts(tiny_chain.as_of, tiny_chain.settings.time), Evaluation())


def test_a_perfect_ranker_scores_one_everywhere(larger: HoldOut):
    judgement = judge(larger, lambda rows: larger.relevant[rows].toarray())
    assert len(larger.users) > 100 and set(larger.segment) == {"warm", "cold", "none"}
    for panel in protocol.PANELS:
        judged = judgement.ranks[panel][judgement.ranks[panel] >= 0]
        assert len(judged) > (0 if panel == "new" else 100) and (judged == 1).all()
    table = summarise(larger, {"perfect": judgement}, Evaluation(bootstrap=20), "perfect")
    figures = table[table["metric"].isin(["HR@10", "MRR"]) & (table["users"] > 0)]
    assert set(figures["value"]) == {1.0}


def test_a_random_ranker_scores_what_chance_gives(larger: HoldOut):
    """With n candidates left, m of them relevant, ten at random miss all with C(n-m, 10) / C(n, 10)."""
    relevant, streamed = larger.panel_relevant("full"), larger.streamed.toarray() > 0
    candidates = larger.candidates["full"]
    left = (candidates[None, :] & ~streamed).sum(axis=1)
    wanted = relevant.getnnz(axis=1)
    chance = np.array(
        [1 - comb(int(n - m), 10) / comb(int(n), 10) for n, m in zip(left, wanted, strict=True)]
    )
    generator = np.random.default_rng(5)
    hits = [
        np.mean((judgement.ranks["full"] >= 1) & (judgement.ranks["full"] <= 10))
        for judgement in (
            judge(larger, lambda rows: generator.random((len(rows), len(candidates)))) for _ in range(60)
        )
    ]
    spread = np.sqrt((chance * (1 - chance)).sum()) / len(chance) / np.sqrt(len(hits))
    assert np.mean(hits) == pytest.approx(chance.mean(), abs=4 * spread)


@given(seed=st.integers(0, 10**6), ties=st.booleans())
@hypothesis_settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_nobody_is_ever_shown_what_they_streamed_or_what_no_panel_holds(
    seed: int, ties: bool, larger: HoldOut
):
    titles_ = len(larger.tier)
    generator = np.random.default_rng(seed)
    scores = generator.random((len(larger.users), titles_))
    if ties:
        scores = np.round(scores, 1)
    judgement = judge(larger, lambda rows: scores[rows])
    streamed = larger.streamed.toarray() > 0
    for panel in protocol.PANELS:
        shown = judgement.shown[panel]
        allowed = larger.candidates[panel][None, :] & ~streamed
        for user, row in enumerate(shown):
            given_ = row[row >= 0]
            assert len(set(given_)) == len(given_) == min(100, allowed[user].sum())
            assert allowed[user, given_].all()
            assert (np.diff(scores[user, given_]) <= 0).all(), "best first"


def test_ranking_in_chunks_changes_nothing(larger: HoldOut, monkeypatch: pytest.MonkeyPatch):
    scores = np.random.default_rng(3).random((len(larger.users), len(larger.tier)))
    whole = judge(larger, lambda rows: scores[rows])
    monkeypatch.setattr(protocol, "_CHUNK", 7)
    chunked = judge(larger, lambda rows: scores[rows])
    for panel in protocol.PANELS:
        assert (whole.shown[panel] == chunked.shown[panel]).all()
        assert (whole.ranks[panel] == chunked.ranks[panel]).all()


def test_the_known_panel_never_asks_for_more_users_or_titles_than_the_full_one(larger: HoldOut):
    known, full = larger.candidates["known"], larger.candidates["full"]
    assert (known <= full).all() and known.sum() < full.sum()
    assert (
        larger.panel_relevant("known").getnnz(axis=1) <= larger.panel_relevant("full").getnnz(axis=1)
    ).all()
    assert (larger.panel_relevant("full").getnnz(axis=1) > 0).all()
    assert larger.relevant.multiply(larger.streamed).nnz == 0, "what was streamed before is never relevant"


def test_evaluate_wrote_what_the_protocol_says(tiny_chain: Chain, larger: HoldOut):
    """Popularity of the whole window and of recent days in evaluate's own table, ranked here from the day partitions."""
    settings = tiny_chain.settings
    extract, all_cuts = tiny_chain.extract(), cuts(tiny_chain.as_of, settings.time)
    events = extract.events("audiobook", all_cuts.judge.first_day, all_cuts.judge.last_day)
    streams = events[events["signal"] == 0]
    ranks = pd.read_parquet(tiny_chain.open("evaluate", "ranks.parquet"))
    window = tiny_chain.manifest("evaluate").facts["popularity_window_days"]
    assert window in settings.evaluation.popularity_windows
    recent = streams[streams["day"] >= larger.split - window]
    listeners = streams.drop_duplicates(["user_idx", "item_idx"])
    for model, rows in ((REFERENCE, recent), (WHOLE_WINDOW, listeners)):
        counts = np.bincount(rows["item_idx"], minlength=len(larger.tier))
        expected = judge(larger, popularity_ranker(counts), settings.evaluation.depth)
        for panel in protocol.PANELS:
            own = ranks[(ranks["model"] == model) & (ranks["panel"] == panel)]
            assert list(own["rank"]) == list(expected.ranks[panel])
            assert list(own["tail_rank"]) == list(expected.sliced["tail"][panel])
            assert list(own["user_id"]) == list(extract.users["user_id"].iloc[larger.users])
