"""Search: whatever the vectors, the answer is that of float64 inner products over the whole catalogue."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiorec import index as nearest
from audiorec.search import _BLOCK, ExactSearch, GraphSearch, Query, _within
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
    if data.draw(st.booleans()):  # crowds of nearly equal titles, which half precision cannot tell apart
        vectors = (vectors[:1] + 1e-5 * vectors).astype(np.float32)
    available = generator.random(titles) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    search = ExactSearch(vectors, available, half=data.draw(st.booleans()))
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
    """Two titles that are one in half precision: 1 + 1/4096 rounds to 1, and the scan alone keeps the first."""
    vectors = np.array([[1.0], [1.0 + 1 / 4096]], np.float32)
    assert np.float16(vectors[0, 0]) == np.float16(vectors[1, 0])
    search = ExactSearch(vectors, np.ones(2, bool))
    assert search.half
    assert search.margin >= 1 / 4096
    assert search.search([Query(np.array([1.0], np.float32), 1)])[0].rows.tolist() == [1]


def test_the_margin_covers_what_the_scan_loses():
    generator = np.random.default_rng(5)
    vectors = generator.normal(size=(2_000, 65)).astype(np.float32)
    search = ExactSearch(vectors, np.ones(2_000, bool))
    queries = generator.normal(size=(20, 65)).astype(np.float32)
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    wrong = np.abs(search._scan(queries) - exact).max(axis=1) / np.linalg.norm(queries, axis=1)
    assert wrong.max() <= search.margin
    assert wrong.max() > search.margin / 1_000  # and is no idle bound


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
    vectors = np.array([[1e5], [2e5], [3.0]], np.float32)
    search = ExactSearch(vectors, np.ones(3, bool))
    assert not search.half
    assert search.search([Query(np.array([1.0], np.float32), 3)])[0].rows.tolist() == [1, 0, 2]


def test_a_vector_that_is_not_finite_is_refused():
    search = ExactSearch(np.ones((3, 2), np.float32), np.ones(3, bool))
    with pytest.raises(ValueError, match="not finite"):
        search.search([Query(np.array([np.nan, 1.0], np.float32), 1)])


@given(st.integers(0, 1_000), st.integers(1, 40), st.integers(1, 20 * _BLOCK * 4), st.floats(0, 0.5))
@settings(max_examples=80, deadline=None)
def test_all_that_may_be_among_the_best_are_looked_at(seed: int, k: int, number: int, slack: float):
    """At least what the k-th best score less the slack admits; of barred ones (-inf) none."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=number).astype(np.float32)
    scores[generator.random(number) < 0.2] = -np.inf
    found = _within(scores, k, slack)
    finite = np.sort(scores[scores > -np.inf])[::-1]
    least = finite[k - 1] - slack if len(finite) >= k else -np.inf
    assert set(np.flatnonzero((scores >= least) & (scores > -np.inf))) <= set(found)
    assert np.isfinite(scores[found]).all()
    assert (np.diff(found) > 0).all()


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
