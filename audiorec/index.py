"""The nearest-neighbour index: exact inner product, or HNSW past a size with its recall measured against exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from audiorec.settings import Index


def build(vectors: np.ndarray, settings: Index) -> Any:
    """A faiss index of audiobook vectors [N, D] for the inner product; row number = audiobook_idx.

    Built by one thread: HNSW's links depend on the order of insertion, and equal input must give equal bytes.
    """
    import faiss

    faiss.omp_set_num_threads(1)
    vectors = np.ascontiguousarray(vectors, np.float32)
    if len(vectors) <= settings.exact_limit:
        index: Any = faiss.IndexFlatIP(vectors.shape[1])
    else:
        index = faiss.IndexHNSWFlat(vectors.shape[1], settings.hnsw_m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = settings.ef_construction
        index.hnsw.efSearch = settings.ef_search
    index.add(vectors)
    return index


def recall(index: Any, vectors: np.ndarray, queries: np.ndarray, k: int = 100) -> float:
    """Share of the exact first k (inner product, float32) that the index finds, over all queries.

    A found title counts if its score reaches the exact k-th best, so that equal scores do not count against it.
    """
    if not len(queries) or not len(vectors):
        return 1.0
    k = min(k, len(vectors))
    _, found = index.search(np.ascontiguousarray(queries, np.float32), k)
    hits = 0
    for start in range(0, len(queries), 256):
        scores = queries[start : start + 256] @ vectors.T
        threshold = np.partition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k]
        rows = found[start : start + 256]
        reached = np.take_along_axis(scores, np.maximum(rows, 0), axis=1) >= threshold[:, None] - 1e-5
        hits += int((reached & (rows >= 0)).sum())
    return hits / (len(queries) * k)


def write(index: Any, target: Path) -> None:
    import faiss

    faiss.write_index(index, str(target))


def read(path: Path) -> Any:
    """Read an index whose hash the store has just checked: a faiss file is untrusted memory otherwise."""
    import faiss

    return faiss.read_index(str(path))
