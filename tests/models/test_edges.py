"""The graph in memory: directions, round trips, look-ups, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted_graphs import pairs_of, random_graphs

from models.edges import (
    AUDIOBOOK,
    AUDIOBOOK_AUDIOBOOK,
    AUDIOBOOK_PODCAST,
    EDGE_TYPES,
    LINK_TYPES,
    PODCAST,
    PODCAST_AUDIOBOOK,
    PODCAST_PODCAST,
    Csr,
    build_hetero_data,
    csr_from_hetero_data,
    csr_from_pairs,
    find_edges,
    graph_from_links,
    links_of_graph,
    reverse,
    without_links,
)


def test_three_kinds_of_links_travel_in_four_directions():
    assert {frozenset((t[0], t[2])) for t in LINK_TYPES} == {
        frozenset((AUDIOBOOK,)),
        frozenset((PODCAST,)),
        frozenset((AUDIOBOOK, PODCAST)),
    }
    assert {*LINK_TYPES, *map(reverse, LINK_TYPES)} == set(EDGE_TYPES) and len(EDGE_TYPES) == 4


def test_a_graph_of_four_links_by_hand():
    # audiobooks 0-1; audiobook 1 with podcasts 0 and 2; podcasts 0-2; audiobook 2 and podcast 1 alone
    links = {
        AUDIOBOOK_AUDIOBOOK: torch.tensor([[1], [0]]),
        AUDIOBOOK_PODCAST: torch.tensor([[1, 1], [2, 0]]),
        PODCAST_PODCAST: torch.tensor([[0], [2]]),
    }
    graph = graph_from_links(links, {AUDIOBOOK: 3, PODCAST: 3})
    assert graph[AUDIOBOOK_AUDIOBOOK].indptr.tolist() == [0, 1, 2, 2]
    assert graph[AUDIOBOOK_PODCAST].indptr.tolist() == [0, 0, 2, 2]
    assert graph[AUDIOBOOK_PODCAST].indices.tolist() == [0, 2]
    assert pairs_of(graph[PODCAST_AUDIOBOOK]) == {(0, 1), (2, 1)}
    assert pairs_of(graph[PODCAST_PODCAST]) == {(0, 2), (2, 0)}


@given(random_graphs())
def test_hetero_data_and_back(graph):
    counts, lists = graph
    data = build_hetero_data(torch.ones(counts[AUDIOBOOK], 2), torch.ones(counts[PODCAST], 2), lists)
    assert data.validate()
    again = csr_from_hetero_data(data)
    assert set(again) == set(lists)
    for edge_type, csr in lists.items():
        assert torch.equal(again[edge_type].indptr, csr.indptr)
        assert torch.equal(again[edge_type].indices, csr.indices)
    # edges in another order give the same lists
    for edge_type in data.edge_types:
        data[edge_type].edge_index = data[edge_type].edge_index.flip(1)
    for edge_type, csr in csr_from_hetero_data(data).items():
        assert torch.equal(csr.indices, lists[edge_type].indices)


@given(random_graphs(), st.randoms(use_true_random=False))
def test_every_pair_is_found_exactly_if_it_is_an_edge(graph, random):
    counts, lists = graph
    for edge_type, csr in lists.items():
        rows, columns = torch.cartesian_prod(
            torch.arange(counts[edge_type[0]]), torch.arange(counts[edge_type[2]])
        ).T
        positions = find_edges(csr, rows, columns).tolist()
        for row, column, position in zip(rows.tolist(), columns.tolist(), positions, strict=True):
            assert (position >= 0) == ((row, column) in pairs_of(csr))
            if position >= 0:
                assert int(csr.indices[position]) == column
                assert int(csr.indptr[row]) <= position < int(csr.indptr[row + 1])


@given(random_graphs(), st.integers(0, 2**31))
def test_a_removed_link_is_gone_in_both_directions_and_nothing_else_is(graph, seed):
    _, lists = graph
    generator = torch.Generator().manual_seed(seed)
    links = links_of_graph(lists)
    taken = {t: x[:, torch.rand(x.shape[1], generator=generator) < 0.4] for t, x in links.items()}
    rest = without_links(lists, taken)
    for edge_type, csr in rest.items():
        gone = set()
        for link_type, pairs in taken.items():
            if link_type == edge_type:
                gone |= {(int(i), int(j)) for i, j in pairs.T}
            if reverse(link_type) == edge_type:
                gone |= {(int(j), int(i)) for i, j in pairs.T}
        assert pairs_of(csr) == pairs_of(lists[edge_type]) - gone


def test_links_hold_each_unordered_pair_once():
    graph = graph_from_links(
        {PODCAST_PODCAST: torch.tensor([[0, 2, 1, 1], [1, 0, 0, 1]])}, {AUDIOBOOK: 0, PODCAST: 3}
    )
    assert links_of_graph(graph)[PODCAST_PODCAST].tolist() == [[0, 0], [1, 2]]


def test_removing_a_link_that_is_not_there_is_an_error():
    graph = graph_from_links({PODCAST_PODCAST: torch.tensor([[0], [1]])}, {AUDIOBOOK: 0, PODCAST: 3})
    with pytest.raises(ValueError, match="2 of the links are not in the graph"):
        without_links(graph, {PODCAST_PODCAST: torch.tensor([[0], [2]])})


def test_memory_mapped_lists_work_without_a_copy(tmp_path: Path):
    np.save(tmp_path / "indptr.npy", np.array([0, 2, 3], dtype=np.int64))
    np.save(tmp_path / "indices.npy", np.array([0, 1, 1], dtype=np.int32))
    mapped = Csr(
        np.load(tmp_path / "indptr.npy", mmap_mode="r"), np.load(tmp_path / "indices.npy", mmap_mode="r")
    )
    mapped.validate(2)
    torch_lists = mapped.to_torch()
    assert torch_lists.indices.data_ptr() == mapped.indices.__array_interface__["data"][0]
    assert find_edges(torch_lists, torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1])).tolist() == [1, -1, 2]


@pytest.mark.parametrize(
    ("indptr", "indices", "found"),
    [
        ([0, 2], [1, 0], "strictly increasing"),
        ([0, 2], [1, 1], "strictly increasing"),
        ([0, 1], [3], r"indices span 3\.\.3, expected 0\.\.2"),
        ([0, 2], [1], "expected 0 to 1"),
        ([0, 2, 1, 2], [0, 1], "indptr decreases"),
    ],
)
def test_broken_lists_are_refused(indptr, indices, found):
    with pytest.raises(ValueError, match=found):
        Csr(torch.tensor(indptr), torch.tensor(indices)).validate(3)


def test_rows_that_restart_are_fine_and_empty_rows_too():
    Csr(torch.tensor([0, 0, 2, 2, 3, 3]), torch.tensor([1, 2, 0])).validate(3)


def test_a_direction_without_its_reverse_is_refused():
    csr = csr_from_pairs(torch.tensor([0]), torch.tensor([1]), 1)
    with pytest.raises(ValueError, match="without its reverse"):
        build_hetero_data(torch.ones(1, 2), torch.ones(2, 2), {AUDIOBOOK_PODCAST: csr})


def test_features_of_another_catalogue_are_refused():
    graph = graph_from_links({PODCAST_PODCAST: torch.tensor([[0], [1]])}, {AUDIOBOOK: 0, PODCAST: 3})
    with pytest.raises(ValueError, match="3 rows, expected 4"):
        build_hetero_data(torch.ones(1, 2), torch.ones(4, 2), graph)
