"""Embeddings of a cut: linked titles by the HGNN, isolated ones by their nearest neighbours in text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from altered import with_changed_file
from hypothesis import given
from hypothesis import strategies as st

from audiorec.embeddings import (
    TextNeighbors,
    TrainedHGNN,
    embed_cut,
    has_edges,
    load_cut_graph,
    load_model,
    load_text,
)
from audiorec.store import Store
from models.edges import EDGE_TYPES, Csr, graph_from_links
from models.hgnn import HeteroGraphSAGE
from models.training import HGNNTrainer, TrainingConfig

BOOK_SHOW = ("audiobook", EDGE_TYPES[0][1], "podcast")


def unit(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.linalg.norm(matrix, axis=-1, keepdims=True)


def test_an_isolated_title_is_placed_between_its_nearest_neighbours_by_text():
    """By hand: texts on a cross around (1, 1), asked 30 degrees from the right arm."""
    text = np.array([[2, 1], [1, 2], [0, 1], [1, 0]], np.float32)
    embeddings = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]], np.float32)
    found = TextNeighbors(text, np.ones(4, bool), embeddings, nearest=2)
    angle = np.pi / 6
    words = np.array([[1 + 5 * np.cos(angle), 1 + 5 * np.sin(angle)]], np.float32)
    near, far = np.exp(10 * np.cos(angle)), np.exp(10 * np.sin(angle))
    expected = unit(np.array([near, far, 0]))
    np.testing.assert_allclose(found.place(words)[0], expected, atol=1e-5)


def test_only_linked_titles_with_a_text_count_for_the_mean_text_as_well():
    text = np.array([[2, 1], [0, 1], [1, 3], [9, 9], [0, 0]], np.float32)
    embeddings = np.eye(5, dtype=np.float32)
    linked = np.array([True, True, True, False, True])
    all_of_them = TextNeighbors(text, linked, embeddings, nearest=2)
    three = TextNeighbors(text[:3], linked[:3], embeddings[:3], nearest=2)
    asked = np.array([[3, 1.5]], np.float32)
    found = all_of_them.place(asked)
    assert (found[:, 3:] == 0).all()
    assert found.any()
    np.testing.assert_allclose(found, three.place(asked), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "linked", "nearest"),
    [
        (np.zeros((3, 2), np.float32), np.ones(3, bool), 1),
        (np.eye(3, 2, dtype=np.float32), np.zeros(3, bool), 1),
        (np.eye(3, 2, dtype=np.float32), np.ones(3, bool), 0),
        (np.eye(3, 2, dtype=np.float32), np.array([True, True, False]), 2),
        (np.ones((3, 2), np.float32), np.ones(3, bool), 2),
    ],
    ids=[
        "nobody has a text",
        "nobody has an edge",
        "switched off",
        "as many as there are",
        "one text for all",
    ],
)
def test_where_there_is_no_telling_the_answer_is_zeros(text: np.ndarray, linked: np.ndarray, nearest: int):
    found = TextNeighbors(text, linked, np.eye(3, dtype=np.float32), nearest)
    assert not found.place(np.array([[1, 2], [0, 0]], np.float32)).any()


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_placed_titles_have_unit_length_and_do_not_depend_on_each_other(seed: int, nearest: int):
    random = np.random.default_rng(seed)
    text = random.normal(size=(30, 5)).astype(np.float32)
    embeddings = unit(np.abs(random.normal(size=(30, 4)))).astype(np.float32)
    linked = random.random(30) < 0.4
    found = TextNeighbors(text, linked, embeddings, nearest)
    words = random.normal(size=(7, 5)).astype(np.float32)
    words[3] = 0
    together = found.place(words)
    lengths = np.linalg.norm(together, axis=1)
    told = np.flatnonzero(lengths)
    assert set(told) == ({0, 1, 2, 4, 5, 6} if linked.sum() > nearest else set())
    np.testing.assert_allclose(lengths[told], 1, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([found.place(one[None]) for one in words]), together, atol=1e-5)


def communities(seed: int, groups: int = 6, size: int = 20) -> tuple[dict, dict, dict[str, np.ndarray]]:
    """Text by group with noise, edges inside the group only, a quarter of the audiobooks without any."""
    random = np.random.default_rng(seed)
    group = {kind: np.repeat(np.arange(groups), size) for kind in ("audiobook", "podcast")}
    centres = random.normal(size=(groups, 24))
    text = {
        kind: unit(centres[own] + 0.6 * random.normal(size=(len(own), 24))).astype(np.float32)
        for kind, own in group.items()
    }
    alone = random.random(groups * size) < 0.25
    links = {}
    for left, right in (("audiobook", "audiobook"), ("audiobook", "podcast"), ("podcast", "podcast")):
        one, other = random.integers(groups * size, size=(2, 8_000))
        keep = group[left][one] == group[right][other]
        keep &= (one < other) if left == right else True
        for kind, ends in ((left, one), (right, other)):
            if kind == "audiobook":
                keep &= ~alone[ends]
        pairs = torch.from_numpy(np.unique(np.stack([one[keep], other[keep]]), axis=1))
        links[(left, EDGE_TYPES[0][1], right)] = pairs
    graph = graph_from_links(links, dict.fromkeys(group, groups * size))
    return text, graph, {**group, "alone": alone}


def test_a_title_without_an_edge_lands_in_its_own_community_where_induction_does_not():
    text, graph, known = communities(seed=4)
    trainer = HGNNTrainer(
        HeteroGraphSAGE(24, 16, 16, seed=1),
        text,
        graph,
        TrainingConfig(batch_size=256, max_epochs=15, fanouts=(5, 5), seed=1),
    )
    trainer.fit()

    def in_its_group(text_neighbors: int) -> float:
        """Share of the five nearest titles with edges that are of a lone title's own group."""
        found = embed_cut(TrainedHGNN(trainer.model, text_neighbors), text, graph)["audiobook"]
        lone, rest = np.flatnonzero(known["alone"]), np.flatnonzero(~known["alone"])
        nearest = np.argsort(-(found[lone] @ found[rest].T), axis=1)[:, :5]
        return float((known["audiobook"][rest][nearest] == known["audiobook"][lone][:, None]).mean())

    assert in_its_group(10) > 0.9
    assert in_its_group(10) > in_its_group(0) + 0.1


