"""The co-listening graph: titles joined by the users who streamed both (paper, section 4.1.1).

Users are not nodes. An edge carries the number of users behind it. Which edges stay is a setting: the paper
keeps every edge with at least one user; the default keeps each title's top K a relation by shrunk lift,
because on dense data "at least one user" joins nearly everything (docs/adr).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp

from audiorec.catalogue import Extract
from audiorec.cuts import Cut
from audiorec.settings import Graph

_BLOCK_PAIRS = 30_000_000
"""Co-listened pairs held in memory at a time while neighbours are chosen."""


@dataclass(frozen=True)
class Edges:
    """Neighbours of each row title as CSR, sorted within a row, and the users on each edge."""

    indptr: np.ndarray
    indices: np.ndarray
    users: np.ndarray

    @classmethod
    def none(cls, rows: int) -> Edges:
        """A relation without edges."""
        return cls(np.zeros(rows + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32))


def listening_matrix(events: pd.DataFrame, users: int, titles: int, max_titles: int) -> sp.csr_matrix:
    """0/1 matrix [users, titles] of streams; of each user only the `max_titles` latest titles count."""
    streams = events[events["signal"] == 0]
    latest = streams.groupby(["user_idx", "item_idx"], sort=True, as_index=False)["day"].max()
    latest = latest.sort_values(["user_idx", "day", "item_idx"], ascending=[True, False, True], kind="stable")
    kept = latest[latest.groupby("user_idx", sort=False).cumcount() < max_titles]
    return sp.coo_matrix(
        (np.ones(len(kept), np.int32), (kept["user_idx"], kept["item_idx"])), shape=(users, titles)
    ).tocsr()


def choose_edges(left: sp.csr_matrix, right: sp.csr_matrix, settings: Graph) -> tuple[Edges, Edges]:
    """Edges between the titles of two listening matrices, in both directions.

    Args:
        left, right: 0/1 [users, titles]; the same object for a relation of a type with itself.

    Returns:
        Edges with rows of `left` and with rows of `right`, each the transpose of the other; no self-loops.
        Under rule top_k an edge stays if it is among the K of either end. Equal lifts go to the lower row.
    """
    same = left is right
    users = int(((left.getnnz(axis=1) + right.getnnz(axis=1)) > 0).sum())
    forward = _chosen_rows(left, right, users, same, settings)
    chosen = forward if same else _merge(forward, _chosen_rows(right, left, users, same, settings).T.tocsr())
    if same:
        chosen = _merge(chosen, chosen.T.tocsr())
    return _edges(chosen), _edges(chosen.T.tocsr())


def _chosen_rows(
    left: sp.csr_matrix, right: sp.csr_matrix, users: int, same: bool, settings: Graph
) -> sp.csr_matrix:
    """For each title of `left`, the counts of the neighbours that the rule keeps."""
    by_title = left.T.tocsr()
    degree_left, degree_right = _degrees(left), _degrees(right)
    # Upper bound of co-listened pairs a row, to cut the product into blocks that fit.
    per_user = right.getnnz(axis=1)
    bound = np.maximum(by_title @ per_user, 1)
    block_of = np.cumsum(bound) // _BLOCK_PAIRS
    blocks = []
    for block in np.unique(block_of):
        rows = np.flatnonzero(block_of == block)
        counts = (by_title[rows] @ right).tocoo()
        row, column, together = rows[counts.row], counts.col, counts.data
        keep = together >= settings.min_users
        if same:
            keep &= row != column
        row, column, together = row[keep], column[keep], together[keep]
        if settings.rule == "top_k":
            # together / (degree * degree / users + shrinkage), with one division, so that equal lifts are equal numbers.
            expected = degree_left[row] * degree_right[column] + settings.shrinkage * max(users, 1)
            lift = together * float(max(users, 1)) / expected
            order = np.lexsort((column, -lift, row))
            row, column, together = row[order], column[order], together[order]
            rank = np.arange(len(row)) - np.searchsorted(row, row)
            top = rank < settings.top_k
            row, column, together = row[top], column[top], together[top]
        blocks.append((row, column, together))
    shape = (left.shape[1], right.shape[1])
    if not blocks:
        return sp.csr_matrix(shape, dtype=np.int32)  # a catalogue without a title of this type
    row, column, together = (np.concatenate([block[i] for block in blocks]) for i in range(3))
    return sp.coo_matrix((together, (row, column)), shape=shape).tocsr()


def _degrees(matrix: sp.csr_matrix) -> np.ndarray:
    return np.asarray(matrix.sum(axis=0), np.float64).ravel()


def _merge(one: sp.csr_matrix, other: sp.csr_matrix) -> sp.csr_matrix:
    """Union of edges; both carry the same count where both have the edge."""
    merged: sp.csr_matrix = one.maximum(other).tocsr()
    return merged


def _edges(matrix: sp.csr_matrix) -> Edges:
    matrix.sort_indices()
    return Edges(
        matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data.astype(np.int32)
    )


def cut_relations(extract: Extract, cut: Cut, settings: Graph) -> dict[str, Edges]:
    """The four message directions of one cut's graph, by name (rows_neighbours)."""
    users, limit = len(extract.users), settings.max_titles_per_user
    audiobooks = listening_matrix(
        extract.events("audiobook", cut.first_day, cut.last_day), users, len(extract.audiobooks), limit
    )
    podcasts = listening_matrix(
        extract.events("podcast", cut.first_day, cut.last_day), users, len(extract.podcasts), limit
    )
    none = Edges.none
    between, back = none(audiobooks.shape[1]), none(podcasts.shape[1])
    if "audiobook_podcast" in settings.relations:
        between, back = choose_edges(audiobooks, podcasts, settings)
    return {
        "audiobook_audiobook": choose_edges(audiobooks, audiobooks, settings)[0]
        if "audiobook_audiobook" in settings.relations
        else none(audiobooks.shape[1]),
        "audiobook_podcast": between,
        "podcast_audiobook": back,
        "podcast_podcast": choose_edges(podcasts, podcasts, settings)[0]
        if "podcast_podcast" in settings.relations
        else none(podcasts.shape[1]),
    }
