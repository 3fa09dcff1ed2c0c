"""The user tower of requests: the same vectors as `Towers.user_vectors`, whatever the model is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from audiorec.affinities import COUNTRY, Space
from audiorec.features import FeatureConfig, FeatureSpec, UserFeatures, user_layout
from audiorec.towers import Towers
from audiorec.user_tower import UserTower
from models.two_tower import TwoTower, TwoTowerConfig

TEXT, HGNN, MUSIC = 6, 5, 4


def towers(
    random: np.random.Generator, weak_signals: bool = True, affinities: bool = True, **model: Any
) -> Towers:
    """A model of random weights, no two of which are alike."""

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    config = FeatureConfig(music_dimensions=MUSIC, text_dimensions=3, weak_signals=weak_signals)
    spaces = {
        "hgnn": Space({kind: normal(HGNN) for kind in ("audiobook", "podcast")}, None),
        "text": Space({kind: normal(TEXT) for kind in ("audiobook", "podcast")}, normal(TEXT, 3)),
    }
    width = user_layout(config, spaces).width
    spec = FeatureSpec(
        config=config,
        countries=("DE", "FR", "SE"),
        lift_countries=(3, 1),
        languages=("en",),
        genres=("FIC",),
        spaces=spaces,
        user_mean=normal(width),
        user_scale=np.exp(normal(width)),
        item_mean=normal(TEXT + HGNN),
        item_scale=np.ones(TEXT + HGNN, np.float32),
    )
    net = TwoTower(
        TwoTowerConfig(
            num_countries=4,
            num_languages=2,
            num_genres=2,
            user_features=width,
            item_features=TEXT + HGNN,
            hidden=(16, 12, 7),
            dropout=0.3,
            **model,
        )
    )
    with torch.no_grad():
        for parameter in (*net.parameters(), net.mean_user):
            parameter.copy_(torch.from_numpy(np.array(normal(*parameter.shape))))
    weights = {channel.name: float(random.normal()) for channel in spec.layout.channels()[1:]} | {
        COUNTRY: 1.5
    }
    return Towers("model", net.eval(), spec, np.zeros(4, np.float32), weights if affinities else None)


def users(random: np.random.Generator, spec: FeatureSpec) -> UserFeatures:
    """Of all kinds: some have a channel filled and a place in it, some only one of the two."""
    raw = random.normal(size=(60, spec.layout.width))
    for channel in spec.layout.channels():
        raw[:, channel.columns] *= random.random((60, 1)) < 0.7
        raw[:, channel.filled] = random.choice([0.0, np.log(2), 1.0], 60)
    return UserFeatures(random.integers(0, 4, 60), spec.scale_users(raw))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weak_signals": False},
        {"affinities": False},
        {"layer_norm": True},
        {"centre_users": False, "popularity_prior": False},
    ],
    ids=str,
)
def test_vectors_are_those_of_the_towers(options: dict[str, Any]):
    random = np.random.default_rng(3)
    model = towers(random, **options)
    many = users(random, model.spec)
    one_by_one = UserTower(model)
    found = np.stack(
        [
            one_by_one.vector(UserFeatures(many.country_idx[[row]], many.dense[[row]]))
            for row in range(len(many.dense))
        ]
    )
    expected = model.user_vectors(many)
    assert found.dtype == expected.dtype
    assert len(np.unique(expected.round(4), axis=0)) == len(expected)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_an_output_of_zeros_has_no_direction():
    model = towers(np.random.default_rng(4))
    with torch.no_grad():
        last = model.model.user_tower[-1]
        last.weight.zero_()
        last.bias.zero_()
    many = users(np.random.default_rng(5), model.spec)
    found = UserTower(model).vector(replace(many, country_idx=many.country_idx[:1], dense=many.dense[:1]))
    np.testing.assert_allclose(found, model.user_vectors(many)[0], atol=2e-6)


def test_a_layer_that_it_does_not_know_is_an_error():
    model = towers(np.random.default_rng(6))
    model.model.user_tower.append(nn.Tanh())
    with pytest.raises(TypeError, match="has a layer Tanh, which serving does not know"):
        UserTower(model)
