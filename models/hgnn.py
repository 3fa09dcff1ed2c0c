"""Heterogeneous GraphSAGE over the co-listening graph (paper 4.1.2, equations 2 and 3).

Written out rather than assembled from PyG's `HeteroConv(SAGEConv(aggr="max", project=True))`: that adds a
linear map after the maximum and a self map a relation, which the equations do not have, and with
`LinkNeighborLoader` ran at an eighth of the speed of plain dense gathers over unique rows (57 against 424
links a second at batch 256).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch_geometric.data import HeteroData

from models.edges import EDGE_TYPES, Csr, EdgeType, NodeType, csr_from_hetero_data, reverse
from models.functional import l2_normalize
from models.sampler import Blocks, Hop, sample_neighbors, seeded_generator

Aggregator = Literal["max", "mean", "sum"]


class HeteroGraphSAGE(nn.Module):
    """Item embeddings from text and co-listening neighbours, for items with and without either.

    Source: arXiv 2403.05185. For relation r and layer k,
      eq. 2  m_r(c) = max over c' in N(c, r) of sigma(W_r^k h_c'^(k-1) + b_r^k), elementwise; 0 if N(c, r) is
      empty
      eq. 3  h_c^k = sigma(W_type(c)^k h_c^(k-1) + sum over r of m_r(c))
    and z = h^L / ||h^L||. sigma is ReLU (the paper does not name it).
    Differs, or is chosen where the paper is silent: W_r is printed without a layer index and has one here,
    since the widths of the layers differ; the two directions of the audiobook-podcast relation have their own
    W_r; W_c is one a node type and has no bias, as printed. `final_activation=False` leaves sigma out of the
    last update: with it z has no negative coordinate, so that no two items can be further apart than a right
    angle. `final_activation=True` is eq. 3 to the letter.

    Parameters: in_dim, width of the node features (one latent space for all types); hidden_dim of the layers
    but the last, out_dim of the last; edge_types (neighbour, relation, centre) that carry messages, fewer in
    the ablations; aggregator in place of the maximum; dropout on the inputs of each layer while training;
    seed of the first weights.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int = 128,
        out_dim: int = 128,
        num_layers: int = 2,
        *,
        edge_types: Sequence[EdgeType] = EDGE_TYPES,
        aggregator: Aggregator = "max",
        final_activation: bool = False,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}; expected at least 1")
        if aggregator not in ("max", "mean", "sum"):
            raise ValueError(f"aggregator is {aggregator!r}; expected max, mean or sum")
        self.in_dim, self.out_dim = in_dim, out_dim
        self.final_activation, self.dropout = final_activation, dropout
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(
            _Layer(widths[k], widths[k + 1], tuple(edge_types), aggregator) for k in range(num_layers)
        )
        self.reset_parameters(seeded_generator(seed))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Fresh weights, a function of the generator alone: Glorot-uniform matrices, zero biases."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                nn.init.zeros_(parameter)

    def forward(self, features: Mapping[NodeType, Tensor], blocks: Blocks) -> dict[NodeType, Tensor]:
        """Embeddings of the blocks' seeds.

        Shapes: features a node type [m, in_dim], the rows of `blocks.input_nodes`; returns [n, out_dim] a
        node type, unit rows in the order of `blocks.seeds`.
        """
        if len(blocks.hops) != len(self.layers):
            raise ValueError(
                f"blocks of {len(blocks.hops)} hops for {len(self.layers)} layers; match the fanouts"
            )
        hidden = dict(features)
        for k, (layer, hop) in enumerate(zip(self.layers, blocks.hops, strict=True)):
            if self.dropout:
                hidden = {t: nn.functional.dropout(h, self.dropout, self.training) for t, h in hidden.items()}
            hidden = layer(hidden, hop)
            if self._activates(k):
                hidden = {t: torch.relu(h) for t, h in hidden.items()}
        return {t: l2_normalize(h) for t, h in hidden.items()}

    def embed_all(
        self,
        data: HeteroData,
        chunk_size: int = 16_384,
        max_neighbors: int | None = None,
        seed: int = 0,
    ) -> dict[NodeType, Tensor]:
        """Embeddings of every item of a graph, cold ones (no neighbour) by induction from their features.

        In use `audiorec.embeddings.embed_cut` has the last word on those (docs/adr/0013).
        See `embed_graph`, which takes the graph as features and neighbour lists.
        """
        features = {t: data[t].x for t in data.node_types}
        return self.embed_graph(features, csr_from_hetero_data(data), chunk_size, max_neighbors, seed)

    @torch.no_grad()
    def embed_graph(
        self,
        features: Mapping[NodeType, Any],
        graph: Mapping[EdgeType, Csr],
        chunk_size: int = 16_384,
        max_neighbors: int | None = None,
        seed: int = 0,
    ) -> dict[NodeType, Tensor]:
        """Embeddings of all items over full neighbourhoods, without sampling and without dropout.

        Layer by layer: each item is projected once a relation, and rows of neighbour lists are reduced in
        chunks of similar degree, so that no [edges, D] array ever exists; peak memory is about (relations +
        2) arrays of [items, D]. `max_neighbors` takes a seeded uniform sample of that many instead, which
        bounds the time on graphs with hubs and resembles what the training saw.
        Shapes: features a node type [N, in_dim] (numpy or torch); returns [N, out_dim] a node type on the
        CPU.
        """
        device = next(self.parameters()).device
        lists = {edge_type: csr.to_torch() for edge_type, csr in graph.items()}
        hidden = {t: torch.as_tensor(x) for t, x in features.items()}
        for k, module in enumerate(self.layers):
            layer: Any = module
            following: dict[NodeType, Tensor] = {}
            for node_type, h in hidden.items():
                update = layer.update[node_type]
                following[node_type] = torch.cat(
                    [update(part.to(device, torch.float32)) for part in h.split(chunk_size)]
                )
            for edge_type in layer.edge_types:
                csr = lists.get(reverse(edge_type))
                if csr is None or csr.num_edges == 0:
                    continue
                neighbor, _, centre = edge_type
                project = layer.message[_key(edge_type)]
                values = torch.cat(
                    [
                        torch.relu(project(p.to(device, torch.float32)))
                        for p in hidden[neighbor].split(chunk_size)
                    ]
                )
                if max_neighbors is None:
                    _add_pooled_lists(following[centre], values, csr, layer.aggregator, chunk_size)
                else:
                    generator = seeded_generator(seed, k)
                    for rows in torch.arange(csr.num_rows).split(chunk_size):
                        slots = sample_neighbors(csr, rows, max_neighbors, len(values), generator)
                        following[centre][rows] += _pool(values, slots.to(device), layer.aggregator)
            if self._activates(k):
                following = {t: h.relu_() for t, h in following.items()}
            hidden = following
        return {t: l2_normalize(h).cpu() for t, h in hidden.items()}

    def _activates(self, layer: int) -> bool:
        return self.final_activation or layer < len(self.layers) - 1


