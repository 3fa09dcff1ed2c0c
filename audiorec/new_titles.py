"""Audiobooks published after a release was built: placed by their text alone, as the release would have placed them.

Their HGNN embedding is that of an isolated title (`audiorec.embeddings`); their popularity, their listeners' taste and
their lift in each country are those of a title that nobody has streamed (`FeatureBuilder.items`).
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pandas as pd

from audiorec import text
from audiorec.affinities import COUNTRY, unit_rows
from audiorec.catalogue import day_number
from audiorec.embeddings import TextNeighbors, embed_cut, has_edges, load_cut_graph, load_model
from audiorec.features import ItemFeatures, lookup
from audiorec.introduction import lifted
from audiorec.profiles import Places
from audiorec.reasons import Titles
from audiorec.release_files import ReleaseFiles
from audiorec.settings import Text
from audiorec.towers import Towers

_REMEMBERED = 4_000
"""Text vectors and embeddings kept, so that a new title shown all day is encoded and placed once; more than a batch of
requests brings."""


@dataclass(frozen=True)
class NewTitle:
    """What is known of an audiobook that the release does not hold."""

    audiobook_id: str
    title: str
    description: str = ""
    author: str | None = None
    language: str | None = None
    genre: str | None = None
    published_on: date | None = None


class TextEncoder:
    """The text model of a release, loaded when it is first needed; one encoder for all threads.

    Args:
        settings: model, revision and truncation, as `embed_text` had them.
    """

    def __init__(self, settings: Text) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._remembered: OrderedDict[str, np.ndarray] = OrderedDict()

    @functools.cached_property
    def _model(self) -> Any:
        return text.load_model(self.settings)

    def warm(self) -> None:
        """Load the text model now; some seconds, most of them imports."""
        if self.settings.model != text.RANDOM:
            with self._lock:
                text.encode(self._model, ["warm"])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors [n, T], bit for bit those that `embed_text` would have made; zeros for the empty text."""
        with self._lock:
            missing = [one for one in dict.fromkeys(texts) if one not in self._remembered]
            if missing:
                if self.settings.model == text.RANDOM:
                    made = np.stack([text.random_vector(one) for one in missing])
                else:
                    made = text.encode(self._model, missing)
                self._remembered |= dict(zip(missing, made, strict=True))
            found = np.stack([self._remembered[one] for one in texts])
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        return found


class NewTitles:
    """Vectors of titles that a release does not hold.

    Args:
        files, towers, places: of the release.
        encoder: its text model.
    """

    def __init__(self, files: ReleaseFiles, towers: Towers, places: Places, encoder: TextEncoder) -> None:
        self._towers, self._places, self._encoder = towers, places, encoder
        self._hgnn = load_model(files.store, files.manifest("train_hgnn"))
        graph = load_cut_graph(files.store, files.manifest("build_graph"), "release")
        self._neighbors = TextNeighbors(
            files.array("embed_text", "audiobook_text.npy"),
            has_edges(graph, "audiobook"),
            files.array("refresh", "audiobook_hgnn.npy"),
            self._hgnn.text_neighbors,
        )
        self._embedded: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        described = files.json("refresh", "release.json")
        self._day = int(described["day"])
        self._introduction_lift = float(described.get("introduction_lift", 0.0))
        self._unheard_country_lift = np.array(described["unheard_country_lift"], np.float32)

    def read(self, new: Sequence[NewTitle]) -> None:
        """Encode and embed titles, which is slow; remembered, so that `place` has them at once."""
        self._embed(self._encode(new))

    def _encode(self, new: Sequence[NewTitle]) -> np.ndarray:
        """Text vectors [n, T]."""
        table = pd.DataFrame(
            {"title": [one.title for one in new], "description": [one.description for one in new]}
        )
        return self._encoder.encode(text.catalogue_texts(table))

    def place(self, new: Sequence[NewTitle]) -> Titles:
        """Vectors of new titles, as rows that the catalogue lacks (-1)."""
        words = self._encode(new)
        hgnn = self._embed(words)
        features = self._features(new, words, hgnn)
        vectors = lifted(
            self._towers, self._towers.item_vectors(features), features.unheard, self._introduction_lift
        )
        places = self._places.place("audiobook", {"text": words, "hgnn": hgnn})
        return Titles(
            np.full(len(new), -1, np.int64),
            vectors,
            hgnn,
            unit_rows(places[:, self._places.columns("text")]),
        )

    def _embed(self, words: np.ndarray) -> np.ndarray:
        """HGNN embeddings [n, D] of text vectors, as `embed_cut` gives them to isolated titles."""
        keys = [row.tobytes() for row in words]
        with self._lock:
            known = {key: self._embedded[key] for key in keys if key in self._embedded}
        # One at a time, and the same text once: in a batch a title's last bits would depend on the others.
        missing = {key: row for row, key in enumerate(keys) if key not in known}
        if missing:
            known |= {key: self._made(words[row]) for key, row in missing.items()}
            with self._lock:
                self._embedded |= known
                while len(self._embedded) > _REMEMBERED:
                    self._embedded.popitem(last=False)
        return np.stack([known[key] for key in keys])

    def _made(self, words: np.ndarray) -> np.ndarray:
        """The embedding [D] of one text vector [T]."""
        from models.edges import EDGE_TYPES, Csr

        placed = self._neighbors.place(words[None])
        if placed.any():
            return np.asarray(placed[0])
        no_edge = Csr(np.zeros(2, np.int64), np.zeros(0, np.int32))
        texts = {"audiobook": words[None], "podcast": np.zeros((1, len(words)), np.float32)}
        induced = embed_cut(self._hgnn, texts, dict.fromkeys(EDGE_TYPES, no_edge))
        return np.asarray(induced["audiobook"][0])

    def _features(self, new: Sequence[NewTitle], words: np.ndarray, hgnn: np.ndarray) -> ItemFeatures:
        """What `FeatureBuilder.items` makes of titles without a listener."""
        spec = self._towers.spec
        raw = {"text": words, "hgnn": hgnn}
        dense = np.concatenate([words, hgnn] if spec.config.use_hgnn else [words], axis=1)
        windows = 2 * (len(spec.config.popularity_windows) + 1)
        counts = np.full((len(new), windows), np.log(spec.config.popularity_smoothing))
        dated = np.array([one.published_on is not None for one in new])
        days = np.array([self._day - day_number(one.published_on or date(2000, 1, 1)) for one in new])
        since = np.where(dated, np.log1p(np.maximum(days, 0)), 0.0)
        ages = np.stack([since, dated, np.zeros(len(new)), np.zeros(len(new))], axis=1)
        places = {name: unit_rows(space.place("audiobook", raw[name])) for name, space in spec.spaces.items()}
        places["music"] = np.zeros((len(new), spec.config.music_dimensions), np.float32)
        places[COUNTRY] = np.tile(self._unheard_country_lift, (len(new), 1))
        return ItemFeatures(
            lookup(pd.Series([one.language for one in new], dtype=object), spec.languages),
            lookup(pd.Series([one.genre for one in new], dtype=object), spec.genres),
            spec.scale_items(dense),
            np.concatenate([counts, ages], axis=1).astype(np.float32),
            np.ones(len(new), bool),
            places,
        )
