"""HGNN-w-users, the paper's rival with users as nodes (section 6.3): user, podcast and audiobook, joined by streams.

The paper says no more than that. Chosen here: two layers of GraphSAGE with elementwise maxima as in equation 2, by
PyG; text vectors as the features of titles, the mean of what was streamed as those of users; the margin loss of
equation 4 between users and titles. Edges to learn from are taken out of the graph while they are learnt from. The
whole graph is one batch, which is what makes users as nodes dear.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch_geometric.nn import HeteroConv, SAGEConv

from models.functional import l2_normalize
from models.losses import max_margin_loss

KINDS = ("audiobook", "podcast")
_SUPERVISED = 0.2
"""Share of the edges that is learnt from in a step, and missing from its graph."""
_NEGATIVES = 8
_JUDGE_EVERY = 5
_PATIENCE = 4

Scorer = Callable[[np.ndarray], np.ndarray]
EdgeIndex = dict[tuple[str, str, str], Tensor]


class UserGraphSAGE(nn.Module):
    """Embeddings of users and titles by message passing over streams."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            HeteroConv(
                {edge: SAGEConv((width, width), dim, aggr="max") for edge in _edge_types()}, aggr="sum"
            )
            for width in (in_dim, dim)
        )

    def forward(self, features: dict[str, Tensor], edges: EdgeIndex) -> dict[str, Tensor]:
        """Unit rows [n, dim] a node type."""
        hidden = self.layers[0](features, edges)
        hidden = self.layers[1]({name: torch.relu(h) for name, h in hidden.items()}, edges)
        return {name: l2_normalize(h) for name, h in hidden.items()}


def _edge_types() -> list[tuple[str, str, str]]:
    return [edge for kind in KINDS for edge in (("user", "streams", kind), (kind, "streamed_by", "user"))]


def _edge_index(pairs: dict[str, Tensor]) -> EdgeIndex:
    """Both directions of (user, title) pairs [2, E] by kind."""
    found = {}
    for kind, pair in pairs.items():
        found["user", "streams", kind] = pair
        found[kind, "streamed_by", "user"] = pair.flip(0)
    return found


def train(
    streams: dict[str, sp.csr_matrix],
    text: dict[str, np.ndarray],
    validate: Callable[[Scorer], float],
    *,
    dim: int,
    steps: int,
    seed: int,
) -> Scorer:
    """Train on 0/1 [users, titles] of streams by kind; the step that validates best is kept.

    Args:
        streams: what was streamed in the window, by `KINDS`.
        text: vectors [titles, T] by kind.
        validate: hit rate of a scorer on the validation targets.
        dim: length of an embedding.
        steps: of gradient descent, at most.
        seed: of weights, held-out edges and negatives.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pairs = {kind: _pairs(streams[kind]) for kind in KINDS}
    features = _features(streams, text)
    model = UserGraphSAGE(features["user"].shape[1], dim)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    whole = _edge_index(pairs)

    def scorer() -> Scorer:
        with torch.no_grad():
            found = model(features, whole)
        users, titles = found["user"].numpy(), found["audiobook"].numpy()
        return lambda chosen: users[chosen] @ titles.T

    best, best_rate, since = scorer(), -1.0, 0
    for step in range(1, steps + 1):
        held = {k: torch.rand(p.shape[1], generator=generator) < _SUPERVISED for k, p in pairs.items()}
        found = model(features, _edge_index({kind: pair[:, ~held[kind]] for kind, pair in pairs.items()}))
        loss = torch.stack(
            [
                _loss(found["user"], found[kind], pair[:, held[kind]], generator)
                for kind, pair in pairs.items()
                if held[kind].any()
            ]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % _JUDGE_EVERY == 0:
            now = scorer()
            rate = validate(now)
            if rate > best_rate:
                best, best_rate, since = now, rate, 0
            elif (since := since + 1) >= _PATIENCE:
                break
    return best


def _pairs(streamed: sp.csr_matrix) -> Tensor:
    coo = streamed.tocoo()
    return torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))


def _features(streams: dict[str, sp.csr_matrix], text: dict[str, np.ndarray]) -> dict[str, Tensor]:
    summed = sum(np.asarray(streams[kind] @ text[kind]) for kind in KINDS)
    number = sum(streams[kind].getnnz(axis=1) for kind in KINDS)
    users = summed / np.maximum(number, 1)[:, None]
    return {
        "user": torch.from_numpy(np.asarray(users, np.float32)),
        **{kind: torch.from_numpy(np.array(text[kind], np.float32)) for kind in KINDS},
    }


def _loss(users: Tensor, titles: Tensor, pairs: Tensor, generator: torch.Generator) -> Tensor:
    """Equation 4 over (user, title) pairs [2, E], negatives uniform over the titles of the kind."""
    negatives = torch.randint(len(titles), (pairs.shape[1], _NEGATIVES), generator=generator)
    return max_margin_loss(users[pairs[0]], titles[pairs[1]], titles[negatives], margin=0.4)
