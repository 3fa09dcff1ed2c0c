"""The balanced multi-link neighbourhood sampler: what is drawn, how evenly, and what must never be drawn."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted_graphs import community_links, pairs_of, random_graphs

from models.edges import (
    AUDIOBOOK,
    AUDIOBOOK_AUDIOBOOK,
    AUDIOBOOK_PODCAST,
    PODCAST,
    PODCAST_PODCAST,
    csr_from_pairs,
    find_edges,
    graph_from_links,
    links_of_graph,
    reverse,
)
from models.sampler import (
    MultiLinkNeighborSampler,
    NeighborSampler,
    balanced_links,
    draw_without_replacement,
    hold_out_links,
    sample_neighbors,
    seeded_generator,
)

CHI_SQUARE_99_9 = {5: 20.5, 9: 27.9, 19: 43.8}
"""Values that chi-square with so many degrees of freedom exceeds one time in a thousand."""


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.fixture(scope="module")
def communities():
    counts = {AUDIOBOOK: 30, PODCAST: 30}
    return counts, graph_from_links(community_links(15, 0.3, seeded_generator(5)), counts)


# -- links ---------------------------------------------------------------------------------------------


def links_of_sizes(*sizes: int):
    types = (AUDIOBOOK_AUDIOBOOK, AUDIOBOOK_PODCAST, PODCAST_PODCAST)
    return {t: torch.arange(n).expand(2, n) for t, n in zip(types, sizes, strict=True)}


@pytest.mark.parametrize(
    ("sizes", "cap", "drawn"),
    [((3, 10, 20), None, (3, 3, 3)), ((0, 10, 20), None, (0, 10, 10)), ((30, 10, 20), 4, (4, 4, 4))],
)
def test_every_type_gives_as_many_links_as_the_rarest(sizes, cap, drawn):
    result = balanced_links(links_of_sizes(*sizes), seeded_generator(0), cap)
    assert tuple(x.shape[1] for x in result.values()) == drawn
    for links in result.values():
        assert len(set(links[0].tolist())) == links.shape[1], "a link was drawn twice"


def test_unbalanced_keeps_every_link_and_its_cap_draws_from_all_together():
    links = links_of_sizes(10, 100, 1_000)
    assert {t: x.shape[1] for t, x in balanced_links(links, seeded_generator(0), balanced=False).items()} == {
        t: x.shape[1] for t, x in links.items()
    }
    capped = balanced_links(links, seeded_generator(0), cap=100, balanced=False)
    # 300 of 1,110 links in proportion: about 2.7, 27 and 270 of the types
    assert sum(x.shape[1] for x in capped.values()) == 300
    assert capped[PODCAST_PODCAST].shape[1] > 240


@pytest.mark.parametrize("size", [2, 5, 20])  # 2 of 20: by rejection; 5 and more: by permutation
def test_each_link_is_drawn_equally_often_over_the_epochs(size):
    seen = torch.zeros(20)
    for epoch in range(1_500):
        seen[draw_without_replacement(20, size, seeded_generator(7, epoch))] += 1
    assert seen.sum() == 1_500 * size
    assert chi_square(seen) < CHI_SQUARE_99_9[19]


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 2**31))
def test_a_draw_has_the_size_asked_for_and_no_repeats(population, size, seed):
    if size > population:
        with pytest.raises(ValueError, match="cannot draw"):
            draw_without_replacement(population, size, seeded_generator(seed))
        return
    drawn = draw_without_replacement(population, size, seeded_generator(seed)).tolist()
    assert len(drawn) == len(set(drawn)) == size
    assert all(0 <= x < population for x in drawn)


def test_each_epoch_is_a_fresh_draw(communities):
    counts, graph = communities
    sampler = MultiLinkNeighborSampler(graph, counts, links_per_type=10)
    first = sampler._ends.clone()
    sampler.start_epoch(1)
    assert not torch.equal(first, sampler._ends)
    sampler.start_epoch(0)
    assert torch.equal(first, sampler._ends)


# -- neighbours ----------------------------------------------------------------------------------------


@given(random_graphs(), st.integers(1, 9), st.integers(0, 2**31))
def test_a_sample_is_distinct_neighbours_and_all_of_them_where_they_fit(graph, fanout, seed):
    counts, lists = graph
    for edge_type, csr in lists.items():
        rows = torch.arange(counts[edge_type[0]])
        width = counts[edge_type[2]]
        slots = sample_neighbors(csr, rows, fanout, width, seeded_generator(seed))
        for row in rows.tolist():
            true = {j for i, j in pairs_of(csr) if i == row}
            found = [j for j in slots[:, row].tolist() if j != width]
            assert len(found) == len(set(found)) == min(fanout, len(true))
            assert set(found) <= true


@pytest.mark.parametrize("fanout", [1, 3, 9])
def test_neighbours_are_drawn_uniformly(fanout):
    # One row with ten neighbours, seen 2,000 times at once.
    csr = csr_from_pairs(torch.zeros(10, dtype=torch.int64), torch.arange(10), 1)
    slots = sample_neighbors(csr, torch.zeros(2_000, dtype=torch.int64), fanout, 10, seeded_generator(3))
    counts = torch.bincount(slots.reshape(-1), minlength=11)
    assert counts[10] == 0 and counts.sum() == 2_000 * fanout
    assert chi_square(counts[:10].double()) < CHI_SQUARE_99_9[9]


def test_pairs_of_neighbours_are_drawn_uniformly():
    # Two of four neighbours: 6 sets, each 1/6 of the time. A biased Floyd step would favour some.
    csr = csr_from_pairs(torch.zeros(4, dtype=torch.int64), torch.arange(4), 1)
    slots = sample_neighbors(csr, torch.zeros(6_000, dtype=torch.int64), 2, 4, seeded_generator(11))
    low, high = slots.amin(0), slots.amax(0)
    counts = torch.bincount(low * 4 + high, minlength=16).double()
    assert chi_square(counts[counts > 0]) < CHI_SQUARE_99_9[5] and (counts > 0).sum() == 6


def test_rows_keep_their_neighbours_when_there_are_more_rows_than_fit_at_once():
    size = 40_000
    csr = csr_from_pairs(torch.arange(size), torch.arange(size).flip(0), size)
    slots = sample_neighbors(csr, torch.arange(size), 5, size, seeded_generator(0))
    assert torch.equal(slots, torch.arange(size).flip(0).unsqueeze(0))


@given(random_graphs(), st.integers(1, 3), st.integers(0, 2**31))
def test_blocks_lead_back_to_true_neighbours_and_hold_each_item_once(graph, hops, seed):
    """Features are the item's own number, so that what a layer gathers reveals where it came from."""
    counts, lists = graph
    sampler = NeighborSampler(lists, counts, [2] * hops)
    seeds = {t: torch.arange(n) for t, n in counts.items()}
    blocks = sampler.blocks(seeds, seeded_generator(seed))
    below = blocks.input_nodes
    for hop in blocks.hops:
        assert hop.below == {t: len(nodes) for t, nodes in below.items()}
        layer = {t: below[t][rows] for t, rows in hop.self_rows.items()}
        for (neighbor, relation, centre), slots in hop.neighbors.items():
            true = pairs_of(lists[centre, relation, neighbor])
            for column in range(slots.shape[1]):
                for row in slots[:, column].tolist():
                    if row != hop.below[neighbor]:
                        assert (int(layer[centre][column]), int(below[neighbor][row])) in true
        for nodes in below.values():
            assert bool((nodes[1:] > nodes[:-1]).all()), "an item is held twice"
        below = layer
    assert all(torch.equal(below[t], seeds[t]) for t in counts)


