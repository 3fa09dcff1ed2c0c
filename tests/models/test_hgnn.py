"""Equations 2 and 3: by hand, against PyG's own message passing, and over whole graphs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_graphs import community_links, random_graphs
from torch import nn
from torch_geometric.nn import HeteroConv, MessagePassing

from models.edges import (
    AUDIOBOOK,
    AUDIOBOOK_AUDIOBOOK,
    AUDIOBOOK_PODCAST,
    EDGE_TYPES,
    PODCAST,
    PODCAST_AUDIOBOOK,
    PODCAST_PODCAST,
    build_hetero_data,
    graph_from_links,
)
from models.functional import l2_normalize
from models.hgnn import HeteroGraphSAGE, _pool
from models.sampler import NeighborSampler, seeded_generator


def key(edge_type):
    return "__".join(edge_type)


def forward_all(model, features, lists, fanout=50):
    """The sampled path over every item, fan-out large enough for all neighbours."""
    counts = {t: len(x) for t, x in features.items()}
    sampler = NeighborSampler(lists, counts, [fanout] * len(model.layers))
    seeds = {t: torch.arange(n) for t, n in counts.items()}
    blocks = sampler.blocks(seeds, seeded_generator(0))
    return model({t: features[t][nodes] for t, nodes in blocks.input_nodes.items()}, blocks)


# -- by hand -------------------------------------------------------------------------------------------

# Audiobooks a0, a1, a2 and podcasts p0, p1, p2, two features each:
#   a0 = (1, 0)  a1 = (0, 1)  a2 = (1, 1)  p0 = (2, 0)  p1 = (0, 2)  p2 = (1, 3)
# Links: a0-a1, a0-p0, a0-p1, p0-p1, and a2, p2 without any.
SIX_FEATURES = {
    AUDIOBOOK: torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
    PODCAST: torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 3.0]]),
}
SIX_LINKS = {
    AUDIOBOOK_AUDIOBOOK: torch.tensor([[0], [1]]),
    AUDIOBOOK_PODCAST: torch.tensor([[0, 0], [0, 1]]),
    PODCAST_PODCAST: torch.tensor([[0], [1]]),
}
SIX_COUNTS = {AUDIOBOOK: 3, PODCAST: 3}


def six_node_model(num_layers, final_activation=False, aggregator="max"):
    """All layers alike: W_c = identity; W_r = [[1, -1], [0, 1/2]] and b_r = (0, 1/2) for each relation."""
    model = HeteroGraphSAGE(2, 2, 2, num_layers, final_activation=final_activation, aggregator=aggregator)
    with torch.no_grad():
        for layer in model.layers:
            for update in layer.update.values():
                update.weight.copy_(torch.eye(2))
            for message in layer.message.values():
                message.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.5]]))
                message.bias.copy_(torch.tensor([0.0, 0.5]))
    return model


# One layer. sigma(W_r h + b) = (max(0, h1 - h2), h2/2 + 1/2):
#   a0 (1, 0) -> (1, 1/2)   a1 (0, 1) -> (0, 1)   p0 (2, 0) -> (2, 1/2)   p1 (0, 2) -> (0, 3/2)
# a0: (1, 0) + a-a: (0, 1) + from podcasts: max((2, 1/2), (0, 3/2)) = (2, 3/2)  = (3, 5/2)
# a1: (0, 1) + a-a: (1, 1/2)                                                    = (1, 3/2)
# a2: (1, 1), alone: 0 from every relation                                      = (1, 1)
# p0: (2, 0) + p-p: (0, 3/2) + from a0: (1, 1/2)                                = (3, 2)
# p1: (0, 2) + p-p: (2, 1/2) + from a0: (1, 1/2)                                = (3, 3)
# p2: (1, 3), alone                                                             = (1, 3)
ONE_LAYER = {
    AUDIOBOOK: torch.tensor([[3.0, 5 / 2], [1, 3 / 2], [1, 1]]),
    PODCAST: torch.tensor([[3.0, 2], [3, 3], [1, 3]]),
}
# Second layer, all of the above being positive so that the sigma between changes nothing:
#   a0 (3, 5/2) -> (1/2, 7/4)   a1 (1, 3/2) -> (0, 5/4)   p0 (3, 2) -> (1, 3/2)   p1 (3, 3) -> (0, 2)
# a0: (3, 5/2) + (0, 5/4) + max((1, 3/2), (0, 2)) = (1, 2)      = (4, 23/4)
# a1: (1, 3/2) + (1/2, 7/4)                                     = (3/2, 13/4)
# p0: (3, 2) + p-p (0, 2) + from a0 (1/2, 7/4)                  = (7/2, 23/4)
# p1: (3, 3) + p-p (1, 3/2) + from a0 (1/2, 7/4)                = (9/2, 25/4)
TWO_LAYERS = {
    AUDIOBOOK: torch.tensor([[4, 23 / 4], [3 / 2, 13 / 4], [1, 1]]),
    PODCAST: torch.tensor([[7 / 2, 23 / 4], [9 / 2, 25 / 4], [1, 3]]),
}


@pytest.mark.parametrize(("num_layers", "expected"), [(1, ONE_LAYER), (2, TWO_LAYERS)])
def test_six_items_by_hand(num_layers, expected):
    lists = graph_from_links(SIX_LINKS, SIX_COUNTS)
    model = six_node_model(num_layers)
    everywhere = model.embed_all(build_hetero_data(*SIX_FEATURES.values(), lists))
    sampled = forward_all(model, SIX_FEATURES, lists)
    for node_type, hidden in expected.items():
        unit = hidden / hidden.norm(dim=1, keepdim=True)
        torch.testing.assert_close(everywhere[node_type], unit)
        torch.testing.assert_close(sampled[node_type], unit)


@pytest.mark.parametrize(
    ("aggregator", "a0"),
    # podcasts' messages to a0 are (2, 1/2) and (0, 3/2): mean (1, 1), sum (2, 2)
    [("mean", [1 + 0 + 1, 0 + 1 + 1]), ("sum", [1 + 0 + 2, 0 + 1 + 2])],
)
def test_other_aggregators_by_hand(aggregator, a0):
    lists = graph_from_links(SIX_LINKS, SIX_COUNTS)
    model = six_node_model(1, aggregator=aggregator)
    expected = torch.tensor(a0, dtype=torch.float32) / math.hypot(*a0)
    torch.testing.assert_close(model.embed_graph(SIX_FEATURES, lists)[AUDIOBOOK][0], expected)
    torch.testing.assert_close(forward_all(model, SIX_FEATURES, lists)[AUDIOBOOK][0], expected)


def test_the_last_activation_removes_negative_coordinates_and_is_off_by_default():
    lists = graph_from_links({}, SIX_COUNTS)
    features = {AUDIOBOOK: torch.tensor([[3.0, -4.0]] * 3), PODCAST: torch.zeros(3, 2)}
    assert six_node_model(1).embed_graph(features, lists)[AUDIOBOOK][0].tolist() == pytest.approx(
        [3 / 5, -4 / 5]
    )
    assert six_node_model(1, True).embed_graph(features, lists)[AUDIOBOOK][0].tolist() == [1, 0]


# -- against PyG ---------------------------------------------------------------------------------------


class PyGRelation(MessagePassing):
    """Equation 2 in PyG's words: max over neighbours of relu(lin(x_j)), 0 where there are none."""

    def __init__(self, linear: nn.Linear, aggregator: str) -> None:
        super().__init__(aggr=aggregator)
        self.linear = linear

    def forward(self, x, edge_index):
        source, target = x if isinstance(x, tuple) else (x, x)
        return self.propagate(edge_index, x=self.linear(source).relu(), size=(len(source), len(target)))


