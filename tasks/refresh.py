"""Refresh: the judged weights on everything known at `as_of`, for serving.

Same weights, later graph and features: embeddings of every title, audiobook vectors, features of every user,
popularity by country, and the evidence behind reasons. Nothing is trained here.
"""

from __future__ import annotations

import json
from datetime import date, timedelta

import numpy as np
import pandas as pd

from audiorec import features, music
from audiorec.catalogue import SIGNALS, Extract, day_number, load_extract
from audiorec.cuts import Cut, cuts
from audiorec.embeddings import embed_cut, load_cut_graph, load_model, load_text
from audiorec.errors import BadData
from audiorec.features import FeatureBuilder, Vectors
from audiorec.introduction import introduced
from audiorec.judging import ArtistVectors, load_towers, make_builder
from audiorec.progress import Progress
from audiorec.settings import Settings
from audiorec.store import Manifest
from audiorec.taskio import Inputs, Output
from expectations.embeddings import check_embeddings

_HISTORY_TITLES = 50
"""Latest titles of one user, type and channel (streamed, or with a weak signal) that are kept."""


def run(settings: Settings, inputs: Inputs, out: Output) -> Manifest:
    """Write embeddings, `item_vectors.npy`, user features, histories and popularity as of the release cut."""
    import torch

    torch.set_num_threads(settings.resources["refresh"].threads)
    store, all_cuts = inputs.store, cuts(inputs.as_of, settings.time)
    extract = load_extract(settings, inputs)
    progress = Progress(4, "steps")
    text = load_text(store, inputs["embed_text"])
    graph = load_cut_graph(store, inputs["build_graph"], all_cuts.release.name)
    embedded = embed_cut(load_model(store, inputs["train_hgnn"]), text, graph)
    for kind, matrix in embedded.items():
        for warning in check_embeddings(f"release.{kind}", matrix, unit_norm=True):
            out.note(f"warning: {warning}")
        np.save(out.path(f"{kind}_hgnn.npy"), matrix, allow_pickle=False)
    progress.advance(note="HGNN embeddings")

    towers = load_towers(store, inputs["train_two_tower"])
    tomorrow = inputs.as_of + timedelta(days=1)
    vectors = Vectors(
        text["audiobook"], text["podcast"], embedded["audiobook"], embedded["podcast"], day_number(tomorrow)
    )
    artists = ArtistVectors.load(store, inputs["embed_music"])
    builder = make_builder(extract, towers, artists, all_cuts.first_day, tomorrow)
    day = day_number(tomorrow)
    items = builder.items(day, vectors, towers.spec)
    item_vectors, lift, queries = introduced(towers, builder, vectors, day, items)
    if not np.isfinite(item_vectors).all():
        bad = int((~np.isfinite(item_vectors)).any(axis=1).sum())
        raise BadData(
            f"refresh: {bad} audiobook vector(s) are not finite; the towers diverged. Retrain with another two_tower.seed"
        )
    np.save(out.path("item_vectors.npy"), item_vectors, allow_pickle=False)
    np.save(out.path("available.npy"), items.available, allow_pickle=False)
    progress.advance(note="audiobook vectors")

    user_idx = np.arange(len(extract.users))
    users = builder.users(user_idx, np.full(len(user_idx), day), vectors, towers.spec)
    np.save(out.path("user_features.npy"), users.dense, allow_pickle=False)
    seen, warm = extract.first_seen_day < day, extract.first_signal_day < day
    extract.users[["user_id", "country", "birth_year"]].assign(
        country_idx=users.country_idx, seen=seen, warm=warm
    ).to_parquet(out.path("users.parquet"), index=False)
    np.save(
        out.path("music_length.npy"), _music_length(extract, builder, all_cuts.release), allow_pickle=False
    )
    np.save(out.path("sample_user_vectors.npy"), queries, allow_pickle=False)
    progress.advance(note="user features")

    np.save(out.path("artist_vectors.npy"), builder.artist_vectors, allow_pickle=False)
    pd.DataFrame({"artist_id": extract.artists, "known": builder.artist_known}).to_parquet(
        out.path("artists.parquet"), index=False
    )
    _streamed(extract).to_parquet(out.path("streamed.parquet"), index=False)
    _history(extract, all_cuts.release.first_day).to_parquet(out.path("history.parquet"), index=False)
    _popularity(extract, builder, day).to_parquet(out.path("popularity.parquet"), index=False)
    _popularity_by_country(extract, day).to_parquet(out.path("popularity_by_country.parquet"), index=False)
    described = {
        "as_of": out.key,
        "day": day,
        "introduction_lift": lift,
        "unheard_country_lift": _unheard_country_lift(extract, towers.spec, day),
    }
    out.path("release.json").write_text(json.dumps(described, sort_keys=True) + "\n")
    progress.advance(note="histories and popularity")
    return out.commit(
        counts={
            "audiobooks": len(item_vectors),
            "available": int(items.available.sum()),
            "unheard": int((items.unheard & items.available).sum()),
            "users": len(user_idx),
            "active_users": int(seen.sum()),
            "dimensions": item_vectors.shape[1],
        }
    )


