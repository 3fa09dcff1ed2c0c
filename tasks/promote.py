"""Promote: one registered MLflow version a date and fingerprint, the gate's verdict on it, the alias moved or not.

The gate compares judged weights: the champion's, with features rebuilt at the candidate's split, on the users of
the candidate's hold-out (design 7). The champion's own split is earlier, so it has seen none of it. Verdict and
alias moves live on the version; the manifest holds only what the inputs determine.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Literal, cast

import numpy as np
import pandas as pd
from pydantic import ValidationError

from audiorec import champion as released
from audiorec import text
from audiorec.catalogue import Extract, load_extract
from audiorec.colistening import cut_relations
from audiorec.cuts import Cut, cuts, window_start
from audiorec.embeddings import embed_cut, load_cut_graph, load_model
from audiorec.errors import AudiorecError
from audiorec.experiments.protocol import judge, make_hold_out
from audiorec.features import Vectors
from audiorec.fingerprint import digest
from audiorec.gate import Candidate, Champion, RunType, Verdict, decide
from audiorec.judging import ArtistVectors, load_towers, make_builder, towers_ranker
from audiorec.registry import CHALLENGER, CHAMPION, Registry, Version
from audiorec.release import ReleaseControl, operator
from audiorec.settings import Graph, Music, PromoteWord, Settings, Text
from audiorec.store import Manifest
from audiorec.taskio import Inputs, Output
from models.metrics import Interval, hit_rate_at_k, paired_bootstrap_interval

MODEL = "2T-HGNN"


def run(settings: Settings, inputs: Inputs, out: Output) -> Manifest:
    """Register the version, judge it, move the aliases; writes `release.json`."""
    release = released.describe(inputs.as_of, dict(inputs))
    fingerprint = digest(release)
    out.path("release.json").write_text(json.dumps(release, sort_keys=True, indent=1) + "\n")
    policy, run_type = (
        out.options.get("promote", settings.release.policy),
        out.options.get("run_type", "manual"),
    )
    control = ReleaseControl(settings)
    registry = control.registry
    with control.exclusive():
        there = registry.find(inputs.as_of, fingerprint)
        if there is not None and _keeps_its_verdict(there, policy, run_type, again=out.replace):
            serving = registry.alias(CHAMPION)
            if serving is not None and serving.number == there.number:
                # A lost or damaged pointer is mended here: nobody else writes one.
                released.write_pointer(out.store, registry.name, there.number, release)
            out.run["state"] = "up_to_date"
            print(f"version {there.number} of {inputs.as_of} is registered already")
            return _said(settings, registry, out, there, there.tags["verdict"], fingerprint)
        candidate = _candidate(settings, inputs)
        version = there or registry.register(
            inputs.as_of,
            fingerprint,
            tags={
                "release": json.dumps(release, sort_keys=True),
                "hit_rate": f"{candidate.hit_rate:.6f}",
                "profile": settings.profile,
            },
            metrics={"hit_rate_full_all": candidate.hit_rate, "users": candidate.users},
            files=[
                out.folder / "release.json",
                *(inputs.open("evaluate", name) for name in ("report.md", "metrics.csv", "metrics.png")),
                inputs.open("train_hgnn", "hgnn.safetensors"),
                inputs.open("train_two_tower", f"{MODEL}.safetensors"),
            ],
        )
        verdict = _judge(settings, inputs, registry, candidate, version, policy, run_type)
        who = out.options.get("by") or ("the schedule" if run_type == "scheduled" else operator())
        why = f"{run_type} run, promote = {policy}"
        if verdict.promoted:
            control.move(CHAMPION, version, "promote", who, why, verdict.line())
        elif run_type != "backfill" and not candidate.insane and not version.rejected:
            control.move(CHALLENGER, version, "promote", who, why, verdict.line())
        registry.record_verdict(version, verdict.line(), policy, run_type, verdict.promoted)
    return _said(settings, registry, out, version, verdict.line(), fingerprint)


def _keeps_its_verdict(version: Version, policy: str, run_type: str, again: bool) -> bool:
    """Whether there is nothing to judge: promoted once, or judged under the same policy.

    A backfill only registers, so the first other run judges the version after it. `again` (`--force`) judges
    anew what was not promoted, after a hold that has ended, say.
    """
    if "verdict" not in version.tags:
        return False
    if version.rejected:
        # Promoted once and rolled back since: it must not go on saying that it is promoted.
        return version.tags["verdict"].startswith("refused") and not again
    only_registered = version.tags["run_type"] == "backfill" and run_type != "backfill"
    judged = version.tags["policy"] == policy and not only_registered
    return version.promoted or (judged and not again)


def _said(
    settings: Settings, registry: Registry, out: Output, version: Version, verdict: str, fingerprint: str
) -> Manifest:
    """Say the verdict in the log, in the result and in run.json, and commit what the inputs determine."""
    out.run["verdict"] = f"version {version.number} {verdict}"
    out.run["version"] = version.number
    out.links["MLflow version"] = f"{settings.mlflow.uri}/#/models/{registry.name}/versions/{version.number}"
    print(out.run["verdict"])
    return out.commit(counts={}, version_fingerprint=fingerprint)


def _candidate(settings: Settings, inputs: Inputs) -> Candidate:
    """The candidate's HR@10 on the full panel, users with events, and what would make it unfit to serve."""
    ranks = _candidate_ranks(inputs)
    known = ranks[(ranks["rank"] >= 0) & ranks["segment"].isin(("warm", "cold"))]
    hit_rate = (
        float(hit_rate_at_k(known["rank"].to_numpy(), settings.evaluation.hit_k).mean())
        if len(known)
        else 0.0
    )
    insane = []
    items = np.load(inputs.open("refresh", "item_vectors.npy"), mmap_mode="r", allow_pickle=False)
    if not np.isfinite(items).all():
        insane.append("audiobook vectors are not finite")
    if len(np.unique(np.round(items, 5), axis=0)) < min(10, len(items)):
        insane.append("audiobook vectors have collapsed onto fewer than 10 different ones")
    metrics = pd.read_csv(inputs.open("evaluate", "metrics.csv"))
    coverage = metrics[
        (metrics["panel"] == "full")
        & (metrics["model"] == MODEL)
        & (metrics["segment"] == "all")
        & metrics["metric"].str.startswith("coverage")
    ]["value"]
    if len(coverage) and float(coverage.iloc[0]) < settings.release.min_coverage:
        insane.append(
            f"coverage {float(coverage.iloc[0]):.4f} is under release.min_coverage {settings.release.min_coverage}"
        )
    if not len(known):
        insane.append("no user of the hold-out could be judged; is the hold-out empty?")
    elif hit_rate == 0.0:
        insane.append(f"HR@{settings.evaluation.hit_k} is 0 on {len(known)} users")
    return Candidate(inputs.as_of, hit_rate, len(known), insane, f"HR@{settings.evaluation.hit_k}")


