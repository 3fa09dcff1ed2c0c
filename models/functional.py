"""Small differentiable pieces that several models share."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_NORM = 1e-6


def l2_normalize(x: Tensor) -> Tensor:
    """Rows scaled to unit length; a row of (all but) zeros stays zero.

    `torch.nn.functional.normalize` divides by 1e-12 there, so that its gradient is 1e12 times the incoming
    one: a single item without text or neighbours would end the training. Here such a row gets none.
    Shapes: x [..., D] -> [..., D].
    """
    squared = x.square().sum(dim=-1, keepdim=True)
    # Asked this way round, a row that holds NaN stays NaN and is found by whoever checks the loss.
    dead = squared <= SMALLEST_NORM**2
    return torch.where(dead, 0.0, x) * torch.where(dead, 1.0, squared).rsqrt()
