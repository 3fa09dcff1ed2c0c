"""Training on a GPU, where there is one: the same mathematics as on the processor, and a checkpoint that moves between them."""

from dataclasses import replace

import pytest
import torch
from planted_graphs import planted_communities

from models.hgnn import HeteroGraphSAGE
from models.training import HGNNTrainer, TrainingConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

CONFIG = TrainingConfig(
    batch_size=64, max_epochs=4, patience=4, num_negatives=4, fanouts=(6, 4), validation_negatives=50, seed=1
)


@pytest.fixture(scope="module")
def planted():
    return planted_communities(60, 0.3, 32)


def trainer_on(device, planted, aggregator="max", config=CONFIG):
    model = HeteroGraphSAGE(32, 32, 32, aggregator=aggregator, seed=7)
    return HGNNTrainer(model, *planted, config, device=device)


@pytest.mark.parametrize("aggregator", ["max", "mean", "sum"])
@pytest.mark.parametrize("max_neighbors", [None, 5])
def test_embeddings_of_an_untrained_model_are_the_processors(planted, aggregator, max_neighbors):
    features, graph = planted
    ours, theirs = (
        trainer_on(device, planted, aggregator).model.embed_graph(
            features, graph, max_neighbors=max_neighbors
        )
        for device in ("cpu", "cuda")
    )
    for node_type, rows in ours.items():
        assert theirs[node_type].device.type == "cpu"
        torch.testing.assert_close(theirs[node_type], rows, atol=1e-5, rtol=0)


@pytest.mark.parametrize("aggregator", ["max", "mean", "sum"])
def test_first_losses_are_the_processors_and_the_training_learns_the_same(planted, aggregator):
    losses, histories = {"cpu": [], "cuda": []}, {}
    for device, seen in losses.items():

        def note(line, seen=seen):
            seen.append(line["loss"])

        histories[device] = trainer_on(device, planted, aggregator).fit(note)
    # Sums of floats in another order part slowly: the first steps are the same, later ones are alike.
    torch.testing.assert_close(losses["cuda"][:5], losses["cpu"][:5], atol=1e-4, rtol=0)
    ours, theirs = (histories[device][-1]["mrr"] for device in ("cpu", "cuda"))
    assert theirs == pytest.approx(ours, abs=0.02)
    assert theirs > histories["cuda"][0]["mrr"]


def test_dropout_is_a_function_of_the_place_in_the_training(planted):
    config = replace(CONFIG, max_epochs=1)
    losses = []
    for _ in range(2):
        torch.manual_seed(len(losses))
        model = HeteroGraphSAGE(32, 32, 32, dropout=0.5, seed=7)
        losses.append(HGNNTrainer(model, *planted, config, device="cuda").run_epoch()["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_checkpoint_of_the_gpu_goes_on_on_the_processor_and_back(planted):
    first = trainer_on("cuda", planted)
    first.run_epoch()
    tensors, record = first.state_dict()
    assert {tensor.device.type for tensor in tensors.values()} == {"cpu"}
    second = trainer_on("cpu", planted)
    second.load_state_dict(tensors, record)
    second.run_epoch()
    first.run_epoch()
    assert second.history[1]["loss"] == pytest.approx(first.history[1]["loss"], abs=1e-3)
    third = trainer_on("cuda", planted)
    third.load_state_dict(*second.state_dict())
    assert [line["epoch"] for line in third.fit()] == [0, 1, 2, 3]
