"""The heterogeneous co-listening graph: its node, link and edge types, and its form in memory.

Users are not nodes (paper 4.1.1): two catalogue items are joined when people listened to both.

Two words are kept apart. A *link* is an unordered pair that the loss is asked to explain (three
`LINK_TYPES`); an *edge* is one direction along which a message can travel (four `EDGE_TYPES`, because an
audiobook-podcast link carries messages both ways). A `Csr` filed under (s, relation, d) has one row an s and
lists its neighbours among d in increasing order; the graph being undirected, the edges of (s, relation, d)
are the transposed edges of (d, relation, s), and a same-type matrix is symmetric.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

NodeType = str
EdgeType = tuple[str, str, str]

AUDIOBOOK: NodeType = "audiobook"
PODCAST: NodeType = "podcast"
NODE_TYPES: tuple[NodeType, ...] = (AUDIOBOOK, PODCAST)

CO_LISTENED = "co_listened"
AUDIOBOOK_AUDIOBOOK: EdgeType = (AUDIOBOOK, CO_LISTENED, AUDIOBOOK)
AUDIOBOOK_PODCAST: EdgeType = (AUDIOBOOK, CO_LISTENED, PODCAST)
PODCAST_AUDIOBOOK: EdgeType = (PODCAST, CO_LISTENED, AUDIOBOOK)
PODCAST_PODCAST: EdgeType = (PODCAST, CO_LISTENED, PODCAST)

LINK_TYPES: tuple[EdgeType, ...] = (AUDIOBOOK_AUDIOBOOK, AUDIOBOOK_PODCAST, PODCAST_PODCAST)
"""The relations R of the paper: supervised, each unordered pair once."""
EDGE_TYPES: tuple[EdgeType, ...] = (*LINK_TYPES, PODCAST_AUDIOBOOK)
"""Directions of messages. The paper does not discuss (p, a), but equation 2 needs N(c, r) for both ends."""


def reverse(edge_type: EdgeType) -> EdgeType:
    """The same relation seen from its other end."""
    source, relation, target = edge_type
    return target, relation, source


@dataclass(frozen=True)
class Csr:
    """Neighbour lists of one edge type, as numpy (memory-mapped too) or torch arrays.

    indptr:  int64 [rows + 1]; the neighbours of row i are indices[indptr[i]:indptr[i + 1]].
    indices: int64 or int32 [edges]; strictly increasing within a row.
    """

    indptr: Any
    indices: Any

    @property
    def num_rows(self) -> int:
        return len(self.indptr) - 1

    @property
    def num_edges(self) -> int:
        return len(self.indices)

    def to_torch(self) -> Csr:
        """The same lists as torch tensors on the same memory (a memory-mapped file is not read)."""
        return Csr(_as_tensor(self.indptr), _as_tensor(self.indices))

    def to_numpy(self) -> Csr:
        """The same lists as numpy arrays on the same memory."""
        return Csr(np.asarray(self.indptr), np.asarray(self.indices))

    def degrees(self) -> Tensor:
        """Neighbours a row, int64 [rows]."""
        indptr = _as_tensor(self.indptr)
        return indptr[1:] - indptr[:-1]

    def edge_index(self) -> Tensor:
        """All edges as PyG's int64 [2, edges]: row above column, sorted by row, then column."""
        csr = self.to_torch()
        rows = torch.repeat_interleave(torch.arange(csr.num_rows), csr.degrees())
        return torch.stack([rows, csr.indices.long()])

    def validate(self, num_columns: int, name: str = "csr") -> None:
        """Check the whole structure.

        Raises: ValueError naming `name` and the first thing found wrong.
        """
        csr = self.to_torch()
        if csr.indptr.ndim != 1 or csr.indices.ndim != 1 or len(csr.indptr) == 0:
            raise ValueError(f"{name}: indptr and indices must be 1-d and indptr non-empty")
        if int(csr.indptr[0]) != 0 or int(csr.indptr[-1]) != csr.num_edges:
            raise ValueError(
                f"{name}: indptr runs from {int(csr.indptr[0])} to {int(csr.indptr[-1])}, "
                f"expected 0 to {csr.num_edges} (the number of indices)"
            )
        if bool((csr.degrees() < 0).any()):
            raise ValueError(f"{name}: indptr decreases")
        if csr.num_edges == 0:
            return
        low, high = int(csr.indices.min()), int(csr.indices.max())
        if low < 0 or high >= num_columns:
            raise ValueError(f"{name}: indices span {low}..{high}, expected 0..{num_columns - 1}")
        rising = csr.indices[1:] > csr.indices[:-1]
        starts = csr.indptr[1:-1]
        rising[starts[(starts > 0) & (starts < csr.num_edges)] - 1] = True
        if not bool(rising.all()):
            raise ValueError(f"{name}: neighbours within a row must be strictly increasing; sort each row")


