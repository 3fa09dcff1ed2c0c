"""Search: whatever the vectors, the answer is that of float64 inner products over the whole catalogue."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiorec import index as nearest
from audiorec.search import _BLOCK, ExactSearch, GraphSearch, Query, _Blocks
from audiorec.settings import Index


def brute_force(vectors: np.ndarray, available: np.ndarray, query: Query) -> tuple[np.ndarray, np.ndarray]:
    scores = vectors.astype(np.float64) @ query.vector.astype(np.float64)
    closed = ~available
    closed[query.barred] = True
    if query.allowed is not None:
        closed |= ~query.allowed
    rows = np.flatnonzero(~closed)
    rows = rows[np.lexsort((rows, -scores[rows]))][: query.k]
    return rows, scores[rows]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_exactly_the_best_titles(data: st.DataObject):
    """Catalogues of one title and of thousands, long and short vectors, near ties, barred and unavailable ones."""
    generator = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    titles, width = data.draw(st.sampled_from([1, 5, 70, 3_000])), data.draw(st.sampled_from([1, 8, 33]))
    vectors = generator.normal(size=(titles, width)).astype(np.float32)
    vectors *= 10.0 ** data.draw(st.integers(-4, 3))
    if data.draw(st.booleans()):  # few axes hold most, and the rest is left to the bound on the tail
        vectors *= 0.5 ** np.arange(width, dtype=np.float32)
    if data.draw(st.booleans()):  # crowds of nearly equal titles, which half precision cannot tell apart
        vectors = (vectors[:1] + 1e-5 * vectors).astype(np.float32)
    available = generator.random(titles) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    likely = generator.normal(size=(data.draw(st.sampled_from([1, 9])), width)) * 0.5 ** np.arange(width)
    search = ExactSearch(
        vectors,
        available,
        half=data.draw(st.booleans()),
        queries=likely if data.draw(st.booleans()) else None,
    )
    queries = [
        Query(
            generator.normal(size=width).astype(np.float32),
            data.draw(st.integers(1, 120)),
            generator.integers(0, titles, data.draw(st.integers(0, 40))),
            generator.random(titles) < 0.3 if data.draw(st.booleans()) else None,
        )
        for _ in range(data.draw(st.integers(1, 4)))
    ]
    for query, found in zip(queries, search.search(queries), strict=True):
        rows, scores = brute_force(vectors, available, query)
        np.testing.assert_allclose(found.scores, scores, rtol=1e-9, atol=1e-300)
        assert set(found.rows) == set(rows) or len(np.unique(scores)) < len(scores)
        assert len(set(found.rows)) == len(rows)


def test_half_precision_alone_would_be_wrong():
    """Two titles that are one in half precision, and the scan alone keeps the first."""
    vectors = np.array([[1.0], [1.0 + 1 / 8192], [-2.0]], np.float32)
    search = ExactSearch(vectors, np.ones(3, bool))
    assert search.half
    bounds = search._scan(search._axes.queries(np.array([[1.0]])))[0]
    assert bounds[0] == bounds[1]
    assert search.search([Query(np.array([1.0], np.float32), 1)])[0].rows.tolist() == [1]


def spread_along_few_axes(generator: np.random.Generator, titles: int, width: int) -> np.ndarray:
    """Vectors of which a few directions hold nearly all, as those of a catalogue with topics."""
    turned = np.linalg.qr(generator.normal(size=(width, width)))[0]
    vectors = generator.normal(size=(titles, width)) * 0.7 ** np.arange(width) @ turned
    return (vectors + 3.0).astype(np.float32)


@pytest.mark.parametrize("flat", [True, False])
def test_scanned_bounds_are_bounds(flat: bool):
    """None lies more than the margin under its score; with a tail, most lie above; and the margin is no idle one."""
    generator = np.random.default_rng(5)
    vectors = generator.normal(size=(2_000, 65)).astype(np.float32)
    queries = generator.normal(size=(500, 65))
    if not flat:
        vectors, queries = spread_along_few_axes(generator, 2_000, 65), queries * 0.8 ** np.arange(65)
    search = ExactSearch(vectors, np.ones(2_000, bool), queries=queries)
    assert search.width == 65 if flat else search.width < 33
    queries = queries[:20]
    asked = search._axes.queries(queries)
    exact = queries @ (vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)).T
    margin = np.array([search._margin_of(*one) for one in zip(queries, asked, strict=True)])
    under = exact - search._scan(asked)
    assert (under.max(axis=1) <= margin).all()
    assert search._axes.rounding * np.linalg.norm(queries, axis=1).max() < 0.01 * margin.min()
    if flat:
        assert (under.max(axis=1) > margin / 1_000).all()


def test_few_titles_are_scored_where_few_axes_hold_most():
    generator = np.random.default_rng(8)
    vectors = spread_along_few_axes(generator, 20_000, 64)
    queries = spread_along_few_axes(generator, 100, 64) - 3.0
    search = ExactSearch(vectors, np.ones(len(vectors), bool), queries=queries[50:])
    assert search.width <= 24
    scored = []
    for query in queries[:50]:
        wanted = Query(query, 100)
        rows, _ = brute_force(vectors, np.ones(len(vectors), bool), wanted)
        assert set(search.search([wanted])[0].rows) == set(rows)
        asked = search._axes.queries(query[None].astype(np.float64))
        least = search._axes.scores(vectors[rows], query).min() - search._margin_of(query, asked[0])
        scored.append((search._scan(asked)[0] >= least).sum())
    assert np.median(scored) < 2_000


def test_an_answer_does_not_depend_on_its_batch():
    generator = np.random.default_rng(6)
    vectors = generator.normal(size=(900, 24)).astype(np.float32)
    search = ExactSearch(vectors, np.ones(900, bool))
    queries = [Query(generator.normal(size=24).astype(np.float32), 30) for _ in range(17)]
    together = search.search(queries)
    for query, found in zip(queries, together, strict=True):
        alone = search.search([query])[0]
        np.testing.assert_array_equal(alone.rows, found.rows)
        np.testing.assert_array_equal(alone.scores, found.scores)
    assert search.search([]) == []


def test_values_beyond_half_precision_are_scanned_in_float32():
    vectors = np.array([[1e11], [2e11], [3.0]], np.float32)
    search = ExactSearch(vectors, np.ones(3, bool))
    assert not search.half
    assert search.search([Query(np.array([1.0], np.float32), 3)])[0].rows.tolist() == [1, 0, 2]


def test_a_vector_that_is_not_finite_is_refused():
    search = ExactSearch(np.ones((3, 2), np.float32), np.ones(3, bool))
    with pytest.raises(ValueError, match="titles' vectors are not finite"):
        ExactSearch(np.array([[1.0, np.inf]], np.float32), np.ones(1, bool))
    with pytest.raises(ValueError, match="likely queries are not finite"):
        ExactSearch(np.ones((3, 2), np.float32), np.ones(3, bool), queries=np.array([[np.nan, 0.0]]))
    with pytest.raises(ValueError, match="not finite"):
        search.search([Query(np.array([np.nan, 1.0], np.float32), 1)])


@given(
    st.integers(0, 1_000),
    st.integers(1, 40),
    st.integers(1, 20 * _BLOCK * 4),
    st.sampled_from([0.1, 0.5, 1.0]),
)
@settings(max_examples=80, deadline=None)
def test_all_that_may_be_among_the_best_are_looked_at(seed: int, wanted: int, number: int, open_share: float):
    """Exactly those that reach a bound, rising; of barred ones (-inf) none; and the first looks are no title twice."""
    generator = np.random.default_rng(seed)
    bounds = generator.normal(size=number).astype(np.float32)
    bounds[generator.random(number) > open_share] = -np.inf
    blocks = _Blocks(bounds)
    for least in (-np.inf, float(generator.normal()), float(bounds[generator.integers(number)])):
        expected = np.flatnonzero((bounds >= np.float32(least)) & (bounds > -np.inf))
        found = blocks.reaching(least)
        assert set(expected) <= set(found) and np.isfinite(bounds[found]).all()
        assert (np.diff(found) > 0).all() and len(found) <= len(expected) + 1
    first = blocks.promising(wanted)
    assert len(set(first)) == len(first) <= wanted
    assert np.isfinite(bounds[first]).all()
    blocks_alone = number // _BLOCK > 2 * wanted
    looked_at = bounds[: number // _BLOCK * _BLOCK] if blocks_alone else bounds
    assert looked_at.max() in bounds[first] or not np.isfinite(looked_at).any()


def test_a_graph_finds_what_may_be_found():
    generator = np.random.default_rng(7)
    vectors = generator.normal(size=(600, 12)).astype(np.float32)
    built = nearest.build(vectors, Index(exact_limit=1))
    assert type(built).__name__ == "IndexHNSWFlat"
    available = generator.random(600) < 0.8
    search = GraphSearch(built, vectors, available)
    allowed = generator.random(600) < 0.5
    hits = 0
    for _ in range(20):
        barred = generator.choice(600, 25, replace=False)
        query = Query(generator.normal(size=12).astype(np.float32), 10, barred, allowed)
        found, (rows, _) = search.search([query])[0], brute_force(vectors, available, query)
        assert len(found.rows) == 10
        assert not set(found.rows) & set(barred)
        assert (available & allowed)[found.rows].all()
        exact = vectors[found.rows].astype(np.float64) @ query.vector.astype(np.float64)
        np.testing.assert_allclose(found.scores, exact, rtol=1e-12)
        assert (np.diff(found.scores) <= 0).all()
        hits += len(set(found.rows) & set(rows))
    assert hits >= 190
