"""The HGNN in use: graphs of a cut from the store, weights to and from files, embeddings of every title."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from audiorec.affinities import EMPTY, unit_rows
from audiorec.store import Manifest, Store

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

    from models.edges import Csr, EdgeType
    from models.hgnn import HeteroGraphSAGE


_INVERSE_TEMPERATURE = 10.0
"""Of the softmax over the cosines of the nearest texts (docs/adr/0013)."""
_COSINES = 10_000_000
"""Held at a time, at most; with what is needed to choose among them about 200 MB."""
_CHUNK = 65_536


@dataclass(frozen=True)
class TrainedHGNN:
    """A trained HGNN, and by how many nearest neighbours in text an isolated title is embedded (0: by induction alone)."""

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
    """Embeddings [titles, D] of every title of both types, unit length; isolated ones by their nearest texts.

    A title without an edge and without a text has no embedding: zeros.

    Full neighbourhoods, no sampling (paper: silent), so the same weights and graph give the same bytes.

    Departure from the paper, which leaves isolated titles to induction: what equations 2 and 3 make of a title without
    a message lies apart from all others, because the training has such titles as negatives alone. Induction stays where
    there is no telling by text (`TextNeighbors`; docs/adr/0013).
    """
    embedded = {
        kind: vectors.numpy() for kind, vectors in hgnn.model.embed_all(cut_graph_data(text, graph)).items()
    }
    for kind, vectors in embedded.items():
        linked = has_edges(graph, kind)
        alone = np.flatnonzero(~linked)
        neighbors = TextNeighbors(text[kind], linked, vectors, hgnn.text_neighbors)
        for start in range(0, len(alone), _CHUNK):
            some = alone[start : start + _CHUNK]
            placed = neighbors.place(text[kind][some])
            vectors[some] = np.where(placed.any(axis=1, keepdims=True), placed, vectors[some])
    return embedded


def has_edges(graph: Mapping[EdgeType, Csr], kind: str) -> np.ndarray:
    """bool [titles]: which titles of a type have an edge in this graph, to a title of either type."""
    degrees = [np.diff(csr.indptr) for edge_type, csr in graph.items() if edge_type[0] == kind]
    return np.asarray(np.sum(degrees, axis=0) > 0)


class TextNeighbors:
    """Embeds isolated titles (with a text, without an edge) as their nearest neighbours by text among the linked ones.

    An embedding is the mean of theirs, weighted by a softmax of ten times the cosines of the texts, less their mean
    text. There is no telling where no more than `nearest` linked titles have a text that is not the mean one (all
    isolated titles would become one), or where a text is empty or the mean one.

    Args:
        text: text vectors [N, T] of the catalogue; a row of zeros is no text.
        linked: bool [N], the titles that may be neighbours.
        embeddings: HGNN embeddings [N, D].
        nearest: how many neighbours; 0: nothing is placed.
    """

    def __init__(self, text: np.ndarray, linked: np.ndarray, embeddings: np.ndarray, nearest: int) -> None:
        self._text, self._embeddings = text, embeddings
        self._nearest = 0
        rows = np.flatnonzero(linked & np.any(text, axis=1))
        if not nearest or not len(rows):
            return
        # In chunks: a service that follows the champion holds two releases at the time, and no copy of their texts.
        chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
        summed = np.sum([text[some].sum(axis=0, dtype=np.float64) for some in chunks], axis=0)
        self._centre = (summed / len(rows)).astype(np.float32)
        lengths = np.concatenate([np.linalg.norm(text[some] - self._centre, axis=1) for some in chunks])
        apart = lengths > EMPTY  # the others are the mean text, but for rounding
        self._rows, self._scale = rows[apart], (1 / lengths[apart]).astype(np.float32)
        if len(self._rows) > nearest:
            self._nearest = nearest

    def place(self, texts: np.ndarray) -> np.ndarray:
        """Embeddings [n, D], unit length, of titles with text vectors [n, T]; zeros where there is no telling."""
        found = np.zeros((len(texts), self._embeddings.shape[1]), np.float32)
        if not self._nearest:
            return found
        worded = np.flatnonzero(np.any(texts, axis=1))
        size = max(1, _COSINES // len(self._text))
        for start in range(0, len(worded), size):
            some = worded[start : start + size]
            queries = unit_rows(np.asarray(texts[some], np.float32) - self._centre)
            told = np.any(queries, axis=1)
            some, queries = some[told], queries[told]
            cosines = self._cosines(queries)
            nearest = np.argpartition(cosines, -self._nearest, axis=1)[:, -self._nearest :]
            near = np.take_along_axis(cosines, nearest, axis=1)
            weights = np.exp(_INVERSE_TEMPERATURE * (near - near.max(axis=1, keepdims=True)))
            found[some] = unit_rows(np.einsum("nk,nkd->nd", weights, self._embeddings[self._rows[nearest]]))
        return found

    def _cosines(self, queries: np.ndarray) -> np.ndarray:
        """[n, rows]; from all texts as they lie in the file, of which no second copy is made."""
        cosines = (queries @ np.asarray(self._text, np.float32).T)[:, self._rows]
        cosines -= (queries @ self._centre)[:, None]
        cosines *= self._scale
        return np.asarray(cosines)


def load_text(store: Store, text: Manifest) -> dict[str, np.ndarray]:
    """Text vectors by node type, [titles, T], memory-mapped."""
    return {
        kind: np.load(store.open(text, f"{kind}_text.npy"), mmap_mode="r", allow_pickle=False)
        for kind in ("audiobook", "podcast")
    }
