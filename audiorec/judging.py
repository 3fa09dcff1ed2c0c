"""Judged weights at work: features of a cut, vectors of its users and titles, for `evaluate`, `refresh` and the gate.

The gate scores a champion on another date's hold-out, so everything that a version learnt (weights, vocabularies,
scalers, artist vectors) comes in as arguments, and everything that was known by then from the extract.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
import pandas as pd

from audiorec.catalogue import Extract
from audiorec.experiments.protocol import HoldOut, Ranker, vector_ranker
from audiorec.features import FeatureBuilder, Vectors
from audiorec.introduction import introduced
from audiorec.store import Manifest, Store
from audiorec.towers import Towers


@dataclass(frozen=True)
class ArtistVectors:
    """A version's own music vectors, by artist id."""

    ids: pd.Index
    vectors: np.ndarray
    known: np.ndarray

    @classmethod
    def load(cls, store: Store, music: Manifest) -> ArtistVectors:
        """From an `embed_music` result."""
        table = pd.read_parquet(store.open(music, "artists.parquet"))
        vectors = np.load(store.open(music, "artist_vectors.npy"), allow_pickle=False)
        return cls(pd.Index(table["artist_id"]), vectors, table["known"].to_numpy(bool))

    def aligned(self, artists: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        """Vectors and known flags in the order of another extract's artists; unknown ones are zeros."""
        row = self.ids.get_indexer(artists)
        found = row >= 0
        vectors = (
            np.where(found[:, None], self.vectors[row], 0.0).astype(np.float32)
            if len(self.ids)
            else np.zeros((len(artists), self.vectors.shape[1]), np.float32)
        )
        known = found & self.known[row] if len(self.ids) else found
        return vectors, known


def make_builder(
    extract: Extract, towers: Towers, artists: ArtistVectors, first_day: date, before: date
) -> FeatureBuilder:
    """Features as a version makes them, its artist vectors extended to artists heard before a day."""
    vectors, known = artists.aligned(extract.artists)
    return FeatureBuilder(extract, towers.spec.config, vectors, known, first_day).with_artists_folded_in(
        before
    )


def load_towers(store: Store, two_tower: Manifest, name: str = "2T-HGNN") -> Towers:
    """One variant of a `train_two_tower` result."""
    return Towers.load(store.open(two_tower, f"{name}.safetensors"), store.open(two_tower, f"{name}.json"))


def towers_ranker(towers: Towers, builder: FeatureBuilder, vectors: Vectors, hold_out: HoldOut) -> Ranker:
    """Scores of the hold-out's users as they were known before the split."""
    days = np.full(len(hold_out.users), hold_out.split, np.int64)
    users = towers.user_vectors(builder.users(hold_out.users, days, vectors, towers.spec))
    items = builder.items(hold_out.split, vectors, towers.spec)
    return vector_ranker(users, introduced(towers, builder, vectors, hold_out.split, items).items)
