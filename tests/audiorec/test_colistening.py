"""The co-listening graph: counts, lifts and choices by hand, and what holds for any listening."""

from __future__ import annotations

from datetime import date
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from audiorec import colistening
from audiorec.colistening import Edges, choose_edges, cut_relations, listening_matrix
from audiorec.cuts import cuts
from audiorec.settings import Graph

if TYPE_CHECKING:
    from conftest import Chain

ALL = Graph(rule="min_users", min_users=1)


def matrix(*rows: list[int]) -> sp.csr_matrix:
    """0/1 listening, a list of titles a user."""
    width = max(max(row, default=0) for row in rows) + 1
    dense = np.zeros((len(rows), width), np.int32)
    for user, row in enumerate(rows):
        dense[user, row] = 1
    return sp.csr_matrix(dense)


def edges_of(edges: Edges) -> dict[tuple[int, int], int]:
    """(row title, neighbour) -> users."""
    rows = np.repeat(np.arange(len(edges.indptr) - 1), np.diff(edges.indptr))
    return {
        (int(row), int(column)): int(users)
        for row, column, users in zip(rows, edges.indices, edges.users, strict=True)
    }


def both_ways(pairs: dict[tuple[int, int], int]) -> dict[tuple[int, int], int]:
    return pairs | {(b, a): users for (a, b), users in pairs.items()}


# --- listening ------------------------------------------------------------------------------------------


def events(*rows: tuple[int, int, int, int]) -> pd.DataFrame:
    """user_idx, item_idx, signal, day."""
    return pd.DataFrame(rows, columns=["user_idx", "item_idx", "signal", "day"]).astype(np.int64)


def test_only_streams_listen_and_each_title_counts_once():
    found = listening_matrix(
        events((0, 1, 0, 5), (0, 1, 0, 6), (0, 2, 1, 6), (1, 0, 0, 1), (1, 2, 3, 1)), 3, 3, 10
    )
    assert found.toarray().tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_the_cap_keeps_the_latest_titles_of_a_user():
    """Latest streams: title 0 on day 9 (its first on day 1 does not matter), 1 on 3, 2 on 7, 3 on 7."""
    heard = events((0, 0, 0, 1), (0, 0, 0, 9), (0, 1, 0, 3), (0, 2, 0, 7), (0, 3, 0, 7), (1, 1, 0, 1))
    assert listening_matrix(heard, 2, 4, 2).toarray().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]], (
        "ties: the lower row"
    )
    assert listening_matrix(heard, 2, 4, 3).toarray()[0].tolist() == [1, 0, 1, 1]
    assert listening_matrix(heard, 2, 4, 9).toarray()[0].tolist() == [1, 1, 1, 1]


def test_a_bot_with_every_title_makes_no_more_pairs_than_the_cap_allows():
    bot = events(*((0, title, 0, title) for title in range(200)))
    found = listening_matrix(bot, 1, 200, 10)
    assert choose_edges(found, found, ALL)[0].users.sum() == 10 * 9


# --- edges ----------------------------------------------------------------------------------------------

# Five users and four audiobooks: 0 {0,1}, 1 {0,1}, 2 {0,1,2}, 3 {0,2}, 4 {0}. Title 3 has no stream.
# Degrees: 0: 5, 1: 3, 2: 2. Together: 0-1: 3, 0-2: 2, 1-2: 1.
BOOKS = matrix([0, 1], [0, 1], [0, 1, 2], [0, 2], [0, 3])[:, :3]
BOOKS = sp.csr_matrix(np.pad(BOOKS.toarray(), ((0, 0), (0, 1))))


def test_the_paper_s_rule_keeps_every_pair_with_enough_users():
    forward, backward = choose_edges(BOOKS, BOOKS, ALL)
    assert edges_of(forward) == both_ways({(0, 1): 3, (0, 2): 2, (1, 2): 1}) == edges_of(backward)
    two = Graph(rule="min_users", min_users=2)
    assert edges_of(choose_edges(BOOKS, BOOKS, two)[0]) == both_ways({(0, 1): 3, (0, 2): 2})
    three = Graph(rule="min_users", min_users=3)
    assert edges_of(choose_edges(BOOKS, BOOKS, three)[0]) == both_ways({(0, 1): 3})


def test_isolated_titles_stay_as_rows_without_neighbours():
    forward, _ = choose_edges(BOOKS, BOOKS, ALL)
    assert len(forward.indptr) == 4 + 1
    assert forward.indptr[3] == forward.indptr[4]


