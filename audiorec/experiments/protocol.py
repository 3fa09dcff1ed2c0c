"""The evaluation protocol (design 8), in one place: who is judged, on which titles, by which figures.

One global split. Relevant are titles first streamed in the hold-out; what a user streamed before is never
recommended again. Ranking is exact over a whole catalogue, in three panels; relevant titles are restricted to the
panel's:

* `known`: titles streamed by anybody before the split;
* `full`: all titles published by the split, or undated;
* `new`: those of `full` that nobody streamed before the split, which only their text can tell apart.

Within a panel, *slices* restrict what is relevant further and leave the candidates as they are: the five tiers of
popularity, `tail` (tiers 3 to 5), and `unstreamed` (titles of the panel `new`, ranked among all).

Segments: `warm` users gave any audiobook signal before the split, `cold` ones did anything else, `none` nothing at
all; `all` is warm and cold together. Differs from the paper, which leaves most of this open (paper 6.1-6.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp

from audiorec.catalogue import Extract, day_number
from audiorec.cuts import Cuts
from audiorec.settings import Evaluation
from models.metrics import (
    bootstrap_interval,
    first_hit_ranks,
    hit_rate_at_k,
    paired_bootstrap_interval,
    popularity_tiers,
    reciprocal_rank,
    top_k,
)

PANELS = ("known", "full", "new")
SEGMENTS = ("all", "warm", "cold", "none")
TIERS = (1, 2, 3, 4, 5)
SLICES: Mapping[str, tuple[int, ...]] = {"tail": (3, 4, 5), **{f"tier_{tier}": (tier,) for tier in TIERS}}
"""Popularity tiers by slice; `unstreamed` comes on top."""
UNSTREAMED = "unstreamed"
_CHUNK = 512

Ranker = Callable[[np.ndarray], np.ndarray]
"""Scores float [R, audiobooks] of rows of `HoldOut.users`, the higher the better."""


@dataclass(frozen=True)
class HoldOut:
    """The users of one hold-out and what is relevant, barred and allowed for each of them."""

    split: int
    users: np.ndarray
    segment: np.ndarray
    relevant: sp.csr_matrix
    streamed: sp.csr_matrix
    candidates: Mapping[str, np.ndarray]
    tier: np.ndarray

    @property
    def titles(self) -> dict[str, int]:
        """How many titles are ranked, by panel."""
        return {panel: int(self.candidates[panel].sum()) for panel in PANELS}

    def panel_relevant(self, panel: str, part: str | None = None) -> sp.csr_matrix:
        """0/1 [users, audiobooks]: relevant titles that are candidates of the panel (and of a slice, if one is named)."""
        keep = self.candidates[panel]
        if part == UNSTREAMED:
            keep = keep & self.candidates["new"]
        elif part is not None:
            keep = keep & np.isin(self.tier, SLICES[part])
        restricted = self.relevant @ sp.diags(keep.astype(np.float64))
        restricted.eliminate_zeros()
        return restricted.tocsr()


def make_hold_out(extract: Extract, cuts: Cuts, settings: Evaluation) -> HoldOut:
    """Lay out the hold-out of `cuts`: users with a relevant title among the full panel's, sampled beyond a limit."""
    extract = extract.whole
    split, last = day_number(cuts.split), day_number(cuts.as_of)
    firsts = extract.first_streams
    shape = (len(extract.users), len(extract.audiobooks))

    def matrix(rows: pd.DataFrame) -> sp.csr_matrix:
        return sp.csr_matrix((np.ones(len(rows)), (rows["user_idx"], rows["audiobook_idx"])), shape=shape)

    before = firsts[firsts["day"] < split]
    known = np.zeros(shape[1], bool)
    known[before["audiobook_idx"].unique()] = True
    full = (extract.published_day <= split) | known
    during = firsts[(firsts["day"] >= split) & (firsts["day"] <= last)]
    relevant = matrix(during[full[during["audiobook_idx"].to_numpy(np.int64)]])
    users = np.flatnonzero(relevant.getnnz(axis=1) > 0)
    if len(users) > settings.max_users:
        users = np.sort(np.random.default_rng(settings.seed).choice(users, settings.max_users, replace=False))
    segment = np.where(
        extract.first_signal_day[users] < split,
        "warm",
        np.where(extract.first_seen_day[users] < split, "cold", "none"),
    )
    window = cuts.judge
    events = extract.events("audiobook", window.first_day, window.last_day)
    streams = np.bincount(events.loc[events["signal"] == 0, "item_idx"], minlength=shape[1])
    return HoldOut(
        split,
        users,
        segment,
        relevant[users],
        matrix(before)[users],
        {"known": known, "full": full, "new": full & ~known},
        popularity_tiers(streams),
    )


