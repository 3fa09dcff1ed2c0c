"""Affinities: how near a title is to what a user did, as inner products in spaces that users and titles share.

A *space* holds a vector of every title: its HGNN embedding, its text, the taste in music of its listeners, its
lift in each country. A *channel* is one way to place a user in a space: the mean of the audiobooks streamed, of
the podcasts streamed, of those with a weak signal, the music vector, the country. Both sides have unit length, so
that a channel's affinity is a cosine (in the space of countries it is the title's lift in the user's country), and
the weighted sum over channels is one inner product of the concatenated vectors, which an ordinary index serves.

Departure from the paper, whose towers have to learn all of this from a few thousand first streams: here a dozen
weights of a convex problem say it, and the towers add what these miss (docs/adr/0010).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

HISTORIES = ("audiobook", "audiobook_weak", "podcast", "podcast_weak")
EMPTY = 1e-5
"""Length under which a vector says nothing: far above what rounding leaves of a zero that was scaled and unscaled, far
below the mean of vectors of about unit length."""
FILLED = 0.3
"""Above which a channel's flag or count says that it is filled: log(1 + 1) is the least count of a history, 1 the flag of
a music vector, and rounding stays far below."""


@dataclass(frozen=True)
class Space:
    """How vectors of one kind enter: less their mean over the catalogue, on the first principal axes.

    `centre` [T] by item type, because podcasts are no audiobooks; `axes` [T, d] of the audiobooks, None to keep all.
    A row of zeros is a title of which nothing is known (without a text): it stays zeros and moves no centre.
    """

    centre: Mapping[str, np.ndarray]
    axes: np.ndarray | None

    def place(self, kind: str, vectors: np.ndarray) -> np.ndarray:
        """Vectors [N, T] of items of a type in this space, [N, d]."""
        vectors = np.asarray(vectors, np.float32)
        moved = np.where(vectors.any(axis=1, keepdims=True), vectors - self.centre[kind], np.float32(0))
        return moved if self.axes is None else moved @ self.axes


def fit_space(audiobook: np.ndarray, podcast: np.ndarray, dimensions: int | None) -> Space:
    """Centre and principal axes of a catalogue; deterministic, the sign of an axis being that of its largest entry."""
    known = {
        kind: np.asarray(v, np.float64)[np.any(v, axis=1)]
        for kind, v in (("audiobook", audiobook), ("podcast", podcast))
    }
    centre = {
        kind: (v.mean(axis=0) if len(v) else np.zeros(v.shape[1])).astype(np.float32)
        for kind, v in known.items()
    }
    if dimensions is None or dimensions >= audiobook.shape[1]:
        return Space(centre, None)
    moved = known["audiobook"] - centre["audiobook"]
    values, columns = np.linalg.eigh(moved.T @ moved)
    columns = columns[:, np.argsort(-values, kind="stable")[:dimensions]]
    signs = np.sign(columns[np.abs(columns).argmax(axis=0), np.arange(columns.shape[1])])
    return Space(centre, (columns * np.where(signs == 0, 1, signs)).astype(np.float32))


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length; rows of zeros stay zeros."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(norms > EMPTY, vectors / np.maximum(norms, EMPTY), 0.0).astype(np.float32)


@dataclass(frozen=True)
class Channel:
    """A user's place in a space: columns of the user's dense features, and the column that says if it is filled."""

    name: str
    space: str
    columns: slice
    filled: int


@dataclass(frozen=True)
class UserLayout:
    """Columns of the dense user features: age 2, music vector and flag, then each history's means and its count."""

    music: int
    spaces: Mapping[str, int]
    """Width of each space that histories are averaged in, in order."""
    weak_signals: bool

    @property
    def histories(self) -> tuple[str, ...]:
        return HISTORIES if self.weak_signals else HISTORIES[::2]

    @property
    def width(self) -> int:
        return 2 + self.music + 1 + len(self.histories) * (sum(self.spaces.values()) + 1)

    @property
    def music_flag(self) -> int:
        return 2 + self.music

    def channels(self) -> list[Channel]:
        """All channels but the country's, which is no dense column."""
        found = [Channel("music", "music", slice(2, 2 + self.music), self.music_flag)]
        block = sum(self.spaces.values()) + 1
        for number, history in enumerate(self.histories):
            start = self.music_flag + 1 + number * block
            filled = start + block - 1
            for space, width in self.spaces.items():
                found.append(Channel(f"{space}.{history}", space, slice(start, start + width), filled))
                start += width
        return found


COUNTRY = "country"


@dataclass(frozen=True)
class Affinities:
    """Weighted channels, ready to score.

    Args:
        layout: columns of the raw (unscaled) dense user features.
        countries: index into the spec's country vocabulary of each column of the country space.
        weights: weight of each channel by name; a channel without one counts nothing.
    """

    layout: UserLayout
    countries: tuple[int, ...]
    weights: Mapping[str, float]

    @property
    def spaces(self) -> tuple[str, ...]:
        """Spaces in the order in which their columns are concatenated."""
        return (*self.layout.spaces, "music", COUNTRY)

    def placed(self, dense: np.ndarray, country_idx: np.ndarray) -> dict[str, tuple[str, np.ndarray]]:
        """Space and unit-length place [R, d] of users by channel; zeros where a user has nothing there.

        Args:
            dense: raw user features [R, F].
            country_idx: index into the spec's vocabulary [R].
        """
        found = {}
        for channel in self.layout.channels():
            rows = unit_rows(dense[:, channel.columns])
            found[channel.name] = (
                channel.space,
                np.where(dense[:, [channel.filled]] > FILLED, rows, 0).astype(np.float32),
            )
        one_hot = country_idx[:, None] == np.asarray(self.countries, np.int64)[None, :]
        found[COUNTRY] = (COUNTRY, one_hot.astype(np.float32))
        return found

    def users(self, dense: np.ndarray, country_idx: np.ndarray) -> np.ndarray:
        """The users' side of the weighted sum, [R, D]."""
        summed: dict[str, np.ndarray] = {}
        for name, (space, rows) in self.placed(dense, country_idx).items():
            weighted = np.float32(self.weights.get(name, 0.0)) * rows
            summed[space] = summed[space] + weighted if space in summed else weighted
        return np.concatenate([summed[space] for space in self.spaces], axis=1)


def join_spaces(spaces: Mapping[str, np.ndarray], order: Sequence[str]) -> np.ndarray:
    """The titles' side of the sum: places [N, d] by space, concatenated to [N, D]."""
    return np.concatenate([spaces[name] for name in order], axis=1).astype(np.float32)
