"""The titles with the highest inner products, exactly, at about the cost of an approximate answer.

`ExactSearch` scans the catalogue in half precision, many queries at a time, and then takes the float32 vectors of the
few titles that can still be among the best. That none is missed is proven for every query:

    Let e be the largest length of what rounding took off a title's vector, and g the rounding of the scan itself.
    A scanned score differs from the exact one by at most m = |q| (e + g). Let L be a number that k scanned scores
    reach. Then k exact scores reach L - m, so the k-th best exact score does, so every title among the best k has a
    scanned score of at least L - 2 m. Exactly those are scored again.

`GraphSearch` is for catalogues past `index.exact_limit`: an HNSW graph whose recall was measured when it was built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

_BLOCK = 64
"""Scores whose maximum stands for all of them when a bound is looked for: a 64th is left to be sorted."""
_HALF_MAX = 65_504.0


@dataclass(frozen=True)
class Query:
    """One search: a user's vector [D], how many titles, rows never shown, and (None: all) which may be."""

    vector: np.ndarray
    k: int
    barred: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    allowed: np.ndarray | None = None


@dataclass(frozen=True)
class Found:
    """Rows of the catalogue, best first (of equal scores the lower row), and their inner products in float64."""

    rows: np.ndarray
    scores: np.ndarray


class Search(Protocol):
    """What answers queries."""

    exact: bool

    def search(self, queries: Sequence[Query]) -> list[Found]: ...


class ExactSearch:
    """All titles of a catalogue, scanned.

    Args:
        vectors: float32 [N, D], row = audiobook_idx.
        available: bool [N]; the others are never found.
        half: scan in half precision; without (or on a processor for which torch has no such kernel) in float32.
    """

    exact = True

    def __init__(self, vectors: np.ndarray, available: np.ndarray, half: bool = True) -> None:
        self._rows = np.flatnonzero(available)
        # In memory, whole: what is scored again lies anywhere in it.
        self._vectors = np.array(vectors[self._rows], np.float32, order="C")
        self._position = np.full(len(available), -1, np.int64)
        self._position[self._rows] = np.arange(len(self._rows))
        lengths = np.linalg.norm(self._vectors.astype(np.float64), axis=1)
        longest = float(lengths.max(initial=0.0))
        self._packed: Any
        self._packed, lost = _packed_half(self._vectors) if half else (None, 0.0)
        # Sums of D products in float32, in any order: Higham, Accuracy and Stability, section 3.1. Twice, because the
        # vectors after rounding may be longer by `lost`.
        rounding = 2 * self._vectors.shape[1] * 2.0**-24 * (longest + lost)
        self.margin = lost + rounding
        """m of the proof for a query of length 1."""

    @property
    def half(self) -> bool:
        """Whether the scan is in half precision."""
        return self._packed is not None

    def search(self, queries: Sequence[Query]) -> list[Found]:
        """The best k of each query. Raises ValueError if a vector is not finite."""
        if not queries:
            return []
        wanted = np.stack([query.vector for query in queries]).astype(np.float32)
        if not np.isfinite(wanted).all():
            raise ValueError("a query vector is not finite")
        scores = self._scan(wanted)
        return [self._best(query, row) for query, row in zip(queries, scores, strict=True)]

    def _scan(self, queries: np.ndarray) -> np.ndarray:
        import torch

        given = torch.from_numpy(queries)
        with torch.inference_mode():
            if self._packed is None:
                return np.asarray(given @ torch.from_numpy(self._vectors).T)
            return np.asarray(torch.ops.quantized.linear_dynamic_fp16(given, self._packed))

    def _best(self, query: Query, scores: np.ndarray) -> Found:
        """From scanned scores (changed here) to the exact answer."""
        barred = self._position[query.barred]
        scores[barred[barred >= 0]] = -np.inf
        if query.allowed is not None:
            scores[~query.allowed[self._rows]] = -np.inf
        length = float(np.linalg.norm(query.vector.astype(np.float64)))
        candidates = _within(scores, query.k, 2.0 * self.margin * length)
        exact = inner_products(self._vectors[candidates], query.vector)
        order = np.lexsort((candidates, -exact))[: query.k]
        return Found(self._rows[candidates[order]], exact[order])