def _streamed(extract: Extract) -> pd.DataFrame:
    """user_idx, audiobook_idx of everything ever streamed: never recommended again."""
    return (
        extract.first_streams[["user_idx", "audiobook_idx"]]
        .sort_values(["user_idx", "audiobook_idx"])
        .reset_index(drop=True)
    )


def _history(extract: Extract, first_day: date) -> pd.DataFrame:
    """user_idx, item_type, item_idx, signal, day: each user's latest touched titles, the evidence behind reasons.

    A title that was streamed and got a weak signal has two rows, because it enters two of the means among the user's
    features: whoever adds a title to these, or takes one out, has to know which.
    """
    parts = []
    for kind in ("audiobook", "podcast"):
        events = extract.events(kind, first_day, extract.as_of)
        latest = events.sort_values(
            ["user_idx", "day", "signal", "item_idx"], ascending=[True, False, True, True], kind="stable"
        )
        latest = latest.assign(weak=latest["signal"] > 0)
        latest = latest.drop_duplicates(["user_idx", "item_idx", "weak"], keep="first")
        latest = latest[latest.groupby(["user_idx", "weak"], sort=False).cumcount() < _HISTORY_TITLES]
        parts.append(
            pd.DataFrame(
                {
                    "user_idx": latest["user_idx"],
                    "item_type": kind,
                    "item_idx": latest["item_idx"],
                    "signal": np.asarray(SIGNALS)[latest["signal"]],
                    "day": latest["day"],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _music_length(extract: Extract, builder: FeatureBuilder, cut: Cut) -> np.ndarray:
    """float32 [users]: length of the sum of artist vectors behind each user's music vector, which has unit length.

    With it a request can add what it heard a minute ago.
    """
    plays = music.plays_matrix(
        extract.events("music", cut.first_day, cut.last_day, artist_of_track=True),
        len(extract.users),
        len(extract.artists),
    )
    known = builder.artist_known
    summed = plays[:, known] @ builder.artist_vectors[known].astype(np.float64)
    return np.linalg.norm(np.asarray(summed), axis=1).astype(np.float32)


def _unheard_country_lift(extract: Extract, spec: features.FeatureSpec, day: int) -> list[float]:
    """The place in the space of countries of a title that nobody has streamed, for titles that come after the build.

    `FeatureBuilder.items` gives the log of (0 + prior * share) / (streams of the country + prior) / share.
    """
    firsts = extract.first_streams
    country = extract.users["country"].iloc[firsts.loc[firsts["day"] < day, "user_idx"]]
    counts = country.value_counts()
    prior = features._LIFT_PRIOR
    return [
        float(np.log(prior / (counts.get(spec.countries[index - 1], 0) + prior)))
        for index in spec.lift_countries
    ]


def _popularity(extract: Extract, builder: FeatureBuilder, day: int) -> pd.DataFrame:
    start = int(builder.window_start(np.array(day)))
    return pd.DataFrame(
        {
            "audiobook_id": extract.audiobooks["audiobook_id"],
            "streams_7_days": builder.streams(max(start, day - 7), day),
            "streams_30_days": builder.streams(max(start, day - 30), day),
            "listeners": builder.listeners(start, day),
        }
    )


def _popularity_by_country(extract: Extract, day: int) -> pd.DataFrame:
    """country, audiobook_idx, listeners over the last 30 days, for people of whom nothing else is known."""
    firsts = extract.first_streams
    recent = firsts[(firsts["day"] >= day - 30) & (firsts["day"] < day)]
    country = extract.users["country"].to_numpy(object)[recent["user_idx"]]
    table = pd.DataFrame({"country": country, "audiobook_idx": recent["audiobook_idx"].to_numpy()}).dropna()
    counted = (
        table.groupby(["country", "audiobook_idx"], as_index=False)
        .size()
        .rename(columns={"size": "listeners"})
    )
    return counted.sort_values(
        ["country", "listeners", "audiobook_idx"], ascending=[True, False, True]
    ).reset_index(drop=True)


if __name__ == "__main__":
    from audiorec.runner import main

    main("refresh")