# -- batches -------------------------------------------------------------------------------------------


def batches_of(sampler):
    while (batch := sampler.next_batch()) is not None:
        yield batch


def test_an_epoch_traverses_its_links_once_in_mixed_batches(communities):
    counts, graph = communities
    sampler = MultiLinkNeighborSampler(graph, counts, batch_size=16, num_negatives=2)
    links = links_of_graph(graph)
    smallest = min(x.shape[1] for x in links.values())
    seen = {t: [] for t in sampler.link_types}
    mixed = 0
    for batch in batches_of(sampler):
        mixed += len(set(batch.link_type.tolist())) > 1
        anchors, positives = batch.nodes[batch.anchor], batch.nodes[batch.positive]
        for a, p, code in zip(anchors.tolist(), positives.tolist(), batch.link_type.tolist(), strict=True):
            seen[sampler.link_types[code]].append((min(a, p), max(a, p)))
    assert mixed >= len(sampler) - 1
    for link_type, pairs in seen.items():
        assert len(pairs) == len(set(pairs)) == smallest
        shift = torch.tensor([[sampler.offsets[link_type[0]]], [sampler.offsets[link_type[2]]]])
        assert set(pairs) <= {tuple(x) for x in (links[link_type] + shift).T.tolist()}


def test_either_end_is_the_anchor_half_of_the_time(communities):
    counts, graph = communities
    sampler = MultiLinkNeighborSampler(graph, counts, batch_size=64, num_negatives=1)
    audiobook_first = total = 0
    for epoch in range(20):
        sampler.start_epoch(epoch)
        for batch in batches_of(sampler):
            cross = batch.link_type == sampler.link_types.index(AUDIOBOOK_PODCAST)
            audiobook_first += int((batch.nodes[batch.anchor][cross] < 30).sum())
            total += int(cross.sum())
    # The standard deviation of a fair share is 1 / (2 sqrt(total)); five of them.
    assert abs(audiobook_first / total - 0.5) < 2.5 / total**0.5