@dataclass(frozen=True)
class Judgement:
    """One model's ranks: by panel, the place of the first relevant title of each user, and what was shown.

    `ranks[panel]` int [users]: 1.., 0 for not within `depth`, -1 for a user without relevant title in the panel.
    `sliced[slice][panel]` the same for the relevant titles of a slice. `shown[panel]` int [users, depth]: titles, -1
    for none.
    """

    ranks: Mapping[str, np.ndarray]
    sliced: Mapping[str, Mapping[str, np.ndarray]]
    shown: Mapping[str, np.ndarray]


def judge(hold_out: HoldOut, ranker: Ranker, depth: int = 100) -> Judgement:
    """Rank the whole catalogue for every user of the hold-out, exactly; ties go to the lower id."""
    ranks: dict[str, np.ndarray] = {}
    shown: dict[str, np.ndarray] = {}
    sliced: dict[str, dict[str, np.ndarray]] = {part: {} for part in (*SLICES, UNSTREAMED)}
    parts: dict[str, list[np.ndarray]] = {panel: [] for panel in PANELS}
    for start in range(0, len(hold_out.users), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(hold_out.users)))
        scores = ranker(rows)
        barred = hold_out.streamed[rows].toarray() > 0
        for panel in PANELS:
            parts[panel].append(top_k(scores, barred | ~hold_out.candidates[panel][None, :], depth))
    for panel in PANELS:
        shown[panel] = np.concatenate(parts[panel]) if parts[panel] else np.zeros((0, depth), np.int64)
        ranks[panel] = _ranks(shown[panel], hold_out.panel_relevant(panel))
        for part, found in sliced.items():
            found[panel] = _ranks(shown[panel], hold_out.panel_relevant(panel, part))
    return Judgement(ranks, sliced, shown)


def _ranks(shown: np.ndarray, relevant: sp.csr_matrix) -> np.ndarray:
    ranks = first_hit_ranks(shown, relevant.indptr, relevant.indices)
    return np.where(relevant.getnnz(axis=1) > 0, ranks, -1)


def summarise(
    hold_out: HoldOut, judgements: Mapping[str, Judgement], settings: Evaluation, reference: str
) -> pd.DataFrame:
    """Figures in long form: panel, model, segment, metric, value, low, high, users, and the paired difference.

    Metrics: HR@10, MRR, tail HR@10 (bootstrap intervals over users), coverage (no interval: it is no mean over users).
    `difference*` compare with `reference` on the same users. `judged` is False for segments that are too small.
    """
    rows = []
    for panel in PANELS:
        for segment in SEGMENTS:
            in_segment = segment_mask(hold_out.segment, segment)
            for model, judgement in judgements.items():
                theirs = judgements[reference]
                for metric, values in _per_user(judgement, panel, settings).items():
                    chosen = in_segment & ~np.isnan(values)
                    other = _per_user(theirs, panel, settings)[metric]
                    own = bootstrap_interval(values[chosen], draws=settings.bootstrap, seed=settings.seed)
                    paired = paired_bootstrap_interval(
                        values[chosen], other[chosen], draws=settings.bootstrap, seed=settings.seed
                    )
                    rows.append(
                        {
                            "panel": panel,
                            "model": model,
                            "segment": segment,
                            "metric": metric,
                            "value": own.mean,
                            "low": own.low,
                            "high": own.high,
                            "users": own.users,
                            "difference": paired.mean,
                            "difference_low": paired.low,
                            "difference_high": paired.high,
                            "judged": own.users >= settings.min_segment_users,
                        }
                    )
                counted = int((in_segment & (judgement.ranks[panel] >= 0)).sum())
                rows.append(
                    {
                        "panel": panel,
                        "model": model,
                        "segment": segment,
                        "metric": f"coverage@{settings.depth}",
                        "value": coverage(hold_out, judgement, panel, segment),
                        "users": counted,
                        "judged": counted >= settings.min_segment_users,
                    }
                )
    return pd.DataFrame(rows)


