"""The HGNN in use: graphs of a cut from the store, weights to and from files, embeddings of every title."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from audiorec.affinities import unit_rows
from audiorec.store import Manifest, Store

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

    from models.edges import Csr, EdgeType
    from models.hgnn import HeteroGraphSAGE


_SHARPNESS = 10.0
"""Factor of the cosine in the softmax over titles that read alike. On planted isolation any from 5 to 20 did (ADR 13)."""
_NUMBERS = 50_000_000
"""Cosines held at a time, at most: 200 MB."""


@dataclass(frozen=True)
class TrainedHGNN:
    """A trained HGNN, and by how many titles that read alike it places one without an edge (0: by induction alone)."""

    model: HeteroGraphSAGE
    text_neighbors: int


def load_cut_graph(store: Store, graph: Manifest, cut: str) -> dict[EdgeType, Csr]:
    """The memory-mapped co-listening graph of one cut, all four message directions."""
    from models.edges import EDGE_TYPES, Csr

    loaded = {}
    for edge_type in EDGE_TYPES:
        name = f"{cut}.{edge_type[0]}_{edge_type[2]}"
        arrays = [
            np.load(store.open(graph, f"{name}.{part}.npy"), mmap_mode="r", allow_pickle=False)
            for part in ("indptr", "indices")
        ]
        loaded[edge_type] = Csr(*arrays)
    return loaded


def build_model(config: Mapping[str, Any]) -> HeteroGraphSAGE:
    """An HGNN of the shape that `hgnn.json` describes."""
    from models.hgnn import HeteroGraphSAGE

    names = ("in_dim", "hidden_dim", "out_dim", "num_layers", "aggregator", "final_activation", "seed")
    return HeteroGraphSAGE(**{name: config[name] for name in names})


def load_model(store: Store, hgnn: Manifest) -> TrainedHGNN:
    """The trained HGNN of a `train_hgnn` result."""
    from safetensors.torch import load_file

    config = json.loads(store.open(hgnn, "hgnn.json").read_text())
    model = build_model(config)
    model.load_state_dict(load_file(store.open(hgnn, "hgnn.safetensors")))
    return TrainedHGNN(model.eval(), config.get("text_neighbors", 0))  # results before had none


def cut_graph_data(text: Mapping[str, np.ndarray], graph: Mapping[EdgeType, Csr]) -> HeteroData:
    """One cut's graph in memory as PyG's HeteroData: text vectors as node features, co-listening edges."""
    from models.edges import build_hetero_data

    return build_hetero_data(np.array(text["audiobook"]), np.array(text["podcast"]), graph)


def embed_cut(
    hgnn: TrainedHGNN, text: Mapping[str, np.ndarray], graph: Mapping[EdgeType, Csr]
) -> dict[str, np.ndarray]:
    """Embeddings [titles, D] of every title of both types, unit length; those without an edge by what reads alike.

    Full neighbourhoods, no sampling (paper: silent), so the same weights and graph give the same bytes.

    Departure from the paper, which leaves titles without an edge to induction: what equations 2 and 3 make of a title
    without a message lies apart from all others, because no such title is in the training. It is used only where no
    title with an edge has a text (docs/adr/0013).
    """
    embedded = {
        kind: vectors.numpy() for kind, vectors in hgnn.model.embed_all(cut_graph_data(text, graph)).items()
    }
    for kind, vectors in embedded.items():
        linked = has_edges(graph, kind)
        alone = np.flatnonzero(~linked)
        placed = TextNeighbors(text[kind], linked, vectors, hgnn.text_neighbors).place(text[kind][alone])
        vectors[alone] = np.where(placed.any(axis=1, keepdims=True), placed, vectors[alone])
    return embedded


def has_edges(graph: Mapping[EdgeType, Csr], kind: str) -> np.ndarray:
    """bool [titles]: which titles of a type share a user with any other, of either type."""
    degrees = [np.diff(csr.indptr) for edge_type, csr in graph.items() if edge_type[0] == kind]
    return np.asarray(np.sum(degrees, axis=0) > 0)


class TextNeighbors:
    """Where a title belongs that has a text and no co-listener: among the titles with edges that read most alike.

    Its embedding is the mean of theirs, weighted by a softmax of the cosines of their texts (less the mean text).

    Args:
        text: text vectors [N, T] of the catalogue; a row of zeros is no text.
        linked: bool [N], the titles to be near to.
        embeddings: HGNN embeddings [N, D].
        nearest: how many of them count; 0: nothing is placed.
    """

    def __init__(self, text: np.ndarray, linked: np.ndarray, embeddings: np.ndarray, nearest: int) -> None:
        self._text, self._embeddings = text, embeddings
        self._rows = np.flatnonzero(linked & np.any(text, axis=1))
        self._nearest = min(nearest, len(self._rows))
        if self._nearest:
            own = np.asarray(text[self._rows], np.float32)
            self._centre = own.mean(axis=0, dtype=np.float64).astype(np.float32)
            lengths = np.linalg.norm(own - self._centre, axis=1)
            # A text that is the mean one is as near to all others: cosine 0.
            self._scale = np.where(lengths > 0, 1 / np.maximum(lengths, 1e-12), 0.0).astype(np.float32)

    def place(self, words: np.ndarray) -> np.ndarray:
        """Embeddings [n, D], unit length, of titles with text vectors [n, T]; zeros where there is no telling."""
        found = np.zeros((len(words), self._embeddings.shape[1]), np.float32)
        if not self._nearest:
            return found
        told = np.flatnonzero(np.any(words, axis=1))
        asked = unit_rows(np.asarray(words[told], np.float32) - self._centre)
        size = max(1, _NUMBERS // len(self._text))
        for start in range(0, len(told), size):
            some = slice(start, start + size)
            cosines = self._cosines(asked[some])
            nearest = np.argpartition(-cosines, self._nearest - 1, axis=1)[:, : self._nearest]
            near = np.take_along_axis(cosines, nearest, axis=1)
            weights = np.exp(_SHARPNESS * (near - near.max(axis=1, keepdims=True)))
            summed = np.einsum("nk,nkd->nd", weights, self._embeddings[self._rows[nearest]])
            found[told[some]] = unit_rows(summed)
        return found

    def _cosines(self, asked: np.ndarray) -> np.ndarray:
        """[n, rows]; from all texts as they lie in the file, so that a service holds no second copy of them."""
        against = (asked @ np.asarray(self._text, np.float32).T)[:, self._rows]
        return (against - (asked @ self._centre)[:, None]) * self._scale


def load_text(store: Store, text: Manifest) -> dict[str, np.ndarray]:
    """Text vectors by node type, [titles, T], memory-mapped."""
    return {
        kind: np.load(store.open(text, f"{kind}_text.npy"), mmap_mode="r", allow_pickle=False)
        for kind in ("audiobook", "podcast")
    }
