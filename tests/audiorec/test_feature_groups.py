"""Groups of features that ablations leave out: nothing of them may be left in what the towers see."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from audiorec.catalogue import day_number
from audiorec.cuts import cuts
from audiorec.features import FeatureBuilder, FeatureConfig, UserFeatures, Vectors, fit_spaces, fit_spec
from audiorec.judging import ArtistVectors
from audiorec.settings import TwoTowerSettings
from audiorec.towers import load_vectors

if TYPE_CHECKING:
    from conftest import Chain


def made(chain: Chain, **config: bool) -> tuple[FeatureBuilder, Vectors, np.ndarray, int]:
    artists = ArtistVectors.load(chain.store, chain.manifest("embed_music"))
    base = FeatureConfig(window_days=20, popularity_windows=(3, 7), music_dimensions=artists.vectors.shape[1])
    first = cuts(chain.as_of, chain.settings.time).first_day
    builder = FeatureBuilder(chain.extract(), replace(base, **config), artists.vectors, artists.known, first)
    split = day_number(cuts(chain.as_of, chain.settings.time).split)
    vectors = load_vectors(
        chain.store, chain.manifest("embed_text"), chain.manifest("train_hgnn"), "judge", split
    )
    return builder, vectors, np.arange(100), split


def users_of(builder: FeatureBuilder, vectors: Vectors, users: np.ndarray, day: int) -> UserFeatures:
    return builder.users(users, np.full(len(users), day), vectors, None)


def test_without_music_neither_users_nor_titles_have_a_taste(tiny_chain: Chain):
    with_music, without = made(tiny_chain), made(tiny_chain, music=False)
    width = with_music[0].config.music_dimensions
    columns = slice(2, 2 + width + 1)
    assert np.abs(users_of(*with_music).dense[:, columns]).sum() > 1
    assert not users_of(*without).dense[:, columns].any()
    rest = np.r_[0:2, 2 + width + 1 : users_of(*without).dense.shape[1]]
    assert (users_of(*with_music).dense[:, rest] == users_of(*without).dense[:, rest]).all()
    assert with_music[0]._audience(with_music[3]).any()
    assert not without[0]._audience(without[3]).any()


def test_without_demographics_age_and_country_are_unknown_to_all(tiny_chain: Chain):
    builder, vectors, users, day = made(tiny_chain, demographics=False)
    raw = users_of(builder, vectors, users, day)
    assert (raw.dense[:, 0] == 0).all() and (raw.dense[:, 1] == 1).all()
    spec = fit_spec(builder, raw, builder.items(day, vectors, None), fit_spaces(builder.config, vectors))
    assert spec.countries == () and spec.lift_countries == ()
    scaled = builder.users(users, np.full(len(users), day), vectors, spec)
    assert not scaled.country_idx.any()
    assert builder.items(day, vectors, spec).spaces["country"].shape[1] == 0


def test_the_released_variant_must_be_trained():
    with pytest.raises(ValueError, match="2T-HGNN must be among them"):
        TwoTowerSettings(models=("2T",))
