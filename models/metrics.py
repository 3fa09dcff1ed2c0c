"""Ranking metrics of the evaluation protocol, per user first, averaged and compared afterwards. numpy only.

Ranks are 1 for the first place and 0 for "not in the list". Per-user values are kept because everything that
is reported (segments, paired intervals, gates) is a mean over some users of a difference of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def top_k(scores: NDArray[Any], exclude: NDArray[np.bool_] | None, k: int) -> IntArray:
    """The k best items of each user, exactly; equal scores in order of the lower index.

    Shapes: scores [U, N]; exclude bool [U, N], True where an item must not be recommended; returns int64 [U,
    k], -1 after the last allowed item.
    Raises: ValueError if k < 1 or a score is not a number.
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1")
    values: NDArray[np.floating[Any]] = scores.astype(
        np.float64 if scores.dtype == np.float64 else np.float32, copy=True
    )
    if np.isnan(values).any():
        raise ValueError("scores hold NaN; a model that diverged must not be ranked")
    if exclude is not None:
        values[exclude] = -np.inf
    users, items = values.shape
    width = min(k, items)
    if width == 0:
        return np.full((users, k), -1, dtype=np.int64)
    threshold = np.partition(values, items - width, axis=1)[:, items - width, None]
    above = values > threshold
    ties = values == threshold
    room = width - above.sum(axis=1, keepdims=True)
    kept = above | (ties & (np.cumsum(ties, axis=1) <= room))
    columns = np.nonzero(kept)[1].reshape(users, width)
    chosen = np.take_along_axis(values, columns, axis=1)
    # Columns rise within a row, so a stable sort leaves equal scores in order of index.
    order = np.argsort(-chosen, axis=1, kind="stable")
    columns = np.take_along_axis(columns, order, axis=1)
    columns[np.take_along_axis(chosen, order, axis=1) == -np.inf] = -1
    result = np.full((users, k), -1, dtype=np.int64)
    result[:, :width] = columns
    return result


def first_hit_ranks(
    recommended: NDArray[Any], relevant_indptr: NDArray[Any], relevant_indices: NDArray[Any]
) -> IntArray:
    """Place of the first relevant item in each user's list, 0 if none is in it.

    Shapes: recommended integer [U, K], best first, -1 for nothing; user u's relevant items are
    relevant_indices[relevant_indptr[u]:relevant_indptr[u + 1]], in any order; returns int64 [U].
    """
    recommended = np.asarray(recommended, dtype=np.int64)
    users = len(recommended)
    if len(relevant_indptr) != users + 1:
        raise ValueError(
            f"relevant_indptr has {len(relevant_indptr)} entries; expected {users + 1}, users + 1"
        )
    if recommended.size == 0 or len(relevant_indices) == 0:
        return np.zeros(users, dtype=np.int64)
    width = int(max(recommended.max(), np.max(relevant_indices))) + 2
    owners = np.repeat(np.arange(users, dtype=np.int64), np.diff(relevant_indptr))
    relevant = owners * width + np.asarray(relevant_indices, dtype=np.int64) + 1
    # Items count from 1 within a user, so that the gap -1 is 0 and equals no relevant item.
    offered = np.arange(users, dtype=np.int64)[:, None] * width + recommended + 1
    hits = np.isin(offered, relevant)
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0).astype(np.int64)


def hit_rate_at_k(ranks: IntArray, k: int = 10) -> FloatArray:
    """1 for a user with any relevant item in the first k, else 0; its mean is HR@k. [U] -> [U]."""
    ranks = np.asarray(ranks)
    return ((ranks >= 1) & (ranks <= k)).astype(np.float64)


def reciprocal_rank(ranks: IntArray, within: int = 100) -> FloatArray:
    """1/rank of the first hit within the first `within`, else 0; its mean is MRR. [U] -> [U].

    Differs from the paper's table, whose MRR exceeds what its HR@10 allows over the same users: here every
    user counts.
    """
    ranks = np.asarray(ranks)
    inside = (ranks >= 1) & (ranks <= within)
    return np.where(inside, 1.0 / np.maximum(ranks, 1), 0.0)


def coverage_at_k(recommended: NDArray[Any], catalogue_size: int, k: int = 100) -> float:
    """Share of the catalogue that is among the first k of at least one user. It grows with the number of
    users."""
    if catalogue_size < 1:
        raise ValueError(f"catalogue_size is {catalogue_size}; expected at least 1")
    shown = np.unique(np.asarray(recommended)[:, :k])
    return float((shown >= 0).sum() / catalogue_size)


@dataclass(frozen=True)
class Interval:
    """A mean over users and its percentile bootstrap interval. NaN throughout if there are no users."""

    mean: float
    low: float
    high: float
    users: int
    level: float


def bootstrap_interval(
    values: NDArray[Any], *, level: float = 0.95, draws: int = 2_000, seed: int = 0
) -> Interval:
    """Percentile interval of a mean, users drawn anew with replacement.

    Drawing users is drawing how often each distinct value comes up, so a draw is one multinomial over the
    distinct values: the same distribution as an index of users a draw, in the memory of the few values that
    ranks can give, and the order of the users cannot matter.
    Shapes: values [U].
    """
    values = np.asarray(values, dtype=np.float64)
    users = len(values)
    if users == 0:
        return Interval(np.nan, np.nan, np.nan, 0, level)
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    chunk = max(1, 4_000_000 // len(distinct))
    means = np.concatenate(
        [
            rng.multinomial(users, counts / users, size=min(chunk, draws - start)) @ distinct / users
            for start in range(0, draws, chunk)
        ]
    )
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high), users, level)


def paired_bootstrap_interval(
    ours: NDArray[Any], theirs: NDArray[Any], *, level: float = 0.95, draws: int = 2_000, seed: int = 0
) -> Interval:
    """Interval of mean(ours - theirs) over the same users in the same order. Shapes: [U], [U].

    Raises: ValueError if the lengths differ.
    """
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"paired values of {ours.shape} and {theirs.shape} users; expected the same users")
    return bootstrap_interval(ours - theirs, level=level, draws=draws, seed=seed)


def popularity_tiers(streams: NDArray[Any], tiers: int = 5) -> NDArray[np.int8]:
    """Tier of each title, 1 the most popular: titles in order of streams, each tier a fifth of all streams.

    The order is by streams, ties by index (rows are sorted by id). A title belongs to the tier in which its
    first stream falls, so that one title with half of all streams is in tier 1 and leaves tier 2 to nobody.
    Titles without streams are in the last tier. Shapes: streams integer [N] >= 0 -> int8 [N].
    """
    streams = np.asarray(streams, dtype=np.int64)
    order = np.argsort(-streams, kind="stable")
    total = int(streams.sum())
    result = np.full(len(streams), tiers, dtype=np.int8)
    if total:
        before = np.cumsum(streams[order]) - streams[order]
        result[order] = np.minimum(before * tiers // total + 1, tiers)
        result[streams == 0] = tiers
    return result