def test_top_k_keeps_the_best_lift_of_either_end():
    """Lift = together / (degree * degree / users + shrinkage), 5 users, shrinkage 1:
    0-1: 3 / (15/5 + 1) = 3/4; 0-2: 2 / (10/5 + 1) = 2/3; 1-2: 1 / (6/5 + 1) = 5/11.
    K = 1: title 0 chooses 1, title 1 chooses 0, title 2 chooses 0. So 0-2 stays by the choice of 2 alone."""
    lifts = {(0, 1): Fraction(3, 4), (0, 2): Fraction(2, 3), (1, 2): Fraction(5, 11)}
    assert lifts[0, 1] > lifts[0, 2] > lifts[1, 2]
    one = Graph(rule="top_k", top_k=1, shrinkage=1.0)
    assert edges_of(choose_edges(BOOKS, BOOKS, one)[0]) == both_ways({(0, 1): 3, (0, 2): 2})
    two = Graph(rule="top_k", top_k=2, shrinkage=1.0)
    assert edges_of(choose_edges(BOOKS, BOOKS, two)[0]) == both_ways({(0, 1): 3, (0, 2): 2, (1, 2): 1})


def test_shrinkage_takes_more_off_rare_neighbours():
    """Users: {0,2,3} {0,2} {0,1} {0,1} {0,1} {0} {4} {4}, 8 together. Degrees: 0: 6, 1: 3, 2: 2, 3: 1.
    Title 2 with 3: 1 / (2/8 + s), with 0: 2 / (12/8 + s). Without shrinkage 4 against 4/3; with s = 100
    4/401 against 4/203. Title 0 takes 1 each time: 3 / (18/8) = 4/3 as well, and the lower row."""
    plays = matrix([0, 2, 3], [0, 2], [0, 1], [0, 1], [0, 1], [0], [4], [4])
    bare, shrunk = (
        edges_of(choose_edges(plays, plays, Graph(rule="top_k", top_k=1, shrinkage=s))[0]) for s in (0, 100)
    )
    assert bare == both_ways({(0, 1): 3, (2, 3): 1})
    # 3 still takes 2, which is rarer than 0.
    assert shrunk == both_ways({(0, 1): 3, (0, 2): 2, (2, 3): 1})


def test_between_two_types_each_direction_is_the_other_s_transpose():
    """Users: 0 book 0, podcasts 0 1; 1 book 0, podcast 1; 2 book 1, podcast 1; 3 podcast 0 only."""
    books, podcasts = matrix([0], [0], [1], []), matrix([0, 1], [1], [1], [0])
    books = sp.csr_matrix(books.toarray()[:, :2])
    forward, backward = choose_edges(books, podcasts, ALL)
    assert edges_of(forward) == {(0, 0): 1, (0, 1): 2, (1, 1): 1}
    assert edges_of(backward) == {(b, a): users for (a, b), users in edges_of(forward).items()}
    # A book and a podcast of one row number are different titles: (0, 0) is no self-loop.
    assert (0, 0) in edges_of(forward)


def test_a_cut_s_relations_hold_only_its_window(tiny_chain: Chain):
    extract = tiny_chain.extract()
    cut = cuts(tiny_chain.as_of, tiny_chain.settings.time).train
    relations = cut_relations(extract, cut, ALL)
    streams = extract.events("audiobook", cut.first_day, cut.last_day)
    streams = streams[streams["signal"] == 0]
    heard = streams.groupby("user_idx")["item_idx"].apply(set)
    counted: dict[tuple[int, int], int] = {}
    for titles in heard:
        for one in titles:
            for other in titles:
                if one != other:
                    counted[one, other] = counted.get((one, other), 0) + 1
    assert len(counted) > 500
    assert edges_of(relations["audiobook_audiobook"]) == counted
    between, back = edges_of(relations["audiobook_podcast"]), edges_of(relations["podcast_audiobook"])
    assert back == {(b, a): users for (a, b), users in between.items()} and len(back) > 500
    assert set(relations) == {
        "audiobook_audiobook",
        "audiobook_podcast",
        "podcast_audiobook",
        "podcast_podcast",
    }


def test_a_day_without_events_gives_a_graph_without_edges(tiny_chain: Chain):
    from audiorec.cuts import Cut

    relations = cut_relations(tiny_chain.extract(), Cut("none", date(2026, 1, 1), date(2026, 1, 2)), Graph())
    assert all(len(edges.indices) == 0 for edges in relations.values())
    assert len(relations["audiobook_audiobook"].indptr) == len(tiny_chain.extract().audiobooks) + 1


# --- for any listening ----------------------------------------------------------------------------------

listenings = st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(1, 8), st.integers(0, 10**6))
graphs = st.builds(
    Graph,
    rule=st.sampled_from(["top_k", "min_users"]),
    min_users=st.integers(1, 3),
    top_k=st.integers(1, 4),
    shrinkage=st.sampled_from([0.0, 1.0, 5.0]),
)


def draw_listening(users: int, titles: int, seed: int) -> sp.csr_matrix:
    return sp.csr_matrix((np.random.default_rng(seed).random((users, titles)) < 0.4).astype(np.int32))