def test_titles_with_edges_are_the_models_and_so_are_lone_ones_without_a_text():
    text, graph, known = communities(seed=5, groups=3, size=8)
    assert (has_edges(graph, "audiobook") <= ~known["alone"]).all()
    wordless = int(np.flatnonzero(known["alone"])[0])
    text["audiobook"][wordless] = 0
    model = HeteroGraphSAGE(24, 8, 8, seed=2).eval()
    by_model = embed_cut(TrainedHGNN(model, 0), text, graph)
    placed = embed_cut(TrainedHGNN(model, 10), text, graph)
    linked = has_edges(graph, "audiobook")
    too_few = embed_cut(TrainedHGNN(model, int(linked.sum())), text, graph)
    np.testing.assert_array_equal(too_few["audiobook"], by_model["audiobook"])
    assert by_model["audiobook"][~linked].any(axis=1).sum() == (~linked).sum() - 1  # all but the wordless one
    np.testing.assert_array_equal(placed["audiobook"][linked], by_model["audiobook"][linked])
    np.testing.assert_array_equal(placed["audiobook"][wordless], by_model["audiobook"][wordless])
    others = ~linked
    others[wordless] = False
    assert others.any()
    assert (placed["audiobook"][others] != by_model["audiobook"][others]).any(axis=1).all()


def test_an_edge_to_a_podcast_alone_is_an_edge():
    empty = Csr(np.zeros(3, np.int64), np.zeros(0, np.int32))
    one = Csr(np.array([0, 0, 1]), np.array([0], np.int32))
    graph = dict.fromkeys(EDGE_TYPES, empty) | {BOOK_SHOW: one}
    assert has_edges(graph, "audiobook").tolist() == [False, True]


def test_a_chain_writes_what_its_own_result_embeds_and_results_of_older_code_stay_by_induction(
    tiny_chain: Any, tmp_path: Path
):
    manifest = tiny_chain.manifest("train_hgnn")
    hgnn = load_model(tiny_chain.store, manifest)
    assert hgnn.text_neighbors == tiny_chain.settings.hgnn.text_neighbors > 0
    name = next(name for name in manifest.files if name.endswith(".audiobook.npy"))
    cut = name.removesuffix(".audiobook.npy")
    graph = load_cut_graph(tiny_chain.store, tiny_chain.manifest("build_graph"), cut)
    embedded = embed_cut(hgnn, load_text(tiny_chain.store, tiny_chain.manifest("embed_text")), graph)
    for kind, vectors in embedded.items():
        np.testing.assert_array_equal(np.load(tiny_chain.open("train_hgnn", f"{cut}.{kind}.npy")), vectors)

    def without_the_setting(old: Path, new: Path) -> None:
        config = json.loads(old.read_text())
        del config["text_neighbors"]
        new.write_text(json.dumps(config))

    store = Store(str(tmp_path / "store"), str(tmp_path / "scratch"))
    older = with_changed_file(tiny_chain.store, manifest, "hgnn.json", without_the_setting, store)
    assert load_model(store, older).text_neighbors == 0
