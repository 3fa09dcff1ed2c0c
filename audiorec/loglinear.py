"""The base of every score: a conditional logit on a title's popularity and on affinities, a convex problem.

Departure from the paper, which has no such base: on data with real times recent popularity is the rival to beat,
and the best mix of windows differs from source to source, so it is fitted on the training targets (docs/adr/0006,
docs/adr/0010). Few weights and one optimum: what comes out hardly depends on a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Day:
    """Targets of one day: popularity [C, P] of the candidates, affinity [T, C, K], closed bool [T, C], target [T].

    `log_odds` [C] is added to a candidate that was drawn in place of others; 0 where all titles are candidates.
    """

    popularity: np.ndarray
    affinity: np.ndarray
    closed: np.ndarray
    target: np.ndarray
    log_odds: np.ndarray


def draw_candidates(
    titles: int, own: np.ndarray, number: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates [C] in order and their `log_odds` [C]: all targets of the day, and a draw from the other titles.

    The targets stand for themselves, whether they could have been drawn or not, and each drawn title for several of
    the others, so that a sum over candidates is right on average. Were the targets drawn from like the rest, those
    that were not drawn would count on top, and popular titles would be held against popularity.
    """
    own = np.unique(own)
    others = np.setdiff1d(np.arange(titles), own)
    drawn = generator.choice(others, min(number, len(others)), replace=False)
    candidates = np.union1d(own, drawn)
    odds = np.log(len(others) / max(len(drawn), 1)) if len(others) else 0.0
    return candidates, np.where(np.isin(candidates, own), 0.0, odds).astype(np.float32)


def fit_loglinear(
    days: Sequence[Day], start: np.ndarray, channels: int, ridge: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of popularity [P] and of the affinities [K] by maximum likelihood.

    Args:
        days: what was streamed on each target day, and from what.
        start: popularity weights that the ridge pulls to; it pulls those of affinities to 0.
        channels: K.
        ridge: pull, in units of one target's log-likelihood; on affinities after division by their spread.
    """
    import torch

    days = [day for day in days if len(day.target)]
    if not days:
        return np.asarray(start, np.float64), np.zeros(channels)
    spread = np.sqrt(
        sum(np.square(day.affinity).mean(axis=(0, 1), dtype=np.float64) for day in days) / len(days)
        if channels
        else np.zeros(0)
    )
    unit = np.where(spread > 1e-6, 1.0 / np.maximum(spread, 1e-6), 0.0)
    held = [
        (
            torch.from_numpy(np.ascontiguousarray(day.popularity, np.float32)),
            torch.from_numpy(day.affinity),
            torch.from_numpy(day.closed & (np.arange(day.closed.shape[1])[None, :] != day.target[:, None])),
            torch.from_numpy(day.target),
            torch.from_numpy(np.asarray(day.log_odds, np.float32)),
        )
        for day in days
    ]
    centre = torch.from_numpy(np.concatenate([start, np.zeros(channels)])).double()
    scale = torch.from_numpy(unit)
    weights = centre.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def negative_log_likelihood() -> torch.Tensor:
        optimizer.zero_grad()
        total = ridge * ((weights - centre) ** 2).sum()
        on_popularity = weights[: len(start)].float()
        on_affinity = (weights[len(start) :] * scale).float()
        for popularity, affinity, closed, target, log_odds in held:
            scores = (popularity @ on_popularity)[None, :] + affinity @ on_affinity
            own = scores.gather(1, target[:, None])
            scores = (scores + log_odds).scatter(1, target[:, None], own).masked_fill(closed, -torch.inf)
            total = total + (torch.logsumexp(scores, 1) - own[:, 0]).double().sum()
        total.backward()
        return total

    optimizer.step(negative_log_likelihood)
    found = weights.detach().numpy()
    return found[: len(start)].copy(), found[len(start) :] * unit