def segment_mask(segments: np.ndarray, segment: str) -> np.ndarray:
    """bool [users]: who belongs to a segment; `all` is warm and cold together."""
    return np.isin(segments, ("warm", "cold")) if segment == "all" else segments == segment


def coverage(hold_out: HoldOut, judgement: Judgement, panel: str, segment: str) -> float:
    """Share of the panel's titles in the lists of a segment's users who have a relevant one."""
    counted = segment_mask(hold_out.segment, segment) & (judgement.ranks[panel] >= 0)
    titles = np.unique(judgement.shown[panel][counted])
    candidates = int(hold_out.candidates[panel].sum())
    return float((titles >= 0).sum() / candidates) if candidates else float("nan")


def ranks_table(extract: Extract, hold_out: HoldOut, judgements: Mapping[str, Judgement]) -> pd.DataFrame:
    """A row a user, panel and model: user_id, segment, panel, model, rank, and a `SLICE_rank` a slice (see `Judgement`)."""
    parts = [
        pd.DataFrame(
            {
                "user_id": extract.users["user_id"].to_numpy()[hold_out.users],
                "segment": hold_out.segment,
                "panel": panel,
                "model": model,
                "rank": judgement.ranks[panel],
                **{f"{part}_rank": ranks[panel] for part, ranks in judgement.sliced.items()},
            }
        )
        for model, judgement in judgements.items()
        for panel in PANELS
    ]
    return pd.concat(parts, ignore_index=True)


def coverage_table(hold_out: HoldOut, judgements: Mapping[str, Judgement]) -> pd.DataFrame:
    """Share of a panel's titles in anybody's list, by model, panel and segment."""
    return pd.DataFrame(
        [
            (panel, segment, model, coverage(hold_out, judgement, panel, segment))
            for model, judgement in judgements.items()
            for panel in PANELS
            for segment in SEGMENTS
        ],
        columns=["panel", "segment", "model", "coverage"],
    )


def _per_user(judgement: Judgement, panel: str, settings: Evaluation) -> dict[str, np.ndarray]:
    """Values by user, NaN for users that the panel leaves out."""
    ranks, tail = judgement.ranks[panel], judgement.sliced["tail"][panel]
    return {
        f"HR@{settings.hit_k}": np.where(ranks < 0, np.nan, hit_rate_at_k(ranks, settings.hit_k)),
        "MRR": np.where(ranks < 0, np.nan, reciprocal_rank(ranks, settings.depth)),
        f"tail HR@{settings.hit_k}": np.where(tail < 0, np.nan, hit_rate_at_k(tail, settings.hit_k)),
    }


def popularity_ranker(counts: np.ndarray) -> Ranker:
    """Everybody gets the same order, by counts [audiobooks]."""
    return lambda rows: np.broadcast_to(counts.astype(np.float64), (len(rows), len(counts)))


def vector_ranker(user_vectors: np.ndarray, item_vectors: np.ndarray) -> Ranker:
    """Inner products of user vectors [users, D], in the hold-out's order, and item vectors [audiobooks, D]."""
    return lambda rows: user_vectors[rows] @ item_vectors.T


def best_window(hit_rates: Mapping[int, float], windows: Sequence[int]) -> int:
    """The window with the best validation hit rate; the shorter one of equals."""
    return max(windows, key=lambda window: (hit_rates[window], -window))
