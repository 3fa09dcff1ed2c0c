"""Compare: a candidate beside the champion. Metrics by segment, titles that rose and fell, one user's two lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pandas as pd
from fastapi import APIRouter, HTTPException, Query, Request, Response

from audiorec.champion import Bundle
from audiorec.errors import AudiorecError
from audiorec.recommend import Recommendation
from audiorec.registry import CHALLENGER, Registry, Version
from audiorec.release_files import MODEL
from models.metrics import Interval, hit_rate_at_k, paired_bootstrap_interval
from serving.following import hasty
from serving.pages import charts
from serving.pages.base import Pages, pages_of
from serving.pages.evaluations import hit_metric
from serving.pages.people import about, recommended, user_of
from serving.pages.releases import FIRST, Loaded

router = APIRouter()

SEGMENTS = ("all", "warm", "cold", "none")
MOVED = 10
"""Titles shown that rose most, and that fell most."""
Number = Annotated[str | None, Query(pattern=r"^\d{1,9}$")]


@dataclass(frozen=True)
class Moved:
    """A title with how many of the sample's users get it among their first ten, by either version."""

    item_id: str
    title: str
    before: int
    now: int

    @property
    def change(self) -> int:
        return self.now - self.before


@dataclass(frozen=True)
class Pair:
    """What is compared."""

    candidate: Version
    champion: Version


def choose(
    pages: Pages, versions: Sequence[Version], candidate: str | None, champion: str | None
) -> Pair | None:
    """The versions to compare: those that are named, else the champion and the challenger or the newest other one.

    None if there are no two versions. Raises HTTPException (404) for a number that no version has.
    """
    by_number = {one.number: one for one in versions}
    for wanted in (candidate, champion):
        if wanted is not None and wanted not in by_number:
            raise HTTPException(404, f"There is no version {wanted}; the page Release lists those there are.")
    pointed = pages.releases.pointed()
    serving = champion or (pointed[0] if pointed and pointed[0] in by_number else None)
    if serving is None:
        serving = next((one.number for one in versions if one.promoted), None)
    if serving is None:
        return None
    if candidate is None:
        named = Registry(hasty(pages.settings)).alias(CHALLENGER)
        ahead = named is not None and named.number != serving and named.as_of >= by_number[serving].as_of
        others = [one.number for one in versions if one.number != serving]
        candidate = named.number if named is not None and ahead else next(iter(others), None)
    return None if candidate is None else Pair(by_number[candidate], by_number[serving])


def figures(pages: Pages, version: Version) -> pd.DataFrame:
    """The version's own figures on its own hold-out: the full panel."""
    bundle = Bundle.load(pages.store, version.release)
    table = pages.evaluations.of(bundle.manifests["evaluate"])
    return table[table["panel"] == "full"]