def csr_from_pairs(rows: Any, columns: Any, num_rows: int) -> Csr:
    """Neighbour lists of directed pairs; repeated pairs count once.

    Shapes: rows, columns integer [pairs]. Returns torch tensors, indptr int64, indices int64.
    """
    rows, columns = _as_tensor(rows).long(), _as_tensor(columns).long()
    width = int(columns.max()) + 1 if len(columns) else 1
    keys = torch.unique(rows * width + columns)
    indptr = torch.zeros(num_rows + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(keys // width, minlength=num_rows), 0, out=indptr[1:])
    return Csr(indptr, keys % width)


def graph_from_links(
    links_by_type: Mapping[EdgeType, Any], num_nodes: Mapping[NodeType, int]
) -> dict[EdgeType, Csr]:
    """All `EDGE_TYPES` of a graph given as links: same-type links are laid both ways, cross-type ones too.

    Shapes: links_by_type[(s, relation, d)] integer [2, links], row 0 in s, row 1 in d. Self-links are
    dropped.
    """
    graph: dict[EdgeType, Csr] = {}
    for link_type, links in links_by_type.items():
        source, _, target = link_type
        first, second = _as_tensor(links).long()
        if source == target:
            keep = first != second
            first, second = first[keep], second[keep]
            both = torch.cat([first, second]), torch.cat([second, first])
            graph[link_type] = csr_from_pairs(*both, num_nodes[source])
        else:
            graph[link_type] = csr_from_pairs(first, second, num_nodes[source])
            graph[reverse(link_type)] = csr_from_pairs(second, first, num_nodes[target])
    return graph


def links_of_graph(csr_by_edge_type: Mapping[EdgeType, Csr]) -> dict[EdgeType, Tensor]:
    """Every link of the graph once: int32 [2, links] a link type, row index below column index where the ends
    have the same type. int32 because an epoch's pool of 25 million links should not cost 400 MB.
    """
    links: dict[EdgeType, Tensor] = {}
    for link_type in LINK_TYPES:
        if link_type not in csr_by_edge_type:
            continue
        csr = csr_by_edge_type[link_type].to_torch()
        rows = torch.repeat_interleave(torch.arange(csr.num_rows, dtype=torch.int32), csr.degrees())
        columns = csr.indices.int()
        if link_type[0] == link_type[2]:
            keep = rows < columns
            rows, columns = rows[keep], columns[keep]
        links[link_type] = torch.stack([rows, columns])
    return links


def find_edges(csr: Csr, rows: Tensor, columns: Tensor) -> Tensor:
    """Position of each pair in `csr.indices`, or -1 where the pair is not an edge.

    Bisects inside the sorted rows, all pairs at once, so that a memory-mapped graph needs no second copy of
    its edges as keys. Shapes: rows, columns int64 [pairs]; returns int64 [pairs]. csr holds torch tensors.
    """
    low = csr.indptr[rows]
    end = csr.indptr[rows + 1]
    high = end.clone()
    last = max(csr.num_edges - 1, 0)
    if csr.num_edges == 0:
        return torch.full_like(rows, -1)
    while bool((open_ := low < high).any()):
        middle = (low + high) >> 1
        below = csr.indices[middle.clamp(max=last)] < columns
        low = torch.where(open_ & below, middle + 1, low)
        high = torch.where(open_ & ~below, middle, high)
    found = (low < end) & (csr.indices[low.clamp(max=last)] == columns)
    return torch.where(found, low, -1)


def without_links(
    csr_by_edge_type: Mapping[EdgeType, Csr], links_by_type: Mapping[EdgeType, Tensor]
) -> dict[EdgeType, Csr]:
    """The graph with some links taken out in every direction in which they carry messages.

    Raises: ValueError if a link is not in the graph.
    """
    kept: dict[EdgeType, Csr] = {}
    for edge_type, csr_any in csr_by_edge_type.items():
        csr = csr_any.to_torch()
        pairs = [links_by_type[edge_type].long()] if edge_type in links_by_type else []
        if reverse(edge_type) in links_by_type:
            pairs.append(links_by_type[reverse(edge_type)].long().flip(0))
        if not pairs:
            kept[edge_type] = csr
            continue
        rows, columns = torch.cat(pairs, dim=1)
        positions = find_edges(csr, rows, columns)
        if bool((positions < 0).any()):
            raise ValueError(f"{edge_type}: {int((positions < 0).sum())} of the links are not in the graph")
        keep = torch.ones(csr.num_edges, dtype=torch.bool)
        keep[positions] = False
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), keep.cumsum(0)])
        kept[edge_type] = Csr(ends[csr.indptr], csr.indices[keep])
    return kept