def pyg_reference(model, data, aggregator):
    hidden = data.x_dict
    for k, layer in enumerate(model.layers):
        convolution = HeteroConv(
            {t: PyGRelation(layer.message[key(t)], aggregator) for t in data.edge_types}, aggr="sum"
        )
        messages = convolution(hidden, data.edge_index_dict)
        hidden = {t: layer.update[t](h) + messages[t] for t, h in hidden.items()}
        if model.final_activation or k < len(model.layers) - 1:
            hidden = {t: h.relu() for t, h in hidden.items()}
    return {t: nn.functional.normalize(h, dim=1) for t, h in hidden.items()}


@settings(max_examples=60)
@given(
    random_graphs(),
    st.sampled_from(["max", "mean", "sum"]),
    st.booleans(),
    st.integers(1, 3),
    st.integers(0, 2**31),
)
def test_sampled_whole_and_pyg_agree(graph, aggregator, final_activation, num_layers, seed):
    counts, lists = graph
    generator = torch.Generator().manual_seed(seed)
    features = {t: torch.randn(n, 5, generator=generator) for t, n in counts.items()}
    model = HeteroGraphSAGE(
        5, 6, 4, num_layers, aggregator=aggregator, final_activation=final_activation, seed=seed
    )
    with torch.no_grad():
        for layer in model.layers:  # zero biases would hide a bias that is applied to empty neighbourhoods
            for message in layer.message.values():
                message.bias.normal_(generator=generator)
    data = build_hetero_data(features[AUDIOBOOK], features[PODCAST], lists)
    whole = model.embed_all(data, chunk_size=3)
    sampled = forward_all(model, features, lists)
    capped = model.embed_graph(features, lists, chunk_size=2, max_neighbors=50)
    reference = pyg_reference(model, data, aggregator)
    for node_type in counts:
        torch.testing.assert_close(whole[node_type], reference[node_type], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sampled[node_type], reference[node_type], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(capped[node_type], reference[node_type], rtol=1e-4, atol=1e-5)


@given(st.integers(0, 2**31), st.integers(1, 6), st.sampled_from(["max", "mean", "sum"]))
def test_the_gradient_of_pooling_equals_autograd_of_the_plain_gather(seed, fanout, aggregator):
    generator = torch.Generator().manual_seed(seed)
    # Few distinct values, so that maxima tie: the first slot has the gradient.
    values = torch.randint(1, 4, (5, 3), generator=generator).double()
    slots = torch.randint(0, 5, (fanout, 4), generator=generator)
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    ours, plain = values.clone().requires_grad_(), values.clone().requires_grad_()
    (_pool(ours, slots, aggregator) * weight).sum().backward()
    gathered = plain[slots]
    first = gathered.detach().argmax(dim=0, keepdim=True)  # of equal ones, the first
    pooled = gathered.gather(0, first)[0] if aggregator == "max" else getattr(gathered, aggregator)(dim=0)
    (pooled * weight).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_hubs_and_many_rows_take_the_same_value_as_the_plain_maximum():
    """300 audiobooks, one of which knows all 500 podcasts: walk by slots and finish by rows both run."""
    generator = seeded_generator(4)
    counts = {AUDIOBOOK: 300, PODCAST: 500}
    hub = torch.stack([torch.zeros(500, dtype=torch.int64), torch.arange(500)])
    others = torch.stack(
        [
            torch.randint(0, 300, (3_000,), generator=generator),
            torch.randint(0, 500, (3_000,), generator=generator),
        ]
    )
    lists = graph_from_links({AUDIOBOOK_PODCAST: torch.cat([hub, others], dim=1)}, counts)
    features = {t: torch.randn(n, 8, generator=generator) for t, n in counts.items()}
    for aggregator in ("max", "mean", "sum"):
        model = HeteroGraphSAGE(8, 8, 8, 2, aggregator=aggregator)
        data = build_hetero_data(features[AUDIOBOOK], features[PODCAST], lists)
        reference = pyg_reference(model, data, aggregator)
        for chunk in (100, 16_384):
            whole = model.embed_all(data, chunk_size=chunk)
            for node_type in counts:
                torch.testing.assert_close(whole[node_type], reference[node_type], rtol=1e-4, atol=1e-5)


# -- properties ----------------------------------------------------------------------------------------


@given(random_graphs(), st.integers(0, 2**31))
def test_renumbering_the_items_renumbers_the_embeddings(graph, seed):
    counts, lists = graph
    generator = torch.Generator().manual_seed(seed)
    features = {t: torch.randn(n, 4, generator=generator) for t, n in counts.items()}
    model = HeteroGraphSAGE(4, 4, 4)
    order = {t: torch.randperm(n, generator=generator) for t, n in counts.items()}
    place = {t: torch.argsort(o) for t, o in order.items()}
    links = {}
    for edge_type in (AUDIOBOOK_AUDIOBOOK, AUDIOBOOK_PODCAST, PODCAST_PODCAST):
        rows, columns = lists[edge_type].edge_index()
        links[edge_type] = torch.stack([place[edge_type[0]][rows], place[edge_type[2]][columns]])
    renumbered = model.embed_graph(
        {t: features[t][order[t]] for t in counts}, graph_from_links(links, counts)
    )
    original = model.embed_graph(features, lists)
    for t in counts:
        torch.testing.assert_close(renumbered[t], original[t][order[t]])


def test_a_cold_item_is_embedded_from_its_features_alone():
    lists = graph_from_links(SIX_LINKS, SIX_COUNTS)
    model = HeteroGraphSAGE(2, 8, 4, seed=3)
    alone = model.embed_graph(SIX_FEATURES, graph_from_links({}, SIX_COUNTS))
    among = model.embed_graph(SIX_FEATURES, lists)
    torch.testing.assert_close(among[AUDIOBOOK][2], alone[AUDIOBOOK][2])
    assert not torch.allclose(among[AUDIOBOOK][0], alone[AUDIOBOOK][0])
    assert among[AUDIOBOOK][2].norm() == pytest.approx(1)


def test_an_item_without_features_and_neighbours_is_zero_and_harms_no_gradient():
    features = {AUDIOBOOK: torch.zeros(2, 3), PODCAST: torch.zeros(1, 3)}
    lists = graph_from_links({AUDIOBOOK_AUDIOBOOK: torch.tensor([[0], [1]])}, {AUDIOBOOK: 2, PODCAST: 1})
    model = HeteroGraphSAGE(3, 4, 4)
    z = forward_all(model, features, lists)
    assert z[PODCAST].tolist() == [[0.0] * 4]
    z[PODCAST].sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_normalising_zero_gives_zero_with_no_gradient():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    unit = l2_normalize(x)
    assert unit.tolist() == [[0, 0], pytest.approx([3 / 5, 4 / 5])]
    unit.sum().backward()
    # d(x1 + x2)/|x| = 1/5 - x_i (3 + 4)/125: (4/125, -3/125) for x = (3, 4)
    assert x.grad.tolist() == [[0, 0], pytest.approx([4 / 125, -3 / 125], abs=1e-6)]


def test_every_weight_gets_a_gradient():
    counts = {AUDIOBOOK: 20, PODCAST: 20}
    lists = graph_from_links(community_links(10, 0.5, seeded_generator(1)), counts)
    features = {t: torch.randn(n, 6, generator=seeded_generator(2)) for t, n in counts.items()}
    model = HeteroGraphSAGE(6, 8, 8)
    z = forward_all(model, features, lists)
    (z[AUDIOBOOK] @ z[PODCAST].T).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name


def test_the_same_seed_gives_the_same_weights_and_fewer_relations_fewer_of_them():
    one, same, other = (HeteroGraphSAGE(4, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)
    ablated = HeteroGraphSAGE(4, edge_types=[t for t in EDGE_TYPES if t != PODCAST_PODCAST])
    assert {k for k in one if key(PODCAST_PODCAST) in k} == set(one) - set(ablated.state_dict())
    assert any(key(PODCAST_AUDIOBOOK) in k for k in ablated.state_dict())


def test_biases_stand_where_the_equations_print_them():
    names = [name for name, _ in HeteroGraphSAGE(4).named_parameters()]
    assert any(".message." in name and name.endswith("bias") for name in names)
    assert not any(".update." in name and name.endswith("bias") for name in names)


def test_dropout_is_silent_outside_training():
    lists = graph_from_links(SIX_LINKS, SIX_COUNTS)
    model = HeteroGraphSAGE(2, 8, 8, dropout=0.5)
    model.eval()
    torch.testing.assert_close(
        forward_all(model, SIX_FEATURES, lists)[AUDIOBOOK], model.embed_graph(SIX_FEATURES, lists)[AUDIOBOOK]
    )


def test_layers_and_hops_must_match():
    lists = graph_from_links(SIX_LINKS, SIX_COUNTS)
    sampler = NeighborSampler(lists, SIX_COUNTS, [5])
    blocks = sampler.blocks({t: torch.arange(3) for t in SIX_COUNTS}, seeded_generator(0))
    with pytest.raises(ValueError, match="1 hops for 2 layers"):
        HeteroGraphSAGE(2, 2, 2, 2)(SIX_FEATURES, blocks)


@pytest.mark.parametrize(
    ("wrong", "found"), [({"num_layers": 0}, "num_layers is 0"), ({"aggregator": "min"}, "'min'")]
)
def test_wrong_settings_are_refused(wrong, found):
    with pytest.raises(ValueError, match=found):
        HeteroGraphSAGE(4, **wrong)
