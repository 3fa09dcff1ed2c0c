"""The titles with the highest inner products, exactly, at less than the cost of scanning them.

`ExactSearch` scans bounds in half precision, many queries at a time, over fewer numbers than a vector has, and then
takes the float32 vectors of the few titles that can still be among the best. That none is missed is proven:

    The mean title takes the same from every score of a query, so let c = v - mean. With any invertible A,
    q . c = u . t, where t = c A and u = q inv(A)'. Split both after h numbers: by Cauchy and Schwarz
    q . c <= u_head . t_head + |u_tail| |t_tail|, an inner product of h + 1 numbers, which is what is scanned.
    Let e be the largest length of what rounding took off a title's scanned row, and g the rounding of the scan itself.
    A scanned bound lies at most m = |(u_head, |u_tail|)| (e + g) under the true one. Score any k titles exactly and let
    L be the lowest of them: every title among the best k has a scanned bound of at least L - m. Exactly those are
    scored.

A and h decide how many these are, and nothing else. A turns and stretches the space so that titles and users are spread
alike along each axis, the widest first; then few numbers hold nearly all of a score. (Bounds on the rest of an inner
product: Teflioudi et al., LEMP, SIGMOD 2015; Li et al., FEXIPRO, SIGMOD 2017. Here with the users' spread in A.)

`GraphSearch` is for catalogues past `index.exact_limit`: an HNSW graph whose recall was measured when it was built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from audiorec import index as nearest

_BLOCK = 16
"""Bounds whose maximum stands for all of them at the first look: a 16th is left to be sorted."""
_AT_ONCE = 8
"""Queries of one scan: their bounds stay in the processor's cache while they are looked at."""
_HALF_MAX = 65_504.0
_SAMPLE = 20_000
"""Titles that the axes are fitted to."""
_CHUNK = 65_536
_TAIL = 1.0
"""What the bound on the tail may add to a score, in standard deviations of scores: at 1 some hundred titles of 250,000
are scored for the best hundred; less of it costs more in the scan than it saves."""


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
    """All titles of a catalogue, by scanned bounds.

    Args:
        vectors: float32 [N, D], row = audiobook_idx.
        available: bool [N]; the others are never found.
        half: scan in half precision; without (or on a processor for which torch has no such kernel) in float32.
        queries: float32 [M, D], vectors like those that will be asked for; without, any direction is as likely. They
            change how long an answer takes and not what it is.

    Raises:
        ValueError: a number of the vectors or of the queries is not finite.
    """

    exact = True

    def __init__(
        self,
        vectors: np.ndarray,
        available: np.ndarray,
        half: bool = True,
        queries: np.ndarray | None = None,
    ) -> None:
        self._rows = np.flatnonzero(available)
        # In memory, whole: what is scored again lies anywhere in it.
        self._vectors = np.array(vectors[self._rows], np.float32, order="C")
        self._position = np.full(len(available), -1, np.int64)
        self._position[self._rows] = np.arange(len(self._rows))
        for name, given in (("titles' vectors", self._vectors), ("likely queries", queries)):
            if given is not None and not np.isfinite(given).all():
                raise ValueError(f"the {name} are not finite")
        self._axes = _Axes.fit(self._vectors, queries)
        bounds = self._axes.titles(self._vectors)
        self.width = int(bounds.shape[1])
        """Numbers that are scanned of each title."""
        rows = bounds.astype(np.float32)
        self._packed: Any
        self._packed, kept = _packed_half(rows) if half else (None, rows)
        self._unpacked = rows if self._packed is None else None
        lost, longest = _lengths(kept, bounds)
        # Sums of products in float32, in any order: Higham, Accuracy and Stability, section 3.1. Twice, because the
        # rows after rounding may be longer by `lost`, and two more for the query's own rounding.
        self.margin = lost + 2 * (self.width + 2) * 2.0**-24 * (longest + lost)
        """m of the proof for a scanned query of length 1."""

    @property
    def half(self) -> bool:
        """Whether the scan is in half precision."""
        return self._packed is not None

    def search(self, queries: Sequence[Query]) -> list[Found]:
        """The best k of each query. Raises ValueError if a vector is not finite."""
        if not queries:
            return []
        wanted = np.stack([query.vector for query in queries]).astype(np.float64)
        if not np.isfinite(wanted).all():
            raise ValueError("a query vector is not finite")
        asked, found = self._axes.queries(wanted), []
        for start in range(0, len(queries), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            for query, vector, row, bounds in zip(
                queries[some], wanted[some], asked[some], self._scan(asked[some]), strict=True
            ):
                found.append(self._best(query, bounds, self._margin_of(vector, row)))
        return found

    def _margin_of(self, vector: np.ndarray, asked: np.ndarray) -> float:
        return float(self.margin * np.linalg.norm(asked) + self._axes.rounding * np.linalg.norm(vector))

    def _scan(self, asked: np.ndarray) -> np.ndarray:
        import torch

        given = torch.from_numpy(asked.astype(np.float32))
        with torch.inference_mode():
            if self._unpacked is not None:
                return np.asarray(given @ torch.from_numpy(self._unpacked).T)
            return np.asarray(torch.ops.quantized.linear_dynamic_fp16(given, self._packed))

    def _best(self, query: Query, bounds: np.ndarray, margin: float) -> Found:
        """From scanned bounds (changed here) to the exact answer."""
        barred = self._position[query.barred]
        bounds[barred[barred >= 0]] = -np.inf
        if query.allowed is not None:
            bounds[~query.allowed[self._rows]] = -np.inf
        blocks = _Blocks(bounds)
        first = blocks.promising(2 * query.k)
        least = -np.inf
        if len(first) >= query.k:
            scores = self._axes.scores(self._vectors[first], query.vector)
            least = float(np.partition(scores, len(scores) - query.k)[len(scores) - query.k]) - margin
        candidates = blocks.reaching(least)
        exact = inner_products(self._vectors[candidates], query.vector)
        order = np.lexsort((candidates, -exact))[: query.k]
        return Found(self._rows[candidates[order]], exact[order])


@dataclass(frozen=True)
class _Axes:
    """The axes of the proof: where titles and queries are looked at, and how many of their numbers.

    Args:
        mean: [D] of the titles.
        of_titles: A, [D, D], float64.
        of_queries: inv(A)', [D, D].
        head: h; D if no number is left to the bound.
        rounding: largest error of u . t in float64 for a query of length 1.
    """

    mean: np.ndarray
    of_titles: np.ndarray
    of_queries: np.ndarray
    head: int
    rounding: float

    @classmethod
    def fit(cls, vectors: np.ndarray, queries: np.ndarray | None) -> _Axes:
        """Axes along which titles and queries are spread alike: C = L L', L' Q L = U S U', A = inv(L)' U S^(1/4)."""
        number, width = vectors.shape
        mean = vectors.mean(axis=0, dtype=np.float64) if number else np.zeros(width)
        some = vectors[:: max(1, number // _SAMPLE)].astype(np.float64) - mean
        asked = np.eye(width) if queries is None or not len(queries) else queries.astype(np.float64)
        lower = np.linalg.cholesky(_spread(some))
        turned, spread, _ = np.linalg.svd(lower.T @ _spread(asked) @ lower)
        of_titles = np.linalg.solve(lower.T, turned) * spread**0.25
        of_queries = np.linalg.inv(of_titles).T
        longest = float(np.linalg.norm(vectors, axis=1).max(initial=0.0) + np.linalg.norm(mean))
        # Each of the products (titles, queries, the inverse, q . mean) errs by D roundings at most; a factor that is
        # generous and still far under half precision.
        rounding = 16 * width * 2.0**-53 * np.linalg.norm(of_titles) * np.linalg.norm(of_queries) * longest
        return cls(mean, of_titles, of_queries, _head(np.sqrt(spread)), float(rounding))

    def titles(self, vectors: np.ndarray) -> np.ndarray:
        """Rows to scan, float64 [N, h + 1]: the head of t and the length of its tail."""
        parts = [
            self._split((vectors[start : start + _CHUNK].astype(np.float64) - self.mean) @ self.of_titles)
            for start in range(0, max(1, len(vectors)), _CHUNK)
        ]
        return np.concatenate(parts)

    def queries(self, vectors: np.ndarray) -> np.ndarray:
        """The same of queries, float64 [M, h + 1]. Each from its own row alone, whatever it is asked beside."""
        return self._split(np.stack([vector @ self.of_queries for vector in vectors]))

    def scores(self, vectors: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """q . c of some titles, which a bound is compared with."""
        return inner_products(vectors, vector) - float(self.mean @ vector.astype(np.float64))

    def _split(self, placed: np.ndarray) -> np.ndarray:
        if self.head == placed.shape[1]:
            return placed
        tail = np.linalg.norm(placed[:, self.head :], axis=1)
        return np.column_stack([placed[:, : self.head], tail])


def _spread(vectors: np.ndarray) -> np.ndarray:
    """Mean of x x', a millionth of its mean variance added so that it has an inverse."""
    width = vectors.shape[1]
    second = vectors.T @ vectors / max(1, len(vectors))
    return np.asarray(second + (1e-6 * np.trace(second) / width or 1.0) * np.eye(width))


def _head(spread: np.ndarray) -> int:
    """Numbers to scan, one less than a multiple of eight; all where the bound on the rest would be worth little.

    Along axis j both titles and queries have a variance of spread[j]. So scores vary by sqrt(sum of spread^2), and the
    bound on the tail is about the sum of the spread over it.
    """
    tails = spread.sum() - np.cumsum(spread)
    head = 1 + int(np.argmax(tails <= _TAIL * np.sqrt((spread**2).sum())))
    head += -(head + 1) % 8
    return head if head <= 0.75 * len(spread) else len(spread)


class _Blocks:
    """Bounds of one query, looked at by blocks (a block holds every `count`-th one), of which most are never opened."""

    def __init__(self, bounds: np.ndarray) -> None:
        self._bounds = bounds
        self._count = len(bounds) // _BLOCK
        self._whole = bounds[: self._count * _BLOCK].reshape(_BLOCK, self._count)
        self._highest = self._whole.max(axis=0) if self._count else bounds[:0]

    def promising(self, wanted: int) -> np.ndarray:
        """Up to `wanted` different rows of high bounds, none that is barred (-inf)."""
        if self._count <= 2 * wanted:
            rows = _largest(self._bounds, wanted)
        else:
            chosen = _largest(self._highest, wanted)
            rows = self._whole[:, chosen].argmax(axis=0) * self._count + chosen
        return np.asarray(rows[self._bounds[rows] > -np.inf])

    def reaching(self, least: float) -> np.ndarray:
        """All rows, rising, of bounds of at least `least`; -inf is none."""
        # The comparison is in float32: the next number down, lest rounding up should close somebody out.
        least32 = np.nextafter(np.float32(least), np.float32(-np.inf))
        near = np.flatnonzero(self._highest >= least32)
        rows = (near + np.arange(_BLOCK)[:, None] * self._count).ravel()
        rows = np.concatenate([rows, np.arange(self._count * _BLOCK, len(self._bounds))])
        own = self._bounds[rows]
        return np.sort(rows[(own >= least32) & (own > -np.inf)])


def _largest(values: np.ndarray, wanted: int) -> np.ndarray:
    if wanted >= len(values):
        return np.arange(len(values))
    return np.asarray(np.argpartition(values, len(values) - wanted)[len(values) - wanted :])


def inner_products(vectors: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Inner products [n] in float64, each a function of its own row alone.

    A matrix product would sum in another order for another number of rows, and an answer would depend in its last
    bits on which other titles were scored beside it. (Both sides are float64 before `einsum` sees them: where it has
    to convert, it does so in parts that end within a row.)
    """
    return np.asarray(np.einsum("nd,d->n", vectors.astype(np.float64, order="C"), vector.astype(np.float64)))


def _packed_half(rows: np.ndarray) -> tuple[Any, np.ndarray]:
    """torch's half-precision matrix and what it holds, as float32; (None, the rows themselves) without one."""
    import torch

    if not len(rows) or np.abs(rows).max() > _HALF_MAX:
        return None, rows
    try:
        packed = torch.ops.quantized.linear_prepack_fp16(torch.from_numpy(rows), None)
        return packed, torch.ops.quantized.linear_unpack_fp16(packed)[0].float().numpy()
    except RuntimeError:  # no such kernel for this processor
        return None, rows


def _lengths(kept: np.ndarray, bounds: np.ndarray) -> tuple[float, float]:
    """The largest length of what rounding took off a row, and that of a row."""
    if not len(bounds):
        return 0.0, 0.0
    taken = np.linalg.norm(kept.astype(np.float64) - bounds, axis=1)
    return float(taken.max()), float(np.linalg.norm(bounds, axis=1).max())


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
        [found] = nearest.search(self._index, query.vector[None], wanted, params=options)
        rows = np.setdiff1d(found[found >= 0], query.barred)
        exact = inner_products(self._vectors[rows], query.vector)
        order = np.lexsort((rows, -exact))[: query.k]
        return Found(rows[order], exact[order])
