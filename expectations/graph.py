"""Suite of one co-listening graph: edges in range, both ways, with users; isolated titles told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from expectations.check import Check, Failure, Suite, evaluate, raise_or_warn

MOST_ISOLATED = 0.5
"""Half of the titles without a neighbour: the graph then says less than text. New catalogues begin so."""
BLOCK_EDGES = 1 << 22


class Neighbours(Protocol):
    """Neighbours of each row title as CSR, and the users on each edge."""

    @property
    def indptr(self) -> np.ndarray: ...

    @property
    def indices(self) -> np.ndarray: ...

    @property
    def users(self) -> np.ndarray: ...


def check_graph(name: str, relations: Mapping[str, Neighbours]) -> list[Failure]:
    """Judge a graph before it is committed.

    Args:
        name: the cut, for the message.
        relations: message directions by `ROWTYPE_NEIGHBOURTYPE`, e.g. `audiobook_podcast`. A direction
            between two types needs the other one beside it.

    Returns:
        The warnings.

    Raises:
        BadData: a critical check failed, with all of them in words.
    """
    return raise_or_warn(evaluate(suite(name, relations)))


def suite(name: str, relations: Mapping[str, Neighbours]) -> Suite:
    """The figures of a graph and the bounds that they must keep.

    Raises:
        ValueError: a direction lacks its counterpart.
    """
    titles = {rows: len(r.indptr) - 1 for (rows, _), r in ((_types(k), r) for k, r in relations.items())}
    metrics: dict[str, float | int | None] = {"edges": sum(len(r.indices) for r in relations.values())}
    rebuild = "a fault of build_graph: report it with the manifest, and run build_graph with --force"
    checks = [
        Check(
            "DQ-GRAPH",
            "edges",
            "",
            "critical",
            "no edge at all",
            "at least one",
            "widen time.window_days or load more history: no user streamed two titles in the window",
            "without edges there is nothing to train on",
            minimum=1,
        )
    ]
    linked = {kind: np.zeros(count, bool) for kind, count in titles.items()}
    for relation, edges in sorted(relations.items()):
        rows, neighbours = _types(relation)
        reverse = f"{neighbours}_{rows}"
        if reverse not in relations:
            raise ValueError(f"graph {name} has {relation} but not {reverse}; both directions are needed")
        degrees = np.diff(edges.indptr)
        linked[rows] |= degrees > 0
        figures = _figures(edges, titles[neighbours], rows == neighbours)
        if relation <= reverse:
            figures["one_way_edges"] = int(_key(edges) != _key(relations[reverse], transposed=True))
        metrics[f"{relation}.edges"] = len(edges.indices)
        metrics[f"{relation}.largest_degree"] = int(degrees.max(initial=0))
        for figure, value in figures.items():
            metrics[f"{relation}.{figure}"] = value
            found, expected, why = _WORDS[figure]
            checks.append(
                Check(
                    "DQ-GRAPH",
                    f"{relation}.{figure}",
                    relation,
                    "critical",
                    found.format(value),
                    expected,
                    rebuild,
                    why,
                    maximum=0,
                )
            )
    for kind, is_linked in sorted(linked.items()):
        isolated = int((~is_linked).sum())
        metrics[f"{kind}.isolated_share"] = isolated / max(len(is_linked), 1)
        checks.append(
            Check(
                "DQ-GRAPH",
                f"{kind}.isolated_share",
                kind,
                "warning",
                f"{isolated:,} of {len(is_linked):,} {kind}s without a neighbour",
                f"at most {100 * MOST_ISOLATED:.0f}%",
                "normal for a new catalogue; else widen time.window_days or lower graph.min_users",
                "such titles are placed by text alone",
                maximum=MOST_ISOLATED,
            )
        )
    return Suite(f"graph {name}", metrics, checks)


_WORDS = {
    "broken_rows": (
        "{} row(s) whose bounds go back or past the end",
        "bounds that rise from 0 to the edges",
        "CSR is read by them",
    ),
    "out_of_range": (
        "{} neighbour(s) that are no title",
        "row numbers of the catalogue",
        "they would read another title's vector",
    ),
    "self_loops": ("{} title(s) joined to themselves", "none", "a title is not co-listened with itself"),
    "repeated_edges": ("{} neighbour(s) listed twice", "each once", "it would count double in every sum"),
    "userless_edges": (
        "{} edge(s) with fewer than 1 user",
        "at least 1 user an edge",
        "an edge is somebody's listening",
    ),
    "one_way_edges": (
        "edges that differ between the two directions",
        "each edge both ways with the same users",
        "co-listening has no direction",
    ),
}


def _types(relation: str) -> tuple[str, str]:
    rows, _, neighbours = relation.partition("_")
    return rows, neighbours


def _figures(edges: Neighbours, neighbours: int, same: bool) -> dict[str, int]:
    indptr, total = np.asarray(edges.indptr, np.int64), len(edges.indices)
    broken = (
        int((np.diff(indptr) < 0).sum())
        + int(indptr[0] != 0)
        + int(indptr[-1] != total)
        + int(len(edges.users) != total)
    )
    figures = {"broken_rows": broken}
    if broken:
        return figures
    out_of_range = loops = repeated = userless = 0
    previous = (-1, -1)
    for start in range(0, total, BLOCK_EDGES):
        stop = min(start + BLOCK_EDGES, total)
        rows = _rows(indptr, start, stop)
        columns = np.asarray(edges.indices[start:stop], np.int64)
        out_of_range += int(((columns < 0) | (columns >= neighbours)).sum())
        loops += int((rows == columns).sum()) if same else 0
        repeated += int(((rows[1:] == rows[:-1]) & (columns[1:] == columns[:-1])).sum())
        repeated += int(previous == (rows[0], columns[0]))
        previous = (int(rows[-1]), int(columns[-1]))
        userless += int((np.asarray(edges.users[start:stop]) < 1).sum())
    figures |= {"out_of_range": out_of_range, "repeated_edges": repeated, "userless_edges": userless}
    return figures | ({"self_loops": loops} if same else {})


def _rows(indptr: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Row of each edge start..stop-1."""
    return np.searchsorted(indptr, np.arange(start, stop), side="right") - 1


def _key(edges: Neighbours, transposed: bool = False) -> tuple[int, int]:
    """Count and order-free sum of hashes of (row, column, users): the same for a relation and its mirror."""
    indptr, total = np.asarray(edges.indptr, np.int64), len(edges.indices)
    if len(indptr) < 1 or indptr[-1] != total or len(edges.users) != total or (np.diff(indptr) < 0).any():
        return total, -1
    summed = np.uint64(0)
    for start in range(0, total, BLOCK_EDGES):
        stop = min(start + BLOCK_EDGES, total)
        rows = _rows(indptr, start, stop).astype(np.uint64)
        columns = np.asarray(edges.indices[start:stop]).astype(np.uint64)
        if transposed:
            rows, columns = columns, rows
        mixed = _mix(_mix(_mix(rows) ^ columns) ^ np.asarray(edges.users[start:stop]).astype(np.uint64))
        summed = np.add.reduce(mixed, initial=summed, dtype=np.uint64)
    return total, int(summed)


def _mix(value: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