@pytest.mark.parametrize("negative_type", ["positive", "any"])
@pytest.mark.parametrize("pool", [None, 10])
def test_no_negative_is_a_neighbour_the_anchor_or_the_positive(communities, negative_type, pool):
    counts, full = communities
    graph, _ = hold_out_links(full, 0.2, seeded_generator(1))
    sampler = MultiLinkNeighborSampler(
        graph,
        counts,
        known_graph=full,
        batch_size=32,
        num_negatives=8,
        negative_type=negative_type,
        negative_pool=pool,
    )
    neighbours = set()
    for (source, _, target), csr in full.items():
        shift = torch.tensor([sampler.offsets[source], sampler.offsets[target]])
        neighbours |= {tuple(pair) for pair in (csr.edge_index().T + shift).tolist()}
    valid = checked = 0
    kinds = set()
    for batch in batches_of(sampler):
        nodes = batch.nodes
        checked += batch.negative_mask.numel()
        valid += int(batch.negative_mask.sum())
        for row, slot in batch.negative_mask.nonzero().tolist():
            anchor, negative = int(nodes[batch.anchor[row]]), int(nodes[batch.negatives[row, slot]])
            positive = int(nodes[batch.positive[row]])
            assert (anchor, negative) not in neighbours
            assert negative not in (anchor, positive)
            kinds.add((positive < 30, negative < 30))
        if pool is not None:
            per_type = [
                (nodes[batch.negatives].unique() < 30).sum(),
                (nodes[batch.negatives].unique() >= 30).sum(),
            ]
            assert max(map(int, per_type)) <= pool
    assert valid > 0.99 * checked
    assert len(kinds) == (2 if negative_type == "positive" else 4)


def test_the_same_link_meets_new_negatives_in_another_epoch():
    counts = {AUDIOBOOK: 1, PODCAST: 50}
    graph = graph_from_links({PODCAST_PODCAST: torch.tensor([[0], [1]])}, counts)
    sampler = MultiLinkNeighborSampler(graph, counts, num_negatives=5)
    drawn = []
    for epoch in range(2):
        sampler.start_epoch(epoch)
        batch = sampler.next_batch()
        drawn.append(set(batch.nodes[batch.negatives].view(-1).tolist()))
    assert drawn[0] != drawn[1]


def test_an_anchor_that_knows_everyone_has_its_negatives_masked():
    # Podcasts 0-2 form a triangle and are the whole catalogue of their type.
    counts = {AUDIOBOOK: 1, PODCAST: 3}
    graph = graph_from_links({PODCAST_PODCAST: torch.tensor([[0, 0, 1], [1, 2, 2]])}, counts)
    batch = MultiLinkNeighborSampler(graph, counts, num_negatives=4).next_batch()
    assert batch is not None and not bool(batch.negative_mask.any())