def inner_products(vectors: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Inner products [n] in float64, each a function of its own row alone.

    A matrix product would sum in another order for another number of rows, and an answer would depend in its last
    bits on which other titles were scored beside it.
    """
    products: np.ndarray = (vectors.astype(np.float64) * vector.astype(np.float64)).sum(axis=1)
    return products


def _packed_half(vectors: np.ndarray) -> tuple[Any, float]:
    """torch's half-precision matrix, and the largest length of what rounding took off a row; (None, 0) without one."""
    import torch

    if not len(vectors) or np.abs(vectors).max() > _HALF_MAX:
        return None, 0.0
    try:
        packed = torch.ops.quantized.linear_prepack_fp16(torch.from_numpy(vectors), None)
        rounded = torch.ops.quantized.linear_unpack_fp16(packed)[0].float().numpy()
    except RuntimeError:  # no such kernel for this processor
        return None, 0.0
    lost = 0.0
    for start in range(0, len(vectors), 65_536):
        some = slice(start, start + 65_536)
        taken = rounded[some].astype(np.float64) - vectors[some]
        lost = max(lost, float(np.linalg.norm(taken, axis=1).max()))
    return packed, lost


def _within(scores: np.ndarray, k: int, slack: float) -> np.ndarray:
    """Rows, rising, of all scores of at least L - slack, where L is a number that k scores reach; -inf is none.

    Of blocks of 64 scores the maxima are enough to find L (the k-th largest of these is reached in k blocks), and only
    blocks whose maximum comes near it need a second look. With fewer than k scores all of them count.
    """
    blocks = len(scores) // _BLOCK
    if blocks <= 4 * k:
        rows, highest = np.arange(len(scores)), scores
    else:
        highest = scores[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
    least = -np.inf
    if k < len(highest):
        least = float(np.partition(highest, len(highest) - k)[len(highest) - k]) - slack
    # The comparison is in float32: the next number down, lest rounding up should close somebody out.
    least32 = np.nextafter(np.float32(least), np.float32(-np.inf))
    if highest is not scores:
        near = np.flatnonzero(highest >= least32)
        rows = (near[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
        rows = np.concatenate([rows, np.arange(blocks * _BLOCK, len(scores))])
    own = scores[rows]
    return np.asarray(rows[(own >= least32) & (own > -np.inf)])


class GraphSearch:
    """An HNSW graph; approximate, its recall is stated in the release.

    Args:
        index: a faiss index whose rows are audiobook_idx.
        vectors: float32 [N, D], to score what was found once more.
        available: bool [N].
    """

    exact = False

    def __init__(self, index: Any, vectors: np.ndarray, available: np.ndarray) -> None:
        self._index, self._vectors, self._available = index, vectors, np.array(available)

    def search(self, queries: Sequence[Query]) -> list[Found]:
        return [self._one(query) for query in queries]

    def _one(self, query: Query) -> Found:
        import faiss

        kernels: Any = faiss  # its stubs do not know what its Python layer adds
        allowed = self._available if query.allowed is None else self._available & query.allowed
        wanted = min(query.k + len(query.barred), len(allowed))
        bits = np.packbits(allowed, bitorder="little")
        options = kernels.SearchParametersHNSW(
            sel=kernels.IDSelectorBitmap(bits), efSearch=max(self._index.hnsw.efSearch, wanted)
        )
        _, found = self._index.search(
            np.ascontiguousarray(query.vector[None], np.float32), wanted, params=options
        )
        rows = np.setdiff1d(found[0][found[0] >= 0], query.barred)
        exact = inner_products(self._vectors[rows], query.vector)
        order = np.lexsort((rows, -exact))[: query.k]
        return Found(rows[order], exact[order])
