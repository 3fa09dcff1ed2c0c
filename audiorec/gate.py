"""The gate (design 7): whether a candidate becomes champion, from figures alone. No files, no registry, no clock.

A daily retrain is an A/A test, so fresh is the default: promoted unless something speaks against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from statistics import median
from typing import Literal

from audiorec.settings import PromoteWord, Release
from models.metrics import Interval

RunType = Literal["manual", "scheduled", "backfill"]


@dataclass(frozen=True)
class Champion:
    """What serves now: its data date, and the candidate's paired HR@10 difference to it on the candidate's hold-out."""

    version: str
    as_of: date
    difference: Interval | None


@dataclass(frozen=True)
class Candidate:
    """What asks to be promoted: its figures on the full panel, users with events, and sanity findings."""

    as_of: date
    hit_rate: float
    users: int
    insane: Sequence[str] = ()
    metric: str = "HR@10"


@dataclass(frozen=True)
class Verdict:
    """Whether the alias moves, in a word, and every reason."""

    promoted: bool
    word: Literal["promoted", "registered", "refused"]
    reasons: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One line for the log, the UI and the version's description."""
        return f"{self.word}: {'; '.join(self.reasons)}"


def decide(
    candidate: Candidate,
    champion: Champion | None,
    promoted_hit_rates: Sequence[float],
    settings: Release,
    *,
    policy: PromoteWord,
    run_type: RunType,
    hold: str | None = None,
) -> Verdict:
    """Judge a candidate.

    Args:
        promoted_hit_rates: HR@10 of the newest promoted versions of earlier dates, newest first.
        hold: who holds the alias and why, or None.

    `force` overrides the comparison and the history; `override_hold` a hold as well. Neither overrides a failed sanity
    check, and neither moves the champion back in data time (that is what a rollback is for).
    """
    if candidate.insane:
        return Verdict(False, "refused", [f"sanity check failed: {finding}" for finding in candidate.insane])
    if policy == "never":
        return Verdict(False, "registered", ["promote is `never`"])
    asked = policy in ("force", "override_hold")
    if run_type == "backfill" and not asked:
        return Verdict(
            False,
            "registered",
            ["a backfill registers and moves the champion only if asked (promote = force)"],
        )
    if champion is not None and champion.as_of >= candidate.as_of:
        return Verdict(
            False,
            "registered",
            [
                f"the champion (version {champion.version}, {champion.as_of}) is not of an earlier date; to go back use a rollback"
            ],
        )
    if hold and policy != "override_hold":
        more = "; `promote = override_hold` would promote it all the same" if policy == "force" else ""
        return Verdict(False, "registered", [f"the alias is held: {hold}{more}"])
    if asked:
        return Verdict(True, "promoted", [f"forced, over the hold of {hold}" if hold else "forced"])
    against: list[str] = []
    for_it: list[str] = []
    earlier = list(promoted_hit_rates)[: settings.history]
    if earlier and champion is not None:
        floor = settings.min_ratio * median(earlier)
        text = f"{candidate.metric} {candidate.hit_rate:.4f} against {settings.min_ratio} x the median of {len(earlier)} promoted version(s), {floor:.4f}"
        (against if candidate.hit_rate < floor else for_it).append(text)
    if champion is None:
        for_it.append("no champion yet: sanity checks alone")
    elif champion.difference is None:
        text = f"version {champion.version} ({champion.as_of}) could not be compared"
        if policy == "if_better":
            against.append(f"{text}; promote = if_better asks for a comparison")
        else:
            for_it.append(f"{text}; sanity checks and history alone")
    else:
        paired = champion.difference
        text = (
            f"{candidate.metric} {paired.mean:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}] against version {champion.version} "
            f"({champion.as_of}) on {paired.users} users"
        )
        lost = paired.high < 0
        not_better = policy == "if_better" and not paired.low > 0
        if lost or not_better:
            against.append(text + ("" if lost else "; not better, as promote = if_better asks"))
        else:
            for_it.append(text)
    if against:
        return Verdict(False, "refused", against)
    return Verdict(True, "promoted", for_it)
