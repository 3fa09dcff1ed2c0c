"""The HGNN in use: graphs of a cut from the store, weights to and from files, embeddings of every title."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from audiorec.store import Manifest, Store

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

    from models.edges import Csr, EdgeType
    from models.hgnn import HeteroGraphSAGE


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


def load_model(store: Store, hgnn: Manifest) -> HeteroGraphSAGE:
    """The trained HGNN of a `train_hgnn` result."""
    from safetensors.torch import load_file

    model = build_model(json.loads(store.open(hgnn, "hgnn.json").read_text()))
    model.load_state_dict(load_file(store.open(hgnn, "hgnn.safetensors")))
    return model.eval()


def cut_graph_data(text: Mapping[str, np.ndarray], graph: Mapping[EdgeType, Csr]) -> HeteroData:
    """One cut's graph in memory as PyG's HeteroData: text vectors as node features, co-listening edges."""
    from models.edges import build_hetero_data

    return build_hetero_data(np.array(text["audiobook"]), np.array(text["podcast"]), graph)


def embed_cut(
    model: HeteroGraphSAGE, text: Mapping[str, np.ndarray], graph: Mapping[EdgeType, Csr]
) -> dict[str, np.ndarray]:
    """Embeddings [titles, D] of every title of both types: unit length, untouched titles by induction from text.

    Full neighbourhoods, no sampling (paper: silent), so the same weights and graph give the same bytes.
    """
    embedded = model.embed_all(cut_graph_data(text, graph))
    return {kind: vectors.numpy() for kind, vectors in embedded.items()}


def load_text(store: Store, text: Manifest) -> dict[str, np.ndarray]:
    """Text vectors by node type, [titles, T], memory-mapped."""
    return {
        kind: np.load(store.open(text, f"{kind}_text.npy"), mmap_mode="r", allow_pickle=False)
        for kind in ("audiobook", "podcast")
    }
