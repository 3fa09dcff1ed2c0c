"""Experiment 17: what the gate lets through, by resampling the stored per-user ranks of two trainings that differ in seed."""

from __future__ import annotations

from datetime import date

import numpy as np
import pandas as pd

from audiorec.gate import Candidate, Champion, decide
from audiorec.settings import Release
from benchmarks.chaos.lab import AS_OF, DAY, Lab
from benchmarks.chaos.report import Experiment, Row
from models.metrics import hit_rate_at_k, paired_bootstrap_interval

WORSE = 0.2
TRIES = 100
SIZES = (250, 500, 1_000, 2_000, 4_000)
"""Users of a hold-out; the criteria are judged at the size of a small service."""
JUDGED_AT = 2_000
TODAY = date(2026, 11, 20)


def stored_hits(lab: Lab) -> tuple[np.ndarray, np.ndarray]:
    """Hits of the same users by two trainings of one recipe, from their `evaluate` results."""
    seeds = {"hgnn": {"seed": 1_001}, "two_tower": {"seed": 1_001}}
    other = lab.copy("gate", "train_hgnn", "train_two_tower", "evaluate", "refresh", "build_index", **seeds)
    for task in ("train_hgnn", "train_two_tower", "evaluate"):
        other.need(task, AS_OF)
    found = []
    for place in (lab.reference, other):
        ranks = pd.read_parquet(place.store.open(place.manifest("evaluate", AS_OF), "ranks.parquet"))
        ours = ranks[
            (ranks["model"] == "2T-HGNN")
            & (ranks["panel"] == "full")
            & ranks["segment"].isin(("warm", "cold"))
            & (ranks["rank"] >= 0)
        ].sort_values("user_id")
        found.append(pd.Series(hit_rate_at_k(ours["rank"].to_numpy(), 10), index=ours["user_id"]))
    both = pd.concat(found, axis=1, join="inner").to_numpy(float)
    return both[:, 0], both[:, 1]


def promoted(pairs: np.ndarray, users: int, share_lost: float, random: np.random.Generator) -> bool:
    """One decision: users drawn with replacement, each with the two trainings' hits in a random order.

    So candidate and champion are equal in expectation and differ from user to user as two trainings do. `share_lost` of
    the candidate's hits are then taken away.
    """

    def drawn() -> np.ndarray:
        rows = pairs[random.integers(0, len(pairs), users)]
        return np.where(random.random((users, 1)) < 0.5, rows, rows[:, ::-1])

    hits = drawn()
    candidate, champion = hits[:, 0] * (random.random(users) >= share_lost), hits[:, 1]
    interval = paired_bootstrap_interval(candidate, champion, draws=400, seed=int(random.integers(0, 2**31)))
    history = [float(drawn()[:, 0].mean()) for _ in range(14)]
    return decide(
        Candidate(TODAY, float(candidate.mean()), users),
        Champion("1", TODAY - DAY, interval),
        history,
        Release(),
        policy="fresh",
        run_type="scheduled",
    ).promoted


def run(lab: Lab, seed: int, short: bool) -> list[Row]:
    """Equal candidates promoted, worse ones refused, at several sizes of hold-out."""
    one, other = stored_hits(lab)
    pairs = np.column_stack([one, other])
    tries = 20 if short else TRIES
    random = np.random.default_rng(seed)
    found = {
        users: (
            sum(promoted(pairs, users, 0.0, random) for _ in range(tries)),
            sum(not promoted(pairs, users, WORSE, random) for _ in range(tries)),
        )
        for users in ((JUDGED_AT,) if short else SIZES)
    }
    equal, refused = found[JUDGED_AT]
    base = (
        f"ranks of {len(pairs):,} users, HR@10 {one.mean():.3f} and {other.mean():.3f}, "
        f"{np.mean(one != other):.0%} of users judged otherwise by the other seed"
    )
    by_size = "; ".join(
        f"{users:,} users: {a} of {tries} equal promoted, {b} of {tries} worse refused"
        for users, (a, b) in found.items()
    )
    return [
        Row(
            f"equal candidates promoted in at least 95 of 100, hold-out of {JUDGED_AT:,} users",
            f"{equal} of {tries}",
            equal >= 0.95 * tries,
            f"{base}. By size: {by_size}",
        ),
        Row(
            f"candidates 20% worse refused in at least 80 of 100, hold-out of {JUDGED_AT:,} users",
            f"{refused} of {tries}",
            refused >= 0.80 * tries,
        ),
    ]


EXPERIMENTS = (Experiment("gate", 17, "The gate: equal candidates and worse ones", 17, run),)
