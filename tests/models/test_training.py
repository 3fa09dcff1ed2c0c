"""The graph network's training: it learns what was planted, and a stopped run goes on to the bit."""

import json
from dataclasses import replace

import pytest
import torch
from planted_graphs import planted_communities

from models.edges import (
    AUDIOBOOK,
    AUDIOBOOK_AUDIOBOOK,
    PODCAST,
    find_edges,
    graph_from_links,
    links_of_graph,
)
from models.hgnn import HeteroGraphSAGE
from models.training import HGNNTrainer, TrainingConfig

SIZE = 15
COUNTS = {AUDIOBOOK: 2 * SIZE, PODCAST: 2 * SIZE}
COMMUNITY = torch.arange(2 * SIZE) >= SIZE
CONFIG = TrainingConfig(
    batch_size=32, max_epochs=8, patience=8, num_negatives=3, fanouts=(4, 3), validation_negatives=20, seed=1
)


@pytest.fixture(scope="module")
def planted():
    return planted_communities(SIZE, 0.4, 16)


def trainer_of(planted, config=CONFIG, **changes):
    features, graph = planted
    model = HeteroGraphSAGE(16, 16, 16, **{"seed": 2, **changes})
    return HGNNTrainer(model, features, graph, config, device="cpu")


def test_two_planted_communities_are_recovered(planted):
    features, _ = planted
    trainer = trainer_of(planted, replace(CONFIG, max_epochs=30, learning_rate=0.01))
    before = trainer.validate()["mrr"]
    history = trainer.fit()
    assert history[-1]["loss"] < history[0]["loss"] / 2
    # A held-out partner ranks 1 in (1 + 20 negatives), most of them from the other community.
    assert trainer.best_metric > max(before, 0.3)
    z = torch.cat(list(trainer.model.embed_graph(features, trainer.graph).values()))
    community = torch.cat([COMMUNITY, COMMUNITY])
    cosine = z @ z.T
    same = community.unsqueeze(0) == community.unsqueeze(1)
    off_diagonal = ~torch.eye(len(z), dtype=torch.bool)
    assert float(cosine[same & off_diagonal].mean()) > float(cosine[~same].mean()) + 0.3
    offset = {AUDIOBOOK: 0, PODCAST: 2 * SIZE}
    wins = []
    for (source, _, target), links in trainer.held_out.items():
        rows, columns = links.long()
        held = cosine[rows + offset[source], columns + offset[target]]
        for row, score in zip(rows.tolist(), held.tolist(), strict=True):
            across = cosine[
                row + offset[source], offset[target] + (COMMUNITY[row] != COMMUNITY).nonzero().view(-1)
            ]
            wins.append(float((score > across).float().mean()))
    assert sum(wins) / len(wins) > 0.9


def test_every_weight_gets_a_gradient_and_moves(planted):
    trainer = trainer_of(planted)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.run_epoch()
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name
        assert not torch.equal(parameter, before[name]), name


class Killed(Exception):
    """What a kill at a batch looks like to the loop."""


def states_equal(ours, theirs):
    (tensors, record), (other_tensors, other_record) = ours, theirs
    assert json.dumps(record, sort_keys=True) == json.dumps(other_record, sort_keys=True)
    assert tensors.keys() == other_tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(value, other_tensors[name]), name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("epoch", "batch"), [(0, 1), (1, 3), (2, 5)])
def test_a_killed_run_goes_on_to_the_bit(planted, epoch, batch, dropout):
    config = replace(CONFIG, max_epochs=4)
    undisturbed = trainer_of(planted, config, dropout=dropout)
    undisturbed.fit()

    first = trainer_of(planted, config, dropout=dropout)
    stored = []

    def kill(progress):
        if (progress["epoch"], progress["batch"]) == (epoch, batch):
            tensors, record = first.state_dict()
            stored.append((tensors, json.loads(json.dumps(record))))
            raise Killed

    with pytest.raises(Killed):
        first.fit(kill)
    # Another process: other weights to begin with, torch's own generator elsewhere.
    torch.manual_seed(999)
    second = trainer_of(planted, config, dropout=dropout, seed=77)
    second.load_state_dict(*stored[0])
    second.fit()
    states_equal(undisturbed.state_dict(), second.state_dict())


def test_a_stored_state_does_not_change_with_further_training(planted):
    trainer = trainer_of(planted)
    trainer.run_epoch()
    tensors, record = trainer.state_dict()
    copy = {name: value.clone() for name, value in tensors.items()}
    text = json.dumps(record)
    trainer.run_epoch()
    assert all(torch.equal(copy[name], value) for name, value in tensors.items())
    assert json.dumps(record) == text


def test_the_same_seed_gives_the_same_training_and_another_another(planted):
    one, same = trainer_of(planted), trainer_of(planted)
    other = trainer_of(planted, replace(CONFIG, seed=2))
    lines = [trainer.run_epoch() for trainer in (one, same, other)]
    assert lines[0] == lines[1] != lines[2]


