"""The two towers in use: targets and their days, the base, training, and vectors for an index.

Every target is predicted from what was known on its day: the user's history and the catalogue's popularity end
the day before, and the graph behind the HGNN embeddings ends before the target's block (design 4).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from audiorec.affinities import COUNTRY, Affinities, join_spaces
from audiorec.catalogue import Extract, day_number
from audiorec.cuts import Cuts
from audiorec.embeddings import load_text
from audiorec.errors import BadData
from audiorec.features import (
    FeatureBuilder,
    FeatureConfig,
    FeatureSpec,
    ItemFeatures,
    UserFeatures,
    Vectors,
    fit_spaces,
    fit_spec,
)
from audiorec.loglinear import Day, draw_candidates, fit_loglinear
from audiorec.settings import Time, TwoTowerSettings
from audiorec.store import Manifest, Store

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from audiorec.affinities import Space
    from models.two_tower import TwoTower

MODELS = ("2T-HGNN", "2T")
"""The two-tower model, and the same without HGNN (text vectors in place of HGNN embeddings)."""


_CACHED_NUMBERS = 250_000_000
"""Features kept in memory through a training, at most (a gigabyte of float32); more are made anew each time."""


@dataclass(frozen=True)
class Targets:
    """First streams to learn from: who, what, on which day (number), in which block, and whether for validation."""

    user_idx: np.ndarray
    audiobook_idx: np.ndarray
    day: np.ndarray
    block: np.ndarray
    validation: np.ndarray

    def __len__(self) -> int:
        return len(self.day)

    def take(self, rows: np.ndarray) -> Targets:
        return Targets(
            *(
                getattr(self, name)[rows]
                for name in ("user_idx", "audiobook_idx", "day", "block", "validation")
            )
        )


def find_targets(extract: Extract, cuts: Cuts, time: Time, max_targets: int, seed: int) -> Targets:
    """First streams on the target days; the last of those days are for validation.

    `validation_days` are lengthened until they hold `validation_targets` or `validation_share` of all targets,
    whichever is less. Beyond `max_targets` a seeded sample of the training targets is used.
    """
    firsts = extract.first_streams
    day = firsts["day"].to_numpy(np.int64)
    block = np.full(len(firsts), -1)
    for number, one in enumerate(cuts.blocks):
        block[(day >= day_number(one.first_day)) & (day <= day_number(one.last_day))] = number
    chosen = firsts[block >= 0]
    day, block = day[block >= 0], block[block >= 0]
    last = day_number(cuts.blocks[-1].last_day)
    wanted = min(time.validation_targets, int(np.ceil(time.validation_share * len(day))))
    days = time.validation_days
    while (day > last - days).sum() < wanted and days < time.target_days - 1:
        days += 1
    validation = day > last - days
    found = Targets(
        chosen["user_idx"].to_numpy(np.int64),
        chosen["audiobook_idx"].to_numpy(np.int64),
        day,
        block,
        validation,
    )
    training = np.flatnonzero(~validation)
    if len(training) > max_targets:
        kept = np.random.default_rng(seed).choice(training, max_targets, replace=False)
        found = found.take(np.sort(np.concatenate([kept, np.flatnonzero(validation)])))
    order = np.lexsort((found.audiobook_idx, found.user_idx, found.day))
    return found.take(order)


@dataclass(frozen=True)
class Towers:
    """A trained two-tower model with all it needs to rebuild its features.

    The score of a user and a title is the inner product of their vectors: what the towers say, plus the title's
    popularity by the weights of `prior`, plus the affinities by those of `affinity` (by channel; none without).
    """

    name: str
    model: TwoTower
    spec: FeatureSpec
    prior: np.ndarray
    affinity: Mapping[str, float] | None = None
    introduction_share: float = 0.0
    """Of the first ten places, for titles that nobody has streamed yet (`audiorec.introduction`)."""

    @property
    def bias_column(self) -> int:
        """Where a title's vector holds its bias."""
        return int(self.model.dim) - 1

    @property
    def affinities(self) -> Affinities | None:
        """The weighted channels, None in a model without."""
        if self.affinity is None:
            return None
        return Affinities(self.spec.layout, self.spec.lift_countries, self.affinity)

    def item_vectors(self, items: ItemFeatures) -> np.ndarray:
        """Audiobook vectors [N, 129 + D]: the towers' 128, the popularity bias, and the places in each space."""
        import torch

        self.model.eval()
        with torch.no_grad():
            vectors = self.model.item_vectors(*item_tensors(items, self.prior)).numpy()
        return np.concatenate([vectors, self.item_places(items)], axis=1)

    def item_places(self, items: ItemFeatures) -> np.ndarray:
        """The titles' side of the affinities [N, D]; no column in a model without."""
        affinities = self.affinities
        if affinities is None:
            return np.zeros((len(items.dense), 0), np.float32)
        return join_spaces(items.spaces, affinities.spaces)

    def user_vectors(self, users: UserFeatures) -> np.ndarray:
        """User vectors [R, 129 + D]; the inner product with an item vector is the score."""
        import torch

        self.model.eval()
        parts = [
            np.zeros((0, self.model.dim + self.user_places(_rows(users, slice(0, 0))).shape[1]), np.float32)
        ]
        for start in range(0, len(users.dense), 8192):
            some = _rows(users, slice(start, start + 8192))
            with torch.no_grad():
                vectors = self.model.user_vectors(
                    torch.from_numpy(some.country_idx), torch.from_numpy(some.dense)
                ).numpy()
            parts.append(np.concatenate([vectors, self.user_places(some)], axis=1))
        return np.concatenate(parts)

    def user_places(self, users: UserFeatures) -> np.ndarray:
        """The users' side of the affinities [R, D]; no column in a model without."""
        affinities = self.affinities
        if affinities is None:
            return np.zeros((len(users.dense), 0), np.float32)
        return affinities.users(self.spec.raw_users(users.dense), users.country_idx)

    def save(self, weights: Path, record: Path) -> None:
        """Write the arrays as safetensors and everything else as JSON."""
        import torch
        from safetensors.torch import save_file

        arrays = {k: v.contiguous() for k, v in self.model.state_dict().items()}
        save_file(arrays | {k: torch.from_numpy(v.copy()) for k, v in self.spec.tensors().items()}, weights)
        described = {
            "name": self.name,
            "model": asdict(self.model.config),
            "features": self.spec.to_json(),
            "prior": self.prior.tolist(),
            "affinity": None if self.affinity is None else dict(self.affinity),
            "introduction_share": self.introduction_share,
        }
        record.write_text(json.dumps(described, sort_keys=True) + "\n")

    @classmethod
    def load(cls, weights: Path, record: Path) -> Towers:
        """Read what `save` wrote.

        Raises:
            BadData: it was written before versions had affinities.
        """
        from safetensors.torch import load_file

        from models.two_tower import TwoTower, TwoTowerConfig

        described = json.loads(record.read_text())
        if "affinity" not in described:
            raise BadData(
                f"{record.name} was written by an older version of this code, without affinities; run its date again"
            )
        config = dict(described["model"])
        config["hidden"] = tuple(config["hidden"])
        model = TwoTower(TwoTowerConfig(**config))
        arrays = load_file(weights)
        own = {name: arrays.pop(name) for name in [n for n in arrays if n.startswith(("spec.", "space."))]}
        model.load_state_dict(arrays)
        return cls(
            described["name"],
            model.eval(),
            FeatureSpec.from_json(described["features"], {name: v.numpy() for name, v in own.items()}),
            np.asarray(described["prior"], np.float32),
            described["affinity"],
            described.get("introduction_share", 0.0),  # versions before had none
        )


