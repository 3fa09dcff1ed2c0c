"""The balanced multi-link neighbourhood sampler (paper 4.1.3), vectorised over plain neighbour lists.

An epoch is a draw of links of every type; a batch mixes them, adds negatives and samples the neighbourhoods
that two (or L) layers need. PyG's `LinkNeighborLoader` takes the links of one edge type and computes an item
again for every place where it occurs; here each layer holds an item once, and its neighbours are row numbers.

Every random choice is a function of (seed, epoch, batch), never of what was drawn before, so that two
integers are the sampler's whole state and a killed training goes on exactly where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.edges import (
    Csr,
    EdgeType,
    NodeType,
    check_graph,
    find_edges,
    links_of_graph,
    reverse,
    without_links,
)

_RESAMPLING_ROUNDS = 8
_ROWS_AT_ONCE = 16_384


@dataclass(frozen=True)
class Hop:
    """What one layer reads. Row numbers point into the layer below.

    self_rows: a node type, int64 [n]: where each of the layer's n items stands in the layer below.
    neighbors: an edge type (neighbour, relation, centre), int64 [fanout, n]: the rows of an item's sampled
    neighbours, slot by slot; `below[neighbour type]` (one past the last row) marks an empty slot. Slots come
    first because the layer walks over slots, each a contiguous gather.
    below: a node type, the number of rows in the layer below.
    """

    self_rows: dict[NodeType, Tensor]
    neighbors: dict[EdgeType, Tensor]
    below: dict[NodeType, int]

    def mask(self, edge_type: EdgeType) -> Tensor:
        """bool [fanout, n], True where a slot holds a neighbour."""
        return self.neighbors[edge_type] < self.below[edge_type[0]]


@dataclass(frozen=True)
class Blocks:
    """Sampled neighbourhoods of some items, each layer's items held once.

    input_nodes: a node type, int64 [m], increasing: the items whose features layer 1 reads.
    seeds: a node type, int64 [n], increasing: the items that come out of the last layer.
    hops: first layer first.
    """

    input_nodes: dict[NodeType, Tensor]
    seeds: dict[NodeType, Tensor]
    hops: list[Hop]

    def to(self, device: torch.device) -> Blocks:
        if device.type == "cpu":
            return self
        move = lambda tensors: {k: v.to(device, non_blocking=True) for k, v in tensors.items()}  # noqa: E731
        hops = [Hop(move(hop.self_rows), move(hop.neighbors), hop.below) for hop in self.hops]
        return Blocks(move(self.input_nodes), move(self.seeds), hops)


@dataclass(frozen=True)
class LinkBatch:
    """B supervised links of mixed types with K negatives each.

    anchor, positive int64 [B] and negatives int64 [B, K] are rows of the batch's embeddings, stacked by node
    type in the sampler's order; negative_mask bool [B, K] is False where no non-neighbour was found in time;
    link_type int64 [B] counts in the order of the sampler's `link_types`. `nodes` int64 [rows] gives the
    global number (see `MultiLinkNeighborSampler.offsets`) of each row.
    """

    anchor: Tensor
    positive: Tensor
    negatives: Tensor
    negative_mask: Tensor
    link_type: Tensor
    nodes: Tensor
    blocks: Blocks


def seeded_generator(*numbers: int) -> torch.Generator:
    """A CPU generator that is a function of some integers (mixed by splitmix64, so that near ones part)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return torch.Generator().manual_seed(state >> 1)


