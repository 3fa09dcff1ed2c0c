"""Do reasons say what made the score? Measured by taking their evidence away.

For each recommendation whose reason names a title of the user's history, the whole model scores it again as if the
user had never touched that title: the features are made anew without it and go through the user tower. What the score
loses is compared with what it loses, on average, without each of the user's other titles. A reason that merely
decorates would do no better than these.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from audiorec.errors import BadData
from audiorec.features import UserFeatures
from audiorec.profiles import Profile
from audiorec.recommend import Asked, Recommender
from audiorec.search import inner_products
from models.metrics import Interval, bootstrap_interval

LEAST_HISTORY = 3
"""Titles that a user must have, so that there is something else to take away."""


@dataclass(frozen=True)
class Faithfulness:
    """What was measured.

    `cases`: a row a reason with evidence: user (its number in the sample), link, history (titles), cited and random
    (what the score loses). `lowered`: share of reasons without whose evidence the score is lower. `beats`: share in
    which it loses more than without another title, on average. `difference`: cited less random, mean over users.
    """

    cases: pd.DataFrame
    users: int
    reasons: int
    lowered: Interval
    beats: Interval
    difference: Interval


def measure(
    recommender: Recommender,
    users: int = 300,
    titles: int = 10,
    seed: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> Faithfulness:
    """Take away the evidence of the first `titles` recommendations of a seeded sample of users.

    Raises:
        BadData: no user has enough history, or no reason names evidence.
    """
    counts = recommender.profiles.activity()[0]
    eligible = np.flatnonzero(counts >= LEAST_HISTORY)
    sample = np.sort(np.random.default_rng(seed).choice(eligible, min(users, len(eligible)), replace=False))
    rows: list[dict[str, object]] = []
    reasons = judged = 0
    for number, row in enumerate(sample):
        profile = recommender.profiles.of_user(int(row))
        history: list[tuple[str, int]] = list(
            dict.fromkeys((one.item_type, one.idx) for one in profile.history)
        )
        if len(history) >= LEAST_HISTORY:
            judged += 1
            found, lost = _lost(
                recommender, profile, history, str(recommender.profiles.users["user_id"].iloc[row]), titles
            )
            reasons += len(found)
            for place, (link, cited) in enumerate(found):
                if link is None or cited is None:
                    continue
                own = history.index(cited)
                rows.append(
                    {
                        "user": number,
                        "link": link,
                        "history": len(history),
                        "cited": lost[place, own],
                        "random": np.delete(lost[place], own).mean(),
                    }
                )
        progress(1)
    if not rows:
        raise BadData(
            f"none of {judged} users with {LEAST_HISTORY} titles or more got a reason with evidence; nothing to measure"
        )
    cases = pd.DataFrame(rows)
    cases["difference"] = cases["cited"] - cases["random"]

    def by_user(values: pd.Series) -> Interval:
        # Reasons of one user hang together; users are what is drawn again.
        return bootstrap_interval(values.groupby(cases["user"]).mean().to_numpy(np.float64), seed=seed)

    return Faithfulness(
        cases,
        judged,
        reasons,
        by_user((cases["cited"] > 0).astype(float)),
        by_user((cases["difference"] > 0).astype(float)),
        by_user(cases["difference"]),
    )


def _lost(
    recommender: Recommender, profile: Profile, history: list[tuple[str, int]], user_id: str, titles: int
) -> tuple[list[tuple[str | None, tuple[str, int] | None]], np.ndarray]:
    """Link and evidence of each recommendation, and what its score loses without each title of the history [K, H]."""
    answer = recommender.answer(Asked(user_id=user_id, k=titles))
    found: list[tuple[str | None, tuple[str, int] | None]] = []
    for one in answer.titles:
        evidence = one.detail.evidence if one.detail else None
        found.append(
            (None, None) if evidence is None else (evidence.link, (evidence.item_type, evidence.idx))
        )
    without = [recommender.profiles.without_titles(profile, [one]) for one in history]
    features = UserFeatures(
        np.array([one.country_idx for one in without], np.int64), np.stack([one.dense for one in without])
    )
    vectors = recommender.towers.user_vectors(features)
    rows = [recommender.idx("audiobook", one.audiobook_id) for one in answer.titles]
    theirs = np.asarray(recommender.item_vectors[rows])
    scores = inner_products(theirs, recommender.vector(profile))
    return found, scores[:, None] - theirs.astype(np.float64) @ vectors.T.astype(np.float64)


def write(found: Faithfulness, recommender: Recommender, out: Path, command: str) -> Path:
    """Write `faithfulness.md`, `.csv` and `.png`; returns the page."""
    from audiorec.experiments.publish import commit, processor

    out.mkdir(parents=True, exist_ok=True)
    table = _by_link(found)
    table.to_csv(out / "faithfulness.csv", index=False, float_format="%.6g")
    _plot(table, out / "faithfulness.png")
    lines = [
        "# Are the reasons true?",
        "",
        "A reason names a title of the user's own history. Here that title is taken away, the features are made without",
        "it, the whole model scores the recommendation again, and the loss is compared with the mean loss without each",
        "other title of the same user. `audiorec/faithfulness.py`.",
        "",
        f"{found.users:,} users with {LEAST_HISTORY} titles or more, {found.reasons:,} recommendations, "
        f"{len(found.cases):,} of them with evidence. 95% intervals, bootstrapped over users.",
        "",
        f"- Without the evidence the score is lower in **{_share(found.lowered)}** of cases (wanted: 90%).",
        f"- It loses more than without another title in **{_share(found.beats)}**.",
        f"- It loses **{_number(found.difference)}** more than without another title (0 would be decoration).",
        "",
        "![Loss of score by kind of evidence](faithfulness.png)",
        "",
        "| evidence | cases | score is lower | loss without it | loss without another title | difference |",
        "|---|---:|---:|---:|---:|---|",
        *(
            f"| {one.link} | {one.cases:,} | {one.lowered:.1%} | {one.cited:.3f} | {one.random:.3f} | "
            f"{one.difference:+.3f} [{one.low:+.3f}, {one.high:+.3f}] |"
            for one in table.itertuples()
        ),
        "",
        "| | |",
        "|---|---|",
        f"| command | `{command}` |",
        f"| code | commit `{commit()}` |",
        f"| release | version {recommender.version}, data up to {recommender.as_of} |",
        f"| machine | {processor()}, {os.cpu_count()} cores, Python {platform.python_version()} |",
    ]
    page = out / "faithfulness.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def _share(interval: Interval) -> str:
    return f"{interval.mean:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def _number(interval: Interval) -> str:
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _by_link(found: Faithfulness) -> pd.DataFrame:
    """A row a kind of evidence, and one for all."""
    rows = []
    kinds = [("all", found.cases), *found.cases.groupby("link")]
    for link, cases in kinds:
        interval = bootstrap_interval(cases.groupby("user")["difference"].mean().to_numpy(np.float64), seed=1)
        rows.append(
            {
                "link": link,
                "cases": len(cases),
                "lowered": float((cases["cited"] > 0).mean()),
                "cited": float(cases["cited"].mean()),
                "random": float(cases["random"].mean()),
                "difference": interval.mean,
                "low": interval.low,
                "high": interval.high,
            }
        )
    return pd.DataFrame(rows)


def _plot(table: pd.DataFrame, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 * len(table) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(table))[::-1]
    middle = table["difference"].to_numpy()
    reach = np.stack([middle - table["low"].to_numpy(), table["high"].to_numpy() - middle])
    axes.errorbar(middle, places, xerr=np.maximum(reach, 0), fmt="o", color="#1f5f8b", capsize=3)
    axes.axvline(0.0, color="#888888", linewidth=1)
    axes.set_yticks(places, [f"{one.link} ({one.cases:,})" for one in table.itertuples()])
    axes.set_xlabel("score lost without the evidence, less that without another title of the history")
    axes.set_xlim(left=min(0.0, float(table["low"].min())) - 0.02)
    figure.savefig(path, dpi=120)
