"""A made-up release of any size, with every file that answering needs, in a store of its own.

Titles fall into topics, users like two of these, and popularity follows Zipf's law; so scores crowd and spread as those
of a real catalogue do. A title's vector has 128 numbers: 63 of the tower and the popularity bias, 32 of HGNN space, 16 of
text, 12 of music, 4 of countries.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from audiorec import index as nearest
from audiorec.affinities import COUNTRY, Space, unit_rows
from audiorec.champion import describe
from audiorec.embeddings import build_model
from audiorec.features import FeatureConfig, FeatureSpec, UserFeatures, user_layout
from audiorec.introduction import LISTENERS
from audiorec.release_files import MODEL
from audiorec.settings import HGNN as HGNNSettings
from audiorec.settings import Index, Text
from audiorec.store import Manifest, Store
from audiorec.towers import Towers
from models.two_tower import TwoTower, TwoTowerConfig

AS_OF = date(2026, 11, 23)
COUNTRIES = ("DE", "FR", "SE", "US")
PODCASTS = 20_000
TEXT, HGNN, MUSIC = 32, 32, 12
TOPICS = 200
HISTORY = 20
"""Titles of each type that a user streamed."""


def make(store: Store, titles: int, users: int, seed: int, exact_limit: int = 500_000) -> dict[str, Any]:
    """Write a release, or find it in the store: of millions of titles its graph takes an hour.

    Returns what `champion.describe` says of it.
    """
    maker = _Maker(store, titles, users, seed)
    manifests = maker.found() or maker.write()
    manifests["build_index"] = maker.index(manifests["refresh"], Index(exact_limit=exact_limit))
    return describe(AS_OF, manifests)


class _Maker:
    def __init__(self, store: Store, titles: int, users: int, seed: int) -> None:
        self.store, self.titles, self.users, self.seed = store, titles, users, seed
        self.fingerprint = f"synthetic-{titles}-{users}-{seed}"
        self.random = np.random.default_rng(seed)
        self.topic = {
            "audiobook": self.random.integers(0, TOPICS, titles),
            "podcast": self.random.integers(0, TOPICS, PODCASTS),
        }
        centres = {width: self._normal(TOPICS, width) for width in (TEXT, HGNN)}
        self.text = {kind: self._near(centres[TEXT], topic) for kind, topic in self.topic.items()}
        self.hgnn = {kind: self._near(centres[HGNN], topic) for kind, topic in self.topic.items()}
        self.plays = np.floor(50_000 / np.arange(1, titles + 1) ** 0.8)[self.random.permutation(titles)]
        self.towers = self._towers()

    def _normal(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape, dtype=np.float32)

    def _near(self, centres: np.ndarray, topic: np.ndarray) -> np.ndarray:
        return unit_rows(centres[topic] + 0.7 * self._normal(len(topic), centres.shape[1]))

    def _towers(self) -> Towers:
        config = FeatureConfig(music_dimensions=MUSIC, text_dimensions=16)
        centre = {kind: self.text[kind].mean(axis=0) for kind in self.text}
        axes = np.linalg.qr(self._normal(TEXT, 16))[0].astype(np.float32)
        spaces = {
            "hgnn": Space({kind: self.hgnn[kind].mean(axis=0) for kind in self.hgnn}, None),
            "text": Space(centre, axes),
        }
        width = user_layout(config, spaces).width
        spec = FeatureSpec(
            config=config,
            countries=COUNTRIES,
            lift_countries=(1, 2, 3, 4),
            languages=("en",),
            genres=("FIC",),
            spaces=spaces,
            user_mean=np.zeros(width, np.float32),
            user_scale=np.ones(width, np.float32),
            item_mean=np.zeros(TEXT + HGNN, np.float32),
            item_scale=np.ones(TEXT + HGNN, np.float32),
        )
        model = TwoTower(
            TwoTowerConfig(
                num_countries=5,
                num_languages=2,
                num_genres=2,
                user_features=width,
                item_features=TEXT + HGNN,
                hidden=(512, 256, 63),
                seed=self.seed,
            )
        )
        with torch.no_grad():
            model.scale.fill_(0.1)
        channels = {channel.name: 2.0 for channel in spec.layout.channels()} | {COUNTRY: 1.0}
        popularity = 2 * (len(config.popularity_windows) + 1) + 4
        return Towers(MODEL, model.eval(), spec, np.full(popularity, 0.1, np.float32), channels)

    def found(self) -> dict[str, Manifest] | None:
        """All but the index, if an earlier run left them."""
        if self._find("refresh") is None:  # the last to be written
            return None
        names = ("extract", "embed_text", "build_graph", "train_hgnn", "train_two_tower", "refresh")
        return {name: manifest for name in names if (manifest := self._find(name))}

    def write(self) -> dict[str, Manifest]:
        """All but the index."""
        return {
            "extract": self._commit("extract", self._catalogue),
            "embed_text": self._commit(
                "embed_text", self._text, settings={"text": Text().model_dump(mode="json")}
            ),
            "build_graph": self._commit("build_graph", self._graph),
            "train_hgnn": self._commit("train_hgnn", self._hgnn_model),
            "train_two_tower": self._commit("train_two_tower", self._two_tower),
            "refresh": self._commit("refresh", self._refresh),
        }

    def index(self, refresh: Manifest, settings: Index) -> Manifest:
        """The index as the task `build_index` makes it."""
        kind = "IndexFlatIP" if self.titles <= settings.exact_limit else "IndexHNSWFlat"
        facts: dict[str, Any] = {"kind": kind}

        def write(folder: Path) -> None:
            vectors = np.load(self.store.open(refresh, "item_vectors.npy"), allow_pickle=False)
            queries = np.load(self.store.open(refresh, "sample_user_vectors.npy"), allow_pickle=False)
            index = nearest.build(vectors, settings)
            facts["recall_100"] = nearest.raise_effort(
                index, vectors, queries[: settings.recall_queries], settings
            )
            facts["ef_search"] = nearest.effort(index)
            nearest.write(index, folder / "audiobooks.faiss")

        return self._find("build_index", kind) or self._commit(
            "build_index", write, variant=kind, facts=facts
        )

    def _find(self, dataset: str, variant: str = "") -> Manifest | None:
        return self.store.find(dataset, AS_OF.isoformat(), f"{self.fingerprint}{variant}")

    def _commit(
        self, dataset: str, write: Any, settings: Any = None, variant: str = "", facts: Any = None
    ) -> Manifest:
        with self.store.working_folder() as folder:
            write(folder)
            return self.store.commit(
                dataset=dataset,
                key=AS_OF.isoformat(),
                fingerprint=f"{self.fingerprint}{variant}",
                outputs={path.name: path for path in sorted(folder.iterdir())},
                inputs={},
                settings=settings or {},
                code="",
                facts=facts or {},
            )

    def _catalogue(self, folder: Path) -> None:
        for kind, number in (("audiobook", self.titles), ("podcast", PODCASTS)):
            ids = [f"{kind[0]}{row:07d}" for row in range(number)]
            table = pd.DataFrame({f"{kind}_id": ids})
            table["title"] = [
                f"The {kind} of topic {topic}, number {row}" for row, topic in enumerate(self.topic[kind])
            ]
            table["description"] = None
            if kind == "audiobook":
                table["author"], table["genre"] = "Somebody", "FIC"
            table["language"], table["published_on"] = "en", date(2025, 1, 1)
            table.to_parquet(folder / f"{kind}s.parquet", index=False)

    def _text(self, folder: Path) -> None:
        for kind, matrix in self.text.items():
            np.save(folder / f"{kind}_text.npy", matrix)

    def _graph(self, folder: Path) -> None:
        """Twenty neighbours a title, of any topic."""
        sizes = {"audiobook": self.titles, "podcast": PODCASTS}
        for left, rows in sizes.items():
            for right, columns in sizes.items():
                name = f"release.{left}_{right}"
                # Rising, and none twice, as in a real graph.
                gaps = self.random.integers(1, columns // 20, (rows, 20), dtype=np.int32)
                indices = np.cumsum(gaps, axis=1, dtype=np.int32) - 1
                np.save(folder / f"{name}.indptr.npy", np.arange(rows + 1, dtype=np.int64) * 20)
                np.save(folder / f"{name}.indices.npy", indices.ravel())
                users = self.random.integers(1, 30, indices.size, dtype=np.int32)
                np.save(folder / f"{name}.users.npy", users)

    def _hgnn_model(self, folder: Path) -> None:
        config = {
            "in_dim": TEXT,
            "hidden_dim": HGNN,
            "out_dim": HGNN,
            "num_layers": 2,
            "aggregator": "max",
            "final_activation": False,
            "seed": self.seed,
            "text_neighbors": HGNNSettings().text_neighbors,
        }
        save_file(build_model(config).state_dict(), folder / "hgnn.safetensors")
        (folder / "hgnn.json").write_text(json.dumps(config))

    def _two_tower(self, folder: Path) -> None:
        self.towers.save(folder / f"{MODEL}.safetensors", folder / f"{MODEL}.json")

    def _item_vectors(self) -> np.ndarray:
        music = unit_rows(self._normal(self.titles, MUSIC))
        lift = 0.3 * self._normal(self.titles, len(COUNTRIES))
        spaces = self.towers.spec.spaces
        return np.concatenate(
            [
                unit_rows(self._normal(self.titles, 63)),
                np.log1p(self.plays)[:, None].astype(np.float32) * 0.3,
                unit_rows(spaces["hgnn"].place("audiobook", self.hgnn["audiobook"])),
                unit_rows(spaces["text"].place("audiobook", self.text["audiobook"])),
                music,
                lift,
            ],
            axis=1,
        ).astype(np.float32)

    def _refresh(self, folder: Path) -> None:
        np.save(folder / "item_vectors.npy", self._item_vectors())
        np.save(folder / "available.npy", np.ones(self.titles, bool))
        for kind, matrix in self.hgnn.items():
            np.save(folder / f"{kind}_hgnn.npy", matrix)
        history = pd.concat([self._history(kind) for kind in ("audiobook", "podcast")], ignore_index=True)
        history.to_parquet(folder / "history.parquet", index=False)
        books = history[history["item_type"] == "audiobook"]
        streamed = pd.DataFrame({"user_idx": books["user_idx"], "audiobook_idx": books["item_idx"]})
        streamed.to_parquet(folder / "streamed.parquet", index=False)
        country = self.random.integers(0, 4, self.users)
        pd.DataFrame(
            {
                "user_id": [f"u{row:06d}" for row in range(self.users)],
                "country": np.array(COUNTRIES)[country],
                "birth_year": self.random.integers(1950, 2008, self.users),
                "country_idx": country + 1,
                "seen": True,
                "warm": True,
            }
        ).to_parquet(folder / "users.parquet", index=False)
        features = self._user_features(history)
        np.save(folder / "user_features.npy", features)
        sample = self.towers.user_vectors(UserFeatures(country[:LISTENERS] + 1, features[:LISTENERS]))
        np.save(folder / "sample_user_vectors.npy", sample)
        np.save(folder / "music_length.npy", np.full(self.users, 5.0, np.float32))
        pd.DataFrame({"artist_id": ["ar1", "ar2"], "known": True}).to_parquet(
            folder / "artists.parquet", index=False
        )
        np.save(folder / "artist_vectors.npy", self._normal(2, MUSIC))
        pd.DataFrame(
            {
                "audiobook_id": [f"a{row:07d}" for row in range(self.titles)],
                "streams_7_days": self.plays // 4,
                "streams_30_days": self.plays,
                "listeners": self.plays,
            }
        ).to_parquet(folder / "popularity.parquet", index=False)
        best = np.argsort(-self.plays, kind="stable")[:200]
        pd.concat(
            [
                pd.DataFrame({"country": name, "audiobook_idx": best, "listeners": np.arange(300, 100, -1)})
                for name in COUNTRIES
            ]
        ).to_parquet(folder / "popularity_by_country.parquet", index=False)
        day = {"as_of": AS_OF.isoformat(), "day": 9_824, "unheard_country_lift": [-0.5] * len(COUNTRIES)}
        (folder / "release.json").write_text(json.dumps(day))

    def _history(self, kind: str) -> pd.DataFrame:
        """Twenty titles of two topics for every user."""
        by_topic = np.argsort(self.topic[kind], kind="stable")
        start = np.searchsorted(self.topic[kind][by_topic], np.arange(TOPICS + 1))
        liked = np.random.default_rng(self.seed).integers(0, TOPICS, (self.users, 2))
        rows = []
        for user, topics in enumerate(liked):
            pool = np.concatenate([by_topic[start[one] : start[one + 1]] for one in topics])
            chosen = self.random.choice(pool, min(HISTORY, len(np.unique(pool))), replace=False)
            rows.append(pd.DataFrame({"user_idx": user, "item_idx": np.unique(chosen)}))
        found = pd.concat(rows, ignore_index=True)
        return found.assign(item_type=kind, signal="stream", day=9_800)

    def _user_features(self, history: pd.DataFrame) -> np.ndarray:
        """As `FeatureBuilder.users` makes them; scale 1 and mean 0, so raw is scaled."""
        spec = self.towers.spec
        layout = spec.layout
        found = np.zeros((self.users, layout.width), np.float32)
        found[:, 0] = self.random.normal(size=self.users)
        found[:, 2 : 2 + MUSIC] = unit_rows(self._normal(self.users, MUSIC))
        found[:, layout.music_flag] = 1.0
        block = sum(layout.spaces.values()) + 1
        for number, name in enumerate(layout.histories):
            if name not in ("audiobook", "podcast"):
                continue
            raw = {"text": self.text[name], "hgnn": self.hgnn[name]}
            places = np.concatenate(
                [space.place(name, raw[key]) for key, space in spec.spaces.items()], axis=1
            )
            own = history[history["item_type"] == name]
            start = layout.music_flag + 1 + number * block
            counts = np.bincount(own["user_idx"], minlength=self.users)
            summed = np.zeros((self.users, places.shape[1]), np.float32)
            np.add.at(summed, own["user_idx"].to_numpy(), places[own["item_idx"].to_numpy()])
            found[:, start : start + block - 1] = summed / np.maximum(counts, 1)[:, None]
            found[:, start + block - 1] = np.log1p(counts)
        return found