class _Layer(nn.Module):
    """Equations 2 and 3 up to the outer sigma."""

    def __init__(
        self, in_dim: int, out_dim: int, edge_types: tuple[EdgeType, ...], aggregator: Aggregator
    ) -> None:
        super().__init__()
        self.edge_types, self.aggregator = edge_types, aggregator
        node_types = sorted({t for edge_type in EDGE_TYPES for t in (edge_type[0], edge_type[2])})
        self.update = nn.ModuleDict({t: nn.Linear(in_dim, out_dim, bias=False) for t in node_types})
        self.message = nn.ModuleDict(
            {_key(edge_type): nn.Linear(in_dim, out_dim) for edge_type in edge_types}
        )

    def forward(self, hidden: Mapping[NodeType, Tensor], hop: Hop) -> dict[NodeType, Tensor]:
        result = {t: self.update[t](hidden[t].index_select(0, rows)) for t, rows in hop.self_rows.items()}
        for neighbor, h in hidden.items():
            edge_types = [t for t in self.edge_types if t[0] == neighbor and _has_slots(hop, t)]
            if not edge_types:
                continue
            # One product for all relations that start here: a wide one is up to a third faster than narrow ones.
            messages: list[Any] = [self.message[_key(t)] for t in edge_types]
            weight, bias = (
                torch.cat([getattr(one, name) for one in messages]) for name in ("weight", "bias")
            )
            values = torch.relu(nn.functional.linear(h, weight, bias)).chunk(len(messages), dim=1)
            for edge_type, part in zip(edge_types, values, strict=True):
                centre = edge_type[2]
                result[centre] = result[centre] + _pool(part, hop.neighbors[edge_type], self.aggregator)
        return result


def _has_slots(hop: Hop, edge_type: EdgeType) -> bool:
    slots = hop.neighbors.get(edge_type)
    return slots is not None and slots.numel() > 0


