"""The user tower for one user at a time, as requests need it.

`Towers.user_vectors` is made for many users. For one, nearly all of its time goes to some sixty calls of torch and numpy,
and each of torch's gives up Python's lock and then waits for it where other requests are at work. Here are the same
equations on the same weights in a third of the calls; a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from audiorec.affinities import COUNTRY, EMPTY, FILLED, Affinities

if TYPE_CHECKING:
    from audiorec.features import UserFeatures
    from audiorec.towers import Towers


class UserTower:
    """Vectors of single users, [D]: the tower's output and the user's side of the affinities.

    No user's last bits depend on who else is asked for.

    Args:
        towers: a trained model with its features.

    Raises:
        TypeError: the tower holds a layer that is none of linear, layer norm, ReLU and dropout.
    """

    def __init__(self, towers: Towers) -> None:
        from models.functional import SMALLEST_NORM

        model, self._spec, self._smallest = towers.model, towers.spec, SMALLEST_NORM
        self._country = _array(model.country.weight)
        self._layers = [layer for module in model.user_tower for layer in _layers(module)]
        self._mean = _array(model.mean_user) if model.config.centre_users else np.float32(0)
        self._affinities = None if towers.affinities is None else _Places(towers.affinities)

    def vector(self, users: UserFeatures) -> np.ndarray:
        """The vector of the one user that `users` holds, as a row of `Towers.user_vectors`."""
        dense, country = users.dense[0], int(users.country_idx[0])
        output = np.concatenate([self._country[country], dense])
        for layer in self._layers:
            output = layer(output)
        parts = [_unit(output, self._smallest) - self._mean, np.ones(1, np.float32)]
        if self._affinities is not None:
            parts.append(self._affinities.of(self._spec.raw_users(dense), country))
        return np.concatenate(parts)


class _Places:
    """The user's side of the affinities, as `Affinities.users` has it for many."""

    def __init__(self, affinities: Affinities) -> None:
        channels = affinities.layout.channels()
        widths = {channel.space: _width(channel.columns) for channel in channels}
        widths[COUNTRY] = len(affinities.countries)
        ends = np.cumsum([widths[space] for space in affinities.spaces]).tolist()
        starts = dict(zip(affinities.spaces, [0, *ends], strict=False))
        self._width = ends[-1]
        self._channels = [
            (
                channel.filled,
                channel.columns,
                slice(starts[channel.space], starts[channel.space] + _width(channel.columns)),
                np.float32(affinities.weights.get(channel.name, 0.0)),
            )
            for channel in channels
        ]
        self._countries = {idx: starts[COUNTRY] + place for place, idx in enumerate(affinities.countries)}
        self._country_weight = np.float32(affinities.weights.get(COUNTRY, 0.0))

    def of(self, raw: np.ndarray, country: int) -> np.ndarray:
        """[D] of one user's raw features [F] and index of the country."""
        summed = np.zeros(self._width, np.float32)
        for filled, columns, place, weight in self._channels:
            if raw[filled] > FILLED:
                summed[place] += weight * _unit(raw[columns], EMPTY)
        if country in self._countries:
            summed[self._countries[country]] = self._country_weight
        return summed


def _layers(module: Any) -> list[Callable[[np.ndarray], np.ndarray]]:
    """What a layer does to one vector; nothing for dropout, which only training has."""
    from torch import nn

    match module:
        case nn.Linear():
            return [partial(_linear, _array(module.weight), _array(module.bias))]
        case nn.LayerNorm():
            return [partial(_layer_norm, _array(module.weight), _array(module.bias), module.eps)]
        case nn.ReLU():
            return [_relu]
        case nn.Dropout():
            return []
    raise TypeError(f"the user tower has a layer {type(module).__name__}, which serving does not know")


def _linear(weight: np.ndarray, bias: np.ndarray, given: np.ndarray) -> np.ndarray:
    return np.asarray(weight @ given + bias)


def _layer_norm(weight: np.ndarray, bias: np.ndarray, eps: float, given: np.ndarray) -> np.ndarray:
    return np.asarray((given - given.mean()) / np.sqrt(given.var() + eps) * weight + bias)


def _relu(given: np.ndarray) -> np.ndarray:
    return np.maximum(given, np.float32(0))


def _unit(vector: np.ndarray, empty: float) -> np.ndarray:
    length = math.sqrt(float(vector @ vector))
    # Asked this way round, NaN stays NaN.
    return np.zeros_like(vector) if length <= empty else vector / np.float32(length)


def _array(tensor: Any) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy())


def _width(columns: slice) -> int:
    return int(columns.stop - columns.start)
