"""Graphs that several tests share: random ones, and two planted communities."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from models.edges import (
    AUDIOBOOK,
    AUDIOBOOK_AUDIOBOOK,
    AUDIOBOOK_PODCAST,
    LINK_TYPES,
    PODCAST,
    PODCAST_PODCAST,
    Csr,
    EdgeType,
    graph_from_links,
)
from models.sampler import seeded_generator


@st.composite
def random_graphs(draw: st.DrawFn) -> tuple[dict[str, int], dict[EdgeType, Csr]]:
    """Graphs of 1-7 audiobooks and 1-7 podcasts, any links, isolated items and empty types included."""
    counts = {AUDIOBOOK: draw(st.integers(1, 7)), PODCAST: draw(st.integers(1, 7))}
    links = {}
    for link_type in LINK_TYPES:
        ends = st.tuples(st.integers(0, counts[link_type[0]] - 1), st.integers(0, counts[link_type[2]] - 1))
        links[link_type] = torch.tensor(draw(st.lists(ends, max_size=15)), dtype=torch.int64).view(-1, 2).T
    return counts, graph_from_links(links, counts)


def community_links(size: int, share: float, generator: torch.Generator) -> dict[EdgeType, Tensor]:
    """Two communities of `size` audiobooks and `size` podcasts each; a share of the pairs inside is linked.

    Items 0..size-1 of either type are community 0, size..2*size-1 community 1; no link joins the two.
    """
    links: dict[EdgeType, Tensor] = {}
    for link_type in (AUDIOBOOK_AUDIOBOOK, AUDIOBOOK_PODCAST, PODCAST_PODCAST):
        pairs = []
        for community in (0, 1):
            i, j = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
            keep = torch.rand(size, size, generator=generator) < share
            if link_type[0] == link_type[2]:
                keep &= i < j
            pairs.append(torch.stack([i[keep], j[keep]]) + community * size)
        links[link_type] = torch.cat(pairs, dim=1)
    return links


def planted_communities(size: int, share: float, width: int) -> tuple[dict[str, Tensor], dict[EdgeType, Csr]]:
    """Features [2 size, width] a node type and the graph of `community_links`.

    The features are noise, so that only co-listening can tell the two communities apart.
    """
    counts = {AUDIOBOOK: 2 * size, PODCAST: 2 * size}
    features = {
        t: torch.randn(n, width, generator=seeded_generator(4, i)) for i, (t, n) in enumerate(counts.items())
    }
    return features, graph_from_links(community_links(size, share, seeded_generator(3)), counts)


def pairs_of(csr: Csr) -> set[tuple[int, int]]:
    """All edges as (row, column)."""
    return {(int(i), int(j)) for i, j in csr.edge_index().T}