def _candidate_ranks(inputs: Inputs) -> pd.DataFrame:
    ranks = pd.read_parquet(inputs.open("evaluate", "ranks.parquet"))
    return ranks[(ranks["model"] == MODEL) & (ranks["panel"] == "full")].reset_index(drop=True)


def _judge(
    settings: Settings,
    inputs: Inputs,
    registry: Registry,
    candidate: Candidate,
    version: Version,
    policy: str,
    run_type: str,
) -> Verdict:
    if version.rejected:
        return Verdict(
            False,
            "refused",
            [f"version {version.number} was rejected by a rollback and is never eligible again"],
        )
    serving = registry.alias(CHAMPION)
    if serving is not None and serving.number == version.number and not candidate.insane:
        # A run that was killed after it moved the alias, or a person, made it so.
        return Verdict(True, "promoted", ["it is the champion already"])
    champion = None
    if serving is not None:
        difference = None
        if serving.as_of < candidate.as_of and not candidate.insane and policy != "never":
            difference = _difference(settings, inputs, serving)
        champion = Champion(serving.number, serving.as_of, difference)
    history = [
        one.hit_rate
        for one in registry.versions()
        if one.promoted and not one.rejected and one.as_of < candidate.as_of
    ]
    held = registry.hold()
    return decide(
        candidate,
        champion,
        history,
        settings.release,
        policy=cast("PromoteWord", policy),
        run_type=cast("RunType", run_type),
        hold=held.line() if held else None,
    )