@given(sizes=listenings, settings=graphs)
@hypothesis_settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_edges_are_symmetric_true_counts_and_few_enough(sizes: tuple[int, int, int, int], settings: Graph):
    users, books, podcasts, seed = sizes
    left, right = draw_listening(users, books, seed), draw_listening(users, podcasts, seed + 1)
    for one, other in ((left, left), (left, right)):
        same = one is other
        forward, backward = choose_edges(one, other, settings)
        there, back = edges_of(forward), edges_of(backward)
        assert back == {(b, a): count for (a, b), count in there.items()}
        counts = (one.T @ other).toarray()
        for (a, b), count in there.items():
            assert count == counts[a, b] >= settings.min_users
            assert not (same and a == b)
        if same:
            assert there == back
        possible = {
            (a, b) for a in range(one.shape[1]) for b in range(other.shape[1]) if not (same and a == b)
        }
        possible = {pair for pair in possible if counts[pair] >= settings.min_users}
        if settings.rule == "min_users":
            assert set(there) == possible
            continue
        # Whoever has a possible neighbour keeps one, and as many as K if there are so many.
        for a in range(one.shape[1]):
            own, kept = sum(pair[0] == a for pair in possible), sum(pair[0] == a for pair in there)
            assert min(own, settings.top_k) <= kept <= own
        # Each edge is among the K best of one of its ends, by exact lifts, ties to the lower row.
        active = int(((one.getnnz(axis=1) + other.getnnz(axis=1)) > 0).sum())
        degree = one.toarray().sum(0).tolist(), other.toarray().sum(0).tolist()

        def lift(a: int, b: int) -> Fraction:
            expected = Fraction(degree[0][a] * degree[1][b], max(active, 1)) + Fraction(settings.shrinkage)  # noqa: B023
            return Fraction(int(counts[a, b])) / expected  # noqa: B023

        best = set()
        for a in range(one.shape[1]):
            row = sorted(
                (pair for pair in possible if pair[0] == a), key=lambda pair: (-lift(*pair), pair[1])
            )
            best |= set(row[: settings.top_k])
        for b in range(other.shape[1]):
            column = sorted(
                (pair for pair in possible if pair[1] == b), key=lambda pair: (-lift(*pair), pair[0])
            )
            best |= set(column[: settings.top_k])
        assert set(there) == best


@given(sizes=listenings, settings=graphs, block=st.integers(1, 20))
@hypothesis_settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_working_in_blocks_changes_nothing(sizes: tuple[int, int, int, int], settings: Graph, block: int):
    users, books, podcasts, seed = sizes
    left, right = draw_listening(users, books, seed), draw_listening(users, podcasts, seed + 1)
    whole = [
        edges_of(edges)
        for edges in (*choose_edges(left, left, settings), *choose_edges(left, right, settings))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colistening, "_BLOCK_PAIRS", block)
        parts = [
            edges_of(edges)
            for edges in (*choose_edges(left, left, settings), *choose_edges(left, right, settings))
        ]
    assert parts == whole


@given(sizes=listenings, settings=graphs)
@hypothesis_settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_the_order_of_users_and_users_without_streams_change_nothing(
    sizes: tuple[int, int, int, int], settings: Graph
):
    users, books, podcasts, seed = sizes
    left, right = draw_listening(users, books, seed), draw_listening(users, podcasts, seed + 1)
    expected = edges_of(choose_edges(left, right, settings)[0])
    order = np.random.default_rng(seed).permutation(users)
    assert edges_of(choose_edges(left[order], right[order], settings)[0]) == expected
    more = [sp.vstack([m, sp.csr_matrix((3, m.shape[1]), dtype=m.dtype)]).tocsr() for m in (left, right)]
    assert edges_of(choose_edges(*more, settings)[0]) == expected


@pytest.mark.parametrize(
    "kept",
    [("audiobook_audiobook",), ("podcast_podcast",), ("audiobook_audiobook", "audiobook_podcast")],
)
def test_left_out_relations_have_rows_and_no_edges(tiny_chain: Chain, kept: tuple[str, ...]):
    extract = tiny_chain.extract()
    cut = cuts(tiny_chain.as_of, tiny_chain.settings.time).judge
    whole = cut_relations(extract, cut, Graph())
    some = cut_relations(extract, cut, Graph(relations=kept))
    for name, edges in whole.items():
        one = "audiobook_podcast" if name == "podcast_audiobook" else name
        assert len(some[name].indptr) == len(edges.indptr), name
        if one in kept:
            assert some[name].indices.tobytes() == edges.indices.tobytes()
        else:
            assert len(some[name].indices) == 0 and not some[name].indptr.any()


def test_a_type_without_titles_has_no_edges():
    audiobooks, none = matrix([0, 1], [1]), sp.csr_matrix((2, 0), dtype=np.int32)
    for settings in (ALL, Graph()):
        forward, back = choose_edges(audiobooks, none, settings)
        assert (len(forward.indices), len(forward.indptr)) == (0, 3)
        assert (len(back.indices), len(back.indptr)) == (0, 1)
        alone, _ = choose_edges(none, none, settings)
        assert (len(alone.indices), len(alone.indptr)) == (0, 1)
