"""Losses of the graph network (equation 4) and of the towers (equation 5 and its bounded rival)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def max_margin_loss(
    anchor: Tensor, positive: Tensor, negatives: Tensor, mask: Tensor | None = None, margin: float = 0.1
) -> Tensor:
    """Ask that a co-listened item beats sampled ones by a margin, in cosine similarity to the anchor.

    Source: arXiv 2403.05185, eq. 4: E_n max(0, z_a.z_n - z_a.z_p + margin), an expectation, so the mean over
    all valid (anchor, negative) pairs. The paper does not give the margin.
    Shapes: anchor, positive [B, D] unit rows; negatives [B, K, D] or scores' own [B, K] if already
    multiplied; mask bool [B, K], False where a negative must not count; returns [].
    Raises: ValueError if K == 0.
    """
    scores = torch.einsum("bd,bkd->bk", anchor, negatives) if negatives.dim() == 3 else negatives
    if scores.shape[1] == 0:
        raise ValueError("max_margin_loss needs at least one negative an anchor; num_negatives is 0")
    violation = torch.relu(scores - (anchor * positive).sum(dim=-1, keepdim=True) + margin)
    if mask is None:
        return violation.mean()
    # Where every negative is masked the loss is 0 and still differentiable.
    return torch.where(mask, violation, 0.0).sum() / mask.sum().clamp(min=1)


def inverse_propensity_loss(
    user: Tensor,
    item: Tensor,
    propensity: Tensor,
    exclude: Tensor | None = None,
    weighting: Literal["negatives", "positives"] = "negatives",
) -> Tensor:
    """Equation 5 with the other items of the batch as negatives, undoing their popularity.

    Source: arXiv 2403.05185, eq. 5 as printed: E_{n in batch}[o_u.o_n - o_u.o_a]. It has no margin and no
    logarithm, so it is bounded (by 2) only because user and item rows have unit length; on free outputs it
    has no minimum. The paper weights the loss "by the inverse probability of occurrence" so that popular
    items are not over-used as negatives, and does not say what is weighted. Read here as: an in-batch
    negative turns up in proportion to its popularity, so each row's mean over negatives is weighted by
    1/propensity, self-normalised, which makes it the mean over a uniformly drawn item.
    `weighting="positives"` is the other reading: plain means over negatives, and each user's term weighted by
    1/propensity of the positive.
    Shapes: user, item [B, D], row i of item being the positive of user i; propensity [B] in (0, 1], of the
    items; exclude bool [B, B], True where item j is no negative for user i (besides i == j: the same title
    again, or one the user also listened to); returns [].
    """
    scores = user @ item.T
    positive = scores.diagonal()
    negative = ~torch.eye(len(user), dtype=torch.bool, device=user.device)
    if exclude is not None:
        negative &= ~exclude
    inverse = propensity.reciprocal()
    weight = negative * (inverse if weighting == "negatives" else torch.ones_like(inverse))
    row_total = weight.sum(dim=1)
    has_negative = row_total > 0
    mean_negative = (weight * scores).sum(dim=1) / torch.where(has_negative, row_total, 1.0)
    row_weight = has_negative * (inverse if weighting == "positives" else torch.ones_like(inverse))
    terms = row_weight * (mean_negative - positive)
    return terms.sum() / row_weight.sum().clamp(min=torch.finfo(terms.dtype).tiny)


def softmax_loss(
    scores: Tensor,
    target: Tensor,
    log_q: Tensor | None = None,
    exclude: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Cross entropy of the title that was streamed among the candidates, whole catalogue or a sample of it.

    Where candidates were drawn with probability q, log q is subtracted from their scores (Yi et al. 2019,
    which the paper cites), the target's too: without it in-batch sampling teaches that popular titles are bad
    (measured on MovieTweetings: HR@10 0.048 without, 0.076 with). With the whole catalogue as candidates pass
    no log_q.
    Shapes: scores [B, C]; target int64 [B], the column of the positive; log_q [C] or [B, C]; exclude bool [B,
    C], True where a candidate must not compete (the target always does); weights [B] >= 0, of the rows;
    returns [], the weighted mean.
    """
    if log_q is not None:
        scores = scores - log_q
    rows = torch.arange(len(target), device=scores.device)
    if exclude is not None:
        exclude = exclude.clone()
        exclude[rows, target] = False
        scores = scores.masked_fill(exclude, -torch.inf)
    terms = torch.logsumexp(scores, dim=1) - scores[rows, target]
    if weights is None:
        return terms.mean()
    return (weights * terms).sum() / weights.sum().clamp(min=torch.finfo(terms.dtype).tiny)
