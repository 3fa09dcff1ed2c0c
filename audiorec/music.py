"""Music vectors: artists factorised once on the train cut, new artists and all users by fold-in.

The paper uses an in-house music vector that it does not describe (section 4.2). Here: a truncated SVD of the
user x artist matrix of log plays, weighted by inverse user frequency. Another factorisation is another basis,
so the fitted vectors are kept with the version and every later cut folds new artists in.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.sparse.linalg import svds


def plays_matrix(events: pd.DataFrame, users: int, artists: int) -> sp.csr_matrix:
    """log(1 + streams) of each user and artist, [users, artists]."""
    counts = sp.coo_matrix(
        (np.ones(len(events), np.float64), (events["user_idx"], events["item_idx"])), shape=(users, artists)
    ).tocsr()
    counts.data = np.log1p(counts.data)
    return counts


def fit_artists(plays: sp.csr_matrix, dimensions: int, min_users: int) -> tuple[np.ndarray, np.ndarray]:
    """Factorise the plays of the train cut.

    Returns:
        vectors float32 [artists, dimensions] (zeros where there is none) and known bool [artists]. With fewer
        usable artists or users than dimensions, the remaining columns are zero.
    """
    # Only users with plays: how many others there are may be known from events of later days alone.
    plays = plays[plays.getnnz(axis=1) > 0]
    users, artists = plays.shape
    listeners = np.asarray((plays > 0).sum(axis=0)).ravel()
    known = listeners >= min_users
    vectors = np.zeros((artists, dimensions), np.float32)
    rank = min(dimensions, int(known.sum()) - 1, users - 1)
    if rank < 1:
        return vectors, np.zeros(artists, bool)
    weights = np.log(max(users, 2) / np.maximum(listeners[known], 1))
    kept = plays[:, known] @ sp.diags(np.maximum(weights, 0.1))
    # A fixed start makes ARPACK deterministic; svds gives ascending singular values and arbitrary signs.
    start = np.ones(min(kept.shape)) / np.sqrt(min(kept.shape))
    _, values, right = svds(kept, k=rank, v0=start, solver="arpack")
    order = np.argsort(-values)
    values, right = values[order], right[order]
    signs = np.sign(right[np.arange(rank), np.abs(right).argmax(axis=1)])
    factors = (right * signs[:, None]).T * np.sqrt(values)
    vectors[known, :rank] = factors
    return vectors, known


def user_vectors(
    plays: sp.csr_matrix, vectors: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fold users in: the unit-length mean of their artists' vectors, weighted by log plays.

    Returns:
        float32 [users, D] and a flag [users]: False (and zeros) for users without a known artist.
    """
    usable = plays[:, known]
    has_vector = usable.getnnz(axis=1) > 0
    summed = np.asarray(usable @ vectors[known].astype(np.float64))
    norms = np.linalg.norm(summed, axis=1, keepdims=True)
    return (summed / np.maximum(norms, 1e-12)).astype(np.float32), has_vector & (norms.ravel() > 1e-12)


def fold_in_artists(
    plays: sp.csr_matrix, vectors: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Give artists that the factorisation did not know the mean vector of their listeners.

    Scaled to the median length of the known vectors; known vectors are kept as they are.
    """
    extended, now_known = vectors.copy(), known.copy()
    if not known.any():
        return extended, now_known
    users, has_vector = user_vectors(plays, vectors, known)
    listeners = plays[has_vector].T.tocsr()
    new = ~known & (listeners.getnnz(axis=1) > 0)
    if new.any():
        summed = np.asarray(listeners[new] @ users[has_vector].astype(np.float64))
        norms = np.linalg.norm(summed, axis=1, keepdims=True)
        length = float(np.median(np.linalg.norm(vectors[known], axis=1)))
        extended[new] = (summed / np.maximum(norms, 1e-12) * length).astype(np.float32)
        now_known = known | new
    return extended, now_known
