"""The two towers in use: targets and their days, the popularity prior, training, and vectors for an index.

Every target is predicted from what was known on its day: the user's history and the catalogue's popularity end
the day before, and the graph behind the HGNN embeddings ends before the target's block (design 4).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from audiorec.catalogue import Extract, day_number
from audiorec.cuts import Cuts
from audiorec.features import (
    FeatureBuilder,
    FeatureConfig,
    FeatureSpec,
    ItemFeatures,
    UserFeatures,
    Vectors,
    fit_spec,
)
from audiorec.settings import Time, TwoTowerSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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
    """A trained two-tower model with all it needs to rebuild its features."""

    name: str
    model: TwoTower
    spec: FeatureSpec
    prior: np.ndarray

    def item_vectors(self, items: ItemFeatures) -> np.ndarray:
        """Audiobook vectors [N, 129], the popularity bias in the last coordinate."""
        import torch

        self.model.eval()
        with torch.no_grad():
            return self.model.item_vectors(*item_tensors(items, self.prior)).numpy()

    def user_vectors(self, users: UserFeatures) -> np.ndarray:
        """User vectors [R, 129]; the inner product with an item vector is the score."""
        import torch

        self.model.eval()
        with torch.no_grad():
            parts = [
                self.model.user_vectors(
                    torch.from_numpy(users.country_idx[start : start + 8192]),
                    torch.from_numpy(users.dense[start : start + 8192]),
                ).numpy()
                for start in range(0, len(users.dense), 8192)
            ]
        return np.concatenate(parts) if parts else np.zeros((0, self.model.dim), np.float32)

    def save(self, weights: Path, record: Path) -> None:
        """Write the weights as safetensors and everything else as JSON."""
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in self.model.state_dict().items()}, weights)
        described = {
            "name": self.name,
            "model": asdict(self.model.config),
            "features": self.spec.to_json(),
            "prior": self.prior.tolist(),
        }
        record.write_text(json.dumps(described, sort_keys=True) + "\n")

    @classmethod
    def load(cls, weights: Path, record: Path) -> Towers:
        """Read what `save` wrote."""
        from safetensors.torch import load_file

        from models.two_tower import TwoTower, TwoTowerConfig

        described = json.loads(record.read_text())
        config = dict(described["model"])
        config["hidden"] = tuple(config["hidden"])
        model = TwoTower(TwoTowerConfig(**config))
        model.load_state_dict(load_file(weights))
        return cls(
            described["name"],
            model.eval(),
            FeatureSpec.from_json(described["features"]),
            np.asarray(described["prior"], np.float32),
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


def fit_prior(
    days: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], start: np.ndarray, ridge: float = 1.0
) -> np.ndarray:
    """Weights of a conditional logit on popularity and age alone: the untrained model.

    Departure from the paper, which has no prior: on data with real times recent popularity is the rival to beat
    (docs/adr), and the best mix of windows differs from source to source, so it is fitted on the training targets.

    Args:
        days: one entry a target day: features [N, P], available bool [N], targets [T_day] (audiobook_idx).
        start: weights [P] that the ridge pulls to.
        ridge: pull, in units of one target's log-likelihood.
    """
    import torch

    torch_days = [
        (torch.from_numpy(f).double(), torch.from_numpy(~a), torch.from_numpy(t))
        for f, a, t in days
        if len(t)
    ]
    centre = torch.from_numpy(start).double()
    weights = centre.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def negative_log_likelihood() -> Tensor:
        optimizer.zero_grad()
        total = ridge * ((weights - centre) ** 2).sum()
        for features, unavailable, targets in torch_days:
            scores = (features @ weights).masked_fill(unavailable, -torch.inf)
            total = total + len(targets) * torch.logsumexp(scores, 0) - (features[targets] @ weights).sum()
        total.backward()
        return total

    if torch_days:
        optimizer.step(negative_log_likelihood)
    return weights.detach().numpy().astype(np.float32)


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
        sample = training[np.linspace(0, len(training) - 1, min(len(training), 20_000)).astype(int)]
        raw_users = self._user_features(targets.take(sample), None)
        last_day = int(targets.day[training[-1]]) if len(training) else int(targets.day[-1])
        raw_items = builder.items(last_day, vectors[-1], None)
        self.spec = fit_spec(builder, raw_users, raw_items)
        self._items: dict[int, ItemFeatures] = {}
        self._cache_days = raw_items.dense.size * len(np.unique(targets.day)) < _CACHED_NUMBERS
        self._users: UserFeatures | None = None
        if len(targets) * raw_users.dense.shape[1] < _CACHED_NUMBERS:
            self._users = self._user_features(targets, self.spec)
        self._fit_prior(training)

    def _user_features(self, targets: Targets, spec: FeatureSpec | None) -> UserFeatures:
        """Features of each target's user as known before its day, in the targets' order."""
        order = np.argsort(targets.block, kind="stable")
        parts = [
            self.builder.users(targets.user_idx[rows], targets.day[rows], self.vectors[block], spec)
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

    def _fit_prior(self, training: np.ndarray) -> None:
        days = []
        for day, rows in _by(self.targets.day[training]):
            items = self.items(day, int(self.targets.block[training[rows[0]]]))
            days.append((items.popularity, items.available, self.targets.audiobook_idx[training[rows]]))
        width = days[0][0].shape[1] if days else self.items(int(self.targets.day[0]), 0).popularity.shape[1]
        start = starting_prior(self.spec.config, width)
        self.prior = fit_prior(days, start) if self.settings.popularity_prior else np.zeros(width, np.float32)

    def items(self, day: int, block: int) -> ItemFeatures:
        """Scaled features of the catalogue on a day; cached while the catalogue is small."""
        if day not in self._items:
            found = self.builder.items(day, self.vectors[block], self.spec)
            if not self._cache_days:
                return found
            self._items[day] = found
        return self._items[day]

    def fit(self, report: Callable[[dict[str, Any]], None]) -> tuple[Towers, list[dict[str, Any]]]:
        """Train until the validation targets stop gaining; the untrained model (the prior) is epoch 0.

        Returns the towers of the best epoch and a line of figures an epoch.
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
        towers = Towers(self.name, model, self.spec, self.prior)
        history = [{"epoch": 0, "loss": None, **self.validate(towers)}]
        report(history[0])
        best = {name: value.clone() for name, value in model.state_dict().items()}
        best_epoch = 0
        training = np.flatnonzero(~self.targets.validation)
        for epoch in range(1, settings.epochs + 1):
            model.train()
            losses = [
                self._step(model, optimizer, rows, generator) for rows in self._batches(training, generator)
            ]
            line = {
                "epoch": epoch,
                "loss": float(np.mean(losses)) if losses else None,
                **self.validate(towers),
            }
            history.append(line)
            report(line)
            if line["objective"] > history[best_epoch]["objective"]:
                best_epoch = epoch
                best = {name: value.clone() for name, value in model.state_dict().items()}
            if epoch - best_epoch >= settings.patience:
                break
        model.load_state_dict(best)
        return towers, [{**line, "best": line["epoch"] == best_epoch} for line in history]

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
        model: TwoTower,
        optimizer: torch.optim.Optimizer,
        targets: np.ndarray,
        generator: np.random.Generator,
    ) -> float:
        import torch

        from models.losses import inverse_propensity_loss, softmax_loss

        batch = self.targets.take(targets)
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
            loss = softmax_loss(
                user @ item.T,
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

    def validate(self, towers: Towers) -> dict[str, Any]:
        """Figures on the validation targets: log-likelihood a target, HR@10 and MRR@100 over the whole catalogue.

        `objective` is what stopping goes by: the log-likelihood under a softmax (steadier than hits), MRR otherwise.
        """
        validation = np.flatnonzero(self.targets.validation)
        if not len(validation):
            return {"log_likelihood": 0.0, "hr_10": 0.0, "mrr": 0.0, "objective": 0.0}
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
        rank = np.concatenate(ranks)
        mean_likelihood = float(np.concatenate(likelihood).mean())
        mrr = float(np.where(rank <= 100, 1.0 / rank, 0.0).mean())
        return {
            "log_likelihood": mean_likelihood,
            "hr_10": float((rank <= 10).mean()),
            "mrr": mrr,
            "objective": mean_likelihood if self.settings.loss == "softmax" else mrr,
        }


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
        use_hgnn=use_hgnn,
    )
