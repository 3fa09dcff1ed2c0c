"""HR@k and MRR are those of ranx, a library of ranking metrics, on random scores and random relevant items."""

from __future__ import annotations

import numpy as np
import pytest
import ranx
from hypothesis import given
from hypothesis import strategies as st

from models.metrics import first_hit_ranks, hit_rate_at_k, reciprocal_rank, top_k


@st.composite
def rankings(draw):
    """Scores [U, N] without ties, a mask of barred items, and relevant items of each user (one at least)."""
    users, items = draw(st.integers(1, 6)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = np.stack([rng.permutation(items) for _ in range(users)]).astype(np.float64)
    barred = rng.random((users, items)) < draw(st.sampled_from([0.0, 0.3]))
    relevant = [np.flatnonzero(row) for row in rng.random((users, items)) < draw(st.sampled_from([0.1, 0.5]))]
    relevant = [found if len(found) else np.array([rng.integers(items)]) for found in relevant]
    return scores, barred, relevant


@given(rankings(), st.integers(1, 12), st.integers(1, 40))
def test_hit_rate_and_mrr_agree_with_ranx(found, k, depth):
    scores, barred, relevant = found
    depth = max(depth, k)
    shown = top_k(scores, barred, depth)
    ranks = first_hit_ranks(shown, np.cumsum([0, *map(len, relevant)]), np.concatenate(relevant))

    # Nothing is shared with the code above: the library sorts the scores of what is not barred itself.
    qrels = ranx.Qrels({f"u{u}": {f"i{i}": 1 for i in items} for u, items in enumerate(relevant)})
    run = ranx.Run(
        {
            # A library's run may not be empty: an item that nobody knows stands for "nothing to show".
            f"u{u}": {f"i{i}": float(s) for i, s in enumerate(row) if not barred[u, i]} or {"nothing": 0.0}
            for u, row in enumerate(scores)
        }
    )
    names = {user: number for number, user in enumerate(run.run)}
    theirs = ranx.evaluate(qrels, run, [f"hit_rate@{k}", f"mrr@{depth}"], return_mean=False)
    order = [names[f"u{u}"] for u in range(len(scores))]
    assert hit_rate_at_k(ranks, k).tolist() == theirs[f"hit_rate@{k}"][order].tolist()
    assert reciprocal_rank(ranks, depth) == pytest.approx(theirs[f"mrr@{depth}"][order])