def test_negatives_cover_the_catalogue_evenly():
    # One link 0-1 among 22 podcasts: 20 candidates are allowed.
    counts = {AUDIOBOOK: 1, PODCAST: 22}
    graph = graph_from_links({PODCAST_PODCAST: torch.tensor([[0], [1]])}, counts)
    sampler = MultiLinkNeighborSampler(graph, counts, num_negatives=4_000)
    batch = sampler.next_batch()
    assert batch is not None and bool(batch.negative_mask.all())
    drawn = batch.nodes[batch.negatives].view(-1) - sampler.offsets[PODCAST] - 2
    assert chi_square(torch.bincount(drawn, minlength=20).double()) < CHI_SQUARE_99_9[19]


def messages_of(sampler, batch):
    """Every (centre, neighbour) pair, in global numbers, along which the batch's blocks carry a message."""
    below, pairs = batch.blocks.input_nodes, set()
    for hop in batch.blocks.hops:
        layer = {t: below[t][rows] for t, rows in hop.self_rows.items()}
        for (neighbor, relation, centre), slots in hop.neighbors.items():
            mask = hop.mask((neighbor, relation, centre))
            centres = layer[centre].expand_as(slots)[mask] + sampler.offsets[centre]
            neighbours = below[neighbor][slots[mask]] + sampler.offsets[neighbor]
            pairs |= set(zip(centres.tolist(), neighbours.tolist(), strict=True))
        below = layer
    return pairs


@pytest.mark.parametrize("exclude", [True, False])
def test_supervised_links_carry_no_message_at_any_hop(communities, exclude):
    counts, graph = communities
    sampler = MultiLinkNeighborSampler(
        graph, counts, fanouts=(50, 50), batch_size=20, exclude_supervised=exclude
    )
    for batch in batches_of(sampler):
        anchor, positive = batch.nodes[batch.anchor].tolist(), batch.nodes[batch.positive].tolist()
        supervised = {*zip(anchor, positive, strict=True), *zip(positive, anchor, strict=True)}
        carried = messages_of(sampler, batch) & supervised
        # Without the guard every one of them would carry messages: the check can fail.
        assert carried == (set() if exclude else supervised)


def test_held_out_links_carry_no_message(communities):
    _, full = communities
    graph, held_out = hold_out_links(full, 0.1, seeded_generator(2))
    for link_type, links in held_out.items():
        assert links.shape[1] == int(0.1 * links_of_graph(full)[link_type].shape[1]) > 0
        rows, columns = links.long()
        assert bool((find_edges(graph[link_type], rows, columns) < 0).all())
        assert bool((find_edges(graph[reverse(link_type)], columns, rows) < 0).all())


def test_a_batch_depends_on_its_place_only(communities):
    counts, graph = communities
    first, second = (MultiLinkNeighborSampler(graph, counts, batch_size=16, seed=9) for _ in range(2))
    for _ in range(3):
        first.next_batch()
    first.start_epoch(1)
    first.next_batch()
    second.load_state(first.state())
    ours, theirs = first.next_batch(), second.next_batch()
    assert first.state() == second.state() == {"seed": 9, "epoch": 1, "position": 2}
    assert torch.equal(ours.nodes, theirs.nodes) and torch.equal(ours.negatives, theirs.negatives)
    for a, b in zip(ours.blocks.hops, theirs.blocks.hops, strict=True):
        assert all(torch.equal(a.neighbors[t], b.neighbors[t]) for t in a.neighbors)
    with pytest.raises(ValueError, match="seed is 9"):
        second.load_state({"seed": 1, "epoch": 0, "position": 0})


def test_another_seed_is_another_course(communities):
    counts, graph = communities
    a, b = (MultiLinkNeighborSampler(graph, counts, seed=seed).next_batch() for seed in (0, 1))
    assert a.nodes.tolist() != b.nodes.tolist() or a.negatives.tolist() != b.negatives.tolist()


def test_a_graph_without_links_is_refused():
    empty = graph_from_links({PODCAST_PODCAST: torch.empty(2, 0)}, {AUDIOBOOK: 1, PODCAST: 2})
    with pytest.raises(ValueError, match="no links to learn from"):
        MultiLinkNeighborSampler(empty, {AUDIOBOOK: 1, PODCAST: 2})


def test_fanouts_must_be_positive(communities):
    counts, graph = communities
    with pytest.raises(ValueError, match=r"fanouts is \(10, 0\)"):
        MultiLinkNeighborSampler(graph, counts, fanouts=(10, 0))