def test_the_best_epoch_is_kept_and_patience_ends_the_training(planted, monkeypatch):
    trainer = trainer_of(planted, replace(CONFIG, max_epochs=50, patience=2))
    scripted = iter([0.2, 0.5, 0.5, 0.4, 0.9])
    weights = []

    def validate():
        weights.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
        return {"mrr": next(scripted), "mrr_by_type": {}, "validation_loss": 0.0}

    monkeypatch.setattr(trainer, "validate", validate)
    history = trainer.fit()
    # 0.5 in epoch 1 is the best; an equal value is no gain, so epochs 2 and 3 use the patience up.
    assert [line["best"] for line in history] == [True, True, False, False]
    assert (trainer.best_epoch, trainer.best_metric) == (1, 0.5)
    assert all(torch.equal(v, weights[1][k]) for k, v in trainer.model.state_dict().items())
    with pytest.raises(RuntimeError, match="finished after 4 epochs"):
        trainer.run_epoch()


def test_held_out_links_are_a_tenth_and_no_message_or_supervision(planted):
    _, graph = planted
    trainer = trainer_of(planted)
    for link_type, links in links_of_graph(graph).items():
        held = trainer.held_out[link_type].long()
        assert held.shape[1] == links.shape[1] // 10 > 0
        assert bool((find_edges(trainer.graph[link_type], *held) < 0).all())
        remaining = {tuple(x) for x in trainer.sampler.links[link_type].T.tolist()}
        assert not remaining & {tuple(x) for x in held.T.tolist()}


def test_validation_negatives_are_fixed_and_no_neighbours_even_held_out_ones(planted):
    _, graph = planted
    trainer, again = trainer_of(planted), trainer_of(planted)
    ours, theirs = trainer._validation, again._validation
    assert torch.equal(ours.negatives, theirs.negatives) and torch.equal(ours.anchor, theirs.anchor)
    offsets = trainer.sampler.offsets
    neighbours = {
        (int(i) + offsets[s], int(j) + offsets[d])
        for (s, _, d), csr in graph.items()
        for i, j in csr.edge_index().T
    }
    for row, slot in ours.mask.nonzero().tolist():
        assert (int(ours.anchor[row]), int(ours.negatives[row, slot])) not in neighbours


def test_a_model_that_gives_all_items_one_vector_scores_like_chance(planted):
    trainer = trainer_of(planted)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            parameter.fill_(1.0 if name.endswith("bias") else 0.0)
    # 20 equal negatives share the places: rank 1 + 20/2 = 11 (fewer where some are masked)
    assert trainer.validate()["mrr"] == pytest.approx(1 / 11, abs=0.01)


def test_edges_per_epoch_is_shared_by_the_link_types(planted):
    trainer = trainer_of(planted, replace(CONFIG, edges_per_epoch=30))
    assert trainer.sampler.links_in_epoch == 30
    seen = []
    line = trainer.run_epoch(lambda progress: seen.append((progress["batch"], progress["batches"])))
    assert line["links"] == 30 and seen == [(1, 1)]


def test_a_graph_too_small_to_hold_anything_out_trains_on_its_loss():
    graph = graph_from_links(
        {AUDIOBOOK_AUDIOBOOK: torch.tensor([[0, 1], [1, 2]])}, {AUDIOBOOK: 6, PODCAST: 1}
    )
    features = {AUDIOBOOK: torch.eye(6), PODCAST: torch.zeros(1, 6)}
    trainer = HGNNTrainer(
        HeteroGraphSAGE(6, 8, 8), features, graph, TrainingConfig(max_epochs=3), device="cpu"
    )
    history = trainer.fit()
    assert [line["mrr"] for line in history] == [None] * 3
    assert trainer.best_metric == max(-line["loss"] for line in history)


def test_a_checkpoint_of_something_else_is_refused(planted):
    features, graph = planted
    tensors, record = trainer_of(planted).state_dict()
    other = trainer_of(planted, replace(CONFIG, margin=0.7))
    with pytest.raises(ValueError, match=r"config differs in \['margin'\]: stored \[0\.1\], now \[0\.7\]"):
        other.load_state_dict(tensors, record)
    wider = HGNNTrainer(HeteroGraphSAGE(16, 32, 16), features, graph, CONFIG, device="cpu")
    with pytest.raises(ValueError, match="weights do not fit the model"):
        wider.load_state_dict(tensors, record)
    fewer = graph | graph_from_links({AUDIOBOOK_AUDIOBOOK: torch.tensor([[0], [1]])}, COUNTS)
    smaller = HGNNTrainer(HeteroGraphSAGE(16, 16, 16), features, fewer, CONFIG, device="cpu")
    with pytest.raises(ValueError, match=r"graph differs in \['audiobook-audiobook_links'\]"):
        smaller.load_state_dict(tensors, record)


def test_features_that_are_not_numbers_stop_the_training(planted):
    features, graph = planted
    broken = {**features, PODCAST: features[PODCAST].clone().fill_(float("nan"))}
    trainer = HGNNTrainer(HeteroGraphSAGE(16, 16, 16), broken, graph, CONFIG, device="cpu")
    with pytest.raises(FloatingPointError, match="loss is nan in epoch 0, batch 1"):
        trainer.run_epoch()