def _key(edge_type: EdgeType) -> str:
    return "__".join(edge_type)


def _pool(values: Tensor, slots: Tensor, aggregator: Aggregator) -> Tensor:
    """Reduce each item's sampled neighbours. values [m, D] >= 0; slots [F, n], m in empty ones -> [n, D].

    The empty slot reads a row of zeros. Because sigma is never negative, zeros change neither a maximum nor a
    sum, and an item without neighbours gets 0.
    """
    if slots.shape[0] == 0:
        return values.new_zeros((slots.shape[1], values.shape[1]))
    padded = torch.cat([values, values.new_zeros((1, values.shape[1]))])
    pooled: Tensor
    if aggregator == "max":
        pooled = _GatherMax.apply(padded, slots)
        return pooled
    pooled = _GatherSum.apply(padded, slots)
    if aggregator == "sum":
        return pooled
    count = (slots < len(values)).sum(dim=0).clamp(min=1)
    return pooled / count.unsqueeze(1)


class _GatherMax(torch.autograd.Function):
    """max over slots of values[slots], without the [F, n, D] array.

    One contiguous gather a slot, and on the way back another one to see who attained the maximum. Of equal maxima the
    first slot has the gradient, as in `max` along a dimension. (`amax` shares it, which took a second pass.)
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, slots: Tensor) -> Tensor:
        best = values.index_select(0, slots[0])
        candidate = torch.empty_like(best)
        for slot in slots[1:]:
            torch.index_select(values, 0, slot, out=candidate)
            torch.maximum(best, candidate, out=best)
        ctx.save_for_backward(values, slots, best)
        return best

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        values, slots, best = ctx.saved_tensors
        attained, rest = torch.empty_like(best), gradient.clone()
        result = torch.zeros_like(values)
        for slot in slots:
            torch.index_select(values, 0, slot, out=attained)
            result.index_add_(0, slot, attained.eq_(best).mul_(rest))
            rest.sub_(attained)
        return result, None


class _GatherSum(torch.autograd.Function):
    """sum over slots of values[slots], without the [F, n, D] array."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, slots: Tensor) -> Tensor:
        total = values.index_select(0, slots[0])
        for slot in slots[1:]:
            total.add_(values.index_select(0, slot))
        ctx.save_for_backward(slots)
        ctx.rows = len(values)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        result = gradient.new_zeros((ctx.rows, gradient.shape[1]))
        for slot in slots:
            result.index_add_(0, slot, gradient)
        return result, None


_FEW_ROWS = 64
"""Under so many rows a walk slot by slot costs more than finishing each row by itself."""


def _add_pooled_lists(
    target: Tensor, values: Tensor, csr: Csr, aggregator: Aggregator, chunk_size: int
) -> None:
    """target [n, D] += reduction of values [m, D] >= 0 over whole neighbour lists.

    Rows are taken by falling degree: at slot j those with more than j neighbours are the first ones, so that
    no slot is padded, and the few hubs left are finished one by one.
    """
    degrees = csr.degrees()
    order = torch.argsort(degrees, descending=True, stable=True)
    order = order[: int((degrees > 0).sum())]
    for rows in order.split(chunk_size):
        start, degree = csr.indptr[rows], degrees[rows]
        total = values.new_zeros((len(rows), values.shape[1]))
        longest = int(degree[0])
        # counts[j]: rows with more than j neighbours
        counts = (len(rows) - torch.bincount(degree, minlength=longest + 1).cumsum(0)).tolist()
        slot = 0
        while slot < longest and (active := counts[slot]) >= _FEW_ROWS:
            picked = csr.indices[start[:active] + slot].long().to(values.device)
            part = values.index_select(0, picked)
            if aggregator == "max":
                torch.maximum(total[:active], part, out=total[:active])
            else:
                total[:active] += part
            slot += 1
        for row in range(counts[slot] if slot < longest else 0):
            rest = csr.indices[int(start[row]) + slot : int(start[row] + degree[row])].long()
            for piece in rest.split(chunk_size):
                part = values.index_select(0, piece.to(values.device))
                if aggregator == "max":
                    total[row] = torch.maximum(total[row], part.amax(dim=0))
                else:
                    total[row] += part.sum(dim=0)
        if aggregator == "mean":
            total /= degree.unsqueeze(1).to(values.device)
        target[rows.to(target.device)] += total
