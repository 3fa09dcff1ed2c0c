"""Train the HGNN on the train cut's graph and embed every title at each cut with the same weights.

Equations 2 to 4 of the paper over a heterogeneous GraphSAGE, supervised by co-listening edges that the balanced
multi-link neighbourhood sampler draws. Later cuts (further target blocks, judging) rebuild the graph and reuse the
weights: that is what an inductive model is for. A killed training goes on from its checkpoint.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from audiorec.checkpoint import Checkpoint
from audiorec.cuts import cuts
from audiorec.embeddings import (
    TrainedHGNN,
    build_model,
    cut_graph_data,
    embed_cut,
    load_cut_graph,
    load_text,
)
from audiorec.errors import BadData
from audiorec.progress import Progress
from audiorec.settings import Settings
from audiorec.store import Manifest
from audiorec.taskio import Inputs, Output
from audiorec.tracking import curves
from expectations.embeddings import check_embeddings

if TYPE_CHECKING:
    from models.training import HGNNTrainer


def run(settings: Settings, inputs: Inputs, out: Output) -> Manifest:
    """Write `hgnn.safetensors`, `hgnn.json`, `curves.json` and `{cut}.{type}.npy` [titles, D] for each cut but release."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(settings.resources["train_hgnn"].threads)
    all_cuts = cuts(inputs.as_of, settings.time)
    text = load_text(inputs.store, inputs["embed_text"])
    config = {
        "in_dim": int(text["audiobook"].shape[1]),
        **{
            name: getattr(settings.hgnn, name)
            for name in ("hidden_dim", "out_dim", "num_layers", "aggregator", "final_activation", "seed")
        },
        "text_neighbors": settings.hgnn.text_neighbors,
    }
    trainer = _trainer(settings, inputs, text, all_cuts.train.name, config)
    history = _train(settings, out, trainer)
    model = trainer.model.cpu().eval()
    trained = TrainedHGNN(model, settings.hgnn.text_neighbors)
    counts: dict[str, Any] = {
        "epochs": len(history),
        "supervised_links": sum(line["links"] for line in history),
    }
    for cut in (*(block.cut for block in all_cuts.blocks), all_cuts.judge):
        graph = load_cut_graph(inputs.store, inputs["build_graph"], cut.name)
        for kind, vectors in embed_cut(trained, text, graph).items():
            for warning in check_embeddings(f"{cut.name}.{kind}", vectors, unit_norm=True):
                out.note(f"warning: {warning}")
            np.save(out.path(f"{cut.name}.{kind}.npy"), vectors, allow_pickle=False)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out.path("hgnn.safetensors"))
    out.path("hgnn.json").write_text(json.dumps(config, sort_keys=True) + "\n")
    out.path("curves.json").write_text(json.dumps(history, sort_keys=True, indent=1) + "\n")
    best = max(history, key=lambda line: line["metric"])
    committed = out.commit(
        counts=counts,
        best_epoch=best["epoch"],
        validation_mrr=best["mrr"],
        validation_mrr_by_type=best["mrr_by_type"],
    )
    _checkpoint(settings, out).remove()
    return committed


def _checkpoint(settings: Settings, out: Output) -> Checkpoint:
    return Checkpoint(out.store.scratch, f"hgnn-{out.fingerprint}", settings.store.checkpoint_seconds)


def _trainer(
    settings: Settings, inputs: Inputs, text: dict[str, np.ndarray], cut: str, config: dict[str, Any]
) -> HGNNTrainer:
    from models.edges import csr_from_hetero_data
    from models.training import HGNNTrainer, TrainingConfig

    data = cut_graph_data(text, load_cut_graph(inputs.store, inputs["build_graph"], cut))
    if data.num_edges == 0:
        raise BadData(
            f"the co-listening graph of cut {cut} ({inputs['build_graph'].facts['counts']}) has no edge: no two titles were "
            "streamed by one user inside the window; lengthen time.window_days or check extract's rejects"
        )
    hgnn = settings.hgnn
    return HGNNTrainer(
        build_model(config),
        {node_type: data[node_type].x for node_type in data.node_types},
        csr_from_hetero_data(data),
        TrainingConfig(
            batch_size=hgnn.batch_size,
            learning_rate=hgnn.learning_rate,
            max_epochs=hgnn.max_epochs,
            patience=hgnn.patience,
            margin=hgnn.margin,
            num_negatives=hgnn.negatives,
            fanouts=hgnn.fanouts,
            balanced=hgnn.balanced,
            edges_per_epoch=hgnn.edges_per_epoch,
            validation_share=hgnn.validation_share,
            seed=hgnn.seed,
        ),
    )


def _train(settings: Settings, out: Output, trainer: HGNNTrainer) -> list[dict[str, Any]]:
    """Run or resume the epochs; leaves the best weights in the model."""
    checkpoint = _checkpoint(settings, out)
    stored = checkpoint.load()
    if stored is not None:
        trainer.load_state_dict(*stored)
        out.note(
            f"resumed from a checkpoint after {trainer.epoch} epoch(s), batch {trainer.sampler.position}"
        )
    progress = Progress(settings.hgnn.max_epochs, "epochs")

    def after_batch(line: dict[str, Any]) -> None:
        progress.set(line["epoch"], f"batch {line['batch']}/{line['batches']} loss {line['loss']:.4f}")
        if checkpoint.due:
            checkpoint.save(*trainer.state_dict())

    tags = {"task": "train_hgnn", "as_of": out.key, "fingerprint": out.fingerprint}
    with curves(settings, f"train_hgnn {out.key}", tags, out.settings["hgnn"]) as sink:
        if sink.page:
            out.links["MLflow run"] = sink.page
        while not trainer.finished:
            try:
                line = trainer.run_epoch(after_batch)
            except FloatingPointError as error:
                raise BadData(
                    f"train_hgnn diverged: {error}. A retry would do the same; lower hgnn.learning_rate"
                ) from None
            sink.log(line["epoch"], {name: line[name] for name in ("loss", "mrr", "validation_loss")})
            figures = " ".join(f"{kind} {value:.3f}" for kind, value in line["mrr_by_type"].items())
            print(
                f"epoch {line['epoch']}: loss {line['loss']:.4f}, validation MRR {line['metric']:.4f} ({figures})",
                flush=True,
            )
            progress.set(trainer.epoch, f"validation MRR {line['metric']:.3f}")
            if checkpoint.due:
                checkpoint.save(*trainer.state_dict())
    trainer.model.load_state_dict(trainer.best_weights)
    return trainer.history


if __name__ == "__main__":
    from audiorec.runner import main

    main("train_hgnn")