def check_graph(csr_by_edge_type: Mapping[EdgeType, Csr], num_nodes: Mapping[NodeType, int]) -> None:
    """Cheap checks of how a graph's parts fit together (sizes and directions, not every edge).

    Raises: ValueError naming the edge type.
    """
    for edge_type, csr in csr_by_edge_type.items():
        if edge_type not in EDGE_TYPES:
            raise ValueError(f"unknown edge type {edge_type}; expected one of {EDGE_TYPES}")
        if csr.num_rows != num_nodes[edge_type[0]]:
            raise ValueError(
                f"{edge_type}: {csr.num_rows} rows, expected {num_nodes[edge_type[0]]}, "
                f"one for each {edge_type[0]} node"
            )
        other = csr_by_edge_type.get(reverse(edge_type))
        if other is None:
            raise ValueError(f"{edge_type} is given without its reverse {reverse(edge_type)}; give both")
        if other.num_edges != csr.num_edges:
            raise ValueError(f"{edge_type} has {csr.num_edges} edges, its reverse {other.num_edges}")


def build_hetero_data(
    x_audiobook: Any, x_podcast: Any, csr_by_edge_type: Mapping[EdgeType, Csr]
) -> HeteroData:
    """The graph in memory as PyG's HeteroData, with features `x` and `edge_index` a type.

    Shapes: x_audiobook [audiobooks, F], x_podcast [podcasts, F], float.
    Raises: ValueError where rows, features and directions do not fit together.
    """
    data = HeteroData()
    for node_type, features in ((AUDIOBOOK, x_audiobook), (PODCAST, x_podcast)):
        data[node_type].x = _as_tensor(features).float()
    check_graph(csr_by_edge_type, {t: data[t].num_nodes for t in NODE_TYPES})
    for edge_type, csr in csr_by_edge_type.items():
        csr.validate(data[edge_type[2]].num_nodes, str(edge_type))
        data[edge_type].edge_index = csr.edge_index()
    return data


def csr_from_hetero_data(data: HeteroData) -> dict[EdgeType, Csr]:
    """Neighbour lists of a HeteroData. Edges in any order are accepted; sorted ones are not copied."""
    graph: dict[EdgeType, Csr] = {}
    for edge_type in data.edge_types:
        rows, columns = data[edge_type].edge_index.cpu()
        num_rows = int(data[edge_type[0]].num_nodes)
        rising = (rows[1:] > rows[:-1]) | ((rows[1:] == rows[:-1]) & (columns[1:] > columns[:-1]))
        if bool(rising.all()):
            indptr = torch.zeros(num_rows + 1, dtype=torch.int64)
            torch.cumsum(torch.bincount(rows, minlength=num_rows), 0, out=indptr[1:])
            graph[edge_type] = Csr(indptr, columns)
        else:
            graph[edge_type] = csr_from_pairs(rows, columns, num_rows)
    return graph


def _as_tensor(array: Any) -> Tensor:
    if isinstance(array, Tensor):
        return array
    with warnings.catch_warnings():
        # Read-only memory maps are the point: nothing here writes to the arrays it is given.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))
