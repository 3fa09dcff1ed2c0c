"""Embed music: 64-d vectors of artists (or tracks), factorised once on the train cut.

Later cuts keep the known vectors and fold new artists in, so that a judge or release feature lies in the basis
that the towers learnt. A user's vector is folded in by whoever builds features.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from audiorec import music
from audiorec.catalogue import load_extract
from audiorec.cuts import cuts
from audiorec.settings import Settings
from audiorec.store import Manifest
from audiorec.taskio import Inputs, Output
from expectations.embeddings import check_embeddings


def run(settings: Settings, inputs: Inputs, out: Output) -> Manifest:
    """Write `artists.parquet` (artist_id, known) and `artist_vectors.npy` [artists, D] of the train cut."""
    extract = load_extract(settings, inputs)
    train = cuts(inputs.as_of, settings.time).train
    events = extract.events("music", train.first_day, train.last_day, artist_of_track=True)
    plays = music.plays_matrix(events, len(extract.users), len(extract.artists))
    vectors, known = music.fit_artists(plays, settings.music.dimensions, settings.music.min_users)
    if known.any():
        for warning in check_embeddings("artists", vectors[known], unit_norm=False):
            out.note(f"warning: {warning}")
    else:
        out.note("warning: no music before the train cut: users get no music vector, and a flag that says so")
    pd.DataFrame({"artist_id": extract.artists, "known": known}).to_parquet(
        out.path("artists.parquet"), index=False
    )
    np.save(out.path("artist_vectors.npy"), vectors, allow_pickle=False)
    listeners = int((plays.getnnz(axis=1) > 0).sum())
    return out.commit(counts={"artists": len(known), "known": int(known.sum()), "listeners": listeners})


if __name__ == "__main__":
    from audiorec.runner import main

    main("embed_music")
