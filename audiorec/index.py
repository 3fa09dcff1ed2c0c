"""The nearest-neighbour index: exact inner product, or HNSW past a size with its recall measured against exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from audiorec.settings import Index

_ADDED = 2**16
"""Vectors added to a graph at a time: no second copy of all of them is made."""
_SCORES = 2**26
"""Exact scores held at a time when recall is measured (256 MiB)."""


def build(vectors: np.ndarray, settings: Index) -> Any:
    """A faiss index of audiobook vectors [N, D] for the inner product (`search`); row number = audiobook_idx.

    A graph is built of distances: linked by inner products, all links lead to the longest vectors, which are the popular
    titles, and many others are not found with whatever effort. A last number gives all vectors one length, that of the
    longest, and queries have 0 there; then the nearest are those of the largest inner product (Bachrach et al. 2014,
    "Speeding up the Xbox recommender system using a Euclidean transformation for inner-product spaces", section 3).

    Built by one thread: HNSW's links depend on the order of insertion, and equal input must give equal bytes.
    """
    import faiss

    faiss.omp_set_num_threads(1)
    vectors = np.ascontiguousarray(vectors, np.float32)
    if len(vectors) <= settings.exact_limit:
        flat: Any = faiss.IndexFlatIP(vectors.shape[1])
        flat.add(vectors)
        return flat
    graph: Any = faiss.IndexHNSWFlat(vectors.shape[1] + 1, settings.hnsw_m, faiss.METRIC_L2)
    graph.hnsw.efConstruction = settings.ef_construction
    graph.hnsw.efSearch = settings.ef_search
    squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    missing = np.sqrt(squares.max() - squares).astype(np.float32)
    for start in range(0, len(vectors), _ADDED):
        some = slice(start, start + _ADDED)
        graph.add(np.column_stack([vectors[some], missing[some]]))
    return graph


def search(index: Any, queries: np.ndarray, k: int, **options: Any) -> np.ndarray:
    """Rows [n, k] of the largest inner products with queries [n, D], best first; -1 where there are no more.

    Args:
        options: for faiss, e.g. `params`.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    if effort(index) is not None and index.d > queries.shape[1]:
        queries = np.column_stack([queries, np.zeros(len(queries), np.float32)])
    _, rows = index.search(queries, k, **options)
    return np.asarray(rows)


def recall(index: Any, vectors: np.ndarray, queries: np.ndarray, k: int = 100) -> float:
    """Share of the exact first k (inner product, float32) that the index finds, over all queries.

    A found title counts if its score reaches the exact k-th best, so that equal scores do not count against it.
    """
    if not len(queries) or not len(vectors):
        return 1.0
    k = min(k, len(vectors))
    found = search(index, queries, k)
    hits = 0
    size = max(1, _SCORES // len(vectors))
    for start in range(0, len(queries), size):
        scores = queries[start : start + size] @ vectors.T
        threshold = np.partition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k]
        rows = found[start : start + size]
        reached = np.take_along_axis(scores, np.maximum(rows, 0), axis=1) >= threshold[:, None] - 1e-5
        hits += int((reached & (rows >= 0)).sum())
    return hits / (len(queries) * k)


def effort(index: Any) -> int | None:
    """How many candidates a search of a graph keeps (`ef_search`); None of an exact index."""
    graph = getattr(index, "hnsw", None)
    return None if graph is None else int(graph.efSearch)


def raise_effort(index: Any, vectors: np.ndarray, queries: np.ndarray, settings: Index) -> float:
    """Recall@100 of an index; of a graph, after its effort when searching was doubled until `min_recall` is reached.

    How much effort that takes depends on the number of titles and on how their vectors lie. At most `max_ef_search`;
    the recall may be too low even then. The effort is part of the index.
    """
    found = recall(index, vectors, queries)
    while (now := effort(index)) is not None and found < settings.min_recall and now < settings.max_ef_search:
        index.hnsw.efSearch = min(2 * now, settings.max_ef_search)
        found = recall(index, vectors, queries)
    return found


def write(index: Any, target: Path) -> None:
    import faiss

    faiss.write_index(index, str(target))


def read(path: Path) -> Any:
    """Read an index whose hash the store has just checked: a faiss file is untrusted memory otherwise."""
    import faiss

    return faiss.read_index(str(path))
