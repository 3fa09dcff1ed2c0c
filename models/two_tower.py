"""The two towers (paper 4.2): users from what they did, audiobooks from what they are, one inner product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.functional import l2_normalize
from models.sampler import seeded_generator


@dataclass(frozen=True)
class TwoTowerConfig:
    """Sizes and choices of both towers. Vocabulary sizes count index 0, kept for unknown or missing.

    Dense inputs are standardised, and missing ones filled and flagged, before they come here.
    """

    num_countries: int
    num_languages: int
    num_genres: int
    user_features: int
    """Width of the dense user input: age, music vector, pooled item vectors, flags."""
    item_features: int
    """Width of the dense item input: text, HGNN vector."""
    popularity_features: int = 0
    """Width of the popularity features that the learned bias may add to the prior."""
    hidden: tuple[int, ...] = (512, 256, 128)
    """Paper: three layers a tower; the last is the size of the vectors."""
    country_dim: int = 16
    language_dim: int = 8
    genre_dim: int = 16
    layer_norm: bool = False
    dropout: float = 0.0
    centre_users: bool = True
    """Take the mean user's output off every user's, so that the towers say who deviates and not what is popular:
    that is the prior's part, which knows the day. Without, titles of the target days are learnt by heart."""
    popularity_prior: bool = True
    """Start from popularity: score = scale * cosine + bias with scale 0 and bias log-popularity at first.
    Without it (the paper's recipe) score = scale * cosine with scale 1 at first."""
    learn_scale: bool = True
    scale_unit: float = 10.0
    """What one unit of the learned scale parameter is worth. Adam moves a parameter by about its learning
    rate a step: at 0.001 and unit 1 a useful scale of 10 would be 10,000 steps away. A guess, not
    measured."""
    seed: int = 0


class TwoTower(nn.Module):
    """User and audiobook vectors whose inner product is the score, so that an inner-product index serves it.

    Source: arXiv 2403.05185, 4.2: towers of 512-256-128, 128-d outputs. Where the paper is silent: ReLU
    between the layers, none after the last, outputs of unit length (eq. 5 is unbounded without).
    Differs: a coordinate is added to both. The item vector is [scale * o_a ; bias_a], the user vector
    [o_u - mean o_u ; 1] (`centre_users`), and bias_a = w * log_popularity_a + v . popularity_features_a with
    w = 1, v = 0, scale = 0 at first: the untrained model is the popularity ranking, which on data with real
    times is the rival to beat, and learns who deviates from it. `popularity_prior=False` leaves the bias out;
    the added coordinate is then 0.
    """

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.hidden[-1] + 1
        self.country = nn.Embedding(config.num_countries, config.country_dim)
        self.language = nn.Embedding(config.num_languages, config.language_dim)
        self.genre = nn.Embedding(config.num_genres, config.genre_dim)
        self.user_tower = _tower(config.country_dim + config.user_features, config)
        self.audiobook_tower = _tower(config.language_dim + config.genre_dim + config.item_features, config)
        start = (0.0 if config.popularity_prior else 1.0) / config.scale_unit
        self.scale = nn.Parameter(torch.tensor(start), requires_grad=config.learn_scale)
        self.mean_user: Tensor
        self.register_buffer("mean_user", torch.zeros(config.hidden[-1]))
        self.prior_weight: nn.Parameter | None = None
        self.popularity: nn.Linear | None = None
        if config.popularity_prior:
            if not config.learn_scale:
                raise ValueError("learn_scale=False with popularity_prior=True: the scale would stay 0")
            self.prior_weight = nn.Parameter(torch.tensor(1.0))
            if config.popularity_features:
                self.popularity = nn.Linear(config.popularity_features, 1, bias=False)
        self.reset_parameters(seeded_generator(config.seed))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Fresh weights, a function of the generator alone: He-uniform layers, small embeddings, the
        prior."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.1, generator=generator)
        with torch.no_grad():
            self.mean_user.zero_()
            self.scale.fill_((0.0 if self.config.popularity_prior else 1.0) / self.config.scale_unit)
            if self.prior_weight is not None:
                self.prior_weight.fill_(1.0)
            if self.popularity is not None:
                self.popularity.weight.zero_()

    def user_vectors(self, country_idx: Tensor, features: Tensor) -> Tensor:
        """country_idx int64 [B], features [B, user_features] -> [B, dim], the last coordinate 1."""
        output = l2_normalize(self.user_tower(torch.cat([self.country(country_idx), features], dim=1)))
        if self.config.centre_users:
            if self.training and len(output):
                self.mean_user.lerp_(output.detach().mean(dim=0), _MOMENTUM)
            output = output - self.mean_user
        return torch.cat([output, output.new_ones((len(output), 1))], dim=1)

    def item_vectors(
        self,
        language_idx: Tensor,
        genre_idx: Tensor,
        features: Tensor,
        log_popularity: Tensor | None = None,
        popularity_features: Tensor | None = None,
    ) -> Tensor:
        """language_idx, genre_idx int64 [N], features [N, item_features], log_popularity [N],
        popularity_features [N, popularity_features] -> [N, dim], the last coordinate the bias.

        Raises: ValueError if the prior or its features are asked for by the config and missing.
        """
        inputs = torch.cat([self.language(language_idx), self.genre(genre_idx), features], dim=1)
        output = self.scale * self.config.scale_unit * l2_normalize(self.audiobook_tower(inputs))
        bias = output.new_zeros((len(output), 1))
        if self.prior_weight is not None:
            if log_popularity is None:
                raise ValueError("log_popularity is missing; pass it, or set popularity_prior=False")
            bias = self.prior_weight * log_popularity.unsqueeze(1)
            if self.popularity is not None:
                if popularity_features is None:
                    raise ValueError(
                        f"popularity_features is missing; expected [N, {self.popularity.in_features}]"
                    )
                bias = bias + self.popularity(popularity_features)
        return torch.cat([output, bias], dim=1)


_MOMENTUM = 0.05
"""Weight of a batch in the running mean of users' outputs."""


def _tower(in_dim: int, config: TwoTowerConfig) -> nn.Sequential:
    parts: list[nn.Module] = []
    widths: Sequence[int] = (in_dim, *config.hidden)
    for k in range(len(widths) - 1):
        parts.append(nn.Linear(widths[k], widths[k + 1]))
        if k < len(widths) - 2:
            if config.layer_norm:
                parts.append(nn.LayerNorm(widths[k + 1]))
            parts.append(nn.ReLU())
            if config.dropout:
                parts.append(nn.Dropout(config.dropout))
    return nn.Sequential(*parts)