def draw_without_replacement(population: int, size: int, generator: torch.Generator) -> Tensor:
    """`size` different numbers below `population`, every such set equally likely, in random order. int64
    [size].

    A small share of a large population is drawn with repeats and made unique, which costs the share instead
    of a permutation of the population. Whatever their number, the distinct values are a uniform set.
    """
    if size > population:
        raise ValueError(f"cannot draw {size} different ones out of {population}")
    if size * 4 > population:
        return torch.randperm(population, generator=generator)[:size]
    distinct = torch.empty(0, dtype=torch.int64)
    while len(distinct) < size:
        more = torch.randint(population, (size + size // 4 + 16,), generator=generator)
        distinct = torch.unique(torch.cat([distinct, more]))
    return distinct[torch.randperm(len(distinct), generator=generator)[:size]]


def balanced_links(
    links_by_type: Mapping[EdgeType, Tensor],
    generator: torch.Generator,
    cap: int | None = None,
    balanced: bool = True,
) -> dict[EdgeType, Tensor]:
    """The links of one epoch: a fresh uniform draw of the same number from every link type.

    Source: arXiv 2403.05185, 4.1.3: with N links of one type and M > N of another, N of each. The number is
    the smallest non-empty type's, or `cap` if that is less. `balanced=False` (ablation A) keeps all links;
    with a cap it draws as many in total as the balanced draw under the same cap could, uniformly over all
    types together. Read here as acting on the loss only: messages run over the whole graph (the paper leaves
    it open).
    Shapes: [2, links] -> [2, drawn] a type; empty types stay empty.
    """
    counts = {link_type: links.shape[1] for link_type, links in links_by_type.items()}
    non_empty = [count for count in counts.values() if count]
    if not non_empty:
        return dict(links_by_type)
    if balanced:
        size = min(non_empty) if cap is None else min(*non_empty, cap)
        return {
            link_type: links[:, draw_without_replacement(counts[link_type], size, generator)]
            if counts[link_type]
            else links
            for link_type, links in links_by_type.items()
        }
    total = sum(non_empty)
    if cap is None or cap * len(non_empty) >= total:
        return dict(links_by_type)
    drawn = draw_without_replacement(total, cap * len(non_empty), generator)
    result, start = {}, 0
    for link_type, links in links_by_type.items():
        mine = drawn[(drawn >= start) & (drawn < start + counts[link_type])] - start
        result[link_type] = links[:, mine]
        start += counts[link_type]
    return result


def split_links(
    links_by_type: Mapping[EdgeType, Tensor],
    share: float,
    generator: torch.Generator,
    most: int | None = None,
) -> dict[EdgeType, Tensor]:
    """Links to hold out: `share` of every type, rounded down, at most `most` of a type. [2, held out] a
    type."""
    held: dict[EdgeType, Tensor] = {}
    for link_type, links in links_by_type.items():
        size = int(links.shape[1] * share)
        size = size if most is None else min(size, most)
        held[link_type] = links[:, draw_without_replacement(links.shape[1], size, generator)]
    return held


def sample_neighbors(
    csr: Csr, rows: Tensor, fanout: int, num_columns: int, generator: torch.Generator
) -> Tensor:
    """A uniform sample without replacement of each row's neighbours; all of them where they fit.

    Source: the fixed-size uniform N(c, r) of eq. 2. Without replacement, because a repeated neighbour adds
    nothing to a maximum. Floyd's algorithm, all rows at once: slot j draws t below degree - fanout + j + 1
    and takes degree - fanout + j instead where t was taken.
    Shapes: rows int64 [n] -> int64 [slots, n], slots = min(fanout, largest degree among rows), `num_columns`
    in empty slots. csr holds torch tensors.
    """
    start = csr.indptr.index_select(0, rows)
    degree = csr.indptr.index_select(0, rows + 1) - start
    slots = min(fanout, int(degree.max())) if len(rows) else 0
    result = torch.empty((slots, len(rows)), dtype=torch.int64)
    if slots == 0:
        return result
    for part in range(0, len(rows), _ROWS_AT_ONCE):
        here = slice(part, part + _ROWS_AT_ONCE)
        positions = _positions(start[here], degree[here], slots, fanout, generator)
        found = csr.indices.index_select(0, positions.clamp_(max=csr.num_edges - 1).view(-1)).long()
        empty = torch.arange(slots).unsqueeze(1) >= degree[here]
        result[:, here] = found.view(slots, -1).masked_fill_(empty, num_columns)
    return result


def _positions(start: Tensor, degree: Tensor, slots: int, fanout: int, generator: torch.Generator) -> Tensor:
    """Positions of sampled neighbours in `indices`, int64 [slots, n]; meaningless past a row's degree."""
    positions = start + torch.arange(slots).unsqueeze(1)
    large = (degree > fanout).nonzero().squeeze(1)
    if not len(large):
        return positions
    spare = degree.index_select(0, large) - fanout
    draws = torch.rand((fanout, len(large)), generator=generator, dtype=torch.float64)
    chosen = torch.empty((fanout, len(large)), dtype=torch.int64)
    for j in range(fanout):
        mine = (draws[j] * (spare + (j + 1))).long()
        if j:
            # One slot at a time stays under the size at which torch wakes its threads. Quiet cores do not
            # mind (0.5 ms for 160,000 neighbours either way); on busy ones waiting for them took 100 ms.
            taken = chosen[0] == mine
            for i in range(1, j):
                taken |= chosen[i] == mine
            mine = torch.where(taken, spare + j, mine)
        chosen[j] = mine
    if len(large) == len(start):
        return chosen.add_(start)
    positions.index_copy_(1, large, chosen.add_(start.index_select(0, large)))
    return positions


class _Excluded:
    """The supervised links of a batch, ready to be looked up among sampled pairs of one edge type."""

    def __init__(self, rows: Tensor, columns: Tensor, num_rows: int, num_columns: int) -> None:
        self.width = num_columns + 1
        self.keys = torch.unique(rows * self.width + columns)
        self.involved = torch.zeros(num_rows, dtype=torch.bool)
        self.involved[rows] = True

    def mask_(self, rows: Tensor, neighbors: Tensor, empty: int) -> Tensor:
        # Few rows take part in the batch's links; only their pairs are looked up.
        at = self.involved.index_select(0, rows).nonzero().squeeze(1)
        if len(at) and len(neighbors):
            found = neighbors.index_select(1, at)
            pairs = rows[at] * self.width + found
            place = torch.searchsorted(self.keys, pairs).clamp_(max=len(self.keys) - 1)
            neighbors.index_copy_(1, at, found.masked_fill(self.keys[place] == pairs, empty))
        return neighbors


class NeighborSampler:
    """L-hop neighbourhoods with fixed fan-outs, each layer's items once.

    Parameters: graph (lists by edge type, numpy or torch), num_nodes a node type (its order is the order in
    which types are stacked), fanouts: neighbours a relation, nearest hop first, as in PyG.
    """

    def __init__(
        self, graph: Mapping[EdgeType, Csr], num_nodes: Mapping[NodeType, int], fanouts: Sequence[int]
    ) -> None:
        if not fanouts or min(fanouts) < 1:
            raise ValueError(f"fanouts is {tuple(fanouts)}; expected one positive number a layer")
        check_graph(graph, num_nodes)
        self.graph = {edge_type: csr.to_torch() for edge_type, csr in graph.items()}
        self.num_nodes = dict(num_nodes)
        self.fanouts = tuple(fanouts)
        # One slot more than there are nodes: an empty neighbour slot has a row of its own.
        self._seen = {t: torch.zeros(n + 1, dtype=torch.bool) for t, n in self.num_nodes.items()}
        self._row = {t: torch.zeros(n + 1, dtype=torch.int64) for t, n in self.num_nodes.items()}

    def blocks(
        self,
        seeds: Mapping[NodeType, Tensor],
        generator: torch.Generator,
        excluded: Mapping[EdgeType, _Excluded] | None = None,
    ) -> Blocks:
        """Neighbourhoods of `seeds` (distinct, increasing int64 a node type)."""
        current = {t: seeds[t] for t in self.num_nodes}
        hops: list[Hop] = []
        for fanout in self.fanouts:
            sampled: dict[EdgeType, Tensor] = {}
            for edge_type, csr in self.graph.items():
                centre, _, neighbor = edge_type
                empty = self.num_nodes[neighbor]
                found = sample_neighbors(csr, current[centre], fanout, empty, generator)
                if excluded and edge_type in excluded:
                    found = excluded[edge_type].mask_(current[centre], found, empty)
                sampled[reverse(edge_type)] = found
            below: dict[NodeType, Tensor] = {}
            for node_type, count in self.num_nodes.items():
                seen, row = self._seen[node_type], self._row[node_type]
                seen.zero_()
                seen.index_fill_(0, current[node_type], True)
                for edge_type, found in sampled.items():
                    if edge_type[0] == node_type:
                        seen.index_fill_(0, found.view(-1), True)
                seen[count] = False
                below[node_type] = nodes = seen.nonzero().squeeze(1)
                row.index_copy_(0, nodes, torch.arange(len(nodes)))
                row[count] = len(nodes)
            hops.append(
                Hop(
                    self_rows={t: self._row[t].index_select(0, nodes) for t, nodes in current.items()},
                    neighbors={
                        edge_type: self._row[edge_type[0]].index_select(0, found.view(-1)).view(found.shape)
                        for edge_type, found in sampled.items()
                    },
                    below={t: len(nodes) for t, nodes in below.items()},
                )
            )
            current = below
        return Blocks(input_nodes=current, seeds={t: seeds[t] for t in self.num_nodes}, hops=hops[::-1])


class MultiLinkNeighborSampler:
    """Batches of supervised links of all types at once, balanced, with negatives and neighbourhoods.

    Each drawn link gives one term of eq. 4 an epoch. Which end is the anchor is a coin's choice, for every
    link type and anew each epoch: the paper does not say, and with the audiobook always the anchor no podcast
    would ever learn to tell its audiobooks from others, which is what a listener of podcasts needs.
    Negatives are `num_negatives` an anchor, uniform over the catalogue C of eq. 4; of which node type is not
    stated. `negative_type="positive"` draws from the positive's type, so that a type cannot be told by its
    features alone; "any" draws from both. A true neighbour of the anchor (in `known_graph`, held-out links
    included), the anchor itself and the positive are drawn again a few times and masked if still there.
    `negative_pool` makes a batch share that many different candidates a type: the cost of a negative is its
    neighbourhood, not its score. The supervised links of the batch carry no message in it, in either
    direction, at any hop, else a link would be explained by itself (the paper does not discuss this).
    """

    def __init__(
        self,
        graph: Mapping[EdgeType, Csr],
        num_nodes: Mapping[NodeType, int],
        *,
        known_graph: Mapping[EdgeType, Csr] | None = None,
        fanouts: Sequence[int] = (10, 5),
        batch_size: int = 256,
        num_negatives: int = 4,
        links_per_type: int | None = None,
        balanced: bool = True,
        negative_type: Literal["positive", "any"] = "positive",
        negative_pool: int | None = None,
        exclude_supervised: bool = True,
        seed: int = 0,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("num_negatives", num_negatives)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        self.neighborhoods = NeighborSampler(graph, num_nodes, fanouts)
        self.graph = self.neighborhoods.graph
        self.num_nodes = self.neighborhoods.num_nodes
        self.known_graph = (
            self.graph if known_graph is None else {t: csr.to_torch() for t, csr in known_graph.items()}
        )
        check_graph(self.known_graph, num_nodes)
        self.node_types = tuple(self.num_nodes)
        self.offsets: dict[NodeType, int] = {}
        """First global number of a node type: global = offset + index within the type."""
        total = 0
        for node_type, count in self.num_nodes.items():
            self.offsets[node_type] = total
            total += count
        self._starts = torch.tensor(list(self.offsets.values()))
        self._counts = torch.tensor(list(self.num_nodes.values()))
        self.batch_size, self.num_negatives = batch_size, num_negatives
        self.links_per_type, self.balanced = links_per_type, balanced
        self.negative_type, self.negative_pool = negative_type, negative_pool
        self.exclude_supervised, self.seed = exclude_supervised, seed
        self.links = links_of_graph(self.graph)
        self.link_types = tuple(self.links)
        if not any(links.shape[1] for links in self.links.values()):
            raise ValueError("the graph has no links to learn from; check the edge counts of build_graph")
        self.start_epoch(0)

    # -- the course of an epoch ------------------------------------------------------------------------

    def start_epoch(self, epoch: int, position: int = 0) -> None:
        """Draw the links of an epoch and stand before its batch `position`."""
        generator = seeded_generator(self.seed, 1, epoch)
        drawn = balanced_links(self.links, generator, self.links_per_type, self.balanced)
        code = torch.cat(
            [torch.full((links.shape[1],), i, dtype=torch.int64) for i, links in enumerate(drawn.values())]
        )
        ends = torch.cat(
            [
                links.long() + torch.tensor([[self.offsets[t[0]]], [self.offsets[t[2]]]])
                for t, links in drawn.items()
            ],
            dim=1,
        )
        order = torch.randperm(len(code), generator=generator)
        self._code, self._ends = code[order], ends[:, order]
        self.epoch, self.position = epoch, position

    def __len__(self) -> int:
        """Batches in the current epoch."""
        return -(-len(self._code) // self.batch_size)

    @property
    def links_in_epoch(self) -> int:
        return len(self._code)

    def next_batch(self) -> LinkBatch | None:
        """The next batch of this epoch, or None at its end."""
        if self.position >= len(self):
            return None
        batch = self.batch(self.position)
        self.position += 1
        return batch

    def state(self) -> dict[str, int]:
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state(self, state: Mapping[str, int]) -> None:
        if state["seed"] != self.seed:
            raise ValueError(f"the sampler's seed is {self.seed}, the stored state's {state['seed']}")
        self.start_epoch(state["epoch"], state["position"])

    # -- one batch -------------------------------------------------------------------------------------

    def batch(self, position: int) -> LinkBatch:
        """Batch `position` of the current epoch: the same whenever it is asked for."""
        generator = seeded_generator(self.seed, 2, self.epoch, position)
        part = slice(position * self.batch_size, (position + 1) * self.batch_size)
        ends, code = self._ends[:, part], self._code[part]
        swap = torch.rand(len(code), generator=generator) < 0.5
        anchor = torch.where(swap, ends[1], ends[0])
        positive = torch.where(swap, ends[0], ends[1])
        negatives, mask = self.draw_negatives(
            anchor, positive, self.num_negatives, generator, self.negative_pool
        )
        excluded = self._exclusions(anchor, positive) if self.exclude_supervised else None
        everyone = torch.cat([anchor, positive, negatives.view(-1)])
        nodes, rows = torch.unique(everyone, return_inverse=True)
        count = len(anchor)
        return LinkBatch(
            anchor=rows[:count],
            positive=rows[count : 2 * count],
            negatives=rows[2 * count :].view(count, -1),
            negative_mask=mask,
            link_type=code,
            nodes=nodes,
            blocks=self.neighborhoods.blocks(self.split_by_type(nodes), generator, excluded),
        )

    def split_by_type(self, nodes: Tensor) -> dict[NodeType, Tensor]:
        """Increasing global numbers as increasing indices within each type."""
        bounds = torch.searchsorted(nodes, torch.cat([self._starts, self._starts[-1:] + self._counts[-1:]]))
        return {
            t: nodes[int(bounds[i]) : int(bounds[i + 1])] - self.offsets[t]
            for i, t in enumerate(self.node_types)
        }

    def draw_negatives(
        self,
        anchor: Tensor,
        positive: Tensor,
        size: int,
        generator: torch.Generator,
        pool: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Catalogue items that are no neighbours of the anchor: global int64 [B, size], bool [B, size]
        valid."""
        pools = None
        if pool is not None:
            # Different candidates, so that small catalogues do not lose negatives to repeats.
            sizes = [min(pool, n) for n in self.num_nodes.values()]
            pools = [
                draw_without_replacement(n, m, generator) + start
                for n, m, start in zip(self.num_nodes.values(), sizes, self._starts.tolist(), strict=True)
            ]
        kind = self._type_code(positive).unsqueeze(1).expand(-1, size).reshape(-1)
        anchors = anchor.unsqueeze(1).expand(-1, size).reshape(-1)
        drawn = self._draw(kind, pools, generator)
        wrong = self._forbidden(anchors, drawn).nonzero().squeeze(1)
        for _ in range(_RESAMPLING_ROUNDS):
            if not len(wrong):
                break
            drawn[wrong] = self._draw(kind[wrong], pools, generator)
            wrong = wrong[self._forbidden(anchors[wrong], drawn[wrong])]
        valid = torch.ones(len(drawn), dtype=torch.bool)
        valid[wrong] = False
        return drawn.view(-1, size), valid.view(-1, size)

    def _draw(self, kind: Tensor, pools: list[Tensor] | None, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(len(kind), generator=generator, dtype=torch.float64)
        if pools is not None:
            if self.negative_type == "any":
                everyone = torch.cat(pools)
                return everyone[(uniform * len(everyone)).long()]
            result = torch.empty(len(kind), dtype=torch.int64)
            for code, candidates in enumerate(pools):
                mine = kind == code
                result[mine] = candidates[(uniform[mine] * len(candidates)).long()]
            return result
        if self.negative_type == "any":
            return (uniform * int(self._counts.sum())).long()
        return self._starts[kind] + (uniform * self._counts[kind]).long()

    def _forbidden(self, anchor: Tensor, other: Tensor) -> Tensor:
        # The positive is a neighbour too, so it needs no rule of its own.
        result = anchor == other
        anchor_code, other_code = self._type_code(anchor), self._type_code(other)
        for (source, _, target), csr in self.known_graph.items():
            here = (anchor_code == self.node_types.index(source)) & (
                other_code == self.node_types.index(target)
            )
            at = here.nonzero().squeeze(1)
            if len(at):
                found = (
                    find_edges(csr, anchor[at] - self.offsets[source], other[at] - self.offsets[target]) >= 0
                )
                result[at] |= found
        return result

    def _type_code(self, nodes: Tensor) -> Tensor:
        code = torch.zeros_like(nodes)
        for start in self._starts[1:].tolist():
            code += nodes >= start
        return code

    def _exclusions(self, anchor: Tensor, positive: Tensor) -> dict[EdgeType, _Excluded]:
        rows, columns = torch.cat([anchor, positive]), torch.cat([positive, anchor])
        row_code, column_code = self._type_code(rows), self._type_code(columns)
        result: dict[EdgeType, _Excluded] = {}
        for edge_type in self.graph:
            source, _, target = edge_type
            here = (row_code == self.node_types.index(source)) & (
                column_code == self.node_types.index(target)
            )
            if bool(here.any()):
                result[edge_type] = _Excluded(
                    rows[here] - self.offsets[source],
                    columns[here] - self.offsets[target],
                    self.num_nodes[source],
                    self.num_nodes[target],
                )
        return result


def hold_out_links(
    graph: Mapping[EdgeType, Csr], share: float, generator: torch.Generator, most: int | None = None
) -> tuple[dict[EdgeType, Csr], dict[EdgeType, Tensor]]:
    """Set links aside for validation: the graph whose messages never see them, and the links."""
    held = split_links(links_of_graph(graph), share, generator, most)
    return without_links(graph, held), held