def by_segment(tables: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """A row a metric and segment, with both versions' figures by name."""
    metrics = list(dict.fromkeys(name for table in tables.values() for name in table["metric"]))
    found = []
    for metric in metrics:
        for segment in SEGMENTS:
            row: dict[str, Any] = {"metric": metric, "segment": segment, "of": {}}
            for side, table in tables.items():
                chosen = table[
                    (table["model"] == MODEL) & (table["segment"] == segment) & (table["metric"] == metric)
                ]
                row["of"][side] = next(chosen.itertuples(), None)
            if any(one is not None and one.value == one.value for one in row["of"].values()):
                found.append(row)
    return found


def paired(pages: Pages, pair: Pair) -> Interval | None:
    """The candidate's hit rate less the champion's, where both were judged on the same hold-out; None elsewhere."""
    if pair.candidate.as_of != pair.champion.as_of:
        return None
    ranks = []
    for version in (pair.candidate, pair.champion):
        bundle = Bundle.load(pages.store, version.release)
        table = pd.read_parquet(pages.store.open(bundle.manifests["evaluate"], "ranks.parquet"))
        kept = (
            (table["model"] == MODEL)
            & (table["panel"] == "full")
            & (table["rank"] >= 0)
            & table["segment"].isin(("warm", "cold"))
        )
        ranks.append(table[kept].set_index("user_id")["rank"])
    both = ranks[0].index.intersection(ranks[1].index)
    if not len(both):
        return None
    k, evaluation = pages.settings.evaluation.hit_k, pages.settings.evaluation
    ours, theirs = (hit_rate_at_k(one.loc[both].to_numpy(), k) for one in ranks)
    return paired_bootstrap_interval(ours, theirs, draws=evaluation.bootstrap, seed=evaluation.seed)


def moved(pages: Pages, candidate: Loaded, champion: Loaded) -> tuple[int, float, list[Moved], list[Moved]]:
    """(users looked at, share of a first ten that stays, titles that rose, titles that fell), the largest change first."""
    users = [one for one in candidate.sample(champion) if not pages.withheld.is_forgotten(one)]
    before, now = champion.first_tens(users), candidate.first_tens(users)
    stayed = [len(set(before[one]) & set(now[one])) / max(len(now[one]), 1) for one in users]
    earlier = Counter(title for one in users for title in before[one])
    later = Counter(title for one in users for title in now[one])
    found = [
        Moved(item_id, _title(candidate, champion, item_id), earlier[item_id], later[item_id])
        for item_id in {*earlier, *later}
    ]
    rose = sorted((one for one in found if one.change > 0), key=lambda one: (-one.change, one.item_id))
    fell = sorted((one for one in found if one.change < 0), key=lambda one: (one.change, one.item_id))
    return len(users), sum(stayed) / len(stayed) if stayed else 0.0, rose[:MOVED], fell[:MOVED]


def _title(candidate: Loaded, champion: Loaded, item_id: str) -> str:
    for loaded in (candidate, champion):
        try:
            return loaded.recommender.title("audiobook", loaded.recommender.idx("audiobook", item_id))
        except KeyError:
            continue
    return item_id


def side_by_side(
    pages: Pages, candidate: Loaded, champion: Loaded, user: str
) -> dict[str, list[tuple[Recommendation, int | None]]]:
    """Both first tens of one user; beside each title its place in the other list."""
    lists = {
        "champion": recommended(pages, champion.recommender, user, k=FIRST).titles,
        "candidate": recommended(pages, candidate.recommender, user, k=FIRST).titles,
    }
    places = {
        side: {one.audiobook_id: place for place, one in enumerate(titles, 1)}
        for side, titles in lists.items()
    }
    other = {"champion": "candidate", "candidate": "champion"}
    return {
        side: [(one, places[other[side]].get(one.audiobook_id)) for one in titles]
        for side, titles in lists.items()
    }


# --- routes


@router.get("/compare")
def compare(
    request: Request,
    candidate: Number = None,
    champion: Number = None,
    user: Annotated[str | None, Query(max_length=2000)] = None,
) -> Response:
    """Two versions beside each other."""
    pages = pages_of(request)
    versions = pages.releases.versions()
    pair = choose(pages, versions, candidate, champion)
    values: dict[str, Any] = {"here": "compare", "versions": versions, "pair": pair}
    if pair is None:
        return pages.render(request, "compare.html", values)
    tables = {"champion": figures(pages, pair.champion), "candidate": figures(pages, pair.candidate)}
    values |= {
        "rows": by_segment(tables),
        "hit": hit_metric(tables["candidate"]),
        "paired": paired(pages, pair),
        "unloadable": None,
        "sample": 0,
        "both": None,
        "handle": user,
        "examples": [],
    }
    try:
        new, old = pages.releases.get(pair.candidate.number), pages.releases.get(pair.champion.number)
    except AudiorecError as error:
        # The figures are there all the same.
        return pages.render(request, "compare.html", values | {"unloadable": str(error)})
    looked_at, stayed, rose, fell = moved(pages, new, old)
    values |= {"sample": looked_at, "stayed": stayed, "rose": rose, "fell": fell}
    values["examples"] = [
        (kind, pages.seal.handle(one))
        for kind, one in new.recommender.example_users().items()
        if one is not None
        and old.recommender.profiles.row(one) is not None
        and not pages.withheld.is_forgotten(one)
    ]
    if user is not None:
        name = user_of(pages, user)
        for loaded in (new, old):
            if loaded.recommender.profiles.row(name) is None:
                raise HTTPException(404, f"Version {loaded.version} does not know this user.")
        values["both"] = {"about": about(new, name), "lists": side_by_side(pages, new, old, name)}
    return pages.render(request, "compare.html", values)


@router.get("/charts/segments.svg")
def segments_chart(
    request: Request, candidate: str, champion: str, theme: Literal["light", "dark"] = "light"
) -> Response:
    """Both versions' hit rate by segment, with popularity on the candidate's hold-out."""
    pages = pages_of(request)
    pair = choose(pages, pages.releases.versions(), candidate, champion)
    if pair is None:
        raise HTTPException(404, "There are no two versions.")
    rows = []
    sides = [("champion", pair.champion, MODEL), ("candidate", pair.candidate, MODEL)]
    sides.append(("popularity, recent", pair.candidate, "popularity, recent"))
    for side, version, model in sides:
        table = figures(pages, version)
        chosen = table[(table["model"] == model) & (table["metric"] == hit_metric(table))]
        named = chosen.set_index("segment")
        for segment in SEGMENTS:
            if segment in named.index and named.loc[segment, "value"] == named.loc[segment, "value"]:
                one = named.loc[segment]
                name = side if model != MODEL else f"{side}, version {version.number}"
                rows.append((name, segment, float(one["value"]), float(one["low"]), float(one["high"])))
    return Response(charts.segments(rows, theme), media_type="image/svg+xml", headers=charts.HEADERS)
