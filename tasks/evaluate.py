"""Evaluate the judged weights on the hold-out (design 8), beside popularity and the towers without HGNN.

Never reads the registry: what is champion today must not change a result of this date. The gate compares later.
"""

from __future__ import annotations

import json

import numpy as np

from audiorec.catalogue import Extract, load_extract
from audiorec.cuts import Cuts, cuts
from audiorec.experiments.protocol import (
    Judgement,
    best_window,
    judge,
    make_hold_out,
    popularity_ranker,
    ranks_table,
    summarise,
)
from audiorec.experiments.report import metrics_table, plot_metrics
from audiorec.features import FeatureBuilder
from audiorec.judging import ArtistVectors, load_towers, make_builder, towers_ranker
from audiorec.progress import Progress
from audiorec.settings import Settings
from audiorec.store import Manifest
from audiorec.taskio import Inputs, Output
from audiorec.towers import MODELS, Targets, find_targets, load_vectors
from models.metrics import first_hit_ranks, hit_rate_at_k, top_k

WHOLE_WINDOW = "popularity, whole window"
REFERENCE = "popularity, recent"


def run(settings: Settings, inputs: Inputs, out: Output) -> Manifest:
    """Write `ranks.parquet` (a row a user, panel and model), `metrics.csv`, `report.md` and `metrics.png`."""
    import torch

    torch.set_num_threads(settings.resources["evaluate"].threads)
    store = inputs.store
    all_cuts = cuts(inputs.as_of, settings.time)
    extract = load_extract(settings, inputs)
    hold_out = make_hold_out(extract, all_cuts, settings.evaluation)
    artists = ArtistVectors.load(store, inputs["embed_music"])
    vectors = load_vectors(store, inputs["embed_text"], inputs["train_hgnn"], all_cuts.judge.name)
    models = [name for name in MODELS if name in inputs["train_two_tower"].facts["models"]]
    progress = Progress(len(models) + 2, "models")
    judgements: dict[str, Judgement] = {}
    for name in models:
        towers = load_towers(store, inputs["train_two_tower"], name)
        builder = make_builder(extract, towers, artists, all_cuts.first_day, all_cuts.split)
        judgements[name] = judge(
            hold_out, towers_ranker(towers, builder, vectors, hold_out), settings.evaluation.depth
        )
        progress.advance(note=name)
    start = int(builder.window_start(np.array(hold_out.split)))
    rates = _validation_hit_rates(extract, all_cuts, builder, settings)
    window = best_window(rates, settings.evaluation.popularity_windows)
    for name, counts in (
        (WHOLE_WINDOW, builder.listeners(start, hold_out.split)),
        (REFERENCE, builder.streams(max(start, hold_out.split - window), hold_out.split)),
    ):
        judgements[name] = judge(hold_out, popularity_ranker(counts), settings.evaluation.depth)
        progress.advance(note=name)

    metrics = summarise(hold_out, judgements, settings.evaluation, REFERENCE)
    metrics.to_csv(out.path("metrics.csv"), index=False, float_format="%.6f")
    ranks_table(extract, hold_out, judgements).to_parquet(out.path("ranks.parquet"), index=False)
    report = metrics_table(metrics, hold_out, str(inputs.as_of), window, settings.evaluation)
    out.path("report.md").write_text(report)
    plot_metrics(metrics, settings.evaluation, out.path("metrics.png"))
    out.path("popularity.json").write_text(
        json.dumps({"window_days": window, "validation_hit_rates": rates}, sort_keys=True) + "\n"
    )
    print(report)
    headline = {
        f"{panel}.{model}.{segment}": round(float(row["value"]), 6)
        for (panel, model, segment), row in metrics[metrics["metric"] == f"HR@{settings.evaluation.hit_k}"]
        .set_index(["panel", "model", "segment"])
        .iterrows()
        if segment in ("all", "warm", "cold") and not np.isnan(row["value"])
    }
    users = {segment: int((hold_out.segment == segment).sum()) for segment in ("warm", "cold", "none")}
    return out.commit(
        counts={"users": len(hold_out.users), **users},
        titles=hold_out.titles,
        hit_rate=headline,
        popularity_window_days=window,
    )


def _validation_hit_rates(
    extract: Extract, all_cuts: Cuts, builder: FeatureBuilder, settings: Settings
) -> dict[int, float]:
    """HR@10 of recent popularity on the validation targets, by window; the hold-out plays no part in the choice."""
    targets = find_targets(
        extract, all_cuts, settings.time, settings.two_tower.max_targets, settings.two_tower.seed
    )
    validation = targets.take(np.flatnonzero(targets.validation))
    return {
        w: _window_hit_rate(validation, builder, w, settings.evaluation.hit_k)
        for w in settings.evaluation.popularity_windows
    }


def _window_hit_rate(validation: Targets, builder: FeatureBuilder, window: int, k: int) -> float:
    hits = []
    for day in np.unique(validation.day):
        batch = validation.take(np.flatnonzero(validation.day == day))
        start = int(builder.window_start(np.array(day)))
        counts = builder.streams(max(start, int(day) - window), int(day))
        for first in range(0, len(batch), 512):
            part = batch.take(np.arange(first, min(first + 512, len(batch))))
            barred = builder.streamed_before(part.user_idx, part.day).toarray() > 0
            shown = top_k(np.broadcast_to(counts, barred.shape), barred, k)
            hits.append(
                hit_rate_at_k(first_hit_ranks(shown, np.arange(len(part) + 1), part.audiobook_idx), k)
            )
    return float(np.concatenate(hits).mean()) if hits else 0.0


if __name__ == "__main__":
    from audiorec.runner import main

    main("evaluate")