def _difference(settings: Settings, inputs: Inputs, serving: Version) -> Interval | None:
    """Paired interval of the candidate's HR@10 less the champion's; None if the champion cannot be scored here."""
    try:
        bundle = released.Bundle.load(inputs.store, serving.release)
        theirs = _champion_hits(settings, inputs, bundle)
    except (AudiorecError, ValidationError) as error:
        # ValidationError: its settings are of a code that knew other ones.
        print(
            f"warning: champion version {serving.number} cannot be scored on {inputs.as_of}: {error}",
            flush=True,
        )
        return None
    ranks = _candidate_ranks(inputs)
    judged = ranks["segment"].isin(("warm", "cold")).to_numpy() & (ranks["rank"].to_numpy() >= 0)
    ours = hit_rate_at_k(ranks["rank"].to_numpy(), settings.evaluation.hit_k)
    return paired_bootstrap_interval(
        ours[judged], theirs[judged], draws=settings.evaluation.bootstrap, seed=settings.evaluation.seed
    )


def _champion_hits(settings: Settings, inputs: Inputs, bundle: released.Bundle) -> np.ndarray:
    """1 or 0 a user of the candidate's hold-out: the champion's judged weights at the candidate's split."""
    store, theirs = inputs.store, bundle.manifests
    all_cuts = cuts(inputs.as_of, settings.time)
    # What a music vector stands for (artist or track) is the champion's to say; nothing else here reads it.
    its_music = Music(**theirs["embed_music"].settings["music"])
    extract = load_extract(settings.model_copy(update={"music": its_music}), inputs)
    hold_out = make_hold_out(extract, all_cuts, settings.evaluation)
    towers = load_towers(store, theirs["train_two_tower"], MODEL)
    # How many places new titles get is the operator's choice, not the weights' merit: both are judged with the same share.
    share = float(inputs["train_two_tower"].settings["two_tower"]["introduction_share"])
    towers = dataclasses.replace(towers, introduction_share=share)
    vectors = _champion_vectors(inputs, bundle, extract, all_cuts.judge, towers.spec.config.window_days)
    artists = ArtistVectors.load(store, theirs["embed_music"])
    builder = make_builder(extract, towers, artists, all_cuts.first_day, all_cuts.split)
    judgement = judge(hold_out, towers_ranker(towers, builder, vectors, hold_out), settings.evaluation.depth)
    return hit_rate_at_k(judgement.ranks["full"], settings.evaluation.hit_k)


def _champion_vectors(
    inputs: Inputs,
    bundle: released.Bundle,
    extract: Extract,
    judge_cut: Cut,
    window_days: int | Literal["all"],
) -> Vectors:
    """Text and HGNN vectors of today's catalogue as the champion makes them, at the candidate's judge cut.

    Its own text model and graph settings are used; where they equal the candidate's, so are the stored results.
    """
    from models.edges import EDGE_TYPES, Csr

    store, theirs = inputs.store, bundle.manifests
    text_settings = Text(**theirs["embed_text"].settings["text"])
    found = text.cached_vectors(
        store,
        text_settings,
        [*text.catalogue_texts(extract.audiobooks), *text.catalogue_texts(extract.podcasts)],
    )
    matrices = {
        "audiobook": found.matrix(text.catalogue_texts(extract.audiobooks)),
        "podcast": found.matrix(text.catalogue_texts(extract.podcasts)),
    }
    graph_settings = Graph(**theirs["build_graph"].settings["graph"])
    first_day = window_start(judge_cut.last_day, window_days)
    if (
        theirs["build_graph"].settings["graph"] == inputs["build_graph"].settings["graph"]
        and first_day == judge_cut.first_day
    ):
        graph = load_cut_graph(store, inputs["build_graph"], judge_cut.name)
    else:
        relations = cut_relations(extract, Cut("judge", first_day, judge_cut.last_day), graph_settings)
        graph = {
            edge_type: Csr(
                relations[f"{edge_type[0]}_{edge_type[2]}"].indptr,
                relations[f"{edge_type[0]}_{edge_type[2]}"].indices,
            )
            for edge_type in EDGE_TYPES
        }
    embedded = embed_cut(load_model(store, theirs["train_hgnn"]), matrices, graph)
    return Vectors(matrices["audiobook"], matrices["podcast"], embedded["audiobook"], embedded["podcast"])


if __name__ == "__main__":
    from audiorec.runner import main

    main("promote")
