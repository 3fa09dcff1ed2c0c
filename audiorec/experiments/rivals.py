"""Other recommenders on the same hold-out: the paper's baselines, and what a good engineer would try first.

All see what 2T-HGNN sees before the split: who streamed which audiobook, podcast and artist inside the window.
Their hyperparameters are chosen on the validation targets (the last target days), refitted up to the split with
what won, and never look at the hold-out. `python -m audiorec.experiments.rivals --as-of ...` runs them alone.

| model | source |
|---|---|
| LLM-KNN, HGNN | paper 6.3: nearest titles to the mean vector of the user's audiobooks; warm users only |
| HGNN-w-users | paper 6.3: users as nodes of a stream graph, GraphSAGE by PyG (`models/user_graph.py`) |
| item-kNN | cosine with pseudo-users in the denominator, over audiobooks, podcasts and artists |
| item-kNN x recent popularity | its product with the best window's streams |
| ALS, BPR | implicit |
| EASE | Steck 2019, closed form; audiobooks and podcasts, and artists where they fit |
| LightGCN | PyG |
| boosted trees | LightGBM's LambdaRank on popularity, age and similarity |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import scipy.sparse as sp

from audiorec.catalogue import DAY_ZERO, Extract, load_extract
from audiorec.cuts import cuts
from audiorec.errors import BadData, BadSettings
from audiorec.experiments.protocol import (
    HoldOut,
    Judgement,
    Ranker,
    coverage_table,
    judge,
    make_hold_out,
    ranks_table,
)
from audiorec.features import FeatureBuilder, FeatureConfig, Vectors
from audiorec.judging import ArtistVectors
from audiorec.progress import Progress
from audiorec.settings import Rivals, Settings
from audiorec.store import Manifest
from audiorec.taskio import Inputs, Output
from audiorec.towers import Targets, evenly_spread, find_targets, load_vectors
from models.metrics import first_hit_ranks, hit_rate_at_k, top_k

_EASE_ITEMS = 12_000
"""With more, artists are left out: a dense matrix of this many takes half a gigabyte."""


@dataclass(frozen=True)
class Listening:
    """0/1 [users, items] of streams in the window before a day: audiobooks first, then podcasts, then artists."""

    matrix: sp.csr_matrix
    audiobooks: int
    podcasts: int

    @classmethod
    def before(cls, extract: Extract, first_day: Any, day: int) -> Listening:
        """What was streamed from the first day of the window up to the day before `day`."""
        last = DAY_ZERO + timedelta(days=day - 1)
        parts = []
        for kind, width in (
            ("audiobook", len(extract.audiobooks)),
            ("podcast", len(extract.podcasts)),
            ("music", len(extract.artists)),
        ):
            events = extract.events(kind, first_day, last, artist_of_track=True)
            events = events[events["signal"] == 0]
            counts = sp.coo_matrix(
                (np.ones(len(events), np.float32), (events["user_idx"], events["item_idx"])),
                shape=(len(extract.users), width),
            ).tocsr()
            counts.data[:] = 1.0
            parts.append(counts)
        return cls(sp.hstack(parts).tocsr(), len(extract.audiobooks), len(extract.podcasts))


Scorer = Callable[[np.ndarray], np.ndarray]
"""Scores float [R, audiobooks] of users (user_idx [R])."""


def item_knn(listening: Listening, shrinkage: float) -> Scorer:
    """Sum of shrunk cosines to what the user streamed, of any type."""
    matrix, titles = listening.matrix, listening.audiobooks
    together = (matrix.T @ matrix[:, :titles]).tocoo()
    degree = np.asarray(matrix.sum(axis=0)).ravel()
    cosine = together.data / (np.sqrt(degree[together.row] * degree[together.col]) + shrinkage)
    keep = together.row != together.col
    similarity = sp.csr_matrix(
        (cosine[keep].astype(np.float32), (together.row[keep], together.col[keep])), shape=together.shape
    )
    return lambda users: np.asarray((matrix[users] @ similarity).todense())


def ease(listening: Listening, ridge: float) -> Scorer:
    """Item weights B = I - P diag(P)^-1, P the inverse of the ridged co-occurrence (Steck 2019, equation 8).

    Only the audiobooks' columns of P are needed, so they are solved for and no inverse is made: with the users'
    matrix where there are fewer users than items (Woodbury), with the items' otherwise.
    """
    matrix, titles = listening.matrix, listening.audiobooks
    if matrix.shape[1] > _EASE_ITEMS:
        matrix = matrix[:, : titles + listening.podcasts]
    users, items = matrix.shape
    if users < items:
        weights = matrix.T @ _solve(matrix @ matrix.T, ridge, matrix[:, :titles].toarray())
        weights /= -ridge
        weights[np.diag_indices(titles)] += 1.0 / ridge
    else:
        weights = _solve(matrix.T @ matrix, ridge, np.eye(items, titles, dtype=np.float32))
    weights /= -np.diag(weights)[None, :]
    weights[np.diag_indices(titles)] = 0.0
    return lambda chosen: np.asarray(matrix[chosen] @ weights)


def _solve(gram: sp.spmatrix, ridge: float, right: np.ndarray) -> np.ndarray:
    """X of (gram + ridge I) X = right, by Cholesky."""
    from scipy.linalg import cho_factor, cho_solve

    dense = np.asarray(gram.todense(), np.float32, order="F")
    dense[np.diag_indices(len(dense))] += ridge
    factor = cho_factor(dense, lower=True, overwrite_a=True, check_finite=False)
    solved: np.ndarray = cho_solve(factor, right, overwrite_b=True, check_finite=False)
    return solved


def als(listening: Listening, factors: int, regularization: float, seed: int) -> Scorer:
    """Implicit-feedback matrix factorisation of all types together."""
    from implicit.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    # Its own threads and those of BLAS get in each other's way, by a factor of ten and more.
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=factors, regularization=regularization, random_state=seed, num_threads=2
        )
        model.fit(listening.matrix, show_progress=False)
    return _factors(model, listening.audiobooks)


def bpr(listening: Listening, factors: int, iterations: int, seed: int) -> Scorer:
    """Bayesian personalised ranking of all types together. One thread, so that a seed decides."""
    from implicit.bpr import BayesianPersonalizedRanking

    model = BayesianPersonalizedRanking(
        factors=factors, iterations=iterations, random_state=seed, num_threads=1
    )
    model.fit(listening.matrix, show_progress=False)
    return _factors(model, listening.audiobooks)


def _factors(model: Any, titles: int) -> Scorer:
    users, items = np.asarray(model.user_factors), np.asarray(model.item_factors)[:titles]
    return lambda chosen: users[chosen] @ items.T


def light_gcn(listening: Listening, settings: Rivals, validate: Callable[[Scorer], float]) -> Scorer:
    """PyG's LightGCN on the bipartite graph, BPR loss; the epoch that is best on validation is kept."""
    import torch
    from torch_geometric.nn.models import LightGCN

    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    coo = listening.matrix.tocoo()
    users, items = listening.matrix.shape
    user, item = (
        torch.from_numpy(coo.row.astype(np.int64)),
        torch.from_numpy(coo.col.astype(np.int64)) + users,
    )
    adjacency = _normalized(listening.matrix)
    model = LightGCN(users + items, settings.lightgcn_dim, settings.lightgcn_layers, normalize=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batch = max(8_192, len(user) // 8)

    def scorer() -> Scorer:
        with torch.no_grad():
            found = model.get_embedding(adjacency).numpy()
        own, titles = found[:users], found[users : users + listening.audiobooks]
        return lambda chosen: own[chosen] @ titles.T

    best, best_rate, since = scorer(), -1.0, 0
    for _ in range(settings.lightgcn_epochs):
        for rows in torch.randperm(len(user), generator=generator).split(batch):
            embedding = model.get_embedding(adjacency)
            # A negative of the positive's own type: an artist is no alternative to an audiobook.
            negative = _same_type(item[rows] - users, listening, items, generator) + users
            anchor, positive = embedding[user[rows]], embedding[item[rows]]
            difference = (anchor * (positive - embedding[negative])).sum(dim=1)
            penalty = model.embedding.weight[torch.cat([user[rows], item[rows], negative])].square().sum()
            loss = -torch.nn.functional.logsigmoid(difference).mean() + 1e-4 * penalty / len(rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        now = scorer()
        rate = validate(now)
        if rate > best_rate:
            best, best_rate, since = now, rate, 0
        elif (since := since + 1) >= 4:
            break
    return best


def _normalized(streamed: sp.csr_matrix) -> Any:
    """D^-1/2 A D^-1/2 of the bipartite graph, users first (He et al. 2020, equation 8).

    Normalised once and as a sparse matrix, whose product is a tenth of the work of messages edge by edge.
    """
    import torch

    graph = sp.bmat([[None, streamed], [streamed.T, None]], format="csr", dtype=np.float32)
    root = sp.diags_array(1.0 / np.sqrt(np.maximum(graph.sum(axis=1).A1, 1.0), dtype=np.float32))
    scaled = (root @ graph @ root).tocsr()
    return torch.sparse_csr_tensor(
        torch.from_numpy(scaled.indptr.astype(np.int64)),
        torch.from_numpy(scaled.indices.astype(np.int64)),
        torch.from_numpy(scaled.data),
        size=scaled.shape,
    )


def _same_type(items: Any, listening: Listening, width: int, generator: Any) -> Any:
    """A uniformly drawn item of each item's own type."""
    import torch

    edges = torch.tensor([0, listening.audiobooks, listening.audiobooks + listening.podcasts, width])
    kind = torch.bucketize(items, edges[1:-1], right=True)
    low, high = edges[kind], edges[kind + 1]
    return low + (torch.rand(len(items), generator=generator) * (high - low)).long()


def nearest_to_mean(streamed: sp.csr_matrix, vectors: np.ndarray) -> Scorer:
    """Inner product with the mean vector of the user's audiobooks; nothing for users without any (warm only)."""
    return lambda users: np.asarray(streamed[users] @ vectors) @ vectors.T


class BoostedTrees:
    """LambdaRank on what is known of a user and a title on a day: popularity and age, similarity by three measures."""

    def __init__(
        self,
        builder: FeatureBuilder,
        listening: Mapping[int, Listening],
        vectors: Vectors,
        settings: Rivals,
        shrinkage: float,
    ) -> None:
        self.builder, self.vectors, self.settings = builder, vectors, settings
        self._listening = listening
        self._similar = {day: item_knn(one, shrinkage) for day, one in listening.items()}
        self._model: Any = None

    def features(self, users: np.ndarray, day: int, cut: int, titles: np.ndarray | None) -> np.ndarray:
        """[R, C, F] of users on a day; similarities from streams before `cut`. `titles` [R, C], None for all."""
        shared = self.builder.popularity(day)
        own = self._listening[cut].matrix[:, : self._listening[cut].audiobooks][users]
        text = np.asarray(own @ self.vectors.audiobook_text)
        text /= np.maximum(np.linalg.norm(text, axis=1, keepdims=True), 1e-9)
        personal = [self._similar[cut](users), text @ self.vectors.audiobook_text.T]
        count = np.log1p(np.asarray(own.sum(axis=1)))
        if titles is None:
            titles = np.broadcast_to(np.arange(len(shared)), (len(users), len(shared)))
        rows = np.arange(len(users))[:, None]
        columns = [shared[titles], *(one[rows, titles][:, :, None] for one in personal)]
        return np.concatenate([*columns, np.broadcast_to(count[:, None], (*titles.shape, 1))], axis=2)

    def examples(self, targets: Targets, cut_of_block: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Features [groups * (1 + negatives), F] and labels of groups of titles, the chosen one among others.

        The others are drawn uniformly: drawn by popularity they would teach that popularity says nothing. Each group
        is in random order: a ranker finds the first of titles that it cannot tell apart.
        """
        generator = np.random.default_rng(self.settings.seed)
        titles_in_all = len(self.vectors.audiobook_text)
        features, labels = [], []
        for day in np.unique(targets.day):
            batch = targets.take(np.flatnonzero(targets.day == day))
            drawn = generator.integers(titles_in_all, size=(len(batch), self.settings.gbdt_negatives))
            titles = np.concatenate([batch.audiobook_idx[:, None], drawn], axis=1)
            titles = generator.permuted(titles, axis=1)
            found = self.features(batch.user_idx, int(day), cut_of_block[int(batch.block[0])], titles)
            features.append(found.reshape(titles.size, -1))
            labels.append((titles == batch.audiobook_idx[:, None]).ravel())
        return np.concatenate(features), np.concatenate(labels).astype(int)

    def fit(self, targets: Targets, cut_of_block: Sequence[int]) -> BoostedTrees:
        """Grow as many trees as the longest try asks for; `score` uses the first of them."""
        import lightgbm

        rows = evenly_spread(np.arange(len(targets)), self.settings.gbdt_targets)
        features, labels = self.examples(targets.take(rows), cut_of_block)
        width = self.settings.gbdt_negatives + 1
        self._model = lightgbm.LGBMRanker(
            n_estimators=max(self.settings.gbdt_trees),
            learning_rate=0.05,
            num_leaves=31,
            min_child_samples=50,
            random_state=self.settings.seed,
            n_jobs=1,
            deterministic=True,
            verbose=-1,
        ).fit(features, labels, group=[width] * (len(labels) // width))
        return self

    def score(self, users: np.ndarray, day: int, trees: int) -> np.ndarray:
        """[R, audiobooks] on a day by the first `trees`, similarities from streams before it."""
        parts = []
        for start in range(0, len(users), 64):
            found = self.features(users[start : start + 64], day, day, None)
            flat = found.reshape(-1, found.shape[2])
            parts.append(self._model.predict(flat, num_iteration=trees).reshape(found.shape[:2]))
        return np.concatenate(parts)


class Field:
    """All rivals of one hold-out, tuned on validation and fitted up to the split."""

    def __init__(self, settings: Settings, inputs: Inputs, hold_out: HoldOut, extract: Extract) -> None:
        self.settings, self.hold_out, self.extract = settings, hold_out, extract
        self.cuts = cuts(inputs.as_of, settings.time)
        artists = ArtistVectors.load(inputs.store, inputs["embed_music"])
        config = FeatureConfig(
            window_days=settings.time.window_days,
            popularity_windows=settings.evaluation.popularity_windows,
            music_dimensions=artists.vectors.shape[1],
            use_hgnn=False,
        )
        self.builder = FeatureBuilder(extract, config, *artists.aligned(extract.artists), self.cuts.first_day)
        self.vectors = load_vectors(
            inputs.store, inputs["embed_text"], inputs["train_hgnn"], self.cuts.judge.name, hold_out.split
        )
        found = find_targets(extract, self.cuts, settings.time, len(extract.first_streams) + 1, 0)
        self.targets = found
        self.validation = found.take(np.flatnonzero(found.validation))
        if not len(self.validation):
            raise BadData(
                "no audiobook was first streamed on the validation days, so no rival's hyperparameters can be chosen; "
                "lengthen time.target_days or time.validation_days"
            )
        self._listening: dict[int, Listening] = {}

    def listening(self, day: int) -> Listening:
        """Streams before a day."""
        if day not in self._listening:
            first = DAY_ZERO + timedelta(days=int(self.builder.window_start(np.array(day))))
            self._listening[day] = Listening.before(self.extract, max(first, self.cuts.first_day), day)
        return self._listening[day]

    @property
    def first_validation_day(self) -> int:
        return int(self.validation.day.min())

    def rate(self, scorer: Scorer, times: Callable[[int], np.ndarray] | None = None) -> float:
        """HR@10 on the validation targets, as known on the first of their days (popularity on each)."""
        hits = []
        for start in range(0, len(self.validation), 256):
            batch = self.validation.take(np.arange(start, min(start + 256, len(self.validation))))
            scores = scorer(batch.user_idx)
            if times is not None:
                scores = scores * np.stack([times(int(day)) for day in batch.day])
            barred = self.builder.streamed_before(batch.user_idx, batch.day).toarray() > 0
            shown = top_k(scores, barred, self.settings.evaluation.hit_k)
            ranks = first_hit_ranks(shown, np.arange(len(batch) + 1), batch.audiobook_idx)
            hits.append(hit_rate_at_k(ranks, self.settings.evaluation.hit_k))
        return float(np.concatenate(hits).mean())

    def tuned(self, make: Callable[[Listening, float], Scorer], grid: Sequence[float]) -> tuple[float, float]:
        """The value whose model of streams before the validation days hits best on them, and its rate."""
        past = self.listening(self.first_validation_day)
        rates = {value: self.rate(make(past, value)) if len(grid) > 1 else 0.0 for value in grid}
        best = max(grid, key=lambda value: rates[value])
        return best, rates[best]

    def popularity(self, day: int, window: int) -> np.ndarray:
        """Streams in a window before a day, a tenth added so that a product keeps its order where there are none."""
        start = max(int(self.builder.window_start(np.array(day))), day - window)
        return self.builder.streams(start, day) + 0.1


Maker = Callable[[Field], tuple[Ranker, dict[str, Any]]]


def _by_user(field: Field, scorer: Scorer) -> Ranker:
    return lambda rows: scorer(field.hold_out.users[rows])


def _item_knn(field: Field) -> tuple[Ranker, dict[str, Any]]:
    chosen, rate = field.tuned(item_knn, field.settings.rivals.item_knn_shrinkage)
    return _by_user(field, item_knn(field.listening(field.hold_out.split), chosen)), {
        "shrinkage": chosen,
        "validation": rate,
    }


def _product(field: Field) -> tuple[Ranker, dict[str, Any]]:
    """Similarity times recent popularity; both the shrinkage and the window by validation."""
    past = field.listening(field.first_validation_day)
    rates = {}
    for shrinkage in field.settings.rivals.item_knn_shrinkage:
        scorer = item_knn(past, shrinkage)
        for window in field.settings.evaluation.popularity_windows:
            rates[shrinkage, window] = field.rate(
                lambda users, s=scorer: s(users) + 1e-6,  # type: ignore[misc]
                lambda day, w=window: field.popularity(day, w),  # type: ignore[misc]
            )
    shrinkage, window = max(rates, key=lambda key: rates[key])
    scorer = item_knn(field.listening(field.hold_out.split), shrinkage)
    popularity = field.popularity(field.hold_out.split, window)
    return _by_user(field, lambda users: (scorer(users) + 1e-6) * popularity), {
        "shrinkage": shrinkage,
        "window": window,
        "validation": rates[shrinkage, window],
    }


def _ease(field: Field) -> tuple[Ranker, dict[str, Any]]:
    chosen, rate = field.tuned(ease, field.settings.rivals.ease_ridge)
    return _by_user(field, ease(field.listening(field.hold_out.split), chosen)), {
        "ridge": chosen,
        "validation": rate,
    }


def _als(field: Field) -> tuple[Ranker, dict[str, Any]]:
    settings = field.settings.rivals

    def make(listening: Listening, regularization: float) -> Scorer:
        return als(listening, settings.als_factors, regularization, settings.seed)

    chosen, rate = field.tuned(make, settings.als_regularization)
    return _by_user(field, make(field.listening(field.hold_out.split), chosen)), {
        "regularization": chosen,
        "validation": rate,
    }


def _bpr(field: Field) -> tuple[Ranker, dict[str, Any]]:
    settings = field.settings.rivals
    scorer = bpr(
        field.listening(field.hold_out.split), settings.bpr_factors, settings.bpr_iterations, settings.seed
    )
    return _by_user(field, scorer), {"iterations": settings.bpr_iterations}


def _light_gcn(field: Field) -> tuple[Ranker, dict[str, Any]]:
    # Its epoch is chosen on targets that its graph holds; that can only flatter it.
    scorer = light_gcn(field.listening(field.hold_out.split), field.settings.rivals, field.rate)
    return _by_user(field, scorer), {}


def _llm_knn(field: Field) -> tuple[Ranker, dict[str, Any]]:
    return _nearest(field, field.vectors.audiobook_text), {}


def _hgnn(field: Field) -> tuple[Ranker, dict[str, Any]]:
    return _nearest(field, np.asarray(field.vectors.raw("hgnn")[0])), {}


def _hgnn_with_users(field: Field) -> tuple[Ranker, dict[str, Any]]:
    from models import user_graph

    # As with LightGCN, its stopping point is chosen on targets that its graph holds.
    listening = field.listening(field.hold_out.split)
    last = listening.audiobooks + listening.podcasts
    streams = {
        "audiobook": listening.matrix[:, : listening.audiobooks],
        "podcast": listening.matrix[:, listening.audiobooks : last],
    }
    text = {"audiobook": field.vectors.audiobook_text, "podcast": field.vectors.podcast_text}
    settings = field.settings.rivals
    scorer = user_graph.train(
        streams,
        text,
        field.rate,
        dim=settings.user_graph_dim,
        steps=settings.user_graph_steps,
        seed=settings.seed,
    )
    return _by_user(field, scorer), {}


def _nearest(field: Field, vectors: np.ndarray) -> Ranker:
    listening = field.listening(field.hold_out.split)
    streamed = listening.matrix[:, : listening.audiobooks]
    return _by_user(field, nearest_to_mean(streamed, np.asarray(vectors, np.float32)))


def _boosted(field: Field) -> tuple[Ranker, dict[str, Any]]:
    from audiorec.catalogue import day_number

    blocks = [day_number(block.first_day) for block in field.cuts.blocks]
    split, first = field.hold_out.split, field.first_validation_day
    shrinkage, _ = field.tuned(item_knn, field.settings.rivals.item_knn_shrinkage)
    listening = {day: field.listening(day) for day in {*blocks, first, split}}
    model = BoostedTrees(field.builder, listening, field.vectors, field.settings.rivals, shrinkage)
    model.fit(field.targets.take(np.flatnonzero(~field.targets.validation)), blocks)
    rates = {
        trees: field.rate(lambda users, n=trees: model.score(users, first, n))  # type: ignore[misc]
        for trees in field.settings.rivals.gbdt_trees
    }
    trees = max(rates, key=lambda number: rates[number])
    model.fit(field.targets, blocks)
    return _by_user(field, lambda users: model.score(users, split, trees)), {
        "trees": trees,
        "validation": rates[trees],
    }


MODELS: dict[str, Maker] = {
    "LLM-KNN": _llm_knn,
    "HGNN": _hgnn,
    "HGNN-w-users": _hgnn_with_users,
    "item-kNN": _item_knn,
    "item-kNN x recent popularity": _product,
    "EASE": _ease,
    "ALS": _als,
    "BPR": _bpr,
    "LightGCN": _light_gcn,
    "boosted trees": _boosted,
}
"""Rivals by the name that tables show."""


def run(settings: Settings, inputs: Inputs, out: Output) -> Manifest:
    """Write `ranks.parquet` (as `evaluate` does) and `chosen.json`: what validation chose for each."""
    import time

    import torch

    torch.set_num_threads(settings.resources["rivals"].threads)
    extract = load_extract(settings, inputs)
    hold_out = make_hold_out(extract, cuts(inputs.as_of, settings.time), settings.evaluation)
    field = Field(settings, inputs, hold_out, extract)
    wanted = settings.rivals.models or tuple(MODELS)
    unknown = sorted(set(wanted) - set(MODELS))
    if unknown:
        raise BadSettings(f"rivals.models names {unknown}, which do not exist; known: {', '.join(MODELS)}")
    progress = Progress(len(wanted), "rivals")
    judgements: dict[str, Judgement] = {}
    chosen: dict[str, dict[str, Any]] = {}
    seconds = {}
    for name in wanted:
        started = time.monotonic()
        ranker, chosen[name] = MODELS[name](field)
        judgements[name] = judge(hold_out, ranker, settings.evaluation.depth)
        seconds[name] = round(time.monotonic() - started, 1)
        progress.advance(note=f"{name} {seconds[name]} s")
    ranks_table(extract, hold_out, judgements).to_parquet(out.path("ranks.parquet"), index=False)
    coverage_table(hold_out, judgements).to_csv(out.path("coverage.csv"), index=False)
    out.path("chosen.json").write_text(json.dumps(chosen, sort_keys=True, indent=1) + "\n")
    out.run["model_seconds"] = seconds
    return out.commit(counts={"users": len(hold_out.users)}, titles=hold_out.titles, chosen=chosen)


if __name__ == "__main__":
    from audiorec.runner import main

    main("rivals")
