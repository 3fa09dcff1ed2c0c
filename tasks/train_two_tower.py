"""Train the two towers on first streams, each predicted from what was known on its day; with and without HGNN.

The variant without HGNN (text alone) is trained beside the real one, so that every run shows what the HGNN is worth.
Both start from popularity and affinities, and keep what clearly beats these on the last target days.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from audiorec.catalogue import day_number, load_extract
from audiorec.cuts import cuts
from audiorec.errors import BadData
from audiorec.features import FeatureBuilder
from audiorec.progress import Progress
from audiorec.settings import Settings
from audiorec.store import Manifest
from audiorec.taskio import Inputs, Output
from audiorec.towers import Trainer, feature_config, find_targets, load_vectors
from audiorec.tracking import Curves, curves


def run(settings: Settings, inputs: Inputs, out: Output) -> Manifest:
    """Write `{model}.safetensors`, `{model}.json` and `{model}.curves.json` for 2T-HGNN and 2T."""
    import torch

    torch.set_num_threads(settings.resources["train_two_tower"].threads)
    all_cuts = cuts(inputs.as_of, settings.time)
    extract = load_extract(settings, inputs)
    targets = find_targets(
        extract, all_cuts, settings.time, settings.two_tower.max_targets, settings.two_tower.seed
    )
    if not (~targets.validation).any():
        raise BadData(
            f"no audiobook was first streamed between {all_cuts.blocks[0].first_day} and {all_cuts.blocks[-1].last_day} "
            "outside the validation days, so there is nothing to learn from; lengthen time.target_days or time.target_blocks"
        )
    if len(targets) < settings.time.validation_targets:
        out.note(
            f"warning: only {len(targets)} targets in {settings.time.target_blocks} block(s) of {settings.time.target_days} days; "
            f"with fewer than {settings.time.validation_targets} stopping goes by chance. Raise time.target_blocks"
        )
    vectors = [
        load_vectors(
            inputs.store,
            inputs["embed_text"],
            inputs["train_hgnn"],
            block.cut.name,
            day_number(block.first_day),
        )
        for block in all_cuts.blocks
    ]
    artists = np.load(inputs.open("embed_music", "artist_vectors.npy"), allow_pickle=False)
    known = pd.read_parquet(inputs.open("embed_music", "artists.parquet"))["known"].to_numpy(bool)
    facts = {}
    progress = Progress(len(settings.two_tower.models) * (settings.two_tower.epochs + 1), "epochs")
    for name in settings.two_tower.models:
        config = feature_config(
            settings.two_tower, settings.time, artists.shape[1], use_hgnn=name == "2T-HGNN"
        )
        builder = FeatureBuilder(extract, config, artists, known, all_cuts.first_day)
        trainer = Trainer(name, builder, vectors, targets, settings.two_tower)
        tags = {"task": "train_two_tower", "model": name, "as_of": out.key, "fingerprint": out.fingerprint}
        with curves(settings, f"{name} {out.key}", tags, out.settings["two_tower"]) as sink:
            if sink.page and name == settings.two_tower.models[0]:
                out.links["MLflow run"] = sink.page

            def report(line: dict[str, Any], name: str = name, sink: Curves = sink) -> None:
                progress.advance(note=f"{name} epoch {line['epoch']}: validation HR@10 {line['hr_10']:.3f}")
                sink.log(line["epoch"], {k: v for k, v in line.items() if k != "epoch"})
                loss = "untrained" if line["loss"] is None else f"loss {line['loss']:.4f}"
                print(
                    f"{name} epoch {line['epoch']}: {loss}, validation log-likelihood {line['log_likelihood']:.4f}, "
                    f"HR@10 {line['hr_10']:.4f}, MRR {line['mrr']:.4f}",
                    flush=True,
                )

            towers, history = trainer.fit(report)
        towers.save(out.path(f"{name}.safetensors"), out.path(f"{name}.json"))
        out.path(f"{name}.curves.json").write_text(json.dumps(history, sort_keys=True, indent=1) + "\n")
        best = next(line for line in history if line["best"])
        facts[name] = {
            "epochs": len(history) - 1,
            "best_epoch": best["epoch"],
            "validation_hr_10": best["hr_10"],
        }
    return out.commit(
        counts={
            "targets": len(targets),
            "validation_targets": int(targets.validation.sum()),
            **{f"best_epoch.{name}": fact["best_epoch"] for name, fact in facts.items()},
        },
        models=facts,
    )


if __name__ == "__main__":
    from audiorec.runner import main

    main("train_two_tower")
