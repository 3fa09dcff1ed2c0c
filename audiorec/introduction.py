"""Introduction: a place in the lists for titles that nobody has streamed yet.

Text and HGNN place such a title rightly among the others of its kind. But a score that starts from popularity holds
its lack of streams against it, and lists over the whole catalogue then hold next to none (docs/adr/0012): what nobody
has streamed nobody ever will. So these titles are lifted, all alike, by as much as gives them a stated share of the
first ten places of the people who were seen before. Nothing else moves: the order of streamed titles among themselves,
and of the others among themselves, stays.

Departure from the paper, which says nothing of exploration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from audiorec.towers import evenly_spread

if TYPE_CHECKING:
    import scipy.sparse as sp

    from audiorec.features import FeatureBuilder, ItemFeatures, Vectors
    from audiorec.towers import Towers

PLACES = 10
"""First places that the share is of."""
_MOST_LISTS = 0.2
"""Of the lists, that one such title may be in on average: a single new title is not pressed on everybody. A choice."""
LISTENERS = 2_000
"""Users, evenly spread, whose lists the lift is measured on."""
_NUMBERS = 50_000_000
"""Scores made at a time, at most: 200 MB, and about three times that while they are sorted."""
_HAIR = 1e-4
"""Past a tie, by more than scores are rounded to."""


def introduction_lift(
    users: np.ndarray,
    items: np.ndarray,
    unheard: np.ndarray,
    available: np.ndarray,
    streamed: sp.csr_matrix,
    share: float,
) -> float:
    """The least lift by which titles without a listener fill a share of the users' first places; 0 if they do already.

    With s_1 >= s_2 >= ... the best scores of titles with listeners and n_1 >= n_2 >= ... of those without, at least j of
    the first P places are the latter's as soon as the lift exceeds s_(P+1-j) - n_j. So the lift wanted is a quantile of
    these differences over users and j.

    Args:
        users, items: vectors [U, D] and [N, D], whose inner products are the scores.
        unheard, available: bool [N].
        streamed: 0/1 [U, N], what each user streamed before; not recommended again.
        share: wanted, of the first `PLACES` places of all users together.

    Where fewer than `PLACES` titles are without a listener the share is at most `_MOST_LISTS` of their number's share of the
    places. The lift is 0 as well where no title is without a listener, or fewer than `PLACES` have one.
    """
    new, known = np.flatnonzero(unheard & available), np.flatnonzero(~unheard & available)
    places = min(PLACES, len(new))
    if share <= 0 or not places or len(known) < PLACES or not len(users):
        return 0.0
    share = min(share, _MOST_LISTS * places / PLACES) if places < PLACES else share
    chunk = max(1, _NUMBERS // len(items))
    needed = []
    for start in range(0, len(users), chunk):
        some = slice(start, start + chunk)
        scores = users[some] @ items.T
        scores[streamed[some].toarray() > 0] = -np.inf
        heard = np.sort(np.partition(scores[:, known], -PLACES, axis=1)[:, -PLACES:], axis=1)
        fresh = -np.sort(np.partition(-scores[:, new], places - 1, axis=1)[:, :places], axis=1)
        lacking = np.full((len(scores), PLACES), np.inf, scores.dtype)
        lacking[:, :places] = heard[:, :places] - fresh
        needed.append(lacking)
    differences = np.sort(np.concatenate(needed), axis=None)
    wanted = differences[min(int(np.ceil(share * len(differences))), len(differences)) - 1]
    return max(0.0, float(wanted) + _HAIR) if np.isfinite(wanted) else 0.0


class Introduced(NamedTuple):
    """Audiobook vectors [N, D] with the lift in their bias, the lift, and the vectors [U, D] of the users it is measured on."""

    items: np.ndarray
    lift: float
    users: np.ndarray


def introduced(
    towers: Towers, builder: FeatureBuilder, vectors: Vectors, day: int, items: ItemFeatures
) -> Introduced:
    """Audiobook vectors of a day, titles without a listener lifted.

    It is measured on people who were seen before the day, whoever they are; nothing of that day or later plays a part.
    """
    chosen = evenly_spread(np.flatnonzero(builder.extract.first_seen_day < day), LISTENERS)
    days = np.full(len(chosen), day, np.int64)
    users = towers.user_vectors(builder.users(chosen, days, vectors, towers.spec))
    found = towers.item_vectors(items)
    lift = introduction_lift(
        users,
        found,
        items.unheard,
        items.available,
        builder.streamed_before(chosen, days),
        towers.introduction_share,
    )
    return Introduced(lifted(towers, found, items.unheard, lift), lift, users)


def lifted(towers: Towers, vectors: np.ndarray, unheard: np.ndarray, lift: float) -> np.ndarray:
    """The same array, with the lift added to the bias of titles without a listener; a copy would cost 400 MB of 250,000."""
    vectors[unheard, towers.bias_column] += np.float32(lift)
    return vectors