def _rows(users: UserFeatures, rows: slice) -> UserFeatures:
    return UserFeatures(users.country_idx[rows], users.dense[rows])


def load_vectors(
    store: Store, text: Manifest, hgnn: Manifest, cut: str, before: int | None = None
) -> Vectors:
    """Text vectors and the HGNN embeddings of one cut, which ends before a day number."""
    matrices = load_text(store, text)
    embedded = {
        kind: np.load(store.open(hgnn, f"{cut}.{kind}.npy"), mmap_mode="r", allow_pickle=False)
        for kind in ("audiobook", "podcast")
    }
    return Vectors(
        matrices["audiobook"], matrices["podcast"], embedded["audiobook"], embedded["podcast"], before
    )


def item_tensors(items: ItemFeatures, prior: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Language, genre, dense features and log popularity as the item tower takes them."""
    import torch

    return (
        torch.from_numpy(items.language_idx),
        torch.from_numpy(items.genre_idx),
        torch.from_numpy(items.dense),
        torch.from_numpy((items.popularity @ prior).astype(np.float32)),
    )


def starting_prior(features: FeatureConfig, width: int) -> np.ndarray:
    """Before any target is seen: streams and first streams of all windows count alike, summing to 1."""
    start = np.zeros(width)
    counts = 2 * (len(features.popularity_windows) + 1)
    start[:counts] = 1.0 / counts
    return start


class Trainer:
    """Trains one variant of the towers.

    Args:
        builder: features of the extract; `builder.config.use_hgnn` decides the variant.
        vectors: one entry a target block.
        targets: what is to be predicted.
        settings: sizes, loss, epochs, seed.
    """

    def __init__(
        self,
        name: str,
        builder: FeatureBuilder,
        vectors: Sequence[Vectors],
        targets: Targets,
        settings: TwoTowerSettings,
    ) -> None:
        self.name, self.builder, self.vectors, self.targets, self.settings = (
            name,
            builder,
            vectors,
            targets,
            settings,
        )
        training = np.flatnonzero(~targets.validation)
        sample = evenly_spread(training, 20_000)
        spaces = fit_spaces(builder.config, vectors[0])
        raw_users = self._user_features(targets.take(sample), None, spaces)
        last_day = int(targets.day[training[-1]]) if len(training) else int(targets.day[-1])
        raw_items = builder.items(last_day, vectors[-1], None)
        self.spec = fit_spec(builder, raw_users, raw_items, spaces)
        self._items: dict[int, ItemFeatures] = {}
        self._cache_days = raw_items.dense.size * len(np.unique(targets.day)) < _CACHED_NUMBERS
        self._users: UserFeatures | None = None
        if len(targets) * raw_users.dense.shape[1] < _CACHED_NUMBERS:
            self._users = self._user_features(targets, self.spec)
        self.affinity: dict[str, float] | None = None
        self._fit_base(training)

    def _user_features(
        self, targets: Targets, spec: FeatureSpec | None, spaces: Mapping[str, Space] | None = None
    ) -> UserFeatures:
        """Features of each target's user as known before its day, in the targets' order."""
        order = np.argsort(targets.block, kind="stable")
        parts = [
            self.builder.users(targets.user_idx[rows], targets.day[rows], self.vectors[block], spec, spaces)
            for block, rows in _by(targets.block)
        ]
        back = np.argsort(order, kind="stable")
        return UserFeatures(
            np.concatenate([p.country_idx for p in parts])[back],
            np.concatenate([p.dense for p in parts])[back],
        )

    def users(self, rows: np.ndarray) -> UserFeatures:
        """Scaled features of the users of some targets; made once where they fit in memory."""
        if self._users is None:
            return self._user_features(self.targets.take(rows), self.spec)
        return UserFeatures(self._users.country_idx[rows], self._users.dense[rows])

    def _fit_base(self, training: np.ndarray) -> None:
        """Weights of popularity and of the affinities: the untrained model."""
        width = self.items(int(self.targets.day[0]), int(self.targets.block[0])).popularity.shape[1]
        start = starting_prior(self.spec.config, width)
        self.prior = np.zeros(width, np.float32)
        if not self.settings.popularity_prior:
            return
        affinities = (
            Affinities(self.spec.layout, self.spec.lift_countries, {}) if self.settings.affinities else None
        )
        names = [c.name for c in self.spec.layout.channels()] + [COUNTRY] if affinities else []
        titles = min(len(self.builder.extract.audiobooks), self._base_titles)
        chosen = evenly_spread(training, max(1, _BASE_NUMBERS // (titles * (len(names) + 1))))
        generator = np.random.default_rng(self.settings.seed)
        days = [
            self._base_day(day, chosen[rows], affinities, names, generator)
            for day, rows in _by(self.targets.day[chosen])
        ]
        weights, channel_weights = fit_loglinear(days, start, len(names), self.settings.ridge)
        self.prior = weights.astype(np.float32)
        if affinities:
            self.affinity = {name: float(weight) for name, weight in zip(names, channel_weights, strict=True)}

    @property
    def _base_titles(self) -> int:
        """Titles up to which the base is fitted on the whole catalogue; beyond, on a sample of `negatives`."""
        return max(self.settings.negatives, min(self.settings.full_softmax_limit, 5_000))

    def _base_day(
        self,
        day: int,
        rows: np.ndarray,
        affinities: Affinities | None,
        names: Sequence[str],
        generator: np.random.Generator,
    ) -> Day:
        batch = self.targets.take(rows)
        items = self.items(day, int(batch.block[0]))
        closed = self._closed(batch, items)
        titles = len(items.dense)
        columns, log_odds = np.arange(titles), np.zeros(titles, np.float32)
        if titles > self._base_titles:
            columns, log_odds = draw_candidates(
                titles, batch.audiobook_idx, self.settings.negatives, generator
            )
        scores = np.zeros((len(batch), len(columns), len(names)), np.float32)
        if affinities is not None:
            users = self.users(rows)
            placed = affinities.placed(self.spec.raw_users(users.dense), users.country_idx)
            for number, name in enumerate(names):
                space, places = placed[name]
                scores[:, :, number] = places @ items.spaces[space][columns].T
        return Day(
            items.popularity[columns],
            scores,
            closed[:, columns],
            np.searchsorted(columns, batch.audiobook_idx),
            log_odds,
        )

    def items(self, day: int, block: int) -> ItemFeatures:
        """Scaled features of the catalogue on a day; cached while the catalogue is small."""
        if day not in self._items:
            found = self.builder.items(day, self.vectors[block], self.spec)
            if not self._cache_days:
                return found
            self._items[day] = found
        return self._items[day]

    def fit(self, report: Callable[[dict[str, Any]], None]) -> tuple[Towers, list[dict[str, Any]]]:
        """Train until the validation targets stop gaining; the untrained model (the base) is epoch 0.

        Kept is the earliest epoch that the best one does not beat by more than one standard error of the paired
        difference: what the last few gains are made of does not outlive the days they were seen on.
        Returns its towers and a line of figures an epoch.
        """
        import torch

        from models.two_tower import TwoTower

        settings = self.settings
        torch.manual_seed(settings.seed)
        model = TwoTower(self._config())
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        generator = np.random.default_rng(settings.seed)
        towers = Towers(self.name, model, self.spec, self.prior, self.affinity, settings.introduction_share)
        history: list[dict[str, Any]] = []
        objectives: list[np.ndarray] = []
        states: list[dict[str, Tensor]] = []

        def judge_epoch(losses: list[float]) -> None:
            figures, objective = self.validate(towers)
            line = {
                "epoch": len(history),
                "loss": float(np.mean(losses)) if losses else None,
                **figures,
            }
            history.append(line)
            objectives.append(objective)
            states.append({name: value.clone() for name, value in model.state_dict().items()})
            report(line)

        judge_epoch([])
        training = np.flatnonzero(~self.targets.validation)
        for epoch in range(1, settings.epochs + 1):
            model.train()
            judge_epoch(
                [
                    self._step(towers, optimizer, rows, generator)
                    for rows in self._batches(training, generator)
                ]
            )
            best = max(range(len(history)), key=lambda e: (history[e]["objective"], -e))
            if epoch - best >= settings.patience:
                break
        kept = earliest_as_good(objectives)
        model.load_state_dict(states[kept])
        if settings.popularity_prior:
            with torch.no_grad():
                model.scale.mul_(settings.residual_share)
        return towers, [{**line, "best": line["epoch"] == kept} for line in history]

    def _config(self) -> Any:
        from models.two_tower import TwoTowerConfig

        return TwoTowerConfig(
            num_countries=len(self.spec.countries) + 1,
            num_languages=len(self.spec.languages) + 1,
            num_genres=len(self.spec.genres) + 1,
            user_features=len(self.spec.user_mean),
            item_features=len(self.spec.item_mean),
            hidden=self.settings.layers,
            dropout=self.settings.dropout,
            centre_users=self.settings.popularity_prior,
            popularity_prior=self.settings.popularity_prior,
            learn_scale=self.settings.loss == "softmax",
            seed=self.settings.seed,
        )

    def _batches(self, training: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        """Rows of targets of one day together, in random order of days and within them."""
        batches = []
        for _, rows in _by(self.targets.day[training]):
            batches += _parts(generator.permutation(training[rows]), self.settings.batch_size)
        return [batches[i] for i in generator.permutation(len(batches))]

    def _step(
        self,
        towers: Towers,
        optimizer: torch.optim.Optimizer,
        targets: np.ndarray,
        generator: np.random.Generator,
    ) -> float:
        import torch

        from models.losses import inverse_propensity_loss, softmax_loss

        model, batch = towers.model, self.targets.take(targets)
        items = self.items(int(batch.day[0]), int(batch.block[0]))
        users = self.users(targets)
        user = model.user_vectors(torch.from_numpy(users.country_idx), torch.from_numpy(users.dense))
        closed = self._closed(batch, items)
        if self.settings.loss == "inverse_propensity":
            rows = batch.audiobook_idx
            item = model.item_vectors(*(t[rows] for t in item_tensors(items, self.prior)))
            exclude = torch.from_numpy(closed[:, rows] | (rows[:, None] == rows[None, :]))
            loss = inverse_propensity_loss(user, item, self._propensity()[torch.from_numpy(rows)], exclude)
        else:
            rows, log_q = self._candidates(batch, len(items.dense), generator)
            column = np.searchsorted(rows, batch.audiobook_idx)
            item = model.item_vectors(*(t[rows] for t in item_tensors(items, self.prior)))
            # The affinities are as they were fitted; the towers learn what these miss.
            base = towers.user_places(users) @ towers.item_places(items)[rows].T
            loss = softmax_loss(
                user @ item.T + torch.from_numpy(base),
                torch.from_numpy(column),
                None if log_q is None else torch.from_numpy(log_q),
                torch.from_numpy(closed[:, rows]),
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.item())

    def _closed(self, batch: Targets, items: ItemFeatures) -> np.ndarray:
        """bool [B, N]: titles that do not compete: unavailable, streamed before, or streamed first on the same day."""
        closed = self.builder.streamed_before(batch.user_idx, batch.day + 1).toarray() > 0
        closed |= ~items.available[None, :]
        return closed

    def _candidates(
        self, batch: Targets, titles: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Titles of the softmax: all, or the batch's own and a uniform sample with the log of their odds of being drawn."""
        if titles <= self.settings.full_softmax_limit:
            return np.arange(titles), None
        drawn = generator.choice(titles, min(self.settings.negatives, titles), replace=False)
        rows = np.unique(np.concatenate([drawn, batch.audiobook_idx]))
        # Uniform share plus the share of the title among positives: what logQ has to undo (Yi et al. 2019).
        uniform = len(drawn) / titles
        in_batch = np.minimum(1.0, self._positive_share()[rows] * len(batch))
        return rows, np.log(1 - (1 - uniform) * (1 - in_batch)).astype(np.float32)

    def _positive_share(self) -> np.ndarray:
        counts = np.bincount(
            self.targets.audiobook_idx[~self.targets.validation],
            minlength=len(self.builder.extract.audiobooks),
        )
        return counts / max(counts.sum(), 1)

    def _propensity(self) -> Tensor:
        import torch

        smoothed = self._positive_share() + 1.0 / max(len(self.targets), 1)
        return torch.from_numpy((smoothed / smoothed.sum()).astype(np.float32))

    def validate(self, towers: Towers) -> tuple[dict[str, Any], np.ndarray]:
        """Figures on the validation targets, and the objective of each [T].

        Log-likelihood a target, HR@10 and MRR@100 over the whole catalogue. `objective` is what stopping goes by:
        the log-likelihood under a softmax (steadier than hits), the reciprocal rank otherwise.
        """
        validation = np.flatnonzero(self.targets.validation)
        if not len(validation):
            return {"log_likelihood": 0.0, "hr_10": 0.0, "mrr": 0.0, "objective": 0.0}, np.zeros(0)
        likelihood, ranks = [], []
        for day, chosen in _by(self.targets.day[validation]):
            rows = validation[chosen]
            batch = self.targets.take(rows)
            items = self.items(day, int(batch.block[0]))
            item = towers.item_vectors(items)
            scores = towers.user_vectors(self.users(rows)) @ item.T
            own = scores[np.arange(len(rows)), batch.audiobook_idx]
            scores[self._closed(batch, items)] = -np.inf
            top = np.maximum(scores.max(axis=1), own)
            total = np.exp(scores - top[:, None]).sum(axis=1) + np.exp(own - top)
            likelihood.append(own - top - np.log(total))
            ranks.append(1 + (scores > own[:, None]).sum(axis=1))
        rank, by_target = np.concatenate(ranks), np.concatenate(likelihood)
        reciprocal = np.where(rank <= 100, 1.0 / rank, 0.0)
        objective = by_target if self.settings.loss == "softmax" else reciprocal
        figures = {
            "log_likelihood": float(by_target.mean()),
            "hr_10": float((rank <= 10).mean()),
            "mrr": float(reciprocal.mean()),
            "objective": float(objective.mean()),
        }
        return figures, objective


def earliest_as_good(objectives: Sequence[np.ndarray]) -> int:
    """The first epoch that the best one does not beat by more than one standard error of the paired difference.

    Args:
        objectives: one array [T] an epoch, the higher the better, of the same targets.
    """
    best = max(
        range(len(objectives)), key=lambda e: (objectives[e].mean() if len(objectives[e]) else 0.0, -e)
    )
    for epoch in range(best):
        lead = objectives[best] - objectives[epoch]
        if len(lead) < 2 or lead.mean() <= lead.std(ddof=1) / np.sqrt(len(lead)):
            return epoch
    return best


_BASE_NUMBERS = 100_000_000
"""Scores (targets x titles x channels) that the base is fitted on, at most: 400 MB."""


def evenly_spread(rows: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` of the rows, evenly spread over them."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), limit)).astype(int)]


def _by(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(value, rows) of each distinct value, in order."""
    order = np.argsort(values, kind="stable")
    distinct, starts = np.unique(values[order], return_index=True)
    for value, rows in zip(distinct, np.split(order, starts[1:]), strict=True):
        yield int(value), rows


def _parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def relevant_titles(extract: Extract, first: int, last: int) -> sp.csr_matrix:
    """0/1 [users, audiobooks]: first streams on day numbers first..last."""
    firsts: pd.DataFrame = extract.first_streams
    chosen = firsts[(firsts["day"] >= first) & (firsts["day"] <= last)]
    shape = (len(extract.users), len(extract.audiobooks))
    return sp.csr_matrix((np.ones(len(chosen)), (chosen["user_idx"], chosen["audiobook_idx"])), shape=shape)


def feature_config(
    settings: TwoTowerSettings, time: Time, music_dimensions: int, use_hgnn: bool
) -> FeatureConfig:
    """The part of the settings that says what features are made of."""
    return FeatureConfig(
        window_days=time.window_days,
        popularity_windows=settings.popularity_windows,
        popularity_smoothing=settings.popularity_smoothing,
        weak_signals=settings.weak_signals,
        music_dimensions=music_dimensions,
        text_dimensions=settings.text_dimensions,
        use_hgnn=use_hgnn,
        music=settings.music,
        demographics=settings.demographics,
    )
