"""Title: what is known of it, which titles are near, with which it shares listeners, and who would get it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from fastapi import APIRouter, HTTPException, Request, Response

from audiorec.reasons import MIN_EDGE_USERS
from audiorec.recommend import Asked, Recommender, UnknownTitle
from serving.pages.base import Pages, pages_of
from serving.pages.releases import Loaded

router = APIRouter()

Kind = Literal["audiobook", "podcast"]
FOUND = 50
NEAR = 12
WHO = 12
"""Users of the sample who are named."""


@dataclass(frozen=True)
class Shared:
    """A title that people streamed as well: how many of them, five at least."""

    kind: str
    item_id: str
    title: str
    users: int


@dataclass(frozen=True)
class Audience:
    """Who of the sample gets a title among their first ten: all, by country (five at least), and some by handle."""

    looked_at: int
    users: int
    countries: list[tuple[str, int]]
    some: list[str]


def search(recommender: Recommender, text: str) -> list[tuple[Kind, str, str, str]]:
    """(kind, id, title, author or publisher) of titles whose name, author or id holds the text."""
    wanted, found = text.casefold().strip(), []
    tables: tuple[tuple[Kind, pd.DataFrame], ...] = (
        ("audiobook", recommender.books),
        ("podcast", recommender.podcasts),
    )
    for kind, table in tables:
        by = _by(table)
        names = zip(table[f"{kind}_id"], table["title"], by, strict=True)
        for idx, (item_id, title, author) in enumerate(names):
            if any(isinstance(one, str) and wanted in one.casefold() for one in (item_id, title, author)):
                found.append((kind, str(item_id), recommender.title(kind, idx), author))
            if len(found) >= FOUND:
                return found
    return found


def _by(table: pd.DataFrame) -> list[str]:
    column = next((name for name in ("author", "publisher") if name in table.columns), None)
    if column is None:
        return [""] * len(table)
    return [one if isinstance(one, str) else "" for one in table[column]]


def shared(recommender: Recommender, kind: Kind, idx: int) -> list[Shared]:
    """Titles with common listeners, the most first. Edges of fewer than five people are as if they were not there."""
    found = []
    others: tuple[Kind, ...] = ("audiobook", "podcast")
    for other in others:
        rows, users = recommender.reasons.edges[kind, other].neighbours(idx)
        found += [
            Shared(other, recommender.item_id(other, row), recommender.title(other, row), people)
            for row, people in zip(rows.tolist(), users.tolist(), strict=True)
            if not (other == kind and row == idx)
        ]
    return sorted(found, key=lambda one: -one.users)[:NEAR]


def audience(pages: Pages, loaded: Loaded, item_id: str) -> Audience:
    """Who of a sample of users would be shown an audiobook among the first ten."""
    users = [one for one in loaded.sample() if not pages.withheld.is_forgotten(one)]
    tens = loaded.first_tens(users)
    getting = [one for one in users if item_id in tens[one]]
    table = loaded.recommender.profiles.users
    rows = [loaded.recommender.profiles.row(one) for one in getting]
    country = Counter(str(one) for one in table["country"].iloc[rows] if isinstance(one, str))
    return Audience(
        len(users),
        len(getting),
        [(name, number) for name, number in country.most_common() if number >= MIN_EDGE_USERS],
        [pages.seal.handle(one) for one in getting[:WHO]],
    )


def facts(recommender: Recommender, kind: Kind, idx: int) -> list[tuple[str, str]]:
    """What the catalogue says of a title, by name; what is missing is left out."""
    table = recommender.books if kind == "audiobook" else recommender.podcasts
    row = table.iloc[idx]
    found = []
    for name in ("author", "publisher", "genre", "category", "language", "published_on"):
        value = row.get(name)
        if value is not None and pd.notna(value):
            found.append((name.replace("_", " "), str(value)[:10] if name == "published_on" else str(value)))
    return found


# --- routes


@router.get("/titles")
def find(request: Request, q: str = "") -> Response:
    """Titles by name, author or id."""
    pages = pages_of(request)
    loaded = pages.releases.get()
    found = search(loaded.recommender, q) if q.strip() else []
    popular = [] if q.strip() else _popular(pages, loaded)
    values = {
        "here": "titles",
        "q": q,
        "found": found,
        "most": FOUND,
        "popular": popular,
        "loaded": loaded,
    }
    return pages.render(request, "titles.html", values)


def _popular(pages: Pages, loaded: Loaded) -> list[tuple[Kind, str, str, str]]:
    """The ten titles that a stranger would get, as a way in."""
    answer = loaded.recommender.answer(pages.withheld.apply(Asked(k=10)))
    return [("audiobook", one.audiobook_id, one.title, one.author or "") for one in answer.titles]


@router.get("/titles/{kind}/{item_id:path}")
def one_title(request: Request, kind: Kind, item_id: str) -> Response:
    """One audiobook or podcast."""
    pages = pages_of(request)
    loaded = pages.releases.get()
    recommender = loaded.recommender
    try:
        idx = recommender.idx(kind, item_id)
        near = recommender.similar(kind, item_id, NEAR)
    except (KeyError, UnknownTitle):
        raise HTTPException(404, f"The release of {recommender.as_of} has no such {kind}.") from None
    table = recommender.books if kind == "audiobook" else recommender.podcasts
    description = table["description"].iloc[idx]
    values: dict[str, Any] = {
        "here": "titles",
        "loaded": loaded,
        "kind": kind,
        "item_id": item_id,
        "title": recommender.title(kind, idx),
        "facts": facts(recommender, kind, idx),
        "description": description if isinstance(description, str) else "",
        "near": near,
        "shared": shared(recommender, kind, idx),
        "least": MIN_EDGE_USERS,
        "listened": recommender.listened(idx) if kind == "audiobook" else None,
        "available": bool(recommender.available[idx]) if kind == "audiobook" else True,
        "hidden": kind == "audiobook" and item_id in pages.withheld.hidden(),
        "audience": audience(pages, loaded, item_id) if kind == "audiobook" else None,
    }
    return pages.render(request, "title.html", values)
